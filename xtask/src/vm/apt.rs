//! Packages of Debian's, fetched with apt and unpacked, never installed: by sources and
//! lists of their own, which leave those of the machine as they are.

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

/// Whether this machine gets packages from Debian's archive.
pub(super) fn has_archive() -> bool {
    let none = Suites {
        main: "",
        security: "",
    };
    xtask::tools::program("apt-get").is_some() && sources(none).is_ok()
}

/// Sources of packages, for apt: the archives that this machine has, with other
/// suites.
fn sources(suites: Suites<'_>) -> Result<String> {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", "$(LABEL)|$(REPO_URI)"]);
    ask.arg("Created-By: Packages");
    let told = ask
        .output()
        .with_context(|| format!("run {}", described(&ask)))?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let sources = sources_of(&told, suites);
    if sources.is_empty() {
        bail!(
            "find Debian's archive: this machine's sources of packages do not name it; run `apt-get \
             update` if that was never done"
        );
    }
    Ok(sources)
}

/// The same, from what apt tells of its sources.
fn sources_of(told: &str, suites: Suites<'_>) -> String {
    [
        ("Debian", suites.main),
        ("Debian-Security", suites.security),
    ]
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
        fs::write(&sources, self::sources(suites)?)
            .with_context(|| format!("write {}", sources.display()))?;
        run_quietly(apt.command("apt-get").arg("update"))
            .context("ask Debian's archive for what it has")?;
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

    #[test]
    fn packages_come_from_the_archives_that_the_machine_has() {
        let told = "Other|http://other.example/\nDebian-Security|http://mirror.example/security/\n\
                    Debian|http://mirror.example/debian/\nDebian|http://second.example/debian/\n";
        let suites = Suites {
            main: "one two",
            security: "one-security",
        };
        let sources = sources_of(told, suites);
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
        assert_eq!(sources_of("", suites), "");
    }
}
