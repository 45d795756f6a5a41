//! The table of ways through the gateway.

use std::{any::Any, fmt, net::Ipv4Addr};

use anyhow::Result;
use lab::{Family, Lab, Namespace, Tproxy, servers::Dnsmasq};

use crate::{
    outbounds::{self, Protocol},
    peers::{self, Protocols},
    prefixes,
};

/// How many prefixes of each family are in the bypass set.
pub const PREFIXES: usize = 16_384;

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
    /// Does a process relay the traffic, so that servers see the gateway?
    pub relays: bool,
    /// What goes that way.
    pub protocols: Protocols,
    /// Does another server lie between, so that servers see that one?
    pub by_server: bool,
    /// The families it is set up for.
    pub families: &'static [Family],
    /// Sets it up on the gateway of a lab.
    pub start: fn(&Lab) -> Result<Option<Running>>,
}

impl Way {
    /// Is it measured only when other programs are asked for?
    pub fn is_extra(&self) -> bool {
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
pub fn all() -> impl Iterator<Item = &'static Way> {
    WAYS.iter().chain(&peers::WAYS)
}

/// Those with programs that the lab has anyway.
static WAYS: [Way; 24] = [
    Way {
        name: PLAIN,
        what: "forwarding by the kernel, with nothing attached",
        subjects: PLAIN_SUBJECTS,
        clients: &[Client::Device, Client::Gateway],
        peer: false,
        relays: false,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: |_| Ok(None),
    },
    Way {
        name: BYPASSED,
        what: "tproxy-bpf attached, the destination is in its bypass set",
        subjects: FORWARDING,
        clients: &[Client::Device],
        peer: false,
        relays: false,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: |lab| tproxy(lab, LAN, true),
    },
    Way {
        name: PROXIED,
        what: "tproxy-bpf with the outbound direct://",
        subjects: FORWARDING,
        clients: &[Client::Device],
        peer: false,
        relays: true,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: |lab| tproxy(lab, LAN, false),
    },
    Way {
        name: OWN_BYPASSED,
        what: "the gateway's own traffic, tproxy-bpf attached, the destination is in its bypass set",
        subjects: FORWARDING,
        clients: &[Client::Gateway],
        peer: false,
        relays: false,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: |lab| tproxy(lab, WAN, true),
    },
    Way {
        name: OWN_PROXIED,
        what: "the gateway's own traffic, tproxy-bpf with the outbound direct://",
        subjects: FORWARDING,
        clients: &[Client::Gateway],
        peer: false,
        relays: true,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: |lab| tproxy(lab, WAN, false),
    },
    Way {
        name: NO_RULES,
        what: "tproxy-bpf with the outbound direct:// and no rule",
        subjects: &[Subject::Rules],
        clients: &[Client::Device],
        peer: false,
        relays: true,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: |lab| configured(lab, ""),
    },
    Way {
        name: RULES,
        what: "the same with 1,000 rules that need no name",
        subjects: &[Subject::Rules],
        clients: &[Client::Device],
        peer: false,
        relays: true,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: |lab| configured(lab, &rules(false)),
    },
    Way {
        name: NAMES,
        what: "the same with 1,000 rules for which the name is read that the device asks for",
        subjects: &[Subject::Rules],
        clients: &[Client::Device],
        peer: false,
        relays: true,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: |lab| configured(lab, &rules(true)),
    },
    Way {
        name: DNSMASQ,
        what: "dnsmasq on the gateway, nothing attached, with room for 10,000 answers",
        subjects: &[Subject::Dns],
        clients: &[Client::Device],
        peer: false,
        relays: false,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: dnsmasq,
    },
    Way {
        name: RESOLVER,
        what: "tproxy-bpf answers the questions that the device sends elsewhere, with room for 10,000 answers",
        subjects: &[Subject::Dns],
        clients: &[Client::Device],
        peer: false,
        relays: true,
        protocols: Protocols::Both,
        by_server: false,
        families: &Family::BOTH,
        start: |lab| configured(lab, &resolver()),
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
pub const FORWARDING: &[Subject] = &[Subject::Forwarding];
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
        relays: true,
        protocols: Protocols::Tcp,
        by_server: true,
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

const LAN: [&str; 2] = ["--lan", "lan0"];
const WAN: [&str; 2] = ["--wan", "wan0"];

/// Ours. All have a bypass set of the same size; only what is in it differs.
fn tproxy(lab: &Lab, link: [&str; 2], bypass: bool) -> Result<Option<Running>> {
    let tproxy = lab.tproxy(&["run", link[0], link[1], "--outbound", "direct://"])?;
    let mut prefixes = prefixes::random(PREFIXES);
    if bypass {
        for family in Family::BOTH {
            let bits = if family == Family::V4 { 24 } else { 48 };
            prefixes.push(ipnet::IpNet::new(family.far(1), bits)?.trunc());
        }
    }
    let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    // One by one: a load would join them, and the others have each of them.
    for some in texts.chunks(4096) {
        let some = some.iter().map(String::as_str);
        let args: Vec<&str> = ["bypass", "add"].into_iter().chain(some).collect();
        lab.tproxy_run(&args)?.ok()?;
    }
    Ok(Some(Running::new(
        tproxy.process().pid(),
        Stopping::new(tproxy),
    )))
}

/// The DNS server that both resolvers ask, directly.
pub const DNS_UPSTREAM: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
/// The zone of the names that are asked for.
pub const DNS_ZONE: &str = "bench.test";

/// Ours with the lab's LAN link, the outbound direct:// and what else is told.
fn configured(lab: &Lab, more: &str) -> Result<Option<Running>> {
    let config = format!(
        "stage = 2\n[lan]\ninterfaces = [\"{}\"]\n\
         [[outbound]]\nname = \"out\"\nurl = \"direct://\"\n{more}",
        lab.lan()
    );
    let tproxy = lab.tproxy(&["run", "-c", &lab.write(&config)?])?;
    Ok(Some(Running::new(
        tproxy.process().pid(),
        Stopping::new(tproxy),
    )))
}

fn resolver() -> String {
    format!(
        "[dns]\ndirect = [\"{DNS_UPSTREAM}\"]\nproxy = [\"{DNS_UPSTREAM}\"]\n\
         direct_domains = [\"{DNS_ZONE}\"]\ncache = 10000\n"
    )
}

/// 1,000 rules that nothing in the lab matches, in equal shares by prefix, source, port and name.
///
/// `to_all`: those by name are for all ports and lead elsewhere, so that each connection's name has to be read. If
/// not, they are for port 443 alone, which no row uses.
fn rules(to_all: bool) -> String {
    (0..1_000)
        .map(|number| {
            let (high, low) = (number / 256, number % 256);
            let condition = match number % 4 {
                0 => format!("prefix = [\"192.88.{low}.0/24\", \"2001:db8:1:{number:x}::/64\"]"),
                1 => format!("source = [\"172.20.{high}.{low}\"]"),
                2 => format!("port = [{}]", 20_000 + number),
                _ if to_all => format!("domain = [\"site{number}.test\"]"),
                _ => format!("domain = [\"site{number}.test\"]\nport = [443]"),
            };
            format!("[[rule]]\n{condition}\noutbound = \"direct\"\n")
        })
        .collect()
}

/// dnsmasq with nothing but a cache and an upstream.
fn dnsmasq(lab: &Lab) -> Result<Option<Running>> {
    let dnsmasq = Dnsmasq::forwarding(&lab.gateway, DNS_UPSTREAM.into(), 10_000)?;
    Ok(Some(Running::new(dnsmasq.process().pid(), dnsmasq)))
}

/// Ours, which is to detach when it ends.
pub struct Stopping(Option<Tproxy>);

impl Stopping {
    /// This one.
    pub const fn new(tproxy: Tproxy) -> Self {
        Self(Some(tproxy))
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        if let Some(tproxy) = self.0.take()
            && let Err(error) = tproxy.stop()
        {
            eprintln!("stopping tproxy-bpf: {error:#}");
        }
    }
}
