//! Two streams, and the bytes between them: spliced where they are the same on both sides, copied where the
//! upstream side transforms them.
//!
//! Both relay until both sides have sent FIN, one is broken, or nothing passes for as long as is allowed. The record
//! gets bytes and outcome. Unless that is [`Outcome::Finished`], both sides are to be reset.

pub mod copy;
pub mod splice;

use std::future::poll_fn;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::data::record::{Outcome, Record};

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Device,
    Upstream,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Device => Self::Upstream,
            Self::Upstream => Self::Device,
        }
    }

    /// Bytes that came from here have arrived on the other side.
    fn count(self, bytes: usize, record: &Record) {
        let bytes = bytes as u64;
        let counters = &record.shared().counters;
        match self {
            Self::Device => {
                record.flow().count_up(bytes);
                counters.up.fetch_add(bytes, Relaxed);
            }
            Self::Upstream => {
                record.flow().count_down(bytes);
                counters.down.fetch_add(bytes, Relaxed);
            }
        }
    }
}

/// An error, and whose it is.
#[derive(Debug)]
struct Broken {
    side: Side,
    error: io::Error,
}

impl Broken {
    fn of(side: Side) -> impl Fn(io::Error) -> Self {
        move |error| Self { side, error }
    }

    fn outcome(&self) -> Outcome {
        let lost = matches!(
            self.error.kind(),
            io::ErrorKind::TimedOut
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
        );
        match (self.side, self.error.kind()) {
            (Side::Device, _) if lost => Outcome::DeviceLost,
            (Side::Upstream, _) if lost => Outcome::UpstreamLost,
            (
                side,
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::NotConnected
                | io::ErrorKind::ConnectionAborted
                // TLS that ends without a word: what is missing, nobody knows.
                | io::ErrorKind::UnexpectedEof,
            ) => match side {
                Side::Device => Outcome::DeviceReset,
                Side::Upstream => Outcome::UpstreamReset,
            },
            _ => Outcome::Failed,
        }
    }
}

/// Polls both directions to their end, and keeps an eye on what they do not see. `poll` moves the bytes that come
/// from a side; it is ready when that side has sent FIN and it was passed on.
///
/// No async function: that would keep what it is called with twice, in every connection.
fn drive<'a>(
    device: &'a TcpStream,
    upstream: &'a TcpStream,
    idle: Duration,
    record: &'a mut Record,
    mut poll: impl FnMut(Side, &mut Context<'_>, &mut Record) -> Poll<Result<(), Broken>> + 'a,
) -> impl Future<Output = Outcome> + 'a {
    let (mut up_ended, mut down_ended) = (false, false);
    // Bytes so far, and when the last of them passed.
    let mut seen = (0, Instant::now());
    let mut timer = Box::pin(sleep_until(seen.1 + idle));
    // Set once one side has sent FIN: nobody reads from it any more, so its RST shows only as an error.
    let mut watch = None;
    poll_fn(move |context| {
        for (side, ended) in [
            (Side::Device, &mut up_ended),
            (Side::Upstream, &mut down_ended),
        ] {
            if *ended {
                continue;
            }
            match poll(side, context, record) {
                Poll::Ready(Ok(())) => *ended = true,
                Poll::Ready(Err(broken)) => return Poll::Ready(broken.outcome()),
                Poll::Pending => {}
            }
        }
        let finished = match (up_ended, down_ended) {
            (true, true) => return Poll::Ready(Outcome::Finished),
            (true, false) => Some(Side::Device),
            (false, true) => Some(Side::Upstream),
            (false, false) => None,
        };
        if let Some(side) = finished {
            let stream = match side {
                Side::Device => device,
                Side::Upstream => upstream,
            };
            let watch = watch.get_or_insert_with(|| Box::pin(error_of(stream)));
            if let Poll::Ready(error) = watch.as_mut().poll(context) {
                return Poll::Ready(Broken { side, error }.outcome());
            }
        }
        let passed = record.flow().up() + record.flow().down();
        if seen.0 != passed {
            seen = (passed, Instant::now());
        }
        // The timer is set anew only when it rings, not with every byte.
        while timer.as_mut().poll(context).is_ready() {
            let deadline = seen.1 + idle;
            if deadline <= Instant::now() {
                return Poll::Ready(Outcome::Idle);
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    })
}

/// Waits for an error on a stream that is not read from.
async fn error_of(stream: &TcpStream) -> io::Error {
    let ready = stream.ready(Interest::ERROR).await.map(|_| ());
    let error = ready.and_then(|()| stream.take_error());
    match error {
        Ok(Some(error)) | Err(error) => error,
        // A write of the other direction has taken it, and has failed with it.
        Ok(None) => io::ErrorKind::ConnectionReset.into(),
    }
}
