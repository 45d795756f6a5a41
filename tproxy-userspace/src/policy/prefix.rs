//! One prefix as people write it: a CIDR block or a bare address.

use std::net::IpAddr;

use ipnet::IpNet;

/// Why a text is not a prefix. `Display` says what is wrong and, after a semicolon, what to write
/// instead; [`message`](Self::message) and [`help`](Self::help) give the two halves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", self.message(), self.help().map(|help| format!("; {help}")).unwrap_or_default())]
pub enum PrefixError {
    /// The part that should be an address is none.
    Address {
        /// What stands there.
        text: String,
    },
    /// What follows the slash is no length, or one that the family does not have.
    Length {
        /// What stands there.
        text: String,
        /// The address before it.
        address: IpAddr,
    },
    /// An IPv4 netmask stands where the length belongs.
    Netmask {
        /// The prefix that was meant.
        right: IpNet,
    },
    /// The address has bits behind the prefix length, so it is unclear what was meant.
    HostBits {
        /// What was written.
        given: IpNet,
    },
}

impl PrefixError {
    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Address { text } if text.is_empty() => "there is no address".to_owned(),
            Self::Address { text } => {
                format!("`{}` is neither an IPv4 nor an IPv6 address", excerpt(text))
            }
            Self::Length { text, address } => format!(
                "`{}` is not a prefix length of {} (0 to {})",
                excerpt(text),
                family(*address),
                bits(*address)
            ),
            Self::Netmask { .. } => "a netmask stands where the prefix length belongs".to_owned(),
            Self::HostBits { given } => format!(
                "{given} has bits set after the first {}",
                given.prefix_len()
            ),
        }
    }

    /// What to write instead, if that can be told.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Address { .. } => {
                Some("write a prefix like 192.0.2.0/24 or 2001:db8::/32, or an address".to_owned())
            }
            Self::Length { address, .. } => {
                Some(format!("write {address} alone for the one address"))
            }
            Self::Netmask { right } => Some(format!("write {right}")),
            Self::HostBits { given } => Some(format!(
                "write {} for the whole prefix, or {} for the one address",
                given.trunc(),
                given.addr()
            )),
        }
    }
}

/// Reads `address/length`, or an address, which stands for itself alone (`/32`, `/128`).
///
/// Spaces around it are the caller's business. `0.0.0.0/0` and `::/0` are prefixes like others.
///
/// # Errors
/// When it is neither, or when bits are set behind the length: `10.0.0.1/8` may be a slip for
/// `10.0.0.1` as well as for `10.0.0.0/8`.
///
/// ```
/// use tproxy_userspace::policy::prefix;
///
/// assert_eq!(prefix::parse("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
/// assert_eq!(
///     prefix::parse("10.0.0.1/8").unwrap_err().to_string(),
///     "10.0.0.1/8 has bits set after the first 8; \
///      write 10.0.0.0/8 for the whole prefix, or 10.0.0.1 for the one address"
/// );
/// ```
pub fn parse(text: &str) -> Result<IpNet, PrefixError> {
    let (address_text, length_text) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address_text.parse().map_err(|_| PrefixError::Address {
        text: address_text.to_owned(),
    })?;
    let Some(length_text) = length_text else {
        return Ok(IpNet::from(address));
    };
    let prefix = parse_length(length_text)
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or_else(|| wrong_length(address, length_text))?;
    if prefix.trunc() != prefix {
        return Err(PrefixError::HostBits { given: prefix });
    }
    Ok(prefix)
}

/// Brings prefixes into their order and removes those that stand twice.
///
/// Prefixes that lie inside others stay: a longest-prefix match has room for both, and the
/// shorter one may be removed again at run time.
pub fn normalize(prefixes: &mut Vec<IpNet>) {
    prefixes.sort_unstable();
    prefixes.dedup();
}

/// Decimal digits only: `u8::from_str` would take `+8`, and a leading zero means octal to some.
fn parse_length(text: &str) -> Option<u8> {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

fn wrong_length(address: IpAddr, text: &str) -> PrefixError {
    if address.is_ipv4()
        && let Ok(mask) = text.parse()
        && let Ok(length) = ipnet::ip_mask_to_prefix(mask)
        && let Ok(meant) = IpNet::new(address, length)
    {
        return PrefixError::Netmask {
            right: meant.trunc(),
        };
    }
    PrefixError::Length {
        text: text.to_owned(),
        address,
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() {
        "an IPv4 address"
    } else {
        "an IPv6 address"
    }
}

/// A text of unknown origin, fit for a terminal: no control characters, not too long.
pub(crate) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == LONGEST {
            shown.push('…');
            break;
        }
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_prefixes_and_addresses() {
        for (text, prefix) in [
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:192.0.2.0/120", "::ffff:192.0.2.0/120"),
        ] {
            assert_eq!(
                parse(text).map(|prefix| prefix.to_string()),
                Ok(prefix.to_owned())
            );
        }
    }

    #[test]
    fn says_what_is_wrong_and_what_is_right() {
        for (text, error) in [
            (
                "",
                "there is no address; write a prefix like 192.0.2.0/24 or 2001:db8::/32, or an address",
            ),
            (
                "example.com",
                "`example.com` is neither an IPv4 nor an IPv6 address; \
                 write a prefix like 192.0.2.0/24 or 2001:db8::/32, or an address",
            ),
            (
                "10.0.0.0/33",
                "`33` is not a prefix length of an IPv4 address (0 to 32); \
                 write 10.0.0.0 alone for the one address",
            ),
            (
                "2001:db8::/129",
                "`129` is not a prefix length of an IPv6 address (0 to 128); \
                 write 2001:db8:: alone for the one address",
            ),
            (
                "10.1.2.3/255.255.0.0",
                "a netmask stands where the prefix length belongs; write 10.1.0.0/16",
            ),
            (
                "2001:db8::1/64",
                "2001:db8::1/64 has bits set after the first 64; \
                 write 2001:db8::/64 for the whole prefix, or 2001:db8::1 for the one address",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), error, "{text:?}");
        }
    }

    #[test]
    fn lengths_are_plain_decimals() {
        for text in [
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0.0/",
            "10.0.0.0/8/8",
            "10.0.0.0/ 8",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("010.0.0.0/8").is_err());
    }

    #[test]
    fn a_set_is_in_order_and_without_doubles() {
        let mut prefixes: Vec<IpNet> = ["::/0", "10.0.0.0/8", "10.0.0.0/16", "::/0", "1.0.0.0/8"]
            .map(|text| parse(text).unwrap())
            .to_vec();
        normalize(&mut prefixes);
        let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["1.0.0.0/8", "10.0.0.0/8", "10.0.0.0/16", "::/0"]);
    }

    pub(in crate::policy) fn any_prefix() -> impl Strategy<Value = IpNet> {
        (any::<IpAddr>(), any::<u8>()).prop_map(|(address, length)| {
            IpNet::new(address, length % (bits(address) + 1))
                .expect("the length fits the family")
                .trunc()
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(prefix in any_prefix()) {
            prop_assert_eq!(parse(&prefix.to_string()), Ok(prefix));
        }

        #[test]
        fn the_suggestion_for_host_bits_is_accepted(address: IpAddr, length: u8) {
            let given = IpNet::new(address, length % (bits(address) + 1)).unwrap();
            if let Err(PrefixError::HostBits { given }) = parse(&given.to_string()) {
                prop_assert_eq!(parse(&given.trunc().to_string()), Ok(given.trunc()));
                prop_assert!(given.trunc().contains(&address));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*|[0-9a-f:./+-]{0,60}") {
            if let Err(error) = parse(&text) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
