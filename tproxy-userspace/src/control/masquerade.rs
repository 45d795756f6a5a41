//! Masquerading of what the gateway forwards: devices with addresses that nobody else knows get
//! answers from destinations that go direct.
//!
//! One table of nft, replaced as a whole. That it is ours is remembered in a file: so that any later
//! process can remove it, a table of somebody else is never touched, and a machine that never had
//! one is not asked for the program `nft`.
//!
//! Whoever calls these holds [`Place::lock`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde::{Deserialize, Serialize};
use tproxy_common::abi::{MARK_EXPRESS, MARK_MASK};

use super::Error;
use super::links::Snapshot;
use super::place::Place;
use super::sync::carriers;

/// Our table, with its family.
pub const TABLE: &str = "inet tproxy_bpf";

const FILE: &str = "masquerade.json";
const OBJECT: &str = "the nft table inet tproxy_bpf";

/// What is masqueraded: IPv4, and of IPv6 the unique local sources (RFC 4193), since others need no
/// translation. With no link on either side the table is there, and translates nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Masquerade {
    /// Names of the links that the devices' packets arrive by.
    pub lan: BTreeSet<String>,
    /// Names of the links that they leave by.
    pub out: BTreeSet<String>,
}

impl Masquerade {
    /// From the attached links to the links with a default route. To netfilter the packets of a
    /// bridge port arrive by the bridge, so that counts too.
    #[must_use]
    pub fn between(snapshot: &Snapshot, attached: &[u32]) -> Self {
        let names = |indices: BTreeSet<u32>| {
            let links = snapshot.links.iter();
            links
                .filter(|link| indices.contains(&link.index) && !link.loopback)
                .map(|link| link.name.clone())
                .collect()
        };
        let arrive = attached.iter().flat_map(|link| carriers(snapshot, *link));
        Self {
            lan: names(arrive.collect()),
            out: names(snapshot.ways_out.clone()),
        }
    }

    /// The commands for nft, one transaction. `first`: it fails if the table is there.
    fn script(&self, first: bool) -> Result<String, Error> {
        let mut script = if first {
            format!("create table {TABLE}\n")
        } else {
            format!("add table {TABLE}\ndelete table {TABLE}\nadd table {TABLE}\n")
        };
        // 100 is `srcnat`, a word that old versions of nft do not know.
        let _ = writeln!(
            script,
            "add chain {TABLE} postrouting {{ type nat hook postrouting priority 100; }}"
        );
        // What is on the express lane gets its source behind the firewall.
        let _ = writeln!(
            script,
            "add rule {TABLE} postrouting meta mark and {MARK_MASK:#x} == {MARK_EXPRESS:#x} accept"
        );
        if !self.lan.is_empty() && !self.out.is_empty() {
            let between = format!("iifname {} oifname {}", set(&self.lan)?, set(&self.out)?);
            for which in ["meta nfproto ipv4", "ip6 saddr fc00::/7"] {
                let _ = writeln!(
                    script,
                    "add rule {TABLE} postrouting {between} {which} masquerade"
                );
            }
        }
        Ok(script)
    }
}

/// Names as a set of nft. Between quotes nft takes everything as it is but a quote, and an asterisk
/// at the end, which there stands for any text.
fn set(names: &BTreeSet<String>) -> Result<String, Error> {
    let mut quoted = Vec::new();
    for name in names {
        if name.contains(['"', char::REPLACEMENT_CHARACTER]) || name.ends_with('*') {
            return Err(Error::UnfitName {
                name: name.clone(),
                operation: "masquerade",
                reason: "nft has no way to write this name",
            });
        }
        quoted.push(format!("\"{name}\""));
    }
    Ok(format!("{{ {} }}", quoted.join(", ")))
}

/// What was applied last and not removed since.
///
/// # Errors
/// [`Error::File`] or [`Error::Content`] when the file cannot be read.
pub fn applied(place: &Place) -> Result<Option<Masquerade>, Error> {
    let file = file(place);
    match fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|reason| Error::Content { path: file, reason }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", &file)(error)),
    }
}

