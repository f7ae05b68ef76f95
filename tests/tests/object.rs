//! What the compiled programs are: what the fast path costs, that the counts
//! are kept by instructions that return what they changed, and that the
//! verifier has slack.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, and says so by panicking"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a machine's registers are looked at as 32 bits and as signed numbers"
)]

#[expect(dead_code, reason = "shared with the tests of single frames")]
#[path = "frames/build.rs"]
mod build;

use aya::programs::{BtfTracePoint, SchedClassifier};
use build::{Dial, Named, table};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, SymbolKind,
    read::elf::ElfFile64,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use throttle::object::{Home, Object, Sizes};
use throttle_common::{
    frame::{self, Headers, Kind, Link, Quoted},
    policy::Policy,
    record::STEP_PROGRAMS,
};

// ---- the object -----------------------------------------------------------

/// One instruction (struct bpf_insn of linux/bpf.h).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    dst: usize,
    src: usize,
    offset: i16,
    imm: i32,
    /// The loader puts the address of a map, or of another function, here.
    relocated: bool,
}

impl fmt::Debug for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code,
            dst,
            src,
            offset,
            imm,
            ..
        } = self;
        write!(f, "{code:#04x} r{dst} r{src} {offset:+} {imm:#x}")
    }
}

/// Classes of instructions.
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const ALU: u8 = 0x04;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;

/// Whole opcodes.
const LOAD_IMM64: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP: u8 = 0x05;
const ATOMIC_32: u8 = 0xc3;
const ATOMIC_64: u8 = 0xdb;

/// What an atomic instruction does, in its immediate operand.
const ADD: i32 = 0x00;
const FETCH: i32 = 0x01;
const EXCHANGE: i32 = 0xe1;
const COMPARE_EXCHANGE: i32 = 0xf1;

impl Instruction {
    fn class(self) -> u8 {
        self.code & 0x07
    }

    fn is_atomic(self) -> bool {
        matches!(self.code, ATOMIC_32 | ATOMIC_64)
    }

    /// Where it may go on, as indices; none behind an exit.
    fn successors(self, at: usize) -> Vec<usize> {
        let target = || at.checked_add_signed(1 + isize::from(self.offset)).unwrap();
        match (self.code, self.class()) {
            (EXIT, _) => vec![],
            (JUMP, _) => vec![target()],
            (CALL, _) => vec![at + 1],
            (_, JMP | JMP32) => vec![at + 1, target()],
            (LOAD_IMM64, _) => vec![at + 2],
            _ => vec![at + 1],
        }
    }

    /// Whether it reads a register. A call is taken to read none: what it is
    /// given, was put there for it.
    fn reads(self, register: usize) -> bool {
        let by_register = self.code & 0x08 != 0;
        match self.class() {
            LDX => self.src == register,
            ST => self.dst == register,
            STX => {
                self.src == register || self.dst == register || {
                    self.is_atomic() && self.imm == COMPARE_EXCHANGE && register == 0
                }
            }
            // A move does not read what it overwrites; a swap of bytes has no
            // second operand.
            ALU | ALU64 => match self.code & 0xf0 {
                0xb0 => by_register && self.src == register,
                0xd0 | 0x80 => self.dst == register,
                _ => self.dst == register || by_register && self.src == register,
            },
            JMP | JMP32 => match self.code {
                JUMP | CALL => false,
                EXIT => register == 0,
                _ => self.dst == register || by_register && self.src == register,
            },
            _ => false,
        }
    }

    /// Whether it overwrites a register.
    fn overwrites(self, register: usize) -> bool {
        match self.class() {
            LD | LDX | ALU | ALU64 => self.dst == register,
            STX if self.is_atomic() && self.imm == COMPARE_EXCHANGE => register == 0,
            STX if self.is_atomic() && self.imm & FETCH != 0 => self.src == register,
            JMP if self.code == CALL => register <= 5,
            _ => false,
        }
    }
}

/// The functions of the object by name.
struct Compiled {
    functions: BTreeMap<String, Vec<Instruction>>,
    licence: Vec<u8>,
}

