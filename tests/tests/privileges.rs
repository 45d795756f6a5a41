//! What a proxy holds once it serves: capabilities, user, system calls; and that all of its life goes on with that.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    thread,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Snapshot, Tproxy,
    probe::{self, at},
    process::{Output, run},
    wait::{SOON, until},
    ways::soon,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// NET_BIND_SERVICE, NET_ADMIN, SYS_RESOURCE, PERFMON, BPF: bits 10, 12, 24, 38, 39 (`linux/capability.h`).
const PROXY: u64 = 1 << 10 | 1 << 12 | 1 << 24 | 1 << 38 | 1 << 39;
/// DAC_OVERRIDE, which root keeps.
const ROOT: u64 = 1 << 1;
/// NET_ADMIN, which nft gets from another user than root.
const CHILDREN: u64 = 1 << 12;
/// A user that every machine has, and one that needs no name.
const NOBODY: u32 = 65534;
const NUMBER: u32 = 54_321;

/// A field of `/proc/PID/task/*/status`, the same in all threads.
fn of_all_threads(tproxy: &Tproxy, field: &str) -> Result<String> {
    let tasks = format!("/proc/{}/task", tproxy.process().pid());
    let mut found: Option<String> = None;
    let mut threads = 0;
    for task in fs::read_dir(tasks)? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let value = value
            .with_context(|| format!("there is no {field}"))?
            .trim()
            .to_owned();
        ensure!(
            found.as_ref().is_none_or(|found| *found == value),
            "{field} differs: {found:?} and {value}"
        );
        found = Some(value);
        threads += 1;
    }
    ensure!(threads > 1, "there is one thread only");
    found.context("there is no thread")
}

fn capabilities(tproxy: &Tproxy, field: &str) -> Result<u64> {
    Ok(u64::from_str_radix(&of_all_threads(tproxy, field)?, 16)?)
}

/// All that a process holds, in each of its threads.
fn holds(tproxy: &Tproxy, uid: u32) -> Result<()> {
    let own = fs::read_to_string("/proc/self/status")?;
    let own = own.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    // A container may have fewer than there are.
    let own = u64::from_str_radix(own.context("no CapPrm")?.trim(), 16)?;
    let all = own & if uid == 0 { PROXY | ROOT } else { PROXY };
    let inherited = if uid == 0 { 0 } else { CHILDREN };
    for (field, wanted) in [
        ("CapEff", all),
        ("CapPrm", all),
        ("CapBnd", all),
        ("CapInh", inherited),
        ("CapAmb", inherited),
    ] {
        let found = capabilities(tproxy, field)?;
        ensure!(found == wanted, "{field} is {found:#x}, not {wanted:#x}");
    }
    let ids = vec![uid.to_string(); 4].join("\t");
    ensure!(of_all_threads(tproxy, "Uid")? == ids);
    ensure!(of_all_threads(tproxy, "NoNewPrivs")? == "1");
    until("filtered calls", SOON, || {
        Ok((of_all_threads(tproxy, "Seccomp")? == "2").then_some(()))
    })
}

fn config(lab: &Lab, gateway: &str) -> Result<String> {
    let lan = lab.lan();
    let path = lab.write(&format!(
        "stage = 3\n[lan]\ninterfaces = [\"{lan}\", \"later*\"]\n[proxy]\ntakeover_drain = \"0s\"\n[gateway]\nforward = true\nmasquerade = true\n{gateway}\n"
    ))?;
    // A folder that others may pass, and a file that they may read.
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    Ok(path)
}

fn reload(lab: &Lab) -> Result<Output> {
    lab.tproxy_run(&["reload"])
}

/// Everything that is still to do after the start: devices and the gateway itself are proxied, links come, commands of root
/// edit, the configuration is read anew.
fn lives(lab: &Lab, far: &Far) -> Result<()> {
    far.sees_proxy(lab)?;
    // Its own traffic: no loop.
    for family in Family::BOTH {
        far.sees(family.gateway_wan(), &lab.gateway, family.far(2))?;
    }
    lab.gateway.ip(&[
        "link add later0 type veth peer name later1",
        "link set later0 up",
    ])?;
    soon("the link that came later", || {
        ensure!(lab.attached_links()?.contains(&"later0".to_owned()));
        Ok(())
    })?;
    lab.gateway.ip(&["link del later0"])?;
    lab.bypass(&["add", "203.0.113.0/24"])?;
    lab.bypass(&["flush"])?;
    reload(lab)?.ok()?;
    lab.tproxy_run(&["explain", "203.0.113.1:80"])?.ok()?;
    Ok(())
}

