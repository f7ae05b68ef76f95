//! What is another in a configuration that is read again, and whether a running
//! throttle can take it.

use std::{collections::HashSet, fmt};

use toml::Value;

use super::{Config, Key};
use crate::name::Name;

/// What has changed under one key, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// What it was and is: `50 -> 20`; of a list, what came and went.
    pub what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// A change that a running throttle cannot take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeedsRestart(pub Change);

impl fmt::Display for NeedsRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} needs a restart", self.0)
    }
}

impl Key {
    /// Whether a running throttle takes another value of it.
    #[must_use]
    pub const fn is_live(self) -> bool {
        match self {
            Self::Interface
            | Self::Limit
            | Self::Rate
            | Self::AttemptTimeout
            | Self::MaxDelay
            | Self::KnownFor
            | Self::Scope
            | Self::Exempt
            | Self::Mode
            | Self::Pacing => true,
            Self::Name
            | Self::Keep
            | Self::Direction
            | Self::Hook
            | Self::Output
            | Self::SyslogEnterpriseNumber
            | Self::WithArgs
            | Self::WithDestinations => false,
        }
    }
}

/// What is another in `new` than in `old`. The order of a list does not matter.
///
/// A throttle that is called after its first interface stays what it was called
/// when it began, whatever its first interface is now.
///
/// # Errors
///
/// All that a running throttle cannot take. Then it is to take nothing: half a
/// configuration is one that nobody wrote.
pub fn changes_live(old: &Config, new: &Config) -> Result<Vec<Change>, Vec<NeedsRestart>> {
    let changes = Key::all().filter_map(|key| change(key, old, new));
    let (live, restart): (Vec<Change>, Vec<Change>) =
        changes.partition(|change| change.key.is_live());
    if restart.is_empty() {
        Ok(live)
    } else {
        Err(restart.into_iter().map(NeedsRestart).collect())
    }
}

fn change(key: Key, old: &Config, new: &Config) -> Option<Change> {
    let is_named = old.name.is_some() || new.name.is_some();
    let (old, new) = if key == Key::Name && is_named {
        // Called the same, whether it is said or not.
        let called = |config: &Config| config.called().map(Value::from);
        (called(old), called(new))
    } else {
        (old.value(key), new.value(key))
    };
    let what = match (&old, &new) {
        (Some(Value::Array(old)), Some(Value::Array(new))) => came_and_went(old, new)?,
        _ if old == new => return None,
        _ => format!("{} -> {}", shown(old.as_ref()), shown(new.as_ref())),
    };
    Some(Change { key, what })
}

/// `+ 10.0.0.0/8 - 192.0.2.1/32`; none if nothing did.
fn came_and_went(old: &[Value], new: &[Value]) -> Option<String> {
    let but = |these: &[Value], those: &[Value]| -> Vec<String> {
        let known: HashSet<String> = those.iter().map(ToString::to_string).collect();
        let others = these
            .iter()
            .filter(|value| !known.contains(&value.to_string()));
        others.map(|value| shown(Some(value))).collect()
    };
    let (came, went) = (but(new, old), but(old, new));
    let signed = [('+', came), ('-', went)]
        .into_iter()
        .filter(|(_, each)| !each.is_empty())
        .map(|(sign, each)| format!("{sign} {}", few(&each)));
    let signed: Vec<String> = signed.collect();
    (!signed.is_empty()).then(|| signed.join(" "))
}

/// The first of them, and how many more there are.
fn few(each: &[String]) -> String {
    const SHOWN: usize = 8;
    let first = each.get(..SHOWN).unwrap_or(each).join(", ");
    match each.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{first} and {more} more"),
        Some(0) | None => first,
    }
}

