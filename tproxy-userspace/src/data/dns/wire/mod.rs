//! DNS messages as bytes (RFC 1035 section 4, RFC 6891).
//!
//! What a splitting resolver hands on it need not understand. A message is walked once, to find its question, the
//! places of its TTLs and its addresses, and stays as it came: so records of unknown types pass unharmed
//! (RFC 3597), and an answer out of the cache costs a copy.

mod read;
mod response;

use self::read::{Header, Reader};
use self::response::sound;
pub use self::response::{Mismatch, Response};

/// Bytes of a header.
pub const HEADER: usize = 12;
/// The largest message, in bytes.
pub const LARGEST: usize = u16::MAX as usize;

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
        let mut reader = Reader::new(bytes);
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
        self.put_edns(&mut bytes, 0, code);
        bytes
    }

    /// An answer without records that says: ask again over TCP.
    #[must_use]
    pub fn truncated(&self, code: u16) -> Vec<u8> {
        let mut bytes = self.empty(code);
        bytes[2] |= (TC >> 8) as u8;
        bytes
    }

    /// Makes the answer out of a response, at the end of `output`. Each TTL goes through `ttl`.
    pub fn answer(&self, response: &Response, ttl: impl Fn(u32) -> u32, output: &mut Vec<u8>) {
        let start = output.len();
        output.reserve(response.bytes.len() + OPT_LENGTH);
        output.extend_from_slice(&response.bytes);
        let bytes = &mut output[start..];
        let mut flags = (response.flags & CODE) | QR | RA | (self.flags & (RD | CD));
        // The bit is for those who know it: RFC 6840 section 5.7.
        if self.flags & AD != 0 || self.dnssec_ok() {
            flags |= response.flags & AD;
        }
        put(bytes, 0, self.id);
        put(bytes, 2, flags);
        // The client may compare letter by letter. The lengths are equal, or it would be another question.
        bytes[HEADER..HEADER + self.question.name.len()].copy_from_slice(&self.question.name);
        for at in &response.ttls {
            let at = usize::from(*at);
            let field = &mut bytes[at..at + 4];
            let old = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
            field.copy_from_slice(&ttl(sound(old)).to_be_bytes());
        }
        self.put_edns(output, start, response.flags & CODE);
    }

    /// For the message that begins at `start`.
    fn put_edns(&self, bytes: &mut Vec<u8>, start: usize, code: u16) {
        if let Some(edns) = self.edns {
            put_opt(bytes, OWN_SIZE, code, edns.dnssec_ok, 0);
            count_opt(&mut bytes[start..]);
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
    count_opt(&mut bytes);
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
}

/// One additional record more.
fn count_opt(bytes: &mut [u8]) {
    let additional = u16::from_be_bytes([bytes[10], bytes[11]]) + 1;
    put(bytes, 10, additional);
}

fn put(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}
