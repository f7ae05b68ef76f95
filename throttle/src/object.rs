//! The eBPF programs and maps, loaded into the kernel.

use std::{
    error::Error as StdError,
    fs, iter,
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{MapData, MapType, ProgramArray},
    programs::{
        BtfTracePoint, ProgramError, ProgramType, SchedClassifier,
        links::{FdLink, PinnedLink},
    },
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use log::{debug, warn};
use throttle_common::{
    flow::{Endpoint, Flow, FlowKey},
    policy::Policy,
    process::Socket,
    record::{STEP_PROGRAMS, TALLIES},
    scope::{Line, Scope},
    subject::{LineKey, Subject},
};

use crate::{
    Error, Result, attach,
    exempt::EXEMPT_MAX,
    layout, maps,
    pins::{self, Pins},
};

/// The initial pid namespace, as /proc names it (`PROC_PID_INIT_INO` of
/// include/linux/proc_ns.h).
pub(crate) const INITIAL_PIDS: &str = "pid:[4026531836]";

/// What the programs and maps need.
pub const NEEDED: &str = "throttle needs Linux 5.12 or later with CONFIG_BPF_SYSCALL, \
                          CONFIG_NET_CLS_ACT and CONFIG_SOCK_CGROUP_DATA";

/// How many interfaces with fq there may be. The releases of others have to be
/// due.
pub const INTERFACES_MAX: u32 = 1 << 10;

/// Whether the kernel has the helper by which a packet is told when to leave:
/// `bpf_skb_set_tstamp`, since Linux 5.18. If it does not tell, it is taken not to.
#[must_use]
pub fn sets_departures() -> bool {
    is_helper_supported(
        ProgramType::SchedClassifier,
        BpfHelper::BPF_FUNC_skb_set_tstamp,
    )
    .unwrap_or_else(|error| {
        debug!("whether the kernel can set departure times: {error}");
        false
    })
}

/// How often TCP asks again in vain before it begins to double the time: none
/// before Linux 6.5, four by default since.
fn linear_timeouts() -> u32 {
    let told = fs::read_to_string("/proc/sys/net/ipv4/tcp_syn_linear_timeouts");
    told.ok()
        .and_then(|told| told.trim().parse().ok())
        .unwrap_or(0)
}

/// The compiled programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("THROTTLE_EBPF_OBJECT"));

/// Whether process ids are here what they are for the programs: this is the
/// initial pid namespace, or there is no telling.
pub(crate) fn sees_all_processes() -> bool {
    fs::read_link("/proc/self/ns/pid").map_or(true, |own| own == Path::new(INITIAL_PIDS))
}

/// The compiled programs, as they are loaded: an ELF object.
#[must_use]
pub const fn bytes() -> &'static [u8] {
    OBJECT
}

/// How many entries the maps have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Unanswered attempts that are counted or wait.
    pub flows: u32,
    /// Unanswered attempts that were admitted uncounted.
    pub uncounted: u32,
    /// Known endpoints.
    pub endpoints: u32,
    /// Sockets that connect.
    pub sockets: u32,
    /// Scopes.
    pub scopes: u32,
    /// Lines.
    pub lines: u32,
    /// Scopes with tallies.
    pub tallies: u32,
    /// Bytes of the ring buffer.
    pub ring_bytes: u32,
}

