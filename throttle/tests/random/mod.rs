//! Random events of all kinds, with names that are as bad as they get, and the
//! values that every format has to tell of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value};
use throttle::{
    encode::Host,
    event::{
        Active, Cgroup, Container, Count, Ending, Episode, Event, Interface, Parent, Process,
        Scope, Thread, User, What, Who,
    },
    name::Name,
    settings::{Mode, Rate},
};
use throttle_common::record::Tallies;

/// What means something to a format, a terminal or a reader.
const PIECES: &[&[u8]] = &[
    b"\"",
    b"\\",
    b"=",
    b"|",
    b"]",
    b"[",
    b"{",
    b"}",
    b"'",
    b" ",
    b"  ",
    b"\n",
    b"\r\n",
    b"\t",
    b"\0",
    b"\x1b[2J",
    b"\x07",
    b"\x7f",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\\x0a",
    b"\\n",
    b" spid=1",
    b" msg=all is well",
    b"cs1Label=mode",
    b"\" pid=\"1",
    b"\"] all is well",
    b"\",\"pid\":1,\"",
    b"%s%n",
    b"${jndi:x}",
    b"<script>",
    b"; rm -rf",
    "\u{feff}".as_bytes(),
    "\u{2028}".as_bytes(),
    "\u{202e}".as_bytes(),
    "\u{85}".as_bytes(),
    "\u{a0}".as_bytes(),
    "\u{3000}".as_bytes(),
    "\u{fffd}".as_bytes(),
    "é".as_bytes(),
    "e\u{301}".as_bytes(),
    "日本".as_bytes(),
    "🦀".as_bytes(),
];

/// The highest number that every reader of JSON keeps exactly.
const EXACT_MAX: u64 = (1 << 53) - 1;

fn bytes() -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        8 => "[a-z][a-z0-9._-]{0,14}".prop_map(String::into_bytes),
        4 => vec(select(PIECES), 0..8).prop_map(|pieces| pieces.concat()),
        2 => vec(any::<u8>(), 0..40),
        2 => any::<String>().prop_map(String::into_bytes),
        // Longer than a name gets, and twice as long when it is escaped.
        1 => select(vec!["\"", "=", "]", "x", "ü", "\n"]).prop_map(|piece| piece.repeat(600).into_bytes()),
    ].boxed()
}

fn name() -> impl Strategy<Value = Name> {
    bytes().prop_map(Name::new)
}

fn path() -> BoxedStrategy<Name> {
    vec(bytes(), 1..4)
        .prop_map(|parts| {
            let mut path = Vec::new();
            for part in parts {
                path.push(b'/');
                path.extend(part);
            }
            Name::new(path)
        })
        .boxed()
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..1_000u64, 1 => 0..=EXACT_MAX]
}

fn count() -> impl Strategy<Value = Count> {
    (number(), any::<bool>()).prop_map(|(number, or_more)| Count { number, or_more })
}

fn user() -> BoxedStrategy<User> {
    (any::<u32>(), option::of(name()))
        .prop_map(|(id, name)| User { id, name })
        .boxed()
}

fn container() -> BoxedStrategy<Container> {
    let pod_uid = prop_oneof![
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        // A static pod's.
        "[0-9a-f]{32}",
    ];
    let runtime = option::of(select(vec!["containerd", "cri-o", "docker", "podman"]));
    ("[0-9a-f]{64}", runtime, option::of(pod_uid))
        .prop_map(|(id, runtime, pod_uid)| Container {
            id,
            runtime,
            pod_uid,
        })
        .boxed()
}

fn cgroup() -> BoxedStrategy<Cgroup> {
    (number(), option::of(path()), option::of(container()))
        .prop_map(|(id, path, container)| Cgroup {
            id,
            path,
            container,
        })
        .boxed()
}

fn at_ns() -> impl Strategy<Value = u64> {
    1_500_000_000_000_000_000..4_000_000_000_000_000_000u64
}

