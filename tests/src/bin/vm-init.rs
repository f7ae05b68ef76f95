//! The first and only program of a virtual machine: brings it to where the
//! integration tests can run, runs them, says how they ended, switches it off.
//! On a machine that runs already (with the plan as its argument) it does just what
//! lies between.
//!
//! `cargo xtask vm` puts it, the tests, and a plan into an initramfs. The plan has a
//! line for each thing to do, in this order of its kinds:
//!
//! ```text
//! module PATH               load it
//! env NAME=VALUE            for the tests
//! folder PATH               where the tests run
//! arg WORD                  passed to each of them
//! test NAME PATH SECONDS    run it, for so long at most
//! ```
//!
//! What it says itself begins with `throttle-vm: `. The last such line is the result.

#![expect(
    clippy::print_stdout,
    reason = "the console is where it says what it found"
)]

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _, stdout},
    os::{
        fd::AsRawFd as _,
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// What to do.
const PLAN: &str = "/throttle/plan";
/// Where a test program's output goes until it has ended: beside the plan.
const OUTPUT: &str = "output";
/// What the kernel says.
const KERNEL_LOG: &str = "/dev/kmsg";
/// What the kernel says when something is wrong with it, whoever caused that.
const COMPLAINTS: [&str; 9] = [
    "WARNING: ",
    "BUG: ",
    "kernel BUG at ",
    "Oops",
    "general protection fault",
    "INFO: task ",
    "rcu: INFO: ",
    "possible recursive locking",
    "refcount_t: ",
];
/// How often a test program that runs is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// What libtest adds to the name of a test that is to panic.
const SHOULD_PANIC: &str = " - should panic";
/// Exit status of a test program with a failure (libtest).
const TEST_FAILED: i32 = 101;
/// Flag of finit_module(2) for a compressed file (linux/module.h).
const MODULE_INIT_COMPRESSED_FILE: libc::c_int = 4;

fn main() {
    let plan = env::args_os().nth(1);
    let done = match &plan {
        Some(plan) => run(Path::new(plan)),
        // What other programs take for granted.
        None => mount_all().and_then(|()| run(Path::new(PLAN))),
    };
    match done {
        Ok(total) => println!(
            "throttle-vm: {} passed, {} failed, {} skipped",
            total.passed, total.failed, total.skipped
        ),
        Err(error) => println!("throttle-vm: error: {error}"),
    }
    if plan.is_none() {
        switch_off();
    }
}

fn run(plan: &Path) -> Result<Total, Box<dyn Error>> {
    let output = plan.with_file_name(OUTPUT);
    let plan =
        fs::read_to_string(plan).map_err(|error| format!("read {}: {error}", plan.display()))?;
    let mut tests = Tests {
        output,
        kernel: KernelLog::open().map_err(|error| format!("read {KERNEL_LOG}: {error}"))?,
        env: Vec::new(),
        folder: String::new(),
        args: Vec::new(),
    };
    let mut total = Total::default();
    for line in plan.lines() {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "module" => load_module(Path::new(rest))?,
            "env" => tests.env.extend(
                rest.split_once('=')
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            ),
            "folder" => rest.clone_into(&mut tests.folder),
            "arg" => tests.args.push(rest.to_owned()),
            "test" => {
                let words: Vec<&str> = rest.split(' ').collect();
                let [name, path, seconds] = words[..] else {
                    return Err(format!("not a test: {line}").into());
                };
                let most = Duration::from_secs(seconds.parse()?);
                total.add(&tests.run(name, path, most)?);
            }
            _ => return Err(format!("not a line of a plan: {line}").into()),
        }
    }
    Ok(total)
}

fn mount_all() -> Result<(), Box<dyn Error>> {
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        ("tracefs", "/sys/kernel/tracing"),
        ("securityfs", "/sys/kernel/security"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ] {
        // Those that are in a filesystem of the kernel's are there already.
        if let Err(error) = fs::create_dir_all(at)
            && !Path::new(at).is_dir()
        {
            return Err(format!("make {at}: {error}").into());
        }
        match mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>) {
            // The kernel may have mounted /dev.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(format!("mount {kind} at {at}: {error}").into()),
        }
    }
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        if !Path::new(link).exists() {
            std::os::unix::fs::symlink(to, link)?;
        }
    }
    Ok(())
}

fn load_module(path: &Path) -> Result<(), Box<dyn Error>> {
    let say = |error: &dyn std::fmt::Display| format!("load {}: {error}", path.display());
    let file = File::open(path).map_err(|error| say(&error))?;
    let is_compressed = path.extension().is_some_and(|extension| extension != "ko");
    let flags = if is_compressed {
        MODULE_INIT_COMPRESSED_FILE
    } else {
        0
    };
    // SAFETY: the descriptor is open, and the parameters a string that ends.
    let done = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    };
    match Errno::result(done) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(say(&error).into()),
    }
}

/// What the kernel says from now on.
struct KernelLog(File);

