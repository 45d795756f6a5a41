//! The upstream side as a run of the gateway sees it: what must be known before the gateway is touched, and
//! what goes direct because the outbound's server is there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use tproxy_userspace::config::{self, Config};
use tproxy_userspace::control::bypass::Terms;
use tproxy_userspace::control::links::Snapshot;
use tproxy_userspace::data::{Named, NamedGroup, Routing, Sniff, Sockets, Upstream, dns};
use tproxy_userspace::net::SocketFactory;

use super::lists::Lists;
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

/// The outbounds of a configuration.
fn outbounds(config: &Config) -> Vec<Named> {
    let named = |outbound: &config::Outbound| Named {
        name: outbound.name.clone(),
        outbound: outbound.url.clone(),
        via: outbound.via.clone(),
        binding: outbound.binding(),
    };
    config.outbounds.iter().map(named).collect()
}

/// The groups of a configuration.
fn groups(config: &Config) -> Vec<NamedGroup> {
    let named = |group: &config::Group| NamedGroup {
        name: group.name.clone(),
        kind: group.kind(),
        members: group.members.clone(),
        default: group.default.clone(),
    };
    config.groups.iter().map(named).collect()
}

/// What decides where traffic goes.
pub fn routing(config: &Config, lists: &Lists) -> Routing {
    let sniff = &config.sniff;
    Routing {
        outbounds: outbounds(config),
        groups: groups(config),
        default: Some(config.default_exit().to_owned()),
        check: config.check.settings(),
        rules: Arc::clone(&lists.rules),
        direct_names: lists.direct_names,
        sniff: sniff.enabled.then_some(Sniff {
            timeout: sniff.timeout,
            rewrite: sniff.rewrite,
        }),
    }
}

/// How questions to port 53 are answered. None: they are traffic like any other.
pub fn dns(config: &Config) -> Option<dns::Settings> {
    let dns = config.dns.as_ref().filter(|dns| dns.hijack)?;
    Some(dns::Settings {
        direct: dns.direct.clone(),
        proxy: dns.proxy.clone(),
        cache: dns.cache as usize,
        stale: dns.stale,
        ipv6: dns.ipv6,
        prefer: dns.prefer,
    })
}

/// The DNS servers that are asked and run on the gateway, where its own questions are answered by the resolver.
fn own_dns_servers<'c>(
    config: &'c Config,
    own: &BTreeSet<IpAddr>,
) -> impl Iterator<Item = &'c dns::Upstream> {
    let dns = config.dns.as_ref().filter(|dns| dns.hijack);
    let dns = dns.filter(|_| !config.wan.interfaces.is_empty());
    dns.into_iter()
        .flat_map(|dns| &dns.direct)
        .filter(|server| {
            let address = server.address();
            address.is_some_and(|address| address.is_loopback() || own.contains(&address))
        })
}

/// What the proxy needs before the gateway is touched: its sockets, if it has none yet, and the addresses of its outbound's
/// server.
pub async fn open(
    config: &Config,
    routing: Routing,
    own: BTreeSet<IpAddr>,
    sockets: Option<Sockets>,
) -> Result<(Sockets, Upstream)> {
    for server in own_dns_servers(config, &own) {
        tracing::warn!(
            "the DNS server {server} runs on this gateway: exempt that program (by uid, gid or cgroup), or its own \
             questions are answered by this one, which asks it again"
        );
    }
    let factory = SocketFactory::default();
    let port = Some(config.proxy.port).filter(|port| *port != 0);
    let sockets = match sockets {
        Some(sockets) => sockets,
        None => Sockets::bind(&factory, port, &limits(config))?,
    };
    let upstream = Upstream::open(routing, &sockets, own, factory).await?;
    Ok((sockets, upstream))
}
