//! The command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use throttle::{
    Settings,
    attach::Hook,
    encode::{EXAMPLE_ENTERPRISE, Format},
    exempt::Exempt,
    settings::{Direction, Mode, Pacing, Rate, Scope, parse_duration, parse_limit, parse_span},
};

use crate::commands::Doctor;

/// Limits half-open outbound TCP connections.
///
/// A program that dials addresses that do not answer is held to a fixed rate;
/// programs that connect to hosts that answer do not notice.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Attach to interfaces, keep the queue, and tell of events until stopped
    Run(Run),
    /// Say whether this machine can do it, what is missing, and what to do about it
    Doctor(Doctor),
    /// Say what event 4226 means and what to do now
    Explain,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Interface to attach to; may be given more than once
    #[arg(short, long = "interface", value_name = "IFACE", required = true)]
    pub(crate) interfaces: Vec<String>,

    /// Half-open attempts there may be at once
    #[arg(long, value_name = "N", default_value = "50", value_parser = parse_limit)]
    limit: u64,

    /// How fast attempts over the limit are let out: N/s or N/m
    #[arg(long, value_name = "RATE", default_value = "10/s")]
    rate: Rate,

    /// For how long an unanswered attempt counts
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_span)]
    attempt_timeout: Duration,

    /// How much may wait in a line: what is let out in this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_span)]
    max_delay: Duration,

    /// For how long an endpoint that answered is let through uncounted; 0 for a
    /// strict limit
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    known_for: Duration,

    /// What the limit applies to: each has its own count and queue
    #[arg(long, value_enum, default_value = "interface")]
    scope: Scope,

    /// Destination that no limit applies to: a network or an address, at one
    /// port or at all; may be given more than once
    #[arg(long, value_name = "CIDR[:PORT]")]
    exempt: Vec<Exempt>,

    /// What is done with attempts over the limit
    #[arg(long, value_enum, default_value = "enforce")]
    mode: Mode,

    /// Which way the attempts cross the interface
    #[arg(long, value_enum, default_value = "egress")]
    direction: Direction,

    /// Who lets attempts over the limit out
    #[arg(long, value_enum, default_value = "auto")]
    pacing: Pacing,

    /// By which hook the programs are attached
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) hook: Hook,

    /// How events are written [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,

    /// Private enterprise number that syslog's structured data goes under; the
    /// default is the one for examples
    #[arg(long, value_name = "N", default_value_t = EXAMPLE_ENTERPRISE, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) syslog_enterprise_number: u32,

    /// Tell programs' arguments too; they may hold secrets
    #[arg(long)]
    pub(crate) with_args: bool,

    /// Tell more than one example of the destinations
    #[arg(long)]
    pub(crate) with_destinations: bool,
}

impl Run {
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            limit: self.limit,
            rate: self.rate,
            attempt_timeout: self.attempt_timeout,
            max_delay: self.max_delay,
            known_for: self.known_for,
            scope: self.scope,
            exempt: self.exempt.clone(),
            mode: self.mode,
            direction: self.direction,
            pacing: self.pacing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let cli = Cli::parse_from(["throttle", "run", "-i", "eth0"]);
        let Command::Run(run) = cli.command else {
            panic!("not run")
        };
        assert_eq!(run.settings(), Settings::default());
    }
}
