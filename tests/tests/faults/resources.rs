//! What the program needs runs out, or is taken from it: files, memory for packets, room in maps and on disk, the BPF
//! file system.

use std::{fmt::Write as _, fs, process::Command};

use anyhow::{Context, Result};
use lab::{
    Lab, Process,
    faults::{Policy, Row, Scene, Seen, Sight, moves, whole},
    wait::SOON,
};
use nix::sys::signal::Signal;

const PART: &str = "What runs out";

fn serves(scene: &Scene) -> Result<()> {
    scene.look(Sight::all(Seen::Proxied)).map(drop)
}

fn policies() -> &'static [Policy] {
    if whole() {
        &Policy::BOTH
    } else {
        &[Policy::Drop]
    }
}

/// No connection is accepted; datagrams go on.
fn no_accept(udp: Seen) -> Sight {
    Sight {
        tcp: Seen::Held,
        udp,
        own: Some(Seen::Held),
    }
}

fn limit_files(process: &Process, limits: &str) -> Result<()> {
    let mut command = Command::new("prlimit");
    command.args([
        &format!("--pid={}", process.pid()),
        &format!("--nofile={limits}"),
    ]);
    lab::process::run(command, SOON)?.ok()?;
    Ok(())
}

/// No file is left to the process.
fn no_files(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let mut process = scene.run(&scene.write(policy, "")?, None)?;
    let held = scene.streams()?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid()))?;
    let most = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|line| line.split_whitespace().next())
        .context("its limit of files")?;
    limit_files(&process, &format!("3:{most}"))?;
    let expected = no_accept(Seen::Nothing);
    let row = Row::new(PART, 0, "EMFILE: no file is left to the process", policy);
    let (row, look) = scene.observe(row, expected)?;
    held.iter().try_for_each(moves)?;
    limit_files(&process, &format!("{most}:{most}"))?;
    look.answered()?;
    serves(&scene)?;
    held.iter().try_for_each(moves)?;
    drop(held);
    process.stop(2 * SOON)?;
    row.then("connections go on; what waits is served when there are files again")
        .left(scene.clean()?)
}

/// Calls of the process fail for a while.
fn failing_calls(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let mut process = scene.run(&scene.write(policy, "")?, None)?;
    let held = scene.streams()?;
    let proxied = Seen::Proxied;
    let no_datagrams = Sight {
        udp: Seen::Nothing,
        ..Sight::all(proxied)
    };
    let faults = [
        ("accept4", "ENFILE", no_accept(proxied)),
        ("accept4", "ENOBUFS", no_accept(proxied)),
        ("sendmsg,sendmmsg,sendto", "ENOBUFS", no_datagrams),
    ];
    for (index, (calls, error, expected)) in faults.into_iter().enumerate() {
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-p", &process.pid().to_string()]);
        command.args(["-e", &format!("trace={calls}")]);
        command.args(["-e", &format!("inject={calls}:error={error}")]);
        command.args(["-e", "signal=none"]);
        let mut strace = Process::spawn(command)?;
        // It traces when each thread has it as its tracer.
        lab::wait::until("strace to be there", SOON, || {
            let tasks = fs::read_dir(format!("/proc/{}/task", process.pid()))?;
            let mut traced = tasks.map(|task| {
                let status = fs::read_to_string(task?.path().join("status"))?;
                let tracer = format!("TracerPid:\t{}\n", strace.pid());
                anyhow::Ok(status.contains(&tracer))
            });
            Ok(traced.all(|one| one.unwrap_or(false)).then_some(()))
        })
        .with_context(|| strace.lines().join("\n"))?;
        let row = Row::new(PART, 1 + index, format!("{error} of {calls}"), policy);
        let (row, look) = scene.observe(row, expected)?;
        held.iter().try_for_each(moves)?;
        strace.signal(Signal::SIGINT)?;
        strace.wait(SOON)?;
        look.answered()?;
        serves(&scene)?;
        row.then("connections go on; what waits is served when it is over")
            .left("nothing")?;
    }
    drop(held);
    process.stop(2 * SOON)?;
    scene.clean().map(drop)
}

/// More prefixes than the maps hold.
fn full_bypass(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let lab = &scene.lab;
    let mut process = scene.run(&scene.write(policy, "")?, None)?;
    let held = scene.streams()?;
    lab.bypass(&["add", "203.0.113.20/32", "--comment", "kept"])?;
    let before = lab.bypass_list()?;
    let mut list = String::new();
    // Every second address, so that nothing joins.
    for number in 0..tproxy_common::abi::BYPASS_CAPACITY + 1 {
        let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + 2 * number);
        writeln!(list, "{address}/32")?;
    }
    let file = lab.dir().join("long.txt");
    fs::write(&file, list)?;
    let file = file.to_str().context("a path in UTF-8")?;
    let refused = lab.refused(&["bypass", "load", file], 1, &["262"])?;
    eprint!("{}", refused.stderr);
    assert_eq!(lab.bypass_list()?, before);
    let expected = Sight::all(Seen::Proxied);
    let row = Row::new(PART, 4, "more prefixes than the bypass map holds", policy);
    let (row, _) = scene.observe(row, expected)?;
    held.iter().try_for_each(moves)?;
    drop(held);
    process.stop(2 * SOON)?;
    row.then("the list is refused, the set is as before")
        .left(scene.clean()?)
}

