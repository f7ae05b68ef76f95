//! Runs the integration tests on other kernels, in virtual machines.
//!
//! Each machine boots a kernel of Debian's and an initramfs of ours (see
//! `tests/src/bin/vm-init.rs`), runs the tests, says on its console how they ended,
//! and switches itself off. The processor is emulated, so this works anywhere, and is
//! some ten times slower than the machine it runs on.

mod apt;
mod cpio;
mod image;
mod kernel;
mod qemu;
mod results;

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File, TryLockError},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{
    image::{Plan, Programs},
    kernel::{Kernel, Unpacked},
    qemu::Qemu,
    results::{Results, Said, Tally},
};
use crate::{
    setup,
    workspace::{cargo, described, root, run as run_command, target_dir},
};

/// The test programs in which the kernel has a part, in the order in which they are
/// run: what needs no time first.
pub(crate) const TESTS: [&str; 34] = [
    "object",
    "lab",
    "frames",
    "enemies",
    "answers",
    "rate",
    "pacing",
    "fq",
    "stacked",
    "pods",
    "scopes",
    "queue",
    "known",
    "wire",
    "monitor",
    "exempt",
    "keep",
    "control",
    "hotplug",
    "handover",
    "daemon",
    "leaves_nothing",
    "owners",
    "episodes",
    "end",
    "top",
    "privileges",
    "doctor",
    "refusals",
    "config",
    "delivery",
    "notify",
    "scanners",
    "attackers",
];

/// Those of them that need a minute together: the programs are loaded, attached by the
/// hook that the kernel has, decide, and are let go.
const QUICK: [&str; 5] = ["object", "monitor", "exempt", "handover", "leaves_nothing"];

/// Those that are not run there: they are about what this machine installs and builds.
#[cfg(test)]
const NOT_IN_MACHINES: [&str; 2] = ["demo", "package"];

/// How long one test program may take in there.
const TEST_TIMEOUT: Duration = Duration::from_mins(20);
/// How long it may take until the first test begins.
const BOOT_TIMEOUT: Duration = Duration::from_mins(2);
/// How many times longer than on real hardware tests wait for things.
const SLOWNESS: u32 = 8;

/// What the kernels are told: no word of theirs among the results but when they die,
/// and no tunnels in each network namespace.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off \
                            sysctl.net.core.fb_tunnels_only_for_init_net=2";
/// Whatever has been fetched and made is below this folder of the target directory.
const FOLDER: &str = "vm";
/// The version of this machine's kernel.
const RELEASE: &str = "/proc/sys/kernel/osrelease";
/// Where it is told what came of it, in the workspace.
const PAGE: &str = "docs/kernels.md";
/// What tests could use and is not in there: Python has hundreds of files.
const MISSING: [&str; 1] = ["python3"];

/// What makes a test program run what takes too long for each day, too.
const EVEN_IGNORED: &str = "--include-ignored";

