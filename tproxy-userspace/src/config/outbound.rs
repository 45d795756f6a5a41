//! `[[outbound]]`: the ways out.

use std::net::IpAddr;
use std::ops::Range;

use documented::DocumentedFields;
use serde::{Serialize, Serializer};
use tproxy_common::abi::MARK_MASK;

use super::read::Table;
use super::value::{list, number_or_text, text};
use super::{LinkPattern, Refusal, nearest};
use crate::data;
use crate::net::Binding;
use crate::policy::prefix::excerpt;

const LONGEST_NAME: usize = 64;

/// A way out.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Outbound {
    /// `name`: letters, digits, `-`, `_` and `.`; required.
    pub name: String,
    /// `url`: required.
    pub url: data::Outbound,
    /// `via`: the name of the outbound that the server is reached through. Default: none, so the gateway connects to it
    /// itself. An outbound with it carries TCP alone, unless the other one is direct://.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// `source`: the address that the gateway connects from, one of each family at most. Default: the kernel's choice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<IpAddr>,
    /// `interface`: the only link that it connects by. Default: as the routes say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<LinkPattern>,
    /// `mark`: more bits of the firewall mark of these connections, for rules of others. Default: none.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "hexadecimal"
    )]
    pub mark: Option<u32>,
}

impl Outbound {
    /// The name of the way out that is always there: the gateway connects itself. An `[[outbound]]` of that name
    /// takes its place.
    pub const DIRECT: &str = "direct";
    /// The same of the one that ends all that takes it.
    pub const BLOCK: &str = "block";

    /// One with nothing but its URL.
    #[must_use]
    pub fn new(name: impl Into<String>, url: data::Outbound) -> Self {
        Self {
            name: name.into(),
            url,
            via: None,
            source: Vec::new(),
            interface: None,
            mark: None,
        }
    }

    /// The gateway connects itself.
    #[must_use]
    pub fn direct() -> Self {
        Self::new(Self::DIRECT, data::Outbound::Direct)
    }

    /// What the sockets have that the gateway connects with.
    #[must_use]
    pub fn binding(&self) -> Binding {
        let mut binding = Binding {
            interface: self.interface.as_ref().map(ToString::to_string),
            mark: self.mark.unwrap_or_default(),
            ..Binding::default()
        };
        for source in &self.source {
            match source {
                IpAddr::V4(ip) => binding.v4 = Some(*ip),
                IpAddr::V6(ip) => binding.v6 = Some(*ip),
            }
        }
        binding
    }
}

fn hexadecimal<S: Serializer>(mark: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    match mark {
        None => serializer.serialize_none(),
        Some(mark) => serializer.collect_str(&format_args!("{mark:#x}")),
    }
}

/// The names that may be used for outbounds.
pub(super) fn names(outbounds: &[Outbound]) -> Vec<&str> {
    let mut names: Vec<&str> = outbounds.iter().map(|one| &*one.name).collect();
    for built_in in [Outbound::DIRECT, Outbound::BLOCK] {
        if !names.contains(&built_in) {
            names.push(built_in);
        }
    }
    names
}

/// One of these names.
pub(super) fn known(text: &str, names: &[&str]) -> Result<String, Refusal> {
    if names.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(Refusal::new(
        format!("there is no outbound `{}`", excerpt(text)),
        match nearest(text, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are: {}", names.join(", ")),
        },
    ))
}

/// Reads each `[[outbound]]`. `into` stays as it is if there is none.
pub(super) fn read(root: &mut Table<'_>, into: &mut Vec<Outbound>) {
    let mut found: Vec<Outbound> = Vec::new();
    let mut places: Vec<Option<Range<usize>>> = Vec::new();
    root.tables("outbound", |table| {
        let name = table.required("name", text("a name", "proxy", outbound_name));
        let example = "socks5://HOST:PORT";
        let url = table.required("url", text("a URL", example, str::parse::<data::Outbound>));
        // Whether it is there is known when all are read.
        let via = text("the name of an outbound", "proxy", outbound_name);
        let mut outbound = Outbound::direct();
        table.optional("via", &mut outbound.via, via.some());
        let address = text("an address", "192.0.2.1", source);
        table.optional("source", &mut outbound.source, list("addresses", address));
        let link = text("the name of a link", "eth1", interface);
        table.optional("interface", &mut outbound.interface, link.some());
        let bits = number_or_text("bits of a mark", "0x100", mark);
        table.optional("mark", &mut outbound.mark, bits.some());
        let Some(name) = name else { return };
        if found.iter().any(|other| other.name == *name.get_ref()) {
            table.fault(
                name.span(),
                format!("a second outbound has the name `{}`", name.get_ref()),
                Some("give each a name of its own".to_owned()),
            );
        }
        outbound.name = name.into_inner();
        if let Some(url) = url {
            outbound.url = url.into_inner();
            fits(table, &outbound);
        }
        // An outbound whose URL was refused still keeps its name from being used again.
        places.push(table.place("via"));
        found.push(outbound);
    });
    for (outbound, place) in found.iter().zip(places) {
        if let (Some(via), Some(place)) = (&outbound.via, place)
            && let Err(Refusal { message, help }) = leads_somewhere(outbound, via, &found)
        {
            root.fault(place, message, help);
        }
    }
    if !found.is_empty() {
        *into = found;
    }
}

