//! The maps, typed: from pins when a kernel half is there already, or from a fresh load.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockMap};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tproxy_common::abi::{
    self, ABI_VERSION, BYPASS_CAPACITY, Bypass, Counter, EXEMPT_CAPACITY, Exempt, ExemptKey,
    ExemptMarks, Express, FlowV4, FlowV6, LANES, LOCALS_CAPACITY, Link, Listener, Local,
    NOTE_BYTES, Note, NoteKey, Reason, SOURCES_CAPACITY, Settings, SourceV4, SourceV6, Traffic,
};
use tproxy_common::trace::TraceFilter;

use super::super::sync::Via;
use super::Error;
use super::account::Account;
use super::programs::file;

/// A type of the kernel interface, as bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

macro_rules! raw {
    ($($type:ty),*) => {$(
        // SAFETY: `repr(C)`, only integers, and no padding: `abi` asserts the sizes.
        unsafe impl Pod for Raw<$type> {}
    )*};
}
raw!(
    Settings,
    Counter,
    Bypass,
    NoteKey,
    Note,
    Local,
    SourceV4,
    SourceV6,
    Link,
    ExemptKey,
    Exempt,
    ExemptMarks,
    Traffic,
    TraceFilter,
    FlowV4,
    FlowV6,
    Express
);

/// One entry of the bypass set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BypassEntry {
    /// The prefix.
    pub prefix: IpNet,
    /// Expiry, hits and origin.
    pub value: Bypass,
    /// The text beside it; empty if there is none.
    pub note: String,
}

/// The maps of a kernel half.
pub struct Maps {
    settings: Array<MapData, Raw<Settings>>,
    counters: PerCpuArray<MapData, Raw<Counter>>,
    listeners: SockMap<MapData>,
    bypass_v4: LpmTrie<MapData, u32, Raw<Bypass>>,
    bypass_v6: LpmTrie<MapData, [u32; 4], Raw<Bypass>>,
    notes: HashMap<MapData, Raw<NoteKey>, Raw<Note>>,
    locals_v4: LpmTrie<MapData, u32, Raw<Local>>,
    locals_v6: LpmTrie<MapData, [u32; 4], Raw<Local>>,
    sources_v4: LpmTrie<MapData, Raw<SourceV4>, u32>,
    sources_v6: LpmTrie<MapData, Raw<SourceV6>, u32>,
    links: HashMap<MapData, u32, Raw<Link>>,
    exempt: HashMap<MapData, Raw<ExemptKey>, Raw<Exempt>>,
    exempt_marks: Array<MapData, Raw<ExemptMarks>>,
    pub(super) devices: Account,
    pub(super) networks: Account,
}

