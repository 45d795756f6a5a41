//! Datagrams by the protocols of outbounds, as the library speaks them, with real servers.

use std::{future::Future, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Namespace, SingBox,
    probe::at,
    servers::{Shadowsocks, UdpEcho},
};
use tokio::{net::UdpSocket, time::timeout};
use tproxy_userspace::data::outbound::shadowsocks::{ShadowsocksServer, session};

/// The port of the echo.
const DATAGRAMS: u16 = 7007;
/// Far longer than anything takes here.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs it in the namespace of the servers.
fn run<T: Send>(ns: &Namespace, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    ns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { timeout(3 * LIMIT, work).await.context("it hangs")? })
    })?
}

async fn shadowsocks(address: SocketAddr, url: &str) -> Result<()> {
    let server: ShadowsocksServer = url.parse()?;
    for family in Family::BOTH {
        let far = family.far(1);
        let (sealer, mut opener) = session(&server.keys);
        let socket = UdpSocket::bind(at(address.ip(), 0)).await?;
        socket.connect(address).await?;
        for size in [0, 1, 1200] {
            let (payload, mut sealed, mut out) = (vec![size as u8; size], Vec::new(), Vec::new());
            sealer.seal(at(far, DATAGRAMS), &payload, &mut sealed);
            socket.send(&sealed).await?;
            let mut datagram = vec![0; 2000];
            let read = timeout(LIMIT, socket.recv(&mut datagram)).await;
            let length = read.with_context(|| format!("{size} bytes to {far} got no answer"))??;
            let (peer, range) = opener.open(&datagram[..length], &mut out)?;
            ensure!(peer == Some(at(far, DATAGRAMS)), "{peer:?}");
            ensure!(out[range] == payload, "{size} bytes came back as others");
        }
    }
    Ok(())
}

#[test]
fn ss_server_takes_our_aead() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = UdpEcho::start(&lab.internet, DATAGRAMS..=DATAGRAMS)?;
    for (port, method) in (8388..).zip(["aes-128-gcm", "aes-256-gcm", "chacha20-ietf-poly1305"]) {
        let address = at(Family::V4.upstream(1), port);
        let server = Shadowsocks::start(&lab.internet, address, method, "secret: word")?;
        run(&lab.internet, shadowsocks(address, &server.url()))
            .with_context(|| format!("{method}: {}", server.process().lines().join("\n")))?;
    }
    Ok(())
}

#[test]
fn sing_box_takes_our_2022() -> Result<()> {
    const SHORT: &str = "AAECAwQFBgcICQoLDA0ODw==";
    const USER: &str = "EBESExQVFhcYGRobHB0eHw==";
    const LONG: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const LONG_USER: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
    let Some(sing_box) = SingBox::or_skip()? else {
        return Ok(());
    };
    let lab = Lab::new()?;
    let _echo = UdpEcho::start(&lab.internet, DATAGRAMS..=DATAGRAMS)?;
    let (ns, dir) = (&lab.internet, lab.dir());
    for (port, (method, password)) in (8388..).zip([
        ("2022-blake3-aes-128-gcm", SHORT),
        ("2022-blake3-aes-256-gcm", LONG),
        ("2022-blake3-chacha20-poly1305", LONG),
        ("2022-blake3-aes-128-gcm", &format!("{SHORT}:{USER}")),
        ("2022-blake3-aes-256-gcm", &format!("{LONG}:{LONG_USER}")),
    ]) {
        let address = at(Family::V4.upstream(1), port);
        let server = Shadowsocks::start_2022(&sing_box, ns, dir, address, method, password)?;
        run(ns, shadowsocks(address, &server.url()))
            .with_context(|| format!("{method}: {}", server.process().lines().join("\n")))?;
    }
    Ok(())
}
