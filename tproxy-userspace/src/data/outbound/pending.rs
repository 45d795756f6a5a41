//! Bytes that are still to be sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// A buffer of more bytes than this is given back when it is empty.
const KEPT: usize = 4 << 10;

/// See the module.
#[derive(Default)]
pub struct Pending {
    /// What was to be sent, and is from `sent` on.
    pub bytes: Vec<u8>,
    sent: usize,
}

impl Pending {
    /// These, all of them still to be sent.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0 }
    }

    /// Sends what there is. Ready when nothing is left.
    pub fn poll_drain(
        &mut self,
        mut into: Pin<&mut impl AsyncWrite>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            match ready!(into.as_mut().poll_write(cx, &self.bytes[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT {
            self.bytes = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}
