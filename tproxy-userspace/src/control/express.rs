//! The express lane: which flows go by it, and by which links.
//!
//! Whoever relays asks for a flow; here it is looked whether the kernel would send its datagrams the same way, and two entries
//! are made. What the entries count is told on demand. When links, addresses or routes change, all flows leave the lane: those
//! that go on are asked for again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tproxy_common::abi::{
    EXPRESS_FLOWS, EXPRESS_LIFE, EXPRESS_PATIENCE, Express, MARK_EXEMPT, MARK_EXPRESS,
    MARK_EXPRESS_ANSWER, MARK_MASK, Reason,
};

use super::bpf::{self, Ends, ExpressMaps};
use super::links::Snapshot;
use super::way_out::{Forwarded, WayOut};
use super::{Error, Netlink};
use crate::control::bypass::now as boot_time;

/// Flows that are asked for and not looked at yet. More are asked for again.
const ASKED: usize = 1024;
/// How often it is looked whether answers get to the devices.
const LOOK: Duration = Duration::from_secs(1);
/// How many answers in that time must not have got there, or how many flows at all, so that it is no accident.
const LOST: u64 = 64;
const ASTRAY: usize = 8;

/// A flow that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The association that it is one of.
    pub association: u64,
    /// Who sends.
    pub device: SocketAddr,
    /// To whom.
    pub peer: SocketAddr,
    /// The port that the proxy sends from.
    pub port: u16,
}

/// Datagrams that went by the lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Payload from the device, in bytes.
    pub up: u64,
    /// Payload to the device.
    pub down: u64,
}

/// What was told of an entry already.
#[derive(Clone, Copy, Default)]
struct Told {
    packets: u64,
    bytes: u64,
}

impl Told {
    /// How many bytes the entry has counted since. None: no datagram.
    fn take(&mut self, entry: &Express) -> Option<u64> {
        if entry.packets == self.packets {
            return None;
        }
        self.packets = entry.packets;
        let before = std::mem::replace(&mut self.bytes, entry.bytes);
        Some(entry.bytes.saturating_sub(before))
    }
}

/// See the module. Dropping it ends its task, but not the entries: [`Lane::close`] does.
pub struct Lane {
    state: Mutex<State>,
    asked: mpsc::Sender<Wanted>,
    /// Until when a flow may be changing to the lane (`CLOCK_BOOTTIME`, nanoseconds).
    switching: AtomicU64,
}

struct State {
    maps: ExpressMaps,
    redirect: bool,
    network: Arc<Network>,
    associations: HashMap<u64, OnLane>,
    /// The entry to the peer, by device and peer.
    up: HashMap<(SocketAddr, SocketAddr), u32>,
    next: u32,
    /// How many flows went astray.
    astray: usize,
    /// Answers that came, and that got to a device, when it was looked last.
    answers: [u64; 2],
    /// Nobody is let in, for now or for good.
    closed: bool,
    given_up: bool,
}

/// The network, and the links in it that serve the lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Network {
    snapshot: Snapshot,
    express: BTreeSet<u32>,
}

/// The flows of an association.
#[derive(Default)]
struct OnLane {
    flows: HashMap<SocketAddr, Flow>,
    /// What went by entries that are gone, and was not told yet.
    owed: Vec<(SocketAddr, Carried)>,
    /// Peers whose datagrams did not get out by the lane.
    astray: HashSet<SocketAddr>,
}

struct Flow {
    /// Of its entries to the peer, and from it: where they are, their numbers, and what was told of them.
    ends: [Ends; 2],
    ids: [u32; 2],
    told: [Told; 2],
}

/// What the entries of a flow say.
#[derive(Default)]
struct Taken {
    /// What went since they were asked last. None: nothing.
    carried: Option<Carried>,
    /// When the last one went.
    used: u64,
    /// Those to the peer do not get out.
    astray: bool,
}

