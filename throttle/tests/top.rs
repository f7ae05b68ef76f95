//! What `throttle top` shows, compared with files, and what its keys do.
//!
//! `UPDATE_EXPECT=1 cargo test -p throttle --test top` accepts a change.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::{process::Command, sync::Arc, time::Duration};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use expect_test::{ExpectFile, expect_file};
use proptest::prelude::*;
use ratatui::{Terminal, backend::TestBackend};
use throttle::{
    Error,
    event::{Cgroup, Container, Parent, Process, Scope, User, Who},
    instance::Daemon,
    name::Name,
    settings::{self, Mode, Rate},
    top::{
        once,
        order::{Filter, Order, Sort, chosen},
        rows::{Key, Movement, Owner, Row, Snapshot, State, Throttle},
        screen,
        view::{Action, View},
    },
};
use throttle_common::{
    process::Process as Known,
    record::{Tallies, Tally},
    subject::{Subject, SubjectKind},
};

const NOW_NS: u64 = 1_790_000_000_123_456_789;

fn tallies(counts: &[(Tally, u64)]) -> Tallies {
    let mut tallies = Tallies::default();
    for (tally, count) in counts {
        tallies.0[*tally as usize] = *count;
    }
    tallies
}

fn state() -> State {
    let counts = [
        (Tally::Attempts, 204),
        (Tally::Deferred, 180),
        (Tally::Released, 20),
        (Tally::Answered, 6),
    ];
    State {
        mode: Mode::Enforce,
        limit: 50,
        rate: Rate::per_second(10),
        scope: settings::Scope::Interface,
        is_stalled: false,
        scopes: 1,
        full_scopes: 1,
        half_open: 50,
        queued: 612,
        tallies: tallies(&[(Tally::Attempts, 10_000), (Tally::Deferred, 9_000)]),
        moved: Some(Movement {
            tallies: tallies(&counts),
            span: Duration::from_secs(2),
        }),
        is_whole: true,
    }
}

fn throttle(name: &str) -> Throttle {
    Throttle {
        name: name.into(),
        daemon: Some(Daemon {
            pid: 321,
            version: "0.1.0".into(),
            started_ns: NOW_NS,
            keep: false,
            pins: None,
        }),
        state: Ok(state()),
    }
}

fn user(id: u32, name: &str) -> User {
    User {
        id,
        name: Some(name.into()),
    }
}

fn row(pid: u32, name: &str, counts: (u64, u64), seconds: u64) -> Row {
    let known = Known {
        tgid: pid,
        tid: pid,
        start_ns: 77,
        ..Known::default()
    };
    let scope = Subject::numbered(SubjectKind::Interface, 2);
    Row {
        key: Key {
            throttle: Arc::from("eth0"),
            scope,
            owner: known.subject(),
        },
        throttle: "eth0".into(),
        scope: Scope::new(&scope, Some("eth0".into())),
        owner: Owner::Process {
            pid,
            start_ns: 77,
            name: Name::new(name),
            user: Some(user(1_000, "app")),
        },
        cgroup: None,
        known,
        half_open: counts.0,
        deferred: counts.1,
        destinations: usize::try_from(counts.0 + counts.1).unwrap(),
        oldest: Duration::from_millis(seconds * 1_000 + 234),
        source: "10.77.0.1:40000".parse().unwrap(),
        destination: format!("198.51.100.{}:443", pid % 254 + 1).parse().unwrap(),
        who: None,
    }
}

/// A program in a container, of which all is known.
fn crawler() -> Row {
    let cgroup = Cgroup {
        id: 12_345,
        path: Some("/kubepods.slice/cri-containerd.scope".into()),
        container: Some(Container {
            id: "84e9ffffe97fea4c5a0f01d401611cbafbf7e559fc6190ed74abfc2b25e889d4".into(),
            runtime: Some("containerd"),
            pod_uid: None,
        }),
    };
    let process = Process {
        pid: 4_242,
        thread: None,
        name: "crawler".into(),
        executable: Some("/usr/bin/crawler".into()),
        args: None,
        start_ns: Some(NOW_NS - 3_700_000_000_000),
        entity_id: "11111111-4242-7".into(),
        user: user(1_000, "app"),
        parent: Some(Parent {
            pid: 1,
            name: "sh".into(),
        }),
        cgroup: Some(cgroup.clone()),
        has_exited: false,
    };
    Row {
        cgroup: Some(cgroup),
        who: Some(Who::Process(Box::new(process))),
        ..row(4_242, "crawler", (46, 600), 58)
    }
}

