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
use super::sync::{Attachment, LocalKind, Roles, Selection, Via, Wanted, diff, diff_sets};
use super::sysctl::{self, Store};
use super::{Netlink, cgroup, qdisc, route};
use crate::config;
use crate::step::{Step, step};

const LOOPBACK: &str = "lo";
const ACCEPT_LOCAL: &str = "net/ipv4/conf/lo/accept_local";

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
    /// What devices send and get past the proxy is counted for each of them.
    pub account: bool,
}

/// A gateway whose kernel half is loaded.
pub struct Gateway {
    place: Place,
    netlink: Netlink,
    maps: Maps,
    programs: Programs,
    way: AttachWay,
    /// The links whose programs this process has attached or renewed.
    attached: BTreeMap<u32, (String, Roles)>,
    /// Whether this process has told that gids, uids and cgroups cannot be exempt.
    told_no_cgroup: bool,
}

/// An attached link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedLink {
    /// Its index.
    pub index: u32,
    /// Its name; `link INDEX` if it is gone.
    pub name: String,
    /// What is noted of it.
    pub link: Link,
}

impl AttachedLink {
    /// What it is for.
    #[must_use]
    pub fn roles(&self) -> Roles {
        roles_of(self.link)
    }

    /// The roles that outlive the proxy, because `attach` gave them.
    #[must_use]
    pub fn stays(&self) -> Roles {
        Roles {
            lan: self.link.flags & Link::LAN_STAYS != 0,
            wan: self.link.flags & Link::WAN_STAYS != 0,
            loopback: false,
            express: false,
        }
    }

    /// How its programs are held.
    #[must_use]
    pub fn way(&self) -> AttachWay {
        way_of(self.link)
    }
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
    /// Opens programs and maps, adopting what is pinned, and puts rules, routes and socket lookup in
    /// place. A failure leaves nothing that was not there before. The caller holds the place's lock.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn open(place: Place, way: AttachWay) -> Result<Self, Error> {
        let netlink = Netlink::open()?;
        let adopting = Maps::open(place.pins())?.is_some();
        match Self::open_parts(&place, &netlink).await {
            Ok((programs, maps)) => Ok(Self {
                place,
                netlink,
                maps,
                programs,
                way,
                attached: BTreeMap::new(),
                told_no_cgroup: false,
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
        let (mut programs, mut maps) = Programs::load(place.create_pins()?)?;
        let mut settings = maps.settings()?;
        settings.netns_cookie = place.cookie();
        maps.set_settings(settings)?;
        step(Step::StartPinned);
        for warning in route::install(netlink).await?.warnings {
            tracing::warn!("{warning}");
        }
        step(Step::StartRouted);
        programs.attach_lookup()?;
        step(Step::StartLookup);
        Ok((programs, maps))
    }

    /// Has the kernel verify now what it otherwise would when a link is attached.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn load_programs(&mut self) -> Result<(), Error> {
        self.programs.load_all()?;
        Ok(())
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

    /// Puts back what [`enable_forwarding`](Self::enable_forwarding) changed.
    ///
    /// # Errors
    /// [`Error::Machine`].
    pub fn disable_forwarding(&self) -> Result<(), Error> {
        let store = Store::new(&self.place);
        Ok(store.restore_where(|change| change.key != ACCEPT_LOCAL)?)
    }

    /// Brings the machine's own part in step with the attached links and the ways out: with `forward`
    /// no redirects to go round the gateway, and masquerading. The caller holds the place's lock.
    ///
    /// # Errors
    /// The first thing that failed; the rest is done all the same.
    pub fn sync_machine(&self, wanted: &config::Gateway, snapshot: &Snapshot) -> Result<(), Error> {
        let between = Masquerade::between(snapshot, &lan_links(&self.maps)?);
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
            account: settings.has(Settings::ACCOUNT),
        })
    }

