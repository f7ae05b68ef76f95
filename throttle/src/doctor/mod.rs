//! Whether this machine can do it, what is missing, and what to do about it.
//!
//! [`facts`] is what was seen, without a judgement; `look` sees it. What it means
//! is worked out from the facts alone, so every lack can be tested without a
//! machine that has it.

pub mod facts;
mod interfaces;
mod judge;
mod look;
pub(crate) mod netlink;
mod text;

#[cfg(test)]
mod tests;

use serde::Serialize;

use self::facts::Facts;
pub use self::{
    interfaces::{Entry, Interface},
    look::has_clsact,
    netlink::{Filter, Slot},
};
use crate::name::Name;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it is needed.
    Ok,
    /// Throttle can run, but something does not work, or is worth knowing.
    Note,
    /// Throttle cannot run without it.
    Missing,
}

/// What kind of thing is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// A privilege of the caller's.
    Privilege,
    /// Something of the kernel's.
    Kernel,
    /// An interface that was asked for.
    Interface,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub found: String,
    /// What does not work without it.
    pub needed_for: Option<&'static str>,
    /// What to do about it.
    pub remedy: Option<String>,
    #[serde(skip)]
    lack: Option<Lack>,
}

impl Finding {
    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            state: State::Ok,
            found: found.into(),
            needed_for: None,
            remedy: None,
            lack: None,
        }
    }

    fn note(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            state: State::Note,
            ..Self::ok(check, found)
        }
    }

    fn missing(lack: Lack, check: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            lack: Some(lack),
            ..Self::ok(check, found)
        }
    }

    /// There is no telling, for this reason.
    fn unknown(check: impl Into<String>, why: &str) -> Self {
        Self::note(check, format!("could not tell: {why}"))
    }

    fn needed_for(self, what: &'static str) -> Self {
        Self {
            needed_for: Some(what),
            ..self
        }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// A throttle of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Throttle {
    /// What it is called.
    pub name: String,
    /// The process id of its daemon; none if no daemon runs.
    pub pid: Option<u32>,
    /// Whether its kernel side outlives the daemon.
    pub kept: bool,
}

/// What was found out about a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether throttle can run here.
    pub can_run: bool,
    /// What was found of the machine.
    pub findings: Vec<Finding>,
    /// The throttles of this network namespace.
    pub throttles: Vec<Throttle>,
    /// Its interfaces: all but the loopback device, or those asked for.
    pub interfaces: Vec<Interface>,
    #[serde(skip)]
    groups: Vec<interfaces::Group>,
}

impl Report {
    /// What these facts mean for a throttle on the interfaces in `asked`, or on
    /// any if none is named.
    #[must_use]
    pub fn new(facts: &Facts, asked: &[String]) -> Self {
        let mut findings = judge::findings(facts);
        let (interfaces, groups) = match &facts.devices {
            Ok(devices) => interfaces::judge(devices, &facts.tcx, asked),
            Err(why) => {
                findings.push(Finding::unknown("interfaces", why));
                (Vec::new(), Vec::new())
            }
        };
        if interfaces.is_empty() && facts.devices.is_ok() {
            let remedy = "add one, or run throttle where they are: nsenter --net=/run/netns/NAME";
            let none = "this network namespace has none but the loopback device";
            findings.push(Finding::note("interfaces", none).remedy(remedy));
        }
        let throttles = facts.throttles.iter().flatten();
        let mut report = Self {
            can_run: true,
            findings,
            throttles: throttles
                .map(|found| Throttle {
                    name: found.name.to_string(),
                    pid: found.pid,
                    kept: found.kept,
                })
                .collect(),
            interfaces,
            groups,
        };
        let lacks_something = report.lacks().next().is_some();
        report.can_run = !lacks_something;
        report
    }

    /// Looks at this machine.
    #[must_use]
    pub fn of_this_machine(asked: &[String]) -> Self {
        Self::new(&Facts::of_this_machine(), asked)
    }

    fn lacks(&self) -> impl Iterator<Item = Lack> {
        let of_interfaces = self.interfaces.iter().flat_map(|one| &one.findings);
        self.findings
            .iter()
            .chain(of_interfaces)
            .filter_map(|finding| finding.lack)
    }

    /// The exit code that says the same: 0 if throttle can run, 3 if a privilege
    /// is missing, 4 if the kernel lacks something, 1 if only an interface that
    /// was asked for is missing or of no use.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let code = |lack| match lack {
            Lack::Privilege => 3,
            Lack::Kernel => 4,
            Lack::Interface => 1,
        };
        let lacks = [Lack::Privilege, Lack::Kernel, Lack::Interface];
        let worst = lacks
            .into_iter()
            .find(|lack| self.lacks().any(|found| found == *lack));
        worst.map_or(0, code)
    }

    /// The report as one JSON object, with the fields of this type.
    #[must_use]
    pub fn json(&self) -> String {
        // It has only texts, numbers and lists of them.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The first of these, and how many more there are.
fn first_of<'a>(names: impl Iterator<Item = &'a str>, most: usize) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(most).copied().collect::<Vec<_>>();
    match names.len().saturating_sub(most) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A name in a command to be given to a shell: as it is if that is safe there,
/// else a word to be replaced.
fn in_command(name: &[u8]) -> String {
    let safe = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.@-".contains(byte);
    if name.is_empty() || name.starts_with(b"-") || !name.iter().all(safe) {
        return "IFACE".into();
    }
    Name::new(name).to_string()
}
