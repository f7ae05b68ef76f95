//! The kernels: Debian's, for virtual machines, fetched with apt and unpacked, never
//! installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::run_quietly,
    workspace::{described, target_dir},
};

/// Whatever has been fetched and made is below this folder of the target directory.
const FOLDER: &str = "vm";

/// What is fetched from, of each of Debian's archives, by the label it gives
/// itself. The machine's own sources say where they are.
const SUITES: [(&str, &str); 2] = [
    ("Debian", "bookworm trixie trixie-backports"),
    ("Debian-Security", "bookworm-security trixie-security"),
];

/// Sources of packages, for apt: the archives that this machine has, with other
/// suites.
fn sources() -> Result<String> {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", "$(LABEL)|$(REPO_URI)"]);
    ask.arg("Created-By: Packages");
    let told = ask
        .output()
        .with_context(|| format!("run {}", described(&ask)))?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let sources = sources_of(&told);
    if sources.is_empty() {
        bail!(
            "find Debian's archive: this machine's sources of packages do not name it; run `apt-get \
             update` if that was never done"
        );
    }
    Ok(sources)
}

/// Whether this machine gets packages from Debian's archive.
pub(super) fn has_archive() -> bool {
    xtask::tools::program("apt-get").is_some() && sources().is_ok()
}

/// The same, from what apt tells of its sources.
fn sources_of(told: &str) -> String {
    SUITES
        .iter()
        .filter_map(|(label, suites)| {
            let place = told
                .lines()
                .filter_map(|line| line.split_once('|'))
                .find_map(|(of, place)| (of == *label).then_some(place))?;
            Some(format!(
                "Types: deb\nURIs: {place}\nSuites: {suites}\nComponents: main\n\
                 Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
            ))
        })
        .collect::<Vec<_>>()
        .join("\n")
}

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
        let apt = Apt::updated()?;
        let first = self.packages.first().context("a kernel has a package")?;
        let version = apt.newest(first, self.version)?;
        // Whole or not at all.
        let partial = PathBuf::from(format!("{}.partial", folder.display()));
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
        for package in self.packages {
            let package = format!("{package}{version}");
            let archive = apt.download(&package)?;
            let mut unpack = Command::new("dpkg");
            unpack.arg("-x").arg(&archive).arg(&partial);
            run_quietly(&mut unpack)?;
            fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
        }
        let unpacked = Unpacked::find(&partial)?;
        let mut depmod = Command::new(xtask::tools::program("depmod").context("find depmod")?);
        depmod.arg("-b").arg(&unpacked.base).arg(&unpacked.release);
        run_quietly(&mut depmod)?;
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&partial, &folder)
            .with_context(|| format!("move {} into place", partial.display()))?;
        Unpacked::find(&folder)
    }
}

/// Where kernels, images and results are.
pub(super) fn folder() -> Result<PathBuf> {
    Ok(target_dir()?.join(FOLDER))
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

/// apt with sources and lists of its own.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn updated() -> Result<Self> {
        let apt = Self {
            folder: folder()?.join("apt"),
        };
        for part in ["parts", "lists/partial", "cache/archives/partial"] {
            let part = apt.folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        let sources = apt.folder.join("parts/vm.sources");
        fs::write(&sources, self::sources()?)
            .with_context(|| format!("write {}", sources.display()))?;
        run_quietly(apt.command("apt-get").arg("update"))
            .context("ask Debian's archive for kernels")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option =
            |name: &str, part: &str| format!("{name}={}", self.folder.join(part).display());
        command.args(["-q", "-o", "Acquire::Retries=3"]);
        command.args(["-o", "Dir::Etc::sourcelist=/dev/null"]);
        command.args(["-o", &option("Dir::Etc::sourceparts", "parts")]);
        command.args(["-o", &option("Dir::State::Lists", "lists")]);
        command.args(["-o", &option("Dir::Cache", "cache")]);
        command
    }

    /// The newest version, behind `package`, that begins with `version`.
    fn newest(&self, package: &str, version: &str) -> Result<String> {
        let mut command = self.command("apt-cache");
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

    fn download(&self, package: &str) -> Result<PathBuf> {
        let folder = self.folder.join("download");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let mut command = self.command("apt-get");
        command.args(["download", package]).current_dir(&folder);
        run_quietly(&mut command)?;
        let mut found = fs::read_dir(&folder).context("look for the package")?;
        match found.next() {
            Some(entry) => Ok(entry.context("look for the package")?.path()),
            None => bail!("download {package}: apt-get left nothing"),
        }
    }
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
    fn kernels_come_from_the_archives_that_the_machine_has() {
        let told = "Other|http://other.example/\nDebian-Security|http://mirror.example/security/\n\
                    Debian|http://mirror.example/debian/\nDebian|http://second.example/debian/\n";
        let sources = sources_of(told);
        let places: Vec<&str> = sources
            .lines()
            .filter_map(|line| line.strip_prefix("URIs: "))
            .collect();
        let expected = [
            "http://mirror.example/debian/",
            "http://mirror.example/security/",
        ];
        assert_eq!(places, expected);
        assert!(sources.contains("trixie-backports") && !sources.contains("other"));
        assert_eq!(sources_of(""), "");
    }

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
