//! TCP: a connection accepted, the upstream side dialled, bytes relayed.

pub mod pool;
mod relay;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use self::pool::PipePool;
use super::limits::{Budget, Limits};
use super::outbound::Dialer;
use super::record::{Outcome, Protocol, Record, Shared};
use crate::net::reset_on_close;

/// How long accepting rests when this machine has no file or memory left.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
pub struct TcpRelay {
    shared: Arc<Shared>,
    dialer: Dialer,
    pool: Arc<PipePool>,
    idle: Duration,
    most: u64,
    live: Mutex<Live>,
    one_ended: Notify,
}

/// The tasks of live connections. A handle is missing for the moment between a connection's entry here
/// and the start of its task.
#[derive(Debug, Default)]
struct Live {
    tasks: HashMap<u64, Option<AbortHandle>>,
    next: u64,
}

impl TcpRelay {
    /// A relay without connections.
    #[must_use]
    pub fn new(shared: Arc<Shared>, dialer: Dialer, budget: Budget, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            shared,
            dialer,
            pool: Arc::new(PipePool::new(budget.pipes)),
            idle: limits.tcp_idle,
            most: budget.connections as u64,
            live: Mutex::default(),
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
                        self.shared.counters.accept_failed.fetch_add(1, Relaxed);
                        tracing::debug!(%error, "accepting a connection failed; trying again");
                        sleep(ACCEPT_REST).await;
                    }
                    // The connection's own error, before it was accepted.
                    _ => tracing::debug!(%error, "a connection was gone before it was accepted"),
                },
            }
        }
    }

    /// Takes a connection in, or refuses it with RST.
    fn admit(self: &Arc<Self>, device: TcpStream, client: SocketAddr, own: SocketAddr) {
        // Without the original destination there is nowhere to go; only a connection reset since has none.
        let Ok(destination) = device.local_addr() else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        let mut record = Record::new(shared, Protocol::Tcp, client, destination);
        let device = ResetOnDrop::new(device);
        if destination == own {
            record.outcome = Outcome::OwnPort;
        } else if self.shared.counters.now(Protocol::Tcp).load(Relaxed) > self.most {
            record.outcome = Outcome::LimitReached;
        } else {
            self.start(device, destination, record);
        }
    }

    fn start(self: &Arc<Self>, device: ResetOnDrop, destination: SocketAddr, record: Record) {
        let member = Member::enter(self);
        let id = member.id;
        let task = tokio::spawn(serve(member, record, device, destination));
        if let Some(handle) = self.live().tasks.get_mut(&id) {
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
        let shared = Arc::clone(&self.shared);
        let record = Record::new(shared, Protocol::Tcp, client, destination);
        self.start(ResetOnDrop::new(device), destination, record);
    }

    /// Waits until no connection lives.
    pub async fn ended(&self) {
        while self.count() > 0 {
            self.one_ended.notified().await;
        }
    }

    /// Resets all connections and returns how many there were.
    pub fn reset_all(&self) -> usize {
        let handles: Vec<_> = self.live().tasks.values().flatten().cloned().collect();
        for handle in &handles {
            handle.abort();
        }
        handles.len()
    }

    /// How many connections live.
    pub fn count(&self) -> usize {
        self.live().tasks.len()
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        // No code that can panic runs under the lock.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the live ones.
struct Member {
    relay: Arc<TcpRelay>,
    id: u64,
}

impl Member {
    fn enter(relay: &Arc<TcpRelay>) -> Self {
        let mut live = relay.live();
        let id = live.next;
        live.next += 1;
        live.tasks.insert(id, None);
        Self {
            relay: Arc::clone(relay),
            id,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut live = self.relay.live();
        let handle = live.tasks.remove(&self.id);
        let last = live.tasks.is_empty();
        drop(live);
        drop(handle);
        if last {
            self.relay.one_ended.notify_one();
        }
    }
}

/// A connection that ends with RST unless it is told otherwise.
struct ResetOnDrop {
    stream: TcpStream,
    armed: bool,
}

impl ResetOnDrop {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            armed: true,
        }
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if self.armed {
            reset_on_close(&self.stream);
        }
    }
}

/// One connection from its acceptance to its end. Locals drop in reverse: first the streams, then the
/// record, then the place among the live ones.
async fn serve(
    member: Member,
    mut record: Record,
    mut device: ResetOnDrop,
    destination: SocketAddr,
) {
    let relay = &*member.relay;
    // In a box, so that its size is not part of every idle connection.
    let dialled = Box::pin(
        relay
            .dialer
            .connect(relay.shared.router().default_way(), destination),
    )
    .await;
    let mut upstream = match dialled {
        Ok(stream) => ResetOnDrop::new(stream),
        Err(error) => {
            tracing::debug!(%destination, %error, "a connection got no upstream side");
            record.outcome = error.outcome();
            return;
        }
    };
    relay::relay(
        &device.stream,
        &upstream.stream,
        &relay.pool,
        relay.idle,
        &mut record,
    )
    .await;
    if record.outcome == Outcome::Finished {
        device.armed = false;
        upstream.armed = false;
    }
}

/// Hands a bound listener to the runtime.
///
/// # Errors
/// When the runtime's poller refuses it.
pub fn register(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    TcpListener::from_std(listener)
}
