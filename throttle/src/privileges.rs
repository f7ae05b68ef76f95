//! What the daemon may do: after its start only what running needs.
//!
//! Capabilities belong to threads. A thread starts with those of the one that
//! starts it, so they are given up before there are others, and a thread that is
//! there already gives up its own.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use log::debug;
use nix::libc;

use crate::{Error, Result};

/// What running needs, and what for.
pub const NEEDED: [(Capability, &str); 6] = [
    (
        Capability::CAP_BPF,
        "maps are read and written, and programs loaded when the first device of a kind appears \
         (bpf_capable in kernel/bpf/syscall.c)",
    ),
    (
        Capability::CAP_PERFMON,
        "the verifier is stricter with programs of who lacks it (env->allow_ptr_leaks in \
         kernel/bpf/verifier.c)",
    ),
    (
        Capability::CAP_NET_ADMIN,
        "programs are attached to devices that appear and detached at the end; a copy carries \
         its SYN's mark, and a priority above 6 (sk_setsockopt in net/core/sock.c)",
    ),
    (
        Capability::CAP_NET_RAW,
        "packet sockets, by which deferred SYNs are re-sent (packet_create in \
         net/packet/af_packet.c)",
    ),
    (
        Capability::CAP_SYS_PTRACE,
        "executables, namespaces and files of other users' processes are read in /proc \
         (__ptrace_may_access in kernel/ptrace.c)",
    ),
    (
        Capability::CAP_DAC_READ_SEARCH,
        "control groups are opened by their id (do_handle_to_path in fs/fhandle.c), and folders \
         in /proc that are their owner's alone",
    ),
];

/// Gives up, for the calling thread and those that it starts from now on,
/// whatever running does not need, and any way to get it back: in all sets, and
/// by programs that would bring privileges along (`no_new_privs`). What the
/// caller does not have it does not need.
///
/// Returns what it keeps.
///
/// # Errors
///
/// When the kernel does not do it.
pub fn keep_what_running_needs() -> Result<Vec<Capability>> {
    let had = now(CapSet::Permitted)?;
    let kept: Vec<Capability> = NEEDED
        .into_iter()
        .map(|(capability, _)| capability)
        .filter(|capability| had.contains(capability))
        .collect();
    keep(&kept)?;
    Ok(kept)
}

/// Gives up everything, for the calling thread alone.
///
/// # Errors
///
/// When the kernel does not do it.
pub fn keep_nothing() -> Result<()> {
    keep(&[])
}

/// Keeps of what the calling thread has only these.
fn keep(kept: &[Capability]) -> Result<()> {
    let what = "give up privileges that running does not need";
    forbid_new_privileges().map_err(|error| Error::failed(what, error))?;
    // The bounding set first: that takes a capability which goes with the rest.
    if now(CapSet::Effective)?.contains(&Capability::CAP_SETPCAP) {
        bound(kept).map_err(|error| Error::failed(what, error))?;
    } else {
        debug!(
            "the bounding set stays as it is without CAP_SETPCAP; no program that is run brings \
             privileges along all the same"
        );
    }
    // What is effective must be permitted, and what is ambient inheritable; so
    // the wider set comes later.
    let kept: CapsHashSet = kept.iter().copied().collect();
    caps::clear(None, CapSet::Ambient)
        .and_then(|()| caps::clear(None, CapSet::Inheritable))
        .and_then(|()| caps::set(None, CapSet::Effective, &kept))
        .and_then(|()| caps::set(None, CapSet::Permitted, &kept))
        .map_err(|error| Error::failed(what, error.to_string()))
}

fn now(set: CapSet) -> Result<CapsHashSet> {
    caps::read(None, set)
        .map_err(|error| Error::failed("read which privileges there are", error.to_string()))
}

/// Drops from the bounding set what is not among `kept`, known to us or not.
fn bound(kept: &[Capability]) -> io::Result<()> {
    // As many as a set has bits (include/linux/capability.h).
    for number in 0..u64::BITS {
        // The last one that the kernel knows is behind us.
        if prctl(libc::PR_CAPBSET_READ, number).is_err() {
            break;
        }
        if !kept.iter().any(|each| u32::from(each.index()) == number) {
            prctl(libc::PR_CAPBSET_DROP, number)?;
        }
    }
    Ok(())
}

/// What is run from now on gets no privileges from its file (`no_new_privs`).
fn forbid_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn prctl(option: libc::c_int, argument: u32) -> io::Result<()> {
    let (argument, none) = (libc::c_ulong::from(argument), 0 as libc::c_ulong);
    // SAFETY: these options take numbers only, and change nothing in memory.
    let result = unsafe { libc::prctl(option, argument, none, none, none) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn each_need_is_there_once_and_has_a_reason() {
        let different: CapsHashSet = NEEDED.iter().map(|(capability, _)| *capability).collect();
        assert_eq!(different.len(), NEEDED.len());
        assert!(NEEDED.iter().all(|(_, reason)| !reason.is_empty()));
    }

    #[test]
    fn a_thread_keeps_what_it_had_and_needs_and_other_threads_keep_theirs() {
        let before = now(CapSet::Permitted).unwrap();
        let (kept, after) = thread::spawn(|| {
            let kept = keep_what_running_needs().unwrap();
            // A second time there is nothing more to give up.
            assert_eq!(keep_what_running_needs().unwrap(), kept);
            let sets = [CapSet::Permitted, CapSet::Effective, CapSet::Inheritable];
            (kept, sets.map(|set| now(set).unwrap()))
        })
        .join()
        .unwrap();
        let kept: CapsHashSet = kept.into_iter().collect();
        assert!(kept.is_subset(&before));
        assert_eq!(after, [kept.clone(), kept, CapsHashSet::new()]);
        assert_eq!(now(CapSet::Permitted).unwrap(), before);
    }

    #[test]
    fn a_thread_that_keeps_nothing_has_nothing() {
        let after = thread::spawn(|| {
            keep_nothing().unwrap();
            now(CapSet::Permitted).unwrap()
        })
        .join()
        .unwrap();
        assert_eq!(after, CapsHashSet::new());
    }
}
