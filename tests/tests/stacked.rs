//! Devices above and below others, and those that are no network cards: an attempt
//! counts once however many of them it passes, waits, and leaves by the same way as
//! it would have.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{collections::BTreeMap, env, fs, net::SocketAddr, time::Duration};
use throttle_tests::{
    Behaviour, Capture, Dialer, Feature, Lab, Namespace, Pace,
    addresses::{self, OPEN_PORT, dead, dead_of_both, live, live_v6},
    frame::{Checksum, Syn},
    netkit,
    tags::{self, Tagged},
    throttle_cmd::{Running, tallies},
    wait_until,
};

const PACE: Pace = Pace {
    limit: 10,
    per_second: 20,
};
const ATTEMPTS: usize = 30;
/// At the host's side of a pair of devices.
const INGRESS: &[&str] = &["--direction=ingress"];
const SOON: Duration = Duration::from_secs(10);

/// Dials thirty, and asserts that they keep the pace at the far end, each once and
/// whole, and that throttle counted each once, at whichever device. Returns their
/// first SYNs as they arrived.
#[track_caller]
fn assert_thirty_keep_pace(
    title: &str,
    dialer: &Dialer,
    capture: Capture,
    throttle: Running,
) -> Vec<Syn> {
    let attempts = dialer.dial((0..30).map(dead_of_both));
    capture.wait_for_attempts(ATTEMPTS, PACE.span(ATTEMPTS) + SOON);
    let frames = capture.finish();
    let first = frames.first_syns();
    let lateness = PACE.assert_exact(&attempts.all(), &first);
    assert_eq!(attempts.pending().len(), ATTEMPTS);
    assert!(
        frames
            .syns()
            .iter()
            .all(|syn| syn.checksum != Checksum::Wrong),
        "{title}"
    );
    assert_eq!(throttle.limit_events().len(), 1, "{:?}", throttle.events());
    let left = throttle.stop().expect_success();
    assert!(!left.stderr.contains("not handled"), "{}", left.stderr);
    let counted = "attempts 30, passed 10, deferred 20, released 20";
    let (of_all, fits) = (
        left.stderr.matches("attempts ").count(),
        left.stderr.matches(counted).count(),
    );
    assert_eq!((of_all, fits), (1, 1), "{title}: {}", left.stderr);
    eprintln!("{title}, limit 10, 20/s: {lateness}");
    first
}

/// Starts a throttle at these devices.
#[track_caller]
fn throttle(namespace: &Namespace, devices: &[&str], more: &[&str]) -> Running {
    let (first, others) = devices.split_first().unwrap();
    let mut args = Vec::new();
    for device in others {
        args.extend(["-i", device]);
    }
    args.extend(more);
    PACE.throttle(namespace, first, &args)
}

/// Asserts that a server is reached at once, and, while nobody has room for it, in its
/// turn; and that throttle counted each answer once, at whichever device.
#[track_caller]
fn assert_servers_answer(lab: &Lab, dialer: &Dialer, devices: &[&str], more: &[&str]) {
    let _server = lab.serve(Behaviour::Hold);
    let throttle = throttle(&lab.client, devices, more);
    let to = [live(0, OPEN_PORT), live_v6(0, OPEN_PORT)];
    dialer.dial(to).wait_for_connected(2, SOON);
    let _ahead = dialer.dial((0..30).map(dead_of_both));
    let to = [live(1, OPEN_PORT), live_v6(1, OPEN_PORT)];
    let attempts = dialer.dial(to);
    let waited = attempts.wait_for_connected(2, SOON);
    let least = waited.iter().filter_map(|attempt| attempt.took()).min();
    assert!(least > Some(PACE.interval() * 15), "deferred: {least:?}");
    // By now they are known.
    dialer.dial(to).wait_for_connected(2, SOON);
    let left = throttle.stop().expect_success();
    let counted = devices
        .iter()
        .filter(|device| left.stderr.contains(&format!("interface {device}:")));
    assert_eq!(counted.count(), 1, "at one of them: {}", left.stderr);
    let counts = tallies(&left, devices[0]);
    // On a slow machine a SYN may be repeated while its answer is on the way.
    let repeated = counts["attempts"] - 36;
    assert!(
        (6..=6 + repeated).contains(&counts["answered"]),
        "{counts:?}"
    );
    assert_eq!(
        (counts["known"], counts["deferred"]),
        (2 + repeated, 22),
        "{counts:?}"
    );
}

