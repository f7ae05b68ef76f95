//! A configuration as a file, which reads back as the same.

use std::{fmt, time::Duration};

use clap::{Args as _, Command, ValueEnum};
use toml::Value;

use super::{Config, Key, Layer};

/// How wide the lines are; what cannot be broken may be wider.
const WIDTH: usize = 80;

/// What stands above the keys in the example.
const HEAD: &str = "\
# Configuration of throttle: throttle run --config FILE
#
# The keys are the long names of the flags of `throttle run`; flags win over this
# file. Each key stands here with its default, or an example where it has none:
# take the # away to change it. To see what it comes to, add --print-config; to
# have a running throttle read it again, send it SIGHUP.
";

impl Config {
    /// What is said under this key; none if nothing is, and none of the texts
    /// that could be written would say that.
    #[must_use]
    pub fn value(&self, key: Key) -> Option<Value> {
        let Self {
            interfaces,
            name,
            keep,
            settings,
            hook,
            output,
            syslog_enterprise_number,
            with_args,
            with_destinations,
        } = self;
        Some(match key {
            Key::Interface if interfaces.is_empty() => return None,
            Key::Interface => texts(interfaces),
            Key::Name => name.clone()?.into(),
            Key::Keep => (*keep).into(),
            // Far below what TOML can write.
            Key::Limit => i64::try_from(settings.limit).unwrap_or(i64::MAX).into(),
            Key::Rate => settings.rate.to_string().into(),
            Key::AttemptTimeout => span(settings.attempt_timeout).into(),
            Key::MaxDelay => span(settings.max_delay).into(),
            Key::KnownFor => span(settings.known_for).into(),
            Key::Scope => name_of(&settings.scope).into(),
            Key::Exempt => texts(&settings.exempt),
            Key::Mode => name_of(&settings.mode).into(),
            Key::Direction => name_of(&settings.direction).into(),
            Key::Pacing => name_of(&settings.pacing).into(),
            Key::Hook => name_of(hook).into(),
            Key::Output => name_of(&(*output)?).into(),
            Key::SyslogEnterpriseNumber => i64::from(*syslog_enterprise_number).into(),
            Key::WithArgs => (*with_args).into(),
            Key::WithDestinations => (*with_destinations).into(),
        })
    }
}

fn texts<T: ToString>(texts: &[T]) -> Value {
    let texts = texts.iter().map(|text| Value::String(text.to_string()));
    Value::Array(texts.collect())
}

/// What a key could be: its default, or an example where that shows nothing.
pub(super) fn sample(key: Key) -> Value {
    let default = Config::default().value(key);
    let is_telling = |value: &Value| value.as_array().is_none_or(|list| !list.is_empty());
    let example = || match key {
        Key::Interface => texts(&["eth0"]),
        Key::Exempt => texts(&["10.0.0.0/8"]),
        Key::Output => "json".into(),
        Key::Name
        | Key::Keep
        | Key::Limit
        | Key::Rate
        | Key::AttemptTimeout
        | Key::MaxDelay
        | Key::KnownFor
        | Key::Scope
        | Key::Mode
        | Key::Direction
        | Key::Pacing
        | Key::Hook
        | Key::SyslogEnterpriseNumber
        | Key::WithArgs
        | Key::WithDestinations => "eth0".into(),
    };
    default.filter(is_telling).unwrap_or_else(example)
}

/// As it is called on the command line.
pub(super) fn name_of<T: ValueEnum>(value: &T) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// A span of time as people write it: `60s`, `10m`, `1m 40s`.
fn span(span: Duration) -> String {
    const SHORT: Duration = Duration::from_secs(99);
    if span <= SHORT && span.subsec_nanos() == 0 {
        return format!("{}s", span.as_secs());
    }
    humantime::format_duration(span).to_string()
}

/// `key = value`, in one line.
pub(super) fn line(key: Key, value: &Value) -> String {
    format!("{key} = {value}")
}

/// The same, in several lines if it is too long for one.
fn lines(key: Key, value: &Value) -> String {
    let line = line(key, value);
    match value.as_array() {
        Some(items) if line.len() > WIDTH => {
            let items: Vec<String> = items.iter().map(|item| format!("    {item},\n")).collect();
            format!("{key} = [\n{}]", items.concat())
        }
        Some(_) | None => line,
    }
}

/// What the help says of a key, as comments.
fn comment(key: Key, flags: &Command) -> String {
    let Some(argument) = key.find(flags) else {
        return String::new();
    };
    let help = argument.get_help().map(ToString::to_string);
    let mut comment = filled(&help.unwrap_or_default());
    let names: Vec<String> = argument
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    if argument
        .get_num_args()
        .is_some_and(|args| args.min_values() > 0)
        && !names.is_empty()
    {
        comment += &filled(&format!("One of {}", names.join(", ")));
    }
    comment
}

/// A text in lines of comment.
fn filled(text: &str) -> String {
    const DEFAULT: (&str, &str) = ("[default: ", "[default:\u{a0}");
    let (mut filled, mut line) = (String::new(), String::from("#"));
    // A default stays in one line, if it is one word.
    for word in text.replace(DEFAULT.0, DEFAULT.1).split([' ', '\n']) {
        let width = line.chars().count() + 1 + word.chars().count();
        if width > WIDTH {
            filled += &line;
            filled.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line += word;
    }
    filled += &line;
    filled.push('\n');
    filled.replace(DEFAULT.1, DEFAULT.0)
}

/// The flags that keys are named and explained by, as they will be parsed.
fn flags() -> Command {
    let mut command = Layer::augment_args(Command::new("run"));
    for required in ["config", "print_config"] {
        command = command.arg(clap::Arg::new(required).long(required));
    }
    command.build();
    command
}

/// Writes the configuration as a file, each key with a comment. What is not said
/// stands there as an example, commented out.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = flags();
        for (index, key) in Key::all().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            f.write_str(&comment(key, &flags))?;
            match self.value(key) {
                Some(value) => writeln!(f, "{}", lines(key, &value))?,
                None => writeln!(f, "#{}", line(key, &sample(key)))?,
            }
        }
        Ok(())
    }
}