/// A value as it is shown in the log.
fn shown(value: Option<&Value>) -> String {
    match value {
        None => "not given".into(),
        Some(Value::String(text)) => Name::new(text).to_string(),
        Some(other) => Name::new(other.to_string()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{file, random};
    use proptest::prelude::*;

    fn config(text: &str) -> Config {
        Config::from(file::parse(text).unwrap())
    }

    fn told(old: &str, new: &str) -> Result<Vec<String>, Vec<String>> {
        changes_live(&config(old), &config(new))
            .map(|live| live.iter().map(ToString::to_string).collect())
            .map_err(|restart| restart.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_has_not_changed_is_not_told() {
        assert_eq!(told("", ""), Ok(Vec::new()));
        assert_eq!(told("limit = 50", ""), Ok(Vec::new()));
        assert_eq!(
            told("max-delay = \"60s\"", "max-delay = \"1m\""),
            Ok(Vec::new())
        );
        let (here, there) = ("exempt = [\"::1\", \"::2\"]", "exempt = [\"::2\", \"::1\"]");
        assert_eq!(told(here, there), Ok(Vec::new()));
    }

    #[test]
    fn changes_are_told_in_order() {
        let changes = told(
            "interface = [\"a\", \"b\"]\nlimit = 5\nexempt = \"10.0.0.0/8\"",
            "exempt = [\"::1\", \"::2\"]\ninterface = [\"b\", \"veth*\"]\nscope = \"user\"",
        );
        let expected = [
            "interface: + veth* - a",
            "limit: 5 -> 50",
            "scope: interface -> user",
            "exempt: + ::1/128, ::2/128 - 10.0.0.0/8",
        ];
        assert_eq!(changes.unwrap(), expected);
    }

    #[test]
    fn what_needs_a_restart_is_told_and_nothing_else_is_to_change() {
        let changes = told(
            "",
            "limit = 5\ndirection = \"ingress\"\nkeep = true\noutput = \"cef\"\nhook = \"tcx\"\n\
             syslog-enterprise-number = 7\nwith-args = true\nwith-destinations = true",
        );
        let expected = [
            "keep: false -> true needs a restart",
            "direction: egress -> ingress needs a restart",
            "hook: auto -> tcx needs a restart",
            "output: not given -> cef needs a restart",
            "syslog-enterprise-number: 32473 -> 7 needs a restart",
            "with-args: false -> true needs a restart",
            "with-destinations: false -> true needs a restart",
        ];
        assert_eq!(changes.unwrap_err(), expected);
    }

    #[test]
    fn a_name_changes_if_the_throttle_is_called_otherwise() {
        let (eth, web) = (
            "interface = \"eth0\"",
            "interface = \"eth0\"\nname = \"web\"",
        );
        assert_eq!(
            told(eth, web).unwrap_err(),
            ["name: eth0 -> web needs a restart"]
        );
        assert_eq!(
            told(web, eth).unwrap_err(),
            ["name: web -> eth0 needs a restart"]
        );
        let said = "interface = \"eth0\"\nname = \"eth0\"";
        assert_eq!(told(eth, said), Ok(Vec::new()));
        assert_eq!(
            told(eth, "interface = \"eth1\"").unwrap(),
            ["interface: + eth1 - eth0"]
        );
    }

    #[test]
    fn of_many_exemptions_the_first_are_told() {
        let many: Vec<String> = (1..=100).map(|n| format!("\"10.0.0.{n}\"")).collect();
        let changes = told("", &format!("exempt = [{}]", many.join(", "))).unwrap();
        assert_eq!(changes.len(), 1);
        assert!(
            changes[0].ends_with("10.0.0.8/32 and 92 more"),
            "{changes:?}"
        );
    }

    proptest! {
        #[test]
        fn a_configuration_is_not_another_than_itself(config in random::config()) {
            prop_assert_eq!(changes_live(&config, &config), Ok(Vec::new()));
        }

        #[test]
        fn whatever_is_another_is_told(old in random::config(), new in random::config()) {
            let told = changes_live(&old, &new);
            let all = match &told {
                Ok(live) => live.clone(),
                Err(restart) => restart.iter().map(|NeedsRestart(change)| change.clone()).collect(),
            };
            prop_assert_eq!(told.is_ok(), all.iter().all(|change| change.key.is_live()));
            if old.settings.limit != new.settings.limit && told.is_ok() {
                prop_assert!(all.iter().any(|change| change.key == Key::Limit));
            }
            if old.hook != new.hook {
                prop_assert!(all.iter().any(|change| change.key == Key::Hook));
            }
            for change in all {
                let text = change.to_string();
                prop_assert!(!text.contains(char::is_control), "{}", text);
            }
        }
    }
}
