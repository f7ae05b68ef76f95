//! Where this kernel keeps things.
//!
//! `struct task_struct` (include/linux/sched.h) looks different on each kernel.
//! The kernel describes itself in BTF (Documentation/bpf/btf.rst), so the places
//! are found there when the programs are loaded.
//!
//! Only what is needed is read: the types of a whole kernel, in memory, would be
//! most of what the daemon needs.

use std::fs;

/// Where the kernel describes itself.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

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
    pub fn of_this_kernel() -> Result<Self, String> {
        let btf = fs::read(BTF).map_err(|error| format!("read {BTF}: {error}"))?;
        Self::read(&btf).map_err(|error| format!("{BTF}: {error}"))
    }

    fn read(btf: &[u8]) -> Result<Self, String> {
        let types = Types::read(btf).ok_or("it is cut short, or of an unknown kind")?;
        let task = types.find("task_struct").ok_or("it has no task_struct")?;
        let place = |name: &str| {
            let bits = types.offset(task, name, DEPTH_MAX);
            bits.filter(|bits| bits % 8 == 0)
                .map(|bits| bits / 8)
                .ok_or_else(|| format!("its task_struct has no {name}"))
        };
        Ok(Self {
            group_leader: place("group_leader")?,
            start_boottime: place("start_boottime").or_else(|_| place("real_start_time"))?,
            comm: place("comm")?,
        })
    }
}

/// `BTF_MAGIC` of include/uapi/linux/btf.h.
const MAGIC: u16 = 0xeb9f;
/// How deep members without a name are looked into.
const DEPTH_MAX: u32 = 8;

/// `BTF_KIND_STRUCT` and `BTF_KIND_UNION` of include/uapi/linux/btf.h.
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// The types that BTF describes, still as bytes.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; the first has the number 1.
    begins: Vec<u32>,
}

/// One type: `struct btf_type`.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Members, values or parameters that follow.
    count: u32,
    /// Whether the offset of a member also holds its size.
    has_sizes: bool,
    /// Where what follows begins.
    at: usize,
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn section(btf: &[u8], base: usize, header_at: usize) -> Option<&[u8]> {
    let offset = base.checked_add(number(btf, header_at)? as usize)?;
    let len = number(btf, header_at + 4)? as usize;
    btf.get(offset..offset.checked_add(len)?)
}

impl<'a> Types<'a> {
    fn read(btf: &'a [u8]) -> Option<Self> {
        // struct btf_header: magic, version, flags, length; then offset and
        // length of the types, and of the strings.
        if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let base = number(btf, 4)? as usize;
        let mut types = Self {
            types: section(btf, base, 8)?,
            strings: section(btf, base, 16)?,
            begins: Vec::new(),
        };
        let mut at = 0;
        while at < types.types.len() {
            types.begins.push(u32::try_from(at).ok()?);
            let found = types.at(at)?;
            // Behind a kind that is not known here nothing can be found. What is
            // looked for is mostly before.
            let Some(trailer) = found.trailer() else {
                break;
            };
            at = found.at.checked_add(trailer)?;
        }
        Some(types)
    }

    fn at(&self, at: usize) -> Option<Type> {
        let info = number(self.types, at.checked_add(4)?)?;
        Some(Type {
            name: number(self.types, at)?,
            kind: (info >> 24) & 0x1f,
            count: info & 0xffff,
            has_sizes: info >> 31 == 1,
            at: at + 12,
        })
    }

