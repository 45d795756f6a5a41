//! MaxMind databases: a binary search tree of prefixes whose leaves point to records.
//!
//! Format: the MaxMind DB File Format Specification, version 2.0. Records by country have
//! `/country/iso_code` (or only `/registered_country/iso_code`), those by network
//! `/autonomous_system_number`; in sing-geoip a record is the code itself, in mihomo's metadb that or an
//! array of several.
//!
//! The tree is walked here, not looked up in: a prefix is what is wanted. Nodes of a foreign file may
//! point back up, which would go on for ever, so the steps are counted.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::reading::{Codes, Reading, Trouble};
use super::{Fault, Format};
use crate::policy::source::Selector;

/// What stands before the metadata.
const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";
/// The metadata, its marker included, are in this many last bytes.
const METADATA_WITHIN: usize = 128 << 10;
/// Zeros between tree and data.
const SEPARATOR: usize = 16;

/// Where the metadata begin, if it is such a database.
pub(super) fn metadata(bytes: &[u8]) -> Option<usize> {
    let start = bytes.len().saturating_sub(METADATA_WITHIN);
    let found = bytes[start..]
        .windows(MARKER.len())
        .rposition(|window| window == MARKER)?;
    Some(start + found + MARKER.len())
}

pub(super) fn read(
    bytes: &[u8],
    selector: Option<&Selector>,
    out: &mut Reading,
) -> Result<(), Trouble> {
    let Some(metadata) = metadata(bytes) else {
        return Err(Trouble::byte(
            bytes.len(),
            Fault::Cut("the database: its end, the metadata, is missing"),
        ));
    };
    let tree = Tree::open(bytes, metadata)?;
    let mut records = Records {
        data: Data {
            bytes,
            start: tree.data,
            end: metadata - MARKER.len(),
            steps: 64 * bytes.len() + 4096,
        },
        selector,
        wanted: HashMap::new(),
        codes: Codes::default(),
    };
    let mut found = false;
    tree.walk(|network, length, record, place| {
        if records.wanted(record, place)? {
            found = true;
            take(network, length, tree.v4, out);
        }
        out.room().map_err(Trouble::whole)
    })?;
    if found {
        Ok(())
    } else {
        Err(Trouble::whole(records.codes.fault(Format::Mmdb, selector)))
    }
}

fn take(network: u128, length: u8, v4: bool, out: &mut Reading) {
    // In a tree of IPv6 the addresses of IPv4 are ::/96.
    if v4 {
        let network = Ipv4Addr::from((network >> 96) as u32);
        out.prefix(IpNet::V4(
            Ipv4Net::new(network, length).expect("32 bits at most"),
        ));
    } else if length >= 96 && network >> 32 == 0 {
        let network = Ipv4Addr::from(network as u32);
        out.prefix(IpNet::V4(
            Ipv4Net::new(network, length - 96).expect("32 bits at most"),
        ));
    } else {
        if network == 0 {
            out.prefix(IpNet::V4(Ipv4Net::default()));
        }
        let network = Ipv6Addr::from(network);
        out.prefix(IpNet::V6(
            Ipv6Net::new(network, length).expect("128 bits at most"),
        ));
    }
}

/// The search tree.
struct Tree<'a> {
    bytes: &'a [u8],
    nodes: usize,
    record_bits: usize,
    v4: bool,
    /// Where the data begin.
    data: usize,
}

impl<'a> Tree<'a> {
    fn open(bytes: &'a [u8], metadata: usize) -> Result<Self, Trouble> {
        let mut data = Data {
            bytes,
            start: metadata,
            end: bytes.len(),
            steps: 1 << 20,
        };
        let mut number = |key| -> Result<u64, Trouble> {
            match data.field(metadata, key)? {
                Some(at) => match data.value(at)? {
                    (Kind::Number(number), _) => Ok(number),
                    _ => data.malformed(at, "the metadata have a text where a number belongs"),
                },
                None => data.malformed(
                    metadata,
                    "the metadata lack the size or the kind of the tree",
                ),
            }
        };
        let (nodes, record_bits) = (number("node_count")?, number("record_size")?);
        let (version, major) = (
            number("ip_version")?,
            number("binary_format_major_version")?,
        );
        if major != 2 {
            return Err(Trouble::byte(
                metadata,
                Fault::Version {
                    found: major,
                    known: 2,
                },
            ));
        }
        let wrong = |what| Err(Trouble::byte(metadata, Fault::Malformed(what)));
        let record_bits = match record_bits {
            24 | 28 | 32 => record_bits as usize,
            _ => return wrong("the metadata name a size of records that there is not"),
        };
        let v4 = match version {
            4 => true,
            6 => false,
            _ => return wrong("the metadata name a version of IP that there is not"),
        };
        let room = metadata - MARKER.len();
        let size = usize::try_from(nodes)
            .ok()
            .and_then(|nodes| nodes.checked_mul(record_bits / 4))
            .and_then(|size| size.checked_add(SEPARATOR));
        match size {
            Some(data) if data <= room => Ok(Self {
                bytes,
                nodes: nodes as usize,
                record_bits,
                v4,
                data,
            }),
            _ => Err(Trouble::byte(room, Fault::Cut("the search tree"))),
        }
    }

