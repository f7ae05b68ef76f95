//! One object of the Open Cybersecurity Schema Framework (OCSF 1.8): the class
//! Network Activity.
//!
//! What OCSF has no field for stands under `unmapped.throttle`, as it does under
//! `throttle` in [`json`](super::json).

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{
    Host,
    extent::{self, Extent},
    json::Throttle,
    millis,
    words::{self, Severity},
};
use crate::{
    event::{self, Ending, Episode, Event, What},
    settings::Mode,
};

const OCSF_VERSION: &str = "1.8.0";
/// Network Activity.
const CLASS: u32 = 4_001;
/// The number of anything that OCSF has no number for; a name says what it is.
const OTHER: u32 = 99;

/// The event as one line.
#[must_use]
pub fn line(event: &Event, host: &Host) -> String {
    extent::fit(event, |extent| {
        serde_json::to_string(&Record::new(event, host, extent)).unwrap_or_default()
    })
}

#[derive(Serialize)]
struct Record {
    activity_id: u32,
    activity_name: &'static str,
    category_uid: u32,
    category_name: &'static str,
    class_uid: u32,
    class_name: &'static str,
    type_uid: u32,
    type_name: String,
    severity_id: u32,
    severity: &'static str,
    time: u64,
    message: String,
    status_id: u32,
    status: &'static str,
    status_detail: &'static str,
    #[serde(flatten)]
    control: Option<Control>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<u64>,
    metadata: Metadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    firewall_rule: Option<FirewallRule>,
    src_endpoint: Endpoint,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_endpoint: Option<Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_info: Option<ConnectionInfo>,
    device: Device,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<Actor>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    observables: Vec<Observable>,
    unmapped: Unmapped,
}

/// What was done with attempts over the limit.
#[derive(Serialize)]
struct Control {
    action_id: u32,
    action: &'static str,
    disposition_id: u32,
    disposition: &'static str,
    is_alert: bool,
}

#[derive(Serialize)]
struct Metadata {
    version: &'static str,
    product: Product,
    profiles: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_code: Option<&'static str>,
    log_name: &'static str,
    uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_uid: Option<String>,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_truncated: Option<bool>,
}

#[derive(Serialize)]
struct Product {
    name: &'static str,
    vendor_name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
struct FirewallRule {
    name: &'static str,
    uid: &'static str,
}

#[derive(Default, Serialize)]
struct Endpoint {
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface_uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Container>,
}

#[derive(Serialize)]
struct ConnectionInfo {
    direction_id: u32,
    direction: &'static str,
    protocol_num: u32,
    protocol_name: &'static str,
    protocol_ver_id: u32,
}

#[derive(Serialize)]
struct Device {
    type_id: u32,
    r#type: &'static str,
    hostname: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_uid: Option<String>,
    os: Os,
}

#[derive(Serialize)]
struct Os {
    type_id: u32,
    r#type: &'static str,
    name: &'static str,
    kernel_release: String,
}

#[derive(Serialize)]
struct Actor {
    process: Process,
}

#[derive(Serialize)]
struct Process {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ptid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd_line: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_process: Option<Box<Process>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Container>,
}

#[derive(Serialize)]
struct User {
    uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Serialize)]
struct Container {
    uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orchestrator: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uuid: Option<String>,
}

#[derive(Serialize)]
struct Observable {
    name: &'static str,
    type_id: u32,
    r#type: &'static str,
    value: String,
}

#[derive(Serialize)]
struct Unmapped {
    throttle: Throttle,
}

