//! What a virtual machine boots into: an initramfs with the tests, the programs that
//! they run, and nothing else.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufWriter, ErrorKind, Seek as _, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use xtask::tools;

use super::{cpio::Archive, folder, kernel::Unpacked};
use crate::{
    setup::run_quietly,
    workspace::{described, root, target_dir},
};

/// Where the tests are, inside.
const HOME: &str = "/throttle";
/// The programs that tests run. What is missing here is missing there, and the tests
/// that need it fail.
const PROGRAMS: [&str; 41] = [
    "wg", "stty", "sh", "bash", "ip", "tc", "ss", "ethtool", "tcpdump", "nmap", "masscan", "curl",
    "ps", "setpriv", "nsenter", "unshare", "script", "sleep", "stat", "readlink", "id", "cat",
    "true", "false", "env", "kill", "mount", "umount", "ls", "cp", "rm", "mkdir", "chmod", "echo",
    "seq", "head", "wc", "sysctl", "timeout", "sort", "grep",
];
/// Files that such programs read.
const FILES: [&str; 8] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/os-release",
    "/usr/share/nmap/nmap-services",
    "/usr/share/nmap/nmap-payloads",
];
/// Names for other folders, on most systems.
const LINKS: [&str; 4] = ["/bin", "/sbin", "/lib", "/lib64"];
/// Folders of the workspace that tests read.
const SOURCES: [&str; 2] = ["dist", "tests/clients"];

/// What is put into the machines.
pub(super) struct Programs {
    /// The program under test.
    pub(super) throttle: PathBuf,
    /// What runs first.
    pub(super) init: PathBuf,
    /// What dials, for the tests.
    pub(super) dialer: PathBuf,
    /// The test programs, by name.
    pub(super) tests: Vec<(String, PathBuf)>,
}

impl Programs {
    /// Where they are in a machine.
    pub(super) fn inside(&self) -> Self {
        let release = Path::new(HOME).join("release");
        let deps = release.join("deps");
        let tests = self.tests.iter();
        Self {
            throttle: release.join("throttle"),
            init: PathBuf::from("/init"),
            dialer: release.join("dialer"),
            tests: tests
                .map(|(name, _)| (name.clone(), deps.join(name)))
                .collect(),
        }
    }

    /// All their paths.
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let tests = self.tests.iter().map(|(_, path)| path);
        [&self.init, &self.throttle, &self.dialer]
            .into_iter()
            .chain(tests)
    }
}

/// Writes the archive that is the same for all kernels of a run: another run may write
/// another one while this one is read.
pub(super) fn write_common(programs: &Programs) -> Result<File> {
    let path = folder()?.join("common.cpio");
    let say = || format!("write {}", path.display());
    // Whoever has the old one open keeps it.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(say),
        Ok(()) | Err(_) => {}
    }
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(say)?;
    let copy = file.try_clone().with_context(say)?;
    let mut image = Image {
        archive: Archive::new(BufWriter::new(file)),
    };
    for link in LINKS {
        let link = Path::new(link);
        if let Ok(to) = fs::read_link(link) {
            image.archive.link(link, &to)?;
        }
    }
    for (device, number) in [("/dev/console", (5, 1)), ("/dev/null", (1, 3))] {
        image.archive.device(Path::new(device), number)?;
    }
    image.archive.folder(Path::new("/root"))?;
    for (inside, path) in programs.inside().paths().zip(programs.paths()) {
        image.stripped(inside, path)?;
    }
    for program in PROGRAMS {
        if let Some(path) = tools::program(program) {
            image.program(&path, &path)?;
        }
    }
    for file in FILES {
        image.file_if_there(Path::new(file))?;
    }
    // Where tests put files; its name was compiled into them.
    image.archive.folder(&target_dir()?.join("tmp"))?;
    let root = root()?;
    for part in SOURCES {
        image.tree(&root.join(part))?;
    }
    image.archive.finish()?;
    Ok(copy)
}

/// What is to be done, on whatever machine.
pub(super) struct Plan<'a> {
    /// Where the programs are there.
    pub(super) programs: &'a Programs,
    pub(super) env: &'a [(&'a str, String)],
    pub(super) args: &'a [String],
    /// How long each test program may run.
    pub(super) most: Duration,
}

