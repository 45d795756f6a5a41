//! Datagrams by the batch: `recvmmsg(2)` and `sendmmsg(2)` with their control messages.
//!
//! Datagrams of one length that go the same way are a train: the kernel takes, routes and hands them on as one
//! (`UDP_SEGMENT` and `UDP_GRO`, udp(7)), so that each costs little more than its bytes. Who uses this module sees
//! datagrams.
//!
//! Only the two system calls are unsafe.

mod control;

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use tproxy_common::abi::MARK_REPLY;

use self::control::{
    CONTROL, Control, NAME, Name, parse_lost, parse_name, parse_number, parse_original, parse_part,
};

/// How many datagrams go through one system call.
pub const BATCH: usize = 32;
/// Room for one datagram in bytes. UDP over IPv4 carries 65,507, over IPv6 65,527.
const DATAGRAM: usize = 1 << 16;
/// Room for what a protocol puts before the payload (SOCKS5: at most 22 bytes).
const PREFIX: usize = 24;
/// Bytes of the longest part of a train: what an Ethernet frame carries over IPv6. The kernel cuts a train, but no part of it.
const PART: usize = 1_452;
const _: () = assert!(
    BATCH <= 64 && BATCH * PART <= 65_507,
    "the kernel's longest train"
);
/// After how many batches trains are tried again, when the kernel has refused one: a link without checksums in hardware, a
/// path with a small MTU, or one that is encrypted.
const REST: u32 = 256;

/// The mark of a reply, which tells the kernel half the source port (a plain number) to write.
#[must_use]
pub fn reply_mark(port: u16) -> u32 {
    u32::from(port) << 16 | MARK_REPLY
}

/// One datagram that came in.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Who sent it.
    pub peer: SocketAddr,
    /// Where it was sent to, on sockets that ask for it.
    pub original: Option<SocketAddr>,
    /// Its payload.
    pub payload: &'a [u8],
}

#[derive(Clone, Copy, Default)]
struct Lengths {
    name: usize,
    control: usize,
    payload: usize,
    whole: bool,
}

/// Room for [`BATCH`] datagrams of any size, or trains. Memory is only taken by datagrams that came.
pub struct RecvBatch {
    payloads: Vec<u8>,
    names: [Name; BATCH],
    controls: [Control; BATCH],
    lengths: [Lengths; BATCH],
    filled: usize,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self {
            // Zeroed by the kernel page by page on first use.
            payloads: vec![0; BATCH * DATAGRAM],
            names: [Name::EMPTY; BATCH],
            controls: [Control::EMPTY; BATCH],
            lengths: [Lengths::default(); BATCH],
            filled: 0,
        }
    }
}

impl RecvBatch {
    /// Receives what waits on the socket, at most [`BATCH`] datagrams or trains, and returns how many.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; on connected sockets also what ICMP reported.
    pub fn recv(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.filled = 0;
        let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; BATCH];
        for (index, payload) in self.payloads.chunks_exact_mut(DATAGRAM).enumerate() {
            let vector = vectors[index].write(libc::iovec {
                iov_base: payload.as_mut_ptr().cast(),
                iov_len: payload.len(),
            });
            // SAFETY: `mmsghdr` is integers and pointers, for which zero bytes are valid.
            let header = unsafe { headers[index].assume_init_mut() };
            header.msg_hdr.msg_name = self.names[index].0.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = NAME as u32;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
        }
        let count = loop {
            // SAFETY: the `BATCH` headers point to names, controls and payloads that `self` owns and
            // nobody else borrows, and to vectors on this stack; each length is that of its buffer.
            let result = unsafe {
                libc::recvmmsg(
                    socket.as_fd().as_raw_fd(),
                    headers.as_mut_ptr().cast(),
                    BATCH as u32,
                    libc::MSG_DONTWAIT as _,
                    ptr::null_mut(),
                )
            };
            match usize::try_from(result) {
                Ok(count) => break count.min(BATCH),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        };
        for (header, lengths) in headers[..count].iter().zip(&mut self.lengths) {
            // SAFETY: `mmsghdr` was initialised above and is integers and pointers.
            let header = unsafe { header.assume_init_ref() };
            *lengths = Lengths {
                name: NAME.min(header.msg_hdr.msg_namelen as usize),
                control: CONTROL.min(header.msg_hdr.msg_controllen as _),
                payload: DATAGRAM.min(header.msg_len as usize),
                whole: header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0,
            };
        }
        self.filled = count;
        Ok(count)
    }

