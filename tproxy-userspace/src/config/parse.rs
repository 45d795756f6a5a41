//! Which keys there are, where they stand and what they may be.

use std::path::Path;
use std::str::Utf8Error;
use std::time::Duration;

use super::error::ConfigError;
use super::read::{Faults, Key, Table, document, known};
use super::value::{at_least, boolean, choice, integer, list, number_or_text, text, within};
use super::{
    CgroupPath, Config, ExpressLane, IdOrName, LinkPattern, Mark, OnProxyDown, Refusal, Stage,
    WanPattern, api, check, dns, group, outbound, rule,
};
use crate::policy::prefix;
use crate::policy::source::{STANDARD_INPUT, Source};

const SECOND: Duration = Duration::from_secs(1);
/// More is a slip of the keyboard, not a limit.
const LARGEST_LIMIT: i128 = 10_000_000;
/// The longest `TCP_KEEPIDLE` is 32,767 s (`MAX_TCP_KEEPIDLE` in the kernel's include/net/tcp.h).
const LONGEST_KEEPALIVE: Duration = Duration::from_hours(9);
/// A connection to a server that speaks first waits for as long.
const LONGEST_SNIFF: Duration = Duration::from_secs(5);

pub(super) fn config(text: &str, path: &Path) -> Result<Config, ConfigError> {
    document(text, path, |root| {
        read(root, path.parent().unwrap_or(Path::new("")))
    })
}

/// Every key that there is, with the name of its table.
pub(super) fn keys() -> Vec<(String, Key)> {
    known(|root| read(root, Path::new("")))
}

fn read(root: &mut Table<'_>, folder: &Path) -> Config {
    let mut number = Stage::default() as u8;
    root.optional("stage", &mut number, integer("a stage", 1..=4));
    let stage = Stage::ALL.into_iter().find(|stage| *stage as u8 == number);
    let mut config = Config::preset(stage.unwrap_or_default());
    read_into(root, &mut config, folder);
    config
}

