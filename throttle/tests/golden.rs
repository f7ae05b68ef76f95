//! What people and programs read, compared with files.
//!
//! `UPDATE_EXPECT=1 cargo test -p throttle --test golden` accepts a change.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::process::Command;

use expect_test::{ExpectFile, expect_file};
use serde_json::Value;
use throttle::{
    encode::{Format, Host, json},
    event::{
        Active, Cgroup, Container, Count, Ending, Episode, Event, Interface, Parent, Process,
        Scope, Thread, User, What, Who,
    },
    settings::{Mode, Rate},
};
use throttle_common::record::Tallies;

mod schema;

fn host() -> Host {
    Host {
        name: "node-1".into(),
        kernel: "6.18.0".into(),
        id: Some("0123456789abcdef0123456789abcdef".into()),
        boot_id: Some("11111111-2222-4333-8444-555555555555".into()),
        pid: Some(99),
        ..Host::default()
    }
}

fn id(last: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0000 | last)
}

fn counted(number: u64) -> Count {
    Count {
        number,
        or_more: false,
    }
}

/// A pod's container.
fn cgroup() -> Cgroup {
    Cgroup {
        id: 12_345,
        path: Some("/kubepods.slice/kubepods-pod.slice/cri-containerd.scope".into()),
        container: Some(Container {
            id: "84e9ffffe97fea4c5a0f01d401611cbafbf7e559fc6190ed74abfc2b25e889d4".into(),
            runtime: Some("containerd"),
            pod_uid: Some("9d0a1b0e-0000-4000-8000-000000000001".into()),
        }),
    }
}

fn process(pid: u32, name: &str, path: &str) -> Process {
    Process {
        pid,
        thread: None,
        name: name.into(),
        executable: Some(path.into()),
        args: None,
        start_ns: Some(1_789_999_990_000_000_000),
        entity_id: format!("11111111-{pid}"),
        user: User {
            id: 0,
            name: Some("root".into()),
        },
        parent: None,
        cgroup: None,
        has_exited: false,
    }
}

/// A program in a pod, of which all is known.
fn crawler() -> Active {
    let process = Process {
        thread: Some(Thread {
            id: 4243,
            name: "worker".into(),
        }),
        args: Some(vec!["crawler".into(), "--seed".into(), "a \"b\"=]|".into()]),
        user: User {
            id: 1000,
            name: Some("app".into()),
        },
        parent: Some(Parent {
            pid: 1,
            name: "sh".into(),
        }),
        cgroup: Some(cgroup()),
        ..process(4242, "crawler", "/usr/bin/crawler")
    };
    Active {
        who: Who::Process(Box::new(process)),
        attempts: 51,
        destinations: counted(51),
    }
}

/// A control group, and who in it may send by itself.
fn scanners() -> Active {
    let who = Who::Cgroup {
        cgroup: Cgroup {
            id: 77,
            path: Some("/user.slice/session-1.scope".into()),
            container: None,
        },
        candidates: vec![
            process(11, "nmap", "/usr/bin/nmap"),
            process(12, "masscan", "/usr/bin/masscan"),
        ],
    };
    Active {
        who,
        attempts: 254,
        destinations: Count {
            number: 254,
            or_more: true,
        },
    }
}

/// A machine that is forwarded for.
fn machine() -> Active {
    Active {
        who: Who::Source("10.0.0.5".parse().unwrap()),
        attempts: 1,
        destinations: counted(1),
    }
}

fn episode(mode: Mode, v6: bool, programs: Vec<Active>) -> Episode {
    let (source, destination) = if v6 {
        ("[2001:db8::1]:40000", "[2001:db8::2]:443")
    } else {
        ("10.0.0.5:40000", "192.0.2.1:443")
    };
    Episode {
        id: id(0xe),
        scope: Scope {
            kind: "interface",
            id: "2".into(),
            name: "eth0".into(),
        },
        interface: Interface {
            index: 2,
            name: "eth0".into(),
        },
        mode,
        limit: 50,
        rate: Rate::per_second(10),
        half_open: 50,
        queued: 1,
        peak_half_open: 50,
        peak_queued: 1,
        start_ns: 1_790_000_000_123_456_789,
        duration_ns: 0,
        totals: Tallies([51, 50, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        program_count: counted(programs.len() as u64),
        destination_count: counted(51),
        programs,
        destinations: Vec::new(),
        ending: None,
    }
}

/// The same after `seconds`.
fn later(seconds: u64, ending: Option<Ending>) -> Episode {
    Episode {
        queued: 100,
        peak_half_open: 53,
        peak_queued: 350,
        duration_ns: seconds * 1_000_000_000,
        totals: Tallies([512, 50, 3, 462, 300, 12, 6, 1, 2, 3, 40, 0]),
        program_count: Count {
            number: 7,
            or_more: true,
        },
        destinations: vec![
            "192.0.2.1:443".parse().unwrap(),
            "192.0.2.2:443".parse().unwrap(),
        ],
        ending,
        ..episode(Mode::Enforce, false, vec![crawler(), scanners(), machine()])
    }
}

/// Compares the event, as every format writes it, with what is in a file.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it reads better where it is called"
)]
fn check(what: What, expected: ExpectFile) {
    let event = Event {
        at_ns: 1_790_000_000_123_456_789 + what.episode().map_or(0, |episode| episode.duration_ns),
        sequence: 17,
        id: id(1),
        what,
    };
    let formats = [
        Format::Text,
        Format::Json,
        Format::Ocsf,
        Format::Cef,
        Format::Syslog,
    ];
    let lines = formats.map(|format| format.line(&event, &host()) + "\n");
    assert_eq!(
        schema::errors(&schema::validator(), &lines[1]),
        Vec::<String>::new()
    );
    expected.assert_eq(&lines.concat());
}

