//! Packages of Debian's, fetched with apt and unpacked, never installed: by sources and
//! lists of their own. What is installed, and the machine's own sources and lists, stay
//! as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::folder;
use crate::{setup::run_quietly, workspace::described};

/// What is fetched from, of each of Debian's archives. The machine's own sources say
/// where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suites<'a> {
    /// Of the archive that calls itself `Debian`.
    pub(super) main: &'a str,
    /// Of the one that calls itself `Debian-Security`.
    pub(super) security: &'a str,
}

impl<'a> Suites<'a> {
    /// The last one of the main archive's.
    pub(super) fn last(self) -> &'a str {
        self.main.rsplit(' ').next().unwrap_or_default()
    }
}

/// Whether this machine gets packages from Debian's archive.
pub(super) fn has_archive() -> bool {
    xtask::tools::program("apt-get").is_some() && codename().is_ok()
}

/// The code name of the Debian that this machine gets packages of.
pub(super) fn codename() -> Result<String> {
    codename_of(&told()?).context(NO_ARCHIVE)
}

/// What apt tells of this machine's sources, a line each: the archive's name for itself,
/// the code name of the suite, and where it is.
fn told() -> Result<String> {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format"]);
    ask.args(["$(LABEL)|$(CODENAME)|$(REPO_URI)", "Created-By: Packages"]);
    let told = ask
        .output()
        .with_context(|| format!("run {}", described(&ask)))?;
    Ok(String::from_utf8_lossy(&told.stdout).into_owned())
}

/// Why nothing can be fetched.
const NO_ARCHIVE: &str = "find Debian's archive: this machine's sources of packages do not name it; \
                          run `apt-get update` if that was never done";

/// The sources of this label, from what apt tells: code names and places.
fn labelled<'a>(told: &'a str, label: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    told.lines().filter_map(move |line| {
        let (of, source) = line.split_once('|')?;
        (of == label).then(|| source.split_once('|'))?
    })
}

/// The code name of a release, from what apt tells. Those of what is added to a release
/// have a hyphen.
fn codename_of(told: &str) -> Option<String> {
    let mut names = labelled(told, "Debian").map(|(name, _)| name);
    let name = names.find(|name| !name.is_empty() && !name.contains('-'))?;
    Some(name.to_owned())
}

/// Sources of packages, for apt: the archives that this machine has, by what apt tells
/// of them, with other suites.
fn sources_of(told: &str, suites: Suites<'_>) -> String {
    [
        ("Debian", suites.main),
        ("Debian-Security", suites.security),
    ]
    .iter()
    .filter_map(|(label, suites)| {
        let (_, place) = labelled(told, label).next()?;
        Some(format!(
            "Types: deb\nURIs: {place}\nSuites: {suites}\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        ))
    })
    .collect::<Vec<_>>()
    .join("\n")
}

/// apt with sources and lists of its own.
pub(super) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Knows what these suites have now. `name` keeps its lists apart from others.
    pub(super) fn updated(name: &str, suites: Suites<'_>) -> Result<Self> {
        let apt = Self {
            folder: folder()?.join("apt").join(name),
        };
        for part in ["parts", "lists/partial", "cache/archives/partial"] {
            let part = apt.folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        let sources = apt.folder.join("parts/vm.sources");
        let text = sources_of(&told()?, suites);
        if text.is_empty() {
            bail!(NO_ARCHIVE);
        }
        fs::write(&sources, text).with_context(|| format!("write {}", sources.display()))?;
        let mut update = apt.command("apt-get");
        // Else a list that cannot be had is no error.
        update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        run_quietly(&mut update).context("ask Debian's archive for what it has")?;
        Ok(apt)
    }

    /// A command of apt's, by these sources and lists.
    pub(super) fn command(&self, program: &str) -> Command {
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

    /// Unpacks the packages that `download` (an `apt-get download` of this apt's) is
    /// about into `folder`, which is there.
    pub(super) fn unpack(&self, download: &mut Command, folder: &Path) -> Result<()> {
        let archives = self.folder.join("download");
        let _ = fs::remove_dir_all(&archives);
        fs::create_dir_all(&archives).with_context(|| format!("make {}", archives.display()))?;
        run_quietly(download.current_dir(&archives))?;
        let mut count = 0;
        for archive in fs::read_dir(&archives).context("look for the packages")? {
            let archive = archive.context("look for the packages")?.path();
            let mut unpack = Command::new("dpkg");
            run_quietly(unpack.arg("-x").arg(&archive).arg(folder))?;
            count += 1;
        }
        if count == 0 {
            bail!("{}: apt-get left nothing", described(download));
        }
        fs::remove_dir_all(&archives).with_context(|| format!("remove {}", archives.display()))
    }
}

/// Makes `folder` by what `fill` puts into it: whole or not at all. What was there is
/// gone then.
pub(super) fn filled(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = PathBuf::from(format!("{}.partial", folder.display()));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
    fill(&partial)?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&partial, folder).with_context(|| format!("move {} into place", partial.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "Other|bookworm|http://other.example/\n\
        Debian-Security|bookworm-security|http://mirror.example/security/\n\
        Debian|bookworm-updates|http://mirror.example/debian/\n\
        Debian|bookworm|http://second.example/debian/\n";

    #[test]
    fn packages_come_from_the_archives_that_the_machine_has() {
        let suites = Suites {
            main: "one two",
            security: "one-security",
        };
        let sources = sources_of(TOLD, suites);
        let lines = |name: &str| -> Vec<&str> {
            sources
                .lines()
                .filter_map(|line| line.strip_prefix(name))
                .collect()
        };
        let expected = [
            "http://mirror.example/debian/",
            "http://mirror.example/security/",
        ];
        assert_eq!(lines("URIs: "), expected);
        assert_eq!(lines("Suites: "), ["one two", "one-security"]);
        assert_eq!(suites.last(), "two");
        assert_eq!(sources_of("", suites), "");
    }

    #[test]
    fn a_release_is_named_by_its_archive() {
        assert_eq!(codename_of(TOLD).as_deref(), Some("bookworm"));
        assert_eq!(codename_of("Other|faye|http://other.example/\n"), None);
        assert_eq!(codename_of("Debian||http://other.example/\n"), None);
    }
}
