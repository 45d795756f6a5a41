//! Coming and going: what lives is not broken, a killed proxy leaves what was promised, and nothing
//! stays behind.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Family, Far, Lab, Snapshot, Tproxy, Wire,
    addr::url,
    foreign::{Foreign, Place, Says},
    servers::TcpEcho,
    traffic::{self, HeldDownload},
    wait::until,
};
use nix::sys::signal::Signal;
use tproxy_userspace::control::preflight::KernelVersion;

const MIB: u64 = 1 << 20;
/// What a proxy drains for if not told otherwise.
const DRAIN: Duration = Duration::from_secs(10);

/// A download in each family, under way.
fn downloads(lab: &Lab, far: &Far) -> Result<(Vec<HeldDownload>, String)> {
    let (path, content) = far.nginx.offer(64 * MIB)?;
    let mut all = Vec::new();
    for family in Family::BOTH {
        let mut held = HeldDownload::start(&lab.device, &url(family.far(1), &path))?;
        held.advance(MIB)?;
        all.push(held);
    }
    Ok((all, content.sha256))
}

fn advance(downloads: &mut [HeldDownload]) -> Result<()> {
    downloads.iter_mut().try_for_each(|held| held.advance(MIB))
}

fn finish(downloads: Vec<HeldDownload>, sha256: &str) -> Result<()> {
    for held in downloads {
        assert_eq!(held.finish()?.sha256, sha256);
    }
    Ok(())
}

/// The clients that nginx saw for the downloads, in no order.
fn clients(far: &Far) -> Result<Vec<std::net::IpAddr>> {
    let path = format!("/{}.bin", 64 * MIB);
    let count = |far: &Far| -> Result<Vec<_>> {
        let all = far.nginx.requests()?.into_iter();
        Ok(all
            .filter(|request| request.path == path)
            .map(|request| request.client)
            .collect())
    };
    let mut clients = until("two downloads in the log", DRAIN, || {
        Ok(Some(count(far)?).filter(|clients| clients.len() == 2))
    })?;
    clients.sort();
    Ok(clients)
}

/// The same traffic as SSH: to every address of the gateway, answered by the gateway itself.
fn gateway_answers(lab: &Lab) -> Result<()> {
    for family in Family::BOTH {
        for address in [family.gateway_lan(), family.gateway_wan()] {
            let mut stream = traffic::connect(&lab.device, SocketAddr::new(address, 22))?;
            stream.write_all(b"SSH-2.0-lab\r\n")?;
            let mut answer = [0; 13];
            stream.read_exact(&mut answer)?;
            assert_eq!(&answer, b"SSH-2.0-lab\r\n");
        }
    }
    Ok(())
}

/// `tproxy-bpf` with these arguments; `clsact`: attaching the way of kernels without tcx.
fn command(lab: &Lab, args: &[&str], clsact: bool) -> Result<Command> {
    let mut command = lab.tproxy_command(args)?;
    if clsact {
        command.env("TPROXY_BPF_ATTACH", "clsact");
    }
    Ok(command)
}

fn run(lab: &Lab, args: &[&str], clsact: bool) -> Result<Tproxy> {
    let all = [
        &["run", "--lan", lab.lan(), "--outbound", "direct://"],
        args,
    ]
    .concat();
    Lab::tproxy_by(command(lab, &all, clsact)?)
}

#[test]
fn what_began_before_attach_and_run_goes_on_to_its_end() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let (mut held, sha256) = downloads(&lab, &far)?;
    lab.tproxy_run(&["attach", lab.lan()])?.ok()?;
    advance(&mut held)?;
    let proxy = lab.tproxy_with("direct://")?;
    far.sees_proxy(&lab)?;
    advance(&mut held)?;
    proxy.stop()?;
    // What `attach` attached is still there.
    assert_eq!(lab.attached_links()?, [lab.lan()]);
    advance(&mut held)?;
    lab.tproxy_run(&["detach"])?.ok()?;
    finish(held, &sha256)?;
    assert_eq!(clients(&far)?, Family::BOTH.map(Family::device));
    Ok(())
}

#[test]
fn a_proxied_download_ends_well_though_its_destination_was_bypassed_meanwhile() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy_with("direct://")?;
    let (mut held, sha256) = downloads(&lab, &far)?;
    lab.bypass(&["add", "203.0.113.0/24", "2001:db8:f::/64"])?;
    far.sees_device(&lab)?;
    advance(&mut held)?;
    lab.bypass(&["flush"])?;
    far.sees_proxy(&lab)?;
    finish(held, &sha256)?;
    assert_eq!(clients(&far)?, Family::BOTH.map(Family::gateway_wan));
    Ok(())
}

