//! What `throttle run` is told: by its flags, by a file, by neither.
//!
//! Flags and file say the same things in the same words: each is read into a
//! [`Layer`], by the same functions. Layers lie over one another, and what none
//! of them says is as it is by default: that makes a [`Config`]. It can be
//! printed as a file ([`print`]) and compared with another one ([`change`]).

pub mod change;
pub mod file;
mod key;
pub mod print;
#[cfg(test)]
mod random;

use std::{path::PathBuf, str::FromStr, time::Duration};

use glob::Pattern;

pub use crate::interface::is_pattern;

pub use self::{
    change::{Change, NeedsRestart, changes_live},
    key::Key,
};
use crate::{
    Error, Result, Settings,
    attach::Hook,
    encode::{EXAMPLE_ENTERPRISE, Format},
    exempt::Exempt,
    name::Name,
    settings::{Direction, Mode, Pacing, Rate, Scope, parse_duration, parse_limit, parse_span},
};

/// What was said in one place, by flags or in a file. What was not is absent.
//
// The first paragraph of each is also the comment of its key in a file; the rest
// is about the flag alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Layer {
    /// Interface to attach to: a name, or a pattern like 'veth*'
    ///
    /// May be given more than once. With --config the file can name it instead.
    #[arg(
        short,
        long,
        value_name = "IFACE",
        value_parser = parse_interface,
        required_unless_present_any = ["config", "print_config"]
    )]
    pub interface: Option<Vec<String>>,

    /// What this throttle is called [default: the first interface]
    #[arg(long, value_parser = parse_name)]
    pub name: Option<String>,

    /// Go on limiting when the daemon ends; the next run takes over
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub keep: Option<bool>,

    /// Half-open attempts there may be at once [default: 50]
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub limit: Option<u64>,

    /// How fast attempts over the limit are let out: N/s or N/m [default: 10/s]
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,

    /// For how long an unanswered attempt counts [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub attempt_timeout: Option<Duration>,

    /// How much may wait in a line: what is let out in this time [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub max_delay: Option<Duration>,

    /// For how long an endpoint that answered is let through uncounted; 0 for a
    /// strict limit [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub known_for: Option<Duration>,

    /// What the limit applies to: each has its own count and queue [default: interface]
    #[arg(long, value_enum)]
    pub scope: Option<Scope>,

    /// Destination that no limit applies to, at one port or at all: 10.0.0.0/8,
    /// 192.0.2.1:443, [2001:db8::/32]:443
    ///
    /// May be given more than once. Those given replace all that are in the file.
    #[arg(long, value_name = "CIDR[:PORT]")]
    pub exempt: Option<Vec<Exempt>>,

    /// What is done with attempts over the limit [default: enforce]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,

    /// Which way the attempts cross the interface [default: egress]
    #[arg(long, value_enum)]
    pub direction: Option<Direction>,

    /// Who lets attempts over the limit out [default: auto]
    #[arg(long, value_enum)]
    pub pacing: Option<Pacing>,

    /// By which hook the programs are attached [default: auto]
    #[arg(long, value_enum)]
    pub hook: Option<Hook>,

    /// How events are written [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub output: Option<Format>,

    /// Private enterprise number that syslog's structured data goes under; the
    /// default is the one for examples [default: 32473]
    #[arg(long, value_name = "N", value_parser = parse_enterprise_number)]
    pub syslog_enterprise_number: Option<u32>,

    /// Tell programs' arguments too; they may hold secrets
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub with_args: Option<bool>,

    /// Tell more than one example of the destinations
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub with_destinations: Option<bool>,
}