impl Sizes {
    /// The sizes for these settings on a machine with `cpus` possible CPUs.
    ///
    /// The table of flows is bounded by limit + rate x timeout + what may be
    /// queued. Each CPU has a share of its own, and all attempts may come from
    /// one CPU: one full line has room in each share.
    #[must_use]
    pub fn new(policy: &Policy, cpus: usize) -> Self {
        let cpus = cpus.max(1) as u64;
        let counted = policy.limit + policy.attempt_timeout_ns / policy.interval_ns.max(1);
        let in_all = counted + policy.queue_capacity;
        let in_each = counted + policy.line_capacity;
        // With room for settings that change while it runs.
        let flows = (2 * in_all).max(in_each * cpus).max(1 << 15);
        let entries = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            flows: entries(flows),
            uncounted: entries((1 << 14).max(256 * cpus)),
            endpoints: entries((1 << 15).max(512 * cpus)),
            // On all interfaces, and to hosts that answer too; but each for a
            // moment only.
            sockets: entries((2 * in_all).max(256 * cpus).max(1 << 14)),
            scopes: 1 << 10,
            lines: 1 << 13,
            tallies: entries(((1 << 14) / cpus).clamp(1 << 8, 1 << 10)),
            ring_bytes: 1 << 20,
        }
    }

    /// The sizes of maps that are there already, as they are.
    ///
    /// # Errors
    ///
    /// When one is not there, or cannot be opened.
    pub fn of(pins: &Pins) -> Result<Self> {
        let entries = |name: &str| {
            let path = pins.map(name);
            MapData::from_pin(&path)
                .and_then(|map| Ok(map.info()?.max_entries()))
                .map_err(|error| Error::failed(format!("open map {}", path.display()), error))
        };
        // All of them are to be there.
        for name in pins::MAPS {
            entries(name)?;
        }
        Ok(Self {
            flows: entries("FLOWS")?,
            sockets: entries("SOCKETS")?,
            scopes: entries("SCOPES")?,
            lines: entries("LINES")?,
            tallies: entries("TALLIES")?,
            ring_bytes: entries("EVENTS")?,
            uncounted: entries("UNCOUNTED")?,
            endpoints: entries("ENDPOINTS")?,
        })
    }

    /// Whether there is room for all that these settings let wait or count.
    #[must_use]
    pub fn hold(&self, policy: &Policy, cpus: usize) -> bool {
        let counted = policy.limit + policy.attempt_timeout_ns / policy.interval_ns.max(1);
        let in_all = counted + policy.queue_capacity;
        let in_each = (counted + policy.line_capacity).saturating_mul(cpus as u64);
        u64::from(self.flows) >= in_all.max(in_each) && u64::from(self.sockets) >= in_all
    }

    /// Memory that the maps take, in bytes: what the kernel allocates for an
    /// element is `struct htab_elem` (48 bytes), the key and the value, each
    /// rounded up to eight (kernel/bpf/hashtab.c).
    #[must_use]
    pub fn bytes(&self, cpus: usize) -> usize {
        const fn element(key: usize, value: usize) -> usize {
            48 + key.next_multiple_of(8) + value.next_multiple_of(8)
        }
        let of = |entries: u32, element: usize| entries as usize * element;
        let flow = element(size_of::<FlowKey>(), size_of::<Flow>());
        of(self.flows, flow)
            + of(self.uncounted, flow)
            + of(self.endpoints, element(size_of::<Endpoint>(), 8))
            + of(self.sockets, element(8, size_of::<Socket>()))
            + of(
                self.scopes,
                element(size_of::<Subject>(), size_of::<Scope>()),
            )
            + of(self.lines, element(size_of::<LineKey>(), size_of::<Line>()))
            + of(
                self.tallies,
                element(size_of::<Subject>(), 8) + cpus * TALLIES * 8,
            )
            + of(INTERFACES_MAX, element(4, 8))
            + self.ring_bytes as usize
    }
}

/// The object in the kernel, with its deciding programs in place.
pub struct Object {
    /// The programs and the maps that nobody has taken.
    pub ebpf: Ebpf,
    /// Where the programs find the deciding ones. Held, because the table
    /// empties itself when its last user goes (`bpf_fd_array_map_clear` in
    /// kernel/bpf/arraymap.c).
    next_step: ProgramArray<MapData>,
    /// Where programs are pinned when they have been loaded.
    programs: Option<PathBuf>,
    /// The tracepoint, if its link is pinned.
    tracepoint: Option<PinnedLink>,
}

/// Where the maps of an object come from, and where they are found later.
#[derive(Debug, Clone, Copy)]
pub enum Home<'a> {
    /// They are new, and nobody else finds them.
    Nowhere,
    /// They are new, and pinned, to take the place of those that are there when
    /// the pins [`settle`](Pins::settle).
    New(&'a Pins),
    /// They are those that are pinned there. The programs are new.
    Adopted(&'a Pins),
}

impl<'a> Home<'a> {
    const fn pins(self) -> Option<&'a Pins> {
        match self {
            Self::Nowhere => None,
            Self::New(pins) | Self::Adopted(pins) => Some(pins),
        }
    }
}

/// The name of the table by which the programs find each other.
const NEXT_STEP: &str = "NEXT_STEP";

