//! DNS messages as bytes (RFC 1035 section 4, RFC 6891).
//!
//! What a splitting resolver hands on it need not understand. A message is walked once, to find its question, the
//! places of its TTLs and its addresses, and stays as it came: so records of unknown types pass unharmed
//! (RFC 3597), and an answer out of the cache costs a copy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a header.
pub const HEADER: usize = 12;
/// The largest message, in bytes.
pub const LARGEST: usize = u16::MAX as usize;
/// The longest name, in bytes (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 255;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const AD: u16 = 0x0020;
const CD: u16 = 0x0010;
const CODE: u16 = 0x000f;
/// "DNSSEC OK", in the TTL field of an OPT record (RFC 3225).
const DO: u16 = 0x8000;

/// Record types that something is done about. All others are numbers that pass.
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// IPv6 address (RFC 3596).
    pub const AAAA: u16 = 28;
    /// Not a record: the EDNS part of a message.
    pub const OPT: u16 = 41;
    /// The first of the types that are no data but requests (RFC 6895 section 3.1): TKEY, TSIG, IXFR, AXFR.
    pub const TKEY: u16 = 249;
    /// The last of them that is refused.
    pub const AXFR: u16 = 252;
    /// All records of a name.
    pub const ANY: u16 = 255;
}

/// Response codes (RFC 1035 section 4.1.1, RFC 6891 section 6.1.3).
pub mod code {
    /// An answer, maybe empty.
    pub const NO_ERROR: u16 = 0;
    /// The question is malformed.
    pub const FORM_ERR: u16 = 1;
    /// The server failed.
    pub const SERV_FAIL: u16 = 2;
    /// There is no such name.
    pub const NX_DOMAIN: u16 = 3;
    /// The server does not do this.
    pub const NOT_IMP: u16 = 4;
    /// The version of EDNS is not known.
    pub const BAD_VERS: u16 = 16;
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name in wire form without compression, in the letters of the client.
    pub name: Box<[u8]>,
    /// The record type.
    pub kind: u16,
    /// The class, 1 for the Internet.
    pub class: u16,
}

impl Question {
    /// The name as text: small letters, no dot at the end, bytes that are no letter, digit, `-` or `_` escaped
    /// (RFC 1035 section 5.1). The root is empty.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(self.name.len());
        let mut at = 0;
        while let Some(length) = self.name.get(at).copied().filter(|length| *length > 0) {
            if at > 0 {
                text.push('.');
            }
            let label = &self.name[at + 1..at + 1 + usize::from(length)];
            for byte in label {
                match byte.to_ascii_lowercase() {
                    plain @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') => text.push(plain.into()),
                    other => text.push_str(&format!("\\{other:03}")),
                }
            }
            at += 1 + usize::from(length);
        }
        text
    }

    /// The name in small letters.
    #[must_use]
    pub fn lower(&self) -> Box<[u8]> {
        // Lengths of labels are at most 63, so no letter is among them.
        self.name.to_ascii_lowercase().into()
    }
}

/// What a question says about EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP answer that the client takes.
    pub size: u16,
    /// The client wants DNSSEC's records.
    pub dnssec_ok: bool,
}

/// A client's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Its number.
    pub id: u16,
    flags: u16,
    /// What is asked.
    pub question: Question,
    /// Missing if the client does not speak EDNS.
    pub edns: Option<Edns>,
}

/// Why a question is not looked into, and the answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is no question, or too short for one.
    Silence,
    /// The answer that tells.
    Answer(Vec<u8>),
}

