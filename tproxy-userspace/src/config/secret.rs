//! Which parts of a line may be a secret. Errors show lines of the configuration on terminals and
//! in logs, also lines that are too broken to be parsed, so this goes by what a line looks like.

use std::ops::Range;

/// The schemes whose user name is worth showing.
const NAMED_USERS: [&str; 5] = ["socks5", "socks", "socks5h", "http", "https"];

/// The key whose value is a secret by itself.
const KEY: &str = "token";

/// The byte ranges of a line that must not be shown, in order.
pub(super) fn hidden(line: &str) -> Vec<Range<usize>> {
    let mut ranges = hidden_of_keys(line);
    let urls = hidden_of_urls(line).into_iter();
    let apart =
        |one: &Range<usize>, other: &Range<usize>| one.end <= other.start || other.end <= one.start;
    let keys = ranges.clone();
    ranges.extend(urls.filter(|url| keys.iter().all(|key| apart(key, url))));
    ranges.sort_by_key(|range| range.start);
    ranges
}

/// Whether a configuration holds a password or a token.
#[must_use]
pub fn holds_secret(text: &str) -> bool {
    text.lines().any(|line| !hidden(line).is_empty())
}

/// The parts of an argument of a command that must not be shown: passwords in URLs.
#[must_use]
pub fn secret_parts(argument: &str) -> Vec<Range<usize>> {
    match argument.contains("://") {
        true => hidden_of_urls(argument),
        false => Vec::new(),
    }
}

/// What stands behind `token =`, to the end of the string or, without quotes, of the line.
fn hidden_of_keys(line: &str) -> Vec<Range<usize>> {
    // A line that begins with what was probably meant to be this key has nothing else.
    if let Some(end) = end_of_key(line)
        && !line[end..].is_empty()
    {
        let value = line.len()
            - line[end..]
                .trim_start_matches([' ', '\t', '=', '"', '\''])
                .len();
        let is_whole = line[end..value].contains('=') && line[..value].ends_with(['"', '\'']);
        let stop = match is_whole {
            true => end_of_text(line, &line[..value], value),
            false => line.len(),
        };
        return Some(value..stop)
            .filter(|range| !range.is_empty())
            .into_iter()
            .collect();
    }
    let mut ranges = Vec::new();
    let mut from = 0;
    while let Some(found) = line[from..].find(KEY) {
        let end = from + found + KEY.len();
        let is_start = !line[..from + found].ends_with(is_of_key);
        from = end;
        let rest = line[end..].trim_start_matches(['"', '\'']).trim_start();
        let Some(rest) = rest.strip_prefix('=').filter(|_| is_start) else {
            continue;
        };
        let value = line.len() - rest.trim_start().len();
        let is_quoted = line[value..].starts_with(['"', '\'']);
        let start = value + usize::from(is_quoted);
        let end = match is_quoted {
            true => end_of_text(line, &line[..start], start),
            false => line.len(),
        };
        if start < end {
            ranges.push(start..end);
        }
        from = end;
    }
    ranges
}

/// Where the key ends that a line begins with, if it is this one or one slip away from it.
fn end_of_key(line: &str) -> Option<usize> {
    let letters = line.char_indices().filter(|(_, c)| c.is_alphanumeric());
    let mut word = String::new();
    for (at, letter) in letters.take(KEY.len() + 1) {
        word.push(letter);
        let rest = line[at + letter.len_utf8()..].trim_start_matches(['-', '_']);
        let end = line.len() - rest.len();
        let is_end = !rest.starts_with(is_of_key);
        if is_end && strsim::damerau_levenshtein(&word, KEY) <= 1 {
            return Some(end);
        }
    }
    None
}

fn is_of_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-".contains(c)
}

