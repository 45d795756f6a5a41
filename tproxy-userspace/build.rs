//! Builds the kernel half and puts the object where `control::bpf` includes it from.

#[path = "../xtask/src/bpf_toolchain.rs"]
#[allow(dead_code, reason = "xtask uses the rest")]
mod bpf_toolchain;

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest
        .parent()
        .expect("the package lies in the workspace");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for watched in [
        "tproxy-ebpf/src",
        "tproxy-ebpf/Cargo.toml",
        "tproxy-common/src",
        "xtask/src/bpf_toolchain.rs",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!(
        "cargo::rerun-if-changed={}",
        bpf_toolchain::stamp_file(root).display()
    );
    if let Err(message) = build(root, &out) {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

/// Only a failure is worth words: the output of a build that worked would come out as warnings.
fn build(root: &Path, out: &Path) -> Result<(), String> {
    let (compiler, linker) = bpf_toolchain::find(root)?;
    // A folder of its own: the outer cargo holds the lock of the usual one.
    let target = out.join("bpf");
    let output = compiler
        .cargo("build", &root.join("tproxy-ebpf"), &linker)
        .args(["--quiet", "--target-dir"])
        .arg(&target)
        .output()
        .map_err(|error| format!("starting cargo for the kernel half failed: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "building the kernel half failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let object = target
        .join(bpf_toolchain::TARGET)
        .join("release/tproxy-ebpf");
    fs::copy(&object, out.join("tproxy-ebpf.o"))
        .map_err(|error| format!("copying {} failed: {error}", object.display()))?;
    Ok(())
}
