//! Sets of domain names: suffixes, whole names, keywords and regular expressions, all asked at once.

pub mod name;
pub mod pattern;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use aho_corasick::AhoCorasick;
use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::{Serialize, Serializer};

pub use self::name::NameError;
use self::table::{BELOW, Builder, ITSELF, Table};
use super::prefix::excerpt;

/// How much memory (in bytes) one regular expression may take, compiled. The longest in the usual lists take a few
/// kilobytes.
const REGEX_SIZE: usize = 1 << 20;
/// The same for all of a set, and for the cache of each thread that searches it.
const REGEX_SET_SIZE: usize = 16 << 20;

/// Which names are meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain<T = String> {
    /// `x.com`: the name and all below it.
    Suffix(T),
    /// `.x.com`: what lies below the name, not the name itself. Held without the dot in front.
    Below(T),
    /// `full:x.com`: this name alone.
    Full(T),
    /// `keyword:x`: names with this text anywhere in them.
    Keyword(T),
    /// `regexp:^ad[0-9]+\.`: names in which the regular expression is found (the syntax of the crate `regex`, much as
    /// RE2; ASCII, either case).
    Regex(T),
}

/// Why a [`Domain`] was refused. `Display` says what is wrong and, after a semicolon, what to do;
/// [`message`](Self::message) and [`help`](Self::help) give the two halves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}; {}", self.message(), self.help())]
pub enum DomainError {
    /// What should be a domain name is none.
    Name {
        /// What stands there.
        text: String,
        /// Why not.
        reason: NameError,
    },
    /// A keyword that no name could hold, or that every name holds.
    Keyword {
        /// What stands there.
        text: String,
    },
    /// What should be a regular expression is none, or it is too large.
    Regex {
        /// What stands there.
        text: String,
        /// Why not.
        reason: String,
    },
    /// Each regular expression is in order, but together they are too large.
    Regexes {
        /// How many there are.
        count: usize,
    },
    /// The names take more than 4 GiB, or the keywords more than can be searched.
    TooMany,
}

impl DomainError {
    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Name { text, reason } => {
                format!("`{}` is not a domain name: {reason}", excerpt(text))
            }
            Self::Keyword { text } if text.is_empty() => {
                "an empty keyword is in every name".to_owned()
            }
            Self::Keyword { text } => {
                format!("no domain name holds the keyword `{}`", excerpt(text))
            }
            Self::Regex { text, reason } => {
                format!(
                    "`{}` is not a usable regular expression: {reason}",
                    excerpt(text)
                )
            }
            Self::Regexes { count } => {
                format!("the {count} regular expressions together are too large")
            }
            Self::TooMany => "there are more domain names than a set has room for".to_owned(),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Name { text, .. } => name_help(text),
            Self::Keyword { .. } => "write a part of a name, of: a-z 0-9 - _ .".to_owned(),
            Self::Regex { .. } => {
                "write one of ASCII characters, without look-around and back references".to_owned()
            }
            Self::Regexes { .. } => {
                "write names instead of some of them, or leave some out".to_owned()
            }
            Self::TooMany => "leave out some lists".to_owned(),
        }
    }
}

/// What people may have meant who know the forms of other programs.
fn name_help(text: &str) -> String {
    if let Some(rest) = text.strip_prefix("*.") {
        return format!("write .{} for all below it", excerpt(rest));
    }
    for prefix in ["+.", "domain:"] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return format!("write {} for it and all below it", excerpt(rest));
        }
    }
    if let Some(rest) = text.strip_prefix("regex:") {
        return format!("write regexp:{}", excerpt(rest));
    }
    "write x.com, .x.com (only what is below it), full:x.com, keyword:x or regexp:x".to_owned()
}

impl<T> Domain<T> {
    /// The name, the keyword or the regular expression.
    pub fn text(&self) -> &T {
        match self {
            Self::Suffix(text)
            | Self::Below(text)
            | Self::Full(text)
            | Self::Keyword(text)
            | Self::Regex(text) => text,
        }
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    /// Reads the forms that a configuration has: `x.com`, `.x.com`, `full:x.com`, `keyword:x`, `regexp:x`.
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let name = |name| normal_name(name, text);
        Ok(match text.split_once(':') {
            Some(("full", rest)) => Self::Full(name(rest)?),
            Some(("keyword", rest)) => Self::Keyword(keyword(rest)?),
            Some(("regexp", rest)) => {
                regex(rest)?;
                Self::Regex(rest.to_owned())
            }
            _ => match text.strip_prefix('.') {
                Some(rest) => Self::Below(name(rest)?),
                None => Self::Suffix(name(text)?),
            },
        })
    }
}

impl<T: fmt::Display> fmt::Display for Domain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self {
            Self::Suffix(_) => "",
            Self::Below(_) => ".",
            Self::Full(_) => "full:",
            Self::Keyword(_) => "keyword:",
            Self::Regex(_) => "regexp:",
        };
        write!(f, "{form}{}", self.text())
    }
}

impl<T: fmt::Display> Serialize for Domain<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn normal_name(name: &str, text: &str) -> Result<String, DomainError> {
    name::normalize(name).map_err(|reason| DomainError::Name {
        text: text.to_owned(),
        reason,
    })
}

fn keyword(text: &str) -> Result<String, DomainError> {
    let fits = !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if fits {
        return Ok(text.to_ascii_lowercase());
    }
    Err(DomainError::Keyword {
        text: text.to_owned(),
    })
}