fn hidden_of_urls(line: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut from = 0;
    while let Some(found) = line[from..].find("://") {
        let authority = from + found + 3;
        let head = line[..authority - 3]
            .trim_end_matches(|c: char| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let scheme = &line[head.len()..authority - 3];
        let end = end_of_text(line, head, authority);
        ranges.extend(hidden_in_url(scheme, &line[authority..end], authority));
        from = end;
    }
    if from == 0 {
        // Perhaps a URL that lost its scheme: all before an `@`, back to where a value could begin.
        for (at, _) in line.match_indices('@') {
            let value = line[..at]
                .rfind(|c: char| c.is_whitespace() || "\"'=,[{@".contains(c))
                .map_or(0, |before| line.ceil_char_boundary(before + 1));
            if line[value..at].contains(':') {
                ranges.push(value..at);
            }
        }
    }
    ranges
}

/// What to hide of the text behind `scheme://`, which begins at `offset`.
fn hidden_in_url(scheme: &str, text: &str, offset: usize) -> Option<Range<usize>> {
    // The last one, since a password may hold an `@` that should have been escaped.
    let hide = match text.rfind('@') {
        Some(at) if NAMED_USERS.contains(&scheme) => text[..at].find(':')? + 1..at,
        Some(at) => 0..at,
        // The older form of ss:// is one word of Base64 for everything, the password included.
        None if scheme == "ss" => 0..text.len(),
        // `user:password` whose `@` was forgotten looks like host and port.
        None => {
            let name = match text.split_once(']') {
                Some((address, _)) if text.starts_with('[') => address.len() + 1,
                _ => 0,
            };
            let port = name + text[name..].find(':')? + 1;
            let is_port =
                text[port..].len() <= 6 && text[port..].starts_with(|c: char| c.is_ascii_digit());
            let is_address = text
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
            if is_port || is_address {
                return None;
            }
            port..text.len()
        }
    };
    (!hide.is_empty()).then_some(offset + hide.start..offset + hide.end)
}

/// Where the TOML string ends that a URL begins, or the line if it has no end.
fn end_of_text(line: &str, head: &str, authority: usize) -> usize {
    let Some(quote @ ('"' | '\'')) = head.chars().next_back() else {
        return line.len();
    };
    let mut escaped = false;
    for (offset, character) in line[authority..].char_indices() {
        if escaped {
            escaped = false;
        } else if character == '\\' && quote == '"' {
            escaped = true;
        } else if character == quote {
            return authority + offset;
        }
    }
    line.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(line: &str) -> String {
        let mut text = line.to_owned();
        for range in hidden(line).into_iter().rev() {
            text.replace_range(range, "***");
        }
        text
    }

    #[test]
    fn passwords_are_found_and_nothing_else() {
        for (line, masked) in [
            (r#"url = "socks5://h:1" # mail me@example.com"#, None),
            (r#"url = "socks5://me@h:1""#, None),
            (r#"interfaces = ["eth0"] # by me@example.com"#, None),
            (
                r#"url = "socks5://me:pass@h:1" # x@y"#,
                Some(r#"url = "socks5://me:***@h:1" # x@y"#),
            ),
            (
                r#"url = "socks5://me:p@a:s/s@h:1""#,
                Some(r#"url = "socks5://me:***@h:1""#),
            ),
            (
                r#"url = "socks5://me:a\"b@h:1""#,
                Some(r#"url = "socks5://me:***@h:1""#),
            ),
            (r#"url = "socks5://192.0.2.1:10x80""#, None),
            (r#"url = "socks5://[2001:db8::1]:1080""#, None),
            (r#"url = "socks5://2001:db8::1:1080""#, None),
            ("@url", None),
            (
                r#"url = "socks5://me:pass.h:1""#,
                Some(r#"url = "socks5://me:***""#),
            ),
            (
                r"url = 'socks5://me:a\', x",
                Some(r"url = 'socks5://me:***', x"),
            ),
            (r#"//me:pass@h:1""#, Some(r#"***@h:1""#)),
            (
                "url = socks5://me:pa\"ss@h:1",
                Some("url = socks5://me:***@h:1"),
            ),
            (
                "url = \"socks5://me:pass@h:1",
                Some("url = \"socks5://me:***@h:1"),
            ),
            (
                r#"url = "trojan://pass@h:1""#,
                Some(r#"url = "trojan://***@h:1""#),
            ),
            (
                r#"url = "sock5://me:pass@h:1""#,
                Some(r#"url = "sock5://***@h:1""#),
            ),
            (r#"url = "ss://Y2hhY2hhMjA=""#, Some(r#"url = "ss://***""#)),
            (r#"url = "me:pass@h:1""#, Some(r#"url = "***@h:1""#)),
            (r#"token = "abc" # x"#, Some(r#"token = "***" # x"#)),
            (
                r"a = { 'token' = 'abc', b = 1 }",
                Some(r"a = { 'token' = '***', b = 1 }"),
            ),
            ("token=abc", Some("token=***")),
            (r#"token_file = "abc""#, None),
            ("# the token is needed", None),
            (r#"token = "a://b:c@d""#, Some(r#"token = "***""#)),
            (
                r#"[{url="socks5://a:b@c"},{url="http://d:e@f"}]"#,
                Some(r#"[{url="socks5://a:***@c"},{url="http://d:***@f"}]"#),
            ),
        ] {
            assert_eq!(shown(line), masked.unwrap_or(line));
        }
    }

    proptest! {
        #[test]
        fn ranges_are_in_order_and_on_characters(line in "(\\PC|://|@|:|\"|url|ss){0,40}") {
            let mut last = 0;
            for range in hidden(&line) {
                prop_assert!(last <= range.start && range.start < range.end);
                prop_assert!(line.get(range.clone()).is_some());
                last = range.end;
            }
        }
    }
}
