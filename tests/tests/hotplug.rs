//! Interfaces that come and go are followed.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use nix::sys::prctl::set_thp_disable;
use std::{
    collections::HashMap,
    fs,
    sync::LazyLock,
    time::{Duration, Instant},
};
use throttle_tests::{
    Dialer, Feature, Lab, Namespace, Throttle,
    addresses::dead,
    hooks::{BpfObjects, Hook, tcx_programs},
    throttle_cmd::{Running, scope_in, status},
    wait::slowness,
    wait_for, wait_until,
};

/// Both programs are on the device.
fn is_attached(namespace: &Namespace, ifindex: u32) -> bool {
    [Hook::Ingress, Hook::Egress]
        .into_iter()
        .all(|hook| has_program(namespace, ifindex, hook))
}

/// A program is there, by TCX or else by clsact.
fn has_program(namespace: &Namespace, ifindex: u32, hook: Hook) -> bool {
    static HAS_TCX: LazyLock<bool> = LazyLock::new(|| Feature::Tcx.may_be_used());
    if *HAS_TCX {
        return !tcx_programs(namespace, ifindex, hook).is_empty();
    }
    let place = match hook {
        Hook::Ingress => "ingress",
        Hook::Egress => "egress",
    };
    let name = namespace.run(|| {
        let listed = nix::net::if_::if_nameindex().unwrap();
        let device = listed.iter().find(|device| device.index() == ifindex)?;
        Some(device.name().to_string_lossy().into_owned())
    });
    name.is_some_and(|device| {
        let filters = ["filter", "show", "dev", &device, place];
        let shown = namespace.program("tc").args(filters).output();
        shown.stdout.contains("direct-action")
    })
}

/// What it has of memory that is no file's.
fn resident_kib(running: &Running) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs many commands of `ip` at once.
fn ip_batch(namespace: &Namespace, commands: &[String]) {
    let file = std::env::temp_dir().join(format!("throttle-hotplug-{}", std::process::id()));
    fs::write(&file, commands.join("\n")).unwrap();
    let done = namespace.program("ip").arg("-batch").arg(&file).output();
    fs::remove_file(&file).unwrap();
    done.expect_success();
}

/// What a daemon holds.
fn descriptors(running: &Running) -> usize {
    let held = fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap();
    held.count()
}

fn nothing_is_attached(namespace: &Namespace) -> bool {
    status(namespace, None)["throttles"][0]["interfaces"] == serde_json::json!([])
}

#[test]
fn two_hundred_devices_that_come_and_go_are_attached_within_a_second_and_leave_nothing() {
    let namespace = Namespace::new("hotplug");
    // Otherwise khugepaged fills what is free in the heap up to pages of 2 MiB, and it
    // looks as if the daemon had grown. What is started inherits it
    // (PR_SET_THP_DISABLE(2const)).
    set_thp_disable(true).unwrap();
    let running = Throttle::start(&namespace, &["-i", "veth*"]);
    set_thp_disable(false).unwrap();
    let objects = BpfObjects::now();
    let mut took = Vec::new();
    let mut held = None;
    for n in 0..200 {
        namespace.ip(&format!("link add veth{n} type veth peer name other{n}"));
        let made = Instant::now();
        let index = namespace.ifindex(&format!("veth{n}"));
        wait_until("it to be attached to", Duration::from_secs(5), || {
            is_attached(&namespace, index)
        });
        took.push(made.elapsed());
        namespace.ip(&format!("link del veth{n}"));
        if n == 20 {
            // By now all programs are loaded and all lists have their room.
            wait_until("all to be let go", Duration::from_secs(5), || {
                nothing_is_attached(&namespace)
            });
            held = Some((descriptors(&running), resident_kib(&running)));
        }
    }
    wait_until("all to be let go", Duration::from_secs(5), || {
        nothing_is_attached(&namespace)
    });
    let (before, after) = (
        held.unwrap(),
        (descriptors(&running), resident_kib(&running)),
    );
    assert_eq!(after.0, before.0, "descriptors");
    assert!(
        after.1 < before.1 + 256,
        "it grew from {} to {} KiB",
        before.1,
        after.1
    );
    wait_until("no links to be left", Duration::from_secs(10), || {
        // That of the tracepoint was there before.
        BpfObjects::now().since(&objects).links.is_empty()
    });
    took.sort_unstable();
    let worst = took[took.len() - 1];
    assert!(worst < Duration::from_secs(1) * slowness(), "{worst:?}");
    eprintln!(
        "200 devices attached after {:?} in the median, {worst:?} at worst; {} KiB resident after \
         20, {} after 200",
        took[took.len() / 2],
        before.1,
        after.1
    );
    running.stop().expect_success();
}

