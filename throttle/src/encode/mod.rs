//! How an event is written: pure functions from [`Event`]
//! to one line, without its newline.
//!
//! [`text`] is for people, the others for the programs that collect events. What
//! two formats both tell, they tell with the same values. A line is never longer
//! than [`LINE_MAX`].

pub mod cef;
mod extent;
pub mod json;
pub mod ocsf;
pub mod syslog;
pub mod text;
mod words;

use std::{fs, process};

use jiff::Timestamp;
use throttle_common::NANOS_PER_MILLI;

use crate::{event::Event, name::Name};

/// Most bytes of a line. With its newline it is 16 KiB, which collectors take.
pub const LINE_MAX: usize = 16 * 1024 - 1;

/// The private enterprise number that is reserved for examples.
pub const EXAMPLE_ENTERPRISE: u32 = 32_473;

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line for people.
    Text,
    /// One object of the Elastic Common Schema.
    Json,
    /// One object of the Open Cybersecurity Schema Framework.
    Ocsf,
    /// One line of ArcSight's Common Event Format.
    Cef,
    /// One syslog message of RFC 5424.
    Syslog,
}

impl Format {
    /// The event as one line.
    #[must_use]
    pub fn line(self, event: &Event, host: &Host) -> String {
        match self {
            Self::Text => text::line(event, host),
            Self::Json => json::line(event, host),
            Self::Ocsf => ocsf::line(event, host),
            Self::Cef => cef::line(event, host),
            Self::Syslog => syslog::line(event, host),
        }
    }
}

/// Where the events come from: a machine, and the throttle on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The machine's name.
    pub name: Name,
    /// Its kernel's release.
    pub kernel: Name,
    /// Its machine id, 32 hexadecimal digits, if it has one.
    pub id: Option<String>,
    /// The id of its present boot, a UUID, if that is known.
    pub boot_id: Option<String>,
    /// The process id of the throttle.
    pub pid: Option<u32>,
    /// The private enterprise number that syslog's structured data goes under.
    pub enterprise: u32,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            name: Name::default(),
            kernel: Name::default(),
            id: None,
            boot_id: None,
            pid: None,
            enterprise: EXAMPLE_ENTERPRISE,
        }
    }
}

impl Host {
    /// This machine, and this process.
    #[must_use]
    pub fn this() -> Self {
        use std::os::unix::ffi::OsStrExt as _;

        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (name, kernel) = nix::sys::utsname::uname().map_or_else(
            |_| Default::default(),
            |uname| {
                (
                    Name::new(uname.nodename().as_bytes()),
                    Name::new(uname.release().as_bytes()),
                )
            },
        );
        Self {
            name,
            kernel,
            id: machine_id(&read("/etc/machine-id")),
            boot_id: boot_id(&read("/proc/sys/kernel/random/boot_id")),
            pid: Some(process::id()),
            enterprise: EXAMPLE_ENTERPRISE,
        }
    }
}

/// The id in a machine-id file, if there is one: systemd writes `uninitialized`
/// at first.
fn machine_id(text: &str) -> Option<String> {
    let id = text.trim();
    let is_id = id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

fn boot_id(text: &str) -> Option<String> {
    let id = uuid::Uuid::try_parse(text.trim()).ok()?;
    Some(id.to_string())
}

/// How RFC 3339 writes a fraction of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precision {
    /// Six digits.
    Micros,
    /// Nine digits.
    Nanos,
}

/// RFC 3339, in UTC.
fn time(at_ns: u64, precision: Precision) -> String {
    Timestamp::from_nanosecond(i128::from(at_ns)).map_or_else(
        |_| String::new(),
        |t| match precision {
            Precision::Micros => format!("{t:.6}"),
            Precision::Nanos => format!("{t:.9}"),
        },
    )
}

/// Milliseconds since 1970, of nanoseconds.
const fn millis(at_ns: u64) -> u64 {
    at_ns / NANOS_PER_MILLI
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_and_a_boot() {
        let host = Host::this();
        assert!(!host.name.is_empty() && !host.kernel.is_empty());
        assert_eq!(host.boot_id.unwrap().len(), 36);
        assert_eq!(host.pid, Some(process::id()));
    }

    #[test]
    fn only_an_id_is_taken_for_one() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(machine_id(&format!("{id}\n")).as_deref(), Some(id));
        for text in ["", "\n", "uninitialized\n", "0123", &id.replace('a', "\"")] {
            assert_eq!(machine_id(text), None, "{text}");
        }
        assert_eq!(boot_id("none"), None);
    }

    #[test]
    fn a_fraction_of_a_second_has_the_digits_that_are_asked_for() {
        let at_ns = 1_790_000_000_123_456_789;
        assert_eq!(
            time(at_ns, Precision::Nanos),
            "2026-09-21T14:13:20.123456789Z"
        );
        assert_eq!(
            time(at_ns, Precision::Micros),
            "2026-09-21T14:13:20.123456Z"
        );
        assert_eq!(millis(at_ns), 1_790_000_000_123);
    }
}