#[test]
fn detach_does_not_disturb_a_bypassed_download() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let before = Snapshot::take(&lab)?;
    let mut proxy = lab.tproxy_with("direct://")?;
    lab.bypass(&["add", "203.0.113.0/24", "2001:db8:f::/64"])?;
    let (mut held, sha256) = downloads(&lab, &far)?;
    let start = Instant::now();
    lab.tproxy_run(&["detach"])?.ok()?;
    eprintln!("detach with a running proxy: {:?}", start.elapsed());
    let status = proxy.process_mut().wait(Duration::from_secs(2))?;
    ensure!(status.success(), "the proxy ended with {status}");
    advance(&mut held)?;
    lab.restored(&before)?;
    finish(held, &sha256)?;
    assert_eq!(clients(&far)?, Family::BOTH.map(Family::device));
    Ok(())
}

#[test]
fn sigterm_lets_live_connections_end_and_new_ones_go_direct() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let before = Snapshot::take(&lab)?;
    let mut proxy = lab.tproxy_with("direct://")?;
    let (mut held, sha256) = downloads(&lab, &far)?;
    proxy.process().signal(Signal::SIGTERM)?;
    let start = Instant::now();
    proxy.process().wait_for_line("draining", DRAIN)?;
    far.sees_device(&lab)?;
    advance(&mut held)?;
    finish(held, &sha256)?;
    let status = proxy.process_mut().wait(DRAIN)?;
    ensure!(status.success(), "the proxy ended with {status}");
    ensure!(
        start.elapsed() < DRAIN,
        "it waited {:?} though its connections had ended",
        start.elapsed()
    );
    eprintln!("drained in {:?}", start.elapsed());
    assert_eq!(clients(&far)?, Family::BOTH.map(Family::gateway_wan));
    lab.restored(&before)
}

#[test]
fn a_second_sigterm_cuts() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let before = Snapshot::take(&lab)?;
    let mut proxy = lab.tproxy_with("direct://")?;
    let (held, _) = downloads(&lab, &far)?;
    proxy.process().signal(Signal::SIGTERM)?;
    proxy.process().wait_for_line("draining", DRAIN)?;
    let start = Instant::now();
    proxy.process().signal(Signal::SIGTERM)?;
    let status = proxy.process_mut().wait(DRAIN / 2)?;
    ensure!(status.success(), "the proxy ended with {status}");
    eprintln!("cut in {:?}", start.elapsed());
    for download in held {
        download.finish().expect_err("its proxy is gone");
    }
    lab.restored(&before)
}

/// The device's ends of two proxied connections, one of each family.
fn proxied_streams(lab: &Lab) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for family in Family::BOTH {
        let mut stream = traffic::connect(&lab.device, SocketAddr::new(family.far(3), 7))?;
        stream.write_all(b"there")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        assert_eq!(&answer, b"there");
        streams.push(stream);
    }
    Ok(streams)
}

/// Writes until the connection is reset, which must be soon.
fn is_reset(mut stream: &TcpStream) -> Result<()> {
    let error = until("a connection of a killed proxy to be reset", DRAIN, || {
        Ok(stream.write_all(b"still there?").err())
    })?;
    ensure!(
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        "it ended with {error}"
    );
    Ok(())
}

