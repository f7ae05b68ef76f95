//! Control groups by their id.

use std::{
    fs::File,
    io::Read as _,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::MetadataExt as _,
        },
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    libc,
    sys::{
        stat::Mode,
        statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
    },
};

/// Most bytes that are read of a list of processes.
const LIST_MAX: u64 = 1 << 20;

/// The cgroup v2 hierarchy, where it is mounted.
#[derive(Debug)]
pub(super) struct Hierarchy {
    mount: OwnedFd,
    /// Path of the mount point.
    pub(super) point: Vec<u8>,
    /// Path in the hierarchy of what is mounted there: `/`, except in a
    /// container.
    pub(super) root: Vec<u8>,
}

/// What became of a control group.
#[derive(Debug)]
pub(super) enum Found {
    /// It is there.
    Here(Group),
    /// It has been removed.
    Gone,
    /// There is no telling: no hierarchy is mounted, or the caller lacks
    /// `CAP_DAC_READ_SEARCH`.
    Unknown,
}

/// A control group that was found.
#[derive(Debug)]
pub(super) struct Group {
    directory: OwnedFd,
    /// Its path below the root of the hierarchy.
    pub(super) path: Vec<u8>,
}

/// The processes of a control group.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Members {
    /// Their process ids.
    Processes(Vec<u32>),
    /// The group has only threads of processes: their thread ids.
    Threads(Vec<u32>),
}

impl Hierarchy {
    /// Looks for where it is mounted.
    pub(super) fn find() -> Option<Self> {
        let mut mounts = mounts(&std::fs::read("/proc/self/mountinfo").ok()?);
        // One that shows all of it is better than one that shows a part.
        mounts.sort_by_key(|(root, _)| root != b"/");
        mounts.into_iter().find_map(|(root, point)| {
            let mount = open(
                Path::new(std::ffi::OsStr::from_bytes(&point)),
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .ok()?;
            // Something else may be mounted over it.
            let is_cgroup2 = fstatfs(&mount).ok()?.filesystem_type() == CGROUP2_SUPER_MAGIC;
            is_cgroup2.then_some(Self { mount, point, root })
        })
    }

    /// The control group of this id.
    pub(super) fn group(&self, id: u64) -> Found {
        match open_by_id(&self.mount, id) {
            Ok(directory) => match self.path_of(&directory) {
                Some(path) => Found::Here(Group { directory, path }),
                None => Found::Gone,
            },
            Err(Errno::ESTALE | Errno::ENOENT) => Found::Gone,
            Err(_) => Found::Unknown,
        }
    }

    /// Whether `path` is that of the control group `id`.
    pub(super) fn is_path_of(&self, path: &[u8], id: u64) -> bool {
        self.id_of(path) == Some(id)
    }

    /// The id of the control group of this path.
    pub(super) fn id_of(&self, path: &[u8]) -> Option<u64> {
        let at = [self.point.as_slice(), below(&self.root, path)?].concat();
        // A group's id is its inode number where inode numbers have 64 bits
        // (kernfs_ino in include/linux/kernfs.h).
        inode(&at)
    }

    fn path_of(&self, directory: &OwnedFd) -> Option<Vec<u8>> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?;
        let link = link.into_os_string().into_vec();
        // It may have been removed since it was opened, or be called so.
        if link.ends_with(b" (deleted)") && inode(&link).is_none() {
            return None;
        }
        Some(in_hierarchy(&self.root, &self.point, &link))
    }
}

impl Group {
    /// Who is in it, not counting the groups below it. None if that cannot be
    /// read.
    pub(super) fn members(&self) -> Option<Members> {
        match self.list("cgroup.procs") {
            Ok(processes) => Some(Members::Processes(processes)),
            Err(Errno::EOPNOTSUPP) => self.list("cgroup.threads").ok().map(Members::Threads),
            Err(_) => None,
        }
    }

    fn list(&self, file: &str) -> nix::Result<Vec<u32>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.directory, file, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(LIST_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        // 0 stands for a process that this pid namespace does not have.
        Ok(String::from_utf8_lossy(&bytes)
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|id| *id != 0)
            .collect())
    }
}

fn inode(path: &[u8]) -> Option<u64> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    Some(std::fs::symlink_metadata(path).ok()?.ino())
}