fn read_into(root: &mut Table<'_>, config: &mut Config, folder: &Path) {
    root.optional(
        "on_proxy_down",
        &mut config.on_proxy_down,
        choice(&[("pass", OnProxyDown::Pass), ("drop", OnProxyDown::Drop)]),
    );
    root.table("lan", |lan| {
        let link = text("the name of a link", "eth0", str::parse::<LinkPattern>);
        lan.optional(
            "interfaces",
            &mut config.lan.interfaces,
            list("names of links", link),
        );
        prefixes(lan, "sources", &mut config.lan.sources);
    });
    root.table("wan", |wan| {
        let link = text("the name of a link", "eth1", str::parse::<WanPattern>);
        wan.optional(
            "interfaces",
            &mut config.wan.interfaces,
            list("names of links", link),
        );
    });
    outbound::read(root, &mut config.outbounds);
    config.groups = group::read(root, &config.outbounds);
    check::read(root, &mut config.check);
    let names = group::names(&config.outbounds, &config.groups);
    config.rules = rule::read(root, &names, folder);
    root.table("bypass", |bypass| {
        bypass.optional("private", &mut config.bypass.private, boolean());
        prefixes(bypass, "prefixes", &mut config.bypass.prefixes);
        let file = text("the path of a list", "list.txt or geoip.dat:cn", |text| {
            file(folder, text)
        });
        bypass.optional("files", &mut config.bypass.files, list("paths", file));
    });
    config.dns = dns::read(root, folder);
    root.table("sniff", |sniff| {
        sniff.optional("enabled", &mut config.sniff.enabled, boolean());
        let limit = within(Duration::from_millis(1)..=LONGEST_SNIFF);
        sniff.optional("timeout", &mut config.sniff.timeout, limit);
        sniff.optional("rewrite", &mut config.sniff.rewrite, boolean());
    });
    root.table("exempt", |exempt| {
        let id = || number_or_text("a number or a name", "proxy", str::parse::<IdOrName>);
        exempt.optional("gids", &mut config.exempt.gids, list("groups", id()));
        exempt.optional("uids", &mut config.exempt.uids, list("users", id()));
        let path = text(
            "the path of a cgroup",
            "/system.slice/foo.service",
            str::parse::<CgroupPath>,
        );
        let cgroups = list("paths of cgroups", path);
        exempt.optional("cgroups", &mut config.exempt.cgroups, cgroups);
        let mark = number_or_text("a mark", "0x80000/0xff0000", str::parse::<Mark>);
        exempt.optional("marks", &mut config.exempt.marks, list("marks", mark));
    });
    root.table("tcp", |tcp| {
        tcp.optional("idle", &mut config.tcp.idle, at_least(SECOND));
        tcp.optional(
            "connect_timeout",
            &mut config.tcp.connect_timeout,
            at_least(Duration::from_millis(100)),
        );
        tcp.optional(
            "keepalive",
            &mut config.tcp.keepalive,
            within(SECOND..=LONGEST_KEEPALIVE),
        );
        let connections = integer("a number of connections", 1..=LARGEST_LIMIT);
        tcp.optional(
            "max_connections",
            &mut config.tcp.max_connections,
            connections.some(),
        );
    });
    root.table("udp", |udp| {
        udp.optional("idle", &mut config.udp.idle, at_least(SECOND));
        udp.optional("dns_idle", &mut config.udp.dns_idle, at_least(SECOND));
        udp.optional(
            "max_associations",
            &mut config.udp.max_associations,
            integer("a number of associations", 1..=LARGEST_LIMIT),
        );
        udp.optional(
            "express",
            &mut config.udp.express,
            choice(&[
                ("forward", ExpressLane::Forward),
                ("redirect", ExpressLane::Redirect),
                ("off", ExpressLane::Off),
            ]),
        );
    });
    root.table("gateway", |gateway| {
        gateway.optional("forward", &mut config.gateway.forward, boolean());
        gateway.optional("masquerade", &mut config.gateway.masquerade, boolean());
        gateway.optional("account", &mut config.gateway.account, boolean());
        let user = number_or_text("a number or a name", "tproxy-bpf", str::parse::<IdOrName>);
        gateway.optional("user", &mut config.gateway.user, user.some());
        gateway.optional("seccomp", &mut config.gateway.seccomp, boolean());
    });
    root.table("proxy", |proxy| {
        proxy.optional(
            "port",
            &mut config.proxy.port,
            integer("a port", 0..=65_535),
        );
        proxy.optional("drain", &mut config.proxy.drain, at_least(Duration::ZERO));
        proxy.optional(
            "takeover_drain",
            &mut config.proxy.takeover_drain,
            at_least(Duration::ZERO),
        );
        let exit = text("the name of an outbound or group", "proxy", |text| {
            outbound::known(text, &names)
        });
        proxy.optional("outbound", &mut config.proxy.outbound, exit.some());
    });
    api::read(root, &mut config.api, folder);
    api::read_log(root, &mut config.log);
}

fn prefixes(table: &mut Table<'_>, key: &'static str, into: &mut Vec<ipnet::IpNet>) {
    let one = text("a prefix", "192.0.2.0/24", prefix::parse);
    table.optional(key, into, list("prefixes", one));
    prefix::normalize(into);
}

/// A list of a configuration.
pub(super) fn file(folder: &Path, text: &str) -> Result<Source, Refusal> {
    match text {
        "" => Err(Refusal::new("there is no path", "name a file")),
        STANDARD_INPUT => Err(Refusal::new(
            "a configuration cannot read a list from standard input",
            "name a file",
        )),
        _ if text.contains('\0') => Err(Refusal::new("no path holds a zero byte", "name a file")),
        _ => Ok(Source::new(folder.join(text))),
    }
}

/// The finding for a file that is not text.
pub(super) fn no_text(bytes: &[u8], error: &Utf8Error, path: &Path) -> ConfigError {
    let good = error.valid_up_to();
    // Each bad byte becomes one character, of three bytes, so the place stays where it is.
    let text = String::from_utf8_lossy(bytes);
    let faults = Faults::default();
    faults.add(
        good..good + char::REPLACEMENT_CHARACTER.len_utf8(),
        format!("the byte 0x{:02x} is not UTF-8 text", bytes[good]),
        Some("save the file as UTF-8".to_owned()),
    );
    faults.into_error(&text, path)
}
