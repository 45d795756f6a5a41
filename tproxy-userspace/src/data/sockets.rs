//! The sockets that devices reach.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{SockType, getsockopt, sockopt};
use tproxy_common::abi;

use super::{Error, Limits};
use crate::net::{NetError, SocketFactory};

/// How many listeners, and how many receivers, each family has.
pub const LANES: usize = abi::LANES as usize;

/// The proxy's listeners and receivers, bound to loopback addresses: only what the kernel half assigns to
/// them gets there from outside the machine.
#[derive(Debug)]
pub struct Sockets {
    pub(super) v4: Family,
    pub(super) v6: Option<Family>,
}

/// The sockets of one address family.
#[derive(Debug)]
pub(super) struct Family {
    /// One for each lane, with its address. The first has the port that is configured.
    pub(super) listeners: Vec<(TcpListener, SocketAddr)>,
    /// One for each lane, all at the same address.
    pub(super) receivers: Vec<UdpSocket>,
    pub(super) receiver_address: SocketAddr,
}

impl Sockets {
    /// Binds all sockets to `port`, or each to one of the kernel's choice. A machine without IPv6 gets
    /// the IPv4 ones alone.
    ///
    /// # Errors
    /// Which socket could not be made, and why.
    pub fn bind(
        factory: &SocketFactory,
        port: Option<u16>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let port = port.unwrap_or(0);
        let v4 = Family::bind(*factory, (Ipv4Addr::LOCALHOST, port).into(), limits)?;
        let v6 = match Family::bind(*factory, (Ipv6Addr::LOCALHOST, port).into(), limits) {
            Ok(family) => Some(family),
            Err(error) if lacks_family(error.io()) => {
                tracing::warn!("this machine has no IPv6; only IPv4 is proxied");
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { v4, v6 })
    }

    /// The sockets that another process had bound, in any order but for that of the lanes.
    ///
    /// # Errors
    /// `InvalidData` when they are not those.
    pub fn from_files(files: Vec<OwnedFd>) -> io::Result<Self> {
        let (mut v4, mut v6) = (Family::empty(), Family::empty());
        for file in files {
            if getsockopt(&file, sockopt::SockType)? == SockType::Datagram {
                let receiver = UdpSocket::from(file);
                let address = receiver.local_addr()?;
                let family = if address.is_ipv4() { &mut v4 } else { &mut v6 };
                family.receiver_address = address;
                family.receivers.push(receiver);
            } else {
                let listener = TcpListener::from(file);
                let address = listener.local_addr()?;
                let family = if address.is_ipv4() { &mut v4 } else { &mut v6 };
                family.listeners.push((listener, address));
            }
        }
        let whole = |family: &Family| !family.listeners.is_empty() && !family.receivers.is_empty();
        let absent = |family: &Family| family.listeners.is_empty() && family.receivers.is_empty();
        if !whole(&v4) || !(whole(&v6) || absent(&v6)) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            v4,
            v6: Some(v6).filter(whole),
        })
    }

    /// The same sockets once more.
    ///
    /// # Errors
    /// When this machine has no file left.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self {
            v4: self.v4.duplicate()?,
            v6: self.v6.as_ref().map(Family::duplicate).transpose()?,
        })
    }

    /// All of them.
    #[must_use]
    pub fn files(&self) -> Vec<BorrowedFd<'_>> {
        [self.tcp4(), self.udp4(), self.tcp6(), self.udp6()].concat()
    }

    /// Is this the port that was configured for them?
    #[must_use]
    pub fn all_have(&self, port: u16) -> bool {
        let families = [Some(&self.v4), self.v6.as_ref()].into_iter().flatten();
        let mut addresses = families.flat_map(|one| {
            let listener = one.listeners.first().map(|(_, address)| *address);
            listener.into_iter().chain([one.receiver_address])
        });
        addresses.all(|address| address.port() == port)
    }

    /// The listeners for IPv4, by lane.
    #[must_use]
    pub fn tcp4(&self) -> Vec<BorrowedFd<'_>> {
        self.v4.listeners.iter().map(|one| one.0.as_fd()).collect()
    }

    /// The listeners for IPv6, by lane. None on a machine without IPv6.
    #[must_use]
    pub fn tcp6(&self) -> Vec<BorrowedFd<'_>> {
        let listeners = self.v6.iter().flat_map(|family| &family.listeners);
        listeners.map(|one| one.0.as_fd()).collect()
    }

    /// The receivers for IPv4, by lane.
    #[must_use]
    pub fn udp4(&self) -> Vec<BorrowedFd<'_>> {
        self.v4.receivers.iter().map(AsFd::as_fd).collect()
    }

    /// The receivers for IPv6, by lane. None on a machine without IPv6.
    #[must_use]
    pub fn udp6(&self) -> Vec<BorrowedFd<'_>> {
        let receivers = self.v6.iter().flat_map(|family| &family.receivers);
        receivers.map(AsFd::as_fd).collect()
    }

    /// The ports (plain numbers) that UDP replies leave from until the kernel half writes the right one,
    /// for IPv4 and IPv6. 0 for a family that is not there.
    #[must_use]
    pub fn reply_ports(&self) -> (u16, u16) {
        let v6 = self.v6.as_ref();
        (
            self.v4.receiver_address.port(),
            v6.map_or(0, |family| family.receiver_address.port()),
        )
    }

    pub(super) fn families(self) -> impl Iterator<Item = Family> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }
}

