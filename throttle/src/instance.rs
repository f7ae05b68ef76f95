//! The throttles of this network namespace: each has a name, by which the
//! commands find it.
//!
//! A running daemon holds the lock of a file that says where its pins are. A
//! throttle without a daemon, left by `--keep`, is found by its pins alone.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use log::warn;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    maps::Maps,
    pins::{self, Pins},
    settings::Direction,
};

/// For how long a registration is tried that somebody holds: those who only look
/// do so for less than a millisecond.
const PATIENCE: Duration = Duration::from_millis(300);

/// Where running daemons are registered.
pub const RUN: &str = "/run/throttle";

/// A throttle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// What it is called.
    pub name: String,
    /// Its daemon, if one runs.
    pub daemon: Option<Daemon>,
    /// Where its kernel side is; none if that cannot be looked into.
    pub pins: Option<Pins>,
}

/// A running daemon, as it is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its process id.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
    /// When it started, in nanoseconds since 1970.
    pub started_ns: u64,
    /// Whether its kernel side outlives it.
    pub keep: bool,
    /// Where its pins are, if it has any.
    pub pins: Option<PathBuf>,
}

impl Instance {
    /// All throttles of the caller's network namespace, by name.
    ///
    /// # Errors
    ///
    /// When the caller may not look.
    pub fn all() -> Result<Vec<Self>> {
        let mut found = BTreeMap::new();
        for (name, pins) in kept()? {
            let instance = Self {
                name: name.clone(),
                daemon: None,
                pins: Some(pins),
            };
            found.insert(name, instance);
        }
        for (name, daemon) in running()? {
            let pins = daemon.pins.clone().map(Pins::at);
            let instance = Self {
                name: name.clone(),
                daemon: Some(daemon),
                pins,
            };
            found.insert(name, instance);
        }
        Ok(found.into_values().collect())
    }

    /// Which way the attempts go that it watches; the usual one if that is not
    /// known.
    #[must_use]
    pub fn direction(&self) -> Direction {
        let pins = self.pins.as_ref();
        pins.and_then(Pins::direction).unwrap_or(Direction::Egress)
    }

    /// Its maps.
    ///
    /// # Errors
    ///
    /// When they cannot be looked into, or another version made them.
    pub fn maps(&self) -> Result<Maps> {
        let Some(pins) = &self.pins else {
            return Err(Error::Refused(format!(
                "look into throttle {}: its daemon had no right to make a bpf filesystem \
                 (CAP_SYS_ADMIN); start it with that, or with --keep",
                self.name
            )));
        };
        Maps::open(pins)
    }
}

/// Held by whoever starts, changes or removes a throttle: what one looks at, and
/// what it does then, is one step to the others.
#[derive(Debug)]
pub struct Exclusive(#[expect(dead_code, reason = "the lock is held while it lives")] Flock<File>);

impl Exclusive {
    /// Waits for whoever has it.
    ///
    /// # Errors
    ///
    /// When the caller may not, or somebody has it for half a minute.
    pub fn wait() -> Result<Self> {
        const LONGEST: Duration = Duration::from_secs(30);
        let path = Path::new(RUN).join("lock");
        let what = || format!("lock {}", path.display());
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(RUN)
            .map_err(|error| failed(what(), error))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed(what(), error))?;
        let deadline = Instant::now() + LONGEST;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self(lock)),
                Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(Error::Refused(format!(
                        "{}: another throttle has been starting or ending for {LONGEST:?}; see `ps -C \
                         throttle`",
                        what()
                    )));
                }
                Err((_, error)) => return Err(Error::failed(what(), error)),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where the pins of the throttle `name` are kept.
///
/// # Errors
///
/// When there is no bpf filesystem.
pub fn kept_at(name: &str) -> Result<Pins> {
    let root = pins::bpffs().ok_or_else(|| {
        Error::Refused(
            "find a bpf filesystem: none is mounted here; as root: mount -t bpf -o mode=0700 bpf \
             /sys/fs/bpf"
                .into(),
        )
    })?;
    let folder = root.join(pins::FOLDER).join(namespace()?);
    Ok(Pins::at(folder.join(escaped(name))))
}

/// Kept throttles, by name.
fn kept() -> Result<Vec<(String, Pins)>> {
    let Some(root) = pins::bpffs() else {
        return Ok(Vec::new());
    };
    let folder = root.join(pins::FOLDER).join(namespace()?);
    // Where anybody may write, anybody can make a folder of that name.
    for folder in [&root.join(pins::FOLDER), &folder] {
        if folder.exists() && !pins::is_own(folder) {
            warn!(
                "{} is not this user's, or others may write to it: what is in it is not believed",
                folder.display()
            );
            return Ok(Vec::new());
        }
    }
    let names = names_in(&folder)?;
    let pins = |name: &String| Pins::at(folder.join(escaped(name)));
    Ok(names
        .into_iter()
        .map(|name| (name.clone(), pins(&name)))
        .collect())
}

