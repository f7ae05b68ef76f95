//! cgroups of a test's own.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::wait::wait_at_most;

/// What the names of a test's cgroups begin with.
const PREFIX: &str = "throttle-test-";

/// A cgroup in the version 2 hierarchy. Clones are handles to the same one;
/// with the last, whoever is still in it is killed and it is removed.
#[derive(Clone, Debug)]
pub struct Cgroup(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    mount: PathBuf,
    /// Keeps the parent longer than the child.
    _parent: Option<Cgroup>,
}

impl Cgroup {
    /// A new cgroup directly under the root of the hierarchy.
    ///
    /// # Panics
    /// When no cgroup v2 is mounted, or without the right to add to it.
    pub fn new(hint: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        let mount = mount_point();
        SWEEP.call_once(|| remove_forgotten(&mount));
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("{PREFIX}{hint}-{}-{n}", std::process::id()));
        Self::make(path, mount, None)
    }

    /// A new cgroup inside this one.
    ///
    /// # Panics
    /// When there is one of that name.
    pub fn child(&self, name: &str) -> Self {
        Self::make(
            self.0.path.join(name),
            self.0.mount.clone(),
            Some(self.clone()),
        )
    }

    fn make(path: PathBuf, mount: PathBuf, parent: Option<Self>) -> Self {
        fs::create_dir(&path)
            .unwrap_or_else(|e| panic!("make the cgroup {} (are you root?): {e}", path.display()));
        Self(Arc::new(Folder {
            path,
            mount,
            _parent: parent,
        }))
    }

    /// Its id, as BPF programs see it.
    ///
    /// # Panics
    /// Never, while it exists.
    pub fn id(&self) -> u64 {
        fs::metadata(&self.0.path).unwrap().ino()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.0.path
    }

    /// Its path within the hierarchy, as in /proc/PID/cgroup.
    ///
    /// # Panics
    /// Never.
    pub fn path(&self) -> String {
        format!(
            "/{}",
            self.0.path.strip_prefix(&self.0.mount).unwrap().display()
        )
    }

    /// The processes in it.
    ///
    /// # Panics
    /// Never, while it exists.
    pub fn processes(&self) -> Vec<u32> {
        self.0.processes()
    }

    /// Moves a process into it.
    ///
    /// # Panics
    /// When it is no more.
    #[track_caller]
    pub fn adopt(&self, pid: u32) {
        fs::write(self.0.path.join("cgroup.procs"), pid.to_string())
            .unwrap_or_else(|e| panic!("move {pid} into {}: {e}", self.path()));
    }

    /// Whoever writes `0` to this is in.
    pub(crate) fn open_procs(&self) -> File {
        OpenOptions::new()
            .write(true)
            .open(self.0.path.join("cgroup.procs"))
            .unwrap()
    }
}

impl Folder {
    fn processes(&self) -> Vec<u32> {
        let procs = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        procs.lines().filter_map(|pid| pid.parse().ok()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for pid in self.processes() {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        // A cgroup can be removed once its last process has been reaped, and with
        // it what a service manager made inside.
        let removed = || {
            remove_tree(&self.path);
            (!self.path.exists()).then_some(())
        };
        if wait_at_most(Duration::from_secs(5), removed).is_none() {
            eprintln!("could not remove the cgroup {}", self.path.display());
        }
    }
}

/// Removes the cgroups of test processes that were killed: the one thing
/// here that does not end with its process.
fn remove_forgotten(mount: &Path) {
    for entry in fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.rsplit('-').nth(1));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove_tree(&entry.path());
        }
    }
}

fn remove_tree(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    // Fails if somebody is still in it, who then keeps it.
    let _ = fs::remove_dir(folder);
}

/// Where the version 2 hierarchy is mounted: /sys/fs/cgroup, or elsewhere
/// beside version 1.
///
/// # Panics
/// When it is not mounted.
pub fn mount_point() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // ID PARENT DEVICE ROOT MOUNT_POINT OPTIONS [TAGS] - TYPE SOURCE OPTIONS
    let found = mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem
            .starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))?
    });
    found.expect("no cgroup v2 is mounted").into()
}
