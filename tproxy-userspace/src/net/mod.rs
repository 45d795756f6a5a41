//! Sockets: every option that is set on them, and the only unsafe code of the userspace half (so the clock and memory are here as well).
//!
//! Each socket of the proxy comes from a [`SocketFactory`], which marks it before anything else.
//! An unmarked socket could be steered into the proxy itself, so there is no other way to get one.

pub mod memory;
pub mod mmsg;
pub mod pass;
pub mod splice;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tproxy_common::abi::{MARK_EXEMPT, MARK_MASK};

/// Connections that wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// The same of the control API, which few people use.
const API_BACKLOG: i32 = 64;
/// How long a client of the control API may take for what it is sent.
const API_PATIENCE: Duration = Duration::from_secs(30);
/// Buffer of a socket that several devices share, in bytes: a burst of 64 of the largest datagrams.
const SHARED_BUFFER: usize = 4 << 20;
/// Buffer of a socket that one device has for itself, in bytes.
const OWN_BUFFER: usize = 1 << 20;
/// Probes without an answer after which keepalive gives a connection up.
const KEEPALIVE_PROBES: u32 = 4;
/// The longest time between two such probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// What a socket is for; a word for error messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Accepts steered connections.
    Listener,
    /// Receives steered datagrams and sends the answers.
    Receiver,
    /// Carries a connection to the upstream side.
    Connection,
    /// Carries an association's datagrams to the upstream side.
    Association,
    /// Asks a name server.
    Lookup,
    /// Accepts connections to the control API.
    Api,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listener => "the TCP listener",
            Self::Receiver => "the UDP receiver",
            Self::Connection => "the TCP connection",
            Self::Association => "the UDP association",
            Self::Lookup => "the socket for a look-up",
            Self::Api => "the listener of the control API",
        })
    }
}

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// One step of making a socket failed.
    #[error("{operation} {purpose} ({address}) failed: {source}{}", remedy(source))]
    Socket {
        /// The step, as the beginning of a sentence.
        operation: &'static str,
        /// What the socket was for.
        purpose: Purpose,
        /// Where it should have been bound, or should have connected to.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The limit of open files could not be read or raised.
    #[error("raising the limit of open files (RLIMIT_NOFILE) failed: {0}")]
    OpenFiles(#[source] io::Error),
}

impl NetError {
    /// The listener of the control API was made and then not taken.
    #[must_use]
    pub fn api(address: SocketAddr, source: io::Error) -> Self {
        Self::Socket {
            operation: "using",
            purpose: Purpose::Api,
            address,
            source,
        }
    }

    /// The kernel's answer.
    #[must_use]
    pub fn io(&self) -> &io::Error {
        match self {
            Self::Socket { source, .. } | Self::OpenFiles(source) => source,
        }
    }
}

/// What a person can do about the kernel's answer, where that is known.
fn remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; run tproxy-bpf as root or give it CAP_NET_ADMIN and CAP_NET_RAW"
        }
        Some(libc::EMFILE) => "; raise the limit of open files (ulimit -n, LimitNOFILE=)",
        Some(libc::EADDRINUSE) => "; another program holds this port, choose another one",
        Some(libc::EADDRNOTAVAIL) => "; this machine has no such address",
        Some(libc::ENODEV) => "; there is no link of that name",
        _ => "",
    }
}

/// What the sockets that leave by one outbound have beside the usual. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// Their source address for IPv4. None: the kernel's choice.
    pub v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// The only link that they use (`SO_BINDTODEVICE`).
    pub interface: Option<String>,
    /// More bits of their firewall mark. None of them is of [`MARK_MASK`].
    pub mark: u32,
}

impl Binding {
    /// The source address for a peer, or the unspecified one, with port 0.
    fn source(&self, peer: SocketAddr) -> SocketAddr {
        match peer {
            SocketAddr::V4(_) => (self.v4.unwrap_or(Ipv4Addr::UNSPECIFIED), 0).into(),
            SocketAddr::V6(_) => (self.v6.unwrap_or(Ipv6Addr::UNSPECIFIED), 0).into(),
        }
    }
}

