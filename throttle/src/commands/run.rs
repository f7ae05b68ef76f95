//! `throttle run`

use std::io::{self, IsTerminal as _, Write as _, stdout};

use anyhow::{Context as _, Result};
use throttle::{
    config::Config,
    daemon::Throttle,
    encode::{Format, Host},
    interface::Interface,
    output::Output,
    owners::Names,
    teller::Teller,
};

use crate::cli::Run;

pub(crate) fn run(run: &Run) -> Result<()> {
    let source = run.source();
    let config = source.load()?;
    if run.print_config {
        return print(&config);
    }
    config.require_interface()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(attached(&config))
}

fn print(config: &Config) -> Result<()> {
    match stdout().write_all(config.to_string().as_bytes()) {
        // A reader that has seen enough is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write the configuration"),
    }
}

async fn attached(config: &Config) -> Result<()> {
    let mut interfaces: Vec<Interface> = Vec::new();
    for name in &config.interfaces {
        let interface = Interface::find(name).await?;
        // Named twice is still attached once.
        if !interfaces.contains(&interface) {
            interfaces.push(interface);
        }
    }
    let format = config.output.unwrap_or_else(|| {
        if stdout().is_terminal() {
            Format::Text
        } else {
            Format::Json
        }
    });
    let host = Host {
        enterprise: config.syslog_enterprise_number,
        ..Host::this()
    };
    let mut teller = Teller::new(Names::new(config.with_args), config.with_destinations);
    let mut output = Output::stdout(format, host, move |draft| teller.tell(draft));
    let mut throttle = Throttle::start(&interfaces, config.settings.clone(), config.hook).await?;
    let result = throttle.run(&mut output).await;
    throttle.stop(&mut output).await;
    output.finish();
    Ok(result?)
}