impl Record {
    fn new(event: &Event, host: &Host, extent: &Extent) -> Self {
        let what = &event.what;
        let episode = what.episode();
        let (activity_id, activity_name) = activity(what);
        let (severity_id, severity) = match what.severity() {
            Severity::Low => (2, "Low"),
            Severity::Medium => (3, "Medium"),
        };
        let (status_id, status) = status(what);
        let name = extent.name(&host.name);
        let start_time = episode.map(|episode| millis(episode.start_ns));
        let end_time = match what {
            What::LimitOngoing(episode) | What::LimitCleared(episode) => {
                Some(millis(episode.end_ns()))
            }
            What::LimitReached(_) | What::Lost { .. } => None,
        };
        Self {
            activity_id,
            activity_name,
            category_uid: CLASS / 1_000,
            category_name: "Network Activity",
            class_uid: CLASS,
            class_name: "Network Activity",
            type_uid: CLASS * 100 + activity_id,
            type_name: format!(
                "Network Activity: {}",
                if activity_id == OTHER {
                    "Other"
                } else {
                    activity_name
                }
            ),
            severity_id,
            severity,
            time: millis(event.at_ns),
            message: words::message(event, extent),
            status_id,
            status,
            status_detail: what.reason(),
            control: Control::new(what),
            count: match what {
                What::Lost { events } => Some(*events),
                What::LimitReached(episode)
                | What::LimitOngoing(episode)
                | What::LimitCleared(episode) => {
                    Some(episode.deferred()).filter(|count| *count > 0)
                }
            },
            start_time,
            end_time,
            duration: start_time
                .zip(end_time)
                .map(|(start, end)| end.saturating_sub(start)),
            metadata: Metadata::new(event, extent),
            firewall_rule: episode.map(|_| FirewallRule {
                name: words::RULE,
                uid: words::RULE_ID,
            }),
            src_endpoint: episode.map_or_else(
                || Endpoint {
                    hostname: Some(name.clone()),
                    ..Endpoint::default()
                },
                |episode| Endpoint::source(episode, extent),
            ),
            dst_endpoint: episode.map(|episode| Endpoint::new(episode.destination)),
            connection_info: episode.map(|episode| ConnectionInfo {
                direction_id: 2,
                direction: "Outbound",
                protocol_num: 6,
                protocol_name: "tcp",
                protocol_ver_id: if episode.source.is_ipv4() { 4 } else { 6 },
            }),
            device: Device {
                type_id: 0,
                r#type: "Unknown",
                hostname: name.clone(),
                name,
                uid: host.id.clone(),
                boot_uid: host.boot_id.clone(),
                os: Os {
                    type_id: 200,
                    r#type: "Linux",
                    name: "Linux",
                    kernel_release: extent.name(&host.kernel),
                },
            },
            actor: episode
                .and_then(Episode::most_active)
                .and_then(|active| active.who.process())
                .map(|process| Actor {
                    process: Process::new(process, extent),
                }),
            observables: episode.map_or_else(Vec::new, |episode| {
                vec![
                    Observable::ip("src_endpoint.ip", episode.source.ip()),
                    Observable::ip("dst_endpoint.ip", episode.destination.ip()),
                ]
            }),
            unmapped: Unmapped {
                throttle: Throttle::new(event, extent),
            },
        }
    }
}

const fn activity(what: &What) -> (u32, &'static str) {
    match what {
        What::LimitReached(_) | What::LimitOngoing(_) => (4, "Fail"),
        What::LimitCleared(_) => (OTHER, "Limit cleared"),
        What::Lost { .. } => (OTHER, "Events lost"),
    }
}

fn status(what: &What) -> (u32, &'static str) {
    match what {
        What::LimitReached(episode) | What::LimitOngoing(episode) => (
            OTHER,
            match episode.mode {
                Mode::Enforce => "Deferred",
                Mode::Monitor => "Observed",
            },
        ),
        What::LimitCleared(episode) => match episode.ending {
            Some(Ending::Recovered) | None => (1, "Success"),
            Some(Ending::Forgotten) => (OTHER, "Forgotten"),
            Some(Ending::Stopped) => (OTHER, "Stopped"),
        },
        What::Lost { .. } => (2, "Failure"),
    }
}