/// Makes every socket of the proxy, marked so that the kernel half never steers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFactory {
    mark: u32,
}

impl Default for SocketFactory {
    fn default() -> Self {
        Self { mark: MARK_EXEMPT }
    }
}

impl SocketFactory {
    /// A transparent, listening TCP socket. Accepted connections inherit its options.
    ///
    /// It has no `SO_REUSEPORT`: `bpf_sk_assign` refuses such sockets before Linux 6.6.
    ///
    /// # Errors
    /// The step that failed; `EAFNOSUPPORT` and `EADDRNOTAVAIL` mean that the machine lacks the family.
    pub fn tcp_listener(
        self,
        address: SocketAddr,
        keepalive: Duration,
    ) -> Result<std::net::TcpListener, NetError> {
        let steps = Steps::new(Purpose::Listener, address);
        let socket = self.socket(steps, Type::STREAM, Protocol::TCP)?;
        steps.did("making transparent", set_transparent(&socket, address))?;
        steps.did("setting options of", set_tcp_options(&socket, keepalive))?;
        // A restarted proxy gets its port back although old connections linger in TIME_WAIT.
        steps.did("setting options of", socket.set_reuse_address(true))?;
        steps.did("binding", socket.bind(&address.into()))?;
        steps.did("listening on", socket.listen(BACKLOG))?;
        Ok(socket.into())
    }

    /// A listening TCP socket for the control API. What it answers is marked, so it is never steered.
    ///
    /// # Errors
    /// The step that failed.
    pub fn api_listener(self, address: SocketAddr) -> Result<std::net::TcpListener, NetError> {
        let steps = Steps::new(Purpose::Api, address);
        let socket = self.socket(steps, Type::STREAM, Protocol::TCP)?;
        steps.did("setting options of", socket.set_reuse_address(true))?;
        steps.did("setting options of", socket.set_tcp_nodelay(true))?;
        // Who does not read the answers loses the place to others.
        let limit = Some(API_PATIENCE);
        steps.did("setting options of", socket.set_tcp_user_timeout(limit))?;
        steps.did("binding", socket.bind(&address.into()))?;
        steps.did("listening on", socket.listen(API_BACKLOG))?;
        Ok(socket.into())
    }

    /// So many transparent UDP sockets at one address, which is given as well. They tell the original destination of each
    /// datagram. Who gets a datagram is for others to decide.
    ///
    /// They have no `SO_REUSEPORT`, as [`tcp_listener`](Self::tcp_listener) has none.
    ///
    /// # Errors
    /// As [`tcp_listener`](Self::tcp_listener).
    pub fn udp_receivers(
        self,
        address: SocketAddr,
        count: usize,
    ) -> Result<(Vec<UdpSocket>, SocketAddr), NetError> {
        let first = self.receiver(address, false)?;
        let local = first.local_addr().unwrap_or(address);
        let steps = Steps::new(Purpose::Receiver, local);
        let share = |socket: &UdpSocket, on| {
            let shared = SockRef::from(socket).set_reuse_address(on);
            steps.did("setting options of", shared)
        };
        // Once it has a port that nobody else has, the others join it there.
        share(&first, true)?;
        let mut all = vec![first];
        for _ in 1..count {
            all.push(self.receiver(local, true)?);
        }
        // And nobody else does.
        all.iter().try_for_each(|socket| share(socket, false))?;
        Ok((all, local))
    }

    /// One alone.
    #[cfg(test)]
    pub(crate) fn udp_receiver(self, address: SocketAddr) -> Result<UdpSocket, NetError> {
        let (mut all, _) = self.udp_receivers(address, 1)?;
        Ok(all.remove(0))
    }

