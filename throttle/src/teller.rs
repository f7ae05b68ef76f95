//! Reports become events: what is known by number gets its name.
//!
//! Names are asked of /proc and of the user database, which may take its time,
//! so this runs in a thread of its own.

use std::net::SocketAddr;

use throttle_common::{
    policy::Mode as RawMode,
    process::Process as Known,
    subject::{Subject, SubjectKind},
};

use crate::{
    clock,
    episodes::{Point, Report, Suspect},
    event::{self, Active, Episode, Event, Interface, Scope, What, Who},
    name::Name,
    owners::{NO_USER, Names},
    settings::{Mode, Rate},
};

/// What the daemon hands over.
#[derive(Debug)]
pub enum Draft {
    /// A report, and the name of the interface that it is about.
    Report(Box<Report>, Option<String>),
    /// A program that may be named later: what is to be known of it is learned
    /// while it runs.
    Learn(Box<Known>),
}

/// Makes events of reports.
#[derive(Debug)]
pub struct Teller {
    names: Names,
    with_destinations: bool,
}

impl Teller {
    /// A teller that asks `names`. `with_destinations`: whether events carry more
    /// than one destination.
    #[must_use]
    pub fn new(names: Names, with_destinations: bool) -> Self {
        Self {
            names,
            with_destinations,
        }
    }

    /// The event that a draft makes, if it makes one.
    pub fn tell(&mut self, draft: Draft) -> Option<Event> {
        match draft {
            Draft::Report(report, interface) => Some(self.event(&report, interface)),
            Draft::Learn(process) => {
                self.names.remember(&process);
                None
            }
        }
    }

    fn event(&mut self, report: &Report, interface: Option<String>) -> Event {
        let at_ns = match report.point {
            Point::Reached => report.start_ns,
            Point::Ongoing | Point::Cleared(_) => clock::calendar_ns(report.at_ns),
        };
        let episode = Box::new(self.episode(report, interface));
        let what = match report.point {
            Point::Reached => What::LimitReached(episode),
            Point::Ongoing => What::LimitOngoing(episode),
            Point::Cleared(_) => What::LimitCleared(episode),
        };
        Event::new(at_ns, 0, what)
    }

    fn episode(&mut self, report: &Report, interface: Option<String>) -> Episode {
        let reached = &report.reached;
        let (source, destination) = event::ends(&reached.key);
        let interface = interface.map(Name::new);
        let duration_ns = report.at_ns.saturating_sub(reached.at_ns);
        let programs = report.suspects.iter().map(|s| self.active(s)).collect();
        Episode {
            id: report.id,
            scope: self.scope(report, interface.as_ref()),
            interface: Interface {
                index: reached.ifindex,
                name: interface.unwrap_or_else(|| Name::new(reached.ifindex.to_string())),
            },
            mode: if reached.mode == RawMode::Enforce as u32 {
                Mode::Enforce
            } else {
                Mode::Monitor
            },
            limit: reached.limit,
            rate: Rate::from_interval(reached.interval_ns),
            half_open: report.half_open,
            queued: report.queued,
            peak_half_open: report.peak_half_open,
            peak_queued: report.peak_queued,
            start_ns: report.start_ns,
            duration_ns,
            totals: report.totals,
            source,
            destination,
            programs,
            program_count: report.programs,
            destination_count: report.destinations,
            destinations: report
                .examples
                .iter()
                .filter(|_| self.with_destinations)
                .map(|to| SocketAddr::new(event::address(to.address), u16::from_be_bytes(to.port)))
                .collect(),
            ending: match report.point {
                Point::Cleared(ending) => Some(ending),
                Point::Reached | Point::Ongoing => None,
            },
        }
    }

    fn scope(&mut self, report: &Report, interface: Option<&Name>) -> Scope {
        let subject = &report.reached.scope;
        let name = match SubjectKind::from_raw(subject.kind) {
            Some(SubjectKind::Interface) => interface.cloned(),
            Some(SubjectKind::Cgroup | SubjectKind::User) => self.names.scope(subject),
            Some(SubjectKind::Process) => {
                let known = known_as(subject, &report.reached.process);
                Some(self.names.process(&known).name).filter(|name| !name.is_empty())
            }
            Some(SubjectKind::Source) | None => None,
        };
        Scope::new(subject, name)
    }

    fn active(&mut self, suspect: &Suspect) -> Active {
        let owner = &suspect.owner;
        let who = match SubjectKind::from_raw(owner.kind) {
            Some(SubjectKind::Process) => {
                let known = known_as(owner, &suspect.process);
                Who::Process(Box::new(self.names.process(&known)))
            }
            Some(SubjectKind::Source) => Who::Source(event::address(owner.id)),
            // A line is a process's, a cgroup's or a source's.
            Some(SubjectKind::Cgroup | SubjectKind::Interface | SubjectKind::User) | None => {
                Who::Cgroup {
                    cgroup: self.names.cgroup(owner.number()),
                    // A socket that connects is not one of theirs.
                    candidates: if suspect.process.is_forgotten == 0 {
                        let mut candidates = self.names.candidates(owner.number());
                        // Nor is the throttle's own packet socket.
                        candidates.retain(|process| process.pid != std::process::id());
                        candidates
                    } else {
                        Vec::new()
                    },
                }
            }
        };
        Active {
            who,
            attempts: suspect.attempts,
            destinations: suspect.destinations,
        }
    }
}

/// What is known of the process `subject`: at least its number and its start.
pub(crate) fn known_as(subject: &Subject, process: &Known) -> Known {
    if process.is_known() && process.subject() == *subject {
        return *process;
    }
    let tgid = u32::try_from(subject.number()).unwrap_or(0);
    Known {
        tgid,
        tid: tgid,
        uid: NO_USER,
        start_ns: subject.start_ns(),
        ..Known::default()
    }
}
