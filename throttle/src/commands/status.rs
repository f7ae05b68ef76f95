//! `throttle status`

use std::collections::HashMap;

use anyhow::Result;
use serde::Serialize;
use throttle::{
    Error, Settings, clock, detach, event,
    exempt::Exempt,
    instance::{Daemon, Instance},
    interface,
    maps::Maps,
    name::Name,
    owners::Names,
    settings::{Direction, Mode, Pacing, Scope},
};
use throttle_common::{
    policy::Policy,
    scope::Scope as State,
    subject::{Subject, SubjectKind},
};

use super::{Shown, chosen_or_none, print, runtime, shown};

/// What `throttle status` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// The throttle to look at [default: all of this network namespace]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// How it is written [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Shown>,
}

/// The state of all throttles.
#[derive(Debug, Serialize)]
struct Report {
    throttles: Vec<Throttle>,
    /// Interfaces with programs of ours that are nobody's who is registered.
    strangers: Vec<String>,
}

/// The state of one.
#[derive(Debug, Serialize)]
struct Throttle {
    name: String,
    /// None if it goes on without one.
    daemon: Option<DaemonState>,
    /// Why no more can be told.
    error: Option<String>,
    interfaces: Vec<Attached>,
    settings: Option<InForce>,
    scopes: Vec<ScopeState>,
    /// What could not be handled the usual way, and what came of it.
    not_handled: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Serialize)]
