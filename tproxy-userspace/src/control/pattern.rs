//! Names of links as people write them: plain, or as globs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The bytes of a link's name (`IFNAMSIZ` less the zero at the end).
const NAME_BYTES: usize = 15;

/// Names links: one by its name, or many by a glob with `*`, `?`, `[a-z]` and `[!a-z]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkPattern {
    text: String,
    /// Empty for a plain name.
    glob: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Token {
    /// `*`
    Many,
    /// `?`
    One,
    /// `[…]`, as inclusive ranges
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    Literal(char),
}

impl Token {
    fn matches(&self, character: char) -> bool {
        match self {
            Self::Many | Self::One => true,
            Self::Set { negated, ranges } => {
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&character))
                    != *negated
            }
            Self::Literal(literal) => *literal == character,
        }
    }
}

/// Why a text is no [`LinkPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing there.
    #[error("a link name cannot be empty")]
    Empty,
    /// The kernel has no such names.
    #[error("the link name {name:?} has {bytes} bytes, the kernel allows {NAME_BYTES}")]
    Long {
        /// The name.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// The kernel has no such names either.
    #[error("the link name {name:?} contains {character:?}, which the kernel does not allow")]
    Character {
        /// The name or glob.
        name: String,
        /// What is wrong in it.
        character: char,
    },
    /// `[` without `]`, or nothing between them, or a range that runs backwards.
    #[error(
        "the glob {glob:?} has a \"[\" without characters and a \"]\" after it, or a range that runs \
         backwards; write for example \"eth[0-3]\""
    )]
    Set {
        /// The glob.
        glob: String,
    },
}

impl LinkPattern {
    /// The name, if this is not a glob.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        self.glob.is_empty().then_some(&*self.text)
    }

    /// Is this the name of a link that is meant?
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.glob.is_empty() {
            return self.text == name;
        }
        let name: Vec<char> = name.chars().collect();
        let (mut token, mut at) = (0, 0);
        // Where the last `*` is, and how far it reaches: the only thing to come back to.
        let mut last_many = None;
        while at < name.len() {
            match self.glob.get(token) {
                Some(Token::Many) => {
                    last_many = Some((token, at));
                    token += 1;
                }
                Some(other) if other.matches(name[at]) => {
                    token += 1;
                    at += 1;
                }
                _ => {
                    let Some((many, reach)) = last_many else {
                        return false;
                    };
                    last_many = Some((many, reach + 1));
                    token = many + 1;
                    at = reach + 1;
                }
            }
        }
        self.glob[token..].iter().all(|token| *token == Token::Many)
    }
}

impl FromStr for LinkPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        // `dev_valid_name` (net/core/dev.c) forbids these.
        if let Some(character) = text
            .chars()
            .find(|character| *character == '/' || *character == ':' || character.is_whitespace())
        {
            return Err(PatternError::Character {
                name: text.to_owned(),
                character,
            });
        }
        let glob = if text.contains(['*', '?', '[']) {
            parse_glob(text)?
        } else if text.len() > NAME_BYTES {
            return Err(PatternError::Long {
                name: text.to_owned(),
                bytes: text.len(),
            });
        } else {
            Vec::new()
        };
        Ok(Self {
            text: text.to_owned(),
            glob,
        })
    }
}

fn parse_glob(text: &str) -> Result<Vec<Token>, PatternError> {
    let mut tokens = Vec::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        tokens.push(match character {
            '*' => Token::Many,
            '?' => Token::One,
            '[' => {
                let (set, behind) = rest
                    .as_str()
                    .split_once(']')
                    .and_then(|(set, behind)| Some((parse_set(set)?, behind)))
                    .ok_or_else(|| PatternError::Set {
                        glob: text.to_owned(),
                    })?;
                rest = behind.chars();
                set
            }
            literal => Token::Literal(literal),
        });
    }
    Ok(tokens)
}

/// What stands between the brackets; `None` if it is empty or a range runs backwards.
fn parse_set(set: &str) -> Option<Token> {
    let (negated, set) = match set.strip_prefix('!') {
        Some(set) => (true, set),
        None => (false, set),
    };
    let characters: Vec<char> = set.chars().collect();
    let (mut ranges, mut rest) = (Vec::new(), characters.as_slice());
    while let [first, tail @ ..] = rest {
        // A "-" at either end is a plain one.
        let (last, tail) = match tail {
            ['-', last, tail @ ..] => (last, tail),
            _ => (first, tail),
        };
        ranges.push((*first, *last));
        rest = tail;
    }
    let valid = !ranges.is_empty() && ranges.iter().all(|(first, last)| first <= last);
    valid.then_some(Token::Set { negated, ranges })
}

impl TryFrom<String> for LinkPattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<LinkPattern> for String {
    fn from(pattern: LinkPattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for LinkPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("br-*", "br-lan", true),
            ("br-*", "br-", true),
            ("br-*", "br0", false),
            ("eth?", "eth0", true),
            ("eth?", "eth10", false),
            ("eth[0-35]", "eth5", true),
            ("eth[0-35]", "eth4", false),
            ("eth[!01]", "eth2", true),
            ("eth[!01]", "eth1", false),
            ("x[a-]", "x-", true),
            ("x[-a]", "x-", true),
            ("x[a-]", "xb", false),
            ("*.5", "eth0.5.5", true),
            ("*a*b", "aabab", true),
            ("*a*b", "aabaa", false),
            ("eth0", "eth0", true),
            ("eth0", "eth00", false),
        ] {
            let parsed: LinkPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(name), expected, "{pattern} on {name}");
            assert_eq!(parsed.to_string(), pattern);
        }
        for wrong in [
            "",
            "a b",
            "a/b",
            "eth[",
            "eth[]",
            "eth[9-0]",
            "sixteen-bytes-xx",
        ] {
            wrong.parse::<LinkPattern>().unwrap_err();
        }
        // A glob may be longer than a name.
        "sixteen-bytes-x*".parse::<LinkPattern>().unwrap();
    }

    /// By definition, and slowly.
    fn matches_slowly(glob: &[Token], name: &[char]) -> bool {
        match (glob, name) {
            ([], _) => name.is_empty(),
            ([Token::Many, rest @ ..], _) => {
                (0..=name.len()).any(|skip| matches_slowly(rest, &name[skip..]))
            }
            ([token, rest @ ..], [first, others @ ..]) => {
                token.matches(*first) && matches_slowly(rest, others)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn globs_agree_with_their_definition(
            glob in "[ab*?]{0,3}[*?][ab*?]{0,3}",
            name in "[abc]{0,6}",
        ) {
            let pattern: LinkPattern = glob.parse().unwrap();
            let characters: Vec<char> = name.chars().collect();
            prop_assert_eq!(pattern.matches(&name), matches_slowly(&pattern.glob, &characters));
        }

        #[test]
        fn any_text_is_a_pattern_or_refused(text in "\\PC{0,20}", name in "\\PC{0,20}") {
            if let Ok(pattern) = text.parse::<LinkPattern>() {
                let _ = pattern.matches(&name);
            }
        }
    }
}
