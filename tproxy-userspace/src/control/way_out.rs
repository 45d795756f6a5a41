//! By which link a packet would leave to a destination, and from which address if the gateway sends it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_core::NlasIterator;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Error, Netlink};

/// The bytes of `struct rtmsg` (`rtnetlink(7)`).
const HEADER: usize = 12;
/// `RTAX_MTU` of `linux/rtnetlink.h`.
const RTAX_MTU: u16 = 2;

/// The way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayOut {
    /// The index of the link.
    pub link: u32,
    /// The source address that the kernel would choose.
    pub source: Option<IpAddr>,
    /// The longest packet that fits through, in bytes, if it is known to be less than the link carries.
    pub mtu: Option<u32>,
}

/// A packet of a device.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded {
    /// The device.
    pub source: IpAddr,
    /// The index of the link that it comes in by.
    pub link: u32,
}

impl WayOut {
    /// Asks the kernel, as `ip route get` does. None: there is no way.
    ///
    /// # Errors
    /// [`Error::Netlink`] when the kernel does not answer.
    pub async fn to(netlink: &Netlink, destination: IpAddr) -> Result<Option<Self>, Error> {
        Self::ask(netlink, destination, None, 0).await
    }

    /// The same for a packet with this mark, of a device or of the gateway itself. None also: the gateway would not forward
    /// it.
    ///
    /// # Errors
    /// [`Error::Netlink`] when the kernel does not answer.
    pub async fn ask(
        netlink: &Netlink,
        destination: IpAddr,
        forwarded: Option<Forwarded>,
        mark: u32,
    ) -> Result<Option<Self>, Error> {
        let mut request = RouteMessage::default();
        let family = |address| match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
        };
        let (of, length, address) = family(destination);
        request.header.address_family = of;
        request.header.destination_prefix_length = length;
        request
            .attributes
            .push(RouteAttribute::Destination(address));
        if let Some(Forwarded { source, link }) = forwarded {
            let (_, length, address) = family(source);
            request.header.source_prefix_length = length;
            request.attributes.push(RouteAttribute::Source(address));
            request.attributes.push(RouteAttribute::Iif(link));
        }
        if mark != 0 {
            request.attributes.push(RouteAttribute::Mark(mark));
        }
        match netlink.get(&RouteNetlinkMessage::GetRoute(request)).await {
            Ok(answer) => Ok(answer.as_deref().and_then(parse)),
            // None, "unreachable", "prohibit", "blackhole"; no such family.
            Err(error)
                if [
                    libc::ENETUNREACH,
                    libc::EHOSTUNREACH,
                    libc::EACCES,
                    libc::EINVAL,
                    libc::EXDEV,
                    libc::EAFNOSUPPORT,
                    libc::EOPNOTSUPP,
                ]
                .contains(&error.errno) =>
            {
                Ok(None)
            }
            Err(error) => {
                let object = format!("the route to {destination}");
                Err(Error::netlink("read", &object)(error))
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Option<WayOut> {
    let (mut link, mut source, mut mtu) = (None, None, None);
    for attribute in NlasIterator::new(bytes.get(HEADER..)?).filter_map(Result::ok) {
        let value = attribute.value();
        match attribute.kind() {
            libc::RTA_OIF => link = value.try_into().ok().map(u32::from_ne_bytes),
            libc::RTA_PREFSRC => source = address(value),
            libc::RTA_METRICS => {
                mtu = NlasIterator::new(value)
                    .filter_map(Result::ok)
                    .find(|metric| metric.kind() == RTAX_MTU)
                    .and_then(|metric| Some(u32::from_ne_bytes(metric.value().try_into().ok()?)))
                    .filter(|mtu| *mtu > 0);
            }
            _ => {}
        }
    }
    Some(WayOut {
        link: link?,
        source,
        mtu,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into());
    v4.or_else(|_| v6()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::links::Snapshot;
    use crate::control::testing::{in_namespace, ip};

    #[test]
    fn the_kernel_tells_link_and_source() {
        in_namespace(|| async {
            ip("link set lo up");
            ip("link add wan0 type veth peer name far");
            ip("link set wan0 up");
            ip("link set far up");
            ip("addr add 192.0.2.1/24 dev wan0");
            ip("addr add 2001:db8:2::1/64 dev wan0 nodad");
            ip("route add default via 192.0.2.2");
            let netlink = Netlink::open().unwrap();
            let snapshot = Snapshot::take(&netlink).await.unwrap();
            let wan = snapshot.link_named("wan0").unwrap().index;
            let to = async |text: &str| WayOut::to(&netlink, text.parse().unwrap()).await.unwrap();
            let way = |link, source: &str| {
                let source = Some(source.parse().unwrap());
                Some(WayOut {
                    link,
                    source,
                    mtu: None,
                })
            };
            assert_eq!(to("203.0.113.1").await, way(wan, "192.0.2.1"));
            assert_eq!(to("2001:db8:2::9").await, way(wan, "2001:db8:2::1"));
            assert_eq!(to("127.0.0.1").await, way(1, "127.0.0.1"));
            assert_eq!(to("2001:db8:f::1").await, None);
            ip("route add blackhole 198.51.100.0/24");
            assert_eq!(to("198.51.100.1").await, None);
        });
    }
}
