//! Associations when another process takes over: those that live stay with the process that has their sockets, and the
//! one that receives all datagrams now hands theirs on to it.
//!
//! A client is given over as a whole, whatever it sends to, until it has no association left in the old process.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use serde::Serialize;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{BATCH, Datagram, Receiver, Scratch, UdpRelay, with_scratch};
use crate::data::record::Protocol;
use crate::net::mmsg::Received;
use crate::net::pass::Channel;

/// How often the old process tells what it still has.
const REPORT: Duration = Duration::from_millis(500);
/// How often the new process looks whether the old ones have ended.
const LOOK: Duration = Duration::from_millis(20);
/// What an old process may need beyond the time that it was given.
const TO_END: Duration = Duration::from_secs(2);
/// An address in a message: family, IP, port.
const ADDRESS: usize = 1 + 16 + 2;
/// The largest message: a datagram with both its addresses.
const MESSAGE: usize = 1 + 2 * ADDRESS + 65_535;

/// To the old process: client, destination, payload.
const DATAGRAM: u8 = 1;
/// To the new process: a client that it may have for itself.
const RELEASE: u8 = 2;
/// To the new process: how many connections and associations there still are.
const COUNTS: u8 = 3;
/// To the old process: this one ends, and what lives there has so many milliseconds.
const END: u8 = 4;

/// A process that was taken over from, as the new one knows it.
#[derive(Debug)]
struct Predecessor {
    pid: u32,
    channel: Channel,
    clients: Mutex<HashSet<SocketAddr>>,
    connections: AtomicU64,
    associations: AtomicU64,
    /// Hears what it says.
    task: Mutex<Option<AbortHandle>>,
}

/// What is known of a process that was taken over from, to be given to the next one.
#[derive(Debug)]
pub struct Inherited {
    /// The process.
    pub pid: u32,
    /// The clients whose datagrams it gets.
    pub clients: Vec<SocketAddr>,
    /// The end of the channel to it.
    pub channel: OwnedFd,
}

/// What a process that was taken over from still has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Draining {
    /// Its number.
    pub pid: u32,
    /// Its connections.
    pub connections: u64,
    /// Its associations.
    pub associations: u64,
}

/// The processes that were taken over from.
#[derive(Debug, Default)]
pub struct Predecessors {
    all: RwLock<Vec<Arc<Predecessor>>>,
    /// Is there one? Asked for each batch of datagrams.
    some: AtomicBool,
}

impl Predecessors {
    /// Is there one that may have clients?
    pub fn is_empty(&self) -> bool {
        !self.some.load(Relaxed)
    }

    /// What they still have.
    pub fn draining(&self) -> Vec<Draining> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let draining = all.iter().map(|one| Draining {
            pid: one.pid,
            connections: one.connections.load(Relaxed),
            associations: one.associations.load(Relaxed),
        });
        draining.collect()
    }

    /// Takes the datagrams of their clients out of a batch and hands them on. Returns how many there was no room for.
    pub fn take(&self, datagrams: &mut [Option<Datagram<'_>>; BATCH]) -> usize {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut dropped = 0;
        for predecessor in &*all {
            let clients = predecessor.clients();
            for place in &mut *datagrams {
                if let Some((client, destination, payload)) =
                    place.take_if(|(client, ..)| clients.contains(client))
                {
                    let sent = predecessor.hand_on(client, destination, payload);
                    dropped += usize::from(sent.is_err());
                }
            }
        }
        dropped
    }

    fn add(&self, predecessor: Arc<Predecessor>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.push(predecessor);
        self.some.store(true, Relaxed);
    }

    fn remove(&self, predecessor: &Arc<Predecessor>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| !Arc::ptr_eq(one, predecessor));
        self.some.store(!all.is_empty(), Relaxed);
    }

    /// All of them, to be given to the next process. From now on nothing of what they say is heard here;
    /// [`UdpRelay::hear_again`] takes that back.
    ///
    /// # Errors
    /// When this machine has no file left.
    pub fn give(&self) -> io::Result<Vec<Inherited>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let give = |one: &Arc<Predecessor>| {
            if let Some(task) = lock(&one.task).take() {
                task.abort();
            }
            Ok(Inherited {
                pid: one.pid,
                clients: one.clients().iter().copied().collect(),
                channel: one.channel.duplicate()?,
            })
        };
        all.iter().map(give).collect()
    }

    /// Has them end within the limit, and waits until they are gone. One that is late is cut when this process ends.
    pub async fn end(&self, limit: Duration) {
        {
            let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
            let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            for one in &*all {
                // Full of datagrams, or gone: it ends when it finds this process gone.
                let _ = one
                    .channel
                    .try_send(&[IoSlice::new(&[END]), IoSlice::new(&limit.to_be_bytes())]);
            }
        }
        let gone = async {
            while !self.is_empty() {
                sleep(LOOK).await;
            }
        };
        let _ = timeout(limit.saturating_add(TO_END), gone).await;
    }

    /// They are somebody else's now.
    pub fn forget(&self) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.clear();
        self.some.store(false, Relaxed);
    }
}

