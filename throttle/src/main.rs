//! The `throttle` command.

mod cli;
mod commands;

use std::process::ExitCode;

fn main() -> ExitCode {
    commands::main()
}
