//! One line for people.

use super::{Host, Precision, extent, words};
use crate::event::Event;

/// The event as one line. It holds no control character, whatever names it
/// carries.
#[must_use]
pub fn line(event: &Event, _: &Host) -> String {
    extent::fit(event, |extent| {
        let mut line = super::time(event.at_ns, Precision::Nanos);
        line += " ";
        line += &words::sentence(event, extent);
        if extent.shortened {
            line += " (shortened)";
        }
        line
    })
}