impl Layer {
    /// This layer over another one: what this one says is said.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            interface: self.interface.or(below.interface),
            name: self.name.or(below.name),
            keep: self.keep.or(below.keep),
            limit: self.limit.or(below.limit),
            rate: self.rate.or(below.rate),
            attempt_timeout: self.attempt_timeout.or(below.attempt_timeout),
            max_delay: self.max_delay.or(below.max_delay),
            known_for: self.known_for.or(below.known_for),
            scope: self.scope.or(below.scope),
            exempt: self.exempt.or(below.exempt),
            mode: self.mode.or(below.mode),
            direction: self.direction.or(below.direction),
            pacing: self.pacing.or(below.pacing),
            hook: self.hook.or(below.hook),
            output: self.output.or(below.output),
            syslog_enterprise_number: self
                .syslog_enterprise_number
                .or(below.syslog_enterprise_number),
            with_args: self.with_args.or(below.with_args),
            with_destinations: self.with_destinations.or(below.with_destinations),
        }
    }
}

/// Everything that `throttle run` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Interfaces to attach to: names, and patterns of names. There may be none,
    /// but not to [run](Self::require_interface).
    pub interfaces: Vec<String>,
    /// What the throttle is called; none if it is called after its first
    /// interface.
    pub name: Option<String>,
    /// Whether its kernel side goes on when the daemon ends.
    pub keep: bool,
    /// What the limit is, and what it applies to.
    pub settings: Settings,
    /// By which hook the programs are attached.
    pub hook: Hook,
    /// How events are written; none if that depends on where they go.
    pub output: Option<Format>,
    /// The private enterprise number that syslog's structured data goes under.
    pub syslog_enterprise_number: u32,
    /// Whether programs' arguments are told.
    pub with_args: bool,
    /// Whether more than one example of the destinations is told.
    pub with_destinations: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            name: None,
            keep: false,
            settings: Settings::default(),
            hook: Hook::Auto,
            output: None,
            syslog_enterprise_number: EXAMPLE_ENTERPRISE,
            with_args: false,
            with_destinations: false,
        }
    }
}

impl From<Layer> for Config {
    /// What a layer says, and the defaults for the rest.
    fn from(layer: Layer) -> Self {
        let default = Self::default();
        let settings = default.settings;
        Self {
            interfaces: layer.interface.unwrap_or(default.interfaces),
            name: layer.name.or(default.name),
            keep: layer.keep.unwrap_or(default.keep),
            settings: Settings {
                limit: layer.limit.unwrap_or(settings.limit),
                rate: layer.rate.unwrap_or(settings.rate),
                attempt_timeout: layer.attempt_timeout.unwrap_or(settings.attempt_timeout),
                max_delay: layer.max_delay.unwrap_or(settings.max_delay),
                known_for: layer.known_for.unwrap_or(settings.known_for),
                scope: layer.scope.unwrap_or(settings.scope),
                exempt: layer.exempt.unwrap_or(settings.exempt),
                mode: layer.mode.unwrap_or(settings.mode),
                direction: layer.direction.unwrap_or(settings.direction),
                pacing: layer.pacing.unwrap_or(settings.pacing),
            },
            hook: layer.hook.unwrap_or(default.hook),
            output: layer.output.or(default.output),
            syslog_enterprise_number: layer
                .syslog_enterprise_number
                .unwrap_or(default.syslog_enterprise_number),
            with_args: layer.with_args.unwrap_or(default.with_args),
            with_destinations: layer.with_destinations.unwrap_or(default.with_destinations),
        }
    }
}

impl Config {
    /// What the throttle is called: its name, else its first interface. None if
    /// it has neither.
    #[must_use]
    pub fn called(&self) -> Option<&str> {
        self.name
            .as_deref()
            .or_else(|| self.interfaces.first().map(String::as_str))
    }

    /// Checks that there is something to attach to.
    ///
    /// # Errors
    ///
    /// When there is not.
    pub fn require_interface(&self) -> Result<()> {
        if self.interfaces.is_empty() {
            return Err(Error::Usage(
                "no interface to attach to: give -i IFACE, or write interface = [\"eth0\"] into the \
                 file of --config"
                    .into(),
            ));
        }
        Ok(())
    }
}

/// Where a [`Config`] comes from. The daemon keeps it, to read the file again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// What the flags say.
    pub flags: Layer,
    /// The file, if one was named.
    pub file: Option<PathBuf>,
}