fn killed(policy: &str, clsact: bool) -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _echo = TcpEcho::start(&lab.internet, 7)?;
    let _ssh = TcpEcho::start(&lab.gateway, 22)?;
    let wire = Wire::tap(&lab)?;
    let before = Snapshot::take(&lab)?;
    let proxy = run(&lab, &["--on-proxy-down", policy], clsact)?;
    far.sees_proxy(&lab)?;
    gateway_answers(&lab)?;
    lab.bypass(&["add", "198.51.100.0/24", "--comment", "kept"])?;
    let streams = proxied_streams(&lab)?;
    assert_eq!(wire.packets()?, 0, "something of the device left unproxied");

    proxy.kill9();
    streams.iter().try_for_each(is_reset)?;
    gateway_answers(&lab)?;
    assert_eq!(wire.packets()?, 0, "a proxied connection went on unproxied");

    if policy == "pass" {
        far.sees_device(&lab)?;
    } else {
        for family in Family::BOTH {
            let target = SocketAddr::new(family.far(1), 80);
            let connected = lab.device.enter(|| {
                TcpStream::connect_timeout(&target, Duration::from_millis(300)).map(drop)
            })?;
            let error = connected.expect_err("no proxy is there");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            let socket = traffic::open_udp(&lab.device, family)?;
            for size in [1, 1_473, 9_000, 65_507] {
                socket.send_to(&vec![1; size], Far::echo_at(family.far(1)))?;
            }
        }
        // Handled in order on one link, so once the last one is counted nothing is under way.
        until("the datagrams to be dropped", DRAIN, || {
            let fragments = 2 * (1 + 1 + 7 + 45);
            Ok((lab.packets("down_dropped")? > fragments).then_some(()))
        })?;
        assert_eq!(wire.packets()?, 0, "dropped traffic came to the internet");
        // What is bypassed needs no proxy.
        let server = Family::V4.upstream(1);
        far.sees(Family::V4.device(), &lab.device, server)?;
    }
    gateway_answers(&lab)?;

    // The next one adopts what is there.
    let proxy = run(&lab, &["--on-proxy-down", policy], clsact)?;
    far.sees_proxy(&lab)?;
    let entries = lab.bypass_list()?;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0]["comment"], "kept");
    let server = Family::V4.upstream(1);
    far.sees(Family::V4.device(), &lab.device, server)?;
    gateway_answers(&lab)?;
    proxy.kill9();
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&before)?;
    far.sees_device(&lab)
}

/// The kernel keeps what is left of a killed proxy's sockets for a while; this is about the time after.
/// Linux sends no IPv4 RST from a foreign address without a transparent socket, so there it takes the next
/// proxy.
#[test]
fn long_after_the_kill_nothing_leaks_and_the_next_proxy_resets() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = TcpEcho::start(&lab.internet, 7)?;
    let wire = Wire::tap(&lab)?;
    lab.gateway.sysctl(&[("net/ipv4/tcp_fin_timeout", "1")])?;
    let proxy = lab.tproxy_with("direct://")?;
    let streams = proxied_streams(&lab)?;
    proxy.kill9();
    until("the end of the killed proxy's sockets", DRAIN, || {
        let list = ["ss", "-Htn", "state", "all", "sport", "=", ":7"];
        let left = lab.gateway.run(&list)?;
        Ok(left.stdout.trim().is_empty().then_some(()))
    })?;
    let (v4, v6) = (&streams[0], &streams[1]);
    { v4 }.write_all(b"anybody?")?;
    is_reset(v6)?;
    until("both segments to be counted", DRAIN, || {
        Ok((lab.packets("tcp_gone")? >= 2).then_some(()))
    })?;
    let next = lab.tproxy_with("direct://")?;
    is_reset(v4)?;
    assert_eq!(wire.packets()?, 0, "a proxied connection went on unproxied");
    next.stop()
}

#[test]
fn killed_with_pass_new_traffic_goes_direct() -> Result<()> {
    killed("pass", false)
}

#[test]
fn killed_with_drop_nothing_leaves() -> Result<()> {
    killed("drop", false)
}

#[test]
fn killed_with_drop_nothing_leaves_with_clsact_filters() -> Result<()> {
    killed("drop", true)
}

#[test]
fn nothing_of_the_kernel_half_is_left_either() -> Result<()> {
    let lab = Lab::builder().alone().build()?;
    let before = Snapshot::take(&lab)?;
    for clsact in [false, true] {
        let proxy = run(&lab, &[], clsact)?;
        ensure!(
            !Snapshot::take(&lab)?.since(&before).is_empty(),
            "a running proxy shows nowhere"
        );
        proxy.stop()?;
        lab.restored(&before).context("after SIGTERM")?;

        lab::process::run(command(&lab, &["attach", lab.lan()], clsact)?, DRAIN)?.ok()?;
        lab.bypass(&["add", "203.0.113.0/24", "2001:db8:f::/64"])?;
        lab.tproxy_run(&["detach"])?.ok()?;
        lab.restored(&before).context("after attach and detach")?;

        run(&lab, &[], clsact)?.kill9();
        lab.tproxy_run(&["detach"])?.ok()?;
        lab.restored(&before).context("after kill -9 and detach")?;

        run(&lab, &[], clsact)?.kill9();
        run(&lab, &[], clsact)?.stop()?;
        lab.restored(&before)
            .context("after kill -9, another run and SIGTERM")?;
    }
    // With nothing there it does no harm.
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&before)
}

