//! Where the kernel side of a throttle is found by name: files in a bpf
//! filesystem.
//!
//! With `--keep` that is the machine's own, below [`FOLDER`], and what is there
//! outlives the daemon. Without, the daemon makes one that nobody sees and that
//! ends with it; others get to it by its descriptor
//! (`/proc/PID/fd/N`).

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{libc, sys::statfs};

use crate::{Error, Result};

/// The folder of all throttles, in the root of the machine's bpf filesystem.
pub const FOLDER: &str = "throttle";

/// The maps that are found by name, each by the name that it has in the object.
pub const MAPS: [&str; 12] = [
    "POLICY",
    "DAEMON",
    "FLOWS",
    "UNCOUNTED",
    "SOCKETS",
    "ENDPOINTS",
    "SCOPES",
    "LINES",
    "TALLIES",
    "UNHANDLED",
    "EXEMPT",
    "EVENTS",
];

/// The folder of one throttle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// The pins in `folder`, be there any or not.
    #[must_use]
    pub const fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The map `name`.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder.join("maps").join(name)
    }
}

/// Where the machine's bpf filesystem is mounted, seen from here; the customary
/// place if there are several.
#[must_use]
pub fn bpffs() -> Option<PathBuf> {
    const CUSTOMARY: &str = "/sys/fs/bpf";
    if is_bpffs(Path::new(CUSTOMARY)) {
        return Some(CUSTOMARY.into());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            // ID PARENT DEVICE ROOT MOUNT_POINT OPTIONS [TAGS] - TYPE SOURCE OPTIONS
            let (mount, kind) = line.split_once(" - ")?;
            let at = kind
                .starts_with("bpf ")
                .then(|| mount.split(' ').nth(4))??;
            Some(PathBuf::from(at))
        })
        // Another mount may lie over it.
        .find(|path| is_bpffs(path))
}

/// Whether `path` is in a bpf filesystem.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == statfs::BPF_FS_MAGIC)
}

/// A bpf filesystem of this process's own. It ends with its last descriptor.
#[derive(Debug)]
pub struct OwnBpffs(OwnedFd);

impl OwnBpffs {
    /// Makes one (since Linux 5.2).
    ///
    /// # Errors
    ///
    /// When the caller lacks CAP_SYS_ADMIN.
    pub fn make() -> Result<Self> {
        let what = "make a bpf filesystem";
        let failed = |error: io::Error| Error::failed(what, error);
        // FSOPEN_CLOEXEC, FSCONFIG_CMD_CREATE and FSMOUNT_CLOEXEC of
        // include/uapi/linux/mount.h.
        const CLOEXEC: libc::c_uint = 1;
        const CREATE: libc::c_uint = 6;
        let kind = CString::from(c"bpf");
        // SAFETY: a valid string.
        let context =
            unsafe { descriptor(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC)) }
                .map_err(failed)?;
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: this command takes no key and no value.
        let done = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                CREATE,
                none,
                none,
                0,
            )
        };
        if done < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: numbers only.
        unsafe {
            descriptor(libc::syscall(
                libc::SYS_fsmount,
                context.as_raw_fd(),
                CLOEXEC,
                0,
            ))
        }
        .map(Self)
        .map_err(failed)
    }

    /// Its root, as any process may call it that may look into this one.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// The descriptor that a system call returned.
///
/// # Safety
///
/// If it is one, nobody else may own it.
unsafe fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        // SAFETY: as promised by the caller.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}
