//! `[[rule]]`: which connections take which outbound.

use std::path::Path;

use documented::DocumentedFields;
use ipnet::IpNet;
use serde::Serialize;

use super::domain::{DomainSource, domains};
use super::parse::file;
use super::read::{Faults, Table};
use super::schema::Shape;
use super::value::{Reader, Value, choice, integer, some, text};
use super::{Refusal, outbound};
use crate::policy::port::PortRange;
use crate::policy::prefix;
use crate::policy::rule::Protocol;
use crate::policy::source::Source;

const LONGEST_NAME: usize = 64;

/// Which connections take an outbound. All conditions that are given must hold, and of each any entry; no list may
/// be empty. What the bypass set lets pass never comes to the rules.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// `name`: 1 to 64 characters, for people. Default "rule 3" for the third.
    pub name: String,
    /// `domain`: the name that the device asks for. "x.com" is it and all below it, ".x.com" only what is below
    /// it, "full:x.com" it alone, "keyword:x" any name that holds the text, "regexp:x" any in which the expression
    /// is found; and lists of such names, like "names.txt" or "geosite.dat:cn". Default: any name, or none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domain: Vec<DomainSource>,
    /// `prefix`: the original destination. In order, without doubles. Together with `prefix_files` one condition.
    /// Default: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefix: Vec<IpNet>,
    /// `prefix_files`: lists of prefixes, as in `[bypass] files`. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefix_files: Vec<Source>,
    /// `source`: prefixes of devices. In order, without doubles. Default: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<IpNet>,
    /// `port`: ports of the original destination, like 53, "443" or "1000-2000". Default: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port: Vec<PortRange>,
    /// `protocol`: "tcp" or "udp". Default: both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// `outbound`: the name of an `[[outbound]]` or a `[[group]]`, or "direct" or "block", which are there without being named;
    /// required.
    pub outbound: String,
}

/// Reads each `[[rule]]`.
pub(super) fn read(root: &mut Table<'_>, exits: &[&str], folder: &Path) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut number = 0;
    root.tables("rule", |table| {
        number += 1;
        let mut rule = Rule {
            name: format!("rule {number}"),
            domain: Vec::new(),
            prefix: Vec::new(),
            prefix_files: Vec::new(),
            source: Vec::new(),
            port: Vec::new(),
            protocol: None,
            outbound: String::new(),
        };
        table.optional("name", &mut rule.name, text("a name", "video", name));
        let (what, domain) = domains(folder);
        table.optional("domain", &mut rule.domain, some(what, domain));
        let prefixes = || some("prefixes", text("a prefix", "192.0.2.0/24", prefix::parse));
        table.optional("prefix", &mut rule.prefix, prefixes());
        let path = text("the path of a list", "list.txt or geoip.dat:cn", |text| {
            file(folder, text)
        });
        table.optional("prefix_files", &mut rule.prefix_files, some("paths", path));
        table.optional("source", &mut rule.source, prefixes());
        prefix::normalize(&mut rule.prefix);
        prefix::normalize(&mut rule.source);
        table.optional("port", &mut rule.port, some("ports", port()));
        let protocols = choice(&[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)]);
        table.optional("protocol", &mut rule.protocol, protocols.some());
        let one = text("the name of an outbound", "proxy", |text| {
            outbound::known(text, exits)
        });
        if let Some(outbound) = table.required("outbound", one) {
            rule.outbound = outbound.into_inner();
            rules.push(rule);
        }
    });
    rules
}

/// A port or a range, with or without quotes.
fn port() -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<PortRange>> {
    let number = integer::<u16>("a port", 0..=65_535);
    let range = text("a port", "443", str::parse::<PortRange>);
    let shape = Shape::Either(vec![number.shape().clone(), range.shape().clone()]);
    Reader::new(shape, move |value, faults| {
        if value.get_ref().is_integer() {
            return number.read(value, faults).map(PortRange::from);
        }
        range.read(value, faults)
    })
}

/// A name that fits into one line of what is printed.
fn name(text: &str) -> Result<String, Refusal> {
    let fits =
        (1..=LONGEST_NAME).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits {
        return Ok(text.to_owned());
    }
    Err(Refusal::new(
        format!("`{}` is not a name for a rule", prefix::excerpt(text)),
        format!("write 1 to {LONGEST_NAME} characters in one line"),
    ))
}