impl Flow {
    fn take(&mut self, maps: &ExpressMaps) -> Taken {
        let mut taken = Taken::default();
        for at in 0..2 {
            let Some(entry) = maps.get(self.ends[at]) else {
                continue;
            };
            taken.used = taken.used.max(entry.used);
            taken.astray |= at == 0 && entry.used == 0;
            if let Some(bytes) = self.told[at].take(&entry) {
                let carried = taken.carried.get_or_insert_default();
                *(if at == 0 {
                    &mut carried.up
                } else {
                    &mut carried.down
                }) += bytes;
            }
        }
        taken
    }
}

/// The entries of a flow, before they are made.
struct Plan {
    /// To the peer, and from it.
    entries: [(Ends, Express); 2],
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

impl Lane {
    /// An empty lane on the maps of this folder; what another process left there is removed. With `redirect` datagrams are
    /// given to their link past routing and firewall. From then on the caller has what asks for flows looked at.
    ///
    /// # Errors
    /// [`bpf::Error`].
    pub fn open(pins: &Path, redirect: bool) -> Result<(Arc<Self>, Asked), bpf::Error> {
        let mut maps = ExpressMaps::open(pins)?;
        maps.clear()?;
        let (asked, heard) = mpsc::channel(ASKED);
        let state = State {
            maps,
            redirect,
            network: Arc::default(),
            associations: HashMap::new(),
            up: HashMap::new(),
            next: 0,
            astray: 0,
            answers: [0; 2],
            closed: false,
            given_up: false,
        };
        let lane = Arc::new(Self {
            state: Mutex::new(state),
            asked,
            switching: AtomicU64::new(0),
        });
        Ok((lane, Asked(heard)))
    }

    /// Asks for a flow. It may be refused; then the proxy goes on with it, and may ask again. From then on the association is
    /// known until it [leaves](Self::leave).
    pub fn ask(&self, wanted: Wanted) {
        self.state()
            .associations
            .entry(wanted.association)
            .or_default();
        // Where there is no room it is asked for again.
        let _ = self.asked.try_send(wanted);
    }

    /// Is there a flow whose datagrams may have numbers?
    #[must_use]
    pub fn is_switching(&self) -> bool {
        let until = self.switching.load(Relaxed);
        until != 0 && boot_time() < until
    }

    /// The proxy has sent a device's datagram on that had this number, and all before it.
    pub fn sent(&self, device: SocketAddr, peer: SocketAddr, number: u16) {
        let mut state = self.state();
        if let Some(id) = state.up.get(&(device, peer)).copied() {
            state.reached(id, number);
        }
    }

    /// The same for an answer.
    pub fn answered(&self, association: u64, peer: SocketAddr, number: u16) {
        let mut state = self.state();
        let flow = state.associations.get(&association);
        if let Some(id) = flow.and_then(|on_lane| Some(on_lane.flows.get(&peer)?.ids[1])) {
            state.reached(id, number);
        }
    }

    /// What went by the lane since this was asked last, by peer. Flows that idle leave it.
    pub fn carried(&self, association: u64) -> Vec<(SocketAddr, Carried)> {
        self.state().carried(association, Some(boot_time()))
    }

    /// An association ends: its flows leave the lane. What went since [`carried`](Self::carried) is returned.
    pub fn leave(&self, association: u64) -> Vec<(SocketAddr, Carried)> {
        let mut state = self.state();
        state.empty(association);
        let carried = state.carried(association, None);
        state.associations.remove(&association);
        carried
    }

    /// The network is so now, and the lane goes by these links. If that is new, all flows leave the lane.
    pub fn follow(&self, snapshot: &Snapshot, express: BTreeSet<u32>) {
        let network = Network {
            snapshot: snapshot.clone(),
            express,
        };
        let mut state = self.state();
        if *state.network != network {
            state.network = Arc::new(network);
            state.empty_all();
        }
    }

    /// All flows leave the lane, and none comes any more.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.empty_all();
    }

    /// Flows may come again.
    pub fn reopen(&self) {
        let mut state = self.state();
        state.closed = state.given_up;
    }

    /// Looks whether answers get to the devices. If none does, nothing goes by the lane any more.
    fn look(&self) {
        let mut state = self.state();
        let count = |reason| state.maps.count(reason).unwrap_or(0);
        let now = [Reason::ExpressAnswer, Reason::ExpressDelivered].map(count);
        let before = std::mem::replace(&mut state.answers, now);
        let came = now[0].saturating_sub(before[0]);
        if !state.closed && came >= LOST && now[1] == before[1] {
            state.give_up("the answers do not get to the devices");
        }
    }

