//! What is said of an end: to people, and to programs.

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use serde::Serialize;

use super::{Attempts, Options, Plan, Refusal, Report};
use crate::{
    event::{Cgroup, Process},
    name::Name,
};

/// The plan, for people.
#[must_use]
pub fn plan_text(plan: &Plan, options: &Options) -> String {
    let Plan {
        process,
        connected_as,
        is_certain,
        is_first_of_namespace,
        is_stopped,
        attempts,
        sockets,
        children,
        problems,
    } = plan;
    let mut lines = vec![named(process)];
    let mut line = |key: &str, value: &str| lines.push(format!("  {key:<11} {value}"));
    if let Some(executable) = &process.executable {
        line("executable", executable.as_str());
    }
    line("user", &user(process));
    if let Some(parent) = &process.parent {
        line(
            "parent",
            &format!("{} (pid {})", shown(&parent.name), parent.pid),
        );
    }
    if let Some(cgroup) = &process.cgroup {
        line("cgroup", &path_or_id(cgroup));
        if let Some(container) = &cgroup.container {
            let runtime = container.runtime.map(|by| format!(" ({by})"));
            line(
                "container",
                &format!("{}{}", container.id, runtime.unwrap_or_default()),
            );
            if let Some(pod) = &container.pod_uid {
                line("pod", pod);
            }
        }
    }
    if let Some(start_ns) = process.start_ns {
        line("started", &time(start_ns));
    }
    line("entity id", &process.entity_id);
    for each in attempts {
        line("attempts", &unanswered(each));
    }
    if attempts.is_empty() {
        line(
            "attempts",
            "none that a throttle of this network namespace knows of",
        );
    }
    let close = match sockets {
        0 => String::new(),
        n => format!("close {}, then ", many(*n, "unanswered socket")),
    };
    let kill = if options.force {
        let wait = humantime::format_duration(options.wait);
        format!(", then SIGKILL if it has not ended {wait} later")
    } else {
        String::new()
    };
    line("to do", &format!("{close}send SIGTERM{kill}"));
    let mut note = |text: &str| lines.push(format!("note: {text}"));
    if let Some(name) = connected_as {
        note(&format!("it was called {name} when it connected"));
    }
    if !is_certain {
        note(
            "it is not certain that it is the one behind the attempts: it has its number and its \
             name, and the kernel did not tell when that one started",
        );
    }
    if *is_first_of_namespace {
        note(
            "it is the first process of a container: all others in there end with it; SIGTERM \
             does nothing to it unless it handles it",
        );
    }
    if *is_stopped {
        note("it is stopped: SIGTERM reaches it only when it goes on, SIGKILL at once");
    }
    if !children.is_empty() {
        const MOST: usize = 8;
        let mut each: Vec<String> = children
            .iter()
            .take(MOST)
            .map(|child| {
                let attempts = many(child.attempts, "attempt");
                format!("{} ({}, {attempts})", child.pid, shown(&child.name))
            })
            .collect();
        if children.len() > MOST {
            each.push(format!("{} more", children.len() - MOST));
        }
        note(&format!(
            "children of it have attempts too, and go on: {}",
            each.join(", ")
        ));
    }
    for problem in problems {
        note(problem);
    }
    lines.join("\n") + "\n"
}

/// What was done, for people.
#[must_use]
pub fn report_text(plan: &Plan, report: &Report) -> String {
    let mut lines = Vec::new();
    if report.closed > 0 {
        lines.push(format!(
            "closed {}",
            many(report.closed, "unanswered socket")
        ));
    }
    let signals: Vec<&str> = report
        .signals
        .iter()
        .map(|signal| signal.as_str())
        .collect();
    let sent = match signals.as_slice() {
        [] => String::new(),
        sent => format!(" after {}", sent.join(" and ")),
    };
    lines.push(if report.has_ended {
        let took = span(report.took);
        format!("{} ended{sent}, within {took}", named(&plan.process))
    } else {
        format!("{} still runs{sent}", named(&plan.process))
    });
    if report.closed_after > 0 {
        lines.push(format!(
            "closed {} more that other processes held as well",
            report.closed_after
        ));
    }
    if let Some((half_open, deferred)) = report.left
        && half_open + deferred > 0
    {
        lines.push(format!(
            "left of its attempts: {half_open} half-open, {deferred} deferred"
        ));
    }
    lines.extend(
        report
            .problems
            .iter()
            .map(|problem| format!("note: {problem}")),
    );
    lines.join("\n") + "\n"
}

