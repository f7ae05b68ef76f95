//! The configuration file: with it `throttle run` needs no flags, and flags win
//! over it.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, and says so by panicking"
)]

use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use throttle_tests::{
    Lab, Namespace, Throttle, addresses::dead, holds_for, hooks::HookState, process::Finished,
    throttle_cmd::Running, wait_for,
};

const SOON: Duration = Duration::from_secs(10);
const NOBODY: u32 = 65_534;

/// A folder that any user can look into, gone when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("throttle-config-{}-{count}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    /// A file in it, by its path.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The command, where any user can reach it.
    fn command(&self) -> PathBuf {
        let path = self.0.join("throttle");
        fs::copy(Throttle::path(), &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is in a folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A namespace with a device.
fn namespace() -> Namespace {
    let namespace = Namespace::new("config");
    namespace.ip("link add name eth0 up type veth peer name eth0-peer");
    namespace
}

/// `throttle run` with these arguments, which does not stay.
#[track_caller]
fn ends(namespace: &Namespace, args: &[&str]) -> Finished {
    let before = HookState::of(namespace);
    let args = [&["run"], args].concat();
    let finished = Throttle::command(namespace, &args).output();
    assert_eq!(HookState::of(namespace), before, "{args:?} attached");
    finished
}

#[track_caller]
fn assert_refused(finished: &Finished, code: i32, parts: &[&str]) {
    let Finished { line, stderr, .. } = finished;
    assert_eq!(finished.code(), Some(code), "{line}\n{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{line}: no {part:?} in:\n{stderr}");
    }
    assert_eq!(finished.stdout, "", "{line}");
}

/// The limit and the rate that the event tells that this many attempts to the
/// dead make.
#[track_caller]
fn reached(lab: &Lab, throttle: &Running, attempts: u32) -> (Value, Value) {
    let _attempts = lab.dial((0..attempts).map(dead));
    let event = throttle.wait_event("the limit is reached", SOON, |event| {
        event["event"]["code"] == "4226"
    });
    let throttle = &event["throttle"];
    (throttle["limit"].clone(), throttle["rate"].clone())
}

#[test]
fn a_file_alone_is_enough() {
    let (lab, folder) = (Lab::plain(), Folder::new());
    let text = format!(
        "interface = [\"{}\"]\nlimit = 3\nrate = \"7/m\"",
        lab.device
    );
    let file = folder.file("throttle.toml", &text);
    let throttle = Throttle::start(&lab.client, &["--config", &file]);
    assert_eq!(reached(&lab, &throttle, 5), (3.into(), "7/m".into()));
}

#[test]
fn flags_win_over_a_file_and_what_they_do_not_say_is_in_it() {
    let (lab, folder) = (Lab::plain(), Folder::new());
    let text = "interface = \"none-such\"\nlimit = 3\nrate = \"7/m\"";
    let file = folder.file("throttle.toml", text);
    let throttle = lab.throttle(&["--config", &file, "--limit=5"]);
    assert_eq!(reached(&lab, &throttle, 8), (5.into(), "7/m".into()));
}

#[test]
fn a_file_with_a_mistake_is_refused_with_its_place() {
    let (namespace, folder) = (namespace(), Folder::new());
    for (text, parts) in [
        (
            "interface = \"eth0\"\n\nlimti = 3\n",
            &["unknown.toml:3:1: ", "'limti'", "did you mean 'limit'?"][..],
        ),
        (
            "interface = \"eth0\"\nrate = \"fast\"",
            &["unknown.toml:2:8: rate: ", "10/s"],
        ),
        (
            "interface = \"eth0\"\nlimit = 3\nlimit = 3",
            &["unknown.toml:3:1: ", "twice"],
        ),
        ("limit = 3", &["no interface", "-i IFACE", "interface = "]),
        (
            "interface = \"eth0\"\nrate = \"100000/s\"\nmax-delay = \"1h\"",
            &["256 MiB", "lower limit or rate"],
        ),
        ("", &["unknown.toml", "empty"]),
    ] {
        let file = folder.file("unknown.toml", text);
        assert_refused(&ends(&namespace, &["--config", &file]), 2, parts);
    }
    // Flags do not make up for a mistake.
    let file = folder.file("unknown.toml", "limit = 0");
    let args = ["--config", &file, "-i", "eth0", "--limit", "5"];
    assert_refused(
        &ends(&namespace, &args),
        2,
        &[":1:9: limit: ", "from 1 to 1000000"],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_refused_with_why() {
    let (namespace, folder) = (namespace(), Folder::new());
    let here = folder.0.to_str().unwrap();
    let none = format!("{here}/none.toml");
    for (file, part) in [(here, "a directory"), (&none, "no such file")] {
        assert_refused(&ends(&namespace, &["--config", file]), 2, &[file, part]);
    }
    let file = folder.file("secret.toml", "interface = \"eth0\"");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let finished = namespace
        .program(folder.command())
        .args(["run", "--config", &file])
        .as_user(NOBODY)
        .output();
    assert_refused(&finished, 3, &[&file, "Permission denied"]);
}

#[test]
fn what_is_printed_is_read_back_as_the_same() {
    let (namespace, folder) = (namespace(), Folder::new());
    let text = "interface = [\"eth0\", \"veth*\"]\nlimit = 3\nexempt = \"10.0.0.0/8\"\nkeep = true";
    let file = folder.file("throttle.toml", text);
    let args = [
        "--config",
        &file,
        "--limit=7",
        "--keep=false",
        "-o",
        "cef",
        "--print-config",
    ];
    let printed = ends(&namespace, &args).expect_success().stdout;
    for line in [
        "interface = [\"eth0\", \"veth*\"]",
        "limit = 7",
        "rate = \"10/s\"",
        "exempt = [\"10.0.0.0/8\"]",
        "keep = false",
        "output = \"cef\"",
    ] {
        assert!(printed.lines().any(|l| l == line), "no {line}:\n{printed}");
    }
    let again = folder.file("printed.toml", &printed);
    let finished = ends(&namespace, &["--config", &again, "--print-config"]);
    assert_eq!(finished.expect_success().stdout, printed);
}

#[test]
fn the_file_that_comes_with_it_is_the_defaults() {
    let namespace = namespace();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/throttle.toml");
    let example = example.to_str().unwrap();
    let with = ends(&namespace, &["--config", example, "--print-config"]);
    let without = ends(&namespace, &["--print-config"]);
    assert_eq!(
        with.expect_success().stdout,
        without.expect_success().stdout
    );
    let finished = ends(&namespace, &["--config", example]);
    assert_refused(&finished, 2, &["no interface"]);
}

#[test]
fn anybody_may_print_a_configuration() {
    let (namespace, folder) = (namespace(), Folder::new());
    let finished = namespace
        .program(folder.command())
        .args(["run", "-i", "eth0", "--print-config"])
        .as_user(NOBODY)
        .output();
    let printed = finished.expect_success().stdout;
    assert!(printed.contains("\ninterface = [\"eth0\"]\n"), "{printed}");
}

/// Has it read its file again, and waits for what it says of that.
#[track_caller]
fn reload(running: &Running, says: &str) -> String {
    let before = running.log().len();
    running.signal(Signal::SIGHUP);
    wait_for(&format!("{says:?} in the log"), SOON, || {
        running
            .log()
            .into_iter()
            .skip(before)
            .find(|line| line.contains(says))
    })
}

#[test]
fn at_sighup_the_file_is_read_again_and_is_in_force_at_once() {
    let lab = Lab::plain();
    lab.client.ip("link add second type veth peer name third");
    let folder = Folder::new();
    let text = "interface = 'eth0'\nlimit = 5\nrate = '1/m'\nmax-delay = '1h'\n";
    let path = folder.file("throttle.toml", text);
    let mut running = Throttle::start(&lab.client, &["--config", &path]);
    let capture = lab.capture();
    let attempts = lab.dial((0..30).map(dead));
    capture.wait_for_attempts(5, SOON);

    folder.file("throttle.toml", &text.replace("limit = 5", "limit = 12"));
    reload(&running, "in force: limit");
    capture.wait_for_attempts(12, SOON);
    // Interfaces too.
    let more = text
        .replace("'eth0'", "['eth0', 'sec*']")
        .replace("limit = 5", "limit = 12");
    folder.file("throttle.toml", &more);
    reload(&running, "second has appeared");
    folder.file("throttle.toml", &text.replace("limit = 5", "limit = 12"));
    reload(&running, "detached from second");
    let hooks = HookState::of(&lab.client);
    assert_eq!(hooks.tcx.len() + hooks.filters.len(), 2, "{hooks:?}");
    reload(&running, "no change");

    // What cannot be, or not without a restart, changes nothing.
    for (change, says) in [
        ("limit = 'many'", "limit"),
        ("limti = 7", "did you mean 'limit'"),
        ("limit = 20\ndirection = 'ingress'", "direction"),
        ("limit = 20\ninterface = 'nonesuch'", "nonesuch"),
        ("limit = 900000", "tables"),
    ] {
        let rest = text.lines().filter(|line| {
            let key = |line: &str| line.split(' ').next().unwrap().to_owned();
            !change.lines().any(|changed| key(changed) == key(line)) && key(line) != "limit"
        });
        let rest: Vec<&str> = rest.collect();
        folder.file("throttle.toml", &format!("{}\n{change}\n", rest.join("\n")));
        let said = reload(&running, "nothing changes");
        let log = running.log().join("\n");
        assert!(log.contains(says), "{change}: {said}");
    }
    fs::remove_file(&path).unwrap();
    reload(&running, "nothing changes");
    holds_for("nobody else gets out", Duration::from_secs(1), || {
        capture.attempts() == 12
    });
    assert!(running.is_running());
    assert!(attempts.failed().is_empty());
    running.stop().expect_success();
}

#[test]
fn without_a_file_sighup_ends_it() {
    let namespace = namespace();
    let running = Throttle::start(&namespace, &["-i", "eth0"]);
    running.signal(Signal::SIGHUP);
    running.wait(SOON).expect_success();
}
