//! Connections: accepted, counted, served, ended.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;

use super::guard::Access;
use crate::net::{NetError, SocketFactory};

/// How long a client may take for the head of its request, and how long a connection waits for the next one.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The largest head of a request, in bytes, about.
const LARGEST_HEAD: usize = 16 * 1024;
/// How long accepting rests when this machine has no file or memory left.
const REST: Duration = Duration::from_millis(100);
/// What a connection gets that is one too many.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\n\
    Content-Length: 51\r\n\r\n{\"error\":\"as many connections as are served live\"}\n";

/// How many connections there may be, and are.
#[derive(Debug)]
pub struct Gate {
    places: Arc<Semaphore>,
    most: usize,
    /// Connections that were one too many.
    pub refused: AtomicU64,
}

impl Gate {
    /// For so many.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(most)),
            most,
            refused: AtomicU64::new(0),
        })
    }

    /// How many there are.
    pub fn used(&self) -> usize {
        self.most - self.places.available_permits()
    }

    fn enter(&self) -> Option<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.ok().map(|place| Place(Arc::new(place))).or_else(|| {
            self.refused.fetch_add(1, Relaxed);
            None
        })
    }
}

/// The place that a connection takes; what it becomes (a WebSocket) keeps it.
#[derive(Clone, Debug)]
pub struct Place(
    #[expect(dead_code, reason = "it counts while it lives")] Arc<OwnedSemaphorePermit>,
);

/// A connection, as handlers of its requests find it.
#[derive(Clone, Debug)]
pub struct Connection {
    _place: Place,
    ended: watch::Receiver<()>,
}

impl Connection {
    /// Waits until the connection has to end because its listener has.
    pub async fn ended(&mut self) {
        // Nothing is ever sent: the sender goes.
        let _ = self.ended.changed().await;
    }
}

/// What connections come from.
pub trait Door: Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Answers that there is no place. One write that does not wait: the client may be there to fill all places.
    fn refuse(stream: Self::Stream) -> io::Result<()>;
}

impl Door for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }

    fn refuse(stream: UnixStream) -> io::Result<()> {
        stream.into_std()?.write_all(FULL)
    }
}

impl Door for Arc<TcpListener> {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }

    fn refuse(stream: TcpStream) -> io::Result<()> {
        stream.into_std()?.write_all(FULL)
    }
}

/// Accepts and serves, for as long as the task is let run.
pub async fn serve_all<D: Door>(
    door: D,
    router: Router,
    gate: Arc<Gate>,
    ended: watch::Receiver<()>,
) {
    loop {
        match door.next().await {
            Ok(stream) => match gate.enter() {
                Some(place) => drop(tokio::spawn(serve(
                    stream,
                    router.clone(),
                    place,
                    ended.clone(),
                ))),
                None => drop(D::refuse(stream)),
            },
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    place: Place,
    ended: watch::Receiver<()>,
) {
    let mut connection = Connection {
        _place: place,
        ended,
    };
    let of_requests = connection.clone();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(of_requests.clone());
        let answering = router.call(request);
        async move { Ok::<Response, Infallible>(answering.await.unwrap_or_else(|error| match error {})) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(LARGEST_HEAD);
    let serving = http.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        result = serving.with_upgrades() => {
            if let Err(error) = result {
                tracing::debug!("a connection to the control API: {error}");
            }
        }
        () = connection.ended() => {}
    }
}

/// The TCP listeners of a configuration.
#[derive(Debug, Default)]
pub struct Listeners {
    present: Option<Generation>,
}

/// Listeners, who may ask there, and what ends it.
#[derive(Debug)]
struct Generation {
    listeners: Vec<Listener>,
    access: Arc<Access>,
    accepting: Vec<AbortHandle>,
    /// Dropped, it ends the connections.
    _end: watch::Sender<()>,
}

#[derive(Clone, Debug)]
struct Listener {
    /// As it was asked for: the port may be 0.
    wanted: SocketAddr,
    address: SocketAddr,
    listener: Arc<TcpListener>,
}

/// Listeners that are ready, and not yet in use.
#[derive(Debug)]
pub struct Prepared {
    /// None: nothing has changed.
    change: Option<Option<(Vec<Listener>, Arc<Access>)>>,
}

impl Listeners {
    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.present.iter().flat_map(|present| &present.listeners);
        listeners.map(|listener| listener.address).collect()
    }

    /// See [`super::Teller::prepare`].
    pub(super) fn prepare(
        &self,
        wanted: Option<(&[SocketAddr], Access)>,
    ) -> Result<Prepared, NetError> {
        let Some((addresses, access)) = wanted.filter(|(addresses, _)| !addresses.is_empty())
        else {
            let change = self.present.is_some().then_some(None);
            return Ok(Prepared { change });
        };
        let present = self.present.as_ref();
        let old = present.map_or(&[][..], |present| &present.listeners);
        let same = old
            .iter()
            .map(|one| one.wanted)
            .eq(addresses.iter().copied());
        if same && present.is_some_and(|present| *present.access == access) {
            return Ok(Prepared { change: None });
        }
        let listeners =
            addresses.iter().map(
                |address| match old.iter().find(|one| one.wanted == *address) {
                    Some(listener) => Ok(listener.clone()),
                    None => Listener::bind(*address),
                },
            );
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        Ok(Prepared {
            change: Some(Some((listeners, Arc::new(access)))),
        })
    }

    /// See [`super::Teller::listen`].
    pub(super) fn take(
        &mut self,
        prepared: Prepared,
        router: impl Fn(&Arc<Access>) -> Router,
        gate: &Arc<Gate>,
    ) {
        let Some(change) = prepared.change else {
            return;
        };
        self.close();
        self.present = change.map(|(listeners, access)| {
            let (end, ended) = watch::channel(());
            let router = router(&access);
            let accept = |one: &Listener| {
                let (listener, gate) = (Arc::clone(&one.listener), Arc::clone(gate));
                tokio::spawn(serve_all(listener, router.clone(), gate, ended.clone()))
                    .abort_handle()
            };
            Generation {
                accepting: listeners.iter().map(accept).collect(),
                listeners,
                access,
                _end: end,
            }
        });
    }

    /// Listens no more.
    pub(super) fn close(&mut self) {
        for task in self
            .present
            .take()
            .iter()
            .flat_map(|present| &present.accepting)
        {
            task.abort();
        }
    }
}

impl Listener {
    fn bind(wanted: SocketAddr) -> Result<Self, NetError> {
        let listener = SocketFactory::default().api_listener(wanted)?;
        let refused = |source| NetError::api(wanted, source);
        let listener = TcpListener::from_std(listener).map_err(refused)?;
        Ok(Self {
            wanted,
            address: listener.local_addr().map_err(refused)?,
            listener: Arc::new(listener),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{}",
            body.len()
        );
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(json["error"].is_string());
    }
}
