//! TCP: a connection accepted, the upstream side dialled, bytes relayed.

mod first;
pub mod pool;
mod relay;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use self::first::First;
use self::pool::PipePool;
use super::dns::{self, Dns};
use super::hands::Hands;
use super::limits::{Budget, Limits};
use super::live::Flow;
use super::outbound::Target;
use super::record::{Outcome, Protocol, Record};
use super::shares::{Full, Shares};
use super::stats::Counters;
use super::stream::Stream;
use super::way::Way;
use crate::net::reset_on_close;

/// How long accepting rests when this machine has no file or memory left.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
pub struct TcpRelay {
    hands: Hands,
    pool: Arc<PipePool>,
    idle: Duration,
    shares: Mutex<Shares>,
    tasks: Mutex<Tasks>,
    one_ended: Notify,
}

/// The tasks of live connections, by the numbers of their flows. A handle is missing for the moment between a
/// connection's entry here and the start of its task.
type Tasks = HashMap<u64, Option<AbortHandle>>;

impl TcpRelay {
    /// A relay without connections.
    #[must_use]
    pub fn new(hands: Hands, budget: Budget, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            hands,
            pool: Arc::new(PipePool::new(budget.pipes)),
            idle: limits.tcp_idle,
            shares: Mutex::new(Shares::new(budget.connections)),
            tasks: Mutex::default(),
            one_ended: Notify::new(),
        })
    }

    /// Accepts connections until it is aborted. `own` is where the listener is bound.
    pub async fn accept(self: Arc<Self>, listener: TcpListener, own: SocketAddr) {
        loop {
            match listener.accept().await {
                Ok((device, client)) => self.admit(device, client, own),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        self.counters().accept_failed.fetch_add(1, Relaxed);
                        tracing::debug!(%error, "accepting a connection failed; trying again");
                        sleep(ACCEPT_REST).await;
                    }
                    // The connection's own error, before it was accepted.
                    _ => tracing::debug!(%error, "a connection was gone before it was accepted"),
                },
            }
        }
    }

    /// Takes in what the kernel has made and nobody has accepted yet. The listener does not block.
    pub fn admit_waiting(self: &Arc<Self>, listener: &std::net::TcpListener, own: SocketAddr) {
        while let Ok((device, client)) = listener.accept() {
            let device = device
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(device));
            match device {
                Ok(device) => self.admit(device, client, own),
                Err(error) => tracing::debug!(%error, "a connection that waited was refused"),
            }
        }
    }

    /// Takes a connection in, or refuses it with RST.
    fn admit(self: &Arc<Self>, device: TcpStream, client: SocketAddr, own: SocketAddr) {
        // Without the original destination there is nowhere to go; only a connection reset since has none.
        let Ok(destination) = device.local_addr() else {
            return;
        };
        let shared = Arc::clone(&self.hands.shared);
        let mut record = Record::new(shared, Protocol::Tcp, client, destination);
        let device = ResetOnDrop::new(device);
        if destination == own {
            record.outcome = Outcome::OwnPort;
            return;
        }
        let place = match Place::take(self, client.ip()) {
            Ok(place) => place,
            Err(full) => {
                record.outcome = match full {
                    Full::All => Outcome::LimitReached,
                    Full::Device => Outcome::DeviceLimit,
                };
                return;
            }
        };
        if destination.port() == dns::PORT
            && let Some(dns) = self.hands.dns.get()
        {
            self.start(place, record, |member, record| {
                answer(member, record, device, dns)
            });
        } else {
            self.start(place, record, |member, record| {
                serve(member, record, device)
            });
        }
    }

    fn start<F>(
        self: &Arc<Self>,
        place: Place,
        record: Record,
        work: impl FnOnce(Member, Record) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let id = record.flow().id;
        let task = tokio::spawn(work(Member::enter(place, id), record));
        if let Some(handle) = self.tasks().get_mut(&id) {
            *handle = Some(task.abort_handle());
        }
    }

    /// Relays a connection to a destination that it was not made for.
    #[cfg(test)]
    pub fn relay_to(
        self: &Arc<Self>,
        device: TcpStream,
        client: SocketAddr,
        destination: SocketAddr,
    ) {
        let shared = Arc::clone(&self.hands.shared);
        let record = Record::new(shared, Protocol::Tcp, client, destination);
        let device = ResetOnDrop::new(device);
        let place = Place::take(self, client.ip()).expect("a test keeps below the limits");
        self.start(place, record, |member, record| {
            serve(member, record, device)
        });
    }

    /// Waits until no connection lives.
    pub async fn ended(&self) {
        while self.count() > 0 {
            self.one_ended.notified().await;
        }
    }

    /// Resets all connections and returns how many there were.
    pub fn reset_all(&self) -> usize {
        let handles: Vec<_> = self.tasks().values().flatten().cloned().collect();
        for handle in &handles {
            handle.abort();
        }
        handles.len()
    }

    /// Resets the connection of this flow, if it is one of these.
    pub fn reset(&self, flow: &Flow) -> bool {
        match self.tasks().get(&flow.id) {
            Some(Some(handle)) => {
                flow.kill();
                handle.abort();
                true
            }
            _ => false,
        }
    }

    /// How many connections live.
    pub fn count(&self) -> usize {
        self.tasks().len()
    }

    fn counters(&self) -> &Counters {
        &self.hands.shared.counters
    }

    // No code that can panic runs under the locks.

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the connections that are allowed.
struct Place {
    relay: Arc<TcpRelay>,
    device: IpAddr,
}

