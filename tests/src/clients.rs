//! Programs everybody has, run inside a namespace.

use crate::{
    netns::Namespace,
    process::{Finished, Process},
    wait::{slowness, wait_until},
};
use std::{env, net::SocketAddr, path::Path, time::Duration};

/// Whether a program is installed.
pub fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}

/// Runs `curl -sS` on these URLs, a few seconds each at most.
#[track_caller]
pub fn curl(namespace: &Namespace, urls: &[&str]) -> Finished {
    namespace
        .program("curl")
        .args(["-sS", "--max-time", &(30 * slowness()).to_string()])
        .args(urls)
        .output()
}

/// The URL of a live address.
pub fn url(address: SocketAddr) -> String {
    format!("http://{address}/")
}

/// Runs `nmap` with these words: it neither resolves names nor looks first
/// whether a host is up.
#[track_caller]
pub fn nmap(namespace: &Namespace, words: &str) -> Finished {
    namespace
        .program("nmap")
        .args(["-n", "-Pn"])
        .args(words.split_whitespace())
        .output()
}

/// Starts the same, and goes on.
#[track_caller]
pub fn start_nmap(namespace: &Namespace, words: &str) -> Process {
    namespace
        .program("nmap")
        .args(["-n", "-Pn"])
        .args(words.split_whitespace())
        .start()
}

/// Runs `ss` with these words: for example `-tinH state syn-sent`.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn ss(namespace: &Namespace, words: &str) -> String {
    namespace
        .program("ss")
        .args(words.split_whitespace())
        .output()
        .expect_success()
        .stdout
}

/// Records what a device sees to a file, until dropped. It is at work when
/// this returns.
///
/// # Panics
/// When it cannot.
#[track_caller]
pub fn tcpdump(namespace: &Namespace, device: &str, file: &Path) -> Process {
    let mut process = namespace
        .program("tcpdump")
        .args([
            "-Z",
            "root",
            "-n",
            "-U",
            "--immediate-mode",
            "-i",
            device,
            "-w",
        ])
        .arg(file)
        .start();
    let listens = |process: &Process| {
        let said = process.stderr();
        said.iter().any(|line| line.contains("listening on"))
    };
    wait_until(
        "tcpdump to listen or to end",
        Duration::from_secs(10),
        || listens(&process) || process.ended().is_some(),
    );
    assert!(listens(&process), "tcpdump: {:?}", process.stderr());
    process
}
