//! The protocols of outbounds, as the library speaks them, with real servers.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Family, Lab, Namespace, SingBox,
    addr::host,
    probe::at,
    servers::{Certificate, Shadowsocks, TcpEcho, Trojan, UdpEcho},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tproxy_userspace::data::outbound::{
    Target,
    shadowsocks::{ShadowsocksServer, ShadowsocksStream, session},
    trojan::{self, Command, Parsed, TrojanServer, parse_datagram, put_datagram},
};

/// The ports of the echo, of the server that speaks first, and of the echo of datagrams.
const ECHO: u16 = 7;
const SPEAKS: u16 = 25;
const DATAGRAMS: u16 = 7007;
/// Far longer than anything takes here.
const LIMIT: Duration = Duration::from_secs(10);

/// An internet with something to talk to.
struct Stage {
    lab: Lab,
    _tcp: [TcpEcho; 2],
    _udp: UdpEcho,
}

impl Stage {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        Ok(Self {
            _tcp: [
                TcpEcho::start(&lab.internet, ECHO)?,
                TcpEcho::start_speaking(&lab.internet, SPEAKS)?,
            ],
            _udp: UdpEcho::start(&lab.internet, DATAGRAMS..=DATAGRAMS)?,
            lab,
        })
    }

    fn internet(&self) -> &Namespace {
        &self.lab.internet
    }
}

/// Runs it in the namespace of the servers.
fn run<T: Send>(ns: &Namespace, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    ns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { timeout(3 * LIMIT, work).await.context("it hangs")? })
    })?
}

/// What a server makes of the end of a client's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HalfClose {
    /// The target's way goes on.
    Kept,
    /// It closes both (ss-server, trojan).
    Both,
}

/// Sends far more than any buffer holds and wants all of it back. With a server that keeps it, its way ends before.
async fn echoes(stream: impl AsyncRead + AsyncWrite, half_close: HalfClose) -> Result<()> {
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|number| ((number * 7) >> 3) as u8)
        .collect();
    let (mut read, mut write) = split(stream);
    let sent = async {
        write.write_all(&bytes).await?;
        match half_close {
            HalfClose::Kept => write.shutdown().await,
            HalfClose::Both => write.flush().await,
        }
    };
    let mut back = vec![0; bytes.len()];
    let (sent, got) = tokio::join!(sent, read.read_exact(&mut back));
    sent.context("sending")?;
    got.context("reading")?;
    ensure!(back == bytes, "other bytes came back");
    write.shutdown().await?;
    let more = read.read(&mut [0; 9]).await.context("the end")?;
    ensure!(more == 0, "more than all came back");
    Ok(())
}

/// Waits for a server that speaks first.
async fn hears(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    stream.flush().await?;
    let mut banner = vec![0; TcpEcho::BANNER.len()];
    stream.read_exact(&mut banner).await.context("the banner")?;
    ensure!(banner == TcpEcho::BANNER);
    Ok(())
}

async fn shadowsocks(address: SocketAddr, url: &str, half_close: HalfClose) -> Result<()> {
    let server: ShadowsocksServer = url.parse()?;
    let connect = async |target: Target<'_>| -> Result<_> {
        let stream = TcpStream::connect(address).await?;
        Ok(ShadowsocksStream::new(stream, &server.keys, target))
    };
    for family in Family::BOTH {
        let far = family.far(1);
        echoes(connect(at(far, ECHO).into()).await?, half_close)
            .await
            .with_context(|| format!("TCP to {far}"))?;
        hears(connect(at(far, SPEAKS).into()).await?).await?;

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
    // A name that needs nobody to look it up.
    let literal = host(Family::V4.far(1));
    let target = Target::Name(&literal, ECHO);
    echoes(connect(target).await?, half_close)
        .await
        .context("TCP to a name")
}

#[test]
fn ss_server_takes_our_aead() -> Result<()> {
    let stage = Stage::new()?;
    for (port, method) in (8388..).zip(["aes-128-gcm", "aes-256-gcm", "chacha20-ietf-poly1305"]) {
        let address = at(Family::V4.upstream(1), port);
        let server = Shadowsocks::start(stage.internet(), address, method, "secret: word")?;
        run(
            stage.internet(),
            shadowsocks(address, &server.url(), HalfClose::Both),
        )
        .with_context(|| format!("{method}: {}", server.process().lines().join("\n")))?;
    }
    Ok(())
}

#[test]
fn ss_server_has_no_answer_for_another_password() -> Result<()> {
    let stage = Stage::new()?;
    let address = at(Family::V4.upstream(1), 8388);
    let server = Shadowsocks::start(stage.internet(), address, "aes-128-gcm", "secret")?;
    let other: ShadowsocksServer = server.url_with("another").parse()?;
    run(stage.internet(), async {
        let stream = TcpStream::connect(address).await?;
        let target = at(Family::V4.far(1), ECHO).into();
        let mut stream = ShadowsocksStream::new(stream, &other.keys, target);
        stream.write_all(b"hello").await?;
        let mut bytes = [0; 5];
        // It is silent, so that who tries finds nothing, or closes the connection.
        if let Ok(Ok(length)) = timeout(Duration::from_secs(1), stream.read(&mut bytes)).await {
            ensure!(length == 0, "{bytes:?}");
        }
        ensure!(!stream.has_answered() && stream.fault().is_none());
        Ok(())
    })
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
    let stage = Stage::new()?;
    let (ns, dir) = (stage.internet(), stage.lab.dir());
    for (port, (method, password)) in (8388..).zip([
        ("2022-blake3-aes-128-gcm", SHORT),
        ("2022-blake3-aes-256-gcm", LONG),
        ("2022-blake3-chacha20-poly1305", LONG),
        ("2022-blake3-aes-128-gcm", &format!("{SHORT}:{USER}")),
        ("2022-blake3-aes-256-gcm", &format!("{LONG}:{LONG_USER}")),
    ]) {
        let address = at(Family::V4.upstream(1), port);
        let server = Shadowsocks::start_2022(&sing_box, ns, dir, address, method, password)?;
        run(ns, shadowsocks(address, &server.url(), HalfClose::Kept))
            .with_context(|| format!("{method}: {}", server.process().lines().join("\n")))?;
    }
    Ok(())
}
