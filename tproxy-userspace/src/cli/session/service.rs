//! What the service manager hears of a session.

use tokio::time::Instant;
use tproxy_userspace::observe::service::Event;

use super::super::output::one_message;
use super::{SETTLE, Session};

impl Session<'_> {
    /// Whose traffic is proxied, and by what.
    fn summary(&self) -> String {
        format!("{} proxied through {}", self.proxied(), self.outbound())
    }

    /// It serves.
    pub(super) fn tell_ready(&mut self) {
        self.tell_that_it_serves("ready");
    }

    /// It serves from now on, after this: gives whose traffic it proxies, and by what.
    fn tell_that_it_serves(&mut self, after: &str) -> String {
        let summary = self.summary();
        tracing::info!("{after}: {summary}");
        self.manager.tell(Event::Ready { status: &summary });
        self.settling = Some(Instant::now() + SETTLE);
        summary
    }

    /// Reloads, and tells how that went: the log, the service manager, and whoever asked. A failure changes nothing.
    pub(super) async fn reload_and_tell(&mut self) -> Result<String, String> {
        self.manager.tell(Event::Reloading);
        match self.reload().await {
            Ok(()) => Ok(self.tell_that_it_serves("reloaded")),
            Err(error) => {
                let reason = one_message(&error);
                tracing::error!(
                    "the reload failed, and the old configuration goes on to hold: {reason}"
                );
                self.manager.tell(Event::Refused { reason: &reason });
                Err(reason)
            }
        }
    }

    /// It ends.
    pub(super) fn tell_stopping(&mut self) {
        let drain = self.config.proxy.drain;
        self.manager.tell(Event::Stopping { drain });
    }
}
