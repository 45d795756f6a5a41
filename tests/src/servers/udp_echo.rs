//! A UDP echo at many addresses and ports.

use std::{
    collections::BTreeMap,
    io::{IoSlice, IoSliceMut, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    ops::RangeInclusive,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            SockaddrIn, SockaddrIn6, SockaddrLike, bind, recvmsg, sendmsg, setsockopt, socket,
            sockopt,
        },
    },
};

use crate::Namespace;

/// How many datagrams came from each client address and port.
type Clients = Arc<Mutex<BTreeMap<SocketAddr, u64>>>;

/// Answers each datagram (up to 65,507 bytes) with its own bytes, from the very address and port it was
/// sent to, at every address of the namespace.
#[derive(Debug)]
pub struct UdpEcho {
    clients: Clients,
    stop: UnixStream,
    thread: Option<thread::JoinHandle<()>>,
}

impl UdpEcho {
    /// Starts it at all of `ports`, both families.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(ns: &Namespace, ports: RangeInclusive<u16>) -> Result<Self> {
        let sockets = ns.enter(|| -> Result<Vec<UdpSocket>> {
            let mut sockets = Vec::new();
            for port in ports {
                sockets.push(open(Ipv4Addr::UNSPECIFIED.into(), port)?);
                sockets.push(open(Ipv6Addr::UNSPECIFIED.into(), port)?);
            }
            Ok(sockets)
        })??;
        let (stop, stopped) = UnixStream::pair()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (index, socket) in sockets.iter().enumerate() {
            epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        }
        epoll.add(&stopped, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX))?;
        let clients = Clients::default();
        let seen = Arc::clone(&clients);
        let thread = thread::spawn(move || {
            serve(&epoll, &sockets, &seen);
            drop(stopped);
        });
        Ok(Self {
            clients,
            stop,
            thread: Some(thread),
        })
    }

    /// The addresses and ports that datagrams came from, with their number.
    #[must_use]
    pub fn clients(&self) -> BTreeMap<SocketAddr, u64> {
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Forgets them.
    pub fn forget(&self) {
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.write_all(&[0]).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn open(address: IpAddr, port: u16) -> Result<UdpSocket> {
    let naming = || format!("opening UDP port {port} of {address}");
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None).with_context(naming)?;
    let bound = match address {
        IpAddr::V4(address) => {
            setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
            bind(
                fd.as_raw_fd(),
                &SockaddrIn::from(SocketAddrV4::new(address, port)),
            )
        }
        IpAddr::V6(address) => {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
            bind(
                fd.as_raw_fd(),
                &SockaddrIn6::from(SocketAddrV6::new(address, port, 0, 0)),
            )
        }
    };
    bound.with_context(naming)?;
    // Room for a burst of the largest datagrams, whatever net.core.rmem_max says.
    setsockopt(&fd, sockopt::RcvBufForce, &(4 << 20))?;
    setsockopt(&fd, sockopt::SndBufForce, &(4 << 20))?;
    Ok(UdpSocket::from(fd))
}

fn serve(epoll: &Epoll, sockets: &[UdpSocket], clients: &Clients) {
    let mut events = [EpollEvent::empty(); 64];
    let mut buffer = vec![0; 65_536];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        for event in &events[..ready] {
            let Some(socket) = usize::try_from(event.data())
                .ok()
                .and_then(|index| sockets.get(index))
            else {
                return;
            };
            let v4 = socket.local_addr().is_ok_and(|local| local.is_ipv4());
            let fd = socket.as_raw_fd();
            // Bounded, so that one busy port does not starve the others.
            for _ in 0..64 {
                let answered = if v4 {
                    answer::<SockaddrIn>(fd, &mut buffer, clients)
                } else {
                    answer::<SockaddrIn6>(fd, &mut buffer, clients)
                };
                // Empty now. Anything else concerns one datagram: the next event tries again.
                if answered.is_err() {
                    break;
                }
            }
        }
    }
}

/// Receives one datagram, notes its sender, and sends it back from where it went to.
fn answer<A>(fd: RawFd, buffer: &mut [u8], clients: &Clients) -> nix::Result<()>
where
    A: SockaddrLike + Copy + Into<Client>,
{
    let mut space = cmsg_space!(libc::in6_pktinfo);
    let (from, length, info) = {
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg::<A>(fd, &mut slices, Some(&mut space), MsgFlags::empty())?;
        let info = message.cmsgs()?.next();
        (message.address.ok_or(Errno::EINVAL)?, message.bytes, info)
    };
    let Client(client) = from.into();
    // Before it is answered, so that a client with its answer is always known.
    *clients
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(client)
        .or_default() += 1;
    let slices = [IoSlice::new(&buffer[..length])];
    let sent = match info {
        Some(ControlMessageOwned::Ipv4PacketInfo(mut info)) => {
            // The link is the kernel's choice; `ipi_spec_dst` is the source address.
            info.ipi_ifindex = 0;
            info.ipi_spec_dst = info.ipi_addr;
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(fd, &slices, &control, MsgFlags::empty(), Some(&from))
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(mut info)) => {
            info.ipi6_ifindex = 0;
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(fd, &slices, &control, MsgFlags::empty(), Some(&from))
        }
        _ => return Err(Errno::EINVAL),
    };
    match sent {
        // A lost answer is UDP's right.
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The standard library's socket address, from either of nix's.
struct Client(SocketAddr);

impl From<SockaddrIn> for Client {
    fn from(address: SockaddrIn) -> Self {
        Self(SocketAddr::V4(address.into()))
    }
}

impl From<SockaddrIn6> for Client {
    fn from(address: SockaddrIn6) -> Self {
        Self(SocketAddr::V6(address.into()))
    }
}