    /// The datagrams of the last batch, in their order. None for one that was cut off or has no sender.
    pub fn datagrams(&self) -> impl Iterator<Item = Option<Received<'_>>> {
        (0..self.filled).flat_map(|index| {
            let whole = self.whole(index);
            let length = whole.map_or(0, |(whole, _)| whole.payload.len());
            let part = whole.map_or(1, |(_, part)| part);
            // An empty one is one.
            (0..length.div_ceil(part).max(1)).map(move |number| {
                let (whole, _) = whole?;
                let start = number * part;
                let payload = &whole.payload[start..length.min(start + part)];
                Some(Received { payload, ..whole })
            })
        })
    }

    /// What came at this place of the last batch, and how long the datagrams in it are.
    fn whole(&self, index: usize) -> Option<(Received<'_>, usize)> {
        let lengths = self.lengths[index];
        if !lengths.whole {
            return None;
        }
        let control = &self.controls[index].0[..lengths.control];
        let received = Received {
            peer: parse_name(&self.names[index].0[..lengths.name])?,
            original: parse_original(control),
            payload: &self.payloads[index * DATAGRAM..][..lengths.payload],
        };
        let part = parse_part(control).unwrap_or(lengths.payload.max(1));
        Some((received, part))
    }
}

impl RecvBatch {
    /// The datagrams of the last batch that have a number: who sent each, where it was sent to if that is known, and the number.
    pub fn numbers(&self) -> impl Iterator<Item = (SocketAddr, Option<SocketAddr>, u16)> {
        (0..self.filled).filter_map(|index| {
            let lengths = self.lengths[index];
            let control = &self.controls[index].0[..lengths.control];
            let number = parse_number(control)?;
            let peer = parse_name(&self.names[index].0[..lengths.name])?;
            Some((peer, parse_original(control), number))
        })
    }

    /// How many datagrams the socket had no room for before the last one of this batch. It goes round at 2³² and is of the
    /// socket: whoever had it before has a part in it. None where none was lost, and on sockets that do not ask for it.
    #[must_use]
    pub fn lost(&self) -> Option<u32> {
        let last = self.filled.checked_sub(1)?;
        parse_lost(&self.controls[last].0[..self.lengths[last].control])
    }
}

/// One datagram that goes out.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where to. None on a connected socket.
    pub to: Option<SocketAddr>,
    /// For a reply: the address and port that the device shall see as its source.
    pub from: Option<SocketAddr>,
    /// What a protocol puts before the payload.
    pub prefix: Prefix,
    /// The payload.
    pub payload: &'a [u8],
    /// How many bytes of that are a protocol's own, and do not count.
    pub overhead: usize,
}

/// A few bytes before a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    bytes: [u8; PREFIX],
    length: u8,
}

impl Prefix {
    /// Adds bytes at the end. What does not fit (beyond 24 in all) is a programming error.
    pub fn push(&mut self, bytes: &[u8]) {
        let start = usize::from(self.length);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// What became of the datagrams given to [`SendBatch::send`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Datagrams that the kernel took.
    pub sent: usize,
    /// Their payload in bytes, without what a protocol adds.
    pub bytes: usize,
    /// Datagrams that the kernel refused one by one (too large, no route).
    pub refused: usize,
    /// Datagrams left over because the send buffer was full.
    pub blocked: usize,
}

impl SendReport {
    /// Adds another one to it.
    pub fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.bytes += other.bytes;
        self.refused += other.refused;
        self.blocked += other.blocked;
    }
}

