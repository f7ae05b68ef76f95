//! What can go wrong, and what to do about it.

use std::{error::Error as StdError, io};

/// Shorthand for a result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what the operator can do about it. Each kind has an exit
/// code of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It did not work. Exit code 1.
    #[error("{what}: {}", because(.reason.as_ref()))]
    Failed {
        /// What was tried.
        what: String,
        /// Why it failed.
        reason: Box<dyn StdError + Send + Sync>,
    },
    /// It cannot work as asked. Exit code 1.
    #[error("{0}")]
    Refused(String),
    /// A value that was asked for makes no sense. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The caller may not do this. Exit code 3.
    #[error(
        "{what}: {}\n\
         throttle needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON: run it as root, \
         for example with sudo",
        because(.reason.as_ref())
    )]
    Privilege {
        /// What was tried.
        what: String,
        /// What the kernel said.
        reason: Box<dyn StdError + Send + Sync>,
    },
    /// The caller may not do this to a process. Exit code 3.
    #[error("{what}: {}\n{remedy}", because(.reason.as_ref()))]
    Denied {
        /// What was tried.
        what: String,
        /// What the kernel said.
        reason: Box<dyn StdError + Send + Sync>,
        /// What to do about it.
        remedy: String,
    },
    /// The kernel lacks something. Exit code 4.
    #[error("{what}: {lacks}\n{remedy}")]
    Kernel {
        /// What was tried.
        what: String,
        /// What is missing.
        lacks: String,
        /// What to do about it.
        remedy: String,
    },
}

impl Error {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { .. } | Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::Privilege { .. } | Self::Denied { .. } => 3,
            Self::Kernel { .. } => 4,
        }
    }

    /// `what` failed with `reason`: lack of privilege if that is what the kernel
    /// said, a failure otherwise.
    pub fn failed(
        what: impl Into<String>,
        reason: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let (what, reason) = (what.into(), reason.into());
        match errno_of(reason.as_ref()) {
            Some(nix::libc::EPERM | nix::libc::EACCES) => {
                if !is_verifier_refusal(reason.as_ref()) {
                    Self::Privilege { what, reason }
                } else if is_strictly_verified() {
                    let reason = "the kernel is stricter with programs of who lacks CAP_PERFMON";
                    Self::Privilege {
                        what,
                        reason: reason.into(),
                    }
                } else {
                    Self::Failed { what, reason }
                }
            }
            _ => Self::Failed { what, reason },
        }
    }

    /// `what` failed with `reason`, and if the kernel does not know the call or
    /// its arguments, that is because it lacks `lacks`.
    pub fn needs(
        what: impl Into<String>,
        reason: impl Into<Box<dyn StdError + Send + Sync>>,
        lacks: &str,
        remedy: &str,
    ) -> Self {
        let (what, reason) = (what.into(), reason.into());
        match errno_of(reason.as_ref()) {
            Some(nix::libc::EINVAL | nix::libc::ENOSYS | nix::libc::EOPNOTSUPP) => Self::Kernel {
                what,
                lacks: format!("this kernel has no {lacks} ({})", because(reason.as_ref())),
                remedy: remedy.to_owned(),
            },
            _ => Self::failed(what, reason),
        }
    }
}

/// An error and what caused it, each said once. Of a verifier's log there are
/// thousands of lines; the last ones say what it did not like.
fn because(error: &(dyn StdError + Send + Sync + 'static)) -> String {
    const LINES_MAX: usize = 12;
    const LAST: usize = 8;
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let said = cause.to_string();
        if !text.contains(&said) {
            text += &format!(": {said}");
        }
        at = cause.source();
    }
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= LINES_MAX {
        return text;
    }
    let left_out = lines.len() - 1 - LAST;
    format!(
        "{}\n({left_out} lines left out; RUST_LOG=debug shows them)\n{}",
        lines[0],
        lines[lines.len() - LAST..].join("\n")
    )
}

/// Whether the caller lacks CAP_PERFMON, and CAP_SYS_ADMIN, which implies it.
/// The verifier then minds what it otherwise lets pass (`env->allow_ptr_leaks`
/// in kernel/bpf/verifier.c).
fn is_strictly_verified() -> bool {
    /// `CAP_SYS_ADMIN` and `CAP_PERFMON` of linux/capability.h.
    const EITHER: u64 = 1 << 21 | 1 << 38;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|effective| effective & EITHER == 0)
}

/// The errno at the bottom of an error, if there is one.
#[must_use]
pub fn errno_of(error: &(dyn StdError + 'static)) -> Option<i32> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        if let Some(errno) = error.downcast_ref::<nix::errno::Errno>() {
            return Some(*errno as i32);
        }
        if let Some(aya::programs::ProgramError::LoadError { io_error, .. }) = error.downcast_ref()
        {
            return io_error.raw_os_error();
        }
        at = error.source();
    }
    None
}

/// The verifier says EACCES too, but it says why.
fn is_verifier_refusal(error: &(dyn StdError + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(aya::programs::ProgramError::LoadError { verifier_log, .. }) =
            error.downcast_ref()
        {
            return !verifier_log.to_string().trim().is_empty();
        }
        at = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn each_kind_has_its_exit_code() {
        assert_eq!(Error::failed("try", os(nix::libc::ENOENT)).exit_code(), 1);
        assert_eq!(Error::Usage("no".into()).exit_code(), 2);
        assert_eq!(Error::failed("try", os(nix::libc::EPERM)).exit_code(), 3);
        assert_eq!(
            Error::needs("try", os(nix::libc::EINVAL), "TCX", "upgrade").exit_code(),
            4
        );
    }

    #[test]
    fn lack_of_privilege_is_not_taken_for_lack_of_a_feature() {
        let error = Error::needs("try", os(nix::libc::EPERM), "TCX", "upgrade");
        assert!(matches!(error, Error::Privilege { .. }), "{error}");
        assert!(error.to_string().contains("run it as root"));
    }

    #[test]
    fn each_cause_is_said_once_and_the_remedy_last() {
        let wrapped = aya::maps::MapError::CreateError {
            name: "FLOWS".into(),
            io_error: os(nix::libc::EPERM),
        };
        let text = Error::failed("try", aya::EbpfError::MapError(wrapped)).to_string();
        assert_eq!(text.matches("Operation not permitted").count(), 1, "{text}");
        assert!(text.ends_with("sudo"), "{text}");
        let text = format!("{:#}", anyhow::Error::from(Error::failed("try", os(2))));
        assert_eq!(text.matches("No such file").count(), 1, "{text}");
    }

    #[test]
    fn of_a_long_reason_the_last_lines_are_said() {
        let log: Vec<String> = (0..1_000).map(|n| format!("line {n}")).collect();
        let text = Error::failed("try", log.join("\n")).to_string();
        assert!(text.lines().count() < 15, "{text}");
        assert!(
            text.contains("line 0\n") && text.ends_with("line 999"),
            "{text}"
        );
        assert!(text.contains("991 lines left out"), "{text}");
    }

    #[test]
    fn the_errno_is_found_below_other_errors() {
        let wrapped = aya::maps::MapError::CreateError {
            name: "FLOWS".into(),
            io_error: os(nix::libc::EPERM),
        };
        assert_eq!(
            errno_of(&aya::EbpfError::MapError(wrapped)),
            Some(nix::libc::EPERM)
        );
    }
}
