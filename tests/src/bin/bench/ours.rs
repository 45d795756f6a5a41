//! How our own ways are set up, and the DNS server that one of them is compared with.

use std::net::Ipv4Addr;

use anyhow::Result;
use lab::{Family, Lab, Tproxy, servers::Dnsmasq};

use crate::{prefixes, ways::Running};

/// How many prefixes of each family are in the bypass set.
pub const PREFIXES: usize = 65_536;
/// The flag and link of devices.
pub const LAN: [&str; 2] = ["--lan", "lan0"];
/// The flag and link of the gateway itself.
pub const WAN: [&str; 2] = ["--wan", "wan0"];

/// Ours. All have a bypass set of the same size; only what is in it differs.
///
/// # Errors
/// When it does not start, or refuses a prefix.
pub fn tproxy(lab: &Lab, link: [&str; 2], bypass: bool) -> Result<Option<Running>> {
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
///
/// # Errors
/// When it does not start.
pub fn configured(lab: &Lab, more: &str) -> Result<Option<Running>> {
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

/// The part of a configuration that makes it answer questions.
pub fn resolver() -> String {
    format!(
        "[dns]\ndirect = [\"{DNS_UPSTREAM}\"]\nproxy = [\"{DNS_UPSTREAM}\"]\n\
         direct_domains = [\"{DNS_ZONE}\"]\ncache = 10000\n"
    )
}

/// 1,000 rules that nothing in the lab matches, in equal shares by prefix, source, port and name.
///
/// `to_all`: those by name are for all ports and lead elsewhere, so that each connection's name has to be read. If
/// not, they are for port 443 alone, which no row uses.
pub fn rules(to_all: bool) -> String {
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
///
/// # Errors
/// When it does not start.
pub fn dnsmasq(lab: &Lab) -> Result<Option<Running>> {
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
