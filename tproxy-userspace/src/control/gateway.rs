//! One gateway's kernel half as a whole: programs, maps, routes and links, put up in order, kept in
//! step with the machine, and taken down in the reverse order.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use tproxy_common::abi::{Link, Listener, Settings};

use super::bpf::{self, AttachWay, Maps, Programs};
use super::links::{Framing, Snapshot};
use super::masquerade::{self, Masquerade};
use super::place::{Lock, Place};
use super::sync::{LocalKind, Wanted, diff, diff_sets};
use super::sysctl::{self, Store};
use super::{Netlink, qdisc, route};
use crate::config;

/// What can go wrong with a gateway.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Programs or maps.
    #[error(transparent)]
    Bpf(#[from] bpf::Error),
    /// Rules, routes, links, sysctls, folders.
    #[error(transparent)]
    Machine(#[from] super::Error),
    /// A link to be detached is not attached.
    #[error("{name} is not attached; {}", attached_list(.attached))]
    NotAttached {
        /// The link.
        name: String,
        /// The links that are.
        attached: Vec<String>,
    },
}

fn attached_list(names: &[String]) -> String {
    if names.is_empty() {
        "nothing is".into()
    } else {
        format!("attached are: {}", names.join(", "))
    }
}

/// What the kernel half decides by itself, beside the prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Private destinations go direct.
    pub bypass_private: bool,
    /// With no proxy, what it should have got is dropped; otherwise it goes direct.
    pub down_drops: bool,
}

/// A gateway whose kernel half is loaded.
pub struct Gateway {
    place: Place,
    netlink: Netlink,
    maps: Maps,
    programs: Programs,
    way: AttachWay,
    /// Whether links attached now outlive this process.
    persistent: bool,
    /// The links whose programs this process has attached or renewed.
    attached: BTreeMap<u32, String>,
}

/// What a call of [`Gateway::sync`] changed.
#[derive(Debug, Default)]
pub struct Synced {
    /// Names of links that were attached.
    pub attached: Vec<String>,
    /// Names of links that were detached, or have gone.
    pub detached: Vec<String>,
    /// What could not be done; the rest was.
    pub failed: Vec<Error>,
}

