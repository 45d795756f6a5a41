//! Answers of upstreams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::read::{Header, Reader, Record};
use super::{CODE, LARGEST, OPCODE, QR, Question, TC, kind, put};

/// An upstream's answer, checked and without its EDNS part, which is between neighbours.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub(super) bytes: Vec<u8>,
    pub(super) flags: u16,
    /// Where the TTLs are.
    pub(super) ttls: Vec<u16>,
    /// The response code with its upper bits.
    pub code: u16,
    /// The smallest TTL in seconds; `u32::MAX` without a record.
    pub ttl: u32,
    /// For how many seconds the absence of what was asked holds (RFC 2308 section 5). None: not told.
    pub negative_ttl: Option<u32>,
    /// There is a record of what was asked.
    pub is_positive: bool,
    /// The addresses among the answers, in their order, with their TTLs in seconds.
    pub addresses: Vec<(IpAddr, u32)>,
}

/// Why bytes are not the answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The number or the question is another one, or it is no answer at all. It may be forged.
    Foreign,
    /// It is the answer, but cut off: ask over TCP.
    Truncated,
    /// It is the answer, but cannot be read.
    Malformed,
}

impl Response {
    /// Checks that `bytes` are the answer to the question that was asked under this number, and reads them.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn parse(bytes: Vec<u8>, id: u16, question: &Question) -> Result<Self, Mismatch> {
        // No transport carries more, and places of TTLs are kept in 16 bits.
        if bytes.len() > LARGEST {
            return Err(Mismatch::Malformed);
        }
        let mut reader = Reader::new(&bytes);
        let header = Header::read(&mut reader).ok_or(Mismatch::Foreign)?;
        let is_answer = header.id == id && header.flags & (QR | OPCODE) == QR;
        if !is_answer || header.counts[0] != 1 {
            return Err(Mismatch::Foreign);
        }
        let asked = reader.question().ok_or(Mismatch::Foreign)?;
        let same = asked.name.eq_ignore_ascii_case(&question.name)
            && (asked.kind, asked.class) == (question.kind, question.class);
        if !same {
            return Err(Mismatch::Foreign);
        }
        if header.flags & TC != 0 {
            return Err(Mismatch::Truncated);
        }
        let mut found = Self {
            flags: header.flags,
            code: header.flags & CODE,
            ttls: Vec::new(),
            ttl: u32::MAX,
            negative_ttl: None,
            is_positive: false,
            addresses: Vec::new(),
            bytes: Vec::new(),
        };
        let [_, answers, authority, _] = header.counts.map(usize::from);
        let mut cut = None;
        for index in 0..header.records() {
            let start = reader.at;
            let record = reader.record().ok_or(Mismatch::Malformed)?;
            if record.kind == kind::OPT {
                // One, and among the additional records: RFC 6891 section 6.1.1.
                if cut.is_some() || index < answers + authority {
                    return Err(Mismatch::Malformed);
                }
                found.code |= (record.ttl >> 24 << 4) as u16;
                cut = Some((start, index));
                continue;
            }
            // Names behind the OPT record may point to places behind it, so they go with it. They are additional.
            if cut.is_some() {
                continue;
            }
            if index < answers {
                found.take_answer(&record, question)?;
            } else if index < answers + authority {
                found.take_authority(&record);
            }
            found.ttls.push(record.ttl_at as u16);
            found.ttl = found.ttl.min(sound(record.ttl));
        }
        // Bytes behind the last record belong to nothing and are left out.
        let (end, kept) = cut.unwrap_or((reader.at, header.records()));
        found.negative_ttl = found.negative_ttl.map(|ttl| ttl.min(found.ttl));
        found.bytes = bytes;
        found.bytes.truncate(end);
        found.bytes.shrink_to_fit();
        put(&mut found.bytes, 10, (kept - answers - authority) as u16);
        Ok(found)
    }

    fn take_answer(&mut self, record: &Record<'_>, question: &Question) -> Result<(), Mismatch> {
        self.is_positive |= question.kind == kind::ANY || record.kind == question.kind;
        let address: IpAddr = match (record.kind, record.class) {
            (kind::A, 1) => {
                let octets: [u8; 4] = record.data.try_into().map_err(|_| Mismatch::Malformed)?;
                Ipv4Addr::from(octets).into()
            }
            (kind::AAAA, 1) => {
                let octets: [u8; 16] = record.data.try_into().map_err(|_| Mismatch::Malformed)?;
                Ipv6Addr::from(octets).into()
            }
            _ => return Ok(()),
        };
        self.addresses.push((address, sound(record.ttl)));
        Ok(())
    }

    fn take_authority(&mut self, record: &Record<'_>) {
        // The last of the five numbers at its end is the "minimum".
        if let (kind::SOA, Some(minimum)) = (record.kind, record.data.last_chunk::<4>()) {
            let ttl = sound(record.ttl).min(sound(u32::from_be_bytes(*minimum)));
            self.negative_ttl = Some(self.negative_ttl.map_or(ttl, |other| other.min(ttl)));
        }
    }

    /// Bytes that it takes in memory, about.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Self>()
            + self.bytes.capacity()
            + self.ttls.capacity() * size_of::<u16>()
            + self.addresses.capacity() * size_of::<(IpAddr, u32)>()
    }
}

/// A TTL with the highest bit set counts as 0 (RFC 2181 section 8).
pub(super) fn sound(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}
