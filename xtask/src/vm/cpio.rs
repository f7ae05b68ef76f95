//! Archives in the format `newc` of cpio, which the kernel unpacks as its first
//! root filesystem (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Types of files, as in `st_mode`.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes an archive; folders come by themselves.
pub(super) struct Archive<W> {
    to: W,
    written: usize,
    names: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            written: 0,
            names: BTreeSet::new(),
        }
    }

    /// Adds a file that anybody may read and run.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | 0o755, content, (0, 0))
    }

    /// Adds an empty folder.
    pub(super) fn folder(&mut self, path: &Path) -> io::Result<()> {
        self.entry(path, FOLDER | 0o755, b"", (0, 0))
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &Path, to: &Path) -> io::Result<()> {
        let to = to.as_os_str().as_encoded_bytes();
        self.entry(path, LINK | 0o777, to, (0, 0))
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &Path, number: (u32, u32)) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE | 0o600, b"", number)
    }

    /// Ends the archive. Another one may follow it in the same file.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.header("TRAILER!!!", 0, 0, (0, 0))?;
        // Where the next one may begin.
        while !self.written.is_multiple_of(512) {
            self.bytes(&[0])?;
        }
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(
        &mut self,
        path: &Path,
        mode: u32,
        content: &[u8],
        device: (u32, u32),
    ) -> io::Result<()> {
        let path = path.strip_prefix("/").unwrap_or(path);
        if path.as_os_str().is_empty() || !self.names.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        let name = path
            .to_str()
            .ok_or_else(|| io::Error::other(format!("not a name: {}", path.display())))?;
        self.header(name, mode, content.len(), device)?;
        self.bytes(content)?;
        self.pad()
    }

    fn header(
        &mut self,
        name: &str,
        mode: u32,
        len: usize,
        (major, minor): (u32, u32),
    ) -> io::Result<()> {
        // Each file has a number of its own, so that none is taken for a second
        // name of another.
        let inode = self.names.len();
        let name_len = name.len() + 1;
        let len = u32::try_from(len).map_err(io::Error::other)?;
        let head = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{len:08x}\
             {:08x}{:08x}{major:08x}{minor:08x}{name_len:08x}{:08x}{name}\0",
            0, 0, 1, 0, 0, 0, 0
        );
        self.bytes(head.as_bytes())?;
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.bytes(&[0; 4][..missing])
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.to.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_folders_of_its_files_once_and_all_is_aligned() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b"), b"12345").unwrap();
        archive.file(Path::new("/a/c"), b"").unwrap();
        archive.file(Path::new("/a/c"), b"twice").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let heads: Vec<usize> = (0..bytes.len())
            .filter(|&at| bytes[at..].starts_with(b"070701"))
            .collect();
        assert!(heads.iter().all(|at| at % 4 == 0), "{heads:?}");
        let names: Vec<_> = heads
            .iter()
            .map(|at| {
                let name = bytes[at + 110..].split(|&byte| byte == 0).next().unwrap();
                std::str::from_utf8(name).unwrap()
            })
            .collect();
        assert_eq!(names, ["a", "a/b", "a/c", "TRAILER!!!"]);
        let content = heads[1] + 116;
        assert_eq!(&bytes[content..content + 5], b"12345");
    }
}