impl Compiled {
    fn new() -> Self {
        let elf: ElfFile64<'_> = ElfFile64::parse(throttle::object::bytes()).unwrap();
        let mut functions = BTreeMap::new();
        for symbol in elf
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text)
        {
            let section = symbol.section_index().unwrap();
            let section = elf.section_by_index(section).unwrap();
            // R_BPF_64_64 is a map or data, R_BPF_64_32 a function.
            let relocated: BTreeSet<u64> = section
                .relocations()
                .filter(|(_, relocation)| matches!(relocation.flags(), RelocationFlags::Elf { .. }))
                .map(|(offset, _)| offset)
                .collect();
            let (from, len) = (symbol.address(), symbol.size());
            let data = section.data_range(from, len).unwrap().unwrap();
            let code = (from..).step_by(8).zip(data.chunks_exact(8));
            let code = code.map(|(offset, bytes)| Instruction {
                code: bytes[0],
                dst: usize::from(bytes[1] & 0x0f),
                src: usize::from(bytes[1] >> 4),
                offset: i16::from_le_bytes([bytes[2], bytes[3]]),
                imm: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
                relocated: relocated.contains(&offset),
            });
            functions.insert(symbol.name().unwrap().to_owned(), code.collect());
        }
        let licence = elf.section_by_name("license").unwrap();
        Self {
            functions,
            licence: licence.data().unwrap().to_vec(),
        }
    }

    #[track_caller]
    fn function(&self, name: &str) -> &[Instruction] {
        let found = self.functions.get(name);
        found.unwrap_or_else(|| panic!("no function {name}"))
    }

    /// Indices and instructions of a function, without the second halves of
    /// 64-bit constants.
    fn instructions(&self, name: &str) -> impl Iterator<Item = (usize, Instruction)> {
        let code = self.function(name);
        let mut second_half = false;
        code.iter().copied().enumerate().filter(move |(_, op)| {
            let skip = std::mem::take(&mut second_half);
            second_half = !skip && op.code == LOAD_IMM64;
            !skip
        })
    }

    /// How often each kind of atomic instruction is in a function.
    fn atomics(&self, name: &str) -> BTreeMap<i32, usize> {
        let mut kinds = BTreeMap::new();
        for (_, op) in self.instructions(name).filter(|(_, op)| op.is_atomic()) {
            *kinds.entry(op.imm).or_default() += 1;
        }
        kinds
    }
}

// ---- a machine that can only read -----------------------------------------

/// How a run over a frame ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// It returned this, after so many instructions, all of them its own.
    Returned(u64, usize),
    /// It was about to call a helper or another function.
    Called,
    /// It was about to name a map.
    NamedMap,
}

/// Where its memory begins. Pointers to packets are 32 bits wide in the
/// context, before the verifier widens them.
const CONTEXT: u64 = 0x1000_0000;
const PACKET: u64 = 0x2000_0000;
const STACK: u64 = 0x3000_0000;
const STACK_LEN: u64 = 512;

struct Machine<'a> {
    code: &'a [Instruction],
    registers: [u64; 11],
    context: Vec<u8>,
    packet: Vec<u8>,
    stack: Vec<u8>,
}