    async fn put(&self, netlink: &Netlink, wanted: &Wanted) -> Result<(), Error> {
        let (network, redirect) = {
            let state = self.state();
            let full = state.up.len() >= EXPRESS_FLOWS as usize;
            if full || !state.may_have(wanted) {
                return Ok(());
            }
            (Arc::clone(&state.network), state.redirect)
        };
        let Some(plan) = plan(netlink, wanted, &network, redirect).await? else {
            return Ok(());
        };
        let mut state = self.state();
        // Whether it was there already and went astray.
        state.remove(wanted.association, wanted.peer);
        // While the kernel was asked, that may have become untrue.
        if !Arc::ptr_eq(&state.network, &network) || !state.may_have(wanted) {
            return Ok(());
        }
        let patience = 2 * Duration::from_nanos(EXPRESS_PATIENCE);
        let until = boot_time() + patience.as_nanos() as u64;
        self.switching.store(until, Relaxed);
        if let Err(error) = state.put(wanted, plan) {
            tracing::debug!("a flow does not go by the express lane: {error}");
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What runs under the lock leaves it whole if it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The flows that are asked for.
#[derive(Debug)]
pub struct Asked(mpsc::Receiver<Wanted>);

impl Asked {
    /// Looks at each of them, until the lane is gone.
    ///
    /// # Errors
    /// [`Error::NetlinkSocket`].
    pub async fn serve(mut self, lane: std::sync::Weak<Lane>) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wanted = tokio::select! {
                wanted = self.0.recv() => wanted,
                _ = look.tick() => match lane.upgrade() {
                    Some(lane) => {
                        lane.look();
                        continue;
                    }
                    None => return Ok(()),
                },
            };
            let (Some(wanted), Some(lane)) = (wanted, lane.upgrade()) else {
                return Ok(());
            };
            if let Err(error) = lane.put(&netlink, &wanted).await {
                tracing::debug!("a flow does not go by the express lane: {error}");
            }
        }
    }
}

impl State {
    /// Is the association there still, and the lane good for the flow?
    fn may_have(&self, wanted: &Wanted) -> bool {
        let on_lane = self.associations.get(&wanted.association);
        !self.closed && on_lane.is_some_and(|on_lane| !on_lane.astray.contains(&wanted.peer))
    }

    fn reached(&mut self, id: u32, number: u16) {
        // Without it the lane opens by itself a little later.
        let _ = self.maps.set_reached(id, Some(number.into()));
    }

    fn put(&mut self, wanted: &Wanted, plan: Plan) -> Result<(), bpf::Error> {
        let ids = [self.next, self.next.wrapping_add(1)];
        self.next = self.next.wrapping_add(2);
        let Plan { entries } = plan;
        let ends = entries.map(|(ends, _)| ends);
        // The way back first. What is left half made is of no use, and does no harm.
        for at in [1, 0] {
            let (ends, entry) = entries[at];
            self.maps.set(
                ends,
                Express {
                    id: ids[at],
                    ..entry
                },
            )?;
        }
        self.up.insert((wanted.device, wanted.peer), ids[0]);
        let flow = Flow {
            ends,
            ids,
            told: Default::default(),
        };
        let on_lane = self.associations.entry(wanted.association);
        on_lane.or_default().flows.insert(wanted.peer, flow);
        Ok(())
    }

    /// Takes a flow off the lane, if it is there.
    fn remove(&mut self, association: u64, peer: SocketAddr) {
        let Some(on_lane) = self.associations.get_mut(&association) else {
            return;
        };
        let Some(mut flow) = on_lane.flows.remove(&peer) else {
            return;
        };
        self.up.remove(&flow.ends[0]);
        let taken = flow.take(&self.maps);
        if taken.astray && on_lane.astray.insert(peer) {
            self.astray += 1;
        }
        on_lane
            .owed
            .extend(taken.carried.map(|carried| (peer, carried)));
        for at in 0..2 {
            // One that cannot be removed is not used for long: the proxy has the flow again, so it idles.
            let _ = self.maps.remove(flow.ends[at]);
            let _ = self.maps.set_reached(flow.ids[at], None);
        }
        if taken.astray && self.astray == ASTRAY {
            self.give_up("what the kernel is to forward does not leave");
        }
    }

