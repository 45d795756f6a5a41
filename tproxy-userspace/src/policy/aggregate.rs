//! Arithmetic on sets of prefixes: the fewest that cover the same addresses, and what lies outside.

use std::net::IpAddr;

use ipnet::IpNet;

/// First and last address as numbers.
type Span = (u128, u128);

/// The fewest prefixes that cover exactly the same addresses, in order: overlaps are removed and
/// neighbours joined.
///
/// ```
/// use tproxy_userspace::policy::{aggregate::aggregate, prefix};
///
/// let prefixes = ["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7/32"].map(|text| prefix::parse(text).unwrap());
/// assert_eq!(aggregate(&prefixes), [prefix::parse("10.0.0.0/23").unwrap()]);
/// ```
#[must_use]
pub fn aggregate(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut fewest = Vec::new();
    for family in Family::BOTH {
        for span in family.spans(prefixes) {
            fewest.extend(family.cover(span));
        }
    }
    fewest
}

/// The fewest prefixes that cover all addresses of both families that are in none of these.
#[must_use]
pub fn complement(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut outside = Vec::new();
    for family in Family::BOTH {
        let mut next = Some(0);
        for (first, last) in family.spans(prefixes) {
            if let Some(start) = next.filter(|start| *start < first) {
                outside.extend(family.cover((start, first - 1)));
            }
            next = (last < family.last()).then(|| last + 1);
        }
        if let Some(start) = next {
            outside.extend(family.cover((start, family.last())));
        }
    }
    outside
}

/// The fewest prefixes that cover the addresses from `first` to `last`, both of which belong to it.
/// None if they are of different families or `last` lies before `first`.
pub fn range(first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpNet> {
    let family = match (first, last) {
        (IpAddr::V4(_), IpAddr::V4(_)) => Some(Family::V4),
        (IpAddr::V6(_), IpAddr::V6(_)) => Some(Family::V6),
        _ => None,
    };
    family
        .filter(|_| first <= last)
        .into_iter()
        .flat_map(move |family| family.cover((number(first), number(last))))
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn bits(self) -> u32 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    fn last(self) -> u128 {
        u128::MAX >> (128 - self.bits())
    }

    /// What the prefixes of this family cover, in order and with gaps between.
    fn spans(self, prefixes: &[IpNet]) -> Vec<Span> {
        let mut spans: Vec<Span> = prefixes
            .iter()
            .filter(|prefix| {
                matches!(
                    (self, prefix),
                    (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_))
                )
            })
            .map(|prefix| (number(prefix.network()), number(prefix.broadcast())))
            .collect();
        spans.sort_unstable();
        spans.dedup_by(|next, before| {
            let joins = before.1 == u128::MAX || next.0 <= before.1 + 1;
            if joins {
                before.1 = before.1.max(next.1);
            }
            joins
        });
        spans
    }

    /// The largest prefix that begins where the rest begins and does not go beyond its end, again and again.
    fn cover(self, (first, last): Span) -> impl Iterator<Item = IpNet> {
        let mut rest = Some(first);
        std::iter::from_fn(move || {
            let start = rest?;
            let aligned = start.trailing_zeros().min(self.bits());
            let fits = match (last - start).checked_add(1) {
                Some(count) => count.ilog2(),
                None => 128,
            };
            let host_bits = aligned.min(fits);
            let end = start | u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
            rest = (end < last).then(|| end + 1);
            Some(self.prefix(start, self.bits() - host_bits))
        })
    }

    fn prefix(self, address: u128, length: u32) -> IpNet {
        let address = match self {
            Self::V4 => IpAddr::V4((address as u32).into()),
            Self::V6 => IpAddr::V6(address.into()),
        };
        IpNet::new(address, length as u8).expect("the length is one of the family")
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::prefix::{self, tests::any_prefix};

    fn parse(texts: &[&str]) -> Vec<IpNet> {
        texts
            .iter()
            .map(|text| prefix::parse(text).unwrap())
            .collect()
    }

    #[test]
    fn overlaps_go_and_neighbours_join() {
        for (given, fewest) in [
            (&["10.0.0.0/8", "10.1.0.0/16"][..], &["10.0.0.0/8"][..]),
            (&["10.0.0.0/9", "10.128.0.0/9"], &["10.0.0.0/8"]),
            // Neighbours, but no prefix together.
            (
                &["10.128.0.0/9", "11.0.0.0/9"],
                &["10.128.0.0/9", "11.0.0.0/9"],
            ),
            (
                &["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"],
                &["0.0.0.0/0", "::/0"],
            ),
            (
                &["255.255.255.255/32", "255.255.255.254/32"],
                &["255.255.255.254/31"],
            ),
            (&[], &[]),
        ] {
            assert_eq!(aggregate(&parse(given)), parse(fewest), "{given:?}");
        }
    }

    #[test]
    fn the_complement_of_everything_is_nothing() {
        assert_eq!(complement(&parse(&["0.0.0.0/0", "::/0"])), []);
        assert_eq!(complement(&[]), parse(&["0.0.0.0/0", "::/0"]));
        assert_eq!(
            complement(&parse(&["128.0.0.0/1", "::/0"])),
            parse(&["0.0.0.0/1"])
        );
    }

    /// In a small part of the space, so that many prefixes meet.
    fn crowded() -> impl Strategy<Value = Vec<IpNet>> {
        let v4 = (0..=255_u8, 24..=32_u8).prop_map(|(low, length)| {
            IpNet::new(IpAddr::from([192, 0, 2, low]), length)
                .unwrap()
                .trunc()
        });
        prop::collection::vec(prop_oneof![8 => v4, 1 => any_prefix()], 0..40)
    }

    fn covers(prefixes: &[IpNet], address: IpAddr) -> bool {
        prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    proptest! {
        #[test]
        fn the_same_addresses_by_the_fewest_prefixes(prefixes in crowded(), others: Vec<IpAddr>) {
            let (fewest, outside) = (aggregate(&prefixes), complement(&prefixes));
            let ends = prefixes.iter().flat_map(|prefix| [prefix.network(), prefix.broadcast()]);
            let near = (0..=255).map(|low| IpAddr::from([192, 0, 2, low]));
            for address in ends.chain(near).chain(others) {
                prop_assert_eq!(covers(&fewest, address), covers(&prefixes, address));
                prop_assert_ne!(covers(&outside, address), covers(&prefixes, address));
            }
            for set in [&fewest, &outside] {
                // Disjoint, in order, and no two of them are halves of one prefix: there is no smaller cover.
                for pair in set.windows(2) {
                    prop_assert!(pair[0] < pair[1] && !pair[0].contains(&pair[1]), "{:?}", pair);
                    prop_assert!(
                        pair[0].prefix_len() == 0
                            || pair[0].prefix_len() != pair[1].prefix_len()
                            || pair[0].supernet() != pair[1].supernet(),
                        "{:?}", pair
                    );
                }
            }
            prop_assert_eq!(aggregate(&fewest), fewest);
            prop_assert_eq!(complement(&outside), aggregate(&prefixes));
        }
    }
}