    /// Puts a policy into force.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), Error> {
        let mut settings = self.maps.settings()?;
        settings.set(Settings::BYPASS_PRIVATE, policy.bypass_private);
        settings.set(Settings::DOWN_DROPS, policy.down_drops);
        settings.set(Settings::ACCOUNT, policy.account);
        Ok(self.maps.set_settings(settings)?)
    }

    /// Lets flows be on the express lane: past routing and firewall, or not; or lets none.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn set_express(&mut self, redirect: Option<bool>) -> Result<(), Error> {
        let mut settings = self.maps.settings()?;
        settings.set(Settings::EXPRESS, redirect.is_some());
        settings.set(Settings::EXPRESS_REDIRECT, redirect == Some(true));
        Ok(self.maps.set_settings(settings)?)
    }

    /// The indices of the links that serve the express lane.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn express_links(&self) -> Result<BTreeSet<u32>, Error> {
        let links = self.maps.links()?.into_iter();
        let express = links.filter(|(_, link)| roles_of(*link).express);
        Ok(express.map(|(index, _)| index).collect())
    }

    /// Steers DNS questions to the proxy, whatever server they are for, or leaves them alone.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn hijack_dns(&mut self, on: bool) -> Result<(), Error> {
        let mut settings = self.maps.settings()?;
        settings.set(Settings::HIJACK_DNS, on);
        Ok(self.maps.set_settings(settings)?)
    }

    /// Publishes the proxy's sockets: from here on the programs steer to them. `reply_ports` are the
    /// ports (IPv4, IPv6) of the sockets that send UDP replies.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn publish(
        &mut self,
        sockets: &[(Listener, Vec<BorrowedFd<'_>>)],
        reply_ports: (u16, u16),
    ) -> Result<(), Error> {
        let mut settings = self.maps.settings()?;
        settings.reply_port_v4 = reply_ports.0.to_be();
        settings.reply_port_v6 = reply_ports.1.to_be();
        self.maps.set_settings(settings)?;
        for (listener, sockets) in sockets {
            self.maps.set_listener(*listener, sockets)?;
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
            self.maps.set_listener(listener, &[])?;
        }
        // Who answers questions is gone for good, and whom they are for may be there.
        self.hijack_dns(false)
    }

    /// The attached LAN and WAN links.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn links(&self, snapshot: &Snapshot) -> Result<Vec<AttachedLink>, Error> {
        links(&self.maps, snapshot)
    }

    /// Brings maps and links in step with what is wanted.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the maps cannot be read or written. What fails for a single link is in the
    /// result.
    pub async fn sync(&mut self, wanted: &Wanted, snapshot: &Snapshot) -> Result<Synced, Error> {
        self.sync_locals(&wanted.locals)?;
        self.sync_sources(&wanted.sources)?;
        step(Step::StartSources);
        let mut synced = Synced::default();
        let own_traffic = wanted.attach.values().any(|link| link.roles.wan);
        if own_traffic && let Err(error) = self.begin_own_traffic() {
            synced.failed.push(error);
        }
        // In the order of the indices, so `lo` is ready before any WAN link turns packets round.
        for (index, link) in &wanted.attach {
            let known = self.attached.get(index).map(|(_, roles)| *roles);
            if known == Some(link.roles) {
                continue;
            }
            match self.attach(*index, link).await {
                // Only the express lane, perhaps.
                Ok(()) if known.unwrap_or_default().told() == link.roles.told() => {}
                Ok(()) if link.roles.is_told() => synced.attached.push(link.name.clone()),
                Ok(()) => synced.detached.push(link.name.clone()),
                // The proxy does the same, only slower.
                Err(error) if link.roles == Roles::EXPRESS => {
                    tracing::warn!("no express lane by {}: {error}", link.name);
                }
                Err(error) => synced.failed.push(error),
            }
        }
        let mut present = self.maps.links()?;
        // `lo` last, for the same reason.
        present.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, link) in present {
            if wanted.attach.contains_key(&index) {
                continue;
            }
            let known = self.attached.get(&index).map(|(name, _)| name.clone());
            let name = name_of(snapshot, index).or(known);
            let name = name.unwrap_or_else(|| format!("link {index}"));
            match self.detach(index, &name, link, roles_of(link)).await {
                Ok(()) if !roles_of(link).is_told() => {}
                Ok(()) => synced.detached.push(name),
                Err(error) => synced.failed.push(error),
            }
        }
        if !own_traffic {
            end_own_traffic(&self.place)?;
        }
        Ok(synced)
    }

    /// What the gateway's own traffic needs beside the programs at the links.
    fn begin_own_traffic(&mut self) -> Result<(), Error> {
        let free = sysctl::local_port_range()?;
        let mut settings = self.maps.settings()?;
        (settings.first_free_port, settings.last_free_port) = free;
        self.maps.set_settings(settings)?;
        // Once a process: links come and go while it stays in place.
        if self.attached.values().any(|(_, roles)| roles.loopback) {
            return Ok(());
        }
        match cgroup::mount()? {
            Some(cgroup) => self.programs.attach_sock_create(&cgroup)?,
            None if !self.told_no_cgroup => {
                self.told_no_cgroup = true;
                tracing::warn!(
                    "no cgroup2 file system is mounted: nobody can be exempt by gid, uid or cgroup, \
                     only by mark or destination"
                );
            }
            None => {}
        }
        // Packets with a source of its own come in by `lo` then (fib_validate_source in the kernel's
        // net/ipv4/fib_frontend.c).
        Store::new(&self.place).set(ACCEPT_LOCAL, "1")?;
        Ok(())
    }

    /// Makes roles of links outlive this process.
    ///
    /// # Errors
    /// [`Error::Bpf`].
    pub fn keep(&mut self, selection: &Selection, snapshot: &Snapshot) -> Result<(), Error> {
        for (index, mut link) in self.maps.links()? {
            let meant = snapshot
                .link(index)
                .map(|info| selection.roles(info, snapshot));
            let roles = meant.unwrap_or_default();
            if roles.lan {
                link.flags |= Link::LAN_STAYS;
            }
            if roles.wan {
                link.flags |= Link::WAN_STAYS;
            }
            self.maps.set_link(index, Some(link))?;
        }
        Ok(())
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

    fn sync_sources(&mut self, wanted: &BTreeSet<(Via, IpNet)>) -> Result<(), Error> {
        let present: BTreeSet<(Via, IpNet)> = self.maps.sources()?.into_iter().collect();
        let changes = diff_sets(wanted, &present);
        for ((via, prefix), ()) in changes.add {
            self.maps.set_source(via, prefix, true)?;
        }
        for (via, prefix) in changes.remove {
            self.maps.set_source(via, prefix, false)?;
        }
        Ok(())
    }

    /// Attaches a link, or gives it other roles.
    async fn attach(&mut self, index: u32, wanted: &Attachment) -> Result<(), Error> {
        let ethernet = wanted.framing == Framing::Ethernet;
        let links = self.maps.links()?.into_iter();
        let before = links
            .map(|(found, link)| (found, link.flags))
            .find_map(|(found, flags)| (found == index).then_some(flags));
        if let Some(flags) = before {
            let link = Link { flags };
            let surplus = roles_of(link).without(wanted.roles);
            if !surplus.is_empty() {
                self.detach(index, &wanted.name, link, surplus).await?;
            }
        }
        // A link that is held already stays held that way, or it would be held both ways.
        let way = before.map_or(self.way, |flags| way_of(Link { flags }));
        let kept = Link::LAN_STAYS | Link::WAN_STAYS | Link::CLSACT_WAS_THERE;
        let mut flags = flags_of(wanted.roles) | before.unwrap_or(0) & kept;
        if way == AttachWay::Clsact {
            flags |= Link::CLSACT;
            if before.is_none() && qdisc::has_clsact(&self.netlink, index, &wanted.name).await? {
                flags |= Link::CLSACT_WAS_THERE;
            }
        }
        // First: filters have no pins, so if this process is killed it is by the note that they are found.
        self.maps.set_link(index, Some(Link { flags }))?;
        step(Step::StartNoted);
        let attached = self
            .programs
            .attach_link(index, &wanted.name, ethernet, wanted.roles, way);
        if let Err(error) = attached {
            // The first failure is the one to tell.
            let _ = match before {
                Some(flags) => self
                    .maps
                    .set_link(index, Some(Link { flags }))
                    .map_err(Error::from),
                None => {
                    let link = Link { flags };
                    self.detach(index, &wanted.name, link, wanted.roles).await
                }
            };
            return Err(error.into());
        }
        self.attached
            .insert(index, (wanted.name.clone(), wanted.roles));
        step(Step::StartAttached);
        Ok(())
    }

    /// Takes roles from a link; with the last one it is detached.
    async fn detach(
        &mut self,
        index: u32,
        name: &str,
        link: Link,
        roles: Roles,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        let attached = AttachedLink { index, name, link };
        detach_roles(&self.place, &self.netlink, &mut self.maps, &attached, roles).await?;
        self.attached.remove(&index);
        Ok(())
    }

    /// Detaches the links that `attach` did not attach. With none left, everything is removed.
    ///
    /// # Errors
    /// The first thing that could not be undone; the rest is undone all the same.
    pub async fn close(mut self, snapshot: &Snapshot, lock: Lock) -> Result<(), Error> {
        let mut result = self.retract();
        let mut left = false;
        for link in all_links(&self.maps, snapshot)? {
            let stays = link.stays();
            left |= !stays.is_empty();
            let roles = link.roles().without(stays);
            let detached = self.detach(link.index, &link.name, link.link, roles).await;
            result = result.and(detached);
        }
        let settled = settle_loopback(&self.place, &self.netlink, &mut self.maps).await;
        result = result.and(settled);
        if !left {
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
            result = result.and(masquerade_rest(&self.place, snapshot, &self.maps));
        }
        result
    }
}