impl Maps {
    /// The maps pinned in this folder, if they are there.
    ///
    /// # Errors
    /// [`Error::Version`] when they are not ours, [`Error::Denied`] for who may not look, [`Error::Map`] when one
    /// cannot be opened.
    pub fn open(pins: &Path) -> Result<Option<Self>, Error> {
        let settings = pins.join(abi::map::SETTINGS);
        match settings.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(Error::Denied(settings));
            }
            Err(error) => return Err(file("looking for the pin", &settings)(error)),
        }
        let pinned = |name| pinned(pins, name);
        // First: another version may lack some of the others.
        let settings = Array::<_, Raw<Settings>>::try_from(pinned(abi::map::SETTINGS)?)
            .map_err(failed("opening", abi::map::SETTINGS))?;
        let Raw(settings) = settings
            .get(&0, 0)
            .map_err(failed("reading", abi::map::SETTINGS))?;
        if settings.abi != ABI_VERSION {
            return Err(Error::Version {
                path: pins.into(),
                found: settings.abi,
                ours: ABI_VERSION,
            });
        }
        Self::from(pinned).map(Some)
    }

    /// The maps of a loaded object.
    pub(super) fn of(ebpf: &mut aya::Ebpf) -> Result<Self, Error> {
        Self::from(|name| {
            ebpf.take_map(name).ok_or_else(|| Error::Map {
                doing: "finding it",
                map: name,
                source: MapError::InvalidName { name: name.into() },
            })
        })
    }

    fn from(mut map: impl FnMut(&'static str) -> Result<Map, Error>) -> Result<Self, Error> {
        macro_rules! typed {
            ($type:ident, $name:expr) => {
                $type::try_from(map($name)?).map_err(failed("opening", $name))?
            };
        }
        Ok(Self {
            settings: typed!(Array, abi::map::SETTINGS),
            counters: typed!(PerCpuArray, abi::map::COUNTERS),
            listeners: typed!(SockMap, abi::map::LISTENERS),
            bypass_v4: typed!(LpmTrie, abi::map::BYPASS_V4),
            bypass_v6: typed!(LpmTrie, abi::map::BYPASS_V6),
            notes: typed!(HashMap, abi::map::NOTES),
            locals_v4: typed!(LpmTrie, abi::map::LOCALS_V4),
            locals_v6: typed!(LpmTrie, abi::map::LOCALS_V6),
            sources_v4: typed!(LpmTrie, abi::map::SOURCES_V4),
            sources_v6: typed!(LpmTrie, abi::map::SOURCES_V6),
            links: typed!(HashMap, abi::map::LINKS),
            exempt: typed!(HashMap, abi::map::EXEMPT),
            exempt_marks: typed!(Array, abi::map::EXEMPT_MARKS),
            devices: typed!(HashMap, abi::map::DEVICES),
            networks: typed!(HashMap, abi::map::NETWORKS),
        })
    }

    /// The settings in force.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn settings(&self) -> Result<Settings, Error> {
        let Raw(settings) = self
            .settings
            .get(&0, 0)
            .map_err(failed("reading", abi::map::SETTINGS))?;
        Ok(settings)
    }

    /// Puts settings into force, from the next packet on.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), Error> {
        self.settings
            .set(0, Raw(settings), 0)
            .map_err(failed("writing", abi::map::SETTINGS))
    }

    /// The counters, summed over the CPUs, in the order of [`Reason::ALL`].
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self) -> Result<Vec<(Reason, Counter)>, Error> {
        let read = |reason: &Reason| Ok((*reason, counter(&self.counters, *reason)?));
        Reason::ALL.iter().map(read).collect()
    }

    /// Publishes the sockets of one kind, by lane, or takes them back: with none, no proxy runs for the programs. If there are
    /// fewer than lanes, lanes share them.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_listener(
        &mut self,
        listener: Listener,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let mut sockets = sockets.iter().cycle();
        for lane in 0..LANES {
            let key = listener.slot(lane);
            match sockets.next() {
                Some(socket) => self
                    .listeners
                    .set(key, socket, 0)
                    .map_err(failed("publishing a socket", abi::map::LISTENERS))?,
                None => absent_is_fine(self.listeners.clear_index(&key))
                    .map_err(failed("removing a socket", abi::map::LISTENERS))?,
            }
        }
        Ok(())
    }

    /// The attached links by interface index.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn links(&self) -> Result<Vec<(u32, Link)>, Error> {
        self.links
            .iter()
            .map(|entry| entry.map(|(index, Raw(link))| (index, link)))
            .collect::<Result<_, _>>()
            .map_err(failed("reading", abi::map::LINKS))
    }

    /// Notes an attached link, or forgets it.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_link(&mut self, index: u32, link: Option<Link>) -> Result<(), Error> {
        match link {
            Some(link) => self.links.insert(index, Raw(link), 0),
            None => absent_is_fine(self.links.remove(&index)),
        }
        .map_err(failed("writing", abi::map::LINKS))
    }

    /// Whose sockets are exempt, in no particular order.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn exempt(&self) -> Result<Vec<(ExemptKey, Exempt)>, Error> {
        self.exempt
            .iter()
            .map(|entry| entry.map(|(Raw(key), Raw(exempt))| (key, exempt)))
            .collect::<Result<_, _>>()
            .map_err(failed("reading", abi::map::EXEMPT))
    }

    /// Exempts somebody's sockets, those that are made from now on; or no longer.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Full`].
    pub fn set_exempt(&mut self, key: ExemptKey, exempt: Option<Exempt>) -> Result<(), Error> {
        match exempt {
            Some(exempt) => self.exempt.insert(Raw(key), Raw(exempt), 0),
            None => absent_is_fine(self.exempt.remove(&Raw(key))),
        }
        .map_err(full_or("writing", abi::map::EXEMPT, EXEMPT_CAPACITY))
    }

    /// Marks of others that are exempt.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn exempt_marks(&self) -> Result<ExemptMarks, Error> {
        let Raw(marks) = self
            .exempt_marks
            .get(&0, 0)
            .map_err(failed("reading", abi::map::EXEMPT_MARKS))?;
        Ok(marks)
    }

    /// Puts them into force, from the next packet on.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn set_exempt_marks(&mut self, marks: ExemptMarks) -> Result<(), Error> {
        self.exempt_marks
            .set(0, Raw(marks), 0)
            .map_err(failed("writing", abi::map::EXEMPT_MARKS))
    }

    /// The gateway's own prefixes: `true` for an address, `false` for a subnet.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn locals(&self) -> Result<Vec<(IpNet, bool)>, Error> {
        let is_address = |local: Local| local.kind == Local::ADDRESS;
        let v4 = self
            .locals_v4
            .iter()
            .map(|entry| entry.map(|(key, Raw(local))| (net_v4(&key).into(), is_address(local))));
        let v6 = self
            .locals_v6
            .iter()
            .map(|entry| entry.map(|(key, Raw(local))| (net_v6(&key).into(), is_address(local))));
        v4.chain(v6)
            .collect::<Result<_, _>>()
            .map_err(failed("reading", "LOCALS"))
    }

    /// Adds or changes one of the gateway's own prefixes, or removes it.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Full`].
    pub fn set_local(&mut self, prefix: IpNet, address: Option<bool>) -> Result<(), Error> {
        let value = address.map(|address| {
            Raw(Local {
                kind: if address {
                    Local::ADDRESS
                } else {
                    Local::SUBNET
                },
            })
        });
        match prefix {
            IpNet::V4(net) => put(&mut self.locals_v4, key_v4(net), value).map_err(full_or(
                "writing",
                abi::map::LOCALS_V4,
                LOCALS_CAPACITY,
            )),
            IpNet::V6(net) => put(&mut self.locals_v6, key_v6(net), value).map_err(full_or(
                "writing",
                abi::map::LOCALS_V6,
                LOCALS_CAPACITY,
            )),
        }
    }

    /// Who may use the proxy: a link, with what the gateway itself sends there told apart, and a prefix.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn sources(&self) -> Result<Vec<(Via, IpNet)>, Error> {
        let v4 = self.sources_v4.keys().map(|key| {
            key.map(|key| {
                let Raw(source) = key.data();
                let inner = Key::new(key.prefix_len().saturating_sub(32), source.address);
                (Via::of(source.link), net_v4(&inner).into())
            })
        });
        let v6 = self.sources_v6.keys().map(|key| {
            key.map(|key| {
                let Raw(source) = key.data();
                let inner = Key::new(key.prefix_len().saturating_sub(32), source.address);
                (Via::of(source.link), net_v6(&inner).into())
            })
        });
        v4.chain(v6)
            .collect::<Result<_, _>>()
            .map_err(failed("reading", "SOURCES"))
    }

    /// Admits a prefix on a link, or no longer.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Full`].
    pub fn set_source(&mut self, via: Via, prefix: IpNet, admitted: bool) -> Result<(), Error> {
        let link = via.key();
        let value = admitted.then_some(1);
        let length = 32 + u32::from(prefix.prefix_len());
        match prefix {
            IpNet::V4(net) => {
                let address = key_v4(net).data();
                let key = Key::new(length, Raw(SourceV4 { link, address }));
                put(&mut self.sources_v4, key, value).map_err(full_or(
                    "writing",
                    abi::map::SOURCES_V4,
                    SOURCES_CAPACITY,
                ))
            }
            IpNet::V6(net) => {
                let address = key_v6(net).data();
                let key = Key::new(length, Raw(SourceV6 { link, address }));
                put(&mut self.sources_v6, key, value).map_err(full_or(
                    "writing",
                    abi::map::SOURCES_V6,
                    SOURCES_CAPACITY,
                ))
            }
        }
    }

    /// The whole bypass set, IPv4 first, in no particular order.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn bypass(&self) -> Result<Vec<BypassEntry>, Error> {
        let mut notes = std::collections::HashMap::new();
        for entry in &self.notes {
            let (Raw(key), Raw(note)) = entry.map_err(failed("reading", abi::map::NOTES))?;
            notes.insert((key.address, key.prefix_len), note_text(&note));
        }
        let mut entry = |prefix: IpNet, value: Bypass| {
            let key = note_key(prefix);
            let note = notes
                .remove(&(key.address, key.prefix_len))
                .unwrap_or_default();
            BypassEntry {
                prefix,
                value,
                note,
            }
        };
        let mut entries = Vec::new();
        for found in &self.bypass_v4 {
            let (key, Raw(value)) = found.map_err(failed("reading", abi::map::BYPASS_V4))?;
            entries.push(entry(net_v4(&key).into(), value));
        }
        for found in &self.bypass_v6 {
            let (key, Raw(value)) = found.map_err(failed("reading", abi::map::BYPASS_V6))?;
            entries.push(entry(net_v6(&key).into(), value));
        }
        Ok(entries)
    }

    /// How many prefixes are bypassed, IPv4 and IPv6.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn bypass_count(&self) -> Result<(usize, usize), Error> {
        let v4 = self.bypass_v4.keys().collect::<Result<Vec<_>, _>>();
        let v6 = self.bypass_v6.keys().collect::<Result<Vec<_>, _>>();
        Ok((
            v4.map_err(failed("reading", abi::map::BYPASS_V4))?.len(),
            v6.map_err(failed("reading", abi::map::BYPASS_V6))?.len(),
        ))
    }

    /// The entry with just this prefix.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn bypass_entry(&self, prefix: IpNet) -> Result<Option<BypassEntry>, Error> {
        let found = match prefix {
            IpNet::V4(net) => self.bypass_v4.get(&key_v4(net), 0),
            IpNet::V6(net) => self.bypass_v6.get(&key_v6(net), 0),
        };
        match found {
            // A trie answers with the longest match, which may be shorter than what was asked for.
            Ok(Raw(value)) if value.prefix_len == u32::from(prefix.prefix_len()) => {
                Ok(Some(BypassEntry {
                    prefix,
                    value,
                    note: self.note(prefix)?,
                }))
            }
            Ok(_) | Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("reading", "BYPASS")(error)),
        }
    }

    /// The entries that contain an address, the longest prefix first. It costs a look-up for each, however
    /// large the set is.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn bypass_covering(&self, address: IpAddr) -> Result<Vec<BypassEntry>, Error> {
        let mut entries = Vec::new();
        let mut within = IpNet::from(address);
        loop {
            // The longest match that is not longer than the key.
            let found = match within {
                IpNet::V4(net) => self.bypass_v4.get(&key_v4(net), 0),
                IpNet::V6(net) => self.bypass_v6.get(&key_v6(net), 0),
            };
            let value = match found {
                Ok(Raw(value)) => value,
                Err(MapError::KeyNotFound) => return Ok(entries),
                Err(error) => return Err(failed("reading", "BYPASS")(error)),
            };
            let Some(prefix) = u8::try_from(value.prefix_len)
                .ok()
                .filter(|length| *length <= within.prefix_len())
                .and_then(|length| IpNet::new(address, length).ok())
                .map(|prefix| prefix.trunc())
            else {
                return Ok(entries);
            };
            let note = self.note(prefix)?;
            entries.push(BypassEntry {
                prefix,
                value,
                note,
            });
            match prefix.prefix_len().checked_sub(1) {
                Some(shorter) => {
                    within = IpNet::new(address, shorter).map_or(within, |net| net.trunc());
                }
                None => return Ok(entries),
            }
        }
    }

    fn note(&self, prefix: IpNet) -> Result<String, Error> {
        match self.notes.get(&Raw(note_key(prefix)), 0) {
            Ok(Raw(note)) => Ok(note_text(&note)),
            Err(MapError::KeyNotFound) => Ok(String::new()),
            Err(error) => Err(failed("reading", abi::map::NOTES)(error)),
        }
    }

    /// Adds an entry to the bypass set or replaces the one with the same prefix.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::Full`].
    pub fn insert_bypass(&mut self, entry: &BypassEntry) -> Result<(), Error> {
        let value = Some(Raw(entry.value));
        match entry.prefix {
            IpNet::V4(net) => put(&mut self.bypass_v4, key_v4(net), value).map_err(full_or(
                "adding",
                abi::map::BYPASS_V4,
                BYPASS_CAPACITY,
            ))?,
            IpNet::V6(net) => put(&mut self.bypass_v6, key_v6(net), value).map_err(full_or(
                "adding",
                abi::map::BYPASS_V6,
                BYPASS_CAPACITY,
            ))?,
        }
        let key = Raw(note_key(entry.prefix));
        if entry.note.is_empty() {
            absent_is_fine(self.notes.remove(&key))
        } else {
            self.notes.insert(key, Raw(note(&entry.note)), 0)
        }
        .map_err(full_or("writing", abi::map::NOTES, abi::NOTES_CAPACITY))
    }

    /// Removes the entry with just this prefix, if it is there.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remove_bypass(&mut self, prefix: IpNet) -> Result<(), Error> {
        match prefix {
            IpNet::V4(net) => put(&mut self.bypass_v4, key_v4(net), None)
                .map_err(failed("removing", abi::map::BYPASS_V4))?,
            IpNet::V6(net) => put(&mut self.bypass_v6, key_v6(net), None)
                .map_err(failed("removing", abi::map::BYPASS_V6))?,
        }
        absent_is_fine(self.notes.remove(&Raw(note_key(prefix))))
            .map_err(failed("removing", abi::map::NOTES))
    }
}

