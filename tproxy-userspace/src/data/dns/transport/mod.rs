//! Asking one upstream.

mod address;
mod framed;
mod http;
mod kept;
mod udp;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::TcpSocket;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

pub use self::address::{Addresses, Bootstrap};
pub use self::kept::Stream;
pub use self::udp::Udp;
use super::wire::{Mismatch, Question, Response};
use crate::data::outbound::{DialError, Dialer};
use crate::data::record::Shared;
use crate::data::resolve::LookupError;
use crate::data::stream::Stream as Connection;
use crate::net::{NetError, SocketFactory};
use crate::policy::rule;

/// A question as upstreams get it.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What is asked.
    pub question: Question,
    /// DNSSEC's records are wanted.
    pub dnssec_ok: bool,
    /// Answers whose signatures are wrong are wanted too.
    pub checking_disabled: bool,
}

impl Ask {
    fn encode(&self, id: u16, pad: bool) -> Vec<u8> {
        super::wire::ask(
            id,
            &self.question,
            self.dnssec_ok,
            self.checking_disabled,
            pad,
        )
    }
}

/// Something that questions can be put to.
pub trait Exchange: Send + Sync + fmt::Debug {
    /// Asks, and waits for the answer or the end of the limit.
    fn exchange<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Response, Failure>>;
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// One question, all upstreams and tries together. Less than the 5 s after which the resolvers of most systems
    /// ask somebody else, so that they hear of the failure.
    pub limit: Duration,
    /// An upstream that has not answered by then gets company.
    pub overtake: Duration,
    /// A datagram without an answer is sent again after this time, then after twice as long.
    pub resend: Duration,
    /// A connection that was used before must answer within this time, or the question goes to a new one:
    /// something on the way may have forgotten the old one without a word.
    pub reused: Duration,
    /// A connection without a question ends.
    pub idle: Duration,
    /// A client waits so long for a fresh answer when there is a stale one.
    pub patience: Duration,
    /// An answer waits so long for those who act on the addresses in it.
    pub hearing: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            limit: Duration::from_secs(4),
            overtake: Duration::from_millis(500),
            resend: Duration::from_secs(1),
            reused: Duration::from_secs(2),
            idle: Duration::from_secs(30),
            patience: Duration::from_millis(300),
            hearing: Duration::from_millis(20),
        }
    }
}

/// Why an upstream has not answered.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No answer within the limit.
    #[error("there was no answer in time")]
    Timeout,
    /// No socket.
    #[error(transparent)]
    Socket(#[from] NetError),
    /// The outbound could not be passed.
    #[error("the outbound did not lead there: {0}")]
    Dial(#[from] DialError),
    /// The kernel refused.
    #[error("{step} failed: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer, or that of TLS.
        source: io::Error,
    },
    /// The upstream's name has no address.
    #[error("its name has no address: {0}")]
    Name(#[from] LookupError),
    /// The connection ended before the answer came.
    #[error("the connection was closed before the answer came")]
    Closed,
    /// HTTP/2 failed.
    #[error("HTTP/2 failed: {0}")]
    Http(#[from] h2::Error),
    /// The server of HTTP does not answer such questions.
    #[error("the HTTP status is {0}; check the path of the URL")]
    Status(u16),
    /// The answer cannot be read.
    #[error("the answer is malformed")]
    Malformed,
    /// The answer is that of another question.
    #[error("the answer is that of another question")]
    Foreign,
    /// All of them failed before, and there is no other.
    #[error("no upstream is configured for this group")]
    Nobody,
}

impl From<Elapsed> for Failure {
    fn from(_: Elapsed) -> Self {
        Self::Timeout
    }
}

impl From<Mismatch> for Failure {
    fn from(mismatch: Mismatch) -> Self {
        match mismatch {
            Mismatch::Foreign => Self::Foreign,
            // Where this is asked, TCP is in use, and nothing is larger.
            Mismatch::Truncated | Mismatch::Malformed => Self::Malformed,
        }
    }
}

impl Failure {
    fn io(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { step, source }
    }
}

/// How the upstreams of a group are reached.
#[derive(Clone, Debug)]
pub enum Path {
    /// By marked sockets.
    Direct(SocketFactory),
    /// Through the outbound that is in use at the time. Always by TCP: not every outbound carries datagrams, and
    /// what is lost between here and its server would cost a second for each question.
    Outbound(Dialer, Arc<Shared>),
}

impl Path {
    async fn connect(&self, server: SocketAddr, limit: Duration) -> Result<Connection, Failure> {
        match self {
            Self::Direct(factory) => {
                let socket = TcpSocket::from_std_stream(factory.lookup_tcp(server)?);
                let connected = timeout(limit, socket.connect(server)).await?;
                Ok(Connection::Plain(
                    connected.map_err(Failure::io("connecting"))?,
                ))
            }
            Self::Outbound(dialer, shared) => {
                let query = rule::Query {
                    protocol: rule::Protocol::Tcp,
                    // Nobody's in particular: answers are for all.
                    source: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    destination: server,
                    name: None,
                };
                let mut choice = shared.router().default_choice(&query);
                let connecting = dialer.connect_by(&mut choice, &query, |_| server.into());
                Ok(timeout(limit, connecting).await??)
            }
        }
    }
}