fn name_of(snapshot: &Snapshot, index: u32) -> Option<String> {
    snapshot.link(index).map(|link| link.name.clone())
}

fn way_of(link: Link) -> AttachWay {
    if link.flags & Link::CLSACT != 0 {
        AttachWay::Clsact
    } else {
        AttachWay::Tcx
    }
}

fn roles_of(link: Link) -> Roles {
    Roles {
        lan: link.flags & Link::LAN != 0,
        wan: link.flags & Link::WAN != 0,
        loopback: link.flags & Link::LOOPBACK != 0,
        express: link.flags & Link::EXPRESS != 0,
    }
}

fn flags_of(roles: Roles) -> u32 {
    let flag = |on, flag| if on { flag } else { 0 };
    flag(roles.lan, Link::LAN)
        | flag(roles.wan, Link::WAN)
        | flag(roles.loopback, Link::LOOPBACK)
        | flag(roles.express, Link::EXPRESS)
}

/// Indices of the LAN links.
fn lan_links(maps: &Maps) -> Result<Vec<u32>, Error> {
    let links = maps.links()?.into_iter();
    Ok(links
        .filter(|(_, link)| roles_of(*link).lan)
        .map(|(index, _)| index)
        .collect())
}

/// The attached LAN and WAN links.
///
/// # Errors
/// [`Error::Bpf`].
pub fn links(maps: &Maps, snapshot: &Snapshot) -> Result<Vec<AttachedLink>, Error> {
    let mut links = all_links(maps, snapshot)?;
    links.retain(|link| link.roles().is_told());
    Ok(links)
}

