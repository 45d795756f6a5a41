//! Which upstreams are asked for a name.

#[cfg(test)]
use std::collections::HashSet;
use std::fmt;

use serde::Serialize;

/// The upstreams that are asked for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Those that are asked without the outbound.
    Direct,
    /// Those that are asked through the outbound.
    Proxy,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Proxy => "proxy",
        })
    }
}

/// Chooses the group that answers for a name.
pub trait Choose: Send + Sync + fmt::Debug {
    /// `name` is in small letters without a dot at the end; empty for the root. Bytes that are no letter, digit,
    /// `-` or `_` are escaped as `\DDD` (RFC 1035 section 5.1).
    fn group(&self, name: &str) -> Group;
}

/// The names that go direct in a test: each with all names below it. All others go to the proxy group.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub struct Suffixes(HashSet<Box<str>>);

#[cfg(test)]
impl<T: AsRef<str>> FromIterator<T> for Suffixes {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> Self {
        let plain = |name: T| {
            let name = name.as_ref().trim_matches('.').to_ascii_lowercase();
            name.into_boxed_str()
        };
        Self(names.into_iter().map(plain).collect())
    }
}

#[cfg(test)]
impl Choose for Suffixes {
    fn group(&self, name: &str) -> Group {
        let mut rest = name;
        loop {
            if self.0.contains(rest) {
                return Group::Direct;
            }
            match rest.split_once('.') {
                Some((_, parent)) => rest = parent,
                None => return Group::Proxy,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_is_itself_and_what_is_below_but_nothing_that_only_ends_alike() {
        let suffixes: Suffixes = ["Example.CN.", "lan"].into_iter().collect();
        for (name, group) in [
            ("example.cn", Group::Direct),
            ("a.b.example.cn", Group::Direct),
            ("printer.lan", Group::Direct),
            ("lan", Group::Direct),
            ("badexample.cn", Group::Proxy),
            ("cn", Group::Proxy),
            ("example.cn.evil.example", Group::Proxy),
            // A dot within a label is no border between labels.
            ("a\\046lan", Group::Proxy),
            ("", Group::Proxy),
        ] {
            assert_eq!(suffixes.group(name), group, "{name}");
        }
        assert_eq!(Suffixes::default().group(""), Group::Proxy);
    }
}
