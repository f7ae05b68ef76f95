//! Installs, or finds, what building and testing need, and says so in a line
//! each. Run again it only looks.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use xtask::{ebpf, tools};

use crate::{
    formats, package,
    workspace::{cargo_program, described, is_root, run as run_command},
};

/// Packages of Debian that hold a rustc and its source.
const CORE_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];

/// What the integration tests and the demo run: a command and its package.
const TEST_COMMANDS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("nmap", "nmap"),
    ("masscan", "masscan"),
    ("python3", "python3"),
    ("curl", "curl"),
    ("tcpdump", "tcpdump"),
    ("ethtool", "ethtool"),
    ("llvm-objdump", "llvm"),
    ("ps", "procps"),
];

/// What the virtual machines need, besides an emulator: a command and its package.
const VM_COMMANDS: [(&str, &str); 5] = [
    ("wg", "wireguard-tools"),
    ("depmod", "kmod"),
    ("strip", "binutils"),
    ("ldd", "libc-bin"),
    ("dpkg", "dpkg"),
];

/// What the setup is for, besides compiling all of it and the tests that need
/// nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The integration tests and the demo.
    Kernel,
    /// The checks of what is written about events.
    Formats,
    /// The Debian package and its tests.
    Package,
    /// Other kernels in virtual machines.
    Vm,
}

impl Purpose {
    /// Whatever there is to do, but for the package and the virtual machines: few
    /// make and run them, and what the one takes is compiled for minutes, what the
    /// others take is large.
    pub(crate) const ALL: [Self; 2] = [Self::Kernel, Self::Formats];
}

/// Installs what `purposes` need and what is not there.
pub(crate) fn run(purposes: &[Purpose]) -> Result<()> {
    let toolchain = ebpf::toolchain();
    let mut packages = Vec::new();
    if purposes.contains(&Purpose::Kernel) {
        packages.extend(missing(&TEST_COMMANDS));
    }
    if purposes.contains(&Purpose::Vm) {
        packages.extend(missing(&VM_COMMANDS));
    }
    if purposes.contains(&Purpose::Formats) {
        packages.extend(formats::missing_packages());
    }
    if purposes.contains(&Purpose::Package) {
        packages.extend(package::missing_packages());
    }
    if let Err(error) = &toolchain {
        // Elsewhere these packages do not exist: the error says what else does.
        if Distribution::of_this_machine() != Distribution::Debian12 {
            bail!("{error:#}");
        }
        packages.extend(CORE_PACKAGES);
    }
    install(&packages)?;

    let toolchain = toolchain.or_else(|_| ebpf::toolchain())?;
    println!("eBPF compiler:   {toolchain}");
    let version = match ebpf::bpf_linker() {
        Ok((version, _)) => version,
        Err(_) => compile_bpf_linker()?,
    };
    println!("eBPF linker:     bpf-linker {version}");
    if ebpf::linker_llvm().is_none() {
        println!(
            "note:            no toolchain of rustup has LLVM {}, which bpf-linker needs unless \
             it was built with one; if linking fails: rustup toolchain install {}",
            ebpf::LLVM_MAJOR,
            env!("CARGO_PKG_RUST_VERSION"),
        );
    }
    if purposes.contains(&Purpose::Kernel) {
        let names = TEST_COMMANDS.map(|(command, _)| command);
        println!("test commands:   {}", names.join(", "));
    }
    if purposes.contains(&Purpose::Vm) {
        let names = VM_COMMANDS.map(|(command, _)| command);
        println!("for machines:    {}", names.join(", "));
    }
    if purposes.contains(&Purpose::Formats) {
        formats::install_checkers()?;
        println!("format checkers: {}", formats::checkers());
    }
    if purposes.contains(&Purpose::Package) {
        println!(
            "package maker:   cargo-deb {}",
            package::install_cargo_deb()?
        );
    }
    Ok(())
}