/// The attached links, without `lo`.
fn all_links(maps: &Maps, snapshot: &Snapshot) -> Result<Vec<AttachedLink>, Error> {
    let mut links = maps.links()?;
    // In the order in which they were attached.
    links.sort_by_key(|(index, _)| *index);
    let devices = links
        .into_iter()
        .filter(|(_, link)| !roles_of(*link).loopback);
    Ok(devices
        .map(|(index, link)| AttachedLink {
            index,
            name: name_of(snapshot, index).unwrap_or_else(|| format!("link {index}")),
            link,
        })
        .collect())
}

/// Takes roles from a link; with the last one it is detached.
async fn detach_roles(
    place: &Place,
    netlink: &Netlink,
    maps: &mut Maps,
    link: &AttachedLink,
    roles: Roles,
) -> Result<(), Error> {
    let AttachedLink { index, name, .. } = link;
    bpf::detach_link(place.pins(), *index, name, roles, link.way())?;
    step(Step::StopDetached);
    let gone = |via: Via| {
        via.link == *index
            && if via.own {
                roles.wan
            } else {
                roles.lan || roles.loopback
            }
    };
    for (via, prefix) in maps.sources()? {
        if gone(via) {
            maps.set_source(via, prefix, false)?;
        }
    }
    let left = roles_of(link.link).without(roles);
    if left.is_empty() {
        let flags = link.link.flags;
        if flags & Link::CLSACT != 0 && flags & Link::CLSACT_WAS_THERE == 0 {
            qdisc::remove_clsact(netlink, *index, name).await?;
        }
        return Ok(maps.set_link(*index, None)?);
    }
    let mut flags = link.link.flags & !flags_of(roles);
    if roles.lan {
        flags &= !Link::LAN_STAYS;
    }
    if roles.wan {
        flags &= !Link::WAN_STAYS;
    }
    Ok(maps.set_link(*index, Some(Link { flags }))?)
}

