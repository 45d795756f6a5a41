//! Listening to what the programs decide, as it happens. It needs the maps alone, no proxy.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tproxy_common::abi::{Effect, Reason, map};
use tproxy_common::trace::{Hook, Message, TRACE_LIFE, TraceEvent, TraceFilter};

use super::bpf::{self, TraceMaps};
use super::bypass::now as boot_time;
use super::place::{Lock, Place};

/// What can go wrong with listening.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The maps.
    #[error(transparent)]
    Bpf(#[from] bpf::Error),
    /// Somebody listens already.
    #[error(transparent)]
    Machine(#[from] super::Error),
    /// The kernel does not wake this process.
    #[error("waiting for events of the kernel half failed: {0}")]
    Wait(#[source] io::Error),
    /// What was listened to is no more.
    #[error("tproxy-bpf was detached from this network namespace, so nothing is decided any more")]
    Detached,
}

/// Why no packet can be what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// The families differ.
    #[error("no packet goes from {0} to {1}: they are of different families")]
    Families(IpNet, IpNet),
    /// None of the reasons has one of the effects.
    #[error("none of these reasons has one of these effects")]
    Effects,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Another, or it cannot be told.
    Other,
}

impl Protocol {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Other => "other",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Tcp => TraceEvent::TCP,
            Self::Udp => TraceEvent::UDP,
            Self::Other => TraceEvent::OTHER,
        }
    }
}

/// Which decisions are asked for. What is empty is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The sender.
    pub source: Option<IpNet>,
    /// The destination.
    pub destination: Option<IpNet>,
    /// One of the two ports.
    pub port: Option<u16>,
    /// The destination port.
    pub destination_port: Option<u16>,
    /// What it carries.
    pub protocols: Vec<Protocol>,
    /// What became of it.
    pub effects: Vec<Effect>,
    /// Why.
    pub reasons: Vec<Reason>,
    /// Of TCP only what opens a connection.
    pub new: bool,
}

impl Filter {
    /// The same for the kernel, by any link; nobody listens yet.
    ///
    /// # Errors
    /// [`Contradiction`].
    pub fn for_kernel(&self) -> Result<TraceFilter, Contradiction> {
        let mut filter = TraceFilter::everything();
        if let (Some(source), Some(destination)) = (self.source, self.destination)
            && source.addr().is_ipv4() != destination.addr().is_ipv4()
        {
            return Err(Contradiction::Families(source, destination));
        }
        if let Some(prefix) = self.source {
            (filter.source, filter.source_mask, filter.families) = words(prefix);
        }
        if let Some(prefix) = self.destination {
            (filter.destination, filter.destination_mask, filter.families) = words(prefix);
        }
        filter.port = self.port.unwrap_or(0).to_be();
        filter.destination_port = self.destination_port.unwrap_or(0).to_be();
        if !self.protocols.is_empty() {
            filter.protocols = self.protocols.iter().fold(0, |set, it| set | it.bit());
        }
        if !(self.effects.is_empty() && self.reasons.is_empty()) {
            let is_meant = |reason: &&Reason| {
                (self.effects.is_empty() || self.effects.contains(&reason.effect()))
                    && (self.reasons.is_empty() || self.reasons.contains(reason))
            };
            let meant = Reason::ALL.iter().filter(is_meant);
            filter.reasons = meant.fold(0, |set, reason| set | 1 << (*reason as u32));
            if filter.reasons == 0 {
                return Err(Contradiction::Effects);
            }
        }
        filter.new = self.new.into();
        Ok(filter)
    }
}

/// A prefix in its IPv4-mapped form, its mask, and its family.
fn words(prefix: IpNet) -> ([u32; 4], [u32; 4], u8) {
    let (address, length, family) = match prefix.trunc() {
        IpNet::V4(net) => (
            net.addr().to_ipv6_mapped(),
            96 + net.prefix_len(),
            TraceEvent::IPV4,
        ),
        IpNet::V6(net) => (net.addr(), net.prefix_len(), TraceEvent::IPV6),
    };
    let mask = u128::MAX
        .checked_shl(128 - u32::from(length))
        .unwrap_or(0)
        .to_be_bytes();
    (in_words(address.octets()), in_words(mask), family)
}

fn in_words(bytes: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

/// What the programs tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A decision.
    Decision(Decision),
    /// What should not happen.
    Message {
        /// When.
        time: SystemTime,
        /// What.
        message: Message,
        /// The error that came with it.
        error: Option<i32>,
    },
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub time: SystemTime,
    /// The index of the link.
    pub link: u32,
    /// Where.
    pub hook: Hook,
    /// Why, and so what became of the packet.
    pub reason: Reason,
    /// The sender and the destination, if it is a packet of IP.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// Their ports, where they can be told.
    pub ports: Option<(u16, u16)>,
    /// What it carries.
    pub protocol: Protocol,
    /// Does it open a TCP connection?
    pub opens: bool,
    /// Is it a fragment?
    pub fragment: bool,
    /// Its bytes, link header included; none where the hook does not know.
    pub length: Option<u32>,
    /// The mark that it goes on with.
    pub mark: u32,
}

