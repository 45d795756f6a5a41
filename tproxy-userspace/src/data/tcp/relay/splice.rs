//! Bytes that are the same on both sides: they go through a pipe and never come to userspace.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{Broken, Side, drive};
use crate::data::record::Record;
use crate::data::tcp::pool::{Lent, PipePool};

/// Bytes one direction may move before other tasks get their turn: a millisecond or two.
const TURN: usize = 4 << 20;
/// Bytes of the buffer that stands in for a pipe.
const COPY_BYTES: usize = 64 << 10;

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
            Self::Pipe(pipe) => {
                let mut filled = 0;
                let result = from.try_io(Interest::READABLE, || {
                    filled = pipe.fill(from)?;
                    if pipe.has_emptied(filled) {
                        // This spares the call that would say so.
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    Ok(filled)
                });
                if filled > 0 { Ok(filled) } else { result }
            }
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
}

impl Half {
    fn new(from: Side) -> Self {
        Self {
            store: Store::None,
            from,
        }
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
        let to = streams.get(self.from.other());
        let mut moved = 0;
        loop {
            if self.store.held() > 0 {
                ready!(to.poll_write_ready(context)).map_err(Broken::of(self.from.other()))?;
                match self.store.drain(to) {
                    Ok(bytes) => {
                        moved += bytes;
                        self.from.count(bytes, record);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(Broken::of(self.from.other())(error))),
                }
                continue;
            }
            if moved >= TURN {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            match from.poll_read_ready(context) {
                Poll::Ready(result) => result.map_err(Broken::of(self.from))?,
                Poll::Pending => {
                    self.store = Store::None;
                    return Poll::Pending;
                }
            }
            match self.store.fill(from, record, streams.pool) {
                Ok(0) => {
                    self.store = Store::None;
                    // What was written goes first, then FIN.
                    let passed_on = SockRef::from(to).shutdown(Shutdown::Write);
                    return Poll::Ready(passed_on.map_err(Broken::of(self.from.other())));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Broken::of(self.from)(error))),
            }
        }
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

/// Relays between sockets whose bytes are the same.
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
    let poll = |side, context: &mut Context<'_>, record: &mut Record| match side {
        Side::Device => up.poll(context, &streams, record),
        Side::Upstream => down.poll(context, &streams, record),
    };
    record.outcome = drive(device, upstream, idle, record, poll).await;
}
