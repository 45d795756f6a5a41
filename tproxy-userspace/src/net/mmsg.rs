//! Datagrams by the batch: `recvmmsg(2)` and `sendmmsg(2)` with their control messages.
//!
//! Names and control messages are written and read as bytes in the kernel's layout (`struct
//! sockaddr_in`, `sockaddr_in6`, `cmsghdr`), so that only the two system calls are unsafe.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use tproxy_common::abi::MARK_REPLY;

/// How many datagrams go through one system call.
pub const BATCH: usize = 32;
/// Room for one datagram in bytes. UDP over IPv4 carries 65,507, over IPv6 65,527.
const DATAGRAM: usize = 1 << 16;
/// Bytes of the largest name, `struct sockaddr_in6`.
const NAME: usize = 28;
/// Bytes of `struct cmsghdr` in the kernel: a length of word size, the level, the type.
const CONTROL_HEADER: usize = size_of::<usize>() + 8;
/// Room for the control messages of one datagram: `in6_pktinfo` and a mark, or an original destination and how many
/// were lost.
const CONTROL: usize = 80;
/// Room for what a protocol puts before the payload (SOCKS5: at most 22 bytes).
const PREFIX: usize = 24;

/// The mark of a reply, which tells the kernel half the source port (a plain number) to write.
#[must_use]
pub fn reply_mark(port: u16) -> u32 {
    u32::from(port) << 16 | MARK_REPLY
}

/// A `struct sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Name([u8; NAME]);

impl Name {
    const EMPTY: Self = Self([0; NAME]);

    /// Writes the address and returns how many bytes it takes.
    fn set(&mut self, address: SocketAddr) -> usize {
        let bytes = &mut self.0;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&family(libc::AF_INET));
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                bytes[8..16].fill(0);
                16
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&family(libc::AF_INET6));
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                NAME
            }
        }
    }
}

fn family(number: i32) -> [u8; 2] {
    u16::try_from(number).unwrap_or(0).to_ne_bytes()
}

