//! Kernel settings that are changed while the gateway runs, and put back.
//!
//! The old value is written to a file before the change, so that any later process can restore it.
//! Keys are paths under `/proc/sys` with slashes, since link names may contain dots.
//!
//! Whoever calls these holds [`Place::lock`]: the file is read and written as a whole.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;
use super::place::Place;

const ROOT: &str = "/proc/sys";
const FILE: &str = "sysctl.json";

const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";

const REDIRECTS: &str = "send_redirects";

/// A changed sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its path under `/proc/sys`.
    pub key: String,
    /// The value before the first change.
    pub was: String,
    /// The value that we gave it. `None` while it is being restored: then `was` is written whatever
    /// stands there, since the restoring of another key may have changed it.
    pub ours: Option<String>,
}

/// Changes sysctls of the calling thread's network namespace and remembers what they were.
#[derive(Clone, Debug)]
pub struct Store {
    place: Place,
    file: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    /// In the order of the changes; restored from the end.
    changes: Vec<Change>,
}

impl Memory {
    fn position(&self, key: &str) -> Option<usize> {
        self.changes.iter().position(|change| change.key == key)
    }

    /// Remembers a change that is about to be made. What was remembered first stays.
    fn note(&mut self, key: &str, was: &str, ours: &str) {
        let ours = Some(ours.to_owned());
        match self.position(key) {
            Some(index) => self.changes[index].ours = ours,
            None => self.changes.push(Change {
                key: key.to_owned(),
                was: was.to_owned(),
                ours,
            }),
        }
    }
}

impl Store {
    /// The store of a gateway. Makes nothing yet.
    #[must_use]
    pub fn new(place: &Place) -> Self {
        Self {
            place: place.clone(),
            file: place.run().join(FILE),
        }
    }

    /// What is changed at present.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Content`] when the file cannot be read.
    pub fn changes(&self) -> Result<Vec<Change>, Error> {
        Ok(self.load()?.changes)
    }

    /// Gives a sysctl a value. Returns whether that changed anything; a value that stands there
    /// already is left alone and not remembered as ours.
    ///
    /// # Errors
    /// [`Error::Sysctl`] when there is no such sysctl or it refuses the value.
    pub fn set(&self, key: &str, value: &str) -> Result<bool, Error> {
        self.set_with(key, value, &[])
    }