    fn receiver(self, address: SocketAddr, shared: bool) -> Result<UdpSocket, NetError> {
        let steps = Steps::new(Purpose::Receiver, address);
        let socket = self.socket(steps, Type::DGRAM, Protocol::UDP)?;
        steps.did("making transparent", set_transparent(&socket, address))?;
        let original = if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)
        } else {
            setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)
        };
        steps.did("asking for original destinations on", original)?;
        let lost = setsockopt(&socket, sockopt::RxqOvfl, &1);
        steps.did("asking for losses on", lost)?;
        steps.did("asking for trains on", take_trains(&socket))?;
        steps.did("sizing buffers of", set_buffers(&socket, SHARED_BUFFER))?;
        steps.did("setting options of", socket.set_reuse_address(shared))?;
        steps.did("binding", socket.bind(&address.into()))?;
        Ok(socket.into())
    }

    /// A TCP socket that is ready for a non-blocking connect to `peer`.
    ///
    /// # Errors
    /// The step that failed.
    pub fn tcp_outgoing(
        self,
        peer: SocketAddr,
        keepalive: Duration,
        binding: &Binding,
    ) -> Result<std::net::TcpStream, NetError> {
        let steps = Steps::new(Purpose::Connection, peer);
        let socket = self.socket(steps, Type::STREAM, Protocol::TCP)?;
        steps.did("setting options of", set_tcp_options(&socket, keepalive))?;
        self.bind(steps, &socket, binding)?;
        let source = binding.source(peer);
        if !source.ip().is_unspecified() {
            // The port is chosen when the peer is known, so that each peer has all ports for itself.
            let late = setsockopt(&socket, sockopt::IpBindAddressNoPort, &true);
            steps.did("setting options of", late)?;
            let steps = Steps::new(Purpose::Connection, source);
            steps.did("binding", socket.bind(&source.into()))?;
        }
        Ok(socket.into())
    }

    /// A UDP socket on a port of the kernel's choice that can reach peers of the same family as `peer`.
    /// It is not connected.
    ///
    /// # Errors
    /// The step that failed.
    pub fn udp_outgoing(self, peer: SocketAddr, binding: &Binding) -> Result<UdpSocket, NetError> {
        let source = binding.source(peer);
        let steps = Steps::new(Purpose::Association, source);
        let socket = self.socket(steps, Type::DGRAM, Protocol::UDP)?;
        steps.did("sizing buffers of", set_buffers(&socket, OWN_BUFFER))?;
        steps.did("asking for trains on", take_trains(&socket))?;
        self.bind(steps, &socket, binding)?;
        steps.did("binding", socket.bind(&source.into()))?;
        Ok(socket.into())
    }

    /// All of a binding but the source address.
    fn bind(self, steps: Steps, socket: &Socket, binding: &Binding) -> Result<(), NetError> {
        let more = binding.mark & !MARK_MASK;
        if more != 0 {
            steps.did("marking", socket.set_mark(self.mark | more))?;
        }
        if let Some(interface) = &binding.interface {
            let bound = socket.bind_device(Some(interface.as_bytes()));
            steps.did("binding to its interface", bound)?;
        }
        Ok(())
    }

    /// A UDP socket bound to `local`, to ask a name server from. It is not connected.
    ///
    /// # Errors
    /// The step that failed.
    pub fn lookup_udp(self, local: SocketAddr) -> Result<UdpSocket, NetError> {
        let steps = Steps::new(Purpose::Lookup, local);
        let socket = self.socket(steps, Type::DGRAM, Protocol::UDP)?;
        steps.did("binding", socket.bind(&local.into()))?;
        Ok(socket.into())
    }

    /// A TCP socket that is ready for a non-blocking connect to the name server at `server`.
    ///
    /// # Errors
    /// The step that failed.
    pub fn lookup_tcp(self, server: SocketAddr) -> Result<std::net::TcpStream, NetError> {
        let steps = Steps::new(Purpose::Lookup, server);
        let socket = self.socket(steps, Type::STREAM, Protocol::TCP)?;
        steps.did("setting options of", socket.set_tcp_nodelay(true))?;
        Ok(socket.into())
    }

    fn socket(self, steps: Steps, kind: Type, protocol: Protocol) -> Result<Socket, NetError> {
        let domain = Domain::for_address(steps.address);
        // `socket2` adds close-on-exec by itself.
        let socket = steps.did(
            "making",
            Socket::new(domain, kind.nonblocking(), Some(protocol)),
        )?;
        steps.did("marking", socket.set_mark(self.mark))?;
        if steps.address.is_ipv6() {
            steps.did("restricting to IPv6", socket.set_only_v6(true))?;
        }
        Ok(socket)
    }
}

