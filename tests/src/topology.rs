//! Ready networks.
//!
//! ```text
//!  behind[0] ─┐
//!  behind[1] ─┤ pod0, pod1 …
//!             └ client ──── eth0 ─────── eth0 ──── far
//!                       (eth0.7, tun0)
//! ```
//!
//! Every lab has a `client` whose default routes go by [`Lab::device`] to
//! `far`, which plays the rest of the world (see [`addresses`]).
//! The two devices have the same name at both ends. Machines behind the client are
//! pods of a host or hosts of a gateway, as one likes: it depends on whether
//! throttle is at `pod0` or at `eth0`.

use crate::{
    addresses::{self, OPEN_PORT},
    capture::Capture,
    dial::{Attempts, Dialer},
    inject::Forger,
    netns::Namespace,
    pump::{Held, Pump},
    serve::{Behaviour, Server},
    sys::{self, TunKind},
    tags::{self, Tagged},
    throttle_cmd::{Running, Throttle},
    unreachable::Router,
    wait::wait_until,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

const CLIENT_MAC: &str = "02:77:00:00:00:01";
const FAR_MAC: &str = "02:77:00:00:00:02";

/// What joins client and far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    /// A veth pair.
    Veth,
    /// Two tap devices with a wire in user space.
    Tap,
    /// The same with tun devices: packets without Ethernet.
    Tun,
}

/// What kind of [`Lab`] is wanted.
#[derive(Clone, Debug)]
#[must_use = "a lab is built by `build`"]
pub struct Builder {
    wire: Wire,
    delay: Duration,
    tags: Vec<u16>,
    behind: u8,
    offload: bool,
}

impl Builder {
    /// Client traffic goes out as plain IP, by the L3 device `tun0`.
    pub fn tun(mut self) -> Self {
        self.wire = Wire::Tun;
        self
    }

    /// Every frame takes this long in each direction.
    pub fn delay(mut self, each_way: Duration) -> Self {
        self.delay = each_way;
        if self.wire == Wire::Veth {
            self.wire = Wire::Tap;
        }
        self
    }

    /// Client traffic carries these VLAN tags, the outermost first. `[7]`
    /// makes the device `eth0.7`, `[5, 7]` makes `eth0.5.7` (QinQ).
    pub fn vlan(mut self, ids: &[u16]) -> Self {
        self.tags = ids.to_vec();
        self
    }

    /// The client forwards for this many machines behind it.
    pub fn machines_behind(mut self, count: u8) -> Self {
        self.behind = count;
        self
    }

    /// Frames leave the client with whole checksums, not with partial ones as
    /// is usual on veth.
    pub fn without_offload(mut self) -> Self {
        self.offload = false;
        self
    }

    /// Builds the network; it works when this returns.
    ///
    /// # Panics
    /// Without root, or when the kernel lacks a device type.
    pub fn build(self) -> Lab {
        Lab::new(self)
    }
}

/// A network of a test's own. All of it is gone when dropped.
#[derive(Debug)]
pub struct Lab {
    /// Where the programs run whose attempts are limited.
    pub client: Namespace,
    /// Everything the client can reach.
    pub far: Namespace,
    /// Machines the client forwards for; each has a device `eth0`.
    pub behind: Vec<Namespace>,
    /// The device client traffic leaves by, at both ends: `eth0`, `eth0.7`
    /// or `tun0`.
    pub device: String,
    /// The device at the end of the wire, at both ends: what [`Self::device`]
    /// is, without tags.
    pub wire: String,
    _tags: Vec<Tagged>,
    pump: Option<Pump>,
    _router: Router,
}

impl Lab {
    /// Client and far, joined by a veth pair.
    ///
    /// # Panics
    /// See [`Builder::build`].
    pub fn plain() -> Self {
        Self::builder().build()
    }

    /// Says what kind of network is wanted.
    pub fn builder() -> Builder {
        Builder {
            wire: Wire::Veth,
            delay: Duration::ZERO,
            tags: Vec::new(),
            behind: 0,
            offload: true,
        }
    }

