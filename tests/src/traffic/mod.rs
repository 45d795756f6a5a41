//! The clients: what devices do.

mod dns;
mod http;
mod iperf;
mod udp;

pub use dns::{dig, dig_tcp};
pub use http::{Download, HeldDownload, download, parallel_downloads, upload, whoami};
pub use iperf::{Report, Test, iperf};
pub use udp::{Peers, echo_sizes, open_udp, peers};

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::Namespace;

/// Opens a TCP connection from `ns`. It can be used from any thread; reads and writes fail after 10 s.
///
/// # Errors
/// When it is refused or not answered within 5 s.
pub fn connect(ns: &Namespace, target: SocketAddr) -> Result<TcpStream> {
    let stream = ns
        .enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)))?
        .with_context(|| format!("connecting from {} to {target}", ns.name()))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Connects from `ns` to an echo, and wants a line back as it was sent.
///
/// # Errors
/// When the connection fails, or something else comes back.
pub fn echo_line(ns: &Namespace, target: SocketAddr) -> Result<()> {
    const LINE: [u8; 13] = *b"SSH-2.0-lab\r\n";
    let mut stream = connect(ns, target)?;
    stream.write_all(&LINE)?;
    let mut answer = [0; LINE.len()];
    stream.read_exact(&mut answer)?;
    ensure!(
        answer == LINE,
        "{target} sent {:?}",
        answer.escape_ascii().to_string()
    );
    Ok(())
}
