//! Whom to end, and whether: facts in, a verdict out.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use super::tell::time;
use crate::{name::Name, owners::nanos_of};

/// Which process is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its process id, seen from the initial pid namespace.
    pub pid: u32,
    /// When it started, in clock ticks since boot. With it, it is one process;
    /// without, whoever has the number, if it is behind attempts.
    pub start_ticks: Option<u64>,
    /// The boot of the machine that it belongs to; none stands for this one.
    pub boot: Option<Uuid>,
}

impl FromStr for Wanted {
    type Err = String;

    /// Reads a process id, or the `process.entity_id` of an event.
    fn from_str(text: &str) -> Result<Self, String> {
        const UUID_LEN: usize = 36;
        let what = "write a process id, or the process.entity_id of an event";
        let pid = |digits: &str| match number::<u32>(digits) {
            Some(pid) if pid != 0 && i32::try_from(pid).is_ok() => Ok(pid),
            Some(_) | None => Err(format!("there is no process of that number; {what}")),
        };
        if let Some((boot, rest)) = text.split_at_checked(UUID_LEN)
            && let Ok(boot) = Uuid::try_parse(boot)
            && let Some(rest) = rest.strip_prefix('-')
        {
            let (digits, ticks) = match rest.split_once('-') {
                Some((digits, ticks)) => (digits, Some(ticks)),
                None => (rest, None),
            };
            let ticks = ticks.map(|ticks| number(ticks).ok_or(format!("no start; {what}")));
            return Ok(Self {
                pid: pid(digits)?,
                start_ticks: ticks.transpose()?,
                boot: Some(boot),
            });
        }
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(what.into());
        }
        Ok(Self {
            pid: pid(text)?,
            start_ticks: None,
            boot: None,
        })
    }
}

/// A number of digits alone.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// When a process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    /// In clock ticks since boot, by which processes are told apart.
    pub(super) ticks: u64,
    /// In nanoseconds since 1970, for people.
    pub(super) at_ns: u64,
}

/// The process that has the number now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) start: Start,
    /// Its name.
    pub(super) name: Name,
    pub(super) is_kernel_thread: bool,
}

/// A process of the number that has attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    /// None if the kernel does not tell.
    pub(super) start: Option<Start>,
    /// Its name when it connected.
    pub(super) name: Name,
}

/// All that a verdict depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// This boot of the machine.
    pub(super) boot: Uuid,
    /// The process id of whoever asks.
    pub(super) own: u32,
    /// Those of daemons of throttles.
    pub(super) daemons: Vec<u32>,
    /// Who has the number now.
    pub(super) running: Option<Running>,
    /// Processes of the number that have attempts.
    pub(super) owners: Vec<Owner>,
    /// How many throttles were asked for them.
    pub(super) throttles: usize,
    /// Why others could not be.
    pub(super) unasked: Vec<String>,
}

/// How sure it is that the process is the one behind the attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    /// It started when that one did.
    Start,
    /// It is called as that one, and nothing else is known.
    Name,
}

/// Why a process is not ended. Nothing has been done then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The first process of the machine.
    First,
    /// Who asks.
    Itself,
    /// The daemon of a throttle.
    Daemon(u32),
    /// A thread of the kernel's own.
    KernelThread(u32),
    /// The number is a thread's: of the process `of`.
    Thread {
        /// The number.
        tid: u32,
        /// The process.
        of: u32,
    },
    /// Process ids mean something else here: this is not the initial pid
    /// namespace.
    OtherPids,
    /// It belonged to another boot, or another machine.
    OtherBoot,
    /// It has ended.
    Ended {
        /// Its process id.
        pid: u32,
        /// Whether there are attempts of a process of that number still.
        has_attempts: bool,
    },
    /// The number has been given to another process since.
    Reused {
        /// The number.
        pid: u32,
        /// When the one that is meant started, in nanoseconds since 1970.
        then_ns: u64,
        /// When the one that has the number now did.
        now_ns: u64,
        /// What that one is called.
        name: Name,
    },
    /// The one that has the number now has another name, and nothing else tells
    /// them apart.
    Renamed {
        /// The number.
        pid: u32,
        /// The name of the one behind the attempts when it connected.
        then: Name,
        /// The name of the one that has the number now.
        now: Name,
    },
    /// Both the process that has the number and an earlier one have attempts.
    Ambiguous {
        /// The number.
        pid: u32,
        /// The entity id of the one that has it now.
        entity_id: String,
    },
    /// No throttle runs here that could know who is behind attempts.
    NoThrottle(u32),
    /// None of its attempts is unanswered now.
    NoAttempts {
        /// Its process id.
        pid: u32,
        /// Why other throttles could not be asked.
        unasked: Vec<String>,
    },
    /// Which process it is, is not certain, and that was not accepted.
    Uncertain(u32),
}

