//! `throttle run`

use std::io::{IsTerminal as _, stdout};

use anyhow::{Context as _, Result};
use log::debug;
use throttle::{
    daemon::{Plan, Throttle},
    encode::{Format, Host},
    interface::Wanted,
    notify,
    output::Output,
    owners::Names,
    privileges,
    teller::Teller,
};

use crate::cli::Run;

pub(crate) fn run(run: &Run) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(attached(run))
}

async fn attached(run: &Run) -> Result<()> {
    let plan = Plan {
        name: run.name.clone().or_else(|| run.interfaces.first().cloned()),
        wanted: Wanted::new(&run.interfaces)?,
        settings: run.settings(),
        hook: run.hook,
        keep: run.keep,
    };
    let format = run.output.unwrap_or_else(|| {
        if stdout().is_terminal() {
            Format::Text
        } else {
            Format::Json
        }
    });
    let host = Host {
        enterprise: run.syslog_enterprise_number,
        ..Host::this()
    };
    let mut teller = Teller::new(Names::new(run.with_args), run.with_destinations);
    let mut throttle = Throttle::start(plan).await?;
    // Before the output has threads, which keep what there is when they start.
    let kept = privileges::keep_what_running_needs();
    let mut output = Output::stdout(format, host, move |draft| teller.tell(draft));
    let result = match kept {
        Ok(kept) => {
            debug!("privileges from now on: {kept:?}");
            notify::ready(&format!("attached to {}", throttle.attached()));
            throttle.run(&mut output).await
        }
        Err(error) => Err(error),
    };
    notify::stopping();
    throttle.stop(&mut output).await;
    output.finish();
    Ok(result?)
}
