//! `dist`: what is handed to others, a tarball and a Debian package, both of one tree of files.

mod tree;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::elf::Program;
use crate::run;
use crate::setup::{self, Need};
use crate::shell;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is packaged, and where to.
#[derive(Args)]
pub struct Options {
    /// Build for this target; the program is linked statically in any case [default: this machine's].
    #[arg(long, value_name = "TRIPLE", conflicts_with = "binary")]
    target: Option<String>,
    /// Package this program as it is, statically linked or not, instead of building one.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Where the packages go [default: dist in the folder that cargo builds into].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Builds, stages and packs.
///
/// # Errors
/// The build fails, what was built is not static, or a program that packs is missing or fails.
pub fn run(options: &Options) -> Result<ExitCode> {
    let built = match &options.binary {
        Some(path) => path.clone(),
        None => build(options.target.as_deref())?,
    };
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    let program = Program::read(&bytes).with_context(|| built.display().to_string())?;
    let (machine, debian) = program.machine()?;
    if options.binary.is_none() {
        if !program.is_static {
            bail!("{} is not statically linked", built.display());
        }
        println!("{} needs nothing but the kernel", built.display());
    }
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| shell::target().join("dist"));
    let name = format!("tproxy-bpf-{VERSION}-linux-{machine}");
    let staged = out.join(&name);
    tree::stage(
        &built,
        &writer(&built, machine)?,
        &staged,
        program.is_static,
    )?;
    let tarball = out.join(format!("{name}.tar.gz"));
    pack(&staged, &tarball)?;
    report(&tarball)?;
    if shell::find_program("dpkg-deb").is_some() {
        let package = out.join(format!("tproxy-bpf_{VERSION}_{debian}.deb"));
        tree::debianize(&staged, program.is_static, debian)?;
        shell::run(
            Command::new("dpkg-deb")
                // Higher levels take ten times as long for a sixth of the size.
                .args(["--build", "--root-owner-group", "-Zxz", "-z1"])
                .args([&staged, &package])
                .env("SOURCE_DATE_EPOCH", epoch().to_string()),
        )?;
        report(&package)?;
    } else {
        shell::say("There is no dpkg-deb here, so no Debian package is made");
    }
    fs::remove_dir_all(&staged).with_context(|| format!("removing {}", staged.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// A release build that brings its C library along.
fn build(target: Option<&str>) -> Result<PathBuf> {
    setup::ensure(Need::Build)?;
    let host = shell::host()?;
    let target = target.unwrap_or(&host);
    if !is_installed(target)? {
        bail!("the compiler has no standard library for {target}: `rustup target add {target}`");
    }
    let flags = format!(
        "{} -C target-feature=+crt-static",
        env::var("RUSTFLAGS").unwrap_or_default()
    );
    let variable = target.to_uppercase().replace(['-', '.'], "_");
    // With a target, even if it is the host's: what runs in the build, such as procedural macros, is then linked as
    // usual, as it must be.
    let mut cargo = shell::cargo(["build", "--release", "--package", "tproxy-userspace"]);
    cargo
        .args(["--target", target])
        .env(format!("CARGO_TARGET_{variable}_RUSTFLAGS"), flags.trim())
        .env_remove("RUSTFLAGS");
    shell::run(&mut cargo)?;
    Ok(shell::target().join(target).join("release/tproxy-bpf"))
}

fn is_installed(target: &str) -> Result<bool> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("starting rustc failed")?;
    let root = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let library = Path::new(&root)
        .join("lib/rustlib")
        .join(target)
        .join("lib");
    Ok(library.is_dir())
}

/// The program that writes completions, manual pages and the schema: the one that is packaged or, if it is for
/// another machine, one of this machine.
fn writer(built: &Path, machine: &str) -> Result<PathBuf> {
    if machine == env::consts::ARCH {
        return Ok(built.to_owned());
    }
    run::build()?;
    Ok(shell::release("tproxy-bpf"))
}

/// The tree as a tarball with one folder, the same bytes for the same files.
fn pack(tree: &Path, tarball: &Path) -> Result<()> {
    let folder = tree.parent().context("the tree lies in a folder")?;
    let name = tree.file_name().context("the tree has a name")?;
    shell::run(
        Command::new("tar")
            .args(["--create", "--sort=name", "--owner=0", "--group=0"])
            .args(["--numeric-owner", "--use-compress-program=gzip -n"])
            .arg(format!("--mtime=@{}", epoch()))
            .arg("--file")
            .arg(tarball)
            .arg("--directory")
            .arg(folder)
            .arg(name),
    )
}

/// The time that files are dated by, so that the same sources make the same package: `SOURCE_DATE_EPOCH`, or that of
/// the last commit, in seconds.
fn epoch() -> u64 {
    let given = env::var("SOURCE_DATE_EPOCH").ok();
    let committed = || {
        let mut git = Command::new("git");
        git.args(["log", "-1", "--format=%ct"])
            .current_dir(shell::root());
        Some(String::from_utf8_lossy(&git.output().ok()?.stdout).into_owned())
    };
    let text = given.or_else(committed).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

fn report(file: &Path) -> Result<()> {
    let bytes = fs::metadata(file)
        .with_context(|| format!("{} was not made", file.display()))?
        .len();
    println!("{} ({:.1} MB)", file.display(), bytes as f64 / 1e6);
    Ok(())
}
