//! The keys of the file: the long names of the flags.

use std::fmt;

use clap::{Arg, Command, ValueEnum};

/// What a file can say, in the order of the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Key {
    /// Interfaces to attach to.
    Interface,
    /// What the throttle is called.
    Name,
    /// Whether its kernel side outlives the daemon.
    Keep,
    /// Half-open attempts there may be at once.
    Limit,
    /// How fast attempts over the limit are let out.
    Rate,
    /// For how long an attempt counts.
    AttemptTimeout,
    /// How much may wait in a line.
    MaxDelay,
    /// For how long an endpoint stays known.
    KnownFor,
    /// What the limit applies to.
    Scope,
    /// Destinations that no limit applies to.
    Exempt,
    /// What is done with attempts over the limit.
    Mode,
    /// Which way the attempts cross the interface.
    Direction,
    /// Who lets attempts over the limit out.
    Pacing,
    /// By which hook the programs are attached.
    Hook,
    /// How events are written.
    Output,
    /// The private enterprise number of syslog's structured data.
    SyslogEnterpriseNumber,
    /// Whether programs' arguments are told.
    WithArgs,
    /// Whether more than one example of the destinations is told.
    WithDestinations,
}

impl Key {
    /// All keys, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    /// The key called `text`.
    #[must_use]
    pub fn named(text: &str) -> Option<Self> {
        Self::all().find(|key| key.to_string() == text)
    }

    /// The key that was probably meant by `text`, which is none.
    #[must_use]
    pub fn nearest(text: &str) -> Option<Self> {
        let names: Vec<String> = Self::all().map(|key| key.to_string()).collect();
        nearest(text, &names).and_then(Self::named)
    }

    /// The flag of this name, if the command has it.
    pub(super) fn find(self, command: &Command) -> Option<&Arg> {
        let name = self.to_string();
        command
            .get_arguments()
            .find(|argument| argument.get_long() == Some(&name))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// Of `names` the one that was probably meant by `text`, if any is near.
pub(super) fn nearest<'a>(text: &str, names: &'a [String]) -> Option<&'a str> {
    /// As alike as clap wants flags to be to suggest one for another.
    const ALIKE: f64 = 0.7;
    /// What is longer is no slip of the hand.
    const MEANT_MAX: usize = 64;
    if text.len() > MEANT_MAX {
        return None;
    }
    let text = text.to_lowercase().replace('_', "-");
    // A part of a name is not like the whole of it, but is meant for it.
    let is_part = |name: &&String| text.len() > 3 && name.contains(&*text);
    if let Some(name) = names.iter().find(is_part) {
        return Some(name);
    }
    let alike = names.iter().map(|name| (strsim::jaro(&text, name), name));
    let most = alike
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    if let Some((_, name)) = most {
        return Some(name);
    }
    // An abbreviation has letters of the name in their order.
    let is_short = |name: &&String| {
        let mut letters = name.chars();
        text.len() > 3 && text.chars().all(|c| letters.any(|letter| letter == c))
    };
    names.iter().find(is_short).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_found_by_its_name() {
        for key in Key::all() {
            assert_eq!(Key::named(&key.to_string()), Some(key));
        }
        assert_eq!(Key::named("limti"), None);
        assert_eq!(Key::named(""), None);
    }

    #[test]
    fn the_nearest_key_is_the_one_that_was_meant() {
        for (text, meant) in [
            ("limti", Key::Limit),
            ("limits", Key::Limit),
            ("LIMIT", Key::Limit),
            ("interfaces", Key::Interface),
            ("iface", Key::Interface),
            ("attempt_timeout", Key::AttemptTimeout),
            ("timeout", Key::AttemptTimeout),
            ("delay", Key::MaxDelay),
            ("maxdelay", Key::MaxDelay),
            ("known_for", Key::KnownFor),
            ("exempts", Key::Exempt),
            ("destinations", Key::WithDestinations),
            ("args", Key::WithArgs),
            ("enterprise-number", Key::SyslogEnterpriseNumber),
            ("ouput", Key::Output),
            ("kep", Key::Keep),
        ] {
            assert_eq!(Key::nearest(text), Some(meant), "{text}");
        }
        for text in ["", "colour", "zzz", &"limit".repeat(1_000)] {
            assert_eq!(Key::nearest(text), None, "{text}");
        }
    }
}
