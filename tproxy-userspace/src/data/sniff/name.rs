//! Is it a domain name?

use crate::policy::domain::name::normalize;

/// The domain name in these bytes, in lower case and without a dot at its end. None for an IP address and for
/// anything else that is no name.
pub(super) fn domain(bytes: &[u8]) -> Option<String> {
    let text = str::from_utf8(bytes).ok().filter(|text| text.is_ascii())?;
    let name = normalize(text).ok()?;
    // No top-level domain is a number (RFC 3696 section 2), but the last part of every IPv4 address is one in any of the
    // forms that are in use: 192.0.2.1, 0xc0.0.2.1, 3221225985.
    let (_, last) = name.rsplit_once('.').unwrap_or(("", &name));
    let digits = |text: &str, radix| text.chars().all(|letter| letter.is_digit(radix));
    let number = digits(last, 10) || last.strip_prefix("0x").is_some_and(|hex| digits(hex, 16));
    (!number).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folded() {
        for (text, name) in [
            ("x.com", "x.com"),
            ("WWW.X.Com.", "www.x.com"),
            ("router", "router"),
            ("r3---sn-4g5e.x.com", "r3---sn-4g5e.x.com"),
            ("_a.xn--r8jz45g.jp", "_a.xn--r8jz45g.jp"),
            ("1.2.3.4.in-addr.arpa", "1.2.3.4.in-addr.arpa"),
            ("0xy", "0xy"),
        ] {
            assert_eq!(domain(text.as_bytes()).as_deref(), Some(name));
        }
    }

    #[test]
    fn addresses_and_other_texts_are_none() {
        for text in [
            "192.0.2.1",
            "192.0.2.1.",
            "0xc0.0x2.0x1",
            "3221225985",
            "x.0x",
            "2001:db8::1",
            "[2001:db8::1]",
            "",
            ".",
            "a..b",
            "a b",
            "a/b",
            "a\0b",
            "例え.jp",
            "*.x.com",
            "x.com:443",
        ] {
            assert_eq!(domain(text.as_bytes()), None, "{text}");
        }
        assert_eq!(domain(b"a\xff.com"), None);
    }
}
