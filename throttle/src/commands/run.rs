//! `throttle run`

use std::io::{IsTerminal as _, stdout};

use anyhow::{Context as _, Result};
use log::debug;
use throttle::{
    daemon::Throttle,
    encode::{Format, Host},
    interface::Interface,
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
    let mut interfaces: Vec<Interface> = Vec::new();
    for name in &run.interfaces {
        let interface = Interface::find(name).await?;
        // Named twice is still attached once.
        if !interfaces.contains(&interface) {
            interfaces.push(interface);
        }
    }
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
    let mut throttle = Throttle::start(&interfaces, run.settings(), run.hook).await?;
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
