//! What people and programs read, compared with files.
//!
//! `UPDATE_EXPECT=1 cargo test -p throttle --test golden` accepts a change.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::process::Command;

use expect_test::{ExpectFile, expect_file};
use proptest::prelude::*;
use throttle::{
    encode::{Format, Host},
    event::{Episode, Event, Named, What},
    settings::{Mode, Rate},
};

fn host() -> Host {
    Host {
        name: "node-1".into(),
        kernel: "6.18.0".into(),
    }
}

fn named(kind: &'static str, id: &str, name: &str) -> Named {
    Named {
        kind,
        id: id.into(),
        name: name.into(),
    }
}

fn event(what: What) -> Event {
    let mut event = Event::new(1_790_000_000_123_456_789, 17, what);
    // The rest of a UUIDv7 is random.
    event.id = uuid::Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001);
    event
}

fn episode(mode: Mode, v6: bool) -> Episode {
    let (source, destination) = if v6 {
        ("[2001:db8::1]:40000", "[2001:db8::2]:443")
    } else {
        ("10.0.0.5:40000", "192.0.2.1:443")
    };
    Episode {
        scope: named("interface", "2", "eth0"),
        owner: named("cgroup", "4242", "4242"),
        interface: named("interface", "2", "eth0"),
        limit: 50,
        half_open: 50,
        queued: 1,
        rate: Rate::per_second(10),
        mode,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

fn check(format: Format, what: What, expected: ExpectFile) {
    expected.assert_eq(&(format.line(&event(what), &host()) + "\n"));
}

fn reached(mode: Mode, v6: bool) -> What {
    What::LimitReached(Box::new(episode(mode, v6)))
}

#[test]
fn a_reached_limit_in_text() {
    check(
        Format::Text,
        reached(Mode::Enforce, false),
        expect_file!["golden/reached.txt"],
    );
}

#[test]
fn a_reached_limit_in_json() {
    check(
        Format::Json,
        reached(Mode::Enforce, false),
        expect_file!["golden/reached.json"],
    );
}

#[test]
fn a_reached_limit_that_is_only_watched() {
    check(
        Format::Text,
        reached(Mode::Monitor, true),
        expect_file!["golden/monitored.txt"],
    );
    check(
        Format::Json,
        reached(Mode::Monitor, true),
        expect_file!["golden/monitored.json"],
    );
}

#[test]
fn lost_events() {
    check(
        Format::Text,
        What::Lost { events: 3 },
        expect_file!["golden/lost.txt"],
    );
    check(
        Format::Json,
        What::Lost { events: 3 },
        expect_file!["golden/lost.json"],
    );
}

fn command(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_throttle"))
        .args(arguments)
        // As wide as it gets.
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_help_of_the_command() {
    expect_file!["golden/help.txt"].assert_eq(&command(&["--help"]));
    expect_file!["golden/help-run.txt"].assert_eq(&command(&["run", "--help"]));
}

#[test]
fn the_explanation() {
    expect_file!["golden/explain.txt"].assert_eq(&command(&["explain"]));
}

proptest! {
    #[test]
    fn any_name_gives_one_line_of_text_and_one_object(name in any::<String>(), host in any::<String>()) {
        let host = Host { name: host.clone(), kernel: host };
        let mut episode = episode(Mode::Enforce, false);
        episode.scope.name.clone_from(&name);
        episode.owner.name.clone_from(&name);
        let event = event(What::LimitReached(Box::new(episode)));
        let text = Format::Text.line(&event, &host);
        prop_assert!(!text.chars().any(char::is_control), "{text:?}");
        let json = Format::Json.line(&event, &host);
        prop_assert!(!json.contains('\n'));
        let object: serde_json::Value = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(object["throttle"]["scope"]["name"].as_str(), Some(name.as_str()));
    }
}