/// A line of JSON: the plan, and what was done; that is none if it was only asked
/// for, or declined, as `outcome` then says.
#[must_use]
pub fn report_json(plan: &Plan, report: Result<&Report, &'static str>) -> String {
    line(&Told::new(plan, report))
}

/// A line of JSON that says why nothing was done.
#[must_use]
pub fn refusal_json(refusal: &Refusal) -> String {
    #[derive(Serialize)]
    struct Refused {
        outcome: &'static str,
        reason: &'static str,
        message: String,
    }
    line(&Refused {
        outcome: "refused",
        reason: refusal.word(),
        message: refusal.to_string(),
    })
}

fn line(told: &impl Serialize) -> String {
    serde_json::to_string(told).unwrap_or_default() + "\n"
}

#[derive(Serialize)]
struct Told<'a> {
    outcome: &'static str,
    process: ToldProcess<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<ToldCgroup<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<ToldContainer<'a>>,
    /// Whether it is certain that the process is the one behind the attempts.
    certain: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_as: Option<&'a str>,
    first_of_namespace: bool,
    stopped: bool,
    attempts: Vec<ToldAttempts<'a>>,
    /// How many sockets waited for an answer.
    unanswered_sockets: usize,
    children: Vec<ToldChild<'a>>,
    #[serde(flatten)]
    done: Option<ToldDone>,
    problems: Vec<&'a str>,
}

#[derive(Serialize)]
struct ToldProcess<'a> {
    pid: u32,
    name: &'a str,
    entity_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    user: ToldUser<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<ToldParent<'a>>,
}

#[derive(Serialize)]
struct ToldUser<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct ToldParent<'a> {
    pid: u32,
    name: &'a str,
}

#[derive(Serialize)]
struct ToldCgroup<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
}

#[derive(Serialize)]
struct ToldContainer<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uid: Option<&'a str>,
}

#[derive(Serialize)]
struct ToldAttempts<'a> {
    throttle: &'a str,
    scope: ToldScope<'a>,
    half_open: u64,
    deferred: u64,
    destination_count: usize,
    example: String,
}

#[derive(Serialize)]
struct ToldScope<'a> {
    kind: &'a str,
    id: &'a str,
    name: &'a str,
}

#[derive(Serialize)]
struct ToldChild<'a> {
    pid: u32,
    name: &'a str,
    attempts: u64,
}

#[derive(Serialize)]
struct ToldDone {
    closed_sockets: usize,
    closed_sockets_after_end: usize,
    signals: Vec<&'static str>,
    /// From the first signal on.
    took_ms: u128,
    /// Attempts that are unanswered still.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<ToldLeft>,
}

#[derive(Serialize)]
struct ToldLeft {
    half_open: u64,
    deferred: u64,
}

impl<'a> Told<'a> {
    fn new(plan: &'a Plan, report: Result<&'a Report, &'static str>) -> Self {
        let cgroup = plan.process.cgroup.as_ref();
        let problems = report.map_or(&[][..], |report| &report.problems);
        Self {
            outcome: match report {
                Ok(report) if report.has_ended => "ended",
                Ok(_) => "still-runs",
                Err(word) => word,
            },
            process: ToldProcess::new(&plan.process),
            cgroup: cgroup.map(|cgroup| ToldCgroup {
                id: (cgroup.id != 0).then(|| cgroup.id.to_string()),
                path: cgroup.path.as_ref().map(Name::as_str),
            }),
            container: cgroup
                .and_then(|cgroup| cgroup.container.as_ref())
                .map(|container| ToldContainer {
                    id: &container.id,
                    runtime: container.runtime,
                    pod_uid: container.pod_uid.as_deref(),
                }),
            certain: plan.is_certain,
            connected_as: plan.connected_as.as_ref().map(Name::as_str),
            first_of_namespace: plan.is_first_of_namespace,
            stopped: report.map_or(plan.is_stopped, |report| report.is_stopped),
            attempts: plan.attempts.iter().map(ToldAttempts::new).collect(),
            unanswered_sockets: plan.sockets,
            children: plan
                .children
                .iter()
                .map(|child| ToldChild {
                    pid: child.pid,
                    name: child.name.as_str(),
                    attempts: child.attempts,
                })
                .collect(),
            done: report.ok().map(ToldDone::new),
            problems: plan
                .problems
                .iter()
                .chain(problems)
                .map(String::as_str)
                .collect(),
        }
    }
}