// ---- bond ------------------------------------------------------------------

/// The client's eth0 in a bond, and eth0.7 at the far end is met by bond0.7.
fn bonded() -> Lab {
    let mut lab = Lab::builder().vlan(&[7]).build();
    let client = &lab.client;
    client.ip("link del eth0.7");
    client.ip("link add bond0 type bond mode active-backup miimon 100");
    client.ip("link set eth0 down");
    client.ip("link set eth0 master bond0");
    client.ip("link set eth0 up");
    client.ip("link set bond0 up");
    client.ip("link add link bond0 name bond0.7 type vlan id 7");
    client.ip("link set bond0.7 up");
    lab.move_client_to("bond0.7");
    lab
}

#[test]
fn on_a_vlan_on_a_bond_an_attempt_counts_once_at_whichever_device() {
    if !Feature::Bonding.is_here() {
        return;
    }
    let lab = bonded();
    let all: [&[&str]; 4] = [
        &["bond0.7"],
        &["bond0"],
        &["eth0"],
        &["bond0.7", "bond0", "eth0"],
    ];
    for devices in all {
        let throttle = throttle(&lab.client, devices, &[]);
        let title = format!("at {}", devices.join(" and "));
        let dialer = Dialer::new(&lab.client);
        let syns = assert_thirty_keep_pace(&title, &dialer, lab.capture(), throttle);
        assert!(syns.iter().all(|syn| syn.vlan_ids() == [7]), "{syns:?}");
    }
    assert_servers_answer(&lab, &Dialer::new(&lab.client), all[3], &[]);
}

#[test]
fn when_a_bond_takes_its_other_device_attempts_go_on_in_turn() {
    if !Feature::Bonding.is_here() {
        return;
    }
    let mut lab = Lab::plain();
    // Both lead to the far end, where a bridge makes one of them.
    let (client, far) = (&lab.client, &lab.far);
    let mac = "02:77:00:00:00:01";
    client.ip(&format!(
        "link add eth1 address {mac} type veth peer name eth1 netns {}",
        far.path()
    ));
    client.ip("link add bond0 type bond mode active-backup miimon 20");
    for slave in ["eth0", "eth1"] {
        client.ip(&format!("link set {slave} down"));
        client.ip(&format!("link set {slave} master bond0"));
        client.ip(&format!("link set {slave} up"));
        far.ip(&format!("link set {slave} up"));
    }
    client.ip("link set bond0 up");
    lab.move_client_to("bond0");
    let throttle = throttle(&lab.client, &["bond0"], &[]);
    let captures = ["eth0", "eth1"].map(|device| Capture::arriving(&lab.far, device));
    let _attempts = lab.dial((0..60).map(dead));
    captures[0].wait_for_attempts(20, SOON);
    lab.client.ip("link set eth0 down");
    // The same attempt may be seen on both, when its sender asks again.
    let first_of = |captures: &[Capture; 2]| {
        let mut first: BTreeMap<(SocketAddr, SocketAddr), u64> = BTreeMap::new();
        for syn in captures
            .each_ref()
            .map(|capture| capture.so_far().first_syns())
            .concat()
        {
            let at_ns = first.entry((syn.src, syn.dst)).or_insert(syn.at_ns);
            *at_ns = syn.at_ns.min(*at_ns);
        }
        first
    };
    wait_until("all to be out", SOON, || first_of(&captures).len() == 60);
    assert!(captures[0].attempts() < 40, "{}", captures[0].attempts());
    let mut times: Vec<u64> = first_of(&captures).into_values().collect();
    times.sort_unstable();
    PACE.assert_line(&times, Duration::ZERO);
    throttle.stop().expect_success();
}

// ---- bridge ----------------------------------------------------------------

/// The client's eth0 in a bridge, and with it the port of another machine, which is a
/// neighbour of the client's.
struct Bridged {
    lab: Lab,
    guest: Namespace,
    _tagged: Vec<Tagged>,
}

