//! Programs of others on the links that devices' packets arrive by: XDP, tcx and the filters of tc.

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::packet_core::NlasIterator;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};

use super::{Facts, Finding};
use crate::control::bpf::neighbours::{Loaded, name_of, tcx};
use crate::control::links::Snapshot;
use crate::control::netlink::text;
use crate::control::preflight::KernelVersion;
use crate::control::{Netlink, NetlinkError};

/// How a program of somebody else is held at a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// By the driver or before it, before any other program.
    Xdp,
    /// In the chain of tcx programs.
    Tcx,
    /// As a filter of tc.
    Filter,
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stands {
    /// Before ours, or where ours would come behind it.
    Before,
    /// Behind ours, or where ours would come before it.
    Behind,
}

/// A program of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub link: String,
    /// The LAN link whose packets come by it.
    pub lan: String,
    /// How it is held.
    pub held: Held,
    /// On the way in, else on the way out.
    pub ingress: bool,
    /// Where it stands.
    pub stands: Stands,
    /// What it is, for a person.
    pub what: String,
    /// The command that removes it; empty if none does.
    pub remove: String,
}

/// What is known of the programs of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Those that were found.
    pub neighbours: Vec<Neighbour>,
    /// Links, and why it is not known what is there.
    pub unseen: Vec<(String, String)>,
}

/// A filter of tc.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    priority: u16,
    kind: String,
    /// The name and number of its program, if it has one.
    program: Option<(String, Option<u32>)>,
}

/// Priority of our own filters.
const OUR_PRIORITY: u16 = 0x7470;

/// Looks at the LAN links, and at those that their packets come by first: ports of a bridge, the link below a VLAN.
pub(super) async fn gather(
    netlink: &Netlink,
    snapshot: &Snapshot,
    lan: &BTreeSet<String>,
) -> Hooks {
    let mut found = Hooks::default();
    let has_tcx = KernelVersion::running().is_ok_and(KernelVersion::has_tcx);
    for name in lan {
        let Some(link) = snapshot.link_named(name) else {
            continue;
        };
        for index in below(snapshot, link.index) {
            let Some(link) = snapshot.link(index) else {
                continue;
            };
            look(netlink, (&link.name, index), name, has_tcx, &mut found).await;
        }
    }
    found.neighbours.dedup();
    found
}

/// Looks at one link, which the packets of `lan` come by.
async fn look(
    netlink: &Netlink,
    (link, index): (&str, u32),
    lan: &str,
    has_tcx: bool,
    found: &mut Hooks,
) {
    let neighbour = |held, ingress, before, what, remove| {
        let stands = match (link == lan, ingress) {
            (true, _) if before => Stands::Before,
            // What stands on a link below is before ours on the way in, and behind on the way out.
            (false, true) => Stands::Before,
            _ => Stands::Behind,
        };
        let (link, lan) = (link.to_owned(), lan.to_owned());
        Neighbour {
            link,
            lan,
            held,
            ingress,
            stands,
            what,
            remove,
        }
    };
    match xdp(netlink, index).await {
        Ok(programs) => found.neighbours.extend(programs.iter().map(|(id, place)| {
            let remove = format!("ip link set dev {link} {place} off");
            let what = program(name_of(*id).as_deref(), Some(*id));
            neighbour(Held::Xdp, true, true, what, remove)
        })),
        Err(error) => found.unseen.push((link.to_owned(), error.to_string())),
    }
    for ingress in [true, false] {
        let way = if ingress { "ingress" } else { "egress" };
        let filters = match filters(netlink, index, ingress).await {
            Ok(filters) => filters,
            Err(error) => {
                found.unseen.push((link.to_owned(), error.to_string()));
                Vec::new()
            }
        };
        // tcx programs run before all filters.
        let (ours, others): (Vec<_>, Vec<_>) = filters.into_iter().partition(Filter::is_ours);
        let is_filter = !has_tcx || !ours.is_empty();
        if has_tcx {
            match tcx(link, ingress) {
                Ok(programs) => {
                    let ours = programs.iter().position(Loaded::is_ours);
                    let programs = programs.iter().enumerate();
                    let others = programs.filter(|(_, program)| !program.is_ours());
                    found.neighbours.extend(others.map(|(place, other)| {
                        // Ours go to the front when they are attached.
                        let before = is_filter || ours.is_some_and(|ours| place < ours);
                        let what = program(Some(&other.name), Some(other.id));
                        let remove = format!("bpftool net detach tcx_{way} dev {link}");
                        neighbour(Held::Tcx, ingress, before, what, remove)
                    }));
                }
                Err(reason) => found.unseen.push((link.to_owned(), reason)),
            }
        }
        found.neighbours.extend(others.iter().map(|filter| {
            let priority = filter.priority;
            let remove = format!("tc filter del dev {link} {way} pref {priority}");
            let before = is_filter && priority < OUR_PRIORITY;
            neighbour(Held::Filter, ingress, before, filter.what(), remove)
        }));
    }
}

