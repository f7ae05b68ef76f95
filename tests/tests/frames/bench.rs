//! The programs, loaded and run over frames by `BPF_PROG_TEST_RUN`.

use aya::{
    maps::{HashMap, MapData, PerCpuArray, RingBuf},
    programs::{
        LinkOrder, ProgramError, ProgramFd, SchedClassifier, TcAttachType, TestRun as _,
        TestRunOptions,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions},
    },
};
use std::cell::RefCell;
use throttle::{
    maps::{self, Maps},
    object::{Home, Object, Sizes},
};
use throttle_common::{
    flow::Endpoint,
    frame::Link,
    policy::{Daemon, Mode, Policy},
    record::{Deferred, LimitReached, RecordKind, Room, Tallies, Tally},
    scope::Line,
    subject::{LineKey, Subject, SubjectKind},
};
use throttle_ebpf::scratch::{Scratch, Seen};

/// `TCX_NEXT`: the packet goes on.
pub(crate) const PASS: u32 = u32::MAX;
/// `TC_ACT_REDIRECT` of linux/pkt_cls.h: to a device that is not there.
pub(crate) const SWALLOWED: u32 = 7;
/// `TC_ACT_SHOT` of linux/pkt_cls.h.
pub(crate) const DROPPED: u32 = 2;

/// Index of the loopback device: where a packet is unless told otherwise.
pub(crate) const LOOPBACK: u32 = 1;

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const DAY: u64 = 86_400 * SECOND;

/// Settings by which nothing happens by itself during a test.
pub(crate) const fn timeless(limit: u64) -> Policy {
    Policy {
        limit,
        interval_ns: DAY,
        attempt_timeout_ns: DAY,
        max_delay_ns: DAY,
        known_for_ns: DAY,
        line_capacity: 8,
        queue_capacity: Policy::whole_queue(8),
        mode: Mode::Enforce as u32,
        scope: SubjectKind::Interface as u32,
        pacing: throttle_common::policy::Pacing::Auto as u32,
        layout: throttle_common::layout::LAYOUT,
    }
}

/// The entry programs by what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    OutEgress,
    OutIngress,
    InIngress,
    InEgress,
}

impl Entry {
    pub(crate) const ALL: [Self; 4] = [
        Self::OutEgress,
        Self::OutIngress,
        Self::InIngress,
        Self::InEgress,
    ];

    pub(crate) const fn name(self, link: Link) -> &'static str {
        match (self, link) {
            (Self::OutEgress, Link::Ethernet) => "out_egress_ether",
            (Self::OutEgress, Link::Ip) => "out_egress_ip",
            (Self::OutIngress, Link::Ethernet) => "out_ingress_ether",
            (Self::OutIngress, Link::Ip) => "out_ingress_ip",
            (Self::InIngress, Link::Ethernet) => "in_ingress_ether",
            (Self::InIngress, Link::Ip) => "in_ingress_ip",
            (Self::InEgress, Link::Ethernet) => "in_egress_ether",
            (Self::InEgress, Link::Ip) => "in_egress_ip",
        }
    }

    pub(crate) fn looks_outward(self) -> bool {
        matches!(self, Self::OutEgress | Self::OutIngress)
    }
}

/// What is said beside a packet: fields of `struct __sk_buff`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beside {
    pub(crate) ifindex: u32,
    pub(crate) mark: u32,
    pub(crate) priority: u32,
}

impl Beside {
    fn words(self) -> [u8; 192] {
        // Offsets in `struct __sk_buff` of linux/bpf.h, in words.
        let fields = [(2, self.mark), (8, self.priority), (10, self.ifindex)];
        let mut bytes = [0; 192];
        for (word, value) in fields {
            bytes[word * 4..][..4].copy_from_slice(&u32::to_ne_bytes(value));
        }
        bytes
    }
}

