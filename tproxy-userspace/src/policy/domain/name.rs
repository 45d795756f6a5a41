//! Domain names as they are compared: lower-case ASCII (A-labels, RFC 5890 section 2.3.2.1), without the dot of
//! the root.

use std::borrow::Cow;

use url::Host;

/// The longest name in bytes, without the dot of the root (RFC 1035 section 2.3.4: 255 on the wire).
pub const LONGEST: usize = 253;
/// The longest label in bytes (RFC 1035 section 2.3.4).
const LONGEST_LABEL: usize = 63;

/// Why a text is no domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing stands there.
    #[error("there is no name")]
    Empty,
    /// More than [`LONGEST`] bytes.
    #[error("a name has at most {LONGEST} bytes")]
    Long,
    /// Two dots in a row, or one at the beginning.
    #[error("a label is empty")]
    EmptyLabel,
    /// A label has more than 63 bytes.
    #[error("a label has at most {LONGEST_LABEL} bytes")]
    LongLabel,
    /// Something that stands in no name.
    #[error("{0:?} cannot stand in a name")]
    Character(char),
    /// Letters beyond ASCII that have no A-label.
    #[error("it has no ASCII form")]
    NoAscii,
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

/// Checks a name and brings it into the form in which it is compared.
///
/// Underscores are taken (RFC 2782), and hyphens anywhere: hosts with such names exist.
///
/// # Errors
/// When it is no name.
pub fn normalize(text: &str) -> Result<String, NameError> {
    let ascii: Cow<'_, str> = if text.is_ascii() {
        text.into()
    } else {
        match Host::parse(text) {
            Ok(Host::Domain(name)) => name.into(),
            _ => return Err(NameError::NoAscii),
        }
    };
    let name = ascii.strip_suffix('.').unwrap_or(&ascii);
    check(name)?;
    Ok(name.to_ascii_lowercase())
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > LONGEST {
        return Err(NameError::Long);
    }
    for label in name.split('.') {
        if let Some(odd) = label.chars().find(|letter| !stands_in_label(*letter)) {
            return Err(NameError::Character(odd));
        }
        match label.len() {
            0 => return Err(NameError::EmptyLabel),
            1..=LONGEST_LABEL => {}
            _ => return Err(NameError::LongLabel),
        }
    }
    Ok(())
}

fn stands_in_label(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_')
}
