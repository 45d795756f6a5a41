//! What the readers collect: entries, and what is wrong.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tproxy_common::abi::BYPASS_CAPACITY;

use super::{EntryError, Fault, Format, Place};
use crate::policy::aggregate;
use crate::policy::domain::{Domain, name};
use crate::policy::prefix::{self, excerpt};
use crate::policy::source::Selector;

/// How many different prefixes the kernel could hold at most.
pub(in crate::policy) const MOST_PREFIXES: usize = 2 * BYPASS_CAPACITY as usize;
/// How many domains a list may hold: far more than the largest in use, and they stay in memory.
const MOST_DOMAINS: usize = 2_000_000;
/// The same for the text of their names, in bytes.
pub(super) const MOST_NAMES: usize = 64 << 20;
/// How many troubles are kept; the others are counted.
const TROUBLES_KEPT: usize = 5;
/// How many codes are remembered for a message.
const CODES_KEPT: usize = 4096;

/// What a list holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Prefixes. Those of a range are the fewest that cover it.
    pub prefixes: Vec<IpNet>,
    /// Domains.
    pub domains: Vec<Domain>,
    /// What stands in the list and is neither: one for each kind.
    pub passed_over: Vec<PassedOver>,
}

/// Entries that are left out because a list of prefixes and domains cannot say what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// What they are, in the plural.
    pub what: &'static str,
    /// How many.
    pub count: usize,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Where; the whole file if there is no place.
    pub place: Option<Place>,
    /// What.
    pub fault: Fault,
}

/// All that is wrong with a list. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Troubles {
    /// The first few, in order.
    pub list: Vec<Trouble>,
    /// How many more there are.
    pub more: usize,
}

impl Trouble {
    pub(super) fn whole(fault: Fault) -> Self {
        Self { place: None, fault }
    }

    pub(super) fn line(line: usize, fault: Fault) -> Self {
        Self {
            place: Some(Place::Line(line)),
            fault,
        }
    }

    pub(super) fn byte(at: usize, fault: Fault) -> Self {
        Self {
            place: Some(Place::Byte(at)),
            fault,
        }
    }

    /// An entry that stands at this byte and is none.
    pub(super) fn entry(at: usize, text: String, reason: impl Into<EntryError>) -> Self {
        let reason = reason.into();
        Self::byte(at, Fault::Entry { text, reason })
    }

    /// The same, of data that was unpacked.
    pub(super) fn unpacked(self) -> Self {
        let place = self.place.map(|place| match place {
            Place::Byte(at) => Place::UnpackedByte(at),
            other => other,
        });
        Self { place, ..self }
    }
}

impl Troubles {
    /// How many there are in all.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.len() + self.more
    }
}

impl From<Trouble> for Troubles {
    fn from(trouble: Trouble) -> Self {
        Self {
            list: vec![trouble],
            more: 0,
        }
    }
}

/// A list while it is read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    entries: Entries,
    troubles: Vec<Trouble>,
    more: usize,
    /// Bytes of names so far.
    names: usize,
    full: Option<Fault>,
}

impl Reading {
    pub fn prefix(&mut self, prefix: IpNet) {
        if self.full.is_some() {
            return;
        }
        let prefixes = &mut self.entries.prefixes;
        prefixes.push(prefix);
        // A range may be hundreds of prefixes, so a hostile list could grow far beyond its size.
        if prefixes.len() > 2 * MOST_PREFIXES {
            *prefixes = aggregate::aggregate(prefixes);
            if prefixes.len() > MOST_PREFIXES {
                self.full = Some(Fault::TooManyPrefixes(MOST_PREFIXES));
            }
        }
    }

    /// Both ends belong to the range.
    pub fn range(&mut self, first: IpAddr, last: IpAddr) -> Result<(), EntryError> {
        if first.is_ipv4() != last.is_ipv4() {
            return Err(EntryError::Families(first, last));
        }
        if first > last {
            return Err(EntryError::Backwards(first, last));
        }
        for prefix in aggregate::range(first, last) {
            self.prefix(prefix);
        }
        Ok(())
    }