fn regex(text: &str) -> Result<Regex, DomainError> {
    RegexBuilder::new(text)
        .unicode(false)
        .case_insensitive(true)
        .size_limit(REGEX_SIZE)
        .build()
        .map_err(|error| DomainError::Regex {
            text: text.to_owned(),
            reason: reason(&error),
        })
}

/// An error of the regex crate in one line: its text draws the expression over several, the last of which says it.
fn reason(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => format!("it takes more than {limit} bytes"),
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    }
}

/// A set of domains, each with a tag: the number of the rule or list that it belongs to.
///
/// Names are compared as lower-case ASCII (A-labels), and a dot at the end does not count.
///
/// ```
/// use tproxy_userspace::policy::domain::{Domain, DomainSet};
///
/// let set = DomainSet::new([(Domain::Suffix("x.com"), 4), (Domain::Full("a.x.com"), 2)]).unwrap();
/// assert_eq!(set.lookup("A.x.com."), Some(2));
/// assert_eq!(set.lookup("b.x.com"), Some(4));
/// assert_eq!(set.lookup("ax.com"), None);
/// ```
#[derive(Debug)]
pub struct DomainSet {
    names: Table,
    keywords: Option<Keywords>,
    regexes: Option<Regexes>,
}

#[derive(Debug)]
struct Keywords {
    automaton: AhoCorasick,
    /// The tag of each.
    tags: Box<[u32]>,
}

#[derive(Debug)]
struct Regexes {
    set: RegexSet,
    /// The tag of each.
    tags: Box<[u32]>,
}

impl DomainSet {
    /// Builds a set.
    ///
    /// # Errors
    /// When a text is not what it should be, with that text, or when it is all too large. There is no half set.
    pub fn new<T: AsRef<str>>(
        domains: impl IntoIterator<Item = (Domain<T>, u32)>,
    ) -> Result<Self, DomainError> {
        let mut names = Builder::default();
        let (mut keywords, mut keyword_tags) = (Vec::new(), Vec::new());
        let (mut regexes, mut regex_tags) = (Vec::new(), Vec::new());
        for (domain, tag) in domains {
            let text = domain.text().as_ref();
            let extent = match domain {
                Domain::Suffix(_) => ITSELF | BELOW,
                Domain::Below(_) => BELOW,
                Domain::Full(_) => ITSELF,
                Domain::Keyword(_) => {
                    keywords.push(keyword(text)?);
                    keyword_tags.push(tag);
                    continue;
                }
                Domain::Regex(_) => {
                    regexes.push(text.to_owned());
                    regex_tags.push(tag);
                    continue;
                }
            };
            names.push(normal_name(text, text)?.as_bytes(), extent, tag)?;
        }
        Ok(Self {
            names: names.finish()?,
            keywords: Keywords::new(&keywords, keyword_tags)?,
            regexes: Regexes::new(&regexes, regex_tags)?,
        })
    }

    /// The smallest tag of all domains that match.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<u32> {
        self.first(name, u32::MAX, |_| true)
    }

    /// The smallest tag, up to and with `most`, that matches and that `accept` takes. A tag may be offered more than
    /// once, and those that are larger than one that was taken are not offered.
    pub fn first(&self, name: &str, most: u32, mut accept: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut buffer = [0; name::LONGEST];
        let name = name::fold(name.as_bytes(), &mut buffer)?;
        let mut best = None;
        let mut hit = |tag| {
            let better = best.map_or(tag <= most, |best| tag < best);
            if better && accept(tag) {
                best = Some(tag);
            }
        };
        self.names.each(name, &mut hit);
        if let Some(Keywords { automaton, tags }) = &self.keywords {
            for found in automaton.find_overlapping_iter(name) {
                hit(tags[found.pattern().as_usize()]);
            }
        }
        if let Some(Regexes { set, tags }) = &self.regexes {
            for found in set.matches(name) {
                hit(tags[found]);
            }
        }
        best
    }

    /// How many domains there are, without those that stand twice with one tag.
    #[must_use]
    pub fn len(&self) -> usize {
        let keywords = self.keywords.as_ref().map_or(0, |all| all.tags.len());
        let regexes = self.regexes.as_ref().map_or(0, |all| all.tags.len());
        self.names.len() + keywords + regexes
    }

    /// Does nothing match?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes on the heap for names and keywords.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let keywords = self.keywords.as_ref().map_or(0, |all| {
            all.automaton.memory_usage() + size_of_val(&*all.tags)
        });
        self.names.bytes() + keywords
    }
}

impl Keywords {
    fn new(keywords: &[String], tags: Vec<u32>) -> Result<Option<Self>, DomainError> {
        if keywords.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::new(keywords).map_err(|_| DomainError::TooMany)?;
        Ok(Some(Self {
            automaton,
            tags: tags.into(),
        }))
    }
}

impl Regexes {
    fn new(regexes: &[String], tags: Vec<u32>) -> Result<Option<Self>, DomainError> {
        if regexes.is_empty() {
            return Ok(None);
        }
        let set = RegexSetBuilder::new(regexes)
            .unicode(false)
            .case_insensitive(true)
            .size_limit(REGEX_SET_SIZE)
            .dfa_size_limit(REGEX_SET_SIZE)
            .build();
        let Ok(set) = set else {
            // The error of a set does not tell which it is about.
            for text in regexes {
                regex(text)?;
            }
            let count = regexes.len();
            return Err(DomainError::Regexes { count });
        };
        Ok(Some(Self {
            set,
            tags: tags.into(),
        }))
    }
}
