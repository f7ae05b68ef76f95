//! What a machine may lack: a test that needs it says so, and is skipped.
//!
//! Where it should be there it is not skipped but fails: what came with a version of
//! Linux and cannot be left out of a kernel, wherever the kernel is of that version;
//! and on a machine that was made for the tests, whatever its kernel can have, and
//! all programs. Such a machine says so by `THROTTLE_TEST_WHOLE`, whose words name what
//! it has not in spite of that.

use crate::{clients, hooks::Hook, netns::Namespace, sys};
use nix::sys::utsname::uname;
use std::{env, fmt};

/// The variable by which a machine says that it was made for the tests.
const WHOLE: &str = "THROTTLE_TEST_WHOLE";

/// Something that tests need, and that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The qdisc fq.
    Fq,
    /// The helper by which a packet is told when to leave.
    DepartureTimes,
    /// Programs at TC without a qdisc.
    Tcx,
    /// Devices of type bond.
    Bonding,
    /// Devices of type bridge.
    Bridge,
    /// Devices of type macvlan.
    Macvlan,
    /// Devices of type netkit.
    Netkit,
    /// Devices of type wireguard.
    Wireguard,
    /// A program on the path.
    Program(&'static str),
}

/// What is known of a [`Feature`].
struct Known {
    name: &'static str,
    /// The first version of Linux with it.
    since: (u32, u32),
    /// Whether a kernel of that version can be without it.
    optional: bool,
}

impl Feature {
    const fn known(self) -> Known {
        let (name, since, optional) = match self {
            Self::Fq => ("fq", (3, 12), true),
            Self::DepartureTimes => ("departure-times", (5, 18), false),
            Self::Tcx => ("tcx", (6, 6), false),
            Self::Bonding => ("bonding", (2, 6), true),
            Self::Bridge => ("bridge", (2, 6), true),
            Self::Macvlan => ("macvlan", (2, 6), true),
            Self::Netkit => ("netkit", (6, 7), true),
            Self::Wireguard => ("wireguard", (5, 6), true),
            Self::Program(name) => (name, (0, 0), true),
        };
        Known {
            name,
            since,
            optional,
        }
    }

    /// What the kernel calls it.
    const fn kernel_name(self) -> &'static str {
        match self {
            Self::Fq => "CONFIG_NET_SCH_FQ",
            Self::DepartureTimes => "bpf_skb_set_tstamp",
            Self::Tcx => "BPF_TCX_EGRESS",
            Self::Bonding => "CONFIG_BONDING",
            Self::Bridge => "CONFIG_BRIDGE",
            Self::Macvlan => "CONFIG_MACVLAN",
            Self::Netkit => "CONFIG_NETKIT",
            Self::Wireguard => "CONFIG_WIREGUARD",
            Self::Program(name) => name,
        }
    }

    /// Whether it is there. If not, says that the test is skipped, and why.
    ///
    /// # Panics
    /// When this machine should have it.
    #[track_caller]
    pub fn is_here(self) -> bool {
        if self.may_be_used() {
            return true;
        }
        let (major, minor) = self.known().since;
        if let Self::Program(name) = self {
            eprintln!("skipped: {name} is not installed");
        } else if (major, minor) > kernel() {
            eprintln!("skipped: this kernel has no {self}: Linux {major}.{minor} has");
        } else {
            eprintln!("skipped: this kernel has no {self}");
        }
        false
    }

    /// The same for a test that goes on without it.
    ///
    /// # Panics
    /// As [`is_here`](Self::is_here).
    #[track_caller]
    pub fn may_be_used(self) -> bool {
        let Err(why) = self.probe() else { return true };
        let whole = env::var(WHOLE).ok();
        let may_lack = self.may_be_missing(kernel(), whole.as_deref());
        assert!(
            may_lack,
            "this machine should have {self}, and has not: {why}"
        );
        false
    }

    /// Whether a machine with this kernel may be without it, if it says of itself
    /// that it has all but `whole`.
    fn may_be_missing(self, kernel: (u32, u32), whole: Option<&str>) -> bool {
        let Known {
            name,
            since,
            optional,
        } = self.known();
        // Of a program with a path, the last part of that.
        let name = name.rsplit('/').next();
        let is_left_out = whole.is_none_or(|but| but.split(' ').any(|word| Some(word) == name));
        kernel < since || (optional && is_left_out)
    }

    /// Tries it, and says what was answered if it is not there.
    fn probe(self) -> Result<(), String> {
        let device = |kind: &str| {
            tried(&[
                "ip link add base type veth peer name other",
                &format!("ip link add link base name probe type {kind}"),
            ])
        };
        match self {
            Self::Fq => tried(&["tc qdisc add dev lo root fq"]),
            // It cannot be left out.
            Self::DepartureTimes => (kernel() >= self.known().since)
                .then_some(())
                .ok_or_else(|| "it is too old".to_owned()),
            Self::Tcx => Namespace::new("probe")
                .run(|| sys::tcx_programs(1, Hook::Egress))
                .map(drop)
                .ok_or_else(|| "bpf(2) does not know of it".to_owned()),
            Self::Bonding => device("bond"),
            Self::Bridge => device("bridge"),
            Self::Macvlan => device("macvlan"),
            Self::Netkit => device("netkit"),
            Self::Wireguard => device("wireguard"),
            Self::Program(name) => clients::is_installed(name)
                .then_some(())
                .ok_or_else(|| "it is not on the path".to_owned()),
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Known { name, .. } = self.known();
        if let Self::Program(_) = self {
            f.write_str(name)
        } else {
            write!(f, "{name} ({})", self.kernel_name())
        }
    }
}

