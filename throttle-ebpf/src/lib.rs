//! The eBPF programs of `throttle`.
//!
//! `main.rs` holds the entries: one for each hook and kind of device, each a
//! table from outcome to return code. [`outbound`] looks at SYNs, [`inbound`]
//! at what can end an attempt, [`socket_state`] at ends that never touch the
//! wire. Every map is private to its module behind typed functions. Decisions
//! are made in `throttle-common`.
//!
//! The crate also compiles for the host, so that what needs no kernel is tested
//! there.

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod current;
pub mod departures;
pub mod endpoints;
pub mod events;
pub mod exempt;
pub mod flows;
pub mod inbound;
pub mod outbound;
pub mod packet;
pub mod scopes;
pub mod scratch;
pub mod settings;
pub mod skb;
pub mod socket_state;
pub mod sockets;
pub mod steps;
pub mod tallies;
pub mod unhandled;

/// `BPF_F_NO_COMMON_LRU` of include/uapi/linux/bpf.h: one LRU list for each
/// CPU, so that no CPU waits for another's.
const BPF_F_NO_COMMON_LRU: u32 = 1 << 1;
/// `BPF_NOEXIST` of include/uapi/linux/bpf.h: insert, never overwrite.
const BPF_NOEXIST: u64 = 1;
/// `BPF_ANY` of include/uapi/linux/bpf.h.
const BPF_ANY: u64 = 0;
