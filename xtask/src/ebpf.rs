//! Compiles the eBPF programs.
//!
//! `core` for a BPF target comes with no toolchain: it is compiled from the
//! source of the very rustc that compiles the programs. So the first question
//! is which rustc has its source beside it ([`toolchain`]); that need not be
//! the rustc that compiles user space.

use std::{
    cmp::Reverse,
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::tools::{self, Version};

/// The package and the binary of the programs.
pub const PACKAGE: &str = "throttle-ebpf";

/// The oldest bpf-linker that is known to link the programs.
pub const BPF_LINKER: Version = Version::new(0, 10, 4);

/// The LLVM that bpf-linker 0.10 is made for: it cannot read the bitcode of a
/// rustc with a newer one.
pub const LLVM_MAJOR: u32 = 22;

/// The instruction set: below v3, an atomic that returns the old value cannot
/// be compiled. Linux 5.12 has all of it.
const TARGET_CPU: &str = "v3";

/// The rustc of Debian's packages rustc-web and rust-web-src.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A rustc that has its own source beside it, and the cargo that drives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Where it comes from.
    pub origin: Origin,
    /// Its version.
    pub release: Version,
    /// Whether unstable features are there without asking.
    pub nightly: bool,
    /// The version of its LLVM.
    pub llvm: Version,
    /// The compiler.
    pub rustc: PathBuf,
    /// The cargo to run it with.
    pub cargo: PathBuf,
}

/// Where a [`Toolchain`] comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A toolchain of rustup, by its name.
    Rustup(String),
    /// The system's own rustc.
    System,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            origin,
            release,
            llvm,
            rustc,
            ..
        } = self;
        match origin {
            Origin::Rustup(name) => write!(f, "rustc {release} (LLVM {llvm}) of rustup's {name}"),
            Origin::System => write!(f, "rustc {release} (LLVM {llvm}) at {}", rustc.display()),
        }
    }
}

/// The toolchain that compiles the programs: rustup's before the system's,
/// nightly before stable, and of these the newest.
///
/// # Errors
///
/// When no rustc that is new enough, and whose LLVM is not too new, has its
/// source beside it. The error says how to get one.
pub fn toolchain() -> Result<Toolchain> {
    let mut rejected = Vec::new();
    let mut found = Vec::new();
    for (origin, rustc, cargo) in candidates() {
        match inspect(origin, rustc.clone(), cargo) {
            Ok(toolchain) => found.push(toolchain),
            Err(why) => rejected.push(format!("{}: {why:#}", rustc.display())),
        }
    }
    let (usable, unusable): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|toolchain| refusal(toolchain).is_none());
    rejected.extend(
        unusable
            .iter()
            .filter_map(|toolchain| Some(format!("{toolchain}: {}", refusal(toolchain)?))),
    );
    if let Some(best) = best(usable) {
        return Ok(best);
    }
    let rejected = if rejected.is_empty() {
        String::new()
    } else {
        format!("\nlooked at and left out:\n  {}", rejected.join("\n  "))
    };
    bail!(
        "find a rustc for the eBPF programs: none has the source of core beside it\n\
         get one with `cargo xtask setup`, or by hand:\n  \
         with rustup:  rustup toolchain install {} --component rust-src\n  \
         on Debian 12: apt-get install rustc-web rust-web-src{rejected}",
        env!("CARGO_PKG_RUST_VERSION"),
    )
}

