//! What a device sends first: read for the name in it, or to go with a handshake.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::data::router::Sniff;
use crate::data::sniff::{self, Progress};

/// A TLS client hello of a browser fits.
const USUAL: usize = 2048;
/// How long the first bytes are waited for that could go with a handshake, from the connection's acceptance. A device
/// that speaks first needs its own half of a round trip in the LAN for them. One that does not waits for a server that
/// has to hear of it, so long at most.
const WITH_HANDSHAKE: Duration = Duration::from_millis(30);

/// What was read.
#[derive(Debug, Default)]
pub struct First {
    /// All of it, to be handed on.
    pub bytes: Vec<u8>,
    /// The name in it.
    pub name: Option<Box<str>>,
}

/// Reads what the device sends until the name in it is known, or known to be missing, for at most `limit`.
/// A device that ends its side, or waits for the server to speak first, is no error.
///
/// # Errors
/// When the connection is broken.
pub async fn read(device: &TcpStream, limit: Duration) -> io::Result<First> {
    let deadline = Instant::now() + limit;
    let mut bytes = Vec::with_capacity(USUAL);
    while let Ok(readable) = timeout_at(deadline, device.readable()).await {
        readable?;
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len());
        }
        match device.try_read_buf(&mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        match sniff::tcp(&bytes) {
            Progress::NeedMore => {}
            Progress::NotThis => break,
            Progress::Name(found) => {
                let name = Some(found.name.into());
                return Ok(First { bytes, name });
            }
        }
    }
    Ok(First { bytes, name: None })
}

/// Until when the first bytes of a connection that was accepted now may come to go with a handshake.
pub fn deadline(port: u16) -> Instant {
    let sniff = Sniff {
        timeout: WITH_HANDSHAKE,
        rewrite: false,
    };
    Instant::now() + sniff.limit(port)
}

/// Reads what the device has sent by `deadline`, if it has. One that ended its side is no error.
///
/// # Errors
/// When the connection is broken.
pub async fn payload(device: &TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Ok(readable) = timeout_at(deadline, device.readable()).await {
        readable?;
        bytes.reserve(USUAL);
        match device.try_read_buf(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read.map(|_| bytes),
        }
    }
    Ok(bytes)
}
