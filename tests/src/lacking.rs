//! Machines that lack something: a thread, and what it starts, is kept from it.

use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{io, panic, thread};

/// Makes these commands of bpf(2) fail with these errors in the calling thread,
/// and in what it starts, for good: a kernel that does not have them.
///
/// # Panics
/// When the kernel does not take the filter.
pub fn refuse_bpf(refusals: &[(u32, i32)]) {
    /// Offsets in `struct seccomp_data` of linux/seccomp.h. The lower half of an
    /// argument comes first.
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let op = |code: u32, jump_true: u8, jump_false: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: jump_true,
        jf: jump_false,
        k,
    };
    let bpf = u32::try_from(libc::SYS_bpf).unwrap();
    let mut filter = vec![
        op(LOAD, 0, 0, NUMBER),
        op(JUMP_IF_EQUAL, 1, 0, bpf),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        op(LOAD, 0, 0, FIRST_ARGUMENT),
    ];
    for &(command, errno) in refusals {
        filter.push(op(JUMP_IF_EQUAL, 0, 1, command));
        let errno = u32::try_from(errno).unwrap();
        filter.push(op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno));
    }
    filter.push(op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the filter is as long as it says.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// Runs `test` in a thread that `prepare` spoils for anything else.
///
/// # Panics
/// When `test` does.
pub fn apart<T: Send>(prepare: impl FnOnce() + Send, test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            prepare();
            test()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => panic::resume_unwind(panic),
        }
    })
}

/// Hides the kernel's description of its own types.
///
/// # Panics
/// Without CAP_SYS_ADMIN.
pub fn hide_btf() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let tmpfs = Some("tmpfs");
    mount(tmpfs, "/sys/kernel/btf", tmpfs, MsFlags::empty(), none).unwrap();
}
