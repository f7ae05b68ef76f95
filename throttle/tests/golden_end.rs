//! What `throttle end` says, compared with files.
//!
//! `UPDATE_EXPECT=1 cargo test -p throttle --test golden_end` accepts a change.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::{process::Command, time::Duration};

use expect_test::expect_file;
use nix::sys::signal::Signal;
use throttle::{
    end::{Attempts, Child, Options, Plan, Report, plan_text, report_json, report_text},
    event::{Cgroup, Container, Parent, Process, Scope, User},
};
use throttle_common::subject::{Subject, SubjectKind};

/// A program that hides behind its name, with all that may be said of one.
fn everything() -> Plan {
    let attempts = |scope: &str, deferred| Attempts {
        throttle: "edge".into(),
        scope: Scope::new(
            &Subject::numbered(SubjectKind::Interface, 2),
            Some(scope.into()),
        ),
        half_open: 50,
        deferred,
        destinations: 50 + usize::try_from(deferred).unwrap(),
        example: "[2001:db8::1]:445".parse().unwrap(),
    };
    Plan {
        process: Process {
            pid: 4_711,
            thread: None,
            name: "kworker/u8:1\n\x1b[2J".into(),
            executable: Some("/tmp/.x (deleted)".into()),
            args: None,
            start_ns: Some(1_760_000_000_123_456_789),
            entity_id: "11111111-2222-4333-8444-555555555555-4711-305".into(),
            user: User {
                id: 33,
                name: Some("www-data".into()),
            },
            parent: Some(Parent {
                pid: 4_000,
                name: "php-fpm".into(),
            }),
            cgroup: Some(Cgroup {
                id: 12_345,
                path: Some("/kubepods.slice/cri-containerd.scope".into()),
                container: Some(Container {
                    id: "84e9ffffe97fea4c5a0f01d401611cbafbf7e559fc6190ed74abfc2b25e889d4".into(),
                    runtime: Some("containerd"),
                    pod_uid: Some("9d0a1b0e-0000-4000-8000-000000000001".into()),
                }),
            }),
            has_exited: false,
        },
        connected_as: Some("php".into()),
        is_certain: false,
        is_first_of_namespace: true,
        is_stopped: true,
        attempts: vec![attempts("eth0", 550), attempts("eth1", 0)],
        sockets: 650,
        children: (0..10)
            .map(|n| Child {
                pid: 4_712 + n,
                name: "php".into(),
                attempts: u64::from(n) + 1,
            })
            .collect(),
        problems: vec!["look into throttle lab: it is another version's".into()],
    }
}

/// As little as can be said.
fn little() -> Plan {
    Plan {
        process: Process {
            name: "".into(),
            executable: None,
            start_ns: None,
            user: User {
                id: 1_000,
                name: None,
            },
            parent: None,
            cgroup: None,
            ..everything().process
        },
        connected_as: None,
        is_certain: true,
        is_first_of_namespace: false,
        is_stopped: false,
        attempts: Vec::new(),
        sockets: 0,
        children: Vec::new(),
        problems: Vec::new(),
    }
}

fn forced() -> Report {
    Report {
        has_ended: true,
        closed: 650,
        closed_after: 1,
        signals: vec![Signal::SIGTERM, Signal::SIGKILL],
        took: Duration::from_micros(5_003_200),
        is_stopped: false,
        left: Some((2, 0)),
        problems: vec!["3 sockets were not closed: because".into()],
    }
}

fn remains() -> Report {
    Report {
        has_ended: false,
        closed: 0,
        closed_after: 0,
        signals: vec![Signal::SIGTERM],
        took: Duration::from_secs(5),
        is_stopped: true,
        left: None,
        problems: Vec::new(),
    }
}

fn pretty(line: &str) -> String {
    assert_eq!(line.find('\n'), Some(line.len() - 1), "one line: {line}");
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

#[test]
fn a_plan_and_what_was_done_for_people() {
    let force = Options {
        force: true,
        ..Options::default()
    };
    let mut text = plan_text(&everything(), &force);
    text += &report_text(&everything(), &forced());
    text += "\n";
    text += &plan_text(&little(), &Options::default());
    text += &report_text(&little(), &remains());
    assert!(!text.contains('\x1b'));
    expect_file!["golden/end.txt"].assert_eq(&text);
}

#[test]
fn a_plan_and_what_was_done_for_programs() {
    let mut text = pretty(&report_json(&everything(), Ok(&forced())));
    text += &pretty(&report_json(&little(), Ok(&remains())));
    text += &pretty(&report_json(&little(), Err("dry-run")));
    expect_file!["golden/end.json"].assert_eq(&text);
}

#[test]
fn the_help_of_the_command() {
    let output = Command::new(env!("CARGO_BIN_EXE_throttle"))
        .args(["end", "--help"])
        // As wide as it gets.
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    expect_file!["golden/help-end.txt"].assert_eq(&text);
}