impl Gateway {
    /// Loads programs and maps, adopting what is pinned, and puts rules, routes and socket lookup in
    /// place. A failure leaves nothing that was not there before. The caller holds the place's lock.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn open(place: Place, way: AttachWay, persistent: bool) -> Result<Self, Error> {
        let netlink = Netlink::open()?;
        let adopting = Maps::open(place.pins())?.is_some();
        match Self::open_parts(&place, &netlink).await {
            Ok((programs, maps)) => Ok(Self {
                place,
                netlink,
                maps,
                programs,
                way,
                persistent,
                attached: BTreeMap::new(),
            }),
            Err(error) => {
                if !adopting && let Err(undo) = clear(&place, &netlink).await {
                    tracing::warn!("taking back a start that failed: {undo}");
                }
                Err(error)
            }
        }
    }

    async fn open_parts(place: &Place, netlink: &Netlink) -> Result<(Programs, Maps), Error> {
        let (mut programs, maps) = Programs::load(place.create_pins()?)?;
        for warning in route::install(netlink).await?.warnings {
            tracing::warn!("{warning}");
        }
        programs.attach_lookup()?;
        Ok((programs, maps))
    }

    /// Switches forwarding on for as long as the gateway is there.
    ///
    /// # Errors
    /// [`Error::Machine`].
    pub fn enable_forwarding(&self) -> Result<(), Error> {
        for change in sysctl::enable_forwarding(&Store::new(&self.place))? {
            tracing::debug!("sysctl {} was {}", change.key, change.was);
        }
        Ok(())
    }

    /// Brings the machine's own part in step with the attached links and the ways out: with `forward`
    /// no redirects to go round the gateway, and masquerading. The caller holds the place's lock.
    ///
    /// # Errors
    /// The first thing that failed; the rest is done all the same.
    pub fn sync_machine(&self, wanted: &config::Gateway, snapshot: &Snapshot) -> Result<(), Error> {
        let attached: Vec<u32> = self
            .maps
            .links()?
            .into_iter()
            .map(|(index, _)| index)
            .collect();
        let between = Masquerade::between(snapshot, &attached);
        let mut result = Ok(());
        if wanted.forward {
            let both = between.lan.intersection(&between.out).cloned().collect();
            result = sysctl::silence_redirects(&Store::new(&self.place), &both);
        }
        let masqueraded = if wanted.masquerade {
            masquerade::apply(&self.place, &between)
        } else {
            masquerade::remove(&self.place)
        };
        result.and(masqueraded.map(drop)).map_err(Error::from)
    }

    /// Is what the gateway forwards masqueraded by us?
    ///
    /// # Errors
    /// [`Error::Machine`] when what is remembered cannot be read.
    pub fn masquerades(&self) -> Result<bool, Error> {
        Ok(masquerade::applied(&self.place)?.is_some())
    }

    /// The maps.
    pub fn maps(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// The policy in force.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn policy(&self) -> Result<Policy, Error> {
        let settings = self.maps.settings()?;
        Ok(Policy {
            bypass_private: settings.has(Settings::BYPASS_PRIVATE),
            down_drops: settings.has(Settings::DOWN_DROPS),
        })
    }

    /// Puts a policy into force.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), Error> {
        let mut settings = self.maps.settings()?;
        let mut set = |flag: u32, on| {
            settings.flags = if on {
                settings.flags | flag
            } else {
                settings.flags & !flag
            };
        };
        set(Settings::BYPASS_PRIVATE, policy.bypass_private);
        set(Settings::DOWN_DROPS, policy.down_drops);
        Ok(self.maps.set_settings(settings)?)
    }

    /// Publishes the proxy's sockets: from here on the programs steer to them. `reply_ports` are the
    /// ports (IPv4, IPv6) of the sockets that send UDP replies.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn publish(
        &mut self,
        sockets: &[(Listener, BorrowedFd<'_>)],
        reply_ports: (u16, u16),
    ) -> Result<(), Error> {
        let mut settings = self.maps.settings()?;
        settings.reply_port_v4 = reply_ports.0.to_be();
        settings.reply_port_v6 = reply_ports.1.to_be();
        self.maps.set_settings(settings)?;
        for (listener, socket) in sockets {
            self.maps.set_listener(*listener, Some(*socket))?;
        }
        Ok(())
    }

    /// Takes the proxy's sockets back: what is new follows the policy for a proxy that is down, and
    /// what the proxy holds still reaches it.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn retract(&mut self) -> Result<(), Error> {
        for listener in Listener::ALL {
            self.maps.set_listener(listener, None)?;
        }
        Ok(())
    }

    /// Names of the attached links; `persistent` only: those that outlive the proxy, because `attach`
    /// attached them.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn links(&self, snapshot: &Snapshot, persistent: bool) -> Result<Vec<String>, Error> {
        let links = self.maps.links()?.into_iter();
        let meant = links.filter(|(_, link)| !persistent || link.flags & Link::PERSISTENT != 0);
        Ok(meant
            .filter_map(|(index, _)| name_of(snapshot, index))
            .collect())
    }

    /// Brings maps and links in step with what is wanted.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the maps cannot be read or written. What fails for a single link is in the
    /// result.
    pub async fn sync(&mut self, wanted: &Wanted, snapshot: &Snapshot) -> Result<Synced, Error> {
        self.sync_locals(&wanted.locals)?;
        self.sync_sources(&wanted.sources)?;
        let mut synced = Synced::default();
        for (index, (name, framing)) in &wanted.attach {
            if self.attached.contains_key(index) {
                continue;
            }
            match self.attach(*index, name, *framing) {
                Ok(()) => synced.attached.push(name.clone()),
                Err(error) => synced.failed.push(error),
            }
        }
        for (index, link) in self.maps.links()? {
            if wanted.attach.contains_key(&index) {
                continue;
            }
            let name = name_of(snapshot, index).or_else(|| self.attached.get(&index).cloned());
            let name = name.unwrap_or_else(|| format!("link {index}"));
            match self.detach(index, &name, link).await {
                Ok(()) => synced.detached.push(name),
                Err(error) => synced.failed.push(error),
            }
        }
        Ok(synced)
    }

    fn sync_locals(&mut self, wanted: &BTreeMap<IpNet, LocalKind>) -> Result<(), Error> {
        let wanted: BTreeMap<IpNet, bool> = wanted
            .iter()
            .map(|(prefix, kind)| (*prefix, *kind == LocalKind::Address))
            .collect();
        let present: BTreeMap<IpNet, bool> = self.maps.locals()?.into_iter().collect();
        let changes = diff(&wanted, &present);
        for (prefix, address) in changes.add {
            self.maps.set_local(prefix, Some(address))?;
        }
        for prefix in changes.remove {
            self.maps.set_local(prefix, None)?;
        }
        Ok(())
    }

    fn sync_sources(&mut self, wanted: &BTreeSet<(u32, IpNet)>) -> Result<(), Error> {
        let present: BTreeSet<(u32, IpNet)> = self.maps.sources()?.into_iter().collect();
        let changes = diff_sets(wanted, &present);
        for ((index, prefix), ()) in changes.add {
            self.maps.set_source(index, prefix, true)?;
        }
        for (index, prefix) in changes.remove {
            self.maps.set_source(index, prefix, false)?;
        }
        Ok(())
    }

    fn attach(&mut self, index: u32, name: &str, framing: Framing) -> Result<(), Error> {
        let ethernet = framing == Framing::Ethernet;
        let before = self
            .maps
            .links()?
            .into_iter()
            .find(|(found, _)| *found == index);
        let before = before.map(|(_, link)| link.flags);
        // A link that is held already stays held that way, or it would be held both ways.
        let way = match before {
            Some(flags) if flags & Link::CLSACT != 0 => AttachWay::Clsact,
            Some(_) => AttachWay::Tcx,
            None => self.way,
        };
        let was_there = self.programs.attach_lan(index, name, ethernet, way)?;
        let mut flags =
            Link::LAN | before.unwrap_or(0) & (Link::PERSISTENT | Link::CLSACT_WAS_THERE);
        if self.persistent {
            flags |= Link::PERSISTENT;
        }
        if way == AttachWay::Clsact {
            flags |= Link::CLSACT;
            if before.is_none() && was_there {
                flags |= Link::CLSACT_WAS_THERE;
            }
        }
        self.maps.set_link(index, Some(Link { flags }))?;
        self.attached.insert(index, name.to_owned());
        Ok(())
    }

    async fn detach(&mut self, index: u32, name: &str, link: Link) -> Result<(), Error> {
        detach_link(
            &self.place,
            &self.netlink,
            &mut self.maps,
            index,
            name,
            link,
        )
        .await?;
        self.attached.remove(&index);
        Ok(())
    }

    /// Detaches the links that `attach` did not attach. With none left, everything is removed.
    ///
    /// # Errors
    /// The first thing that could not be undone; the rest is undone all the same.
    pub async fn close(mut self, snapshot: &Snapshot, lock: Lock) -> Result<(), Error> {
        let mut result = self.retract();
        let mut left = Vec::new();
        for (index, link) in self.maps.links()? {
            if link.flags & Link::PERSISTENT != 0 {
                left.push(index);
                continue;
            }
            let name = name_of(snapshot, index).or_else(|| self.attached.get(&index).cloned());
            let detached = self.detach(index, &name.unwrap_or_default(), link).await;
            result = result.and(detached);
        }
        if left.is_empty() {
            let Self {
                place,
                netlink,
                maps,
                programs,
                ..
            } = self;
            drop((maps, programs));
            result = result.and(clear(&place, &netlink).await);
            result = result.and(place.remove(lock).map_err(Error::from));
        } else {
            result = result.and(masquerade_rest(&self.place, snapshot, &left));
        }
        result
    }
}

