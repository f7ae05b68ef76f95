//! A daemon that comes anew is handed the attempts that wait.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::time::Duration;

use throttle::{
    Settings,
    attach::Hook,
    daemon::{Plan, Throttle},
    encode::{Format, Host},
    interface::Wanted,
    output::Output,
    settings::Rate,
};
use throttle_tests::{Lab, addresses::dead};
use tokio::{runtime::Builder, sync::oneshot, time::timeout};

/// Runs the throttle of the library in the client's namespace: ten attempts are
/// deferred under one keeper, which is then replaced. `seconds` is how long the
/// second one works.
fn with_two_keepers(lab: &Lab, work: impl FnOnce() + Send, seconds: u64) {
    let (deferred, is_deferred) = oneshot::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lab.client.run(move || {
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let wanted = Wanted::new(&["eth0".to_owned()]).unwrap();
                    // So slow that the first keeper releases nothing.
                    let settings = Settings {
                        limit: 5,
                        rate: "1/m".parse().unwrap(),
                        // Room for sixty in the line, at that rate.
                        max_delay: Duration::from_secs(3_600),
                        ..Settings::default()
                    };
                    let mut output =
                        Output::new(std::io::sink(), Format::Text, Host::this(), |_| None);
                    let plan = Plan {
                        name: None,
                        wanted,
                        settings,
                        hook: Hook::Auto,
                        keep: false,
                        reload: None,
                    };
                    let mut throttle = Throttle::start(plan).await.unwrap();
                    deferred.send(()).unwrap();
                    let waiting = |throttle: &Throttle| {
                        throttle
                            .maps()
                            .scopes()
                            .map(|(_, s)| s.queued.total())
                            .sum::<u64>()
                    };
                    let all_wait = async {
                        while waiting(&throttle) < 10 {
                            let slice =
                                timeout(Duration::from_millis(20), throttle.run(&mut output));
                            assert!(slice.await.is_err(), "it ended");
                        }
                    };
                    timeout(Duration::from_secs(20), all_wait)
                        .await
                        .expect("ten to be deferred");
                    assert_eq!(waiting(&throttle), 10);

                    throttle.renew_keeper().unwrap();
                    throttle
                        .change(&Settings {
                            limit: 5,
                            rate: Rate::per_second(5),
                            ..Settings::default()
                        })
                        .unwrap();
                    let second = Duration::from_secs(seconds);
                    let _ = timeout(second, throttle.run(&mut output)).await;
                    throttle.stop(&mut output).await;
                });
            });
        });
        is_deferred.blocking_recv().unwrap();
        work();
    });
}

#[test]
fn a_new_keeper_releases_in_order_of_arrival_at_the_rate() {
    let lab = Lab::plain();
    let capture = lab.capture();
    let mut attempts = None;
    with_two_keepers(&lab, || attempts = Some(lab.dial((0..15).map(dead))), 6);
    let attempts = attempts.unwrap();
    let frames = capture.finish();
    let first: Vec<_> = frames.first_syns().iter().map(|syn| syn.dst).collect();
    let dialled: Vec<_> = (0..15).map(dead).collect();
    assert_eq!(first[..5], dialled[..5], "what was admitted");
    // The second keeper gets them when their senders retransmit, after a second;
    // from then on all fifteen go out within the six seconds, in order.
    assert_eq!(first, dialled);
    assert!(attempts.failed().is_empty());
    let gaps: Vec<_> = frames.intervals();
    eprintln!("intervals under the second keeper: {:?}", &gaps[5..]);
}
