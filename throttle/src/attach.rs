//! The programs on a device.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs,
    path::{Path, PathBuf},
};

use aya::maps::{Array, Map, MapData};
use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
};
use log::{debug, warn};
use throttle_common::{
    frame::Link,
    policy::{Daemon, ONLY},
};

use crate::{
    Error, Result,
    error::errno_of,
    interface::{self, Interface},
    maps::Plain,
    name::Name,
    object::Object,
    pins::{self, Filter, Pins},
    settings::Direction,
};

/// By which hook the programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Hook {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX, from Linux 6.6 on.
    Tcx,
    /// The clsact qdisc.
    Clsact,
}

/// The two programs of a direction, by how the frames of the device start.
const fn programs(direction: Direction, link: Link) -> (&'static str, &'static str) {
    match (direction, link) {
        (Direction::Egress, Link::Ethernet) => ("out_egress_ether", "in_ingress_ether"),
        (Direction::Egress, Link::Ip) => ("out_egress_ip", "in_ingress_ip"),
        (Direction::Ingress, Link::Ethernet) => ("out_ingress_ether", "in_egress_ether"),
        (Direction::Ingress, Link::Ip) => ("out_ingress_ip", "in_egress_ip"),
    }
}

/// Where the links of a throttle are found later, and whether they stay.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Where they are pinned, if they are.
    pub pins: Option<Pins>,
    /// Whether they stay when the process ends.
    pub keep: bool,
}

/// A program on one hook.
#[derive(Debug)]
struct Hooked {
    link: Option<SchedClassifierLink>,
    /// What stands for it in the file system.
    pin: Option<PathBuf>,
    /// Whether it stays when this is dropped.
    keep: bool,
    /// If it is a filter: which, and the id of its program.
    filter: Option<(Filter, Option<u32>)>,
}

impl Hooked {
    /// Detaches it. A device that is gone took it with it. Where the filter was
    /// there may be somebody else's by now, which stays.
    async fn detach(mut self) {
        if let Some((filter, id)) = &self.filter
            && !is_there(filter, *id).await
        {
            std::mem::forget(self.link.take());
        }
        self.detach_now();
    }

    fn detach_now(&mut self) {
        if let Some(pin) = &self.pin
            && let Err(error) = pins::remove_file(pin)
        {
            warn!("{error}");
        }
        self.link = None;
    }
}

impl Drop for Hooked {
    fn drop(&mut self) {
        if self.keep {
            // Whoever drops a link detaches it.
            std::mem::forget(self.link.take());
        }
    }
}

/// Every program that is attached to devices.
pub(crate) fn all_programs() -> impl Iterator<Item = &'static str> {
    let all = [Direction::Egress, Direction::Ingress].into_iter();
    all.flat_map(|direction| [(direction, Link::Ethernet), (direction, Link::Ip)])
        .flat_map(|(direction, link)| {
            let (out, into) = programs(direction, link);
            [out, into]
        })
}

/// Whether a program of this name is one of throttle's. Of a name the kernel
/// keeps 15 bytes (`BPF_OBJ_NAME_LEN` of include/uapi/linux/bpf.h, with a closing
/// NUL), `tc` keeps all.
#[must_use]
pub fn is_ours(name: &[u8]) -> bool {
    const KEPT: usize = 15;
    all_programs()
        .map(str::as_bytes)
        .any(|own| own == name || own.get(..KEPT) == Some(name))
}

/// The programs, attached to one device. They are detached when this is
/// dropped, unless they are to stay; [`detach`](Self::detach) also removes a
/// clsact qdisc that was added for them.
#[derive(Debug)]
pub struct Attachment {
    /// The device.
    pub interface: Interface,
    /// What they are attached by.
    pub hook: &'static str,
    /// Whether they took the place of others without a gap.
    pub took_over: bool,
    hooked: Vec<Hooked>,
    added_clsact: bool,
}

