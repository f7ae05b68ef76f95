//! The emulator: the machine's own, or Debian's, fetched and unpacked, never installed.
//! An installation may have to take other packages away: those of QEMU have to be of
//! one version.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use xtask::tools::{self, Version};

use super::{
    apt::{self, Apt, Suites, filled},
    ended_with_us, folder,
};
use crate::workspace::described;

/// What is run.
const PROGRAM: &str = "qemu-system-x86_64";
/// The package that holds it.
const PACKAGE: &str = "qemu-system-x86";
/// The folder, among those of virtual machines, that it is unpacked into.
const FOLDER: &str = "emulator";
/// Where libraries are, in packages.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
/// Where firmware is, in packages.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];
/// The first that can emulate each CPU in a thread of its own. Those before it let a CPU
/// run into what stands in code for a moment only, while another CPU changes it: kernels
/// die of `Oops: int3` (mended by "accel/tcg: Always lock pages before translation").
const OLDEST: Version = Version::new(8, 1, 0);

/// The emulator as files.
#[derive(Clone)]
pub(super) struct Qemu {
    program: PathBuf,
    /// What it was unpacked into, if it was.
    unpacked: Option<PathBuf>,
    version: Version,
}

impl Qemu {
    /// The machine's own if it is new enough, else the unpacked one, fetched if it is
    /// not there. If none can be had that is new enough, one that is not.
    pub(super) fn fetched() -> Result<Self> {
        let qemu = Self::found()?;
        if qemu.version < OLDEST {
            println!(
                "QEMU {} emulates both CPUs in one thread, which is slow: install {PROGRAM} \
                 {OLDEST} or later for one thread each",
                qemu.version
            );
        }
        Ok(qemu)
    }

    fn found() -> Result<Self> {
        let own = tools::program(PROGRAM).and_then(|program| Self::at(program, None).ok());
        if let Some(own) = own.as_ref().filter(|own| own.version >= OLDEST) {
            return Ok(own.clone());
        }
        let folder = folder()?.join(FOLDER);
        let unpacked = || Self::at(folder.join("usr/bin").join(PROGRAM), Some(folder.clone()));
        if let Ok(unpacked) = unpacked() {
            return Ok(unpacked);
        }
        println!("fetching:        {PACKAGE}");
        let fetched = filled(&folder, fetch).and_then(|()| unpacked());
        match (fetched, own) {
            (Ok(fetched), _) => Ok(fetched),
            (Err(error), Some(own)) => {
                println!("no other QEMU than this machine's own: {error:#}");
                Ok(own)
            }
            (Err(error), None) => Err(error).with_context(|| format!("get {PROGRAM}")),
        }
    }

    /// The one that is there, if it works.
    fn at(program: PathBuf, unpacked: Option<PathBuf>) -> Result<Self> {
        let mut ask = Command::new(&program);
        ask.arg("--version");
        if let Some(folder) = &unpacked {
            ask.env("LD_LIBRARY_PATH", libraries(folder));
        }
        let output = ask
            .output()
            .with_context(|| format!("run {}", described(&ask)))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = Version::find(&said).with_context(|| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            format!(
                "run {}: {}\n{}",
                described(&ask),
                output.status,
                complaint.trim_end()
            )
        })?;
        Ok(Self {
            program,
            unpacked,
            version,
        })
    }

    /// How it emulates the processor, for `-accel`: in a thread for each CPU, or, if it
    /// is old, in one for all, in which a CPU that waits for another one takes long.
    pub(super) fn accelerator(&self) -> &'static str {
        if self.version >= OLDEST {
            "tcg,thread=multi"
        } else {
            "tcg,thread=single"
        }
    }

    /// A command that runs it, and ends it with us, however we end.
    pub(super) fn command(&self) -> Command {
        let mut command = ended_with_us(&self.program);
        if let Some(folder) = &self.unpacked {
            command.env("LD_LIBRARY_PATH", libraries(folder));
            // What is installed already was not fetched.
            for place in [folder, Path::new("/")] {
                for firmware in FIRMWARE {
                    command.arg("-L").arg(place.join(firmware));
                }
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
/// `folder`: that of this Debian, or of its backports if that one is too old.
fn fetch(folder: &Path) -> Result<()> {
    let codename = apt::codename()?;
    let security = format!("{codename}-security");
    let of = |suites: &str| -> Result<Wanted> {
        let suites = Suites {
            main: suites,
            security: &security,
        };
        let name = format!("qemu-{}", suites.last());
        Wanted::of(Apt::updated(&name, suites)?, suites.last())
    };
    let mut wanted = of(&codename)?;
    if wanted.version < OLDEST {
        // Not each mirror has them, nor for ever.
        match of(&format!("{codename} {codename}-backports")) {
            Ok(newer) => wanted = newer,
            Err(error) => println!("no QEMU of {codename}-backports: {error:#}"),
        }
    }
    let mut download = wanted.apt.command("apt-get");
    download.args(["-t", &wanted.suite, "download"]);
    wanted.apt.unpack(download.args(&wanted.packages), folder)
}

/// The package and what this machine lacks for it, where apt has them.
struct Wanted {
    apt: Apt,
    suite: String,
    packages: Vec<String>,
    version: Version,
}

impl Wanted {
    fn of(apt: Apt, suite: &str) -> Result<Self> {
        let mut ask = apt.command("apt-get");
        ask.args(["--simulate", "--reinstall", "--no-install-recommends"]);
        let output = ask
            .args(["-t", suite, "install", PACKAGE])
            .env("LC_ALL", "C")
            .output()
            .with_context(|| format!("run {}", described(&ask)))?;
        let told = String::from_utf8_lossy(&output.stdout);
        let version = version_in(&told).filter(|_| output.status.success());
        let Some(version) = version else {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!(
                "install {PROGRAM} by hand: apt-get cannot get {PACKAGE} of {suite}\n{}\n{}",
                told.trim_end(),
                complaint.trim_end()
            );
        };
        Ok(Self {
            apt,
            suite: suite.to_owned(),
            packages: installed_by(&told),
            version,
        })
    }
}

/// What apt-get says that it would install.
fn installed_by(simulated: &str) -> Vec<String> {
    let lines = simulated.lines();
    let names = lines.filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    names.map(str::to_owned).collect()
}

/// In which version it would install the package.
fn version_in(simulated: &str) -> Option<Version> {
    let line = simulated
        .lines()
        .find_map(|line| line.strip_prefix("Inst ")?.strip_prefix(PACKAGE))?;
    // Behind the version that is installed; the epoch stands before the version.
    let version = line.split_once('(')?.1.split(' ').next()?;
    Version::find(version.rsplit(':').next()?)
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
    fn the_version_to_be_installed_is_read_from_what_apt_says() {
        for (said, expected) in [
            (
                "Inst qemu-system-data (1:7.2 Debian:12)\nInst qemu-system-x86 (1:7.2+dfsg-7 \
                 Debian:12/oldstable [amd64])\n",
                Some(Version::new(7, 2, 0)),
            ),
            (
                "Inst qemu-system-x86 [1:7.2+dfsg-7] (1:10.0.2+ds-2~bpo12+1 Debian [amd64])\n",
                Some(Version::new(10, 0, 2)),
            ),
            ("Inst other (1:10.0 Debian)\n", None),
            ("", None),
        ] {
            assert_eq!(version_in(said), expected, "{said}");
        }
    }
}
