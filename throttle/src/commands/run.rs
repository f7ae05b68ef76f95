//! `throttle run`

use std::io::{IsTerminal as _, stdout};

use anyhow::{Context as _, Result};
use throttle::{
    daemon::{Plan, Throttle},
    encode::{Format, Host},
    interface::Wanted,
    output::Output,
    owners::Names,
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
    let mut output = Output::stdout(format, host, move |draft| teller.tell(draft));
    let mut throttle = Throttle::start(plan).await?;
    let result = throttle.run(&mut output).await;
    throttle.stop(&mut output).await;
    output.finish();
    Ok(result?)
}
