//! `throttle detach`

use std::time::Duration;

use anyhow::Result;
use throttle::{
    Error, detach,
    instance::{Exclusive, Instance},
};

use super::{Shown, chosen_or_none, print, runtime, shown, status::strangers_text};

/// What `throttle detach` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Detach {
    /// The throttle to remove [default: all of this network namespace, and what
    /// one that was killed has left]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// How it is written [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Shown>,
}

/// How long a daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn detach(args: &Detach) -> Result<()> {
    let _lock = Exclusive::wait()?;
    let instances = chosen_or_none(args.name.as_deref())?;
    let runtime = runtime()?;
    let mut removed = Vec::new();
    for instance in &instances {
        runtime.block_on(detach::remove(instance, PATIENCE))?;
        removed.push(instance);
    }
    let orphans = if args.name.is_none() {
        runtime.block_on(detach::remove_orphans())?
    } else {
        0
    };
    let strangers: Vec<String> = match args.name {
        Some(_) => Vec::new(),
        None => {
            let found = runtime.block_on(detach::strangers())?;
            found.iter().map(|of| shown(&of.name)).collect()
        }
    };
    let text = match Shown::or_default(args.output) {
        Shown::Text => said(&removed, orphans),
        Shown::Json => {
            let names: Vec<&str> = removed.iter().map(|of| of.name.as_str()).collect();
            let value = serde_json::json!({
                "removed": names,
                "orphaned_filters": orphans,
                "strangers": strangers,
            });
            format!("{value}\n")
        }
    };
    print(&text)?;
    if strangers.is_empty() {
        return Ok(());
    }
    let left = strangers_text(&strangers);
    Err(Error::Refused(format!("{}; end that one itself", left.trim_end())).into())
}

fn said(removed: &[&Instance], orphans: usize) -> String {
    let mut text = String::new();
    for instance in removed {
        let daemon = match &instance.daemon {
            Some(daemon) => format!(", and its daemon (pid {}) has ended", daemon.pid),
            None => String::new(),
        };
        text += &format!("throttle {} is detached{daemon}\n", shown(&instance.name));
    }
    if orphans > 0 {
        text += &format!("{orphans} filters of a throttle that was killed are removed\n");
    }
    if text.is_empty() {
        text += "no throttle is registered in this network namespace\n";
    }
    text
}
