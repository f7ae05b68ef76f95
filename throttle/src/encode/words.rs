//! What is said of an event, the same in every format.

use std::{fmt::Write as _, time::Duration};

use throttle_common::{
    NANOS_PER_MILLI,
    record::{Tallies, Tally},
};

use super::extent::Extent;
use crate::{
    event::{
        Active, CODE, Cgroup, Container, Count, Ending, Episode, Event, MESSAGE, Process, Scope,
        User, What, Who,
    },
    settings::Mode,
};

/// The name of the rule that every event of an episode is about.
pub(super) const RULE: &str = "half-open limit";
/// The id of that rule.
pub(super) const RULE_ID: &str = "half-open-limit";
/// What all events belong to.
pub(super) const DATASET: &str = "throttle.limit";
/// Us.
pub(super) const PRODUCT: &str = "throttle";
/// Our version.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// To be known.
    Low,
    /// To be looked at.
    Medium,
}

impl Severity {
    /// On the scale from 0 to 10.
    pub(super) const fn of_ten(self) -> u8 {
        match self {
            Self::Low => 3,
            Self::Medium => 6,
        }
    }
}

impl What {
    /// How much it matters.
    pub(super) const fn severity(&self) -> Severity {
        match self {
            Self::LimitReached(_) | Self::LimitOngoing(_) | Self::Lost { .. } => Severity::Medium,
            Self::LimitCleared(_) => Severity::Low,
        }
    }

    /// What happened, as one word.
    pub(super) const fn action(&self) -> &'static str {
        match self {
            Self::LimitReached(episode) => match episode.mode {
                Mode::Enforce => "connection-attempt-deferred",
                Mode::Monitor => "connection-attempt-observed",
            },
            Self::LimitOngoing(_) => "limit-ongoing",
            Self::LimitCleared(_) => "limit-cleared",
            Self::Lost { .. } => "events-lost",
        }
    }

    /// The number of the original's event, which told of the same.
    pub(super) const fn code(&self) -> Option<&'static str> {
        match self {
            Self::LimitReached(_) => Some(CODE),
            Self::LimitOngoing(_) | Self::LimitCleared(_) | Self::Lost { .. } => None,
        }
    }

    /// What is done, or was, with attempts over the limit, as one word.
    pub(super) fn done(&self) -> Option<&'static str> {
        self.episode().map(|episode| match episode.mode {
            Mode::Enforce => "deferred",
            Mode::Monitor => "observed",
        })
    }

    /// Why there is an event.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::LimitReached(_) => "half-open limit reached",
            Self::LimitOngoing(_) => "half-open limit still exceeded",
            Self::LimitCleared(episode) => match episode.ending {
                Some(Ending::Recovered) | None => "nobody waits any more",
                Some(Ending::Forgotten) => "the kernel gave the scope's entry to another one",
                Some(Ending::Stopped) => "the throttle ended",
            },
            Self::Lost { .. } => "they were too many, or nobody took them in time",
        }
    }

    /// What kind of event it is, as a heading.
    pub(super) const fn title(&self) -> &'static str {
        match self {
            Self::LimitReached(_) => "TCP half-open limit reached",
            Self::LimitOngoing(_) => "TCP half-open limit still exceeded",
            Self::LimitCleared(_) => "TCP half-open limit cleared",
            Self::Lost { .. } => "Events lost",
        }
    }
}

impl Mode {
    /// As one word.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Monitor => "monitor",
        }
    }
}

impl Ending {
    /// As one word.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Forgotten => "forgotten",
            Self::Stopped => "stopped",
        }
    }
}

impl Episode {
    /// When it was over, in nanoseconds since 1970, or until when it has lasted.
    pub(super) const fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.duration_ns)
    }

    /// The attempts that were deferred in it.
    pub(super) const fn deferred(&self) -> u64 {
        self.totals.get(Tally::Deferred)
    }
}