impl Refusal {
    /// One word for it, for programs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::First => "first-process",
            Self::Itself => "itself",
            Self::Daemon(_) => "daemon",
            Self::KernelThread(_) => "kernel-thread",
            Self::Thread { .. } => "thread",
            Self::OtherPids => "other-pid-namespace",
            Self::OtherBoot => "other-boot",
            Self::Ended { .. } => "ended-before",
            Self::Reused { .. } => "reused",
            Self::Renamed { .. } => "renamed",
            Self::Ambiguous { .. } => "ambiguous",
            Self::NoThrottle(_) => "no-throttle",
            Self::NoAttempts { .. } => "no-attempts",
            Self::Uncertain(_) => "uncertain",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("process 1 keeps the machine running: it is not ended"),
            Self::Itself => f.write_str("this is the command itself: it is not ended"),
            Self::Daemon(pid) => write!(
                f,
                "process {pid} is the daemon of a throttle: it is not ended by this; \
                 `throttle detach`, or SIGTERM, ends it"
            ),
            Self::KernelThread(pid) => write!(
                f,
                "process {pid} is a thread of the kernel: it cannot be ended"
            ),
            Self::Thread { tid, of } => {
                write!(f, "{tid} is a thread of process {of}: give that number")
            }
            Self::OtherPids => f.write_str(
                "process ids mean something else here than in events: this is not the initial pid \
                 namespace; run it on the host (in a container: let it share the host's, in a pod \
                 hostPID)",
            ),
            Self::OtherBoot => f.write_str(
                "that process is not of this boot of this machine: it is another machine's, or has \
                 ended with the boot",
            ),
            Self::Ended { pid, has_attempts } => {
                write!(f, "there is no process {pid} (any more)")?;
                if *has_attempts {
                    f.write_str(
                        ": its attempts are there still, since other processes hold their sockets \
                         (`ss -tnp state syn-sent` shows which), or until they time out",
                    )?;
                }
                Ok(())
            }
            Self::Reused {
                pid,
                then_ns,
                now_ns,
                name,
            } => write!(
                f,
                "the number {pid} was given again: the process that is meant started at {} and has \
                 ended; the one that has the number now ({name}) started at {} and is left alone",
                time(*then_ns),
                time(*now_ns)
            ),
            Self::Renamed { pid, then, now } => write!(
                f,
                "process {pid} is called {now}, and the one behind the attempts was called {then} \
                 when it connected: it may be another one. The kernel did not tell when that one \
                 started. Give the process.entity_id of an event, or use kill"
            ),
            Self::Ambiguous { pid, entity_id } => write!(
                f,
                "the number {pid} was given again, and both processes have attempts: to end the one \
                 that has it now, give {entity_id}; the earlier one has ended"
            ),
            Self::NoThrottle(pid) => write!(
                f,
                "no throttle runs in this network namespace, so it is not known whether process \
                 {pid} is behind attempts: give the process.entity_id of an event, or use kill"
            ),
            Self::NoAttempts { pid, unasked } => {
                write!(
                    f,
                    "none of the attempts that are unanswered now is process {pid}'s, so it is not \
                     known whether it is the one that you mean: give the process.entity_id of an \
                     event, or use kill"
                )?;
                for reason in unasked {
                    write!(f, "\nnot all throttles could be asked: {reason}")?;
                }
                Ok(())
            }
            Self::Uncertain(pid) => write!(
                f,
                "it is not certain that process {pid} is the one behind the attempts: it has its \
                 name, and the kernel did not tell when that one started; --yes ends it all the same"
            ),
        }
    }
}