/// A map by its pin.
pub(super) fn pinned(pins: &Path, name: &'static str) -> Result<Map, Error> {
    MapData::from_pin(pins.join(name))
        .and_then(Map::from_map_data)
        .map_err(failed("opening the pin", name))
}

fn put<K: Pod, V: Pod>(
    trie: &mut LpmTrie<MapData, K, V>,
    key: Key<K>,
    value: Option<V>,
) -> Result<(), MapError> {
    match value {
        Some(value) => trie.insert(&key, value, 0),
        None => absent_is_fine(trie.remove(&key)),
    }
}

/// The counter of a reason, summed over the CPUs.
pub(super) fn counter(
    counters: &PerCpuArray<MapData, Raw<Counter>>,
    reason: Reason,
) -> Result<Counter, Error> {
    let per_cpu = counters
        .get(&(reason as u32), 0)
        .map_err(failed("reading", abi::map::COUNTERS))?;
    let mut sum = Counter::default();
    for Raw(counter) in per_cpu.iter() {
        sum.packets += counter.packets;
        sum.bytes += counter.bytes;
    }
    Ok(sum)
}

pub(super) fn failed(doing: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| Error::Map { doing, map, source }
}

/// A trie answers ENOSPC when it is full, a hash map E2BIG.
pub(super) fn full_or(
    doing: &'static str,
    map: &'static str,
    capacity: u32,
) -> impl FnOnce(MapError) -> Error {
    move |source| match &source {
        MapError::SyscallError(error)
            if matches!(
                error.io_error.raw_os_error(),
                Some(libc::ENOSPC | libc::E2BIG)
            ) =>
        {
            Error::Full { map, capacity }
        }
        _ => Error::Map { doing, map, source },
    }
}