/// A file with every key, each with its default, commented out.
#[must_use]
pub fn example() -> String {
    let (flags, default) = (flags(), Config::default());
    let mut text = HEAD.to_owned();
    for key in Key::all() {
        let value = default.value(key).unwrap_or_else(|| sample(key));
        text += &format!("\n{}#{}\n", comment(key, &flags), line(key, &value));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{file, random};
    use expect_test::{expect, expect_file};
    use proptest::prelude::*;

    fn read(text: &str) -> Config {
        Config::from(file::parse(text).unwrap())
    }

    #[test]
    fn the_example_is_the_file_that_comes_with_it() {
        expect_file!["../../../dist/throttle.toml"].assert_eq(&example());
    }

    /// Of a file, the lines of keys that are commented out; no other line of
    /// comment begins like that.
    fn uncommented(text: &str) -> Vec<&str> {
        let lines = text.lines().filter_map(|line| line.strip_prefix('#'));
        lines
            .filter(|line| line.starts_with(char::is_alphabetic))
            .collect()
    }

    #[test]
    fn the_example_has_every_key_and_uncommented_it_is_the_defaults() {
        assert_eq!(read(&example()), Config::default());
        let keys = uncommented(&example())
            .iter()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>();
        assert_eq!(
            keys,
            Key::all().map(|key| key.to_string()).collect::<Vec<_>>()
        );
        let expected = Config {
            interfaces: vec!["eth0".into()],
            name: Some("eth0".into()),
            output: Some(crate::encode::Format::Json),
            ..Config::default()
        };
        assert_eq!(read(&uncommented(&example()).join("\n")), expected);
    }

    #[test]
    fn what_has_no_value_is_printed_as_an_example() {
        let printed = Config::default().to_string();
        assert_eq!(
            uncommented(&printed),
            [
                "interface = [\"eth0\"]",
                "name = \"eth0\"",
                "output = \"json\""
            ]
        );
        assert_eq!(read(&printed), Config::default());
    }

    #[test]
    fn a_configuration_is_printed_with_what_the_help_says() {
        let config = read(
            "interface = [\"eth0\", \"veth*\"]\noutput = \"cef\"\nknown-for = \"100s\"\n\
             exempt = [\"10.0.0.0/8\", \"192.168.0.0/16\", \"[2001:db8::/32]:443\", \"192.0.2.1\"]",
        );
        expect![[r##"
            # Interface to attach to: a name, or a pattern like 'veth*'
            interface = ["eth0", "veth*"]

            # What this throttle is called [default: the first interface]
            #name = "eth0"

            # Go on limiting when the daemon ends; the next run takes over
            keep = false

            # Half-open attempts there may be at once [default: 50]
            limit = 50

            # How fast attempts over the limit are let out: N/s or N/m [default: 10/s]
            rate = "10/s"

            # For how long an unanswered attempt counts [default: 30s]
            attempt-timeout = "30s"

            # How much may wait in a line: what is let out in this time [default: 60s]
            max-delay = "60s"

            # For how long an endpoint that answered is let through uncounted; 0 for a
            # strict limit [default: 10m]
            known-for = "1m 40s"

            # What the limit applies to: each has its own count and queue
            # [default: interface]
            # One of interface, cgroup, user, process, source
            scope = "interface"

            # Destination that no limit applies to, at one port or at all: 10.0.0.0/8,
            # 192.0.2.1:443, [2001:db8::/32]:443
            exempt = ["10.0.0.0/8", "192.168.0.0/16", "[2001:db8::/32]:443", "192.0.2.1/32"]

            # What is done with attempts over the limit [default: enforce]
            # One of enforce, monitor
            mode = "enforce"

            # Which way the attempts cross the interface [default: egress]
            # One of egress, ingress
            direction = "egress"

            # Who lets attempts over the limit out [default: auto]
            # One of auto, resend, fq, retransmit
            pacing = "auto"

            # By which hook the programs are attached [default: auto]
            # One of auto, tcx, clsact
            hook = "auto"

            # How events are written [default: text on a terminal, else json]
            # One of text, json, ocsf, cef, syslog
            output = "cef"

            # Private enterprise number that syslog's structured data goes under; the
            # default is the one for examples [default: 32473]
            syslog-enterprise-number = 32473

            # Tell programs' arguments too; they may hold secrets
            with-args = false

            # Tell more than one example of the destinations
            with-destinations = false
        "##]]
        .assert_eq(&config.to_string());
    }

    #[test]
    fn times_are_written_as_people_do() {
        for (text, written) in [
            ("0", "0s"),
            ("1s", "1s"),
            ("60s", "60s"),
            ("90s", "90s"),
            ("1500ms", "1s 500ms"),
            ("100s", "1m 40s"),
            ("10m", "10m"),
            ("1day", "1day"),
        ] {
            let time = crate::settings::parse_duration(text).unwrap();
            assert_eq!(span(time), written);
            assert_eq!(crate::settings::parse_duration(written), Ok(time));
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back_as_the_same(config in random::config()) {
            let printed = config.to_string();
            prop_assert_eq!(file::parse(&printed).map(Config::from), Ok(config), "{}", printed);
        }
    }
}
