//! Looks at the machine. What cannot be seen is said, and is no error.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::IpNet;
use serde_json::Value;

use super::nat::{of_iptables, of_nft};
use super::{Bpffs, Facts, Files, LanLink, Translation, Wanted};
use super::{clock, firewall, hooks, limits, ports, secrets};
use crate::config::{self, IdOrName, LinkPattern};
use crate::control::bpf::Maps;
use crate::control::links::Snapshot;
use crate::control::masquerade::Masquerade;
use crate::control::place::{self, Place};
use crate::control::sync::{Selection, Via, wanted};
use crate::control::{Error, Netlink, cgroup, gateway, modules, preflight, route, sysctl};

/// What is to be examined beside the machine as such.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// The LAN links. With none, those that are attached.
    pub lan: Vec<LinkPattern>,
    /// Sources that are admitted beside those of the links.
    pub sources: Vec<IpNet>,
    /// What the configuration has tproxy-bpf do.
    pub configured: config::Gateway,
    /// The ports that it needs.
    pub ports: Vec<Wanted>,
    /// The DNS servers that it asks, if questions of the gateway itself are answered by the proxy.
    pub dns_servers: Vec<SocketAddr>,
    /// Users whose programs it exempts.
    pub exempt_users: Vec<IdOrName>,
    /// What it lets in.
    pub files: Files,
    /// Its file.
    pub file: Option<PathBuf>,
    /// The file of the API's token.
    pub token_file: Option<PathBuf>,
}

/// Gathers all facts of the calling thread's network namespace. Changes nothing.
///
/// # Errors
/// When netlink does not answer, or the kernel does not tell its version.
pub async fn gather(subject: &Subject) -> Result<Facts, Error> {
    let netlink = Netlink::open()?;
    let snapshot = Snapshot::take(&netlink).await?;
    let attached = attached_links(&snapshot);
    let proxy = running_proxy();
    let ruleset = nft();
    let mut patterns = subject.lan.clone();
    if patterns.is_empty() {
        patterns.extend(attached.iter().filter_map(|name| name.parse().ok()));
    }
    let lan = lan(&snapshot, &patterns, &subject.sources);
    let arrive = || lan.iter().flat_map(|link| &link.arrive).map(String::as_str);
    let of_links = |key: &str| -> Vec<(String, String)> {
        let names = std::iter::once("all").chain(arrive());
        names
            .filter_map(|name| {
                let value = sysctl::read(&format!("net/ipv4/conf/{name}/{key}")).ok()?;
                Some((name.to_owned(), value))
            })
            .collect()
    };
    let status = Path::new("/proc/thread-self/status");
    let status = fs::read_to_string(status).map_err(Error::file("read", status))?;
    let release = Path::new("/proc/sys/kernel/osrelease");
    Ok(Facts {
        release: fs::read_to_string(release)
            .map_err(Error::file("read", release))?
            .trim()
            .to_owned(),
        missing_for_clsact: modules::missing_for_clsact(),
        missing_capabilities: preflight::missing_capabilities(&status),
        bpffs: bpffs(),
        cgroup2: cgroup::mount().ok().flatten(),
        attached: !attached.is_empty(),
        configured: subject.configured.clone(),
        unfit_lan: preflight::check_links(&selection(&subject.lan, &[]), &snapshot)
            .err()
            .map(|error| error.to_string()),
        ways_out: Masquerade::between(&snapshot, &[]).out,
        forwarding_v4: is_on("net/ipv4/ip_forward"),
        forwarding_v6: is_on("net/ipv6/conf/all/forwarding"),
        translation: translation(&ruleset),
        send_redirects: of_links("send_redirects")
            .into_iter()
            .map(|(name, value)| (name, value == "1"))
            .collect(),
        rp_filter: of_links("rp_filter").into_iter().collect(),
        hooks: {
            let names = lan.iter().map(|link| link.name.clone()).collect();
            hooks::gather(&netlink, &snapshot, &names).await
        },
        rules: route::foreign(&netlink).await?,
        firewall: {
            let own = snapshot.addresses.iter().map(|address| address.address);
            firewall::gather(&ruleset, own.collect())
        },
        ports: ports::gather(subject, proxy),
        limits: limits::gather(proxy),
        files: subject.files,
        exposed: secrets::gather(subject),
        clock: {
            let program = std::env::current_exe().ok();
            let files = program.iter().chain(&subject.file).map(PathBuf::as_path);
            clock::gather(&files.collect::<Vec<_>>())
        },
        lan,
    })
}

