//! The addresses of the lab, all from documentation ranges (RFC 5737, RFC 3849) but the LAN's and the near ones
//! (RFC 2544).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many far addresses of each family the internet has: 203.0.113.1.. and 2001:db8:f::1..
pub const FAR_COUNT: u8 = 20;
/// How many near addresses a lab with a near and a far internet has: 198.18.0.1.. and 2001:db8:e::1..
pub const NEAR_COUNT: u8 = 20;
/// How many addresses it has for upstream proxies: 198.51.100.1.. and 2001:db8:b::1..
pub const UPSTREAM_COUNT: u8 = 4;
/// What rules of the guides have go direct, with what must be typed in for this network: the WAN and the upstream proxies.
/// IPv4.
pub const TYPED_DIRECT: [&str; 8] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "192.0.2.0/24",
    "198.51.100.0/24",
];

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The flag of `curl`, `dig` and others: `-4` or `-6`.
    #[must_use]
    pub const fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// The prefix length of a single host: 32 or 128.
    #[must_use]
    pub const fn host_bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// One of two, by the family.
    pub(crate) const fn pick(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        let [a, b, c, d] = v4;
        let [e, f, g, h, i, j, k, l] = v6;
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(e, f, g, h, i, j, k, l)),
        }
    }

    /// The device: 10.77.0.2, 2001:db8:77::2.
    #[must_use]
    pub const fn device(self) -> IpAddr {
        self.pick([10, 77, 0, 2], [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 2])
    }

    /// The gateway on the LAN: 10.77.0.1, 2001:db8:77::1.
    #[must_use]
    pub const fn gateway_lan(self) -> IpAddr {
        self.pick([10, 77, 0, 1], [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1])
    }

    /// The device of the second LAN: 10.78.0.2, 2001:db8:78::2.
    #[must_use]
    pub const fn device2(self) -> IpAddr {
        self.pick([10, 78, 0, 2], [0x2001, 0xdb8, 0x78, 0, 0, 0, 0, 2])
    }

    /// The gateway on the second LAN: 10.78.0.1, 2001:db8:78::1.
    #[must_use]
    pub const fn gateway_lan1(self) -> IpAddr {
        self.pick([10, 78, 0, 1], [0x2001, 0xdb8, 0x78, 0, 0, 0, 0, 1])
    }

    /// The gateway on the WAN: 192.0.2.1, 2001:db8:2::1.
    #[must_use]
    pub const fn gateway_wan(self) -> IpAddr {
        self.pick([192, 0, 2, 1], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 1])
    }

    /// The internet's end of the WAN: 192.0.2.2, 2001:db8:2::2. It is in a subnet of the gateway.
    #[must_use]
    pub const fn internet(self) -> IpAddr {
        self.pick([192, 0, 2, 2], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 2])
    }

    /// The neighbour on the WAN: 192.0.2.3, 2001:db8:2::3.
    #[must_use]
    pub const fn neighbour(self) -> IpAddr {
        self.pick([192, 0, 2, 3], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 3])
    }

    /// The `n`th far address, 1 to [`FAR_COUNT`]: 203.0.113.n, 2001:db8:f::n (n in hexadecimal there).
    #[must_use]
    pub const fn far(self, n: u8) -> IpAddr {
        assert!(n >= 1 && n <= FAR_COUNT);
        self.pick([203, 0, 113, n], [0x2001, 0xdb8, 0xf, 0, 0, 0, 0, n as u16])
    }

    /// The `n`th near address, 1 to [`NEAR_COUNT`]: 198.18.0.n, 2001:db8:e::n (n in hexadecimal there).
    #[must_use]
    pub const fn near(self, n: u8) -> IpAddr {
        assert!(n >= 1 && n <= NEAR_COUNT);
        self.pick([198, 18, 0, n], [0x2001, 0xdb8, 0xe, 0, 0, 0, 0, n as u16])
    }

    /// The `n`th address for upstream proxies, 1 to [`UPSTREAM_COUNT`]: 198.51.100.n, 2001:db8:b::n.
    #[must_use]
    pub const fn upstream(self, n: u8) -> IpAddr {
        assert!(n >= 1 && n <= UPSTREAM_COUNT);
        self.pick(
            [198, 51, 100, n],
            [0x2001, 0xdb8, 0xb, 0, 0, 0, 0, n as u16],
        )
    }
}

/// The `n`th address of the LAN: 10.77.0.n, 2001:db8:77::n (n in hexadecimal there).
pub(crate) const fn in_lan(family: Family, n: u8) -> IpAddr {
    family.pick([10, 77, 0, n], [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, n as u16])
}

/// `address` as it stands in a URL: IPv6 in brackets.
#[must_use]
pub fn host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// `http://ADDRESS/PATH`.
#[must_use]
pub fn url(address: IpAddr, path: &str) -> String {
    format!("http://{}/{}", host(address), path.trim_start_matches('/'))
}
