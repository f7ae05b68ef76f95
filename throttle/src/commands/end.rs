//! `throttle end`

use std::{
    io::{BufRead as _, IsTerminal as _, Write, stderr, stdin, stdout},
    time::Duration,
};

use anyhow::{Context as _, Result};
use throttle::{
    Error,
    end::{
        Failure, Options, Plan, Prepared, Refusal, Report, Wanted, plan_text, refusal_json,
        report_json, report_text,
    },
    settings::parse_duration,
};

use super::{Shown, print};

/// The words of `throttle end`.
#[derive(Debug, clap::Args)]
pub(crate) struct End {
    /// The process: its number, if it has unanswered attempts now, or the
    /// process.entity_id of an event
    #[arg(value_name = "PID")]
    process: Wanted,

    /// End it by SIGKILL if it has not ended by SIGTERM
    #[arg(long)]
    force: bool,

    /// How long it may take to end after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    wait: Duration,

    /// Ask no question, and accept that it may not be certain that it is the one
    /// behind the attempts
    #[arg(short, long)]
    yes: bool,

    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,

    /// How it is told what was done [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Shown>,
}

pub(crate) fn end(end: &End) -> Result<()> {
    let format = Shown::or_default(end.output);
    match attempt(end, format) {
        Ok(()) => Ok(()),
        Err(error) => {
            if let (Shown::Json, Some(Failure::Refused(refusal))) = (format, error.downcast_ref()) {
                print(&refusal_json(refusal))?;
            }
            // Each kind has an exit code of its own.
            Err(match error.downcast::<Failure>() {
                Ok(failure) => Error::from(failure).into(),
                Err(error) => error,
            })
        }
    }
}

fn attempt(end: &End, format: Shown) -> Result<()> {
    let options = Options {
        wait: end.wait,
        force: end.force,
        uncertain_too: end.yes,
    };
    let prepared = Prepared::new(&end.process)?;
    let plan = prepared.plan();
    if format == Shown::Text {
        print(&plan_text(plan, &options))?;
    }
    if end.dry_run {
        return tell(format, plan, Err("dry-run"));
    }
    if !plan.is_certain && !end.yes {
        return Err(Failure::from(Refusal::Uncertain(plan.process.pid)).into());
    }
    // Somebody is there, even if the output goes elsewhere.
    let is_asked = !end.yes && stdin().is_terminal();
    if is_asked && !is_wanted(format, plan, &options)? {
        tell(format, plan, Err("declined"))?;
        return Err(Error::Refused("nothing was done".into()).into());
    }
    let report = prepared.carry_out(&options)?;
    tell(format, plan, Ok(&report))?;
    if report.has_ended {
        Ok(())
    } else {
        Err(Error::Refused(remains(plan, &report, &options)).into())
    }
}

/// Asks whether to go on.
fn is_wanted(format: Shown, plan: &Plan, options: &Options) -> Result<bool> {
    let question = format!("end process {}? [y/N] ", plan.process.pid);
    match format {
        Shown::Text if stdout().is_terminal() => print(&question)?,
        // It is the reader's by now.
        Shown::Text if stderr().is_terminal() => {
            stderr().write_all(question.as_bytes()).context("ask")?;
        }
        // The standard output is for the object alone.
        Shown::Json if stderr().is_terminal() => {
            let text = plan_text(plan, options) + &question;
            stderr().write_all(text.as_bytes()).context("ask")?;
        }
        Shown::Text | Shown::Json => {
            let what = "there is nowhere to ask: give --yes to end it without a question";
            return Err(Error::Usage(what.into()).into());
        }
    }
    let mut answer = String::new();
    stdin()
        .lock()
        .read_line(&mut answer)
        .context("read the answer")?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// What is to be said of a process that has not ended.
fn remains(plan: &Plan, report: &Report, options: &Options) -> String {
    let pid = plan.process.pid;
    let wait = humantime::format_duration(options.wait);
    if options.force {
        format!(
            "process {pid} is still there after SIGKILL: the kernel holds it in a system call, and \
             it ends when that does"
        )
    } else if report.is_stopped {
        format!(
            "process {pid} is stopped and heeds SIGTERM only when it goes on: --force ends it, \
             SIGCONT lets it go on"
        )
    } else {
        format!("process {pid} still runs {wait} after SIGTERM: --force ends it")
    }
}

/// Tells what was done, or the word for that nothing was.
fn tell(format: Shown, plan: &Plan, report: Result<&Report, &'static str>) -> Result<()> {
    match (format, report) {
        (Shown::Json, report) => print(&report_json(plan, report)),
        (Shown::Text, Ok(report)) => print(&report_text(plan, report)),
        (Shown::Text, Err(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        for yes in ["y\n", "Y\n", " yes \n", "YES"] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "ye\n", "yes please\n", "y n\n"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }
}
