//! The clients: what devices do.

mod dns;
mod http;
mod iperf;
mod load;
mod udp;

pub use dns::{Answer, Answers, Load, Over, Record, dig, dig_tcp, dnsperf, question};
pub use http::{
    Download, HeldDownload, Visit, download, parallel_downloads, through_socks, upload, visit,
    whoami,
};
pub use iperf::{Report, Test, iperf};
pub use load::{hold, hold_most, under_load};
pub use udp::{Peers, echo_sizes, open_udp, peers};

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Namespace,
    servers::TcpEcho,
    wait::{SOON, patient},
};

/// Opens a TCP connection from `ns`. It can be used from any thread; reads and writes fail after 10 s.
///
/// # Errors
/// When it is refused or not answered within 5 s.
pub fn connect(ns: &Namespace, target: SocketAddr) -> Result<TcpStream> {
    let stream = ns
        .enter(|| TcpStream::connect_timeout(&target, patient(Duration::from_secs(5))))?
        .with_context(|| format!("connecting from {} to {target}", ns.name()))?;
    stream.set_read_timeout(Some(patient(Duration::from_secs(10))))?;
    stream.set_write_timeout(Some(patient(Duration::from_secs(10))))?;
    Ok(stream)
}

/// One connection from the namespace of this thread there and back, each within [`SOON`].
///
/// # Errors
/// What became of it; [`ErrorKind::InvalidData`] when something else came back than was sent.
pub fn echo(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, patient(SOON))?;
    stream.set_read_timeout(Some(patient(SOON)))?;
    stream.write_all(b"hello")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    match &back {
        b"hello" => Ok(()),
        _ => Err(ErrorKind::InvalidData.into()),
    }
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

/// Connects from `ns` to a server that [speaks first](TcpEcho::start_speaking) and says nothing; gives the time from
/// the start of the connection to the whole banner.
///
/// # Errors
/// When the connection fails, or something else comes.
pub fn banner(ns: &Namespace, target: SocketAddr) -> Result<Duration> {
    let start = Instant::now();
    let mut stream = connect(ns, target)?;
    let mut banner = [0; TcpEcho::BANNER.len()];
    stream.read_exact(&mut banner)?;
    let elapsed = start.elapsed();
    ensure!(
        banner == TcpEcho::BANNER,
        "{target} sent {:?}",
        banner.escape_ascii().to_string()
    );
    Ok(elapsed)
}
