//! What a service manager is told.

use std::{env, fs, os::unix::net::UnixDatagram, time::Duration};
use throttle_tests::{Lab, Throttle};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn it_is_ready_when_attached_and_says_when_it_ends() {
    let path = env::temp_dir().join(format!("throttle-notify-{}", std::process::id()));
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let heard = || {
        let mut bytes = [0; 1_024];
        let len = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    };
    let lab = Lab::plain();
    let program = Throttle::run(&lab.client, &["-i", &lab.device]).env("NOTIFY_SOCKET", &path);
    let throttle = Throttle::launch(program);
    let ready = heard();
    let mut lines = ready.lines();
    assert_eq!(lines.next(), Some("READY=1"));
    let status = lines.next().unwrap();
    assert!(
        status.starts_with(&format!("STATUS=attached to {}", lab.device)),
        "{status}"
    );
    let finished = throttle.stop();
    assert!(finished.status.success(), "{}", finished.stderr);
    // Alive, meanwhile, only if the manager watches.
    assert_eq!(heard(), "STOPPING=1\n");
    fs::remove_file(&path).unwrap();
}

#[test]
fn a_manager_that_does_not_listen_is_no_trouble() {
    let lab = Lab::plain();
    let program = Throttle::run(&lab.client, &["-i", &lab.device])
        .env("NOTIFY_SOCKET", "/nowhere/at/all")
        .env("WATCHDOG_USEC", "1");
    let finished = Throttle::launch(program).stop();
    assert!(finished.status.success(), "{}", finished.stderr);
}
