//! `throttle top`

use std::{
    io::{IsTerminal as _, stdin, stdout},
    time::Duration,
};

use anyhow::Result;
use throttle::{
    Error, end,
    name::Name,
    top::{
        live, once,
        order::{Filter, Order, Sort, chosen},
        rows::{Looker, Row, Snapshot},
        view::View,
    },
};

use super::{Shown, print};

/// How often the live table may be brought up to date.
const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60);

/// See who has half-open and deferred attempts
///
/// On a terminal it is a live table, and ? tells its keys. With --once, with -o,
/// or when the input or the output is no terminal, it looks once.
#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    /// Look once
    #[arg(long)]
    once: bool,

    /// How a look is written, of which there is one then [default: text on a
    /// terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Shown>,

    /// What to sort by
    #[arg(long, value_enum, default_value = "attempts")]
    sort: Sort,

    /// Sort the other way round
    #[arg(long)]
    reverse: bool,

    /// Only those with this text in their program, user, pid, control group,
    /// scope or example of a destination
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,

    /// Only this throttle
    #[arg(long = "name", alias = "throttle", value_name = "NAME")]
    throttle: Option<String>,

    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
}

/// Reads a time between two looks.
fn interval(text: &str) -> Result<Duration, String> {
    let hint = "write a time from 100ms to 60s";
    let interval = humantime::parse_duration(text).map_err(|error| format!("{error}; {hint}"))?;
    if INTERVALS.contains(&interval) {
        Ok(interval)
    } else {
        Err(hint.into())
    }
}

pub(crate) fn top(top: &Top) -> Result<()> {
    let order = Order {
        by: top.sort,
        is_reversed: top.reverse,
    };
    let mut looker = Looker::new(top.throttle.clone());
    let snapshot = looker.look()?;
    if !top.once && top.output.is_none() && is_on_terminal() {
        let only = top.throttle.as_deref();
        let view = View::new(snapshot, order, &top.filter, top.interval, only);
        // On the screen there is no place for a log.
        log::set_max_level(log::LevelFilter::Off);
        return Ok(live::run(looker, view, end_program)?);
    }
    let format = Shown::or_default(top.output);
    look_once(looker, snapshot, order, top, format)
}

/// Whether there is a terminal that a table can be on.
fn is_on_terminal() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    stdout().is_terminal() && stdin().is_terminal() && !is_dumb
}

/// Ends a program, for the key that does it.
fn end_program(pid: u32, start_ns: u64) -> throttle::Result<String> {
    if start_ns == 0 {
        return Err(Error::Refused(format!(
            "end pid {pid}: the kernel does not tell when it started, so it could be another process \
             by now; `throttle end {pid}` asks"
        )));
    }
    let (plan, report) = end::end(pid, start_ns, &end::Options::default())?;
    let told = end::report_text(&plan, &report);
    Ok(told.lines().collect::<Vec<_>>().join("; "))
}

fn look_once(
    mut looker: Looker,
    mut snapshot: Snapshot,
    order: Order,
    top: &Top,
    format: Shown,
) -> Result<()> {
    if snapshot.throttles.is_empty() {
        return Err(none_there(top.throttle.as_deref(), &snapshot).into());
    }
    for row in &mut snapshot.rows {
        let who = looker.who(row);
        row.learn(who);
    }
    let rows: Vec<&Row> = chosen(&snapshot.rows, order, &Filter::new(&top.filter))
        .into_iter()
        .map(|index| &snapshot.rows[index])
        .collect();
    let text = match format {
        Shown::Text => once::text(&snapshot, &rows),
        Shown::Json => once::json(&snapshot, &rows) + "\n",
    };
    print(&text)?;
    // What could be read has been printed.
    let troubles = snapshot.throttles.into_iter();
    match troubles.filter_map(|throttle| throttle.state.err()).next() {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

fn none_there(only: Option<&str>, snapshot: &Snapshot) -> Error {
    let Some(only) = only.map(Name::new) else {
        return Error::Refused(
            "there is no throttle in this network namespace: start one with `throttle run -i IFACE`, \
             or look from the namespace where it runs (ip netns exec, nsenter --net)"
                .into(),
        );
    };
    let others: Vec<&str> = snapshot.others.iter().map(|name| name.as_str()).collect();
    let there = if others.is_empty() {
        "and no other one either".to_owned()
    } else {
        format!("but {}", others.join(", "))
    };
    Error::Refused(format!(
        "there is no throttle {only} in this network namespace, {there}"
    ))
}
