//! Makes the Debian package, and has it tested.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use xtask::tools::{self, Version};

use crate::{
    setup::{self, cargo_install},
    workspace::{cargo, described, is_root, run as run_command, target_dir},
};

/// What puts the package together. It is compiled if there is none, or one of
/// another version.
const CARGO_DEB: Version = Version::new(3, 8, 0);

/// What it calls, and what the tests read the package with: a command and its
/// package of Debian.
const COMMANDS: [(&str, &str); 6] = [
    ("dpkg-deb", "dpkg"),
    ("dpkg-shlibdeps", "dpkg-dev"),
    ("strip", "binutils"),
    ("gzip", "gzip"),
    ("man", "man-db"),
    ("systemd-analyze", "systemd"),
];

/// The environment variable that tells the tests which package it is about.
const THROTTLE_DEB: &str = "THROTTLE_DEB";

/// Makes the package and says where it is.
pub(crate) fn run() -> Result<ExitCode> {
    setup::run(&[setup::Purpose::Package])?;
    println!("package:         {}", build()?.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes the package, and prepares the run of its tests.
pub(crate) fn tests(args: &[OsString]) -> Result<Command> {
    if !is_root() {
        bail!(
            "install a package over a copy of this machine: only root can\n\
             run `cargo xtask test package` as root"
        );
    }
    let package = build()?;
    let mut command = cargo([
        "test",
        "--package",
        "throttle-tests",
        "--release",
        "--test",
        "package",
        "--",
    ])?;
    command.arg("--test-threads=1").args(args);
    command.env(THROTTLE_DEB, package);
    Ok(command)
}

/// Whether packages of this kind can be installed here.
pub(crate) fn is_made_for_this_machine() -> bool {
    tools::program("dpkg").is_some()
}

/// The packages of Debian that are needed and not there.
pub(crate) fn missing_packages() -> Vec<&'static str> {
    let missing = COMMANDS
        .iter()
        .filter(|(command, _)| tools::program(command).is_none());
    missing.map(|&(_, package)| package).collect()
}

/// Compiles what puts packages together, unless it is there. Returns its version.
pub(crate) fn install_cargo_deb() -> Result<Version> {
    if cargo_deb_version() != Some(CARGO_DEB) {
        println!("installing:      cargo-deb {CARGO_DEB}, compiled in some two minutes");
        cargo_install("cargo-deb", &CARGO_DEB.to_string())?;
    }
    cargo_deb_version().context("run the cargo-deb that was just installed")
}

fn cargo_deb_version() -> Option<Version> {
    let output = Command::new(tools::program("cargo-deb")?)
        .arg("--version")
        .output()
        .ok()?;
    Version::find(&String::from_utf8_lossy(&output.stdout))
}

/// Builds `throttle`, what is generated from it, and the package of both.
fn build() -> Result<PathBuf> {
    run_command(&mut cargo(["build", "--release", "--package", "throttle"])?)?;
    generate(&target_dir()?.join("release"))?;
    let mut command = cargo([
        "deb",
        "--package",
        "throttle",
        "--no-build",
        "--locked",
        "--strip",
    ])?;
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {}", described(&command)))?;
    if !output.status.success() {
        bail!("run {}: {}, see above", described(&command), output.status);
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    package_in(&printed).with_context(|| {
        format!(
            "find the package: {} printed {printed:?}",
            described(&command)
        )
    })
}

/// The package that cargo-deb says it has made.
fn package_in(printed: &str) -> Option<PathBuf> {
    let last = printed.lines().rfind(|line| !line.trim().is_empty())?;
    let path = PathBuf::from(last.trim());
    (path.extension() == Some(OsStr::new("deb"))).then_some(path)
}

/// Has the program in `release` write its man pages and completions, where the
/// package takes them from. Those of an earlier build are gone.
fn generate(release: &Path) -> Result<()> {
    let folder = release.join("package");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    let mut write = Command::new(release.join("throttle"));
    run_command(write.arg("generate").arg(&folder))?;
    let pages = folder.join("man8");
    let entries = fs::read_dir(&pages).with_context(|| format!("list {}", pages.display()))?;
    // The same bytes each time: without names and times.
    let mut compress = Command::new("gzip");
    compress.args(["-9", "-n"]);
    for entry in entries {
        compress.arg(
            entry
                .with_context(|| format!("list {}", pages.display()))?
                .path(),
        );
    }
    run_command(&mut compress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_the_last_thing_that_is_printed() {
        assert_eq!(
            package_in("warning: x\n/a/b/throttle_0.1.0-1_amd64.deb\n\n"),
            Some("/a/b/throttle_0.1.0-1_amd64.deb".into())
        );
        assert_eq!(package_in("done\n"), None);
        assert_eq!(package_in(""), None);
    }
}
