//! One look, as text or as JSON.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use throttle_common::record::Tallies;

use super::{
    columns,
    rows::{Owner, Row, Snapshot, State, Throttle},
};
use crate::{
    event::{self, Who},
    name::Name,
    settings::{Mode, Scope},
};

/// A moment in nanoseconds since 1970 as RFC 3339 writes it, in UTC, with
/// milliseconds.
fn time(at_ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(at_ns))
        .map_or_else(|_| String::new(), |t| format!("{t:.3}"))
}

impl State {
    /// What is in force, for people.
    #[must_use]
    pub fn settings(&self) -> String {
        let per = scope(self.scope);
        format!(
            "{}, limit {}, {} per {per}",
            mode(self.mode),
            self.limit,
            self.rate
        )
    }

    /// What is counted, for people.
    #[must_use]
    pub fn counts(&self) -> String {
        format!(
            "{} counted, {} queued, {} of {} scopes at limit",
            self.half_open, self.queued, self.full_scopes, self.scopes
        )
    }
}

impl Throttle {
    /// Its daemon, for people, and whether all is well with it.
    #[must_use]
    pub fn keeper(&self) -> (String, bool) {
        let is_stalled = self.state.as_ref().is_ok_and(|state| state.is_stalled);
        match &self.daemon {
            Some(daemon) if is_stalled => (format!("pid {} DOES NOT RESPOND", daemon.pid), false),
            Some(daemon) => (format!("pid {}", daemon.pid), true),
            None => ("NO DAEMON".into(), false),
        }
    }
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Monitor => "monitor",
    }
}

const fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Interface => "interface",
        Scope::Cgroup => "cgroup",
        Scope::User => "user",
        Scope::Process => "process",
        Scope::Source => "source",
    }
}

/// A look as a table for people: these `rows` of it, in this order.
#[must_use]
pub fn text(snapshot: &Snapshot, rows: &[&Row]) -> String {
    let mut text = format!("{} {}\n", time(snapshot.at_ns), summary(rows));
    for throttle in &snapshot.throttles {
        let (keeper, _) = throttle.keeper();
        let said = match &throttle.state {
            Ok(state) => format!("{}; {}", state.counts(), state.settings()),
            Err(error) => format!("cannot be looked into: {}", first_line(&error.to_string())),
        };
        // A String takes it all.
        let _ = writeln!(text, "throttle {}, {keeper}: {said}", throttle.name);
        if throttle.state.as_ref().is_ok_and(|state| !state.is_whole) {
            text += "  it has more attempts than are looked at: numbers are too low\n";
        }
    }
    if rows.is_empty() {
        return text;
    }
    let columns = columns::natural(rows.iter().copied(), snapshot.throttles.len() > 1);
    let titles = columns::line(&columns, |column| column.title().into());
    let lines = rows
        .iter()
        .map(|row| columns::line(&columns, |column| column.cell(row)));
    text.push('\n');
    for line in std::iter::once(titles).chain(lines) {
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// How many attempts and owners there are, for people.
#[must_use]
pub fn summary(rows: &[&Row]) -> String {
    let (half_open, deferred) = Snapshot::totals(rows.iter().copied());
    let owners = rows.len();
    let s = if owners == 1 { "" } else { "s" };
    format!("{half_open} half-open, {deferred} deferred of {owners} owner{s}")
}

/// The first line of an error, fit to be shown.
#[must_use]
pub fn first_line(error: &str) -> Name {
    Name::new(error.lines().next().unwrap_or_default())
}

/// A look as one JSON object: these `rows` of it, in this order.
#[must_use]
pub fn json(snapshot: &Snapshot, rows: &[&Row]) -> String {
    let (half_open, deferred) = Snapshot::totals(rows.iter().copied());
    let all = All {
        time: time(snapshot.at_ns),
        throttles: snapshot.throttles.iter().map(ThrottleFields::of).collect(),
        rows: rows.iter().map(|row| RowFields::of(row)).collect(),
        totals: Totals {
            rows: rows.len(),
            half_open,
            deferred,
        },
    };
    // Strings, numbers and structs of them always make JSON.
    serde_json::to_string(&all).unwrap_or_default()
}

#[derive(Serialize)]
struct All<'a> {
    time: String,
    throttles: Vec<ThrottleFields<'a>>,
    rows: Vec<RowFields<'a>>,
    totals: Totals,
}

#[derive(Serialize)]
struct Totals {
    rows: usize,
    half_open: u64,
    deferred: u64,
}

#[derive(Serialize)]
struct ThrottleFields<'a> {
    name: &'a str,
    /// Of the daemon; null if there is none.
    pid: Option<u32>,
    #[serde(flatten)]
    state: Option<StateFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct StateFields {
    mode: &'static str,
    limit: u64,
    rate: String,
    scope: &'static str,
    daemon_responds: bool,
    half_open: u64,
    queued: u64,
    scopes: usize,
    scopes_at_limit: usize,
    /// Whether all attempts were looked at.
    complete: bool,
    tallies: serde_json::Map<String, serde_json::Value>,
}

impl<'a> ThrottleFields<'a> {
    fn of(throttle: &'a Throttle) -> Self {
        let (_, responds) = throttle.keeper();
        let state = throttle.state.as_ref();
        Self {
            name: throttle.name.as_str(),
            pid: throttle.daemon.as_ref().map(|daemon| daemon.pid),
            error: state.err().map(ToString::to_string),
            state: state.ok().map(|state| StateFields {
                mode: mode(state.mode),
                limit: state.limit,
                rate: state.rate.to_string(),
                scope: scope(state.scope),
                daemon_responds: responds,
                half_open: state.half_open,
                queued: state.queued,
                scopes: state.scopes,
                scopes_at_limit: state.full_scopes,
                complete: state.is_whole,
                tallies: Tallies::NAMES
                    .into_iter()
                    .zip(state.tallies.0)
                    .map(|(name, count)| (name.to_owned(), count.into()))
                    .collect(),
            }),
        }
    }
}

/// Which of `process`, `cgroup` and `source` is there depends on the owner.
#[derive(Serialize)]
struct RowFields<'a> {
    throttle: &'a str,
    scope: ScopeFields<'a>,
    owner: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ProcessFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<CgroupFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<ContainerFields<'a>>,
    /// Processes of the control group that it may be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<Short<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<std::net::IpAddr>,
    half_open: u64,
    deferred: u64,
    destinations: usize,
    oldest_seconds: f64,
    example: Example,
}