struct DaemonState {
    pid: u32,
    version: String,
    /// RFC 3339.
    started: String,
    keep: bool,
    /// Whether it has said so within the last second; if not, senders take the
    /// releases. None if that cannot be looked at.
    is_responding: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Attached {
    index: u32,
    name: String,
    hook: &'static str,
    /// Packets may leave later: it has fq.
    departure_times: bool,
}

/// Settings in force, as the command line has them.
#[derive(Debug, Serialize)]
pub(super) struct InForce {
    limit: u64,
    rate: String,
    scope: &'static str,
    direction: &'static str,
    mode: &'static str,
    pacing: &'static str,
    attempt_timeout: String,
    max_delay: String,
    known_for: String,
    exempt: Vec<String>,
}

impl InForce {
    pub(super) fn of(settings: &Settings) -> Self {
        let time = |time| humantime::format_duration(time).to_string();
        Self {
            limit: settings.limit,
            rate: settings.rate.to_string(),
            scope: match settings.scope {
                Scope::Interface => "interface",
                Scope::Cgroup => "cgroup",
                Scope::User => "user",
                Scope::Process => "process",
                Scope::Source => "source",
            },
            direction: match settings.direction {
                Direction::Egress => "egress",
                Direction::Ingress => "ingress",
            },
            mode: match settings.mode {
                Mode::Enforce => "enforce",
                Mode::Monitor => "monitor",
            },
            pacing: match settings.pacing {
                Pacing::Auto => "auto",
                Pacing::Resend => "resend",
                Pacing::Fq => "fq",
                Pacing::Retransmit => "retransmit",
            },
            attempt_timeout: time(settings.attempt_timeout),
            max_delay: time(settings.max_delay),
            known_for: time(settings.known_for),
            exempt: settings.exempt.iter().map(Exempt::to_string).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct ScopeState {
    kind: &'static str,
    id: String,
    name: String,
    half_open: u64,
    queued: u64,
    /// Whether an episode goes on: the limit was reached, and it has not recovered.
    is_limited: bool,
    /// What happened in it so far.
    tallies: serde_json::Map<String, serde_json::Value>,
}

impl ScopeState {
    fn pid(&self) -> &str {
        &self.id
    }
}

/// A name that leaves room for the columns: of a longer one the end says most.
fn shortened(name: &str) -> String {
    const MOST: usize = 48;
    let len = name.chars().count();
    if len <= MOST {
        return name.into();
    }
    let end: String = name.chars().skip(len - (MOST - 1)).collect();
    format!("…{end}")
}

pub(crate) fn status(status: &Status) -> Result<()> {
    let instances = chosen_or_none(status.name.as_deref())?;
    let interfaces: HashMap<u32, String> = runtime()?
        .block_on(interface::names())?
        .into_iter()
        .collect();
    let mut names = Names::new(false);
    let throttles = instances.iter();
    let strangers = match status.name {
        Some(_) => Vec::new(),
        None => runtime()?.block_on(detach::strangers())?,
    };
    let report = Report {
        throttles: throttles
            .map(|instance| look(instance, &interfaces, &mut names))
            .collect(),
        strangers: strangers.iter().map(|of| shown(&of.name)).collect(),
    };
    let text = match Shown::or_default(status.output) {
        Shown::Text => text(&report),
        Shown::Json => format!("{}\n", serde_json::to_string(&report)?),
    };
    print(&text)?;
    // What could be told has been.
    match report.throttles.iter().find_map(|of| of.error.as_ref()) {
        Some(error) => Err(Error::Refused(error.clone()).into()),
        None => Ok(()),
    }
}

fn look(instance: &Instance, interfaces: &HashMap<u32, String>, names: &mut Names) -> Throttle {
    let mut found = Throttle {
        name: instance.name.clone(),
        daemon: None,
        error: None,
        interfaces: Vec::new(),
        settings: None,
        scopes: Vec::new(),
        not_handled: serde_json::Map::new(),
    };
    if let Some(pins) = &instance.pins {
        let devices = pins.devices().into_iter();
        let named = |index: &u32| {
            let name = interfaces.get(index);
            name.map_or_else(|| format!("({index}, gone)"), |name| shown(name))
        };
        found.interfaces = devices
            .map(|(index, hook)| Attached {
                index,
                name: named(&index),
                hook,
                departure_times: false,
            })
            .collect();
    }
    let (maps, policy) = match instance.maps().and_then(|maps| {
        let policy = maps.policy()?;
        Ok((maps, policy))
    }) {
        Ok(found) => found,
        Err(error) => {
            found.daemon = instance.daemon.as_ref().map(|of| daemon(of, None));
            found.error = Some(error.to_string());
            return found;
        }
    };
    found.daemon = instance.daemon.as_ref().map(|of| daemon(of, Some(&maps)));
    let departures = maps.departures();
    for interface in &mut found.interfaces {
        interface.departure_times = departures.contains_key(&interface.index);
    }
    let settings = Settings::in_force(&policy, maps.exempt(), instance.direction());
    found.settings = Some(InForce::of(&settings));
    found.scopes = scopes(&maps, &policy, interfaces, names);
    for (name, count) in maps.unhandled() {
        found.not_handled.insert(name.into(), count.into());
    }
    found
}

fn daemon(daemon: &Daemon, maps: Option<&Maps>) -> DaemonState {
    let started = i128::from(daemon.started_ns);
    let heard = maps.and_then(|maps| maps.daemon().ok());
    DaemonState {
        pid: daemon.pid,
        version: shown(&daemon.version),
        started: jiff::Timestamp::from_nanosecond(started)
            .map_or_else(|_| "unknown".into(), |time| format!("{time:.0}")),
        keep: daemon.keep,
        // With a pacing that does without it, it says nothing.
        is_responding: heard
            .map(|heard| heard.alive_until_ns == 0 || heard.is_alive(clock::monotonic_ns())),
    }
}

fn scopes(
    maps: &Maps,
    policy: &Policy,
    interfaces: &HashMap<u32, String>,
    names: &mut Names,
) -> Vec<ScopeState> {
    let now_ns = clock::monotonic_ns();
    let all: HashMap<Subject, State> = maps.scopes().collect();
    let mut rows: Vec<ScopeState> = all
        .into_iter()
        .map(|(subject, state)| {
            let named = event::Scope::new(&subject, name_of(&subject, interfaces, names));
            let tallies = maps.tallies(&subject);
            let mut counts = serde_json::Map::new();
            for (name, count) in throttle_common::record::Tallies::NAMES
                .into_iter()
                .zip(tallies.0)
            {
                counts.insert(name.into(), count.into());
            }
            ScopeState {
                kind: named.kind,
                id: named.id,
                name: named.name.to_string(),
                half_open: state
                    .half_open
                    .live(State::half_open_window(policy), now_ns),
                queued: state.queued.live(State::queue_window(policy), now_ns),
                is_limited: state.episode_ns() != 0 && !state.has_recovered(policy, now_ns),
                tallies: counts,
            }
        })
        .collect();
    rows.sort_by(|a, b| {
        let weight = |of: &ScopeState| (of.queued, of.half_open);
        weight(b)
            .cmp(&weight(a))
            .then_with(|| (a.kind, &a.name, &a.id).cmp(&(b.kind, &b.name, &b.id)))
    });
    rows
}

/// The name of a scope, where it has one.
fn name_of(
    subject: &Subject,
    interfaces: &HashMap<u32, String>,
    names: &mut Names,
) -> Option<Name> {
    if subject.kind == SubjectKind::Interface as u32 {
        let name = interfaces.get(&u32::try_from(subject.number()).ok()?)?;
        return Some(Name::new(name));
    }
    names.scope(subject)
}

/// The tallies that the table for people has, with their titles.
const COLUMNS: [(&str, &str); 9] = [
    ("attempts", "ATTEMPTS"),
    ("deferred", "DEFERRED"),
    ("released", "RELEASED"),
    ("overflowed", "OVERFLOW"),
    ("answered", "ANSWERED"),
    ("refused", "REFUSED"),
    ("unreachable", "UNREACH"),
    ("aborted", "ABORTED"),
    ("expired", "EXPIRED"),
];

fn text(report: &Report) -> String {
    if report.throttles.is_empty() {
        return match report.strangers.is_empty() {
            true => "no throttle is registered in this network namespace\n".into(),
            false => strangers_text(&report.strangers),
        };
    }
    let mut each: Vec<String> = report.throttles.iter().map(throttle_text).collect();
    if !report.strangers.is_empty() {
        each.push(strangers_text(&report.strangers));
    }
    each.join("\n")
}

/// What is to be said of programs that are nobody's who is registered.
pub(super) fn strangers_text(strangers: &[String]) -> String {
    format!(
        "programs of a throttle that is not registered here are on {}: one that had no right to \
         register, that has a /run of its own, or that was killed; `throttle doctor` shows them\n",
        strangers.join(", ")
    )
}

fn throttle_text(of: &Throttle) -> String {
    let mut text = format!("throttle {}\n", shown(&of.name));
    text += &match &of.daemon {
        Some(daemon) => format!(
            "  daemon       pid {}, version {}, since {}{}{}\n",
            daemon.pid,
            daemon.version,
            daemon.started,
            if daemon.keep { ", keeps" } else { "" },
            if daemon.is_responding == Some(false) {
                ", does not respond: senders take the releases"
            } else {
                ""
            },
        ),
        None => {
            "  daemon       none: enforcement goes on, nobody keeps the order or tells of events; \
                 `throttle run` adopts it\n"
                .into()
        }
    };
    if let Some(error) = &of.error {
        return text + &format!("  error        {error}\n");
    }
    let each: Vec<String> = of
        .interfaces
        .iter()
        .map(|of| {
            let fq = if of.departure_times { ", fq" } else { "" };
            format!("{} ({}{fq})", of.name, of.hook)
        })
        .collect();
    text += &match each.is_empty() {
        true => "  interfaces   none\n".into(),
        false => format!("  interfaces   {}\n", each.join(", ")),
    };
    if let Some(of) = &of.settings {
        text += &format!(
            "  settings     {}, limit {}, rate {}, by {}, {}, pacing {}\n  \
             times        attempt-timeout {}, max-delay {}, known-for {}\n",
            of.mode,
            of.limit,
            of.rate,
            of.scope,
            of.direction,
            of.pacing,
            of.attempt_timeout,
            of.max_delay,
            of.known_for
        );
        if !of.exempt.is_empty() {
            text += &format!("  exempt       {}\n", of.exempt.join(" "));
        }
    }
    let missed: Vec<String> = of
        .not_handled
        .iter()
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if !missed.is_empty() {
        text += &format!("  not handled  {}\n", missed.join(", "));
    }
    text += "\n";
    text + &table(&of.scopes)
}

fn table(scopes: &[ScopeState]) -> String {
    if scopes.is_empty() {
        return "  no attempts so far\n".into();
    }
    let mut rows = vec![vec![
        "SCOPE".to_owned(),
        "HALF-OPEN".into(),
        "QUEUED".into(),
    ]];
    rows[0].extend(COLUMNS.map(|(_, title)| title.to_owned()));
    for scope in scopes {
        let mark = if scope.is_limited { " *" } else { "" };
        let number = match scope.kind {
            // A program has as many scopes as processes.
            "process" if scope.name != scope.pid() => format!(" ({})", scope.pid()),
            _ => String::new(),
        };
        let name = shortened(&scope.name);
        let mut row = vec![
            format!("{} {name}{number}{mark}", scope.kind),
            scope.half_open.to_string(),
            scope.queued.to_string(),
        ];
        let tally = |name: &str| {
            scope
                .tallies
                .get(name)
                .map_or("-".into(), ToString::to_string)
        };
        row.extend(COLUMNS.map(|(name, _)| tally(name)));
        rows.push(row);
    }
    let mut text = super::aligned(&rows);
    if scopes.iter().any(|scope| scope.is_limited) {
        text += "  * the limit was reached, and it has not recovered yet\n";
    }
    text
}