impl Plan<'_> {
    /// As `vm-init` reads it.
    pub(super) fn lines(&self) -> Result<String> {
        let mut lines = String::new();
        for (name, value) in self.env {
            lines += &format!("env {name}={value}\n");
        }
        let Programs {
            throttle, tests, ..
        } = self.programs;
        lines += &format!("env THROTTLE_BIN={}\n", throttle.display());
        lines += &format!("folder {}\n", root()?.join("tests").display());
        for arg in self.args {
            lines += &format!("arg {arg}\n");
        }
        let seconds = self.most.as_secs();
        for (name, path) in tests {
            lines += &format!("test {name} {} {seconds}\n", path.display());
        }
        Ok(lines)
    }
}

/// Writes all of the initramfs for a kernel.
pub(super) fn write(common: &mut File, kernel: &Unpacked, plan: &Plan<'_>) -> Result<PathBuf> {
    let path = folder()?.join(format!("{}.cpio", kernel.release));
    let say = || format!("write {}", path.display());
    let mut file = File::create(&path).with_context(say)?;
    common.rewind().with_context(say)?;
    io::copy(common, &mut file).with_context(say)?;
    let mut archive = Archive::new(BufWriter::new(file));
    let mut lines = String::new();
    for module in kernel.modules()? {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let inside = format!("{HOME}/modules/{name}");
        archive.file(Path::new(&inside), &read(&module)?)?;
        lines += &format!("module {inside}\n");
    }
    for (name, value) in [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"),
        ("HOME", "/root"),
        ("RUST_BACKTRACE", "0"),
    ] {
        lines += &format!("env {name}={value}\n");
    }
    lines += &plan.lines()?;
    archive.file(Path::new("/throttle/plan"), lines.as_bytes())?;
    archive.finish().with_context(say)?;
    Ok(path)
}

struct Image<W> {
    archive: Archive<W>,
}

impl<W: Write> Image<W> {
    /// Adds one of our programs without what only a debugger reads.
    fn stripped(&mut self, name: &Path, path: &Path) -> Result<()> {
        let folder = folder()?.join("stripped");
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let stripped = folder.join(path.file_name().unwrap_or_default());
        let is_newer = |a: &Path, b: &Path| -> Option<bool> {
            Some(a.metadata().ok()?.modified().ok()? > b.metadata().ok()?.modified().ok()?)
        };
        if is_newer(&stripped, path) != Some(true) {
            let mut strip = Command::new("strip");
            strip
                .arg("--strip-debug")
                .arg("-o")
                .arg(&stripped)
                .arg(path);
            run_quietly(&mut strip)?;
        }
        self.program(name, &stripped)
    }

    /// Adds a program and the libraries that it is linked with.
    fn program(&mut self, name: &Path, path: &Path) -> Result<()> {
        self.archive.file(&settled(name), &read(path)?)?;
        for library in libraries(path)? {
            self.file_if_there(&library)?;
        }
        Ok(())
    }

    fn file_if_there(&mut self, path: &Path) -> Result<()> {
        if path.is_file() {
            self.archive.file(&settled(path), &read(path)?)?;
        }
        Ok(())
    }

    fn tree(&mut self, path: &Path) -> Result<()> {
        if !path.is_dir() {
            return self.file_if_there(path);
        }
        self.archive.folder(path)?;
        for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
            self.tree(&entry.context("read a folder")?.path())?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The path with the links among its folders followed, so that no file is put below a
/// link.
fn settled(path: &Path) -> PathBuf {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return path.to_owned();
    };
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    folder.join(name)
}

/// The libraries of a program, and what loads them; none for a script.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    command.arg(program);
    let output = command
        .output()
        .with_context(|| format!("run {}", described(&command)))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains("not found") {
        bail!("a library of {} is missing:\n{said}", program.display());
    }
    Ok(paths(&said))
}

/// The paths in what ldd says.
fn paths(said: &str) -> Vec<PathBuf> {
    let words = said.lines().filter_map(|line| {
        line.split_whitespace()
            .find(|word| word.starts_with('/') && !word.ends_with(':'))
    });
    words
        .map(|word| Path::new(OsStr::new(word)).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_a_program_are_read_from_what_ldd_says() {
        let said = "\
\tlinux-vdso.so.1 (0x00007ffc0)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f)
";
        assert_eq!(
            paths(said),
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(paths("\tnot a dynamic executable\n").is_empty());
    }
}