/// What is asked of `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct Vm {
    /// The kernels to run on, as 6.1, 6.12 or 7: these if none is named; or here, for
    /// that of this machine
    kernels: Vec<String>,
    /// A test program to run, as frames: those that are meant for it if none is named
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// Only what shows within a minute whether a kernel takes the programs
    #[arg(long, conflicts_with = "tests")]
    quick: bool,
    /// Run nothing; write the results of the last runs into docs/kernels.md
    #[arg(long)]
    table: bool,
    /// Passed on to the test programs: the names of the tests to run, and options
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Does what is asked.
pub(crate) fn run(asked: &Vm) -> Result<ExitCode> {
    if asked.table {
        return write_page();
    }
    let targets: Vec<Target> = if asked.kernels.is_empty() {
        Kernel::ALL.map(Target::Emulated).to_vec()
    } else {
        let named = asked.kernels.iter().map(|name| Target::named(name));
        named.collect::<Result<_>>()?
    };
    let emulated = targets.iter().any(|target| *target != Target::Here);
    let purposes = [setup::Purpose::Kernel, setup::Purpose::Vm];
    setup::run(if emulated { &purposes } else { &purposes[..1] })?;
    if emulated && !are_for_this_machine() {
        bail!(
            "fetch Debian's kernels: this machine is no Debian on x86-64\n\
             run `cargo xtask vm here` for the kernel of this machine"
        );
    }
    let names: Vec<String> = if asked.quick {
        QUICK.map(str::to_owned).to_vec()
    } else if asked.tests.is_empty() {
        TESTS.map(str::to_owned).to_vec()
    } else {
        asked.tests.clone()
    };
    let mut args: Vec<String> = asked
        .args
        .iter()
        .map(|arg| {
            let arg = arg.to_str().filter(|arg| !arg.contains('\n'));
            Ok(arg.context("an argument is no text")?.to_owned())
        })
        .collect::<Result<_>>()?;

    fs::create_dir_all(folder()?).context("make the folder of the virtual machines")?;
    let preparing = Turn::taken("preparing")?;
    let programs = built(&names)?;
    let mut emulator = emulated.then(|| Emulator::with(&programs)).transpose()?;
    // If one fails, the others have their turn all the same.
    let fetched: Vec<Option<Result<Unpacked>>> = targets
        .iter()
        .map(|target| match target {
            Target::Emulated(kernel) => Some(kernel.fetched()),
            Target::Here => None,
        })
        .collect();
    let commit = commit();
    drop(preparing);
    // A part of the tests says nothing about a whole program.
    let is_kept = args.is_empty();
    if is_kept && !asked.quick {
        args.push(EVEN_IGNORED.to_owned());
    }

    let mut failures = Vec::new();
    let mut totals = Vec::new();
    let mut all = Tally::default();
    for (target, kernel) in targets.into_iter().zip(fetched) {
        println!("\n== vm: {target}");
        let _turn = Turn::taken(target.name())?;
        if is_kept {
            results::forget(target.name(), &names)?;
        }
        let started = Instant::now();
        let machine = match (kernel, &mut emulator) {
            (Some(kernel), Some(emulator)) => {
                kernel.and_then(|kernel| emulator.machine(kernel, &programs, &args))
            }
            (Some(_) | None, _) => here(&programs, &args),
        };
        let log = folder()?.join(format!("{}.log", target.name()));
        let results = machine.and_then(|(mut command, release)| {
            let results = Results::new(&release, &commit);
            followed(&mut command, &log, results, |so_far| {
                if is_kept {
                    so_far.store(target.name())?;
                }
                Ok(())
            })
        });
        let results = match results {
            Ok(results) => results,
            // The others have their turn all the same.
            Err(error) => {
                failures.push(format!("{target}: {error:#}"));
                all += Tally::one_failed();
                continue;
            }
        };
        let took = started.elapsed().as_secs_f64();
        let title = format!("Linux {}", results.release());
        totals.push(format!(
            "{title}: {} in {took:.0} s; all it said: {}",
            results.total(),
            log.display()
        ));
        all += results.tally();
        failures.extend(
            results
                .failures()
                .map(|failure| format!("{title}: {failure}")),
        );
    }
    println!();
    for failure in &failures {
        println!("failed: {failure}");
    }
    for total in &totals {
        println!("{total}");
    }
    println!("{}", all.as_of_a_test_program());
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether Debian's kernels can be fetched for, and run on, a machine like this one.
pub(crate) fn are_for_this_machine() -> bool {
    cfg!(target_arch = "x86_64") && apt::has_archive()
}

/// Writes the results of the last runs into the page about kernels, oldest first.
fn write_page() -> Result<ExitCode> {
    let emulated = Kernel::ALL.map(Target::Emulated);
    let [oldest, middle, newest] = emulated;
    let targets = [oldest, middle, Target::Here, newest];
    let results = results::stored(targets.iter().map(|target| target.name()))?;
    let page = results::page(&results, &TESTS);
    let path = root()?.join(PAGE);
    let say = || format!("write {}", path.display());
    let text = fs::read_to_string(&path).with_context(say)?;
    let text = results::exchanged(&text, &page).with_context(say)?;
    fs::write(&path, text).with_context(say)?;
    Ok(ExitCode::SUCCESS)
}

/// What is built, as git calls it.
fn commit() -> String {
    let mut ask = Command::new("git");
    ask.args([
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty",
        "--exclude=*",
    ]);
    let told = root().and_then(|root| {
        let output = ask.current_dir(root).output().context("ask git")?;
        Ok(output)
    });
    told.ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_else(|| "that nobody knows".to_owned())
}

/// Builds what goes into the machines.
fn built(names: &[String]) -> Result<Programs> {
    run_command(&mut cargo(["build", "--release", "--package", "throttle"])?)?;
    run_command(&mut cargo([
        "build",
        "--release",
        "--package",
        "throttle-tests",
        "--bins",
    ])?)?;
    let mut build = cargo([
        "test",
        "--no-run",
        "--color=never",
        "--release",
        "--package",
        "throttle-tests",
    ])?;
    for name in names {
        build.args(["--test", name]);
    }
    let output = build
        .output()
        .with_context(|| format!("run {}", described(&build)))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("run {}: {}\n{said}", described(&build), output.status);
    }
    let target = target_dir()?;
    let tests = executables(&said);
    let tests = names.iter().map(|name| {
        let found = tests.iter().find(|(test, _)| test == name);
        let (_, path) = found.with_context(|| format!("find the test program {name}"))?;
        let file = path.file_name().unwrap_or_default();
        Ok((name.clone(), target.join("release/deps").join(file)))
    });
    let release = target.join("release");
    Ok(Programs {
        throttle: release.join("throttle"),
        init: release.join("vm-init"),
        dialer: release.join("dialer"),
        tests: tests.collect::<Result<_>>()?,
    })
}

