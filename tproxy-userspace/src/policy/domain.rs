//! Domain names in lists: what an entry matches, and how a name is written in one way.

use std::fmt;

/// The longest name in its written form, in bytes (RFC 1035, 2.3.4, without the root's dot).
const LONGEST_NAME: usize = 253;
/// The longest label, in bytes (RFC 1035, 2.3.4).
const LONGEST_LABEL: usize = 63;

/// One entry of a list of domains. Names are in lower case, in their ASCII form (IDNA) and without a
/// dot at either end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DomainEntry {
    /// The name itself and all below it.
    Suffix(String),
    /// All below the name, but not itself.
    Below(String),
    /// The name alone.
    Full(String),
    /// Every name that contains this text, which is in lower case.
    Keyword(String),
    /// Every name that this regular expression finds a match in. It is as it stands in the list; its
    /// syntax is that of RE2, and nobody has compiled it yet.
    Regex(String),
}

impl DomainEntry {
    /// How much of the memory its text takes, in bytes.
    pub(super) fn len(&self) -> usize {
        let (Self::Suffix(text)
        | Self::Below(text)
        | Self::Full(text)
        | Self::Keyword(text)
        | Self::Regex(text)) = self;
        text.len()
    }
}

/// As a line of a list: `x.com`, `.x.com`, `full:x.com`, `keyword:x`, `regexp:^x`.
impl fmt::Display for DomainEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suffix(name) => f.write_str(name),
            Self::Below(name) => write!(f, ".{name}"),
            Self::Full(name) => write!(f, "full:{name}"),
            Self::Keyword(text) => write!(f, "keyword:{text}"),
            Self::Regex(text) => write!(f, "regexp:{text}"),
        }
    }
}

/// Why a text is no domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing, or nothing between two dots.
    #[error("a domain name has no empty parts; write it like example.com")]
    Empty,
    /// The whole is too long.
    #[error("a domain name has at most {LONGEST_NAME} bytes, and this has {0}")]
    Long(usize),
    /// One part is too long.
    #[error("the parts of a domain name have at most {LONGEST_LABEL} bytes, and one has {0}")]
    LongLabel(usize),
    /// A character that names do not have.
    #[error("the character {0:?} is in no domain name; write it like example.com")]
    Character(char),
    /// Letters that IDNA does not have, or a wrong `xn--` label.
    #[error("it is no international domain name (IDNA); write it like example.com")]
    International,
}

/// Brings a domain name into the form of [`DomainEntry`]. One dot at the end may stand there.
/// Underscores are taken, since services have them.
///
/// # Errors
/// When it is no domain name.
///
/// ```
/// use tproxy_userspace::policy::domain;
///
/// assert_eq!(domain::name("WWW.Example.com.").unwrap(), "www.example.com");
/// assert_eq!(domain::name("bücher.example").unwrap(), "xn--bcher-kva.example");
/// assert!(domain::name("example..com").is_err());
/// ```
pub fn name(text: &str) -> Result<String, NameError> {
    let mut name = if text.is_ascii() && !international(text) {
        text.to_ascii_lowercase()
    } else {
        // Far longer than any name, and the mapping takes more than linear time.
        if text.len() > 8 * LONGEST_NAME {
            return Err(NameError::Long(text.len()));
        }
        idna::domain_to_ascii(text).map_err(|_| NameError::International)?
    };
    if name.ends_with('.') {
        name.pop();
    }
    if name.len() > LONGEST_NAME {
        return Err(NameError::Long(name.len()));
    }
    for label in name.split('.') {
        match label.len() {
            0 => return Err(NameError::Empty),
            1..=LONGEST_LABEL => {}
            long => return Err(NameError::LongLabel(long)),
        }
        let stranger =
            |character: &char| !character.is_ascii_alphanumeric() && !"-_".contains(*character);
        if let Some(character) = label.chars().find(stranger) {
            return Err(NameError::Character(character));
        }
    }
    Ok(name)
}

fn international(text: &str) -> bool {
    text.as_bytes()
        .windows(4)
        .any(|four| four.eq_ignore_ascii_case(b"xn--"))
}

/// A name with `*` for any characters but dots, as mihomo's sets of names and AdGuard have it, as a regular
/// expression. Without a `*` it is the name alone.
pub(super) fn wildcard(text: &str) -> Result<DomainEntry, NameError> {
    pattern(text, &[('*', "[^.]+")])
}

/// The same with `*` for any characters and `?` for one, as in mihomo's DOMAIN-WILDCARD.
pub(super) fn glob(text: &str) -> Result<DomainEntry, NameError> {
    pattern(text, &[('*', ".*"), ('?', ".")])
}

fn pattern(text: &str, marks: &[(char, &str)]) -> Result<DomainEntry, NameError> {
    let is_mark = |character: char| marks.iter().any(|(mark, _)| *mark == character);
    if !text.contains(is_mark) {
        return Ok(DomainEntry::Full(name(text)?));
    }
    // The pattern is checked as the name that it becomes when each mark stands for one letter.
    name(&text.replace(is_mark, "x"))?;
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut pattern = String::with_capacity(text.len() + 16);
    pattern.push('^');
    for character in text.chars() {
        match marks.iter().find(|(mark, _)| *mark == character) {
            Some((_, expression)) => pattern.push_str(expression),
            None if character == '.' => pattern.push_str("\\."),
            None => pattern.extend(character.to_lowercase()),
        }
    }
    pattern.push('$');
    Ok(DomainEntry::Regex(pattern))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_written_in_one_way() {
        for (given, written) in [
            ("example.com", "example.com"),
            ("EXAMPLE.Com.", "example.com"),
            ("cn", "cn"),
            ("_dns.r3---sn.example", "_dns.r3---sn.example"),
            ("中国", "xn--fiqs8s"),
            ("XN--FIQS8S", "xn--fiqs8s"),
            ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ] {
            assert_eq!(name(given).as_deref(), Ok(written), "{given}");
        }
    }

    #[test]
    fn what_is_no_name_is_told() {
        let long = "a".repeat(64);
        let longer = ["a"; 128].join(".");
        for (given, error) in [
            ("", NameError::Empty),
            (".", NameError::Empty),
            ("a..b", NameError::Empty),
            (".a", NameError::Empty),
            ("a b", NameError::Character(' ')),
            ("http://a", NameError::Character(':')),
            ("a/b", NameError::Character('/')),
            ("*.a", NameError::Character('*')),
            ("xn--\u{7f}", NameError::International),
            (&long, NameError::LongLabel(64)),
            (&longer, NameError::Long(255)),
        ] {
            assert_eq!(name(given), Err(error), "{given:?}");
        }
    }

    #[test]
    fn stars_stand_within_one_part() {
        assert_eq!(
            wildcard("*.X.com").unwrap().to_string(),
            "regexp:^[^.]+\\.x\\.com$"
        );
        assert_eq!(wildcard("x.com").unwrap().to_string(), "full:x.com");
        assert!(wildcard("*(.com").is_err());
    }

    proptest! {
        #[test]
        fn a_name_stays_as_it_is(text in "\\PC{0,80}|[A-Za-z0-9._-]{0,300}|xn--[a-z0-9-]{0,30}") {
            if let Ok(written) = name(&text) {
                prop_assert_eq!(name(&written), Ok(written.clone()));
                prop_assert!(!written.bytes().any(|byte| byte.is_ascii_uppercase()));
            }
            let _ = wildcard(&text);
        }
    }
}