    /// A prefix, an address, or a range with a dash.
    pub fn prefix_text(&mut self, text: &str) -> Result<(), EntryError> {
        // `-` occurs in no address, so it always means a range.
        if let Some((first, last)) = text.split_once('-') {
            let end = |text: &str| {
                let text = text.trim();
                text.parse().map_err(|_| EntryError::End(excerpt(text)))
            };
            return self.range(end(first)?, end(last)?);
        }
        self.prefix(prefix::parse(text)?);
        Ok(())
    }

    /// A prefix in a format whose own programs drop the bits behind its length, so lists have some.
    pub fn masked_prefix_text(&mut self, text: &str) -> Result<(), EntryError> {
        match prefix::parse(text) {
            Err(prefix::PrefixError::HostBits { given }) => self.prefix(given.trunc()),
            other => self.prefix(other?),
        }
        Ok(())
    }

    pub fn domain(&mut self, entry: Domain) {
        self.names += entry.text().len();
        self.entries.domains.push(entry);
        if self.names > MOST_NAMES || self.entries.domains.len() > MOST_DOMAINS {
            self.full = Some(too_many_domains());
        }
    }

    pub fn suffix(&mut self, text: &str) -> Result<(), EntryError> {
        self.domain(Domain::Suffix(name::normalize(text)?));
        Ok(())
    }

    pub fn below(&mut self, text: &str) -> Result<(), EntryError> {
        self.domain(Domain::Below(name::normalize(text)?));
        Ok(())
    }

    pub fn full_name(&mut self, text: &str) -> Result<(), EntryError> {
        self.domain(Domain::Full(name::normalize(text)?));
        Ok(())
    }

    pub fn keyword(&mut self, text: &str) -> Result<(), EntryError> {
        if text.is_empty() {
            return Err(EntryError::Line(
                "a keyword without a letter would match every name; leave it out",
            ));
        }
        self.domain(Domain::Keyword(text.to_lowercase()));
        Ok(())
    }

    pub fn regex(&mut self, text: &str) -> Result<(), EntryError> {
        if text.is_empty() {
            return Err(EntryError::Line(
                "an empty expression would match every name; leave it out",
            ));
        }
        self.domain(Domain::Regex(text.to_owned()));
        Ok(())
    }

    /// Names that stand alone, and names whose own are those below. A name that is among both is one entry.
    pub fn names(&mut self, alone: Vec<String>, mut below: HashSet<String>) {
        for name in alone {
            let both = below.remove(&name);
            self.domain(if both {
                Domain::Suffix(name)
            } else {
                Domain::Full(name)
            });
        }
        let mut below: Vec<String> = below.into_iter().collect();
        below.sort_unstable();
        for name in below {
            self.domain(Domain::Below(name));
        }
    }

    /// Takes what another holds, which has room.
    pub fn append(&mut self, other: Self) {
        for prefix in other.entries.prefixes {
            self.prefix(prefix);
        }
        for entry in other.entries.domains {
            self.domain(entry);
        }
        for kind in other.entries.passed_over {
            self.pass_over_many(kind.what, kind.count);
        }
    }

    pub fn pass_over(&mut self, what: &'static str) {
        self.pass_over_many(what, 1);
    }

    fn pass_over_many(&mut self, what: &'static str, count: usize) {
        let kinds = &mut self.entries.passed_over;
        match kinds.iter_mut().find(|kind| kind.what == what) {
            Some(kind) => kind.count += count,
            None => kinds.push(PassedOver { what, count }),
        }
    }

    pub fn bad_line(&mut self, line: usize, text: &str, reason: EntryError) {
        let fault = Fault::Entry {
            text: excerpt(text),
            reason,
        };
        if self.troubles.len() < TROUBLES_KEPT {
            self.troubles.push(Trouble::line(line, fault));
        } else {
            self.more += 1;
        }
    }