/// Hands on what comes, at most [`BATCH`] at a time, until it is told to stop.
pub fn in_batches<T: Copy>(
    all: impl Iterator<Item = Option<T>>,
    mut take: impl FnMut(&mut [Option<T>; BATCH], usize) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut all = all.peekable();
    while all.peek().is_some() {
        let mut batch = [None; BATCH];
        let mut count = 0;
        for (place, one) in batch.iter_mut().zip(&mut all) {
            *place = one;
            count += 1;
        }
        take(&mut batch, count)?;
    }
    ControlFlow::Continue(())
}

/// Datagrams of a batch that go to the kernel as one message: one datagram, or a train.
#[derive(Clone, Copy, Default)]
struct Message {
    /// The place of the first of them in the batch.
    first: usize,
    /// How many they are.
    count: usize,
    /// Bytes of each of them, but the last, which may be shorter.
    part: usize,
    /// Bytes of all.
    bytes: usize,
    /// Where name and control messages are.
    head: usize,
    name: usize,
    /// Bytes of the control messages, without the length of a part.
    control: usize,
}

impl Message {
    /// Takes in a datagram of this length that goes the same way, if it fits behind the others.
    fn take(&mut self, length: usize) -> bool {
        let full = self.bytes == self.count * self.part;
        let fits = full && self.part <= PART && (1..=self.part).contains(&length);
        if fits {
            self.count += 1;
            self.bytes += length;
        }
        fits
    }

    /// Its datagrams, each by itself.
    fn single(self) -> impl Iterator<Item = Self> {
        (self.first..self.first + self.count).map(move |first| Self {
            first,
            count: 1,
            ..self
        })
    }
}

/// Room for the names and control messages of [`BATCH`] datagrams.
pub struct SendBatch {
    names: [Name; BATCH],
    controls: [Control; BATCH],
    prefixes: [Prefix; BATCH],
    /// Batches until trains are tried again.
    rest: u32,
}

impl Default for SendBatch {
    fn default() -> Self {
        Self {
            names: [Name::EMPTY; BATCH],
            controls: [Control::EMPTY; BATCH],
            prefixes: [Prefix::default(); BATCH],
            rest: 0,
        }
    }
}

/// What a batch is made of.
struct Parts {
    /// The payload of each datagram, and before it the prefix, if there is one.
    vectors: [libc::iovec; 2 * BATCH],
    /// Where those of each datagram begin, and the end of the last.
    starts: [usize; BATCH + 1],
    /// How many bytes of each datagram count.
    counted: [usize; BATCH],
}

