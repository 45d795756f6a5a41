//! One rule or route: ours as it should be, and how one of others meets it.

use std::fmt;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use tproxy_common::abi::{
    MARK_EXEMPT, MARK_MASK, MARK_REPLY, MARK_STEER, ROUTE_PROTOCOL, ROUTE_TABLE, RULE_PRIORITY,
};

use super::Family;
use crate::control::{Error, Netlink, NetlinkError};

/// `lo` has this index in every network namespace.
const LOOPBACK: u32 = 1;

/// A rule or a route, as the kernel tells it.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Rule(Family, RuleMessage),
    Route(Family, RouteMessage),
}

impl Item {
    pub(super) fn wanted_rule(family: Family) -> Self {
        let mut message = RuleMessage::default();
        message.header.family = family.netlink();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Table(ROUTE_TABLE),
            RuleAttribute::Priority(RULE_PRIORITY),
            RuleAttribute::FwMark(MARK_STEER),
            RuleAttribute::FwMask(MARK_MASK),
            RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
        ];
        Self::Rule(family, message)
    }

    pub(super) fn wanted_route(family: Family) -> Self {
        let mut message = RouteMessage::default();
        message.header.address_family = family.netlink();
        message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
        message.header.kind = RouteType::Local;
        // IPv6 knows no scopes.
        message.header.scope = match family {
            Family::V4 => RouteScope::Host,
            Family::V6 => RouteScope::Universe,
        };
        message.attributes = vec![
            RouteAttribute::Table(ROUTE_TABLE),
            RouteAttribute::Oif(LOOPBACK),
        ];
        Self::Route(family, message)
    }

    pub(super) async fn add(&self, netlink: &Netlink) -> Result<(), Error> {
        let request = match self {
            Self::Rule(_, message) => RouteNetlinkMessage::NewRule(message.clone()),
            Self::Route(_, message) => RouteNetlinkMessage::NewRoute(message.clone()),
        };
        netlink
            .change(&request, NLM_F_CREATE | NLM_F_EXCL)
            .await
            .map_err(|reason| self.refused("add", reason))
    }

    /// Something that is gone already is as good as deleted.
    pub(super) async fn delete(&self, netlink: &Netlink) -> Result<(), Error> {
        let request = match self {
            Self::Rule(_, message) => RouteNetlinkMessage::DelRule(message.clone()),
            Self::Route(_, message) => {
                let mut message = message.clone();
                // What names the route. The rest of a dump is its state.
                message.attributes.retain(|attribute| {
                    matches!(
                        attribute,
                        RouteAttribute::Destination(_)
                            | RouteAttribute::Oif(_)
                            | RouteAttribute::Priority(_)
                            | RouteAttribute::Table(_)
                    )
                });
                RouteNetlinkMessage::DelRoute(message)
            }
        };
        match netlink.change(&request, 0).await {
            Err(error) if [libc::ENOENT, libc::ESRCH].contains(&error.errno) => Ok(()),
            other => other.map_err(|reason| self.refused("delete", reason)),
        }
    }

    fn refused(&self, operation: &'static str, reason: NetlinkError) -> Error {
        let advice = match reason.errno {
            libc::ENETDOWN => "; bring the loopback link up first: ip link set lo up",
            libc::EPERM | libc::EACCES => "; run it as root or give it CAP_NET_ADMIN",
            libc::EAFNOSUPPORT | libc::EOPNOTSUPP => {
                "; the kernel needs CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES"
            }
            _ => "",
        };
        Error::Netlink {
            operation,
            object: self.to_string(),
            reason,
            advice,
        }
    }

    pub(super) fn table(&self) -> u32 {
        let (header, attribute) = match self {
            Self::Rule(_, message) => (
                message.header.table,
                message.attributes.iter().find_map(|attribute| {
                    if let RuleAttribute::Table(table) = attribute {
                        Some(*table)
                    } else {
                        None
                    }
                }),
            ),
            Self::Route(_, message) => (
                message.header.table,
                message.attributes.iter().find_map(|attribute| {
                    if let RouteAttribute::Table(table) = attribute {
                        Some(*table)
                    } else {
                        None
                    }
                }),
            ),
        };
        attribute.unwrap_or(u32::from(header))
    }

    /// Does it carry our protocol number, and our table?
    pub(super) fn is_ours(&self) -> bool {
        let ours = RouteProtocol::from(ROUTE_PROTOCOL);
        let protocol = match self {
            Self::Rule(_, message) => message.attributes.contains(&RuleAttribute::Protocol(ours)),
            Self::Route(_, message) => message.header.protocol == ours,
        };
        protocol && self.table() == ROUTE_TABLE
    }

    /// Would adding `wanted` change nothing?
    pub(super) fn is_same(&self, wanted: &Self) -> bool {
        if !self.is_ours() {
            return false;
        }
        match (self, wanted) {
            (Self::Rule(_, found), Self::Rule(_, wanted)) => {
                found.header.action == wanted.header.action
                    && !found.header.flags.contains(RuleFlags::Invert)
                    && (found.header.src_len, found.header.dst_len, found.header.tos) == (0, 0, 0)
                    && wanted
                        .attributes
                        .iter()
                        .all(|attribute| found.attributes.contains(attribute))
                    && found.attributes.iter().all(|attribute| {
                        wanted.attributes.contains(attribute) || says_nothing(attribute)
                    })
            }
            (Self::Route(_, found), Self::Route(_, wanted)) => {
                found.header.kind == wanted.header.kind
                    && found.header.destination_prefix_length == 0
                    && found.attributes.contains(&RouteAttribute::Oif(LOOPBACK))
            }
            _ => false,
        }
    }

    /// What a rule of another program does to ours.
    pub(super) fn conflict(&self) -> Option<Conflict<'_>> {
        let Self::Rule(_, message) = self else {
            return None;
        };
        if self.is_ours() {
            return None;
        }
        let (mut priority, mut mark, mut mask) = (0, 0, 0);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(value) => priority = *value,
                RuleAttribute::FwMark(value) => mark = *value,
                RuleAttribute::FwMask(value) => mask = *value,
                _ => {}
            }
        }
        let inverted = message.header.flags.contains(RuleFlags::Invert);
        // Can a packet match whose bits under `ours` have this value, whatever the others are?
        let can_match = |value: u32, ours: u32| (value ^ mark) & mask & ours == 0;
        let uses_our_bits = mask & MARK_MASK != 0 && !inverted;
        if uses_our_bits && can_match(MARK_STEER, MARK_MASK) {
            Some(Conflict::Steers(self))
        } else if uses_our_bits
            && (can_match(MARK_EXEMPT, MARK_MASK) || can_match(MARK_REPLY, MARK_MASK))
        {
            Some(Conflict::TakesOurs(self))
        } else if uses_our_bits && mask != u32::MAX {
            // Without a mask of its own a rule names the whole mark: that alone claims no bits.
            Some(Conflict::SharesBits(self))
        } else if (1..=RULE_PRIORITY).contains(&priority) && !uses_our_bits {
            Some(Conflict::Precedes(self))
        } else {
            None
        }
    }
}