impl Source {
    /// The flags over what is in the file now, over the defaults.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, something in it is wrong, or the settings
    /// do not go together.
    pub fn load(&self) -> Result<Config> {
        let below = match &self.file {
            Some(path) => file::read(path)?,
            None => Layer::default(),
        };
        let config = Config::from(self.flags.clone().over(below));
        config.settings.check()?;
        Ok(config)
    }

    /// Reads the file again, and says what is to change in a throttle that runs
    /// with `running`.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), when no interface is left, and when something
    /// has changed that takes a restart. Then nothing is to change.
    pub fn reload(&self, running: &Config) -> Result<(Config, Vec<Change>)> {
        let config = self.load()?;
        config.require_interface()?;
        match changes_live(running, &config) {
            Ok(changes) => Ok((config, changes)),
            Err(restart) => {
                let each: Vec<String> = restart.iter().map(ToString::to_string).collect();
                Err(Error::Refused(format!(
                    "{}; nothing was changed: restart throttle, or take this back",
                    each.join("; ")
                )))
            }
        }
    }
}

/// Most bytes of a name of an interface: IFNAMSIZ of include/uapi/linux/if.h,
/// without its closing NUL.
const INTERFACE_MAX: usize = 15;
/// Most bytes of a pattern, and of what a throttle is called.
const TEXT_MAX: usize = 64;

/// Reads the name of an interface, or a pattern of names with `*`, `?` and
/// `[...]` as in a shell.
///
/// # Errors
///
/// Says what is accepted when no interface can be called like that.
pub fn parse_interface(text: &str) -> Result<String, String> {
    let is_pattern = is_pattern(text);
    // `dev_valid_name` in net/core/dev.c.
    let is_impossible = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    let most = if is_pattern { TEXT_MAX } else { INTERFACE_MAX };
    if text.is_empty() || text.len() > most || text.contains(is_impossible) {
        return Err(format!(
            "this cannot be the name of an interface; `ip link` lists those there are, and a pattern \
             is written like 'veth*', with at most {TEXT_MAX} bytes"
        ));
    }
    if is_pattern {
        Pattern::new(text).map_err(|error| {
            format!(
                "this is no pattern: {}; write one like 'veth*', 'eth?' or 'eth[0-3]'",
                error.msg
            )
        })?;
    }
    Ok(text.to_owned())
}

/// Reads what a throttle is called: 1 to 64 bytes that can be shown, without
/// spaces.
///
/// # Errors
///
/// Says what is accepted when it is not that.
pub fn parse_name(text: &str) -> Result<String, String> {
    let is_harmless = Name::new(text).as_str() == text && !text.contains(char::is_whitespace);
    if text.is_empty() || text.len() > TEXT_MAX || !is_harmless {
        return Err(format!(
            "write 1 to {TEXT_MAX} letters, digits or signs, without spaces and backslashes"
        ));
    }
    Ok(text.to_owned())
}