/// One life after another as this user, each ended in another way.
fn lives_and_leaves_nothing(user: &str, uid: u32) -> Result<()> {
    let lab = Lab::new()?;
    // Of the module, which the first rule loads.
    lab.gateway.run(&["nft", "add table inet warm; add chain inet warm c { type nat hook postrouting priority 100; }; add rule inet warm c masquerade; delete table inet warm"])?;
    let before = Snapshot::take(&lab)?;
    let far = Far::start(&lab)?;
    let config = config(&lab, user)?;
    let arguments = ["run", "--config", &config];

    let proxy = lab.tproxy(&arguments)?;
    holds(&proxy, uid)?;
    lives(&lab, &far)?;
    let status = lab.status()?;
    let process = &status["proxy"]["detail"]["process"];
    ensure!(process["seccomp"] == true, "{status:#}");
    let text = lab.tproxy_run(&["status"])?.ok()?.stdout;
    ensure!(
        text.contains("CAP_BPF") && text.contains("system calls are filtered"),
        "{text}"
    );
    // `exempt run` makes a cgroup, which goes with the proxy.
    lab.tproxy_run(&["exempt", "run", "--", "true"])?.ok()?;
    proxy.stop()?;
    lab.restored(&before)?;

    let proxy = lab.tproxy(&arguments)?;
    proxy.kill9();
    let proxy = lab.tproxy(&arguments)?;
    lives(&lab, &far)?;
    lab.tproxy_run(&["detach"])?.ok()?;
    drop(proxy);
    lab.restored(&before)?;

    lab.tproxy(&arguments)?.kill9();
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&before)
}

#[test]
fn root_keeps_what_it_needs_and_leaves_nothing() -> Result<()> {
    lives_and_leaves_nothing("", 0)
}

#[test]
fn another_user_does_all_the_same_and_leaves_nothing() -> Result<()> {
    lives_and_leaves_nothing("user = \"nobody\"", NOBODY)
}

/// Waits for the end of one that was taken over from.
fn ended(mut old: Tproxy) -> Result<()> {
    ensure!(old.process_mut().wait(SOON)?.success());
    Ok(())
}

#[test]
fn users_take_over_from_each_other() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    let far = Far::start(&lab)?;
    let number = format!("user = {NUMBER}");
    let mut now: Option<Tproxy> = None;
    for (user, uid) in [
        ("", 0),
        ("user = \"nobody\"", NOBODY),
        ("user = \"nobody\"", NOBODY),
        (&number, NUMBER),
        ("", 0),
        ("", 0),
    ] {
        let path = config(&lab, user)?;
        let next = lab.tproxy(&["run", "--takeover", "--config", &path])?;
        holds(&next, uid)?;
        if let Some(old) = now.replace(next) {
            ended(old)?;
        }
        lives(&lab, &far)?;
    }
    // One that cannot serve gives back what it took.
    let broken = config(&lab, "user = \"nobody\"")?;
    let text = fs::read_to_string(&broken)?.replace("[proxy]", "[proxy]\nport = 9");
    lab.write(&text)?;
    lab.refused(
        &["run", "--takeover", "--config", &broken],
        1,
        &["proxy.port"],
    )?;
    config(&lab, "")?;
    lives(&lab, &far)?;
    now.context("none runs")?.stop()?;
    lab.restored(&before)
}

