//! The commands.

mod end;
mod explain;
mod log;
mod run;

use std::{
    io::{IsTerminal as _, stdout},
    process::ExitCode,
};

use clap::Parser as _;
use throttle::Error;

pub(crate) use self::end::End;
use self::log::Log;
use crate::cli::{Cli, Command};

/// How a command writes what it has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Lines for people.
    Text,
    /// An object for programs.
    Json,
}

impl Format {
    /// The one for whoever reads the standard output.
    fn of_stdout() -> Self {
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
        Command::End(end) => end::end(&end),
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