/// The version of the bpf-linker that would be used, and where it is.
///
/// # Errors
///
/// When there is none, or one that is too old. The error says how to get one.
pub fn bpf_linker() -> Result<(Version, PathBuf)> {
    let how = format!("install it with `cargo install bpf-linker --version {BPF_LINKER} --locked`");
    let Some(path) = tools::program("bpf-linker") else {
        bail!("find bpf-linker: it is not in PATH\n{how}");
    };
    let mut command = Command::new(&path);
    command.arg("--version");
    if let Some(libraries) = library_path(None)? {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let printed = printed(&mut command)
        .with_context(|| format!("use {}: it does not run\n{how}", path.display()))?;
    match Version::find(&printed) {
        Some(version) if version >= BPF_LINKER => Ok((version, path)),
        Some(version) => {
            bail!(
                "use {}: its version {version} is below {BPF_LINKER}\n{how}",
                path.display()
            )
        }
        None => bail!(
            "use {}: it does not tell its version\n{how}",
            path.display()
        ),
    }
}

/// The directory with the LLVM of a rustup toolchain that bpf-linker loads, as
/// cargo installs it.
pub fn linker_llvm() -> Option<PathBuf> {
    let libraries = rustup_toolchains()
        .into_iter()
        .map(|sysroot| sysroot.join("lib"));
    libraries.into_iter().find(|directory| has_llvm(directory))
}

/// Compiles the programs and returns the path of the object, in `out_dir`.
///
/// # Errors
///
/// When a tool is missing or the compiler fails.
pub fn build(workspace_root: &Path, out_dir: &Path) -> Result<PathBuf> {
    let toolchain = toolchain()?;
    let target_dir = target_dir(out_dir);
    let mut command = cargo(&toolchain, workspace_root, &target_dir)?;
    command
        .args(["build", "--release", "--bin", PACKAGE])
        .args(arguments());
    // What a build script prints to its standard output is an order to cargo.
    command.stdout(Stdio::null());
    let status = command
        .status()
        .with_context(|| format!("run {}", toolchain.cargo.display()))?;
    if !status.success() {
        bail!("compile {PACKAGE} with {toolchain}: cargo failed with {status}, see above");
    }
    // Several profiles share the target directory; each keeps its own object.
    let built = target_dir.join(target()).join("release").join(PACKAGE);
    let object = out_dir.join(PACKAGE);
    fs::copy(&built, &object)
        .with_context(|| format!("copy {} to {}", built.display(), object.display()))?;
    Ok(object)
}

/// The cargo of `toolchain`, ready for a subcommand and [`arguments`].
///
/// # Errors
///
/// When bpf-linker is missing.
pub fn cargo(toolchain: &Toolchain, workspace_root: &Path, target_dir: &Path) -> Result<Command> {
    let (_, linker) = bpf_linker()?;
    let mut command = Command::new(&toolchain.cargo);
    command.current_dir(workspace_root);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| !inherited(name)) {
            command.env_remove(name);
        }
    }
    if let Some(libraries) = library_path(Some(toolchain))? {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let mut linker_flag = OsString::from("-Clinker=");
    linker_flag.push(linker);
    let flags = [
        OsString::from(format!("-Ctarget-cpu={TARGET_CPU}")),
        OsString::from("-Cdebuginfo=2"),
        OsString::from("-Clink-arg=--btf"),
        linker_flag,
    ];
    command
        .env("RUSTC", &toolchain.rustc)
        // `-Z build-std` is unstable, as are the programs' own features.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f".as_ref()))
        .env("CARGO_TARGET_DIR", target_dir)
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    // aya's bindings of kernel types differ between architectures.
    if let Some(arch) = env::var_os("CARGO_CFG_TARGET_ARCH") {
        command.env("AYA_BPF_TARGET_ARCH", arch);
    }
    Ok(command)
}

/// The arguments that select the package, the target and `core`.
pub fn arguments() -> [&'static str; 6] {
    [
        "--package",
        PACKAGE,
        "--target",
        target(),
        "-Z",
        "build-std=core",
    ]
}

/// What the object is made from. A build script asks cargo to be run again
/// when any of it changes.
pub fn watched(workspace_root: &Path) -> Vec<PathBuf> {
    [PACKAGE, "throttle-common", "Cargo.lock"]
        .map(|name| workspace_root.join(name))
        .to_vec()
}