impl Family {
    const fn empty() -> Self {
        Self {
            listeners: Vec::new(),
            receivers: Vec::new(),
            receiver_address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        }
    }

    fn duplicate(&self) -> io::Result<Self> {
        let listeners = self.listeners.iter();
        let listeners = listeners.map(|(listener, address)| Ok((listener.try_clone()?, *address)));
        let receivers = self.receivers.iter().map(UdpSocket::try_clone);
        Ok(Self {
            listeners: listeners.collect::<io::Result<_>>()?,
            receivers: receivers.collect::<io::Result<_>>()?,
            ..*self
        })
    }

    fn bind(
        factory: SocketFactory,
        address: SocketAddr,
        limits: &Limits,
    ) -> Result<Self, NetError> {
        let any = SocketAddr::new(address.ip(), 0);
        let listener = |lane| {
            let address = if lane == 0 { address } else { any };
            let listener = factory.tcp_listener(address, limits.keepalive)?;
            let address = listener.local_addr().unwrap_or(address);
            Ok((listener, address))
        };
        let (receivers, receiver_address) = factory.udp_receivers(address, LANES)?;
        Ok(Self {
            listeners: (0..LANES).map(listener).collect::<Result<_, _>>()?,
            receivers,
            receiver_address,
        })
    }
}

/// IPv6 compiled out, switched off on the command line, or by sysctl.
fn lacks_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPFNOSUPPORT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_to_loopback_alone_with_ports_of_their_own() -> Result<(), Error> {
        let sockets = Sockets::bind(&SocketFactory::default(), None, &Limits::default())?;
        let (v4, v6) = sockets.reply_ports();
        assert_ne!(v4, 0);
        let lanes = if v6 != 0 { (LANES, LANES) } else { (0, 0) };
        assert_eq!((sockets.tcp6().len(), sockets.udp6().len()), lanes);
        for family in sockets.families() {
            assert!(family.listeners.iter().all(|one| one.1.ip().is_loopback()));
            assert!(family.receiver_address.ip().is_loopback());
            let port = family.receiver_address.port();
            for receiver in &family.receivers {
                assert_eq!(receiver.local_addr().expect("bound").port(), port);
            }
        }
        Ok(())
    }

    #[test]
    fn they_go_to_another_process_as_files() -> Result<(), Error> {
        let sockets = Sockets::bind(&SocketFactory::default(), None, &Limits::default())?;
        let files = |sockets: &Sockets| -> Vec<OwnedFd> {
            let files = sockets.files().into_iter();
            files
                .map(|file| file.try_clone_to_owned().expect("a file"))
                .collect()
        };
        let again = Sockets::from_files(files(&sockets)).expect("the same");
        assert_eq!(again.reply_ports(), sockets.reply_ports());
        let addresses = |sockets: Sockets| -> Vec<(Vec<_>, _)> {
            let families = sockets.families();
            let listeners = |one: &Family| one.listeners.iter().map(|one| one.1).collect();
            families
                .map(|one| (listeners(&one), one.receiver_address))
                .collect()
        };
        let mut without = files(&sockets);
        without.truncate(LANES);
        assert!(Sockets::from_files(without).is_err(), "no receiver");
        assert!(Sockets::from_files(Vec::new()).is_err());
        assert_eq!(
            addresses(again),
            addresses(sockets.duplicate().expect("files"))
        );
        Ok(())
    }

    #[test]
    fn a_configured_port_is_used_for_all_four() -> Result<(), Error> {
        let free = Sockets::bind(&SocketFactory::default(), None, &Limits::default())?;
        let port = free.v4.receiver_address.port();
        drop(free);
        let sockets = Sockets::bind(&SocketFactory::default(), Some(port), &Limits::default())?;
        for family in sockets.families() {
            assert_eq!(family.listeners[0].1.port(), port);
            assert_eq!(family.receiver_address.port(), port);
        }
        Ok(())
    }
}
