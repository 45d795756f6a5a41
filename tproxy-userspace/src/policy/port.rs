//! Ranges of ports as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::prefix::excerpt;

/// A port, or a range of them. In host byte order; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is no range of ports. `Display` says what is wrong and, after a semicolon, what to write instead;
/// [`message`](Self::message) and [`help`](Self::help) give the two halves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}; {}", self.message(), self.help())]
pub enum PortError {
    /// Not a port, or one end of a range is none.
    Port(String),
    /// The last port lies before the first.
    Backwards(u16, u16),
}

impl PortError {
    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Port(text) => format!("`{}` is not a port (0 to 65535)", excerpt(text)),
            Self::Backwards(..) => "the range ends before it begins".to_owned(),
        }
    }

    /// What to write instead.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Port(_) => "write a port like 443, or a range like 1000-2000".to_owned(),
            Self::Backwards(first, last) => format!("write {last}-{first}"),
        }
    }
}

impl PortRange {
    /// From the first to the last; None if they are the wrong way round.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The first and the last port of it.
    #[must_use]
    pub fn ends(self) -> (u16, u16) {
        (self.first, self.last)
    }

    /// Is this port in it?
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }
}

impl FromStr for PortRange {
    type Err = PortError;

    /// Reads `443` or `1000-2000`.
    fn from_str(text: &str) -> Result<Self, PortError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        Self::new(first, last).ok_or(PortError::Backwards(first, last))
    }
}

/// Decimal digits only: `u16::from_str` would take `+80`.
fn port(text: &str) -> Result<u16, PortError> {
    let text = text.trim();
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    plain
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| PortError::Port(text.to_owned()))
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last {
            return write!(f, "{first}");
        }
        write!(f, "{first}-{last}")
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_ports_and_ranges() {
        for (text, shown, inside, outside) in [
            ("443", "443", 443, 444),
            ("1000 - 2000", "1000-2000", 2000, 2001),
            ("0-65535", "0-65535", 0, 0),
            ("7-7", "7", 7, 6),
        ] {
            let range: PortRange = text.parse().unwrap();
            assert_eq!(range.to_string(), shown);
            assert!(range.contains(inside));
            assert_eq!(range.contains(outside), inside == outside);
        }
    }

    #[test]
    fn refuses_with_a_remedy() {
        let help = "write a port like 443, or a range like 1000-2000";
        for (text, error) in [
            (
                "https",
                format!("`https` is not a port (0 to 65535); {help}"),
            ),
            (
                "65536",
                format!("`65536` is not a port (0 to 65535); {help}"),
            ),
            ("+80", format!("`+80` is not a port (0 to 65535); {help}")),
            ("1-2-3", format!("`2-3` is not a port (0 to 65535); {help}")),
            ("1-", format!("`` is not a port (0 to 65535); {help}")),
            (
                "2000-1000",
                "the range ends before it begins; write 1000-2000".to_owned(),
            ),
        ] {
            assert_eq!(text.parse::<PortRange>().unwrap_err().to_string(), error);
        }
    }
}
