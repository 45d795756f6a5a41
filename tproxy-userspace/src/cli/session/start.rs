//! The start of a run, in order, and its end.

use std::collections::BTreeSet;
use std::future::pending;
use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use tokio::net::UnixStream;
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
use tproxy_userspace::data::{Inheritance, Limits, Proxy, Sockets, Upstream};
use tproxy_userspace::net::SocketFactory;
use tproxy_userspace::observe::api::{Asked, Server, Teller};
use tproxy_userspace::observe::log::Log;
use tproxy_userspace::step::{Step, step};

use super::super::run::policy;
use super::super::upstream;
use super::learn::unlearn_all;
use super::takeover::Heirs;

/// Tells the addresses of the names that were asked for.
pub(super) type Reader = mpsc::Receiver<Announcement>;

/// What tells others that a proxy runs here.
pub(super) struct Presence {
    /// Closed while another process is let take over.
    doors: Option<(Server, Heirs)>,
    teller: Teller,
    lock: Lock,
    log: Log,
}

impl Presence {
    /// Takes the place of the proxy in this gateway.
    pub(super) fn new(place: &Place, log: Log) -> Result<Self> {
        Self::with_lock(place, place.proxy_lock()?, log)
    }

    /// Listens at the sockets of the holder of this lock.
    pub(super) fn with_lock(place: &Place, mut lock: Lock, log: Log) -> Result<Self> {
        let doors = open_doors(place, &mut lock, &log)?;
        Ok(Self {
            teller: doors.0.teller(),
            doors: Some(doors),
            lock,
            log,
        })
    }

    /// Opens the doors again, with another teller.
    pub(super) fn open(&mut self, place: &Place) -> Result<()> {
        let doors = open_doors(place, &mut self.lock, &self.log)?;
        self.teller = doors.0.teller();
        self.doors = Some(doors);
        Ok(())
    }

    /// Who tells what is asked.
    pub(super) fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// Leaves the sockets' paths to another process, but not the lock.
    pub(super) fn close_doors(&mut self) {
        self.doors = None;
    }

    pub(super) fn lock(&self) -> &Lock {
        &self.lock
    }

    /// What is asked next. Nothing is lost when the future is dropped.
    pub(super) async fn asked(&self) -> Asked {
        match &self.doors {
            Some((server, _)) => server.next().await,
            None => pending().await,
        }
    }

    /// Who wants to take over next. Nothing is lost when the future is dropped.
    pub(super) async fn heir(&self) -> UnixStream {
        match &self.doors {
            Some((_, heirs)) => heirs.next().await,
            None => pending().await,
        }
    }
}

/// Says that it is this process that the lock and the sockets belong to.
fn open_doors(place: &Place, lock: &mut Lock, log: &Log) -> Result<(Server, Heirs)> {
    lock.claim().context("writing to the proxy's lock failed")?;
    let shared = place.owner().filter(|owner| owner.shared);
    let group = shared.map(|owner| owner.gid);
    let server = Server::bind(&place.control_socket(), group, log.clone())?;
    Ok((server, Heirs::bind(place)?))
}

/// What a run begins with.
pub(super) struct Begun {
    pub(super) gateway: Gateway,
    pub(super) proxy: Proxy,
    pub(super) learned: Option<Reader>,
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
    opened: (Sockets, Upstream),
    prefixes: &[IpNet],
    place: &Place,
    kernel: KernelVersion,
) -> Result<Begun, (Option<Gateway>, anyhow::Error)> {
    step(Step::StartBound);
    let gateway = open_gateway(place, kernel).await;
    let mut gateway = gateway.map_err(|error| (None, error))?;
    // Of a proxy that was killed.
    let started = unlearn_all(gateway.maps()).and_then(|()| {
        let inheritance = Inheritance::default();
        serve_on(&mut gateway, config, opened, prefixes, inheritance)
    });
    match started {
        Ok((proxy, learned)) => Ok(Begun {
            gateway,
            proxy,
            learned,
        }),
        Err(error) => Err((Some(gateway), error)),
    }
}

/// Loads the programs and maps, or those that are there.
pub(super) async fn open_gateway(place: &Place, kernel: KernelVersion) -> Result<Gateway> {
    let _lock = place.lock()?;
    Ok(Gateway::open(place.clone(), way(kernel)).await?)
}

/// Tells the programs all that they need, and serves what they steer.
pub(super) fn serve_on(
    gateway: &mut Gateway,
    config: &Config,
    (sockets, ready): (Sockets, Upstream),
    prefixes: &[IpNet],
    inheritance: Inheritance,
) -> Result<(Proxy, Option<Reader>)> {
    prepare(gateway, config, prefixes, &ready.addresses(), &sockets)?;
    let factory = SocketFactory::default();
    let proxy = Proxy::start(sockets, ready, &limits(config), factory, inheritance)?;
    let learned = proxy.set_dns(upstream::dns(config).as_ref())?;
    step(Step::StartServing);
    Ok((proxy, learned))
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
    let (servers, terms) = (upstream::prefixes(servers), upstream::terms());
    bypass::replace(gateway.maps(), &servers, &terms, Origin::Outbound)?;
    step(Step::StartEnforced);
    let listeners = [
        (Listener::Tcp4, sockets.tcp4()),
        (Listener::Tcp6, sockets.tcp6()),
        (Listener::Udp4, sockets.udp4()),
        (Listener::Udp6, sockets.udp6()),
    ];
    gateway.publish(&listeners, sockets.reply_ports())?;
    step(Step::StartPublished);
    Ok(())
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
                step(Step::StopUnspared);
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
