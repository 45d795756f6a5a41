//! How a list is named: a file, and in a file of many lists the one that is meant.
//!
//! ```text
//! china_ip_list.txt              the whole file
//! geoip.dat:cn                   the list `cn` of the file
//! geoip.dat:!cn                  everything but that
//! geosite.dat:google@cn          of the list `google` what has the attribute `cn`
//! -                              standard input
//! ```

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The path that stands for standard input.
pub const STANDARD_INPUT: &str = "-";

/// A list as it is named: `PATH`, `PATH:CODE` or `PATH:CODE@ATTRIBUTE`.
///
/// Which of them it is is found out when the list is read: the path of a file that exists may hold a
/// colon itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(PathBuf);

impl Source {
    /// The list that is named so; relative paths start at the current folder.
    #[must_use]
    pub fn new(named: impl Into<PathBuf>) -> Self {
        Self(named.into())
    }

    /// As it was named.
    #[must_use]
    pub fn named(&self) -> &Path {
        &self.0
    }

    /// The file and the list in it. `exists` tells whether there is such a file.
    #[must_use]
    pub fn resolve(&self, exists: impl Fn(&Path) -> bool) -> (&Path, Option<Selector>) {
        let bytes = self.0.as_os_str().as_bytes();
        let name = bytes
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        let Some(colon) = bytes[name..].iter().rposition(|byte| *byte == b':') else {
            return (&self.0, None);
        };
        // Nothing before the colon is no file, and nothing after it is no code.
        let colon = name + colon;
        if colon == name || exists(&self.0) {
            return (&self.0, None);
        }
        let file = Path::new(OsStr::from_bytes(&bytes[..colon]));
        let selector = Selector::new(&String::from_utf8_lossy(&bytes[colon + 1..]));
        (file, Some(selector))
    }
}

impl FromStr for Source {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::new(text))
    }
}

impl From<PathBuf> for Source {
    fn from(named: PathBuf) -> Self {
        Self(named)
    }
}

impl From<OsString> for Source {
    fn from(named: OsString) -> Self {
        Self(named.into())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which of the lists in a file is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// All addresses but those of the list (`!CODE`).
    pub negated: bool,
    /// The code, attributes included. Case does not count.
    pub code: String,
}

impl Selector {
    /// Takes what stands behind the colon.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let plain = text.strip_prefix('!');
        Self {
            negated: plain.is_some(),
            code: plain.unwrap_or(text).to_owned(),
        }
    }

    /// The code, and the attributes behind it (`CODE@ATTRIBUTE@ATTRIBUTE`).
    pub(super) fn parts(&self) -> (&str, Vec<&str>) {
        let mut parts = self.code.split('@');
        (parts.next().unwrap_or(""), parts.collect())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.negated { "!" } else { "" }, self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str, there: &[&str]) -> (String, Option<String>) {
        let source: Source = text.parse().unwrap();
        assert_eq!(source.to_string(), text);
        let (file, selector) =
            source.resolve(|path| there.iter().any(|name| Path::new(name) == path));
        (
            file.display().to_string(),
            selector.map(|selector| selector.to_string()),
        )
    }

    #[test]
    fn the_code_stands_behind_the_last_colon() {
        for (text, file, code) in [
            ("list.txt", "list.txt", None),
            ("geoip.dat:cn", "geoip.dat", Some("cn")),
            ("geoip.dat:!cn", "geoip.dat", Some("!cn")),
            (
                "/a:b/geosite.dat:google@cn",
                "/a:b/geosite.dat",
                Some("google@cn"),
            ),
            ("/a:b/list.txt", "/a:b/list.txt", None),
            (
                "a:b.dat:geolocation-!cn",
                "a:b.dat",
                Some("geolocation-!cn"),
            ),
            (":cn", ":cn", None),
            ("-:cn", "-", Some("cn")),
        ] {
            assert_eq!(
                resolved(text, &[]),
                (file.into(), code.map(Into::into)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_file_with_a_colon_in_its_name_is_found() {
        assert_eq!(resolved("a:cn", &["a:cn", "a"]), ("a:cn".into(), None));
        assert_eq!(
            resolved("a:b:cn", &["a:b"]),
            ("a:b".into(), Some("cn".into()))
        );
    }

    #[test]
    fn attributes_follow_the_code() {
        let selector = Selector::new("google@cn@!ads");
        assert_eq!(selector.parts(), ("google", vec!["cn", "!ads"]));
        assert!(Selector::new("!cn").negated);
    }
}
