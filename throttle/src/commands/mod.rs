//! The commands.

mod doctor;
mod explain;
mod log;
mod run;

use std::process::ExitCode;

use clap::Parser as _;
use throttle::Error;

use self::log::Log;
use crate::cli::{Cli, Command};

pub(crate) use self::doctor::Doctor;

/// How a command writes what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Format {
    /// The one that was asked for; else text on a terminal, json elsewhere.
    fn or_default(asked: Option<Self>, is_terminal: bool) -> Self {
        asked.unwrap_or(if is_terminal { Self::Text } else { Self::Json })
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    // Events alone go to the standard output.
    let log = Log::start();
    let result = match cli.command {
        Command::Run(run) => run::run(&run),
        Command::Explain => explain::explain(),
        Command::Doctor(doctor) => match doctor::doctor(&doctor) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.say(&format!("throttle: {error:#}"));
            ExitCode::from(error.downcast_ref::<Error>().map_or(1, Error::exit_code))
        }
    }
}
