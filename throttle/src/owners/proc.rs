//! What /proc tells of a process while it lives.
//!
//! Its files are read as bytes: the name, the arguments and the paths are the
//! process's own choice.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
};

use procfs::{
    ProcError,
    process::{FDTarget, Process, Stat},
};

use crate::{event::Parent, name::Name};

/// Most arguments that are told.
const ARGS: usize = 64;
/// Most bytes of all arguments together.
const ARGS_LEN: usize = 2_048;
/// Most bytes that are read of a file that the process has a say in.
const FILE_MAX: u64 = 1 << 16;
/// Most bytes that are read of a table of sockets.
const TABLE_MAX: u64 = 1 << 22;

/// `PF_KTHREAD` of include/linux/sched.h.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// What stands for arguments that are left out.
const LEFT_OUT: &str = "…";

/// A process that lives.
///
/// Everything is read through a handle on its directory. The kernel ties that to
/// the process and not to its number: once the process has been reaped there is
/// nothing to read, even if another one has got the number.
#[derive(Debug)]
pub(crate) struct Live {
    process: Process,
    stat: Stat,
    /// Another thread of it, if the main one has ended: that has no memory and
    /// no files any more.
    thread: Option<Process>,
}

impl Live {
    /// The process `pid`, unless it has ended. A zombie has.
    pub(crate) fn open(pid: u32) -> Option<Self> {
        let process = Process::new(i32::try_from(pid).ok()?).ok()?;
        let stat = process.stat().ok()?;
        let thread = if !has_ended(&stat) {
            None
        } else if stat.num_threads > 1 {
            Some(another_thread(&process)?)
        } else {
            return None;
        };
        Some(Self {
            process,
            stat,
            thread,
        })
    }

    /// Whether it still lives.
    pub(super) fn still_lives(&self) -> bool {
        self.process
            .stat()
            .is_ok_and(|stat| !has_ended(&stat) || stat.num_threads > 1)
    }

    /// When it started, in clock ticks since boot.
    pub(crate) fn start_ticks(&self) -> u64 {
        self.stat.starttime
    }

    /// Its name: comm of the main thread.
    pub(crate) fn name(&self) -> Option<Name> {
        comm(&self.process)
    }

    /// Its executable. Kernel threads have none.
    pub(super) fn executable(&self) -> Option<Name> {
        Some(Name::of_path(&self.with_memory().exe().ok()?))
    }

    /// Its arguments. Kernel threads have none.
    pub(super) fn args(&self) -> Option<Vec<Name>> {
        let raw = read(self.with_memory(), "cmdline", FILE_MAX)?;
        (!raw.is_empty()).then(|| arguments(&raw))
    }

    /// Its parent.
    pub(super) fn parent(&self) -> Option<Parent> {
        let parent = Process::new(self.stat.ppid).ok()?;
        let name = comm(&parent)?;
        // A child whose parent ends gets another one. If it has not, the handle
        // was on the parent, and not on a later process of that number.
        let is_parent = self.process.stat().ok()?.ppid == self.stat.ppid;
        is_parent
            .then_some(self.stat.ppid)
            .and_then(|pid| u32::try_from(pid).ok())
            .map(|pid| Parent { pid, name })
    }

    /// Its real user id.
    pub(super) fn user(&self) -> Option<u32> {
        number_in_status(&self.process, "Uid:")
    }

    /// The path of its cgroup v2 control group.
    pub(super) fn cgroup(&self) -> Option<Vec<u8>> {
        let raw = read(&self.process, "cgroup", FILE_MAX)?;
        let mut lines = raw.split(|byte| *byte == b'\n');
        let path = lines.find_map(|line| line.strip_prefix(b"0::"))?;
        Some(path.to_vec())
    }

    /// Which network namespace it is in.
    pub(super) fn network(&self) -> Option<u64> {
        Some(self.network_namespace().ok()?.metadata().ok()?.ino())
    }

    /// Its network namespace, open.
    pub(crate) fn network_namespace(&self) -> io::Result<File> {
        self.with_memory().open_relative("ns/net").map_err(io_error)
    }

