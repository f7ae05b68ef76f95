//! The Debian package: installs, runs, upgrades, and leaves nothing. Only
//! `cargo xtask test package` runs this, since it makes the package first.
//!
//! It is installed on a copy of this machine's files. No systemd runs there, so
//! units are not started.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};
use throttle_tests::{
    Lab, Machine, Namespace, Throttle, addresses::dead, clients, process::Finished,
    throttle_cmd::Running,
};

const SOON: Duration = Duration::from_secs(10);
const CONFIGURATION: &str = "/etc/throttle/throttle.toml";
const UNIT: &str = "/usr/lib/systemd/system/throttle.service";
/// Where it lies on the copy.
const DEB: &str = "/tmp/throttle.deb";
/// What dpkg, and what it triggers, writes down for itself.
const BOOKS: [&str; 3] = ["/var/lib/dpkg", "/var/log/dpkg.log", "/var/cache/man"];

/// Where deb-systemd-helper notes which links a unit would have.
const LINKS: &str = "/var/lib/systemd/deb-systemd-helper-enabled";

/// A copy of this machine, on which nothing is installed yet.
struct Host {
    machine: Machine,
    namespace: Namespace,
}

impl Host {
    /// None if this is no Debian.
    fn new() -> Option<Self> {
        if !clients::is_installed("dpkg") {
            eprintln!("skipped: dpkg is not installed");
            return None;
        }
        let package = env::var_os("THROTTLE_DEB")
            .expect("THROTTLE_DEB names the package: run `cargo xtask test package`");
        let host = Self {
            machine: Machine::new(),
            namespace: Namespace::new("host"),
        };
        assert!(
            !host.machine.has("/usr/bin/throttle"),
            "throttle is installed on this machine already"
        );
        host.machine.run(keep_man_pages);
        host.machine.write(DEB, fs::read(package).unwrap());
        Some(host)
    }

    #[track_caller]
    fn installed() -> Option<Self> {
        let host = Self::new()?;
        host.dpkg(&["--install", DEB]);
        Some(host)
    }

    fn output(&self, program: &str, args: &[&str]) -> Finished {
        self.machine
            .program(&self.namespace, program)
            .args(args)
            .output()
    }

    #[track_caller]
    fn succeeds(&self, program: &str, args: &[&str]) -> String {
        self.output(program, args).expect_success().stdout
    }

    #[track_caller]
    fn dpkg(&self, args: &[&str]) {
        self.succeeds("dpkg", args);
    }

    /// What has changed, but for what dpkg writes down.
    fn changes(&self) -> BTreeSet<PathBuf> {
        let mut changes = self.machine.changes();
        changes.retain(|path| !BOOKS.iter().any(|book| path.starts_with(book)));
        changes
    }

    /// Whether dpkg has it installed, by its state: `ii`, `rc`, or none.
    fn state(&self) -> String {
        let format = "--showformat=${db:Status-Abbrev}";
        let shown = self.output("dpkg-query", &["--show", format, "throttle"]);
        shown.stdout.trim().to_owned()
    }
}

/// Machines made for containers are told to leave man pages out.
fn keep_man_pages() {
    let Ok(entries) = fs::read_dir("/etc/dpkg/dpkg.cfg.d") else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if fs::read_to_string(&path).is_ok_and(|text| text.contains("path-exclude")) {
            fs::remove_file(&path).unwrap();
        }
    }
}

/// A package of the next version, of which the configuration says something
/// more.
fn upgrade(host: &Host) -> &'static str {
    const FOLDER: &str = "/tmp/next";
    const NEXT: &str = "/tmp/throttle-next.deb";
    host.succeeds("dpkg-deb", &["--raw-extract", DEB, FOLDER]);
    let control = format!("{FOLDER}/DEBIAN/control");
    let text = host.machine.read(&control);
    let version = text.lines().find(|line| line.starts_with("Version: "));
    let version = version.unwrap().to_owned();
    host.machine
        .write(&control, text.replace(&version, "Version: 99.0-1"));
    let configuration = format!("{FOLDER}{CONFIGURATION}");
    let text = host.machine.read(&configuration);
    host.machine
        .write(&configuration, text + "\n# Something new.\n");
    host.succeeds("dpkg-deb", &["--build", FOLDER, NEXT]);
    NEXT
}

#[test]
fn it_installs_what_it_lists_and_nothing_starts() {
    let Some(host) = Host::new() else { return };
    let before = host.changes();
    host.dpkg(&["--install", DEB]);
    assert_eq!(host.state(), "ii");
    assert_eq!(host.succeeds("dpkg", &["--verify", "throttle"]), "");
    let listed = host.succeeds("dpkg", &["--listfiles", "throttle"]);
    for file in [
        "/usr/bin/throttle",
        CONFIGURATION,
        UNIT,
        "/usr/share/doc/throttle/copyright",
        "/usr/share/man/man8/throttle-run.8.gz",
    ] {
        assert!(listed.lines().any(|line| line == file), "{file}\n{listed}");
        assert!(host.machine.has(file), "{file}");
    }
    // And nothing else, such as a unit that is enabled.
    let listed: BTreeSet<PathBuf> = listed.lines().map(PathBuf::from).collect();
    let unlisted: Vec<_> = host
        .changes()
        .difference(&before)
        .filter(|path| !listed.contains(*path) && !path.starts_with(LINKS))
        .cloned()
        .collect();
    assert_eq!(unlisted, Vec::<PathBuf>::new());
    let enabled = host.output("systemctl", &["is-enabled", "throttle.service"]);
    assert_eq!(enabled.stdout.trim(), "disabled", "{}", enabled.stderr);
    let (program, configuration) = host.machine.run(|| {
        let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode();
        (mode("/usr/bin/throttle"), mode(CONFIGURATION))
    });
    assert_eq!((program & 0o7777, configuration & 0o7777), (0o755, 0o644));
}