#[test]
fn an_unknown_user_or_group_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    for (text, words) in [
        (
            "[gateway]\nuser = \"no-such-user\"",
            ["[gateway] user", "no-such-user", "useradd"],
        ),
        (
            "[api]\ngroup = \"no-such-group\"",
            ["[api] group", "no-such-group", "groupadd"],
        ),
    ] {
        let text = format!("[lan]\ninterfaces = [\"{}\"]\n{text}\n", lab.lan());
        let path = lab.write(&text)?;
        lab.refused(&["run", "--config", &path], 1, &words)?;
        lab.restored(&before)?;
    }
    // Nor does a start that fails later, though the folders are there by then.
    let path = lab.write(
        "[lan]\ninterfaces = [\"none0\"]\n[gateway]\nuser = \"nobody\"\n[api]\ngroup = 7\n",
    )?;
    lab.refused(&["run", "--config", &path], 1, &["none0"])?;
    lab.restored(&before)
}

#[test]
fn a_reload_of_what_the_user_cannot_read_names_both_and_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let path = config(&lab, "user = \"nobody\"")?;
    let proxy = lab.tproxy(&["run", "--config", &path])?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let lines = proxy.process().lines().len();
    proxy.process().signal(Signal::SIGHUP)?;
    let line = proxy
        .process()
        .wait_for_line_after(lines, "the reload failed", SOON)?;
    ensure!(
        line.contains("user nobody") && line.contains(&path),
        "{line}"
    );
    far.sees_proxy(&lab)?;
    proxy.stop()?;
    // A start says so, too.
    let proxy = lab.tproxy(&["run", "--config", &path])?;
    proxy
        .process()
        .wait_for_line("a reload will be refused", SOON)?;
    proxy.stop()
}

#[test]
fn calls_are_not_filtered_if_the_configuration_says_so() -> Result<()> {
    let lab = Lab::new()?;
    let path = config(&lab, "seccomp = false")?;
    let proxy = lab.tproxy(&["run", "--config", &path])?;
    ensure!(of_all_threads(&proxy, "Seccomp")? == "0");
    ensure!(lab.status()?["proxy"]["detail"]["process"]["seccomp"] == false);
    proxy.stop()
}

/// Runs a copy of the program, which everybody may, as a user of one more group.
fn as_member(lab: &Lab, program: &Path, group: u32, arguments: &[&str]) -> Result<Output> {
    let group = group.to_string();
    let program = program.to_str().context("not UTF-8")?;
    let user = NUMBER.to_string();
    let mut argv = vec![
        "setpriv", "--reuid", &user, "--regid", &user, "--groups", &group, program,
    ];
    argv.extend(arguments);
    run(lab.gateway.argv(&argv), SOON)
}

#[test]
fn members_of_the_group_use_the_socket_and_nobody_else_does() -> Result<()> {
    const GROUP: u32 = 54_322;
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o755))?;
    let program = lab.dir().join("tproxy-bpf");
    fs::copy(lab::gateway::binary()?, &program)?;
    for user in ["", "[gateway]\nuser = \"nobody\"\n"] {
        let proxy = lab.tproxy_configured(&format!("{user}[api]\ngroup = {GROUP}\n"))?;
        // It holds no password, and a reload reads it as the user.
        let config = lab.dir().join("config.toml");
        fs::set_permissions(config, fs::Permissions::from_mode(0o644))?;
        let member = |arguments: &[&str]| as_member(&lab, &program, GROUP, arguments);
        let stranger = |arguments: &[&str]| as_member(&lab, &program, GROUP + 1, arguments);
        let status: Value = member(&["status", "--json"])?.ok()?.json()?;
        ensure!(
            status["proxy"]["detail"]["pid"] == proxy.process().pid(),
            "{status:#}"
        );
        for arguments in [&["flows"][..], &["log"], &["status"], &["reload"]] {
            member(arguments)?.ok()?;
        }
        // What needs more says so.
        let output = member(&["bypass", "add", "192.0.2.0/24"])?;
        ensure!(
            output.code() == Some(1) && output.stderr.contains("root"),
            "{output:?}"
        );
        for arguments in [&["flows"][..], &["status"], &["reload"]] {
            let output = stranger(arguments)?;
            ensure!(output.code() == Some(1), "{arguments:?}: {output:?}");
            ensure!(output.stderr.contains("root"), "{output:?}");
        }
        proxy.stop()?;
        lab.restored(&before)?;
    }
    let proxy = lab.tproxy_configured("")?;
    let socket = lab.state().join("control.sock");
    assert_eq!(fs::metadata(socket)?.permissions().mode() & 0o777, 0o600);
    proxy.stop()
}

