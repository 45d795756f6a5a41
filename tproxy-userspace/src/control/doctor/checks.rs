//! The checks: pure, each over all facts.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Bpffs, Covered, Facts, Finding, LanLink, Severity};
use super::{clock, firewall, hooks, limits, ports, secrets};
use crate::control::preflight::{KernelVersion, OLDEST_KERNEL};

/// A check. It returns nothing where it does not apply.
pub(super) type Check = fn(&Facts) -> Vec<Finding>;

/// All checks, in the order of the findings.
pub(super) const CHECKS: &[Check] = &[
    kernel,
    capabilities,
    bpffs,
    cgroup2,
    lan,
    way_out,
    forwarding_v4,
    forwarding_v6,
    translation,
    redirects,
    rp_filter,
    hooks::check,
    firewall::firewall,
    firewall::marks,
    ports::check,
    limits::files,
    limits::conntrack,
    clock::check,
    secrets::check,
];

fn kernel(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "kernel";
    let release = &facts.release;
    vec![match KernelVersion::parse(release) {
        None => Finding::hint(CHECK, format!("it calls itself {release:?}")).because(format!(
            "tproxy-bpf needs Linux {OLDEST_KERNEL} or later, and this name does not tell"
        )),
        Some(version) if version < OLDEST_KERNEL => {
            Finding::problem(CHECK, format!("Linux {version}"))
                .because(format!("tproxy-bpf needs Linux {OLDEST_KERNEL} or later"))
                .remedy("boot a newer kernel")
        }
        Some(version) if !version.has_tcx() && !facts.missing_for_clsact.is_empty() => {
            let missing = facts.missing_for_clsact.join(" and ");
            Finding::problem(CHECK, format!("Linux {version} without the module {missing}"))
                .because("before Linux 6.6 programs are held by filters of a clsact qdisc, which are these modules")
                .remedy("install the rest of the kernel's modules, or boot Linux 6.6 or later")
        }
        Some(version) => {
            let way = if version.has_tcx() {
                "tcx links"
            } else {
                "filters of a clsact qdisc, since it has no tcx (Linux 6.6)"
            };
            Finding::ok(
                CHECK,
                format!("Linux {version}: programs are attached by {way}"),
            )
        }
    }]
}

fn capabilities(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "privileges";
    if facts.missing_capabilities.is_empty() {
        return vec![Finding::ok(CHECK, "this process may change the network")];
    }
    let missing = facts.missing_capabilities.join(" and ");
    vec![
        Finding::problem(CHECK, format!("this process lacks {missing}"))
            .because("programs cannot be loaded, and some of the checks see nothing")
            .remedy("run it as root: sudo tproxy-bpf doctor"),
    ]
}

fn bpffs(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "BPF file system";
    vec![match facts.bpffs {
        Bpffs::Mounted => Finding::ok(CHECK, "it is mounted"),
        Bpffs::Available => Finding::ok(
            CHECK,
            "it is not mounted; tproxy-bpf does that when it starts",
        ),
        Bpffs::Missing => Finding::problem(CHECK, "the kernel has none")
            .because("programs and maps are kept there")
            .remedy("boot a kernel with CONFIG_BPF_SYSCALL"),
    }]
}