/// The integration tests in what cargo says it has built, a line each:
/// `Executable tests/frames.rs (target/release/deps/frames-0123)`.
fn executables(said: &str) -> Vec<(String, PathBuf)> {
    let lines = said.lines().filter_map(|line| {
        let (source, path) = line.trim().strip_prefix("Executable ")?.split_once(" (")?;
        let name = source.strip_prefix("tests/")?.strip_suffix(".rs")?;
        Some((name.to_owned(), PathBuf::from(path.strip_suffix(')')?)))
    });
    lines.collect()
}

/// A kernel that the tests are run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// One of those that are fetched.
    Emulated(Kernel),
    /// The one that runs this.
    Here,
}

impl Target {
    /// What this machine's own is called.
    const HERE: &str = "here";

    fn named(name: &str) -> Result<Self> {
        if name == Self::HERE {
            Ok(Self::Here)
        } else {
            Kernel::named(name).map(Self::Emulated)
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Emulated(kernel) => kernel.series,
            Self::Here => Self::HERE,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulated(kernel) => write!(f, "Linux {}", kernel.series),
            Self::Here => f.write_str("this machine"),
        }
    }
}

/// Where kernels, images and results are.
fn folder() -> Result<PathBuf> {
    Ok(target_dir()?.join(FOLDER))
}

/// What runs the tests in machines, with what they have in common.
struct Emulator {
    qemu: Qemu,
    common: File,
}

impl Emulator {
    fn with(programs: &Programs) -> Result<Self> {
        Ok(Self {
            qemu: Qemu::fetched()?,
            common: image::write_common(programs).context("write the initramfs")?,
        })
    }

