//! Who is running on this CPU.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task,
        bpf_probe_read_kernel,
    },
    programs::BtfTracePointContext,
};
use throttle_common::process::Process;

/// Where a member of `struct task_struct` (include/linux/sched.h) is, in bytes.
/// Each kernel has its own layout: user space finds it in the kernel's BTF and
/// writes it here before the program is loaded. 0 if it is unknown.
#[unsafe(no_mangle)]
static TASK_GROUP_LEADER: u32 = 0;
/// As [`TASK_GROUP_LEADER`].
#[unsafe(no_mangle)]
static TASK_START_BOOTTIME: u32 = 0;
/// As [`TASK_GROUP_LEADER`].
#[unsafe(no_mangle)]
static TASK_COMM: u32 = 0;

/// What user space wrote into one of the above.
#[inline(always)]
fn offset(of: &'static u32) -> usize {
    // SAFETY: a valid reference. Volatile, since the compiler would take the
    // number for the one that stands here.
    (unsafe { core::ptr::from_ref(of).read_volatile() }) as usize
}

/// A member of the kernel's structure at `address`. None if it is not known
/// where it is.
#[inline(always)]
fn member<T>(address: usize, at: usize) -> Option<T> {
    if address == 0 || at == 0 {
        return None;
    }
    // SAFETY: the helper checks the address, and fails if it cannot be read.
    unsafe { bpf_probe_read_kernel((address + at) as *const T) }.ok()
}

/// The process and the thread that run now. Only for programs that run on their
/// behalf.
#[inline(always)]
pub fn process(context: &BtfTracePointContext) -> Process {
    // SAFETY: a helper without arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: as above.
    let task = usize::try_from(unsafe { bpf_get_current_task() }).unwrap_or(0);
    let thread_name = bpf_get_current_comm().unwrap_or_default();
    let leader = member(task, offset(&TASK_GROUP_LEADER)).unwrap_or(0);
    Process {
        tgid: context.tgid(),
        tid: context.pid(),
        uid: context.uid(),
        is_forgotten: 0,
        cgroup,
        start_ns: member(leader, offset(&TASK_START_BOOTTIME)).unwrap_or(0),
        name: member(leader, offset(&TASK_COMM)).unwrap_or(thread_name),
        thread_name,
    }
}