/// Puts the table there, or replaces what we put there before. Returns whether anything was to be
/// done; a table that somebody flushed (firewalls do when they are loaded) is put there again.
///
/// # Errors
/// [`Error::Taken`] when somebody else has a table of this name, [`Error::Program`] when there is no
/// `nft` or it fails: then everything is as it was.
pub fn apply(place: &Place, wanted: &Masquerade) -> Result<bool, Error> {
    let before = applied(place)?;
    let script = wanted.script(before.is_none())?;
    if before.as_ref() == Some(wanted) && is_there()? {
        return Ok(false);
    }
    // First the file: a table without it would be nobody's.
    place.save(&file(place), wanted)?;
    let Err(error) = nft("make", &["-f", "-"], &script).and_then(|output| success("make", &output))
    else {
        return Ok(true);
    };
    match &before {
        Some(before) => place.save(&file(place), before)?,
        None => forget(place)?,
    }
    if before.is_none() && is_there()? {
        return Err(Error::Taken {
            object: OBJECT.to_owned(),
            owner: "a table of this name that tproxy-bpf did not make".to_owned(),
            advice: "remove it: nft delete table inet tproxy_bpf; or leave out `masquerade`",
        });
    }
    Err(error)
}

/// Removes the table if it is ours. Returns whether it was.
///
/// # Errors
/// [`Error::Program`] when nft is gone or fails; it is then still remembered.
pub fn remove(place: &Place) -> Result<bool, Error> {
    let file = file(place);
    // A file that cannot be understood is ours too.
    if !file.exists() {
        return Ok(false);
    }
    // To delete what somebody has deleted would fail.
    let script = format!("add table {TABLE}\ndelete table {TABLE}\n");
    let output = nft("remove", &["-f", "-"], &script)?;
    success("remove", &output)?;
    forget(place)?;
    Ok(true)
}

fn file(place: &Place) -> PathBuf {
    place.run().join(FILE)
}

fn forget(place: &Place) -> Result<(), Error> {
    let file = file(place);
    fs::remove_file(&file).map_err(Error::file("remove", &file))
}

fn is_there() -> Result<bool, Error> {
    let mut list = vec!["list", "table"];
    list.extend(TABLE.split(' '));
    Ok(nft("read", &list, "")?.status.success())
}

/// Runs nft in the calling thread's namespace.
fn nft(operation: &'static str, arguments: &[&str], script: &str) -> Result<Output, Error> {
    let run = || {
        let mut child = Command::new("nft")
            .args(arguments)
            // A Ctrl-C that ends the proxy must not end what clears up behind it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // A program that ends before it has read everything says why by itself.
        let _ = child
            .stdin
            .take()
            .map(|mut input| input.write_all(script.as_bytes()));
        child.wait_with_output()
    };
    run().map_err(|reason| {
        let missing = reason.kind() == ErrorKind::NotFound;
        Error::Program {
            operation,
            object: OBJECT,
            reason: if missing {
                "there is no program nft".to_owned()
            } else {
                format!("starting nft: {reason}")
            },
            advice: if missing {
                "; install the package nftables"
            } else {
                ""
            },
        }
    })
}

