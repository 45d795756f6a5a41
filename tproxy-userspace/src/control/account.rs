//! What devices send and get past the proxy: what the kernel forwards for them. The programs count it while
//! `gateway.account` is on.

use std::net::IpAddr;

use ipnet::IpNet;
use tproxy_common::abi::Traffic;

use super::bpf::{Error, Maps};

/// What went past the proxy, seen from two sides. The device or network that was silent for longest gives way when there are more
/// than the kernel has room for; one that comes back begins anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// By device, in the order of their addresses. A device with several has an entry for each. Packets that the link put
    /// together count as one; bytes include link headers.
    pub devices: Vec<(IpAddr, Traffic)>,
    /// By the network that devices talk to: /24 for IPv4, /48 for IPv6.
    pub networks: Vec<(IpNet, Traffic)>,
}

/// The account of a gateway.
///
/// # Errors
/// [`Error::Map`].
pub fn account(maps: &Maps) -> Result<Account, Error> {
    let (mut devices, mut networks) = (maps.devices()?, maps.networks()?);
    devices.sort_unstable_by_key(|(device, _)| *device);
    networks.sort_unstable_by_key(|(network, _)| *network);
    Ok(Account { devices, networks })
}
