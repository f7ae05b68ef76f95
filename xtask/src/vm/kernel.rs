//! The kernels: Debian's, for virtual machines, fetched with apt and unpacked, never
//! installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    apt::{Apt, Suites, filled},
    folder,
};
use crate::{setup::run_quietly, workspace::described};

/// Where these kernels are: each in the Debian of its day.
const SUITES: Suites<'_> = Suites {
    main: "bookworm trixie trixie-backports",
    security: "bookworm-security trixie-security",
};

/// The modules that the tests need, and those that these need.
const MODULES: [&str; 33] = [
    "veth",
    "sch_ingress",
    "cls_bpf",
    "sch_fq",
    "sch_fq_codel",
    "sch_htb",
    "sch_tbf",
    "sch_prio",
    "sch_netem",
    "act_mirred",
    "act_gact",
    "cls_matchall",
    "cls_u32",
    "ifb",
    "tun",
    "dummy",
    "8021q",
    "bridge",
    "bonding",
    "macvlan",
    "ipvlan",
    "vxlan",
    "geneve",
    "ipip",
    "ip_gre",
    "sit",
    "ip6_tunnel",
    "wireguard",
    "netkit",
    "tcp_diag",
    "udp_diag",
    "overlay",
    "nf_tables",
];

/// A kernel that the tests are run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Its series, as one names it.
    pub(super) series: &'static str,
    /// What the names of its packages begin with: the version stands behind it.
    packages: &'static [&'static str],
    /// What the version begins with.
    version: &'static str,
}

impl Kernel {
    /// The oldest that is supported, one of long life, the newest.
    pub(super) const ALL: [Self; 3] = [
        Self {
            series: "6.1",
            packages: &["linux-image-"],
            version: "6.1.0-",
        },
        Self {
            series: "6.12",
            packages: &["linux-image-"],
            version: "6.12.",
        },
        Self {
            series: "7",
            packages: &["linux-binary-", "linux-modules-"],
            version: "7.",
        },
    ];

    /// The one of this series.
    pub(super) fn named(series: &str) -> Result<Self> {
        let series = series.trim_end_matches(".x");
        let found = Self::ALL.into_iter().find(|kernel| kernel.series == series);
        found.with_context(|| {
            let known = Self::ALL.map(|kernel| kernel.series);
            format!("no kernel {series}: there are {}", known.join(", "))
        })
    }

    /// It as files, fetched if it is not there.
    pub(super) fn fetched(self) -> Result<Unpacked> {
        let folder = folder()?.join(self.series);
        if let Ok(unpacked) = Unpacked::find(&folder) {
            return Ok(unpacked);
        }
        println!("fetching:        Linux {}", self.series);
        let apt = Apt::updated("kernels", SUITES)?;
        let first = self.packages.first().context("a kernel has a package")?;
        let version = newest_in(&apt, first, self.version)?;
        filled(&folder, |folder| {
            let packages = self.packages.iter();
            let packages = packages.map(|package| format!("{package}{version}"));
            let mut download = apt.command("apt-get");
            apt.unpack(download.arg("download").args(packages), folder)?;
            let unpacked = Unpacked::find(folder)?;
            let depmod = xtask::tools::program("depmod").context("find depmod")?;
            let mut depmod = Command::new(depmod);
            depmod.arg("-b").arg(&unpacked.base).arg(&unpacked.release);
            run_quietly(&mut depmod)
        })?;
        Unpacked::find(&folder)
    }
}

/// The files of a kernel.
pub(super) struct Unpacked {
    /// What it calls itself.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// The folder that lib/modules is in.
    base: PathBuf,
}

impl Unpacked {
    fn find(folder: &Path) -> Result<Self> {
        let bases = [folder.to_owned(), folder.join("usr")];
        let base = bases
            .into_iter()
            .find(|base| base.join("lib/modules").is_dir())
            .with_context(|| format!("find modules in {}", folder.display()))?;
        let modules = base.join("lib/modules");
        let mut releases = fs::read_dir(&modules)
            .with_context(|| format!("read {}", modules.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let release = releases.next().context("find the version of a kernel")?;
        let images = [
            folder.join("boot").join(format!("vmlinuz-{release}")),
            modules.join(&release).join("vmlinuz"),
        ];
        let image = images.into_iter().find(|image| image.is_file());
        Ok(Self {
            image: image.with_context(|| format!("find the image of Linux {release}"))?,
            release,
            base,
        })
    }

    /// The modules to load, in order. A module that the kernel does not have is
    /// built in, or the tests say what they miss.
    pub(super) fn modules(&self) -> Result<Vec<PathBuf>> {
        let folder = self.base.join("lib/modules").join(&self.release);
        let dep = folder.join("modules.dep");
        let dep = fs::read_to_string(&dep).with_context(|| format!("read {}", dep.display()))?;
        Ok(load_order(&dep, &MODULES)
            .into_iter()
            .map(|path| folder.join(path))
            .collect())
    }
}

/// The order in which `wanted` and what they need can be loaded, by the text of
/// modules.dep: a line for each module, with all that it needs behind it, of which
/// the last is to be loaded first.
fn load_order<'a>(dep: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut order: Vec<&str> = Vec::new();
    for wanted in wanted {
        let line = dep.lines().find_map(|line| {
            let (path, needs) = line.split_once(':')?;
            let file = path.rsplit('/').next()?;
            let name = file.split('.').next()?;
            (name.replace('-', "_") == wanted.replace('-', "_")).then_some((path, needs))
        });
        let Some((path, needs)) = line else { continue };
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}

/// The newest version, behind `package`, that begins with `version`.
fn newest_in(apt: &Apt, package: &str, version: &str) -> Result<String> {
    let mut command = apt.command("apt-cache");
    command.args(["pkgnames", &format!("{package}{version}")]);
    let output = command
        .output()
        .with_context(|| format!("run {}", described(&command)))?;
    let names = String::from_utf8_lossy(&output.stdout);
    let versions = names.lines().filter_map(|name| name.strip_prefix(package));
    newest(versions).with_context(|| {
        format!("find a kernel in Debian's archive: it has no {package}{version}*-cloud-amd64")
    })
}

/// The newest of these versions of kernels for virtual machines.
fn newest<'a>(versions: impl Iterator<Item = &'a str>) -> Option<String> {
    let numbers = |version: &str| -> Vec<u64> {
        version
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    versions
        .filter(|version| version.ends_with("-cloud-amd64"))
        .max_by_key(|version| numbers(version))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_found_by_its_numbers() {
        let versions = [
            "6.1.0-9-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-57-amd64",
            "6.1.0-58-cloud-amd64-dbg",
        ];
        assert_eq!(
            newest(versions.into_iter()).as_deref(),
            Some("6.1.0-56-cloud-amd64")
        );
        assert_eq!(newest([].into_iter()), None);
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let dep = "\
kernel/net/a.ko:
kernel/net/b-c.ko.xz: kernel/net/a.ko
kernel/net/d.ko: kernel/net/b-c.ko.xz kernel/net/a.ko
";
        assert_eq!(
            load_order(dep, &["d", "b_c", "not_there"]),
            ["kernel/net/a.ko", "kernel/net/b-c.ko.xz", "kernel/net/d.ko"]
        );
    }

    #[test]
    fn a_kernel_is_named_by_its_series() {
        assert_eq!(Kernel::named("6.12").unwrap().series, "6.12");
        assert_eq!(Kernel::named("7.x").unwrap().series, "7");
        assert!(Kernel::named("5.4").is_err());
    }
}
