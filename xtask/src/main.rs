//! The project's own tasks: `cargo xtask --help`.

mod demo;
mod formats;
mod lint;
mod package;
mod setup;
mod test;
mod vm;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;

/// The project's own tasks
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Install, or find, what building and testing need
    Setup,
    /// Build throttle and show what it does, in network namespaces of its own
    Demo {
        /// Passed on to the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run the tests and print how many passed, failed and were skipped
    Test {
        /// The levels to run: all of them if none is named
        #[arg(value_enum)]
        levels: Vec<test::Level>,
        /// Passed on to the test programs: the names of the tests to run, and options
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Run the integration tests on other kernels, in virtual machines
    Vm(vm::Vm),
    /// Make the Debian package and say where it is
    Package,
    /// Check the format, the code, and the licences of what it depends on
    Lint,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup => setup::run(&setup::Purpose::ALL).map(|()| ExitCode::SUCCESS),
        Task::Demo { args } => demo::run(&args),
        Task::Test { levels, args } => test::run(&levels, &args),
        Task::Vm(asked) => vm::run(&asked),
        Task::Package => package::run(),
        Task::Lint => lint::run(),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("because: {cause}");
        }
        ExitCode::FAILURE
    })
}
