//! How an event is written: pure functions from [`Event`](crate::event::Event)
//! to one line, without its newline.

pub mod json;
pub mod text;

use jiff::Timestamp;

use crate::event::Event;

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line for people.
    Text,
    /// One object of the Elastic Common Schema.
    Json,
}

impl Format {
    /// The event as one line.
    #[must_use]
    pub fn line(self, event: &Event, host: &Host) -> String {
        match self {
            Self::Text => text::line(event),
            Self::Json => json::line(event, host),
        }
    }
}

/// The machine that the events come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its kernel's release.
    pub kernel: String,
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn this() -> Self {
        nix::sys::utsname::uname().map_or_else(
            |_| Self::default(),
            |name| Self {
                name: name.nodename().to_string_lossy().into_owned(),
                kernel: name.release().to_string_lossy().into_owned(),
            },
        )
    }
}

/// RFC 3339, in UTC.
fn time(at_ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(at_ns))
        .map_or_else(|_| String::new(), |t| format!("{t:.9}"))
}
