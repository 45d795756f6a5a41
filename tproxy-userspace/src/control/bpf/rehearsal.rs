//! The programs once more, on the maps of a gateway, but so that nobody sees what they do there.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::programs::{SchedClassifier, TcAttachType};
use tproxy_common::abi::{Bypass, Reason, map, program};

use super::programs::remove_pin;
use super::{BypassEntry, Error, Maps, Programs, Trial};

/// What the programs write, and who listens to them. A rehearsal has these for itself; the rest it shares.
const OWN: [&str; 15] = [
    map::COUNTERS,
    map::BYPASS_V4,
    map::BYPASS_V6,
    map::NOTES,
    map::STEERED_V4,
    map::STEERED_V6,
    map::FRAGMENTS,
    map::DEVICES,
    map::NETWORKS,
    map::EXPRESS_V4,
    map::EXPRESS_V6,
    map::EXPRESS_REACHED,
    map::TRACE,
    map::TRACE_EVENTS,
    map::TRACE_LOST,
];

/// The programs of this build on the settings, addresses, sources and listeners of a gateway. What they count and
/// remember stays in here.
pub struct Rehearsal {
    programs: Programs,
    maps: Maps,
}

/// What came of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// Why it went its way. None: the program did not look at it.
    pub reason: Option<Reason>,
    /// The entry of the bypass set that it matched.
    pub bypass: Option<BypassEntry>,
}

/// Pins that go with this.
struct Pins(Vec<(&'static str, PathBuf)>);

impl Pins {
    /// In capitals, as pins of maps are: `detach` finds what a killed process left.
    fn new(folder: &Path) -> Result<Self, Error> {
        let id = std::process::id();
        let pin = |name: &'static str| (name, folder.join(format!("REHEARSAL_{id}_{name}")));
        let pins = Self(OWN.map(pin).into());
        for (_, path) in &pins.0 {
            remove_pin(path)?;
        }
        Ok(pins)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for (_, path) in &self.0 {
            if let Err(error) = remove_pin(path) {
                tracing::warn!("{error}");
            }
        }
    }
}

impl Rehearsal {
    /// Opens the programs beside those that are attached. The caller holds the place's lock, or `detach` might
    /// come between.
    ///
    /// # Errors
    /// [`Error::Load`], [`Error::File`].
    pub fn load(pins: &Path) -> Result<Self, Error> {
        // The maps live on without their pins.
        let own = Pins::new(pins)?;
        let (programs, maps) = Programs::load_apart(pins, &own.0)?;
        Ok(Self { programs, maps })
    }

    /// Is the program that is attached to a link another than the one of this build? False, too, where it cannot
    /// be told: at links without an Ethernet header, and with clsact.
    pub fn is_outdated(&mut self, program: &'static str, link: &str) -> bool {
        let direction = if program == program::LAN_INGRESS {
            TcAttachType::Ingress
        } else {
            TcAttachType::Egress
        };
        let Ok((_, attached)) = SchedClassifier::query_tcx(link, direction) else {
            return false;
        };
        let Ok(own) = self.programs.classifier(program).and_then(|it| it.info()) else {
            return false;
        };
        // The tag is a hash of the instructions, whatever maps they are about.
        let mut same_name = attached
            .iter()
            .filter(|other| other.name_as_str() == Some(program))
            .peekable();
        same_name.peek().is_some() && same_name.all(|other| other.tag() != own.tag())
    }

    /// Runs a program on a frame to `destination` that comes in or goes out by the link with this index.
    /// `real` are the gateway's maps. No socket can be assigned: see [`Programs::try_packet`].
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Map`].
    pub fn run(
        &mut self,
        real: &Maps,
        program: &'static str,
        interface: u32,
        frame: &[u8],
        destination: IpAddr,
    ) -> Result<Rehearsed, Error> {
        let entries = real.bypass_covering(destination)?;
        for entry in &entries {
            let value = Bypass {
                packets: 0,
                bytes: 0,
                ..entry.value
            };
            let entry = entry.clone();
            self.maps.insert_bypass(&BypassEntry { value, ..entry })?;
        }
        let before = self.maps.counters()?;
        self.programs.try_packet(&Trial {
            program,
            frame,
            interface,
            came_by: 0,
            mark: 0,
            repeat: 1,
        })?;
        let after = self.maps.counters()?;
        let moved = before.iter().zip(&after).find(|(old, new)| old.1 != new.1);
        let mut bypass = None;
        for entry in entries {
            let hit = self.maps.bypass_entry(entry.prefix)?;
            if hit.is_some_and(|hit| hit.value.packets > 0) {
                bypass = Some(entry.clone());
            }
            self.maps.remove_bypass(entry.prefix)?;
        }
        Ok(Rehearsed {
            reason: moved.map(|(_, (reason, _))| *reason),
            bypass,
        })
    }
}
