//! `trace`: that what happens is told, that what is not asked for is not, and that nothing is left behind.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Process, Snapshot,
    probe::at,
    servers::Dnsmasq,
    traffic::{self, dig, open_udp, whoami},
    wait::{SOON, until},
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tproxy_userspace::control::bpf::TraceMaps;

/// Does a filter mean this decision, about a packet from one of these addresses to the other?
type Meant = fn(&Value, &str, &str) -> bool;

/// Bypassed: the far addresses from 16 on.
const BYPASSED: [&str; 2] = ["203.0.113.16/28", "2001:db8:f::10/124"];

/// A `trace --json` that listens.
struct Trace(Process);

impl Trace {
    fn start(lab: &Lab, args: &[&str]) -> Result<Self> {
        let args = [&["trace", "--json"], args].concat();
        let process = Process::spawn(lab.tproxy_command(&args)?)?;
        process.wait_for_line("tracing", SOON)?;
        Ok(Self(process))
    }

    /// What it has told so far.
    fn told(&self) -> Vec<Value> {
        let lines = self.0.lines();
        let json = lines.iter().filter(|line| line.starts_with('{'));
        json.map(|line| serde_json::from_str(line).expect("an object a line"))
            .collect()
    }

    /// Waits until it has told of this.
    fn tells(&self, expected: &Told<'_>) -> Result<Value> {
        self.finds(&format!("{expected:?}"), |event| expected.is(event))
    }

    fn finds(&self, what: &str, is_meant: impl Fn(&Value) -> bool) -> Result<Value> {
        until(&format!("{what} to be told"), SOON, || {
            Ok(self.told().into_iter().find(&is_meant))
        })
    }

    /// Ends it as Ctrl-C does.
    fn stop(mut self) -> Result<Vec<Value>> {
        self.0.signal(Signal::SIGINT)?;
        let status = self.0.wait(SOON)?;
        ensure!(status.success(), "it ended with {status}");
        Ok(self.told())
    }
}

/// A decision.
#[derive(Debug)]
struct Told<'a> {
    reason: &'a str,
    effect: &'a str,
    protocol: &'a str,
    source: IpAddr,
    target: SocketAddr,
}

impl Told<'_> {
    fn is(&self, event: &Value) -> bool {
        event["event"] == "decision"
            && event["reason"] == self.reason
            && event["effect"] == self.effect
            && event["protocol"] == self.protocol
            && event["source"] == self.source.to_string()
            && event["destination"] == self.target.ip().to_string()
            && event["destination_port"] == self.target.port()
            && event["source_port"].as_u64().is_some_and(|port| port > 0)
    }
}

/// Of the device.
fn told<'a>(reason: &'a str, effect: &'a str, protocol: &'a str, target: SocketAddr) -> Told<'a> {
    Told {
        reason,
        effect,
        protocol,
        source: Family::of(target.ip()).device(),
        target,
    }
}

/// Is there a listener for the programs?
fn is_on(lab: &Lab) -> Result<bool> {
    Ok(TraceMaps::open(&lab.pins())?.filter()?.until != 0)
}

fn send(lab: &Lab, target: SocketAddr) -> Result<()> {
    let socket = open_udp(&lab.device, Family::of(target.ip()))?;
    socket.send_to(b"traced", target)?;
    Ok(())
}

