//! One process takes over from another: the sockets stay, what is new goes to the new process, and what lives ends in
//! the old one.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{DrainReport, Proxy};
use crate::data::Error;
use crate::data::udp::{Draining, Inherited};
use crate::net::pass::Channel;

/// What the new process gets to know beside the sockets.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// The processes whose associations live on.
    pub predecessors: Vec<Inherited>,
    /// The members that a person chose, by group.
    pub selected: Vec<(String, String)>,
    /// The number of the last flow.
    pub last_flow: u64,
}

/// The old process's end of what it gave.
#[derive(Debug)]
pub struct Handed {
    channel: Channel,
    clients: HashSet<SocketAddr>,
}

impl Proxy {
    /// Accepts and receives no more, and says what there is to take over. What comes meanwhile waits in the sockets.
    ///
    /// # Errors
    /// When this machine has no file left.
    pub async fn hand_over(&mut self) -> io::Result<(Inheritance, Handed)> {
        for task in self.accepting.drain(..).chain(self.receiving.drain(..)) {
            task.abort();
            // A batch that is under way ends here.
            let _ = task.await;
        }
        let clients = self.udp.clients();
        let (channel, theirs) = Channel::pair()?;
        let mut predecessors = self.udp.predecessors.give()?;
        predecessors.push(Inherited {
            pid: std::process::id(),
            clients: clients.iter().copied().collect(),
            channel: theirs,
        });
        let groups = self.view().groups().into_iter();
        let selected = groups
            .filter(|group| group.kind == "select")
            .filter_map(|group| Some((group.name, group.tcp?)))
            .collect();
        let inheritance = Inheritance {
            predecessors,
            selected,
            last_flow: self.shared.live.last(),
        };
        Ok((inheritance, Handed { channel, clients }))
    }

    /// Nobody took over: goes on as before.
    ///
    /// # Errors
    /// When the runtime refuses a socket.
    pub fn go_on(&mut self) -> Result<(), Error> {
        self.receivers.clear();
        self.udp.hear_again();
        self.take()
    }

    /// Somebody has taken over: relays what lives, for up to `limit`, then resets and closes the rest. When the successor ends,
    /// so does this process, in the time that it is given; when the successor is killed, within `alone`.
    pub async fn drain_beside(
        mut self,
        handed: Handed,
        limit: Duration,
        alone: Duration,
    ) -> DrainReport {
        self.sockets = None;
        self.udp.predecessors.forget();
        let Handed { channel, clients } = handed;
        let receivers = std::mem::take(&mut self.receivers);
        let successor = async {
            match self.udp.serve(&channel, clients, receivers).await {
                Some(limit) => {
                    let seconds = limit.as_secs();
                    tracing::info!(
                        "the process that took over ends, and so does this one, in up to {seconds} s"
                    );
                    // Gone before the time is over, it wants no more of it.
                    let _ = timeout(limit, channel.closed()).await;
                }
                None => {
                    // Nobody hands datagrams on any more, and while a socket for them is open the programs steer to it.
                    self.udp.close_all();
                    let seconds = alone.as_secs();
                    tracing::warn!(
                        "the process that took over is gone: this one ends in up to {seconds} s"
                    );
                    sleep(alone).await;
                }
            }
        };
        let ended = async {
            self.tcp.ended().await;
            self.udp.ended().await;
        };
        let report = self.drain_within(limit, async {
            tokio::select! {
                () = successor => {}
                () = ended => {}
            }
        });
        let report = report.await;
        // The kernel closes it with this process, whose end the successor waits for.
        std::mem::forget(channel);
        report
    }

    /// What the processes that were taken over from still have.
    #[must_use]
    pub fn draining(&self) -> Vec<Draining> {
        self.udp.predecessors.draining()
    }

    pub(super) fn inherit(&self, inheritance: Inheritance) -> Result<(), Error> {
        self.shared.live.go_on_from(inheritance.last_flow);
        for (group, member) in inheritance.selected {
            if let Err(error) = self.view().select(&group, &member) {
                tracing::info!("\"{member}\" is not chosen any more: {error}");
            }
        }
        for predecessor in inheritance.predecessors {
            self.udp.inherit(predecessor).map_err(Error::Register)?;
        }
        Ok(())
    }
}