fn success(operation: &'static str, output: &Output) -> Result<(), Error> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Program {
        operation,
        object: OBJECT,
        // What follows shows where in the script.
        reason: format!(
            "nft says: {}",
            said.trim().lines().next().unwrap_or("nothing")
        ),
        advice: "; it needs a kernel with nf_tables and NAT (CONFIG_NFT_MASQ)",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::links::{Framing, LinkInfo};
    use crate::control::testing::in_namespace;

    fn masquerade(lan: &[&str], out: &[&str]) -> Masquerade {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Masquerade {
            lan: set(lan),
            out: set(out),
        }
    }

    fn table() -> Option<String> {
        let output = nft("read", &["list", "table", "inet", "tproxy_bpf"], "").unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then_some(text)
    }

    /// A place that is removed in the end, and nothing may be left of it.
    fn with_place(test: impl FnOnce(&Place) + Send + 'static) {
        in_namespace(|| async {
            let place = Place::current().unwrap();
            test(&place);
            let lock = place.lock().unwrap();
            place.remove(lock).unwrap();
            assert!(!place.run().exists(), "something is still remembered");
        });
    }

    #[test]
    fn the_table_is_made_replaced_and_removed() {
        with_place(|place| {
            assert!(!remove(place).unwrap());
            let first = masquerade(&["lan0", "br-lan", "lan.7", "a;{b}\\"], &["wan0"]);
            assert!(apply(place, &first).unwrap());
            assert!(!apply(place, &first).unwrap());
            let text = table().unwrap();
            for part in [
                "type nat hook postrouting priority srcnat;",
                "\"lan0\"",
                "\"br-lan\"",
                "\"lan.7\"",
                "\"a;{b}\\\"",
                "oifname \"wan0\"",
                "meta nfproto ipv4 masquerade",
                "ip6 saddr fc00::/7 masquerade",
            ] {
                assert!(text.contains(part), "no {part} in {text}");
            }

            // One-armed.
            assert!(apply(place, &masquerade(&["eth0"], &["eth0"])).unwrap());
            let text = table().unwrap();
            assert!(!text.contains("lan0"), "{text}");
            assert!(
                text.contains("iifname \"eth0\" oifname \"eth0\" meta nfproto ipv4"),
                "{text}"
            );

            assert!(remove(place).unwrap());
            assert_eq!(table(), None);
            assert_eq!(applied(place).unwrap(), None);
        });
    }

    #[test]
    fn with_no_link_on_one_side_nothing_is_translated() {
        with_place(|place| {
            for wanted in [masquerade(&["lan0"], &[]), masquerade(&[], &["wan0"])] {
                apply(place, &wanted).unwrap();
                assert!(!table().unwrap().contains("masquerade"));
            }
            remove(place).unwrap();
        });
    }

    #[test]
    fn a_table_that_somebody_flushed_is_put_there_again_or_forgotten() {
        with_place(|place| {
            let wanted = masquerade(&["lan0"], &["wan0"]);
            apply(place, &wanted).unwrap();
            let text = table();
            nft("flush", &["flush", "ruleset"], "").unwrap();
            assert!(apply(place, &wanted).unwrap());
            assert_eq!(table(), text);
            nft("flush", &["flush", "ruleset"], "").unwrap();
            assert!(remove(place).unwrap());
        });
    }

    #[test]
    fn a_table_of_somebody_else_is_refused_and_stays() {
        with_place(|place| {
            let theirs = "add table inet tproxy_bpf\nadd chain inet tproxy_bpf theirs\n";
            nft("make", &["-f", "-"], theirs).unwrap();
            let text = table().unwrap();
            let error = apply(place, &masquerade(&["lan0"], &["wan0"])).unwrap_err();
            assert!(matches!(error, Error::Taken { .. }), "{error}");
            assert!(error.to_string().contains("nft delete table"), "{error}");
            assert_eq!(table().unwrap(), text);
            assert_eq!(applied(place).unwrap(), None);
            assert!(!remove(place).unwrap());
            assert_eq!(table().unwrap(), text);
        });
    }

    #[test]
    fn a_name_that_nft_cannot_write_is_refused_and_changes_nothing() {
        with_place(|place| {
            let good = masquerade(&["lan0"], &["wan0"]);
            apply(place, &good).unwrap();
            for name in ["a\"b", "eth*"] {
                let error = apply(place, &masquerade(&[name], &["wan0"])).unwrap_err();
                assert!(error.to_string().contains("ip link set"), "{error}");
                assert_eq!(applied(place).unwrap().as_ref(), Some(&good));
            }
            remove(place).unwrap();
        });
    }

    #[test]
    fn a_process_killed_before_nft_ran_leaves_nothing_wrong() {
        with_place(|place| {
            let wanted = masquerade(&["lan0"], &["wan0"]);
            place.save(&file(place), &wanted).unwrap();
            assert!(apply(place, &wanted).unwrap());
            remove(place).unwrap();
            place.save(&file(place), &wanted).unwrap();
            remove(place).unwrap();
            assert_eq!(table(), None);
        });
    }

    #[test]
    fn packets_of_a_port_arrive_by_its_bridge_and_the_loopback_is_no_way_out() {
        let link = |index, name: &str, master| LinkInfo {
            index,
            name: name.to_owned(),
            up: true,
            loopback: name == "lo",
            framing: Framing::Ethernet,
            mtu: 1500,
            master,
            parent: None,
        };
        let snapshot = Snapshot {
            links: vec![
                link(1, "lo", None),
                link(2, "port", Some(3)),
                link(3, "br0", None),
                link(4, "wan0", None),
            ],
            ways_out: BTreeSet::from([1, 4, 9]),
            ..Snapshot::default()
        };
        assert_eq!(
            Masquerade::between(&snapshot, &[2]),
            masquerade(&["br0", "port"], &["wan0"])
        );
        assert_eq!(
            Masquerade::between(&snapshot, &[]),
            masquerade(&[], &["wan0"])
        );
    }
}