impl Predecessor {
    fn clients(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        lock(&self.clients)
    }

    fn hand_on(
        &self,
        client: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
    ) -> io::Result<()> {
        let mut head = [0; 1 + 2 * ADDRESS];
        head[0] = DATAGRAM;
        write_address(&mut head[1..], client);
        write_address(&mut head[1 + ADDRESS..], destination);
        let parts = [IoSlice::new(&head), IoSlice::new(payload)];
        self.channel.try_send(&parts)
    }

    /// Hears what the old process says, until it is gone.
    async fn hear(self: Arc<Self>, relay: Arc<UdpRelay>) {
        let mut message = [0; 1 + 2 * ADDRESS];
        while let Ok(length @ 1..) = self.channel.receive(&mut message).await {
            match Message::parse(&message[..length]) {
                Some(Message::Release(client)) => {
                    self.clients().remove(&client);
                }
                Some(Message::Counts(connections, associations)) => {
                    self.connections.store(connections, Relaxed);
                    self.associations.store(associations, Relaxed);
                }
                Some(Message::Datagram(..) | Message::End(_)) | None => {}
            }
        }
        relay.predecessors.remove(&self);
        tracing::info!("process {}, which was taken over from, has ended", self.pid);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What goes through the channel.
#[derive(Debug, PartialEq, Eq)]
enum Message<'a> {
    Datagram(SocketAddr, SocketAddr, &'a [u8]),
    Release(SocketAddr),
    Counts(u64, u64),
    End(Duration),
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match *kind {
            DATAGRAM => {
                let (client, rest) = read_address(rest)?;
                let (destination, payload) = read_address(rest)?;
                Some(Self::Datagram(client, destination, payload))
            }
            RELEASE => Some(Self::Release(read_address(rest)?.0)),
            COUNTS => {
                let (connections, rest) = rest.split_first_chunk()?;
                let associations = rest.first_chunk()?;
                Some(Self::Counts(
                    u64::from_be_bytes(*connections),
                    u64::from_be_bytes(*associations),
                ))
            }
            END => {
                let limit = u64::from_be_bytes(*rest.first_chunk()?);
                Some(Self::End(Duration::from_millis(limit)))
            }
            _ => None,
        }
    }
}

fn write_address(to: &mut [u8], address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            to[0] = 4;
            to[1..5].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            to[0] = 6;
            to[1..17].copy_from_slice(&ip.octets());
        }
    }
    to[17..ADDRESS].copy_from_slice(&address.port().to_be_bytes());
}

fn read_address(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (address, rest) = bytes.split_first_chunk::<ADDRESS>()?;
    let ip: IpAddr = match address[0] {
        4 => Ipv4Addr::from(*address[1..].first_chunk::<4>()?).into(),
        6 => Ipv6Addr::from(*address[1..].first_chunk::<16>()?).into(),
        _ => return None,
    };
    let port = u16::from_be_bytes(*address[17..].first_chunk()?);
    Some((SocketAddr::new(ip, port), rest))
}

