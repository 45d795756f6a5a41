//! The bounds of a rule, small and side by side, so that most rules are passed over without a look at their sets.

use std::net::IpAddr;

use super::{Compiled, PrefixSet, Protocol, Query};

/// What must hold where a rule holds. The opposite is not so: the bounds of two prefixes lie around what is between them.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    source: Bounds,
    destination: Bounds,
    ports: Span<u16>,
    protocol: Option<Protocol>,
    /// The number of its outbound. The same outbound has the same number.
    pub outbound: u32,
}

impl Gate {
    /// The gate of a rule whose outbound has this number.
    pub fn of(rule: &Compiled, outbound: u32) -> Self {
        let bounds = |set: &Option<PrefixSet>| set.as_ref().map_or(Bounds::ALL, Bounds::around);
        let ports = rule.ports.as_ref().map_or(Span::ALL_PORTS, |ranges| {
            let mut span = Span::NO_PORT;
            for (first, last) in ranges.iter().map(|range| range.ends()) {
                span.first = span.first.min(first);
                span.last = span.last.max(last);
            }
            span
        });
        Self {
            source: bounds(&rule.source),
            destination: bounds(&rule.prefix),
            ports,
            protocol: rule.protocol,
            outbound,
        }
    }

    /// Can the rule hold?
    #[inline]
    pub fn is_open(&self, query: &Query<'_>) -> bool {
        self.ports.contains(query.destination.port())
            && self.source.contain(query.source.ip())
            && self.destination.contain(query.destination.ip())
            && self
                .protocol
                .is_none_or(|protocol| protocol == query.protocol)
    }
}

/// From the first to the last, both included. Empty if the last comes before the first.
#[derive(Clone, Copy, Debug)]
struct Span<T> {
    first: T,
    last: T,
}

impl Span<u16> {
    const ALL_PORTS: Self = Self::new(0, u16::MAX);
    const NO_PORT: Self = Self::new(u16::MAX, 0);
}

impl<T: Copy + Ord> Span<T> {
    const fn new(first: T, last: T) -> Self {
        Self { first, last }
    }

    fn contains(&self, value: T) -> bool {
        self.first <= value && value <= self.last
    }
}

/// Bounds of the addresses of each family. Of IPv6 addresses the upper halves.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    v4: Span<u32>,
    v6: Span<u64>,
}

impl Bounds {
    const ALL: Self = Self {
        v4: Span::new(0, u32::MAX),
        v6: Span::new(0, u64::MAX),
    };

    fn around(set: &PrefixSet) -> Self {
        let (first, last) = set.ends_v4().unwrap_or((u32::MAX, 0));
        let (first_v6, last_v6) = set.ends_v6().unwrap_or((u128::MAX, 0));
        Self {
            v4: Span::new(first, last),
            v6: Span::new(upper(first_v6), upper(last_v6)),
        }
    }

    fn contain(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.contains(address.to_bits()),
            IpAddr::V6(address) => self.v6.contains(upper(address.to_bits())),
        }
    }
}

fn upper(address: u128) -> u64 {
    u64::try_from(address >> 64).expect("half of it is left")
}
