//! Domain names as they are compared: lower-case ASCII (A-labels, RFC 5890 section 2.3.2.1), without the dot of
//! the root.

/// The longest name in bytes, without the dot of the root (RFC 1035 section 2.3.4: 255 on the wire).
pub const LONGEST: usize = 253;
/// The longest label in bytes (RFC 1035 section 2.3.4).
const LONGEST_LABEL: usize = 63;

/// Why a text is no domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing, or nothing between two dots.
    #[error("it has an empty part")]
    Empty,
    /// The whole is too long.
    #[error("a name has at most {LONGEST} bytes, and this has {0}")]
    Long(usize),
    /// One part is too long.
    #[error("the parts of a name have at most {LONGEST_LABEL} bytes, and one has {0}")]
    LongLabel(usize),
    /// A character that names do not have.
    #[error("{0:?} cannot stand in a name")]
    Character(char),
    /// Letters that IDNA does not have, or a wrong `xn--` label.
    #[error("it is no international name (IDNA)")]
    International,
}

/// A name without the dot of the root.
pub(super) fn rootless(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

/// The name as it is compared, in `buffer`. None if it is too long to be one.
pub(super) fn fold<'b>(name: &[u8], buffer: &'b mut [u8; LONGEST]) -> Option<&'b [u8]> {
    let name = rootless(name);
    let folded = buffer.get_mut(..name.len())?;
    folded.copy_from_slice(name);
    folded.make_ascii_lowercase();
    Some(folded)
}

/// Brings a domain name into the form in which names are compared. One dot at the end may stand there.
/// Underscores are taken, since services have them.
///
/// # Errors
/// When it is no domain name.
///
/// ```
/// use tproxy_userspace::policy::domain::name::normalize;
///
/// assert_eq!(normalize("WWW.Example.com.").unwrap(), "www.example.com");
/// assert_eq!(normalize("bücher.example").unwrap(), "xn--bcher-kva.example");
/// assert!(normalize("example..com").is_err());
/// ```
pub fn normalize(text: &str) -> Result<String, NameError> {
    let mut name = if text.is_ascii() && !international(text) {
        text.to_ascii_lowercase()
    } else {
        // Far longer than any name, and the mapping takes more than linear time.
        if text.len() > 8 * LONGEST {
            return Err(NameError::Long(text.len()));
        }
        idna::domain_to_ascii(text).map_err(|_| NameError::International)?
    };
    if name.ends_with('.') {
        name.pop();
    }
    if name.len() > LONGEST {
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
            assert_eq!(normalize(given).as_deref(), Ok(written), "{given}");
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
            assert_eq!(normalize(given), Err(error), "{given:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_stays_as_it_is(text in "\\PC{0,80}|[A-Za-z0-9._-]{0,300}|xn--[a-z0-9-]{0,30}") {
            if let Ok(written) = normalize(&text) {
                prop_assert_eq!(normalize(&written), Ok(written.clone()));
                prop_assert!(!written.bytes().any(|byte| byte.is_ascii_uppercase()));
            }
        }
    }
}
