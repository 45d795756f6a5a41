//! Two streams, and the bytes between them.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::pool::{Lent, PipePool};
use crate::data::record::{Outcome, Record};

/// Bytes one direction may move before other tasks get their turn: a millisecond or two.
const TURN: usize = 4 << 20;
/// Bytes of the buffer that stands in for a pipe.
const COPY_BYTES: usize = 64 << 10;

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Device,
    Upstream,
}

/// An error, and whose it is.
#[derive(Debug)]
struct Broken {
    side: Side,
    error: io::Error,
}

impl Broken {
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
                | io::ErrorKind::ConnectionAborted,
            ) => match side {
                Side::Device => Outcome::DeviceReset,
                Side::Upstream => Outcome::UpstreamReset,
            },
            _ => Outcome::Failed,
        }
    }
}

/// Where bytes in flight are. An idle direction has [`Store::None`].
enum Store {
    None,
    Pipe(Lent),
    /// No pipe was to be had.
    Copy(CopyBuffer),
}

struct CopyBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Store {
    fn held(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Pipe(pipe) => pipe.held(),
            Self::Copy(buffer) => buffer.end - buffer.start,
        }
    }

    /// Only called with nothing held.
    fn fill(
        &mut self,
        from: &TcpStream,
        record: &Record,
        pool: &Arc<PipePool>,
    ) -> io::Result<usize> {
        if matches!(self, Self::None) {
            *self = match pool.lend() {
                Some(pipe) => Self::Pipe(pipe),
                None => {
                    let counters = &record.shared().counters;
                    counters.pipe_missing.fetch_add(1, Relaxed);
                    Self::Copy(CopyBuffer {
                        bytes: vec![0; COPY_BYTES],
                        start: 0,
                        end: 0,
                    })
                }
            };
        }
        match self {
            Self::None => Ok(0),
            Self::Pipe(pipe) => from.try_io(Interest::READABLE, || pipe.fill(from)),
            Self::Copy(buffer) => {
                let filled = from.try_read(&mut buffer.bytes)?;
                (buffer.start, buffer.end) = (0, filled);
                Ok(filled)
            }
        }
    }

    fn drain(&mut self, into: &TcpStream) -> io::Result<usize> {
        match self {
            Self::None => Ok(0),
            Self::Pipe(pipe) => into.try_io(Interest::WRITABLE, || pipe.drain(into)),
            Self::Copy(buffer) => {
                let drained = into.try_write(&buffer.bytes[buffer.start..buffer.end])?;
                buffer.start += drained;
                Ok(drained)
            }
        }
    }
}

/// One direction.
struct Half {
    store: Store,
    from: Side,
    ended: bool,
}

impl Half {
    fn new(from: Side) -> Self {
        Self {
            store: Store::None,
            from,
            ended: false,
        }
    }

    fn to(&self) -> Side {
        match self.from {
            Side::Device => Side::Upstream,
            Side::Upstream => Side::Device,
        }
    }

    fn broken(side: Side) -> impl Fn(io::Error) -> Broken {
        move |error| Broken { side, error }
    }

    /// Moves bytes until there are none, the other side has no room, or the turn is over. Ready when the
    /// source sent FIN and it was passed on.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        streams: &Streams<'_>,
        record: &mut Record,
    ) -> Poll<Result<(), Broken>> {
        let from = streams.get(self.from);
        let to = streams.get(self.to());
        let mut moved = 0;
        loop {
            if self.store.held() > 0 {
                ready!(to.poll_write_ready(context)).map_err(Self::broken(self.to()))?;
                match self.store.drain(to) {
                    Ok(bytes) => {
                        moved += bytes;
                        self.count(bytes, record);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(Self::broken(self.to())(error))),
                }
                continue;
            }
            if moved >= TURN {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            match from.poll_read_ready(context) {
                Poll::Ready(result) => result.map_err(Self::broken(self.from))?,
                Poll::Pending => {
                    self.store = Store::None;
                    return Poll::Pending;
                }
            }
            match self.store.fill(from, record, streams.pool) {
                Ok(0) => {
                    self.store = Store::None;
                    self.ended = true;
                    // What was written goes first, then FIN.
                    let passed_on = SockRef::from(to).shutdown(Shutdown::Write);
                    return Poll::Ready(passed_on.map_err(Self::broken(self.to())));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Self::broken(self.from)(error))),
            }
        }
    }

    fn count(&self, bytes: usize, record: &mut Record) {
        let bytes = bytes as u64;
        let (own, all): (_, fn(&Record) -> &AtomicU64) = match self.from {
            Side::Device => (&mut record.up, |record| &record.shared().counters.up),
            Side::Upstream => (&mut record.down, |record| &record.shared().counters.down),
        };
        *own += bytes;
        all(record).fetch_add(bytes, Relaxed);
    }
}

#[derive(Clone, Copy)]
struct Streams<'a> {
    device: &'a TcpStream,
    upstream: &'a TcpStream,
    pool: &'a Arc<PipePool>,
}

impl<'a> Streams<'a> {
    fn get(&self, side: Side) -> &'a TcpStream {
        match side {
            Side::Device => self.device,
            Side::Upstream => self.upstream,
        }
    }
}

/// Relays until both sides have sent FIN, one is broken, or nothing passes for `idle`. The record gets bytes
/// and outcome. Unless that is [`Outcome::Finished`], both sides are to be reset.
pub async fn relay(
    device: &TcpStream,
    upstream: &TcpStream,
    pool: &Arc<PipePool>,
    idle: Duration,
    record: &mut Record,
) {
    let streams = Streams {
        device,
        upstream,
        pool,
    };
    let mut up = Half::new(Side::Device);
    let mut down = Half::new(Side::Upstream);
    // Bytes so far, and when the last of them passed.
    let mut seen = (0, Instant::now());
    let mut timer = pin!(sleep_until(seen.1 + idle));
    // Set once one side has sent FIN: nobody reads from it any more, so its RST shows only as an error.
    let mut watch = None;
    record.outcome = poll_fn(|context| {
        for half in [&mut up, &mut down] {
            if half.ended {
                continue;
            }
            match half.poll(context, &streams, record) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(broken)) => return Poll::Ready(broken.outcome()),
                Poll::Pending => {}
            }
        }
        let finished = match (up.ended, down.ended) {
            (true, true) => return Poll::Ready(Outcome::Finished),
            (true, false) => Some(Side::Device),
            (false, true) => Some(Side::Upstream),
            (false, false) => None,
        };
        if let Some(side) = finished {
            let watch = watch.get_or_insert_with(|| Box::pin(error_of(streams.get(side))));
            if let Poll::Ready(error) = watch.as_mut().poll(context) {
                return Poll::Ready(Broken { side, error }.outcome());
            }
        }
        let passed = record.up + record.down;
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
    .await;
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
