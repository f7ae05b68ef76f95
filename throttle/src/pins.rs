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
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use aya::programs::{SchedClassifier, TcAttachType, tc::TcHandle};
use nix::{libc, sys::statfs};

use crate::{Error, Result, settings::Direction};

/// The folder of all throttles, in the root of the machine's bpf filesystem.
pub const FOLDER: &str = "throttle";

/// The maps that are found by name, each by the name that it has in the object.
pub const MAPS: [&str; 13] = [
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
    "INTERFACES",
    "EVENTS",
];

/// The folder of one throttle:
///
/// | folder | holds |
/// |---|---|
/// | `maps` | the [`MAPS`] |
/// | `programs` | the programs, and the table by which they find each other |
/// | `links` | TCX links: `INDEX-egress`, `INDEX-ingress`; and that of the tracepoint |
/// | `filters` | for each filter on a clsact qdisc its program; the name is a [`Filter`] |
///
/// What is about to take the place of `maps` and `programs` is in `maps-new` and
/// `programs-new`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    folder: PathBuf,
}

/// The link of the tracepoint, in `links`.
pub const TRACEPOINT: &str = "socket_state";

/// How the folders begin of programs that a start left that was cut short.
const STALE: &str = "programs-stale";

/// Most of those that are kept: the programs of more than one are in use only if
/// as many starts in a row were cut short in the middle of changing links.
const STALE_MOST: usize = 4;

/// A filter on a clsact qdisc: what it takes to find it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// The index of the device.
    pub index: u32,
    /// The direction.
    pub at: TcAttachType,
    /// Its priority.
    pub priority: u16,
    /// Its handle.
    pub handle: TcHandle,
    /// Whether the qdisc was added for it.
    pub added_qdisc: bool,
}

impl Filter {
    /// As the name of a file.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!(
            "{}-{}-{}-{}-{}",
            self.index,
            direction(self.at),
            self.priority,
            u32::from(self.handle),
            if self.added_qdisc { "added" } else { "found" },
        )
    }

    /// What a file's name says. None if it says nothing.
    #[must_use]
    pub fn of_file_name(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let mut next = || parts.next();
        let found = Self {
            index: next()?.parse().ok()?,
            at: match next()? {
                "egress" => TcAttachType::Egress,
                "ingress" => TcAttachType::Ingress,
                _ => return None,
            },
            priority: next()?.parse().ok()?,
            handle: next()?.parse::<u32>().ok()?.into(),
            added_qdisc: match next()? {
                "added" => true,
                "found" => false,
                _ => return None,
            },
        };
        next().is_none().then_some(found)
    }
}

