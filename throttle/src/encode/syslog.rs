//! One syslog message of RFC 5424, without framing.
//!
//! The values are in its structured data, under names that say the same as those
//! of [`json`](super::json); the message is for people.

use super::{
    Host, Precision,
    extent::{self, Extent},
    words::{self, Severity},
};
use crate::event::{Count, Episode, Event, What, Who};

/// Security messages.
const FACILITY: u8 = 4;
/// Most characters of a host name.
const HOSTNAME_MAX: usize = 255;

/// The event as one line.
#[must_use]
pub fn line(event: &Event, host: &Host) -> String {
    extent::fit(event, |extent| {
        format!(
            "{} {}[origin software=\"{}\" swVersion=\"{}\"] \u{feff}{}",
            header(event, host),
            structured(event, host, extent),
            words::PRODUCT,
            words::VERSION,
            words::message(event, extent),
        )
    })
}

fn header(event: &Event, host: &Host) -> String {
    let severity = match event.what.severity() {
        Severity::Low => 5,
        Severity::Medium => 4,
    };
    format!(
        "<{}>1 {} {} {} {} {}",
        8 * FACILITY + severity,
        super::time(event.at_ns, Precision::Micros),
        hostname(host.name.as_str()),
        words::PRODUCT,
        host.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
        match event.what {
            What::LimitReached(_) => "LIMIT_REACHED",
            What::LimitOngoing(_) => "LIMIT_ONGOING",
            What::LimitCleared(_) => "LIMIT_CLEARED",
            What::Lost { .. } => "EVENTS_LOST",
        },
    )
}

/// The name as the header takes it: with nothing but what names of hosts are
/// made of, since readers guess at the rest.
fn hostname(name: &str) -> String {
    if name.is_empty() {
        return "-".into();
    }
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') {
                c
            } else {
                '_'
            }
        })
        .take(HOSTNAME_MAX)
        .collect()
}

fn structured(event: &Event, host: &Host, extent: &Extent) -> String {
    let what = &event.what;
    let mut element = Element::new(&format!("throttle@{}", host.enterprise));
    element.put("sequence", event.sequence);
    element.put("id", event.id);
    element.put("action", what.action());
    element.put_known("code", what.code());
    element.put("reason", what.reason());
    element.put("severity", what.severity().of_ten());
    if !host.name.is_empty() && hostname(host.name.as_str()) != host.name.as_str() {
        element.put("host", extent.name(&host.name));
    }
    element.put_known("host_id", host.id.as_ref());
    element.put_known("boot_id", host.boot_id.as_ref());
    match what {
        What::LimitReached(episode) | What::LimitOngoing(episode) | What::LimitCleared(episode) => {
            episode_values(&mut element, what, episode, extent);
        }
        What::Lost { events } => element.put("lost", events),
    }
    if extent.shortened {
        element.put("shortened", true);
    }
    element.end()
}

fn episode_values(element: &mut Element, what: &What, episode: &Episode, extent: &Extent) {
    let nanos = |at_ns| super::time(at_ns, Precision::Nanos);
    element.put("episode", episode.id);
    element.put("start", nanos(episode.start_ns));
    match what {
        What::LimitReached(_) | What::Lost { .. } => {}
        What::LimitOngoing(_) => element.put("duration_ns", episode.duration_ns),
        What::LimitCleared(_) => {
            element.put("end", nanos(episode.end_ns()));
            element.put("duration_ns", episode.duration_ns);
        }
    }
    element.put_known("ending", episode.ending.map(|ending| ending.word()));
    element.put("scope_kind", episode.scope.kind);
    element.put("scope_id", &episode.scope.id);
    element.put("scope_name", extent.name(&episode.scope.name));
    element.put("interface", extent.name(&episode.interface.name));
    element.put("mode", episode.mode.word());
    element.put("limit", episode.limit);
    element.put("rate", episode.rate);
    element.put("half_open", episode.half_open);
    element.put("queued", episode.queued);
    element.put("peak_half_open", episode.peak_half_open);
    element.put("peak_queued", episode.peak_queued);
    for (name, total) in episode.totals.of_attempts() {
        element.put(&format!("total_{name}"), total);
    }
    element.put_count("program_count", episode.program_count);
    element.put_count("destination_count", episode.destination_count);
    element.put("source_ip", episode.source.ip());
    element.put("source_port", episode.source.port());
    element.put("destination_ip", episode.destination.ip());
    element.put("destination_port", episode.destination.port());
    if let Some(active) = episode.most_active() {
        who_values(element, &active.who, extent);
        element.put_known("candidates", words::candidates(active, extent));
    }
}

fn who_values(element: &mut Element, who: &Who, extent: &Extent) {
    if let Some(process) = who.process() {
        element.put("pid", process.pid);
        element.put("process", extent.name(&process.name));
        let executable = process.executable.as_ref();
        element.put_known("executable", executable.map(|path| extent.name(path)));
        element.put("entity_id", &process.entity_id);
        element.put("user_id", process.user.id);
        let name = process.user.name.as_ref();
        element.put_known("user", name.map(|name| extent.name(name)));
        if let Some(parent) = &process.parent {
            element.put("parent_pid", parent.pid);
            element.put("parent", extent.name(&parent.name));
        }
        if process.has_exited {
            element.put("exited", true);
        }
    }
    if let Some(cgroup) = who.cgroup() {
        element.put("cgroup_id", cgroup.id);
        let path = cgroup.path.as_ref();
        element.put_known("cgroup", path.map(|path| extent.name(path)));
    }
    if let Some(container) = who.container() {
        element.put("container", &container.id);
        element.put_known("runtime", container.runtime);
        element.put_known("pod", container.pod_uid.as_ref());
    }
}

/// An element of structured data.
struct Element(String);

impl Element {
    fn new(id: &str) -> Self {
        Self(format!("[{id}"))
    }

    fn put(&mut self, name: &str, value: impl ToString) {
        self.0 += " ";
        self.0 += name;
        self.0 += "=\"";
        for c in value.to_string().chars() {
            if matches!(c, '"' | '\\' | ']') {
                self.0.push('\\');
            }
            self.0.push(c);
        }
        self.0 += "\"";
    }

    fn put_known(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    fn put_count(&mut self, name: &str, Count { number, or_more }: Count) {
        self.put(name, number);
        if or_more {
            self.put(&format!("{name}_or_more"), true);
        }
    }

    fn end(self) -> String {
        self.0 + "]"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use throttle_common::record::Tallies;

    #[test]
    fn a_value_is_escaped() {
        let mut element = Element::new("a@1");
        element.put("b", r#"x"y]z\w=v"#);
        assert_eq!(element.end(), r#"[a@1 b="x\"y\]z\\w=v"]"#);
    }

    #[test]
    fn a_name_that_the_header_does_not_take_is_changed() {
        assert_eq!(hostname("node-1.example"), "node-1.example");
        assert_eq!(hostname("größe 1:]"), "gr__e_1__");
        assert_eq!(hostname(""), "-");
        assert_eq!(hostname(&"x".repeat(300)).len(), HOSTNAME_MAX);
    }

    #[test]
    fn names_of_values_are_short_enough() {
        for name in Tallies::NAMES {
            assert!(format!("total_{name}").len() <= 32);
        }
    }
}