/// Without a WAN link nothing needs `lo`.
async fn settle_loopback(place: &Place, netlink: &Netlink, maps: &mut Maps) -> Result<(), Error> {
    let links = maps.links()?;
    if links.iter().any(|(_, link)| roles_of(*link).wan) {
        return Ok(());
    }
    let mut result = Ok(());
    for (index, link) in links {
        if roles_of(link).loopback {
            let name = LOOPBACK.to_owned();
            let attached = AttachedLink { index, name, link };
            result = detach_roles(place, netlink, maps, &attached, Roles::LOOPBACK).await;
        }
    }
    result.and(end_own_traffic(place))
}

/// Takes back what [`Gateway::begin_own_traffic`] did.
fn end_own_traffic(place: &Place) -> Result<(), Error> {
    let result = bpf::detach_sock_create(place.pins()).map_err(Error::from);
    result.and(Store::new(place).restore(ACCEPT_LOCAL).map_err(Error::from))
}

/// Removes everything that is left of a gateway whose links are detached, but the folders.
async fn clear(place: &Place, netlink: &Netlink) -> Result<(), Error> {
    step(Step::StopUnlinked);
    let mut result = bpf::remove_pins(place.pins()).map_err(Error::from);
    step(Step::StopUnpinned);
    result = result.and(masquerade::remove(place).map(drop).map_err(Error::from));
    result = result.and(route::remove(netlink).await.map(drop).map_err(Error::from));
    step(Step::StopUnrouted);
    result = result.and(cgroup::remove_own(place.namespace()).map_err(Error::from));
    result = result.and(Store::new(place).restore_all().map_err(Error::from));
    step(Step::StopRestored);
    result
}

/// What is masqueraded goes on to be for the links that are left.
fn masquerade_rest(place: &Place, snapshot: &Snapshot, maps: &Maps) -> Result<(), Error> {
    if masquerade::applied(place)?.is_some() {
        masquerade::apply(place, &Masquerade::between(snapshot, &lan_links(maps)?))?;
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
    let (present, beside): (Vec<_>, Vec<_>) = all_links(&maps, snapshot)?
        .into_iter()
        .partition(|link| link.roles().is_told());
    if let Some(name) = names
        .iter()
        .find(|name| !present.iter().any(|link| link.name == **name))
    {
        return Err(Error::NotAttached {
            name: name.clone(),
            attached: present.into_iter().map(|link| link.name).collect(),
        });
    }
    let mut result = Ok(());
    let (meant, left): (Vec<_>, Vec<_>) = present
        .into_iter()
        .partition(|link| names.is_empty() || names.contains(&link.name));
    // What is there for the express lane alone goes with the last of the others.
    for link in beside.iter().filter(|_| left.is_empty()) {
        let detached = detach_roles(place, &netlink, &mut maps, link, link.roles()).await;
        result = result.and(detached);
    }
    for link in &meant {
        let detached = detach_roles(place, &netlink, &mut maps, link, link.roles()).await;
        result = result.and(detached);
    }
    result = result.and(settle_loopback(place, &netlink, &mut maps).await);
    if left.is_empty() {
        drop(maps);
        result = result.and(clear(place, &netlink).await);
        result = result.and(place.remove(lock).map_err(Error::from));
    } else {
        result = result.and(masquerade_rest(place, snapshot, &maps));
    }
    result.map(|()| meant.into_iter().map(|link| link.name).collect())
}