/// The link and all that its packets come by.
fn below(snapshot: &Snapshot, link: u32) -> Vec<u32> {
    let (mut found, mut next) = (vec![link], 0);
    while let Some(index) = found.get(next).copied() {
        next += 1;
        let ports = snapshot
            .links
            .iter()
            .filter(|other| other.master == Some(index));
        let parent = snapshot.link(index).and_then(|link| link.parent);
        for lower in ports.map(|port| port.index).chain(parent) {
            if !found.contains(&lower) {
                found.push(lower);
            }
        }
    }
    found
}

/// A program for a person.
fn program(name: Option<&str>, id: Option<u32>) -> String {
    let name = name.filter(|name| !name.is_empty());
    let name = name.map_or("a program without a name".to_owned(), |name| {
        format!("the program {name:?}")
    });
    match id {
        Some(id) => format!("{name} (id {id})"),
        None => name,
    }
}

/// The numbers of a link's XDP programs, each with the word of its place for `ip link`: driver and kernel can
/// have each their own.
async fn xdp(netlink: &Netlink, index: u32) -> Result<BTreeMap<u32, &'static str>, NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    let answer = netlink.get(&RouteNetlinkMessage::GetLink(request)).await?;
    Ok(answer.map(|bytes| parse_xdp(&bytes)).unwrap_or_default())
}

/// `IFLA_XDP_DRV_PROG_ID` and its likes (`<linux/if_link.h>`).
fn parse_xdp(bytes: &[u8]) -> BTreeMap<u32, &'static str> {
    attributes(bytes, 16)
        .filter(|(kind, _)| *kind == libc::IFLA_XDP)
        .flat_map(|(_, value)| attributes(value, 0))
        .filter_map(|(kind, value)| {
            let place = match kind {
                5 => "xdpdrv",
                6 => "xdpgeneric",
                7 => "xdpoffload",
                _ => return None,
            };
            Some((u32::from_ne_bytes(value.try_into().ok()?), place))
        })
        .collect()
}

/// The attributes behind a header of `skip` bytes.
fn attributes(bytes: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let attributes = NlasIterator::new(bytes.get(skip..).unwrap_or_default());
    attributes.map_while(Result::ok).filter_map(|attribute| {
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        // Behind its own header of four bytes.
        Some((kind, attribute.into_inner().get(4..end)?))
    })
}

/// The filters of a link in their order.
async fn filters(
    netlink: &Netlink,
    index: u32,
    ingress: bool,
) -> Result<Vec<Filter>, NetlinkError> {
    let mut request = TcMessage::default();
    request.header.index = index.cast_signed();
    request.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: if ingress {
            TcHandle::MIN_INGRESS
        } else {
            TcHandle::MIN_EGRESS
        },
    };
    let answers = match netlink
        .dump(&RouteNetlinkMessage::GetTrafficFilter(request))
        .await
    {
        // No such qdisc, or another in its place.
        Err(error) if matches!(error.errno, libc::ENODEV | libc::ENOENT | libc::EINVAL) => {
            Vec::new()
        }
        other => other?,
    };
    let mut found: Vec<Filter> = Vec::new();
    for filter in answers.iter().filter_map(|bytes| parse_filter(bytes)) {
        if !found.contains(&filter) {
            found.push(filter);
        }
    }
    // The head of a priority's filters says less than they do.
    let programs = found.iter().filter(|filter| filter.program.is_some());
    let priorities: BTreeSet<u16> = programs.map(|filter| filter.priority).collect();
    found.retain(|filter| filter.program.is_some() || !priorities.contains(&filter.priority));
    Ok(found)
}