fn process() -> BoxedStrategy<Process> {
    let thread = option::of((1..=u32::MAX, name()).prop_map(|(id, name)| Thread { id, name }));
    let parent = option::of((1..=u32::MAX, name()).prop_map(|(pid, name)| Parent { pid, name }));
    (
        (1..=4_194_304u32, thread, name(), option::of(path())),
        (
            option::weighted(0.3, vec(name(), 0..20)),
            option::of(at_ns()),
            "[A-Za-z0-9+/]{22}",
        ),
        (user(), parent, option::of(cgroup()), any::<bool>()),
    )
        .prop_map(
            |(
                (pid, thread, name, executable),
                (args, start_ns, entity_id),
                (user, parent, cgroup, has_exited),
            )| Process {
                pid,
                thread,
                name,
                executable,
                args,
                start_ns,
                entity_id,
                user,
                parent,
                cgroup,
                has_exited,
            },
        )
        .boxed()
}

fn address(is_v6: bool) -> BoxedStrategy<IpAddr> {
    if is_v6 {
        // One that stands for an IPv4 address never gets here.
        any::<u128>()
            .prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits | 1 << 127)))
            .boxed()
    } else {
        any::<u32>()
            .prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits)))
            .boxed()
    }
}

fn end(is_v6: bool) -> impl Strategy<Value = SocketAddr> {
    (address(is_v6), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn who(is_v6: bool) -> BoxedStrategy<Who> {
    prop_oneof![
        3 => process().prop_map(|process| Who::Process(Box::new(process))),
        2 => (cgroup(), vec(process(), 0..=Who::CANDIDATES))
            .prop_map(|(cgroup, candidates)| Who::Cgroup { cgroup, candidates }),
        1 => address(is_v6).prop_map(Who::Source),
    ]
    .boxed()
}

fn active(is_v6: bool) -> BoxedStrategy<Active> {
    (who(is_v6), number(), count())
        .prop_map(|(who, attempts, destinations)| Active {
            who,
            attempts,
            destinations,
        })
        .boxed()
}

fn scope() -> BoxedStrategy<Scope> {
    let kind = select(vec!["interface", "cgroup", "user", "process", "source"]);
    let id = prop_oneof!["[0-9]{1,10}", "[0-9a-f]{1,4}::[0-9a-f]{1,4}"];
    (kind, id, name())
        .prop_map(|(kind, id, name)| Scope { kind, id, name })
        .boxed()
}

fn rate() -> impl Strategy<Value = Rate> {
    prop_oneof![
        (1..=1_000u64).prop_map(Rate::per_second),
        (1..=59u64).prop_map(|per_minute| Rate::from_interval(60_000_000_000 / per_minute)),
    ]
}

fn id() -> impl Strategy<Value = uuid::Uuid> {
    any::<[u8; 16]>().prop_map(|random| {
        let fields = uuid::Builder::from_random_bytes(random);
        fields.with_version(uuid::Version::SortRand).into_uuid()
    })
}

fn episode() -> BoxedStrategy<Episode> {
    any::<bool>()
        .prop_flat_map(|is_v6| {
            (
                (id(), scope(), (1..=u32::MAX, name()), any::<bool>(), rate()),
                (1..=1_000_000u64, number(), number(), number(), number()),
                (at_ns(), 0..=EXACT_MAX, proptest::array::uniform12(number())),
                (
                    end(is_v6),
                    end(is_v6),
                    vec(active(is_v6), 0..=Episode::PROGRAMS),
                ),
                (
                    count(),
                    count(),
                    option::weighted(0.3, vec(end(is_v6), 0..=Episode::DESTINATIONS)),
                    select(vec![Ending::Recovered, Ending::Forgotten, Ending::Stopped]),
                ),
            )
                .prop_map(
                    |(
                        (id, scope, (index, name), is_enforced, rate),
                        (limit, half_open, queued, peak_half_open, peak_queued),
                        (start_ns, duration_ns, totals),
                        (source, destination, programs),
                        (program_count, destination_count, destinations, ending),
                    )| Episode {
                        id,
                        scope,
                        interface: Interface { index, name },
                        mode: if is_enforced {
                            Mode::Enforce
                        } else {
                            Mode::Monitor
                        },
                        limit,
                        rate,
                        half_open,
                        queued,
                        peak_half_open,
                        peak_queued,
                        start_ns,
                        duration_ns,
                        totals: Tallies(totals),
                        source,
                        destination,
                        programs,
                        program_count,
                        destination_count,
                        destinations: destinations.unwrap_or_default(),
                        ending: Some(ending),
                    },
                )
        })
        .boxed()
}

fn what() -> BoxedStrategy<What> {
    let begun = || {
        episode().prop_map(|episode| {
            Box::new(Episode {
                ending: None,
                ..episode
            })
        })
    };
    prop_oneof![
        3 => begun().prop_map(What::LimitReached),
        2 => begun().prop_map(What::LimitOngoing),
        2 => episode().prop_map(|episode| What::LimitCleared(Box::new(episode))),
        1 => (1..=EXACT_MAX).prop_map(|events| What::Lost { events }),
    ]
    .boxed()
}

fn host() -> BoxedStrategy<Host> {
    (
        bytes(),
        "[67]\\.[0-9]{1,2}\\.[0-9]{1,3}",
        option::of("[0-9a-f]{32}"),
        option::of(id()),
        option::of(1..=4_194_304u32),
        1..=u32::MAX,
    )
        .prop_map(|(name, kernel, id, boot_id, pid, enterprise)| Host {
            // As long as the kernel lets it be.
            name: Name::new(&name[..name.len().min(64)]),
            kernel: Name::new(kernel),
            id,
            boot_id: boot_id.map(|id| id.to_string()),
            pid,
            enterprise,
        })
        .boxed()
}

/// Any event, from any machine.
pub(crate) fn event() -> impl Strategy<Value = (Event, Host)> {
    let event =
        (at_ns(), 1..=EXACT_MAX, id(), what()).prop_map(|(at_ns, sequence, id, what)| Event {
            at_ns,
            sequence,
            id,
            what,
        });
    (event, host())
}

/// What has to be told of an event, by name. A format tells some of it or all.
pub(crate) fn values(event: &Event, host: &Host) -> Map<String, Value> {
    let mut values = Values::default();
    values.put("time_ms", event.at_ns / 1_000_000);
    values.put("sequence", event.sequence);
    values.put("id", event.id.to_string());
    values.put("host", host.name.as_str());
    values.put_known("host_id", host.id.as_deref());
    values.put_known("boot_id", host.boot_id.as_deref());
    values.put_known("throttle_pid", host.pid);
    values.put("enterprise", host.enterprise);
    let (kind, episode) = match &event.what {
        What::LimitReached(episode) => ("reached", Some(episode)),
        What::LimitOngoing(episode) => ("ongoing", Some(episode)),
        What::LimitCleared(episode) => ("cleared", Some(episode)),
        What::Lost { events } => {
            values.put("lost", *events);
            ("lost", None)
        }
    };
    values.put("kind", kind);
    let is_enforced = episode.is_some_and(|episode| episode.mode == Mode::Enforce);
    values.put(
        "action",
        match (kind, is_enforced) {
            ("reached", true) => "connection-attempt-deferred",
            ("reached", false) => "connection-attempt-observed",
            ("ongoing", _) => "limit-ongoing",
            ("cleared", _) => "limit-cleared",
            _ => "events-lost",
        },
    );
    values.put_known("code", (kind == "reached").then_some("4226"));
    values.put("severity", if kind == "cleared" { 3 } else { 6 });
    if let Some(episode) = episode {
        put_episode(&mut values, kind, episode);
    }
    values.0
}

fn put_episode(values: &mut Values, kind: &str, episode: &Episode) {
    values.put("episode", episode.id.to_string());
    values.put("scope_kind", episode.scope.kind);
    values.put("scope_id", episode.scope.id.as_str());
    values.put("scope_name", episode.scope.name.as_str());
    values.put("interface", episode.interface.name.as_str());
    values.put("interface_index", episode.interface.index);
    values.put(
        "mode",
        match episode.mode {
            Mode::Enforce => "enforce",
            Mode::Monitor => "monitor",
        },
    );
    values.put("limit", episode.limit);
    values.put("rate", episode.rate.to_string());
    values.put("half_open", episode.half_open);
    values.put("queued", episode.queued);
    values.put("peak_half_open", episode.peak_half_open);
    values.put("peak_queued", episode.peak_queued);
    values.put("start_ms", episode.start_ns / 1_000_000);
    if kind != "reached" {
        values.put("duration_ns", episode.duration_ns);
    }
    if kind == "cleared" {
        values.put(
            "end_ms",
            (episode.start_ns + episode.duration_ns) / 1_000_000,
        );
        values.put_known(
            "ending",
            episode.ending.map(|ending| match ending {
                Ending::Recovered => "recovered",
                Ending::Forgotten => "forgotten",
                Ending::Stopped => "stopped",
            }),
        );
    }
    for (name, total) in episode.totals.of_attempts() {
        values.put(&format!("total_{name}"), total);
    }
    values.put("program_count", episode.program_count.number);
    values.put("destination_count", episode.destination_count.number);
    values.put("source_ip", episode.source.ip().to_string());
    values.put("source_port", episode.source.port());
    values.put("destination_ip", episode.destination.ip().to_string());
    values.put("destination_port", episode.destination.port());
    let texts = |each: &mut dyn Iterator<Item = String>| Value::from(each.collect::<Vec<_>>());
    values.put(
        "destinations",
        texts(&mut episode.destinations.iter().map(ToString::to_string)),
    );
    values.put(
        "programs",
        texts(&mut episode.programs.iter().map(|active| {
            let who = match &active.who {
                Who::Process(process) => format!("process {} {}", process.pid, process.name),
                Who::Cgroup { cgroup, .. } => format!("cgroup {}", cgroup.id),
                Who::Source(address) => format!("source {address}"),
            };
            format!("{who} {} {}", active.attempts, active.destinations.number)
        })),
    );
    let candidates = |active: &Active| match &active.who {
        Who::Cgroup { candidates, .. } => candidates
            .iter()
            .map(|process| format!("{} (pid {})", process.name, process.pid))
            .collect(),
        Who::Process(_) | Who::Source(_) => Vec::new(),
    };
    values.put(
        "all_candidates",
        texts(&mut episode.programs.iter().flat_map(candidates)),
    );
    let Some(active) = episode.programs.first() else {
        return;
    };
    let candidates = candidates(active);
    values.put_known(
        "candidates",
        (!candidates.is_empty()).then(|| candidates.join(", ")),
    );
    match &active.who {
        Who::Process(process) => {
            put_process(values, process);
            if let Some(cgroup) = &process.cgroup {
                put_cgroup(values, cgroup);
            }
        }
        Who::Cgroup { cgroup, .. } => put_cgroup(values, cgroup),
        Who::Source(_) => {}
    }
}

fn put_process(values: &mut Values, process: &Process) {
    values.put("pid", process.pid);
    values.put("process", process.name.as_str());
    values.put("entity_id", process.entity_id.as_str());
    values.put("exited", process.has_exited);
    values.put("user_id", process.user.id);
    let text = |name: &Name| name.as_str().to_owned();
    values.put_known("user", process.user.name.as_ref().map(text));
    values.put_known("executable", process.executable.as_ref().map(text));
    values.put_known(
        "process_start_ms",
        process.start_ns.map(|ns| ns / 1_000_000),
    );
    if let Some(args) = &process.args {
        values.put("args", args.iter().map(text).collect::<Vec<_>>());
        values.put("args_count", args.len());
    }
    if let Some(parent) = &process.parent {
        values.put("parent_pid", parent.pid);
        values.put("parent", parent.name.as_str());
    }
    if let Some(thread) = &process.thread {
        values.put("thread_id", thread.id);
        values.put("thread", thread.name.as_str());
    }
}

fn put_cgroup(values: &mut Values, cgroup: &Cgroup) {
    values.put("cgroup_id", cgroup.id);
    values.put_known("cgroup", cgroup.path.as_ref().map(Name::as_str));
    if let Some(container) = &cgroup.container {
        values.put("container", container.id.as_str());
        values.put_known("runtime", container.runtime);
        values.put_known("pod", container.pod_uid.as_deref());
    }
}

#[derive(Default)]
struct Values(Map<String, Value>);

impl Values {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    fn put_known(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }
}