/// The name of a direction.
const fn direction(at: TcAttachType) -> &'static str {
    match at {
        TcAttachType::Egress => "egress",
        TcAttachType::Ingress => "ingress",
        TcAttachType::Custom(_) => "custom",
    }
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

    /// The folder of the maps, or of those that are about to take their place.
    #[must_use]
    pub fn maps(&self, is_new: bool) -> PathBuf {
        self.folder.join(if is_new { "maps-new" } else { "maps" })
    }

    /// As [`maps`](Self::maps), of the programs.
    #[must_use]
    pub fn programs(&self, is_new: bool) -> PathBuf {
        let name = if is_new { "programs-new" } else { "programs" };
        self.folder.join(name)
    }

    /// The TCX link on the device `index` in this direction.
    #[must_use]
    pub fn link(&self, index: u32, at: TcAttachType) -> PathBuf {
        self.folder
            .join("links")
            .join(format!("{index}-{}", direction(at)))
    }

    /// The link of the tracepoint, or the one that is about to take its place.
    #[must_use]
    pub fn tracepoint(&self, is_new: bool) -> PathBuf {
        let name = if is_new {
            format!("{TRACEPOINT}-new")
        } else {
            TRACEPOINT.to_owned()
        };
        self.folder.join("links").join(name)
    }

    /// The program of a filter.
    #[must_use]
    pub fn filter(&self, filter: &Filter) -> PathBuf {
        self.folder.join("filters").join(filter.file_name())
    }

    /// Where a filter's program is pinned before it takes the place of the one that
    /// was there. It stands for no filter.
    #[must_use]
    pub fn new_filter(&self, filter: &Filter) -> PathBuf {
        self.folder
            .join("filters")
            .join(filter.file_name() + "-new")
    }

    /// The filters that there are.
    #[must_use]
    pub fn filters(&self) -> Vec<Filter> {
        let names = names_in(&self.folder.join("filters"));
        names
            .iter()
            .filter_map(|name| Filter::of_file_name(name))
            .collect()
    }

    /// The devices and directions that there are TCX links for.
    #[must_use]
    pub fn links(&self) -> Vec<(u32, TcAttachType)> {
        let names = names_in(&self.folder.join("links"));
        let of = |name: &String| {
            let (index, at) = name.split_once('-')?;
            let at = match at {
                "egress" => TcAttachType::Egress,
                "ingress" => TcAttachType::Ingress,
                _ => return None,
            };
            Some((index.parse().ok()?, at))
        };
        names.iter().filter_map(of).collect()
    }

    /// The devices that the throttle is attached to, by index, and by what.
    #[must_use]
    pub fn devices(&self) -> Vec<(u32, &'static str)> {
        let links = self.links().into_iter().map(|(index, _)| (index, "TCX"));
        let filters = self.filters().into_iter();
        let mut all: Vec<_> = links
            .chain(filters.map(|filter| (filter.index, "clsact")))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Which way the attempts go that are watched, by the programs that are pinned.
    #[must_use]
    pub fn direction(&self) -> Option<Direction> {
        let names = names_in(&self.programs(false));
        let has = |part: &str| names.iter().any(|name| name.starts_with(part));
        if has("out_ingress") {
            Some(Direction::Ingress)
        } else {
            has("out_egress").then_some(Direction::Egress)
        }
    }

    /// Whether anything is there.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.folder.is_dir()
    }

    /// Makes the folders, empty ones for what is new.
    ///
    /// # Errors
    ///
    /// When the caller may not.
    pub fn prepare(&self) -> Result<()> {
        let failed = |error| Error::failed(format!("make {}", self.folder.display()), error);
        self.make_own()?;
        self.drop_stale(STALE_MOST).map_err(failed)?;
        remove_folder(&self.maps(true)).map_err(failed)?;
        // A start that was cut short may have left programs in use there.
        if self.programs(true).exists() {
            let aside = format!("{STALE}-{}", crate::clock::monotonic_ns());
            fs::rename(self.programs(true), self.folder.join(aside)).map_err(failed)?;
        }
        for is_new in [false, true] {
            make_folder(&self.maps(is_new)).map_err(failed)?;
            make_folder(&self.programs(is_new)).map_err(failed)?;
        }
        for name in ["links", "filters"] {
            make_folder(&self.folder.join(name)).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes the folder and those above it that are throttle's, and sees to it that
    /// nobody else can write there.
    fn make_own(&self) -> Result<()> {
        let mut all: Vec<&Path> = self
            .folder
            .ancestors()
            .take_while(|above| above.file_name().is_some_and(|name| name != "bpf"))
            .take(3)
            .collect();
        // In a filesystem of its own there is nobody else.
        if !all.iter().any(|above| above.ends_with(FOLDER)) {
            return Ok(());
        }
        while all.last().is_some_and(|above| !above.ends_with(FOLDER)) {
            all.pop();
        }
        for folder in all.into_iter().rev() {
            make_folder(folder)
                .map_err(|error| Error::failed(format!("make {}", folder.display()), error))?;
            if !is_own(folder) {
                return Err(Error::Refused(format!(
                    "keep pins in {}: it is not this user's, or others may write to it; look who made \
                     it, and remove it",
                    folder.display()
                )));
            }
        }
        Ok(())
    }

    /// Removes what starts left that were cut short, but the latest `keep`.
    fn drop_stale(&self, keep: usize) -> io::Result<()> {
        let mut stale = names_in(&self.folder);
        stale.retain(|name| name.starts_with(STALE));
        // Their names end with when they were put aside.
        stale.sort_by_key(|name| (name.len(), name.clone()));
        let gone = stale.len().saturating_sub(keep);
        for name in stale.into_iter().take(gone) {
            remove_folder(&self.folder.join(name))?;
        }
        Ok(())
    }

    /// A start failed before anything of it was in use: what was to be new goes.
    ///
    /// # Errors
    ///
    /// When the caller may not.
    pub fn give_up_new(&self) -> Result<()> {
        let failed = |error| Error::failed(format!("change {}", self.folder.display()), error);
        remove_folder(&self.maps(true)).map_err(failed)?;
        remove_folder(&self.programs(true)).map_err(failed)?;
        remove_file(&self.tracepoint(true))
    }

    /// Puts what is new in the place of what was there.
    ///
    /// # Errors
    ///
    /// When the caller may not.
    pub fn settle(&self, has_new_maps: bool) -> Result<()> {
        let failed = |error| Error::failed(format!("change {}", self.folder.display()), error);
        let mut pairs = vec![(self.programs(true), self.programs(false))];
        if has_new_maps {
            pairs.push((self.maps(true), self.maps(false)));
        } else {
            remove_folder(&self.maps(true)).map_err(failed)?;
        }
        for (new, old) in pairs {
            let out = old.with_file_name("old");
            remove_folder(&out).map_err(failed)?;
            fs::rename(&old, &out).map_err(failed)?;
            fs::rename(&new, &old).map_err(failed)?;
            remove_folder(&out).map_err(failed)?;
        }
        self.drop_stale(0).map_err(failed)?;
        if self.tracepoint(true).exists() {
            fs::rename(self.tracepoint(true), self.tracepoint(false)).map_err(failed)?;
        }
        Ok(())
    }

    /// Pins here what is pinned at `from`.
    ///
    /// # Errors
    ///
    /// When the caller may not.
    pub fn copy(&self, from: &Self) -> Result<()> {
        for folder in ["maps", "programs", "links", "filters"] {
            let (source, target) = (from.folder.join(folder), self.folder.join(folder));
            for name in names_in(&source) {
                let path = source.join(&name);
                copy(&path, &target.join(name)).map_err(|error| {
                    Error::failed(format!("move the pin {}", path.display()), error)
                })?;
            }
        }
        Ok(())
    }

    /// Removes everything that is there. Links detach with that; filters stay,
    /// and are for the caller to remove before.
    ///
    /// # Errors
    ///
    /// When the caller may not.
    pub fn remove(&self) -> Result<()> {
        remove_folder(&self.folder)
            .map_err(|error| Error::failed(format!("remove {}", self.folder.display()), error))?;
        // The folders above, if this was the last one.
        for above in self.folder.ancestors().skip(1).take(2) {
            if above
                .file_name()
                .is_none_or(|name| name != FOLDER && !name.as_encoded_bytes().starts_with(b"net-"))
                || fs::remove_dir(above).is_err()
            {
                break;
            }
        }
        Ok(())
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Whether a folder is this user's, and nobody else may write to it.
#[must_use]
pub fn is_own(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| {
        found.is_dir()
            && found.uid() == nix::unistd::geteuid().as_raw()
            && found.mode() & 0o022 == 0
    })
}

/// The index of the device that the TCX link pinned at `path` is on; 0 if its
/// device has gone. None if the kernel does not tell.
#[must_use]
pub fn device_of_link(path: &Path) -> Option<u32> {
    /// `BPF_OBJ_GET_INFO_BY_FD`, and `BPF_LINK_TYPE_TCX`, of
    /// include/uapi/linux/bpf.h.
    const GET_INFO: libc::c_int = 15;
    const TCX: u32 = 11;
    /// The part of `struct bpf_link_info` that is looked at.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        reserved: u32,
        index: u32,
        at: u32,
    }
    #[repr(C)]
    struct Arguments {
        fd: u32,
        len: u32,
        info: u64,
    }
    // SAFETY: a descriptor that nobody else has.
    let link = unsafe { OwnedFd::from_raw_fd(bpf_object(OBJ_GET, path, 0).ok()?) };
    let mut info = Info::default();
    let arguments = Arguments {
        fd: link.as_raw_fd().cast_unsigned(),
        len: u32::try_from(size_of::<Info>()).ok()?,
        info: (&raw mut info) as u64,
    };
    // SAFETY: both pointers are valid for the call, the lengths are theirs.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            GET_INFO,
            &raw const arguments,
            size_of::<Arguments>(),
        )
    };
    (returned == 0 && info.kind == TCX).then_some(info.index)
}

