//! The commands.

mod explain;
mod log;
mod run;
mod top;

use std::{
    io::{IsTerminal as _, stdout},
    process::ExitCode,
};

use clap::Parser as _;
use throttle::Error;

use self::log::Log;
pub(crate) use self::top::Top;
use crate::cli::{Cli, Command};

/// How a command writes what it has found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Format {
    /// Text on a terminal, else JSON.
    fn by_default() -> Self {
        if stdout().is_terminal() {
            Self::Text
        } else {
            Self::Json
        }
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    // Events alone go to the standard output.
    let log = Log::start();
    let result = match cli.command {
        Command::Run(run) => run::run(&run),
        Command::Top(top) => top::top(&top),
        Command::Explain => explain::explain(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.say(&format!("throttle: {error:#}"));
            ExitCode::from(error.downcast_ref::<Error>().map_or(1, Error::exit_code))
        }
    }
}
