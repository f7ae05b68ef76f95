//! A network namespace of a test's own.

use crate::{process::Program, sys};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fmt,
    fs::{self, File},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    panic,
    sync::Arc,
    thread,
};

/// A network namespace. Clones are handles to the same one; it ends with the
/// last handle and the last socket in it.
#[derive(Clone)]
pub struct Namespace {
    name: Arc<str>,
    file: Arc<File>,
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespace {}", self.name)
    }
}

impl Namespace {
    /// A new namespace in which only the loopback device exists, and is up.
    /// The name is for messages only.
    ///
    /// # Panics
    /// Without CAP_SYS_ADMIN.
    pub fn new(name: &str) -> Self {
        let file = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|e| panic!("make a network namespace (are you root?): {e}"));
            this_threads_namespace()
        });
        let namespace = Self {
            name: name.into(),
            file: Arc::new(file),
        };
        namespace.run(|| {
            for family in ["all", "default"] {
                let conf = format!("net.ipv6.conf.{family}");
                // Addresses are usable at once, and nobody asks for routers.
                write_sysctl(&format!("{conf}.accept_dad"), "0");
                write_sysctl(&format!("{conf}.router_solicitations"), "0");
                write_sysctl(&format!("{conf}.accept_ra"), "0");
                // The lab's routes are often one-way.
                write_sysctl(&format!("net.ipv4.conf.{family}.rp_filter"), "0");
            }
        });
        namespace.ip("link set lo up");
        namespace
    }

    /// The namespace the calling thread is in.
    ///
    /// # Panics
    /// Without a mounted /proc.
    pub fn current() -> Self {
        Self {
            name: "current".into(),
            file: Arc::new(this_threads_namespace()),
        }
    }

    /// Runs `work` on a thread inside the namespace and returns what it
    /// returns. Sockets made there stay there.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_thread(|| {
            self.enter();
            work()
        })
    }

    /// Starts a thread inside the namespace.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = self.clone();
        thread::spawn(move || {
            namespace.enter();
            work()
        })
    }

    /// A program that will run inside the namespace.
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Program {
        Program::new(self, program)
    }

    /// Runs `ip` with these words inside the namespace, and returns what it
    /// printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        self.program("ip")
            .args(words.split_whitespace())
            .output()
            .expect_success()
            .stdout
    }

    /// Runs `tc` with these words inside the namespace, and returns what it
    /// printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn tc(&self, words: &str) -> String {
        self.program("tc")
            .args(words.split_whitespace())
            .output()
            .expect_success()
            .stdout
    }

    /// Sets a sysctl of the namespace, written with dots.
    ///
    /// # Panics
    /// When there is no such sysctl.
    #[track_caller]
    pub fn set_sysctl(&self, name: &str, value: &str) {
        self.run(|| write_sysctl(name, value));
    }

    /// Reads a sysctl of the namespace, written with dots.
    ///
    /// # Panics
    /// When there is no such sysctl.
    #[track_caller]
    pub fn sysctl(&self, name: &str) -> String {
        let path = sysctl_path(name);
        self.run(|| fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {path}: {e}")))
            .trim()
            .to_owned()
    }

    /// The index of a device.
    ///
    /// # Panics
    /// When there is no such device.
    #[track_caller]
    pub fn ifindex(&self, device: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(device))
            .unwrap_or_else(|e| panic!("{self:?} has no device {device}: {e}"))
    }

    /// The names of all devices.
    pub fn devices(&self) -> Vec<String> {
        self.run(|| {
            let listed = nix::net::if_::if_nameindex().unwrap();
            listed
                .iter()
                .map(|device| device.name().to_string_lossy().into_owned())
                .collect()
        })
    }

    /// What other programs may open while this process lives, to name the
    /// namespace: `nsenter --net=PATH`, `ip link set DEVICE netns PATH`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// The inode number, by which the kernel tells namespaces apart.
    ///
    /// # Panics
    /// Never, while the namespace is open.
    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().unwrap().ino()
    }

    /// Turns checksum and segmentation offload of a device off, so that its
    /// frames carry whole checksums.
    ///
    /// # Panics
    /// When the device cannot.
    #[track_caller]
    pub fn without_offload(&self, device: &str) {
        self.run(|| sys::turn_offload_off(device))
            .unwrap_or_else(|e| panic!("turn the offloads of {device} off: {e}"));
    }

    /// Moves the calling thread in, for good.
    fn enter(&self) {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|e| panic!("enter {self:?}: {e}"));
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn this_threads_namespace() -> File {
    File::open("/proc/thread-self/ns/net").unwrap_or_else(|e| panic!("open own namespace: {e}"))
}

fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

#[track_caller]
fn write_sysctl(name: &str, value: &str) {
    let path = sysctl_path(name);
    // Which namespace /proc/sys/net shows depends on the thread that opens it.
    fs::write(&path, value).unwrap_or_else(|e| panic!("write {value} to {path}: {e}"));
}

/// Runs `work` on a thread of its own, because a thread that has changed its
/// namespace is of no further use to a test harness.
pub(crate) fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => panic::resume_unwind(panic),
    })
}