impl Attachment {
    /// Attaches the programs of `direction` to `interface`: first the one that
    /// sees answers, so that no SYN is counted whose answer is missed.
    ///
    /// Programs that are pinned in `place` are replaced where they are, so that no
    /// packet passes between.
    ///
    /// # Errors
    ///
    /// When the caller may not, the kernel lacks the hook, or the device is
    /// gone. Nothing stays attached then but what was there.
    pub async fn new(
        object: &mut Object,
        interface: &Interface,
        direction: Direction,
        hook: Hook,
        place: &Place,
    ) -> Result<Self> {
        let (out, into) = programs(direction, interface.link);
        let (out_hook, in_hook) = match direction {
            Direction::Egress => (TcAttachType::Egress, TcAttachType::Ingress),
            Direction::Ingress => (TcAttachType::Ingress, TcAttachType::Egress),
        };
        let steps = [(into, in_hook), (out, out_hook)];
        let mut attachment = Self {
            interface: interface.clone(),
            hook: "TCX",
            took_over: false,
            hooked: Vec::new(),
            added_clsact: false,
        };
        if hook != Hook::Clsact {
            match attachment.by_tcx(object, &steps, place) {
                Ok(()) => {
                    // After ours: a packet that meets both is counted once.
                    remove_filters(interface, place).await;
                    return Ok(attachment);
                }
                Err(error @ Error::Kernel { .. }) if hook == Hook::Auto => {
                    debug!("{error}");
                    attachment.undo().await;
                }
                Err(error) => {
                    attachment.undo().await;
                    return Err(error);
                }
            }
            attachment = Self {
                interface: interface.clone(),
                hook: "TCX",
                took_over: false,
                hooked: Vec::new(),
                added_clsact: false,
            };
        }
        attachment.hook = "clsact";
        match attachment.by_clsact(object, &steps, place).await {
            Ok(()) => {
                if let Some(pins) = &place.pins {
                    for (_, at) in &steps {
                        pins::remove_file(&pins.link(interface.index, *at))?;
                    }
                }
                Ok(attachment)
            }
            Err(error) => {
                attachment.undo().await;
                Err(error)
            }
        }
    }

    /// Says whether the programs stay when this is dropped.
    pub fn keep(&mut self, keep: bool) {
        for hooked in &mut self.hooked {
            hooked.keep = keep;
        }
    }

    /// The pins have moved; they are nowhere if there is no `to`.
    pub fn moved(&mut self, from: &Pins, to: Option<&Pins>) {
        for hooked in &mut self.hooked {
            let within = hooked.pin.as_deref();
            let within = within.and_then(|pin| pin.strip_prefix(from.folder()).ok());
            hooked.pin = within.and_then(|within| Some(to?.folder().join(within)));
        }
    }

    /// The device is gone, and took the programs with it.
    pub fn gone(mut self) {
        for mut hooked in self.hooked.drain(..) {
            hooked.detach_now();
        }
    }

    /// Detaches what was attached; what was there before stays.
    async fn undo(self) {
        if self.took_over {
            // The drop leaves them if they are kept.
            return;
        }
        self.detach().await;
    }

    fn by_tcx(
        &mut self,
        object: &mut Object,
        steps: &[(&str, TcAttachType)],
        place: &Place,
    ) -> Result<()> {
        for (name, at) in steps {
            let what = format!("attach {name} to {}", self.interface.name);
            let program = object.classifier(name)?;
            let pin = place
                .pins
                .as_ref()
                .map(|pins| pins.link(self.interface.index, *at));
            let (link, is_old) = match pin.as_deref().and_then(|pin| replaced(program, pin)) {
                Some(link) => (link, true),
                None => (attached(program, &self.interface, *at, &what)?, false),
            };
            self.took_over |= is_old;
            let link = match (&pin, is_old) {
                (Some(pin), false) => pinned(link, pin, &what)?,
                _ => link,
            };
            self.hooked.push(Hooked {
                link: Some(link),
                pin,
                keep: place.keep,
                filter: None,
            });
        }
        Ok(())
    }

