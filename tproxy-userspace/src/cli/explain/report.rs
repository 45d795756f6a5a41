//! What `explain` prints.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use ipnet::IpNet;
use serde::Serialize;
use tproxy_common::abi::{Effect, Origin, Reason};
use tproxy_userspace::control::bpf::BypassEntry;
use tproxy_userspace::control::bypass;
use tproxy_userspace::data::{Explained, NamedRule, Taken};
use tproxy_userspace::policy::rule::Protocol;

use super::super::counters::effect_word;
use super::super::output;

/// All that is said.
#[derive(Serialize)]
pub struct Report {
    /// As it was asked for.
    pub destination: String,
    pub protocol: Protocol,
    /// The name that the device asks for.
    pub name: Option<String>,
    /// If the destination is a name.
    pub looked_up: Option<LookedUp>,
    /// One for each address.
    pub packets: Vec<Packet>,
    /// Addresses of which nothing can be said, with the reason.
    pub left_out: Vec<String>,
}

#[derive(Serialize)]
pub struct LookedUp {
    /// Who was asked: "proxy" or "system".
    by: &'static str,
    pub addresses: Vec<IpAddr>,
}

impl LookedUp {
    pub fn new(name: &str, by: &'static str, found: Vec<IpAddr>) -> Result<Self> {
        let mut addresses = Vec::new();
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            bail!("looking up {name} failed: it has no address");
        }
        Ok(Self { by, addresses })
    }
}

#[derive(Serialize)]
pub struct Packet {
    pub destination: SocketAddr,
    pub source: Option<IpAddr>,
    /// The gateway itself sends it.
    pub own: bool,
    /// Where the kernel half sees it; for what it does not see, where that leaves.
    pub link: Option<String>,
    /// The prefix by which the source may use the proxy.
    pub admitted: Option<IpNet>,
    /// "pass", "steer" or "drop".
    verdict: &'static str,
    /// The word of the counter. Null: the kernel half does not see it.
    reason: Option<&'static str>,
    sentence: String,
    /// The gateway's own prefix that the destination is in.
    pub local: Option<Local>,
    /// The entry of the bypass set that decided.
    pub bypass: Option<Bypassed>,
    on_proxy_down: &'static str,
    pub proxy: Proxy,
    /// Programs that are exempt send such packets past the proxy.
    pub may_be_exempt: bool,
    /// The attached program is another build's, so it may decide otherwise.
    pub outdated: bool,
}

#[derive(Serialize)]
pub struct Local {
    prefix: IpNet,
    /// "address" or "subnet".
    kind: &'static str,
}

#[derive(Serialize)]
pub struct Bypassed {
    prefix: IpNet,
    origin: &'static str,
    comment: String,
    /// Seconds until it counts no more; null: never.
    expires_in: Option<u64>,
}

#[derive(Default, Serialize)]
pub struct Proxy {
    /// Null: none runs.
    pub pid: Option<u32>,
    /// What its rules say of what is steered.
    pub says: Option<Explained>,
    /// Why it says nothing.
    pub error: Option<String>,
}

impl From<(IpNet, bool)> for Local {
    fn from((prefix, is_address): (IpNet, bool)) -> Self {
        let kind = if is_address { "address" } else { "subnet" };
        Self { prefix, kind }
    }
}

impl From<&BypassEntry> for Bypassed {
    fn from(entry: &BypassEntry) -> Self {
        let is_origin = |origin: &Origin| *origin as u32 == entry.value.origin;
        let origin = Origin::ALL.into_iter().find(is_origin);
        let left = bypass::time_left(&entry.value, bypass::now());
        Self {
            prefix: entry.prefix,
            origin: origin.map_or("?", Origin::word),
            comment: entry.note.clone(),
            expires_in: left.map(|left| left.as_secs()),
        }
    }
}