#[derive(Serialize)]
struct ScopeFields<'a> {
    kind: &'static str,
    id: &'a str,
    name: &'a str,
}

#[derive(Serialize)]
struct ProcessFields<'a> {
    pid: u32,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Short<'a>>,
    exited: bool,
}

#[derive(Serialize)]
struct UserFields<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

/// A process in short.
#[derive(Serialize)]
struct Short<'a> {
    pid: u32,
    name: &'a str,
}

#[derive(Serialize)]
struct CgroupFields<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
}

#[derive(Serialize)]
struct ContainerFields<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uid: Option<&'a str>,
}

#[derive(Serialize)]
struct Example {
    source: std::net::SocketAddr,
    destination: std::net::SocketAddr,
}

impl<'a> RowFields<'a> {
    fn of(row: &'a Row) -> Self {
        let cgroup = row.cgroup.as_ref();
        let candidates = row.who.as_ref().map_or(&[][..], Who::candidates);
        Self {
            throttle: row.throttle.as_str(),
            scope: ScopeFields {
                kind: row.scope.kind,
                id: &row.scope.id,
                name: row.scope.name.as_str(),
            },
            owner: match row.owner {
                Owner::Process { .. } => "process",
                Owner::Cgroup => "cgroup",
                Owner::Source(_) => "source",
            },
            process: row.pid().map(|pid| ProcessFields::of(row, pid)),
            cgroup: cgroup.map(|cgroup| CgroupFields {
                id: cgroup.id.to_string(),
                path: cgroup.path.as_ref().map(Name::as_str),
            }),
            container: cgroup
                .and_then(|cgroup| cgroup.container.as_ref())
                .map(|container| ContainerFields {
                    id: &container.id,
                    runtime: container.runtime,
                    pod_uid: container.pod_uid.as_deref(),
                }),
            candidates: candidates
                .iter()
                .map(|candidate| Short {
                    pid: candidate.pid,
                    name: candidate.name.as_str(),
                })
                .collect(),
            source: match row.owner {
                Owner::Source(address) => Some(address),
                Owner::Process { .. } | Owner::Cgroup => None,
            },
            half_open: row.half_open,
            deferred: row.deferred,
            destinations: row.destinations,
            // To the millisecond.
            oldest_seconds: row.oldest.as_millis() as f64 / 1_000.0,
            example: Example {
                source: row.source,
                destination: row.destination,
            },
        }
    }
}

impl<'a> ProcessFields<'a> {
    fn of(row: &'a Row, pid: u32) -> Self {
        let process = row.process();
        let user = |user: &'a event::User| UserFields {
            id: user.id.to_string(),
            name: user.name.as_ref().map(Name::as_str),
        };
        Self {
            pid,
            name: row.program().to_string(),
            executable: process.and_then(|p| p.executable.as_ref().map(Name::as_str)),
            user: row.user().map(user),
            start: process.and_then(|p| p.start_ns).map(time),
            entity_id: process.map(|p| &*p.entity_id),
            parent: process.and_then(|p| p.parent.as_ref()).map(|parent| Short {
                pid: parent.pid,
                name: parent.name.as_str(),
            }),
            exited: row.has_exited(),
        }
    }
}