#[test]
fn what_happens_to_real_traffic_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let _far = Far::start(&lab)?;
    let _dns = Dnsmasq::start(&lab.internet)?;
    let _proxy = lab.tproxy_with("direct://")?;
    lab.bypass(&[&["add"], &BYPASSED[..]].concat())?;
    let trace = Trace::start(&lab, &[])?;
    for family in Family::BOTH {
        let (far, bypassed) = (family.far(1), family.far(17));
        whoami(&lab.device, far)?;
        whoami(&lab.device, bypassed)?;
        dig(&lab.device, far, "host.lab", "A")?;
        let steered = trace.tells(&told("tcp_opened", "steer", "tcp", at(far, 80)))?;
        assert_eq!(steered["link"], lab.lan());
        assert_eq!(steered["hook"], "lan_ingress");
        assert_eq!(steered["opens"], true);
        assert_eq!(steered["mark"], 0xa0);
        ensure!(steered["bytes"].as_u64() > Some(50), "{steered}");
        trace.tells(&told("tcp_steered", "steer", "tcp", at(far, 80)))?;
        let passed = trace.tells(&told("bypassed", "pass", "tcp", at(bypassed, 80)))?;
        assert_eq!(passed["opens"], true);
        trace.tells(&told("direct_connection", "pass", "tcp", at(bypassed, 80)))?;
        trace.tells(&told("udp_steered", "steer", "udp", at(far, 53)))?;
        // The answer is told as it leaves, with the port that was asked.
        let far_text = far.to_string();
        let answer = trace.finds("a reply", |event| {
            event["reason"] == "reply_sent" && event["source"] == *far_text
        })?;
        assert_eq!(answer["source_port"], 53);
        // A datagram that is put together before it is steered is told of twice.
        traffic::echo_sizes(&lab.device, Far::echo_at(far), &[9_000])?;
        let fragment = trace.finds("a fragment", |event| {
            event["reason"] == "fragment_steered" && event["destination"] == *far_text
        })?;
        assert_eq!(fragment["fragment"], true);
        trace.tells(&told("lookup_steered", "steer", "udp", Far::echo_at(far)))?;
    }
    let events = trace.stop()?;
    ensure!(
        events.iter().all(|event| event["event"] == "decision"),
        "something went wrong: {events:#?}"
    );
    // Times do not go backwards, and they are of today.
    let times: Vec<&str> = events.iter().filter_map(|it| it["time"].as_str()).collect();
    ensure!(times.first() < times.last(), "{times:?}");
    ensure!(!is_on(&lab)?, "it still listens");
    Ok(())
}

#[test]
fn without_a_daemon_the_policy_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    for (policy, effect, reason) in [
        ("pass", "pass", "down_passed"),
        ("drop", "drop", "down_dropped"),
    ] {
        lab.tproxy_run(&["attach", "--on-proxy-down", policy, lab.lan()])?
            .ok()?;
        let trace = Trace::start(
            &lab,
            &["--effect", effect, "--to-port", "7000", "--count", "2"],
        )?;
        for family in Family::BOTH {
            let target = at(family.far(1), 7000);
            send(&lab, target)?;
            trace.tells(&told(reason, effect, "udp", target))?;
        }
        let Trace(mut process) = trace;
        ensure!(process.wait(SOON)?.success(), "after two decisions");
        lab.tproxy_run(&["detach"])?.ok()?;
        lab.restored(&before)?;
    }
    Ok(())
}

#[test]
fn what_is_not_asked_for_does_not_come() -> Result<()> {
    let lab = Lab::builder().second_lan().build()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy(&[
        "run",
        "--lan",
        "lan0",
        "--lan",
        "lan1",
        "--outbound",
        "direct://",
    ])?;
    lab.bypass(&[&["add"], &BYPASSED[..]].concat())?;
    let device2 = lab.device2.as_ref().context("a second device")?;
    for family in Family::BOTH {
        let (one, other) = (family.far(1), family.far(2));
        let (device, second) = (family.device(), family.device2());
        let one_text = one.to_string();
        let device_text = device.to_string();
        // Filters, and what of the traffic below they let through.
        let filters: [(&[&str], Meant); 8] = [
            (&["--from", &device_text], |event, device, _| {
                event["source"] == device
            }),
            (&["--to", &one_text], |event, _, one| {
                event["destination"] == one
            }),
            (&["--on", "lan1"], |event, _, _| event["link"] == "lan1"),
            (&["--protocol", "udp"], |event, _, _| {
                event["protocol"] == "udp"
            }),
            (&["--to-port", "80"], |event, _, _| {
                event["destination_port"] == 80
            }),
            (
                &["--reason", "bypassed", "--reason", "udp_steered"],
                |event, _, _| event["reason"] == "bypassed" || event["reason"] == "udp_steered",
            ),
            (&["--new", "--protocol", "tcp"], |event, _, _| {
                event["opens"] == true
            }),
            (&["--effect", "pass", "--to-port", "80"], |event, _, _| {
                event["effect"] == "pass" && event["destination_port"] == 80
            }),
        ];
        for (args, meets) in filters {
            let trace = Trace::start(&lab, args)?;
            // In one run of all kinds, with the last the first again: what is told comes in order.
            for from in [&lab.device, device2] {
                for to in [one, other, family.far(17)] {
                    whoami(from, to)?;
                    traffic::echo_sizes(from, Far::echo_at(to), &[10])?;
                }
            }
            // Each of them lets something through, which ends the wait.
            until(&format!("{args:?} to let something through"), SOON, || {
                Ok(trace.told().last().cloned())
            })?;
            for event in trace.stop()? {
                ensure!(
                    meets(&event, &device.to_string(), &one_text),
                    "{args:?} let through {event} ({second})"
                );
            }
        }
    }
    drop(far);
    Ok(())
}

