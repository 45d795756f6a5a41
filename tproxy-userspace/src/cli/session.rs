//! One run of a gateway with its proxy: start in order, follow the machine, stop in reverse.

use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tproxy_common::abi::{Listener, Origin};
use tproxy_userspace::config::{Config, WanPattern};
use tproxy_userspace::control;
use tproxy_userspace::control::bpf::AttachWay;
use tproxy_userspace::control::bypass::{self, Terms};
use tproxy_userspace::control::gateway::{self, Gateway, Synced};
use tproxy_userspace::control::links::{Snapshot, Watch};
use tproxy_userspace::control::place::{Lock, Place};
use tproxy_userspace::control::preflight::{self, KernelVersion};
use tproxy_userspace::control::sync::{Roles, Selection, wanted};
use tproxy_userspace::data::{DrainReport, Limits, Outbound, Proxy, Sockets};
use tproxy_userspace::net::SocketFactory;
use tproxy_userspace::observe::socket::{Asked, Request, Server};
use tproxy_userspace::policy::list::{Loaded, load_prefixes};
use tproxy_userspace::policy::prefix;

use super::run::policy;

/// How often expired bypass prefixes are taken out of the tries (they count no more before), and what
/// somebody else may have undone is done again.
const SWEEP: Duration = Duration::from_secs(60);

/// How often a link that is to be given up is looked at.
const LEAVE: Duration = Duration::from_millis(100);

/// Reads the configuration as it is now, with what the command line says over it.
pub type Reread<'a> = &'a dyn Fn() -> Result<Config>;

/// A gateway with its proxy, while it runs.
struct Session<'a> {
    config: Config,
    /// Reads the configuration anew.
    reread: Reread<'a>,
    /// What the configuration bypasses.
    prefixes: Vec<IpNet>,
    started: Instant,
    place: Place,
    gateway: Gateway,
    proxy: Proxy,
    watch: Watch,
    snapshot: Snapshot,
    /// Links that `detach` took from this run.
    released: Vec<String>,
    /// Links that are being taken now.
    releasing: Vec<String>,
    /// Links that `detach` is taking: nothing new is steered there.
    leaving: Vec<Leaving>,
}

/// What tells others that a proxy runs here.
struct Presence {
    server: Server,
    _lock: Lock,
}

/// A link that is given up when the connections have ended.
struct Leaving {
    name: String,
    deadline: Instant,
    asked: Asked,
}