    /// The inodes of the sockets among its files.
    pub(crate) fn sockets(&self) -> io::Result<HashSet<u64>> {
        let files = self.with_memory().fd().map_err(io_error)?;
        // One that cannot be read was closed meanwhile.
        let mut sockets = HashSet::new();
        for file in files.flatten() {
            if let FDTarget::Socket(inode) = file.target {
                sockets.insert(inode);
            }
        }
        Ok(sockets)
    }

    /// Whether it is a thread of the kernel's own.
    pub(crate) fn is_kernel_thread(&self) -> bool {
        self.stat.flags & KERNEL_THREAD != 0
    }

    /// Whether it is stopped at this moment, by a signal or a debugger.
    pub(crate) fn is_stopped(&self) -> bool {
        self.process
            .stat()
            .is_ok_and(|stat| matches!(stat.state, 'T' | 't'))
    }

    /// Whether it is the first process of a pid namespace below the reader's: with
    /// it end all others in there.
    pub(crate) fn is_first_of_namespace(&self) -> bool {
        let ids = line_of_status(&self.process, "NSpid:").unwrap_or_default();
        let ids: Vec<&str> = ids.split_ascii_whitespace().collect();
        ids.len() > 1 && ids.last() == Some(&"1")
    }

    /// The process id of its parent; 0 if that is not known.
    pub(crate) fn parent_id(&self) -> u32 {
        let stat = self.process.stat().ok();
        stat.and_then(|stat| u32::try_from(stat.ppid).ok())
            .unwrap_or(0)
    }

    /// The inodes of all raw and packet sockets of its network namespace.
    pub(super) fn raw_sockets_of_network(&self) -> HashSet<u64> {
        // The column of the inode, counted from 0.
        const TABLES: [(&str, usize); 3] = [("net/raw", 9), ("net/raw6", 9), ("net/packet", 8)];
        TABLES
            .iter()
            .filter_map(|(file, column)| {
                let raw = read(self.with_memory(), file, TABLE_MAX)?;
                Some(inodes(&raw, *column))
            })
            .flatten()
            .collect()
    }

    /// Whether it holds one of these sockets, as far as that shows among the first
    /// `most` of its files; and how many were looked at.
    pub(super) fn holds(&self, sockets: &HashSet<u64>, most: usize) -> (bool, usize) {
        let Ok(files) = self.with_memory().fd() else {
            return (false, 0);
        };
        let mut seen = 0;
        let found = files.take(most).flatten().any(|file| {
            seen += 1;
            matches!(file.target, FDTarget::Socket(inode) if sockets.contains(&inode))
        });
        (found, seen)
    }

    fn with_memory(&self) -> &Process {
        self.thread.as_ref().unwrap_or(&self.process)
    }
}

/// The process that the thread `tid` belongs to.
pub(crate) fn process_of_thread(tid: u32) -> Option<u32> {
    let thread = Process::new(i32::try_from(tid).ok()?).ok()?;
    number_in_status(&thread, "Tgid:")
}

/// Whether the thread is a zombie, or not even that.
fn has_ended(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X' | 'x')
}

/// A thread that lives, of a process whose main one does not.
fn another_thread(process: &Process) -> Option<Process> {
    let threads = process.tasks().ok()?;
    let thread = threads.flatten().find_map(|task| {
        let path = format!("/proc/{}/task/{}", process.pid, task.tid);
        let thread = Process::new_with_root(path.into()).ok()?;
        let lives = task.tid != process.pid && !has_ended(&thread.stat().ok()?);
        lives.then_some(thread)
    })?;
    // The path was by number. It led to this process if that is still there.
    process.stat().is_ok().then_some(thread)
}

fn comm(process: &Process) -> Option<Name> {
    let raw = read(process, "comm", FILE_MAX)?;
    Some(Name::new(raw.strip_suffix(b"\n").unwrap_or(&raw)))
}

