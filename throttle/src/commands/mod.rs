//! The commands.

mod explain;
pub(crate) mod generate;
mod log;
mod run;

use std::process::ExitCode;

use clap::Parser as _;
use throttle::Error;

use self::log::Log;
use crate::cli::{Cli, Command};

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    // Events alone go to the standard output.
    let log = Log::start();
    let result = match cli.command {
        Command::Run(run) => run::run(&run),
        Command::Explain => explain::explain(),
        Command::Generate(generate) => generate::generate(&generate),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.say(&format!("throttle: {error:#}"));
            ExitCode::from(error.downcast_ref::<Error>().map_or(1, Error::exit_code))
        }
    }
}
