//! What a run does about changes: of the configuration, of exempt cgroups, of servers, and of what others
//! undo.

use anyhow::Result;
use tproxy_common::abi::Origin;
use tproxy_userspace::config::Config;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::control::{bypass, cgroup, exempt, preflight};
use tproxy_userspace::step::{Step, step};

use super::super::lists::Lists;
use super::super::{api, upstream};
use super::Session;
use super::links::selection;
use super::privileges::Reading as _;
use super::start::enforce;

/// Without it the proxy runs all the same: a cgroup that is made anew is then exempt with the next edit.
pub(super) fn watch_cgroups(place: &Place) -> Option<cgroup::Watch> {
    let root = cgroup::mount().ok()??;
    cgroup::Watch::open(&root, &place.changes())
        .inspect_err(|error| tracing::warn!("cgroups that are made anew are not followed: {error}"))
        .ok()
}

pub(super) async fn cgroups_changed(watch: &mut Option<cgroup::Watch>) -> std::io::Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

impl Session<'_> {
    /// Puts the configuration into force as it is now, and ends a trial.
    pub(super) async fn reload(&mut self) -> Result<()> {
        let config = (self.reread)(None).naming_user()?;
        let lists = Lists::load_and_tell(&config).naming_user()?;
        self.change(config, lists).await?;
        self.trial = None;
        Ok(())
    }

    /// Puts a configuration into force: the difference, and all of it or nothing.
    pub(super) async fn change(&mut self, config: Config, lists: Lists) -> Result<()> {
        exempt::check(&config.exempt)?;
        preflight::check_links(&selection(&config), &self.snapshot)?;
        let listening = api::prepare(&self.teller, &config).naming_user()?;
        step(Step::ReloadRead);
        for (key, differs) in [
            ("[tcp]", config.tcp != self.config.tcp),
            ("[udp]", config.udp != self.config.udp),
            ("proxy.port", config.proxy.port != self.config.proxy.port),
            (
                "gateway.user",
                config.gateway.user != self.config.gateway.user,
            ),
            (
                "gateway.seccomp",
                config.gateway.seccomp != self.config.gateway.seccomp,
            ),
            ("api.group", config.api.group != self.config.api.group),
            ("log.format", config.log.format != self.config.log.format),
        ] {
            if differs {
                tracing::warn!("{key} has changed, which takes a restart to come into force");
            }
        }
        if let Err(error) = self.put_into_force(&config, &lists).await {
            let (config, lists) = (self.config.clone(), self.lists.clone());
            if let Err(undo) = self.put_into_force(&config, &lists).await {
                tracing::error!("taking back a reload that failed: {undo:#}");
            }
            return Err(error);
        }
        let before = std::mem::replace(&mut self.config, config);
        self.lists = lists;
        step(Step::ReloadHeld);
        self.teller.listen(listening);
        self.teller.tell(api::facts(&self.config));
        if before.log != self.config.log {
            self.teller.log().configure(self.config.log.directives());
        }
        if before.gateway.forward && !self.config.gateway.forward {
            let _lock = self.place.lock()?;
            self.gateway.disable_forwarding()?;
        }
        self.spare_servers()?;
        self.reconsider_names()?;
        let synced = self.sync().await?;
        self.tell(&synced);
        step(Step::ReloadLinked);
        Ok(())
    }

    /// What of a configuration needs no look at the links.
    pub(super) async fn put_into_force(&mut self, config: &Config, lists: &Lists) -> Result<()> {
        // First: the servers of the outbounds must be found, and may be refused.
        self.proxy
            .set_routing(upstream::routing(config, lists))
            .await?;
        let dns = upstream::dns(config);
        if dns != self.dns {
            self.learned = self.proxy.set_dns(dns.as_ref())?;
            self.dns = dns;
        }
        step(Step::ReloadRouted);
        let _lock = self.place.lock()?;
        enforce(&mut self.gateway, config, &lists.bypass)?;
        step(Step::ReloadEnforced);
        Ok(())
    }

    pub(super) fn sweep(&mut self) -> Result<()> {
        self.forget_names()?;
        let _lock = self.place.lock()?;
        bypass::sweep(self.gateway.maps())?;
        // What a command removed, or was in the place of for a while.
        let servers = upstream::prefixes(&self.servers.borrow());
        let terms = upstream::terms();
        bypass::restore(self.gateway.maps(), &servers, &terms, Origin::Outbound)?;
        // A firewall that is loaded anew flushes the tables of others, and nobody tells.
        self.gateway
            .sync_machine(&self.config.gateway, &self.snapshot)?;
        Ok(())
    }

    /// The addresses of the outbound's server go direct, those that it had before no more.
    pub(super) fn spare_servers(&mut self) -> Result<()> {
        let _lock = self.place.lock()?;
        let servers = upstream::prefixes(&self.servers.borrow_and_update());
        let terms = upstream::terms();
        bypass::replace(self.gateway.maps(), &servers, &terms, Origin::Outbound)?;
        Ok(())
    }

    /// Brings the ids of exempt cgroups in step with the machine.
    pub(super) fn follow_cgroups(&mut self) {
        let Some(watch) = &mut self.cgroups else {
            return;
        };
        let maps = self.gateway.maps();
        let mut follow = || {
            // Watched first: what comes after being looked for is told of.
            watch.set(&exempt::cgroups(maps)?)?;
            // The lock is only taken for a change: letting go of it is told of as well.
            if !exempt::is_fresh(maps)? {
                let _lock = self.place.lock()?;
                exempt::refresh(maps)?;
            }
            anyhow::Ok(())
        };
        if let Err(error) = follow() {
            tracing::error!("following exempt cgroups: {error:#}");
        }
    }
}