/// What both of them send carries these VLAN tags.
fn bridged(tags: &[u16]) -> Bridged {
    const GUEST: &str = "10.77.0.9";
    const GUEST_V6: &str = "fd77::9";
    let mut lab = Lab::builder().vlan(tags).build();
    let guest = Namespace::new("guest");
    let client = &lab.client;
    if lab.device != lab.wire {
        client.ip(&format!("link del {}", lab.device));
    }
    client.ip("link add br0 address 02:77:00:00:00:01 type bridge");
    client.ip("link set eth0 master br0");
    client.ip(&format!(
        "link add port1 type veth peer name eth0 netns {}",
        guest.path()
    ));
    client.ip("link set port1 master br0");
    client.ip("link set port1 up");
    client.ip("link set br0 up");
    guest.ip("link set eth0 up");
    let mut tagged = Vec::new();
    let (mut of_client, mut of_guest, mut far_mac) = ("br0", "eth0", "02:77:00:00:00:02");
    if !tags.is_empty() {
        tagged = vec![
            tags::add_device(client, "br0", tags, "02:78:00:00:00:01"),
            tags::add_device(&guest, "eth0", tags, "02:78:00:00:00:09"),
        ];
        (of_client, of_guest) = (&tagged[0].device, &tagged[1].device);
        far_mac = "02:78:00:00:00:02";
    }
    lab.move_client_to(of_client);
    guest.ip(&format!("addr add {GUEST}/24 dev {of_guest}"));
    guest.ip(&format!("addr add {GUEST_V6}/64 dev {of_guest} nodad"));
    for (family, far) in [
        ("", addresses::FAR.to_string()),
        ("-6 ", addresses::FAR_V6.to_string()),
    ] {
        guest.ip(&format!(
            "{family}route add default via {far} dev {of_guest}"
        ));
        // So that no packet waits for an answer.
        guest.ip(&format!(
            "neigh replace {far} lladdr {far_mac} dev {of_guest} nud permanent"
        ));
    }
    Dialer::new(&guest)
        .dial([live(9, 9), live_v6(9, 9)])
        .wait_for_all(SOON);
    Bridged {
        lab,
        guest,
        _tagged: tagged,
    }
}

#[test]
fn on_a_bridge_an_attempt_counts_once_at_whichever_device() {
    if !Feature::Bridge.is_here() {
        return;
    }
    let bridged = bridged(&[]);
    let lab = &bridged.lab;
    let all: [&[&str]; 3] = [&["br0"], &["eth0"], &["br0", "eth0"]];
    for devices in all {
        let throttle = throttle(&lab.client, devices, &[]);
        let title = format!("at {}", devices.join(" and "));
        assert_thirty_keep_pace(&title, &Dialer::new(&lab.client), lab.capture(), throttle);
    }
    assert_servers_answer(lab, &Dialer::new(&lab.client), all[2], &[]);
}

#[test]
fn what_a_bridge_passes_on_for_another_machine_counts_at_its_ports() {
    if !Feature::Bridge.is_here() {
        return;
    }
    let bridged = bridged(&[]);
    let Bridged { lab, guest, .. } = &bridged;
    for (device, more) in [("eth0", &[][..]), ("port1", INGRESS)] {
        let throttle = throttle(&lab.client, &[device], more);
        let title = format!("bridged, at {device}");
        assert_thirty_keep_pace(&title, &Dialer::new(guest), lab.capture(), throttle);
    }
    assert_servers_answer(lab, &Dialer::new(guest), &["port1"], INGRESS);
}

#[test]
fn what_a_bridge_passes_on_for_another_machine_does_not_count_at_the_bridge() {
    if !Feature::Bridge.is_here() {
        return;
    }
    let bridged = bridged(&[]);
    let Bridged { lab, guest, .. } = &bridged;
    let throttle = throttle(&lab.client, &["br0"], &[]);
    let capture = lab.capture();
    let _dialled = Dialer::new(guest).dial((0..30).map(dead_of_both));
    capture.wait_for_attempts(ATTEMPTS, SOON);
    assert!(throttle.limit_events().is_empty());
    let left = throttle.stop().expect_success();
    assert!(!left.stderr.contains("attempts "), "{}", left.stderr);
}