impl SendBatch {
    /// Sends datagrams in order, [`BATCH`] to a system call, without waiting. One that is refused
    /// does not keep back those after it.
    pub fn send<'a>(
        &mut self,
        socket: &impl AsFd,
        datagrams: impl IntoIterator<Item = Outgoing<'a>>,
    ) -> SendReport {
        let mut datagrams = datagrams.into_iter();
        let mut report = SendReport::default();
        loop {
            let (count, sent) = self.send_some(socket, &mut datagrams);
            report.add(sent);
            if count < BATCH {
                return report;
            }
        }
    }

    fn send_some<'a>(
        &mut self,
        socket: &impl AsFd,
        datagrams: &mut impl Iterator<Item = Outgoing<'a>>,
    ) -> (usize, SendReport) {
        const NOTHING: libc::iovec = libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        };
        self.rest = self.rest.saturating_sub(1);
        let mut parts = Parts {
            vectors: [NOTHING; 2 * BATCH],
            starts: [0; BATCH + 1],
            counted: [0; BATCH],
        };
        let mut messages = [Message::default(); BATCH];
        let mut made = 0;
        let mut last_way = None;
        let mut count = 0;
        for (index, datagram) in datagrams.take(BATCH).enumerate() {
            let Outgoing {
                to, from, payload, ..
            } = datagram;
            self.prefixes[index] = datagram.prefix;
            parts.counted[index] = payload.len() - datagram.overhead;
            let prefix = self.prefixes[index].as_slice();
            let mut end = parts.starts[index];
            let before = Some(prefix).filter(|prefix| !prefix.is_empty());
            for part in before.into_iter().chain([payload]) {
                parts.vectors[end] = libc::iovec {
                    iov_base: part.as_ptr().cast_mut().cast(),
                    iov_len: part.len(),
                };
                end += 1;
            }
            parts.starts[index + 1] = end;
            count = index + 1;
            let length = prefix.len() + payload.len();
            let way = Some((to, from));
            if self.rest == 0 && last_way == way && messages[made - 1].take(length) {
                continue;
            }
            last_way = way;
            messages[made] = Message {
                first: index,
                count: 1,
                part: length,
                bytes: length,
                head: index,
                name: to.map_or(0, |to| self.names[index].set(to)),
                control: from.map_or(0, |from| self.controls[index].set_reply(from)),
            };
            made += 1;
        }
        let mut report = SendReport::default();
        let mut next = 0;
        // On a connected socket an error may be that of an earlier datagram, reported by ICMP and gone
        // once told. So a datagram is refused when it fails twice.
        let mut failed = None;
        while next < made {
            let error = match self.transmit(socket, &messages[next..made], &mut parts) {
                Ok(sent) => {
                    for message in &messages[next..next + sent] {
                        report.sent += message.count;
                        let counted = &parts.counted[message.first..][..message.count];
                        report.bytes += counted.iter().sum::<usize>();
                    }
                    next += sent;
                    continue;
                }
                Err(error) => error,
            };
            let message = messages[next];
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => {
                    report.blocked += messages[next..made]
                        .iter()
                        .map(|one| one.count)
                        .sum::<usize>();
                    break;
                }
                _ if failed != Some(next) => failed = Some(next),
                _ if message.count == 1 => {
                    report.refused += 1;
                    next += 1;
                }
                // Its datagrams take its place, and none goes as a train from here on: there is room for all.
                _ => {
                    self.rest = REST;
                    let behind = messages;
                    let all = behind[next..made].iter().flat_map(|one| one.single());
                    made = next;
                    for one in all {
                        messages[made] = one;
                        made += 1;
                    }
                    failed = None;
                }
            }
        }
        (count, report)
    }

    /// Gives messages to the kernel and returns how many it took, at least one.
    fn transmit(
        &mut self,
        socket: &impl AsFd,
        messages: &[Message],
        parts: &mut Parts,
    ) -> io::Result<usize> {
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
        for (message, place) in messages.iter().zip(&mut headers) {
            // SAFETY: `mmsghdr` is integers and pointers, for which zero bytes are valid.
            let header = place.write(unsafe { std::mem::zeroed() });
            let start = parts.starts[message.first];
            let end = parts.starts[message.first + message.count];
            header.msg_hdr.msg_iov = parts.vectors[start..end].as_mut_ptr();
            header.msg_hdr.msg_iovlen = (end - start) as _;
            if message.name > 0 {
                header.msg_hdr.msg_name = self.names[message.head].0.as_mut_ptr().cast();
                header.msg_hdr.msg_namelen = message.name as u32;
            }
            let control = &mut self.controls[message.head];
            let length = if message.count > 1 {
                control.set_part(message.control, message.part as u16)
            } else {
                message.control
            };
            if length > 0 {
                header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = length as _;
            }
        }
        // SAFETY: as many headers as there are messages were written above. Each points to a name and a control that `self`
        // owns and to vectors of `parts`, with the length of each; those point to prefixes that `self` owns and to payloads
        // that the caller borrows. The kernel only reads them, apart from `msg_len` in the headers.
        let result = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr().cast(),
                messages.len() as u32,
                libc::MSG_DONTWAIT as _,
            )
        };
        match usize::try_from(result) {
            Ok(sent) => Ok(sent.clamp(1, messages.len())),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests;