    async fn by_clsact(
        &mut self,
        object: &mut Object,
        steps: &[(&str, TcAttachType)],
        place: &Place,
    ) -> Result<()> {
        let Interface { index, name, .. } = self.interface.clone();
        let there: Vec<Filter> = place.pins.as_ref().map_or_else(Vec::new, |pins| {
            let filters = pins.filters().into_iter();
            filters.filter(|filter| filter.index == index).collect()
        });
        match tc::qdisc_add_clsact(&name) {
            Ok(()) => self.added_clsact = true,
            Err(TcError::AlreadyAttached) => {}
            Err(error) if errno_of(&error) == Some(nix::libc::EEXIST) => {}
            Err(error) => {
                return Err(Error::needs(
                    format!("add the clsact qdisc to {name}"),
                    error,
                    "clsact qdisc",
                    "it needs CONFIG_NET_SCH_INGRESS (module sch_ingress)",
                ));
            }
        }
        if !self.added_clsact && !interface::has_clsact(index).await? {
            return Err(Error::Refused(format!(
                "add the clsact qdisc to {name}: an ingress qdisc is in its place; remove that \
                 (`tc qdisc delete dev {name} ingress`) or use --hook tcx, which needs Linux 6.6"
            )));
        }
        self.added_clsact |= there.iter().any(|filter| filter.added_qdisc);
        for (program_name, at) in steps {
            let what = format!("attach {program_name} to {name}");
            let program = object.classifier(program_name)?;
            let old = there.iter().find(|filter| filter.at == *at);
            // What is there now may be somebody else's.
            let still = match (old, &place.pins) {
                (Some(filter), Some(pins)) => {
                    let id = pins::id_of_program(&pins.filter(filter));
                    is_there(filter, id).await
                }
                _ => false,
            };
            let replaced = old.filter(|_| still);
            let replaced = replaced.and_then(|filter| refiltered(program, &name, filter));
            let (link, is_old) = match replaced {
                Some(link) => (link, true),
                None => (filtered(program, &name, *at, &what)?, false),
            };
            self.took_over |= is_old;
            let failed = |error| Error::failed(&*what, error);
            let filter = Filter {
                index,
                at: *at,
                priority: link.priority().map_err(failed)?,
                handle: link.handle().map_err(failed)?,
                added_qdisc: self.added_clsact,
            };
            let id = program.info().map_err(failed)?.id();
            let pin = match &place.pins {
                None => None,
                Some(pins) => {
                    // At no moment is the filter there without a pin that stands for it.
                    let (new, pin) = (pins.new_filter(&filter), pins.filter(&filter));
                    pins::remove_file(&new)?;
                    program
                        .pin(&new)
                        .map_err(|error| Error::failed(&*what, error))?;
                    fs::rename(&new, &pin).map_err(|error| Error::failed(&*what, error))?;
                    if let Some(old) = old.filter(|old| **old != filter) {
                        pins::remove_file(&pins.filter(old))?;
                    }
                    Some(pin)
                }
            };
            self.hooked.push(Hooked {
                link: Some(link),
                pin,
                keep: place.keep,
                filter: Some((filter, Some(id))),
            });
        }
        Ok(())
    }

    /// Whether the programs are still on the device: somebody may have removed
    /// them, or the device has gone and another one has its index.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.hooked.iter().all(|hooked| {
            let link = hooked.pin.as_deref().filter(|_| hooked.filter.is_none());
            link.and_then(pins::device_of_link)
                .is_none_or(|index| index == self.interface.index)
        })
    }

    /// Detaches the programs, and removes the clsact qdisc if it was added for
    /// them and nobody else uses it.
    pub async fn detach(mut self) {
        for hooked in self.hooked.drain(..) {
            hooked.detach().await;
        }
        if self.added_clsact {
            remove_qdisc(&self.interface).await;
        }
    }
}

/// Puts the program in the place of the one whose link is pinned at `pin`. None
/// if there is none, or its device is gone.
fn replaced(program: &mut SchedClassifier, pin: &Path) -> Option<SchedClassifierLink> {
    let old = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    let link = SchedClassifierLink::try_from(old).ok()?;
    match program.attach_to_link(link) {
        Ok(id) => program.take_link(id).ok(),
        Err(error) => {
            debug!("{}: {error}", pin.display());
            // It is of no use to anybody.
            let _ = pins::remove_file(pin);
            None
        }
    }
}

fn attached(
    program: &mut SchedClassifier,
    interface: &Interface,
    at: TcAttachType,
    what: &str,
) -> Result<SchedClassifierLink> {
    // Before all others: what ends the chain before us, we would not see.
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(&interface.name, at, options)
        .map_err(|error| {
            Error::needs(what, error, "TCX", "TCX needs Linux 6.6; use --hook clsact")
        })?;
    program
        .take_link(id)
        .map_err(|error| Error::failed(what, error))
}