/// A SOCKS5 server that takes nobody's password.
fn refuses_passwords(lab: &Lab, address: SocketAddr) -> Result<()> {
    let listener = lab.internet.enter(|| TcpListener::bind(address))??;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let refuse = |mut stream: TcpStream| -> io::Result<()> {
                let mut bytes = [0; 512];
                let _ = stream.read(&mut bytes)?;
                stream.write_all(&[5, 2])?;
                let _ = stream.read(&mut bytes)?;
                stream.write_all(&[1, 1])
            };
            // The test sees what came of it.
            let _ = stream.and_then(refuse);
        }
    });
    Ok(())
}

#[test]
fn a_password_stands_nowhere_that_others_read() -> Result<()> {
    const PASSWORD: &str = "correct-horse-4711";
    const TOKEN: &str = "battery-staple-0815";
    let lab = Lab::new()?;
    let server = at(Family::V4.upstream(2), 1080);
    refuses_passwords(&lab, server)?;
    let config = lab.write(&format!(
        "[lan]\ninterfaces = [\"{}\"]\n[api]\nlisten = [\"127.0.0.1:9090\"]\ntoken = \"{TOKEN}\"\n[log]\nlevel = \"trace\"\n",
        lab.lan()
    ))?;
    let url = format!("socks5://me:{PASSWORD}@{server}");
    let arguments = ["run", "--takeover", "--config", &config, "--outbound", &url];
    let mut command = lab.tproxy_command(&arguments)?;
    command.env("RUST_LOG", "trace");
    let proxy = Lab::tproxy_by(command)?;
    let pid = proxy.process().pid();
    let cmdline = || fs::read_to_string(format!("/proc/{pid}/cmdline"));
    let hidden = url.replace(PASSWORD, &"*".repeat(PASSWORD.len()));
    let words: Vec<_> = cmdline()?.split('\0').map(str::to_owned).collect();
    assert_eq!(
        words[words.len() - 7..words.len() - 1],
        [
            "run",
            "--takeover",
            "--config",
            &config,
            "--outbound",
            &hidden
        ]
    );

    // The log-in fails, which everything tells of.
    let fate = probe::fate(&lab.device, at(Family::V4.far(1), 80))?;
    ensure!(fate.0.is_empty(), "{fate:?}");
    until("the failure", SOON, || {
        let failures = lab.proxy_traffic()?["failures"].clone();
        Ok(failures
            .as_object()
            .filter(|failures| !failures.is_empty())
            .map(drop))
    })?;
    let mut said = vec![("the log", proxy.process().lines().join("\n"))];
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["flows", "--json"],
        &["doctor"],
        &["check", &config],
        &["reload"],
        &["log"],
    ] {
        let output = lab.tproxy_run(arguments)?;
        said.push((arguments[0], output.stdout + &output.stderr));
    }
    let socket = lab.state().join("control.sock");
    let socket = socket.to_str().context("not UTF-8")?;
    for path in [
        "v1/status",
        "v1/outbounds",
        "v1/flows",
        "configs",
        "proxies",
        "providers/proxies",
        "metrics",
    ] {
        let url = format!("http://localhost/{path}");
        let answer = lab
            .gateway
            .run(&["curl", "-sS", "--unix-socket", socket, &url])?;
        ensure!(answer.stdout.len() > 2, "{path} says nothing");
        said.push((path, answer.stdout));
    }
    // What is wrong is told without it.
    let wrong = format!("socks5://me:{PASSWORD}@nowhere:port");
    let refused = lab.refused(
        &["run", "--lan", lab.lan(), "--outbound", &wrong],
        1,
        &["--outbound"],
    )?;
    said.push(("an error", refused.stderr));
    said.push(("the log, later", proxy.process().lines().join("\n")));
    said.push(("the arguments, later", cmdline()?));
    for (where_, text) in said {
        for secret in [PASSWORD, TOKEN] {
            ensure!(!text.contains(secret), "{where_} tells {secret}: {text}");
        }
    }
    proxy.stop()
}
