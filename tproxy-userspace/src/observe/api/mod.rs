//! The control API: HTTP on a Unix socket that is for root alone, and on TCP where the configuration says so.
//!
//! What only needs to be looked at is answered by the tasks of the server. What changes the run is put to its owner,
//! who takes one request after the other.

mod accept;
mod clash;
mod flows;
mod guard;
mod native;
mod reply;

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tproxy_common::abi::{Counter, Reason};

use self::accept::Gate;
pub use self::accept::{Listeners, Prepared};
pub use self::guard::{Access, is_own_name};
use self::reply::Failure;
use super::log::Log;
use super::metrics::Doors;
pub use super::socket::Error;
use super::socket::Request;
use crate::data::{Bytes, View};

/// Requests that wait for the owner of the run; who comes then waits before that.
const QUEUE: usize = 16;
/// Connections to the Unix socket, and to all TCP listeners together.
const CONNECTIONS: usize = 64;
/// Checks of outbounds that are made at a time because persons ask.
const CHECKS: usize = 8;
/// How long a request waits for a proxy that is starting.
const START: Duration = Duration::from_secs(10);
/// How long the owner of the run may take for an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// What the kernel's programs have counted, read when it is asked for.
pub trait Kernel: Send + Sync {
    /// Packets by reason.
    ///
    /// # Errors
    /// What a person is told.
    fn counters(&self) -> Result<Vec<(Reason, Counter)>, String>;

    /// What went past the proxy.
    ///
    /// # Errors
    /// What a person is told.
    fn direct(&self) -> Result<Direct, String>;
}

/// Bytes that devices sent and got past the proxy, link headers included.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Direct {
    /// They are counted: `gateway.account` is on.
    pub is_counted: bool,
    /// By device.
    pub devices: Vec<(IpAddr, Bytes)>,
    /// By the network that devices talk to: /24 for IPv4, /48 for IPv6.
    pub networks: Vec<(IpNet, Bytes)>,
}

/// What a configuration says that is told to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The rules in their order.
    pub rules: Vec<RuleFact>,
}

/// A rule, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleFact {
    /// Its name.
    pub name: String,
    /// What it asks for, in a word: "Domain", "IPCIDR", or "AND" if there is more than one condition.
    pub kind: &'static str,
    /// Its conditions, cut off if there are many.
    pub conditions: String,
    /// The outbound or group that it sends to.
    pub outbound: String,
}

/// A proxy that runs.
struct Present {
    view: View,
    kernel: Box<dyn Kernel>,
    started: Instant,
}

/// What all tasks of the server share.
pub(super) struct Hub {
    queue: mpsc::Sender<Asked>,
    present: watch::Sender<Option<Arc<Present>>>,
    facts: RwLock<Arc<Facts>>,
    log: Log,
    unix: Arc<Gate>,
    tcp: Arc<Gate>,
    refused: Refused,
    /// Checks of outbounds that persons asked for, so many at a time.
    checks: Semaphore,
    /// Where it listens by TCP, and who may ask there.
    listening: Mutex<Listeners>,
}

/// Requests that were refused by those who look after the door.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// No token, or a wrong one.
    pub token: AtomicU64,
    /// The page of another site.
    pub origin: AtomicU64,
    /// A name that is not the gateway's.
    pub host: AtomicU64,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

impl Hub {
    async fn present(&self) -> Result<Arc<Present>, Failure> {
        let mut present = self.present.subscribe();
        let starting = || {
            Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the proxy is starting; try again later",
            )
        };
        let found = timeout(START, present.wait_for(Option::is_some)).await;
        let found = found.map_err(|_| starting())?.map_err(|_| starting())?;
        found.clone().ok_or_else(starting)
    }

    /// What came to the doors.
    fn doors(&self) -> Doors {
        Doors {
            unix: self.unix.used(),
            tcp: self.tcp.used(),
            refused: [
                ("token", self.refused.token.load(Relaxed)),
                ("origin", self.refused.origin.load(Relaxed)),
                ("host", self.refused.host.load(Relaxed)),
                (
                    "connections",
                    self.unix.refused.load(Relaxed) + self.tcp.refused.load(Relaxed),
                ),
            ],
        }
    }

    fn facts(&self) -> Arc<Facts> {
        Arc::clone(&self.facts.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn listening(&self) -> MutexGuard<'_, Listeners> {
        // No code that can panic runs under the lock.
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the owner of the run answer. Where that is an error, its status is `refusal`.
    async fn ask(&self, request: Request, refusal: StatusCode) -> Result<Value, Failure> {
        let limit = match request {
            // Connections may take as long as they are allowed to.
            Request::Detach { .. } => Duration::MAX,
            _ => ANSWER,
        };
        let (answer, answered) = oneshot::channel();
        let asking = async {
            self.queue.send(Asked { request, answer }).await.ok()?;
            answered.await.ok()
        };
        let answer = match timeout(limit, asking).await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                return Err(Failure::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the proxy ends",
                ));
            }
            Err(_) => {
                let text = format!("the proxy is busy: no answer within {} s", limit.as_secs());
                return Err(Failure::new(StatusCode::GATEWAY_TIMEOUT, text));
            }
        };
        match answer["error"].as_str() {
            Some(error) => Err(Failure::new(refusal, error)),
            None => Ok(answer),
        }
    }
}