impl KernelLog {
    fn open() -> io::Result<Self> {
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = file.open(KERNEL_LOG)?;
        file.seek(io::SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// Its complaints since the last look.
    fn complaints(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(len) => complaints.extend(complaint(&String::from_utf8_lossy(&record[..len]))),
                // Some have been overwritten; the next read gets the oldest there is.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(_) => return complaints,
            }
        }
    }
}

/// What a record of the kernel's log complains about, if it does
/// (Documentation/ABI/testing/dev-kmsg).
fn complaint(record: &str) -> Option<String> {
    let (_, text) = record.split_once(';')?;
    let text = text.lines().next()?;
    let is_complaint = COMPLAINTS.iter().any(|begin| text.contains(begin));
    is_complaint.then(|| text.to_owned())
}

/// How test programs are run.
struct Tests {
    output: PathBuf,
    kernel: KernelLog,
    env: Vec<(String, String)>,
    folder: String,
    args: Vec<String>,
}

impl Tests {
    /// Runs one test program, and says how each of its tests ended.
    fn run(&mut self, name: &str, path: &str, most: Duration) -> Result<Vec<Test>, Box<dyn Error>> {
        println!("throttle-vm: begin {name}");
        let output = File::create(&self.output)?;
        let mut command = Command::new(path);
        command
            // Else the output of a test that passes, and why it was skipped, is lost.
            .args(["--test-threads=1", "--show-output"])
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        // Else it would go on when somebody stops us.
        // SAFETY: prctl(2) may be called between fork and exec.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let started = Instant::now();
        let child = command
            .spawn()
            .map_err(|error| format!("run {path}: {error}"))?;
        let group = Pid::from_raw(i32::try_from(child.id())?);
        let mut shown = File::open(&self.output)?;
        // While it runs, so that one sees what it is at.
        let mut show = || {
            let mut fresh = Vec::new();
            if shown.read_to_end(&mut fresh).is_ok_and(|len| len > 0) {
                print!("{}", String::from_utf8_lossy(&fresh));
                // There is nobody else to tell.
                let _ = stdout().flush();
            }
        };
        let ended = wait_for(group, most, &mut show)?;
        show();
        println!();
        let printed = String::from_utf8_lossy(&fs::read(&self.output)?).into_owned();

        let mut tests = tests_of(&printed);
        if !is_all(&tests, &printed) {
            tests.push(Test::failed(
                "(all)",
                "what it printed of each test is not what it says of all",
            ));
        }
        match ended {
            Some(0 | TEST_FAILED) => {}
            Some(status) => tests.push(Test::failed(
                "(all)",
                &format!("the test program ended with status {status}"),
            )),
            None => tests.push(Test::failed(
                "(all)",
                &format!("the test program took longer than {most:?}"),
            )),
        }
        for complaint in self.kernel.complaints() {
            tests.push(Test::failed("(kernel)", &complaint));
        }
        for line in measured_in(&printed) {
            println!("throttle-vm: measured {name} {line}");
        }
        for Test { test, end, why } in &tests {
            println!("throttle-vm: test {name} {test} {} {why}", end.name());
        }
        println!(
            "throttle-vm: end {name} after {:.1} s",
            started.elapsed().as_secs_f64()
        );
        Ok(tests)
    }
}

/// Waits for the end of a process that leads a group, and reaps whoever has lost
/// its parent meanwhile. Its status, or none if it had to be killed.
fn wait_for(
    leader: Pid,
    most: Duration,
    meanwhile: &mut impl FnMut(),
) -> Result<Option<i32>, Errno> {
    let until = Instant::now() + most;
    let mut was_killed = false;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(pid, status) if pid == leader => {
                return Ok((!was_killed).then_some(status));
            }
            WaitStatus::Signaled(pid, signal, _) if pid == leader => {
                return Ok((!was_killed).then_some(128 + signal as i32));
            }
            WaitStatus::StillAlive => {
                meanwhile();
                thread::sleep(LOOK_EVERY);
            }
            WaitStatus::Exited(..)
            | WaitStatus::Signaled(..)
            | WaitStatus::Stopped(..)
            | WaitStatus::PtraceEvent(..)
            | WaitStatus::PtraceSyscall(_)
            | WaitStatus::Continued(_) => {}
        }
        if Instant::now() > until && !was_killed {
            was_killed = true;
            // It may have ended right now.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    Skipped,
}