/// What happened, with the most active program and without lists: what
/// machines carry along for the people who look at their screens.
pub(super) fn message(event: &Event, extent: &Extent) -> String {
    sentence(
        event,
        &Extent {
            destinations: 0,
            programs: extent.programs.min(1),
            args: 0,
            ..*extent
        },
    )
}

/// What happened, in full. It holds no control character, whatever names it
/// carries.
pub(super) fn sentence(event: &Event, extent: &Extent) -> String {
    let told = match &event.what {
        What::LimitReached(episode) => reached(episode, extent),
        What::LimitOngoing(episode) => ongoing(episode, extent),
        What::LimitCleared(episode) => cleared(episode, extent),
        What::Lost { events } => format!(
            "{} lost: they were too many, or nobody took them in time",
            many(*events, "event was", "events were")
        ),
    };
    told.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn reached(episode: &Episode, extent: &Extent) -> String {
    let Episode {
        limit,
        half_open,
        queued,
        rate,
        mode,
        ..
    } = episode;
    let done = match mode {
        Mode::Enforce => format!("further ones are released at {rate}"),
        Mode::Monitor => format!("monitored only; {rate} would be released"),
    };
    format!(
        "limit reached on {}: {MESSAGE} Half-open {half_open}, limit {limit}, queued {queued}; \
         {done}{}",
        scope(&episode.scope, extent),
        by_whom(episode, extent),
    )
}

fn ongoing(episode: &Episode, extent: &Extent) -> String {
    let Episode {
        limit,
        half_open,
        queued,
        peak_half_open,
        peak_queued,
        ..
    } = episode;
    format!(
        "still over the limit on {} after {}: half-open {half_open} (at most {peak_half_open}), \
         limit {limit}, queued {queued} (at most {peak_queued}){}{}{}",
        scope(&episode.scope, extent),
        span(episode.duration_ns),
        watched(episode),
        totals(&episode.totals),
        by_whom(episode, extent),
    )
}

fn cleared(episode: &Episode, extent: &Extent) -> String {
    let Episode {
        limit,
        peak_half_open,
        peak_queued,
        ..
    } = episode;
    let (scope, span) = (scope(&episode.scope, extent), span(episode.duration_ns));
    let how = match episode.ending {
        Some(Ending::Recovered) | None => {
            format!("recovered: {scope} was over its limit for {span}")
        }
        Some(Ending::Forgotten) => {
            format!("{scope} was lost sight of after {span}: too many others are watched")
        }
        Some(Ending::Stopped) => {
            format!("{scope} was still over its limit after {span}, when the throttle ended")
        }
    };
    format!(
        "{how}; half-open at most {peak_half_open}, limit {limit}, queued at most \
         {peak_queued}{}{}{}",
        watched(episode),
        totals(&episode.totals),
        by_whom(episode, extent),
    )
}

fn watched(episode: &Episode) -> &'static str {
    match episode.mode {
        Mode::Enforce => "",
        Mode::Monitor => "; monitored only",
    }
}

/// The counts that are not 0.
fn totals(totals: &Tallies) -> String {
    let each: Vec<_> = totals
        .of_attempts()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if each.is_empty() {
        String::new()
    } else {
        format!("; {}", each.join(", "))
    }
}

/// The programs, an example, and the destinations.
fn by_whom(episode: &Episode, extent: &Extent) -> String {
    let mut told = String::new();
    let named = extent.programs.min(episode.programs.len());
    for active in &episode.programs[..named] {
        let _ = write!(
            told,
            "; {}: {} to {}",
            who(&active.who, extent),
            many(active.attempts, "attempt", "attempts"),
            counted(active.destinations, "destination", "destinations"),
        );
    }
    let others = Count {
        number: episode.program_count.number.saturating_sub(named as u64),
        or_more: episode.program_count.or_more,
    };
    if named > 0 && others.number > 0 {
        let _ = write!(told, "; and {}", counted(others, "other", "others"));
    }
    let _ = write!(
        told,
        "; for example {} -> {}",
        episode.source, episode.destination
    );
    let destinations: Vec<_> = episode
        .destinations
        .iter()
        .take(extent.destinations)
        .map(ToString::to_string)
        .collect();
    if !destinations.is_empty() {
        let _ = write!(told, "; destinations {}", destinations.join(", "));
    }
    told
}