#[test]
fn two_hundred_devices_at_once_are_attached_as_fast_as_the_kernel_takes_them() {
    /// Pairs, both ends of which are wanted.
    const PAIRS: u32 = 100;
    let namespace = Namespace::new("hotplug");
    let running = Throttle::start(&namespace, &["-i", "veth*"]);
    let add: Vec<String> = (0..PAIRS)
        .map(|n| format!("link add veth{n}a type veth peer name veth{n}b"))
        .collect();
    ip_batch(&namespace, &add);
    let made = Instant::now();
    let mut left: Vec<u32> = (0..PAIRS)
        .flat_map(|n| [format!("veth{n}a"), format!("veth{n}b")])
        .map(|name| namespace.ifindex(&name))
        .collect();
    // For each of two programs a device, the kernel waits until no CPU runs what
    // was there before (`tcx_entry_sync` in include/net/tcx.h).
    wait_until("all to be attached to", Duration::from_secs(60), || {
        left.retain(|index| !is_attached(&namespace, *index));
        left.is_empty()
    });
    eprintln!(
        "200 devices that were there at once: all attached {:?} later",
        made.elapsed()
    );
    let remove: Vec<String> = (0..PAIRS).map(|n| format!("link del veth{n}a")).collect();
    ip_batch(&namespace, &remove);
    wait_until("all to be let go", Duration::from_secs(30), || {
        nothing_is_attached(&namespace)
    });
    running.stop().expect_success();
}

#[test]
fn a_pattern_attaches_to_what_is_there_and_each_has_its_own_count() {
    let lab = Lab::builder().machines_behind(2).build();
    let _running = Throttle::start(
        &lab.client,
        &[
            "-i",
            "pod*",
            "--direction=ingress",
            "--limit=5",
            "--rate=1/m",
            "--max-delay=1h",
        ],
    );
    let capture = lab.capture();
    let from: Vec<_> = (0..2u32)
        .map(|n| Dialer::new(&lab.behind[n as usize]).dial((n * 100..n * 100 + 20).map(dead)))
        .collect();
    capture.wait_for_attempts(10, Duration::from_secs(5));
    let found = wait_for("both to wait", Duration::from_secs(5), || {
        let found = status(&lab.client, None);
        let queued = |name: &str| {
            let scopes = found["throttles"][0]["scopes"].as_array().unwrap();
            scopes
                .iter()
                .any(|of| of["name"] == name && of["queued"] == 15)
        };
        (queued("pod0") && queued("pod1")).then_some(found)
    });
    for name in ["pod0", "pod1"] {
        assert_eq!(scope_in(&found["throttles"][0], name)["half_open"], 5);
    }
    let mut each: HashMap<_, u32> = HashMap::new();
    for syn in capture.finish().first_syns() {
        *each.entry(syn.src.ip()).or_default() += 1;
    }
    assert_eq!(
        each.values().copied().collect::<Vec<_>>(),
        [5, 5],
        "{each:?}"
    );
    assert!(from.iter().all(|attempts| attempts.failed().is_empty()));
}

#[test]
fn an_interface_that_comes_back_is_attached_again_and_a_new_name_changes_nothing() {
    let namespace = Namespace::new("hotplug");
    namespace.ip("link add one type veth peer name two");
    let running = Throttle::start(&namespace, &["-i", "one", "-i", "two"]);
    namespace.ip("link set two name other");
    running.wait_log("two is called other now", Duration::from_secs(5));
    assert!(is_attached(&namespace, namespace.ifindex("other")));
    // Not wanted: neither by its name nor by a pattern.
    namespace.ip("link add three type veth peer name four");
    namespace.ip("link set three name three2");
    namespace.ip("link set four name two");
    running.wait_log("two has appeared", Duration::from_secs(5));
    assert!(is_attached(&namespace, namespace.ifindex("two")));
    assert!(!is_attached(&namespace, namespace.ifindex("three2")));
    namespace.ip("link del one");
    running.wait_log("one vanished", Duration::from_secs(5));
    namespace.ip("link add one type veth peer name five");
    running.wait_log("one has appeared", Duration::from_secs(5));
    let index = namespace.ifindex("one");
    wait_until("it to be attached to", Duration::from_secs(5), || {
        is_attached(&namespace, index)
    });
    assert!(!is_attached(&namespace, namespace.ifindex("five")));
    running.stop().expect_success();
}

#[test]
fn an_interface_that_moves_away_takes_no_program_along() {
    let (namespace, elsewhere) = (Namespace::new("hotplug"), Namespace::new("elsewhere"));
    namespace.ip("link add here type veth peer name veth0");
    let running = Throttle::start(&namespace, &["-i", "here", "-i", "veth*"]);
    let index = namespace.ifindex("veth0");
    assert!(is_attached(&namespace, index));
    namespace.ip(&format!("link set veth0 netns {}", elsewhere.path()));
    running.wait_log("veth0 vanished", Duration::from_secs(5));
    let index = elsewhere.ifindex("veth0");
    wait_until(
        "it to be rid of the programs",
        Duration::from_secs(5),
        || {
            !has_program(&elsewhere, index, Hook::Egress)
                && !has_program(&elsewhere, index, Hook::Ingress)
        },
    );
    elsewhere.ip(&format!("link set veth0 netns {}", namespace.path()));
    running.wait_log("veth0 has appeared", Duration::from_secs(5));
    let index = namespace.ifindex("veth0");
    wait_until("it to be attached to", Duration::from_secs(5), || {
        is_attached(&namespace, index)
    });
    running.stop().expect_success();
}

#[test]
fn a_pattern_that_makes_no_sense_is_refused() {
    let namespace = Namespace::new("hotplug");
    for pattern in ["veth[", "a/*"] {
        let refused = Throttle::run(&namespace, &["-i", pattern]).output();
        assert_eq!(refused.code(), Some(2), "{pattern}: {}", refused.stderr);
        assert!(refused.stderr.contains(pattern), "{}", refused.stderr);
    }
}