#[test]
fn tags_stay_on_through_a_bridge_whoever_sent_them() {
    if !Feature::Bridge.is_here() {
        return;
    }
    // As a whole: what adds the tags is in it.
    let bridged = bridged(&[7]);
    let Bridged { lab, guest, .. } = &bridged;
    let (own, other) = (Dialer::new(&lab.client), Dialer::new(guest));
    let all: [(&Dialer, &[&str], &[&str]); 6] = [
        (&own, &["br0.7"], &[]),
        (&own, &["br0"], &[]),
        (&own, &["eth0"], &[]),
        (&own, &["br0.7", "br0", "eth0"], &[]),
        (&other, &["eth0"], &[]),
        (&other, &["port1"], INGRESS),
    ];
    for (dialer, devices, more) in all {
        let throttle = throttle(&lab.client, devices, more);
        let title = format!("tagged, bridged, at {}", devices.join(" and "));
        let syns = assert_thirty_keep_pace(&title, dialer, lab.capture(), throttle);
        let tags: Vec<_> = syns.iter().map(|syn| syn.vlan_ids()).collect();
        assert!(tags.iter().all(|ids| *ids == [7]), "{title}: {tags:?}");
    }
    assert_servers_answer(lab, &own, all[3].1, &[]);
}

// ---- netkit ----------------------------------------------------------------

const MODES: [netkit::Mode; 2] = [netkit::Mode::Ip, netkit::Mode::Ethernet];

/// A pod behind the client, by a pair of netkit devices: `pod0` is the client's.
fn netkit(mode: netkit::Mode) -> (Lab, Namespace) {
    let lab = Lab::plain();
    let pod = Namespace::new("pod");
    let client = &lab.client;
    netkit::add_pair(client, "pod0", mode, &pod, "eth0");
    client.ip("link set pod0 up");
    pod.ip("link set eth0 up");
    client.ip("addr add 10.76.0.1/24 dev pod0");
    client.ip("addr add fd76::1/64 dev pod0 nodad");
    pod.ip("addr add 10.76.0.2/24 dev eth0");
    pod.ip("addr add fd76::2/64 dev eth0 nodad");
    pod.ip("route add default via 10.76.0.1 dev eth0");
    pod.ip("-6 route add default via fd76::1 dev eth0");
    client.set_sysctl("net.ipv4.ip_forward", "1");
    client.set_sysctl("net.ipv6.conf.all.forwarding", "1");
    let answered = Dialer::new(&pod).dial([live(9, 9), live_v6(9, 9)]);
    answered.wait_for_all(SOON);
    (lab, pod)
}

#[test]
fn attempts_of_a_pod_behind_netkit_keep_pace() {
    if !Feature::Netkit.is_here() {
        return;
    }
    for mode in MODES {
        let (lab, pod) = netkit(mode);
        let dialer = Dialer::new(&pod);
        for (device, more) in [("pod0", INGRESS), ("eth0", &[])] {
            let throttle = throttle(&lab.client, &[device], more);
            let title = format!("from behind netkit ({mode}), at {device}");
            assert_thirty_keep_pace(&title, &dialer, lab.capture(), throttle);
        }
        assert_servers_answer(&lab, &dialer, &["pod0"], INGRESS);
    }
}

#[test]
fn in_a_pod_the_end_of_a_netkit_pair_is_a_device_like_others() {
    if !Feature::Netkit.is_here() {
        return;
    }
    for mode in MODES {
        let (lab, pod) = netkit(mode);
        let throttle = throttle(&pod, &["eth0"], &[]);
        let dialer = Dialer::new(&pod);
        let title = format!("in the pod, at netkit ({mode})");
        assert_thirty_keep_pace(&title, &dialer, lab.capture(), throttle);
    }
}

// ---- wireguard -------------------------------------------------------------