/// Reads a socket address from the kernel's bytes.
fn parse_name(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match bytes.first_chunk::<2>()? {
        number if *number == family(libc::AF_INET) => {
            let octets: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some(SocketAddr::from((Ipv4Addr::from(octets), port)))
        }
        number if *number == family(libc::AF_INET6) => {
            let octets: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Control messages one after the other, each on a word boundary.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

impl Control {
    const EMPTY: Self = Self([0; CONTROL]);

    /// Adds a message at `at` and returns where the next one goes.
    fn push(&mut self, at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
        let length = CONTROL_HEADER + data.len();
        let message = &mut self.0[at..at + length];
        message[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
        message[size_of::<usize>()..][..4].copy_from_slice(&level.to_ne_bytes());
        message[size_of::<usize>() + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        message[CONTROL_HEADER..].copy_from_slice(data);
        at + length.next_multiple_of(size_of::<usize>())
    }

    /// Writes the source address and the mark of a reply; returns how many bytes they take.
    fn set_reply(&mut self, from: SocketAddr) -> usize {
        let at = match from.ip() {
            IpAddr::V4(ip) => {
                // struct in_pktinfo: link (0: by route), source address, unused.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                self.push(0, libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
            }
            IpAddr::V6(ip) => {
                // struct in6_pktinfo: source address, link (0: by route).
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                self.push(0, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
            }
        };
        let mark = reply_mark(from.port()).to_ne_bytes();
        self.push(at, libc::SOL_SOCKET, libc::SO_MARK, &mark)
    }
}

/// Finds the original destination among control messages.
fn parse_original(control: &[u8]) -> Option<SocketAddr> {
    parse_name(find(control, |level, kind| {
        matches!(
            (level, kind),
            (libc::SOL_IP, libc::IP_ORIGDSTADDR) | (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR)
        )
    })?)
}

/// Finds among control messages how many datagrams the socket had no room for, ever.
fn parse_lost(control: &[u8]) -> Option<u32> {
    let data = find(control, |level, kind| {
        (level, kind) == (libc::SOL_SOCKET, libc::SO_RXQ_OVFL)
    })?;
    Some(u32::from_ne_bytes(*data.first_chunk()?))
}

/// The data of the first control message that is meant.
fn find(mut control: &[u8], is_meant: impl Fn(i32, i32) -> bool) -> Option<&[u8]> {
    loop {
        let length = usize::from_ne_bytes(*control.first_chunk()?);
        let message = control.get(..length)?;
        let level = i32::from_ne_bytes(*message.get(size_of::<usize>()..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*message.get(size_of::<usize>() + 4..)?.first_chunk()?);
        if is_meant(level, kind) {
            return message.get(CONTROL_HEADER..);
        }
        control = control.get(length.next_multiple_of(size_of::<usize>())..)?;
    }
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

/// Room for [`BATCH`] datagrams of any size. Memory is only taken by datagrams that came.
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
    /// Receives what waits on the socket, at most [`BATCH`] datagrams, and returns how many.
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

    /// The datagram at this place of the last batch. None past its end, and for one that was cut off
    /// or has no sender.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Received<'_>> {
        let lengths = self.lengths[..self.filled].get(index)?;
        if !lengths.whole {
            return None;
        }
        Some(Received {
            peer: parse_name(&self.names[index].0[..lengths.name])?,
            original: parse_original(&self.controls[index].0[..lengths.control]),
            payload: &self.payloads[index * DATAGRAM..][..lengths.payload],
        })
    }
}

impl RecvBatch {
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

/// Room for the names and control messages of [`BATCH`] datagrams.
pub struct SendBatch {
    names: [Name; BATCH],
    controls: [Control; BATCH],
    prefixes: [Prefix; BATCH],
}

impl Default for SendBatch {
    fn default() -> Self {
        Self {
            names: [Name::EMPTY; BATCH],
            controls: [Control::EMPTY; BATCH],
            prefixes: [Prefix::default(); BATCH],
        }
    }
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
        let mut vectors = [const { MaybeUninit::<[libc::iovec; 2]>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; BATCH];
        let mut counted = [0; BATCH];
        let mut count = 0;
        for (index, datagram) in datagrams.take(BATCH).enumerate() {
            let Outgoing {
                to, from, payload, ..
            } = datagram;
            self.prefixes[index] = datagram.prefix;
            counted[index] = payload.len() - datagram.overhead;
            let prefix = self.prefixes[index].as_slice();
            let vector = vectors[index].write([prefix, payload].map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            }));
            // SAFETY: `mmsghdr` is integers and pointers, for which zero bytes are valid.
            let header = unsafe { headers[index].assume_init_mut() };
            header.msg_hdr.msg_iov = vector.as_mut_ptr();
            header.msg_hdr.msg_iovlen = 2;
            if let Some(to) = to {
                header.msg_hdr.msg_namelen = self.names[index].set(to) as u32;
                header.msg_hdr.msg_name = self.names[index].0.as_mut_ptr().cast();
            }
            if let Some(from) = from {
                header.msg_hdr.msg_controllen = self.controls[index].set_reply(from) as _;
                header.msg_hdr.msg_control = self.controls[index].0.as_mut_ptr().cast();
            }
            count = index + 1;
        }
        let mut report = SendReport::default();
        let mut next = 0;
        // On a connected socket an error may be that of an earlier datagram, reported by ICMP and gone
        // once told. So a datagram is refused when it fails twice.
        let mut failed = None;
        while next < count {
            let rest = &mut headers[next..count];
            // SAFETY: each header of `rest` points to a name, a control and a prefix that `self` owns, to
            // a payload that is borrowed for `'a`, and to vectors on this stack, with the length of each;
            // the kernel only reads them, apart from `msg_len` in the headers.
            let result = unsafe {
                libc::sendmmsg(
                    socket.as_fd().as_raw_fd(),
                    rest.as_mut_ptr().cast(),
                    rest.len() as u32,
                    libc::MSG_DONTWAIT as _,
                )
            };
            if let Ok(sent) = usize::try_from(result) {
                let sent = sent.clamp(1, rest.len());
                report.sent += sent;
                report.bytes += counted[next..next + sent].iter().sum::<usize>();
                next += sent;
                continue;
            }
            match io::Error::last_os_error().kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => {
                    report.blocked += count - next;
                    break;
                }
                _ if failed != Some(next) => failed = Some(next),
                _ => {
                    report.refused += 1;
                    next += 1;
                }
            }
        }
        (count, report)
    }
}

#[cfg(test)]
mod tests;