fn name_of(snapshot: &Snapshot, index: u32) -> Option<String> {
    snapshot.link(index).map(|link| link.name.clone())
}

async fn detach_link(
    place: &Place,
    netlink: &Netlink,
    maps: &mut Maps,
    index: u32,
    name: &str,
    link: Link,
) -> Result<(), Error> {
    let clsact = link.flags & Link::CLSACT != 0;
    let way = if clsact {
        AttachWay::Clsact
    } else {
        AttachWay::Tcx
    };
    bpf::detach_lan(place.pins(), index, name, way)?;
    if clsact && link.flags & Link::CLSACT_WAS_THERE == 0 {
        qdisc::remove_clsact(netlink, index, name).await?;
    }
    for (source_index, prefix) in maps.sources()? {
        if source_index == index {
            maps.set_source(index, prefix, false)?;
        }
    }
    Ok(maps.set_link(index, None)?)
}

/// Removes everything that is left of a gateway whose links are detached, but the folders.
async fn clear(place: &Place, netlink: &Netlink) -> Result<(), Error> {
    let mut result = bpf::remove_pins(place.pins()).map_err(Error::from);
    result = result.and(masquerade::remove(place).map(drop).map_err(Error::from));
    result = result.and(route::remove(netlink).await.map(drop).map_err(Error::from));
    result.and(Store::new(place).restore_all().map_err(Error::from))
}

