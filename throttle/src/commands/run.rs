//! `throttle run`

use std::io::{IsTerminal as _, stdout};

use anyhow::Result;
use log::debug;
use throttle::{
    Settings,
    config::{Change, Config, Source},
    daemon::{Plan, Reload, Throttle},
    encode::{Format, Host},
    interface::Wanted,
    notify,
    output::Output,
    owners::Names,
    privileges,
    teller::Teller,
};

use super::{print, runtime};
use crate::cli::Run;

pub(crate) fn run(run: &Run) -> Result<()> {
    let source = run.source();
    let config = source.load()?;
    if run.print_config {
        return print(&config.to_string());
    }
    config.require_interface()?;
    runtime()?.block_on(attached(source, config))
}

/// The file, read again when somebody asks for that.
struct File {
    source: Source,
    /// What is in force.
    running: Config,
    /// What was read, and is about to be.
    read: Option<Config>,
}

impl Reload for File {
    fn read(&mut self, in_force: Settings) -> throttle::Result<(Settings, Wanted, Vec<Change>)> {
        let running = Config {
            settings: in_force,
            ..self.running.clone()
        };
        let (config, changes) = self.source.reload(&running)?;
        let wanted = Wanted::new(&config.interfaces)?;
        let settings = config.settings.clone();
        self.read = Some(config);
        Ok((settings, wanted, changes))
    }

    fn accept(&mut self) {
        if let Some(config) = self.read.take() {
            self.running = config;
        }
    }
}

async fn attached(source: Source, config: Config) -> Result<()> {
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
    let plan = Plan {
        name: config.called().map(str::to_owned),
        wanted: Wanted::new(&config.interfaces)?,
        settings: config.settings.clone(),
        hook: config.hook,
        keep: config.keep,
        reload: source.file.is_some().then(|| -> Box<dyn Reload> {
            Box::new(File {
                source,
                running: config,
                read: None,
            })
        }),
    };
    let mut throttle = Throttle::start(plan).await?;
    // Before the output has threads, which keep what there is when they start.
    let kept = privileges::keep_what_running_needs();
    let mut output = Output::stdout(format, host, move |draft| teller.tell(draft));
    let result = match kept {
        Ok(kept) => {
            debug!("privileges from now on: {kept:?}");
            notify::ready(&throttle.at_work());
            throttle.run(&mut output).await
        }
        Err(error) => Err(error),
    };
    notify::stopping();
    throttle.stop(&mut output).await;
    output.finish();
    Ok(result?)
}