#[test]
fn what_the_gateway_sends_is_told_too() -> Result<()> {
    let lab = Lab::new()?;
    let _far = Far::start(&lab)?;
    let _proxy = lab.tproxy(&[
        "run",
        "--lan",
        "lan0",
        "--wan",
        "wan0",
        "--outbound",
        "direct://",
    ])?;
    let trace = Trace::start(&lab, &["--on", "wan0", "--port", "80", "--new"])?;
    for family in Family::BOTH {
        let target = at(family.far(1), 80);
        let told = |reason, effect| Told {
            source: family.gateway_wan(),
            ..told(reason, effect, "tcp", target)
        };
        whoami(&lab.gateway, target.ip())?;
        let event = trace.tells(&told("tcp_opened", "steer"))?;
        assert_eq!(event["hook"], "local_egress");
        // What the proxy then sends is exempt.
        trace.tells(&told("exempt", "pass"))?;
    }
    trace.stop().map(drop)
}

#[test]
fn one_that_was_killed_leaves_nothing_in_force() -> Result<()> {
    let lab = Lab::new()?;
    let _far = Far::start(&lab)?;
    let before = Snapshot::take(&lab)?;
    let proxy = lab.tproxy_with("direct://")?;
    let target = at(Family::V4.far(1), 7000);

    let Trace(mut killed) = Trace::start(&lab, &["--protocol", "udp"])?;
    send(&lab, target)?;
    killed.kill();
    // The next one may come at once, and is told only what itself asked for.
    let trace = Trace::start(&lab, &["--protocol", "tcp"])?;
    send(&lab, target)?;
    whoami(&lab.device, target.ip())?;
    trace.tells(&told("tcp_opened", "steer", "tcp", at(target.ip(), 80)))?;
    let Trace(mut killed) = trace;
    let lines = killed.lines();
    ensure!(!lines.iter().any(|line| line.contains("udp")), "{lines:?}");
    killed.kill();

    // Without a next one the programs take notice.
    ensure!(is_on(&lab)?, "a killed one cannot have cleared it");
    until("the programs to take notice", SOON, || {
        send(&lab, target)?;
        Ok((!is_on(&lab)?).then_some(()))
    })?;
    let counted = lab.packets("udp_steered")?;
    send(&lab, target)?;
    until("the datagram to be counted", SOON, || {
        Ok((lab.packets("udp_steered")? > counted).then_some(()))
    })?;

    // A stop with a killed one's files, and one with a listener.
    Trace::start(&lab, &[])?.0.kill();
    proxy.stop()?;
    lab.restored(&before)
}

#[test]
fn there_is_one_at_a_time() -> Result<()> {
    let lab = Lab::new()?;
    lab.refused(&["trace"], 1, &["nothing is attached"])?;
    let before = Snapshot::take(&lab)?;
    lab.tproxy_run(&["attach", lab.lan()])?.ok()?;
    let first = Trace::start(&lab, &["--reason", "down_passed"])?;
    let pid = format!("process {}", first.0.pid());
    lab.refused(&["trace"], 1, &[&pid, "end that `tproxy-bpf trace` first"])?;
    // It has not disturbed the first.
    for family in Family::BOTH {
        let target = at(family.far(1), 7000);
        send(&lab, target)?;
        first.tells(&told("down_passed", "pass", "udp", target))?;
    }
    first.stop()?;
    Trace::start(&lab, &[])?.stop()?;

    // `detach` needs not wait for it, and it says why it ends.
    let Trace(mut last) = Trace::start(&lab, &[])?;
    lab.tproxy_run(&["detach"])?.ok()?;
    assert_eq!(last.wait(SOON)?.code(), Some(1));
    last.wait_for_line("was detached", SOON)?;
    lab.restored(&before)
}

