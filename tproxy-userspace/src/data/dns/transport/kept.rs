//! A connection to an upstream that is kept for the next questions.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::address::Addresses;
use super::framed::Framed;
use super::http::Http;
use super::{Ask, Exchange, Failure, Path, Timing};
use crate::data::dns::stats::Counters;
use crate::data::dns::upstream::{Transport, Upstream};
use crate::data::dns::wire::Response;
use crate::data::tls::{Connector, Roots, TlsError};

/// An upstream behind a connection: TCP, TLS or HTTPS.
pub struct Stream {
    addresses: Arc<Addresses>,
    path: Path,
    security: Option<Connector>,
    /// For HTTPS.
    url: Option<Arc<str>>,
    timing: Timing,
    counters: Arc<Counters>,
    link: Mutex<Option<Arc<Link>>>,
}

#[derive(Debug)]
enum Link {
    Framed(Framed),
    Http(Http),
}

impl Link {
    fn is_closed(&self) -> bool {
        match self {
            Self::Framed(link) => link.is_closed(),
            Self::Http(link) => link.is_closed(),
        }
    }

    async fn ask(&self, ask: &Ask) -> Result<Response, Failure> {
        match self {
            Self::Framed(link) => link.ask(ask).await,
            Self::Http(link) => link.ask(ask).await,
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// An upstream at these addresses. One for datagrams is spoken to by TCP. Nothing is connected yet.
    ///
    /// # Errors
    /// When TLS is needed and cannot be had.
    pub fn new(
        upstream: &Upstream,
        addresses: Arc<Addresses>,
        path: Path,
        roots: Option<&Roots>,
        timing: Timing,
        counters: Arc<Counters>,
    ) -> Result<Self, TlsError> {
        let is_http = upstream.transport == Transport::Https;
        let security = if upstream.transport.is_encrypted() {
            let roots = roots.ok_or_else(|| TlsError::NoRoots("there are none".to_owned()))?;
            let protocols: &[&[u8]] = if is_http { &[b"h2"] } else { &[] };
            let help = "name another one with #NAME at the end";
            Some(roots.connector(upstream.certified(), protocols, help)?)
        } else {
            None
        };
        // The name of the certificate is the server's, whatever address it is reached by.
        let url = is_http.then(|| {
            let (host, path) = (upstream.certified(), &upstream.path);
            match upstream.port {
                443 => format!("https://{host}{path}").into(),
                port => format!("https://{host}:{port}{path}").into(),
            }
        });
        Ok(Self {
            addresses,
            path,
            security,
            url,
            timing,
            counters,
            link: Mutex::default(),
        })
    }

    async fn ask(&self, ask: &Ask) -> Result<Response, Failure> {
        let deadline = Instant::now() + self.timing.limit;
        let (link, reused) = timeout_at(deadline, self.link(deadline)).await??;
        if !reused {
            return self.ask_by(&link, ask, deadline).await;
        }
        let soon = deadline.min(Instant::now() + self.timing.reused);
        match self.ask_by(&link, ask, soon).await {
            // Servers close connections that idle when they like, and the question may have crossed that.
            Err(Failure::Timeout | Failure::Closed | Failure::Http(_)) => {
                let (link, _) = timeout_at(deadline, self.link(deadline)).await??;
                self.ask_by(&link, ask, deadline).await
            }
            other => other,
        }
    }

    async fn ask_by(
        &self,
        link: &Arc<Link>,
        ask: &Ask,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let answer = timeout_at(deadline, link.ask(ask)).await;
        let answer = answer.unwrap_or(Err(Failure::Timeout));
        if answer.is_err() {
            let mut kept = self.link.lock().await;
            // Another question may have replaced it already.
            if kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, link)) {
                *kept = None;
            }
        }
        answer
    }

    /// The connection, and whether it was there already. Questions that come while it is made wait for it.
    async fn link(&self, deadline: Instant) -> Result<(Arc<Link>, bool), Failure> {
        let mut kept = self.link.lock().await;
        if let Some(link) = &*kept
            && !link.is_closed()
        {
            return Ok((Arc::clone(link), true));
        }
        *kept = None;
        let addresses = self.addresses.get().await?;
        let mut failure = Failure::Nobody;
        let mut left = addresses.len() as u32;
        for address in addresses {
            // Each gets a fair share of what is left, so a silent one leaves time for the others.
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            left -= 1;
            match timeout(share, self.connect(address, share)).await {
                Ok(Ok(link)) => {
                    let link = Arc::new(link);
                    *kept = Some(Arc::clone(&link));
                    return Ok((link, false));
                }
                Ok(Err(error)) => failure = error,
                Err(_) => failure = Failure::Timeout,
            }
        }
        self.addresses.doubt().await;
        Err(failure)
    }

    async fn connect(&self, address: SocketAddr, limit: Duration) -> Result<Link, Failure> {
        let stream = self.path.connect(address, limit).await?;
        let Some(connector) = &self.security else {
            return Ok(self.framed(stream, false));
        };
        let stream = connector.connect(stream).await;
        let stream = stream.map_err(Failure::io("the TLS handshake"))?;
        match &self.url {
            Some(url) => Ok(Link::Http(Http::start(stream, url).await?)),
            None => Ok(self.framed(stream, true)),
        }
    }

    fn framed<S>(&self, stream: S, pad: bool) -> Link
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
    {
        let counters = Arc::clone(&self.counters);
        Link::Framed(Framed::start(stream, pad, self.timing.idle, counters))
    }
}

impl Exchange for Stream {
    fn exchange<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Response, Failure>> {
        self.ask(ask).boxed()
    }
}