/// A scope, with its kind.
pub(super) fn scope(scope: &Scope, extent: &Extent) -> String {
    format!("{} {}", scope.kind, extent.name(&scope.name))
}

/// Who is behind attempts, with all that is known.
fn who(who: &Who, extent: &Extent) -> String {
    match who {
        Who::Process(process) => self::process(process, extent),
        Who::Cgroup { cgroup, .. } => {
            let mut told = format!("cgroup {}", path_or_id(cgroup, extent));
            let mut known = place(cgroup.container.as_ref());
            let candidates: Vec<_> = extent
                .candidates(who)
                .map(|candidate| process(candidate, extent))
                .collect();
            if !candidates.is_empty() {
                known.push(format!("perhaps {}", candidates.join(" or ")));
            }
            if !known.is_empty() {
                let _ = write!(told, " ({})", known.join(", "));
            }
            told
        }
        Who::Source(address) => format!("source {address}"),
    }
}

fn process(process: &Process, extent: &Extent) -> String {
    let Process {
        pid,
        thread,
        name,
        executable,
        args,
        user,
        parent,
        cgroup,
        has_exited,
        ..
    } = process;
    let mut known = vec![format!("pid {pid}")];
    if let Some(thread) = thread {
        known.push(format!(
            "thread {} {}",
            thread.id,
            extent.name(&thread.name)
        ));
    }
    known.extend(
        executable
            .as_ref()
            .map(|executable| extent.name(executable)),
    );
    known.push(self::user(user, extent));
    if let Some(parent) = parent {
        known.push(format!(
            "started by {} {}",
            extent.name(&parent.name),
            parent.pid
        ));
    }
    if let Some(cgroup) = cgroup {
        known.extend(place(cgroup.container.as_ref()));
        // Always: what the path tells of a container is no more than a name.
        known.push(format!("cgroup {}", path_or_id(cgroup, extent)));
    }
    if let Some(args) = args
        && extent.args > 0
    {
        let args = args.iter().take(extent.args).map(|arg| extent.name(arg));
        known.push(format!("arguments {}", args.collect::<Vec<_>>().join(" ")));
    }
    if *has_exited {
        known.push("ended since".into());
    }
    let name = if name.is_empty() {
        "a program without a name".into()
    } else {
        extent.name(name)
    };
    format!("{name} ({})", known.join(", "))
}

fn user(user: &User, extent: &Extent) -> String {
    match &user.name {
        Some(name) => format!("user {} {}", user.id, extent.name(name)),
        None => format!("user {}", user.id),
    }
}

fn place(container: Option<&Container>) -> Vec<String> {
    let Some(container) = container else {
        return Vec::new();
    };
    let pod = container.pod_uid.as_ref().map(|uid| format!("pod {uid}"));
    let id = format!("container {}", container.id);
    pod.into_iter().chain([id]).collect()
}

/// The path of a control group, or its id if it has none any more.
pub(super) fn path_or_id(cgroup: &Cgroup, extent: &Extent) -> String {
    cgroup
        .path
        .as_ref()
        .map_or_else(|| cgroup.id.to_string(), |path| extent.name(path))
}

/// The candidates of `active`, in one value; none if there are none.
pub(super) fn candidates(active: &Active, extent: &Extent) -> Option<String> {
    let each: Vec<_> = extent
        .candidates(&active.who)
        .map(|process| format!("{} (pid {})", extent.name(&process.name), process.pid))
        .collect();
    (!each.is_empty()).then(|| each.join(", "))
}

fn counted(count: Count, one: &str, more: &str) -> String {
    let least = if count.or_more { "at least " } else { "" };
    format!("{least}{}", many(count.number, one, more))
}

fn many(number: u64, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

/// A time as people read it, to the millisecond.
fn span(ns: u64) -> String {
    humantime::format_duration(Duration::from_millis(ns / NANOS_PER_MILLI)).to_string()
}
