//! The maps of the express lane.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError, PerCpuArray};
use tproxy_common::abi::{Counter, EXPRESS_FLOWS, Express, FlowV4, FlowV6, Reason, map};

use super::Error;
use super::maps::{Raw, absent_is_fine, counter, failed, full_or, pinned, words};

/// Who sends, and to whom: what a datagram says when it comes.
pub type Ends = (SocketAddr, SocketAddr);

/// See the module. Only the proxy writes to them.
pub struct ExpressMaps {
    v4: HashMap<MapData, Raw<FlowV4>, Raw<Express>>,
    v6: HashMap<MapData, Raw<FlowV6>, Raw<Express>>,
    reached: HashMap<MapData, u32, u32>,
    counters: PerCpuArray<MapData, Raw<Counter>>,
}

/// The key of a flow. None: its ends are of two families.
enum Key {
    V4(Raw<FlowV4>),
    V6(Raw<FlowV6>),
}

impl Key {
    fn of((source, destination): Ends) -> Option<Self> {
        let (source_port, destination_port) = (source.port().to_be(), destination.port().to_be());
        Some(match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::V4(Raw(FlowV4 {
                source: u32::from_ne_bytes(source.octets()),
                destination: u32::from_ne_bytes(destination.octets()),
                source_port,
                destination_port,
            })),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Self::V6(Raw(FlowV6 {
                source: words(source.octets()),
                destination: words(destination.octets()),
                source_port,
                destination_port,
            })),
            _ => return None,
        })
    }
}

/// An address as an entry has it.
#[must_use]
pub fn address(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [u32::from_ne_bytes(v4.octets()), 0, 0, 0],
        IpAddr::V6(v6) => words(v6.octets()),
    }
}

impl ExpressMaps {
    /// Those that are pinned in this folder.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn open(pins: &Path) -> Result<Self, Error> {
        macro_rules! opened {
            ($name:expr) => {
                HashMap::try_from(pinned(pins, $name)?).map_err(failed("opening", $name))?
            };
        }
        Ok(Self {
            v4: opened!(map::EXPRESS_V4),
            v6: opened!(map::EXPRESS_V6),
            reached: opened!(map::EXPRESS_REACHED),
            counters: PerCpuArray::try_from(pinned(pins, map::COUNTERS)?)
                .map_err(failed("opening", map::COUNTERS))?,
        })
    }

    /// Makes an entry, in the place of another one if there is one.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Full`].
    pub fn set(&mut self, ends: Ends, entry: Express) -> Result<(), Error> {
        match Key::of(ends) {
            Some(Key::V4(key)) => self.v4.insert(key, Raw(entry), 0).map_err(full_or(
                "writing",
                map::EXPRESS_V4,
                2 * EXPRESS_FLOWS,
            )),
            Some(Key::V6(key)) => self.v6.insert(key, Raw(entry), 0).map_err(full_or(
                "writing",
                map::EXPRESS_V6,
                2 * EXPRESS_FLOWS,
            )),
            None => Ok(()),
        }
    }

    /// An entry as it is now. None: there is none, or it cannot be read.
    #[must_use]
    pub fn get(&self, ends: Ends) -> Option<Express> {
        let Raw(entry) = match Key::of(ends)? {
            Key::V4(key) => self.v4.get(&key, 0).ok()?,
            Key::V6(key) => self.v6.get(&key, 0).ok()?,
        };
        Some(entry)
    }

    /// Removes an entry, if there is one.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remove(&mut self, ends: Ends) -> Result<(), Error> {
        match Key::of(ends) {
            Some(Key::V4(key)) => absent_is_fine(self.v4.remove(&key)),
            Some(Key::V6(key)) => absent_is_fine(self.v6.remove(&key)),
            None => Ok(()),
        }
        .map_err(failed("removing an entry", "EXPRESS"))
    }

    /// Says which number the proxy has got to in an entry, or forgets it.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Full`].
    pub fn set_reached(&mut self, id: u32, number: Option<u32>) -> Result<(), Error> {
        match number {
            Some(number) => self.reached.insert(id, number, 0),
            None => absent_is_fine(self.reached.remove(&id)),
        }
        .map_err(full_or("writing", map::EXPRESS_REACHED, 4 * EXPRESS_FLOWS))
    }

    /// How many packets were counted for this reason.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn count(&self, reason: Reason) -> Result<u64, Error> {
        Ok(counter(&self.counters, reason)?.packets)
    }

    /// Removes all entries.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn clear(&mut self) -> Result<(), Error> {
        clear(&mut self.v4)
            .and_then(|()| clear(&mut self.v6))
            .and_then(|()| clear(&mut self.reached))
            .map_err(failed("clearing", "EXPRESS"))
    }
}

fn clear<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) -> Result<(), MapError> {
    let keys: Vec<_> = map.keys().collect::<Result<_, _>>()?;
    keys.iter()
        .try_for_each(|key| absent_is_fine(map.remove(key)))
}