    fn is_called(&self, offset: u32, name: &str) -> bool {
        let rest = self.strings.get(offset as usize..);
        rest.and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The structure with this name.
    fn find(&self, name: &str) -> Option<Type> {
        let mut all = self.begins.iter().filter_map(|at| self.at(*at as usize));
        all.find(|of| of.kind == STRUCT && self.is_called(of.name, name))
    }

    /// Where a member is, in bits; also within members that have no name.
    fn offset(&self, of: Type, name: &str, depth: u32) -> Option<u32> {
        for index in 0..of.count as usize {
            // struct btf_member: name, type, offset.
            let at = of.at.checked_add(index * 12)?;
            let (its_name, its_type) = (number(self.types, at)?, number(self.types, at + 4)?);
            let offset = number(self.types, at + 8)?;
            let offset = if of.has_sizes {
                offset & 0xff_ffff
            } else {
                offset
            };
            if self.is_called(its_name, name) {
                return Some(offset);
            }
            if depth > 0
                && self.is_called(its_name, "")
                && let Some(begin) = self.begins.get((its_type as usize).wrapping_sub(1))
                && let Some(inner) = self.at(*begin as usize)
                && matches!(inner.kind, STRUCT | UNION)
                && let Some(within) = self.offset(inner, name, depth - 1)
            {
                return offset.checked_add(within);
            }
        }
        None
    }
}

impl Type {
    /// How many bytes follow. None for a kind that is not known here.
    fn trailer(&self) -> Option<usize> {
        let each = |bytes: usize| Some(self.count as usize * bytes);
        match self.kind {
            // Pointers, forward declarations, typedefs, qualifiers, functions,
            // floating point numbers and type tags.
            2 | 7..=12 | 16 | 18 => Some(0),
            // Integers, variables and declaration tags.
            1 | 14 | 17 => Some(4),
            // Arrays.
            3 => Some(12),
            // Structures, unions, sections of data, and enumerations of 64 bits.
            STRUCT | UNION | 15 | 19 => each(12),
            // Enumerations and prototypes.
            6 | 13 => each(8),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF with these types and strings.
    fn btf(types: &[u32], strings: &str) -> Vec<u8> {
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (len, strings_len) = (types.len(), strings.len());
        for word in [24, 0, len, len, strings_len] {
            bytes.extend(u32::try_from(word).unwrap().to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings.as_bytes());
        bytes
    }

    const STRINGS: &str = "\0task_struct\0group_leader\0start_boottime\0comm\0real_start_time\0";

    fn name(of: &str) -> u32 {
        u32::try_from(STRINGS.find(&format!("\0{of}\0")).unwrap() + 1).unwrap()
    }

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
        // As the compiler lays them out: the start is a 64-bit number.
        assert_eq!(task.start_boottime % 8, 0);
    }

    #[test]
    fn members_without_a_name_are_looked_into() {
        // An integer, an inner structure, and the task with one member that is
        // named and one that is not.
        let int = [0, 1 << 24, 4, 32];
        let inner = [
            0,
            (STRUCT << 24) | 2,
            16,
            name("start_boottime"),
            1,
            64,
            name("comm"),
            1,
            128,
        ];
        let task = [
            name("task_struct"),
            (1 << 31) | (STRUCT << 24) | 2,
            64,
            name("group_leader"),
            1,
            (7 << 24) | 96,
            0,
            2,
            256,
        ];
        let types = [&int[..], &inner, &task].concat();
        let expected = Task {
            group_leader: 12,
            start_boottime: 40,
            comm: 48,
        };
        assert_eq!(Task::read(&btf(&types, STRINGS)), Ok(expected));
    }

    #[test]
    fn a_structure_that_holds_itself_is_no_endless_way() {
        let task = [name("task_struct"), (STRUCT << 24) | 1, 8, 0, 1, 0];
        Task::read(&btf(&task, STRINGS)).unwrap_err();
    }

    #[test]
    fn what_is_no_btf_is_an_error() {
        for bytes in [&b""[..], b"\x9f\xeb\x01\0", &[0xff; 4_000]] {
            Task::read(bytes).unwrap_err();
        }
        let unknown = [0, 31 << 24, 0];
        Task::read(&btf(&unknown, STRINGS)).unwrap_err();
        let mut cut = fs::read(BTF).unwrap_or_default();
        cut.truncate(cut.len() / 2);
        Task::read(&cut).unwrap_err();
    }
}