#[test]
fn a_start_that_fails_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = lab.dir().join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let taken = lab.gateway.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let port = taken.local_addr()?.port();
    let broken = file("broken.toml", "[lan]\ninterface = [\"lan0\"]\n")?;
    file("list.txt", "192.0.2.0/24\n192.0.2.1/24\n")?;
    let bad_list = file(
        "list.toml",
        "[lan]\ninterfaces = [\"lan0\"]\n[bypass]\nfiles = [\"list.txt\"]\n",
    )?;
    let no_port = file(
        "port.toml",
        &format!("[lan]\ninterfaces = [\"lan0\"]\n[proxy]\nport = {port}\n"),
    )?;
    let before = Snapshot::take(&lab)?;
    let port = port.to_string();
    let failures: [(&str, &[&str], &[&str]); 7] = [
        (
            "an unknown link",
            &["run", "--lan", "lan7"],
            &["lan7", "lan0"],
        ),
        ("the loopback", &["run", "--lan", "lo"], &["lo", "loopback"]),
        (
            "attach to an unknown link",
            &["attach", "lan7"],
            &["lan7", "lan0"],
        ),
        (
            "an unknown key",
            &["run", "-c", &broken],
            &["broken.toml:2:1", "interfaces"],
        ),
        (
            "a bad list",
            &["run", "-c", &bad_list],
            &["list.txt:2", "192.0.2.0/24"],
        ),
        (
            "a port in use",
            &["run", "-c", &no_port],
            &[&port, "in use"],
        ),
        (
            "an outbound that is none",
            &["run", "--lan", "lan0", "--outbound", "ftp://192.0.2.9"],
            &["ftp", "--outbound"],
        ),
    ];
    for (what, args, words) in failures {
        let refused = lab.refused(args, 1, words).with_context(|| what)?;
        eprint!("{what}: {}", refused.stderr);
        lab.restored(&before).with_context(|| what)?;
    }

    // Half-way in: somebody else's route is in our table.
    lab.gateway
        .ip(&["route add 198.18.0.0/15 dev wan0 table 29808"])?;
    let taken = Snapshot::take(&lab)?;
    for verb in [&["run", "--lan", "lan0"][..], &["attach", "lan0"]] {
        let refused = lab.tproxy_run(verb)?;
        if refused.code() != Some(1) {
            bail!("it runs on somebody else's routing table: {refused:?}");
        }
        eprint!("a table in use: {}", refused.stderr);
        lab.restored(&taken).context("a table in use")?;
    }
    lab.gateway
        .ip(&["route del 198.18.0.0/15 dev wan0 table 29808"])?;

    // A second proxy takes nothing from the first.
    let far = Far::start(&lab)?;
    let proxy = lab.tproxy_with("direct://")?;
    let running = Snapshot::take(&lab)?;
    let pid = proxy.process().pid().to_string();
    let refused = lab.refused(&["run", "--lan", "lan0"], 1, &[&pid, "already runs"])?;
    eprint!("a second proxy: {}", refused.stderr);
    lab.restored(&running).context("a second proxy")?;
    far.sees_proxy(&lab)?;
    proxy.stop()?;
    lab.restored(&before)
}

#[test]
fn forwarding_is_switched_on_and_back() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    lab.gateway.sysctl(&[
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
    ])?;
    let config = lab.dir().join("forward.toml");
    let text = "[lan]\ninterfaces = [\"lan0\"]\n[gateway]\nforward = true\n\
                [bypass]\nprefixes = [\"203.0.113.0/24\", \"2001:db8:f::/64\"]\n";
    fs::write(&config, text)?;
    let config = config.to_string_lossy();
    let before = Snapshot::take(&lab)?;
    let args = ["run", "-c", &config];

    let proxy = lab.tproxy(&args)?;
    far.sees_device(&lab)?;
    proxy.stop()?;
    lab.restored(&before).context("after SIGTERM")?;

    lab.tproxy(&args)?.kill9();
    far.sees_device(&lab)?;
    // Adopted: what was before the first one is remembered.
    lab.tproxy(&args)?.kill9();
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&before).context("after kill -9 and detach")
}

