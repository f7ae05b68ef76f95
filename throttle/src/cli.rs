//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use throttle::config::{Layer, Source};

use crate::commands::{
    detach::Detach, doctor::Doctor, end::End, generate::Generate, set::Set, status::Status,
    top::Top,
};

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
    Run(Box<Run>),
    /// Say what is attached, its settings, and what goes on in each scope
    Status(Status),
    /// Change the settings of a throttle at work; says what is in force then
    Set(Set),
    /// Remove everything of throttle, and nothing else
    Detach(Detach),
    /// End the program behind attempts
    End(End),
    Top(Top),
    /// Say whether this machine can do it, what is missing, and what to do about it
    Doctor(Doctor),
    /// Say what event 4226 means and what to do now
    Explain,
    /// Write man pages and completions, for whoever builds packages
    #[command(hide = true)]
    Generate(Generate),
}

const RUN_EXAMPLES: &str = "\
Examples:
  Hold what goes out by eth0 to 50 half-open attempts at once, and attempts over that to ten a second:
      throttle run -i eth0

  Only look what it would do, for each service and container:
      throttle run -i eth0 --scope cgroup --mode monitor

  Hold the pods of a node, from the host's side of their interfaces, and leave the cluster's own \
network alone:
      throttle run -i veth0 --direction ingress --scope source --exempt 10.0.0.0/8

  Write events for a log shipper:
      throttle run -i eth0 -o ocsf";

#[derive(Debug, Args)]
#[command(after_long_help = RUN_EXAMPLES)]
pub(crate) struct Run {
    #[command(flatten)]
    flags: Layer,

    /// Configuration file, in TOML, with the long names of these flags as its
    /// keys; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print what flags, file and defaults come to, as a configuration file, and
    /// do nothing else
    #[arg(long)]
    pub(crate) print_config: bool,
}

impl Run {
    pub(crate) fn source(&self) -> Source {
        Source {
            flags: self.flags.clone(),
            file: self.config.clone(),
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

    fn run(args: &[&str]) -> Result<Run, clap::Error> {
        let args = [&["throttle", "run"], args].concat();
        Cli::try_parse_from(args).map(|cli| {
            let Command::Run(run) = cli.command else {
                panic!("this is not run")
            };
            *run
        })
    }

    #[test]
    fn flags_that_are_not_given_say_nothing() {
        let source = run(&["--config", "throttle.toml"]).unwrap().source();
        assert_eq!(source.flags, Layer::default());
        assert_eq!(source.file, Some("throttle.toml".into()));
    }

    #[test]
    fn an_interface_is_needed_unless_a_file_may_name_it() {
        assert!(run(&[]).is_err());
        for args in [&["-i", "eth0"][..], &["--config=x"], &["--print-config"]] {
            assert!(run(args).is_ok(), "{args:?}");
        }
    }

    #[test]
    fn what_can_be_switched_on_can_be_switched_off() {
        let keep = |args: &[&str]| run(&[&["-i", "eth0"], args].concat()).map(|run| run.flags.keep);
        assert_eq!(keep(&[]).unwrap(), None);
        assert_eq!(keep(&["--keep"]).unwrap(), Some(true));
        assert_eq!(keep(&["--keep=true"]).unwrap(), Some(true));
        assert_eq!(keep(&["--keep=false"]).unwrap(), Some(false));
        assert!(keep(&["--keep=0"]).is_err());
        // What follows is no value of it.
        assert!(keep(&["--keep", "false"]).is_err());
    }
}
