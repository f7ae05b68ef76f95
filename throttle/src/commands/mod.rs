//! The commands.

pub(crate) mod detach;
pub(crate) mod doctor;
pub(crate) mod end;
mod explain;
pub(crate) mod generate;
mod log;
mod run;
pub(crate) mod set;
pub(crate) mod status;
pub(crate) mod top;

use std::{
    io::{self, IsTerminal as _, Write as _, stdout},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use throttle::{Error, instance::Instance, name::Name};
use tokio::runtime::Runtime;

use self::log::Log;
use crate::cli::{Cli, Command};

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    // Events alone go to the standard output.
    let log = Log::start();
    let result = match cli.command {
        Command::Run(run) => run::run(&run),
        Command::Status(args) => status::status(&args),
        Command::Set(args) => set::set(&args),
        Command::Detach(args) => detach::detach(&args),
        Command::End(end) => end::end(&end),
        Command::Top(top) => top::top(&top),
        Command::Explain => explain::explain(),
        Command::Generate(generate) => generate::generate(&generate),
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

/// How a command writes what it has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shown {
    /// For people.
    Text,
    /// One JSON object in a line.
    Json,
}

impl Shown {
    /// What was asked for; else text on a terminal, and json elsewhere.
    pub(crate) fn or_default(asked: Option<Self>) -> Self {
        asked.unwrap_or_else(|| {
            if stdout().is_terminal() {
                Self::Text
            } else {
                Self::Json
            }
        })
    }
}

/// Writes to the standard output. A reader that has seen enough is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to the standard output"),
    }
}

/// What somebody called something, without anything that a terminal would obey.
pub(crate) fn shown(name: &str) -> String {
    Name::new(name).to_string()
}

/// A runtime for what is asked over netlink.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

/// The throttle of this name, or all of this network namespace.
pub(crate) fn chosen_or_none(name: Option<&str>) -> Result<Vec<Instance>, Error> {
    let mut all = Instance::all()?;
    if let Some(name) = name {
        all.retain(|instance| instance.name == name);
        if all.is_empty() {
            return Err(Error::Refused(format!(
                "there is no throttle {} in this network namespace; `throttle status` lists those \
                 there are",
                shown(name)
            )));
        }
    }
    Ok(all)
}

/// As [`chosen_or_none`], but there is at least one.
pub(crate) fn chosen(name: Option<&str>) -> Result<Vec<Instance>, Error> {
    let all = chosen_or_none(name)?;
    if all.is_empty() {
        return Err(none_here());
    }
    Ok(all)
}

pub(crate) fn none_here() -> Error {
    Error::Refused(
        "no throttle is at work in this network namespace: start one with `throttle run`".into(),
    )
}

/// How many cells of a terminal a text takes.
fn cells_of(text: &str) -> usize {
    ratatui::text::Span::raw(text).width()
}

/// A table for people: the first column to the left, the others to the right.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cells_of(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (column, cell) in row.iter().enumerate() {
            let fill = " ".repeat(widths[column].saturating_sub(cells_of(cell)));
            line += &if column == 0 {
                format!("{cell}{fill}")
            } else {
                format!("  {fill}{cell}")
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
