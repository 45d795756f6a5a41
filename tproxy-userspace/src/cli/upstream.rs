//! The upstream side as a run of the gateway sees it: what must be known before the gateway is touched, and
//! what goes direct because the outbound's server is there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use tproxy_userspace::config::{self, Config};
use tproxy_userspace::control::bypass::Terms;
use tproxy_userspace::control::links::Snapshot;
use tproxy_userspace::data::{Named, Sockets, Upstream};
use tproxy_userspace::net::SocketFactory;

use super::session::limits;

/// The gateway's own addresses.
pub fn own_addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let addresses = snapshot.addresses.iter();
    addresses.map(|address| address.address).collect()
}

/// The addresses that must go direct because the outbound's server is there. What is on loopback is
/// never steered.
pub fn prefixes(servers: &BTreeSet<IpAddr>) -> Vec<ipnet::IpNet> {
    let elsewhere = |server: &&IpAddr| !server.is_loopback() && !server.is_unspecified();
    servers
        .iter()
        .filter(elsewhere)
        .map(|server| ipnet::IpNet::from(*server))
        .collect()
}

/// What goes with those entries of the bypass set.
pub fn terms() -> Terms {
    Terms {
        ttl: None,
        note: "server of an outbound".to_owned(),
    }
}

/// The outbounds of a configuration, the default one first.
pub fn outbounds(config: &Config) -> Result<Vec<Named>> {
    let named = |outbound: &config::Outbound| {
        Ok(Named {
            name: outbound.name.clone(),
            outbound: outbound.url.as_str_with_secret().parse()?,
        })
    };
    config.outbounds.iter().map(named).collect()
}

/// What the proxy needs before the gateway is touched: its sockets, and the addresses of its outbound's server.
pub async fn open(
    config: &Config,
    outbounds: Vec<Named>,
    own: BTreeSet<IpAddr>,
) -> Result<(Sockets, Upstream)> {
    let factory = SocketFactory::default();
    let port = Some(config.proxy.port).filter(|port| *port != 0);
    let sockets = Sockets::bind(&factory, port, &limits(config))?;
    let upstream = Upstream::open(outbounds, &sockets, own, factory).await?;
    Ok((sockets, upstream))
}
