//! Which links: a name or a glob.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Refusal;
use crate::policy::prefix::excerpt;

/// The longest name of a link: `IFNAMSIZ` without the zero byte at its end.
const LONGEST_NAME: usize = 15;

/// The name of a link (`eth0`), or a glob for several (`br-*`): `*` is any text, `?` one character.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinkPattern(String);

impl LinkPattern {
    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does it stand for every name of its form, and not just for one?
    #[must_use]
    pub fn is_glob(&self) -> bool {
        self.0.contains(['*', '?'])
    }

    /// The name, if this is not a glob.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        (!self.is_glob()).then_some(&*self.0)
    }

    /// Does a link of this name belong to it?
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut position) = (0, 0);
        // Where to go on when the text that the last `*` took has to grow by one byte.
        let mut retry: Option<(usize, usize)> = None;
        while position < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    retry = Some((at + 1, position));
                    at += 1;
                }
                Some(byte) if *byte == b'?' || *byte == name[position] => {
                    at += 1;
                    position += 1;
                }
                _ => {
                    let Some((after_star, taken)) = retry else {
                        return false;
                    };
                    retry = Some((after_star, taken + 1));
                    (at, position) = (after_star, taken + 1);
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for LinkPattern {
    type Err = Refusal;

    /// # Errors
    /// When no link could have such a name (`dev_valid_name` in the kernel's net/core/dev.c).
    fn from_str(text: &str) -> Result<Self, Refusal> {
        const FORM: &str = "write a name like eth0, or a glob like br-*";
        let shown = excerpt(text);
        let refuse = |why: &str| Err(Refusal::new(format!("`{shown}` {why}"), FORM));
        if text.is_empty() {
            return Err(Refusal::new("there is no name", FORM));
        }
        if text == "." || text == ".." {
            return refuse("is not a name that a link can have");
        }
        if let Some(bad) = text
            .chars()
            .find(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control())
        {
            return refuse(&format!("holds {bad:?}, which no name of a link can have"));
        }
        if text.contains(['[', ']', '{', '}', '!']) {
            return refuse("holds a bracket; only `*` and `?` are understood in globs");
        }
        // A star may stand for no text at all.
        if text.bytes().filter(|byte| *byte != b'*').count() > LONGEST_NAME {
            return refuse(&format!(
                "is longer than {LONGEST_NAME} bytes, the most that a name of a link has"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LinkPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for LinkPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Which links the gateway's own traffic leaves by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WanPattern {
    /// `default`: those that hold a default route, as it changes. No link can be called so (`sysctl_dev_name_is_allowed`
    /// in the kernel's include/linux/inetdevice.h).
    Default,
    /// A name or a glob.
    Link(LinkPattern),
}

impl WanPattern {
    /// The name, if it is one.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        match self {
            Self::Default => None,
            Self::Link(pattern) => pattern.exact(),
        }
    }
}

impl FromStr for WanPattern {
    type Err = Refusal;

    /// # Errors
    /// As [`LinkPattern`].
    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "default" => Ok(Self::Default),
            _ => text.parse().map(Self::Link),
        }
    }
}

impl fmt::Display for WanPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Link(pattern) => pattern.fmt(f),
        }
    }
}

impl Serialize for WanPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_match_as_in_a_shell() {
        for (pattern, yes, no) in [
            ("eth0", &["eth0"][..], &["eth", "eth00", ""][..]),
            ("br-*", &["br-", "br-lan"], &["br", "xbr-lan"]),
            ("*.10", &["eth0.10", ".10", ".10.10"], &["eth0.100"]),
            ("e*h?", &["eth0", "eh1", "ehh1"], &["eth", "eth01x"]),
            ("*", &["a", ""], &[]),
            ("a*b*c", &["abc", "aXbYc", "abbcc"], &["acb", "ab"]),
        ] {
            let pattern: LinkPattern = pattern.parse().unwrap();
            for name in yes {
                assert!(pattern.matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!pattern.matches(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn refuses_what_no_link_is_called() {
        for text in [
            "",
            ".",
            "..",
            "a/b",
            "eth0:1",
            "a b",
            "sixteen-letters-",
            "eth[01]",
            "a\0",
        ] {
            assert!(text.parse::<LinkPattern>().is_err(), "{text:?}");
        }
        assert!("fifteen-letters".parse::<LinkPattern>().is_ok());
        assert!("*fifteen-letters*".parse::<LinkPattern>().is_ok());
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_recursion(pattern in "[ab*?]{1,8}", name in "[ab]{0,8}") {
            fn plain(pattern: &[u8], name: &[u8]) -> bool {
                match (pattern.split_first(), name.split_first()) {
                    (None, None) => true,
                    (Some((b'*', rest)), _) => {
                        plain(rest, name) || !name.is_empty() && plain(pattern, &name[1..])
                    }
                    (Some((b'?', rest)), Some((_, others))) => plain(rest, others),
                    (Some((a, rest)), Some((b, others))) => a == b && plain(rest, others),
                    _ => false,
                }
            }
            let expected = plain(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(pattern.parse::<LinkPattern>().unwrap().matches(&name), expected);
        }
    }
}
