//! Looking up the names of outbound servers.
//!
//! The system's own resolver makes sockets without a mark. Where the gateway's own traffic is proxied, its
//! questions would go to the proxy, which waits for the answers. So the questions are asked from here, by
//! marked sockets, with the system's configuration.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use hickory_resolver::Hosts;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::net::{NetError, SocketFactory};

/// How long a look-up may take, all name servers and tries together.
const LIMIT: Duration = Duration::from_secs(15);
/// How long a name server may take to accept a TCP connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Looks names up in `/etc/hosts`, then at the name servers of `/etc/resolv.conf`. Both files are read anew
/// each time, because a DHCP client may write them at any time.
#[derive(Clone, Debug)]
pub struct Resolver {
    factory: SocketFactory,
    source: Source,
}

/// Where names are looked up.
#[derive(Clone, Debug)]
enum Source {
    System,
    /// This name server alone.
    #[cfg(test)]
    Server(SocketAddr),
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The addresses, at least one, each once, in the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// For how long they hold.
    pub ttl: Duration,
}

/// Why a name could not be looked up.
#[derive(Debug, thiserror::Error)]
#[error(
    "looking up the server {name} of the outbound failed: {reason}; check the name and the name servers in \
     /etc/resolv.conf, or write the server's address instead of its name"
)]
pub struct LookupError {
    name: String,
    reason: String,
}

impl Resolver {
    /// A resolver with the system's configuration.
    #[must_use]
    pub fn system(factory: SocketFactory) -> Self {
        Self {
            factory,
            source: Source::System,
        }
    }

    /// A resolver that asks this name server, UDP and TCP.
    #[cfg(test)]
    pub fn at(factory: SocketFactory, server: SocketAddr) -> Self {
        Self {
            factory,
            source: Source::Server(server),
        }
    }

    /// The addresses of a name, both families.
    ///
    /// # Errors
    /// When neither `/etc/hosts` nor a name server knows an address.
    pub async fn lookup(&self, name: &str) -> Result<Answer, LookupError> {
        let failed = |reason: String| LookupError {
            name: name.to_owned(),
            reason,
        };
        let answer = timeout(LIMIT, self.ask(name)).await;
        let answer = answer.map_err(|_| failed(format!("no answer within {LIMIT:?}")))?;
        answer.map_err(failed)
    }

    async fn ask(&self, name: &str) -> Result<Answer, String> {
        if let Some(answer) = self.in_hosts(name) {
            return Ok(answer);
        }
        let (config, mut options) = self.configuration();
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        options.use_hosts_file = ResolveHosts::Never;
        options.try_tcp_on_error = true;
        let provider = Provider {
            factory: self.factory,
            handle: TokioHandle::default(),
        };
        let builder = hickory_resolver::Resolver::builder_with_config(config, provider);
        let resolver = builder.with_options(options).build();
        let resolver = resolver.map_err(|error| error.to_string())?;
        let found = resolver.lookup_ip(name).await;
        let found = found.map_err(|error| {
            if error.is_nx_domain() || error.is_no_records_found() {
                "it has no address".to_owned()
            } else {
                error.to_string()
            }
        })?;
        Answer::of(found.as_lookup().answers()).ok_or_else(|| "it has no address".to_owned())
    }

    /// What `/etc/hosts` says. A name that is there for one family is not asked for in the other.
    fn in_hosts(&self, name: &str) -> Option<Answer> {
        #[cfg(test)]
        if matches!(self.source, Source::Server(_)) {
            return None;
        }
        let hosts = Hosts::from_system().ok()?;
        let name = Name::from_utf8(name).ok()?;
        let records: Vec<Record> = [RecordType::AAAA, RecordType::A]
            .into_iter()
            .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
            .flat_map(|lookup| lookup.answers().to_vec())
            .collect();
        Answer::of(&records)
    }

    fn configuration(&self) -> (ResolverConfig, ResolverOpts) {
        match self.source {
            // Without a usable file it is the name server of this machine: resolv.conf(5).
            Source::System => read_system_conf().unwrap_or_else(|error| {
                tracing::debug!(%error, "/etc/resolv.conf names no name server");
                let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![local]);
                (config, ResolverOpts::default())
            }),
            #[cfg(test)]
            Source::Server(server) => {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                for connection in &mut config.connections {
                    connection.port = server.port();
                }
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![config]);
                (config, ResolverOpts::default())
            }
        }
    }
}

impl Answer {
    /// None: there is no address among the records.
    fn of(records: &[Record]) -> Option<Self> {
        let mut addresses = Vec::new();
        for record in records {
            let Some(address) = record.data.ip_addr() else {
                continue;
            };
            let address = address.to_canonical();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        // The shortest of all, aliases included: any of them may be the one that changes.
        let ttl = records.iter().map(|record| record.ttl).min()?;
        (!addresses.is_empty()).then_some(Self {
            addresses,
            ttl: Duration::from_secs(ttl.into()),
        })
    }
}

/// Gives the resolver its sockets.
#[derive(Clone)]
struct Provider {
    factory: SocketFactory,
    handle: TokioHandle,
}

impl RuntimeProvider for Provider {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _local: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let socket = self.factory.lookup_tcp(server);
        Box::pin(async move {
            let socket = TcpSocket::from_std_stream(socket.map_err(into_io)?);
            let connected = timeout(limit.unwrap_or(CONNECT_LIMIT), socket.connect(server)).await;
            let connected = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            Ok(AsyncIoTokioAsStd(connected?))
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<UdpSocket>>>> {
        let socket = self.factory.lookup_udp(local);
        Box::pin(async move { UdpSocket::from_std(socket.map_err(into_io)?) })
    }
}

/// Keeps the kernel's kind of error: a port that is taken makes the resolver try another one.
fn into_io(error: NetError) -> io::Error {
    io::Error::new(error.io().kind(), error.to_string())
}

#[cfg(test)]
pub mod tests;