/// `struct tcmsg` and its attributes (`<linux/rtnetlink.h>`, `<linux/pkt_cls.h>`).
fn parse_filter(bytes: &[u8]) -> Option<Filter> {
    const NAME: u16 = 7;
    const ID: u16 = 11;
    let info = u32::from_ne_bytes(bytes.get(16..20)?.try_into().ok()?);
    let mut filter = Filter {
        priority: (info >> 16) as u16,
        kind: String::new(),
        program: None,
    };
    let mut options: &[u8] = &[];
    for (kind, value) in attributes(bytes, 20) {
        match kind {
            libc::TCA_KIND => filter.kind = text(value),
            libc::TCA_OPTIONS => options = value,
            _ => {}
        }
    }
    if filter.kind == "bpf" {
        let find = |wanted: u16| attributes(options, 0).find(|(kind, _)| *kind == wanted);
        let id = find(ID).and_then(|(_, value)| value.try_into().ok().map(u32::from_ne_bytes));
        let name = find(NAME).map(|(_, value)| text(value));
        if id.is_some() || name.is_some() {
            filter.program = Some((name.unwrap_or_default(), id));
        }
    }
    (filter.priority != 0).then_some(filter)
}

impl Filter {
    fn is_ours(&self) -> bool {
        let name = self.program.as_ref().map(|(name, _)| name.clone());
        self.priority == OUR_PRIORITY && name.is_some_and(|name| Loaded { id: 0, name }.is_ours())
    }

    fn what(&self) -> String {
        let priority = self.priority;
        match &self.program {
            Some((name, id)) => format!(
                "{}, a filter with priority {priority}",
                program(Some(name), *id)
            ),
            None => format!(
                "a filter of the kind {:?} with priority {priority}",
                self.kind
            ),
        }
    }
}

/// XDP, and other programs of tc.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    const XDP: &str = "XDP";
    const TC: &str = "tc programs";
    if facts.lan.is_empty() {
        return Vec::new();
    }
    let hooks = &facts.hooks;
    let mut findings: Vec<Finding> = hooks.neighbours.iter().map(Neighbour::finding).collect();
    for check in [XDP, TC] {
        if !findings.iter().any(|finding| finding.check == check) && hooks.unseen.is_empty() {
            findings.push(Finding::ok(check, "the LAN links have none of others"));
        }
    }
    findings.extend(hooks.unseen.iter().map(|(link, reason)| {
        Finding::hint(
            TC,
            format!("what is attached to {link} could not be read: {reason}"),
        )
        .because("programs of others may take packets before tproxy-bpf sees them")
        .remedy(format!(
            "bpftool net show dev {link}; tc filter show dev {link} ingress"
        ))
    }));
    findings
}

impl Neighbour {
    fn finding(&self) -> Finding {
        let Self {
            link, lan, what, ..
        } = self;
        let at = if link == lan {
            link.clone()
        } else {
            format!("{link}, which the packets of {lan} come by")
        };
        let remedy = format!("if it is not meant for these packets: {}", self.remove);
        if self.held == Held::Xdp {
            return Finding::hint("XDP", format!("{at}, runs {what}"))
                .because("it sees each packet before tproxy-bpf does: what it drops, redirects or sends back is not proxied")
                .remedy(remedy);
        }
        let (way, place) = (
            if self.ingress {
                "on the way in"
            } else {
                "on the way out"
            },
            if self.stands == Stands::Before {
                "before"
            } else {
                "behind"
            },
        );
        let how = if self.held == Held::Tcx { " (tcx)" } else { "" };
        let why = match (self.ingress, self.stands) {
            (true, Stands::Before) => {
                "what it drops, redirects or accepts does not come to tproxy-bpf, so it is not proxied"
            }
            (true, Stands::Behind) => {
                "it sees what is steered, too: what it drops or redirects does not come to the proxy"
            }
            (false, Stands::Before) => {
                "what it redirects or accepts is sent as it is: answers over UDP then come from a wrong port"
            }
            (false, Stands::Behind) => {
                "it sees answers of the proxy as well as what is forwarded: what it drops does not come to the device"
            }
        };
        Finding::hint(
            "tc programs",
            format!("{at}, has {what}{how} {way}, {place} ours"),
        )
        .because(why)
        .remedy(remedy)
    }
}