impl Object {
    /// Loads the maps, and the programs that all devices share.
    ///
    /// # Errors
    ///
    /// When the caller may not, or the kernel lacks something.
    pub fn load(sizes: &Sizes, home: Home<'_>) -> Result<Self> {
        let what = "load the eBPF programs";
        let task = layout::Task::of_this_kernel().unwrap_or_else(|error| {
            // Without BTF there is no tracepoint either, which is said then.
            if fs::exists(layout::BTF).unwrap_or(false) {
                warn!(
                    "when programs started is not known, so what /proc says of them is believed \
                       only if the name is the same: {error}"
                );
            }
            layout::Task::default()
        });
        let mut loader = EbpfLoader::new();
        if let Some(pins) = home.pins() {
            // One that is pinned is taken as it is, others are made and pinned.
            let maps = pins.maps(matches!(home, Home::New(_)));
            for name in pins::MAPS {
                loader.map_pin_path(name, maps.join(name));
            }
        }
        let mut ebpf = loader
            .override_global("TASK_GROUP_LEADER", &task.group_leader, true)
            .override_global("TASK_START_BOOTTIME", &task.start_boottime, true)
            .override_global("TASK_COMM", &task.comm, true)
            .map_max_entries("FLOWS", sizes.flows)
            .map_max_entries("UNCOUNTED", sizes.uncounted)
            .map_max_entries("ENDPOINTS", sizes.endpoints)
            .map_max_entries("SOCKETS", sizes.sockets)
            .map_max_entries("SCOPES", sizes.scopes)
            .map_max_entries("LINES", sizes.lines)
            .map_max_entries("TALLIES", sizes.tallies)
            .override_global("SETS_DEPARTURES", &u32::from(sets_departures()), true)
            .override_global("LINEAR_TIMEOUTS", &linear_timeouts(), true)
            .map_max_entries("INTERFACES", INTERFACES_MAX)
            .map_max_entries("EXEMPT", EXEMPT_MAX)
            .map_max_entries("EVENTS", sizes.ring_bytes)
            .load(OBJECT)
            .map_err(|error| match probe(what) {
                // What aya makes of a kernel that has not even these is a
                // relocation that it cannot do.
                Err(reason) => reason,
                Ok(()) => Error::needs(what, error, "map of a type that throttle uses", NEEDED),
            })?;
        let programs = home.pins().map(|pins| pins.programs(true));
        if let Some(programs) = &programs
            && let Some(table) = ebpf.map(NEXT_STEP)
        {
            table
                .pin(programs.join(NEXT_STEP))
                .map_err(|error| Error::failed(what, error))?;
        }
        let next_step = maps::take(&mut ebpf, NEXT_STEP)?;
        let mut object = Self {
            ebpf,
            next_step,
            programs,
            tracepoint: None,
        };
        for (index, name) in (0..).zip(STEP_PROGRAMS) {
            let program = object.classifier(name)?;
            let fd = program.fd().map_err(|error| Error::failed(what, error))?;
            let fd = fd.try_clone().map_err(|error| Error::failed(what, error))?;
            object
                .next_step
                .set(index, &fd, 0)
                .map_err(|error| Error::failed(what, error))?;
        }
        Ok(object)
    }

    /// The TC program `name`, loaded.
    ///
    /// # Errors
    ///
    /// When the caller may not, or the kernel refuses the program.
    pub fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        let what = format!("load program {name}");
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| Error::failed(&*what, "the object does not have it"))?
            .try_into()
            .map_err(|error: ProgramError| Error::failed(&*what, error))?;
        if program.fd().is_err() {
            program.load().map_err(|error| {
                // The error that comes of it says only the end of it.
                debug!("{what}: {error}");
                Error::needs(
                    what,
                    error,
                    "instruction or helper that this program uses",
                    "throttle needs Linux 5.12 or later",
                )
            })?;
            if let Some(programs) = &self.programs {
                program
                    .pin(programs.join(name))
                    .map_err(|error| Error::failed(format!("pin program {name}"), error))?;
            }
        }
        Ok(program)
    }

    /// What was pinned to take somebody's place has taken it.
    pub fn settled(&mut self, pins: &Pins) {
        self.programs = Some(pins.programs(false));
    }

    /// Has the kernel tell who connects a socket, and of sockets that end their
    /// attempt without a packet. Without it (no BTF) nobody is named, and such
    /// attempts count until they time out; says so once and carries on.
    ///
    /// With `pins` the link is pinned there, to take the place of the one there is:
    /// for a moment both tell, which changes nothing.
    pub fn watch_sockets(&mut self, pins: Option<&Pins>) {
        if let Err(error) = self.try_watch_sockets(pins) {
            return warn!(
                "programs are not named, and attempts that a program gives up keep their place until \
                 they time out: the kernel does not tell of sockets ({error}); it needs \
                 CONFIG_DEBUG_INFO_BTF"
            );
        }
        if !sees_all_processes() {
            warn!(
                "programs are named by what the kernel notes alone, without executables and parents: \
                 throttle is not in the initial pid namespace, where that is found (in a container: \
                 let it share the host's, in a pod hostPID)"
            );
        }
    }

    fn try_watch_sockets(&mut self, pins: Option<&Pins>) -> Result<(), Box<dyn StdError>> {
        let program = self.load_socket_state()?;
        let id = program.attach()?;
        if let Some(pins) = pins {
            let link: FdLink = program.take_link(id)?.into();
            let path = pins.tracepoint(true);
            pins::remove_file(&path)?;
            self.tracepoint = Some(link.pin(path)?);
        }
        Ok(())
    }

    fn load_socket_state(&mut self) -> Result<&mut BtfTracePoint, Box<dyn StdError>> {
        let btf = Btf::from_sys_fs()?;
        let program: &mut BtfTracePoint = self
            .ebpf
            .program_mut("socket_state")
            .ok_or("the object does not have it")?
            .try_into()?;
        program.load("inet_sock_set_state", &btf)?;
        Ok(program)
    }

    /// Loads everything, attaches nothing, and lets go of it again. What this
    /// kernel's verifier refuses it refuses here.
    ///
    /// # Errors
    ///
    /// When the caller may not, the kernel lacks something, or it refuses a
    /// program of those that `throttle run` cannot do without.
    pub fn try_out() -> Result<TriedOut> {
        // As little memory as there can be: nothing is put in.
        let few = 64;
        let mut object = Self::load(
            &Sizes {
                flows: few,
                uncounted: few,
                endpoints: few,
                sockets: few,
                scopes: few,
                lines: few,
                tallies: few,
                ring_bytes: 1 << 16,
            },
            Home::Nowhere,
        )?;
        let mut programs = STEP_PROGRAMS.len();
        for name in attach::all_programs() {
            object.classifier(name)?;
            programs += 1;
        }
        let sockets = object.load_socket_state().map(|_| ());
        Ok(TriedOut {
            programs,
            sockets: sockets.map_err(|error| error.to_string()),
        })
    }
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriedOut {
    /// How many programs for devices the verifier has passed: all.
    pub programs: usize,
    /// Whether the program that tells of sockets can be loaded, else why not.
    pub sockets: Result<(), String>,
}

