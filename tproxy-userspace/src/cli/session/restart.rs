//! A restart by systemd: this process goes on to serve until the next one takes over.
//!
//! systemd stops `tproxy-bpf-restart.service` before the proxy's own service, and that asks the proxy: only then can another
//! process still become the main one, and only the proxy's process may say so.

use std::future::pending;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::control::{exempt, preflight};
use tproxy_userspace::observe::unit::{StandIn, Unit};

use super::super::lists::Lists;
use super::super::output::one_message;
use super::Session;
use super::links::selection;
use super::takeover::{Answer, Heir, Testator};

/// How often it is asked whether the next process is still to come.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether a process has ended.
const END: Duration = Duration::from_millis(20);
/// How long the next process may need where nothing is wrong with the configuration.
const LIMIT: Duration = Duration::from_secs(30);

/// The service manager has a stand-in, or no process, and starts the next one.
pub(super) struct Vacancy {
    unit: Unit,
    _stand_in: StandIn,
    look: Interval,
    /// Since when the next process could have come.
    since: Instant,
}

/// Ends when it is time to ask whether somebody comes.
pub(super) async fn due(vacancy: &mut Option<Vacancy>) {
    match vacancy {
        Some(vacancy) => {
            vacancy.look.tick().await;
        }
        None => pending().await,
    }
}

/// Tells the proxy that runs here that the service manager is about to end its main process, and waits for one that is to
/// end at once.
pub async fn leave() -> Result<()> {
    let place = Place::current()?;
    let Some((testator, sockets, lock)) = Testator::ask(&place).await? else {
        return Ok(());
    };
    // A proxy that ends must be the last one to have these.
    drop((sockets, lock));
    let pid = testator.pid;
    if testator.leave().await? == Answer::Ends {
        while place.proxy_pid() == Some(pid) {
            sleep(END).await;
        }
    }
    Ok(())
}

impl Session<'_> {
    /// Heeds the wish of [`leave`], and says what comes of it. Returns whether this process must end now.
    pub(super) async fn stand_aside(&mut self, mut asker: Heir) -> bool {
        let answer = self.stands_aside().await;
        asker.answer(answer).await;
        answer == Answer::Ends
    }

    /// If the service manager restarts this process, lets it start the next one beside it.
    async fn stands_aside(&mut self) -> Answer {
        let Some(unit) = Unit::own() else {
            return Answer::Stays;
        };
        let restarts = unit.restarts().await.unwrap_or_else(|error| {
            tracing::warn!("whether this is a restart is not known, so it is a stop: {error}");
            false
        });
        match (restarts, &self.vacancy) {
            (true, Some(_)) => return Answer::Left,
            (false, Some(_)) => return Answer::Ends,
            (false, None) => return Answer::Stays,
            (true, None) => {}
        }
        // Without it there is no reason to think that the next process will.
        if !self.takeover {
            return Answer::Stays;
        }
        if self.needs_another_port() {
            tracing::warn!(
                "proxy.port has changed, so the next process cannot take over: connections end with this one"
            );
            return Answer::Stays;
        }
        let stand_in = match unit.leave().await {
            Ok(stand_in) => stand_in,
            Err(error) => {
                tracing::error!(
                    "the next process cannot take over, so connections end with this one: {error}"
                );
                return Answer::Stays;
            }
        };
        tracing::info!(
            "{} is restarted: this process serves until the next one takes over",
            unit.name()
        );
        self.manager.leave();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.vacancy = Some(Vacancy {
            unit,
            _stand_in: stand_in,
            look,
            since: Instant::now(),
        });
        Answer::Left
    }

    /// Whether nobody is to come any more, so that this process must end.
    pub(super) async fn is_left_alone(&mut self) -> bool {
        let Some(vacancy) = &mut self.vacancy else {
            return false;
        };
        let known = vacancy.unit.expects_a_start().await;
        if let Ok(false) = known {
            tracing::warn!("no other process is started any more: this one ends");
            return true;
        }
        if vacancy.since.elapsed() < LIMIT {
            return false;
        }
        vacancy.since = Instant::now();
        let seconds = LIMIT.as_secs();
        if let Err(error) = known {
            tracing::error!("no process has taken over in {seconds} s, so this one ends: {error}");
            return true;
        }
        match self.would_start() {
            // As long as somebody can mend the file, nothing changes.
            Err(error) => {
                let reason = one_message(&error);
                tracing::error!("no other process can start, and this one goes on: {reason}");
                false
            }
            Ok(()) => {
                tracing::error!(
                    "no process has taken over in {seconds} s, though nothing is wrong with the configuration: this one ends, \
                     so that the next one starts anew"
                );
                true
            }
        }
    }

    /// Whether the configuration, as it is now, would get through the first questions of a start.
    fn would_start(&self) -> Result<()> {
        let config = (self.reread)(None)?;
        Lists::load(&config)?;
        exempt::check(&config.exempt)?;
        Ok(preflight::check_links(&selection(&config), &self.snapshot)?)
    }

    /// Whether the configuration, as it is now, names another port than the one that is listened on.
    fn needs_another_port(&self) -> bool {
        // One with a fault is the next process's to tell of.
        let Ok(config) = (self.reread)(None) else {
            return false;
        };
        let port = config.proxy.port;
        let sockets = self.proxy.sockets();
        port != 0 && sockets.is_some_and(|sockets| !sockets.all_have(port))
    }
}
