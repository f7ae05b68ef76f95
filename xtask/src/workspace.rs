//! Where things are, and the cargo that works on them.

use std::{
    env,
    ffi::OsString,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The environment variable that tells the integration tests and the demo
/// which `throttle` to run.
const THROTTLE_BIN: &str = "THROTTLE_BIN";

/// The folder with the workspace's Cargo.toml.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest_dir =
        env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&manifest_dir).parent().map(Path::to_path_buf);
    root.filter(|root| root.join("Cargo.lock").is_file())
        .context("find the workspace: run `cargo xtask` inside it")
}

/// The directory of cargo's output.
pub(crate) fn target_dir() -> Result<PathBuf> {
    match env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
        Some(chosen) => std::path::absolute(chosen).context("make CARGO_TARGET_DIR absolute"),
        None => Ok(root()?.join("target")),
    }
}

/// The program that runs us, or the one in `PATH`.
pub(crate) fn cargo_program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A cargo in the workspace.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Result<Command> {
    let mut command = Command::new(cargo_program());
    command
        .args(args)
        .current_dir(root()?)
        .env("CARGO_TARGET_DIR", target_dir()?);
    Ok(command)
}

/// Builds the `throttle` that the integration tests and the demo run, and
/// tells `command` where it is.
pub(crate) fn with_throttle(command: &mut Command) -> Result<()> {
    run(&mut cargo(["build", "--release", "--package", "throttle"])?)?;
    command.env(THROTTLE_BIN, target_dir()?.join("release/throttle"));
    Ok(())
}

/// Runs `command` to its end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {}", described(command)))?;
    if !status.success() {
        bail!("run {}: {status}, see above", described(command));
    }
    Ok(())
}

/// `command` as one would type it.
pub(crate) fn described(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    Path::new("/proc/self")
        .metadata()
        .is_ok_and(|this| this.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_described_without_the_path_of_its_program() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["build", "--release"]);
        assert_eq!(described(&command), "cargo build --release");
    }

    #[test]
    fn the_root_holds_all_the_crates() {
        let root = root().unwrap();
        for name in [
            "xtask",
            "throttle",
            "throttle-common",
            "throttle-ebpf",
            "tests",
        ] {
            assert!(root.join(name).join("Cargo.toml").is_file(), "{name}");
        }
    }
}