/// Wants that each key is of use with the others.
fn fits(table: &Table<'_>, outbound: &Outbound) {
    let scheme = outbound.url.scheme();
    let refuse = |key: &str, why: String, help: &str| {
        if let Some(place) = table.place(key) {
            table.fault(place, format!("`{key}` {why}"), Some(help.to_owned()));
        }
    };
    if outbound.url.server().is_none() {
        let why = format!("is of no use with {scheme}://, which has no server");
        refuse("via", why, "leave it out");
    }
    for key in ["source", "interface", "mark"] {
        if outbound.url == data::Outbound::Block {
            let why = format!("is of no use with {scheme}://, which connects to nobody");
            refuse(key, why, "leave it out");
        } else if outbound.via.is_some() {
            let why = "is of no use with `via`: the other outbound connects".to_owned();
            refuse(key, why, "write it there");
        }
    }
    for is_v4 in [true, false] {
        let of_family = outbound.source.iter().filter(|ip| ip.is_ipv4() == is_v4);
        if of_family.count() > 1 {
            let why = "has two addresses of one family".to_owned();
            refuse("source", why, "name one for IPv4 and one for IPv6 at most");
        }
    }
}

/// Wants that the outbound that another one is reached through is there, and is not reached through that one.
fn leads_somewhere(outbound: &Outbound, via: &str, all: &[Outbound]) -> Result<(), Refusal> {
    known(via, &names(all))?;
    let of = |name: &str| all.iter().find(|one| one.name == name);
    let blocks = match of(via) {
        None => via == Outbound::BLOCK,
        Some(other) => other.url == data::Outbound::Block,
    };
    if blocks {
        return Err(Refusal::new(
            format!("nothing is reached through `{via}`, which lets nothing pass"),
            "name another outbound",
        ));
    }
    let mut way = vec![&*outbound.name];
    let mut next = Some(via);
    while let Some(name) = next {
        way.push(name);
        if name == outbound.name {
            // A circle is told of once, at the first outbound of it.
            let first = all.iter().find(|one| way.contains(&&*one.name));
            if first.is_some_and(|first| first.name != outbound.name) {
                break;
            }
            return Err(Refusal::new(
                format!(
                    "`{name}` would be reached through itself: {}",
                    way.join(" → ")
                ),
                "let one of them be reached without `via`",
            ));
        }
        // A circle that this one only leads to is told of where it is.
        if way.len() > all.len() + 1 {
            break;
        }
        next = of(name).and_then(|other| other.via.as_deref());
    }
    Ok(())
}

pub(super) fn outbound_name(text: &str) -> Result<String, Refusal> {
    let fits = (1..=LONGEST_NAME).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if fits {
        return Ok(text.to_owned());
    }
    Err(Refusal::new(
        format!("`{}` is not a name for an outbound", excerpt(text)),
        format!("write 1 to {LONGEST_NAME} of: A-Z a-z 0-9 - _ ."),
    ))
}

fn source(text: &str) -> Result<IpAddr, Refusal> {
    let refuse = |why: &str| {
        let message = format!("`{}` {why}", excerpt(text));
        Refusal::new(message, "write an address of this machine, like 192.0.2.1")
    };
    let ip: IpAddr = text.parse().map_err(|_| refuse("is not an address"))?;
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(refuse("is nothing to connect from"));
    }
    Ok(ip)
}

fn interface(text: &str) -> Result<LinkPattern, Refusal> {
    let link: LinkPattern = text.parse()?;
    if link.is_glob() {
        let message = format!("`{link}` stands for more than one link");
        return Err(Refusal::new(message, "name one, like eth1"));
    }
    Ok(link)
}

fn mark(text: &str) -> Result<u32, Refusal> {
    let help = || format!("write bits outside of {MARK_MASK:#x}, like 0x100");
    let number = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let plain = !text.contains(['+', '-']);
    let number = number.ok().filter(|_| plain).ok_or_else(|| {
        Refusal::new(
            format!("`{}` is not a number of 32 bits", excerpt(text)),
            help(),
        )
    })?;
    if number == 0 {
        return Err(Refusal::new("the mark 0 has no bits", "leave it out"));
    }
    if number & MARK_MASK != 0 {
        let message =
            format!("{number:#x} has bits of {MARK_MASK:#x}, which tproxy-bpf itself needs");
        return Err(Refusal::new(message, help()));
    }
    Ok(number)
}
