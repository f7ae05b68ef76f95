//! Checks the format, the code, and the licences of what it depends on.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::Result;
use xtask::{
    ebpf::{self, Origin, Toolchain},
    tools,
};

use crate::{
    setup,
    workspace::{cargo, is_root, root, run as run_command, target_dir},
};

/// The cargo-deny that is compiled when there is none.
const CARGO_DENY: &str = "0.20.2";

/// Debian's package of the clippy that belongs to its rustc-web.
const CLIPPY_PACKAGE: &str = "rust-web-clippy";

struct Check {
    title: &'static str,
    run: fn() -> Result<()>,
}

/// Runs all checks, even if one of them fails.
pub(crate) fn run() -> Result<ExitCode> {
    setup::run(&[])?;
    let checks = [
        Check {
            title: "format",
            run: format,
        },
        Check {
            title: "clippy",
            run: clippy,
        },
        Check {
            title: "clippy for the BPF target",
            run: clippy_ebpf,
        },
        Check {
            title: "licences, bans and sources",
            run: deny,
        },
    ];
    let mut failures = Vec::new();
    for Check { title, run } in &checks {
        println!("\n== {title}");
        if let Err(error) = run() {
            failures.push(format!("{title}: {error:#}"));
        }
    }
    println!();
    for failure in &failures {
        println!("failed: {failure}");
    }
    println!(
        "{} of {} checks passed",
        checks.len() - failures.len(),
        checks.len()
    );
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn format() -> Result<()> {
    run_command(&mut cargo(["fmt", "--all", "--check"])?)
}

fn clippy() -> Result<()> {
    run_command(&mut cargo([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?)?;
    // Cargo leaves out, even so, what is not run with all other tests.
    run_command(&mut cargo([
        "clippy",
        "--package",
        "throttle-tests",
        "--test",
        "package",
        "--",
        "-D",
        "warnings",
    ])?)
}

/// The programs as they are compiled for the kernel, by the clippy of the very
/// rustc that compiles them.
fn clippy_ebpf() -> Result<()> {
    let toolchain = ebpf::toolchain()?;
    let clippy = toolchain.rustc.with_file_name("cargo-clippy");
    if !clippy.is_file() && toolchain.origin == Origin::System && is_root() {
        setup::install(&[CLIPPY_PACKAGE])?;
    }
    if !clippy.is_file() {
        println!(
            "left out: {toolchain} has no clippy\nget it with: {}",
            get_clippy(&toolchain)
        );
        return Ok(());
    }
    // Beside the target directory of the builds, which keeps its flags.
    let target_dir = target_dir()?.join("ebpf-clippy");
    let plain = ebpf::cargo(&toolchain, &root()?, &target_dir)?;
    let mut command = through(plain, clippy);
    command
        .args(["clippy", "--release", "--bin", ebpf::PACKAGE])
        .args(ebpf::arguments());
    command.args(["--", "-D", "warnings"]);
    run_command(&mut command)
}

/// The environment of `cargo`, for a program that runs that cargo itself.
fn through(cargo: Command, program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.env("CARGO", cargo.get_program());
    if let Some(directory) = cargo.get_current_dir() {
        command.current_dir(directory);
    }
    for (name, value) in cargo.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None if name == "CARGO" => &mut command,
            None => command.env_remove(name),
        };
    }
    command
}

fn get_clippy(toolchain: &Toolchain) -> String {
    match &toolchain.origin {
        Origin::Rustup(name) => format!("rustup component add clippy --toolchain {name}"),
        Origin::System => format!("apt-get install {CLIPPY_PACKAGE}"),
    }
}

fn deny() -> Result<()> {
    if tools::program("cargo-deny").is_none() {
        println!("installing: cargo-deny {CARGO_DENY}, compiled in some minutes");
        setup::cargo_install("cargo-deny", CARGO_DENY)?;
    }
    let program = tools::program("cargo-deny").map_or_else(|| "cargo-deny".into(), OsString::from);
    let mut command = Command::new(program);
    command
        .args([
            "--workspace",
            "check",
            "--hide-inclusion-graph",
            "licenses",
            "bans",
            "sources",
        ])
        .current_dir(root()?);
    run_command(&mut command)
}
