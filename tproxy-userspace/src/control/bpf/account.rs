//! What devices sent and got past the proxy.

use std::net::{IpAddr, Ipv6Addr};

use aya::maps::{HashMap, MapData};
use ipnet::IpNet;
use tproxy_common::abi::{NETWORK_V4, NETWORK_V6, Traffic, map};

use super::maps::{Raw, bytes, failed};
use super::{Error, Maps};

/// Traffic by address.
pub(super) type Account = HashMap<MapData, [u32; 4], Raw<Traffic>>;

impl Maps {
    /// What each device sent and got past the proxy since it was first counted for, in no particular order.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn devices(&self) -> Result<Vec<(IpAddr, Traffic)>, Error> {
        read(&self.devices, map::DEVICES)
    }

    /// What was sent to and came from each network past the proxy, in the same way.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn networks(&self) -> Result<Vec<(IpNet, Traffic)>, Error> {
        let network = |address: IpAddr| {
            let length = match address {
                IpAddr::V4(_) => NETWORK_V4,
                IpAddr::V6(_) => NETWORK_V6,
            };
            IpNet::new_assert(address, length)
        };
        let networks = read(&self.networks, map::NETWORKS)?.into_iter();
        Ok(networks
            .map(|(first, traffic)| (network(first), traffic))
            .collect())
    }
}

fn read(account: &Account, name: &'static str) -> Result<Vec<(IpAddr, Traffic)>, Error> {
    let plain = |(address, Raw(traffic))| {
        let address = Ipv6Addr::from(bytes(address)).to_canonical();
        (address, traffic)
    };
    account
        .iter()
        .map(|entry| entry.map(plain))
        .collect::<Result<_, _>>()
        .map_err(failed("reading", name))
}