fn cgroup2(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "cgroup2";
    vec![match &facts.cgroup2 {
        Some(path) => Finding::ok(CHECK, format!("it is mounted at {}", path.display())),
        None => Finding::hint(CHECK, "it is not mounted")
            .because("programs of the gateway cannot be exempted by gid, uid or cgroup")
            .remedy("mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
    }]
}

fn lan(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "LAN links";
    let names: Vec<&str> = facts.lan.iter().map(|link| link.name.as_str()).collect();
    if let Some(reason) = &facts.unfit_lan {
        return vec![
            Finding::problem(CHECK, reason.clone())
                .because("the programs are attached there")
                .remedy("name the link that the devices are connected to: --lan IF"),
        ];
    }
    if names.is_empty() {
        return vec![
            Finding::hint(CHECK, "none is known")
                .because("whether its devices get answers, and are told to go round the gateway, was not checked")
                .remedy("name it: tproxy-bpf doctor --lan IF"),
        ];
    }
    let (with, without): (Vec<_>, Vec<_>) =
        facts.lan.iter().partition(|link| !link.sources.is_empty());
    let mut findings = Vec::new();
    for link in without {
        findings.push(
            Finding::hint(CHECK, format!("{} has no address and no route", link.name))
                .because("only who is in a subnet of the link may use the proxy, and there is none")
                .remedy(format!("give it an address: ip address add 192.168.0.1/24 dev {}; or name prefixes in `[lan] sources`", link.name)),
        );
    }
    for link in with {
        let sources = list(&link.sources);
        findings.push(Finding::ok(
            CHECK,
            format!("{}, with devices in {sources}", link.name),
        ));
    }
    findings
}

fn way_out(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "way out";
    if facts.ways_out.is_empty() {
        return vec![
            Finding::hint(CHECK, "the main table has no default route")
                .because("neither the proxy nor what goes direct reaches the internet")
                .remedy("ip route add default via ROUTER"),
        ];
    }
    let ways = list(&facts.ways_out);
    vec![Finding::ok(
        CHECK,
        format!("default routes leave by {ways}"),
    )]
}

const FORWARD: &str = "[gateway] forward = true";

fn forwarding(facts: &Facts, check: &'static str, on: Option<bool>, key: &str) -> Vec<Finding> {
    let Some(on) = on else {
        return Vec::new();
    };
    if on {
        return vec![Finding::ok(check, format!("{key} is on"))];
    }
    if facts.configured.forward && !facts.attached {
        let found = format!("{key} is off; tproxy-bpf switches it on while it is attached");
        return vec![Finding::ok(check, found)];
    }
    let finding = Finding::problem(check, format!("{key} is off"))
        .because("what goes direct (bypassed, private, no proxy) is not forwarded, so devices do not get there");
    vec![if facts.configured.forward {
        finding.remedy("somebody switched it off again; restart tproxy-bpf")
    } else {
        finding.remedy(format!(
            "`{FORWARD}` in the configuration, or: sysctl -w {key}=1"
        ))
    }]
}

fn forwarding_v4(facts: &Facts) -> Vec<Finding> {
    forwarding(
        facts,
        "forwarding",
        facts.forwarding_v4,
        "net.ipv4.ip_forward",
    )
}

fn forwarding_v6(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "forwarding, IPv6";
    const KEY: &str = "net.ipv6.conf.all.forwarding";
    let no_devices = !facts.lan.is_empty() && sources(facts, 6).next().is_none();
    if no_devices && facts.forwarding_v6 == Some(false) {
        let found = format!("{KEY} is off; no LAN link has an IPv6 subnet");
        return vec![Finding::ok(CHECK, found)];
    }
    let mut findings = forwarding(facts, CHECK, facts.forwarding_v6, KEY);
    for finding in &mut findings {
        // What `forward = true` sees to by itself.
        if finding.severity == Severity::Problem && !facts.configured.forward {
            finding.remedy +=
                " (a link with routes from router advertisements needs accept_ra=2 first)";
        }
    }
    findings
}

/// The sources of one family, each with its link.
fn sources(facts: &Facts, family: u8) -> impl Iterator<Item = (&LanLink, IpNet)> {
    let links = facts.lan.iter();
    links
        .flat_map(|link| link.sources.iter().map(move |source| (link, *source)))
        .filter(move |(_, source)| source.addr().is_ipv4() == (family == 4))
}

/// Ranges that no router of the internet knows a way to: RFC 1918, RFC 6598, RFC 4193.
const PRIVATE: [&str; 5] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
];

pub(super) fn is_private(source: IpNet) -> bool {
    let mut ranges = PRIVATE
        .iter()
        .filter_map(|range| range.parse::<IpNet>().ok());
    ranges.any(|range| range.contains(&source))
}

fn translation(facts: &Facts) -> Vec<Finding> {
    if facts.ways_out.is_empty() {
        return Vec::new();
    }
    let findings = [(4, "translation"), (6, "translation, IPv6")];
    findings
        .into_iter()
        .filter_map(|(family, check)| translation_of(facts, family, check))
        .collect()
}