impl<'a> ToldProcess<'a> {
    fn new(process: &'a Process) -> Self {
        Self {
            pid: process.pid,
            name: process.name.as_str(),
            entity_id: &process.entity_id,
            executable: process.executable.as_ref().map(Name::as_str),
            start: process.start_ns.map(time),
            user: ToldUser {
                id: process.user.id.to_string(),
                name: process.user.name.as_ref().map(Name::as_str),
            },
            parent: process.parent.as_ref().map(|parent| ToldParent {
                pid: parent.pid,
                name: parent.name.as_str(),
            }),
        }
    }
}

impl<'a> ToldAttempts<'a> {
    fn new(attempts: &'a Attempts) -> Self {
        Self {
            throttle: attempts.throttle.as_str(),
            scope: ToldScope {
                kind: attempts.scope.kind,
                id: &attempts.scope.id,
                name: attempts.scope.name.as_str(),
            },
            half_open: attempts.half_open,
            deferred: attempts.deferred,
            destination_count: attempts.destinations,
            example: attempts.example.to_string(),
        }
    }
}

impl ToldDone {
    fn new(report: &Report) -> Self {
        Self {
            closed_sockets: report.closed,
            closed_sockets_after_end: report.closed_after,
            signals: report
                .signals
                .iter()
                .map(|signal| signal.as_str())
                .collect(),
            took_ms: report.took.as_millis(),
            left: report.left.map(|(half_open, deferred)| ToldLeft {
                half_open,
                deferred,
            }),
        }
    }
}

/// A process by its name and its number.
fn named(process: &Process) -> String {
    format!("{} (pid {})", shown(&process.name), process.pid)
}

fn shown(name: &Name) -> &str {
    if name.is_empty() {
        "a program without a name"
    } else {
        name.as_str()
    }
}

fn user(process: &Process) -> String {
    match &process.user.name {
        Some(name) => format!("{name} ({})", process.user.id),
        None => process.user.id.to_string(),
    }
}

fn path_or_id(cgroup: &Cgroup) -> String {
    match &cgroup.path {
        Some(path) => path.to_string(),
        None => cgroup.id.to_string(),
    }
}

fn unanswered(attempts: &Attempts) -> String {
    let mut text = format!("{} half-open", attempts.half_open);
    if attempts.deferred > 0 {
        let _ = write!(text, ", {} deferred", attempts.deferred);
    }
    let _ = match attempts.destinations {
        1 => write!(text, ", to {}", attempts.example),
        n => write!(text, ", to {n} destinations such as {}", attempts.example),
    };
    let scope = &attempts.scope;
    let _ = write!(
        text,
        " (throttle {}, {} {})",
        attempts.throttle, scope.kind, scope.name
    );
    text
}

fn many(number: impl TryInto<u64>, of: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {of}"),
        number => format!("{number} {of}s"),
    }
}

/// A time as people read it, to the millisecond, and never less than one.
fn span(time: Duration) -> String {
    let millis = time.as_millis().max(1);
    let millis = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
    humantime::format_duration(millis).to_string()
}

/// RFC 3339, in UTC, to the hundredth of a second in which starts are told.
pub(super) fn time(at_ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(at_ns))
        .map_or_else(|_| String::new(), |t| format!("{t:.2}"))
}
