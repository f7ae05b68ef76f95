//! Compiles the eBPF programs, which the library carries inside itself.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let manifest_dir = directory("CARGO_MANIFEST_DIR")?;
    let workspace_root = manifest_dir
        .parent()
        .context("find the workspace: no folder above")?;
    let object = xtask::ebpf::build(workspace_root, &directory("OUT_DIR")?)?;
    for path in xtask::ebpf::watched(workspace_root)
        .iter()
        .map(PathBuf::as_path)
    {
        rerun_if_changed(path);
    }
    println!("cargo:rustc-env=THROTTLE_EBPF_OBJECT={}", object.display());
    Ok(())
}

fn rerun_if_changed(path: &Path) {
    println!("cargo:rerun-if-changed={}", path.display());
}

fn directory(variable: &str) -> Result<PathBuf> {
    let value = env::var_os(variable);
    Ok(value
        .with_context(|| format!("read {variable}: cargo did not set it"))?
        .into())
}