    fn new(wanted: Builder) -> Self {
        let client = Namespace::new("client");
        let far = Namespace::new("far");
        let wire = if wanted.wire == Wire::Tun {
            "tun0"
        } else {
            "eth0"
        };
        let pump = join(&wanted, &client, &far, wire);
        let ends = [(&client, CLIENT_MAC), (&far, FAR_MAC)];
        for (end, _) in ends {
            end.ip(&format!("link set {wire} up"));
        }
        let mut guards = Vec::new();
        if !wanted.tags.is_empty() {
            assert_ne!(wanted.wire, Wire::Tun, "an L3 device carries no VLAN tags");
            for (end, mac) in ends {
                // A MAC of its own, which a macvlan needs.
                let mac = mac.replacen("02:77", "02:78", 1);
                guards.push(tags::add_device(end, wire, &wanted.tags, &mac));
            }
        }
        let device = tags::device_name(wire, &wanted.tags);
        let behind = (0..wanted.behind)
            .map(|n| add_machine_behind(&client, n))
            .collect();
        let router = Router::start(&far, "192.0.2.0/24");
        let lab = Self {
            client,
            far,
            behind,
            device,
            wire: wire.to_owned(),
            _tags: guards,
            pump,
            _router: router,
        };
        lab.configure(wanted.wire != Wire::Tun);
        lab
    }

    /// Addresses, neighbours and routes of the two ends.
    fn configure(&self, ethernet: bool) {
        let Self {
            client,
            far,
            device,
            wire,
            ..
        } = self;
        let ends = [
            (client, addresses::CLIENT, addresses::CLIENT_V6),
            (far, addresses::FAR, addresses::FAR_V6),
        ];
        for (end, v4, v6) in ends {
            end.ip(&format!("addr add {v4}/24 dev {device}"));
            end.ip(&format!("addr add {v6}/64 dev {device} nodad"));
        }
        if ethernet {
            meet(
                client,
                device,
                far,
                device,
                addresses::CLIENT.into(),
                addresses::FAR.into(),
            );
            meet(
                client,
                device,
                far,
                device,
                addresses::CLIENT_V6.into(),
                addresses::FAR_V6.into(),
            );
        }
        client.ip(&format!(
            "route add default via {} dev {device}",
            addresses::FAR
        ));
        client.ip(&format!(
            "-6 route add default via {} dev {device}",
            addresses::FAR_V6
        ));

        // ICMP errors are sent only by a router, and one per second at most
        // unless told otherwise.
        forward(far);
        far.set_sysctl("net.ipv6.icmp.ratelimit", "0");
        // A large burst is to be met by the throttle, not by the server.
        far.set_sysctl("net.core.somaxconn", "65535");
        far.set_sysctl("net.ipv4.tcp_max_syn_backlog", "65535");
        for prefix in ["10.78.0.0/16", "fd78::/64"] {
            let family = if prefix.contains(':') { "-6 " } else { "" };
            far.ip(&format!("{family}route add local {prefix} dev lo"));
        }
        for family in ["", "-6 "] {
            far.ip(&format!("{family}route add blackhole default"));
        }
        far.ip("-6 route add unreachable 2001:db8:bad::/64");
        far.ip(&format!(
            "route add 10.76.0.0/16 via {} dev {device}",
            addresses::CLIENT
        ));
        far.ip(&format!(
            "-6 route add fd76::/32 via {} dev {device}",
            addresses::CLIENT_V6
        ));

        for end in [client, far] {
            await_carrier(end, wire);
            await_carrier(end, device);
        }
    }