/// How throttle can be attached here: the values of `--hook`.
pub fn hooks() -> Vec<&'static str> {
    if Feature::Tcx.may_be_used() {
        vec!["tcx", "clsact"]
    } else {
        vec!["clsact"]
    }
}

/// Runs these commands in a network namespace of their own, and returns what the
/// first said that failed.
fn tried(commands: &[&str]) -> Result<(), String> {
    let namespace = Namespace::new("probe");
    for command in commands {
        let mut words = command.split(' ');
        let program = words.next().unwrap_or_default();
        let said = namespace.program(program).args(words).output();
        if said.code() != Some(0) {
            return Err(format!("{command}: {}", said.stderr.trim()));
        }
    }
    Ok(())
}

/// The version of the kernel.
///
/// # Panics
/// When its release is not understood.
pub fn kernel() -> (u32, u32) {
    let told = uname().unwrap();
    let release = told.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse().ok());
    number()
        .zip(number())
        .unwrap_or_else(|| panic!("{release} is no version of Linux"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_with_a_version_is_missing_only_before_it() {
        let may = |kernel| Feature::Tcx.may_be_missing(kernel, None);
        assert!(may((6, 5)));
        assert!(!may((6, 6)) && !may((7, 0)));
    }

    #[test]
    fn what_can_be_left_out_is_missing_unless_the_machine_says_that_it_is_whole() {
        let may = |kernel, whole| Feature::Netkit.may_be_missing(kernel, whole);
        assert!(may((6, 6), Some("")), "no kernel of then had it");
        assert!(may((6, 7), None));
        assert!(!may((6, 7), Some("")) && !may((6, 7), Some("python3 fq")));
        assert!(may((6, 7), Some("python3 netkit")));
        let nmap = Feature::Program("nmap");
        assert!(nmap.may_be_missing((6, 1), None));
        assert!(!nmap.may_be_missing((6, 1), Some("python3")));
        assert!(Feature::Program("/usr/bin/nmap").may_be_missing((6, 1), Some("nmap")));
    }

    #[test]
    fn this_machine_has_a_kernel_and_a_shell() {
        assert!(kernel() > (3, 0));
        assert!(Feature::Program("sh").is_here());
    }
}
