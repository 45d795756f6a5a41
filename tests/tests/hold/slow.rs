//! Devices that ask for much and read nothing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Result, ensure};
use lab::{
    Family, Far, Lab,
    probe::at,
    servers::Shadowsocks,
    traffic::{self, connect},
    usage,
    wait::{SOON, until},
};

/// Those who do not read.
const SLOW: usize = 300;
/// What each of them asks for.
const SIZE: u64 = 64 << 20;
/// What the proxy may keep for each of them.
const MOST_KIB: u64 = 256;

/// Asks for a file and reads none of it.
fn begin(lab: &Lab, n: usize, path: &str) -> Result<TcpStream> {
    let mut stream = connect(&lab.device, at(Family::BOTH[n % 2].far(1), 80))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: far\r\n\r\n")?;
    Ok(stream)
}

/// What is kept for those who do not read is bounded, the others get what they want meanwhile, and who reads again gets
/// the rest.
fn slow(lab: &Lab, config: &str) -> Result<()> {
    let far = Far::start(lab)?;
    let (path, content) = far.nginx.offer(SIZE)?;
    let tproxy = lab.tproxy_configured(config)?;
    let (before, rest) = (tproxy.open_now()?, tproxy.resident_kib()?);
    let mut all = (0..SLOW)
        .map(|n| begin(lab, n, &path))
        .collect::<Result<Vec<_>>>()?;
    lab.await_proxy_count("/connections", SLOW as u64)?;
    let pid = tproxy.process().pid();
    // It has read what there is room for.
    let mut last = 0;
    let still = || -> Result<Option<()>> {
        let now = lab.proxy_count("/bytes_down")?;
        let still = now == std::mem::replace(&mut last, now);
        Ok((still && now > 0).then_some(()))
    };
    until("the end of what there is room for", SOON, still)?;
    let held = usage::resident_kib(pid)?;
    eprintln!(
        "{SLOW} that do not read: {rest} KiB resident before, {held} with them, {last} bytes relayed"
    );
    let most = rest + SLOW as u64 * MOST_KIB;
    ensure!(held < most, "{held} KiB are resident, not {most}");
    ensure!(last < SLOW as u64 * SIZE / 2, "{last} bytes were read");
    // Another one is served.
    let whole = traffic::download(&lab.device, &lab::addr::url(Family::V4.far(2), &path))?;
    assert_eq!(whole.sha256, content.sha256);
    // One of them reads at last.
    let mut reader = all.swap_remove(0);
    reader.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut buffer = vec![0; 1 << 16];
    let mut left = SIZE;
    while left > 0 {
        let read = reader.read(&mut buffer)? as u64;
        ensure!(read > 0, "{left} bytes are missing");
        left = left.saturating_sub(read);
    }
    drop((reader, all));
    lab.await_proxy_count("/connections", 0)?;
    tproxy.back_to(before)
}

#[test]
fn who_does_not_read_costs_little() -> Result<()> {
    slow(&Lab::new()?, "")
}

#[test]
fn who_does_not_read_costs_little_behind_an_encrypting_outbound() -> Result<()> {
    let lab = Lab::new()?;
    let server = Shadowsocks::start(
        &lab.internet,
        at(Family::V4.far(3), 8388),
        "aes-256-gcm",
        "key",
    )?;
    slow(
        &lab,
        &format!("[[outbound]]\nname = \"ss\"\nurl = \"{}\"\n", server.url()),
    )
}
