//! Compiles the program in C that tests put inside themselves.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCE: &str = "clients/connector.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let folder = env::var_os("OUT_DIR")
        .map(PathBuf::from)
        .unwrap_or_default();
    let program = folder.join("connector");
    let compiled = Command::new("cc")
        .args(["-static", "-O1", "-pthread", "-s", "-o"])
        .args([&program, Path::new(SOURCE)])
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        println!("cargo::warning={SOURCE}: not compiled; tests that need it will fail");
        // Where that fails, so will the build.
        let _ = fs::write(&program, "");
    }
}
