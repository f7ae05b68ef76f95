//! Removes what throttles have attached, and nothing else.

use std::{collections::HashSet, time::Duration};

use log::debug;
use nix::{libc, sys::signal::Signal};

use crate::{
    Error, Result, attach,
    instance::{Daemon, Instance},
    interface::{self, Interface},
    pidfd::Pidfd,
    pins::Pins,
};

/// Ends the daemon of `instance`, if one runs, and removes its kernel side.
///
/// # Errors
///
/// When the caller may not, or the daemon does not end within `patience`.
pub async fn remove(instance: &Instance, patience: Duration) -> Result<()> {
    if let (Some(daemon), Some(pins)) = (&instance.daemon, &instance.pins)
        && daemon.keep
        && !pins.exist()
    {
        return Err(Error::Refused(format!(
            "detach throttle {}: what it keeps is in {}, which is not to be seen from here; run `nsenter \
             --target {} --mount --net throttle detach`",
            instance.name,
            pins.folder().display(),
            daemon.pid
        )));
    }
    if let Some(daemon) = &instance.daemon {
        end(daemon, &instance.name, patience)?;
    }
    let Some(pins) = &instance.pins else {
        return Ok(());
    };
    // Those of a daemon without --keep have ended with it.
    if !pins.exist() {
        return Ok(());
    }
    let there: Vec<Interface> = interface::all().await?;
    for (index, _) in pins.devices() {
        let interface = there.iter().find(|interface| interface.index == index);
        attach::let_go(pins, index, interface).await?;
    }
    pins.remove()
}

/// Removes from all interfaces the filters that throttles left that were killed.
/// Returns how many.
///
/// # Errors
///
/// When the caller may not.
pub async fn remove_orphans() -> Result<usize> {
    let mut removed = 0;
    for interface in interface::all().await? {
        removed += remove_orphans_of(&interface).await?;
    }
    Ok(removed)
}

/// As [`remove_orphans`], from one interface.
///
/// # Errors
///
/// When the caller may not.
pub async fn remove_orphans_of(interface: &Interface) -> Result<usize> {
    remove_orphans_but(interface, None).await
}

/// As [`remove_orphans_of`], by one that is not registered yet, with its own pins.
///
/// # Errors
///
/// When the caller may not.
pub async fn remove_orphans_but(interface: &Interface, own: Option<&Pins>) -> Result<usize> {
    if !interface::has_clsact(interface.index).await? {
        return Ok(0);
    }
    let mut owned = own.map_or_else(Vec::new, Pins::filters);
    for instance in Instance::all()? {
        if let Some(pins) = &instance.pins {
            owned.extend(pins.filters());
        }
    }
    attach::remove_orphans(interface, &owned).await
}

/// Interfaces with TCX programs of ours that are nobody's who is registered, as far
/// as the caller may see that.
///
/// # Errors
///
/// When the caller may not look at what is registered.
pub async fn strangers() -> Result<Vec<Interface>> {
    let mut known = HashSet::new();
    for instance in Instance::all()? {
        match &instance.pins {
            Some(pins) => known.extend(pins.devices().into_iter().map(|(index, _)| index)),
            // It may be any of them.
            None => return Ok(Vec::new()),
        }
    }
    let mut found = interface::all().await?;
    found.retain(|interface| !known.contains(&interface.index));
    Ok(with_programs(found).await)
}

/// Those of `interfaces` that have TCX programs of ours. The kernel takes those of
/// a process that has just ended away a moment later.
pub(crate) async fn with_programs(mut interfaces: Vec<Interface>) -> Vec<Interface> {
    /// How often, and how long apart, it is looked again.
    const LOOKS: (u32, Duration) = (20, Duration::from_millis(50));
    for look in 0..LOOKS.0 {
        if look > 0 {
            tokio::time::sleep(LOOKS.1).await;
        }
        interfaces.retain(|interface| attach::has_tcx_programs(interface) == Some(true));
        if interfaces.is_empty() {
            break;
        }
    }
    interfaces
}

/// Asks a daemon to end, and waits until it has.
fn end(daemon: &Daemon, name: &str, patience: Duration) -> Result<()> {
    let what = format!("end the daemon of throttle {name} (pid {})", daemon.pid);
    let process = match Pidfd::open(daemon.pid) {
        Ok(process) => process,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(error) => return Err(Error::failed(what, error)),
    };
    // What is held open now is the daemon only if it is still registered.
    let is_it = Instance::all()?
        .iter()
        .any(|of| of.name == name && of.daemon.as_ref().is_some_and(|of| of.pid == daemon.pid));
    if !is_it {
        debug!("{what}: it has ended already");
        return Ok(());
    }
    let failed = |error| Error::failed(&*what, error);
    process.send(Some(Signal::SIGTERM)).map_err(failed)?;
    if process.has_ended_within(patience).map_err(failed)? {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{what}: it did not end within {}; `kill -9 {}` ends it, then run this again",
        humantime::format_duration(patience),
        daemon.pid
    )))
}