impl End {
    const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Test {
    test: String,
    end: End,
    why: String,
}

impl Test {
    fn failed(test: &str, why: &str) -> Self {
        Self {
            test: test.to_owned(),
            end: End::Failed,
            why: why.to_owned(),
        }
    }
}

/// How the tests of a program ended that printed this. One that passed although it
/// had said `skipped: …` was skipped.
fn tests_of(printed: &str) -> Vec<Test> {
    let mut ends = Vec::new();
    let mut said = BTreeMap::<&str, Vec<&str>>::new();
    // Whose output it is that follows.
    let mut about = "";
    for line in printed.lines() {
        let output = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"));
        let result = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "));
        match (output, result) {
            (Some(test), _) => about = test,
            (None, Some((test, end))) => {
                ends.push((test.strip_suffix(SHOULD_PANIC).unwrap_or(test), end));
            }
            (None, None) => said.entry(about).or_default().push(line),
        }
    }
    let tests = ends.into_iter().map(|(test, end)| {
        let said = said.get(test).map(Vec::as_slice).unwrap_or_default();
        let skipped = said.iter().find_map(|line| line.strip_prefix("skipped: "));
        let (end, why) = match (end, skipped) {
            ("ok", None) => (End::Passed, ""),
            ("ok", Some(why)) => (End::Skipped, why),
            ("FAILED", _) => (End::Failed, reason(said)),
            (_, _) if end.starts_with("ignored") => (End::Skipped, "not part of the default tests"),
            // Something else was printed in between, and how it ended is not known.
            (_, _) => (End::Failed, "its result was not understood"),
        };
        Test {
            test: test.to_owned(),
            end,
            why: why.to_owned(),
        }
    });
    tests.collect()
}

/// Whether these are as many as the program says at its end. It may have been killed
/// before that; and what others print may stand in the way.
fn is_all(tests: &[Test], printed: &str) -> bool {
    let said = printed.lines().rev().find_map(|line| {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let numbers = counts.split("; ").map_while(|count| {
            let (number, _) = count.split_once(' ')?;
            number.parse::<usize>().ok()
        });
        Some(numbers.take(3).collect::<Vec<_>>())
    });
    let of = |ends: &[End]| tests.iter().filter(|test| ends.contains(&test.end)).count();
    said.is_some_and(|said| {
        said.len() == 3
            && said[1] == of(&[End::Failed])
            // Those that skipped themselves passed.
            && said[0] + said[2] == of(&[End::Passed, End::Skipped])
    })
}

/// What was measured: lines that begin with `measured: `.
fn measured_in(printed: &str) -> impl Iterator<Item = &str> {
    printed
        .lines()
        .filter_map(|line| line.strip_prefix("measured: "))
}

/// Why a test failed that said this: the first line of its first panic.
fn reason<'a>(said: &[&'a str]) -> &'a str {
    let mut lines = said.iter().skip_while(|line| !line.contains("panicked at"));
    lines.nth(1).copied().unwrap_or_default()
}

/// How many tests ended how.
#[derive(Default)]
struct Total {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Total {
    fn add(&mut self, tests: &[Test]) {
        for test in tests {
            match test.end {
                End::Passed => self.passed += 1,
                End::Failed => self.failed += 1,
                End::Skipped => self.skipped += 1,
            }
        }
    }
}

fn switch_off() -> ! {
    // SAFETY: it takes no pointer, and there is nothing that needs to be kept.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    // Nobody is left to tell.
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "
running 4 tests
test a - should panic ... ok
test b ... FAILED
test c ... ok
test d ... ignored

successes:

---- c stdout ----
skipped: this kernel has no fq
measured: 50 waited, 1 ms


successes:
    a
    c

failures:

---- b stdout ----
looking

thread 'b' (7) panicked at tests/tests/x.rs:1:2:
waited 5s in vain for: it
note: run with `RUST_BACKTRACE=1`


failures:
    b

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured
";

    #[test]
    fn the_kernel_complains_when_it_does_and_not_when_it_tells() {
        let warning = "4,1030,123456,-;WARNING: CPU: 1 PID: 77 at net/core/dev.c:1 f+0x1/0x2\n \
                       SUBSYSTEM=net\n";
        let said = complaint(warning).unwrap();
        assert_eq!(
            said,
            "WARNING: CPU: 1 PID: 77 at net/core/dev.c:1 f+0x1/0x2"
        );
        assert_eq!(complaint("6,1,2,-;veth: module loaded\n"), None);
        assert_eq!(complaint("no record"), None);
    }

    #[test]
    fn the_end_of_each_test_and_the_reason_are_read_from_what_it_printed() {
        let ends: Vec<_> = tests_of(PRINTED)
            .into_iter()
            .map(|Test { test, end, why }| (test, end, why))
            .collect();
        let expected = [
            ("a", End::Passed, ""),
            ("b", End::Failed, "waited 5s in vain for: it"),
            ("c", End::Skipped, "this kernel has no fq"),
            ("d", End::Skipped, "not part of the default tests"),
        ];
        let expected = expected.map(|(test, end, why)| (test.to_owned(), end, why.to_owned()));
        assert_eq!(ends, expected);
        assert!(is_all(&tests_of(PRINTED), PRINTED));
        let lost = PRINTED.replace("test d ... ignored\n", "");
        assert!(!is_all(&tests_of(&lost), &lost));
        assert!(!is_all(&[], "killed"));
        let measured: Vec<&str> = measured_in(PRINTED).collect();
        assert_eq!(measured, ["50 waited, 1 ms"]);
    }
}
