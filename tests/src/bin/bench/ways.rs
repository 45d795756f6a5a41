//! The table of ways through the gateway.

use std::{any::Any, fmt};

use anyhow::Result;
use lab::{Family, Lab, Namespace};

use crate::{
    ours::{self, LAN, WAN},
    outbounds::{self, Protocol},
    peers,
};

/// Whose traffic it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A device's, which the gateway forwards.
    Device,
    /// The gateway's own.
    Gateway,
}

impl Client {
    /// Where it runs.
    pub fn of(self, lab: &Lab) -> &Namespace {
        match self {
            Self::Device => &lab.device,
            Self::Gateway => &lab.gateway,
        }
    }
}

/// What a row is about, so which ways it compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What passing the gateway costs.
    Forwarding,
    /// What rules cost.
    Rules,
    /// How fast questions are answered.
    Dns,
    /// What relaying by a server of this protocol costs.
    Outbound(Protocol),
}

impl Subject {
    /// The way that the others are compared with.
    pub const fn base(self) -> &'static str {
        match self {
            Self::Forwarding | Self::Outbound(_) => PLAIN,
            Self::Rules => NO_RULES,
            Self::Dns => DNSMASQ,
        }
    }
}

/// One way through the gateway.
pub struct Way {
    /// One word, the head of its column.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub what: &'static str,
    /// What it is compared in.
    pub subjects: &'static [Subject],
    /// Whose traffic goes that way.
    pub clients: &'static [Client],
    /// Is it another program than ours?
    pub peer: bool,
    /// Does it leave rules behind that nobody takes back, so that it needs a lab of its own?
    pub stays: bool,
    /// Does a process relay the traffic, so that servers see the gateway?
    pub relays: bool,
    /// Does a server of some protocol lie between, so that it is whom servers see?
    pub by_server: bool,
    /// Does it do UDP, too?
    pub udp: bool,
    /// The families it is set up for.
    pub families: &'static [Family],
    /// Sets it up on the gateway of a lab.
    pub start: fn(&Lab) -> Result<Option<Running>>,
}

