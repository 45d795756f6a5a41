//! Looks at the machine. What cannot be seen is said, and is no error.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use ipnet::IpNet;

use super::nat::{of_iptables, of_nft};
use super::{Bpffs, Facts, LanLink, Translation};
use crate::config::{self, LinkPattern};
use crate::control::bpf::Maps;
use crate::control::links::Snapshot;
use crate::control::masquerade::Masquerade;
use crate::control::place::{self, Place};
use crate::control::sync::{Selection, Via, wanted};
use crate::control::{Error, Netlink, cgroup, gateway, modules, preflight, sysctl};

/// What is to be examined beside the machine as such.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// The LAN links. With none, those that are attached.
    pub lan: Vec<LinkPattern>,
    /// Sources that are admitted beside those of the links.
    pub sources: Vec<IpNet>,
    /// What the configuration has tproxy-bpf do.
    pub configured: config::Gateway,
}

/// Gathers all facts of the calling thread's network namespace. Changes nothing.
///
/// # Errors
/// When netlink does not answer, or the kernel does not tell its version.
pub async fn gather(subject: &Subject) -> Result<Facts, Error> {
    let snapshot = Snapshot::take(&Netlink::open()?).await?;
    let attached = attached_links(&snapshot);
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
        translation: translation(),
        send_redirects: of_links("send_redirects")
            .into_iter()
            .map(|(name, value)| (name, value == "1"))
            .collect(),
        rp_filter: of_links("rp_filter").into_iter().collect(),
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

fn translation() -> Translation {
    let mut found = Translation::default();
    let mut unseen = |reason: String, remedy: &str| {
        found.unseen = Some((reason, remedy.to_owned()));
    };
    let mut rules = Vec::new();
    match run("nft", &["-j", "list", "ruleset"]).map(|text| serde_json::from_str(&text)) {
        Ok(Ok(ruleset)) => rules.extend(of_nft(&ruleset)),
        Ok(Err(_)) => unseen(
            "nft cannot print JSON".to_owned(),
            "look for masquerade or snat: nft list ruleset",
        ),
        Err(None) => unseen(
            "there is no program nft to ask".to_owned(),
            "install the package nftables, and try again",
        ),
        Err(Some(reason)) => unseen(
            format!("nft failed: {reason}"),
            "look for masquerade or snat: nft list ruleset",
        ),
    }
    for (family, names, program) in [
        (4, "ip_tables_names", "iptables"),
        (6, "ip6_tables_names", "ip6tables"),
    ] {
        // Asking without a table would make one.
        let names = fs::read_to_string(format!("/proc/thread-self/net/{names}"));
        if !names.is_ok_and(|names| names.lines().any(|name| name == "nat")) {
            continue;
        }
        let legacy = run(&format!("{program}-legacy-save"), &["-t", "nat"]);
        match legacy.or_else(|_| run(&format!("{program}-save"), &["-t", "nat"])) {
            Ok(text) => rules.extend(of_iptables(&text, family)),
            Err(_) => unseen(
                format!("the rules of {program} cannot be read"),
                "look for MASQUERADE or SNAT with the iptables that made them",
            ),
        }
    }
    found.rules = rules;
    found
}

/// What a program prints; with no such program `None`, else why it failed.
fn run(program: &str, arguments: &[&str]) -> Result<String, Option<String>> {
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