/// The kernel tells these of every rule.
fn says_nothing(attribute: &RuleAttribute) -> bool {
    matches!(
        attribute,
        RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX)
            | RuleAttribute::L3MDev(false)
            | RuleAttribute::Other(_)
    )
}

impl Item {
    /// What `ip rule` or `ip route` takes, behind its verb.
    fn words(&self) -> String {
        match self {
            Self::Rule(_, message) => {
                let not = message.header.flags.contains(RuleFlags::Invert);
                let not = if not { "not " } else { "" };
                let find = |pick: fn(&RuleAttribute) -> Option<u32>| {
                    message.attributes.iter().find_map(pick)
                };
                let mark = find(|attribute| match attribute {
                    RuleAttribute::FwMark(value) => Some(*value),
                    _ => None,
                });
                let mask = find(|attribute| match attribute {
                    RuleAttribute::FwMask(value) => Some(*value),
                    _ => None,
                });
                let priority = find(|attribute| match attribute {
                    RuleAttribute::Priority(value) => Some(*value),
                    _ => None,
                });
                let mark = match (mark, mask) {
                    (Some(mark), Some(mask)) => format!("fwmark {mark:#x}/{mask:#x} "),
                    (Some(mark), None) => format!("fwmark {mark:#x} "),
                    _ => String::new(),
                };
                let (table, priority) = (self.table(), priority.unwrap_or(0));
                format!("{not}{mark}lookup {table} pref {priority}")
            }
            Self::Route(_, message) => {
                let RouteHeader {
                    destination_prefix_length: length,
                    kind,
                    ..
                } = &message.header;
                let kind = format!("{kind:?}").to_lowercase();
                let to = message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                            Some(format!("{address}/{length}"))
                        }
                        RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                            Some(format!("{address}/{length}"))
                        }
                        _ => None,
                    });
                let to = to.as_deref().unwrap_or("default");
                format!("{kind} {to} table {}", self.table())
            }
        }
    }

    /// The command that removes it.
    pub(super) fn delete_command(&self) -> String {
        let (family, kind) = match self {
            Self::Rule(family, _) => (family, "rule"),
            Self::Route(family, _) => (family, "route"),
        };
        let family = match family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        format!("ip {family} {kind} del {}", self.words())
    }
}

impl fmt::Display for Item {
    /// As `ip rule` and `ip route` take it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, kind) = match self {
            Self::Rule(family, _) => (family, "rule"),
            Self::Route(family, _) => (family, "route"),
        };
        write!(f, "the {family} {kind} \"{}\"", self.words())
    }
}

/// A rule of another program that meets ours.
#[derive(Clone, Copy, Debug)]
pub(super) enum Conflict<'a> {
    /// It is for packets with our steering mark.
    Steers(&'a Item),
    /// It is for packets that the proxy itself sends.
    TakesOurs(&'a Item),
    /// It is for other values of our bits.
    SharesBits(&'a Item),
    /// It comes first.
    Precedes(&'a Item),
}

impl Conflict<'_> {
    /// Why it matters.
    pub(super) const fn why(self) -> &'static str {
        match self {
            Self::Steers(_) => {
                "it would take what is steered to another table, so tproxy-bpf does not start beside it"
            }
            Self::TakesOurs(_) => "what the proxy sends may leave by another way, or come back",
            Self::SharesBits(_) => {
                "a packet can carry one value of these bits, so one of the two programs loses its own"
            }
            Self::Precedes(_) => "what it leads to another table does not come to the proxy",
        }
    }

    pub(super) fn sentence(self) -> String {
        match self {
            Self::Steers(item) => {
                format!(
                    "{item} is for the mark of steered packets ({MARK_STEER:#x}/{MARK_MASK:#x})."
                )
            }
            Self::TakesOurs(item) => format!(
                "{item} is also for packets that the proxy sends (marks {MARK_EXEMPT:#x} and \
                 {MARK_REPLY:#x} under {MARK_MASK:#x})."
            ),
            Self::SharesBits(item) => {
                format!("{item} uses mark bits that belong to tproxy-bpf ({MARK_MASK:#x}).")
            }
            Self::Precedes(item) => format!(
                "{item} comes before ours (pref {RULE_PRIORITY}) and may lead steered packets away."
            ),
        }
    }
}
