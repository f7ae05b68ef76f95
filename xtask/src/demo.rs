//! Builds throttle and becomes the demo: an interrupt reaches it, and nothing
//! of us is left to wait for.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    setup,
    workspace::{cargo, described, with_throttle},
};

/// Only returns when the demo cannot be started.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    setup::run(&[setup::Purpose::Kernel])?;
    let mut command = cargo([
        "run",
        "--quiet",
        "--release",
        "--package",
        "throttle-tests",
        "--bin",
        "demo",
        "--",
    ])?;
    command.args(args);
    with_throttle(&mut command)?;
    Err(command.exec()).with_context(|| format!("run {}", described(&command)))
}