/// Whether the process that has the number is to be ended.
pub(super) fn judge(wanted: &Wanted, facts: &Facts) -> Result<Certainty, Refusal> {
    let pid = wanted.pid;
    if pid == 1 {
        return Err(Refusal::First);
    }
    if pid == facts.own {
        return Err(Refusal::Itself);
    }
    if facts.daemons.contains(&pid) {
        return Err(Refusal::Daemon(pid));
    }
    if wanted.boot.is_some_and(|boot| boot != facts.boot) {
        return Err(Refusal::OtherBoot);
    }
    let Some(running) = &facts.running else {
        return Err(Refusal::Ended {
            pid,
            has_attempts: !facts.owners.is_empty(),
        });
    };
    if running.is_kernel_thread {
        return Err(Refusal::KernelThread(pid));
    }
    let reused = |then_ns| Refusal::Reused {
        pid,
        then_ns,
        now_ns: running.start.at_ns,
        name: running.name.clone(),
    };
    if let Some(ticks) = wanted.start_ticks {
        return if ticks == running.start.ticks {
            Ok(Certainty::Start)
        } else {
            Err(reused(moved(running.start, ticks)))
        };
    }
    let starts = || facts.owners.iter().filter_map(|owner| owner.start);
    let another = starts().find(|start| start.ticks != running.start.ticks);
    let is_behind_attempts = starts().any(|start| start.ticks == running.start.ticks);
    let nameless = facts.owners.iter().find(|owner| owner.start.is_none());
    match (is_behind_attempts, another, nameless) {
        (true, None, _) => Ok(Certainty::Start),
        (true, Some(_), _) => Err(Refusal::Ambiguous {
            pid,
            entity_id: format!("{}-{pid}-{}", facts.boot, running.start.ticks),
        }),
        (false, Some(start), _) => Err(reused(start.at_ns)),
        (false, None, Some(owner)) if owner.name == running.name => Ok(Certainty::Name),
        (false, None, Some(owner)) => Err(Refusal::Renamed {
            pid,
            then: owner.name.clone(),
            now: running.name.clone(),
        }),
        (false, None, None) if facts.throttles == 0 => Err(Refusal::NoThrottle(pid)),
        (false, None, None) => Err(Refusal::NoAttempts {
            pid,
            unasked: facts.unasked.clone(),
        }),
    }
}

