//! The programs on a device.

use aya::programs::{
    LinkOrder, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
};
use log::{debug, warn};
use throttle_common::frame::Link;

use crate::{
    Error, Result,
    error::errno_of,
    interface::{self, Interface},
    object::Object,
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
/// dropped; [`detach`](Self::detach) also removes a clsact qdisc that was added
/// for them.
#[derive(Debug)]
pub struct Attachment {
    /// The device.
    pub interface: Interface,
    /// What they are attached by.
    pub hook: &'static str,
    links: Vec<SchedClassifierLink>,
    added_clsact: bool,
}

impl Attachment {
    /// Attaches the programs of `direction` to `interface`: first the one that
    /// sees answers, so that no SYN is counted whose answer is missed.
    ///
    /// # Errors
    ///
    /// When the caller may not, the kernel lacks the hook, or the device is
    /// gone. Nothing stays attached then.
    pub async fn new(
        object: &mut Object,
        interface: &Interface,
        direction: Direction,
        hook: Hook,
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
            links: Vec::new(),
            added_clsact: false,
        };
        if hook != Hook::Clsact {
            match attachment.by_tcx(object, &steps) {
                Ok(()) => return Ok(attachment),
                Err(error @ Error::Kernel { .. }) if hook == Hook::Auto => {
                    debug!("{error}");
                    attachment.links.clear();
                }
                Err(error) => return Err(error),
            }
        }
        attachment.hook = "clsact";
        match attachment.by_clsact(object, &steps).await {
            Ok(()) => Ok(attachment),
            Err(error) => {
                attachment.detach().await;
                Err(error)
            }
        }
    }

    fn by_tcx(&mut self, object: &mut Object, steps: &[(&str, TcAttachType)]) -> Result<()> {
        for (name, hook) in steps {
            let what = format!("attach {name} to {}", self.interface.name);
            let program = object.classifier(name)?;
            // Before all others: what ends the chain before us, we would not
            // see.
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let id = program
                .attach_with_options(&self.interface.name, *hook, options)
                .map_err(|error| {
                    Error::needs(
                        &*what,
                        error,
                        "TCX",
                        "TCX needs Linux 6.6; use --hook clsact",
                    )
                })?;
            self.links.push(
                program
                    .take_link(id)
                    .map_err(|error| Error::failed(what, error))?,
            );
        }
        Ok(())
    }

    async fn by_clsact(
        &mut self,
        object: &mut Object,
        steps: &[(&str, TcAttachType)],
    ) -> Result<()> {
        let name = self.interface.name.clone();
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
        if !self.added_clsact && !interface::has_clsact(self.interface.index).await? {
            return Err(Error::Refused(format!(
                "add the clsact qdisc to {name}: an ingress qdisc is in its place; remove that \
                 (`tc qdisc delete dev {name} ingress`) or use --hook tcx, which needs Linux 6.6"
            )));
        }
        for (program_name, hook) in steps {
            let what = format!("attach {program_name} to {name}");
            let program = object.classifier(program_name)?;
            // Without a priority the kernel puts the filter before those that
            // are there (`tcf_auto_prio` in net/sched/cls_api.c).
            let options = TcAttachOptions::Netlink(NlOptions::default());
            let id = program
                .attach_with_options(&name, *hook, options)
                .map_err(|error| {
                    Error::needs(
                        &*what,
                        error,
                        "BPF classifier",
                        "it needs CONFIG_NET_CLS_BPF (module cls_bpf)",
                    )
                })?;
            self.links.push(
                program
                    .take_link(id)
                    .map_err(|error| Error::failed(what, error))?,
            );
        }
        Ok(())
    }

    /// Detaches the programs, and removes the clsact qdisc if it was added for
    /// them and nobody else uses it.
    pub async fn detach(mut self) {
        // A device that is gone took them with it.
        self.links.clear();
        if !self.added_clsact {
            return;
        }
        let Interface { index, name, .. } = &self.interface;
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