fn translation_of(facts: &Facts, family: u8, check: &'static str) -> Option<Finding> {
    let private: Vec<_> = sources(facts, family)
        .filter(|(_, source)| is_private(*source))
        .collect();
    if private.is_empty() {
        let any = sources(facts, family).next().is_some();
        return any.then(|| Finding::ok(check, "the devices' addresses need none"));
    }
    let covered = |(link, source): &(&LanLink, IpNet)| {
        let rules = facts.translation.rules.iter();
        rules
            .map(|rule| rule.covers(*source, &link.arrive, &facts.ways_out))
            .max()
            .unwrap_or(Covered::No)
    };
    let having = |what: Covered| -> BTreeSet<IpNet> {
        let found = private.iter().filter(|source| covered(source) == what);
        found.map(|(_, source)| *source).collect()
    };
    let (missing, perhaps) = (having(Covered::No), having(Covered::Perhaps));
    let ways = list(&facts.ways_out);
    if missing.is_empty() && perhaps.is_empty() {
        let found = format!("addresses of devices are translated on the way out by {ways}");
        return Some(Finding::ok(check, found));
    }
    if missing.is_empty() {
        let found = format!(
            "{} is translated on the way out by {ways} under conditions that are not understood here",
            list(&perhaps)
        );
        return Some(
            Finding::hint(check, found)
                .because("devices with private addresses get no answers from where they are not translated")
                .remedy("nft list ruleset; iptables-save -t nat"),
        );
    }
    let sources = list(&missing);
    if facts.configured.masquerade && !facts.attached {
        let found = format!("{sources} is not translated; tproxy-bpf does it while it is attached");
        return Some(Finding::ok(check, found));
    }
    if let Some((reason, remedy)) = &facts.translation.unseen {
        return Some(
            Finding::hint(
                check,
                format!("no translation of {sources} was seen, but {reason}"),
            )
            .because(
                "devices with private addresses get no answers from where they are not translated",
            )
            .remedy(remedy.clone()),
        );
    }
    let finding = Finding::problem(
        check,
        format!("{sources} is not translated on the way out by {ways}"),
    )
    .because(
        "what goes direct (bypassed, no proxy) leaves with the device's private address, so it gets no \
         answer; unless a router beyond knows a route back to it, or translates it",
    );
    Some(if facts.configured.masquerade {
        finding.remedy("somebody removed the table of tproxy-bpf; restart tproxy-bpf")
    } else {
        let which = if family == 4 {
            "meta nfproto ipv4"
        } else {
            "ip6 saddr fc00::/7"
        };
        let links: Vec<_> = facts
            .ways_out
            .iter()
            .map(|way| format!("\"{way}\""))
            .collect();
        finding.remedy(format!(
            "`[gateway] masquerade = true` in the configuration; or: nft 'add table inet lan_nat; \
             add chain inet lan_nat out {{ type nat hook postrouting priority 100; }}; \
             add rule inet lan_nat out oifname {{ {} }} {which} masquerade'; \
             or a route to {sources} on the router beyond",
            links.join(", ")
        ))
    })
}

fn redirects(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "redirects";
    let arrive: BTreeSet<String> = facts
        .lan
        .iter()
        .flat_map(|link| link.arrive.clone())
        .collect();
    let is_on = |name: &str| facts.send_redirects.get(name) == Some(&true);
    let judge = |link: &String| {
        if !is_on("all") && !is_on(link) {
            return Finding::ok(CHECK, format!("{link} sends none"));
        }
        if facts.configured.forward && !facts.attached {
            let found =
                format!("{link} sends them; tproxy-bpf switches that off while it is attached");
            return Finding::ok(CHECK, found);
        }
        let keys = ["all", link].map(|name| format!("net/ipv4/conf/{name}/send_redirects=0"));
        Finding::hint(
            CHECK,
            format!("{link} is a LAN link and a way out, and send_redirects is on"),
        )
        .because("the kernel tells devices to ask the next router themselves, and then they go round the gateway")
        .remedy(format!("`{FORWARD}` in the configuration, or: sysctl -w {}", keys.join(" ")))
    };
    arrive.intersection(&facts.ways_out).map(judge).collect()
}

fn rp_filter(facts: &Facts) -> Vec<Finding> {
    if facts.rp_filter.is_empty() {
        return Vec::new();
    }
    let values: Vec<_> = facts
        .rp_filter
        .iter()
        .map(|(link, value)| format!("{link} = {value}"))
        .collect();
    let found = format!("{}; any value works", values.join(", "));
    vec![Finding::ok("rp_filter", found)]
}

pub(super) fn list<T: ToString>(items: &BTreeSet<T>) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}