    /// [`Self::set`] for a sysctl whose change makes the kernel change others too: `follows` names
    /// these with the values they will get.
    fn set_with(
        &self,
        key: &str,
        value: &str,
        follows: &[(String, &'static str)],
    ) -> Result<bool, Error> {
        let present = read(key)?;
        if present == value {
            return Ok(false);
        }
        let mut memory = self.load()?;
        // First what follows, so that it is restored after `key`, whose restoring changes it again.
        for (follower, value) in follows {
            match read(follower) {
                Ok(was) => memory.note(follower, &was, value),
                // A link that has just gone.
                Err(Error::Sysctl { reason, .. }) if reason.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        memory.note(key, &present, value);
        self.save(&memory)?;
        write(key, value)?;
        Ok(true)
    }

    /// Puts one sysctl back, if it still has the value that we gave it, and forgets it.
    ///
    /// # Errors
    /// As [`Self::restore_all`].
    pub fn restore(&self, key: &str) -> Result<(), Error> {
        self.restore_where(|change| change.key == key)
    }

    /// Puts back every sysctl that still has the value that we gave it, the last change first, and
    /// forgets all of them. What somebody else has changed since stays, and so does what belonged
    /// to a link that is gone.
    ///
    /// # Errors
    /// The first that could not be written; the others are restored, and that one stays remembered.
    pub fn restore_all(&self) -> Result<(), Error> {
        self.restore_where(|_| true)
    }

    /// Puts back those that are meant.
    ///
    /// # Errors
    /// As [`Self::restore_all`].
    pub fn restore_where(&self, selected: impl Fn(&Change) -> bool) -> Result<(), Error> {
        let mut memory = self.load()?;
        if !memory.changes.iter().any(&selected) {
            return Ok(());
        }
        // Decide everything before anything is written: writing one key can change the others.
        let mut changes = Vec::new();
        for mut change in memory.changes {
            if selected(&change) && change.ours.is_some() {
                match read(&change.key) {
                    Ok(present) => {
                        if change.ours.as_ref() != Some(&present) {
                            change.was = present;
                        }
                        change.ours = None;
                    }
                    Err(Error::Sysctl { reason, .. }) if reason.kind() == ErrorKind::NotFound => {
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            changes.push(change);
        }
        memory.changes = changes;
        // From here on a process that is killed leaves the rest to be done as decided.
        self.save(&memory)?;

        let mut failed = None;
        for index in (0..memory.changes.len()).rev() {
            let change = &memory.changes[index];
            if change.ours.is_some() {
                continue;
            }
            let outcome = read(&change.key).and_then(|present| {
                if present == change.was {
                    Ok(())
                } else {
                    write(&change.key, &change.was)
                }
            });
            match outcome {
                Err(Error::Sysctl { reason, .. }) if reason.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    failed = failed.or(Some(error));
                    continue;
                }
                Ok(()) => {}
            }
            memory.changes.remove(index);
        }
        self.save(&memory)?;
        failed.map_or(Ok(()), Err)
    }

    fn load(&self) -> Result<Memory, Error> {
        match fs::read(&self.file) {
            Ok(text) => {
                let mut memory: Memory =
                    serde_json::from_slice(&text).map_err(|reason| Error::Content {
                        path: self.file.clone(),
                        reason,
                    })?;
                // The file may be another user's than root, who reads it here.
                memory.changes.retain(|change| is_of_network(&change.key));
                Ok(memory)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Memory::default()),
            Err(error) => Err(Error::file("read", &self.file)(error)),
        }
    }

    /// Replaces the file at once, or removes it when nothing is left to remember.
    fn save(&self, memory: &Memory) -> Result<(), Error> {
        if memory.changes.is_empty() {
            return match fs::remove_file(&self.file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(Error::file("remove", &self.file)(error))
                }
                _ => Ok(()),
            };
        }
        self.place.save(&self.file, memory)
    }
}

/// Makes the machine forward packets of both families, as far as it has them. Does nothing in a
/// family that forwards already. What it changed before a failure is restored.
///
/// Two things are special here (Documentation/networking/ip-sysctl.rst). Writing
/// `net/ipv4/ip_forward` or `net/ipv6/conf/all/forwarding` sets the `forwarding` of every link, and
/// the former also `accept_redirects` of `all`: these are remembered with it. And with IPv6
/// forwarding a link follows router advertisements only with `accept_ra` = 2, and the default routes
/// it got from them are dropped at that moment: so links with 1 get 2 before.
///
/// Returns what now has another value than before.
///
/// IPv4 forwarding also makes the kernel switch large receive offload off on every link, which is
/// right for a router; it is no sysctl and stays off.
///
/// # Errors
/// [`Error::Sysctl`] or [`Error::File`].
pub fn enable_forwarding(store: &Store) -> Result<Vec<Change>, Error> {
    let before = store.changes()?;
    let is_new = |change: &Change| !before.iter().any(|other| other.key == change.key);
    if let Err(error) = enable_both(store) {
        if let Err(second) = store.restore_where(is_new) {
            tracing::warn!("{second}");
        }
        return Err(error);
    }
    let differs = |change: &Change| change.ours.as_ref() != Some(&change.was);
    Ok(store
        .changes()?
        .into_iter()
        .filter(|change| is_new(change) && differs(change))
        .collect())
}

/// The first and the last port that the kernel gives to sockets by itself, host order. It holds for
/// IPv6 too.
///
/// # Errors
/// [`Error::Sysctl`].
pub fn local_port_range() -> Result<(u16, u16), Error> {
    const KEY: &str = "net/ipv4/ip_local_port_range";
    let text = read(KEY)?;
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok((first, last)),
        _ => Err(Error::Sysctl {
            operation: "understand",
            key: KEY.to_owned(),
            reason: std::io::Error::other(format!("it says {text:?}")),
        }),
    }
}

fn enable_both(store: &Store) -> Result<(), Error> {
    let mut follows = forwarding_of_links("net/ipv4/conf")?;
    // `inet_forward_change` (net/ipv4/devinet.c): a router must not believe redirects.
    follows.push(("net/ipv4/conf/all/accept_redirects".to_owned(), "0"));
    store.set_with(FORWARD_V4, "1", &follows)?;

    if !path(FORWARD_V6).exists() || read(FORWARD_V6)? == "1" {
        return Ok(());
    }
    for name in link_folders("net/ipv6/conf")? {
        let key = format!("net/ipv6/conf/{name}/accept_ra");
        // "default" too: a WAN link that comes later starts from it. "all" has no effect.
        if name != "all" && read(&key).is_ok_and(|value| value == "1") {
            store.set(&key, "2")?;
        }
    }
    let follows = forwarding_of_links("net/ipv6/conf")?;
    store.set_with(FORWARD_V6, "1", &follows)?;
    Ok(())
}

/// Keeps the machine from telling devices to go round it: where a packet leaves by the link that it
/// came by, the kernel advises its sender to ask the next router itself (ICMP redirect, RFC 1812,
/// 5.2.7.2). `links` are the links where that would happen; one that was in an earlier call and is not
/// now gets its value back, and with none the machine's is back too.
///
/// The kernel sends them if the setting of the link or that of `all` is on (`IN_DEV_TX_REDIRECTS`,
/// include/linux/inetdevice.h), so both are switched off; other links keep theirs. For IPv6 there is
/// no such setting.
///
/// # Errors
/// [`Error::Sysctl`] or [`Error::File`].
pub fn silence_redirects(store: &Store, links: &BTreeSet<String>) -> Result<(), Error> {
    let key = |name: &str| format!("net/ipv4/conf/{name}/{REDIRECTS}");
    let mut wanted: BTreeSet<String> = links.iter().map(|name| key(name)).collect();
    if !wanted.is_empty() {
        wanted.insert(key("all"));
    }
    let is_stale =
        |change: &Change| change.key.ends_with(REDIRECTS) && !wanted.contains(&change.key);
    store.restore_where(is_stale)?;
    for key in &wanted {
        match store.set(key, "0") {
            // A link that has just gone.
            Err(Error::Sysctl { reason, .. }) if reason.kind() == ErrorKind::NotFound => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// The `forwarding` of each link and of `default`, which becomes 1 with that of `all`.
fn forwarding_of_links(folder: &str) -> Result<Vec<(String, &'static str)>, Error> {
    Ok(link_folders(folder)?
        .into_iter()
        .filter(|name| name != "all")
        .map(|name| (format!("{folder}/{name}/forwarding"), "1"))
        .collect())
}

/// The link names that stand as folders there, and `all` and `default`.
fn link_folders(folder: &str) -> Result<Vec<String>, Error> {
    let path = path(folder);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&path).map_err(Error::file("read", &path))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Whether a key is one of those that a proxy may change, and leads nowhere else.
fn is_of_network(key: &str) -> bool {
    key.starts_with("net/") && key.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn path(key: &str) -> PathBuf {
    Path::new(ROOT).join(key)
}

/// A sysctl's value.
pub(super) fn read(key: &str) -> Result<String, Error> {
    fs::read_to_string(path(key))
        .map(|value| value.trim().to_owned())
        .map_err(|reason| Error::Sysctl {
            operation: "read",
            key: key.to_owned(),
            reason,
        })
}

fn write(key: &str, value: &str) -> Result<(), Error> {
    // Not `fs::write`, which would try to create what is not there.
    fs::OpenOptions::new()
        .write(true)
        .open(path(key))
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|reason| Error::Sysctl {
            operation: "set",
            key: key.to_owned(),
            reason,
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::control::testing::{in_namespace, ip};

    const TTL: &str = "net/ipv4/ip_default_ttl";

    /// A store in a place that is removed in the end.
    fn with_store(test: impl FnOnce(&Store) + Send + 'static) {
        in_namespace(|| async {
            let place = Place::current().unwrap();
            test(&Store::new(&place));
            let lock = place.lock().unwrap();
            place.remove(lock).unwrap();
            assert!(!place.run().exists(), "something is still remembered");
        });
    }

    /// Every readable sysctl of the network.
    fn all() -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut todo = vec![PathBuf::from("/proc/sys/net")];
        while let Some(path) = todo.pop() {
            if let Ok(entries) = fs::read_dir(&path) {
                todo.extend(entries.map(|entry| entry.unwrap().path()));
            } else if let Ok(value) = fs::read_to_string(&path) {
                found.insert(path.display().to_string(), value);
            }
        }
        assert!(found.len() > 500, "only {} sysctls", found.len());
        found
    }

    fn difference(before: &BTreeMap<String, String>) -> Vec<String> {
        let now = all();
        assert_eq!(now.len(), before.len());
        before
            .iter()
            .filter(|(key, value)| now.get(*key) != Some(value))
            .map(|(key, value)| format!("{key}: {} -> {}", value.trim(), now[key].trim()))
            .collect()
    }

    #[test]
    fn the_first_value_is_remembered_and_restored_by_another_process() {
        with_store(|store| {
            let was = read(TTL).unwrap();
            assert!(!store.set(TTL, &was).unwrap());
            assert!(store.set(TTL, "77").unwrap());
            assert!(store.set(TTL, "78").unwrap());
            assert_eq!(read(TTL).unwrap(), "78");
            let other = Store::new(&Place::current().unwrap());
            assert_eq!(other.changes().unwrap()[0].was, was);
            other.restore_all().unwrap();
            assert_eq!(read(TTL).unwrap(), was);
            assert_eq!(store.changes().unwrap(), []);
        });
    }

    #[test]
    fn what_somebody_else_set_since_stays() {
        with_store(|store| {
            store.set(TTL, "77").unwrap();
            write(TTL, "99").unwrap();
            store.restore(TTL).unwrap();
            assert_eq!(read(TTL).unwrap(), "99");
        });
    }

    #[test]
    fn a_process_killed_between_file_and_sysctl_leaves_nothing_wrong() {
        with_store(|store| {
            let was = read(TTL).unwrap();
            // Remembered, but the value was never written.
            let mut memory = Memory::default();
            memory.note(TTL, &was, "77");
            store.save(&memory).unwrap();
            store.restore_all().unwrap();
            assert_eq!(read(TTL).unwrap(), was);

            // Restoring was decided and then interrupted, after another key changed this one.
            memory.changes[0].ours = None;
            store.save(&memory).unwrap();
            write(TTL, "55").unwrap();
            store.restore_all().unwrap();
            assert_eq!(read(TTL).unwrap(), was);
        });
    }

    #[test]
    fn links_with_dots_work_and_links_that_are_gone_are_forgotten() {
        with_store(|store| {
            ip("link add eth0.5 type veth peer name far");
            store.set("net/ipv4/conf/eth0.5/proxy_arp", "1").unwrap();
            ip("link del eth0.5");
            store.restore_all().unwrap();
            let error = store
                .set("net/ipv4/conf/eth0.5/proxy_arp", "1")
                .unwrap_err()
                .to_string();
            assert!(error.contains("net/ipv4/conf/eth0.5/proxy_arp"), "{error}");
        });
    }

    #[test]
    fn a_refused_value_is_an_error_and_can_still_be_cleared_up() {
        with_store(|store| {
            let was = read(TTL).unwrap();
            store.set(TTL, "not a number").unwrap_err();
            store.restore_all().unwrap();
            assert_eq!(read(TTL).unwrap(), was);
        });
    }

    fn routers_and_hosts() {
        ip("link add wan type veth peer name far");
        ip("link add lan.7 type bridge");
        for (key, value) in [
            // A link that forwards although the machine does not, and some odd accept_ra.
            ("net/ipv4/conf/lan.7/forwarding", "1"),
            ("net/ipv6/conf/lan.7/forwarding", "1"),
            ("net/ipv6/conf/far/accept_ra", "0"),
            ("net/ipv6/conf/lan.7/accept_ra", "2"),
        ] {
            write(key, value).unwrap();
        }
    }

    #[test]
    fn forwarding_is_switched_on_and_every_sysctl_is_back_afterwards() {
        for redirects in ["0", "1"] {
            with_store(move |store| {
                routers_and_hosts();
                write("net/ipv4/conf/all/accept_redirects", redirects).unwrap();
                let before = all();
                assert!(!enable_forwarding(store).unwrap().is_empty());
                for (key, value) in [
                    (FORWARD_V4, "1"),
                    (FORWARD_V6, "1"),
                    ("net/ipv4/conf/wan/forwarding", "1"),
                    ("net/ipv6/conf/wan/forwarding", "1"),
                    ("net/ipv6/conf/wan/accept_ra", "2"),
                    ("net/ipv6/conf/far/accept_ra", "0"),
                    ("net/ipv6/conf/lan.7/accept_ra", "2"),
                ] {
                    assert_eq!(read(key).unwrap(), value, "{key}");
                }
                // Again changes nothing, and the first values stay remembered.
                assert_eq!(enable_forwarding(store).unwrap(), []);
                store.restore_all().unwrap();
                assert_eq!(difference(&before), [""; 0]);
            });
        }
    }

    #[test]
    fn everything_that_forwarding_changes_is_remembered() {
        with_store(|store| {
            routers_and_hosts();
            let before = all();
            enable_forwarding(store).unwrap();
            let remembered = store.changes().unwrap();
            for line in difference(&before) {
                // The same thing by another name.
                let is_alias = line.starts_with("/proc/sys/net/ipv4/conf/all/forwarding:");
                let known = remembered
                    .iter()
                    .any(|change| line.starts_with(&format!("/proc/sys/{}:", change.key)));
                assert!(known || is_alias, "{line}");
            }
            store.restore_all().unwrap();
        });
    }

    /// Sends a router advertisement (RFC 4861, 4.2) out of a link, to all nodes.
    fn advertise(link: &str) {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        socket.bind_device(Some(link.as_bytes())).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        let all_nodes: std::net::SocketAddrV6 = "[ff02::1]:0".parse().unwrap();
        let mut message = [0; 16];
        // Type, hop limit, and a lifetime of 1,800 s. The kernel fills in the checksum.
        message[0] = 134;
        message[4] = 64;
        message[6..8].copy_from_slice(&1_800_u16.to_be_bytes());
        socket.send_to(&message, &all_nodes.into()).unwrap();
    }

    fn wait_for(what: &str, ready: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !ready() {
            assert!(std::time::Instant::now() < deadline, "waited for {what}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn has_advertised_route() -> bool {
        ip("-6 route show default").contains("dev wan proto ra")
    }

    /// A link `wan` that got a default route from a router advertisement.
    fn advertised_wan() {
        ip("link add wan type veth peer name far");
        write("net/ipv6/conf/wan/accept_ra_from_local", "1").unwrap();
        for link in ["wan", "far"] {
            write(&format!("net/ipv6/conf/{link}/accept_dad"), "0").unwrap();
            ip(&format!("link set {link} up"));
        }
        wait_for("the link-local addresses", || {
            ["wan", "far"].iter().all(|link| {
                ip(&format!("-6 address show dev {link} scope link -tentative")).contains("fe80::")
            })
        });
        advertise("far");
        wait_for("the advertised route", has_advertised_route);
    }

    #[test]
    fn default_routes_from_router_advertisements_survive() {
        with_store(|store| {
            advertised_wan();
            enable_forwarding(store).unwrap();
            assert!(has_advertised_route());
            store.restore_all().unwrap();
            assert!(has_advertised_route());
        });
        // What happens without the care that is taken.
        in_namespace(|| async {
            advertised_wan();
            write(FORWARD_V6, "1").unwrap();
            assert!(!has_advertised_route());
        });
    }

    #[test]
    fn a_machine_that_forwards_is_left_as_it_is() {
        with_store(|store| {
            routers_and_hosts();
            write(FORWARD_V4, "1").unwrap();
            write(FORWARD_V6, "1").unwrap();
            let before = all();
            assert_eq!(enable_forwarding(store).unwrap(), []);
            assert_eq!(difference(&before), [""; 0]);
        });
    }

    #[test]
    fn forwarding_that_the_user_switched_off_since_stays_off() {
        with_store(|store| {
            routers_and_hosts();
            enable_forwarding(store).unwrap();
            write(FORWARD_V4, "0").unwrap();
            store.restore_all().unwrap();
            assert_eq!(read(FORWARD_V4).unwrap(), "0");
            assert_eq!(read("net/ipv4/conf/wan/forwarding").unwrap(), "0");
            assert_eq!(read(FORWARD_V6).unwrap(), "0");
        });
    }

    fn redirects(name: &str) -> String {
        read(&format!("net/ipv4/conf/{name}/send_redirects")).unwrap()
    }

    fn silence(store: &Store, links: &[&str]) {
        let links = links.iter().map(ToString::to_string).collect();
        silence_redirects(store, &links).unwrap();
    }

    #[test]
    fn redirects_are_silenced_where_wanted_and_follow_the_links() {
        with_store(|store| {
            routers_and_hosts();
            write("net/ipv4/conf/far/send_redirects", "0").unwrap();
            let before = all();
            silence(store, &[]);
            assert_eq!(difference(&before), [""; 0]);

            silence(store, &["lan.7", "far", "no-such-link"]);
            let all_of = ["all", "lan.7", "far", "wan", "default"];
            assert_eq!(all_of.map(redirects), ["0", "0", "0", "1", "1"]);
            silence(store, &["wan"]);
            assert_eq!(all_of.map(redirects), ["0", "1", "0", "0", "1"]);
            silence(store, &[]);
            assert_eq!(difference(&before), [""; 0]);

            // With forwarding, and all of it back in one go, by another process.
            enable_forwarding(store).unwrap();
            silence(store, &["lan.7"]);
            Store::new(&Place::current().unwrap())
                .restore_all()
                .unwrap();
            assert_eq!(difference(&before), [""; 0]);
        });
    }
}
