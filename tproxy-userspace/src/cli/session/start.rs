//! The start of a run, in order, and its end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use tokio::sync::mpsc;
use tproxy_common::abi::{Listener, Origin};
use tproxy_userspace::config::Config;
use tproxy_userspace::control::bpf::AttachWay;
use tproxy_userspace::control::bypass::{self, Terms};
use tproxy_userspace::control::exempt;
use tproxy_userspace::control::gateway::Gateway;
use tproxy_userspace::control::links::Snapshot;
use tproxy_userspace::control::place::{Lock, Place};
use tproxy_userspace::control::preflight::KernelVersion;
use tproxy_userspace::data::dns::Announcement;
use tproxy_userspace::data::{Limits, Proxy, Sockets, Upstream};
use tproxy_userspace::net::SocketFactory;
use tproxy_userspace::observe::api::Server;
use tproxy_userspace::observe::log::Log;

use super::super::run::policy;
use super::super::upstream;
use super::learn::unlearn_all;

/// Tells the addresses of the names that were asked for.
pub(super) type Reader = mpsc::Receiver<Announcement>;

/// What tells others that a proxy runs here.
pub(super) struct Presence {
    pub(super) server: Server,
    _lock: Lock,
}

impl Presence {
    /// Takes the place of the proxy in this gateway.
    pub(super) fn new(place: &Place, log: Log) -> Result<Self> {
        let lock = place.proxy_lock()?;
        Ok(Self {
            server: Server::bind(&place.control_socket(), log)?,
            _lock: lock,
        })
    }
}

/// tcx where the kernel has it. `TPROXY_BPF_ATTACH=clsact` takes the other way, for tests and for a
/// kernel whose tcx misbehaves.
pub fn way(kernel: KernelVersion) -> AttachWay {
    let forced = std::env::var("TPROXY_BPF_ATTACH").is_ok_and(|way| way == "clsact");
    if kernel.has_tcx() && !forced {
        AttachWay::Tcx
    } else {
        AttachWay::Clsact
    }
}

/// What the proxy allows.
pub fn limits(config: &Config) -> Limits {
    Limits {
        max_connections: config.tcp.max_connections.map(|limit| limit as usize),
        tcp_idle: config.tcp.idle,
        connect_timeout: config.tcp.connect_timeout,
        keepalive: config.tcp.keepalive,
        udp_idle: config.udp.idle,
        udp_dns_idle: config.udp.dns_idle,
        max_associations: Some(config.udp.max_associations as usize),
    }
}

/// Everything up to the links themselves. With a failure comes the gateway as far as it got.
pub(super) async fn start(
    config: &Config,
    (sockets, ready): (Sockets, Upstream),
    prefixes: &[IpNet],
    place: &Place,
    kernel: KernelVersion,
) -> Result<(Gateway, Proxy, Option<Reader>), (Option<Gateway>, anyhow::Error)> {
    let opened = match place.lock() {
        Ok(_lock) => Gateway::open(place.clone(), way(kernel))
            .await
            .map_err(Into::into),
        Err(error) => Err(error.into()),
    };
    let mut gateway = opened.map_err(|error| (None, error))?;
    let servers = ready.addresses();
    let started = prepare(&mut gateway, config, prefixes, &servers, &sockets).and_then(|()| {
        let factory = SocketFactory::default();
        let proxy = Proxy::start(sockets, ready, &limits(config), factory)?;
        let learned = proxy.set_dns(upstream::dns(config).as_ref())?;
        Ok((proxy, learned))
    });
    match started {
        Ok((proxy, learned)) => Ok((gateway, proxy, learned)),
        Err(error) => Err((Some(gateway), error)),
    }
}

/// Policy, bypass set and sockets: all that the programs need before they are attached.
pub(super) fn prepare(
    gateway: &mut Gateway,
    config: &Config,
    prefixes: &[IpNet],
    servers: &BTreeSet<IpAddr>,
    sockets: &Sockets,
) -> Result<()> {
    enforce(gateway, config, prefixes)?;
    unlearn_all(gateway.maps())?;
    let (servers, terms) = (upstream::prefixes(servers), upstream::terms());
    bypass::replace(gateway.maps(), &servers, &terms, Origin::Outbound)?;
    let listeners: Vec<_> = Listener::ALL
        .into_iter()
        .zip([
            sockets.tcp4_fd(),
            sockets.tcp6_fd(),
            sockets.udp4_fd(),
            sockets.udp6_fd(),
        ])
        .filter_map(|(listener, socket)| socket.map(|socket| (listener, socket)))
        .collect();
    Ok(gateway.publish(&listeners, sockets.reply_ports())?)
}

/// Puts policy, bypass set and settings of the machine into force, at the start and by a reload.
pub(super) fn enforce(gateway: &mut Gateway, config: &Config, prefixes: &[IpNet]) -> Result<()> {
    gateway.set_policy(policy(config))?;
    gateway.hijack_dns(upstream::dns(config).is_some())?;
    bypass::replace(gateway.maps(), prefixes, &Terms::default(), Origin::Config)?;
    exempt::configure(gateway.maps(), &config.exempt)?;
    if config.gateway.forward {
        gateway.enable_forwarding()?;
    }
    Ok(())
}

/// Detaches, and says what could not be undone.
pub(super) async fn close(
    gateway: Option<Gateway>,
    place: &Place,
    snapshot: &Snapshot,
    presence: Presence,
) {
    let close = async {
        let lock = place.lock()?;
        // Its files are in the folder that is to go.
        drop(presence);
        match gateway {
            Some(mut gateway) => {
                // What stays attached without a proxy has no server to spare.
                let maps = gateway.maps();
                let spared = bypass::replace(maps, &[], &Terms::default(), Origin::Outbound);
                let unlearned = unlearn_all(maps);
                gateway.close(snapshot, lock).await?;
                spared?;
                unlearned?;
            }
            None => place.remove(lock)?,
        }
        anyhow::Ok(())
    };
    if let Err(error) = close.await {
        tracing::error!("{error:#}; `tproxy-bpf detach` removes what is left");
    }
}