impl Way {
    /// Is it another proxy that forwards, which is only measured for who asks for it?
    pub fn is_rival(&self) -> bool {
        self.peer && self.subjects.contains(&Subject::Forwarding)
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The program of a way. It ends when this is dropped.
pub struct Running {
    /// Its process.
    pub pid: u32,
    _guard: Box<dyn Any>,
}

impl Running {
    /// A program that lives as long as its guard.
    pub fn new(pid: u32, guard: impl Any) -> Self {
        Self {
            pid,
            _guard: Box::new(guard),
        }
    }
}

/// All of them. The first is what most others are compared with.
pub static WAYS: [Way; 30] = [
    Way {
        name: PLAIN,
        what: "forwarding by the kernel, with nothing attached",
        subjects: PLAIN_SUBJECTS,
        clients: &[Client::Device, Client::Gateway],
        peer: false,
        stays: false,
        relays: false,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: |_| Ok(None),
    },
    Way {
        name: BYPASSED,
        what: "tproxy-bpf attached, the destination is in its bypass set",
        subjects: FORWARDING,
        clients: &[Client::Device],
        peer: false,
        stays: false,
        relays: false,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: |lab| ours::tproxy(lab, LAN, true),
    },
    Way {
        name: PROXIED,
        what: "tproxy-bpf with the outbound direct://",
        subjects: FORWARDING,
        clients: &[Client::Device],
        peer: false,
        stays: false,
        relays: true,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: |lab| ours::tproxy(lab, LAN, false),
    },
    Way {
        stays: true,
        ..peer(
            "v2ray",
            "Debian's v2ray with the iptables rules of the TPROXY guides, outbound freedom",
            peers::v2ray::start,
        )
    },
    peer(
        "sing-box-tproxy",
        "sing-box with its inbound tproxy behind TPROXY rules of nft, outbound direct",
        peers::sing_box::tproxy,
    ),
    peer(
        "sing-box-tun",
        "sing-box with its inbound tun (auto_route, stack system, no auto_redirect), outbound direct",
        peers::sing_box::tun,
    ),
    Way {
        udp: false,
        ..peer(
            "haproxy",
            "Debian's haproxy, which always splices, behind TPROXY rules of nft; TCP alone",
            peers::haproxy::start,
        )
    },
    Way {
        udp: false,
        by_server: true,
        ..peer(
            "redsocks",
            "Debian's redsocks, which splices, behind REDIRECT of nft, by a SOCKS5 server (sing-box); TCP alone",
            peers::redsocks::start,
        )
    },
    Way {
        by_server: true,
        ..peer(
            "sslocal",
            "sslocal of shadowsocks-rust behind TPROXY rules of nft, by ssserver, without cipher",
            peers::sslocal::start,
        )
    },
    Way {
        name: OWN_BYPASSED,
        what: "the gateway's own traffic, tproxy-bpf attached, the destination is in its bypass set",
        subjects: FORWARDING,
        clients: &[Client::Gateway],
        peer: false,
        stays: false,
        relays: false,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: |lab| ours::tproxy(lab, WAN, true),
    },
    Way {
        name: OWN_PROXIED,
        what: "the gateway's own traffic, tproxy-bpf with the outbound direct://",
        subjects: FORWARDING,
        clients: &[Client::Gateway],
        peer: false,
        stays: false,
        relays: true,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: |lab| ours::tproxy(lab, WAN, false),
    },
    Way {
        name: NO_RULES,
        what: "tproxy-bpf with the outbound direct:// and no rule",
        subjects: &[Subject::Rules],
        clients: &[Client::Device],
        peer: false,
        stays: false,
        relays: true,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: |lab| ours::configured(lab, ""),
    },
    Way {
        name: RULES,
        what: "the same with 1,000 rules that need no name",
        subjects: &[Subject::Rules],
        clients: &[Client::Device],
        peer: false,
        stays: false,
        relays: true,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: |lab| ours::configured(lab, &ours::rules(false)),
    },
    Way {
        name: NAMES,
        what: "the same with 1,000 rules for which the name is read that the device asks for",
        subjects: &[Subject::Rules],
        clients: &[Client::Device],
        peer: false,
        stays: false,
        relays: true,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: |lab| ours::configured(lab, &ours::rules(true)),
    },
    Way {
        name: DNSMASQ,
        what: "dnsmasq on the gateway, nothing attached, with room for 10,000 answers",
        subjects: &[Subject::Dns],
        clients: &[Client::Device],
        peer: false,
        stays: false,
        relays: false,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: ours::dnsmasq,
    },
    Way {
        name: RESOLVER,
        what: "tproxy-bpf answers the questions that the device sends elsewhere, with room for 10,000 answers",
        subjects: &[Subject::Dns],
        clients: &[Client::Device],
        peer: false,
        stays: false,
        relays: true,
        by_server: false,
        udp: true,
        families: &Family::BOTH,
        start: |lab| ours::configured(lab, &ours::resolver()),
    },
    by_server(
        "socks5",
        "tproxy-bpf with the outbound socks5://",
        &[Subject::Outbound(Protocol::Socks5)],
        false,
        |lab| outbounds::ours(lab, Protocol::Socks5),
    ),
    by_server(
        "sing-box-socks5",
        "sing-box with the same outbound, behind TPROXY rules of nft",
        &[Subject::Outbound(Protocol::Socks5)],
        true,
        |lab| outbounds::peer(lab, Protocol::Socks5),
    ),
    by_server(
        "http",
        "tproxy-bpf with the outbound http://",
        &[Subject::Outbound(Protocol::Http)],
        false,
        |lab| outbounds::ours(lab, Protocol::Http),
    ),
    by_server(
        "sing-box-http",
        "sing-box with the same outbound, behind TPROXY rules of nft",
        &[Subject::Outbound(Protocol::Http)],
        true,
        |lab| outbounds::peer(lab, Protocol::Http),
    ),
    by_server(
        "https",
        "tproxy-bpf with the outbound https://",
        &[Subject::Outbound(Protocol::Https)],
        false,
        |lab| outbounds::ours(lab, Protocol::Https),
    ),
    by_server(
        "sing-box-https",
        "sing-box with the same outbound, behind TPROXY rules of nft",
        &[Subject::Outbound(Protocol::Https)],
        true,
        |lab| outbounds::peer(lab, Protocol::Https),
    ),
    by_server(
        "ss-aes",
        "tproxy-bpf with the outbound ss:// (aes-128-gcm)",
        &[Subject::Outbound(Protocol::ShadowsocksAes)],
        false,
        |lab| outbounds::ours(lab, Protocol::ShadowsocksAes),
    ),
    by_server(
        "sing-box-ss-aes",
        "sing-box with the same outbound, behind TPROXY rules of nft",
        &[Subject::Outbound(Protocol::ShadowsocksAes)],
        true,
        |lab| outbounds::peer(lab, Protocol::ShadowsocksAes),
    ),
    by_server(
        "ss-chacha",
        "tproxy-bpf with the outbound ss:// (chacha20-ietf-poly1305)",
        &[Subject::Outbound(Protocol::ShadowsocksChacha)],
        false,
        |lab| outbounds::ours(lab, Protocol::ShadowsocksChacha),
    ),
    by_server(
        "sing-box-ss-chacha",
        "sing-box with the same outbound, behind TPROXY rules of nft",
        &[Subject::Outbound(Protocol::ShadowsocksChacha)],
        true,
        |lab| outbounds::peer(lab, Protocol::ShadowsocksChacha),
    ),
    by_server(
        "ss-2022",
        "tproxy-bpf with the outbound ss:// (2022-blake3-aes-128-gcm)",
        &[Subject::Outbound(Protocol::Shadowsocks2022)],
        false,
        |lab| outbounds::ours(lab, Protocol::Shadowsocks2022),
    ),
    by_server(
        "sing-box-ss-2022",
        "sing-box with the same outbound, behind TPROXY rules of nft",
        &[Subject::Outbound(Protocol::Shadowsocks2022)],
        true,
        |lab| outbounds::peer(lab, Protocol::Shadowsocks2022),
    ),
    by_server(
        "trojan",
        "tproxy-bpf with the outbound trojan://",
        &[Subject::Outbound(Protocol::Trojan)],
        false,
        |lab| outbounds::ours(lab, Protocol::Trojan),
    ),
    by_server(
        "sing-box-trojan",
        "sing-box with the same outbound, behind TPROXY rules of nft",
        &[Subject::Outbound(Protocol::Trojan)],
        true,
        |lab| outbounds::peer(lab, Protocol::Trojan),
    ),
];

/// Forwarding alone.
const FORWARDING: &[Subject] = &[Subject::Forwarding];
/// All that is compared with plain forwarding.
const PLAIN_SUBJECTS: &[Subject] = &[
    Subject::Forwarding,
    Subject::Outbound(Protocol::Socks5),
    Subject::Outbound(Protocol::Http),
    Subject::Outbound(Protocol::Https),
    Subject::Outbound(Protocol::ShadowsocksAes),
    Subject::Outbound(Protocol::ShadowsocksChacha),
    Subject::Outbound(Protocol::Shadowsocks2022),
    Subject::Outbound(Protocol::Trojan),
];

/// A way by a server of some protocol.
const fn by_server(
    name: &'static str,
    what: &'static str,
    subjects: &'static [Subject],
    peer: bool,
    start: fn(&Lab) -> Result<Option<Running>>,
) -> Way {
    Way {
        name,
        what,
        subjects,
        clients: &[Client::Device],
        peer,
        stays: false,
        relays: true,
        by_server: true,
        // Not every server does it, and no row asks for it.
        udp: false,
        families: &[Family::V4],
        start,
    }
}

/// Another proxy that relays what devices send, IPv4.
const fn peer(
    name: &'static str,
    what: &'static str,
    start: fn(&Lab) -> Result<Option<Running>>,
) -> Way {
    Way {
        name,
        what,
        subjects: FORWARDING,
        clients: &[Client::Device],
        peer: true,
        stays: false,
        relays: true,
        by_server: false,
        udp: true,
        families: &[Family::V4],
        start,
    }
}

/// The name of plain forwarding.
pub const PLAIN: &str = "plain";
/// The name of our bypass.
pub const BYPASSED: &str = "bypassed";
/// The name of our proxy.
pub const PROXIED: &str = "proxied";
/// The name of our proxy that rules are compared with.
pub const NO_RULES: &str = "no-rules";
/// The name of our proxy with rules about all but names.
pub const RULES: &str = "rules";
/// The name of our proxy with rules about names.
pub const NAMES: &str = "names";
/// The name of the DNS server that ours is compared with.
pub const DNSMASQ: &str = "dnsmasq";
/// The name of our resolver.
pub const RESOLVER: &str = "resolver";

/// The name of our bypass for the gateway itself.
pub const OWN_BYPASSED: &str = "own-bypassed";
/// The name of our proxy for the gateway itself.
pub const OWN_PROXIED: &str = "own-proxied";
