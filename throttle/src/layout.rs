//! Where this kernel keeps things.
//!
//! `struct task_struct` (include/linux/sched.h) looks different on each kernel.
//! The kernel describes itself in BTF, so the places are found there when the
//! programs are loaded.

use std::fs;

use btfparse::{ErrorKind, Offset, Readable, TypeInformation};

/// Where the kernel describes itself.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where members of `struct task_struct` are, in bytes from its beginning; 0 if
/// that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Task {
    /// The main thread of the process.
    pub group_leader: u32,
    /// When it started, in nanoseconds since boot (`real_start_time` before
    /// Linux 5.5).
    pub start_boottime: u32,
    /// Its name.
    pub comm: u32,
}

impl Task {
    /// The layout of the running kernel.
    ///
    /// # Errors
    ///
    /// When the kernel does not describe itself, or not in a way that is
    /// understood.
    pub fn of_this_kernel() -> Result<Self, Box<dyn std::error::Error>> {
        let btf = fs::read(BTF).map_err(|error| format!("read {BTF}: {error}"))?;
        Self::read(btf)
    }

    fn read(btf: Vec<u8>) -> Result<Self, Box<dyn std::error::Error>> {
        let types = TypeInformation::new(&Bytes(btf)).map_err(|error| said(&error))?;
        let task = types.id_of("task_struct").ok_or("no task_struct in it")?;
        let place = |member: &str| match types.offset_of(task, member) {
            Ok((_, Offset::ByteOffset(bytes))) => Ok(bytes),
            Ok(_) => Err(format!("task_struct.{member} is made of bits")),
            Err(error) => Err(format!("task_struct.{member}: {}", said(&error))),
        };
        Ok(Self {
            group_leader: place("group_leader")?,
            start_boottime: place("start_boottime").or_else(|_| place("real_start_time"))?,
            comm: place("comm")?,
        })
    }
}

/// What the parser says is wrong.
fn said(error: &btfparse::Error) -> String {
    error.message().to_owned()
}

/// BTF, in memory.
struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|from| self.0.get(from..from.checked_add(buffer.len())?))
            .ok_or_else(|| btfparse::Error::new(ErrorKind::IOError, "beyond the end"))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_says_where_its_tasks_keep_their_names() {
        if !fs::exists(BTF).unwrap() {
            eprintln!("this kernel has no {BTF}: nothing to test");
            return;
        }
        let task = Task::of_this_kernel().unwrap();
        let places = [task.group_leader, task.start_boottime, task.comm];
        assert!(
            places.iter().all(|at| (1..100_000).contains(at)),
            "{task:?}"
        );
    }

    #[test]
    fn what_is_no_btf_is_an_error() {
        for bytes in [&b""[..], b"\x9f\xeb\x01\0", &[0xff; 4_000]] {
            Task::read(bytes.to_vec()).unwrap_err();
        }
        let mut cut = fs::read(BTF).unwrap_or_default();
        cut.truncate(cut.len() / 2);
        Task::read(cut).unwrap_err();
    }
}