    /// Gives the client's addresses and routes to another device of it, which leads to
    /// the same place: a bond or a bridge above [`Self::device`], or a tunnel.
    ///
    /// # Panics
    /// When there is no such device, or it is not up.
    pub fn move_client_to(&mut self, device: &str) {
        let Self { client, far, .. } = &*self;
        let there = self.device.as_str();
        for old in client.devices() {
            if old != "lo" && !old.starts_with("pod") {
                client.ip(&format!("addr flush dev {old}"));
            }
        }
        let (v4, v6) = (addresses::CLIENT, addresses::CLIENT_V6);
        client.ip(&format!("addr add {v4}/24 dev {device}"));
        client.ip(&format!("addr add {v6}/64 dev {device} nodad"));
        if let Some(mac) = mac_of(client, device) {
            for (near, remote) in [
                (v4.into(), addresses::FAR.into()),
                (v6.into(), addresses::FAR_V6.into()),
            ] {
                knows(far, near, there, &mac);
                knows(client, remote, device, &mac_of(far, there).unwrap());
            }
        }
        client.ip(&format!(
            "route replace default via {} dev {device}",
            addresses::FAR
        ));
        client.ip(&format!(
            "-6 route replace default via {} dev {device}",
            addresses::FAR_V6
        ));
        await_carrier(client, device);
        self.device = device.to_owned();
    }

    /// What arrives at the far end of the wire, tags included.
    ///
    /// # Panics
    /// See [`Capture::arriving`].
    pub fn capture(&self) -> Capture {
        Capture::arriving(&self.far, &self.wire)
    }

    /// A server at every live address, at [`OPEN_PORT`].
    ///
    /// # Panics
    /// See [`Server::start`].
    pub fn serve(&self, behaviour: Behaviour) -> Server {
        Server::everywhere(&self.far, OPEN_PORT, behaviour)
    }

    /// Opens a connection from the client to each destination, all at once.
    ///
    /// # Panics
    /// See [`Dialer::dial`].
    pub fn dial(&self, destinations: impl IntoIterator<Item = SocketAddr>) -> Attempts {
        Dialer::new(&self.client).dial(destinations)
    }

    /// Holds back whatever the far end sends from now on, until what this returns is
    /// dropped: for attempts that are all to be made before the first is answered.
    ///
    /// # Panics
    /// When client and far are joined by a veth pair: see [`Builder::delay`].
    #[track_caller]
    pub fn hold_answers(&self) -> Held<'_> {
        let pump = self.pump.as_ref();
        pump.expect("only a wire in user space can hold frames back")
            .hold()
    }

    /// Starts `throttle run` at the client's device with further arguments.
    ///
    /// # Panics
    /// See [`Throttle::start`].
    #[track_caller]
    pub fn throttle(&self, args: &[&str]) -> Running {
        let mut all = vec!["-i", &self.device];
        all.extend(args);
        Throttle::start(&self.client, &all)
    }

    /// Sends forged answers from the far end.
    ///
    /// # Panics
    /// See [`Forger::new`].
    pub fn forger(&self) -> Forger {
        Forger::new(&self.far, &self.device)
    }

    /// The address of the nth machine behind the client.
    pub fn address_behind(&self, n: u8) -> Ipv4Addr {
        address_behind(n, 2)
    }

    /// An address in the network of the nth machine behind the client, where
    /// nobody answers.
    ///
    /// # Panics
    /// When there is no nth.
    pub fn dead_behind(&self, n: u8) -> Ipv4Addr {
        const NOBODY: u8 = 77;
        let address = address_behind(n, NOBODY);
        let machine = &self.behind[usize::from(n)];
        // Its frames get as far as the machine.
        machine.ip(&format!("route replace blackhole {address}"));
        let mac = mac_of(machine, "eth0").unwrap();
        knows(&self.client, address.into(), &self.device_towards(n), &mac);
        address
    }

    /// The client's device towards the nth machine behind it.
    pub fn device_towards(&self, n: u8) -> String {
        format!("pod{n}")
    }
}

fn address_behind(n: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 76, n, host)
}

fn address_behind_v6(n: u8, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd76, 0, u16::from(n), 0, 0, 0, 0, host)
}