    /// Takes each line that is more than a comment to `take`, and notes what it says against it.
    pub fn lines(
        &mut self,
        bytes: &[u8],
        comment: fn(&str) -> &str,
        mut take: impl FnMut(&mut Self, &str) -> Result<(), EntryError>,
    ) -> Result<(), Trouble> {
        for (index, line) in text(bytes)?.lines().enumerate() {
            let entry = comment(line).trim();
            if entry.is_empty() {
                continue;
            }
            if let Err(reason) = take(self, entry) {
                self.bad_line(index + 1, entry, reason);
            }
            self.room()
                .map_err(|fault| Trouble::line(index + 1, fault))?;
        }
        Ok(())
    }

    /// Is there room for more?
    pub fn room(&self) -> Result<(), Fault> {
        self.full.clone().map_or(Ok(()), Err)
    }

    /// Is there room for so many more domains?
    pub fn room_for(&self, domains: usize) -> Result<(), Fault> {
        self.room()?;
        if self.entries.domains.len() + domains > MOST_DOMAINS {
            return Err(too_many_domains());
        }
        Ok(())
    }

    pub fn finish(self) -> Result<Entries, Troubles> {
        if let Some(fault) = self.full {
            return Err(Trouble::whole(fault).into());
        }
        if !self.troubles.is_empty() {
            return Err(Troubles {
                list: self.troubles,
                more: self.more,
            });
        }
        let entries = self.entries;
        if entries.prefixes.is_empty()
            && entries.domains.is_empty()
            && entries.passed_over.is_empty()
        {
            return Err(Trouble::whole(Fault::Empty).into());
        }
        Ok(entries)
    }
}

pub(super) fn too_many_domains() -> Fault {
    Fault::TooManyDomains(MOST_DOMAINS, MOST_NAMES >> 20)
}

/// Text without its byte order mark.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Trouble> {
    let text = std::str::from_utf8(bytes).map_err(|no_text| {
        let before = &bytes[..no_text.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Trouble::line(line, Fault::NotText)
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The codes of a file's lists, for messages.
#[derive(Debug, Default)]
pub(super) struct Codes {
    codes: BTreeSet<String>,
    more: bool,
}

impl Codes {
    /// Lists may have any bytes for a code; what is long is none.
    pub fn note(&mut self, code: &str) {
        const LONGEST: usize = 64;
        if code.len() > LONGEST || self.codes.contains(code) {
            return;
        }
        if self.codes.len() < CODES_KEPT {
            self.codes.insert(code.to_owned());
        } else {
            self.more = true;
        }
    }

    /// The error for a code that is not there, or was not named.
    pub fn fault(&self, format: Format, selector: Option<&Selector>) -> Fault {
        let codes = self.sample();
        let Some(selector) = selector else {
            return Fault::CodeMissing { format, codes };
        };
        Fault::CodeUnknown {
            near: self.near(&selector.code),
            code: excerpt(&selector.code),
            codes,
        }
    }

    /// As many as fit a line.
    pub fn sample(&self) -> String {
        const SHOWN: usize = 12;
        if self.codes.is_empty() {
            return "none".to_owned();
        }
        let shown: Vec<String> = self
            .codes
            .iter()
            .take(SHOWN)
            .map(|code| excerpt(code))
            .collect();
        let more = self.codes.len() - shown.len();
        match (more, self.more) {
            (0, _) => shown.join(", "),
            (_, false) => format!("{} and {more} more", shown.join(", ")),
            (_, true) => format!("{} and more", shown.join(", ")),
        }
    }

    /// Up to three codes that were perhaps meant.
    fn near(&self, code: &str) -> Vec<String> {
        const SHOWN: usize = 3;
        let code = code.to_lowercase();
        // No code is so long, and the distance takes quadratic time.
        if code.len() > 64 {
            return Vec::new();
        }
        let mut near: Vec<(usize, &String)> = self
            .codes
            .iter()
            .map(|there| {
                (
                    strsim::damerau_levenshtein(&code, &there.to_lowercase()),
                    there,
                )
            })
            .filter(|(distance, there)| *distance <= (code.len().max(there.len()) / 3).max(1))
            .collect();
        near.sort();
        near.truncate(SHOWN);
        near.into_iter().map(|(_, there)| excerpt(there)).collect()
    }
}