/// Opens the directory of the control group `id`.
fn open_by_id(mount: &OwnedFd, id: u64) -> nix::Result<OwnedFd> {
    /// `FILEID_KERNFS` in include/linux/exportfs.h: the handle is the id.
    const KERNFS: i32 = 0xfe;
    /// A `struct file_handle` with room for its `f_handle`.
    #[repr(C)]
    struct Handle {
        handle_bytes: u32,
        handle_type: i32,
        id: u64,
    }
    let mut handle = Handle {
        handle_bytes: 8,
        handle_type: KERNFS,
        id,
    };
    // SAFETY: the pointer is to a file handle of `handle_bytes` bytes that lives
    // until the call returns; the kernel reads no more than that.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast::<libc::file_handle>(),
            libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the descriptor is new, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Root and mount point of each cgroup v2 mount in a `mountinfo`.
fn mounts(mountinfo: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let root = fields.nth(3)?;
            let point = fields.next()?;
            // Optional fields end with a dash; then comes the type.
            fields.find(|field| *field == b"-")?;
            (fields.next()? == b"cgroup2").then(|| (unescaped(root), unescaped(point)))
        })
        .collect()
}

/// Without the octal escapes of `mountinfo`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut rest = field;
    let mut bytes = Vec::with_capacity(field.len());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match (first, after) {
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    after @ ..,
                ],
            ) => {
                rest = after;
                (a - b'0') << 6 | (b - b'0') << 3 | (c - b'0')
            }
            _ => *first,
        });
    }
    bytes
}

/// What of `path` is below `top`: nothing, or something that begins with a slash.
fn below<'path>(top: &[u8], path: &'path [u8]) -> Option<&'path [u8]> {
    let top = top.strip_suffix(b"/").unwrap_or(top);
    let rest = path.strip_prefix(top)?;
    (rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
}

/// The path in the hierarchy of what the kernel says is at `link`, by a mount of
/// `root` at `point`.
fn in_hierarchy(root: &[u8], point: &[u8], link: &[u8]) -> Vec<u8> {
    let path = match below(point, link) {
        Some(rest) => [root.strip_suffix(b"/").unwrap_or(root), rest].concat(),
        // A group that is not below what is mounted: the kernel walks up to the
        // root of the hierarchy and knows no mount point (prepend_path in
        // fs/d_path.c).
        None => link.to_vec(),
    };
    if path.is_empty() { b"/".to_vec() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_whatever_else_is_mounted() {
        let mountinfo = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 master:2 - cgroup2 cgroup2 rw\n\
            31 22 0:27 / /home/\xff\\040cgroup2 rw - fuse cgroup2 rw\n\
            32 22 0:26 /a\\134b /mnt/\\040x\\012y\\ rw - cgroup2 none rw\n\
            33 22 0:28\n\n\
            34 22 0:29 / /old rw - cgroup cgroup rw,cpu";
        assert_eq!(
            mounts(mountinfo),
            [
                (b"/".to_vec(), b"/sys/fs/cgroup".to_vec()),
                (b"/a\\b".to_vec(), b"/mnt/ x\ny\\".to_vec()),
            ]
        );
    }

    #[test]
    fn a_path_is_given_as_the_hierarchy_has_it() {
        let path = |root: &str, point: &str, link: &str| {
            let path = in_hierarchy(root.as_bytes(), point.as_bytes(), link.as_bytes());
            String::from_utf8(path).unwrap()
        };
        assert_eq!(path("/", "/sys/fs/cgroup", "/sys/fs/cgroup"), "/");
        assert_eq!(path("/", "/sys/fs/cgroup", "/sys/fs/cgroup/a/b"), "/a/b");
        assert_eq!(path("/a", "/sys/fs/cgroup", "/sys/fs/cgroup"), "/a");
        assert_eq!(path("/a", "/sys/fs/cgroup", "/sys/fs/cgroup/b"), "/a/b");
        assert_eq!(path("/", "/", "/a"), "/a");
        assert_eq!(path("/", "/", "/"), "/");
        // Not below what is mounted.
        assert_eq!(path("/a", "/sys/fs/cgroup", "/c"), "/c");
        assert_eq!(
            path("/a", "/sys/fs/cgroup", "/sys/fs/cgroups"),
            "/sys/fs/cgroups"
        );
    }

    #[test]
    fn a_removed_group_is_known_to_be_gone() {
        let Some(hierarchy) = Hierarchy::find() else {
            eprintln!("skipped: no cgroup v2 hierarchy is mounted");
            return;
        };
        match hierarchy.group(u64::MAX) {
            Found::Gone => {}
            Found::Unknown => eprintln!("skipped: needs CAP_DAC_READ_SEARCH"),
            Found::Here(group) => panic!("{group:?}"),
        }
    }
}
