//! Names with stars in them, as some lists have them.

use super::Domain;
use super::name::{NameError, normalize};

/// A name with `*` for any characters but dots, as mihomo's sets of names and AdGuard have it, as a regular
/// expression. Without a `*` it is the name alone.
pub fn wildcard(text: &str) -> Result<Domain, NameError> {
    pattern(text, &[('*', "[^.]+")])
}

/// The same with `*` for any characters and `?` for one, as in mihomo's DOMAIN-WILDCARD.
pub fn glob(text: &str) -> Result<Domain, NameError> {
    pattern(text, &[('*', ".*"), ('?', ".")])
}

fn pattern(text: &str, marks: &[(char, &str)]) -> Result<Domain, NameError> {
    let is_mark = |character: char| marks.iter().any(|(mark, _)| *mark == character);
    if !text.contains(is_mark) {
        return Ok(Domain::Full(normalize(text)?));
    }
    // The pattern is checked as the name that it becomes when each mark stands for one letter.
    normalize(&text.replace(is_mark, "x"))?;
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
    Ok(Domain::Regex(pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_within_one_part() {
        assert_eq!(
            wildcard("*.X.com").unwrap().to_string(),
            "regexp:^[^.]+\\.x\\.com$"
        );
        assert_eq!(wildcard("x.com").unwrap().to_string(), "full:x.com");
        assert!(wildcard("*(.com").is_err());
    }
}