fn pinned(link: SchedClassifierLink, pin: &Path, what: &str) -> Result<SchedClassifierLink> {
    let failed = |error: &dyn std::error::Error| Error::failed(what, error.to_string());
    let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
    let link = link
        .pin(pin)
        .map_err(|error| Error::failed(format!("{what}: pin its link"), error))?;
    SchedClassifierLink::try_from(FdLink::from(link)).map_err(|error| failed(&error))
}

/// Puts the program in the place of the filter `old`. None if that is not there
/// any more.
fn refiltered(
    program: &mut SchedClassifier,
    name: &str,
    old: &Filter,
) -> Option<SchedClassifierLink> {
    let link = SchedClassifierLink::attached(name, old.at, old.priority, old.handle, None).ok()?;
    match program.attach_to_link(link) {
        Ok(id) => program.take_link(id).ok(),
        Err(error) => {
            debug!("{name}: {error}");
            None
        }
    }
}

fn filtered(
    program: &mut SchedClassifier,
    name: &str,
    at: TcAttachType,
    what: &str,
) -> Result<SchedClassifierLink> {
    // Without a priority the kernel puts the filter before those that are there
    // (`tcf_auto_prio` in net/sched/cls_api.c).
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let id = program
        .attach_with_options(name, at, options)
        .map_err(|error| {
            Error::needs(
                what,
                error,
                "BPF classifier",
                "it needs CONFIG_NET_CLS_BPF (module cls_bpf)",
            )
        })?;
    program
        .take_link(id)
        .map_err(|error| Error::failed(what, error))
}

/// Removes the filters that are pinned in `place` from the device.
async fn remove_filters(interface: &Interface, place: &Place) {
    let Some(pins) = &place.pins else { return };
    let filters = pins.filters().into_iter();
    let filters: Vec<Filter> = filters
        .filter(|filter| filter.index == interface.index)
        .collect();
    for filter in &filters {
        let id = pins::id_of_program(&pins.filter(filter));
        if is_there(filter, id).await {
            remove_filter(&interface.name, filter, pins);
        } else if let Err(error) = pins::remove_file(&pins.filter(filter)) {
            warn!("{error}");
        }
    }
    if filters.iter().any(|filter| filter.added_qdisc) {
        remove_qdisc(interface).await;
    }
}

/// Whether the filter is on its device, with the program `id` and no other.
async fn is_there(filter: &Filter, id: Option<u32>) -> bool {
    let Ok(found) = interface::bpf_filters(filter.index).await else {
        return false;
    };
    let is_ingress = filter.at == TcAttachType::Ingress;
    found.iter().any(|of| {
        of.is_ingress == is_ingress
            && of.priority == filter.priority
            && of.handle == u32::from(filter.handle)
            && id.is_some_and(|id| of.program == Some(id))
    })
}

/// Removes a filter from its device.
fn take_away(name: &str, filter: &Filter) {
    let Filter {
        at,
        priority,
        handle,
        ..
    } = *filter;
    // Whoever drops a link detaches it.
    drop(SchedClassifierLink::attached(
        name, at, priority, handle, None,
    ));
}

/// Removes a filter from its device, and its pin.
fn remove_filter(name: &str, filter: &Filter, pins: &Pins) {
    take_away(name, filter);
    if let Err(error) = pins::remove_file(&pins.filter(filter)) {
        warn!("{error}");
    }
}

/// Removes a clsact qdisc that throttle had added, if nobody else uses it.
async fn remove_qdisc(interface: &Interface) {
    let Interface { index, name, .. } = interface;
    match interface::has_filters(*index).await {
        Ok(false) => {
            if let Err(error) = interface::remove_clsact(*index).await {
                debug!("{name}: {error}");
            }
        }
        Ok(true) => {
            warn!("the clsact qdisc stays on {name}: somebody else's filter uses it now")
        }
        Err(error) => debug!("{name}: {error}"),
    }
}

/// Detaches from the device `index` whatever is pinned, by whatever it is
/// attached. The device may be gone: it took the programs with it.
///
/// # Errors
///
/// When the caller may not.
pub async fn let_go(pins: &Pins, index: u32, interface: Option<&Interface>) -> Result<()> {
    for (of, at) in pins.links() {
        if of == index {
            pins::remove_file(&pins.link(index, at))?;
        }
    }
    match interface {
        Some(interface) => {
            let place = Place {
                pins: Some(pins.clone()),
                keep: false,
            };
            remove_filters(interface, &place).await;
        }
        None => {
            for filter in pins.filters() {
                if filter.index == index {
                    pins::remove_file(&pins.filter(&filter))?;
                }
            }
        }
    }
    Ok(())
}

