//! Versions of tools and where they are.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

/// A version as tools print it: three numbers, of which later ones may be
/// missing. What follows the numbers (`-nightly`) does not take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

impl Version {
    /// A version from its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// Reads the first word of `text` that begins with a digit as a version.
    ///
    /// ```
    /// use xtask::tools::Version;
    ///
    /// assert_eq!(Version::find("bpf-linker 0.10.4"), Some(Version::new(0, 10, 4)));
    /// assert_eq!(Version::find("no number here"), None);
    /// ```
    pub fn find(text: &str) -> Option<Self> {
        let word = text
            .split_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut numbers = word.split('.').map_while(|part| {
            let digits = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        Some(Self {
            major: numbers.next()?,
            minor: numbers.next().unwrap_or(0),
            patch: numbers.next().unwrap_or(0),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            patch,
        } = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// The program `name`: the first one in `PATH`, else the one in a directory
/// that is not in everybody's `PATH`: cargo's own, or one for root.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(home("CARGO_HOME", ".cargo").map(|home| home.join("bin")))
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

/// The directory named by the environment variable `variable`, else `name` in
/// the user's home.
pub(crate) fn home(variable: &str, name: &str) -> Option<PathBuf> {
    let set = env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    set.or_else(|| env::home_dir().map(|home| home.join(name)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_first_word_that_begins_with_a_digit() {
        for (text, expected) in [
            (
                "rustc 1.95.0 (59807616e 2026-04-14)",
                Version::new(1, 95, 0),
            ),
            ("1.97.0-nightly", Version::new(1, 97, 0)),
            ("22.1", Version::new(22, 1, 0)),
            ("22", Version::new(22, 0, 0)),
            (
                "LLVM version 14.0.6\n  Optimized build.",
                Version::new(14, 0, 6),
            ),
            ("1.2.3.4", Version::new(1, 2, 3)),
        ] {
            assert_eq!(Version::find(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn text_without_a_number_has_no_version() {
        for text in ["", "unknown", "v1.2", "99999999999999999999"] {
            assert_eq!(Version::find(text), None, "{text}");
        }
    }

    #[test]
    fn versions_compare_by_number_and_not_by_digit() {
        assert!(Version::new(1, 9, 0) < Version::new(1, 10, 0));
        assert!(Version::new(0, 10, 4) > Version::new(0, 10, 3));
    }

    #[test]
    fn a_program_that_everybody_has_is_found_and_a_made_up_one_is_not() {
        assert!(program("sh").is_some());
        assert!(program("no-program-has-this-name").is_none());
    }
}