fn reached(mode: Mode, v6: bool, program: Active) -> What {
    What::LimitReached(Box::new(episode(mode, v6, vec![program])))
}

#[test]
fn a_reached_limit() {
    check(
        reached(Mode::Enforce, false, crawler()),
        expect_file!["golden/reached.txt"],
    );
}

#[test]
fn a_reached_limit_that_is_only_watched() {
    check(
        reached(Mode::Monitor, true, crawler()),
        expect_file!["golden/monitored.txt"],
    );
}

#[test]
fn a_limit_that_one_of_a_control_group_reached() {
    check(
        reached(Mode::Enforce, false, scanners()),
        expect_file!["golden/cgroup.txt"],
    );
}

#[test]
fn a_limit_that_another_machine_reached() {
    check(
        reached(Mode::Enforce, false, machine()),
        expect_file!["golden/source.txt"],
    );
}

#[test]
fn a_limit_that_nobody_known_reached() {
    check(
        What::LimitReached(Box::new(episode(Mode::Enforce, false, Vec::new()))),
        expect_file!["golden/nobody.txt"],
    );
}

#[test]
fn an_episode_that_goes_on() {
    check(
        What::LimitOngoing(Box::new(later(30, None))),
        expect_file!["golden/ongoing.txt"],
    );
}

#[test]
fn an_episode_that_is_over() {
    check(
        What::LimitCleared(Box::new(later(95, Some(Ending::Recovered)))),
        expect_file!["golden/cleared.txt"],
    );
    check(
        What::LimitCleared(Box::new(later(1, Some(Ending::Stopped)))),
        expect_file!["golden/stopped.txt"],
    );
}

#[test]
fn lost_events() {
    check(What::Lost { events: 3 }, expect_file!["golden/lost.txt"]);
}

#[test]
fn the_schema_of_the_json_format() {
    let schema = serde_json::to_string_pretty(&json::schema()).unwrap();
    expect_file!["../../docs/event.schema.json"].assert_eq(&(schema + "\n"));
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

/// The fields of an object of the schema, each with what kind of value it has and
/// what it means; those of objects inside it with their names in full.
fn fields(schema: &Value, object: &Value, prefix: &str, rows: &mut Vec<String>) {
    let target = |field: &Value| match field["$ref"].as_str() {
        Some(reference) => schema.pointer(&reference[1..]).unwrap().clone(),
        None => field.clone(),
    };
    for (name, field) in object["properties"].as_object().unwrap() {
        let path = format!("{prefix}{name}");
        let object = target(field);
        let items = target(&object["items"]);
        let (kind, inside) = if object["properties"].is_object() {
            ("object", Some(&object))
        } else if items["properties"].is_object() {
            ("list of objects", Some(&items))
        } else {
            let kind = match (object["type"].as_str(), object["format"].as_str()) {
                (_, Some("date-time")) => "time",
                (_, Some("uuid")) => "UUID",
                (_, Some("ip")) => "address",
                (Some("string"), _) => "text",
                (Some("integer"), _) => "number",
                (Some("boolean"), _) => "flag",
                (Some("array"), _) if items["format"] == "ip" => "list of addresses",
                (Some("array"), _) => "list of texts",
                other => panic!("{path}: {other:?}"),
            };
            (kind, None)
        };
        // An object is explained by its fields, if by nothing else.
        match field["description"]
            .as_str()
            .or(object["description"].as_str())
        {
            Some(meaning) => rows.push(format!("| `{path}` | {kind} | {meaning} |")),
            None => assert!(inside.is_some(), "{path} is not explained"),
        }
        if let Some(object) = inside {
            fields(schema, object, &format!("{path}."), rows);
        }
    }
}

#[test]
fn every_field_is_explained_in_its_documentation() {
    let schema = json::schema();
    let mut rows = Vec::new();
    fields(&schema, &schema, "", &mut rows);
    assert!(rows.len() > 100, "{rows:#?}");
    let page = include_str!("../../docs/events.md");
    let section = page
        .split("\n## ")
        .find(|part| part.starts_with("Fields\n"));
    let explained: Vec<_> = section
        .into_iter()
        .flat_map(str::lines)
        .filter(|line| line.starts_with("| `"))
        .collect();
    assert_eq!(
        explained.join("\n"),
        rows.join("\n"),
        "put the second of these into the section Fields of docs/events.md"
    );
}

#[test]
fn every_key_of_cef_and_syslog_is_in_the_documentation() {
    let page = include_str!("../../docs/events.md");
    let files = [
        include_str!("golden/reached.txt"),
        include_str!("golden/monitored.txt"),
        include_str!("golden/cgroup.txt"),
        include_str!("golden/cleared.txt"),
        include_str!("golden/lost.txt"),
    ];
    for line in files.iter().flat_map(|lines| lines.lines()) {
        let fields = match line.chars().next() {
            Some('C') => line.rsplit('|').next().unwrap(),
            Some('<') => line.split_once('[').unwrap().1,
            _ => continue,
        };
        for word in fields.split(' ') {
            let Some((key, _)) = word.split_once('=') else {
                continue;
            };
            let is_key = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let is_label = key.ends_with("Label") || key.starts_with("total_");
            assert!(
                !is_key || is_label || page.contains(&format!("`{key}`")),
                "docs/events.md lacks `{key}`"
            );
        }
    }
}