#[test]
fn clsact_carries_everything_and_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let before = Snapshot::take(&lab)?;
    let proxy = run(&lab, &[], true)?;
    assert_eq!(lab.status()?["links"][0]["way"], "clsact");
    far.sees_proxy(&lab)?;
    proxy.stop()?;
    lab.restored(&before).context("after SIGTERM")?;
    far.sees_device(&lab)?;

    run(&lab, &[], true)?.kill9();
    far.sees_device(&lab)?;
    // The other way may be the one that adopts.
    let proxy = run(&lab, &[], false)?;
    far.sees_proxy(&lab)?;
    proxy.stop()?;
    lab.restored(&before).context("adopted by tcx")
}

#[test]
fn a_clsact_qdisc_that_was_there_stays_with_its_filter() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let theirs = Foreign::load(&lab, "theirs", Says::Next)?;
    lab.gateway
        .run(&["tc", "qdisc", "add", "dev", "lan0", "clsact"])?;
    theirs.filter(&lab.gateway, "lan0", "1")?;
    let before = Snapshot::take(&lab)?;
    for clsact in [true, false] {
        let proxy = run(&lab, &[], clsact)?;
        let seen = theirs.packets()?;
        far.sees_proxy(&lab)?;
        ensure!(theirs.packets()? > seen, "their filter sees nothing");
        proxy.stop()?;
        lab.restored(&before).context("after SIGTERM")?;

        run(&lab, &[], clsact)?.kill9();
        run(&lab, &[], clsact)?.kill9();
        lab.tproxy_run(&["detach"])?.ok()?;
        lab.restored(&before).context("after kill -9 and detach")?;
    }
    Ok(())
}

#[test]
fn a_filter_that_came_to_our_clsact_qdisc_stays() -> Result<()> {
    let lab = Lab::new()?;
    let theirs = Foreign::load(&lab, "late", Says::Next)?;
    let far = Far::start(&lab)?;
    let proxy = run(&lab, &[], true)?;
    theirs.filter(&lab.gateway, "lan0", "5")?;
    proxy.stop()?;
    let seen = theirs.packets()?;
    far.sees_device(&lab)?;
    ensure!(
        theirs.packets()? > seen,
        "somebody else's filter went with our clsact qdisc"
    );
    Ok(())
}

#[test]
fn programs_of_others_before_and_behind_ours_go_on() -> Result<()> {
    if !KernelVersion::running()?.has_tcx() {
        eprintln!("SKIPPED: this kernel has no tcx, so nobody attaches programs by it");
        return Ok(());
    }
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let [earlier, behind, before, filter] =
        ["earlier", "behind", "before", "filter"].map(|name| Foreign::load(&lab, name, Says::Next));
    let (earlier, behind, before, filter) = (earlier?, behind?, before?, filter?);
    let gateway = &lab.gateway;
    // There when we come.
    let _earlier = earlier.tcx(gateway, "lan0", Place::Last)?;
    let proxy = run(&lab, &[], false)?;
    let _behind = behind.tcx(gateway, "lan0", Place::Last)?;
    let _before = before.tcx(gateway, "lan0", Place::First)?;
    gateway.run(&["tc", "qdisc", "add", "dev", "lan0", "clsact"])?;
    filter.filter(gateway, "lan0", "1")?;
    let theirs = [&earlier, &behind, &before, &filter];
    let check = |expected: fn(&Far, &Lab) -> Result<()>| -> Result<()> {
        let seen: Result<Vec<u64>> = theirs.iter().map(|program| program.packets()).collect();
        expected(&far, &lab)?;
        for (program, seen) in theirs.iter().zip(seen?) {
            ensure!(program.packets()? > seen, "{program:?} sees nothing");
        }
        Ok(())
    };
    check(Far::sees_proxy)?;

    // Theirs ends what ours steers, behind ours and before it.
    let drops = Foreign::load(&lab, "drops", Says::Drop)?;
    for place in [Place::Last, Place::First] {
        let link = drops.tcx(gateway, "lan0", place)?;
        let target = SocketAddr::new(Family::V4.far(1), 80);
        let connected = lab
            .device
            .enter(|| TcpStream::connect_timeout(&target, Duration::from_millis(300)).map(drop))?;
        connected.expect_err("their program drops everything");
        ensure!(drops.packets()? > 0, "their program was not asked");
        drop(link);
        check(Far::sees_proxy)?;
    }
    proxy.stop()?;
    check(Far::sees_device)
}