/// The BPF target with the byte order of the machine that is compiled for.
fn target() -> &'static str {
    let big = match env::var("CARGO_CFG_TARGET_ENDIAN") {
        Ok(order) => order == "big",
        Err(_) => cfg!(target_endian = "big"),
    };
    if big {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

/// A target directory that all profiles share, since `core` takes long: beside
/// those of the profiles, or in `out_dir` if that is in none.
fn target_dir(out_dir: &Path) -> PathBuf {
    // cargo marks the directory that holds all its output with this file.
    let output = out_dir
        .ancestors()
        .skip(1)
        .find(|parent| parent.join("CACHEDIR.TAG").is_file());
    output.unwrap_or(out_dir).join("ebpf")
}

/// Every rustc that has its source beside it, with the cargo to run it with.
fn candidates() -> Vec<(Origin, PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for toolchain in rustup_toolchains() {
        let rustc = toolchain.join("bin/rustc");
        let Some(name) = toolchain.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if has_source(&toolchain) && rustc.is_file() {
            let own = toolchain.join("bin/cargo");
            let cargo = if own.is_file() { own } else { any_cargo() };
            found.push((Origin::Rustup(name.to_owned()), rustc, cargo));
        }
    }
    if has_source(Path::new("/usr")) && Path::new(DEBIAN_RUSTC).is_file() {
        found.push((Origin::System, PathBuf::from(DEBIAN_RUSTC), any_cargo()));
    }
    found
}

/// The sysroots of rustup's toolchains.
fn rustup_toolchains() -> Vec<PathBuf> {
    tools::home("RUSTUP_HOME", ".rustup")
        .map_or_else(Vec::new, |home| entries(&home.join("toolchains")))
}

/// The cargo that runs us, else the one in `PATH`.
fn any_cargo() -> PathBuf {
    env::var_os("CARGO")
        .unwrap_or_else(|| OsString::from("cargo"))
        .into()
}

fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .is_file()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    // A directory that is not there or cannot be read holds no toolchain.
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn inspect(origin: Origin, rustc: PathBuf, cargo: PathBuf) -> Result<Toolchain> {
    let described = printed(Command::new(&rustc).arg("-vV"))?;
    let (release, nightly, llvm) =
        describe(&described).context("its `rustc -vV` names no release or LLVM version")?;
    Ok(Toolchain {
        origin,
        release,
        nightly,
        llvm,
        rustc,
        cargo,
    })
}

/// Release, whether it is a nightly one, and LLVM version from `rustc -vV`.
fn describe(printed: &str) -> Option<(Version, bool, Version)> {
    let value = |key: &str| {
        printed
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
    };
    let release = value("release")?;
    let nightly = release.ends_with("-nightly") || release.ends_with("-dev");
    Some((
        Version::find(release)?,
        nightly,
        Version::find(value("LLVM version")?)?,
    ))
}

/// Why `toolchain` cannot compile the programs, if it cannot.
fn refusal(toolchain: &Toolchain) -> Option<String> {
    let oldest = Version::find(env!("CARGO_PKG_RUST_VERSION"))?;
    if toolchain.release < oldest {
        return Some(format!("older than {oldest}"));
    }
    (toolchain.llvm.major > LLVM_MAJOR)
        .then(|| format!("bpf-linker reads the bitcode of LLVM {LLVM_MAJOR} and older only"))
}

fn best(usable: Vec<Toolchain>) -> Option<Toolchain> {
    usable.into_iter().min_by_key(|toolchain| {
        let system = toolchain.origin == Origin::System;
        (system, !toolchain.nightly, Reverse(toolchain.release))
    })
}

/// Whether cargo may see the environment variable `name` of ours. A build
/// script's environment is full of what cargo decided for the crate that is
/// being built, for another target and under another linter.
fn inherited(name: &str) -> bool {
    const OURS: [&str; 3] = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_BUILD_JOBS"];
    const SETTINGS: [&str; 4] = ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_TERM_"];
    const DECIDED: [&str; 9] = [
        "CARGO",
        "CLIPPY_",
        "DEP_",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "OUT_DIR",
        "AYA_",
    ];
    const NAMES: [&str; 6] = [
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "PROFILE",
        "TARGET",
    ];
    OURS.contains(&name)
        || SETTINGS.iter().any(|prefix| name.starts_with(prefix))
        || !(NAMES.contains(&name) || DECIDED.iter().any(|prefix| name.starts_with(prefix)))
}

/// The library path that lets bpf-linker find the LLVM it was made for, or
/// nothing if that is nowhere: it may have been built with one inside.
fn library_path(toolchain: Option<&Toolchain>) -> Result<Option<OsString>> {
    let own = toolchain.and_then(|toolchain| toolchain.rustc.parent()?.parent());
    let own = own
        .map(|sysroot| sysroot.join("lib"))
        .filter(|directory| has_llvm(directory));
    let Some(llvm) = own.or_else(linker_llvm) else {
        return Ok(None);
    };
    let mut directories = vec![llvm];
    if let Some(inherited) = env::var_os("LD_LIBRARY_PATH") {
        // bpf-linker complains of each directory that is not there.
        directories.extend(env::split_paths(&inherited).filter(|directory| directory.is_dir()));
    }
    let joined = env::join_paths(directories).context("join the library path of bpf-linker")?;
    Ok(Some(joined))
}

/// Whether `directory` has the LLVM that a rustc of rustup brings, in the
/// version that bpf-linker is made for.
fn has_llvm(directory: &Path) -> bool {
    let (new, old) = (
        format!("libLLVM.so.{LLVM_MAJOR}."),
        format!("libLLVM-{LLVM_MAJOR}-"),
    );
    entries(directory)
        .iter()
        .filter_map(|path| path.file_name()?.to_str())
        .any(|name| (name.starts_with(&new) || name.starts_with(&old)) && name.contains("-rust-"))
}

/// What `command` prints.
fn printed(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "run {}: {}\n{}",
            program.display(),
            output.status,
            errors.trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIGHTLY: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\n\
        binary: rustc\n\
        commit-hash: e50aa6fba4e63ab34c72bf9acfd2c307c1155d1a\n\
        host: x86_64-unknown-linux-gnu\n\
        release: 1.97.0-nightly\n\
        LLVM version: 22.1.4\n";

    fn toolchain(origin: Origin, release: &str, llvm: u32) -> Toolchain {
        Toolchain {
            origin,
            release: Version::find(release).unwrap(),
            nightly: release.ends_with("-nightly"),
            llvm: Version::new(llvm, 1, 0),
            rustc: PathBuf::from("rustc"),
            cargo: PathBuf::from("cargo"),
        }
    }

    fn rustup(release: &str, llvm: u32) -> Toolchain {
        toolchain(Origin::Rustup(release.to_owned()), release, llvm)
    }

    #[test]
    fn a_rustc_is_known_by_what_it_prints() {
        let expected = (Version::new(1, 97, 0), true, Version::new(22, 1, 4));
        assert_eq!(describe(NIGHTLY), Some(expected));
        assert_eq!(
            describe(&NIGHTLY.replace("-nightly", "")).map(|(_, nightly, _)| nightly),
            Some(false)
        );
        assert_eq!(describe(&NIGHTLY.replace("LLVM version", "backend")), None);
        assert_eq!(describe(""), None);
    }

    #[test]
    fn rustup_goes_before_the_system_and_nightly_before_stable() {
        let system = toolchain(Origin::System, "1.99.0", 22);
        let stable = rustup("1.98.0", 22);
        let old_nightly = rustup("1.96.0-nightly", 22);
        let nightly = rustup("1.97.0-nightly", 22);
        assert_eq!(best(Vec::new()), None);
        assert_eq!(best(vec![system.clone()]).as_ref(), Some(&system));
        assert_eq!(
            best(vec![system.clone(), stable.clone()]).as_ref(),
            Some(&stable)
        );
        let all = vec![system, old_nightly, stable, nightly.clone()];
        assert_eq!(best(all).as_ref(), Some(&nightly));
    }

    #[test]
    fn a_rustc_that_is_too_old_or_whose_llvm_is_too_new_is_refused() {
        assert_eq!(refusal(&rustup("1.95.0", 22)), None);
        assert_eq!(refusal(&rustup("1.96.0", 21)), None);
        assert!(refusal(&rustup("1.94.1", 22)).is_some_and(|why| why.contains("older")));
        assert!(refusal(&rustup("1.99.0-nightly", 23)).is_some_and(|why| why.contains("LLVM 22")));
    }

    #[test]
    fn what_cargo_decided_for_the_host_does_not_reach_the_programs() {
        for name in [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_CFG_TARGET_ARCH",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_INCREMENTAL",
            "CARGO_MANIFEST_DIR",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_DIR",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER",
            "CLIPPY_ARGS",
            "DEBUG",
            "OUT_DIR",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTDOCFLAGS",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "TARGET",
        ] {
            assert!(!inherited(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_MIRROR_INDEX",
            "CARGO_TERM_COLOR",
            "DEBUGINFOD_URLS",
            "HOME",
            "HOSTNAME",
            "PATH",
            "RUSTUP_HOME",
        ] {
            assert!(inherited(name), "{name}");
        }
    }

    #[test]
    fn the_target_directory_is_in_the_output_of_cargo_or_else_in_ours() {
        let top = env::temp_dir().join(format!("xtask-target-dir-{}", std::process::id()));
        let out_dir = top.join("debug/build/throttle-0/out");
        fs::create_dir_all(&out_dir).unwrap();
        assert_eq!(target_dir(&out_dir), out_dir.join("ebpf"));
        fs::write(top.join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(target_dir(&out_dir), top.join("ebpf"));
        fs::remove_dir_all(top).unwrap();
    }
}
