//! One episode, from its beginning to its end.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;
use throttle_tests::{
    Lab, Pace, addresses::dead, dial::DialProgram, throttle_cmd::tallies, wait_until,
};

const PACE: Pace = Pace {
    limit: 10,
    per_second: 5,
};
const ATTEMPTS: u32 = 200;

fn action(event: &Value) -> &str {
    event["event"]["action"].as_str().unwrap()
}

#[test]
fn an_episode_is_told_of_when_it_begins_while_it_lasts_and_when_it_is_over() {
    let lab = Lab::plain();
    let throttle = PACE.throttle(
        &lab.client,
        &lab.device,
        &["--with-destinations", "--with-args"],
    );
    let program = DialProgram::new(&lab.client)
        .to((0..ATTEMPTS).map(dead))
        .start();
    // 190 wait, which takes 38 s: long enough for one report in between.
    let ongoing = throttle.wait_event("it goes on", Duration::from_secs(40), |event| {
        action(event) == "limit-ongoing"
    });
    program.signal(Signal::SIGKILL);
    let cleared = throttle.wait_event("it is over", Duration::from_secs(20), |event| {
        action(event) == "limit-cleared"
    });
    let events = throttle.events();
    let actions: Vec<_> = events.iter().map(action).collect();
    assert_eq!(
        actions,
        [
            "connection-attempt-deferred",
            "limit-ongoing",
            "limit-cleared"
        ]
    );
    let numbers: Vec<_> = events
        .iter()
        .map(|e| e["event"]["sequence"].as_u64())
        .collect();
    assert_eq!(numbers, [Some(1), Some(2), Some(3)]);
    let reached = &events[0];
    for event in &events {
        assert_eq!(event["throttle"]["episode"], reached["throttle"]["episode"]);
        assert_eq!(event["process"]["pid"], program.pid());
        assert_eq!(event["event"]["start"], reached["event"]["start"]);
        assert_eq!(event["process"]["args"][0], reached["process"]["args"][0]);
    }
    assert!(reached["process"]["args"][0].is_string(), "{reached:#}");

    // Who it was is still known, though it is no more.
    assert!(ongoing["throttle"]["exited"].is_null());
    assert_eq!(cleared["throttle"]["exited"], true);
    assert_eq!(
        cleared["process"]["executable"],
        reached["process"]["executable"]
    );
    for event in [&ongoing, &cleared] {
        let told = &event["throttle"];
        assert_eq!(told["programs"][0]["attempts"], ATTEMPTS, "{event:#}");
        assert_eq!(told["destination_count"], ATTEMPTS);
        assert_eq!(told["destinations"].as_array().unwrap().len(), 64);
        let peak = told["peak_queued"].as_u64().unwrap();
        assert!((185..=190).contains(&peak), "{peak}");
    }
    let seconds = |event: &Value| event["event"]["duration"].as_u64().unwrap() as f64 / 1e9;
    assert!(
        (30.0..33.0).contains(&seconds(&ongoing)),
        "{}",
        seconds(&ongoing)
    );
    assert!(seconds(&cleared) > seconds(&ongoing));
    assert_eq!(
        (
            &cleared["throttle"]["half_open"],
            &cleared["throttle"]["queued"]
        ),
        (&0.into(), &0.into())
    );
    assert_eq!(cleared["throttle"]["ending"], "recovered");

    // What it says in all is what the kernel counted in all.
    let counts = tallies(&throttle.stop(), &lab.device);
    let totals = &cleared["throttle"]["totals"];
    for name in ["deferred", "released", "aborted"] {
        assert_eq!(
            totals[name].as_u64(),
            counts.get(name).copied(),
            "{name}: {totals} {counts:?}"
        );
    }
    assert_eq!(counts["episodes"], 1);
    eprintln!(
        "an episode of {:.1} s: three events; totals {totals}",
        seconds(&cleared)
    );
}

#[test]
fn an_episode_ends_with_the_throttle() {
    let lab = Lab::plain();
    let throttle = PACE.throttle(&lab.client, &lab.device, &[]);
    let _attempts = lab.dial((0..20).map(dead));
    wait_until("the limit to be reached", Duration::from_secs(5), || {
        throttle.limit_events().len() == 1
    });
    let left = throttle.stop().expect_success();
    let last = left.stdout.lines().last().unwrap().to_owned();
    let event: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(action(&event), "limit-cleared");
    assert_eq!(event["throttle"]["ending"], "stopped");
    assert_eq!(event["throttle"]["totals"]["deferred"], 10);
}
