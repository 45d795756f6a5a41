//! Groups of outbounds, with servers that die and come back.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Tproxy,
    addr::host,
    probe::{at, is_reset_at_once},
    reload::Reloadable,
    servers::{Dnsmasq, Microsocks, Nginx, Shadowsocks, TcpEcho, UdpEcho},
    traffic::{echo, open_udp, whoami},
    wait::{SOON, until},
};
use serde_json::Value;

const ECHO: u16 = 7;
const INTERVAL: Duration = Duration::from_secs(2);
const PASSWORD: &str = "a password of the lab";

/// Name and URL of an outbound.
type Named = (&'static str, String);

/// An internet with a page and a DNS server to check by, and something to talk to.
struct Stage {
    lab: Lab,
    _nginx: Nginx,
    _dns: Dnsmasq,
    _echo: TcpEcho,
}

impl Stage {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        Ok(Self {
            _nginx: Nginx::start(&lab.internet, lab.dir())?,
            _dns: Dnsmasq::start(&lab.internet)?,
            _echo: TcpEcho::start(&lab.internet, ECHO)?,
            lab,
        })
    }

    /// The `n`th of the servers that the outbounds lead to, each with an address of its own.
    fn server(&self, n: u8) -> Result<Microsocks> {
        Microsocks::start_at(&self.lab.internet, at(Family::V4.upstream(n), 1080))
    }

    /// Three of them, and the outbounds that lead there.
    fn three(&self) -> Result<(Vec<Option<Microsocks>>, Vec<Named>)> {
        let mut servers = Vec::new();
        let mut outbounds = Vec::new();
        for (n, name) in (2..).zip(["a", "b", "c"]) {
            let server = self.server(n)?;
            outbounds.push((name, server.url()));
            servers.push(Some(server));
        }
        Ok((servers, outbounds))
    }

    fn proxy(&self, outbounds: &[(&str, String)], group: &str) -> Result<Tproxy> {
        self.lab.tproxy_configured(&configuration(outbounds, group))
    }

    /// Kills one server after the other and starts it again, while devices connect as fast as they can. Gives how many
    /// connections were good, and how many were not.
    fn churn(&self, servers: &mut [Option<Microsocks>], deaths: usize) -> Result<(u64, u64)> {
        let (ended, good, bad) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let connect = || {
            while !ended.load(Relaxed) {
                let count = if echo(at(Family::V4.far(1), ECHO)).is_ok() {
                    &good
                } else {
                    &bad
                };
                count.fetch_add(1, Relaxed);
            }
        };
        thread::scope(|scope| -> Result<()> {
            for _ in 0..2 {
                scope.spawn(|| self.lab.device.enter(connect));
            }
            let mut kill = || -> Result<()> {
                for death in 0..deaths {
                    let victim = death % servers.len();
                    let so_far = good.load(Relaxed);
                    servers[victim] = None;
                    until("connections by the others", SOON, || {
                        Ok((good.load(Relaxed) > so_far + 20).then_some(()))
                    })?;
                    servers[victim] = Some(self.server(2 + victim as u8)?);
                }
                Ok(())
            };
            let killed = kill();
            ended.store(true, Relaxed);
            killed
        })?;
        self.lab.await_proxy_count("/connections", 0)?;
        Ok((good.into_inner(), bad.into_inner()))
    }

    /// What `status` says of a group's member and of an outbound.
    fn status(&self) -> Result<Value> {
        let status: Value = self.lab.tproxy_run(&["status", "--json"])?.ok()?.json()?;
        Ok(status["proxy"]["detail"].clone())
    }

    /// Waits until a group takes this member.
    fn takes(&self, protocol: &str, member: &str) -> Result<()> {
        let mut last = Value::Null;
        until(&format!("{protocol} by {member}"), SOON, || {
            last = self.status()?;
            Ok((last["groups"][0][protocol] == member).then_some(()))
        })
        .with_context(|| format!("it says {last:#}"))
    }

    /// Waits until an outbound is in this state.
    fn is(&self, outbound: &str, protocol: &str, state: &str) -> Result<Value> {
        let mut last = Value::Null;
        let what = format!("{outbound} to be {state} for {protocol}");
        until(&what, SOON, || {
            last = self.status()?;
            let all = last["outbounds"].as_array().context("no outbounds")?;
            let found = all.iter().find(|one| one["name"] == outbound);
            let of = found.context("no such outbound")?[protocol].clone();
            Ok((of["state"] == state).then_some(of))
        })
        .with_context(|| format!("it says {last:#}"))
    }
}

fn configuration(outbounds: &[(&str, String)], group: &str) -> String {
    let far = host(Family::V4.far(1));
    let mut text = String::new();
    for (name, url) in outbounds {
        text.push_str(&format!(
            "[[outbound]]\nname = \"{name}\"\nurl = \"{url}\"\n"
        ));
    }
    let interval = INTERVAL.as_secs();
    text.push_str(&format!(
        "[[group]]\nname = \"auto\"\n{group}\n\
         [check]\nurl = \"http://{far}/whoami\"\ndns = \"{far}:53\"\ninterval = \"{interval}s\"\ntimeout = \"1s\"\n"
    ));
    text
}