    fn give_up(&mut self, why: &str) {
        if !std::mem::replace(&mut self.given_up, true) {
            self.closed = true;
            tracing::warn!(
                "no express lane any more: {why}; let packets with the mark {MARK_EXPRESS:#x} or {MARK_EXPRESS_ANSWER:#x} \
                 (mask {MARK_MASK:#x}) through the firewall untranslated, or set udp.express to \"redirect\" or \"off\"; then \
                 restart"
            );
            self.empty_all();
        }
    }

    fn empty(&mut self, association: u64) {
        let peers: Vec<_> = self
            .associations
            .get(&association)
            .into_iter()
            .flat_map(|on_lane| on_lane.flows.keys().copied())
            .collect();
        for peer in peers {
            self.remove(association, peer);
        }
    }

    fn empty_all(&mut self) {
        let all: Vec<_> = self.associations.keys().copied().collect();
        for association in all {
            self.empty(association);
        }
    }

    fn carried(&mut self, association: u64, now: Option<u64>) -> Vec<(SocketAddr, Carried)> {
        let Some(on_lane) = self.associations.get_mut(&association) else {
            return Vec::new();
        };
        let mut idle = Vec::new();
        for (peer, flow) in &mut on_lane.flows {
            let taken = flow.take(&self.maps);
            on_lane
                .owed
                .extend(taken.carried.map(|carried| (*peer, carried)));
            let idles = |now: u64| now.saturating_sub(taken.used) > 2 * EXPRESS_LIFE;
            if taken.astray || now.is_some_and(idles) {
                idle.push(*peer);
            }
        }
        let carried = std::mem::take(&mut on_lane.owed);
        for peer in idle {
            self.remove(association, peer);
        }
        carried
    }
}

/// The entries that a flow would have. None: it cannot go by the lane.
async fn plan(
    netlink: &Netlink,
    wanted: &Wanted,
    network: &Network,
    redirect: bool,
) -> Result<Option<Plan>, Error> {
    let Wanted {
        device, peer, port, ..
    } = *wanted;
    let Some(out) = WayOut::ask(netlink, peer.ip(), None, MARK_EXEMPT).await? else {
        return Ok(None);
    };
    let Some(source) = out.source.filter(|_| network.express.contains(&out.link)) else {
        return Ok(None);
    };
    let mtu = |way: &WayOut| {
        let link = network.snapshot.link(way.link);
        let of_link = link.map(|link| link.mtu).filter(|mtu| *mtu > 0);
        way.mtu.into_iter().chain(of_link).min().unwrap_or(0)
    };
    let addresses = &network.snapshot.addresses;
    let own = addresses.iter().any(|own| own.address == device.ip());
    let back = if own {
        out
    } else {
        let Some(back) = WayOut::to(netlink, device.ip()).await? else {
            return Ok(None);
        };
        let forwarded = Forwarded {
            source: device.ip(),
            link: back.link,
        };
        let as_device = Some(forwarded).filter(|_| !redirect);
        if as_device.is_some() {
            let way = WayOut::ask(netlink, peer.ip(), as_device, MARK_EXPRESS).await?;
            if way.is_none_or(|way| way.link != out.link) {
                return Ok(None);
            }
        }
        back
    };
    let proxy = SocketAddr::new(source, port);
    let entry = |end: SocketAddr, way: &WayOut| Express {
        address: bpf::address(end.ip()),
        port: end.port().to_be(),
        flags: if own { Express::OWN } else { 0 },
        link: way.link,
        mtu: mtu(way),
        used: boot_time(),
        ..Express::default()
    };
    Ok(Some(Plan {
        entries: [
            ((device, peer), entry(proxy, &out)),
            ((peer, proxy), entry(device, &back)),
        ],
    }))
}
