//! Much of everything, for long: nothing grows.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use lab::{
    Family, Lab, Tproxy,
    forger::dns_question,
    probe::{at, carry},
    servers::{Dnsmasq, Log, TcpEcho, UdpEcho},
    traffic::{self, open_udp},
    wait::{SOON, patient, until},
};
use nix::sys::signal::Signal;

use super::seconds;

const TCP: u16 = 7;
const UDP: u16 = 7000;
/// How many devices do something at a time.
const WORKERS: u64 = 4;
/// How many connections, and how many exchanges of datagrams, there are between two changes of the gateway.
const BATCH: u64 = 100;
/// What memory may grow by after the first quarter: 10,000 cached answers, and what the allocator keeps.
const MOST_KIB: u64 = 8 * 1024;

/// What one of the devices does: a connection, an exchange of datagrams from a new port, a question for a new name.
fn live(lab: &Lab, number: u64) -> Result<()> {
    let family = Family::BOTH[(number % 2) as usize];
    let far = |n: u64| family.far(2 + (n % 18) as u8);
    lab.device.enter(|| traffic::echo(at(far(number), TCP)))??;
    let socket = open_udp(&lab.device, family)?;
    socket.set_read_timeout(Some(patient(Duration::from_secs(5))))?;
    carry(&socket, at(far(number), UDP), &socket, b"question")?;
    let name = dns_question(number as u16, &format!("n{number}.near.test"));
    socket.send_to(&name, at(far(number), 53))?;
    socket.recv(&mut [0; 512])?;
    Ok(())
}

/// What is done to the gateway meanwhile.
fn change(lab: &Lab, tproxy: &Tproxy, number: u64) -> Result<()> {
    let prefix = format!("198.51.100.{}", number % 256);
    lab.bypass(&["add", &prefix, "--ttl", "1s"])?;
    if number.is_multiple_of(2) {
        let seen = tproxy.process().lines().len();
        tproxy.process().signal(Signal::SIGHUP)?;
        tproxy
            .process()
            .wait_for_line_after(seen, "reloaded", SOON)?;
    }
    lab.tproxy_run(&["flows", "--json"])?.ok()?;
    Ok(())
}

#[test]
fn nothing_grows() -> Result<()> {
    let lab = Lab::new()?;
    let _tcp = TcpEcho::start(&lab.internet, TCP)?;
    let _udp = UdpEcho::start(&lab.internet, UDP..=UDP)?;
    let near = Family::V4.far(19);
    let answer = format!("--address=/near.test/{near}");
    let _dns = Dnsmasq::start_with(&lab.internet, Log::Nothing, &[answer])?;
    let server = Family::V4.far(1);
    let tproxy = lab.tproxy_configured(&format!(
        "[udp]\nidle = \"1s\"\ndns_idle = \"1s\"\n[dns]\ndirect = [\"{server}\"]\nproxy = [\"{server}\"]\n\
         direct_domains = [\"near.test\"]\n"
    ))?;
    live(&lab, 0)?;
    lab.await_proxy_count("/associations", 0)?;
    let before = tproxy.open_now()?;
    let (time, start) = (seconds(6), Instant::now());
    let (mut early, mut number) = (None, 0);
    while start.elapsed() < time {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|worker| {
                    let lab = &lab;
                    scope.spawn(move || -> Result<()> {
                        let all = (worker..BATCH).step_by(WORKERS as usize);
                        all.into_iter()
                            .try_for_each(|n| live(lab, number * BATCH + n))
                    })
                })
                .collect();
            for worker in workers {
                worker.join().map_err(|_| anyhow!("a worker panicked"))??;
            }
            change(&lab, &tproxy, number)
        })?;
        number += 1;
        if early.is_none() && start.elapsed() > time / 4 {
            early = Some(tproxy.resident_kib()?);
        }
    }
    lab.await_proxy_count("/connections", 0)?;
    lab.await_proxy_count("/associations", 0)?;
    tproxy.back_to(before)?;
    let (early, late) = (early.unwrap_or_default(), tproxy.resident_kib()?);
    eprintln!(
        "{} times each: connections, datagrams and names; {early} KiB resident after a quarter, {late} at the end",
        number * BATCH
    );
    ensure!(late <= early + MOST_KIB, "from {early} KiB to {late}");
    // One address for all those names; and what was bypassed for a second is not any more.
    until("expired prefixes to go", 7 * SOON, || {
        Ok((lab.bypass_list()?.len() <= 2).then_some(()))
    })?;
    Ok(())
}