impl Packet {
    /// A packet of which nothing is known yet.
    pub fn new(destination: SocketAddr, down_drops: bool) -> Self {
        Self {
            destination,
            source: None,
            own: false,
            link: None,
            admitted: None,
            verdict: effect_word(Effect::Pass),
            reason: None,
            sentence: String::new(),
            local: None,
            bypass: None,
            on_proxy_down: if down_drops { "drop" } else { "pass" },
            proxy: Proxy::default(),
            may_be_exempt: false,
            outdated: false,
        }
    }

    /// The kernel half does this with it.
    pub fn judge(&mut self, reason: Option<Reason>) {
        match reason {
            Some(reason) => {
                self.verdict = effect_word(reason.effect());
                self.reason = Some(reason.word());
                self.sentence = reason.sentence().to_owned();
            }
            None => "The kernel half does not look at such packets.".clone_into(&mut self.sentence),
        }
    }

    /// The gateway sends it by this link, where nothing looks at it.
    pub fn unseen(&mut self, way: Option<(String, Option<IpAddr>)>) {
        let Some((link, source)) = way else {
            "The gateway has no route there.".clone_into(&mut self.sentence);
            return;
        };
        self.sentence = if link == "lo" {
            "It stays on the gateway.".to_owned()
        } else {
            format!(
                "What the gateway itself sends by {link} is not looked at: that is no WAN link."
            )
        };
        (self.link, self.source) = (Some(link), source);
    }
}

/// For a person.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    if let Some(LookedUp { by, addresses }) = &report.looked_up {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let by = match *by {
            "proxy" => "the proxy's resolver",
            _ => "the system's resolver",
        };
        let _ = writeln!(
            text,
            "{} is {} ({by})\n",
            report.name.as_deref().unwrap_or_default(),
            addresses.join(", ")
        );
    }
    for (index, packet) in report.packets.iter().enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        let protocol = match report.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        let _ = writeln!(text, "{gap}{protocol} to {}", packet.destination);
        for (index, step) in steps(packet, report).iter().enumerate() {
            let _ = writeln!(text, "{}. {step}", index + 1);
        }
    }
    for left_out in &report.left_out {
        let _ = writeln!(text, "\nleft out: {left_out}");
    }
    text
}

fn steps(packet: &Packet, report: &Report) -> Vec<String> {
    let mut steps = vec![begin(packet)];
    let reason = Reason::ALL
        .iter()
        .find(|reason| Some(reason.word()) == packet.reason);
    match reason {
        None => steps.push(format!(
            "goes on as without tproxy-bpf: {}",
            packet.sentence
        )),
        Some(reason) => {
            decided(packet, *reason, &mut steps);
        }
    }
    if packet.verdict == effect_word(Effect::Steer) {
        match (&packet.proxy.says, &packet.proxy.error) {
            (Some(says), _) => rules(says, report, &mut steps),
            (None, Some(error)) => steps.push(format!("the rules are not known: {error}")),
            (None, None) => {}
        }
    }
    if packet.may_be_exempt {
        steps.push("from an exempt program it goes direct (`tproxy-bpf exempt list`)".to_owned());
    }
    if packet.outdated {
        steps.push(
            "all this is what the program of this tproxy-bpf does; the one that is attached is another build's \
             (`tproxy-bpf attach` or a restart of the proxy renews it)"
                .to_owned(),
        );
    }
    steps
}

fn begin(packet: &Packet) -> String {
    let admitted = match (packet.admitted, packet.reason) {
        (Some(prefix), _) => format!(" (admitted: {prefix})"),
        (None, Some(_)) => " (not admitted there)".to_owned(),
        (None, None) => String::new(),
    };
    let source = packet
        .source
        .map_or(String::new(), |source| format!(" from {source}"));
    match (&packet.link, packet.own) {
        (Some(link), true) => format!("the gateway itself sends it by {link}{source}{admitted}"),
        (Some(link), false) => format!("arrives on {link}{source}{admitted}"),
        (None, _) => format!("the gateway itself sends it{source}"),
    }
}