impl<'a> Machine<'a> {
    fn new(code: &'a [Instruction], frame: &[u8]) -> Self {
        let mut registers = [0xdead_beef; 11];
        registers[1] = CONTEXT;
        registers[10] = STACK + STACK_LEN;
        // Offsets in struct __sk_buff of linux/bpf.h.
        let len = u32::try_from(frame.len()).unwrap();
        let data = u32::try_from(PACKET).unwrap();
        let mut context = vec![0; 192];
        for (offset, value) in [(0, len), (40, 1), (76, data), (80, data + len)] {
            context[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
        Self {
            code,
            registers,
            context,
            packet: frame.to_vec(),
            stack: vec![0; STACK_LEN as usize],
        }
    }

    fn memory(&mut self, address: u64, len: usize) -> &mut [u8] {
        let (memory, base) = match address & 0xf000_0000 {
            CONTEXT => (&mut self.context, CONTEXT),
            PACKET => (&mut self.packet, PACKET),
            STACK => (&mut self.stack, STACK),
            _ => panic!("a read at {address:#x}"),
        };
        let from = usize::try_from(address - base).unwrap();
        let there = memory.len();
        memory
            .get_mut(from..from + len)
            .unwrap_or_else(|| panic!("a read of {len} bytes at {from} of {there}"))
    }

    fn load(&mut self, address: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(self.memory(address, len));
        u64::from_le_bytes(bytes)
    }

    fn store(&mut self, address: u64, len: usize, value: u64) {
        self.memory(address, len)
            .copy_from_slice(&value.to_le_bytes()[..len]);
    }

    /// Runs until it returns, or wants something that is not its own.
    fn run(mut self) -> Run {
        let mut at = 0;
        for steps in 1.. {
            let op = self.code[at];
            let wide = op.imm as i64 as u64;
            let (dst, src) = (self.registers[op.dst], self.registers[op.src]);
            let operand = if op.code & 0x08 != 0 { src } else { wide };
            let size = [4, 2, 1, 8][usize::from(op.code >> 3 & 3)];
            let near = |base: u64| base.wrapping_add_signed(i64::from(op.offset));
            let mut jump = false;
            match (op.code, op.class()) {
                (EXIT, _) => return Run::Returned(self.registers[0], steps),
                (CALL, _) => return Run::Called,
                (LOAD_IMM64, _) if op.relocated => return Run::NamedMap,
                (LOAD_IMM64, _) => {
                    let high = u64::from(self.code[at + 1].imm as u32);
                    self.registers[op.dst] = high << 32 | u64::from(op.imm as u32);
                    at += 1;
                }
                (_, LDX) => self.registers[op.dst] = self.load(near(src), size),
                (_, ST) => self.store(near(dst), size, wide),
                (_, STX) if !op.is_atomic() => self.store(near(dst), size, src),
                (_, ALU64) => self.registers[op.dst] = compute(op, dst, operand),
                (_, ALU) => {
                    let value = compute32(op, dst, operand);
                    self.registers[op.dst] = value;
                }
                (_, JMP) => jump = holds(op.code, dst, operand, dst as i64, operand as i64),
                (_, JMP32) => {
                    let (a, b) = (dst as u32, operand as u32);
                    let signed = (i64::from(a as i32), i64::from(b as i32));
                    jump = holds(op.code, u64::from(a), u64::from(b), signed.0, signed.1);
                }
                _ => panic!("unknown instruction {op:?}"),
            }
            let next = if jump {
                at.checked_add_signed(isize::from(op.offset))
            } else {
                Some(at)
            };
            at = next.unwrap() + 1;
        }
        unreachable!("steps never end")
    }
}

/// 64-bit arithmetic.
fn compute(op: Instruction, a: u64, b: u64) -> u64 {
    let shift = (b & 63) as u32;
    match op.code & 0xf0 {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b).unwrap_or(0),
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a << shift,
        0x70 => a >> shift,
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(b).unwrap_or(a),
        0xa0 => a ^ b,
        0xb0 => b,
        0xc0 => ((a as i64) >> shift) as u64,
        _ => panic!("unknown arithmetic {op:?}"),
    }
}

/// 32-bit arithmetic, and swaps of bytes.
fn compute32(op: Instruction, a: u64, b: u64) -> u64 {
    if op.code & 0xf0 == 0xd0 {
        let to_big = op.code & 0x08 != 0;
        return match (op.imm, to_big) {
            (16, true) => u64::from((a as u16).swap_bytes()),
            (32, true) => u64::from((a as u32).swap_bytes()),
            (64, true) => a.swap_bytes(),
            (16, false) => u64::from(a as u16),
            (32, false) => u64::from(a as u32),
            (64, false) => a,
            _ => panic!("unknown swap {op:?}"),
        };
    }
    let (a, b) = (a as u32, b as u32);
    let value = match op.code & 0xf0 {
        0x60 => a << (b & 31),
        0x70 => a >> (b & 31),
        0xc0 => ((a as i32) >> (b & 31)) as u32,
        _ => compute(op, u64::from(a), u64::from(b)) as u32,
    };
    u64::from(value)
}

fn holds(code: u8, a: u64, b: u64, signed_a: i64, signed_b: i64) -> bool {
    match code & 0xf0 {
        0x00 => true,
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        0x50 => a != b,
        0x60 => signed_a > signed_b,
        0x70 => signed_a >= signed_b,
        0xa0 => a < b,
        0xb0 => a <= b,
        0xc0 => signed_a < signed_b,
        0xd0 => signed_a <= signed_b,
        _ => panic!("unknown comparison {code:#x}"),
    }
}

// ---- the fast path --------------------------------------------------------

/// The entry programs for a kind of device, and whether each looks at what goes
/// out.
fn entries(link: Link) -> [(&'static str, bool); 4] {
    match link {
        Link::Ethernet => [
            ("out_egress_ether", true),
            ("out_ingress_ether", true),
            ("in_ingress_ether", false),
            ("in_egress_ether", false),
        ],
        Link::Ip => [
            ("out_egress_ip", true),
            ("out_ingress_ip", true),
            ("in_ingress_ip", false),
            ("in_egress_ip", false),
        ],
    }
}

/// Whether a frame can neither be an attempt nor end one.
fn is_nothing_to(outward: bool, frame: &Named) -> bool {
    let Headers::Found(layout) = frame::headers(&frame.bytes[..], frame.link) else {
        return frame::headers(&frame.bytes[..], frame.link) == Headers::Other;
    };
    match frame::kind(&frame.bytes[..], &layout) {
        Kind::Other => true,
        Kind::SynAck | Kind::Reset => outward,
        Kind::IcmpError => outward || frame::quote(&frame.bytes[..], &layout) == Quoted::Other,
        Kind::Syn | Kind::Unparsed => false,
    }
}

#[test]
fn what_is_no_attempt_passes_without_a_call_or_a_map() {
    /// What a packet may cost that is none of the throttle's business, behind
    /// two tags and all extension headers: well below a microsecond.
    const STEPS_MAX: usize = 500;
    const PASS: u64 = u64::MAX;
    let object = Compiled::new();
    let (mut passed, mut most) = (0, (0, String::new()));
    for frame in table() {
        for (entry, outward) in entries(frame.link) {
            let run = Machine::new(object.function(entry), &frame.bytes).run();
            let what = format!("{entry}: {}", frame.name);
            if is_nothing_to(outward, &frame) {
                let Run::Returned(code, steps) = run else {
                    panic!("{what}: {run:?}")
                };
                // The return code is 32 bits wide.
                assert_eq!(code as u32, PASS as u32, "{what}");
                assert!(steps <= STEPS_MAX, "{what}: {steps} instructions");
                most = most.max((steps, what));
                passed += 1;
            } else {
                // So the machine is not blind.
                assert!(
                    matches!(run, Run::Called | Run::NamedMap),
                    "{what}: {run:?}"
                );
            }
        }
    }
    assert!(passed > 500, "{passed}");
    println!(
        "{passed} runs; the longest took {} instructions: {}",
        most.0, most.1
    );
}

#[test]
fn most_packets_cost_a_few_dozen_instructions() {
    /// Flags of TCP.
    const ACK: u8 = 0x10;
    const STEPS_MAX: usize = 130;
    let object = Compiled::new();
    for dial in [Dial::v4(0), Dial::v6(0)] {
        for (what, packet) in [
            (
                "data",
                dial.out(6, &dial.asks(ACK).options(3).data(900).bytes()),
            ),
            ("ACK", dial.out(6, &dial.asks(ACK).bytes())),
            ("UDP", dial.out(17, &[0; 100])),
        ] {
            let mut line = format!("{:?} {what}:", dial.family);
            for (link, frame) in [(Link::Ethernet, packet.ether()), (Link::Ip, packet.bytes())] {
                for (entry, _) in entries(link) {
                    let run = Machine::new(object.function(entry), &frame).run();
                    let Run::Returned(_, steps) = run else {
                        panic!("{entry}, {what}: {run:?}")
                    };
                    assert!(steps <= STEPS_MAX, "{entry}, {what}: {steps}");
                    line += &format!(" {entry} {steps}");
                }
            }
            println!("{line}");
        }
    }
}

#[test]
fn what_is_cut_short_is_never_read_beyond_its_end() {
    // The machine panics at a read outside of the packet.
    let object = Compiled::new();
    for frame in table() {
        for len in 0..frame.bytes.len().min(160) {
            for (entry, _) in entries(frame.link) {
                Machine::new(object.function(entry), &frame.bytes[..len]).run();
            }
        }
    }
}

// ---- counting -------------------------------------------------------------

/// With relaxed ordering LLVM 22 emits an addition that returns nothing, and
/// then takes the operand for what was there before.
#[test]
fn no_addition_that_returns_nothing_is_used_as_if_it_did() {
    let object = Compiled::new();
    let (mut plain, mut fetching) = (0, 0);
    for name in object.functions.keys() {
        let code = object.function(name);
        for (at, op) in object.instructions(name) {
            if !op.is_atomic() || op.imm & !FETCH != ADD {
                continue;
            }
            if op.imm & FETCH != 0 {
                fetching += 1;
                continue;
            }
            plain += 1;
            assert!(
                !is_read_later(code, at, op.src),
                "{name}+{at}: {op:?} is followed by a read of r{}",
                op.src
            );
        }
    }
    println!("{plain} additions return nothing, {fetching} return what was there");
    assert!(fetching > 0);
}

/// Whether a register may be read behind `at` before it is overwritten.
fn is_read_later(code: &[Instruction], at: usize, register: usize) -> bool {
    let mut open = code[at].successors(at);
    let mut visited = BTreeSet::new();
    while let Some(at) = open.pop() {
        if !visited.insert(at) {
            continue;
        }
        let op = code[at];
        if op.reads(register) {
            return true;
        }
        if !op.overwrites(register) {
            open.extend(op.successors(at));
        }
    }
    false
}

#[test]
fn an_operand_that_is_read_again_is_noticed() {
    let op = |code, dst, src, imm| Instruction {
        code,
        dst,
        src,
        offset: 0,
        imm,
        relocated: false,
    };
    let add = op(ATOMIC_64, 1, 2, ADD);
    let (read, exit) = (op(0xbf, 0, 2, 0), op(EXIT, 0, 0, 0));
    assert!(is_read_later(&[add, read, exit], 0, 2));
    assert!(!is_read_later(&[add, op(0xb7, 2, 0, 1), read, exit], 0, 2));
    assert!(!is_read_later(&[add, op(CALL, 0, 0, 1), read, exit], 0, 2));
}

#[test]
fn counts_are_taken_by_instructions_that_return_what_they_changed() {
    let object = Compiled::new();
    for name in object.functions.keys() {
        let atomics = object.atomics(name);
        if !atomics.is_empty() {
            println!("{name}: {atomics:x?}");
        }
    }
    let has = |name: &str, kind: i32| object.atomics(name).contains_key(&kind);
    // Taking a place, and giving it back if it was one too many.
    assert!(has("scope_counter_file", COMPARE_EXCHANGE));
    assert!(has("line_counter_file", COMPARE_EXCHANGE));
    // A bucket ends by an exchange, so that it is subtracted once.
    for counter in ["scope_counter", "line_counter"] {
        assert!(
            has(&format!("{counter}_end"), COMPARE_EXCHANGE),
            "{counter}"
        );
        let sweep = format!("{counter}_sweep");
        assert!(
            has(&sweep, COMPARE_EXCHANGE) || has(&sweep, EXCHANGE),
            "{counter}"
        );
    }
    for name in ["admit", "defer", "scope_counter_file", "line_counter_file"] {
        assert!(
            has(name, ADD | FETCH),
            "{name}: {:x?}",
            object.atomics(name)
        );
    }
    // A phase changes by compare-and-swap.
    assert!(has("syn", COMPARE_EXCHANGE));
}

// ---- the verifier ---------------------------------------------------------

#[test]
fn the_licence_lets_the_helpers_be_used() {
    assert_eq!(Compiled::new().licence, b"Dual MIT/GPL\0");
}

#[test]
fn the_verifier_is_done_with_each_program_well_below_its_limit() {
    /// Half of `BPF_COMPLEXITY_LIMIT_INSNS` of linux/bpf.h: other kernels walk
    /// other ways.
    const VERIFIED_MAX: u32 = 500_000;
    let cpus = aya::util::nr_cpus().unwrap();
    let mut object = Object::load(&Sizes::new(&Policy::default(), cpus), Home::Nowhere).unwrap();
    let links = [Link::Ethernet, Link::Ip];
    let entries = links.iter().flat_map(|&link| entries(link));
    let names: Vec<&str> = entries.map(|(name, _)| name).chain(STEP_PROGRAMS).collect();
    let mut verified = BTreeMap::new();
    for &name in &names {
        let program: &SchedClassifier = object.classifier(name).unwrap();
        let count = program.info().unwrap().verified_instruction_count();
        verified.insert(name.to_owned(), count);
    }
    object.watch_sockets(None);
    let program: &BtfTracePoint = object
        .ebpf
        .program("socket_state")
        .unwrap()
        .try_into()
        .unwrap();
    let count = program.info().unwrap().verified_instruction_count();
    verified.insert("socket_state".to_owned(), count);
    let all: BTreeSet<&str> = object.ebpf.programs().map(|(name, _)| name).collect();
    assert_eq!(verified.len(), all.len(), "{all:?}");
    for (name, count) in &verified {
        println!("{name}: {count:?}");
        // Kernels before 5.16 do not tell.
        assert!(
            count.is_none_or(|count| count < VERIFIED_MAX),
            "{name}: {count:?}"
        );
    }
}
