//! Checks of outbounds: a real request by TCP, and a real question by UDP.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use url::Host;

use super::outbound::{Dialer, Peer, Target, connect, secure};
use super::record::{Protocol, Shared};
use super::resolve::Resolver;
use super::tls::{Connector, Roots, TlsError};
use super::udp::probe;
use super::way::Way;

/// So many checks are made at a time.
const AT_ONCE: usize = 16;

/// How outbounds are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSettings {
    /// What is asked for by TCP.
    pub url: CheckUrl,
    /// The DNS server that is asked by UDP.
    pub dns: SocketAddr,
    /// The time between two checks of an outbound that is up.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Default for CheckSettings {
    fn default() -> Self {
        Self {
            url: CheckUrl {
                tls: false,
                host: Host::Domain("cp.cloudflare.com".to_owned()),
                port: 80,
                path: "/generate_204".to_owned(),
            },
            dns: SocketAddr::from(([1, 1, 1, 1], 53)),
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
        }
    }
}

/// A URL that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckUrl {
    /// By TLS?
    pub tls: bool,
    /// The server.
    pub host: Host<String>,
    /// Its port, a plain number.
    pub port: u16,
    /// What is asked for, from its `/` on.
    pub path: String,
}

impl CheckUrl {
    /// The host, with the port if that is not the usual one.
    fn authority(&self) -> String {
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for CheckUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// Makes checks.
#[derive(Debug)]
pub struct Checker {
    settings: CheckSettings,
    tls: Option<Connector>,
}

/// A question for the name servers of the root, which every DNS server can answer.
const QUESTION: [u8; 17] = [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

impl Checker {
    /// Checks as these settings say.
    ///
    /// # Errors
    /// When the URL wants TLS and it cannot be had.
    pub fn new(settings: CheckSettings) -> Result<Self, TlsError> {
        let CheckUrl { tls, host, .. } = &settings.url;
        let tls = match tls {
            true => {
                let help = "write a name or an address that its certificate is for";
                Some(Roots::system()?.connector(host, &[b"http/1.1"], help)?)
            }
            false => None,
        };
        Ok(Self { settings, tls })
    }

    /// How often.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.settings.interval
    }

    /// Checks an outbound, and notes what came of it: how long the answer took, or why there was none.
    pub async fn check(
        &self,
        way: &Way,
        protocol: Protocol,
        dialer: &Dialer,
        resolver: &Resolver,
    ) -> Result<Duration, String> {
        let limit = self.settings.timeout;
        let dialer = Dialer {
            limit,
            ..dialer.clone()
        };
        let start = Instant::now();
        let checking = async {
            match protocol {
                Protocol::Tcp => self.tcp(way, &dialer, resolver).await,
                Protocol::Udp => self.udp(way, &dialer).await,
            }
        };
        let checked = timeout(limit, checking).await;
        let checked = checked.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        let checked = checked.map(|()| start.elapsed());
        way.checked(protocol, checked.clone());
        checked
    }

    async fn tcp(&self, way: &Way, dialer: &Dialer, resolver: &Resolver) -> Result<(), String> {
        let text = |error: &dyn fmt::Display| error.to_string();
        let url = &self.settings.url;
        let target = match &url.host {
            Host::Ipv4(ip) => Target::Address((*ip, url.port).into()),
            Host::Ipv6(ip) => Target::Address((*ip, url.port).into()),
            Host::Domain(name) if way.outbound.takes_names() => Target::Name(name, url.port),
            Host::Domain(name) => {
                let found = resolver.lookup(name).await.map_err(|error| text(&error))?;
                let ip = found.addresses.first().ok_or("its name has no address")?;
                Target::Address((*ip, url.port).into())
            }
        };
        let mut stream = dialer
            .dial(way, target)
            .await
            .map_err(|error| text(&error))?;
        if let Some(tls) = &self.tls {
            let peer = Peer {
                kind: "server",
                at: url.to_string(),
            };
            let help = "a certificate must be for the host in the URL of `[check]`";
            stream = secure(stream, tls, &peer, help)
                .await
                .map_err(|error| text(&error))?;
        }
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: tproxy-bpf\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            url.path,
            url.authority()
        );
        let asked = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            stream
                .read_head(|bytes| connect::parse(bytes).map_err(io::Error::other))
                .await
        };
        let reply = asked.await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                "the connection ended before an answer came; is the password right?".to_owned()
            }
            _ => format!("asking for {url} failed: {error}"),
        })?;
        if reply.is_success() {
            return Ok(());
        }
        Err(format!("{url} was answered with {}", reply.line()))
    }

    async fn udp(&self, way: &Way, dialer: &Dialer) -> Result<(), String> {
        let server = self.settings.dns;
        let mut question = QUESTION;
        question[..2].copy_from_slice(&rand::random::<[u8; 2]>());
        let answer = probe::ask(dialer, way, server, &question).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let is_answer = answer.len() >= 12 && answer[..2] == question[..2] && answer[2] & 0x80 != 0;
        match is_answer {
            true => Ok(()),
            false => Err(format!(
                "{server} answered with something that is no DNS answer"
            )),
        }
    }
}

/// Checks what is to be checked, for ever.
pub async fn watch(shared: Arc<Shared>, dialer: Dialer, resolver: Resolver) {
    let mut replaced = shared.replacements();
    let mut running = JoinSet::new();
    loop {
        let router = shared.router();
        let now = Instant::now();
        for way in router.ways() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                if running.len() < AT_ONCE && way.take_due(protocol, now) {
                    let (way, checker) = (Arc::clone(way), Arc::clone(router.checker()));
                    let (dialer, resolver) = (dialer.clone(), resolver.clone());
                    running.spawn(async move {
                        let _ = checker.check(&way, protocol, &dialer, &resolver).await;
                    });
                }
            }
        }
        let is_full = running.len() >= AT_ONCE;
        let next = router.next_due().filter(|_| !is_full);
        let next = async {
            match next {
                Some(next) => sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = replaced.changed() => {}
            Some(_) = running.join_next() => {}
            () = router.doubted() => {}
            () = next => {}
        }
    }
}