#[test]
fn a_member_that_dies_costs_new_connections_less_than_an_interval() -> Result<()> {
    let stage = Stage::new()?;
    let (mut servers, outbounds) = stage.three()?;
    let members = "kind = \"fallback\"\nmembers = [\"a\", \"b\", \"c\"]";
    let tproxy = stage.proxy(&outbounds, members)?;
    for (name, _) in &outbounds {
        let up = stage.is(name, "tcp", "up")?;
        ensure!(up["delay_milliseconds"].is_u64() && up["error"].is_null());
        // microsocks does TCP alone.
        let udp = stage.is(name, "udp", "down")?;
        let error = udp["error"].as_str().unwrap_or_default();
        ensure!(error.contains("refused to relay datagrams"), "{error}");
    }
    assert_eq!(
        whoami(&stage.lab.device, Family::V4.far(1))?,
        Family::V4.upstream(2)
    );

    // 200 connections a second for four seconds, each in its time whatever became of the others.
    const PACE: Duration = Duration::from_millis(5);
    let start = Instant::now();
    let failed: Vec<Duration> = thread::scope(|scope| -> Result<_> {
        let connecting: Vec<_> = (0..4_u32)
            .map(|part| {
                let device = &stage.lab.device;
                scope.spawn(move || {
                    device.enter(|| {
                        let mut failed = Vec::new();
                        for number in (part..800).step_by(4) {
                            let due = start + PACE * number;
                            thread::sleep(due.saturating_duration_since(Instant::now()));
                            if echo(at(Family::V4.far(1), ECHO)).is_err() {
                                failed.push(start.elapsed());
                            }
                        }
                        failed
                    })
                })
            })
            .collect();
        until("the first second", SOON, || {
            Ok((start.elapsed() > Duration::from_secs(1)).then_some(()))
        })?;
        servers[0] = None;
        let mut failed = Vec::new();
        for part in connecting {
            failed.extend(part.join().expect("no panic")?);
        }
        Ok(failed)
    })?;
    eprintln!("{} of 800 connections failed, at {failed:?}", failed.len());
    let first = failed.first().copied().unwrap_or_default();
    let last = failed.last().copied().unwrap_or_default();
    ensure!(
        last - first < INTERVAL,
        "they failed for {:?}",
        last - first
    );
    // Those that the server held when it was killed, and no others.
    ensure!(failed.len() <= 8, "{} of 800 failed", failed.len());
    let down = stage.is("a", "tcp", "down")?;
    ensure!(down["since_seconds"].is_u64(), "{down}");
    ensure!(
        down["error"]
            .as_str()
            .is_some_and(|error| error.contains("refused")),
        "{down}"
    );
    assert_eq!(
        whoami(&stage.lab.device, Family::V4.far(1))?,
        Family::V4.upstream(3)
    );
    // Which of them depends on what the connections were doing when it died.
    until("a line that says so", SOON, || {
        let lines = tproxy.process().lines();
        let told =
            ["is down for TCP", "does not work"].map(|text| format!("the outbound \"a\" {text}"));
        let is_told = lines
            .iter()
            .any(|line| told.iter().any(|text| line.contains(text)));
        Ok(is_told.then_some(()))
    })?;

    // It comes back, and is the first again.
    servers[0] = Some(stage.server(2)?);
    stage.takes("tcp", "a")?;
    assert_eq!(
        whoami(&stage.lab.device, Family::V4.far(1))?,
        Family::V4.upstream(2)
    );
    tproxy
        .process()
        .wait_for_line("the outbound \"a\" is up again for TCP", SOON)?;
    tproxy.stop()
}

#[test]
fn nothing_is_left_of_an_hour_of_dying_servers() -> Result<()> {
    // A server dies and comes back each minute: sixty times, without the minutes in between.
    const DEATHS: usize = 60;
    let stage = Stage::new()?;
    let (mut servers, outbounds) = stage.three()?;
    let members = "kind = \"load-balance\"\nmembers = [\"a\", \"b\", \"c\"]\nby = \"source\"";
    let tproxy = stage.proxy(&outbounds, members)?;
    for (name, _) in &outbounds {
        stage.is(name, "tcp", "up")?;
    }
    // What is made once and kept (pipes, say) is there after the first round.
    stage.churn(&mut servers, 3)?;
    let usage = || -> Result<_> {
        let tasks = stage.status()?["tasks"].as_u64().context("no tasks")?;
        Ok((tproxy.open_files()?, tasks))
    };
    let before = usage()?;
    let resident = tproxy.resident_kib()?;
    let (good, bad) = stage.churn(&mut servers, DEATHS)?;
    eprintln!("{good} connections, and {bad} that failed with their server");
    ensure!(bad <= 3 * DEATHS as u64, "{bad} of {good} failed");
    until("files and tasks to be as before", SOON, || {
        Ok((usage()? == before).then_some(()))
    })
    .with_context(|| format!("{before:?} before, {:?} now", usage()))?;
    let grown = tproxy.resident_kib()?.saturating_sub(resident);
    ensure!(grown < 8 << 10, "{grown} KiB more than before");
    tproxy.stop()
}