    /// What runs a machine to its end, and the version of its kernel.
    fn machine(
        &mut self,
        unpacked: Unpacked,
        programs: &Programs,
        args: &[String],
    ) -> Result<(Command, String)> {
        let env = [
            ("THROTTLE_TEST_SLOW", SLOWNESS.to_string()),
            ("THROTTLE_TEST_WHOLE", MISSING.join(" ")),
        ];
        let plan = Plan {
            programs: &programs.inside(),
            env: &env,
            args,
            most: TEST_TIMEOUT,
        };
        let initramfs = image::write(&mut self.common, &unpacked, &plan)
            .with_context(|| format!("write the initramfs of Linux {}", unpacked.release))?;
        let mut command = self.qemu.command();
        command
            .args(["-accel", self.qemu.accelerator()])
            .args(["-cpu", "max", "-smp", "2"])
            .args(["-m", "2048", "-nodefaults", "-no-user-config", "-nographic"])
            .args(["-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&unpacked.image)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", COMMAND_LINE]);
        Ok((command, unpacked.release))
    }
}

/// What runs them on this machine, and the version of its kernel.
fn here(programs: &Programs, args: &[String]) -> Result<(Command, String)> {
    let release = fs::read_to_string(RELEASE).with_context(|| format!("read {RELEASE}"))?;
    let plan = Plan {
        programs,
        env: &[],
        args,
        most: TEST_TIMEOUT,
    };
    let path = folder()?.join("here.plan");
    fs::write(&path, plan.lines()?).with_context(|| format!("write {}", path.display()))?;
    let mut command = ended_with_us(&programs.init);
    command.arg(path);
    Ok((command, release.trim().to_owned()))
}

/// A command for a program that ends with us, however we end.
fn ended_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// Runs what says on its console, its standard output, what it found. `keep` is given
/// that as far as it is known whenever a test program has ended, and at the end.
fn followed(
    command: &mut Command,
    log: &Path,
    mut results: Results,
    keep: impl Fn(&Results) -> Result<()>,
) -> Result<Results> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut machine = Machine(
        command
            .spawn()
            .with_context(|| format!("run {}", described(command)))?,
    );
    let console = machine.0.stdout.take().context("read a console")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while console
            .read_until(b'\n', &mut line)
            .is_ok_and(|len| len > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let mut log = File::create(log).with_context(|| format!("make {}", log.display()))?;
    let mut until = Instant::now() + BOOT_TIMEOUT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                writeln!(log, "{line}").context("write the log of a console")?;
                println!("{} | {line}", results.version());
                match results.take(&line) {
                    // The machine itself ends a test program in time.
                    Said::Begins => until = Instant::now() + TEST_TIMEOUT + BOOT_TIMEOUT,
                    Said::Ends => keep(&results)?,
                    Said::Other => {}
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                results.fails("it hung, and was switched off");
                break;
            }
        }
    }
    results.finish();
    keep(&results)?;
    Ok(results)
}

/// Who holds it works alone on what it is named after, among all that are run in this
/// workspace.
struct Turn(#[expect(dead_code, reason = "held until it is dropped")] File);

impl Turn {
    /// Waits for it.
    fn taken(name: &str) -> Result<Self> {
        let path = folder()?.join(format!("{name}.lock"));
        let say = || format!("lock {}", path.display());
        let file = File::create(&path).with_context(say)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                println!("waiting for another run ({})", path.display());
                file.lock().with_context(say)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(say),
        }
        Ok(Self(file))
    }
}

/// A machine that is switched off when it is no longer looked at.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails only if it has ended, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_program_is_run_on_other_kernels_or_known_not_to_be() {
        let mut listed: Vec<_> = TESTS.into_iter().chain(NOT_IN_MACHINES).collect();
        listed.sort_unstable();
        let files = fs::read_dir(root().unwrap().join("tests/tests")).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let mut there: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        there.sort_unstable();
        assert_eq!(there, listed);
        assert!(QUICK.iter().all(|name| TESTS.contains(name)));
    }

    #[test]
    fn the_test_programs_are_found_in_what_cargo_says() {
        let said = "\
    Finished `release` profile
  Executable unittests src/lib.rs (target/release/deps/throttle_tests-5c)
  Executable tests/frames.rs (target/release/deps/frames-e4)
";
        assert_eq!(
            executables(said),
            [(
                "frames".to_owned(),
                PathBuf::from("target/release/deps/frames-e4")
            )]
        );
    }
}