/// Names the steps of making one socket, for errors.
#[derive(Clone, Copy)]
struct Steps {
    purpose: Purpose,
    address: SocketAddr,
}

impl Steps {
    fn new(purpose: Purpose, address: SocketAddr) -> Self {
        Self { purpose, address }
    }

    fn did<T>(
        self,
        operation: &'static str,
        result: Result<T, impl Into<io::Error>>,
    ) -> Result<T, NetError> {
        result.map_err(|source| NetError::Socket {
            operation,
            purpose: self.purpose,
            address: self.address,
            source: source.into(),
        })
    }
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

fn set_tcp_options(socket: &Socket, keepalive: Duration) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(keepalive)
            // The kernel waits this long after each probe, even one that was answered.
            .with_interval(KEEPALIVE_INTERVAL.min(keepalive))
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// Datagrams that came as a train are handed on as one.
fn take_trains(socket: &Socket) -> nix::Result<()> {
    setsockopt(socket, sockopt::UdpGroSegment, &true)
}

/// From now on each datagram comes with its firewall mark, in which its number stands while its flow changes to the express lane
/// (`SO_RCVMARK`, Linux 5.19).
///
/// # Errors
/// What the kernel says; one that is older knows no such option.
pub fn ask_for_numbers(socket: &impl AsFd) -> io::Result<()> {
    /// `SO_RCVMARK` of `asm-generic/socket.h`.
    const SO_RCVMARK: libc::c_int = 75;
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads as many bytes as it is told, of a number that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_RCVMARK,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Beyond `net.core.[rw]mem_max`, which root may.
fn set_buffers(socket: &Socket, bytes: usize) -> nix::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes)?;
    setsockopt(socket, sockopt::SndBufForce, &bytes)
}

/// Makes the close of this connection a RST instead of a FIN. What was not sent yet is thrown away.
pub fn reset_on_close(socket: &impl AsFd) {
    // It fails for a connection that is reset already, which is what is wanted.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Raises the limit of open files to the hard limit and returns it.
///
/// # Errors
/// When the limit cannot be read or set.
pub fn raise_open_files() -> Result<u64, NetError> {
    let failed = |errno: nix::Error| NetError::OpenFiles(errno.into());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)?;
    }
    Ok(hard)
}