/// No byte more fits where the program keeps its files.
fn full_disk(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let lab = &scene.lab;
    let config = scene.write(policy, "")?;
    let etc = lab.dir().join("etc");
    fs::create_dir(&etc)?;
    let etc = etc.to_str().context("a path in UTF-8")?.to_owned();
    // All of /run: other labs remove the program's own folder there, and with it what is mounted at it.
    let mounts = format!(
        "mount -t tmpfs -o size=256k faults /run\n\
         mount -t tmpfs -o size=64k faults '{etc}'\ncp \"$1\" '{etc}/config.toml'\nset -- '{etc}/config.toml'"
    );
    let mut process = scene.run_behind(&mounts, &config)?;
    let held = scene.streams()?;
    let fill = |folder: &str| {
        // Never more than would fit elsewhere.
        let script = format!("head -c 1000000 /dev/zero > '{folder}/fill' 2>/dev/null; :");
        scene.beside(&process, &["sh", "-c", &script])?.ok()
    };
    fill("/run")?;
    fill(&etc)?;
    let write = |name: &str, text: &str| -> Result<String> {
        let path = lab.dir().join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    // One that does not fit beside the old one, and one that wants sysctls to be remembered.
    let long = write(
        "long.toml",
        &scene.config(policy, &"# more\n".repeat(4_000)),
    )?;
    let forward = write(
        "forward.toml",
        &scene.config(policy, "[gateway]\nforward = true\nmasquerade = true\n"),
    )?;
    let list = write("list.txt", "203.0.113.20/32\n")?;
    let program = lab::gateway::binary()?;
    let program = program.to_str().context("a path in UTF-8")?;
    // What needs no new file works.
    for args in [
        &["bypass", "load", &list][..],
        &["bypass", "add", "203.0.113.19/32"],
        &["bypass", "del", "203.0.113.19/32"],
        &["status"],
    ] {
        let argv = [&[program], args].concat();
        scene.beside(&process, &argv)?.ok()?;
    }
    let set = lab.bypass_list()?;
    for args in [&["apply", &long][..], &["apply", &forward]] {
        scene
            .refused_beside(&process, args, &["No space left on device"])
            .with_context(|| format!("{args:?}"))?;
    }
    assert_eq!(lab.bypass_list()?, set);
    let find = format!("find /run '{etc}' -name '*.new'");
    let half = scene.beside(&process, &["sh", "-c", &find])?.ok()?.stdout;
    assert_eq!(half, "", "what was written half is left");
    let expected = Sight::all(Seen::Proxied);
    let row = Row::new(PART, 5, "the disk is full", policy);
    let (row, _) = scene.observe(row, expected)?;
    held.iter().try_for_each(moves)?;
    let rm = format!("rm /run/fill '{etc}/fill'");
    scene.beside(&process, &["sh", "-c", &rm])?.ok()?;
    serves(&scene)?;
    drop(held);
    process.stop(2 * SOON)?;
    row.then("what needs a file is refused; all else works, and it serves on")
        .left(scene.clean()?)
}

/// Somebody unmounts the BPF file system that the program uses.
fn no_bpffs(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let config = scene.write(policy, "")?;
    let mut process = scene.run_behind("true", &config)?;
    let held = scene.streams()?;
    scene
        .beside(&process, &["umount", "-l", "/sys/fs/bpf"])?
        .ok()?;
    let expected = Sight::all(Seen::Proxied);
    let row = Row::new(PART, 6, "the BPF file system is unmounted", policy);
    let (row, _) = scene.observe(row, expected)?;
    held.iter().try_for_each(moves)?;
    process.signal(Signal::SIGHUP)?;
    process.wait_for_line("reload", SOON)?;
    serves(&scene)?;
    drop(held);
    process.signal(Signal::SIGTERM)?;
    process.wait(2 * SOON)?;
    eprintln!("{}", process.lines().join("\n"));
    // Its pins are where it does not see them; who does removes them.
    row.then("it serves on; `detach` removes what a stop cannot")
        .left(scene.detached()?)
}

#[test]
fn no_file_is_left() -> Result<()> {
    policies().iter().copied().try_for_each(no_files)
}

#[test]
fn calls_fail_for_a_while() -> Result<()> {
    policies().iter().copied().try_for_each(failing_calls)
}

#[test]
fn the_bypass_map_is_full() -> Result<()> {
    policies().iter().copied().try_for_each(full_bypass)
}

#[test]
fn the_disk_is_full() -> Result<()> {
    policies().iter().copied().try_for_each(full_disk)
}

#[test]
fn the_bpf_file_system_is_unmounted() -> Result<()> {
    policies().iter().copied().try_for_each(no_bpffs)
}