/// What is masqueraded goes on to be for the links that are left.
fn masquerade_rest(place: &Place, snapshot: &Snapshot, left: &[u32]) -> Result<(), Error> {
    if masquerade::applied(place)?.is_some() {
        masquerade::apply(place, &Masquerade::between(snapshot, left))?;
    }
    Ok(())
}

/// Detaches links by name, or all of them with no name; then nothing is left, whoever put it there.
/// Returns the names of the links that were detached.
///
/// # Errors
/// [`Error::NotAttached`] before anything is changed; or the first thing that could not be undone.
pub async fn detach(
    place: &Place,
    names: &[String],
    snapshot: &Snapshot,
    lock: Lock,
) -> Result<Vec<String>, Error> {
    let netlink = Netlink::open()?;
    let mut maps = match Maps::open(place.pins()) {
        Ok(Some(maps)) => maps,
        // Nothing, or nothing that can be read: pins, rules and sysctls can be removed all the same.
        Ok(None) | Err(bpf::Error::Version { .. } | bpf::Error::Map { .. }) if names.is_empty() => {
            clear(place, &netlink).await?;
            place.remove(lock)?;
            return Ok(Vec::new());
        }
        Ok(None) => {
            return Err(Error::NotAttached {
                name: names[0].clone(),
                attached: Vec::new(),
            });
        }
        Err(error) => return Err(error.into()),
    };
    let present: Vec<(u32, String, Link)> = maps
        .links()?
        .into_iter()
        .map(|(index, link)| {
            (
                index,
                name_of(snapshot, index).unwrap_or_else(|| format!("link {index}")),
                link,
            )
        })
        .collect();
    if let Some(name) = names
        .iter()
        .find(|name| !present.iter().any(|(_, found, _)| found == *name))
    {
        let attached = present.into_iter().map(|(_, name, _)| name).collect();
        return Err(Error::NotAttached {
            name: name.clone(),
            attached,
        });
    }
    let mut result = Ok(());
    let mut detached = Vec::new();
    let mut left = Vec::new();
    for (index, name, link) in present {
        if names.is_empty() || names.contains(&name) {
            result = result.and(detach_link(place, &netlink, &mut maps, index, &name, link).await);
            detached.push(name);
        } else {
            left.push(index);
        }
    }
    if left.is_empty() {
        drop(maps);
        result = result.and(clear(place, &netlink).await);
        result = result.and(place.remove(lock).map_err(Error::from));
    } else {
        result = result.and(masquerade_rest(place, snapshot, &left));
    }
    result.map(|()| detached)
}
