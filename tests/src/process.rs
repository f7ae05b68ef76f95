//! Programs inside a namespace, a cgroup, a mount namespace, as another user.

use crate::{cgroup::Cgroup, netns::Namespace, wait};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigHandler, Signal, kill},
    },
    unistd::{Gid, Pid, Uid, setgid, setgroups, setuid},
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

/// A mount namespace with a bpffs and a sysfs of its own, so that what a
/// program pins is gone when the test is.
///
/// The sysfs is bare and belongs to one network namespace, as `ip netns exec`
/// makes it.
#[derive(Clone, Debug)]
pub struct Mounts(Arc<File>);

impl Mounts {
    /// New mounts: a bpffs at /sys/fs/bpf, over a sysfs of `namespace`.
    ///
    /// # Panics
    /// Without CAP_SYS_ADMIN.
    pub fn with_bpffs(namespace: &Namespace) -> Self {
        Self::new(namespace, true)
    }

    /// New mounts: a sysfs of `namespace` where no bpffs is mounted.
    ///
    /// # Panics
    /// Without CAP_SYS_ADMIN.
    pub fn without_bpffs(namespace: &Namespace) -> Self {
        Self::new(namespace, false)
    }

    /// The mounts of a mount namespace.
    pub(crate) fn of(namespace: File) -> Self {
        Self(Arc::new(namespace))
    }

    /// Moves the calling thread in, for good. It is of no further use to a test
    /// harness.
    pub(crate) fn enter(&self) {
        // Threads share their root and working folder, which would change.
        unshare(CloneFlags::CLONE_FS).unwrap();
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNS).unwrap();
    }

    fn new(namespace: &Namespace, bpffs: bool) -> Self {
        let none = None::<&str>;
        Self(Arc::new(namespace.run(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
            if bpffs {
                mount(
                    Some("bpf"),
                    "/sys/fs/bpf",
                    Some("bpf"),
                    MsFlags::empty(),
                    none,
                )
                .unwrap();
            }
            // The owner of throttle's attempts is told by cgroup too.
            let cgroups = Some("cgroup2");
            mount(cgroups, "/sys/fs/cgroup", cgroups, MsFlags::empty(), none).unwrap();
            File::open("/proc/thread-self/ns/mnt").unwrap()
        })))
    }
}

/// A program to be run inside a namespace.
///
/// The kernel ends it when the *thread* that started it ends, so that nothing
/// survives a test: start it from the test's own thread, not inside
/// [`Namespace::run`].
#[derive(Debug)]
#[must_use = "a program does nothing until it is started"]
pub struct Program {
    command: Command,
    namespace: Namespace,
    cgroup: Option<Cgroup>,
    mounts: Option<Mounts>,
    user: Option<u32>,
}

impl Program {
    /// A program that will run inside `namespace`.
    pub fn new(namespace: &Namespace, program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("LC_ALL", "C");
        Self {
            command,
            namespace: namespace.clone(),
            cgroup: None,
            mounts: None,
            user: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in this cgroup, from its first instruction on.
    pub fn in_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.clone());
        self
    }

    /// Runs it with these mounts.
    pub fn with_mounts(mut self, mounts: &Mounts) -> Self {
        self.mounts = Some(mounts.clone());
        self
    }

    /// Runs it as another user, with the group of the same number.
    pub fn as_user(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// The command line, for messages.
    fn line(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        words
            .map(OsStr::to_string_lossy)
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn spawn(mut self) -> (Child, String) {
        let line = self.line();
        let Self {
            namespace,
            cgroup,
            mounts,
            user,
            ..
        } = self;
        let procs = cgroup.as_ref().map(Cgroup::open_procs);
        let enter = move || -> io::Result<()> {
            // A shell's background job and `nohup` have them ignored, which is
            // inherited; a test that sends one means it.
            for ignored in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
                // SAFETY: the default action is no handler.
                unsafe { nix::sys::signal::signal(ignored, SigHandler::SigDfl)? };
            }
            if let Some(procs) = &procs {
                nix::unistd::write(procs, b"0")?;
            }
            if let Some(Mounts(file)) = &mounts {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNS)?;
            }
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            if let Some(uid) = user {
                setgroups(&[])?;
                setgid(Gid::from_raw(uid))?;
                setuid(Uid::from_raw(uid))?;
            }
            // After the change of user, which clears it.
            set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec `enter` makes system calls only; it
        // neither allocates nor takes a lock.
        unsafe { self.command.pre_exec(enter) };
        let child = self
            .command
            .spawn()
            .unwrap_or_else(|e| panic!("start {line:?}: {e}"));
        (child, line)
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn output(mut self) -> Finished {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let (child, line) = self.spawn();
        let output = child.wait_with_output().unwrap();
        Finished {
            line,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts it; its output is collected meanwhile.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(mut self) -> Process {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut child, line) = self.spawn();
        let stdout = Lines::of(child.stdout.take().unwrap());
        let stderr = Lines::of(child.stderr.take().unwrap());
        Process {
            line,
            child,
            stdout,
            stderr,
        }
    }
}

/// What a program left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The command line.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// Itself, if the program succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        let Self {
            line,
            status,
            stdout,
            stderr,
        } = &self;
        assert!(
            status.success(),
            "`{line}` ended with {status}\n{stdout}{stderr}"
        );
        self
    }

    /// The exit code, if it was not ended by a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// Whether each thread of a process is stopped.
fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut stats = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")));
    // A thread that has ended meanwhile has no state.
    stats.all(|stat| stat.is_ok_and(|stat| stat.contains(") T ")))
}

/// A running program. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    line: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The lines it has printed so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.so_far()
    }

    /// The lines it has complained so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.so_far()
    }

    /// Looks at the lines printed so far without copying them.
    pub(crate) fn with_stdout<T>(&self, look: impl FnOnce(&[String]) -> T) -> T {
        look(&self.stdout.lines.lock().unwrap())
    }

    /// Sends it a signal. SIGSTOP has stopped all of it when this returns: it stops only
    /// when it runs the next time.
    ///
    /// # Panics
    /// When it is no more.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal)
            .unwrap_or_else(|e| panic!("send {signal} to `{}`: {e}", self.line));
        if signal == Signal::SIGSTOP {
            let what = format!("`{}` to be stopped", self.line);
            wait::wait_until(&what, Duration::from_secs(5), || is_stopped(self.pid()));
        }
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// Never, in practice.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within `timeout`.
    #[track_caller]
    pub fn wait(mut self, timeout: Duration) -> Finished {
        let timeout = timeout * wait::slowness();
        let Some(status) = wait::wait_at_most(timeout, || self.ended()) else {
            panic!(
                "`{}` did not end within {timeout:?}\n{}",
                self.line,
                self.complaints()
            );
        };
        Finished {
            line: self.line.clone(),
            status,
            stdout: self.stdout.all(),
            stderr: self.stderr.all(),
        }
    }

    /// Kills it, and waits for its end.
    ///
    /// # Panics
    /// When it was no more.
    pub fn kill(self) -> Finished {
        self.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(10))
    }

    /// What it complained so far, as one text.
    pub(crate) fn complaints(&self) -> String {
        self.stderr.so_far().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe, collected by a thread.
#[derive(Debug)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                collected.lock().unwrap().push(text);
                line.clear();
            }
        });
        Self {
            lines,
            reader: Some(reader),
        }
    }

    fn so_far(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Everything, once the pipe is closed.
    fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            // It only reads; a panic there is the test's own.
            let _ = reader.join();
        }
        self.so_far()
            .iter()
            .map(|line| format!("{line}\n"))
            .collect()
    }
}
