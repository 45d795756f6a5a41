//! Sets of prefixes.

use std::net::IpAddr;

use ipnet::IpNet;
use tproxy_userspace::policy::aggregate::{aggregate, complement, range};
use tproxy_userspace::policy::prefix_set::PrefixSet;

use crate::bytes::Input;

/// First and last address, apart for each family.
type Spans = [Vec<(u128, u128)>; 2];

/// Prefixes and ranges made of the bytes.
pub fn arithmetic(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut prefixes = Vec::new();
    while !input.is_empty() && prefixes.len() < 2048 {
        let kind = input.byte();
        let mut address = || -> IpAddr {
            if kind & 1 == 0 {
                // A small part of the space, so that many meet.
                let [third, fourth] = input.array();
                [192, 0, third, fourth].into()
            } else {
                let [high, low, last] = input.array();
                let mut octets = [if kind & 2 == 0 { 0 } else { 0xff }; 16];
                (octets[0], octets[1], octets[15]) = (high, low, last);
                octets.into()
            }
        };
        let first = address();
        if kind & 4 == 0 {
            let length = (kind >> 3) * if first.is_ipv4() { 1 } else { 4 } + 1;
            prefixes.push(
                IpNet::new(first, length)
                    .expect("it is short enough")
                    .trunc(),
            );
        } else {
            let last = address();
            let cover: Vec<IpNet> = range(first, last).collect();
            if first <= last {
                let [v4, v6] = spans(&cover);
                let number = |address| numbers(&IpNet::from(address)).0;
                assert_eq!(
                    [v4, v6].concat(),
                    [(number(first), number(last))],
                    "{first}-{last}"
                );
            } else {
                assert!(cover.is_empty());
            }
            prefixes.extend(cover);
        }
    }
    check(&prefixes);
}

/// The arithmetic on these prefixes neither adds nor loses an address.
pub fn check(prefixes: &[IpNet]) {
    let fewest = aggregate(prefixes);
    let covered = spans(prefixes);
    assert_eq!(spans(&fewest), covered);
    assert_eq!(aggregate(&fewest), fewest);
    for pair in fewest.windows(2) {
        assert!(pair[0] < pair[1], "{pair:?}");
        let halves = pair[0].prefix_len() == pair[1].prefix_len()
            && pair[0].prefix_len() > 0
            && pair[0].supernet() == pair[1].supernet();
        assert!(!halves, "{pair:?} are one prefix");
    }
    let outside = complement(prefixes);
    let whole: Vec<IpNet> = outside.iter().chain(&fewest).copied().collect();
    assert_eq!(
        spans(&whole),
        [vec![(0, u128::from(u32::MAX))], vec![(0, u128::MAX)]]
    );
    assert_eq!(complement(&outside), fewest);

    let set: PrefixSet = prefixes.iter().copied().collect();
    // What is mapped is IPv4, which the spans know nothing of.
    let plain = |address: &IpAddr| *address == address.to_canonical();
    let mapped = prefixes.iter().any(|prefix| {
        prefix.contains(&IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0, 0])) || !plain(&prefix.network())
    });
    if mapped {
        return;
    }
    for prefix in prefixes {
        assert!(
            set.contains(prefix.network()) && set.contains(prefix.broadcast()),
            "{prefix}"
        );
    }
    for prefix in &outside {
        for end in [prefix.network(), prefix.broadcast()] {
            assert!(
                !plain(&end) || !set.contains(end),
                "{end} is in none of {prefixes:?}"
            );
        }
    }
}

fn numbers(prefix: &IpNet) -> (u128, u128) {
    match prefix {
        IpNet::V4(prefix) => (
            u32::from(prefix.network()).into(),
            u32::from(prefix.broadcast()).into(),
        ),
        IpNet::V6(prefix) => (prefix.network().into(), prefix.broadcast().into()),
    }
}

/// What the prefixes cover, joined in another way than the library does it.
fn spans(prefixes: &[IpNet]) -> Spans {
    [true, false].map(|v4| {
        let mut all: Vec<(u128, u128)> = prefixes
            .iter()
            .filter(|prefix| prefix.addr().is_ipv4() == v4)
            .map(numbers)
            .collect();
        all.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::new();
        for (first, last) in all {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => joined.push((first, last)),
            }
        }
        joined
    })
}
