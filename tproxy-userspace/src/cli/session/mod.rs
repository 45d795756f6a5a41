//! One run of a gateway with its proxy: start in order, follow the machine, stop in reverse.

mod follow;
mod learn;
mod links;
mod signals;
mod start;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tproxy_userspace::config::{Config, WanPattern};
use tproxy_userspace::control::gateway::Gateway;
use tproxy_userspace::control::links::{Snapshot, Watch};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::control::{self, cgroup, exempt, preflight};
use tproxy_userspace::data::dns::Settings;
use tproxy_userspace::data::{DrainReport, Proxy};
use tproxy_userspace::observe::api::{Asked, Server, Teller};
use tproxy_userspace::observe::log::Log;
use tproxy_userspace::observe::socket::Request;

use self::follow::{cgroups_changed, watch_cgroups};
use self::learn::{Names, announced};
use self::links::{Leaving, selection};
use self::signals::{Caught, Signals};
use self::start::{Presence, Reader, close, start};
use super::api;
use super::lists::Lists;
use super::upstream;

pub use self::links::select;
pub use self::start::{limits, way};

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
    /// What the lists of the configuration hold.
    lists: Lists,
    /// The resolver that is in use.
    dns: Option<Settings>,
    /// Tells the addresses of the names that were asked for.
    learned: Option<Reader>,
    /// Which addresses names stand for.
    names: Names,
    started: Instant,
    place: Place,
    gateway: Gateway,
    proxy: Proxy,
    /// The addresses of the outbound's server.
    servers: watch::Receiver<BTreeSet<IpAddr>>,
    /// Tells others of the run.
    teller: Teller,
    watch: Watch,
    /// Tells when exempt cgroups come and go, or somebody edits who is exempt.
    cgroups: Option<cgroup::Watch>,
    snapshot: Snapshot,
    /// Links that `detach` took from this run.
    released: Vec<String>,
    /// Links that are being taken now.
    releasing: Vec<String>,
    /// Links that `detach` is taking: nothing new is steered there.
    leaving: Vec<Leaving>,
}

/// Proxies until SIGINT or SIGTERM.
pub async fn run(config: Config, reread: Reread<'_>, log: Log) -> Result<()> {
    // What can be wrong with the words is found before anything is touched.
    let lists = Lists::load_and_tell(&config)?;
    let routing = upstream::routing(&config, &lists);
    exempt::check(&config.exempt)?;
    let findings = preflight::check_machine()?;
    for warning in findings.warnings {
        tracing::warn!("{warning}");
    }
    let place = Place::current()?;
    let mut signals = Signals::new()?;
    let mut watch = Watch::open()?;
    let snapshot = watch.next().await?;
    preflight::check_links(&selection(&config), &snapshot)?;
    let presence = Presence::new(&place, log)?;
    let teller = presence.server.teller();
    let listening = match api::prepare(&teller, &config) {
        Ok(listening) => listening,
        Err(error) => {
            close(None, &place, &snapshot, presence).await;
            return Err(error);
        }
    };
    let opened = tokio::select! {
        opened = upstream::open(&config, routing, upstream::own_addresses(&snapshot)) => opened.map(Some),
        () = signals.stop() => Ok(None),
    };
    let started = match opened {
        Ok(Some(opened)) => start(&config, opened, &lists.bypass, &place, findings.kernel).await,
        Ok(None) => {
            close(None, &place, &snapshot, presence).await;
            return Ok(());
        }
        Err(error) => Err((None, error)),
    };
    let (gateway, proxy, learned) = match started {
        Ok(started) => started,
        Err((gateway, error)) => {
            close(gateway, &place, &snapshot, presence).await;
            return Err(error);
        }
    };
    let mut session = Session {
        dns: upstream::dns(&config),
        config,
        reread,
        lists,
        learned,
        names: Names::default(),
        started: Instant::now(),
        cgroups: watch_cgroups(&place),
        place,
        gateway,
        servers: proxy.servers(),
        proxy,
        teller,
        watch,
        snapshot,
        released: Vec::new(),
        releasing: Vec::new(),
        leaving: Vec::new(),
    };
    let result = match session.first_sync().await {
        Ok(()) => {
            session.follow_cgroups();
            session.show();
            session.teller.listen(listening);
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
                    Caught::Hangup => drop(self.reload_and_tell().await),
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
                    self.proxy.set_own_addresses(upstream::own_addresses(&self.snapshot));
                    match self.sync().await {
                        Ok(synced) => self.tell(&synced),
                        Err(error) => tracing::error!("following the links: {error:#}"),
                    }
                }
                Ok(()) = self.servers.changed() => {
                    if let Err(error) = self.spare_servers() {
                        tracing::error!("bypassing the outbound's server: {error:#}");
                    }
                }
                announced = announced(&mut self.learned) => {
                    if let Err(error) = self.learn(&announced) {
                        tracing::error!("bypassing the addresses of a name: {error:#}");
                    }
                }
                changed = cgroups_changed(&mut self.cgroups) => match changed {
                    Ok(()) => self.follow_cgroups(),
                    Err(error) => {
                        tracing::error!("following exempt cgroups: {error}");
                        self.cgroups = None;
                    }
                },
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

    /// What takes all that no rule is about, for people.
    fn outbound(&self) -> String {
        let config = &self.config;
        let name = config.default_exit();
        if let Some(group) = config.groups.iter().find(|group| group.name == name) {
            let (kind, members) = (group.kind().word(), group.members.join(", "));
            return format!("{name}, a {kind} of {members}");
        }
        let outbound = config.outbounds.iter().find(|one| one.name == name);
        outbound.map_or_else(|| format!("{name}://"), |one| one.url.to_string())
    }

    /// Answers a request. Returns whether the run is to end.
    async fn answer(&mut self, asked: Asked) -> Result<bool> {
        match asked.request.clone() {
            Request::Status => asked.answer(&self.status()).await,
            Request::Reload => {
                let answer = match self.reload_and_tell().await {
                    Ok(told) => json!({ "reloaded": told }),
                    Err(error) => json!({ "error": error }),
                };
                asked.answer(&answer).await;
            }
            Request::Detach { links } if links.is_empty() => {
                asked.answer(&json!({ "stopping": true })).await;
                return Ok(true);
            }
            Request::Detach { links } => self.begin_to_leave(&links, asked).await?,
            // The server answers these itself.
            _ => {}
        }
        Ok(false)
    }

    /// Lets others look at the run.
    fn show(&self) {
        let counters = api::read_counters(self.place.clone());
        self.teller.tell(api::facts(&self.config));
        self.teller.runs(self.proxy.view(), counters);
    }

    fn status(&self) -> serde_json::Value {
        let view = self.proxy.view();
        json!({
            "pid": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "outbound": self.outbound(),
            "default": self.config.default_exit(),
            "outbounds": view.outbounds(),
            "groups": view.groups(),
            "servers": *self.servers.borrow(),
            "lan": self.config.lan.interfaces,
            "wan": self.config.wan.interfaces,
            "traffic": self.proxy.stats(),
            "tasks": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            "dns": view.dns_stats(),
            "rules": self.lists.rules.len(),
            "learned": self.names_status(),
        })
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
