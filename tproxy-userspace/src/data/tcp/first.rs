//! What a device sends first, read for the name in it.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::data::sniff::{self, Progress};

/// A TLS client hello of a browser fits.
const USUAL: usize = 2048;

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