/// Removing what is not there is no failure.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if matches!(
                error.io_error.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn key_v4(net: Ipv4Net) -> Key<u32> {
    Key::new(
        net.prefix_len().into(),
        u32::from_ne_bytes(net.network().octets()),
    )
}

fn key_v6(net: Ipv6Net) -> Key<[u32; 4]> {
    Key::new(net.prefix_len().into(), words(net.network().octets()))
}

fn net_v4(key: &Key<u32>) -> Ipv4Net {
    Ipv4Net::new_assert(key.data().to_ne_bytes().into(), key.prefix_len() as u8)
}

fn net_v6(key: &Key<[u32; 4]>) -> Ipv6Net {
    Ipv6Net::new_assert(bytes(key.data()).into(), key.prefix_len() as u8)
}

pub(super) fn words(address: [u8; 16]) -> [u32; 4] {
    let word = |at: usize| {
        u32::from_ne_bytes([
            address[at],
            address[at + 1],
            address[at + 2],
            address[at + 3],
        ])
    };
    [word(0), word(4), word(8), word(12)]
}

pub(super) fn bytes(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn note_key(prefix: IpNet) -> NoteKey {
    let (address, offset) = match prefix.network() {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 96),
        IpAddr::V6(v6) => (v6, 0),
    };
    NoteKey {
        address: words(address.octets()),
        prefix_len: offset + u32::from(prefix.prefix_len()),
    }
}