impl Control {
    /// None if nothing is done any more.
    fn new(what: &What) -> Option<Self> {
        let (episode, is_reached) = match what {
            What::LimitReached(episode) => (episode, true),
            What::LimitOngoing(episode) => (episode, false),
            What::LimitCleared(_) | What::Lost { .. } => return None,
        };
        Some(match episode.mode {
            Mode::Enforce => Self {
                action_id: 4,
                action: "Modified",
                disposition_id: 14,
                disposition: "Delayed",
                is_alert: is_reached,
            },
            Mode::Monitor => Self {
                action_id: 3,
                action: "Observed",
                disposition_id: 15,
                disposition: "Detected",
                is_alert: false,
            },
        })
    }
}

impl Metadata {
    fn new(event: &Event, extent: &Extent) -> Self {
        let episode = event.what.episode();
        let mut profiles = vec!["host"];
        if let Some(episode) = episode {
            profiles.push("security_control");
            let active = episode.most_active();
            if active.and_then(|active| active.who.container()).is_some() {
                profiles.push("container");
            }
        }
        Self {
            version: OCSF_VERSION,
            product: Product {
                name: words::PRODUCT,
                vendor_name: words::PRODUCT,
                version: words::VERSION,
            },
            profiles,
            event_code: event.what.code(),
            log_name: words::DATASET,
            uid: event.id.to_string(),
            correlation_uid: episode.map(|episode| episode.id.to_string()),
            sequence: event.sequence,
            is_truncated: extent.shortened.then_some(true),
        }
    }
}

impl Endpoint {
    fn new(end: SocketAddr) -> Self {
        Self {
            ip: Some(end.ip()),
            port: Some(end.port()),
            ..Self::default()
        }
    }

    fn source(episode: &Episode, extent: &Extent) -> Self {
        // A process carries its container itself.
        let who = episode.most_active().map(|active| &active.who);
        let container = who
            .filter(|who| who.process().is_none())
            .and_then(|who| who.container());
        Self {
            interface_uid: Some(episode.interface.index.to_string()),
            interface_name: Some(extent.name(&episode.interface.name)),
            container: container.map(Container::new),
            ..Self::new(episode.source)
        }
    }
}

impl Process {
    fn new(process: &event::Process, extent: &Extent) -> Self {
        let container = process.cgroup.as_ref();
        let container = container.and_then(|cgroup| cgroup.container.as_ref());
        Self {
            pid: process.pid,
            ptid: process.thread.as_ref().map(|thread| thread.id),
            name: Some(extent.name(&process.name)),
            uid: Some(process.entity_id.clone()),
            path: process.executable.as_ref().map(|path| extent.name(path)),
            cmd_line: process.args.as_ref().map(|args| {
                let args = args.iter().take(extent.args).map(|arg| extent.name(arg));
                args.collect::<Vec<_>>().join(" ")
            }),
            created_time: process.start_ns.map(millis),
            user: Some(User {
                uid: process.user.id.to_string(),
                name: process.user.name.as_ref().map(|name| extent.name(name)),
            }),
            parent_process: process.parent.as_ref().map(|parent| {
                Box::new(Self {
                    pid: parent.pid,
                    ptid: None,
                    name: Some(extent.name(&parent.name)),
                    uid: None,
                    path: None,
                    cmd_line: None,
                    created_time: None,
                    user: None,
                    parent_process: None,
                    container: None,
                })
            }),
            container: container.map(Container::new),
        }
    }
}

impl Container {
    fn new(container: &event::Container) -> Self {
        Self {
            uid: container.id.clone(),
            runtime: container.runtime,
            orchestrator: container.pod_uid.as_ref().map(|_| "kubernetes"),
            // The UID of a static pod is a hash, which is none.
            pod_uuid: container
                .pod_uid
                .clone()
                .filter(|uid| uuid::Uuid::try_parse(uid).is_ok() && uid.len() == 36),
        }
    }
}

impl Observable {
    fn ip(name: &'static str, address: IpAddr) -> Self {
        Self {
            name,
            type_id: 2,
            r#type: "IP Address",
            value: address.to_string(),
        }
    }
}
