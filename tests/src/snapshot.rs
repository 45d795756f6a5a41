//! All that could be left behind on the gateway, to be compared before and after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tproxy_common::abi;
use tproxy_userspace::control::cgroup;

use crate::{
    Lab, Namespace, process,
    wait::{SOON, until},
};

/// Sysctls that change by themselves.
const RESTLESS: &[&str] = &["nf_conntrack_count", "nf_conntrack_expect_count"];

/// The state of the gateway: links, rules, routes, queueing disciplines and filters, kernel programs, pins, cgroups,
/// sysctls, netfilter rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    parts: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Snapshot {
    /// Takes it. Programs and maps as such belong to no namespace: they are compared only in a lab that is
    /// [alone](crate::Builder::alone).
    ///
    /// # Errors
    /// When a command fails.
    pub fn take(lab: &Lab) -> Result<Self> {
        let ns = &lab.gateway;
        let mut parts = BTreeMap::new();
        let mut command = |part, argv: &[&str]| -> Result<()> {
            parts.insert(part, lines(&ns.run(argv)?.stdout));
            Ok(())
        };
        command("link", &["ip", "-brief", "link"])?;
        command("address", &["ip", "-brief", "address"])?;
        command("rule", &["ip", "rule"])?;
        command("rule, IPv6", &["ip", "-6", "rule"])?;
        command("route", &["ip", "route", "show", "table", "all"])?;
        command(
            "route, IPv6",
            &["ip", "-6", "route", "show", "table", "all"],
        )?;
        command("qdisc", &["tc", "qdisc", "show"])?;
        command("netfilter", &["nft", "--stateless", "list", "ruleset"])?;
        parts.insert("filter", filters(ns)?);
        parts.insert("attached", attached(ns)?);
        parts.insert("sysctl", sysctls(ns)?);
        let mut files = BTreeSet::new();
        list(&lab.pins(), &mut files)?;
        list(&lab.state(), &mut files)?;
        parts.insert("file", files);
        parts.insert("cgroup", cgroups(lab)?);
        if lab.is_alone() {
            parts.insert("program", named("prog", &program_names())?);
            parts.insert("map", named("map", &map_names())?);
        }
        Ok(Self { parts })
    }

    /// What differs from an earlier one, a line each: `+ rule: …` is there now, `- rule: …` no more.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        let empty = BTreeSet::new();
        let mut differences = Vec::new();
        let names: BTreeSet<_> = self.parts.keys().chain(before.parts.keys()).collect();
        for part in names {
            let now = self.parts.get(part).unwrap_or(&empty);
            let then = before.parts.get(part).unwrap_or(&empty);
            differences.extend(then.difference(now).map(|line| format!("- {part}: {line}")));
            differences.extend(now.difference(then).map(|line| format!("+ {part}: {line}")));
        }
        differences
    }

    /// Wants nothing to differ from an earlier one.
    ///
    /// # Errors
    /// Lists what differs.
    pub fn same_as(&self, before: &Self) -> Result<()> {
        let differences = self.since(before);
        if differences.is_empty() {
            return Ok(());
        }
        let mut text = format!("{} things differ on the gateway:", differences.len());
        for line in differences {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n  {line}");
        }
        bail!(text)
    }
}

/// Waits until the kernel has freed what labs that ended left to it: under load that takes seconds after the last
/// reference is gone. What does not go away belongs to somebody who goes on.
pub(crate) fn settle() {
    const STEADY: Duration = Duration::from_secs(2);
    let mut last = (BTreeSet::new(), Instant::now());
    let freed = || {
        let mut left = named("prog", &program_names())?;
        left.extend(named("map", &map_names())?);
        if left != last.0 {
            last = (left, Instant::now());
        }
        Ok((last.0.is_empty() || last.1.elapsed() > STEADY).then_some(()))
    };
    // Whoever takes a snapshot meets the same error.
    let _ = until("programs of other labs to go", SOON, freed);
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(without_times).collect()
}