/// Names of the LAN links that are attached; none if that cannot be read.
#[must_use]
pub fn attached_links(snapshot: &Snapshot) -> Vec<String> {
    // Without this, asking for the place would mount one.
    if !place::has_bpffs() {
        return Vec::new();
    }
    let links = Place::current()
        .ok()
        .and_then(|place| Maps::open(place.pins()).ok().flatten())
        .and_then(|maps| gateway::links(&maps, snapshot).ok());
    let lan = links.into_iter().flatten().filter(|link| link.roles().lan);
    lan.map(|link| link.name).collect()
}

/// The process of the proxy that runs here.
fn running_proxy() -> Option<u32> {
    // Without this, asking for the place would mount one.
    if !place::has_bpffs() {
        return None;
    }
    Place::current().ok()?.proxy_pid()
}

fn selection(lan: &[LinkPattern], sources: &[IpNet]) -> Selection {
    Selection {
        lan: lan.to_vec(),
        sources: sources.to_vec(),
        ..Selection::default()
    }
}

fn lan(snapshot: &Snapshot, patterns: &[LinkPattern], sources: &[IpNet]) -> Vec<LanLink> {
    let wanted = wanted(snapshot, &selection(patterns, sources));
    let links = wanted.attach.into_iter();
    links
        .map(|(index, link)| LanLink {
            name: link.name,
            arrive: Masquerade::between(snapshot, &[index]).lan,
            sources: wanted
                .sources
                .iter()
                .filter(|(via, _)| *via == Via::arriving(index))
                .map(|(_, source)| *source)
                .collect(),
        })
        .collect()
}

fn bpffs() -> Bpffs {
    if place::has_bpffs() {
        return Bpffs::Mounted;
    }
    match preflight::knows_bpffs() {
        Ok(false) => Bpffs::Missing,
        _ => Bpffs::Available,
    }
}

fn is_on(key: &str) -> Option<bool> {
    sysctl::read(key).ok().map(|value| value != "0")
}

/// What there is no seeing, and how to let it be seen.
pub(super) type Unseen = (String, String);

fn translation(nft: &Result<Value, Unseen>) -> Translation {
    let mut found = Translation::default();
    let mut rules = Vec::new();
    match nft {
        Ok(ruleset) => rules.extend(of_nft(ruleset)),
        Err(unseen) => found.unseen = Some(unseen.clone()),
    }
    for family in [4, 6] {
        if !legacy_tables(family).iter().any(|name| name == "nat") {
            continue;
        }
        match legacy_save(family, &["-t", "nat"]) {
            Ok(text) => rules.extend(of_iptables(&text, family)),
            Err(unseen) => found.unseen = Some(unseen),
        }
    }
    found.rules = rules;
    found
}

/// All rules of nft, and those of iptables-nft as nft sees them.
pub(super) fn nft() -> Result<Value, Unseen> {
    let seen = "look for yourself: nft list ruleset";
    match run("nft", &["-j", "list", "ruleset"]).map(|text| serde_json::from_str(&text)) {
        Ok(Ok(ruleset)) => Ok(ruleset),
        Ok(Err(_)) => Err(("nft cannot print JSON".to_owned(), seen.to_owned())),
        Err(None) => Err((
            "there is no program nft to ask".to_owned(),
            "install the package nftables, and try again".to_owned(),
        )),
        Err(Some(reason)) => Err((format!("nft failed: {reason}"), seen.to_owned())),
    }
}

/// The tables that iptables-legacy, or ip6tables-legacy, has made here. Asking without a table would make one.
pub(super) fn legacy_tables(family: u8) -> Vec<String> {
    let names = if family == 4 {
        "ip_tables_names"
    } else {
        "ip6_tables_names"
    };
    let names = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

/// What iptables prints of them.
pub(super) fn legacy_save(family: u8, arguments: &[&str]) -> Result<String, Unseen> {
    let program = iptables(family);
    let text = run(&format!("{program}-legacy-save"), arguments);
    let text = text.or_else(|_| run(&format!("{program}-save"), arguments));
    text.map_err(|_| {
        (
            format!("the rules of {program} cannot be read"),
            format!("look with the {program} that made them: {program} -S; {program} -t nat -S"),
        )
    })
}

/// The program of a family.
pub(super) fn iptables(family: u8) -> &'static str {
    if family == 4 { "iptables" } else { "ip6tables" }
}

/// What a program prints; with no such program `None`, else why it failed.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String, Option<String>> {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.map_err(|error| (error.kind() != ErrorKind::NotFound).then(|| error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Some(
        said.trim()
            .lines()
            .next()
            .unwrap_or("it says nothing")
            .to_owned(),
    ))
}
