//! A configuration on trial: the one before comes back by itself, unless somebody confirms the new one in time.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::Instant;
use tproxy_userspace::config::Config;

use super::super::lists::Lists;
use super::Session;

/// A configuration that was given by command, in place of the file.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its text.
    pub text: String,
    /// The file that it came from.
    pub path: PathBuf,
}

/// What is on trial, what comes back, and when.
pub(super) struct Trial {
    given: Given,
    config: Config,
    lists: Lists,
    pub(super) ends: Instant,
}

impl Session<'_> {
    /// Puts a configuration into force: for good, or for as long as `confirm` says.
    pub(super) async fn apply(&mut self, given: Given, confirm: Option<Duration>) -> Value {
        let applied = async {
            let config = (self.reread)(Some(&given))?;
            let lists = Lists::load_and_tell(&config)?;
            let before = (self.config.clone(), self.lists.clone());
            self.change(config, lists).await?;
            anyhow::Ok(before)
        };
        let (config, lists) = match applied.await {
            Ok(before) => before,
            Err(error) => {
                let error = format!("{error:#}; the configuration in force has not changed");
                return json!({ "error": error });
            }
        };
        // What comes back is what was confirmed last, however many trials there are.
        let (config, lists) = match self.trial.take() {
            Some(trial) => (trial.config, trial.lists),
            None => (config, lists),
        };
        if let Some(time) = confirm {
            tracing::info!(
                "applied for {} s: {} proxied through {}",
                time.as_secs(),
                self.proxied(),
                self.outbound()
            );
            self.trial = Some(Trial {
                given,
                config,
                lists,
                ends: Instant::now() + time,
            });
            return json!({ "applied": true });
        }
        tracing::info!(
            "applied: {} proxied through {}",
            self.proxied(),
            self.outbound()
        );
        self.to_keep(&given)
    }

    /// What the command needs to know to keep a configuration.
    fn to_keep(&self, given: &Given) -> Value {
        json!({ "file": self.file, "from": given.path, "text": given.text })
    }

    /// The configuration on trial holds from now on.
    pub(super) fn confirm(&mut self) -> Value {
        match self.trial.take() {
            Some(trial) => {
                tracing::info!("confirmed: the configuration on trial holds");
                self.to_keep(&trial.given)
            }
            None => json!({ "error": "no configuration is on trial" }),
        }
    }

    /// Takes a configuration back that nobody confirmed.
    pub(super) async fn end_trial(&mut self) {
        let Some(Trial { config, lists, .. }) = self.trial.take() else {
            return;
        };
        match self.change(config, lists).await {
            Ok(()) => tracing::warn!(
                "nobody confirmed the configuration in time: the one before is in force again"
            ),
            Err(error) => tracing::error!(
                "nobody confirmed the configuration in time, and taking it back failed: {error:#}"
            ),
        }
    }

    /// For `status`: how many seconds are left.
    pub(super) fn trial_status(&self) -> Option<u64> {
        let trial = self.trial.as_ref()?;
        let left = trial.ends.saturating_duration_since(Instant::now());
        Some(left.as_secs())
    }
}

/// What [`super::Reread`] reads: a file, or what a command gave.
pub type Source<'g> = Option<&'g Given>;

/// Reads the configuration as it is now, with what the command line says over it.
pub type Reread<'a> = &'a dyn Fn(Source<'_>) -> Result<Config>;