/// Puts the wire between the two ends.
fn join(wanted: &Builder, client: &Namespace, far: &Namespace, wire: &str) -> Option<Pump> {
    let kind = match wanted.wire {
        Wire::Veth => {
            client.ip(&format!(
                "link add {wire} address {CLIENT_MAC} type veth peer name {wire} \
                 address {FAR_MAC} netns {}",
                far.path()
            ));
            if !wanted.offload {
                client.without_offload(wire);
                far.without_offload(wire);
            }
            return None;
        }
        Wire::Tap => TunKind::Tap,
        Wire::Tun => TunKind::Tun,
    };
    let [one, other] = [(client, CLIENT_MAC), (far, FAR_MAC)].map(|(end, mac)| {
        let fd = end
            .run(|| sys::open_tun(wire, kind))
            .unwrap_or_else(|e| panic!("make the tun device {wire}: {e}"));
        if kind == TunKind::Tap {
            end.ip(&format!("link set {wire} address {mac}"));
        }
        fd
    });
    Some(Pump::join(one, other, wanted.delay))
}

/// Makes the two ends of a link know each other's MAC addresses, so that a
/// first packet need not wait for that.
fn meet(
    one: &Namespace,
    ones_device: &str,
    other: &Namespace,
    others_device: &str,
    ones_address: IpAddr,
    others_address: IpAddr,
) {
    let ends = [
        (one, ones_device, others_address, other, others_device),
        (other, others_device, ones_address, one, ones_device),
    ];
    for (end, device, peer_address, peer, peer_device) in ends {
        knows(
            end,
            peer_address,
            device,
            &mac_of(peer, peer_device).unwrap(),
        );
    }
}

/// Makes a machine know the MAC address of another one on a device.
fn knows(namespace: &Namespace, address: IpAddr, device: &str, mac: &str) {
    namespace.ip(&format!(
        "neigh replace {address} lladdr {mac} dev {device} nud permanent"
    ));
}

/// The MAC address of a device that has one.
fn mac_of(namespace: &Namespace, device: &str) -> Option<String> {
    let shown = namespace.ip(&format!("-o link show dev {device}"));
    let mut words = shown.split_whitespace();
    words.find(|&word| word == "link/ether")?;
    words.next().map(str::to_owned)
}

fn forward(namespace: &Namespace) {
    namespace.set_sysctl("net.ipv4.ip_forward", "1");
    namespace.set_sysctl("net.ipv6.conf.all.forwarding", "1");
}

fn add_machine_behind(client: &Namespace, n: u8) -> Namespace {
    let machine = Namespace::new(&format!("behind{n}"));
    let towards = format!("pod{n}");
    client.ip(&format!(
        "link add {towards} type veth peer name eth0 netns {path}",
        path = machine.path()
    ));
    for (end, device, host) in [(client, towards.as_str(), 1), (&machine, "eth0", 2)] {
        end.ip(&format!(
            "addr add {}/24 dev {device}",
            address_behind(n, host)
        ));
        end.ip(&format!("link set {device} up"));
        let v6 = address_behind_v6(n, u16::from(host));
        end.ip(&format!("addr add {v6}/64 dev {device} nodad"));
    }
    let v4 = [address_behind(n, 1), address_behind(n, 2)];
    let v6 = [address_behind_v6(n, 1), address_behind_v6(n, 2)];
    meet(
        client,
        &towards,
        &machine,
        "eth0",
        v4[0].into(),
        v4[1].into(),
    );
    meet(
        client,
        &towards,
        &machine,
        "eth0",
        v6[0].into(),
        v6[1].into(),
    );
    machine.ip(&format!("route add default via {}", v4[0]));
    machine.ip(&format!("-6 route add default via {}", v6[0]));
    forward(client);
    await_carrier(client, &towards);
    await_carrier(&machine, "eth0");
    machine
}

/// A device that has just come up drops what it is given until the kernel
/// has noticed the carrier.
fn await_carrier(namespace: &Namespace, device: &str) {
    wait_until(
        &format!("the carrier of {device} in {namespace:?}"),
        Duration::from_secs(5),
        || {
            let shown = namespace.ip(&format!("-o link show dev {device}"));
            !shown.contains("NO-CARRIER") && !shown.contains("qdisc noop ")
        },
    );
}
