//! One object of the Elastic Common Schema (ECS 9.4).
//!
//! What ECS has no field for stands under `throttle`.

use serde_json::{Value, json};

use super::Host;
use crate::{
    event::{CODE, Episode, Event, MESSAGE, Scope, What},
    settings::Mode,
};

const ECS_VERSION: &str = "9.4.0";
/// Medium, on the scale from 1 to 10 that the other formats use.
const SEVERITY: u8 = 6;

/// The event as one line.
#[must_use]
pub fn line(event: &Event, host: &Host) -> String {
    object(event, host).to_string()
}

fn object(event: &Event, host: &Host) -> Value {
    let time = super::time(event.at_ns);
    let mut object = json!({
        "@timestamp": time,
        "ecs": { "version": ECS_VERSION },
        "event": {
            "id": event.id.to_string(),
            "sequence": event.sequence,
            "provider": "throttle",
            "module": "throttle",
            "dataset": "throttle.limit",
        },
        "host": {
            "hostname": host.name,
            "name": host.name,
            "os": { "type": "linux", "kernel": host.kernel },
        },
        "observer": {
            "type": "firewall",
            "product": "throttle",
            "vendor": "throttle",
            "version": env!("CARGO_PKG_VERSION"),
        },
    });
    let more = match &event.what {
        What::LimitReached(episode) | What::LimitOngoing(episode) | What::LimitCleared(episode) => {
            reached(episode, &time, host)
        }
        What::Lost { events } => lost(*events),
    };
    merge(&mut object, more);
    object
}

fn lost(events: u64) -> Value {
    json!({
        "message": format!("{events} events were lost: nobody took them in time"),
        "event": {
            "kind": "pipeline_error",
            "action": "events-lost",
            "reason": "nobody took the events in time",
        },
        "throttle": { "lost": events },
    })
}

fn reached(episode: &Episode, time: &str, host: &Host) -> Value {
    let Episode {
        scope,
        interface,
        limit,
        half_open,
        queued,
        rate,
        mode,
        source,
        destination,
        ..
    } = episode;
    let mut event = json!({
        "kind": "alert",
        "category": ["network"],
        "type": ["connection", "denied"],
        "action": "connection-attempt-deferred",
        "outcome": "success",
        "code": CODE,
        "severity": SEVERITY,
        "reason": "half-open limit reached",
        "start": time,
    });
    if *mode == Mode::Monitor
        && let Some(event) = event.as_object_mut()
    {
        event.insert("kind".into(), "event".into());
        event.insert("type".into(), json!(["connection", "info"]));
        event.insert("action".into(), "connection-attempt-observed".into());
        event.remove("outcome");
    }
    json!({
        "message": format!("{MESSAGE} ({} {})", scope.kind, scope.name),
        "event": event,
        "rule": { "id": "half-open-limit", "name": "half-open limit", "ruleset": "throttle" },
        "network": {
            "transport": "tcp",
            "iana_number": "6",
            "type": if source.is_ipv4() { "ipv4" } else { "ipv6" },
            "direction": "egress",
        },
        "source": {
            "address": source.ip().to_string(), "ip": source.ip().to_string(), "port": source.port(),
        },
        "destination": {
            "address": destination.ip().to_string(),
            "ip": destination.ip().to_string(),
            "port": destination.port(),
        },
        "observer": { "egress": { "interface": { "id": interface.index.to_string(), "name": interface.name.as_str() } } },
        "related": {
            "ip": [source.ip().to_string(), destination.ip().to_string()],
            "hosts": [host.name],
        },
        "throttle": {
            "scope": named(scope),
            "limit": limit,
            "half_open": half_open,
            "queued": queued,
            "rate": rate.to_string(),
            "mode": match mode { Mode::Enforce => "enforce", Mode::Monitor => "monitor" },
        },
    })
}

fn named(named: &Scope) -> Value {
    json!({ "kind": named.kind, "id": named.id, "name": named.name.as_str() })
}

/// Puts the fields of `more` into `into`, objects into objects.
fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                match into.get_mut(&key) {
                    Some(there) if there.is_object() && value.is_object() => merge(there, value),
                    _ => {
                        into.insert(key, value);
                    }
                }
            }
        }
        (into, more) => *into = more,
    }
}