/// Whether TCX programs of ours are on the device. None if that cannot be told:
/// their names show only with CAP_SYS_ADMIN.
#[must_use]
pub fn has_tcx_programs(interface: &Interface) -> Option<bool> {
    let mut has = false;
    for at in [TcAttachType::Ingress, TcAttachType::Egress] {
        match SchedClassifier::query_tcx(&interface.name, at) {
            Ok((_, programs)) => has |= programs.iter().any(|of| is_ours(of.name())),
            Err(error) => {
                debug!("{}: {error}", interface.name);
                return None;
            }
        }
    }
    Some(has)
}

/// Maps that were opened by their id, each once, until all is looked at: a program
/// array is emptied when its last holder in user space lets it go, and if that happens
/// again while the first time is still to be done, the kernel keeps it for ever
/// (`prog_array_map_clear` in kernel/bpf/arraymap.c, Linux 6.18).
#[derive(Default)]
struct Opened(HashMap<u32, MapData>);

impl Opened {
    fn is_called(&mut self, id: u32, name: &str) -> Option<bool> {
        let map = match self.0.entry(id) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => place.insert(MapData::from_id(id).ok()?),
        };
        Some(map.info().ok()?.name_as_str() == Some(name))
    }
}

/// Whether the daemon of the program `id` says that it is alive. `None` if that
/// cannot be told.
fn is_kept_alive(id: u32, opened: &mut Opened) -> Option<bool> {
    let program = aya::programs::loaded_programs()
        .flatten()
        .find(|program| program.id() == id)?;
    let maps = program.map_ids().ok()??;
    let daemon = maps
        .into_iter()
        .find(|id| opened.is_called(*id, "DAEMON") == Some(true))?;
    let daemon = MapData::from_id(daemon).ok()?;
    let daemon: Array<MapData, Plain<Daemon>> = Map::Array(daemon).try_into().ok()?;
    let Plain(daemon) = daemon.get(&ONLY, 0).ok()?;
    Some(daemon.is_alive(crate::clock::monotonic_ns()))
}

/// Removes what a throttle left on the clsact qdiscs of `interface` that was
/// killed: filters with the names of our programs that nobody has pinned. Returns
/// how many.
///
/// # Errors
///
/// When the kernel does not tell.
pub async fn remove_orphans(interface: &Interface, owned: &[Filter]) -> Result<usize> {
    let (mut removed, mut opened) = (0, Opened::default());
    for found in interface::bpf_filters(interface.index).await? {
        let filter = Filter {
            index: interface.index,
            at: if found.is_ingress {
                TcAttachType::Ingress
            } else {
                TcAttachType::Egress
            },
            priority: found.priority,
            handle: found.handle.into(),
            added_qdisc: false,
        };
        let is_owned = owned.iter().any(|other| {
            (other.index, other.at, other.priority, other.handle)
                == (filter.index, filter.at, filter.priority, filter.handle)
        });
        if is_owned || !is_ours(found.name.as_bytes()) {
            continue;
        }
        // One that is not registered has filters as well.
        let is_kept = |program| is_kept_alive(program, &mut opened);
        if found.program.and_then(is_kept) == Some(true) {
            return Err(Error::Refused(format!(
                "a throttle that is not registered here is attached to interface {}: end that one \
                 first",
                Name::new(&interface.name)
            )));
        }
        take_away(&interface.name, &filter);
        removed += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_programs_are_known_by_the_names_that_the_kernel_keeps() {
        assert_eq!(all_programs().count(), 8);
        for name in [
            "out_egress_ether",
            "out_egress_ethe",
            "in_ingress_ethe",
            "in_egress_ip",
        ] {
            assert!(is_ours(name.as_bytes()), "{name}");
        }
        for name in ["", "out_egress", "out_egress_eth", "cil_from_netdev"] {
            assert!(!is_ours(name.as_bytes()), "{name}");
        }
    }
}