    /// The left or right record of a node, which exists.
    fn record(&self, node: usize, right: bool) -> usize {
        let bytes = &self.bytes[node * self.record_bits / 4..];
        let byte = |index: usize| usize::from(bytes[index]);
        let from = |index: usize| byte(index) << 16 | byte(index + 1) << 8 | byte(index + 2);
        match (self.record_bits, right) {
            (24, false) => from(0),
            (24, true) => from(3),
            // The byte between has the upper four bits of both.
            (28, false) => (byte(3) >> 4) << 24 | from(0),
            (28, true) => (byte(3) & 0x0f) << 24 | from(4),
            (_, false) => byte(0) << 24 | from(1),
            (_, true) => byte(4) << 24 | from(5),
        }
    }

    /// The node where the addresses of IPv4 begin, in a tree of IPv6.
    fn ipv4_start(&self) -> Option<usize> {
        let mut node = 0;
        for _ in 0..96 {
            if node >= self.nodes {
                return None;
            }
            node = self.record(node, false);
        }
        (node < self.nodes).then_some(node)
    }

    /// Gives each leaf to `take`: network, length, where its record is, where the leaf is.
    fn walk(
        &self,
        mut take: impl FnMut(u128, u8, usize, usize) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let bits = if self.v4 { 32 } else { 128 };
        let ipv4_start = if self.v4 { None } else { self.ipv4_start() };
        let mut steps = 2 * self.nodes + 512;
        let mut open = Vec::new();
        if self.nodes > 0 {
            open.push((0_usize, 0_u128, 0_u8));
        }
        while let Some((node, network, depth)) = open.pop() {
            // The addresses of IPv4 stand once more under 2002::/16 and others, by a second way to
            // the same node. They are no networks of their own.
            if Some(node) == ipv4_start && !(network == 0 && depth == 96) {
                continue;
            }
            let place = node * self.record_bits / 4;
            let wrong = |what| Err(Trouble::byte(place, Fault::Malformed(what)));
            steps = match steps.checked_sub(1) {
                Some(steps) if depth < bits => steps,
                _ => return wrong("the search tree has a loop"),
            };
            for right in [true, false] {
                let record = self.record(node, right);
                let network = if right {
                    network | 1 << (127 - depth)
                } else {
                    network
                };
                if record < self.nodes {
                    open.push((record, network, depth + 1));
                } else if record > self.nodes {
                    match (record - self.nodes).checked_sub(SEPARATOR) {
                        Some(offset) => take(network, depth + 1, self.data + offset, place)?,
                        None => {
                            return wrong("a leaf of the search tree points between tree and data");
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Which records have the code. Many leaves share a record, so each is decoded once.
struct Records<'a> {
    data: Data<'a>,
    selector: Option<&'a Selector>,
    wanted: HashMap<usize, bool>,
    codes: Codes,
}

impl Records<'_> {
    fn wanted(&mut self, record: usize, place: usize) -> Result<bool, Trouble> {
        if let Some(wanted) = self.wanted.get(&record) {
            return Ok(*wanted);
        }
        if record >= self.data.end {
            return Err(Trouble::byte(
                place,
                Fault::Malformed("a leaf of the search tree points beyond the data"),
            ));
        }
        let wanted = self.decode(record)?;
        self.wanted.insert(record, wanted);
        Ok(wanted)
    }

    fn decode(&mut self, record: usize) -> Result<bool, Trouble> {
        match self.data.value(record)? {
            (Kind::Text(code), _) => Ok(self.is_code(&code)),
            (Kind::Array(count), mut at) => {
                let mut wanted = false;
                for _ in 0..count {
                    if let (Kind::Text(code), _) = self.data.value(at)? {
                        wanted |= self.is_code(&code);
                    }
                    at = self.data.skip(at)?;
                }
                Ok(wanted)
            }
            (Kind::Map(_), _) => {
                for country in ["country", "registered_country"] {
                    if let Some(at) = self.data.field(record, country)?
                        && let (Kind::Map(_), _) = self.data.value(at)?
                        && let Some(at) = self.data.field(at, "iso_code")?
                        && let (Kind::Text(code), _) = self.data.value(at)?
                    {
                        return Ok(self.is_code(&code));
                    }
                }
                if let Some(at) = self.data.field(record, "autonomous_system_number")?
                    && let (Kind::Number(number), _) = self.data.value(at)?
                {
                    return Ok(self.is_code(&format!("AS{number}")));
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn is_code(&mut self, code: &str) -> bool {
        self.codes.note(code);
        self.selector
            .is_some_and(|selector| selector.code.eq_ignore_ascii_case(code))
    }
}

/// A value's own part: of maps and arrays how many elements follow.
enum Kind {
    Text(String),
    Number(u64),
    Map(usize),
    Array(usize),
    Other,
}

/// The data section, or the metadata.
struct Data<'a> {
    bytes: &'a [u8],
    /// Where pointers are counted from.
    start: usize,
    end: usize,
    /// How many values may still be read. Pointers could have the same ones read again and again.
    steps: usize,
}

/// Deeper values than this no database has.
const DEEPEST: usize = 32;

impl Data<'_> {
    fn malformed<T>(&self, at: usize, what: &'static str) -> Result<T, Trouble> {
        Err(Trouble::byte(at, Fault::Malformed(what)))
    }

    fn take(&self, at: usize, count: usize) -> Result<&[u8], Trouble> {
        at.checked_add(count)
            .filter(|end| *end <= self.end)
            .and_then(|end| self.bytes.get(at..end))
            .ok_or_else(|| Trouble::byte(self.end, Fault::Cut("a record")))
    }

    fn number(&self, at: usize, count: usize) -> Result<usize, Trouble> {
        Ok(self
            .take(at, count)?
            .iter()
            .fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// The type of the value at `at`, its size, and where it goes on.
    fn control(&mut self, at: usize) -> Result<(u8, usize, usize), Trouble> {
        self.steps = match self.steps.checked_sub(1) {
            Some(steps) => steps,
            None => return self.malformed(at, "its records point to one another without end"),
        };
        let control = self.take(at, 1)?[0];
        let (mut kind, mut next) = (control >> 5, at + 1);
        if kind == 1 {
            return Ok((1, usize::from(control & 0x1f), next));
        }
        if kind == 0 {
            kind = self.take(next, 1)?[0].saturating_add(7);
            next += 1;
        }
        let size = usize::from(control & 0x1f);
        Ok(match size {
            29 => (kind, 29 + self.number(next, 1)?, next + 1),
            30 => (kind, 285 + self.number(next, 2)?, next + 2),
            31 => (kind, 65_821 + self.number(next, 3)?, next + 3),
            _ => (kind, size, next),
        })
    }

    /// Where a pointer points, and where what follows it begins.
    fn pointer(&self, size: usize, next: usize) -> Result<(usize, usize), Trouble> {
        let high = size & 7;
        let (offset, length) = match size >> 3 {
            0 => (high << 8 | self.number(next, 1)?, 1),
            1 => ((high << 16 | self.number(next, 2)?) + 2048, 2),
            2 => ((high << 24 | self.number(next, 3)?) + 526_336, 3),
            _ => (self.number(next, 4)?, 4),
        };
        Ok((self.start + offset, next + length))
    }

    /// Follows a pointer, which points to no other pointer.
    fn behind_pointer(&mut self, at: usize) -> Result<usize, Trouble> {
        let (kind, size, next) = self.control(at)?;
        if kind != 1 {
            Ok(at)
        } else {
            Ok(self.pointer(size, next)?.0)
        }
    }

    /// The value at `at`, or that a pointer there points to, and where its elements begin.
    fn value(&mut self, at: usize) -> Result<(Kind, usize), Trouble> {
        let at = self.behind_pointer(at)?;
        let (kind, size, next) = self.control(at)?;
        let value = match kind {
            2 => {
                // Codes and keys are short; a long text is none of them.
                let text = self.take(next, size)?;
                let short = &text[..text.len().min(256)];
                Kind::Text(String::from_utf8_lossy(short).into_owned())
            }
            5 | 6 | 9 if size <= 8 => Kind::Number(self.number(next, size)? as u64),
            7 => Kind::Map(size),
            11 => Kind::Array(size),
            1 => return self.malformed(at, "a pointer points to a pointer"),
            _ => Kind::Other,
        };
        Ok((value, next))
    }

    /// Where the value of a key is, in the map at `at`.
    fn field(&mut self, at: usize, key: &str) -> Result<Option<usize>, Trouble> {
        let (Kind::Map(count), mut next) = self.value(at)? else {
            return self.malformed(at, "a record is no map");
        };
        for _ in 0..count {
            let here = matches!(self.value(next)?, (Kind::Text(text), _) if text == key);
            next = self.skip(next)?;
            if here {
                return Ok(Some(next));
            }
            next = self.skip(next)?;
        }
        Ok(None)
    }

    /// Where the value after the one at `at` begins.
    fn skip(&mut self, mut at: usize) -> Result<usize, Trouble> {
        // Elements that are still to be skipped, for each level.
        let mut open: Vec<usize> = Vec::new();
        loop {
            let (kind, size, next) = self.control(at)?;
            let elements = match kind {
                7 => size * 2,
                11 => size,
                _ => 0,
            };
            at = match kind {
                1 => self.pointer(size, next)?.1,
                7 | 11 | 14 => next,
                _ => self.take(next, size).map(|_| next + size)?,
            };
            if elements > 0 {
                if open.len() == DEEPEST {
                    return self.malformed(at, "its records are too deep");
                }
                open.push(elements);
                continue;
            }
            loop {
                match open.last_mut() {
                    None => return Ok(at),
                    Some(1) => drop(open.pop()),
                    Some(more) => {
                        *more -= 1;
                        break;
                    }
                }
            }
        }
    }
}
