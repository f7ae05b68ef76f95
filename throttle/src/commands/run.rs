//! `throttle run`

use std::io::{IsTerminal as _, stdout};

use anyhow::{Context as _, Result};
use throttle::{
    daemon::Throttle,
    encode::{Format, Host},
    interface::Interface,
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
    let mut output = Output::stdout(format, host, move |draft| teller.tell(draft));
    let mut throttle = Throttle::start(&interfaces, run.settings(), run.hook).await?;
    let result = throttle.run(&mut output).await;
    throttle.stop(&mut output).await;
    output.finish();
    Ok(result?)
}