/// Reads a private enterprise number.
///
/// # Errors
///
/// Says what is accepted when it is none.
pub fn parse_enterprise_number(text: &str) -> Result<u32, String> {
    match u32::from_str(text) {
        Ok(number @ 1..) => Ok(number),
        Ok(0) | Err(_) => Err(format!("write a whole number from 1 to {}", u32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches as _};
    use proptest::prelude::*;
    use std::{fs, path::Path};

    /// What these flags say.
    fn flags(args: &[&str]) -> Layer {
        let command = clap::Command::new("run")
            .no_binary_name(true)
            // The interface is required without these.
            .arg(clap::Arg::new("config"))
            .arg(clap::Arg::new("print_config").long("print").num_args(0));
        let command = Layer::augment_args(command);
        let matches = command.try_get_matches_from([&["--print"], args].concat());
        Layer::from_arg_matches(&matches.unwrap()).unwrap()
    }

    #[test]
    fn what_nobody_says_is_as_it_is_by_default() {
        assert_eq!(flags(&[]), Layer::default());
        assert_eq!(Config::from(Layer::default()), Config::default());
        assert_eq!(Config::default().settings, Settings::default());
    }

    #[test]
    fn the_defaults_that_the_help_tells_are_those_there_are() {
        let command = Layer::augment_args(clap::Command::new("run"));
        let default = Config::default();
        for key in Key::all() {
            let help = key.find(&command).unwrap().get_help().unwrap().to_string();
            let told = help.split_once("[default: ").map(|(_, rest)| rest);
            let value = default.value(key);
            let value = value.map(|value| match value.as_str() {
                Some(text) => text.to_owned(),
                None => value.to_string(),
            });
            match (key, value) {
                (Key::Output | Key::Name, None) => assert!(told.is_some(), "{help}"),
                (Key::Interface, None) => assert_eq!(told, None),
                // What is not said is not so, and there are none.
                (_, Some(value)) if ["false", "[]"].contains(&&*value) => {
                    assert_eq!(told, None, "{help}");
                }
                (_, value) => assert_eq!(told, value.map(|value| value + "]").as_deref()),
            }
        }
    }

    #[test]
    fn each_flag_has_a_key_of_the_same_name() {
        let command = Layer::augment_args(clap::Command::new("run"));
        let flags: Vec<_> = command.get_arguments().flat_map(|a| a.get_long()).collect();
        let keys: Vec<String> = Key::all().map(|key| key.to_string()).collect();
        assert_eq!(keys, flags);
    }

    #[test]
    fn flags_win_over_a_file_and_a_file_over_the_defaults() {
        let file = file::parse("limit = 7\nrate = \"1/m\"\nkeep = true\nwith-args = true").unwrap();
        let flags = flags(&["--limit=9", "--with-args=false", "--with-destinations"]);
        let config = Config::from(flags.over(file));
        assert_eq!(config.settings.limit, 9);
        assert_eq!(config.settings.rate.to_string(), "1/m");
        assert_eq!(
            config.settings.max_delay,
            Config::default().settings.max_delay
        );
        assert!(config.keep && !config.with_args && config.with_destinations);
    }

    #[test]
    fn lists_of_flags_replace_those_of_a_file() {
        let file =
            file::parse("interface = [\"a\", \"b\"]\nexempt = [\"10.0.0.0/8\", \"::1\"]").unwrap();
        let config = Config::from(flags(&["-i", "c", "-i", "d*"]).over(file.clone()));
        assert_eq!(config.interfaces, ["c", "d*"]);
        assert_eq!(config.settings.exempt.len(), 2);
        let config = Config::from(flags(&["--exempt", "192.0.2.1"]).over(file));
        assert_eq!(config.interfaces, ["a", "b"]);
        assert_eq!(config.settings.exempt, ["192.0.2.1".parse().unwrap()]);
    }

    #[test]
    fn a_throttle_is_called_by_its_name_else_after_its_first_interface() {
        let called = |args: &[&str]| Config::from(flags(args)).called().map(str::to_owned);
        assert_eq!(called(&[]), None);
        assert_eq!(called(&["-i", "b", "-i", "a"]).as_deref(), Some("b"));
        assert_eq!(called(&["-i", "b", "--name=web"]).as_deref(), Some("web"));
    }

    #[test]
    fn names_and_patterns_of_interfaces_are_told_from_what_is_none() {
        for text in [
            "eth0", "br-1.7", "größe", "veth*", "*", "eth[0-3]", "[!l]?*", "a]",
        ] {
            assert_eq!(parse_interface(text).as_deref(), Ok(text));
        }
        let long = "*".repeat(TEXT_MAX + 1);
        for (text, hint) in [
            ("", "`ip link`"),
            ("a/b", "`ip link`"),
            ("a b", "`ip link`"),
            ("eth0:1", "`ip link`"),
            ("a\nb", "`ip link`"),
            ("an-interface-with-a-long-name", "`ip link`"),
            (&long, "at most 64 bytes"),
            ("eth[", "'eth[0-3]'"),
            ("***", "no pattern"),
            ("eth[]", "no pattern"),
        ] {
            let error = parse_interface(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn names_of_throttles_can_be_shown() {
        for text in ["web", "veth*", "größe", "a/b", "..", "--"] {
            assert_eq!(parse_name(text).as_deref(), Ok(text));
        }
        let long = "x".repeat(TEXT_MAX + 1);
        for text in [
            "", "a b", "a\nb", "\x1b[2J", "a\\b", "\u{202e}", "\u{a0}", &long,
        ] {
            assert!(parse_name(text).unwrap_err().contains("1 to 64"), "{text}");
        }
    }

    #[test]
    fn an_enterprise_number_is_a_positive_one() {
        assert_eq!(parse_enterprise_number("4294967295"), Ok(u32::MAX));
        for text in ["", "0", "-1", "4294967296", "x"] {
            let error = parse_enterprise_number(text).unwrap_err();
            assert!(error.contains("from 1 to 4294967295"), "{text}: {error}");
        }
    }

    /// A file with this in it, in a folder for temporary files.
    struct Written(PathBuf);

    impl Written {
        fn new(name: &str, text: &str) -> Self {
            let name = format!("throttle-config-{}-{name}.toml", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, text).unwrap();
            Self(path)
        }

        fn source(&self, args: &[&str]) -> Source {
            Source {
                flags: flags(args),
                file: Some(self.0.clone()),
            }
        }
    }

    impl Drop for Written {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_file_is_read_again_and_the_flags_still_win() {
        let file = Written::new("again", "interface = \"eth0\"\nlimit = 5\nrate = \"5/s\"");
        let source = file.source(&["--rate=9/s"]);
        let running = source.load().unwrap();
        assert_eq!(running.settings.limit, 5);
        assert_eq!(
            source.reload(&running).unwrap(),
            (running.clone(), Vec::new())
        );

        fs::write(
            &file.0,
            "interface = \"eth0\"\nlimit = 6\nrate = \"6/s\"\nmode = \"monitor\"",
        )
        .unwrap();
        let (config, changes) = source.reload(&running).unwrap();
        assert_eq!(config.settings.limit, 6);
        assert_eq!(config.settings.rate.to_string(), "9/s");
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(changes, ["limit: 5 -> 6", "mode: enforce -> monitor"]);
    }

    #[test]
    fn what_cannot_be_reloaded_says_why() {
        let file = Written::new("refused", "interface = \"eth0\"");
        let source = file.source(&[]);
        let running = source.load().unwrap();
        for (text, code, parts) in [
            (
                "interface = \"eth0\"\nlimti = 6",
                2,
                &[":2:1: ", "'limti'", "'limit'"][..],
            ),
            ("limit = 6", 2, &["no interface"]),
            ("", 2, &["empty"]),
            (
                "interface = \"eth0\"\nlimit = 6\ndirection = \"ingress\"\nkeep = true",
                1,
                &[
                    "direction: egress -> ingress needs a restart",
                    "keep: false -> true",
                    "nothing",
                ],
            ),
            (
                "interface = \"eth0\"\nrate = \"100000/s\"\nmax-delay = \"1h\"",
                2,
                &["256 MiB"],
            ),
        ] {
            fs::write(&file.0, text).unwrap();
            let error = source.reload(&running).unwrap_err();
            assert_eq!(error.exit_code(), code, "{error}");
            for part in parts {
                assert!(error.to_string().contains(part), "no {part:?} in: {error}");
            }
        }
        fs::remove_file(&file.0).unwrap();
        let error = source.reload(&running).unwrap_err();
        assert!(
            error.to_string().contains("there is no such file"),
            "{error}"
        );
        let nowhere = Source {
            flags: flags(&["-i", "eth0"]),
            file: Some(Path::new("/nonexistent/\x1b").into()),
        };
        let error = nowhere.load().unwrap_err().to_string();
        assert!(error.contains(r"/nonexistent/\x1b"), "{error}");
    }

    proptest! {
        #[test]
        fn no_interface_or_name_makes_a_reader_panic(text in ".{0,70}") {
            let _ = (parse_interface(&text), parse_name(&text), parse_enterprise_number(&text));
        }

        #[test]
        fn a_layer_over_nothing_and_nothing_over_a_layer_is_that_layer(text in random::file()) {
            let layer = file::parse(&text).unwrap();
            prop_assert_eq!(layer.clone().over(Layer::default()), layer.clone());
            prop_assert_eq!(Layer::default().over(layer.clone()), layer);
        }
    }
}