/// A control group in which somebody makes packets by himself.
fn scanners() -> Row {
    let owner = Subject::numbered(SubjectKind::Cgroup, 77);
    let cgroup = Cgroup {
        id: 77,
        path: Some("/user.slice/session-1.scope".into()),
        container: None,
    };
    let Some(Who::Process(process)) = crawler().who else {
        panic!("no process")
    };
    let nmap = Process {
        pid: 11,
        name: "nmap".into(),
        ..*process
    };
    let one = row(0, "", (3, 8), 5);
    Row {
        key: Key { owner, ..one.key },
        owner: Owner::Cgroup,
        cgroup: Some(cgroup.clone()),
        known: Known::default(),
        who: Some(Who::Cgroup {
            cgroup,
            candidates: vec![nmap],
        }),
        ..one
    }
}

/// Another machine.
fn machine() -> Row {
    let mut address = [0; 16];
    address[10..].copy_from_slice(&[0xff, 0xff, 10, 76, 0, 2]);
    let one = row(0, "", (1, 0), 0);
    Row {
        key: Key {
            owner: Subject::source(address),
            ..one.key
        },
        owner: Owner::Source("10.76.0.2".parse().unwrap()),
        known: Known::default(),
        source: "10.76.0.2:40000".parse().unwrap(),
        destination: "[2001:db8:dead::1:2]:1024".parse().unwrap(),
        who: None,
        ..one
    }
}

/// A program whose name is chosen to do harm.
fn hostile() -> Row {
    Row {
        cgroup: Some(Cgroup {
            id: 5,
            path: Some(Name::new("/a\u{202e}b\n\x1b]0;title\x07")),
            container: None,
        }),
        ..row(666, "\x1b[2J\r\nroot", (2, 0), 90_000)
    }
}

fn snapshot(rows: Vec<Row>) -> Snapshot {
    Snapshot {
        at_ns: NOW_NS,
        throttles: vec![throttle("eth0")],
        others: Vec::new(),
        rows,
    }
}

fn all() -> Snapshot {
    snapshot(vec![hostile(), machine(), scanners(), crawler()])
}

fn view(snapshot: Snapshot) -> View {
    View::new(snapshot, Order::default(), "", Duration::from_secs(1), None)
}

fn press(view: &mut View, code: KeyCode) -> Action {
    view.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn type_in(view: &mut View, text: &str) -> Action {
    let mut last = Action::None;
    for c in text.chars() {
        last = press(view, KeyCode::Char(c));
    }
    last
}

fn control(view: &mut View, c: char) -> Action {
    view.key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL))
}

