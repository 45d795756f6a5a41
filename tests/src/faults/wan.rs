//! What leaves by the WAN link, and a trickle of datagrams that would show each gap.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{Look, Row, Scene, Sight, UDP};
use crate::{Family, Lab, capture::Capture, probe::at, traffic::open_udp};

/// Who has sent something new by the WAN link to the internet: connections that begin, and datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    /// Packets with a device's address, new or not, of which the proxy held none.
    pub device: bool,
    /// The gateway, for itself or as the proxy.
    pub gateway: bool,
}

impl Display for Leaves {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.device, self.gateway) {
            (false, false) => "nothing",
            (false, true) => "the gateway's",
            (true, false) => "the device's",
            (true, true) => "the device's and the gateway's",
        })
    }
}

/// A capture on the WAN link.
#[derive(Debug)]
pub struct Wan {
    capture: Capture,
    /// Ports of connections that go direct all the time.
    old: Vec<u16>,
}

impl Wan {
    /// Ends it, and says who has sent something.
    ///
    /// # Errors
    /// When it has missed packets.
    pub fn leaves(self) -> Result<Leaves> {
        let mut leaves = Leaves::default();
        for packet in self.capture.stop()? {
            let (source, target) = (packet.source, packet.target);
            if packet.is_icmp()
                || !is_far(target.ip())
                || self.old.contains(&source.port()) && source.port() != 0
            {
                continue;
            }
            let by = |address: fn(Family) -> IpAddr| {
                Family::BOTH
                    .into_iter()
                    .any(|family| source.ip() == address(family))
            };
            leaves.device |= by(Family::device);
            leaves.gateway |= !by(Family::device) && packet.is_new();
        }
        Ok(leaves)
    }

    /// The same, where it must be no more than what is expected to be seen explains.
    ///
    /// # Errors
    /// When more has left.
    pub fn leaves_as(self, expected: Sight) -> Result<Leaves> {
        let leaves = self.leaves()?;
        ensure!(
            !leaves.device || expected.device_goes_direct(),
            "packets of the device left by the WAN link"
        );
        ensure!(
            !leaves.gateway || expected.gateway_sends(),
            "something new left by the WAN link with the gateway's address"
        );
        Ok(leaves)
    }

    /// Nothing of a device may have left, unless it is expected to go direct.
    ///
    /// # Errors
    /// As [`Wan::nothing_of_devices`].
    pub fn nothing_unless(self, expected: Sight) -> Result<()> {
        match expected.device_goes_direct() {
            true => Ok(()),
            false => self.nothing_of_devices(),
        }
    }

    /// Nothing of a device may have left.
    ///
    /// # Errors
    /// When something has.
    pub fn nothing_of_devices(self) -> Result<()> {
        ensure!(
            !self.leaves()?.device,
            "packets of the device left by the WAN link meanwhile"
        );
        Ok(())
    }
}

/// Servers in the internet.
fn is_far(address: IpAddr) -> bool {
    (1..=crate::addr::FAR_COUNT).any(|n| address == Family::of(address).far(n))
}

impl Scene {
    /// Captures what goes by the WAN link from now on.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn wan(&self) -> Result<Wan> {
        let ports = self
            .old
            .iter()
            .map(|stream| Ok(stream.local_addr()?.port()));
        Ok(Wan {
            capture: Capture::start(&self.lab.gateway, "wan0")?,
            old: ports.collect::<Result<_>>()?,
        })
    }

    /// [Looks](Scene::look) while what goes by the WAN link is captured, and notes both in the row.
    ///
    /// # Errors
    /// What fared otherwise, or left without being expected to.
    pub fn observe<'r>(&self, row: Row<'r>, expected: Sight) -> Result<(Row<'r>, Look)> {
        let wan = self.wan()?;
        let look = self.look(expected)?;
        Ok((row.seen(expected, wan.leaves_as(expected)?), look))
    }
}

/// Datagrams of the device, hundreds a second by each family, as long as this lives.
#[derive(Debug)]
pub struct Trickle {
    end: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Trickle {
    /// Starts it.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn start(lab: &Lab) -> Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for family in Family::BOTH {
            let socket = open_udp(&lab.device, family)?;
            let end = Arc::clone(&end);
            threads.push(thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    // Refused by ICMP or not: it goes on.
                    socket.send_to(b"drip", at(family.far(2), UDP)).ok();
                    thread::sleep(Duration::from_millis(4));
                }
            }));
        }
        Ok(Self { end, threads })
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}
