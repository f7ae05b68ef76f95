//! Checks what is written about events with the checkers of others: Elastic's
//! and OCSF's own schemas, and readers of CEF and of RFC 5424.
//!
//! They are put into a folder of the target directory, and need no network
//! afterwards.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use xtask::tools;

use crate::{
    setup::run_quietly,
    workspace::{cargo, root, target_dir},
};

/// How many events are made of each format.
const EVENTS: &str = "10000";
/// The events are random, but the same in every run: what fails stays.
const SEED: &str = "4226";

/// What runs the checkers: a command and its package of Debian.
const COMMANDS: [(&str, &str); 3] = [("node", "nodejs"), ("npm", "npm"), ("python3", "python3")];
/// Debian's package of the part of Python that makes an environment.
const VENV_PACKAGE: &str = "python3-venv";

/// A package with its version.
type Package = (&'static str, &'static str);

/// Of npm.
const NPM: [Package; 1] = [("@elastic/ecs", "9.4.0")];
/// Of Python.
const PYTHON: [Package; 5] = [
    ("ocsf-json-schema", "1.2.0"),
    ("jsonschema", "4.26.0"),
    ("pycef", "1.11"),
    ("cefevent", "0.5.6"),
    ("syslog-rfc5424-parser", "0.3.2"),
];

/// The packages of Debian that are needed and not there.
pub(crate) fn missing_packages() -> Vec<&'static str> {
    let missing = COMMANDS
        .iter()
        .filter(|(command, _)| tools::program(command).is_none());
    let mut packages: Vec<_> = missing.map(|&(_, package)| package).collect();
    if !succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
        packages.push(VENV_PACKAGE);
    }
    packages
}

/// The checkers, with their versions.
pub(crate) fn checkers() -> String {
    let all: Vec<_> = NPM
        .iter()
        .chain(&PYTHON)
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    all.join(", ")
}

/// Installs those checkers that are not there in the version that is asked for.
pub(crate) fn install_checkers() -> Result<()> {
    let folder = folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let npm: Vec<_> = NPM
        .iter()
        .filter(|package| !has_node_package(&folder, package))
        .map(|(name, version)| format!("{name}@{version}"))
        .collect();
    if !npm.is_empty() {
        println!("installing:      {}", npm.join(", "));
        install_node_packages(&folder, &npm)?;
    }
    let python: Vec<_> = PYTHON
        .iter()
        .map(|(name, version)| format!("{name}=={version}"))
        .collect();
    if !has_python_packages(&folder) {
        println!("installing:      {}", python.join(", "));
        install_python_packages(&folder, &python)?;
    }
    Ok(())
}

/// Without a package.json, and none of the programs that packages bring along
/// is run.
fn install_node_packages(folder: &Path, packages: &[String]) -> Result<()> {
    let npm = tools::program("npm").context("find npm")?;
    let mut command = Command::new(npm);
    command.arg("install").arg("--prefix").arg(folder).args([
        "--no-save",
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
    ]);
    run_quietly(command.args(packages).current_dir(folder))
}

/// Into an environment of their own, which is made anew.
fn install_python_packages(folder: &Path, packages: &[String]) -> Result<()> {
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(venv(folder));
    run_quietly(&mut make)?;
    let mut install = Command::new(python(folder));
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    run_quietly(install.args(packages))
}

fn has_node_package(folder: &Path, (name, version): &Package) -> bool {
    let manifest = folder.join("node_modules").join(name).join("package.json");
    fs::read_to_string(manifest)
        .is_ok_and(|text| text.contains(&format!("\"version\": \"{version}\"")))
}

/// Whether the environment works, and has all packages in the right version.
fn has_python_packages(folder: &Path) -> bool {
    const LOOK: &str = "\
import sys
from importlib.metadata import version
sys.exit(any(version(name) != wanted for name, wanted in zip(sys.argv[1::2], sys.argv[2::2])))
";
    let packages = PYTHON.iter().flat_map(|&(name, version)| [name, version]);
    succeeds(
        Command::new(python(folder))
            .args(["-I", "-c", LOOK])
            .args(packages),
    )
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Where the checkers are, and the events.
fn folder() -> Result<PathBuf> {
    Ok(target_dir()?.join("formats"))
}

fn venv(folder: &Path) -> PathBuf {
    folder.join("venv")
}

fn python(folder: &Path) -> PathBuf {
    venv(folder).join("bin/python")
}

fn events(folder: &Path) -> PathBuf {
    folder.join("events")
}

/// Writes the events that the other steps check. Those of an earlier run are
/// gone, so none of them is checked again.
pub(crate) fn random_events(_: &[OsString]) -> Result<Command> {
    let events = events(&folder()?);
    if events.exists() {
        fs::remove_dir_all(&events).with_context(|| format!("remove {}", events.display()))?;
    }
    fs::create_dir_all(&events).with_context(|| format!("create {}", events.display()))?;
    let mut command = cargo([
        "run",
        "--package",
        "throttle",
        "--example",
        "random_events",
        "--",
        EVENTS,
        SEED,
        "all",
    ])?;
    command.arg(events);
    Ok(command)
}

/// Elastic's own list of fields, which is a package of npm.
pub(crate) fn ecs(_: &[OsString]) -> Result<Command> {
    let node = tools::program("node").context("find node")?;
    let mut command = Command::new(node);
    command.env("NODE_PATH", folder()?.join("node_modules"));
    check(command, "ecs.js", "json")
}

/// OCSF's own schema.
pub(crate) fn ocsf(_: &[OsString]) -> Result<Command> {
    check_in_python("ocsf")
}

/// A reader of CEF.
pub(crate) fn cef(_: &[OsString]) -> Result<Command> {
    check_in_python("cef")
}

/// A reader of RFC 5424.
pub(crate) fn syslog(_: &[OsString]) -> Result<Command> {
    check_in_python("syslog")
}

fn check_in_python(format: &str) -> Result<Command> {
    let mut command = Command::new(python(&folder()?));
    // Leaves nothing beside the scripts.
    command.arg("-B");
    check(command, &format!("{format}.py"), format)
}

/// Lets `command` run a script on the events in `format`.
fn check(mut command: Command, script: &str, format: &str) -> Result<Command> {
    let events = events(&folder()?);
    command.arg(root()?.join("tests/formats").join(script));
    command.args([events.join(format), events.join("values")]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_checker_is_of_one_version() {
        for (name, version) in NPM.iter().chain(&PYTHON) {
            assert!(tools::Version::find(version).is_some(), "{name} {version}");
            assert!(checkers().contains(name));
        }
    }

    #[test]
    fn what_is_not_installed_is_not_there() {
        let nowhere = Path::new("/no/folder/has/this/name");
        assert!(!has_node_package(nowhere, &NPM[0]));
        assert!(!has_python_packages(nowhere));
    }
}
