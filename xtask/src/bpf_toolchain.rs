//! Finds what builds the kernel half: a compiler that has `core` for the BPF target, and a linker
//! that speaks the same LLVM.
//!
//! Shared by `xtask` and by the build script of `tproxy-userspace`, so it needs nothing but `std`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of the kernel half on this machine.
pub const TARGET: &str = if cfg!(target_endian = "big") {
    "bpfeb-unknown-none"
} else {
    "bpfel-unknown-none"
};

/// Which crates may use unstable features when the compiler is not a nightly: inline assembly is
/// unstable for BPF.
const BOOTSTRAP: &str = "aya_ebpf,tproxy_ebpf";

/// The `bpf-linker` that the project is built with.
pub const LINKER_VERSION: &str = "0.13.0";

/// A compiler for the kernel half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// A rustup nightly with the component `rust-src`: `core` is built along.
    Nightly,
    /// A compiler outside rustup with a prebuilt `core`; the folder of its programs.
    Prebuilt(PathBuf),
}

impl Compiler {
    /// All that are there, the preferred one first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        let nightly_source = output("rustup", &["run", "nightly", "rustc", "--print", "sysroot"])
            .map(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core"));
        if nightly_source.is_some_and(|source| source.is_dir()) {
            all.push(Self::Nightly);
        }
        let bin = PathBuf::from("/usr/bin");
        let core = Path::new("/usr/lib/rustlib").join(TARGET).join("lib");
        if core.is_dir() && bin.join("rustc").exists() && bin.join("cargo").exists() {
            all.push(Self::Prebuilt(bin));
        }
        all
    }

    fn rustc(&self) -> OsString {
        match self {
            Self::Nightly => "rustc".into(),
            Self::Prebuilt(bin) => bin.join("rustc").into(),
        }
    }

    /// The major version of its LLVM.
    pub fn llvm(&self) -> Option<u32> {
        let version = match self {
            Self::Nightly => output("rustup", &["run", "nightly", "rustc", "-vV"])?,
            Self::Prebuilt(_) => output(self.rustc().to_str()?, &["-vV"])?,
        };
        let line = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))?;
        line.split('.').next()?.parse().ok()
    }

    /// A cargo command for the crate in `folder`, ready for `build` and its like.
    pub fn cargo(&self, verb: &str, folder: &Path, linker: &Path) -> Command {
        let mut command = match self {
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", verb, "-Z", "build-std=core"]);
                command
            }
            Self::Prebuilt(bin) => {
                let mut command = Command::new(bin.join("cargo"));
                command.arg(verb);
                // `cargo clippy` looks for its driver beside itself, and cargo for rustc in PATH.
                let path = std::env::var_os("PATH").unwrap_or_default();
                let folders = std::iter::once(bin.clone()).chain(std::env::split_paths(&path));
                if let Ok(path) = std::env::join_paths(folders) {
                    command.env("PATH", path);
                }
                command.env("RUSTC_BOOTSTRAP", BOOTSTRAP);
                command
            }
        };
        // What an outer cargo tells its children about its own toolchain is not for this one.
        for name in [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            command.env_remove(name);
        }
        // Nor are the profiles of programs for this machine.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"CARGO_PROFILE_") {
                command.env_remove(name);
            }
        }
        let mut flags = OsString::from("-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clinker=");
        flags.push(linker);
        flags.push(format!(
            "\x1f--cfg=bpf_target_arch=\"{}\"",
            std::env::consts::ARCH
        ));
        command
            .current_dir(folder)
            .args(["--release", "--target", TARGET])
            .env("CARGO_ENCODED_RUSTFLAGS", flags);
        command
    }
}

/// Where `cargo xtask setup` puts programs of the project's own.
pub fn tools(root: &Path) -> PathBuf {
    root.join(".tools")
}

/// The file beside `bpf-linker` that says what it is and which LLVM it speaks.
pub fn stamp_file(root: &Path) -> PathBuf {
    tools(root).join("bpf-linker.stamp")
}

/// What that file holds for this LLVM.
pub fn stamp(llvm: u32) -> String {
    format!("bpf-linker {LINKER_VERSION} for LLVM {llvm}")
}

/// What it holds now.
pub fn read_stamp(root: &Path) -> Option<String> {
    std::fs::read_to_string(stamp_file(root)).ok()
}

/// `bpf-linker`, from the project's folder or from `PATH`.
pub fn find_linker(root: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(tools(root).join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
}

/// Compiler and linker, or one message that says what is missing and what brings it.
///
/// # Errors
/// The message.
pub fn find(root: &Path) -> Result<(Compiler, PathBuf), String> {
    let compilers = Compiler::all();
    let linker = find_linker(root);
    if let (Some(first), Some(linker)) = (compilers.first(), &linker) {
        let stamp = read_stamp(root).filter(|_| linker.starts_with(tools(root)));
        let Some(stamp) = stamp else {
            return Ok((first.clone(), linker.clone()));
        };
        // The linker's own word for bitcode of another LLVM would be "Invalid record".
        let fitting = compilers
            .iter()
            .find(|compiler| compiler.llvm().map(self::stamp).as_ref() == Some(&stamp));
        return match fitting {
            Some(compiler) => Ok((compiler.clone(), linker.clone())),
            None => Err(format!(
                "the kernel half cannot be built: {} is {stamp}, and no compiler here has that LLVM. \
                 Run `cargo xtask setup`: it builds the linker that fits.",
                linker.display()
            )),
        };
    }
    let mut message = String::from("the kernel half cannot be built on this machine: ");
    if compilers.is_empty() {
        let _ = write!(
            message,
            "no Rust compiler has `core` for {TARGET} (a rustup nightly with rust-src, or Debian's rustc-web). "
        );
    }
    if linker.is_none() {
        message.push_str("bpf-linker is missing. ");
    }
    message.push_str("Run `cargo xtask setup`: it installs what is missing.");
    Err(message)
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).ok())
        .flatten()
}