impl UdpRelay {
    /// From now on the datagrams of these clients go to this process.
    ///
    /// # Errors
    /// When the runtime's poller refuses the channel.
    pub fn inherit(self: &Arc<Self>, inherited: Inherited) -> io::Result<()> {
        let predecessor = Arc::new(Predecessor {
            pid: inherited.pid,
            channel: Channel::new(inherited.channel)?,
            clients: Mutex::new(inherited.clients.into_iter().collect()),
            connections: AtomicU64::new(0),
            associations: AtomicU64::new(0),
            task: Mutex::default(),
        });
        self.predecessors.add(Arc::clone(&predecessor));
        self.listen_to(&predecessor);
        Ok(())
    }

    /// The predecessors stay with this process after all.
    pub fn hear_again(self: &Arc<Self>) {
        let all = self.predecessors.all.read();
        for predecessor in &*all.unwrap_or_else(PoisonError::into_inner) {
            self.listen_to(predecessor);
        }
    }

    fn listen_to(self: &Arc<Self>, predecessor: &Arc<Predecessor>) {
        let hearing = Arc::clone(predecessor).hear(Arc::clone(self));
        *lock(&predecessor.task) = Some(tokio::spawn(hearing).abort_handle());
    }

    /// The clients that have associations.
    pub fn clients(&self) -> HashSet<SocketAddr> {
        let table = self.table();
        table.iter().map(|one| one.key.client).collect()
    }

    /// Serves the clients that this process still has, with the datagrams that its successor hands on, and tells it what
    /// there is. Ends with the successor: gives how long it lets this process live, or None if it is gone.
    pub async fn serve(
        self: &Arc<Self>,
        channel: &Channel,
        mut clients: HashSet<SocketAddr>,
        receivers: Vec<Arc<Receiver>>,
    ) -> Option<Duration> {
        let mut message = vec![0; MESSAGE];
        let mut report = interval(REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = channel.receive(&mut message) => match received {
                    Ok(length @ 1..) => match Message::parse(&message[..length]) {
                        Some(Message::Datagram(peer, original, payload)) => {
                            self.forward_one(peer, original, payload, &receivers);
                            // It is released again if this comes after it was.
                            clients.insert(peer);
                        }
                        Some(Message::End(limit)) => return Some(limit),
                        _ => {}
                    },
                    // Nobody receives datagrams any more: what comes now is the next proxy's.
                    _ => return None,
                },
                _ = report.tick() => self.report(channel, &mut clients),
            }
        }
    }

    /// Sends a datagram on that the successor handed on.
    fn forward_one(
        self: &Arc<Self>,
        peer: SocketAddr,
        original: SocketAddr,
        payload: &[u8],
        receivers: &[Arc<Receiver>],
    ) {
        let same_family = |one: &&Arc<Receiver>| one.own.is_ipv4() == peer.is_ipv4();
        if let Some(receiver) = receivers.iter().find(same_family) {
            let received = Received {
                peer,
                original: Some(original),
                payload,
            };
            with_scratch(|Scratch { send, .. }| {
                self.forward(receiver, std::iter::once(Some(received)), send);
            });
        }
    }

    fn report(&self, channel: &Channel, clients: &mut HashSet<SocketAddr>) {
        let present = self.clients();
        clients.retain(|client| {
            if present.contains(client) {
                return true;
            }
            let mut message = [0; 1 + ADDRESS];
            message[0] = RELEASE;
            write_address(&mut message[1..], *client);
            // It is told again if there was no room.
            channel.try_send(&[IoSlice::new(&message)]).is_err()
        });
        let counters = &self.hands.shared.counters;
        let mut message = [COUNTS; 17];
        for (place, protocol) in message[1..]
            .chunks_exact_mut(8)
            .zip([Protocol::Tcp, Protocol::Udp])
        {
            place.copy_from_slice(&counters.now(protocol).load(Relaxed).to_be_bytes());
        }
        // The next report says it again.
        let _ = channel.try_send(&[IoSlice::new(&message)]);
    }

    /// Waits until no association lives and no question waits.
    pub async fn ended(&self) {
        let mut look = interval(REPORT);
        loop {
            look.tick().await;
            if self.table().len() == 0 && self.questions.is_idle() {
                return;
            }
        }
    }
}
