//! The wall clock jumps, as it does when a gateway without a battery asks for the time.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab,
    addr::url,
    faults::{Policy, Scene, Seen, Sight, UDP, moves},
    probe::at,
    process,
    servers::{Dnsmasq, Nginx},
    traffic::open_udp,
    wait::{SOON, patient, until},
    ways::soon,
};

/// Set by `cargo xtask vm`: the clock is nobody else's. A namespace has none of its own.
const OWN: &str = "LAB_OWN_CLOCK";
const DAY: Duration = Duration::from_secs(86_400);
/// Long enough for what is done meanwhile.
const TTL: Duration = Duration::from_secs(15);

fn set(time: SystemTime) -> Result<()> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let mut command = Command::new("date");
    command.args(["-s", &format!("@{seconds}")]);
    process::run(command, SOON)?.ok()?;
    Ok(())
}

#[test]
fn the_clock_jumps_a_day_forth_and_back() -> Result<()> {
    if std::env::var_os(OWN).is_none() {
        eprintln!(
            "SKIPPED: this clock is not ours to set; `cargo xtask vm faults::clock` has one that is"
        );
        return Ok(());
    }
    let scene = Scene::new(Lab::builder())?;
    let lab = &scene.lab;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let _dns = Dnsmasq::start(&lab.internet)?;
    let (page, names) = (url(Family::V4.far(2), "whoami"), Family::V4.far(3));
    let more = format!(
        "[[outbound]]\nname = \"one\"\nurl = \"direct://\"\n[[group]]\nname = \"all\"\nkind = \"fallback\"\n\
         members = [\"one\", \"block\"]\n[check]\nurl = \"{page}\"\ndns = \"{names}:53\"\ninterval = \"5s\"\ntimeout = \"5s\"\n"
    );
    let healthy = || -> Result<()> {
        let status = lab.tproxy_run(&["status"])?.ok()?.stdout;
        ensure!(
            status.contains("TCP up") && status.contains("UDP up"),
            "{status}"
        );
        Ok(())
    };
    let mut process = scene.run(&scene.write(Policy::Drop, &more)?, None)?;
    soon("both checks to be answered", healthy)?;
    let held = scene.streams()?;
    let socket = open_udp(&lab.device, Family::V4)?;
    socket.set_read_timeout(Some(patient(SOON)))?;
    let target = at(Family::V4.far(1), UDP);
    let ttl = patient(TTL);
    let begun = Instant::now();
    let seconds = format!("{}s", ttl.as_secs());
    lab.bypass(&["add", "203.0.113.18/32", "--ttl", &seconds])?;
    lab.bypass(&["add", "203.0.113.19/32", "--ttl", "2d"])?;
    let listed = |prefix: &str| -> Result<bool> {
        let all = lab.bypass_list()?;
        Ok(all.iter().any(|entry| entry["prefix"] == prefix))
    };
    let talk = || -> Result<SocketAddr> {
        socket.send_to(b"still there?", target)?;
        let (_, from) = socket.recv_from(&mut [0; 64]).context("an answer")?;
        ensure!(from == target, "{from}");
        Ok(from)
    };
    let now = SystemTime::now();
    for time in [now + DAY, now, now - DAY, now] {
        set(time + begun.elapsed())?;
        held.iter().try_for_each(moves)?;
        talk()?;
        healthy()?;
        ensure!(
            listed("203.0.113.18/32")? || begun.elapsed() > ttl,
            "it ended with the clock"
        );
        ensure!(listed("203.0.113.19/32")?, "it ended with the clock");
    }
    until("the entry to end in its time", 2 * TTL + SOON, || {
        Ok((!listed("203.0.113.18/32")?).then_some(()))
    })?;
    ensure!(begun.elapsed() >= ttl, "{:?}", begun.elapsed());
    ensure!(listed("203.0.113.19/32")?, "it ended with the other");
    healthy()?;
    scene.look(Sight::all(Seen::Proxied))?;
    // Datagrams end when they idle, not when a clock says so.
    lab.await_proxy_count("/associations", 0)?;
    held.iter().try_for_each(moves)?;
    drop(held);
    process.stop(2 * SOON)?;
    scene.clean().map(drop)
}
