//! Runs the tests, level by level, and adds up what cargo reports.

use std::{
    env,
    ffi::OsString,
    fmt,
    io::{BufRead as _, BufReader, Write, stdout},
    ops::AddAssign,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    formats, package, setup, vm,
    workspace::{cargo, described, is_root, target_dir, with_throttle},
};

/// A level of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Unit tests and the model check of the counters: no privileges needed
    Host,
    /// Real kernels, sockets and programs, in network namespaces: needs root
    Kernel,
    /// Random events in every format, read by the checkers of others
    Formats,
    /// The Debian package, installed over a copy of this machine: needs root
    Package,
    /// Other kernels, in virtual machines: that the programs load and work there
    Boot,
    /// The kernel's level on other kernels: takes an hour, and only if it is named
    Vm,
}

/// Runs all of `levels`, even if one of them fails.
pub(crate) fn run(levels: &[Level], args: &[OsString]) -> Result<ExitCode> {
    let levels: Vec<Level> = if levels.is_empty() {
        let all = Level::value_variants().iter().copied();
        all.filter(|level| *level != Level::Vm && level.is_for_this_machine())
            .collect()
    } else {
        levels.to_vec()
    };
    let purposes: Vec<_> = levels.iter().filter_map(|level| level.purpose()).collect();
    setup::run(&purposes)?;

    let mut total = Tally::default();
    let mut failures = Vec::new();
    for Step { title, command } in levels.iter().flat_map(|level| level.steps()) {
        println!("\n== {title}");
        let failed = total.failed;
        let done = command(args)
            .and_then(|mut command| streamed(&mut command, &mut stdout().lock(), &mut total));
        if let Err(error) = done {
            failures.push(format!("{title}: {error:#}"));
            if total.failed == failed {
                // What was not compiled or not started has no result of its own.
                total.failed += 1;
            }
        }
    }

    println!();
    for failure in &failures {
        println!("failed: {failure}");
    }
    println!("{total}");
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Level {
    /// What it needs besides what compiles it.
    const fn purpose(self) -> Option<setup::Purpose> {
        match self {
            Self::Host => None,
            Self::Kernel => Some(setup::Purpose::Kernel),
            Self::Formats => Some(setup::Purpose::Formats),
            Self::Package => Some(setup::Purpose::Package),
            Self::Boot | Self::Vm => Some(setup::Purpose::Vm),
        }
    }

    /// Whether it is about this kind of machine; says so if it is not.
    fn is_for_this_machine(self) -> bool {
        match self {
            Self::Package if !package::is_made_for_this_machine() => {
                println!("skipped: the Debian package: this machine has no dpkg");
                false
            }
            Self::Boot if !vm::are_for_this_machine() => {
                println!("skipped: other kernels: this machine is no Debian on x86-64");
                false
            }
            Self::Host | Self::Kernel | Self::Formats | Self::Package | Self::Boot | Self::Vm => {
                true
            }
        }
    }

    fn steps(self) -> &'static [Step] {
        match self {
            Self::Host => &[
                Step {
                    title: "host: unit tests",
                    command: unit_tests,
                },
                Step {
                    title: "host: model check",
                    command: model,
                },
            ],
            Self::Kernel => &[Step {
                title: "kernel: integration tests",
                command: integration_tests,
            }],
            Self::Formats => &[
                Step {
                    title: "formats: random events",
                    command: formats::random_events,
                },
                Step {
                    title: "formats: ECS",
                    command: formats::ecs,
                },
                Step {
                    title: "formats: OCSF",
                    command: formats::ocsf,
                },
                Step {
                    title: "formats: CEF",
                    command: formats::cef,
                },
                Step {
                    title: "formats: RFC 5424",
                    command: formats::syslog,
                },
            ],
            Self::Package => &[Step {
                title: "package: installs, runs, upgrades, removes",
                command: package::tests,
            }],
            Self::Boot => &[Step {
                title: "boot: the programs on other kernels",
                command: boot,
            }],
            Self::Vm => &[Step {
                title: "vm: integration tests on other kernels",
                command: vm_tests,
            }],
        }
    }
}

/// One run of cargo, or of a program that reports like a test program.
struct Step {
    title: &'static str,
    /// Prepares the run, given what is passed on to the test programs.
    command: fn(&[OsString]) -> Result<Command>,
}

fn unit_tests(args: &[OsString]) -> Result<Command> {
    let mut command = cargo([
        "test",
        "--no-fail-fast",
        "--workspace",
        "--exclude",
        "throttle-tests",
        "--",
    ])?;
    command.args(args);
    Ok(command)
}

