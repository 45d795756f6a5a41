//! What devices send and get past the proxy: what the kernel forwards for them. The programs count it while
//! `gateway.account` is on.

use std::net::IpAddr;

use super::bpf::{Error, Maps};

/// What a device sent and got past the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAccount {
    /// Its address. A device with several has an account for each.
    pub address: IpAddr,
    /// Packets that it sent. Those that the link put together count as one.
    pub up_packets: u64,
    /// Their bytes, link headers included.
    pub up_bytes: u64,
    /// Packets that it got.
    pub down_packets: u64,
    /// Their bytes.
    pub down_bytes: u64,
}

/// The accounts in the order of their addresses. Those that were silent for longest give way when there are more than the
/// kernel has room for; one that comes back begins anew.
///
/// # Errors
/// [`Error::Map`].
pub fn account(maps: &Maps) -> Result<Vec<DeviceAccount>, Error> {
    let mut accounts: Vec<_> = maps
        .devices()?
        .into_iter()
        .map(|(address, traffic)| DeviceAccount {
            address,
            up_packets: traffic.up.packets,
            up_bytes: traffic.up.bytes,
            down_packets: traffic.down.packets,
            down_bytes: traffic.down.bytes,
        })
        .collect();
    accounts.sort_by_key(|account| account.address);
    Ok(accounts)
}
