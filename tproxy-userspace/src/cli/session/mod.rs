//! One run of a gateway with its proxy: start in order, follow the machine, stop in reverse.

mod express;
mod follow;
mod learn;
mod links;
mod privileges;
mod restart;
mod service;
mod signals;
mod start;
mod takeover;
mod trial;

use std::collections::BTreeSet;
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tproxy_userspace::config::{Config, WanPattern};
use tproxy_userspace::control::express::Lane;
use tproxy_userspace::control::gateway::Gateway;
use tproxy_userspace::control::links::{Snapshot, Watch};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::control::{self, cgroup, preflight};
use tproxy_userspace::data::dns::Settings;
use tproxy_userspace::data::{Alarm, Handed, Proxy};
use tproxy_userspace::net::memory;
use tproxy_userspace::observe::api::{Asked, Teller};
use tproxy_userspace::observe::log::Log;
use tproxy_userspace::observe::service::{Event, Manager};
use tproxy_userspace::observe::socket::Request;
use tproxy_userspace::privileges::Held;
use tproxy_userspace::step::{Step, step};

use self::follow::{cgroups_changed, watch_cgroups};
use self::learn::{Names, announced};
use self::links::{Leaving, selection};
use self::restart::{Vacancy, due};
use self::signals::{Caught, Signals};
use self::start::{Begun, Presence, Reader, close, start};
use self::takeover::{Heir, Testator, Wish, wish};
use super::api;
use super::lists::Lists;
use super::upstream;

pub use self::links::select;
pub use self::privileges::Ready;
pub use self::restart::leave;
pub use self::start::{limits, way};
pub use self::trial::{Given, Reread, Source};

use self::trial::Trial;

/// How often expired bypass prefixes are taken out of the tries (they count no more before), and what
/// somebody else may have undone is done again.
const SWEEP: Duration = Duration::from_secs(60);
/// How often it is looked whether a limit was reached.
const LIMITS: Duration = Duration::from_secs(2);

/// How often a link that is to be given up is looked at.
const LEAVE: Duration = Duration::from_millis(100);

/// How long after a start or a reload the memory is given back that it needed: what it has set going goes on for a moment.
const SETTLE: Duration = Duration::from_secs(3);

/// A gateway with its proxy, while it runs.
struct Session<'a> {
    config: Config,
    /// Reads the configuration anew.
    reread: Reread<'a>,
    /// The file that it is read from.
    file: Option<PathBuf>,
    /// What is in force for a while only.
    trial: Option<Trial>,
    /// When memory is given back.
    settling: Option<Instant>,
    /// What the lists of the configuration hold.
    lists: Lists,
    /// The resolver that is in use.
    dns: Option<Settings>,
    /// Tells the addresses of the names that were asked for.
    learned: Option<Reader>,
    /// Flows that go past the proxy.
    lane: Option<Arc<Lane>>,
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
    manager: Manager,
    /// It was started to take over, as the one that the service manager starts next.
    takeover: bool,
    /// The service manager starts the next process.
    vacancy: Option<Vacancy>,
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

/// Proxies until SIGINT or SIGTERM, or until another process takes over.
pub async fn run(
    config: Config,
    file: Option<PathBuf>,
    reread: Reread<'_>,
    log: Log,
    ready: &mut Ready,
) -> Result<()> {
    let lists = ready.lists.take().expect("it runs once");
    let (place, kernel, takeover) = (ready.place.clone(), ready.kernel, ready.takeover);
    let routing = upstream::routing(&config, &lists);
    let mut signals = Signals::new()?;
    let mut watch = Watch::open()?;
    let snapshot = watch.next().await?;
    preflight::check_links(&selection(&config), &snapshot)?;
    let own = upstream::own_addresses(&snapshot);
    step(Step::StartChecked);
    let testator = match takeover {
        true => Testator::ask(&place).await?,
        false => None,
    };
    let mut inherited = None;
    let (begun, presence) = if let Some((mut testator, sockets, lock)) = testator {
        let opening = upstream::open(&config, routing, own, Some(sockets));
        let (begun, presence, state) = tokio::select! {
            taken = testator.take_over(opening, (lock, log), &config, &lists.bypass, &place, kernel) => taken?,
            () = signals.stop() => return Ok(()),
        };
        inherited = Some((testator, state));
        (begun, presence)
    } else {
        let presence = Presence::new(&place, log)?;
        step(Step::StartLocked);
        let opened = tokio::select! {
            opened = upstream::open(&config, routing, own, None) => opened.map(Some),
            () = signals.stop() => Ok(None),
        };
        let started = match opened {
            Ok(Some(opened)) => start(&config, opened, &lists.bypass, &place, kernel).await,
            Ok(None) => {
                close(None, &place, &snapshot, presence).await;
                return Ok(());
            }
            Err(error) => Err((None, error)),
        };
        match started {
            Ok(begun) => (begun, presence),
            Err((gateway, error)) => {
                close(gateway, &place, &snapshot, presence).await;
                return Err(error);
            }
        }
    };
    let Begun {
        gateway,
        proxy,
        learned,
    } = begun;
    let teller = presence.teller();
    let listening = match api::prepare(&teller, &config) {
        Ok(listening) => listening,
        Err(error) => {
            if inherited.is_none() {
                drop(proxy);
                close(Some(gateway), &place, &snapshot, presence).await;
            }
            return Err(error);
        }
    };
    let mut session = Session {
        dns: upstream::dns(&config),
        config,
        reread,
        file,
        trial: None,
        settling: None,
        lists,
        learned,
        lane: None,
        names: Names::default(),
        started: Instant::now(),
        cgroups: watch_cgroups(&place),
        place,
        gateway,
        servers: proxy.servers(),
        proxy,
        teller,
        watch,
        manager: Manager::from_environment(),
        takeover,
        vacancy: None,
        snapshot,
        released: Vec::new(),
        releasing: Vec::new(),
        leaving: Vec::new(),
    };
    session.open_lane()?;
    let presence = match inherited {
        Some((testator, state)) => {
            let served = session.succeed(testator, state, (presence, listening));
            served.await?
        }
        None => match session.first_sync().await {
            Ok(()) => {
                session.show();
                session.teller.listen(listening);
                step(Step::StartLinked);
                presence
            }
            Err(error) => {
                session.stop(&mut signals, presence).await;
                return Err(error);
            }
        },
    };
    session.follow_cgroups();
    step(Step::StartReady);
    ready.serves(&session.config);
    session.tell_ready();
    match session.serve(&mut signals, presence).await {
        Ended::Stopped(presence, result) => {
            session.stop(&mut signals, presence).await;
            result
        }
        Ended::Replaced(handed) => {
            session.drain_beside(&mut signals, handed).await;
            Ok(())
        }
    }
}