#[test]
fn the_configuration_that_comes_with_it_changes_nothing() {
    let Some(host) = Host::installed() else {
        return;
    };
    let text = host.machine.read(CONFIGURATION);
    let settings: Vec<_> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert_eq!(settings, Vec::<&str>::new());
}

#[test]
fn its_unit_is_in_order() {
    let Some(host) = Host::installed() else {
        return;
    };
    if !clients::is_installed("systemd-analyze") {
        eprintln!("skipped: systemd is not installed");
        return;
    }
    // It says on the standard error what it does not like, man pages that are not
    // there among it.
    let verified = host.output("systemd-analyze", &["verify", UNIT]);
    let verified = verified.expect_success();
    assert_eq!(verified.stderr + &verified.stdout, "");
}

#[test]
fn its_man_pages_and_completions_are_found() {
    let Some(host) = Host::installed() else {
        return;
    };
    if clients::is_installed("man") {
        for page in ["throttle", "throttle-run", "throttle-explain"] {
            let text = host.succeeds("man", &["--warnings", "8", page]);
            assert!(text.contains("EXIT STATUS"), "{page}\n{text}");
        }
    } else {
        eprintln!("skipped: man is not installed");
    }
    let completions = host
        .machine
        .read("/usr/share/bash-completion/completions/throttle");
    assert!(
        completions.contains("complete -F _throttle"),
        "{completions}"
    );
    assert!(
        host.machine
            .has("/usr/share/zsh/vendor-completions/_throttle")
    );
    assert!(
        host.machine
            .has("/usr/share/fish/vendor_completions.d/throttle.fish")
    );
}

#[test]
fn it_runs_tells_of_an_event_and_ends() {
    let Some(host) = Host::installed() else {
        return;
    };
    let version = host.succeeds("throttle", &["--version"]);
    assert!(version.starts_with("throttle "), "{version}");
    let lab = Lab::plain();
    let args = ["run", "-i", &lab.device, "--limit=3", "-o", "json"];
    let program = host.machine.program(&lab.client, "throttle").args(args);
    let throttle: Running = Throttle::launch(program);
    let attempts = lab.dial((0..6).map(dead));
    let event = throttle.wait_event("limit reached", SOON, |event| {
        event["event"]["code"] == "4226"
    });
    assert_eq!(event["process"]["pid"], std::process::id(), "{event:#}");
    assert!(attempts.failed().is_empty());
    let finished = throttle.stop_by(nix::sys::signal::Signal::SIGTERM);
    assert!(finished.status.success(), "{}", finished.stderr);
}

#[test]
fn an_upgrade_keeps_what_was_changed_in_the_configuration() {
    let Some(host) = Host::installed() else {
        return;
    };
    let mine = "# Mine.\n";
    host.machine.write(CONFIGURATION, mine);
    let next = upgrade(&host);
    // As one who does not want to be asked.
    host.dpkg(&["--force-confdef", "--force-confold", "--install", next]);
    assert_eq!(host.state(), "ii");
    assert_eq!(host.machine.read(CONFIGURATION), mine);
    host.succeeds("throttle", &["--version"]);
}

#[test]
fn an_upgrade_brings_the_new_configuration_if_the_old_one_was_not_changed() {
    let Some(host) = Host::installed() else {
        return;
    };
    let next = upgrade(&host);
    host.dpkg(&["--install", next]);
    assert!(
        host.machine
            .read(CONFIGURATION)
            .ends_with("# Something new.\n")
    );
}

#[test]
fn removed_it_leaves_the_configuration_and_purged_nothing() {
    let Some(host) = Host::new() else { return };
    let before = host.changes();
    host.dpkg(&["--install", DEB]);
    let mine = "# Mine.\n";
    host.machine.write(CONFIGURATION, mine);
    let next = upgrade(&host);
    host.dpkg(&["--force-confold", "--install", next]);
    // What a daemon leaves that was killed.
    host.machine
        .run(|| fs::create_dir_all("/run/throttle/net-1"))
        .unwrap();

    host.dpkg(&["--remove", "throttle"]);
    assert_eq!(host.state(), "rc");
    assert_eq!(host.machine.read(CONFIGURATION), mine);
    assert!(!host.machine.has("/run/throttle"));
    let left: Vec<_> = host
        .changes()
        .difference(&before)
        .filter(|path| !path.starts_with("/etc/throttle"))
        // A unit that was removed cannot be started by its name.
        .filter(|path| !is_about_the_unit(path))
        .cloned()
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());

    // Once more, and it works as before.
    host.dpkg(&["--install", next]);
    assert_eq!(host.state(), "ii");
    assert_eq!(host.machine.read(CONFIGURATION), mine);

    host.dpkg(&["--purge", "throttle"]);
    assert_eq!(host.state(), "");
    assert_eq!(host.changes(), before);
}

/// What systemd is told of the unit.
fn is_about_the_unit(path: &Path) -> bool {
    ["/etc/systemd/system", "/var/lib/systemd"]
        .iter()
        .any(|folder| path.starts_with(folder))
}