/// The kinds of maps and programs that the object is made of, and of each whether
/// the kernel has it. The kernel is asked when the next one is.
///
/// It errs where the kernel does not tell: mostly because the caller may not ask.
pub fn kinds() -> impl Iterator<Item = (String, Result<bool, ProgramError>)> {
    /// Each kind of map with its name.
    const MAPS: [(MapType, &str); 8] = [
        (MapType::Array, "array"),
        (MapType::PerCpuArray, "per-CPU array"),
        (MapType::Hash, "hash"),
        (MapType::LruHash, "LRU hash"),
        (MapType::LruPerCpuHash, "per-CPU LRU hash"),
        (MapType::LpmTrie, "longest-prefix trie"),
        (MapType::ProgramArray, "program array"),
        (MapType::RingBuf, "ring buffer"),
    ];
    let maps = MAPS.into_iter().map(|(kind, name)| {
        let has = is_map_supported(kind).map_err(ProgramError::from);
        (format!("BPF map of type {name}"), has)
    });
    maps.chain(iter::once_with(|| {
        let has = is_program_supported(ProgramType::SchedClassifier);
        ("BPF program of type sched_cls".to_owned(), has)
    }))
}

/// Asks the kernel whether it has the kinds of programs and maps that the object
/// is made of, and whether the caller may use them.
fn probe(what: &str) -> Result<()> {
    for (name, has) in kinds() {
        match has {
            Ok(true) => {}
            Ok(false) => {
                return Err(Error::Kernel {
                    what: what.to_owned(),
                    lacks: format!("this kernel has no {name}"),
                    remedy: NEEDED.to_owned(),
                });
            }
            Err(error) => return Err(Error::needs(what, error, &name, NEEDED)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_thirty_two_mebibytes() {
        for cpus in [1, 2, 8, 32, 64] {
            let bytes = Sizes::new(&Policy::default(), cpus).bytes(cpus);
            assert!(bytes <= 32 << 20, "{cpus} CPUs: {bytes} bytes");
        }
        // Beyond, it is a fraction of a mebibyte for each CPU.
        let bytes = Sizes::new(&Policy::default(), 256).bytes(256);
        assert!(bytes <= 110 << 20, "{bytes} bytes");
    }

    #[test]
    fn the_tables_hold_what_they_were_made_for_and_no_more_than_fits() {
        let policy = Policy::default();
        for cpus in [1, 2, 16, 64] {
            let sizes = Sizes::new(&policy, cpus);
            assert!(sizes.hold(&policy, cpus));
            // With few CPUs a limit ten times as high needs no restart.
            let limit = 10 * policy.limit;
            assert!(cpus > 16 || sizes.hold(&Policy { limit, ..policy }, cpus));
            let limit = 1_000_000;
            assert!(!sizes.hold(&Policy { limit, ..policy }, cpus));
        }
    }

    #[test]
    fn a_full_line_has_room_in_the_share_of_each_cpu() {
        for cpus in [1, 2, 8, 64, 240] {
            for policy in [
                Policy::default(),
                Policy {
                    line_capacity: 1 << 14,
                    limit: 1_000,
                    ..Policy::default()
                },
            ] {
                let counted = policy.limit + policy.attempt_timeout_ns / policy.interval_ns;
                let share = u64::from(Sizes::new(&policy, cpus).flows) / cpus as u64;
                assert!(
                    share >= counted + policy.line_capacity,
                    "{cpus} CPUs: {share}"
                );
            }
        }
    }
}