/// The packages of those commands that are not there.
fn missing(commands: &[(&str, &'static str)]) -> impl Iterator<Item = &'static str> {
    let missing = commands
        .iter()
        .filter(|(command, _)| tools::program(command).is_none());
    missing.map(|&(_, package)| package)
}

/// Installs packages of Debian, if there are any to install.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get update && apt-get install {}", packages.join(" "));
    if Distribution::of_this_machine() == Distribution::Other {
        bail!(
            "install what is missing: this is not a Debian, so its package manager is not known\n\
             install what Debian calls {}, then run this again",
            packages.join(", ")
        );
    }
    if !is_root() {
        bail!(
            "install {}: only root can\nrun as root: {by_hand}",
            packages.join(", ")
        );
    }
    println!("installing:      {}", packages.join(", "));
    // Nothing is removed for it: the rustc of Debian's main package would be.
    let options = ["install", "--yes", "--no-install-recommends", "--no-remove"];
    apt_get(&["update"])
        .and_then(|()| apt_get(&[&options, packages].concat()))
        .with_context(|| format!("install {}\nby hand: {by_hand}", packages.join(", ")))
}

/// Runs apt-get.
fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "Acquire::Retries=3"]).args(args);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    run_quietly(&mut command)
}

/// Runs `command`, which is only heard if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("run {}", described(command)))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        bail!(
            "run {}: {}\n{}",
            described(command),
            output.status,
            said.trim_end()
        );
    }
    Ok(())
}

fn compile_bpf_linker() -> Result<tools::Version> {
    let version = ebpf::BPF_LINKER.to_string();
    println!("installing:      bpf-linker {version}, compiled in some two minutes");
    cargo_install("bpf-linker", &version)?;
    Ok(ebpf::bpf_linker()?.0)
}

/// Compiles a published program into cargo's own directory, in the place of
/// one that is too old or broken.
pub(crate) fn cargo_install(name: &str, version: &str) -> Result<()> {
    let mut command = Command::new(cargo_program());
    command.args([
        "install",
        "--quiet",
        "--locked",
        "--force",
        "--version",
        version,
        name,
    ]);
    run_command(&mut command)
}

/// What is known of this machine's packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distribution {
    /// Debian 12: all packages have the names we know.
    Debian12,
    /// Another Debian, or made from it: the packages that everybody has do.
    LikeDebian,
    /// Any other.
    Other,
}

impl Distribution {
    fn of_this_machine() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        if Path::new("/usr/bin/apt-get").exists() {
            Self::of(&release)
        } else {
            Self::Other
        }
    }

    /// The distribution that an os-release file tells of.
    fn of(os_release: &str) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default().trim_matches('"')
        };
        let is_debian = value("ID=") == "debian";
        if is_debian && value("VERSION_ID=") == "12" {
            Self::Debian12
        } else if is_debian || value("ID_LIKE=").split(' ').any(|like| like == "debian") {
            Self::LikeDebian
        } else {
            Self::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_known_by_its_os_release() {
        let of = Distribution::of;
        assert_eq!(
            of("NAME=\"Debian GNU/Linux\"\nID=debian\nVERSION_ID=\"12\"\n"),
            Distribution::Debian12
        );
        assert_eq!(
            of("ID=debian\nVERSION_ID=\"13\"\n"),
            Distribution::LikeDebian
        );
        assert_eq!(of("ID=debian\n"), Distribution::LikeDebian);
        assert_eq!(of("ID=ubuntu\nID_LIKE=debian\n"), Distribution::LikeDebian);
        assert_eq!(
            of("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"),
            Distribution::LikeDebian
        );
        assert_eq!(of("ID=fedora\nVARIANT_ID=debian\n"), Distribution::Other);
        assert_eq!(of(""), Distribution::Other);
    }

    #[test]
    fn nothing_to_install_is_no_work() {
        install(&[]).unwrap();
    }
}
