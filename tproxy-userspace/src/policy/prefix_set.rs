//! Sets of prefixes that are asked for addresses.

use std::net::IpAddr;

use ipnet::IpNet;

/// A set of prefixes, held as the ranges of addresses that they cover: in order, apart from each other. A look-up is a
/// binary search.
///
/// An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) is the IPv4 address that it holds.
#[derive(Clone, Debug, Default)]
pub struct PrefixSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

/// `::ffff:0:0/96`.
const MAPPED: u128 = 0xffff << 32;
const MAPPED_LENGTH: u8 = 96;

impl PrefixSet {
    /// Is this address in one of the prefixes?
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => holds(&self.v4, address.to_bits()),
            IpAddr::V6(address) => holds(&self.v6, address.to_bits()),
        }
    }

    /// The first and the last IPv4 address of it, in host byte order. None: it has none.
    #[must_use]
    pub fn ends_v4(&self) -> Option<(u32, u32)> {
        ends(&self.v4)
    }

    /// The first and the last IPv6 address of it that is not mapped, in host byte order. None: it has none.
    #[must_use]
    pub fn ends_v6(&self) -> Option<(u128, u128)> {
        ends(&self.v6)
    }
}

fn ends<T: Copy>(ranges: &[(T, T)]) -> Option<(T, T)> {
    Some((ranges.first()?.0, ranges.last()?.1))
}

impl FromIterator<IpNet> for PrefixSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(prefix) => {
                    v4.push((prefix.network().to_bits(), prefix.broadcast().to_bits()));
                }
                IpNet::V6(prefix) => {
                    let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
                    if prefix.prefix_len() >= MAPPED_LENGTH && first >> 32 == MAPPED >> 32 {
                        v4.push((first as u32, last as u32));
                    } else {
                        v6.push((first, last));
                    }
                }
            }
        }
        Self {
            v4: merge(v4),
            v6: merge(v6),
        }
    }
}

fn holds<N: Copy + Ord>(ranges: &[(N, N)], number: N) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= number);
    behind
        .checked_sub(1)
        .is_some_and(|at| number <= ranges[at].1)
}

/// Brings ranges into order, and joins those that overlap.
fn merge<N: Copy + Ord>(mut ranges: Vec<(N, N)>) -> Box<[(N, N)]> {
    ranges.sort_unstable();
    ranges.dedup_by(|later, earlier| {
        let joined = later.0 <= earlier.1;
        if joined {
            earlier.1 = earlier.1.max(later.1);
        }
        joined
    });
    ranges.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::prefix::tests::any_prefix;
    use super::*;

    fn set(prefixes: &[&str]) -> PrefixSet {
        prefixes
            .iter()
            .map(|text| text.parse::<IpNet>().unwrap())
            .collect()
    }

    #[test]
    fn families_do_not_mix_but_mapped_addresses_are_ipv4() {
        let set = set(&["10.0.0.0/8", "2001:db8::/32", "::ffff:192.0.2.0/120"]);
        for (address, inside) in [
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("::ffff:10.0.0.1", true),
            ("192.0.2.9", true),
            ("::ffff:192.0.2.9", true),
            ("2001:db8:ffff::", true),
            ("2001:db9::", false),
            ("::a00:1", false),
        ] {
            assert_eq!(set.contains(address.parse().unwrap()), inside, "{address}");
        }
    }

    #[test]
    fn everything_is_everything_of_one_family() {
        let everything = set(&["0.0.0.0/0"]);
        assert!(everything.contains("255.255.255.255".parse().unwrap()));
        assert!(!everything.contains("::".parse().unwrap()));
        let everything = set(&["::/0"]);
        assert!(everything.contains("ffff::".parse().unwrap()));
        assert!(!everything.contains("0.0.0.0".parse().unwrap()));
        assert!(!PrefixSet::default().contains("0.0.0.0".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn holds_what_one_of_the_prefixes_holds(
            mut prefixes in prop::collection::vec(any_prefix(), 0..20),
            addresses: Vec<IpAddr>,
        ) {
            // What is mapped has a test of its own.
            let plain = |address: &IpAddr| *address == address.to_canonical();
            prefixes.retain(|prefix| plain(&prefix.network()));
            let set: PrefixSet = prefixes.iter().copied().collect();
            let edges = prefixes.iter().flat_map(|prefix| [prefix.network(), prefix.broadcast()]);
            for address in addresses.into_iter().chain(edges).filter(plain) {
                let expected = prefixes.iter().any(|prefix| prefix.contains(&address));
                prop_assert_eq!(set.contains(address), expected, "{}", address);
            }
        }
    }
}
