//! The lab of throttle's integration tests: small networks that exist only in
//! network namespaces made for one test, with real clients and servers in
//! them, and a capture that says what was really on the wire.
//!
//! Nothing here touches the network of the machine. Namespaces have no name
//! and no mount: a file descriptor keeps them, so they are gone when their
//! last user is, even after a crash.
//!
//! | module | offers |
//! |---|---|
//! | [`netns`] | a namespace, threads and programs inside it |
//! | [`process`] | a program inside a namespace, a cgroup, under another user |
//! | [`topology`] | ready networks: [`Lab`] |
//! | [`tags`], [`netkit`] | devices of these kinds |
//! | [`addresses`] | what answers, refuses, is unreachable or dead |
//! | [`capture`], [`frame`] | what arrived, when, decoded |
//! | [`dial`] | many connection attempts at once |
//! | [`serve`] | something that answers |
//! | [`cgroup`] | cgroups of a test's own |
//! | [`inject`] | forged answers |
//! | [`throttle_cmd`] | the program under test |
//! | [`timing`] | when attempts went out, against when they were due |
//! | [`hooks`] | what is attached where, to compare before with after |
//! | [`features`] | what a machine may lack, and whether it may |
//! | [`lacking`] | machines that lack something |
//! | [`clients`] | curl, nmap, ss … |
//! | [`machine`] | a copy of this machine's files, to install things on |
//! | [`wait`] | waiting for a state |

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a test stops at the first surprise, and says so by panicking"
)]

pub mod addresses;
pub mod capture;
pub mod cgroup;
pub mod clients;
pub mod dial;
pub mod features;
pub mod frame;
pub mod hooks;
pub mod inject;
pub mod lacking;
pub mod machine;
pub mod netkit;
pub mod netns;
pub mod process;
mod pump;
pub mod serve;
mod sys;
pub mod tags;
pub mod throttle_cmd;
pub mod timing;
pub mod topology;
mod unreachable;
pub mod wait;

pub use self::{
    capture::Capture,
    cgroup::Cgroup,
    dial::Dialer,
    features::Feature,
    machine::Machine,
    netns::Namespace,
    process::Program,
    serve::{Behaviour, Server},
    throttle_cmd::Throttle,
    timing::Pace,
    topology::Lab,
    wait::{holds_for, wait_for, wait_until},
};