impl Query {
    /// Reads what a client sent.
    ///
    /// # Errors
    /// [`Unfit`]: a message without a whole header, or one that is an answer itself, gets none, lest two servers
    /// answer each other for ever.
    pub fn parse(bytes: &[u8]) -> Result<Self, Unfit> {
        let mut reader = Reader { bytes, at: 0 };
        let header = Header::read(&mut reader).ok_or(Unfit::Silence)?;
        if header.flags & QR != 0 {
            return Err(Unfit::Silence);
        }
        let refuse = |code| Unfit::Answer(bare(header.id, header.flags, code));
        if header.flags & OPCODE != 0 {
            return Err(refuse(code::NOT_IMP));
        }
        // One question a message: RFC 9619.
        if header.counts[0] != 1 {
            return Err(refuse(code::FORM_ERR));
        }
        let question = reader.question().ok_or_else(|| refuse(code::FORM_ERR))?;
        let mut edns = None;
        for _ in 0..header.records() {
            let record = reader.record().ok_or_else(|| refuse(code::FORM_ERR))?;
            if record.kind == kind::OPT && edns.replace(record).is_some() {
                return Err(refuse(code::FORM_ERR));
            }
        }
        if question.kind == kind::OPT {
            return Err(refuse(code::FORM_ERR));
        }
        let query = Self {
            id: header.id,
            flags: header.flags,
            question,
            edns: edns.as_ref().map(|record| Edns {
                size: record.class,
                dnssec_ok: record.ttl as u16 & DO != 0,
            }),
        };
        // The second byte of the TTL field is the version.
        if edns.is_some_and(|record| (record.ttl >> 16) as u8 != 0) {
            return Err(Unfit::Answer(query.empty(code::BAD_VERS)));
        }
        if (kind::TKEY..=kind::AXFR).contains(&query.question.kind) {
            return Err(Unfit::Answer(query.empty(code::NOT_IMP)));
        }
        Ok(query)
    }

    /// The client wants DNSSEC's records.
    #[must_use]
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The client checks signatures itself (RFC 4035 section 3.2.2).
    #[must_use]
    pub fn checking_disabled(&self) -> bool {
        self.flags & CD != 0
    }

    /// An answer without records.
    #[must_use]
    pub fn empty(&self, code: u16) -> Vec<u8> {
        let mut bytes = bare(self.id, self.flags, code & CODE);
        bytes[5] = 1;
        put_question(&mut bytes, &self.question);
        self.put_edns(&mut bytes, code);
        bytes
    }

    /// An answer without records that says: ask again over TCP.
    #[must_use]
    pub fn truncated(&self, code: u16) -> Vec<u8> {
        let mut bytes = self.empty(code);
        bytes[2] |= (TC >> 8) as u8;
        bytes
    }

    /// Makes the answer out of a response. Each TTL goes through `ttl`.
    #[must_use]
    pub fn answer(&self, response: &Response, ttl: impl Fn(u32) -> u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(response.bytes.len() + OPT_LENGTH);
        bytes.extend_from_slice(&response.bytes);
        let mut flags = (response.flags & CODE) | QR | RA | (self.flags & (RD | CD));
        // The bit is for those who know it: RFC 6840 section 5.7.
        if self.flags & AD != 0 || self.dnssec_ok() {
            flags |= response.flags & AD;
        }
        put(&mut bytes, 0, self.id);
        put(&mut bytes, 2, flags);
        // The client may compare letter by letter. The lengths are equal, or it would be another question.
        bytes[HEADER..HEADER + self.question.name.len()].copy_from_slice(&self.question.name);
        for at in &response.ttls {
            let at = usize::from(*at);
            let field = &mut bytes[at..at + 4];
            let old = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
            field.copy_from_slice(&ttl(sound(old)).to_be_bytes());
        }
        self.put_edns(&mut bytes, response.flags & CODE);
        bytes
    }

    fn put_edns(&self, bytes: &mut Vec<u8>, code: u16) {
        if let Some(edns) = self.edns {
            put_opt(bytes, OWN_SIZE, code, edns.dnssec_ok, 0);
        }
    }
}

/// The largest UDP message that is sent, and announced, in bytes: it passes every IPv6 link unfragmented.
pub const OWN_SIZE: u16 = 1232;
/// Bytes of an OPT record without options.
const OPT_LENGTH: usize = 11;

/// A question for an upstream.
///
/// `pad` fills it up to a multiple of 128 bytes, so that its length tells nothing to who sees it encrypted
/// (RFC 8467 section 4.1).
#[must_use]
pub fn ask(id: u16, question: &Question, dnssec_ok: bool, no_checks: bool, pad: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    // "AD" in a question asks for "AD" in the answer: RFC 6840 section 5.7.
    let flags = RD | AD | if no_checks { CD } else { 0 };
    for number in [id, flags, 1, 0, 0, 0] {
        bytes.extend(number.to_be_bytes());
    }
    put_question(&mut bytes, question);
    let pad = pad.then(|| (bytes.len() + OPT_LENGTH + 4).next_multiple_of(128));
    let padding = pad.map_or(0, |full| full - bytes.len() - OPT_LENGTH);
    put_opt(&mut bytes, OWN_SIZE, 0, dnssec_ok, padding);
    bytes
}