/// A record, as the daemon reads it.
#[derive(Debug)]
pub(crate) enum Record {
    Deferred(Box<Deferred>),
    LimitReached(LimitReached),
    Room(#[expect(dead_code, reason = "shown when a test fails")] Room),
}

type RawLine = [u64; size_of::<Line>() / 8];
type RawScratch = [u8; size_of::<Scratch>()];

/// The programs and what they remember.
pub(crate) struct Bench {
    object: Object,
    pub(crate) maps: Maps,
    ring: RefCell<RingBuf<MapData>>,
    endpoints: HashMap<MapData, [u8; 20], u64>,
    lines: HashMap<MapData, [u8; size_of::<LineKey>()], RawLine>,
    scratch: RefCell<PerCpuArray<MapData, RawScratch>>,
}

impl Bench {
    /// The programs, with these settings in force and no daemon.
    pub(crate) fn new(policy: &Policy) -> Self {
        let cpus = aya::util::nr_cpus().unwrap();
        Self::sized(policy, &Sizes::new(policy, cpus))
    }

    /// The same with tables of these sizes.
    pub(crate) fn sized(policy: &Policy, sizes: &Sizes) -> Self {
        let mut object = Object::load(sizes, Home::Nowhere).unwrap();
        let mut maps = Maps::take(&mut object.ebpf).unwrap();
        maps.set_policy(policy).unwrap();
        for entry in Entry::ALL {
            for link in [Link::Ethernet, Link::Ip] {
                object.classifier(entry.name(link)).unwrap();
            }
        }
        let ring = maps::take(&mut object.ebpf, "EVENTS").unwrap();
        let endpoints = maps::take(&mut object.ebpf, "ENDPOINTS").unwrap();
        let lines = maps::take(&mut object.ebpf, "LINES").unwrap();
        let scratch = maps::take(&mut object.ebpf, "SCRATCH").unwrap();
        Self {
            object,
            maps,
            ring: RefCell::new(ring),
            endpoints,
            lines,
            scratch: RefCell::new(scratch),
        }
    }

    /// A daemon that is alive for good.
    pub(crate) fn daemon_is_alive(&mut self, generation: u64) {
        self.set_daemon(generation, u64::MAX);
    }

    /// The daemon is there, and has not been heard of for long.
    pub(crate) fn daemon_hangs(&mut self, generation: u64) {
        self.set_daemon(generation, 0);
    }

    fn set_daemon(&mut self, generation: u64, alive_until_ns: u64) {
        self.maps
            .set_daemon(&Daemon {
                generation,
                cookie: 0,
                alive_until_ns,
            })
            .unwrap();
    }

    /// Attaches an entry to what leaves a device of the calling thread's
    /// namespace, until the link is dropped.
    pub(crate) fn attach_to_egress(&mut self, entry: Entry, device: &str) -> SchedClassifierLink {
        self.attach(entry, device, TcAttachType::Egress)
    }

    /// The same to what comes in by a device.
    pub(crate) fn attach_to_ingress(&mut self, entry: Entry, device: &str) -> SchedClassifierLink {
        self.attach(entry, device, TcAttachType::Ingress)
    }

    fn attach(&mut self, entry: Entry, device: &str, at: TcAttachType) -> SchedClassifierLink {
        let program = self.object.classifier(entry.name(Link::Ethernet)).unwrap();
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let by_tcx = program.attach_with_options(device, at, first);
        let id = by_tcx.unwrap_or_else(|_| {
            // Before Linux 6.6. An error here is one of the attachment.
            let _ = tc::qdisc_add_clsact(device);
            let last = TcAttachOptions::Netlink(NlOptions::default());
            let by_clsact = program.attach_with_options(device, at, last);
            by_clsact.unwrap()
        });
        program.take_link(id).unwrap()
    }

