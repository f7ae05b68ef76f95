//! A copy of this machine's files, to install things on: what is changed is kept
//! aside, and gone afterwards.
//!
//! An overlay over the root filesystem, its changes in memory, is the root of a
//! mount namespace. Devices, /proc and /sys are the machine's own; /run and /tmp
//! are empty at the beginning.

use crate::{
    netns::{Namespace, in_thread},
    process::{Mounts, Program},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{chdir, pivot_root},
};
use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// Where, inside, the changes are seen, and the files as they were before. What
/// is there is no change itself.
const CHANGES: &str = "/run/throttle-test/changes";
const BEFORE: &str = "/run/throttle-test/before";
/// As in a login of root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A copy of this machine's files.
#[derive(Debug)]
pub struct Machine {
    mounts: Mounts,
    /// What it is made of; empty outside of its mount namespace.
    folder: PathBuf,
}

impl Machine {
    /// A new copy.
    ///
    /// # Panics
    /// Without root, or when the kernel has no overlay filesystem.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("throttle-machine-{}-{n}", process::id()));
        fs::create_dir(&folder).unwrap();
        let namespace = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            assemble(&folder);
            File::open("/proc/thread-self/ns/mnt").unwrap()
        });
        Self {
            mounts: Mounts::of(namespace),
            folder,
        }
    }

    /// A program on it, in `namespace`.
    pub fn program(&self, namespace: &Namespace, program: impl AsRef<OsStr>) -> Program {
        namespace
            .program(program)
            .with_mounts(&self.mounts)
            .env("PATH", PATH)
            .env("DEBIAN_FRONTEND", "noninteractive")
    }

    /// Does something with its files.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_thread(|| {
            self.mounts.enter();
            work()
        })
    }

    /// The text of a file.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        self.run(|| fs::read_to_string(path))
            .unwrap_or_else(|e| panic!("read {path}: {e}"))
    }

    /// Writes a file.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn write(&self, path: &str, content: impl AsRef<[u8]> + Sync) {
        self.run(|| fs::write(path, content.as_ref()))
            .unwrap_or_else(|e| panic!("write {path}: {e}"));
    }

    /// Whether there is something of this name.
    pub fn has(&self, path: &str) -> bool {
        self.run(|| Path::new(path).symlink_metadata().is_ok())
    }

    /// What has been changed so far: files and folders that have come, gone, or
    /// been written.
    pub fn changes(&self) -> BTreeSet<PathBuf> {
        self.run(|| {
            let mut found = BTreeSet::new();
            collect(Path::new(CHANGES), Path::new("/"), &mut found);
            found
        })
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It is an empty folder in a folder for temporary files.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Makes an overlay the root of the calling thread's mount namespace.
fn assemble(folder: &Path) {
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let mount_new = |kind: &str, at: &Path, options: Option<&str>| {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), options)
            .unwrap_or_else(|e| panic!("mount {kind} at {}: {e}", at.display()));
    };
    mount(none, "/", none, private, none).unwrap();
    mount_new("tmpfs", folder, None);
    let [upper, work, root] = ["upper", "work", "root"].map(|name| folder.join(name));
    for part in [&upper, &work, &root] {
        fs::create_dir(part).unwrap();
    }
    let layers = format!(
        "lowerdir=/,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    mount_new("overlay", &root, Some(&layers));
    for shared in ["dev", "proc", "sys"] {
        let (from, to) = (Path::new("/").join(shared), root.join(shared));
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&from), &to, none, bind, none).unwrap();
    }
    for (empty, mode) in [("run", "mode=755"), ("tmp", "mode=1777")] {
        mount_new("tmpfs", &root.join(empty), Some(mode));
    }
    for (from, at) in [(upper.as_path(), CHANGES), (Path::new("/"), BEFORE)] {
        let at = root.join(at.trim_start_matches('/'));
        fs::create_dir_all(&at).unwrap();
        mount(Some(from), &at, none, MsFlags::MS_BIND, none).unwrap();
    }
    let old = root.join("run/old");
    fs::create_dir(&old).unwrap();
    chdir(&root).unwrap();
    pivot_root(".", "run/old").unwrap();
    chdir("/").unwrap();
    umount2("/run/old", MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir("/run/old").unwrap();
}

/// What is in `layer`, which stands for `path`. Folders that were there before are
/// none themselves, only what is in them.
fn collect(layer: &Path, path: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(layer).unwrap() {
        let entry = entry.unwrap();
        let path = path.join(entry.file_name());
        let is_folder = entry.file_type().unwrap().is_dir();
        if is_folder {
            collect(&entry.path(), &path, found);
        }
        if !is_folder || !was_there(&path) {
            found.insert(path);
        }
    }
}

fn was_there(path: &Path) -> bool {
    let before = Path::new(BEFORE).join(path.strip_prefix("/").unwrap());
    before.symlink_metadata().is_ok()
}
