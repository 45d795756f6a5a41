//! What the kernel half would do with a packet, and why: its program, run on a packet that is made for it.

use std::net::IpAddr;

use ipnet::IpNet;
use tproxy_common::abi::{DNS_PORT, Reason, Settings, program};

use super::bpf::{BypassEntry, Error, Maps, Rehearsal, Rehearsed};
use super::frame::{LinkAddress, Made};
use super::gateway::AttachedLink;
use super::sync::Via;
use super::way_out::WayOut;
use crate::policy::rule::Protocol;

/// A port that programs get when they ask for none, by custom.
const USUAL_PORT: u16 = 40_000;

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Any device or, where no link with devices is attached, the gateway.
    Anyone,
    /// The gateway itself.
    Gateway,
    /// Who has this address.
    Address(IpAddr),
}

/// Where a packet meets the kernel half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// There, from this source.
    Seen {
        /// The link, and whether the packet comes in or goes out by it.
        via: Via,
        /// The sender.
        source: IpAddr,
    },
    /// Nowhere: the gateway sends it by a link that is not attached for that. None: it has no way to send it.
    Unseen(Option<WayOut>),
}

/// Why no packet can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCourse {
    /// The link that is asked about is not there.
    #[error("{name} is not attached; attached are: {}", .attached.join(", "))]
    NotAttached {
        /// The link.
        name: String,
        /// Those that are.
        attached: Vec<String>,
    },
    /// What the gateway sends by the link is not looked at.
    #[error(
        "{0} is attached for devices alone, so what the gateway itself sends by it goes on as without tproxy-bpf"
    )]
    NotWan(String),
    /// Nobody of this family is behind the links.
    #[error(
        "no {family} source is admitted on {link}, so there is no device to speak for; name one with --from"
    )]
    NoSource {
        /// IPv4 or IPv6.
        family: &'static str,
        /// The links.
        link: String,
    },
}

/// What the kernel half does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// Why. None: it does not look at such packets.
    pub reason: Option<Reason>,
    /// The entry of the bypass set that the destination matched.
    pub bypass: Option<BypassEntry>,
    /// The gateway's own prefix that the destination is in, and whether it is an address of it.
    pub local: Option<(IpNet, bool)>,
    /// The prefix by which the source may use the proxy.
    pub admitted: Option<IpNet>,
    /// The program that is attached is another build's, so it may decide otherwise.
    pub outdated: bool,
}

/// What the maps of a gateway say, read once.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The attached links, in the order of their indices.
    pub links: Vec<AttachedLink>,
    /// Who may use the proxy, and where.
    pub sources: Vec<(Via, IpNet)>,
    /// The gateway's own prefixes; `true` for an address.
    pub locals: Vec<(IpNet, bool)>,
}

