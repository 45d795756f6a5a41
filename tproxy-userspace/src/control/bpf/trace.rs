//! The maps that `trace` listens by.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use tproxy_common::abi::map;
use tproxy_common::trace::{TraceEvent, TraceFilter};

use super::Error;
use super::maps::{Raw, failed, pinned};

/// Who listens, what was told, and what was lost. Only one process has them at a time: a ring buffer has one reader.
pub struct TraceMaps {
    filter: Array<MapData, Raw<TraceFilter>>,
    events: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

impl TraceMaps {
    /// Those that are pinned in this folder.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn open(pins: &Path) -> Result<Self, Error> {
        Ok(Self {
            filter: Array::try_from(pinned(pins, map::TRACE)?)
                .map_err(failed("opening", map::TRACE))?,
            events: RingBuf::try_from(pinned(pins, map::TRACE_EVENTS)?)
                .map_err(failed("opening", map::TRACE_EVENTS))?,
            lost: PerCpuArray::try_from(pinned(pins, map::TRACE_LOST)?)
                .map_err(failed("opening", map::TRACE_LOST))?,
        })
    }

    /// Who listens, and to what.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn filter(&self) -> Result<TraceFilter, Error> {
        let Raw(filter) = self
            .filter
            .get(&0, 0)
            .map_err(failed("reading", map::TRACE))?;
        Ok(filter)
    }

    /// Puts that into force, from the next packet on.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_filter(&mut self, filter: TraceFilter) -> Result<(), Error> {
        self.filter
            .set(0, Raw(filter), 0)
            .map_err(failed("writing", map::TRACE))
    }

    /// How many events found no room since the maps were made.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn lost(&self) -> Result<u64, Error> {
        let per_cpu = self
            .lost
            .get(&0, 0)
            .map_err(failed("reading", map::TRACE_LOST))?;
        Ok(per_cpu.iter().sum())
    }

    /// The next event, if there is one.
    pub fn take_event(&mut self) -> Option<TraceEvent> {
        loop {
            // Each has this size, but a program of another build might still be attached.
            if let Some(bytes) = self.events.next()?.first_chunk() {
                return Some(event(bytes));
            }
        }
    }
}

/// Readable while there are events.
impl AsFd for TraceMaps {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl AsRawFd for TraceMaps {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

/// An event from its bytes.
fn event(bytes: &[u8; size_of::<TraceEvent>()]) -> TraceEvent {
    // SAFETY: `repr(C)`, only integers, and no padding: its size is asserted where it is declared.
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}