fn bare(id: u16, flags: u16, code: u16) -> Vec<u8> {
    let flags = QR | RA | (flags & (OPCODE | RD | CD)) | code;
    let numbers = [id, flags, 0, 0, 0, 0].map(u16::to_be_bytes);
    numbers.concat()
}

fn put_question(bytes: &mut Vec<u8>, question: &Question) {
    bytes.extend_from_slice(&question.name);
    bytes.extend(question.kind.to_be_bytes());
    bytes.extend(question.class.to_be_bytes());
}

/// `padding`: bytes of the padding option (RFC 7830), its header of 4 included; 0 for none.
fn put_opt(bytes: &mut Vec<u8>, size: u16, code: u16, dnssec_ok: bool, padding: usize) {
    bytes.push(0);
    let flags = if dnssec_ok { DO } else { 0 };
    // The upper bits of the response code are the upper byte of the TTL field.
    for number in [kind::OPT, size, (code >> 4) << 8, flags, padding as u16] {
        bytes.extend(number.to_be_bytes());
    }
    if padding > 0 {
        bytes.extend(12_u16.to_be_bytes());
        bytes.extend((padding as u16 - 4).to_be_bytes());
        bytes.resize(bytes.len() + padding - 4, 0);
    }
    let additional = u16::from_be_bytes([bytes[10], bytes[11]]) + 1;
    put(bytes, 10, additional);
}

fn put(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

/// A TTL with the highest bit set counts as 0 (RFC 2181 section 8).
fn sound(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

/// An upstream's answer, checked and without its EDNS part, which is between neighbours.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    bytes: Vec<u8>,
    flags: u16,
    /// Where the TTLs are.
    ttls: Vec<u16>,
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
        let mut reader = Reader {
            bytes: &bytes,
            at: 0,
        };
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

struct Header {
    id: u16,
    flags: u16,
    /// Questions, answers, authority, additional.
    counts: [u16; 4],
}

impl Header {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut number = || reader.number();
        Some(Self {
            id: number()?,
            flags: number()?,
            counts: [number()?, number()?, number()?, number()?],
        })
    }

    fn records(&self) -> usize {
        self.counts[1..]
            .iter()
            .map(|count| usize::from(*count))
            .sum()
    }
}

struct Record<'m> {
    kind: u16,
    class: u16,
    ttl: u32,
    ttl_at: usize,
    data: &'m [u8],
}

/// Reads a message from front to back. Pointers are not followed, so there is no loop to fall into.
struct Reader<'m> {
    bytes: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn take(&mut self, length: usize) -> Option<&'m [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Walks over a name. True if it is whole here, false if it ends in a pointer.
    fn name(&mut self) -> Option<bool> {
        let start = self.at;
        loop {
            let length = usize::from(self.take(1)?[0]);
            match length {
                0 => return Some(true),
                1..=63 => self.take(length).map(drop)?,
                0xc0.. => return self.take(1).map(|_| false),
                _ => return None,
            }
            // Only the byte of the root may follow.
            if self.at - start >= LONGEST_NAME {
                return None;
            }
        }
    }

    fn question(&mut self) -> Option<Question> {
        let start = self.at;
        // The first name of a message has nothing to point to.
        if !self.name()? {
            return None;
        }
        let name = self.bytes[start..self.at].into();
        let (kind, class) = (self.number()?, self.number()?);
        Some(Question { name, kind, class })
    }

    fn record(&mut self) -> Option<Record<'m>> {
        self.name()?;
        let (kind, class, ttl_at) = (self.number()?, self.number()?, self.at);
        let ttl = u32::from(self.number()?) << 16 | u32::from(self.number()?);
        let length = self.number()?;
        let data = self.take(length.into())?;
        Some(Record {
            kind,
            class,
            ttl,
            ttl_at,
            data,
        })
    }
}