#[test]
fn it_ends_when_it_was_told_to_and_wrong_usage_is_said() -> Result<()> {
    let lab = Lab::new()?;
    lab.tproxy_run(&["attach", lab.lan()])?.ok()?;
    let output = lab
        .tproxy_run(&["trace", "--for", "300ms", "--port", "7000"])?
        .ok()?;
    assert_eq!(output.stdout, "");
    ensure!(!is_on(&lab)?, "it still listens");
    for (args, word) in [
        (&["--from", "10.0.0.1/8"][..], "has bits set"),
        (&["--reason", "bypased"], "bypassed"),
        (&["--port", "0"], "port"),
        (&["--from", "10.0.0.0/8", "--to", "::/0"], "families"),
        (&["--effect", "drop", "--reason", "bypassed"], "effects"),
        (&["--for", "10"], "unit"),
    ] {
        lab.refused(&[&["trace"], args].concat(), 2, &[word])?;
    }
    lab.refused(&["trace", "--on", "lan7"], 1, &["lan7", "lan0"])?;
    ensure!(!is_on(&lab)?, "a refused one listens");

    // For a person.
    let process =
        Process::spawn(lab.tproxy_command(&["trace", "--count", "1", "--protocol", "udp"])?)?;
    process.wait_for_line("tracing", SOON)?;
    send(&lab, at(Family::V4.far(1), 7000))?;
    let line = process.wait_for_line("203.0.113.1:7000 udp passed down_passed", SOON)?;
    ensure!(line.contains("No proxy is running"), "{line}");
    Ok(())
}

/// Nobody reads what it prints; then somebody does.
#[test]
fn what_found_no_room_is_counted() -> Result<()> {
    const BURST: usize = 1_000;
    let lab = Lab::new()?;
    lab.tproxy_run(&["attach", lab.lan()])?.ok()?;
    let mut command = lab.tproxy_command(&["trace", "--json", "--to-port", "7000"])?;
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    until(
        "the trace to begin",
        SOON,
        || Ok(is_on(&lab)?.then_some(())),
    )?;
    let target = at(Family::V4.far(1), 7000);
    let socket: UdpSocket = open_udp(&lab.device, Family::V4)?;
    let lost = until("something to be lost", SOON, || {
        for _ in 0..BURST {
            socket.send_to(b"traced", target)?;
        }
        let lost = TraceMaps::open(&lab.pins())?.lost()?;
        Ok(Some(lost).filter(|lost| *lost > 0))
    })?;
    let counted = lab.packets("down_passed")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        Signal::SIGINT,
    )?;
    let (mut decisions, mut told) = (0, 0);
    for line in BufReader::new(child.stdout.take().context("its output")?).lines() {
        let event: Value = serde_json::from_str(&line?)?;
        match event["event"].as_str() {
            Some("decision") => decisions += 1,
            Some("lost") => told += event["count"].as_u64().context("a number")?,
            _ => {}
        }
    }
    ensure!(child.wait()?.success(), "it ended well");
    ensure!(told >= lost, "{told} of {lost} were told");
    ensure!(
        decisions + told <= counted && decisions > 0,
        "{decisions} shown and {told} lost of {counted}"
    );
    Ok(())
}

/// A stopped process (Ctrl-Z) costs nothing, and says afterwards that it missed something.
#[test]
fn one_that_was_stopped_says_that_it_missed_something() -> Result<()> {
    let lab = Lab::new()?;
    lab.tproxy_run(&["attach", lab.lan()])?.ok()?;
    let trace = Trace::start(&lab, &[])?;
    trace.0.signal(Signal::SIGSTOP)?;
    let target = at(Family::V4.far(1), 7000);
    until("the programs to take notice", SOON, || {
        send(&lab, target)?;
        Ok((!is_on(&lab)?).then_some(()))
    })?;
    trace.0.signal(Signal::SIGCONT)?;
    trace
        .0
        .wait_for_line("nothing was shown for", Duration::from_secs(5))?;
    send(&lab, at(Family::V6.far(1), 7001))?;
    let expected = told("down_passed", "pass", "udp", at(Family::V6.far(1), 7001));
    trace.tells(&expected)?;
    trace.stop().map(drop)
}
