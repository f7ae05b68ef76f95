//! Programs everybody has, run inside a namespace.

use crate::{
    netns::Namespace,
    process::{Finished, Process, Program},
    wait::{slowness, wait_until},
};
use std::{
    env, fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// A program in C, without any library to be loaded, that dials in several ways. Its
/// file is removed when this is dropped.
#[derive(Debug)]
pub struct Connector(PathBuf);

impl Connector {
    /// Makes its file.
    ///
    /// # Panics
    /// When it was not compiled, or there is no room for it.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/connector"));
        assert!(!PROGRAM.is_empty(), "cc could not compile it (-static)");
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("conn-{}-{n}", process::id()));
        // A program that this process starts meanwhile would hold the file open for
        // writing for a moment, and then it cannot be run: another process writes it.
        let mut write = Command::new("cp");
        write.args(["/dev/stdin".as_ref(), path.as_os_str()]);
        let mut write = write.stdin(Stdio::piped()).spawn().unwrap();
        write.stdin.take().unwrap().write_all(PROGRAM).unwrap();
        assert!(write.wait().unwrap().success(), "write {}", path.display());
        // Other users must be able to run it, too.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The program, making this many attempts in this way, not yet started.
    pub fn dials(&self, namespace: &Namespace, count: &str, how: &str) -> Program {
        namespace.program(&self.0).args([count, how])
    }

    /// Its name, as the kernel has it.
    pub fn name(&self) -> &str {
        let name = self.0.file_name().unwrap().to_str().unwrap();
        &name[..name.len().min(15)]
    }
}

impl Default for Connector {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // It is a file in a folder for temporary files.
        let _ = fs::remove_file(&self.0);
    }
}

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
