//! What devices sent and got past the proxy.

use std::net::{IpAddr, Ipv6Addr};

use tproxy_common::abi::{Traffic, map};

use super::maps::{Raw, bytes, failed};
use super::{Error, Maps};

impl Maps {
    /// What each device sent and got past the proxy since it was first counted for, in no particular order.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn devices(&self) -> Result<Vec<(IpAddr, Traffic)>, Error> {
        let plain = |(address, Raw(traffic))| {
            let address = Ipv6Addr::from(bytes(address)).to_canonical();
            (address, traffic)
        };
        self.devices
            .iter()
            .map(|entry| entry.map(plain))
            .collect::<Result<_, _>>()
            .map_err(failed("reading", map::DEVICES))
    }
}