/// One request for the owner of the run.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    answer: oneshot::Sender<Value>,
}

impl Asked {
    /// Answers; what is refused has the key "error". Whoever asked may have gone, which is no concern of the proxy.
    pub async fn answer(self, answer: &Value) {
        let _ = self.answer.send(answer.clone());
    }
}

/// The listening side. Dropping it ends all connections and removes the socket.
#[derive(Debug)]
pub struct Server {
    hub: Arc<Hub>,
    asked: AsyncMutex<mpsc::Receiver<Asked>>,
    accepting: AbortHandle,
    /// Ends the connections of the Unix socket.
    _end: watch::Sender<()>,
    path: PathBuf,
}

impl Server {
    /// Listens at this path. What a killed proxy left there is replaced: only the holder of the
    /// proxy's lock may call this. The members of `group` may connect, beside the owner.
    ///
    /// # Errors
    /// [`Error::Bind`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn bind(path: &Path, group: Option<u32>, log: Log) -> Result<Self, Error> {
        let path = path.to_owned();
        let bind = || {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            if let Some(group) = group {
                chown(&path, None, Some(group))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
            }
            Ok(listener)
        };
        let listener = match bind() {
            Ok(listener) => listener,
            Err(source) => return Err(Error::Bind { path, source }),
        };
        let (queue, asked) = mpsc::channel(QUEUE);
        let hub = Arc::new(Hub {
            queue,
            present: watch::Sender::default(),
            facts: RwLock::default(),
            log,
            unix: Gate::new(CONNECTIONS),
            tcp: Gate::new(CONNECTIONS),
            refused: Refused::default(),
            checks: Semaphore::new(CHECKS),
            listening: Mutex::default(),
        });
        let (end, ended) = watch::channel(());
        let router = reply::json_only(routes()).with_state(Arc::clone(&hub));
        let gate = Arc::clone(&hub.unix);
        let accepting = tokio::spawn(accept::serve_all(listener, router, gate, ended));
        Ok(Self {
            hub,
            asked: AsyncMutex::new(asked),
            accepting: accepting.abort_handle(),
            _end: end,
            path,
        })
    }

    /// The next request that is not answered without the owner of the run. Nothing is lost when the future is
    /// dropped.
    pub async fn next(&self) -> Asked {
        match self.asked.lock().await.recv().await {
            Some(asked) => asked,
            // The runtime ends, and with it who waits here.
            None => std::future::pending().await,
        }
    }

    /// What the owner of the run tells.
    #[must_use]
    pub fn teller(&self) -> Teller {
        Teller(Arc::clone(&self.hub))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        self.hub.listening().close();
        self.hub.present.send_replace(None);
        let _ = fs::remove_file(&self.path);
    }
}

/// What the owner of a run tells the server.
#[derive(Clone, Debug)]
pub struct Teller(Arc<Hub>);

impl Teller {
    /// The proxy runs. Requests that came before have waited for this.
    pub fn runs(&self, view: View, kernel: Box<dyn Kernel>) {
        self.0.present.send_replace(Some(Arc::new(Present {
            view,
            kernel,
            started: Instant::now(),
        })));
    }

    /// The configuration says this.
    pub fn tell(&self, facts: Facts) {
        *self.0.facts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.0.log
    }

    /// Makes ready to listen at these addresses by TCP for those who may. Addresses where it listens already are kept.
    /// Nothing changes before [`listen`](Self::listen).
    ///
    /// # Errors
    /// When one of them is not to be had.
    pub fn prepare(
        &self,
        wanted: Option<(&[SocketAddr], Access)>,
    ) -> Result<Prepared, crate::net::NetError> {
        self.0.listening().prepare(wanted)
    }

    /// Listens as it was prepared. Connections of the time before end if anything has changed.
    pub fn listen(&self, prepared: Prepared) {
        let router = |access: &Arc<Access>| {
            guard::guarded(routes(), Arc::clone(&self.0), Arc::clone(access))
        };
        let gate = Arc::clone(&self.0.tcp);
        self.0.listening().take(prepared, router, &gate);
    }
}

/// All routes that need no dashboard.
fn routes() -> Router<Arc<Hub>> {
    Router::new().merge(native::routes()).merge(clash::routes())
}

/// What `status` tells of the server itself.
fn own_status(hub: &Hub) -> Value {
    json!({
        "listen": hub.listening().addresses(),
        "connections": hub.tcp.used(),
    })
}

#[cfg(test)]
mod tests;