/// What is not known to this build: a program of another one is still attached.
fn decode(event: &TraceEvent, time: SystemTime) -> Option<Event> {
    if event.kind == TraceEvent::MESSAGE {
        return Some(Event::Message {
            time,
            message: *Message::ALL.get(usize::from(event.code))?,
            error: i32::try_from(event.error).ok().filter(|error| *error != 0),
        });
    }
    let address = |words: [u32; 4]| {
        let mut bytes = [0; 16];
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let [.., a, b, c, d] = bytes;
        match event.family {
            TraceEvent::IPV4 => IpAddr::from([a, b, c, d]),
            _ => Ipv6Addr::from(bytes).into(),
        }
    };
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.bit() == event.protocol)
        .unwrap_or(Protocol::Other);
    // Port 0 is none that anybody uses, and what later fragments have.
    let ports = (event.source_port, event.destination_port) != (0, 0);
    Some(Event::Decision(Decision {
        time,
        link: event.link,
        hook: *Hook::ALL.iter().find(|hook| **hook as u8 == event.hook)?,
        reason: *Reason::ALL.get(usize::from(event.code))?,
        addresses: (event.family != TraceEvent::NOT_IP)
            .then(|| (address(event.source), address(event.destination))),
        ports: ports.then(|| {
            (
                u16::from_be(event.source_port),
                u16::from_be(event.destination_port),
            )
        }),
        protocol,
        opens: event.opens != 0,
        fragment: event.fragment != 0,
        length: Some(event.length).filter(|length| *length > 0),
        mark: event.mark,
    }))
}

/// Listens until it is dropped. If it is killed instead, the programs take notice some seconds later.
pub struct Tracer {
    maps: AsyncFd<TraceMaps>,
    filter: TraceFilter,
    pin: PathBuf,
    /// Tells the pin from one that is made later.
    inode: u64,
    lost_before: u64,
    _lock: Lock,
}

impl Tracer {
    /// How often [`Self::renew`] is to be called.
    pub const RENEWAL: Duration = Duration::from_secs(1);

    /// Begins to listen. The caller holds the place's lock, and is in a runtime.
    ///
    /// # Errors
    /// [`Error::Machine`] names the process that listens already; [`Error::Bpf`].
    pub fn start(place: &Place, mut filter: TraceFilter) -> Result<Self, Error> {
        let lock = place.trace_lock()?;
        let pin = place.pins().join(map::TRACE);
        let mut maps = TraceMaps::open(place.pins())?;
        // One that was killed may have left its conditions in force, and events.
        filter.session = rand::random();
        filter.until = 0;
        maps.set_filter(filter)?;
        let lost_before = maps.lost()?;
        let inode = inode(&pin).ok_or(Error::Detached)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; `TraceMaps` names one descriptor, which it owns"
        )]
        let maps = AsyncFd::with_interest(maps, Interest::READABLE).map_err(Error::Wait)?;
        let mut tracer = Self {
            maps,
            filter,
            pin,
            inode,
            lost_before,
            _lock: lock,
        };
        tracer.renew()?;
        Ok(tracer)
    }

    /// Goes on to listen. Says for how long nothing was told, because this came too late.
    ///
    /// # Errors
    /// [`Error::Detached`], [`Error::Bpf`].
    pub fn renew(&mut self) -> Result<Option<Duration>, Error> {
        if inode(&self.pin) != Some(self.inode) {
            return Err(Error::Detached);
        }
        let now = boot_time();
        let missed = now.saturating_sub(self.filter.until);
        let was_on = self.filter.until != 0;
        self.filter.until = now + TRACE_LIFE;
        self.maps.get_mut().set_filter(self.filter)?;
        Ok((was_on && missed > 0).then(|| Duration::from_nanos(missed)))
    }

    /// How many events found no room since this listens.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn lost(&self) -> Result<u64, Error> {
        let lost = self.maps.get_ref().lost()?;
        Ok(lost.saturating_sub(self.lost_before))
    }

    /// Waits for events and returns at least one, and at most so many. Loses none if it is cancelled.
    ///
    /// # Errors
    /// [`Error::Wait`].
    pub async fn events(&mut self, limit: usize) -> Result<Vec<Event>, Error> {
        loop {
            let mut guard = self.maps.readable_mut().await.map_err(Error::Wait)?;
            let mut events = Vec::new();
            while events.len() < limit {
                let Some(event) = guard.get_inner_mut().take_event() else {
                    guard.clear_ready();
                    break;
                };
                // While one set of conditions replaced another, a program may have seen something of both.
                let asked_for = event.session == self.filter.session
                    && (event.kind == TraceEvent::MESSAGE || self.filter.wants(&event));
                if asked_for {
                    events.extend(decode(&event, wall_time(event.time)));
                }
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.filter.until = 0;
        if let Err(error) = self.maps.get_mut().set_filter(self.filter) {
            tracing::warn!("{error}");
        }
    }
}

fn inode(pin: &Path) -> Option<u64> {
    fs::metadata(pin).ok().map(|metadata| metadata.ino())
}

/// When a moment was that the kernel tells in nanoseconds since the boot.
fn wall_time(nanoseconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_nanos(boot_time().saturating_sub(nanoseconds))
}

#[cfg(test)]
mod tests;