/// Whether the kernel was told by a time server's client that the clock is right: `adjtimex(2)`, `STA_UNSYNC`. None: it
/// cannot be asked.
#[must_use]
pub fn clock_is_set() -> Option<bool> {
    // SAFETY: a timex is numbers alone, for which zero is a value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes into the timex, which lives through the call; with no mode set it changes nothing.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    (state >= 0).then_some(timex.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> [SocketAddr; 2] {
        [
            (Ipv4Addr::LOCALHOST, 0).into(),
            (Ipv6Addr::LOCALHOST, 0).into(),
        ]
    }

    #[test]
    fn every_socket_carries_the_exempt_mark() -> Result<(), NetError> {
        let factory = SocketFactory::default();
        let keepalive = Duration::from_secs(300);
        let mark = |socket: SockRef<'_>| socket.mark().expect("SO_MARK can be read");
        for address in loopback() {
            let listener = factory.tcp_listener(address, keepalive)?;
            assert_eq!(mark(SockRef::from(&listener)), MARK_EXEMPT);
            let receiver = factory.udp_receiver(address)?;
            assert_eq!(mark(SockRef::from(&receiver)), MARK_EXEMPT);
            let connection = factory.tcp_outgoing(address, keepalive, &Binding::default())?;
            assert_eq!(mark(SockRef::from(&connection)), MARK_EXEMPT);
            let association = factory.udp_outgoing(address, &Binding::default())?;
            assert_eq!(mark(SockRef::from(&association)), MARK_EXEMPT);
            let question = factory.lookup_udp(address)?;
            assert_eq!(mark(SockRef::from(&question)), MARK_EXEMPT);
            let question = factory.lookup_tcp(address)?;
            assert_eq!(mark(SockRef::from(&question)), MARK_EXEMPT);
        }
        Ok(())
    }

    #[test]
    fn a_binding_says_where_sockets_leave_from() -> Result<(), NetError> {
        let factory = SocketFactory::default();
        let mut binding = Binding {
            v4: Some(Ipv4Addr::new(127, 1, 2, 3)),
            v6: Some(Ipv6Addr::LOCALHOST),
            interface: Some("lo".to_owned()),
            mark: 0x100 | MARK_MASK,
        };
        let check = |socket: SockRef<'_>, peer: SocketAddr| {
            assert_eq!(socket.mark().expect("readable"), MARK_EXEMPT | 0x100);
            let device = socket.device().expect("readable");
            assert_eq!(device.as_deref(), Some(&b"lo"[..]));
            let local = socket.local_addr().expect("bound").as_socket();
            let ip = local.expect("IP").ip();
            assert_eq!(ip.is_ipv4(), peer.is_ipv4());
            assert!(ip.is_loopback() && ip != Ipv4Addr::LOCALHOST);
        };
        for peer in loopback() {
            let keepalive = Duration::from_secs(300);
            let connection = factory.tcp_outgoing(peer, keepalive, &binding)?;
            check(SockRef::from(&connection), peer);
            check(SockRef::from(&factory.udp_outgoing(peer, &binding)?), peer);
        }
        binding.interface = Some("no such link".to_owned());
        let error = factory.udp_outgoing(loopback()[0], &binding);
        let text = error.expect_err("no such link").to_string();
        assert!(text.ends_with("there is no link of that name"), "{text}");
        Ok(())
    }

    #[test]
    fn accepted_connections_inherit_mark_and_options() -> Result<(), NetError> {
        let factory = SocketFactory::default();
        for address in loopback() {
            let listener = factory.tcp_listener(address, Duration::from_secs(77))?;
            assert!(!SockRef::from(&listener).reuse_port().expect("readable"));
            listener.set_nonblocking(false).expect("a plain flag");
            let address = listener.local_addr().expect("it is bound");
            let _client = std::net::TcpStream::connect(address).expect("it listens");
            let (accepted, _) = listener.accept().expect("a client came");
            let accepted = SockRef::from(&accepted);
            assert_eq!(accepted.mark().expect("readable"), MARK_EXEMPT);
            assert!(accepted.tcp_nodelay().expect("readable"));
            assert!(accepted.keepalive().expect("readable"));
            assert_eq!(
                accepted.tcp_keepalive_time().expect("readable"),
                Duration::from_secs(77)
            );
        }
        Ok(())
    }

    #[test]
    fn an_error_names_the_step_the_socket_and_the_way_out() {
        let factory = SocketFactory::default();
        let (_receivers, taken) = factory
            .udp_receivers(loopback()[0], 3)
            .expect("loopback exists");
        let error = factory.udp_receiver(taken).expect_err("the port is taken");
        let text = error.to_string();
        assert!(text.starts_with("binding the UDP receiver (127.0.0.1:"));
        assert!(text.ends_with("another program holds this port, choose another one"));
    }
}
