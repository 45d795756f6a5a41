//! What the service manager hears of a session.

use tproxy_userspace::observe::service::Event;

use super::Session;

impl Session<'_> {
    /// Whose traffic is proxied, and by what.
    fn summary(&self) -> String {
        format!("{} proxied through {}", self.proxied(), self.outbound())
    }

    /// It serves.
    pub(super) fn tell_ready(&mut self) {
        let summary = self.summary();
        tracing::info!("ready: {summary}");
        self.manager.tell(Event::Ready { status: &summary });
    }

    /// Reloads. A failure is told, and changes nothing.
    pub(super) async fn reload_and_tell(&mut self) {
        self.manager.tell(Event::Reloading);
        match self.reload().await {
            Ok(()) => {
                let summary = self.summary();
                tracing::info!("reloaded: {summary}");
                self.manager.tell(Event::Ready { status: &summary });
            }
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::error!(
                    "the reload failed, and the old configuration goes on to hold: {reason}"
                );
                self.manager.tell(Event::Refused { reason: &reason });
            }
        }
    }

    /// It ends.
    pub(super) fn tell_stopping(&mut self) {
        let drain = self.config.proxy.drain;
        self.manager.tell(Event::Stopping { drain });
    }
}
