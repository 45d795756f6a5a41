//! What is on a link: every packet of a while, so that a test can say what was not among them.
//!
//! A packet socket of our own and not tcpdump: it captures from the moment it is bound, without a message that has to
//! be waited for, and it says whether it missed anything.

use std::{
    io::{self, ErrorKind, Read},
    mem,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, SockFilter, Socket, Type};

use crate::{
    Namespace,
    wait::{SOON, until},
};

/// Room for packets that the reader has not come to, in bytes.
const BUFFER: usize = 64 << 20;

/// An IP packet that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it says it comes from. Port 0 if it has none: no TCP or UDP, or not the first fragment.
    pub source: SocketAddr,
    /// Where it goes.
    pub target: SocketAddr,
    /// Does it begin a connection, or need none? Neither later segments of TCP nor ICMP.
    new: bool,
    /// Is it of ICMP, which no policy sends to a proxy?
    icmp: bool,
    /// The whole frame.
    bytes: Vec<u8>,
}

impl Packet {
    fn read(bytes: &[u8]) -> Option<Self> {
        let packet = LaxSlicedPacket::from_ethernet(bytes).ok()?;
        let (source, target): (IpAddr, IpAddr) = match packet.net? {
            LaxNetSlice::Ipv4(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            LaxNetSlice::Ipv6(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            LaxNetSlice::Arp(_) => return None,
        };
        let new = match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => tcp.syn() && !tcp.ack(),
            Some(TransportSlice::Udp(_)) | None => true,
            Some(_) => false,
        };
        let icmp = matches!(
            packet.transport,
            Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_))
        );
        let (from, to) = match packet.transport {
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
            Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
            _ => (0, 0),
        };
        Some(Self {
            source: SocketAddr::new(source, from),
            target: SocketAddr::new(target, to),
            new,
            icmp,
            bytes: bytes.to_vec(),
        })
    }

    /// Does it begin a connection, or need none? Neither later segments of TCP nor ICMP.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.new
    }

    /// Is it of ICMP, which no policy sends to a proxy?
    #[must_use]
    pub const fn is_icmp(&self) -> bool {
        self.icmp
    }

    /// Is it to or from this address?
    #[must_use]
    pub fn touches(&self, address: IpAddr) -> bool {
        self.source.ip() == address || self.target.ip() == address
    }

    /// Does it hold this name, or one below it, as DNS messages write it (RFC 1035, 3.1) or as text, in letters of
    /// either case? A name that two packets share is not found.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        let text = name.to_ascii_lowercase().into_bytes();
        let mut wire = Vec::new();
        for label in text.split(|byte| *byte == b'.') {
            // A label has at most 63 bytes.
            wire.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
            wire.extend_from_slice(label);
        }
        let bytes = self.bytes.to_ascii_lowercase();
        [wire, text]
            .iter()
            .any(|wanted| bytes.windows(wanted.len()).any(|part| part == wanted))
    }
}

/// A capture that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    link: String,
    socket: Arc<Socket>,
    packets: Arc<Mutex<Vec<Packet>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Capture {
    /// Captures all that comes and goes by a link of a namespace, from now on. What tc takes away before it is sent
    /// has not gone.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn start(ns: &Namespace, link: &str) -> Result<Self> {
        let socket = ns
            .enter(|| open(link))?
            .with_context(|| format!("capturing on {link} of {}", ns.name()))?;
        let socket = Arc::new(socket);
        let packets = Arc::<Mutex<Vec<Packet>>>::default();
        let stopping = Arc::<AtomicBool>::default();
        let (reading, kept, stop) = (
            Arc::clone(&socket),
            Arc::clone(&packets),
            Arc::clone(&stopping),
        );
        let thread = thread::spawn(move || read(&reading, &kept, &stop));
        Ok(Self {
            link: format!("{link} of {}", ns.name()),
            socket,
            packets,
            stopping,
            thread: Some(thread),
        })
    }

    /// Waits for a packet that fits.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait_for(&self, what: &str, fits: impl Fn(&Packet) -> bool) -> Result<Packet> {
        until(&format!("{what} on {}", self.link), SOON, || {
            Ok(lock(&self.packets)
                .iter()
                .find(|packet| fits(packet))
                .cloned())
        })
    }

    /// Ends it; gives all packets that passed till now, in order.
    ///
    /// # Errors
    /// When it has missed some, so that nothing can be said of what was not there.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        // What is in the socket's queue stays there; nothing more is put into it.
        self.socket
            .attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])?;
        self.stopping.store(true, Ordering::SeqCst);
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(read)) => read.with_context(|| format!("reading from {}", self.link))?,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => bail!("it was stopped already"),
        }
        let missed = missed(&self.socket)?;
        ensure!(
            missed == 0,
            "the capture on {} missed {missed} packets",
            self.link
        );
        Ok(mem::take(&mut *lock(&self.packets)))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.socket
            .attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])
            .ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// `BPF_RET | BPF_K` (linux/filter.h): ends a filter; 0 bytes of the packet are kept.
const RETURN: u16 = 0x06;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A packet socket (packet(7)) that hears one link.
fn open(link: &str) -> Result<Socket> {
    let index = if_nametoindex(link)?;
    // Protocol 0: it hears nothing until it is bound to a link.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    socket.set_read_timeout(Some(Duration::from_millis(10)))?;
    // SAFETY: all bits zero are a sockaddr_ll, which is plain numbers.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    address.sll_ifindex = i32::try_from(index)?;
    // SAFETY: the descriptor is open, and the pointer and the length are those of one sockaddr_ll that
    // lives through the call.
    Errno::result(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            u32::try_from(size_of::<libc::sockaddr_ll>())?,
        )
    })?;
    Ok(socket)
}

fn read(mut socket: &Socket, packets: &Mutex<Vec<Packet>>, stop: &AtomicBool) -> io::Result<()> {
    // Packets that the link would cut into segments come whole.
    let mut buffer = vec![0; 1 << 18];
    loop {
        // Asked before reading: what was queued when it was set is still read.
        let last = stop.load(Ordering::SeqCst);
        match socket.read(&mut buffer) {
            Ok(length) => lock(packets).extend(Packet::read(&buffer[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock && last => return Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NetworkDown
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Packets that found no room.
fn missed(socket: &Socket) -> Result<u32> {
    let mut counts = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = u32::try_from(size_of::<libc::tpacket_stats>())?;
    // SAFETY: the descriptor is open, and both pointers are to what lives through the call; the length
    // is that of the structure.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut counts).cast(),
            &raw mut length,
        )
    })?;
    Ok(counts.tp_drops)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(bytes: &[u8]) -> Packet {
        let nowhere = SocketAddr::new(IpAddr::from([0; 4]), 0);
        Packet {
            source: nowhere,
            target: nowhere,
            new: true,
            icmp: false,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn a_name_is_found_in_messages_and_in_text() {
        for bytes in [
            b"\0\x03wWw\x03FAR\x04test\0".as_slice(),
            b"\x03far\x04test\0",
            b"GET http://www.Far.test/",
        ] {
            assert!(packet(bytes).names("far.test"), "{bytes:?}");
        }
        for bytes in [
            b"\x04afar\x04test\0".as_slice(),
            b"far\x04test\0",
            b"\x03far\x04tes",
            b"",
        ] {
            assert!(!packet(bytes).names("far.test"), "{bytes:?}");
        }
    }
}