/// The id of the program that is pinned at `path`.
#[must_use]
pub fn id_of_program(path: &Path) -> Option<u32> {
    let program = SchedClassifier::from_pin(path).ok()?;
    Some(program.info().ok()?.id())
}

/// Pins at `to` what is pinned at `from`, whatever it is.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let object = bpf_object(OBJ_GET, from, 0)?;
    // SAFETY: a descriptor that nobody else has.
    let object = unsafe { OwnedFd::from_raw_fd(object) };
    bpf_object(OBJ_PIN, to, object.as_raw_fd().cast_unsigned())?;
    Ok(())
}

/// `BPF_OBJ_PIN` and `BPF_OBJ_GET` of include/uapi/linux/bpf.h.
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;

/// One of the two calls about what is pinned at `path`.
fn bpf_object(call: libc::c_int, path: &Path, fd: u32) -> io::Result<i32> {
    /// The part of `union bpf_attr` that these calls read.
    #[repr(C)]
    struct Arguments {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let arguments = Arguments {
        path: path.as_ptr() as u64,
        fd,
        flags: 0,
    };
    // SAFETY: both pointers are valid for the call, the length is that of the
    // arguments.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            call,
            &raw const arguments,
            size_of::<Arguments>(),
        )
    };
    match i32::try_from(returned) {
        Ok(returned @ 0..) => Ok(returned),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

/// Removes a folder and all that is in it, if it is there.
fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a file, if it is there.
///
/// # Errors
///
/// When the caller may not.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::failed(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
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
        let failed = |error: io::Error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                return Error::Denied {
                    what: what.into(),
                    reason: error.into(),
                    remedy: "that takes CAP_SYS_ADMIN; with --keep there is no need for it".into(),
                };
            }
            Error::failed(what, error)
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_survives_as_a_file_name() {
        for at in [TcAttachType::Egress, TcAttachType::Ingress] {
            for added_qdisc in [false, true] {
                let filter = Filter {
                    index: 17,
                    at,
                    priority: 49_152,
                    handle: TcHandle::new(0x8000, 1),
                    added_qdisc,
                };
                let name = filter.file_name();
                assert!(!name.contains('.'), "{name}");
                assert_eq!(Filter::of_file_name(&name), Some(filter));
            }
        }
        for name in [
            "",
            "1",
            "1-egress-2",
            "1-egress-2-3-added-4",
            "x-egress-2-3-added",
        ] {
            assert_eq!(Filter::of_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_new_takes_the_place_of_what_was_there() {
        let root = std::env::temp_dir().join(format!("throttle-pins-{}", std::process::id()));
        let pins = Pins::at(root.join(FOLDER).join("net-1").join("eth0"));
        pins.prepare().unwrap();
        fs::write(pins.map("OLD"), "").unwrap();
        fs::write(pins.maps(true).join("NEW"), "").unwrap();
        fs::write(pins.programs(true).join("syn"), "").unwrap();
        fs::write(pins.link(3, TcAttachType::Egress), "").unwrap();
        fs::write(pins.tracepoint(false), "").unwrap();
        pins.settle(true).unwrap();
        assert!(pins.map("NEW").exists() && !pins.map("OLD").exists());
        assert!(pins.programs(false).join("syn").exists() && !pins.programs(true).exists());
        assert_eq!(pins.devices(), [(3, "TCX")]);
        // Again, with the maps that there are.
        pins.prepare().unwrap();
        assert!(pins.map("NEW").exists());
        pins.settle(false).unwrap();
        assert!(pins.map("NEW").exists() && !pins.maps(true).exists());
        pins.remove().unwrap();
        assert!(
            !root.join(FOLDER).exists(),
            "the folders above go with the last"
        );
        assert!(root.exists(), "and no other");
        fs::remove_dir(&root).unwrap();
    }
}