    /// Runs an entry over a frame. The error is what the kernel's own runner
    /// has against the frame.
    pub(crate) fn try_run(
        &self,
        entry: Entry,
        link: Link,
        frame: &[u8],
        beside: Beside,
    ) -> Result<u32, i32> {
        let name = entry.name(link);
        let program: &SchedClassifier = self.object.ebpf.program(name).unwrap().try_into().unwrap();
        let context = beside.words();
        let run = program.test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        });
        match run {
            Ok(result) => Ok(result.return_value),
            Err(ProgramError::SyscallError(error)) => Err(error.io_error.raw_os_error().unwrap()),
            Err(error) => panic!("run {name}: {error}"),
        }
    }

    /// The same, on Ethernet, with nothing said beside.
    #[track_caller]
    pub(crate) fn run(&self, entry: Entry, frame: &[u8]) -> u32 {
        self.run_beside(entry, frame, Beside::default())
    }

    #[track_caller]
    pub(crate) fn run_beside(&self, entry: Entry, frame: &[u8], beside: Beside) -> u32 {
        match self.try_run(entry, Link::Ethernet, frame, beside) {
            Ok(code) => code,
            Err(errno) => panic!("{entry:?}: {}", std::io::Error::from_raw_os_error(errno)),
        }
    }

    /// An entry, to be run by a thread of its own.
    pub(crate) fn program(&self, entry: Entry, link: Link) -> ProgramFd {
        let name = entry.name(link);
        let program: &SchedClassifier = self.object.ebpf.program(name).unwrap().try_into().unwrap();
        program.fd().unwrap().try_clone().unwrap()
    }

    /// The state of every line.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let lines = self.lines.iter().map(|line| {
            // SAFETY: the same size (checked by the compiler); made of numbers.
            unsafe { std::mem::transmute::<RawLine, Line>(line.unwrap().1) }
        });
        lines.collect()
    }

    /// How many endpoints are remembered.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints.keys().count()
    }

    /// Forgets what was read from the last packet.
    pub(crate) fn clear_seen(&self) {
        let cpus = aya::util::nr_cpus().unwrap();
        let blank = vec![[0; size_of::<Scratch>()]; cpus].try_into().unwrap();
        self.scratch.borrow_mut().set(0, blank, 0).unwrap();
    }

    /// What was read from the packet that was last run, if anything was noted.
    pub(crate) fn seen(&self) -> Option<Seen> {
        let scratch = self.scratch.borrow().get(&0, 0).unwrap();
        scratch.iter().find_map(|of_cpu| {
            // SAFETY: a Scratch begins with a Seen (`repr(C)`), which is made of
            // numbers; every bit pattern is one.
            let seen = unsafe { of_cpu.as_ptr().cast::<Seen>().read_unaligned() };
            (seen.incoming != 0).then_some(seen)
        })
    }

    /// The records since this was last asked.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(bytes) = self.ring.borrow_mut().next() {
            let kind = maps::record(&bytes).and_then(RecordKind::from_raw).unwrap();
            records.push(match kind {
                RecordKind::Deferred => Record::Deferred(Box::new(maps::record(&bytes).unwrap())),
                RecordKind::LimitReached => Record::LimitReached(maps::record(&bytes).unwrap()),
                RecordKind::Room => Record::Room(maps::record(&bytes).unwrap()),
            });
        }
        records
    }

    /// Their kinds.
    pub(crate) fn record_kinds(&self) -> Vec<RecordKind> {
        let kind = |record: &Record| match record {
            Record::Deferred(_) => RecordKind::Deferred,
            Record::LimitReached(_) => RecordKind::LimitReached,
            Record::Room(_) => RecordKind::Room,
        };
        self.records().iter().map(kind).collect()
    }

    /// How often something could not be handled the usual way.
    pub(crate) fn unhandled(&self, name: &str) -> u64 {
        let counts = self.maps.unhandled();
        counts.iter().find(|(of, _)| *of == name).unwrap().1
    }

    /// Half-open and queued attempts of an interface.
    pub(crate) fn counts(&self, ifindex: u32) -> (u64, u64) {
        self.maps
            .scope(&interface(ifindex))
            .map_or((0, 0), |scope| {
                (scope.half_open.total(), scope.queued.total())
            })
    }

    pub(crate) fn tally(&self, tally: Tally) -> u64 {
        self.tallies().get(tally)
    }

    pub(crate) fn tallies(&self) -> Tallies {
        self.maps.tallies(&interface(LOOPBACK))
    }

    /// Whether an endpoint has answered, and nothing has gone unanswered since.
    pub(crate) fn is_known(&self, endpoint: &Endpoint) -> bool {
        self.answered_at(endpoint).is_some_and(|at_ns| at_ns != 0)
    }

    /// When an endpoint answered last; 0 if something has gone unanswered since.
    pub(crate) fn answered_at(&self, endpoint: &Endpoint) -> Option<u64> {
        let mut key = [0; 20];
        key[..16].copy_from_slice(&endpoint.address);
        key[16..18].copy_from_slice(&endpoint.port);
        self.endpoints.get(&key, 0).ok()
    }
}

/// The scope of an interface.
pub(crate) fn interface(ifindex: u32) -> Subject {
    Subject::numbered(SubjectKind::Interface, u64::from(ifindex))
}
