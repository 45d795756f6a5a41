//! A machine that lies about where its datagrams come from, to see who believes it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Family, Namespace,
    wait::{SOON, until},
};

/// Sends datagrams with any source address and port, by a raw socket (raw(7)).
#[derive(Debug)]
pub struct Forger {
    socket: Socket,
    family: Family,
}

impl Forger {
    /// A forger in a namespace. Nobody on the way may look at sources (`rp_filter`).
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn new(ns: &Namespace, family: Family) -> Result<Self> {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        // This protocol means that the header is ours, in both families.
        let raw = Protocol::from(libc::IPPROTO_RAW);
        let socket = ns
            .enter(|| Socket::new(domain, Type::RAW, Some(raw)))?
            .with_context(|| format!("opening a raw socket in {}", ns.name()))?;
        Ok(Self { socket, family })
    }

    /// Sends one datagram that says it comes from `source`.
    ///
    /// # Errors
    /// When an address is of another family, or the datagram is larger than the link takes.
    pub fn send(&self, source: SocketAddr, target: SocketAddr, payload: &[u8]) -> Result<()> {
        self.deliver(target, &datagram(source, target, payload)?)
            .with_context(|| format!("sending from {source} to {target}"))
    }

    /// Sends the first segment of a connection that says it comes from `source`.
    ///
    /// # Errors
    /// When an address is of another family, or the link is down.
    pub fn send_syn(&self, source: SocketAddr, target: SocketAddr) -> Result<()> {
        self.deliver(target, &syn(source, target)?)
            .with_context(|| format!("sending a SYN from {source} to {target}"))
    }

    fn deliver(&self, target: SocketAddr, packet: &[u8]) -> Result<()> {
        if Family::of(target.ip()) != self.family {
            bail!("{target} is not of {:?}", self.family);
        }
        // The port of a raw socket's address has no meaning, and IPv6 wants it to be none.
        let hop = SocketAddr::new(target.ip(), 0);
        self.socket.send_to(packet, &hop.into())?;
        Ok(())
    }

    /// From now on sends without a pause, as fast as the link takes it: the `n`th datagram is what `forge` makes of
    /// `n` (source, target, payload).
    #[must_use]
    pub fn flood(
        self,
        forge: impl Fn(u64) -> (SocketAddr, SocketAddr, Vec<u8>) + Send + 'static,
    ) -> Flood {
        Flood::start(move |number| {
            let (source, target, payload) = forge(number);
            self.send(source, target, &payload)
        })
    }

    /// The same with first segments of connections (source, target).
    #[must_use]
    pub fn flood_syns(
        self,
        forge: impl Fn(u64) -> (SocketAddr, SocketAddr) + Send + 'static,
    ) -> Flood {
        Flood::start(move |number| {
            let (source, target) = forge(number);
            self.send_syn(source, target)
        })
    }
}

/// The link or the socket has no room at this moment.
fn is_full(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error)
        .is_some_and(|code| code == libc::ENOBUFS || code == libc::EAGAIN)
}

/// A forger that does not stop. Dropping it stops it.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Flood {
    /// Sends the first, the second, and so on.
    fn start(send: impl Fn(u64) -> Result<()> + Send + 'static) -> Self {
        let sent = Arc::<AtomicU64>::default();
        let ending = Arc::<AtomicBool>::default();
        let (counter, end) = (Arc::clone(&sent), Arc::clone(&ending));
        let thread = thread::spawn(move || {
            for number in 0.. {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                match send(number) {
                    Ok(()) => {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) if is_full(&error) => thread::yield_now(),
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        Self {
            sent,
            ending,
            thread: Some(thread),
        }
    }

    /// How many datagrams it has sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until it has sent `count` more.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_for(&self, count: u64) -> Result<()> {
        let goal = self.sent() + count;
        until(&format!("{count} forged datagrams"), SOON, || {
            Ok((self.sent() >= goal).then_some(()))
        })
    }

    /// Stops it; gives how many it has sent in all.
    ///
    /// # Errors
    /// What had stopped it before.
    pub fn stop(mut self) -> Result<u64> {
        self.ending.store(true, Ordering::Relaxed);
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(result)) => result?,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => {}
        }
        Ok(self.sent())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn ip(source: SocketAddr, target: SocketAddr) -> Result<PacketBuilderStep<IpHeaders>> {
    const HOPS: u8 = 64;
    Ok(match (source.ip(), target.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOPS),
        _ => bail!("{source} and {target} are of two families"),
    })
}

fn datagram(source: SocketAddr, target: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
    let builder = ip(source, target)?.udp(source.port(), target.port());
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload)?;
    Ok(packet)
}

fn syn(source: SocketAddr, target: SocketAddr) -> Result<Vec<u8>> {
    let builder = ip(source, target)?.tcp(source.port(), target.port(), 1, 64_000);
    let builder = builder.syn();
    let mut packet = Vec::with_capacity(builder.size(0));
    builder.write(&mut packet, &[])?;
    Ok(packet)
}

/// An answer to the question for the addresses of `name`: number `id`, one record, with a TTL of 300 s (RFC 1035, 4).
#[must_use]
pub fn dns_answer(id: u16, name: &str, address: IpAddr) -> Vec<u8> {
    let (kind, data) = match address {
        IpAddr::V4(address) => (1_u16, address.octets().to_vec()),
        IpAddr::V6(address) => (28, address.octets().to_vec()),
    };
    // Response, recursion desired and available; one question, one answer.
    let mut message = dns_message(id, [0x81, 0x80, 0, 1, 0, 1], name, kind);
    let [high, low] = kind.to_be_bytes();
    // The name again, by its place.
    message.extend([0xc0, 12, high, low, 0, 1, 0, 0, 1, 44, 0]);
    message.push(if kind == 1 { 4 } else { 16 });
    message.extend(data);
    message
}

/// A question for the IPv4 addresses of `name` (RFC 1035, 4).
#[must_use]
pub fn dns_question(id: u16, name: &str) -> Vec<u8> {
    // Recursion desired; one question.
    dns_message(id, [1, 0, 0, 1, 0, 0], name, 1)
}

/// A message up to the end of its question. `head` is the header from the flags to the number of answers.
fn dns_message(id: u16, head: [u8; 6], name: &str, kind: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend(head);
    message.extend([0; 4]);
    for label in name.split('.') {
        // A label has at most 63 bytes.
        message.push(u8::try_from(label.len()).unwrap_or(63));
        message.extend(label.as_bytes());
    }
    message.push(0);
    let [high, low] = kind.to_be_bytes();
    message.extend([high, low, 0, 1]);
    message
}

/// A message that no parser may choke on, `n` says which: cut off, with names that point at themselves or beyond the
/// end, with counts that are not true, or of no sense at all.
#[must_use]
pub fn malformed(n: u64, name: &str, address: IpAddr) -> Vec<u8> {
    let id = n.to_le_bytes();
    let mut message = dns_answer(u16::from_le_bytes([id[0], id[1]]), name, address);
    let place = usize::try_from(n / 6).unwrap_or_default() % message.len();
    match n % 6 {
        0 => message.truncate(place),
        // The name of the question is where it is itself.
        1 => message[12..14].copy_from_slice(&[0xc0, 12]),
        2 => message[12..14].copy_from_slice(&[0xff, 0xff]),
        3 => message[4..12].fill(0xff),
        4 => message[place] ^= 0xff,
        _ => message.extend([0xa5; 400]),
    }
    message
}
