//! The emulator: the machine's own, or Debian's, fetched with apt and unpacked, never
//! installed. An installation may have to take other packages away: those of QEMU have
//! to be of one version.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use xtask::tools;

use super::{ended_with_us, kernel::folder};
use crate::{setup::run_quietly, workspace::described};

/// What is run.
const PROGRAM: &str = "qemu-system-x86_64";
/// The package that holds it.
const PACKAGE: &str = "qemu-system-x86";
/// The folder, among those of virtual machines, that it is unpacked into.
const FOLDER: &str = "qemu";
/// Where libraries are, in packages.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
/// Where firmware is, in packages.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// The emulator as files.
pub(super) struct Qemu {
    program: PathBuf,
    /// What it was unpacked into, if it was.
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// The machine's own, else the unpacked one, fetched if it is not there.
    pub(super) fn fetched() -> Result<Self> {
        if let Some(program) = tools::program(PROGRAM) {
            return Ok(Self {
                program,
                unpacked: None,
            });
        }
        let folder = folder()?.join(FOLDER);
        if !folder.is_dir() {
            println!("fetching:        {PACKAGE}");
            fetch(&folder).with_context(|| format!("get {PROGRAM}"))?;
        }
        Ok(Self {
            program: folder.join("usr/bin").join(PROGRAM),
            unpacked: Some(folder),
        })
    }

    /// A command that runs it, and ends it with us, however we end.
    pub(super) fn command(&self) -> Command {
        let mut command = ended_with_us(&self.program);
        if let Some(folder) = &self.unpacked {
            command.env("LD_LIBRARY_PATH", libraries(folder));
            for firmware in FIRMWARE {
                command.arg("-L").arg(folder.join(firmware));
            }
        }
        command
    }
}

/// Where the unpacked one finds its libraries.
fn libraries(folder: &Path) -> OsString {
    let set = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut paths: Vec<PathBuf> = LIBRARIES.iter().map(|part| folder.join(part)).collect();
    paths.extend(env::split_paths(&set).filter(|path| !path.as_os_str().is_empty()));
    // They are paths of a folder and of a variable, none of which has a colon.
    env::join_paths(paths).unwrap_or_default()
}

/// Unpacks the package, and all it needs that this machine does not have, into
/// `folder`: whole or not at all.
fn fetch(folder: &Path) -> Result<()> {
    let packages = needed().or_else(|error| {
        // What apt knows may be old, or nothing.
        let mut update = Command::new("apt-get");
        update.args(["-qq", "-o", "Acquire::Retries=3", "update"]);
        run_quietly(&mut update).with_context(|| format!("{error:#}"))?;
        needed()
    })?;
    let partial = PathBuf::from(format!("{}.partial", folder.display()));
    let _ = fs::remove_dir_all(&partial);
    let archives = partial.join("archives");
    fs::create_dir_all(&archives).with_context(|| format!("make {}", archives.display()))?;
    let mut download = Command::new("apt-get");
    download.args(["-qq", "-o", "Acquire::Retries=3", "download"]);
    run_quietly(download.args(&packages).current_dir(&archives))?;
    for archive in fs::read_dir(&archives).context("look for the packages")? {
        let archive = archive.context("look for the packages")?.path();
        let mut unpack = Command::new("dpkg");
        run_quietly(unpack.arg("-x").arg(&archive).arg(&partial))?;
    }
    fs::remove_dir_all(&archives).with_context(|| format!("remove {}", archives.display()))?;
    fs::rename(&partial, folder).with_context(|| format!("move {} into place", partial.display()))
}

/// The package and what this machine lacks for it.
fn needed() -> Result<Vec<String>> {
    let mut ask = Command::new("apt-get");
    ask.args(["--simulate", "--no-install-recommends", "install", PACKAGE]);
    let output = ask
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("run {}", described(&ask)))?;
    let packages = installed_by(&String::from_utf8_lossy(&output.stdout));
    if packages.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "install {PROGRAM} by hand: apt-get knows no {PACKAGE}\n{}",
            said.trim_end()
        );
    }
    Ok(packages)
}

/// What apt-get says that it would install.
fn installed_by(simulated: &str) -> Vec<String> {
    let lines = simulated.lines();
    let names = lines.filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_installed_is_read_from_what_apt_says() {
        let said = "Reading package lists...\nRemv other [1:2]\nInst libx (1 Debian:12/stable)\n\
                    Inst liby [1.0] (1.1 Debian:12/stable)\nConf libx (1 Debian:12/stable)\n";
        assert_eq!(installed_by(said), ["libx", "liby"]);
        assert!(installed_by("").is_empty());
    }
}
