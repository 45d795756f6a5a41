//! The express lane: what relays asks, and what knows the kernel half answers.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tproxy_userspace::config::ExpressLane;
use tproxy_userspace::control::express::{Lane, Wanted};
use tproxy_userspace::data::{Candidate, Carried, Express};

use super::Session;

/// The lane as the relay sees it.
#[derive(Debug)]
struct Carrier(Arc<Lane>);

impl Express for Carrier {
    fn ask(&self, candidate: Candidate) {
        let Candidate {
            association,
            device,
            peer,
            port,
        } = candidate;
        self.0.ask(Wanted {
            association,
            device,
            peer,
            port,
        });
    }

    fn is_switching(&self) -> bool {
        self.0.is_switching()
    }

    fn sent(&self, device: SocketAddr, peer: SocketAddr, number: u16) {
        self.0.sent(device, peer, number);
    }

    fn answered(&self, association: u64, peer: SocketAddr, number: u16) {
        self.0.answered(association, peer, number);
    }

    fn carried(&self, association: u64) -> Vec<(SocketAddr, Carried)> {
        plain(self.0.carried(association))
    }

    fn leave(&self, association: u64) -> Vec<(SocketAddr, Carried)> {
        plain(self.0.leave(association))
    }
}

fn plain(
    carried: Vec<(SocketAddr, tproxy_userspace::control::express::Carried)>,
) -> Vec<(SocketAddr, Carried)> {
    carried
        .into_iter()
        .map(|(peer, carried)| {
            let (up, down) = (carried.up, carried.down);
            (peer, Carried { up, down })
        })
        .collect()
}

impl Session<'_> {
    /// Opens the lane, if it is wanted and this kernel has what it needs.
    pub(super) fn open_lane(&mut self) -> Result<()> {
        let redirect = match self.config.udp.express {
            ExpressLane::Forward => false,
            ExpressLane::Redirect => true,
            ExpressLane::Off => return Ok(self.gateway.set_express(None)?),
        };
        let (lane, asked) = Lane::open(self.place.pins(), redirect)?;
        if let Err(error) = self.proxy.set_express(Arc::new(Carrier(Arc::clone(&lane)))) {
            tracing::info!("no express lane: this kernel cannot number datagrams: {error}");
            return Ok(self.gateway.set_express(None)?);
        }
        let serving = asked.serve(Arc::downgrade(&lane));
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!("no express lane: {error}");
            }
        });
        self.gateway.set_express(Some(redirect))?;
        self.lane = Some(lane);
        Ok(())
    }

    /// Tells the lane what the network looks like.
    pub(super) fn follow_lane(&self) -> Result<()> {
        if let Some(lane) = &self.lane {
            lane.follow(&self.snapshot, self.gateway.express_links()?);
        }
        Ok(())
    }
}
