//! Bytes that the upstream side transforms.
//!
//! What is read goes into a buffer of the thread, and from there to the other side. Only what that side has no room for
//! is kept, so a connection that idles has no buffer at all.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::{Broken, Side, drive};
use crate::data::outbound::what_is_wrong;
use crate::data::record::{Outcome, Protocol, Record};
use crate::data::stream::{Duplex, Shared, Wrapped};

/// Bytes one direction may move before other tasks get their turn: a millisecond or two.
const TURN: usize = 1 << 20;
/// Bytes of the buffer of a thread: four of the longest records of TLS.
const SCRATCH: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// One direction.
struct Half {
    from: Side,
    /// What the other side has no room for yet.
    kept: Vec<u8>,
    /// How much of that is gone.
    start: usize,
    /// What was written may still be on this side of the socket.
    unflushed: bool,
    /// The source sent FIN.
    closing: bool,
    /// The end before the first byte is no FIN, if the other direction moved any.
    must_answer: bool,
    /// What came behind the bytes that were read last: FIN, or an error.
    end: Option<io::Result<()>>,
}

impl Half {
    fn new(from: Side) -> Self {
        Self {
            from,
            kept: Vec::new(),
            start: 0,
            unflushed: false,
            closing: false,
            must_answer: false,
            end: None,
        }
    }

    /// Reads until the buffer is full or there is no more for now, so that the other side is given much at once.
    fn fill(
        &mut self,
        context: &mut Context<'_>,
        mut from: Pin<&mut (impl Duplex + ?Sized)>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(end);
        }
        loop {
            let before = buffer.filled().len();
            match from.as_mut().poll_read(context, buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                end if before == 0 => return end,
                Poll::Ready(end) => {
                    self.end = Some(end);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => return Poll::Ready(Ok(())),
            }
            if buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Moves bytes until there are none, the other side has no room, or the turn is over. Ready when the
    /// source sent FIN and it was passed on.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        mut from: Pin<&mut (impl Duplex + ?Sized)>,
        mut to: Pin<&mut (impl Duplex + ?Sized)>,
        record: &mut Record,
    ) -> Poll<Result<(), Broken>> {
        let broken_to = Broken::of(self.from.other());
        let mut moved = 0;
        loop {
            while self.start < self.kept.len() {
                let written = ready!(to.as_mut().poll_write(context, &self.kept[self.start..]));
                let written = written.and_then(something).map_err(&broken_to)?;
                self.start += written;
                self.from.count(written, record);
            }
            if self.start > 0 {
                (self.kept, self.start) = (Vec::new(), 0);
            }
            if self.closing {
                // What was written goes first, then FIN or what stands for it.
                return to.poll_shutdown(context).map_err(broken_to);
            }
            if moved >= TURN {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let read = BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                let read = self.fill(context, from.as_mut(), &mut buffer);
                ready!(read).map_err(Broken::of(self.from))?;
                let mut rest = buffer.filled();
                let read = rest.len();
                while !rest.is_empty() {
                    match to.as_mut().poll_write(context, rest) {
                        Poll::Ready(written) => {
                            let written = written.and_then(something).map_err(&broken_to)?;
                            self.unflushed = true;
                            self.from.count(written, record);
                            rest = &rest[written..];
                        }
                        Poll::Pending => {
                            self.kept = rest.to_vec();
                            break;
                        }
                    }
                }
                Poll::Ready(Ok(read))
            });
            match read {
                Poll::Ready(Ok(0)) if self.must_answer && is_silent(record) => {
                    let error = io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Err(Broken::of(self.from)(error)));
                }
                Poll::Ready(Ok(0)) => self.closing = true,
                Poll::Ready(Ok(read)) => moved += read,
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(to.poll_flush(context)).map_err(broken_to)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Writing that takes nothing and is no error would go on for ever.
fn something(written: usize) -> io::Result<usize> {
    match written {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

/// Something was sent, and nothing came back.
fn is_silent(record: &Record) -> bool {
    record.flow().up() > 0 && record.flow().down() == 0
}

/// Relays between a socket and what transforms its bytes.
///
/// A server that was only sent to so far is on trial: if it ends the connection without a byte, it does not take what it
/// was sent, and the way is told.
pub async fn relay(
    device: &TcpStream,
    upstream: &mut Wrapped,
    idle: Duration,
    record: &mut Record,
) {
    let duplex = &mut *upstream.duplex;
    let mut on_trial = upstream.opens_with_payload;
    let mut up = Half::new(Side::Device);
    let mut down = Half::new(Side::Upstream);
    let mut near = Shared(device);
    let poll = |side, context: &mut Context<'_>, record: &mut Record| {
        let (near, far) = (Pin::new(&mut near), Pin::new(&mut *duplex));
        if side == Side::Device {
            return up.poll(context, near, far, record);
        }
        // A device that is done may have asked a question that has no answer.
        down.must_answer = on_trial && !up.closing;
        let polled = down.poll(context, far, near, record);
        if on_trial && record.flow().down() > 0 {
            on_trial = false;
            if let Some(choice) = record.choice() {
                choice.way.answered();
            }
        }
        polled
    };
    record.outcome = drive(device, &upstream.socket, idle, record, poll).await;
    let ended = record.outcome == Outcome::UpstreamReset;
    if !ended && record.outcome != Outcome::Failed {
        return;
    }
    let silent = ended && on_trial && !up.closing && is_silent(record);
    if let Some(choice) = record.choice()
        && let Some(error) = what_is_wrong(&choice.way, duplex, silent && choice.way.is_silenced())
    {
        tracing::debug!(destination = %record.destination(), %error, "the upstream side gave no answer");
        choice.way.report(Protocol::Tcp, Some(&error));
        record.outcome = error.outcome();
    }
}