/// A route's remaining life ("expires 123sec") differs from one moment to the next.
fn without_times(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "expires" {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

fn filters(ns: &Namespace) -> Result<BTreeSet<String>> {
    let links: Value = ns.run(&["ip", "-json", "link"])?.json()?;
    let mut all = BTreeSet::new();
    for link in links.as_array().into_iter().flatten() {
        let Some(name) = link["ifname"].as_str() else {
            continue;
        };
        for side in ["ingress", "egress"] {
            // Without clsact there is no such parent, which tc calls an error.
            let shown = ns.try_run(&["tc", "filter", "show", "dev", name, side])?;
            all.extend(
                lines(&shown.stdout)
                    .into_iter()
                    .map(|line| format!("{name} {side}: {line}")),
            );
        }
    }
    Ok(all)
}

/// Programs on links (tcx, clsact, XDP) and on the namespace (socket lookup).
fn attached(ns: &Namespace) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    let net: Value = ns.run(&["bpftool", "-j", "net"])?.json()?;
    for kinds in net.as_array().into_iter().flatten() {
        for (kind, entries) in kinds.as_object().into_iter().flatten() {
            for entry in entries.as_array().into_iter().flatten() {
                all.insert(format!("{kind} {entry}"));
            }
        }
    }
    // A link of somebody else that is just being made or going makes it fail.
    let mut last = String::new();
    let links: Value = until("bpftool to list all links", SOON, || {
        let shown = ns.try_run(&["bpftool", "-j", "link"])?;
        last.clone_from(&shown.stdout);
        match shown.code() {
            Some(0) => shown.json().map(Some),
            _ => Ok(None),
        }
    })
    .with_context(|| last)?;
    for link in links.as_array().into_iter().flatten() {
        if link["netns_ino"].as_u64() == Some(ns.inode()) {
            all.insert(format!("netns {link}"));
        }
    }
    Ok(all)
}

/// The cgroup of the gateway, and those of all gateways if there is no other lab.
fn cgroups(lab: &Lab) -> Result<BTreeSet<String>> {
    let Some(root) = cgroup::mount()? else {
        return Ok(BTreeSet::new());
    };
    let own = format!("tproxy-bpf.{}", lab.gateway.inode());
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(&root).with_context(|| format!("reading {}", root.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == own || lab.is_alone() && name.starts_with("tproxy-bpf.") {
            all.insert(name);
        }
    }
    Ok(all)
}

fn program_names() -> Vec<&'static str> {
    use abi::program::{
        LAN_INGRESS, LAN_INGRESS_L3, LO_INGRESS, LOCAL_EGRESS, LOCAL_EGRESS_L3, SK_LOOKUP,
        SOCK_CREATE, UDP_REPLY, UDP_REPLY_L3,
    };
    vec![
        LO_INGRESS,
        LOCAL_EGRESS,
        LOCAL_EGRESS_L3,
        SOCK_CREATE,
        LAN_INGRESS,
        LAN_INGRESS_L3,
        UDP_REPLY,
        UDP_REPLY_L3,
        SK_LOOKUP,
    ]
}

fn map_names() -> Vec<&'static str> {
    use abi::map;
    vec![
        map::SETTINGS,
        map::COUNTERS,
        map::LISTENERS,
        map::BYPASS_V4,
        map::BYPASS_V6,
        map::NOTES,
        map::LOCALS_V4,
        map::LOCALS_V6,
        map::SOURCES_V4,
        map::SOURCES_V6,
        map::LINKS,
        map::STEERED_V4,
        map::STEERED_V6,
        map::FRAGMENTS,
        map::CALLERS,
        map::EXEMPT,
        map::EXEMPT_MARKS,
        map::DEVICES,
        map::NETWORKS,
        map::TRACE,
        map::TRACE_EVENTS,
        map::TRACE_LOST,
    ]
}

/// The kernel keeps 15 bytes of a name (`BPF_OBJ_NAME_LEN`).
fn named(kind: &str, names: &[&str]) -> Result<BTreeSet<String>> {
    let mut command = Command::new("bpftool");
    command.args(["-j", kind]);
    let objects: Value = process::run(command, SOON)?.ok()?.json()?;
    let objects = objects
        .as_array()
        .with_context(|| format!("bpftool {kind} gave no list"))?;
    Ok(objects
        .iter()
        .filter(|object| {
            let name = object["name"].as_str().unwrap_or_default();
            names.iter().any(|ours| &ours[..ours.len().min(15)] == name)
        })
        .map(|object| format!("{} {}", object["id"], object["name"]))
        .collect())
}

fn sysctls(ns: &Namespace) -> Result<BTreeSet<String>> {
    ns.enter(|| {
        let mut all = BTreeSet::new();
        read_sysctls(Path::new("/proc/sys/net"), &mut all)?;
        Ok(all)
    })?
}

fn read_sysctls(dir: &Path, all: &mut BTreeSet<String>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            read_sysctls(&path, all)?;
        } else if !RESTLESS.iter().any(|name| path.ends_with(name))
            // Some can only be written.
            && let Ok(value) = fs::read_to_string(&path)
        {
            let key = path.strip_prefix("/proc/sys").unwrap_or(&path);
            all.insert(format!("{} = {}", key.display(), value.trim()));
        }
    }
    Ok(())
}

fn list(dir: &Path, all: &mut BTreeSet<String>) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    all.insert(dir.display().to_string());
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, all)?;
        } else {
            all.insert(path.display().to_string());
        }
    }
    Ok(())
}