impl Known {
    /// Reads them.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn read(maps: &Maps, mut links: Vec<AttachedLink>) -> Result<Self, Error> {
        links.sort_by_key(|link| link.index);
        Ok(Self {
            links,
            sources: maps.sources()?,
            locals: maps.locals()?,
        })
    }

    /// Where a packet of `sender` to `destination` meets the kernel half. `on` is the name of a link that is asked
    /// about, and `way` the gateway's own way to the destination.
    ///
    /// # Errors
    /// [`NoCourse`].
    pub fn course(
        &self,
        sender: Sender,
        destination: IpAddr,
        on: Option<&str>,
        way: Option<WayOut>,
    ) -> Result<Course, NoCourse> {
        let named = on.map(|name| self.named(name)).transpose()?;
        let candidates = |link: &&AttachedLink| named.is_none_or(|on| on.index == link.index);
        let candidates: Vec<_> = self.links.iter().filter(candidates).collect();
        let has_lan = candidates.iter().any(|link| link.roles().lan);
        let has_wan = candidates.iter().any(|link| link.roles().wan);
        let own = match sender {
            Sender::Gateway => true,
            Sender::Anyone => !has_lan,
            Sender::Address(source) => {
                !has_lan || self.is_own(source) && (named.is_none() || has_wan)
            }
        };
        if own {
            if let Some(link) = named.filter(|_| !has_wan) {
                return Err(NoCourse::NotWan(link.name.clone()));
            }
            return Ok(self.leaving(sender, named, way));
        }
        let lan = candidates.into_iter().filter(|link| link.roles().lan);
        let lan: Vec<_> = lan.collect();
        if let Sender::Address(source) = sender {
            let admits = |link: &&&AttachedLink| {
                let via = Via::arriving(link.index);
                self.admitted(via, source).map(|prefix| prefix.prefix_len())
            };
            // Of those that admit it equally, and of those that do not admit it, the first.
            let best = lan.iter().rev().max_by_key(admits);
            let link = best.expect("there is a link with devices");
            let via = Via::arriving(link.index);
            return Ok(Course::Seen { via, source });
        }
        let device = lan.iter().find_map(|link| {
            let via = Via::arriving(link.index);
            let source = self.device(via, destination)?;
            Some(Course::Seen { via, source })
        });
        device.ok_or_else(|| NoCourse::NoSource {
            family: family(destination),
            link: lan
                .iter()
                .map(|link| &*link.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    fn leaving(&self, sender: Sender, on: Option<&AttachedLink>, way: Option<WayOut>) -> Course {
        let link = on.map(|link| link.index).or(way.map(|way| way.link));
        let is_seen = |index: &u32| {
            let mut links = self.links.iter();
            links.any(|link| link.index == *index && link.roles().wan)
        };
        let source = match sender {
            Sender::Address(source) => Some(source),
            Sender::Anyone | Sender::Gateway => way.and_then(|way| way.source),
        };
        match (link.filter(is_seen), source) {
            (Some(link), Some(source)) => Course::Seen {
                via: Via::leaving(link),
                source,
            },
            _ => Course::Unseen(way),
        }
    }

    fn named(&self, name: &str) -> Result<&AttachedLink, NoCourse> {
        let link = self.links.iter().find(|link| link.name == name);
        link.ok_or_else(|| NoCourse::NotAttached {
            name: name.to_owned(),
            attached: self.links.iter().map(|link| link.name.clone()).collect(),
        })
    }

    /// Is it one of the gateway's own addresses?
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        matches!(self.local(address), Some((_, true)))
    }

    /// The gateway's own prefix that an address is in: the longest.
    #[must_use]
    pub fn local(&self, address: IpAddr) -> Option<(IpNet, bool)> {
        let prefixes = self.locals.iter();
        let containing = prefixes.filter(|(prefix, _)| prefix.contains(&address));
        containing
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .copied()
    }

    /// The prefix by which a source may use the proxy there: the longest.
    #[must_use]
    pub fn admitted(&self, via: Via, source: IpAddr) -> Option<IpNet> {
        let prefixes = self.sources.iter().filter(|(there, _)| *there == via);
        let containing = prefixes.filter(|(_, prefix)| prefix.contains(&source));
        containing
            .map(|(_, prefix)| *prefix)
            .max_by_key(IpNet::prefix_len)
    }

    /// The address of a device that is admitted there, of the family of `like`: the first that is not the
    /// gateway's own nor a router's by custom.
    fn device(&self, via: Via, like: IpAddr) -> Option<IpAddr> {
        let mut prefixes: Vec<_> = self
            .sources
            .iter()
            .filter(|(there, prefix)| *there == via && prefix.addr().is_ipv4() == like.is_ipv4())
            .map(|(_, prefix)| *prefix)
            .collect();
        prefixes.sort();
        // Of IPv6 the first is the anycast address of all routers (RFC 4291, 2.6.1).
        let routers = if like.is_ipv4() { 1 } else { 2 };
        let hosts = |prefix: &IpNet| prefix.hosts().skip(routers).take(8);
        let only = |prefix: &IpNet| prefix.hosts().take(1);
        let mut all = prefixes
            .iter()
            .flat_map(hosts)
            .chain(prefixes.iter().flat_map(only));
        all.find(|address| !self.is_own(*address))
    }
}

/// The kernel half, to try packets on.
pub struct Explainer {
    rehearsal: Rehearsal,
    settings: Settings,
}

impl Explainer {
    /// On the maps of a gateway, with its settings as they are.
    #[must_use]
    pub fn new(rehearsal: Rehearsal, settings: Settings) -> Self {
        Self {
            rehearsal,
            settings,
        }
    }

    /// A source port for a packet, such as programs get by themselves.
    #[must_use]
    pub fn source_port(&self) -> u16 {
        if self.settings.first_free_port != 0 && self.settings.is_asked_for(USUAL_PORT.to_be()) {
            self.settings.first_free_port
        } else {
            USUAL_PORT
        }
    }

    /// What becomes of a packet. Nothing of it is counted, and no packet leaves.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Map`].
    pub fn fate(
        &mut self,
        maps: &Maps,
        known: &Known,
        via: Via,
        made: Made,
    ) -> Result<Fate, Error> {
        let Rehearsed { mut reason, bypass } = self.run(maps, via, made)?;
        // A trial cannot assign a packet to a listener, so whether one is there is asked by a fragment: it is
        // decided about in the same way, and then given to nobody before it is whole.
        let refused = [Reason::DownPassed, Reason::DownDropped, Reason::OwnAddress];
        if !via.own && reason.is_some_and(|reason| refused.contains(&reason)) {
            let fragment = Made {
                fragment: true,
                ..made
            };
            if self.run(maps, via, fragment)?.reason == Some(Reason::FragmentSteered) {
                reason = Some(self.steered(made));
            }
        }
        Ok(Fate {
            reason,
            bypass,
            local: known.local(made.destination.ip()),
            admitted: known.admitted(via, made.source.ip()),
            outdated: known.links.iter().any(|link| {
                link.index == via.link && self.rehearsal.is_outdated(program_of(via), &link.name)
            }),
        })
    }

    fn run(&mut self, maps: &Maps, via: Via, made: Made) -> Result<Rehearsed, Error> {
        let Some(frame) = made.frame(link_address(via.link)) else {
            return Ok(Rehearsed {
                reason: None,
                bypass: None,
            });
        };
        let destination = made.destination.ip();
        self.rehearsal
            .run(maps, program_of(via), via.link, &frame, destination)
    }

    fn steered(&self, made: Made) -> Reason {
        let asks_dns = made.destination.port() == DNS_PORT;
        match made.protocol {
            _ if asks_dns && self.settings.has(Settings::HIJACK_DNS) => Reason::DnsSteered,
            Protocol::Tcp => Reason::TcpOpened,
            Protocol::Udp => Reason::UdpSteered,
        }
    }
}

/// The program that sees such packets. Those of links without an Ethernet header decide in the same way; a trial
/// packet has one always.
fn program_of(via: Via) -> &'static str {
    if via.own {
        program::LOCAL_EGRESS
    } else {
        program::LAN_INGRESS
    }
}

/// To this a frame must be addressed that is for this machine. A link without such an address wants zeros.
fn link_address(index: u32) -> LinkAddress {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return LinkAddress::default();
    };
    all.filter_map(|interface| {
        let address = interface.address?;
        let link = address.as_link_addr()?;
        (link.ifindex() == index as usize).then(|| link.addr())?
    })
    .next()
    .unwrap_or_default()
}

fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

#[cfg(test)]
mod tests;