/// The view as it is drawn on a terminal of this size, as text.
fn drawn(view: &mut View, columns: u16, lines: u16) -> String {
    view.resize(columns, lines);
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal.draw(|frame| screen::draw(view, frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..lines {
        let mut line = String::new();
        for x in 0..columns {
            line += buffer[(x, y)].symbol();
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it reads better where it is called"
)]
fn check(mut view: View, columns: u16, lines: u16, expected: ExpectFile) {
    expected.assert_eq(&drawn(&mut view, columns, lines));
}

fn names(view: &View) -> Vec<String> {
    view.in_sight()
        .map(|row| row.program().to_string())
        .collect()
}

fn sorted(snapshot: &Snapshot) -> Vec<&Row> {
    chosen(&snapshot.rows, Order::default(), &Filter::default())
        .into_iter()
        .map(|index| &snapshot.rows[index])
        .collect()
}

#[test]
fn one_look_as_text() {
    let snapshot = all();
    expect_file!["golden/top.txt"].assert_eq(&once::text(&snapshot, &sorted(&snapshot)));
}

#[test]
fn one_look_as_json() {
    let snapshot = all();
    let json = once::json(&snapshot, &sorted(&snapshot));
    assert_eq!(json.lines().count(), 1, "one object a line");
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let pretty = serde_json::to_string_pretty(&value).unwrap() + "\n";
    expect_file!["golden/top.json"].assert_eq(&pretty);
}

#[test]
fn a_throttle_with_a_trouble_is_marked() {
    let mut snapshot = snapshot(Vec::new());
    snapshot.throttles = vec![
        Throttle {
            daemon: None,
            ..throttle("left")
        },
        Throttle {
            state: Ok(State {
                is_stalled: true,
                is_whole: false,
                mode: Mode::Monitor,
                ..state()
            }),
            ..throttle("stopped")
        },
        Throttle {
            state: Err(Error::Refused("no \x1bway\nin".into())),
            ..throttle("closed")
        },
    ];
    expect_file!["golden/top-troubles.txt"].assert_eq(&once::text(&snapshot, &[]));
    let json: serde_json::Value = serde_json::from_str(&once::json(&snapshot, &[])).unwrap();
    let responds = |n: usize| json["throttles"][n]["daemon_responds"].as_bool();
    assert_eq!([responds(0), responds(1)], [Some(false); 2]);
    assert_eq!(json["throttles"][0]["pid"], serde_json::Value::Null);
    assert_eq!(json["throttles"][2]["error"], "no \u{1b}way\nin");
    check(
        view(snapshot),
        100,
        12,
        expect_file!["golden/top-live-troubles.txt"],
    );
}

#[test]
fn the_live_table() {
    check(view(all()), 120, 16, expect_file!["golden/top-live.txt"]);
}

#[test]
fn a_row_that_is_selected_is_told_of() {
    let mut view = view(all());
    press(&mut view, KeyCode::Down);
    check(view, 100, 16, expect_file!["golden/top-live-selected.txt"]);
}

#[test]
fn a_small_terminal() {
    check(
        view(all()),
        20,
        5,
        expect_file!["golden/top-live-small.txt"],
    );
}

#[test]
fn a_question_on_a_small_terminal() {
    let mut view = view(all());
    drawn(&mut view, 20, 5);
    press(&mut view, KeyCode::Down);
    press(&mut view, KeyCode::Char('e'));
    check(
        view,
        20,
        5,
        expect_file!["golden/top-live-small-question.txt"],
    );
}

#[test]
fn the_page_of_keys() {
    let mut view = view(all());
    press(&mut view, KeyCode::Char('?'));
    check(view, 80, 24, expect_file!["golden/top-live-help.txt"]);
}

#[test]
fn a_question_before_a_program_is_ended() {
    let mut view = view(all());
    press(&mut view, KeyCode::Down);
    press(&mut view, KeyCode::Char('e'));
    check(view, 80, 16, expect_file!["golden/top-live-question.txt"]);
}

#[test]
fn a_filter_that_is_typed() {
    let mut view = view(all());
    type_in(&mut view, "/SESSION");
    check(view, 100, 12, expect_file!["golden/top-live-filter.txt"]);
}

#[test]
fn a_table_of_nothing_says_why() {
    let text = drawn(&mut view(snapshot(Vec::new())), 80, 12);
    assert!(text.contains("nobody has unanswered attempts"), "{text}");
    let mut none = snapshot(Vec::new());
    none.throttles.clear();
    let text = drawn(&mut view(none), 80, 12);
    assert!(
        text.contains("no throttle in this network namespace"),
        "{text}"
    );
    let mut none = snapshot(Vec::new());
    none.throttles.clear();
    let second = Duration::from_secs(1);
    let mut only = View::new(none, Order::default(), "", second, Some("a\x1bb"));
    let text = drawn(&mut only, 80, 12);
    assert!(text.contains(r"no throttle a\x1bb in"), "{text}");
    let mut filtered = view(all());
    type_in(&mut filtered, "/nowhere");
    let text = drawn(&mut filtered, 80, 12);
    assert!(
        text.contains("none of 4 rows has \"nowhere\" in it"),
        "{text}"
    );
}

#[test]
fn no_byte_of_a_hostile_name_reaches_the_terminal() {
    let snapshot = all();
    let text = once::text(&snapshot, &sorted(&snapshot));
    let screen = drawn(&mut view(all()), 200, 20);
    for shown in [text, screen] {
        let is_harmless = |c: char| c == '\n' || !c.is_control() && c != '\u{202e}';
        assert!(shown.chars().all(is_harmless), "{shown:?}");
        assert!(shown.contains(r"\x1b[2J\x0d\x0aroot"), "{shown}");
    }
}

#[test]
fn rows_are_sorted_by_what_is_asked_for() {
    let mut view = view(all());
    let by = |view: &mut View, c: char| {
        press(view, KeyCode::Char(c));
        let first = view.in_sight().next().unwrap();
        (first.program().to_string(), first.attempts())
    };
    let hostile = r"\x1b[2J\x0d\x0aroot".to_owned();
    assert_eq!(by(&mut view, 'o'), (hostile.clone(), 2));
    assert_eq!(by(&mut view, 'h'), ("crawler".into(), 646));
    assert_eq!(by(&mut view, 'd'), ("crawler".into(), 646));
    assert_eq!(by(&mut view, 'n'), ("crawler".into(), 646));
    assert_eq!(by(&mut view, 'i'), (hostile.clone(), 2));
    assert_eq!(by(&mut view, 'm'), (hostile.clone(), 2));
    assert_eq!(by(&mut view, 'u').0, "crawler");
    assert_eq!(by(&mut view, 'a').0, "crawler");
    assert_eq!(by(&mut view, 'r'), ("10.76.0.2".into(), 1));
}

#[test]
fn one_key_leads_through_all_orders() {
    let mut view = view(all());
    let mut seen = Vec::new();
    for _ in Sort::ALL {
        press(&mut view, KeyCode::Char('s'));
        let text = drawn(&mut view, 120, 16);
        seen.push(Sort::ALL.into_iter().find(|sort| {
            text.lines()
                .next()
                .unwrap()
                .contains(&format!("by {}", sort.word()))
        }));
    }
    let mut expected: Vec<_> = Sort::ALL.into_iter().map(Some).collect();
    expected.rotate_left(1);
    assert_eq!(seen, expected);
}

#[test]
fn a_filter_looks_at_all_that_is_shown_of_a_row() {
    let rows = all().rows;
    let fitting = |text: &str| -> Vec<String> {
        let fitting = chosen(&rows, Order::default(), &Filter::new(text));
        let names = fitting.iter().map(|index| rows[*index].program());
        names.map(|name| name.to_string()).collect()
    };
    assert_eq!(fitting("CRAWL"), ["crawler"]);
    assert_eq!(fitting("4242"), ["crawler"]);
    assert_eq!(fitting("84e9ff"), ["crawler"]);
    assert_eq!(fitting("/usr/bin"), ["crawler"]);
    assert_eq!(fitting("session-1"), ["unknown"]);
    assert_eq!(fitting("2001:db8:dead"), ["10.76.0.2"]);
    assert_eq!(fitting("interface eth0").len(), 4);
    assert_eq!(fitting("").len(), 4);
    assert!(fitting("nothing like it").is_empty());
}

#[test]
fn the_filter_is_typed_corrected_kept_and_cleared() {
    let mut view = view(all());
    drawn(&mut view, 100, 20);
    type_in(&mut view, "/crawlx");
    assert!(names(&view).is_empty());
    press(&mut view, KeyCode::Backspace);
    assert_eq!(names(&view), ["crawler"]);
    // While it is typed, letters are no commands.
    assert_eq!(press(&mut view, KeyCode::Char('q')), Action::None);
    press(&mut view, KeyCode::Backspace);
    press(&mut view, KeyCode::Enter);
    assert_eq!(names(&view), ["crawler"]);
    assert_eq!(press(&mut view, KeyCode::Char('q')), Action::Quit);
    press(&mut view, KeyCode::Esc);
    assert_eq!(names(&view).len(), 4);
}

#[test]
fn the_selection_stays_on_its_owner() {
    let mut view = view(all());
    drawn(&mut view, 100, 20);
    assert!(view.selection().is_none());
    press(&mut view, KeyCode::Down);
    press(&mut view, KeyCode::Down);
    assert_eq!(view.selection().unwrap().program().as_str(), "unknown");
    // It has become the first.
    let mut more = scanners();
    more.deferred = 10_000;
    view.show(snapshot(vec![crawler(), machine(), more]));
    assert_eq!(view.selection().unwrap().deferred, 10_000);
    press(&mut view, KeyCode::Char('r'));
    assert_eq!(view.selection().unwrap().deferred, 10_000);
    // It is gone: nothing else takes its place.
    view.show(snapshot(vec![crawler(), machine()]));
    assert!(view.selection().is_none());
    assert_eq!(press(&mut view, KeyCode::Char('e')), Action::None);
    let text = drawn(&mut view, 100, 20);
    assert!(text.contains("no unanswered attempts any more"), "{text}");
    // It is there again.
    view.show(all());
    assert_eq!(view.selection().unwrap().program().as_str(), "unknown");
    press(&mut view, KeyCode::Esc);
    assert!(view.selection().is_none());
}

#[test]
fn a_program_is_ended_only_after_a_yes() {
    let mut view = view(all());
    drawn(&mut view, 100, 20);
    assert_eq!(
        type_in(&mut view, "ey"),
        Action::None,
        "nothing is selected"
    );
    press(&mut view, KeyCode::Down);
    for no in [
        KeyCode::Char('n'),
        KeyCode::Enter,
        KeyCode::Esc,
        KeyCode::Char('e'),
    ] {
        press(&mut view, KeyCode::Char('e'));
        assert_eq!(press(&mut view, no), Action::None);
        assert_eq!(press(&mut view, KeyCode::Char('y')), Action::None);
    }
    press(&mut view, KeyCode::Char('e'));
    let Action::End(target) = press(&mut view, KeyCode::Char('y')) else {
        panic!("not ended")
    };
    assert_eq!(
        (target.pid, target.start_ns, target.attempts),
        (4_242, 77, 646)
    );
}

#[test]
fn the_question_is_about_the_program_that_it_names() {
    let mut view = view(all());
    press(&mut view, KeyCode::Down);
    press(&mut view, KeyCode::Char('e'));
    // Meanwhile another one takes its row.
    let other = row(999, "other", (9_999, 0), 1);
    view.show(snapshot(vec![other, machine()]));
    let Action::End(target) = press(&mut view, KeyCode::Char('y')) else {
        panic!("not ended")
    };
    assert_eq!((target.pid, target.name.as_str()), (4_242, "crawler"));
}

#[test]
fn what_is_no_living_process_is_not_ended() {
    let mut view = view(snapshot(vec![scanners()]));
    press(&mut view, KeyCode::Down);
    press(&mut view, KeyCode::Char('e'));
    assert_eq!(press(&mut view, KeyCode::Char('y')), Action::None);
    let mut ended = crawler();
    if let Some(Who::Process(process)) = &mut ended.who {
        process.has_exited = true;
    }
    view.show(snapshot(vec![ended]));
    press(&mut view, KeyCode::Home);
    press(&mut view, KeyCode::Char('e'));
    assert_eq!(press(&mut view, KeyCode::Char('y')), Action::None);
}

#[test]
fn what_was_found_out_about_an_owner_stays_with_it() {
    let mut view = view(snapshot(vec![row(4_242, "crawler", (1, 0), 1)]));
    let known = crawler();
    view.learn(vec![(known.key.clone(), known.who.clone().unwrap())]);
    view.show(snapshot(vec![row(4_242, "crawler", (2, 0), 2)]));
    assert_eq!(view.in_sight().next().unwrap().who, known.who);
    view.show(snapshot(Vec::new()));
    view.show(snapshot(vec![row(4_242, "crawler", (2, 0), 2)]));
    assert_eq!(view.in_sight().next().unwrap().who, None);
}

#[test]
fn a_pause_ends_with_a_look() {
    let mut view = view(all());
    assert_eq!(press(&mut view, KeyCode::Char('p')), Action::None);
    assert!(!view.is_live());
    assert!(drawn(&mut view, 100, 20).contains("PAUSED"));
    assert_eq!(press(&mut view, KeyCode::Char(' ')), Action::Look);
    assert!(view.is_live());
}

#[test]
fn a_look_that_failed_is_told_and_the_table_stays() {
    let mut view = view(all());
    view.fail("open \x1bmap: no\nand more");
    let text = drawn(&mut view, 100, 20);
    assert!(
        text.contains(r"the last look failed: open \x1bmap: no"),
        "{text}"
    );
    assert!(text.contains("crawler"));
    view.show(all());
    assert!(!drawn(&mut view, 100, 20).contains("failed"));
}

#[test]
fn control_c_quits_wherever_one_is() {
    for before in ["", "/abc", "?", "e"] {
        let mut view = view(all());
        press(&mut view, KeyCode::Down);
        type_in(&mut view, before);
        assert_eq!(control(&mut view, 'c'), Action::Quit, "{before:?}");
    }
    assert_eq!(control(&mut view(all()), 'z'), Action::Suspend);
}

#[test]
fn ten_thousand_rows_are_paged_through() {
    let rows = (1..=10_000).map(|n| row(n, "many", (u64::from(n), 0), 1));
    let mut view = view(snapshot(rows.collect()));
    drawn(&mut view, 80, 24);
    let page = view.in_sight().count();
    assert!((10..24).contains(&page), "{page}");
    let pid = |view: &View| view.selection().unwrap().pid().unwrap();
    press(&mut view, KeyCode::PageDown);
    let first = pid(&view);
    press(&mut view, KeyCode::PageDown);
    assert!(pid(&view) < first);
    press(&mut view, KeyCode::End);
    assert_eq!(pid(&view), 1);
    assert!(view.in_sight().any(|row| row.pid() == Some(1)));
    press(&mut view, KeyCode::Up);
    assert_eq!(pid(&view), 2);
    press(&mut view, KeyCode::Home);
    assert_eq!(pid(&view), 10_000);
    press(&mut view, KeyCode::Up);
    assert_eq!(pid(&view), 10_000);
    // The sum is of all of them.
    assert!(drawn(&mut view, 80, 24).contains("50005000 half-open"));
}

#[test]
fn the_help_of_top() {
    let output = Command::new(env!("CARGO_BIN_EXE_throttle"))
        .args(["top", "--help"])
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    expect_file!["golden/help-top.txt"].assert_eq(&String::from_utf8(output.stdout).unwrap());
}

#[test]
fn a_bad_interval_says_what_to_write() {
    for text in ["0s", "99ms", "61s", "1", "", "x"] {
        let output = Command::new(env!("CARGO_BIN_EXE_throttle"))
            .args(["top", "--interval", text])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("from 100ms to 60s"), "{said}");
    }
}

fn any_key() -> impl Strategy<Value = KeyEvent> {
    let code = prop_oneof![
        4 => any::<char>().prop_map(KeyCode::Char),
        8 => prop::sample::select("qjkgG/ prsahdonimue?yc".chars().collect::<Vec<_>>())
            .prop_map(KeyCode::Char),
        4 => prop::sample::select(vec![
            KeyCode::Up, KeyCode::Down, KeyCode::PageUp, KeyCode::PageDown, KeyCode::Home,
            KeyCode::End, KeyCode::Esc, KeyCode::Enter, KeyCode::Backspace, KeyCode::Delete,
        ]),
    ];
    (code, any::<bool>()).prop_map(|(code, is_control)| {
        let modifiers = if is_control {
            KeyModifiers::CONTROL
        } else {
            KeyModifiers::NONE
        };
        KeyEvent::new(code, modifiers)
    })
}

proptest! {
    /// Whatever is typed, whatever comes, however small the terminal is.
    #[test]
    fn nothing_makes_it_panic(
        steps in prop::collection::vec((any_key(), 0u16..90, 0u16..30, 0usize..30), 0..60),
    ) {
        let mut view = view(all());
        for (key, columns, lines, rows) in steps {
            view.resize(columns, lines);
            view.key(key);
            let shown = screen::lines(&view);
            prop_assert_eq!(shown.len(), usize::from(lines));
            prop_assert!(shown.iter().all(|line| line.width() <= usize::from(columns)));
            let selected = view.selection().map(|row| row.key.clone());
            if let (Some(selected), true) = (selected, view.in_sight().count() > 0) {
                prop_assert!(view.in_sight().any(|row| row.key == selected));
            }
            if rows < 20 {
                let names = (0..rows).map(|n| row(u32::try_from(n).unwrap() + 1, "日本\u{301}", (1, 2), 3));
                view.show(snapshot(names.chain(all().rows).collect()));
            }
            view.say("a \x1b note");
        }
    }
}
