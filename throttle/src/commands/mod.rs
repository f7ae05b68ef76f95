//! The commands.

mod explain;
mod run;

use std::process::ExitCode;

use clap::Parser as _;
use env_logger::Env;
use throttle::Error;

use crate::cli::{Cli, Command};

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    // Events alone go to the standard output.
    env_logger::Builder::from_env(Env::default().default_filter_or("info"))
        .target(env_logger::Target::Stderr)
        .format_target(false)
        .init();
    let result = match cli.command {
        Command::Run(run) => run::run(&run),
        Command::Explain => explain::explain(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throttle: {error:#}");
            ExitCode::from(error.downcast_ref::<Error>().map_or(1, Error::exit_code))
        }
    }
}