/// Waits for a moment; for ever, if there is none.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// How the serving of a session ended.
enum Ended {
    /// By a signal, a command, or an error.
    Stopped(Presence, Result<()>),
    /// Another process has taken over.
    Replaced(Handed),
}

impl Session<'_> {
    async fn serve(&mut self, signals: &mut Signals, mut presence: Presence) -> Ended {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut limits = interval(LIMITS);
        limits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alarm = Alarm::default();
        let mut leave = interval(LEAVE);
        leave.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heir: Option<Heir> = None;
        let result = loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Caught::Stop => break Ok(()),
                    Caught::Hangup => drop(self.reload_and_tell().await),
                },
                snapshot = self.watch.next() => {
                    self.snapshot = match snapshot {
                        Ok(snapshot) => snapshot,
                        Err(error @ control::Error::NetlinkSocket { .. }) => {
                            break Err(error).context("following the links");
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
                _ = limits.tick() => {
                    for limit in alarm.news(&self.proxy.stats(), Instant::now().into_std()) {
                        tracing::warn!("limit reached: {} ({} times); {}", limit.what, limit.times, limit.remedy);
                    }
                }
                asked = presence.asked() => match self.answer(asked).await {
                    Ok(false) => {}
                    Ok(true) => break Ok(()),
                    Err(error) => break Err(error),
                },
                // One at a time; the next one waits.
                stream = presence.heir(), if heir.is_none() => {
                    heir = self.greet(stream, presence.lock()).await;
                }
                wish = wish(&mut heir) => if let Some(heir) = heir.take() {
                    if let Ok(Wish::Leave) = wish {
                        if self.stand_aside(heir).await {
                            break Ok(());
                        }
                    } else if let Some(handed) = self.hand_over(heir, wish, &mut presence).await {
                        return Ended::Replaced(handed);
                    }
                },
                () = due(&mut self.vacancy), if heir.is_none() => if self.is_left_alone().await {
                    break Ok(());
                },
                () = reached(self.trial.as_ref().map(|trial| trial.ends)) => self.end_trial().await,
                () = reached(self.settling) => {
                    self.settling = None;
                    memory::give_back();
                }
                _ = leave.tick(), if !self.leaving.is_empty() => {
                    if let Err(error) = self.leave().await {
                        break Err(error);
                    }
                }
                () = self.manager.due() => self.manager.tell(Event::Alive),
            }
        };
        Ended::Stopped(presence, result)
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
            Request::Apply {
                text,
                path,
                confirm_seconds,
            } => {
                let confirm = confirm_seconds.map(Duration::from_secs);
                let answer = self.apply(Given { text, path }, confirm).await;
                asked.answer(&answer).await;
            }
            Request::Confirm => asked.answer(&self.confirm()).await,
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
        let kernel = api::Pinned(self.place.clone());
        self.teller.tell(api::facts(&self.config));
        self.teller.runs(self.proxy.view(), Box::new(kernel));
    }

    fn status(&self) -> serde_json::Value {
        let (view, stats) = (self.proxy.view(), self.proxy.stats());
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
            "restarting": self.vacancy.is_some(),
            "trial_seconds": self.trial_status(),
            "draining": self.proxy.draining(),
            "traffic": stats,
            "limits_reached": stats.reached(),
            "tasks": view.tasks(),
            "dns": view.dns_stats(),
            "rules": self.lists.rules.len(),
            "learned": self.names_status(),
            "process": Held::now(),
        })
    }

    /// Takes the sockets back, drains, detaches. A second signal ends the draining.
    async fn stop(mut self, signals: &mut Signals, presence: Presence) {
        self.tell_stopping();
        step(Step::StopAsked);
        if let Err(error) = self.gateway.retract() {
            tracing::error!("{error}");
        }
        if let Some(lane) = &self.lane {
            lane.close();
        }
        step(Step::StopRetracted);
        let limit = self.config.proxy.drain;
        let live = self.proxy.stats().connections;
        if live > 0 {
            tracing::info!(
                "draining: {live} connections have up to {} s; a second signal ends them now",
                limit.as_secs()
            );
        }
        tokio::select! {
            report = self.proxy.drain(limit) => tracing::info!("{report}"),
            () = signals.stop() => tracing::info!("connections were cut"),
        }
        step(Step::StopDrained);
        close(Some(self.gateway), &self.place, &self.snapshot, presence).await;
    }
}