/// The calendar time of `ticks`, by a start of which both are known.
fn moved(known: Start, ticks: u64) -> u64 {
    let boot_ns = known.at_ns.saturating_sub(nanos_of(known.ticks));
    boot_ns.saturating_add(nanos_of(ticks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOOT: Uuid = Uuid::from_u128(0x1111_1111_2222_4333_8444_5555_5555_5555);

    fn start(ticks: u64) -> Start {
        Start {
            ticks,
            at_ns: 1_700_000_000_000_000_000 + ticks * 10_000_000,
        }
    }

    fn running(ticks: u64) -> Running {
        Running {
            start: start(ticks),
            name: "scanner".into(),
            is_kernel_thread: false,
        }
    }

    fn owner(ticks: u64) -> Owner {
        Owner {
            start: Some(start(ticks)),
            name: "scanner".into(),
        }
    }

    /// Process 700 runs since tick 5, and is behind attempts.
    fn facts() -> Facts {
        Facts {
            boot: BOOT,
            own: 900,
            daemons: vec![800],
            running: Some(running(5)),
            owners: vec![owner(5)],
            throttles: 1,
            unasked: Vec::new(),
        }
    }

    fn number(pid: u32) -> Wanted {
        Wanted {
            pid,
            start_ticks: None,
            boot: None,
        }
    }

    fn exact(pid: u32, ticks: u64) -> Wanted {
        Wanted {
            pid,
            start_ticks: Some(ticks),
            boot: Some(BOOT),
        }
    }

    #[test]
    fn who_is_behind_attempts_is_ended() {
        assert_eq!(judge(&number(700), &facts()), Ok(Certainty::Start));
        let mut in_two_throttles = facts();
        in_two_throttles.owners.push(owner(5));
        assert_eq!(judge(&number(700), &in_two_throttles), Ok(Certainty::Start));
    }

    #[test]
    fn a_number_that_was_given_again_is_refused_with_both_starts() {
        let mut facts = facts();
        facts.running = Some(running(1_205));
        let refusal = judge(&number(700), &facts).unwrap_err();
        assert_eq!(refusal.word(), "reused");
        let text = refusal.to_string();
        assert!(
            text.contains("22:13:20.05Z") && text.contains("22:13:32.05Z"),
            "{text}"
        );
        // The same of an entity id, whatever has attempts.
        facts.owners = vec![owner(1_205)];
        assert_eq!(judge(&exact(700, 5), &facts), Err(refusal));
    }

    #[test]
    fn one_tick_is_another_process() {
        for ticks in [4, 6] {
            let word = judge(&exact(700, ticks), &facts()).unwrap_err().word();
            assert_eq!(word, "reused");
        }
    }

    #[test]
    fn when_both_processes_of_a_number_have_attempts_it_must_be_said_which() {
        let mut facts = facts();
        facts.owners.push(owner(3));
        let refusal = judge(&number(700), &facts).unwrap_err();
        assert_eq!(refusal.word(), "ambiguous");
        let entity_id = format!("{BOOT}-700-5");
        assert!(refusal.to_string().contains(&entity_id), "{refusal}");
        let wanted: Wanted = entity_id.parse().unwrap();
        assert_eq!(judge(&wanted, &facts), Ok(Certainty::Start));
    }

    #[test]
    fn an_entity_id_needs_no_throttle_and_no_attempts() {
        let mut facts = facts();
        facts.owners.clear();
        facts.throttles = 0;
        assert_eq!(judge(&exact(700, 5), &facts), Ok(Certainty::Start));
    }

    #[test]
    fn a_number_alone_needs_a_throttle_that_knows_of_attempts() {
        let mut facts = facts();
        facts.owners.clear();
        facts.unasked.push("look into throttle lab: no".into());
        let refusal = judge(&number(700), &facts).unwrap_err();
        assert_eq!(refusal.word(), "no-attempts");
        assert!(refusal.to_string().contains("throttle lab"), "{refusal}");
        facts.throttles = 0;
        assert_eq!(judge(&number(700), &facts), Err(Refusal::NoThrottle(700)));
    }

    #[test]
    fn who_has_ended_is_not_looked_for() {
        let mut facts = facts();
        facts.running = None;
        for wanted in [number(700), exact(700, 5)] {
            let refusal = judge(&wanted, &facts).unwrap_err();
            assert_eq!(refusal.word(), "ended-before");
            assert!(
                refusal.to_string().contains("hold their sockets"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn another_boot_is_refused() {
        let mut wanted = exact(700, 5);
        wanted.boot = Some(Uuid::from_u128(7));
        assert_eq!(judge(&wanted, &facts()), Err(Refusal::OtherBoot));
        wanted.start_ticks = None;
        assert_eq!(judge(&wanted, &facts()), Err(Refusal::OtherBoot));
    }

    #[test]
    fn without_a_recorded_start_the_name_decides_and_is_not_certain() {
        let mut facts = facts();
        facts.owners[0].start = None;
        assert_eq!(judge(&number(700), &facts), Ok(Certainty::Name));
        facts.owners[0].name = "curl".into();
        let refusal = judge(&number(700), &facts).unwrap_err();
        assert_eq!(refusal.word(), "renamed");
        facts.owners.push(owner(3));
        assert_eq!(judge(&number(700), &facts).unwrap_err().word(), "reused");
    }

    #[test]
    fn some_are_never_ended() {
        let never = |pid: u32, facts: &Facts| {
            let words = [number(pid), exact(pid, 5)]
                .map(|wanted| judge(&wanted, facts).unwrap_err().word());
            assert_eq!(words[0], words[1]);
            words[0]
        };
        let mut facts = facts();
        assert_eq!(never(1, &facts), "first-process");
        assert_eq!(never(900, &facts), "itself");
        assert_eq!(never(800, &facts), "daemon");
        facts.running.as_mut().unwrap().is_kernel_thread = true;
        assert_eq!(never(700, &facts), "kernel-thread");
    }

    #[test]
    fn a_number_and_an_entity_id_are_read() {
        assert_eq!("700".parse(), Ok(number(700)));
        assert_eq!(format!("{BOOT}-700-5").parse(), Ok(exact(700, 5)));
        let without_start = Wanted {
            boot: Some(BOOT),
            ..number(700)
        };
        assert_eq!(format!("{BOOT}-700").parse(), Ok(without_start));
    }

    #[test]
    fn anything_else_is_not() {
        let broken = [
            "",
            "0",
            "-1",
            "+7",
            " 7",
            "7 ",
            "0x7",
            "curl",
            "2147483648",
            "4294967297",
            "7-5",
        ];
        let entities = [
            "", "-", "-0", "-7-", "-7-x", "-7-5-3", "-+7-5", "7-5", "-7--5",
        ];
        let entities = entities.map(|rest| format!("{BOOT}{rest}"));
        for text in broken.map(str::to_owned).iter().chain(&entities) {
            let read = text.parse::<Wanted>();
            assert!(read.is_err(), "{text:?}: {read:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            if let Ok(wanted) = text.parse::<Wanted>() {
                prop_assert!(wanted.pid > 0 && i32::try_from(wanted.pid).is_ok());
            }
        }

        #[test]
        fn only_the_process_that_is_meant_is_ever_ended(
            pid in 1u32..4, ticks in 0u64..4, start_ticks in prop::option::of(0u64..4),
            owners in prop::collection::vec(prop::option::of(0u64..4), 0..4), kernel in any::<bool>(),
        ) {
            let facts = Facts {
                own: 2,
                daemons: vec![],
                running: Some(Running { is_kernel_thread: kernel, ..running(ticks) }),
                owners: owners.iter().map(|ticks| Owner { start: ticks.map(start), name: "scanner".into() }).collect(),
                ..facts()
            };
            let wanted = Wanted { start_ticks, ..number(pid) };
            if judge(&wanted, &facts).is_ok() {
                prop_assert!(pid == 3 && !kernel);
                match start_ticks {
                    Some(start) => prop_assert_eq!(start, ticks),
                    None => prop_assert!(!owners.is_empty() && owners.iter().all(|o| o.is_none_or(|o| o == ticks))),
                }
            }
        }
    }
}