impl Place {
    fn take(relay: &Arc<TcpRelay>, device: IpAddr) -> Result<Self, Full> {
        relay.shares().take(device)?;
        Ok(Self {
            relay: Arc::clone(relay),
            device,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.relay.shares().give_back(self.device);
    }
}

/// A connection among the live ones.
struct Member {
    place: Place,
    id: u64,
}

impl Member {
    fn enter(place: Place, id: u64) -> Self {
        place.relay.tasks().insert(id, None);
        Self { place, id }
    }

    fn relay(&self) -> &TcpRelay {
        &self.place.relay
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut tasks = self.relay().tasks();
        let handle = tasks.remove(&self.id);
        let last = tasks.is_empty();
        drop(tasks);
        drop(handle);
        if last {
            self.relay().one_ended.notify_one();
        }
    }
}

/// A connection that ends with RST unless it is told otherwise.
struct ResetOnDrop<S: HasSocket> {
    stream: S,
    armed: bool,
}

/// Something that ends with its socket.
trait HasSocket {
    fn socket(&self) -> &TcpStream;
}

impl HasSocket for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl HasSocket for Stream {
    fn socket(&self) -> &TcpStream {
        Self::socket(self)
    }
}

impl<S: HasSocket> ResetOnDrop<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            armed: true,
        }
    }
}

impl<S: HasSocket> Drop for ResetOnDrop<S> {
    fn drop(&mut self) {
        if self.armed {
            reset_on_close(self.stream.socket());
        }
    }
}

/// One connection from its acceptance to its end. Locals drop in reverse: first the streams, then the
/// record, then the place among the live ones.
async fn serve(member: Member, mut record: Record, mut device: ResetOnDrop<TcpStream>) {
    let relay = member.relay();
    // In a box, so that its size is not part of every idle connection.
    let opened = Box::pin(open(&relay.hands, &mut record, &device.stream)).await;
    let mut upstream = match opened {
        Ok(stream) => stream,
        Err(outcome) => {
            record.outcome = outcome;
            return;
        }
    };
    let (device_side, idle) = (&device.stream, relay.idle);
    match &mut upstream.stream {
        Stream::Plain(upstream) => {
            relay::splice::relay(device_side, upstream, &relay.pool, idle, &mut record).await;
        }
        // In a box, as above.
        Stream::Wrapped(upstream) => {
            Box::pin(relay::copy::relay(device_side, upstream, idle, &mut record)).await;
        }
    }
    if record.outcome == Outcome::Finished {
        device.armed = false;
        upstream.armed = false;
    }
}

/// Chooses the way of a connection, by its name where that matters, and connects to its destination. What was
/// read of the device is handed on.
async fn open(
    hands: &Hands,
    record: &mut Record,
    device: &TcpStream,
) -> Result<ResetOnDrop<Stream>, Outcome> {
    let port = record.destination().port();
    let payload_by = first::deadline(port);
    let router = hands.shared.router();
    let sniff = router.sniff(&record.query());
    let mut first = match sniff {
        None => First::default(),
        Some(sniff) => {
            let first = first::read(device, sniff.limit(port)).await;
            first.map_err(|_| Outcome::DeviceReset)?
        }
    };
    record.flow().set_name(first.name);
    let mut choice = router.choose(&record.query());
    drop(router);
    let rewrite = sniff.is_some_and(|sniff| sniff.rewrite);
    let query = record.query();
    let target = |way: &Way| match query.name {
        Some(name) if rewrite && way.outbound.takes_names() => Target::Name(name, port),
        _ => Target::Address(query.destination),
    };
    let connected = hands.dialer.connect_by(&mut choice, &query, target).await;
    let target = query.destination;
    record.flow().set_choice(choice);
    let mut upstream = connected.map(ResetOnDrop::new).map_err(|error| {
        tracing::debug!(%target, %error, "a connection got no upstream side");
        error.outcome()
    })?;
    let opens = upstream.stream.opens_with_payload();
    if opens && first.bytes.is_empty() {
        let payload = first::payload(device, payload_by).await;
        first.bytes = payload.map_err(|_| Outcome::DeviceReset)?;
    }
    // Without a byte, too, lest a server that speaks first be never asked for.
    if opens || !first.bytes.is_empty() {
        let writing = async {
            upstream.stream.write_all(&first.bytes).await?;
            upstream.stream.flush().await
        };
        match timeout(hands.dialer.limit, writing).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Outcome::UpstreamReset),
            Err(_) => return Err(Outcome::UpstreamLost),
        }
        let bytes = first.bytes.len() as u64;
        record.flow().count_up(bytes);
        hands.shared.counters.up.fetch_add(bytes, Relaxed);
    }
    Ok(upstream)
}

/// Answers the DNS questions of a connection.
async fn answer(member: Member, mut record: Record, mut device: ResetOnDrop<TcpStream>, dns: Dns) {
    // In a box, as above.
    let served = Box::pin(dns.serve(&mut device.stream, record.client())).await;
    record.outcome = match served {
        Ok(()) => Outcome::Finished,
        Err(_) => Outcome::DeviceReset,
    };
    device.armed = served.is_err();
    drop(device);
    drop(record);
    drop(member);
}

/// Hands a bound listener to the runtime.
///
/// # Errors
/// When the runtime's poller refuses it.
pub fn register(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    TcpListener::from_std(listener)
}