/// Proxies until SIGINT or SIGTERM.
pub async fn run(config: Config, reread: Reread<'_>) -> Result<()> {
    // What can be wrong with the words is found before anything is touched.
    let outbound: Outbound = config.outbound().url.as_str_with_secret().parse()?;
    let prefixes = bypass_prefixes(&config)?;
    let findings = preflight::check_machine()?;
    for warning in findings.warnings {
        tracing::warn!("{warning}");
    }
    let place = Place::current()?;
    let mut signals = Signals::new()?;
    let mut watch = Watch::open()?;
    let snapshot = watch.next().await?;
    preflight::check_links(&selection(&config), &snapshot)?;
    let presence = Presence::new(&place)?;
    let (gateway, proxy) = match start(&config, outbound, &prefixes, &place, findings.kernel).await
    {
        Ok(started) => started,
        Err((gateway, error)) => {
            close(gateway, &place, &snapshot, presence).await;
            return Err(error);
        }
    };
    let mut session = Session {
        config,
        reread,
        prefixes,
        started: Instant::now(),
        place,
        gateway,
        proxy,
        watch,
        snapshot,
        released: Vec::new(),
        releasing: Vec::new(),
        leaving: Vec::new(),
    };
    let result = match session.first_sync().await {
        Ok(()) => {
            tracing::info!(
                "ready: {} proxied through {}",
                session.proxied(),
                session.outbound()
            );
            session.serve(&mut signals, &presence.server).await
        }
        Err(error) => Err(error),
    };
    session.stop(&mut signals, presence).await;
    result
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

/// The prefixes that the configuration bypasses, and what its lists hold beside them.
pub fn bypass_lists(config: &Config) -> Result<Loaded<IpNet>> {
    let mut lists = load_prefixes(&config.bypass.files, &mut |_| {})?;
    lists.entries.extend(&config.bypass.prefixes);
    prefix::normalize(&mut lists.entries);
    Ok(lists)
}

/// The prefixes that the configuration bypasses. What its lists hold beside them is logged.
pub fn bypass_prefixes(config: &Config) -> Result<Vec<IpNet>> {
    let lists = bypass_lists(config)?;
    for note in lists.notes {
        tracing::info!("{note}");
    }
    Ok(lists.entries)
}

/// What the proxy allows.
fn limits(config: &Config) -> Limits {
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

/// The links that the configuration means.
pub fn selection(config: &Config) -> Selection {
    Selection {
        lan: config.lan.interfaces.clone(),
        wan: config.wan.interfaces.clone(),
        sources: config.lan.sources.clone(),
        except: Vec::new(),
    }
}

/// Adds a link to a selection.
pub fn select(selection: &mut Selection, name: &str, roles: Roles) -> Result<()> {
    if roles.lan {
        selection.lan.push(name.parse()?);
    }
    if roles.wan {
        selection.wan.push(WanPattern::Link(name.parse()?));
    }
    Ok(())
}

/// Everything up to the links themselves. With a failure comes the gateway as far as it got.
async fn start(
    config: &Config,
    outbound: Outbound,
    prefixes: &[IpNet],
    place: &Place,
    kernel: KernelVersion,
) -> Result<(Gateway, Proxy), (Option<Gateway>, anyhow::Error)> {
    let factory = SocketFactory::default();
    let limits = limits(config);
    let port = Some(config.proxy.port).filter(|port| *port != 0);
    let sockets = Sockets::bind(&factory, port, &limits).map_err(|error| (None, error.into()))?;
    let opened = match place.lock() {
        Ok(_lock) => Gateway::open(place.clone(), way(kernel))
            .await
            .map_err(Into::into),
        Err(error) => Err(error.into()),
    };
    let mut gateway = opened.map_err(|error| (None, error))?;
    let started = prepare(&mut gateway, config, prefixes, &sockets).and_then(|()| {
        Proxy::start(sockets, outbound, &limits, factory).map_err(anyhow::Error::from)
    });
    match started {
        Ok(proxy) => Ok((gateway, proxy)),
        Err(error) => Err((Some(gateway), error)),
    }
}

/// Policy, bypass set and sockets: all that the programs need before they are attached.
fn prepare(
    gateway: &mut Gateway,
    config: &Config,
    prefixes: &[IpNet],
    sockets: &Sockets,
) -> Result<()> {
    enforce(gateway, config, prefixes)?;
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
fn enforce(gateway: &mut Gateway, config: &Config, prefixes: &[IpNet]) -> Result<()> {
    gateway.set_policy(policy(config))?;
    bypass::replace(gateway.maps(), prefixes, &Terms::default(), Origin::Config)?;
    if config.gateway.forward {
        gateway.enable_forwarding()?;
    }
    Ok(())
}

/// Detaches, and says what could not be undone.
async fn close(gateway: Option<Gateway>, place: &Place, snapshot: &Snapshot, presence: Presence) {
    let close = async {
        let lock = place.lock()?;
        // Its files are in the folder that is to go.
        drop(presence);
        match gateway {
            Some(gateway) => gateway.close(snapshot, lock).await?,
            None => place.remove(lock)?,
        }
        anyhow::Ok(())
    };
    if let Err(error) = close.await {
        tracing::error!("{error:#}; `tproxy-bpf detach` removes what is left");
    }
}

impl Presence {
    /// Takes the place of the proxy in this gateway.
    fn new(place: &Place) -> Result<Self> {
        let lock = place.proxy_lock()?;
        Ok(Self {
            server: Server::bind(&place.control_socket())?,
            _lock: lock,
        })
    }
}

impl Session<'_> {
    async fn serve(&mut self, signals: &mut Signals, server: &Server) -> Result<()> {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leave = interval(LEAVE);
        leave.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Caught::Stop => return Ok(()),
                    Caught::Hangup => match self.reload().await {
                        Ok(()) => tracing::info!("reloaded: {} proxied through {}", self.proxied(), self.outbound()),
                        Err(error) => tracing::error!(
                            "the reload failed, and the old configuration goes on to hold: {error:#}"
                        ),
                    }
                },
                snapshot = self.watch.next() => {
                    self.snapshot = match snapshot {
                        Ok(snapshot) => snapshot,
                        Err(error @ control::Error::NetlinkSocket { .. }) => {
                            return Err(error).context("following the links");
                        }
                        // No reason to end: what is known goes on to hold until the next try.
                        Err(error) => {
                            tracing::error!("following the links: {error}");
                            continue;
                        }
                    };
                    match self.sync().await {
                        Ok(synced) => self.tell(&synced),
                        Err(error) => tracing::error!("following the links: {error:#}"),
                    }
                }
                _ = sweep.tick() => {
                    if let Err(error) = self.sweep() {
                        tracing::warn!("looking after what has changed by itself: {error:#}");
                    }
                }
                asked = server.next() => {
                    if self.answer(asked).await? {
                        return Ok(());
                    }
                }
                _ = leave.tick(), if !self.leaving.is_empty() => self.leave().await?,
            }
        }
    }

    /// Puts the configuration into force as it is now: the difference, and all of it or nothing.
    async fn reload(&mut self) -> Result<()> {
        let config = (self.reread)()?;
        let prefixes = bypass_prefixes(&config)?;
        preflight::check_links(&selection(&config), &self.snapshot)?;
        for (key, differs) in [
            ("[tcp]", config.tcp != self.config.tcp),
            ("[udp]", config.udp != self.config.udp),
            ("proxy.port", config.proxy.port != self.config.proxy.port),
        ] {
            if differs {
                tracing::warn!("{key} has changed, which takes a restart to come into force");
            }
        }
        if let Err(error) = self.enforce(&config, &prefixes) {
            let (config, prefixes) = (self.config.clone(), self.prefixes.clone());
            if let Err(undo) = self.enforce(&config, &prefixes) {
                tracing::error!("taking back a reload that failed: {undo:#}");
            }
            return Err(error);
        }
        let before = std::mem::replace(&mut self.config, config);
        self.prefixes = prefixes;
        if before.gateway.forward && !self.config.gateway.forward {
            let _lock = self.place.lock()?;
            self.gateway.disable_forwarding()?;
        }
        let synced = self.sync().await?;
        self.tell(&synced);
        Ok(())
    }

    /// What of a configuration needs no look at the links.
    fn enforce(&mut self, config: &Config, prefixes: &[IpNet]) -> Result<()> {
        let _lock = self.place.lock()?;
        enforce(&mut self.gateway, config, prefixes)
    }

    fn sweep(&mut self) -> Result<()> {
        let _lock = self.place.lock()?;
        bypass::sweep(self.gateway.maps())?;
        // A firewall that is loaded anew flushes the tables of others, and nobody tells.
        self.gateway
            .sync_machine(&self.config.gateway, &self.snapshot)?;
        Ok(())
    }

    /// Links by configuration, and those that `attach` left in place.
    async fn sync(&mut self) -> Result<Synced> {
        // First: an `attach` that is under way must not be half seen.
        let _lock = self.place.lock()?;
        // What `detach` took and is attached all the same was attached again since.
        let attached = self.gateway.links(&self.snapshot)?;
        self.released
            .retain(|name| !attached.iter().any(|link| link.name == *name));
        let mut selection = selection(&self.config);
        for link in &attached {
            select(&mut selection, &link.name, link.stays())?;
        }
        selection.except = [&self.released[..], &self.releasing[..]].concat();
        let mut wanted = wanted(&self.snapshot, &selection);
        let leaves = |index| {
            self.snapshot
                .link(index)
                .is_some_and(|link| self.leaving.iter().any(|leaving| leaving.name == link.name))
        };
        wanted.sources.retain(|(via, _)| !leaves(via.link));
        let mut synced = self.gateway.sync(&wanted, &self.snapshot).await?;
        let machine = self
            .gateway
            .sync_machine(&self.config.gateway, &self.snapshot);
        synced.failed.extend(machine.err());
        Ok(synced)
    }

    /// Attaches what is there. A link that fails later is told of and tried again; one that fails now
    /// ends the start, while somebody is looking.
    async fn first_sync(&mut self) -> Result<()> {
        let mut synced = self.sync().await?;
        let failed = synced.failed.pop();
        self.tell(&synced);
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn tell(&self, synced: &Synced) {
        for name in &synced.attached {
            tracing::info!("attached to {name}");
        }
        for name in &synced.detached {
            tracing::info!("detached from {name}");
        }
        for error in &synced.failed {
            tracing::error!("{error}");
        }
    }

    /// Whose traffic is proxied, for a person.
    fn proxied(&self) -> String {
        let Config { lan, wan, .. } = &self.config;
        let mut what = lan
            .interfaces
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        if !wan.interfaces.is_empty() {
            let links = wan.interfaces.iter().map(|link| match link {
                WanPattern::Default => "the default route".to_owned(),
                WanPattern::Link(pattern) => pattern.to_string(),
            });
            let links = links.collect::<Vec<_>>().join(", ");
            what.push(format!("the gateway's own traffic by {links}"));
        }
        what.join(", ")
    }

    fn outbound(&self) -> String {
        self.config.outbound().url.to_string()
    }

    /// Answers a request. Returns whether the run is to end.
    async fn answer(&mut self, asked: Asked) -> Result<bool> {
        match asked.request.clone() {
            Request::Status => asked.answer(&self.status()).await,
            Request::Detach { links } if links.is_empty() => {
                asked.answer(&json!({ "stopping": true })).await;
                return Ok(true);
            }
            Request::Detach { links } => self.begin_to_leave(&links, asked).await?,
        }
        Ok(false)
    }

    fn status(&self) -> serde_json::Value {
        json!({
            "pid": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "outbound": self.outbound(),
            "lan": self.config.lan.interfaces,
            "wan": self.config.wan.interfaces,
            "traffic": self.proxy.stats(),
        })
    }

    /// One link at a time, so that each asker gets one answer.
    async fn begin_to_leave(&mut self, links: &[String], asked: Asked) -> Result<()> {
        let [name] = links else {
            asked
                .answer(&json!({ "error": "one link at a time" }))
                .await;
            return Ok(());
        };
        let attached = self.gateway.links(&self.snapshot)?;
        if !attached.iter().any(|link| link.name == *name) {
            let error = gateway::Error::NotAttached {
                name: name.clone(),
                attached: attached.into_iter().map(|link| link.name).collect(),
            };
            asked.answer(&json!({ "error": error.to_string() })).await;
            return Ok(());
        }
        self.leaving.push(Leaving {
            name: name.clone(),
            deadline: Instant::now() + self.config.proxy.drain,
            asked,
        });
        self.sync().await?;
        self.leave().await
    }

    /// Gives up the links whose time has come.
    async fn leave(&mut self) -> Result<()> {
        let idle = self.proxy.stats().connections == 0;
        let due = |leaving: &Leaving| idle || leaving.deadline <= Instant::now();
        let (due, waiting) = std::mem::take(&mut self.leaving).into_iter().partition(due);
        self.leaving = waiting;
        let due: Vec<Leaving> = due;
        if due.is_empty() {
            return Ok(());
        }
        self.releasing = due.iter().map(|leaving| leaving.name.clone()).collect();
        let synced = self.sync().await?;
        self.released.append(&mut self.releasing);
        self.tell(&synced);
        for leaving in due {
            leaving
                .asked
                .answer(&json!({ "detached": leaving.name }))
                .await;
        }
        Ok(())
    }

    /// Takes the sockets back, drains, detaches. A second signal ends the draining.
    async fn stop(mut self, signals: &mut Signals, presence: Presence) {
        if let Err(error) = self.gateway.retract() {
            tracing::error!("{error}");
        }
        let limit = self.config.proxy.drain;
        let live = self.proxy.stats().connections;
        if live > 0 {
            tracing::info!(
                "draining: {live} connections have up to {} s; a second signal ends them now",
                limit.as_secs()
            );
        }
        tokio::select! {
            DrainReport { ended, reset, associations } = self.proxy.drain(limit) => tracing::info!(
                "{ended} connections ended, {reset} were reset, {associations} associations were closed"
            ),
            () = signals.stop() => tracing::info!("connections were cut"),
        }
        close(Some(self.gateway), &self.place, &self.snapshot, presence).await;
    }
}

/// The signals that matter.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let open = |kind| signal(kind).context("listening for signals failed");
        Ok(Self {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
            hangup: open(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.interrupt.recv() => Caught::Stop,
            _ = self.terminate.recv() => Caught::Stop,
            _ = self.hangup.recv() => Caught::Hangup,
        }
    }

    /// SIGINT or SIGTERM.
    async fn stop(&mut self) {
        while self.next().await != Caught::Stop {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Caught {
    Stop,
    Hangup,
}
