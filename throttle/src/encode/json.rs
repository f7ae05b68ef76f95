//! One object of the Elastic Common Schema (ECS 9.4).
//!
//! What ECS has no field for stands under `throttle`. The types here are the
//! definition of the object: [`schema`] is made of them, and so is its page in
//! `docs/events.md`.

use std::net::{IpAddr, SocketAddr};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::Serialize;
use serde_json::Value;
use throttle_common::record::Tally;

use super::{Host, Precision, extent, extent::Extent, words};
use crate::{
    event::{self, Active, Count, Ending, Episode, Event, What, Who},
    settings::Mode,
};

const ECS_VERSION: &str = "9.4.0";

/// The event as one line.
#[must_use]
pub fn line(event: &Event, host: &Host) -> String {
    extent::fit(event, |extent| {
        serde_json::to_string(&Record::new(event, host, extent)).unwrap_or_default()
    })
}

/// The JSON Schema of the object.
#[must_use]
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<Record>()
        .to_value();
    tidy(&mut schema);
    schema
}

/// Takes null out, since what is not known is left out of an event, and makes
/// one line of each description.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Array(types)) = fields.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    fields.insert("type".into(), only);
                }
            }
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            if let Some(Value::Array(values)) = fields.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
                choices.retain(|choice| choice["type"] != "null");
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    fields.remove("anyOf");
                    fields.extend(only);
                }
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(values) => values.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// An event of throttle, as an object of the Elastic Common Schema.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "throttle event")]
struct Record {
    /// When it happened (RFC 3339, UTC, nanoseconds).
    #[serde(rename = "@timestamp")]
    #[schemars(extend("format" = "date-time"))]
    timestamp: String,
    /// What happened, in a sentence for people.
    message: String,
    ecs: Ecs,
    event: EventFields,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<Rule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    /// Where the attempt that met the limit came from, as an example.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Endpoint>,
    /// Where the attempt that met the limit went to, as an example.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<Endpoint>,
    /// The process with the most attempts, if its socket tells which it is. A
    /// process that only may be behind the attempts never stands here.
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process>,
    /// The user of that process.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User>,
    /// The container with the most attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Container>,
    /// The pod with the most attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    orchestrator: Option<Orchestrator>,
    observer: Observer,
    host: HostFields,
    related: Related,
    throttle: Throttle,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Ecs {
    /// The version of the Elastic Common Schema.
    version: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct EventFields {
    /// `alert` when a limit is reached and attempts are held back;
    /// `pipeline_error` when events were lost; else `event`.
    kind: Kind,
    /// `network`; left out when events were lost.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    category: Vec<&'static str>,
    /// `connection`, with `denied` if attempts are held back, `info` if they are
    /// only watched, `end` and `info` when the episode is over.
    #[serde(rename = "type", skip_serializing_if = "Vec::is_empty")]
    types: Vec<&'static str>,
    /// What happened: `connection-attempt-deferred`, `connection-attempt-observed`,
    /// `limit-ongoing`, `limit-cleared` or `events-lost`.
    action: &'static str,
    /// `success`: attempts were held back as they should be. Left out if they are
    /// only watched, and when events were lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    /// `4226`, the number of the original's event, when a limit is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    /// How much it matters, from 0 to 10: 6 is medium, 3 is low.
    severity: u8,
    /// Why there is an event.
    reason: &'static str,
    /// The event's number in this run of throttle, from 1 on.
    sequence: u64,
    /// The event's own UUID (version 7).
    #[schemars(extend("format" = "uuid"))]
    id: String,
    /// `throttle`.
    provider: &'static str,
    /// `throttle`.
    module: &'static str,
    /// `throttle.limit`.
    dataset: &'static str,
    /// When the episode began.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    start: Option<String>,
    /// When the episode was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    end: Option<String>,
    /// How long the episode lasted, or has lasted so far, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<u64>,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum Kind {
    Alert,
    Event,
    PipelineError,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum Outcome {
    Success,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Rule {
    /// `half-open-limit`.
    id: &'static str,
    /// `half-open limit`.
    name: &'static str,
    /// `throttle`.
    ruleset: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Network {
    /// `tcp`.
    transport: &'static str,
    /// `6`, the number of TCP.
    iana_number: &'static str,
    /// `ipv4` or `ipv6`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// `egress`.
    direction: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Endpoint {
    /// The IP address.
    address: IpAddr,
    /// The IP address.
    ip: IpAddr,
    /// The TCP port.
    port: u16,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Process {
    /// The process id, seen from the host.
    pid: u32,
    /// The process's name (comm).
    name: String,
    /// A string that no other process has, on any machine.
    entity_id: String,
    /// The executable's path, if the process still ran when it was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<String>,
    /// The arguments, the program's name first, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    /// How many arguments there are; `args` may hold fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    args_count: Option<usize>,
    /// When the process started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    start: Option<String>,
    /// The thread that connected, if it was not the main one.
    #[serde(skip_serializing_if = "Option::is_none")]
    thread: Option<Thread>,
    /// The process that started it, if it still ran when it was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Parent>,
    user: User,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Thread {
    /// The thread's id.
    id: u32,
    /// The thread's name (comm).
    name: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Parent {
    /// The parent's process id, seen from the host.
    pid: u32,
    /// The parent's name (comm).
    name: String,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
struct User {
    /// The user id, seen from the host.
    id: String,
    /// The user's name, if the host has one for the id.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Container {
    /// The container's id.
    id: String,
    /// What runs the container, if its control group's path tells: `containerd`,
    /// `cri-o`, `docker` or `podman`.
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<&'static str>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Orchestrator {
    /// `kubernetes`.
    #[serde(rename = "type")]
    kind: &'static str,
    resource: Resource,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Resource {
    /// `pod`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The pod's UID.
    id: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Observer {
    /// `firewall`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// `throttle`.
    product: &'static str,
    /// `throttle`.
    vendor: &'static str,
    /// The version of throttle.
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Egress>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Egress {
    interface: Interface,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Interface {
    /// The index of the interface that the episode began on.
    id: String,
    /// The interface's name.
    name: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct HostFields {
    /// The host's name.
    hostname: String,
    /// The host's name.
    name: String,
    /// The machine id.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    os: Os,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<Boot>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Os {
    /// `linux`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The kernel's release.
    kernel: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Boot {
    /// The id of the present boot.
    id: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Related {
    /// All addresses in the event.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip: Vec<IpAddr>,
    /// The ids and names of the user of `process`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    user: Vec<String>,
    /// The host's name.
    hosts: Vec<String>,
}

/// What ECS has no field for.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Throttle {
    #[serde(flatten)]
    episode: Option<EpisodeFields>,
    /// How many events were lost; `event.sequence` is the number of the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
    /// Set if the event would have been longer than 16 KiB and something was
    /// left out: destinations first, then programs, candidates, arguments, and
    /// last the middle of names.
    #[serde(skip_serializing_if = "is_false")]
    shortened: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct EpisodeFields {
    /// The UUID (version 7) that all events of the episode carry.
    #[serde(rename = "episode")]
    #[schemars(extend("format" = "uuid"))]
    id: String,
    /// What the limit applies to.
    scope: Scope,
    /// Whether attempts are held back (`enforce`) or only watched (`monitor`).
    mode: ModeWord,
    /// How many half-open attempts the scope may have.
    limit: u64,
    /// How fast attempts over the limit are released: `10/s`, `30/m`.
    rate: String,
    /// How many half-open attempts the scope has.
    half_open: u64,
    /// How many deferred attempts the scope has.
    queued: u64,
    /// The most half-open attempts that were seen in the episode.
    peak_half_open: u64,
    /// The most deferred attempts that were seen in the episode.
    peak_queued: u64,
    /// What happened in the scope since the episode began.
    totals: Totals,
    /// How many programs there are.
    program_count: u64,
    /// Set if there are more programs, of which no account was kept.
    #[serde(skip_serializing_if = "is_false")]
    program_count_or_more: bool,
    /// How many destinations (addresses and ports) there are.
    destination_count: u64,
    /// Set if there are more destinations, of which no account was kept.
    #[serde(skip_serializing_if = "is_false")]
    destination_count_or_more: bool,
    /// The control group with the most attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<Cgroup>,
    /// Set if `process` had ended when it was looked at.
    #[serde(skip_serializing_if = "is_false")]
    exited: bool,
    /// Why the episode is over. `recovered`: nobody waits any more. `forgotten`:
    /// the kernel gave the scope's entry to another one. `stopped`: the throttle
    /// ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ending: Option<EndingWord>,
    /// The most active programs, most attempts first; at most 5.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    programs: Vec<Program>,
    /// Processes that may be behind the attempts of a control group in
    /// `programs`: they hold raw or packet sockets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<Candidate>,
    /// Destinations (address and port), if they were asked for; at most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    destinations: Vec<SocketAddrText>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Scope {
    /// `interface`, `cgroup`, `user`, `process` or `source`.
    kind: &'static str,
    /// Its number or address.
    id: String,
    /// Its name, if it has one, else its id.
    name: String,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum ModeWord {
    Enforce,
    Monitor,
}

impl From<Mode> for ModeWord {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Enforce => Self::Enforce,
            Mode::Monitor => Self::Monitor,
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum EndingWord {
    Recovered,
    Forgotten,
    Stopped,
}

impl From<Ending> for EndingWord {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Recovered => Self::Recovered,
            Ending::Forgotten => Self::Forgotten,
            Ending::Stopped => Self::Stopped,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
struct Totals {
    /// New attempts.
    attempts: u64,
    /// Attempts that passed at once.
    passed: u64,
    /// Attempts that passed uncounted, because their endpoint had answered of
    /// late; they are part of `passed`.
    known: u64,
    /// Attempts that were deferred, or would have been.
    deferred: u64,
    /// Deferred attempts that were released.
    released: u64,
    /// SYNs that were swallowed because their line was full.
    overflowed: u64,
    /// Attempts that were answered with a SYN-ACK.
    answered: u64,
    /// Attempts that were answered with a reset.
    refused: u64,
    /// Attempts that an ICMP error ended.
    unreachable: u64,
    /// Attempts that their own side ended.
    aborted: u64,
    /// Attempts that nobody ended within the timeout.
    expired: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Cgroup {
    /// The control group's id (cgroup v2).
    id: String,
    /// The control group's path below the root of the hierarchy, if it is there
    /// still.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Program {
    /// How sure it is: `process` (its socket tells), `cgroup` (one of the
    /// processes in it) or `source` (no socket of this host: a machine or pod
    /// that is forwarded for).
    kind: ProgramKind,
    /// The process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// The process's name (comm).
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The path of the process's executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<String>,
    /// The process's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User>,
    /// The control group.
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<Cgroup>,
    /// The id of its container.
    #[serde(skip_serializing_if = "Option::is_none")]
    container_id: Option<String>,
    /// The UID of its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uid: Option<String>,
    /// The source address.
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    /// Its attempts in the episode: those that were half-open when it began, and
    /// those that were deferred since.
    attempts: u64,
    /// To how many destinations (addresses and ports).
    destination_count: u64,
    /// Set if there are more destinations, of which no account was kept.
    #[serde(skip_serializing_if = "is_false")]
    destination_count_or_more: bool,
    /// Set if the process had ended when it was looked at.
    #[serde(skip_serializing_if = "is_false")]
    exited: bool,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum ProgramKind {
    Process,
    Cgroup,
    Source,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Candidate {
    /// The control group that it is a candidate for.
    cgroup_id: String,
    /// The process id.
    pid: u32,
    /// The process's name (comm).
    name: String,
    /// A string that no other process has, on any machine.
    entity_id: String,
    /// The executable's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<String>,
    /// The arguments, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    /// When the process started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    start: Option<String>,
    user: User,
    /// The process that started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Parent>,
    /// Set if the process had ended when it was looked at.
    #[serde(skip_serializing_if = "is_false")]
    exited: bool,
}

/// An address and a port: `192.0.2.1:443`, `[2001:db8::2]:443`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
struct SocketAddrText(String);

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Record {
    fn new(event: &Event, host: &Host, extent: &Extent) -> Self {
        let episode = event.what.episode();
        let active = episode.and_then(Episode::most_active);
        let process = active.and_then(|active| active.who.process());
        let container = active.and_then(|active| active.who.container());
        let user = process.map(|process| User::new(&process.user, extent));
        let name = extent.name(&host.name);
        Self {
            timestamp: nanos(event.at_ns),
            message: words::message(event, extent),
            ecs: Ecs {
                version: ECS_VERSION,
            },
            event: EventFields::new(event),
            rule: episode.map(|_| Rule {
                id: words::RULE_ID,
                name: words::RULE,
                ruleset: words::PRODUCT,
            }),
            network: episode.map(|episode| Network {
                transport: "tcp",
                iana_number: "6",
                kind: if episode.source.is_ipv4() {
                    "ipv4"
                } else {
                    "ipv6"
                },
                direction: "egress",
            }),
            source: episode.map(|episode| Endpoint::new(episode.source)),
            destination: episode.map(|episode| Endpoint::new(episode.destination)),
            process: process.map(|process| Process::new(process, extent)),
            container: container.map(|container| Container {
                id: container.id.clone(),
                runtime: container.runtime,
            }),
            orchestrator: container
                .and_then(|container| container.pod_uid.clone())
                .map(|id| Orchestrator {
                    kind: "kubernetes",
                    resource: Resource { kind: "pod", id },
                }),
            observer: Observer {
                kind: "firewall",
                product: words::PRODUCT,
                vendor: words::PRODUCT,
                version: words::VERSION,
                egress: episode.map(|episode| Egress {
                    interface: Interface {
                        id: episode.interface.index.to_string(),
                        name: extent.name(&episode.interface.name),
                    },
                }),
            },
            host: HostFields {
                hostname: name.clone(),
                name: name.clone(),
                id: host.id.clone(),
                os: Os {
                    kind: "linux",
                    kernel: extent.name(&host.kernel),
                },
                boot: host.boot_id.clone().map(|id| Boot { id }),
            },
            related: Related {
                ip: episode.map_or_else(Vec::new, |episode| addresses(episode, extent)),
                user: user.iter().flat_map(User::related).collect(),
                hosts: vec![name],
            },
            user,
            throttle: Throttle::new(event, extent),
        }
    }
}

impl EventFields {
    fn new(event: &Event) -> Self {
        let what = &event.what;
        let enforced = what
            .episode()
            .is_some_and(|episode| episode.mode == Mode::Enforce);
        let (kind, types): (_, &[&str]) = match what {
            What::LimitReached(_) if enforced => (Kind::Alert, &["connection", "denied"]),
            What::LimitOngoing(_) if enforced => (Kind::Event, &["connection", "denied"]),
            What::LimitReached(_) | What::LimitOngoing(_) => (Kind::Event, &["connection", "info"]),
            What::LimitCleared(_) => (Kind::Event, &["connection", "end", "info"]),
            What::Lost { .. } => (Kind::PipelineError, &[]),
        };
        let (lasted, over) = match what {
            What::LimitReached(_) | What::Lost { .. } => (None, None),
            What::LimitOngoing(episode) => (Some(episode), None),
            What::LimitCleared(episode) => (Some(episode), Some(episode)),
        };
        Self {
            kind,
            category: what.episode().map(|_| "network").into_iter().collect(),
            types: types.to_vec(),
            action: what.action(),
            outcome: enforced.then_some(Outcome::Success),
            code: what.code(),
            severity: what.severity().of_ten(),
            reason: what.reason(),
            sequence: event.sequence,
            id: event.id.to_string(),
            provider: words::PRODUCT,
            module: words::PRODUCT,
            dataset: words::DATASET,
            start: what.episode().map(|episode| nanos(episode.start_ns)),
            end: over.map(|episode| nanos(episode.end_ns())),
            duration: lasted.map(|episode| episode.duration_ns),
        }
    }
}

impl Endpoint {
    const fn new(end: SocketAddr) -> Self {
        Self {
            address: end.ip(),
            ip: end.ip(),
            port: end.port(),
        }
    }
}

impl Process {
    fn new(process: &event::Process, extent: &Extent) -> Self {
        Self {
            pid: process.pid,
            name: extent.name(&process.name),
            entity_id: process.entity_id.clone(),
            executable: process.executable.as_ref().map(|path| extent.name(path)),
            args: args(process, extent),
            args_count: process.args.as_ref().map(Vec::len),
            start: process.start_ns.map(nanos),
            thread: process.thread.as_ref().map(|thread| Thread {
                id: thread.id,
                name: extent.name(&thread.name),
            }),
            parent: Parent::of(process, extent),
            user: User::new(&process.user, extent),
        }
    }
}

impl Parent {
    fn of(process: &event::Process, extent: &Extent) -> Option<Self> {
        process.parent.as_ref().map(|parent| Self {
            pid: parent.pid,
            name: extent.name(&parent.name),
        })
    }
}

impl User {
    fn new(user: &event::User, extent: &Extent) -> Self {
        Self {
            id: user.id.to_string(),
            name: user.name.as_ref().map(|name| extent.name(name)),
        }
    }

    fn related(&self) -> impl Iterator<Item = String> + use<> {
        [Some(self.id.clone()), self.name.clone()]
            .into_iter()
            .flatten()
    }
}

impl Throttle {
    pub(super) fn new(event: &Event, extent: &Extent) -> Self {
        Self {
            episode: event
                .what
                .episode()
                .map(|episode| EpisodeFields::new(episode, extent)),
            lost: match event.what {
                What::Lost { events } => Some(events),
                What::LimitReached(_) | What::LimitOngoing(_) | What::LimitCleared(_) => None,
            },
            shortened: extent.shortened,
        }
    }
}

impl EpisodeFields {
    fn new(episode: &Episode, extent: &Extent) -> Self {
        let programs = || episode.programs.iter().take(extent.programs);
        let who = episode.most_active().map(|active| &active.who);
        Self {
            id: episode.id.to_string(),
            scope: Scope {
                kind: episode.scope.kind,
                id: episode.scope.id.clone(),
                name: extent.name(&episode.scope.name),
            },
            mode: episode.mode.into(),
            limit: episode.limit,
            rate: episode.rate.to_string(),
            half_open: episode.half_open,
            queued: episode.queued,
            peak_half_open: episode.peak_half_open,
            peak_queued: episode.peak_queued,
            totals: Totals::new(episode),
            program_count: episode.program_count.number,
            program_count_or_more: episode.program_count.or_more,
            destination_count: episode.destination_count.number,
            destination_count_or_more: episode.destination_count.or_more,
            cgroup: who
                .and_then(Who::cgroup)
                .map(|cgroup| Cgroup::new(cgroup, extent)),
            exited: who
                .and_then(Who::process)
                .is_some_and(|process| process.has_exited),
            ending: episode.ending.map(EndingWord::from),
            programs: programs()
                .map(|active| Program::new(active, extent))
                .collect(),
            candidates: programs()
                .flat_map(|active| Candidate::of(&active.who, extent))
                .collect(),
            destinations: episode
                .destinations
                .iter()
                .take(extent.destinations)
                .map(|destination| SocketAddrText(destination.to_string()))
                .collect(),
        }
    }
}

impl Totals {
    const fn new(episode: &Episode) -> Self {
        let totals = &episode.totals;
        Self {
            attempts: totals.get(Tally::Attempts),
            passed: totals.get(Tally::Passed),
            known: totals.get(Tally::Known),
            deferred: totals.get(Tally::Deferred),
            released: totals.get(Tally::Released),
            overflowed: totals.get(Tally::Overflowed),
            answered: totals.get(Tally::Answered),
            refused: totals.get(Tally::Refused),
            unreachable: totals.get(Tally::Unreachable),
            aborted: totals.get(Tally::Aborted),
            expired: totals.get(Tally::Expired),
        }
    }
}

impl Cgroup {
    fn new(cgroup: &event::Cgroup, extent: &Extent) -> Self {
        Self {
            id: cgroup.id.to_string(),
            path: cgroup.path.as_ref().map(|path| extent.name(path)),
        }
    }
}

impl Program {
    fn new(active: &Active, extent: &Extent) -> Self {
        let Active {
            who,
            attempts,
            destinations: Count { number, or_more },
        } = active;
        let (kind, ip) = match who {
            Who::Process(_) => (ProgramKind::Process, None),
            Who::Cgroup { .. } => (ProgramKind::Cgroup, None),
            Who::Source(address) => (ProgramKind::Source, Some(*address)),
        };
        let (process, container) = (who.process(), who.container());
        Self {
            kind,
            pid: process.map(|process| process.pid),
            name: process.map(|process| extent.name(&process.name)),
            executable: process
                .and_then(|process| process.executable.as_ref())
                .map(|path| extent.name(path)),
            user: process.map(|process| User::new(&process.user, extent)),
            cgroup: who.cgroup().map(|cgroup| Cgroup::new(cgroup, extent)),
            container_id: container.map(|container| container.id.clone()),
            pod_uid: container.and_then(|container| container.pod_uid.clone()),
            ip,
            attempts: *attempts,
            destination_count: *number,
            destination_count_or_more: *or_more,
            exited: process.is_some_and(|process| process.has_exited),
        }
    }
}

impl Candidate {
    /// The candidates of `who`, if it is a control group.
    fn of<'a>(who: &'a Who, extent: &'a Extent) -> impl Iterator<Item = Self> + use<'a> {
        let id = who.cgroup().map_or(0, |cgroup| cgroup.id);
        extent.candidates(who).map(move |process| Self {
            cgroup_id: id.to_string(),
            pid: process.pid,
            name: extent.name(&process.name),
            entity_id: process.entity_id.clone(),
            executable: process.executable.as_ref().map(|path| extent.name(path)),
            args: args(process, extent),
            start: process.start_ns.map(nanos),
            user: User::new(&process.user, extent),
            parent: Parent::of(process, extent),
            exited: process.has_exited,
        })
    }
}

fn nanos(at_ns: u64) -> String {
    super::time(at_ns, Precision::Nanos)
}

/// The arguments that are written.
fn args(process: &event::Process, extent: &Extent) -> Vec<String> {
    let args = process.args.iter().flatten().take(extent.args);
    args.map(|arg| extent.name(arg)).collect()
}

/// The addresses that are written, each once.
fn addresses(episode: &Episode, extent: &Extent) -> Vec<IpAddr> {
    let sources = episode.programs.iter().take(extent.programs);
    let sources = sources.filter_map(|active| match active.who {
        Who::Source(address) => Some(address),
        Who::Process(_) | Who::Cgroup { .. } => None,
    });
    let destinations = episode.destinations.iter().take(extent.destinations);
    let mut all = vec![episode.source.ip(), episode.destination.ip()];
    for address in sources.chain(destinations.map(SocketAddr::ip)) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use throttle_common::record::Tallies;

    use super::*;

    #[test]
    fn the_totals_are_named_like_the_tallies() {
        let schema = schema();
        let mut names: Vec<_> = schema["$defs"]["Totals"]["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        let tallies = Tallies::default();
        let mut tallies: Vec<_> = tallies.of_attempts().map(|(name, _)| name).collect();
        tallies.sort_unstable();
        assert_eq!(names, tallies);
    }

    #[test]
    fn nothing_is_null() {
        assert!(!schema().to_string().contains("null"));
    }
}