fn decided(packet: &Packet, reason: Reason, steps: &mut Vec<String>) {
    let sentence = &packet.sentence;
    match (reason, reason.effect()) {
        (Reason::Bypassed, _) if let Some(entry) = &packet.bypass => {
            steps.push(format!("goes direct: {}", bypassed(entry)));
        }
        (Reason::DownPassed | Reason::DownDropped, effect) => {
            steps.push("not bypassed, so it is for the proxy".to_owned());
            let what = if effect == Effect::Drop {
                "dropped"
            } else {
                "goes direct"
            };
            steps.push(format!("{what}: {sentence}"));
            if packet.proxy.pid.is_some() {
                steps.push("a proxy process is there, but takes no new traffic".to_owned());
            }
        }
        (Reason::OwnAddress | Reason::OwnSubnet, _)
            if let Some(Local { prefix, .. }) = &packet.local =>
        {
            let sentence = sentence.trim_end_matches('.');
            steps.push(format!("goes direct: {sentence} ({prefix})."));
        }
        (_, Effect::Pass) => steps.push(format!("goes direct: {sentence}")),
        (_, Effect::Drop) => steps.push(format!("dropped: {sentence}")),
        (reason, Effect::Steer) => {
            if reason != Reason::DnsSteered {
                steps.push("not bypassed".to_owned());
            }
            steps.push(format!("steered to the proxy: {sentence}"));
        }
    }
}

fn bypassed(entry: &Bypassed) -> String {
    let mut text = format!("{} is in the bypass set, from ", entry.prefix);
    text.push_str(match entry.origin {
        "command" => "the command line",
        "config" => "the configuration",
        "outbound" => "the proxy",
        other => other,
    });
    if !entry.comment.is_empty() {
        let _ = write!(text, " (\"{}\")", entry.comment);
    }
    if let Some(seconds) = entry.expires_in {
        let left = output::duration(Duration::from_secs(seconds));
        let _ = write!(text, ", for {left} more");
    }
    text
}

fn rules(says: &Explained, report: &Report, steps: &mut Vec<String>) {
    if let Some(resolving) = &says.resolver {
        let asked = match (&resolving.group, &report.name) {
            (Some(group), Some(name)) => {
                format!("asks the \"{group}\" servers of [dns] for {name}")
            }
            _ => "asks the servers of [dns] that the name in question is for (--name)".to_owned(),
        };
        steps.push(format!("the proxy's resolver answers, and {asked}"));
        return;
    }
    let outbound = outbound(&says.outbound);
    steps.push(match &says.rule {
        Some(rule) => format!("{} → {outbound}", rule_text(rule)),
        None => format!("no rule is about it → {outbound}, the default"),
    });
    if says.by_name
        && let Some(name) = &report.name
    {
        steps.push(format!(
            "the outbound is asked for {name}, not for the address"
        ));
    }
    if says.turned_by_name.is_empty() {
        return;
    }
    let turning = says.turned_by_name.iter();
    let turning: Vec<_> = turning
        .map(|rule| format!("{} → outbound \"{}\"", rule_text(rule), rule.outbound))
        .collect();
    let turning = turning.join(", ");
    steps.push(if says.reads_name {
        format!("a name could change it (--name): {turning}")
    } else {
        format!("names are not read ([sniff]), or it would be for a name: {turning}")
    });
}

fn rule_text(rule: &NamedRule) -> String {
    format!("rule {} \"{}\"", rule.place, rule.name)
}

fn outbound(taken: &Taken) -> String {
    let servers: Vec<_> = taken.servers.iter().map(ToString::to_string).collect();
    let at = if servers.is_empty() {
        String::new()
    } else {
        format!(", server at {}", servers.join(", "))
    };
    let group = match &taken.group {
        Some(group) => format!(", of the group \"{group}\" now"),
        None => String::new(),
    };
    format!("outbound \"{}\" ({}{at}){group}", taken.name, taken.url)
}
