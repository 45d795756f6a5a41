//! The sockets that devices reach.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Error, Limits};
use crate::net::{NetError, SocketFactory};

/// The proxy's listeners and receivers, bound to loopback addresses: only what the kernel half assigns to
/// them gets there from outside the machine.
#[derive(Debug)]
pub struct Sockets {
    pub(super) v4: Family,
    pub(super) v6: Option<Family>,
}

/// The two sockets of one address family.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) listener: TcpListener,
    pub(super) listener_address: SocketAddr,
    pub(super) receiver: UdpSocket,
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

    /// The sockets that another process had bound: listener and receiver for IPv4, then the same for IPv6 if the machine
    /// has it.
    ///
    /// # Errors
    /// `InvalidData` when they are not those.
    pub fn from_files(files: Vec<OwnedFd>) -> io::Result<Self> {
        let mut files = files.into_iter();
        let mut family = || match (files.next(), files.next()) {
            (Some(listener), Some(receiver)) => {
                Family::of(listener.into(), receiver.into()).map(Some)
            }
            _ => Ok(None),
        };
        let (v4, v6) = (family()?, family()?);
        let v4 = v4.filter(|family| family.listener_address.is_ipv4());
        let fits = v6
            .as_ref()
            .is_none_or(|family| family.listener_address.is_ipv6());
        match v4 {
            Some(v4) if fits => Ok(Self { v4, v6 }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
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

    /// All of them, in the order of [`from_files`](Self::from_files).
    #[must_use]
    pub fn files(&self) -> Vec<BorrowedFd<'_>> {
        let sockets = [
            self.tcp4_fd(),
            self.udp4_fd(),
            self.tcp6_fd(),
            self.udp6_fd(),
        ];
        sockets.into_iter().flatten().collect()
    }

    /// Is this the port of all of them?
    #[must_use]
    pub fn all_have(&self, port: u16) -> bool {
        let families = [Some(&self.v4), self.v6.as_ref()].into_iter().flatten();
        let mut addresses = families.flat_map(|one| [one.listener_address, one.receiver_address]);
        addresses.all(|address| address.port() == port)
    }

    /// The listener for IPv4.
    #[must_use]
    pub fn tcp4_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.v4.listener.as_fd())
    }

    /// The listener for IPv6. None on a machine without IPv6.
    #[must_use]
    pub fn tcp6_fd(&self) -> Option<BorrowedFd<'_>> {
        self.v6.as_ref().map(|family| family.listener.as_fd())
    }

    /// The receiver for IPv4.
    #[must_use]
    pub fn udp4_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.v4.receiver.as_fd())
    }

    /// The receiver for IPv6. None on a machine without IPv6.
    #[must_use]
    pub fn udp6_fd(&self) -> Option<BorrowedFd<'_>> {
        self.v6.as_ref().map(|family| family.receiver.as_fd())
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
    fn of(listener: TcpListener, receiver: UdpSocket) -> io::Result<Self> {
        Ok(Self {
            listener_address: listener.local_addr()?,
            receiver_address: receiver.local_addr()?,
            listener,
            receiver,
        })
    }

    fn duplicate(&self) -> io::Result<Self> {
        Ok(Self {
            listener: self.listener.try_clone()?,
            receiver: self.receiver.try_clone()?,
            ..*self
        })
    }

    fn bind(
        factory: SocketFactory,
        address: SocketAddr,
        limits: &Limits,
    ) -> Result<Self, NetError> {
        let listener = factory.tcp_listener(address, limits.keepalive)?;
        let receiver = factory.udp_receiver(address)?;
        Ok(Self {
            listener_address: listener.local_addr().unwrap_or(address),
            receiver_address: receiver.local_addr().unwrap_or(address),
            listener,
            receiver,
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
        assert_eq!(sockets.tcp6_fd().is_some(), v6 != 0);
        assert_eq!(sockets.udp6_fd().is_some(), v6 != 0);
        for family in sockets.families() {
            assert!(family.listener_address.ip().is_loopback());
            assert!(family.receiver_address.ip().is_loopback());
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
        let addresses = |sockets: Sockets| -> Vec<_> {
            let families = sockets.families();
            families
                .map(|one| (one.listener_address, one.receiver_address))
                .collect()
        };
        let mut wrong = files(&sockets);
        wrong.rotate_left(2);
        if sockets.v6.is_some() {
            assert!(Sockets::from_files(wrong).is_err(), "IPv6 first");
        }
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
        let port = free.v4.listener_address.port();
        drop(free);
        let sockets = Sockets::bind(&SocketFactory::default(), Some(port), &Limits::default())?;
        for family in sockets.families() {
            assert_eq!(family.listener_address.port(), port);
            assert_eq!(family.receiver_address.port(), port);
        }
        Ok(())
    }
}