#[test]
fn a_person_chooses_and_explain_and_the_record_say_who() -> Result<()> {
    let stage = Stage::new()?;
    let servers = [stage.server(2)?, stage.server(3)?];
    let outbounds = [("a", servers[0].url()), ("b", servers[1].url())];
    let far = Family::V4.far(1);
    let group = "kind = \"select\"\nmembers = [\"a\", \"b\", \"direct\"]\ndefault = \"b\"";
    let text = |group: &str| {
        let lan = format!("[lan]\ninterfaces = [\"{}\"]\n", stage.lab.lan());
        lan + &configuration(&outbounds, group)
    };
    let tproxy = Reloadable::start(&stage.lab, &text(group))?;
    let taken = || whoami(&stage.lab.device, far);
    assert_eq!(taken()?, Family::V4.upstream(3));
    let said = stage.lab.tproxy_run(&["select", "auto", "a"])?.ok()?.stdout;
    ensure!(said.contains("auto takes a"), "{said}");
    assert_eq!(taken()?, Family::V4.upstream(2));
    let record = tproxy
        .process()
        .wait_for_line("outbound=\"a\" group=\"auto\"", SOON)?;
    ensure!(record.contains(&far.to_string()), "{record}");
    let explained = stage
        .lab
        .tproxy_run(&["explain", &far.to_string()])?
        .ok()?
        .stdout;
    ensure!(
        explained.contains("of the group \"auto\" now"),
        "{explained}"
    );
    let status = stage.lab.tproxy_run(&["status"])?.ok()?.stdout;
    for part in [
        "auto, a select of a, b, direct",
        "select: a now",
        "TCP up, ",
    ] {
        ensure!(status.contains(part), "no \"{part}\" in {status}");
    }
    // A reload keeps it; another default is what a person wants now.
    let line = "proxied through auto";
    tproxy.reload(&text(group), line)?;
    assert_eq!(taken()?, Family::V4.upstream(2));
    tproxy.reload(
        &text(&group.replace("default = \"b\"", "default = \"direct\"")),
        line,
    )?;
    ensure!(
        ![2, 3].map(|n| Family::V4.upstream(n)).contains(&taken()?),
        "not direct"
    );
    for (args, part) in [
        (
            ["select", "auto", "x"],
            "has no member \"x\"; it has a, b, direct",
        ),
        (
            ["select", "x", "a"],
            "there is no group \"x\"; there are auto",
        ),
    ] {
        stage.lab.refused(&args, 1, &[part])?;
    }
    tproxy.stop()?;
    stage
        .lab
        .refused(&["select", "auto", "a"], 1, &["no proxy runs here"])?;
    Ok(())
}

#[test]
fn what_is_chosen_is_used_though_it_is_dead_and_behind_all_others_block_ends_it() -> Result<()> {
    let stage = Stage::new()?;
    // Nobody listens there any more.
    let dead = stage.server(2)?.url();
    for (group, failure) in [
        (
            "kind = \"select\"\nmembers = [\"dead\", \"direct\"]",
            "/failures/connect_refused",
        ),
        (
            "kind = \"fallback\"\nmembers = [\"dead\", \"block\"]",
            "/blocked",
        ),
    ] {
        let tproxy = stage.proxy(&[("dead", dead.clone())], group)?;
        is_reset_at_once(&stage.lab, at(Family::V4.far(1), ECHO))?;
        stage.lab.await_proxy_count(failure, 1)?;
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn datagrams_leave_a_dead_member_though_their_socket_stays() -> Result<()> {
    let stage = Stage::new()?;
    let internet = &stage.lab.internet;
    let _echo = UdpEcho::start(internet, 7007..=7007)?;
    let server = |n: u8| {
        let address = at(Family::V4.upstream(n), 8388);
        Shadowsocks::start(internet, address, "aes-128-gcm", PASSWORD)
    };
    let (first, second) = (server(2)?, server(3)?);
    let outbounds = [("a", first.url()), ("b", second.url())];
    let group = "kind = \"fallback\"\nmembers = [\"a\", \"b\"]";
    let tproxy = stage.proxy(&outbounds, group)?;
    for name in ["a", "b"] {
        stage.is(name, "udp", "up")?;
    }
    let socket = open_udp(&stage.lab.device, Family::V4)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let target = SocketAddr::new(Family::V4.far(1), 7007);
    // What a device does that waits for an answer.
    let answered = || -> Result<Option<()>> {
        socket.send_to(b"anyone?", target)?;
        Ok(socket.recv_from(&mut [0; 16]).is_ok().then_some(()))
    };
    until("an answer by the first", SOON, answered)?;
    stage.takes("udp", "a")?;
    drop(first);
    let start = Instant::now();
    while socket.recv_from(&mut [0; 16]).is_ok() {}
    until("an answer by the second", SOON, answered)?;
    eprintln!(
        "datagrams found the second member after {:?}",
        start.elapsed()
    );
    stage.takes("udp", "b")?;
    stage.lab.await_proxy_count("/failures/upstream_lost", 1)?;
    tproxy.stop()
}