/// Daemons that run, by the names of their throttles.
fn running() -> Result<Vec<(String, Daemon)>> {
    let folder = Path::new(RUN).join(namespace()?);
    let mut found = Vec::new();
    for name in names_in(&folder)? {
        let path = folder.join(escaped(&name));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(format!("open {}", path.display()), error)),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            // Nobody holds it: whoever wrote it is no more.
            Ok(file) => remove_if_same(&path, &file),
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                // What is just being written is not registered yet.
                if file.read_to_string(&mut text).is_ok()
                    && let Ok(daemon) = serde_json::from_str(&text)
                {
                    found.push((name, daemon));
                }
            }
            Err((_, error)) => {
                return Err(Error::failed(format!("lock {}", path.display()), error));
            }
        }
    }
    Ok(found)
}

/// What went wrong with what is registered: it is root's.
fn failed(what: String, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Error::Denied {
            what,
            reason: error.into(),
            remedy:
                "what runs is registered by root and for root: run it as root, for example with \
                     sudo"
                    .into(),
        };
    }
    Error::failed(what, error)
}

/// The names that the entries of a folder stand for.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let what = || format!("look into {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(what(), error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed(what(), error))?;
        names.extend(entry.file_name().to_str().and_then(unescaped));
    }
    Ok(names)
}

fn remove_if_same(path: &Path, file: &File) {
    let same = fs::metadata(path).ok().zip(file.metadata().ok());
    if same.is_some_and(|(there, here)| there.ino() == here.ino()) {
        let _ = fs::remove_file(path);
        // The namespace's folder, if that was the last of it.
        if let Some(folder) = path.parent() {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The registration of a running daemon. It ends when this is dropped, and
/// however the process ends.
#[derive(Debug)]
pub struct Registration {
    path: PathBuf,
    file: Flock<File>,
}

impl Registration {
    /// Registers the throttle `name` as run by this process.
    ///
    /// # Errors
    ///
    /// When another daemon runs it, with that one's pid, or when there is no way
    /// to register.
    pub fn claim(name: &str) -> Result<Self> {
        let folder = Path::new(RUN).join(namespace()?);
        let path = folder.join(escaped(name));
        let what = || format!("register in {}", path.display());
        let deadline = Instant::now() + PATIENCE;
        loop {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(|error| failed(what(), error))?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            let file = match file {
                Ok(file) => file,
                // Somebody who left took the folder away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(what(), error)),
            };
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => {
                    let there = fs::metadata(&path).map(|found| found.ino()).ok();
                    let here = file.metadata().map(|found| found.ino()).ok();
                    // Else it was removed between opening and locking.
                    if there.is_some() && there == here {
                        // What the one before said is not true of this one.
                        file.set_len(0).map_err(|error| failed(what(), error))?;
                        return Ok(Self { path, file });
                    }
                }
                // Whoever looks around holds it for a moment.
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let mut text = String::new();
                    let _ = file.read_to_string(&mut text);
                    let pid = serde_json::from_str::<Daemon>(&text).map(|daemon| daemon.pid);
                    let by =
                        pid.map_or_else(|_| "another process".into(), |pid| format!("pid {pid}"));
                    return Err(Error::Refused(format!(
                        "throttle {name} is run by {by} already: end that one first, change it with \
                         `throttle set`, or give this one another --name and other interfaces"
                    )));
                }
                Err((_, error)) => return Err(Error::failed(what(), error)),
            }
        }
    }

    /// Says who it is and where its pins are.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn say(&mut self, daemon: &Daemon) -> Result<()> {
        let text = serde_json::to_string(daemon).unwrap_or_default();
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())
        };
        write(&mut self.file)
            .map_err(|error| Error::failed(format!("write {}", self.path.display()), error))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        remove_if_same(&self.path, &self.file);
    }
}

/// The caller's network namespace, by a number that no other one has had since
/// the machine booted (`SO_NETNS_COOKIE`, since Linux 5.14), else by the number
/// of its inode.
///
/// # Errors
///
/// When the kernel tells neither.
pub fn namespace() -> Result<String> {
    let what = "tell which network namespace this is";
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|error| Error::failed(what, error))?;
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(0);
    // SAFETY: both pointers are valid for the lengths that go with them.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        return Ok(format!("net-{cookie}"));
    }
    let own =
        fs::metadata("/proc/thread-self/ns/net").map_err(|error| Error::failed(what, error))?;
    Ok(format!("net-inode-{}", own.ino()))
}

/// `name` as the name of a file, also in a bpf filesystem, which wants no dots.
#[must_use]
pub fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'@' | b':') {
            text.push(char::from(byte));
        } else {
            text += &format!("%{byte:02x}");
        }
    }
    text
}

/// The name that a file's name stands for. None if it stands for none.
#[must_use]
pub fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_namespace_has_a_name() {
        let name = namespace().unwrap();
        assert!(
            name.starts_with("net-") && !name.contains(['/', '.']),
            "{name}"
        );
        assert_eq!(namespace().unwrap(), name);
    }

    proptest! {
        #[test]
        fn a_name_survives_as_a_file_name(name in ".{1,40}") {
            let file = escaped(&name);
            prop_assert!(!file.contains(['/', '.', '\0']));
            prop_assert_eq!(unescaped(&file), Some(name));
        }
    }
}
