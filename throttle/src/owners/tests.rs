//! Against the /proc and the control groups of the machine that runs them.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::MetadataExt as _,
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::*;
use crate::event::Parent;

/// A name of its own for whatever a test makes.
fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("throttle-test-{}-{number}", std::process::id())
}

/// A directory that goes with the test: of files, or a control group.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // A control group goes only as a whole, and only once its processes have
        // left it altogether.
        let is_group = self.0.join("cgroup.procs").exists();
        for _ in 0..100 {
            let removed = if is_group {
                std::fs::remove_dir(&self.0)
            } else {
                std::fs::remove_dir_all(&self.0)
            };
            if !removed.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A shell that waits for a line. It ends with the test.
struct Waiting(Child);

impl Waiting {
    fn start() -> Self {
        Self::spawn(Command::new("/bin/sh").args(["-c", "read line"]))
    }

    fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stderr(Stdio::null());
        let child = wait_for("the program to be free", || match command.spawn() {
            Ok(child) => Some(Self(child)),
            // A file that was just written, and a fork in another test.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => None,
            Err(error) => panic!("{command:?}: {error}"),
        });
        // Spawning is over when the kernel closes its pipe, and it gives the
        // process its name and its arguments later (begin_new_exec in fs/exec.c).
        let args = format!("/proc/{}/cmdline", child.pid());
        wait_for("its arguments", || {
            std::fs::read(&args)
                .is_ok_and(|args| !args.is_empty())
                .then_some(())
        });
        child
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Makes it end, and leaves it a zombie.
    fn end(&mut self) {
        drop(self.0.stdin.take());
        wait_for("a zombie", || {
            Live::open(self.pid()).is_none().then_some(())
        });
    }

    fn reap(&mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "no sign of {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the kernel would record of a process that runs.
fn record(pid: u32) -> Known {
    let live = Live::open(pid).unwrap();
    let mut known = Known {
        tgid: pid,
        tid: pid,
        uid: live.user().unwrap(),
        // Somewhere in the tick.
        start_ns: nanos_of(live.start_ticks()) + 1_234_567,
        ..Known::default()
    };
    let comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap();
    known.name[..comm.len() - 1].copy_from_slice(&comm[..comm.len() - 1]);
    known.thread_name = known.name;
    known
}

fn text(name: Option<&Name>) -> &str {
    name.map_or("", Name::as_str)
}

/// A control group of its own, of this name; none if that needs more than the
/// tests have.
fn group(name: &str) -> Option<Directory> {
    let Some(hierarchy) = Hierarchy::find() else {
        eprintln!("skipped: no cgroup v2 hierarchy is mounted");
        return None;
    };
    let path = Path::new(OsStr::from_bytes(&hierarchy.point)).join(name);
    match std::fs::create_dir(&path) {
        Ok(()) => Some(Directory(path)),
        Err(error) => {
            eprintln!("skipped: needs root to make a control group: {error}");
            None
        }
    }
}

impl Directory {
    fn id(&self) -> u64 {
        std::fs::metadata(&self.0).unwrap().ino()
    }

    fn take_in(&self, file: &str, pid: u32) {
        std::fs::write(self.0.join(file), pid.to_string()).unwrap();
    }

    /// Its path, as the hierarchy has it.
    fn path(&self) -> String {
        let point = Hierarchy::find().unwrap().point;
        let path = self.0.as_os_str().as_bytes();
        String::from_utf8(path[point.len()..].to_vec()).unwrap()
    }
}

#[test]
fn this_process_is_known() {
    let pid = std::process::id();
    let mut names = Names::new(true);
    let known = record(pid);
    let process = names.process(&known);
    let exe = std::env::current_exe().unwrap();
    assert_eq!(process.executable, Some(Name::of_path(&exe)));
    assert_eq!(process.name, Name::of_field(&known.name));
    assert_eq!(process.thread, None);
    let args: Vec<Name> = std::env::args_os()
        .map(|arg| Name::new(arg.as_bytes()))
        .collect();
    assert_eq!(process.args, Some(args));
    let parent = nix::unistd::getppid().as_raw();
    let parent_name = std::fs::read(format!("/proc/{parent}/comm")).unwrap();
    assert_eq!(
        process.parent,
        Some(Parent {
            pid: parent.try_into().unwrap(),
            name: Name::new(parent_name.strip_suffix(b"\n").unwrap()),
        })
    );
    assert_eq!(process.user.id, nix::unistd::getuid().as_raw());
    assert!(!process.has_exited);
    assert_eq!(process.cgroup, None);
    let now = clock::calendar_ns(clock::monotonic_ns());
    assert!(process.start_ns.unwrap() <= now);
    assert!(now - process.start_ns.unwrap() < 3_600 * NANOS);
    assert!(
        process.entity_id.starts_with(&boot_id().to_string()) && !boot_id().is_nil(),
        "{}",
        process.entity_id
    );
    assert_eq!(names.process(&known), process, "the same, however often");
}

#[test]
fn arguments_are_told_only_if_asked_for() {
    let process = Names::new(false).process(&record(std::process::id()));
    assert_eq!(process.args, None);
}

#[test]
fn a_thread_is_named_beside_its_process() {
    let mut known = record(std::process::id());
    known.tid += 1;
    known.thread_name = *b"worker\n\0\0\0\0\0\0\0\0\0";
    let process = Names::new(false).process(&known);
    let thread = process.thread.unwrap();
    assert_eq!(
        (thread.id, thread.name.as_str()),
        (known.tid, r"worker\x0a")
    );
    assert_eq!(process.name, Name::of_field(&known.name));
    known.name = Default::default();
    let process = Names::new(false).process(&known);
    assert_eq!(process.name.as_str(), r"worker\x0a");
}

#[test]
fn hostile_names_do_no_harm() {
    let directory = Directory(std::env::temp_dir().join(unique()));
    std::fs::create_dir(&directory.0).unwrap();
    let program = directory
        .0
        .join(OsString::from_vec(b"a)\n\xff S 1 \x1b[2J".to_vec()));
    std::fs::copy("/bin/sh", &program).unwrap();
    let child = Waiting::spawn(
        Command::new(&program)
            .arg0(OsStr::from_bytes(b") R 1\n"))
            .args(["-c", "read line"])
            .arg(OsStr::from_bytes(b"\xfe\nUid:\t7\t7"))
            .arg("\u{202e}"),
    );
    let known = record(child.pid());
    let process = Names::new(true).process(&known);
    assert_eq!(process.name.as_str(), r"a)\x0a\xff S 1 \x1b[2J");
    assert_eq!(process.executable, Some(Name::of_path(&program)));
    let args = process.args.unwrap();
    let args: Vec<&str> = args.iter().map(Name::as_str).collect();
    assert_eq!(
        args,
        [
            r") R 1\x0a",
            "-c",
            "read line",
            r"\xfe\x0aUid:\x097\x097",
            r"\xe2\x80\xae"
        ]
    );
    assert_eq!(process.user.id, nix::unistd::getuid().as_raw());
    assert_eq!(process.parent.unwrap().pid, std::process::id());
}

#[test]
fn a_process_that_has_ended_is_named_as_the_kernel_recorded_it() {
    let mut child = Waiting::start();
    let known = record(child.pid());
    child.end();
    let zombie = Names::new(true).process(&known);
    child.reap();
    let reaped = Names::new(true).process(&known);
    for process in [&zombie, &reaped] {
        assert!(process.has_exited);
        assert_eq!((process.pid, process.name.as_str()), (known.tgid, "sh"));
        assert_eq!((&process.executable, &process.args), (&None, &None));
        assert_eq!(process.parent, None);
        assert_eq!(process.user.id, known.uid);
        assert!(process.start_ns.is_some());
    }
    assert_eq!(zombie.entity_id, reaped.entity_id);
}

#[test]
fn what_was_learned_once_is_known_after_the_end() {
    let mut names = Names::new(true);
    let mut child = Waiting::start();
    let known = record(child.pid());
    names.remember(&known);
    child.end();
    child.reap();
    let process = names.process(&known);
    assert!(process.has_exited);
    assert!(text(process.executable.as_ref()).starts_with('/'));
    assert_eq!(process.args.unwrap().len(), 3);
    assert_eq!(process.parent.unwrap().pid, std::process::id());
}

#[test]
fn another_process_with_the_same_number_is_not_taken_for_it() {
    let mut known = record(std::process::id());
    let tick = nanos_of(1);
    for start_ns in [known.start_ns - tick, known.start_ns + tick] {
        known.start_ns = start_ns;
        let process = Names::new(true).process(&known);
        assert!(process.has_exited);
        assert_eq!((process.executable, process.parent), (None, None));
    }
}

#[test]
fn without_a_recorded_start_the_number_is_believed() {
    let mut known = record(std::process::id());
    let entity = Names::new(false).process(&known).entity_id;
    known.start_ns = 0;
    let process = Names::new(false).process(&known);
    assert!(!process.has_exited && process.executable.is_some());
    assert!(process.start_ns.is_some());
    assert_eq!(process.entity_id, entity);
}

#[test]
fn a_program_that_replaced_another_one_is_not_taken_for_it() {
    let facts = |name: &str| Facts {
        name: Some(name.into()),
        executable: Some(format!("/bin/{name}").as_str().into()),
        ..Facts::default()
    };
    let then = Name::from("then");
    let after = |before: &str, now: &str| facts(now).since(facts(before), &then).executable;
    assert_eq!(after("then", "now"), Some("/bin/then".into()));
    assert_eq!(after("then", "then"), Some("/bin/then".into()));
    assert_eq!(after("else", "then"), Some("/bin/then".into()));
    assert_eq!(after("else", "now"), Some("/bin/now".into()));
    let ended = Facts::default().since(facts("then"), &then);
    assert_eq!(ended.executable, Some("/bin/then".into()));
}

#[test]
fn users_have_names_where_the_machine_has_them() {
    let mut names = Names::new(false);
    assert_eq!(text(names.user(0).name.as_ref()), "root");
    let nobody_has_it = 4_000_000_123;
    for _ in 0..2 {
        let user = names.user(nobody_has_it);
        assert_eq!((user.id, user.name), (nobody_has_it, None));
    }
}

#[test]
fn a_control_group_is_known_by_its_id() {
    let id = "5e".repeat(32);
    let Some(outer) = group(&unique()) else {
        return;
    };
    let inner = Directory(outer.0.join(format!("docker-{id}.scope")));
    std::fs::create_dir(&inner.0).unwrap();
    let child = Waiting::start();
    inner.take_in("cgroup.procs", child.pid());
    let mut known = record(child.pid());
    known.cgroup = inner.id();

    let mut names = Names::new(false);
    let cgroup = names.process(&known).cgroup.unwrap();
    assert_eq!(text(cgroup.path.as_ref()), inner.path());
    let container = cgroup.container.as_ref().unwrap();
    assert_eq!((&container.id, container.runtime), (&id, Some("docker")));
    assert_eq!(names.cgroup(outer.id()).container, None);
    let own_word = Live::open(child.pid()).unwrap().cgroup().unwrap();
    let hierarchy = Hierarchy::find().unwrap();
    assert!(hierarchy.is_path_of(&own_word, known.cgroup));
    assert!(!hierarchy.is_path_of(&own_word, outer.id()));

    drop(child);
    drop(inner);
    assert_eq!(names.cgroup(known.cgroup), cgroup, "remembered");
    let gone = Names::new(false).cgroup(known.cgroup);
    assert_eq!((gone.path, gone.container), (None, None));
}

#[test]
fn the_root_has_a_path_too() {
    let Some(hierarchy) = Hierarchy::find() else {
        eprintln!("skipped: no cgroup v2 hierarchy is mounted");
        return;
    };
    let point = Path::new(OsStr::from_bytes(&hierarchy.point));
    let id = std::fs::metadata(point).unwrap().ino();
    match hierarchy.group(id) {
        Found::Here(group) => assert_eq!(group.path, hierarchy.root),
        Found::Unknown => eprintln!("skipped: needs CAP_DAC_READ_SEARCH"),
        Found::Gone => panic!("the root is gone"),
    }
}

/// A raw or packet socket; none if that needs more than the tests have.
fn raw_socket(family: AddressFamily) -> Option<OwnedFd> {
    let (kind, protocol) = if family == AddressFamily::Packet {
        (SockType::Datagram, None)
    } else {
        (SockType::Raw, Some(SockProtocol::Tcp))
    };
    socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)
        .inspect_err(|error| eprintln!("skipped: needs CAP_NET_RAW: {error}"))
        .ok()
}

#[test]
fn who_holds_a_raw_socket_is_a_candidate() {
    for family in [
        AddressFamily::Inet,
        AddressFamily::Inet6,
        AddressFamily::Packet,
    ] {
        let (Some(group), Some(socket)) = (group(&unique()), raw_socket(family)) else {
            return;
        };
        let holder = Waiting::spawn(
            Command::new("/bin/sh")
                .args(["-c", "read line"])
                .stdout(socket),
        );
        let other = Waiting::start();
        group.take_in("cgroup.procs", holder.pid());
        group.take_in("cgroup.procs", other.pid());

        let mut names = Names::new(true);
        let found = names.candidates(group.id());
        assert_eq!(found.len(), 1, "{family:?}: {found:?}");
        let known = record(holder.pid());
        let process = names.process(&known);
        assert_eq!(found[0].pid, process.pid);
        assert_eq!(found[0].name, process.name);
        assert_eq!(found[0].executable, process.executable);
        assert_eq!(found[0].args, process.args);
        assert_eq!(found[0].user, process.user);
        assert_eq!(found[0].entity_id, process.entity_id);
        assert_eq!(found[0].cgroup, Some(names.cgroup(group.id())));
        assert!(!found[0].has_exited);

        drop(holder);
        assert_eq!(names.candidates(group.id()), found, "for a second");
        assert_eq!(Names::new(true).candidates(group.id()), []);
        drop(other);
    }
}

#[test]
fn the_candidates_of_a_group_of_threads_are_processes() {
    let (Some(outer), Some(socket)) = (group(&unique()), raw_socket(AddressFamily::Inet)) else {
        return;
    };
    let inner = Directory(outer.0.join("threads"));
    std::fs::create_dir(&inner.0).unwrap();
    std::fs::write(inner.0.join("cgroup.type"), "threaded").unwrap();
    let holder = Waiting::spawn(
        Command::new("/bin/sh")
            .args(["-c", "read line"])
            .stdout(socket),
    );
    outer.take_in("cgroup.procs", holder.pid());
    inner.take_in("cgroup.threads", holder.pid());
    let found = Names::new(false).candidates(inner.id());
    let pids: Vec<u32> = found.iter().map(|process| process.pid).collect();
    assert_eq!(pids, [holder.pid()]);
    drop(holder);
}

#[test]
fn no_more_candidates_are_named_than_there_is_room_for() {
    let (Some(group), Some(socket)) = (group(&unique()), raw_socket(AddressFamily::Inet)) else {
        return;
    };
    let holders: Vec<Waiting> = (0..Who::CANDIDATES + 2)
        .map(|_| {
            let output = socket.try_clone().unwrap();
            let mut command = Command::new("/bin/sh");
            let holder = Waiting::spawn(command.args(["-c", "read line"]).stdout(output));
            group.take_in("cgroup.procs", holder.pid());
            holder
        })
        .collect();
    let found = Names::new(false).candidates(group.id());
    assert_eq!(found.len(), Who::CANDIDATES);
    drop(holders);
}

#[test]
fn a_group_that_is_gone_has_no_candidates() {
    assert_eq!(Names::new(false).candidates(u64::MAX), []);
}