/// The client and the far end talk by `wg0`, encrypted, over what they had before.
fn encrypted() -> Lab {
    const NEAR: &str = "10.79.0.1";
    const REMOTE: &str = "10.79.0.2";
    const PORT: u16 = 51_820;
    let mut lab = Lab::plain();
    let ends = [(&lab.client, NEAR), (&lab.far, REMOTE)];
    let keys = ends.map(|(end, address)| {
        end.ip(&format!("addr add {address}/24 dev eth0"));
        end.ip("link add wg0 type wireguard");
        let made = end.program("wg").arg("genkey").output().expect_success();
        let key = env::temp_dir().join(format!("throttle-wg-{}", std::process::id()));
        fs::write(&key, made.stdout).unwrap();
        let port = PORT.to_string();
        let set = ["set", "wg0", "listen-port", &port, "private-key"];
        let set = end.program("wg").args(set).arg(&key).output();
        fs::remove_file(&key).unwrap();
        set.expect_success();
        let shown = end.program("wg").args(["show", "wg0", "public-key"]);
        shown.output().expect_success().stdout.trim().to_owned()
    });
    for (n, (end, _)) in ends.iter().enumerate() {
        let (key, address) = (&keys[1 - n], ends[1 - n].1);
        let peer =
            format!("set wg0 peer {key} endpoint {address}:{PORT} allowed-ips 0.0.0.0/0,::/0");
        let set = end.program("wg").args(peer.split(' ')).output();
        set.expect_success();
        end.ip("link set wg0 up");
    }
    lab.far
        .ip(&format!("addr del {}/24 dev eth0", addresses::FAR));
    lab.far
        .ip(&format!("addr add {}/24 dev wg0", addresses::FAR));
    lab.far
        .ip(&format!("-6 addr del {}/64 dev eth0", addresses::FAR_V6));
    lab.far.ip(&format!(
        "-6 addr add {}/64 dev wg0 nodad",
        addresses::FAR_V6
    ));
    lab.client
        .ip(&format!("route del default via {}", addresses::FAR));
    lab.client
        .ip(&format!("-6 route del default via {}", addresses::FAR_V6));
    lab.move_client_to("wg0");
    lab.client.ip(&format!("addr add {NEAR}/24 dev eth0"));
    // They shake hands, so that no first packet waits for that.
    lab.dial([live(9, 9), live_v6(9, 9)]).wait_for_all(SOON);
    lab
}

#[test]
fn over_wireguard_an_attempt_counts_where_it_is_not_yet_encrypted() {
    if !Feature::Wireguard.is_here() || !Feature::Program("wg").is_here() {
        return;
    }
    let lab = encrypted();
    let dialer = Dialer::new(&lab.client);
    for devices in [&["wg0"][..], &["wg0", "eth0"]] {
        let throttle = throttle(&lab.client, devices, &[]);
        let title = format!("at {}", devices.join(" and "));
        let capture = Capture::arriving(&lab.far, "wg0");
        assert_thirty_keep_pace(&title, &dialer, capture, throttle);
    }
    assert_servers_answer(&lab, &dialer, &["wg0"], &[]);
    // Below, nothing is a SYN.
    let throttle = throttle(&lab.client, &["eth0"], &[]);
    let capture = Capture::arriving(&lab.far, "wg0");
    let _dialled = dialer.dial((100..130).map(dead));
    capture.wait_for_attempts(ATTEMPTS, SOON);
    assert!(throttle.limit_events().is_empty());
    let left = throttle.stop().expect_success();
    assert!(!left.stderr.contains("attempts "), "{}", left.stderr);
}

// ---- macvlan ---------------------------------------------------------------

#[test]
fn on_a_macvlan_an_attempt_counts_once_at_whichever_device() {
    if !Feature::Macvlan.is_here() {
        return;
    }
    let mut lab = Lab::plain();
    lab.client
        .ip("link add link eth0 name own0 address 02:77:00:00:00:03 type macvlan mode bridge");
    lab.client.ip("link set own0 up");
    lab.move_client_to("own0");
    let all: [&[&str]; 3] = [&["own0"], &["eth0"], &["own0", "eth0"]];
    for devices in all {
        let throttle = throttle(&lab.client, devices, &[]);
        let title = format!("at {}", devices.join(" and "));
        assert_thirty_keep_pace(&title, &Dialer::new(&lab.client), lab.capture(), throttle);
    }
    assert_servers_answer(&lab, &Dialer::new(&lab.client), all[2], &[]);
}

// ---- monitor ---------------------------------------------------------------

#[test]
fn in_monitor_mode_what_finds_the_line_full_counts_once_too() {
    let lab = Lab::builder().vlan(&[7]).build();
    // Ten go, some twenty wait, some thirty find the line full: at the first device.
    let more = ["--mode=monitor", "--max-delay=1s"];
    let throttle = throttle(&lab.client, &[&lab.device, &lab.wire], &more);
    let capture = lab.capture();
    let _dialled = lab.dial((0..60).map(dead_of_both));
    capture.wait_for_attempts(60, SOON);
    let left = throttle.stop().expect_success();
    let counts = tallies(&left, &lab.device);
    assert!(counts["overflowed"] > 0, "{counts:?}");
    assert_eq!(
        left.stderr.matches("attempts ").count(),
        1,
        "{}",
        left.stderr
    );
}
