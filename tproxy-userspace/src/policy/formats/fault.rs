//! What can be wrong with a list.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::Format;
use crate::policy::domain::NameError;
use crate::policy::prefix::PrefixError;

/// Where in a file something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A line, counted from 1.
    Line(usize),
    /// A byte, counted from 0.
    Byte(usize),
    /// A byte of what the file unpacks to, counted from 0.
    UnpackedByte(usize),
}

/// What stands between the file's name and the message.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, ":{line}"),
            Self::Byte(at) => write!(f, ", byte {}", grouped(*at)),
            Self::UnpackedByte(at) => write!(f, ", byte {} of what it unpacks to", grouped(*at)),
        }
    }
}

fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What is wrong with a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Bytes of no known format.
    #[error(
        "it is neither text nor a list format that is known; name a list of prefixes or domains"
    )]
    Unknown,
    /// A compressed file, which no format is.
    #[error("it is a {0} archive; unpack it first")]
    Archive(&'static str),
    /// Bytes that are no UTF-8 where text is expected.
    #[error("it is not UTF-8 text; a prefix list is plain text with one prefix a line")]
    NotText,
    /// Nothing but blank lines and comments, or an empty list.
    #[error("it holds no prefix and no domain; leave the file out if that is intended")]
    Empty,
    /// More prefixes than the kernel could hold.
    #[error(
        "the lists hold more than {0} prefixes, which is all that the kernel half has room for"
    )]
    TooManyPrefixes(usize),
    /// More domains than there is room for.
    #[error("it holds more than {0} domains, or names of more than {1} MiB; use a smaller list")]
    TooManyDomains(usize, usize),
    /// The file ends too early.
    #[error("the file ends within {0}; it is cut off, so fetch it again")]
    Cut(&'static str),
    /// A table says how many rows it has, and has fewer.
    #[error(
        "its first line promises {promised} rows, and there are {found}; it is cut off, so fetch it again"
    )]
    Rows {
        /// What it says.
        promised: usize,
        /// What it has.
        found: usize,
    },
    /// Something that the format does not have.
    #[error("{0}; the file is damaged or made wrongly, so fetch it again")]
    Malformed(&'static str),
    /// A newer version of the format.
    #[error(
        "its version is {found}, and the newest that is known is {known}; make the file for that version"
    )]
    Version {
        /// What the file says.
        found: u64,
        /// What is read here.
        known: u64,
    },
    /// Compressed data that cannot be unpacked.
    #[error("unpacking it failed: {0}; fetch the file again")]
    Unpack(String),
    /// What it unpacks to is far larger than a list.
    #[error("it unpacks to more than {0} MiB, so it is no list")]
    Bomb(usize),
    /// JSON that is none, or has other values than the format.
    #[error("{0}; mend it, or fetch the file again")]
    Json(String),
    /// The file holds many lists, and none was named.
    #[error("{format} holds many lists, so name one, as in `{}`; it has {codes}", .format.example())]
    CodeMissing {
        /// Its format.
        format: Format,
        /// The codes that there are.
        codes: String,
    },
    /// The file holds no such list.
    #[error("it holds no list `{code}`; {}", hint(.near, .codes))]
    CodeUnknown {
        /// What was asked for.
        code: String,
        /// Codes like it.
        near: Vec<String>,
        /// The codes that there are.
        codes: String,
    },
    /// The list has no entry with these attributes.
    #[error("the list `{code}` has no entry with the attribute `{attribute}`; it has {there}")]
    AttributeUnknown {
        /// The list.
        code: String,
        /// What was asked for.
        attribute: String,
        /// The attributes that there are.
        there: String,
    },
    /// A list was named in a file that is one list.
    #[error("{format} is one list without codes; leave out `:{code}`")]
    NoCodes {
        /// Its format.
        format: Format,
        /// What was asked for.
        code: String,
    },
    /// Everything but a list of domains.
    #[error(
        "`!` means all addresses but those of a list, and {0} holds domains; leave out the `!`"
    )]
    NotNegated(Format),
    /// Attributes where none are.
    #[error("only the lists of a geosite.dat have attributes; leave out `@{0}`")]
    NoAttributes(String),
    /// An entry of a text.
    #[error("`{text}`: {reason}")]
    Entry {
        /// The entry.
        text: String,
        /// Why not.
        reason: EntryError,
    },
}

/// Why something in a list is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Neither a prefix nor an address.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// Not a domain name.
    #[error("{0}; write a domain name like example.com")]
    Name(#[from] NameError),
    /// There is more than one word.
    #[error("more than one entry in a line; a comment starts with #, ; or //")]
    Words,
    /// One end of a range is not an address.
    #[error(
        "`{0}` is not an address; a range is written `first-last`, with an address at each end"
    )]
    End(String),
    /// A range from one family to the other.
    #[error("a range cannot begin with {0} and end with {1}, which is of the other address family")]
    Families(IpAddr, IpAddr),
    /// The last address lies before the first.
    #[error("the range ends before it begins; write {1}-{0}")]
    Backwards(IpAddr, IpAddr),
    /// A line that the format does not have.
    #[error("{0}")]
    Line(&'static str),
}

impl Format {
    fn example(self) -> &'static str {
        match self {
            Self::GeoIp => "geoip.dat:cn",
            Self::GeoSite => "geosite.dat:google",
            Self::Delegated => "delegated-apnic-latest:CN",
            _ => "Country.mmdb:CN",
        }
    }
}

fn hint(near: &[String], codes: &str) -> String {
    match near {
        [] => format!("it has {codes}"),
        [one] => format!("did you mean `{one}`?"),
        [others @ .., last] => format!("did you mean `{}` or `{last}`?", others.join("`, `")),
    }
}