/// The first number after `key` in `status`. The kernel escapes line breaks in the
/// name, which is also in there.
fn number_in_status(process: &Process, key: &str) -> Option<u32> {
    let value = line_of_status(process, key)?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

/// What comes after `key` in its line of `status`.
fn line_of_status(process: &Process, key: &str) -> Option<String> {
    let raw = read(process, "status", FILE_MAX)?;
    let mut lines = raw.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(key.as_bytes()))?;
    String::from_utf8(value.to_vec()).ok()
}

/// What the kernel said, as far as it is known.
fn io_error(error: ProcError) -> io::Error {
    match error {
        ProcError::PermissionDenied(_) => io::ErrorKind::PermissionDenied.into(),
        ProcError::NotFound(_) => io::ErrorKind::NotFound.into(),
        ProcError::Io(error, _) => error,
        error @ (ProcError::Incomplete(_) | ProcError::Other(_) | ProcError::InternalError(_)) => {
            io::Error::other(error)
        }
    }
}

/// At most `most` bytes of one of its files.
fn read(process: &Process, file: &str, most: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = process.open_relative(file).ok()?;
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The arguments in a `cmdline`. If they do not all fit, an ellipsis stands for
/// the rest. Zeros at the end are no empty arguments: a program that writes a
/// title over its arguments leaves them behind.
fn arguments(raw: &[u8]) -> Vec<Name> {
    /// An argument is not cut shorter than this.
    const SHORTEST: usize = 16;
    let end = raw
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    let all: Vec<&[u8]> = raw[..end].split(|byte| *byte == 0).collect();
    let most = if all.len() > ARGS { ARGS - 1 } else { ARGS };
    let mut room = ARGS_LEN - LEFT_OUT.len();
    let mut names = Vec::new();
    for argument in &all {
        if names.len() == most || room < SHORTEST {
            names.push(Name::from(LEFT_OUT));
            break;
        }
        let name = Name::cut(argument, Name::MAX.min(room));
        room -= name.as_str().len();
        names.push(name);
    }
    names
}

/// The inodes in a table of sockets, of which the first line has the titles.
fn inodes(table: &[u8], column: usize) -> Vec<u64> {
    String::from_utf8_lossy(table)
        .lines()
        .skip(1)
        .filter_map(|line| line.split_ascii_whitespace().nth(column)?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(raw: &[u8]) -> Vec<String> {
        arguments(raw).iter().map(Name::to_string).collect()
    }

    #[test]
    fn arguments_end_at_zeros() {
        assert_eq!(
            texts(b"curl\0-s\0\0http://a\0"),
            ["curl", "-s", "", "http://a"]
        );
        assert_eq!(texts(b"a title\0\0\0\0"), ["a title"]);
        assert_eq!(texts(b"a\nb\0\xff\0"), [r"a\x0ab", r"\xff"]);
    }

    #[test]
    fn an_ellipsis_stands_for_arguments_that_do_not_fit() {
        assert_eq!(texts(&b"x\0".repeat(64)), ["x"; 64]);
        let many = texts(&b"x\0".repeat(65));
        assert_eq!((many.len(), &*many[62], &*many[63]), (64, "x", LEFT_OUT));
        let long = texts(&[b"y".repeat(3_000), b"z".repeat(3_000)].join(&0).repeat(5));
        assert_eq!(long.last().map(String::as_str), Some(LEFT_OUT));
    }

    proptest! {
        #[test]
        fn arguments_are_bounded(raw in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..3_000)) {
            let names = arguments(&raw);
            prop_assert!(names.len() <= ARGS);
            prop_assert!(names.iter().map(|name| name.as_str().len()).sum::<usize>() <= ARGS_LEN);
        }
    }

    #[test]
    fn the_inodes_of_sockets_are_found_in_the_kernels_tables() {
        let raw = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n   \
            6: 00000000:0006 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 175123 2 00000000c7b3ff31 0\n";
        assert_eq!(inodes(raw, 9), [175_123]);
        let packet = b"sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
            00000000a9b7ef1e 3      3    0003   2     1 0      0      175124\nnonsense\n";
        assert_eq!(inodes(packet, 8), [175_124]);
        assert_eq!(inodes(b"", 8), [0u64; 0]);
    }
}
