//! Which links are attached, and how one is given up.

use anyhow::Result;
use serde_json::json;
use tokio::time::Instant;
use tproxy_userspace::config::{Config, WanPattern};
use tproxy_userspace::control::gateway::{self, Synced};
use tproxy_userspace::control::sync::{Roles, Selection, wanted};
use tproxy_userspace::observe::api::Asked;

use super::Session;

/// A link that is given up when the connections have ended.
pub(super) struct Leaving {
    name: String,
    deadline: Instant,
    asked: Asked,
}

/// The links that the configuration means.
pub fn selection(config: &Config) -> Selection {
    Selection {
        lan: config.lan.interfaces.clone(),
        wan: config.wan.interfaces.clone(),
        sources: config.lan.sources.clone(),
        express: false,
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

impl Session<'_> {
    /// Links by configuration, and those that `attach` left in place.
    pub(super) async fn sync(&mut self) -> Result<Synced> {
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
        selection.express = self.lane.is_some();
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
        self.follow_lane()?;
        Ok(synced)
    }

    /// Attaches what is there. A link that fails later is told of and tried again; one that fails now
    /// ends the start, while somebody is looking.
    pub(super) async fn first_sync(&mut self) -> Result<()> {
        let mut synced = self.sync().await?;
        let failed = synced.failed.pop();
        self.tell(&synced);
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    pub(super) fn tell(&self, synced: &Synced) {
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

    /// One link at a time, so that each asker gets one answer.
    pub(super) async fn begin_to_leave(&mut self, links: &[String], asked: Asked) -> Result<()> {
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
    pub(super) async fn leave(&mut self) -> Result<()> {
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
}
