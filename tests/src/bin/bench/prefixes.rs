//! Random prefixes, the same in every run, spread over lengths as lists of countries' addresses are.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use lab::Family;

/// A generator that needs no seed from the machine: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// `count` different prefixes of each family, none of which contains an address of the lab.
pub fn random(count: usize) -> Vec<IpNet> {
    let mut random = Random(count as u64);
    let mut all = Vec::with_capacity(2 * count);
    for family in Family::BOTH {
        let mut chosen = BTreeSet::new();
        while chosen.len() < count {
            let prefix = one(&mut random, family);
            if !of_the_lab(prefix) {
                chosen.insert(prefix);
            }
        }
        all.extend(chosen);
    }
    all
}

/// Half of the IPv4 prefixes are /21 to /24, the others /12 to /20; IPv6 /24 to /48.
fn one(random: &mut Random, family: Family) -> IpNet {
    let bits = random.next();
    let (address, length) = match family {
        Family::V4 => {
            let length = if bits & 1 == 0 {
                21 + random.below(4)
            } else {
                12 + random.below(9)
            };
            // 1.0.0.0 to 223.255.255.255.
            let first = 1 + random.below(223);
            let address = (first as u32) << 24 | (bits >> 40) as u32;
            (IpAddr::V4(Ipv4Addr::from_bits(address)), length)
        }
        Family::V6 => {
            // 2000::/3, what is given out.
            let address = u128::from(bits) << 64;
            let address = address >> 3 | 0x2000 << 112;
            (
                IpAddr::V6(Ipv6Addr::from_bits(address)),
                24 + random.below(25),
            )
        }
    };
    let length = u8::try_from(length).expect("lengths are below 128");
    IpNet::new(address, length)
        .expect("lengths are within their family")
        .trunc()
}

fn of_the_lab(prefix: IpNet) -> bool {
    Family::BOTH.iter().any(|family| {
        [
            family.device(),
            family.gateway_wan(),
            family.far(1),
            family.upstream(1),
        ]
        .iter()
        .any(|address| prefix.contains(address))
    })
}