/// Every interleaving that the model checker can think of: it needs atomics of
/// its own, so nothing of this build can be used by another.
fn model(args: &[OsString]) -> Result<Command> {
    let mut command = cargo([
        "test",
        "--package",
        "throttle-common",
        "--release",
        "--test",
        "model",
        "--",
    ])?;
    command.args(args);
    command
        .env("RUSTFLAGS", "--cfg shuttle")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("CARGO_TARGET_DIR", target_dir()?.join("shuttle"));
    Ok(command)
}

/// One at a time: each is a small network with real programs in it, and waits
/// for them.
fn integration_tests(args: &[OsString]) -> Result<Command> {
    if !is_root() {
        bail!(
            "make network namespaces and load eBPF programs: only root can\n\
             run `cargo xtask test` as root, or `cargo xtask test host` without"
        );
    }
    let mut command = cargo([
        "test",
        "--no-fail-fast",
        "--package",
        "throttle-tests",
        "--release",
        "--",
    ])?;
    command.arg("--test-threads=1").args(args);
    with_throttle(&mut command)?;
    Ok(command)
}

/// All kernels, by this program, for a short while.
fn boot(args: &[OsString]) -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("find this program")?);
    command.args(["vm", "--quick", "--"]).args(args);
    Ok(command)
}

/// All kernels, by this program.
fn vm_tests(args: &[OsString]) -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("find this program")?);
    command.args(["vm", "--"]).args(args);
    Ok(command)
}

/// Runs `command`, passes on to `here` what it prints as it comes, and adds the
/// results in it to `total`.
fn streamed(command: &mut Command, here: &mut impl Write, total: &mut Tally) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", described(command)))?;
    let output = child
        .stdout
        .take()
        .context("read what the tests print: it is not piped")?;
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output
        .read_until(b'\n', &mut line)
        .context("read what the tests print")?
        > 0
    {
        here.write_all(&line)
            .and_then(|()| here.flush())
            .context("pass on what the tests print")?;
        if let Some(result) = Tally::of(&String::from_utf8_lossy(&line)) {
            *total += result;
        }
        line.clear();
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for {}", described(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", described(command));
    }
    Ok(())
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    /// The result of one test program, if `line` is one:
    /// `test result: ok. 9 passed; 0 failed; 1 ignored; …`.
    fn of(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let count = |what: &str| {
            let mut counts = counts.split(';').map(str::trim);
            counts.find_map(|count| count.strip_suffix(what)?.trim_end().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "test result: ok. 9 passed; 0 failed; 2 ignored; 0 measured; \
                      4 filtered out; finished in 0.00s\n";
    const FAILED: &str = "test result: FAILED. 7 passed; 3 failed; 1 ignored; 0 measured; \
                          0 filtered out; finished in 12.50s\n";

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_result_of_a_test_program_is_read_from_its_line() {
        assert_eq!(
            Tally::of(OK),
            Some(Tally {
                passed: 9,
                failed: 0,
                skipped: 2
            })
        );
        assert_eq!(
            Tally::of(FAILED),
            Some(Tally {
                passed: 7,
                failed: 3,
                skipped: 1
            })
        );
    }

    #[test]
    fn other_lines_hold_no_result() {
        for line in [
            "",
            "running 9 tests",
            "test a::b ... ok",
            " test result: ok. 1 passed",
            "test result: ok",
        ] {
            assert_eq!(Tally::of(line), None, "{line}");
        }
    }

    #[test]
    fn the_results_of_several_test_programs_add_up_and_all_is_passed_on() {
        let (mut here, mut total) = (Vec::new(), Tally::default());
        let mut script = shell(&format!("printf '%s' 'running\n{OK}{FAILED}half a line'"));
        streamed(&mut script, &mut here, &mut total).unwrap();
        assert_eq!(total.to_string(), "16 passed, 3 failed, 3 skipped");
        assert_eq!(
            String::from_utf8(here).unwrap(),
            format!("running\n{OK}{FAILED}half a line")
        );
    }

    #[test]
    fn a_test_program_that_fails_is_an_error_and_counts_all_the_same() {
        let mut total = Tally::default();
        let mut script = shell(&format!("printf '%s' '{OK}'; exit 101"));
        assert!(streamed(&mut script, &mut Vec::new(), &mut total).is_err());
        assert_eq!(total.passed, 9);
    }
}
