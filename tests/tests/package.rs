//! The Debian package: installs, runs, upgrades, and leaves nothing. Only
//! `cargo xtask test package` runs this, since it makes the package first.
//!
//! It is installed on a copy of this machine's files. In one test a systemd runs
//! there; in the others none does, and units are not started.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};
use throttle::privileges::NEEDED;
use throttle_tests::{
    Cgroup, Lab, Machine, Namespace, Throttle, addresses::dead, clients, frame::Checksum,
    hooks::HookState, process::Finished, throttle_cmd::Running, wait_until,
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
        host.machine.run(prepare);
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

/// What belongs to this machine, and would be in the way: an image for containers
/// leaves man pages out and keeps services from starting, and man-db reads all
/// pages again whenever some come or go.
fn prepare() {
    for file in ["/usr/sbin/policy-rc.d", "/var/lib/man-db/auto-update"] {
        // It need not be there.
        let _ = fs::remove_file(file);
    }
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

/// Starts systemd as the first process of namespaces of its own, in a container's
/// manner: it can change neither devices nor settings of this machine. It runs
/// `first.service` and ends with it.
const SYSTEMD: &str = "
set -e
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t sysfs sysfs /sys
mount -o remount,bind,ro /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
exec env -i container=test PATH=\"$PATH\" /lib/systemd/systemd --system --unit=first.service \
    --log-target=console --log-level=notice --show-status=no
";

const FIRST_SERVICE: &str = "
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/sh -eu /run/first
StandardOutput=file:/run/told
StandardError=file:/run/complaints
";

/// What an operator and apt do. It says what there is, in lines of `key=value`.
const FIRST: &str = "
show() { systemctl show --value --property=\"$1\" throttle; }
systemctl start throttle
pid=$(show MainPID)
echo state=$(show ActiveState)
echo status=$(show StatusText)
echo kept=$(sed -n 's/^CapBnd:[[:space:]]*//p' /proc/$pid/status)
enter() { nsenter --mount --target $pid \"$@\" 2>/dev/null; }
enter mkdir /sys/fs/bpf/throttle && enter rmdir /sys/fs/bpf/throttle && echo bpffs=writable
enter touch /run/throttle/x && enter rm /run/throttle/x && echo registry=writable
for path in /etc/x /usr/x /sys/fs/cgroup/x; do
    if enter mkdir $path; then echo written=$path; fi
done
touch /run/at-work
until [ -e /run/go-on ]; do sleep 0.1; done
sed -i 's/^limit = 3$/limit = 4/' /etc/throttle/throttle.toml
systemctl reload throttle && echo reloaded=yes
until grep -q 'in force: limit' /run/log; do sleep 0.1; done
echo 'limti = 9' >> /etc/throttle/throttle.toml
systemctl reload throttle || echo refused=yes
sed -i '/^limti/d' /etc/throttle/throttle.toml
echo still=$(show ActiveState)
dpkg --force-confold --install /tmp/throttle-next.deb >&2
echo upgraded=$(show ActiveState)
[ $(show MainPID) = $pid ] || echo restarted=yes
dpkg --remove throttle >&2
echo removed=$(show ActiveState)
dpkg --force-confold --install /tmp/throttle-next.deb >&2
echo again=$(show ActiveState)
dpkg --purge throttle >&2
";

#[test]
fn under_systemd_it_works_is_restarted_by_an_upgrade_and_ended_by_a_removal() {
    let Some(host) = Host::installed() else {
        return;
    };
    if !host.machine.has("/lib/systemd/systemd") {
        eprintln!("skipped: systemd is not installed");
        return;
    }
    let lab = Lab::plain();
    let before = HookState::of(&lab.client);
    upgrade(&host);
    // Started by hand it must not wait for what a whole machine starts.
    let drop_in = "[Unit]\nDefaultDependencies=no\n\
                   [Service]\nStandardOutput=append:/run/events\nStandardError=append:/run/log\n";
    let configuration = format!(
        "interface = \"{}\"\nlimit = 3\nrate = \"5/s\"\n",
        lab.device
    );
    host.machine.write(CONFIGURATION, configuration);
    host.machine
        .run(|| fs::create_dir("/etc/systemd/system/throttle.service.d"))
        .unwrap();
    host.machine
        .write("/etc/systemd/system/throttle.service.d/test.conf", drop_in);
    host.machine
        .write("/etc/systemd/system/first.service", FIRST_SERVICE);
    host.machine.write("/run/first", FIRST);

    let cgroup = Cgroup::new("systemd");
    let namespaces = [
        "--mount",
        "--pid",
        "--ipc",
        "--uts",
        "--cgroup",
        "--fork",
        "--kill-child",
    ];
    let mut systemd = host
        .machine
        .program(&lab.client, "unshare")
        .args(namespaces)
        .args(["sh", "-c", SYSTEMD])
        .in_cgroup(&cgroup)
        .start();
    let text = |path: &str| {
        let text = host.machine.run(|| fs::read_to_string(path));
        text.unwrap_or_default()
    };
    let all = || {
        ["/run/told", "/run/complaints", "/run/log"]
            .map(text)
            .join("\n")
    };
    wait_until("the service to be at work", 6 * SOON, || {
        let ended = systemd.ended();
        assert_eq!(ended, None, "{}\n{}", systemd.stderr().join("\n"), all());
        host.machine.has("/run/at-work")
    });
    assert_ne!(HookState::of(&lab.client), before);
    // All that running takes, under what the unit allows.
    let capture = lab.capture();
    let attempts = lab.dial((0..6).map(dead));
    wait_until("an event", SOON, || {
        text("/run/events").contains("\"4226\"")
    });
    let syns = capture.wait_for_attempts(6, SOON);
    let copies = syns.iter().filter(|syn| syn.checksum == Checksum::Good);
    assert_eq!(
        copies.count(),
        3,
        "deferred attempts are re-sent\n{}",
        all()
    );
    assert!(attempts.failed().is_empty());
    host.machine.write("/run/go-on", "");
    let finished = systemd.wait(6 * SOON);
    assert!(finished.status.success(), "{}\n{}", finished.stderr, all());

    let kept: u64 = NEEDED.iter().map(|(each, _)| each.bitmask()).sum();
    let told = text("/run/told");
    let (status, told): (Vec<_>, Vec<_>) =
        told.lines().partition(|line| line.starts_with("status="));
    let attached = format!("status=attached to {} by ", lab.device);
    assert!(status[0].starts_with(&attached), "{status:?}");
    let kept = format!("kept={kept:016x}");
    let expected = [
        "state=active",
        &kept,
        "bpffs=writable",
        "registry=writable",
        "reloaded=yes",
        "refused=yes",
        "still=active",
        "upgraded=active",
        "restarted=yes",
        "removed=inactive",
        "again=inactive",
    ];
    assert_eq!(told, expected, "{}", all());
    assert!(!text("/run/log").contains("ERROR"), "{}", all());
    assert_eq!(HookState::of(&lab.client), before);
}
