//! What the project's tasks and the build script of `throttle` share: finding
//! the tools and compiling the eBPF programs.
//!
//! The tasks themselves (`cargo xtask --help`) are modules of the binary.

pub mod ebpf;
pub mod tools;
