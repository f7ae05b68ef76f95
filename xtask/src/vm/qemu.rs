//! The emulator: the machine's own, or Debian's, fetched and unpacked, never installed.
//! An installation may have to take other packages away: those of QEMU have to be of
//! one version.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use xtask::tools::{self, Version};

use super::{
    apt::{Apt, Suites, filled},
    ended_with_us, folder,
};
use crate::workspace::described;

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
/// The first that can be relied on. Those before it, with a thread for each CPU, let a
/// CPU run into what stands in code for a moment only, while another CPU changes it:
/// kernels die of `Oops: int3` (mended by "accel/tcg: Always lock pages before
/// translation").
const OLDEST: Version = Version::new(8, 1, 0);
/// Tells which Debian this is.
const OS_RELEASE: &str = "/etc/os-release";

/// The emulator as files.
pub(super) struct Qemu {
    program: PathBuf,
    /// What it was unpacked into, if it was.
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// The machine's own, else the unpacked one, fetched if it is not there.
    pub(super) fn fetched() -> Result<Self> {
        let own = tools::program(PROGRAM).map(|program| Self {
            program,
            unpacked: None,
        });
        if let Some(own) = own.filter(Self::can_be_relied_on) {
            return Ok(own);
        }
        let folder = folder()?.join(FOLDER);
        let fetched = Self {
            program: folder.join("usr/bin").join(PROGRAM),
            unpacked: Some(folder.clone()),
        };
        if !fetched.can_be_relied_on() {
            println!("fetching:        {PACKAGE}");
            filled(&folder, fetch).with_context(|| format!("get {PROGRAM}"))?;
            let version = fetched.version()?;
            if version < OLDEST {
                bail!(
                    "get {PROGRAM}: {OLDEST} or later is needed, this Debian has {version}; \
                     install one by hand"
                );
            }
        }
        Ok(fetched)
    }

    /// Whether it is there, works, and is new enough.
    fn can_be_relied_on(&self) -> bool {
        self.version().is_ok_and(|version| version >= OLDEST)
    }

    /// Its version, by its own words.
    fn version(&self) -> Result<Version> {
        let mut ask = Command::new(&self.program);
        ask.arg("--version");
        if let Some(folder) = &self.unpacked {
            ask.env("LD_LIBRARY_PATH", libraries(folder));
        }
        let output = ask
            .output()
            .with_context(|| format!("run {}", described(&ask)))?;
        let said = String::from_utf8_lossy(&output.stdout);
        Version::find(&said).with_context(|| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            format!(
                "run {}: {}\n{}",
                described(&ask),
                output.status,
                complaint.trim_end()
            )
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
/// `folder`.
fn fetch(folder: &Path) -> Result<()> {
    let release = fs::read_to_string(OS_RELEASE).with_context(|| format!("read {OS_RELEASE}"))?;
    let codename = codename(&release)
        .with_context(|| format!("install it by hand: {OS_RELEASE} names no release of Debian"))?;
    let backports = format!("{codename}-backports");
    let suites = Suites {
        main: &format!("{codename} {backports}"),
        security: &format!("{codename}-security"),
    };
    let apt = Apt::updated("qemu", suites)?;
    let packages = needed(&apt, &backports)?;
    let mut download = apt.command("apt-get");
    download.args(["-t", &backports, "download"]).args(packages);
    apt.unpack(&mut download, folder)
}

/// The code name of a release of Debian, from the text of os-release.
fn codename(release: &str) -> Option<&str> {
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let name = name.trim_matches('"');
    (!name.is_empty()).then_some(name)
}

/// The package and what this machine lacks for it.
fn needed(apt: &Apt, suite: &str) -> Result<Vec<String>> {
    let mut ask = apt.command("apt-get");
    ask.args(["--simulate", "--no-install-recommends", "-t", suite]);
    let output = ask
        .args(["install", PACKAGE])
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

    #[test]
    fn a_release_of_debian_has_a_code_name() {
        let text = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(text), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n"), Some("noble"));
        assert_eq!(codename("ID=other\nVERSION_CODENAME=\n"), None);
        assert_eq!(codename(""), None);
    }
}
