//! One line for people.

use crate::{
    event::{Episode, Event, MESSAGE, What},
    settings::Mode,
};

/// The event as one line. It holds no control character, whatever names it
/// carries.
#[must_use]
pub fn line(event: &Event) -> String {
    let time = super::time(event.at_ns);
    let line = match &event.what {
        What::LimitReached(episode) | What::LimitOngoing(episode) | What::LimitCleared(episode) => {
            format!("{time} limit reached on {}", reached(episode))
        }
        What::Lost { events } => {
            format!("{time} {events} events were lost: nobody took them in time")
        }
    };
    line.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn reached(episode: &Episode) -> String {
    let Episode {
        scope,
        limit,
        half_open,
        queued,
        rate,
        mode,
        source,
        destination,
        ..
    } = episode;
    let done = match mode {
        Mode::Enforce => format!("further ones are released at {rate}"),
        Mode::Monitor => format!("monitored only; {rate} would be released"),
    };
    format!(
        "{} {}: {MESSAGE} half-open {half_open}, limit {limit}, queued {queued}; {done} \
         for example {source} -> {destination}",
        scope.kind, scope.name,
    )
}
