//! `throttle doctor`

use std::{
    io::{self, Write as _, stdout},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use throttle::{Error, doctor::Report, interface};

use super::Shown;

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Interface to look at; may be given more than once [default: all but the
    /// loopback device]
    #[arg(short, long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,

    /// How the findings are written [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Shown>,
}

pub(crate) fn doctor(doctor: &Doctor) -> Result<ExitCode> {
    if let Some(name) = doctor
        .interfaces
        .iter()
        .find(|name| !interface::can_be_name(name))
    {
        return Err(Error::Usage(format!(
            "look at interface {name:?}: this cannot be the name of one; `ip link` lists those \
             there are"
        ))
        .into());
    }
    let report = Report::of_this_machine(&doctor.interfaces);
    let written = match Shown::or_default(doctor.output) {
        Shown::Text => report.text(),
        Shown::Json => report.json() + "\n",
    };
    let mut out = stdout().lock();
    match out.write_all(written.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(ExitCode::from(report.exit_code())),
        // A reader that has seen enough is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("write the findings"),
    }
}