fn note_text(note: &Note) -> String {
    let end = note
        .text
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(NOTE_BYTES);
    String::from_utf8_lossy(&note.text[..end]).into_owned()
}

/// As much of the text as fits, cut between characters.
fn note(text: &str) -> Note {
    let mut end = text.len().min(NOTE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut note = Note {
        text: [0; NOTE_BYTES],
    };
    note.text[..end].copy_from_slice(&text.as_bytes()[..end]);
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_survive_the_way_through_a_key() {
        for text in ["0.0.0.0/0", "10.1.0.0/16", "203.0.113.7/32"] {
            let net: Ipv4Net = text.parse().unwrap();
            assert_eq!(net_v4(&key_v4(net)), net);
        }
        for text in ["::/0", "2001:db8:1::/48", "2001:db8::1/128"] {
            let net: Ipv6Net = text.parse().unwrap();
            assert_eq!(net_v6(&key_v6(net)), net);
        }
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let text = "é".repeat(NOTE_BYTES);
        let cut = note(&text).text;
        let end = cut.iter().position(|byte| *byte == 0).unwrap_or(NOTE_BYTES);
        assert_eq!(
            std::str::from_utf8(&cut[..end]).unwrap().chars().count(),
            NOTE_BYTES / 2
        );
    }

    #[test]
    fn notes_of_an_ipv4_prefix_and_of_its_mapped_form_differ_from_those_of_shorter_ones() {
        let key = |text: &str| note_key(text.parse().unwrap());
        assert_ne!(key("10.0.0.0/8"), key("10.0.0.0/9"));
        assert_eq!(key("10.0.0.0/8").prefix_len, 104);
        assert_eq!(key("2001:db8::/32").prefix_len, 32);
    }
}
