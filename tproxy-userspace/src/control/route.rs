//! Policy routing: one rule and one route for each family, which deliver marked packets locally.
//!
//! ```text
//! ip rule  add fwmark 0xa0/0xf0 lookup 29808 pref 100 protocol 116
//! ip route add local default dev lo table 29808 proto 116
//! ```
//!
//! The protocol number tells ours from everybody else's, so that a later process finds what a
//! killed one left. The kernel removes the route when `lo` goes down: [`present`] tells.

mod item;

use std::fmt;
use std::path::Path;

use rtnetlink::packet_core::Parseable;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tproxy_common::abi::ROUTE_TABLE;

use self::item::{Conflict, Item};
use super::{Error, Netlink};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn netlink(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    /// Without IPv6 in the kernel, or with `disable_ipv6` on `lo`, there is nothing to deliver to.
    fn is_available(self) -> bool {
        let switch = Path::new("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
        match self {
            Self::V4 => true,
            Self::V6 => std::fs::read_to_string(switch).is_ok_and(|value| value.trim() == "0"),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What there is of ours in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FamilyState {
    /// Which family.
    pub family: Family,
    /// Does the machine have it? Without, no rule and no route are wanted.
    pub available: bool,
    /// Is the rule there?
    pub rule: bool,
    /// Is the route there?
    pub route: bool,
}

impl FamilyState {
    /// Will a marked packet of this family reach the proxy, as far as routing goes?
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.rule && self.route
    }
}

/// What there is of ours, and what may disturb it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RouteState {
    /// IPv4, then IPv6.
    pub families: Vec<FamilyState>,
    /// Rules of others that may disturb, each as one sentence for a person.
    pub warnings: Vec<String>,
}

/// Adds what is missing and removes what carries our protocol number but is not what it should
/// be. Calling it again changes nothing. When it fails, what it added is gone again.
///
/// # Errors
/// [`Error::Taken`] when a rule of another program uses our mark, or a route of another program
/// stands in our table; [`Error::Netlink`] when the kernel refuses.
pub async fn install(netlink: &Netlink) -> Result<RouteState, Error> {
    let mut added = Vec::new();
    let outcome = install_all(netlink, &mut added).await;
    if outcome.is_err() {
        undo(netlink, &added).await;
    }
    outcome
}

async fn undo(netlink: &Netlink, added: &[Item]) {
    for item in added.iter().rev() {
        if let Err(error) = item.delete(netlink).await {
            tracing::warn!("{error}");
        }
    }
}

/// Removes every rule with our protocol number and every such route in our table, whoever left them.
/// Returns how many.
///
/// # Errors
/// [`Error::Netlink`] for the first that could not be removed; the others are removed all the same.
pub async fn remove(netlink: &Netlink) -> Result<usize, Error> {
    let (mut removed, mut failed) = (0, None);
    for family in Family::ALL {
        // Rules first: a rule without its table is harmless, but says something that is not so.
        let mut items = Vec::new();
        for found in [rules(netlink, family).await, routes(netlink, family).await] {
            match found {
                Ok(found) => items.extend(found.into_iter().filter(Item::is_ours)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        for item in items {
            match item.delete(netlink).await {
                Ok(()) => removed += 1,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Looks what is there, and changes nothing.
///
/// # Errors
/// [`Error::Netlink`] when the kernel does not say.
pub async fn present(netlink: &Netlink) -> Result<RouteState, Error> {
    let mut state = RouteState::default();
    for family in Family::ALL {
        let found = rules(netlink, family).await?;
        let routes = routes(netlink, family).await?;
        let (rule, route) = (Item::wanted_rule(family), Item::wanted_route(family));
        state.families.push(FamilyState {
            family,
            available: family.is_available(),
            rule: found.iter().any(|item| item.is_same(&rule)),
            route: routes.iter().any(|item| item.is_same(&route)),
        });
        state.warnings.extend(
            found
                .iter()
                .filter_map(Item::conflict)
                .map(Conflict::sentence),
        );
    }
    Ok(state)
}

/// A rule or a route of somebody else that meets ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What it is.
    pub sentence: String,
    /// Why it matters.
    pub why: &'static str,
    /// The command that removes it.
    pub delete: String,
    /// Does [`install`] refuse because of it?
    pub refused: bool,
}

/// Looks for rules and routes of others that meet ours, and changes nothing.
///
/// # Errors
/// [`Error::Netlink`] when the kernel does not say.
pub async fn foreign(netlink: &Netlink) -> Result<Vec<Foreign>, Error> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for item in &rules(netlink, family).await? {
            let Some(conflict) = item.conflict() else {
                continue;
            };
            let refused = matches!(conflict, Conflict::Steers(_));
            all.push(Foreign {
                sentence: conflict.sentence(),
                why: conflict.why(),
                delete: item.delete_command(),
                refused: refused && family.is_available(),
            });
        }
        for item in &routes(netlink, family).await? {
            if !item.is_ours() {
                all.push(Foreign {
                    sentence: format!("{item} stands in the table of tproxy-bpf."),
                    why: "the table must hold the route of tproxy-bpf alone, which does not start beside another",
                    delete: item.delete_command(),
                    refused: family.is_available(),
                });
            }
        }
    }
    Ok(all)
}

async fn install_all(netlink: &Netlink, added: &mut Vec<Item>) -> Result<RouteState, Error> {
    let mut available = Vec::new();
    // Look at everything before anything is changed.
    for family in Family::ALL {
        if !family.is_available() {
            continue;
        }
        let rules = rules(netlink, family).await?;
        let routes = routes(netlink, family).await?;
        if let Some(foreign) = rules
            .iter()
            .find(|item| matches!(item.conflict(), Some(Conflict::Steers(_))))
        {
            return Err(Error::Taken {
                object: Item::wanted_rule(family).to_string(),
                owner: foreign.to_string(),
                advice: "remove that rule, or give it a mark that leaves the bits 0xf0 alone",
            });
        }
        if let Some(foreign) = routes.iter().find(|item| !item.is_ours()) {
            return Err(Error::Taken {
                object: Item::wanted_route(family).to_string(),
                owner: foreign.to_string(),
                advice: "move that route to another table, this one must hold ours alone",
            });
        }
        available.push((family, rules, routes));
    }
    // Routes before rules: a rule whose table is empty would let marked packets go on elsewhere.
    for (family, _, routes) in &available {
        settle(netlink, Item::wanted_route(*family), routes, added).await?;
    }
    for (family, rules, _) in &available {
        settle(netlink, Item::wanted_rule(*family), rules, added).await?;
    }
    present(netlink).await
}

/// Sees to it that of ours there is `wanted`, once, and nothing else.
async fn settle(
    netlink: &Netlink,
    wanted: Item,
    present: &[Item],
    added: &mut Vec<Item>,
) -> Result<(), Error> {
    let mut kept = false;
    for item in present.iter().filter(|item| item.is_ours()) {
        if !kept && item.is_same(&wanted) {
            kept = true;
        } else {
            item.delete(netlink).await?;
        }
    }
    if !kept {
        wanted.add(netlink).await?;
        added.push(wanted);
    }
    Ok(())
}

async fn rules(netlink: &Netlink, family: Family) -> Result<Vec<Item>, Error> {
    let mut request = RuleMessage::default();
    request.header.family = family.netlink();
    let messages = netlink
        .dump(&RouteNetlinkMessage::GetRule(request))
        .await
        .map_err(Error::netlink("read", format!("the {family} rules")))?;
    Ok(messages
        .iter()
        .filter_map(|message| decoded(RuleMessage::parse(message.as_slice())))
        // A kernel without the family answers with the rules of the others.
        .filter(|message| message.header.family == family.netlink())
        .map(|message| Item::Rule(family, message))
        .collect())
}

/// The routes of our table.
async fn routes(netlink: &Netlink, family: Family) -> Result<Vec<Item>, Error> {
    let mut request = RouteMessage::default();
    request.header.address_family = family.netlink();
    request.attributes.push(RouteAttribute::Table(ROUTE_TABLE));
    let messages = match netlink.dump(&RouteNetlinkMessage::GetRoute(request)).await {
        // Strict checking: there is no such table.
        Err(error) if error.errno == libc::ENOENT => Vec::new(),
        other => other.map_err(Error::netlink(
            "read",
            format!("the {family} routing table {ROUTE_TABLE}"),
        ))?,
    };
    Ok(messages
        .iter()
        .filter_map(|message| decoded(RouteMessage::parse(message.as_slice())))
        .filter(|message| message.header.address_family == family.netlink())
        .map(|message| Item::Route(family, message))
        .filter(|item| item.table() == ROUTE_TABLE)
        .collect())
}

/// Ours are always readable; one of others that is not can only be left alone.
fn decoded<T>(message: Result<T, impl fmt::Display>) -> Option<T> {
    message
        .inspect_err(|error| tracing::warn!("cannot read a rule or route of the kernel: {error}"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::{in_namespace, ip};

    fn rule_count(family: &str) -> usize {
        ip(&format!("{family} rule show"))
            .lines()
            .filter(|line| line.contains("lookup 29808"))
            .count()
    }

    #[test]
    fn rules_and_routes_are_what_ip_shows_and_stand_once() {
        in_namespace(|| async {
            let before = (ip("rule show"), ip("-6 rule show"));
            let netlink = Netlink::open().unwrap();
            for _ in 0..2 {
                let state = install(&netlink).await.unwrap();
                assert_eq!(state.families.len(), 2);
                assert!(
                    state.families.iter().all(FamilyState::is_complete),
                    "{state:?}"
                );
                assert_eq!(state.warnings, [""; 0]);
            }
            for family in ["-4", "-6"] {
                assert_eq!(
                    ip(&format!("{family} rule show pref 100")).trim(),
                    "100:\tfrom all fwmark 0xa0/0xf0 lookup 29808 proto 116"
                );
                let route = ip(&format!("{family} route show table 29808"));
                assert!(
                    route.starts_with("local default dev lo proto 116"),
                    "{route}"
                );
                assert_eq!(route.lines().count(), 1);
            }
            // Another process, which knows nothing of the first.
            let other = Netlink::open().unwrap();
            assert_eq!(remove(&other).await.unwrap(), 4);
            assert_eq!((ip("rule show"), ip("-6 rule show")), before);
            assert_eq!(remove(&other).await.unwrap(), 0);
            let state = present(&netlink).await.unwrap();
            assert!(
                state
                    .families
                    .iter()
                    .all(|family| !family.rule && !family.route)
            );
        });
    }

    #[test]
    fn a_marked_packet_is_local_and_others_are_not() {
        in_namespace(|| async {
            ip("link add la type veth peer name lb");
            ip("link set la up");
            ip("address add 10.1.0.1/24 dev la");
            ip("route add default via 10.1.0.2 onlink dev la");
            install(&Netlink::open().unwrap()).await.unwrap();
            let marked = ip("route get 203.0.113.9 mark 0x3a5");
            assert!(
                marked.starts_with("local 203.0.113.9 dev lo table 29808"),
                "{marked}"
            );
            let plain = ip("route get 203.0.113.9 mark 0x3b5");
            assert!(plain.contains("via 10.1.0.2 dev la"), "{plain}");
        });
    }

    #[test]
    fn what_an_older_start_left_is_replaced_and_what_is_foreign_stays() {
        in_namespace(|| async {
            // Ours by protocol and table, but with another mark and priority.
            ip("rule add fwmark 0x50/0xf0 lookup 29808 pref 77 protocol 116");
            ip("route add local 198.51.100.0/24 dev lo table 29808 proto 116");
            // Our number, another table; another number.
            ip("rule add from 192.0.2.1 lookup 77 pref 3000 protocol 116");
            ip("rule add from 192.0.2.2 lookup 78 pref 3001");
            let netlink = Netlink::open().unwrap();
            install(&netlink).await.unwrap();
            assert_eq!(rule_count("-4"), 1);
            assert_eq!(ip("rule show pref 77"), "");
            assert_eq!(ip("route show table 29808").lines().count(), 1);
            assert_eq!(remove(&netlink).await.unwrap(), 4);
            assert!(!ip("rule show pref 3000").is_empty());
            assert!(!ip("rule show pref 3001").is_empty());
        });
    }

    #[test]
    fn a_rule_for_our_mark_is_an_error_and_nothing_is_changed() {
        in_namespace(|| async {
            ip("-6 rule add fwmark 0xa0/0xff lookup 200 pref 5000");
            let error = install(&Netlink::open().unwrap())
                .await
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("IPv6 rule \"fwmark 0xa0/0xff lookup 200 pref 5000\""),
                "{error}"
            );
            assert_eq!(rule_count("-4") + rule_count("-6"), 0);
        });
    }

    #[test]
    fn a_foreign_route_in_our_table_is_an_error() {
        in_namespace(|| async {
            ip("route add blackhole 192.0.2.0/24 table 29808");
            let error = install(&Netlink::open().unwrap())
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains("blackhole 192.0.2.0/24"), "{error}");
            assert_eq!(rule_count("-4"), 0);
        });
    }

    #[test]
    fn rules_that_may_disturb_are_reported() {
        in_namespace(|| async {
            ip("rule add from all lookup main pref 100");
            ip("rule add fwmark 0xb0/0xf0 lookup 201 pref 5000");
            ip("rule add fwmark 0x10/0x30 lookup 202 pref 5001");
            // These three leave us alone: the recipe of the guides, wg-quick, and mwan3.
            ip("rule add fwmark 1 lookup 203 pref 5002");
            ip("rule add not fwmark 51820 lookup 51820 pref 5003");
            ip("rule add fwmark 0x100/0x3f00 lookup 1 pref 5004");
            let state = install(&Netlink::open().unwrap()).await.unwrap();
            let told: Vec<bool> = [
                "pref 100",
                "lookup 201",
                "lookup 202",
                "lookup 203",
                "51820",
                "pref 5004",
            ]
            .iter()
            .map(|rule| state.warnings.iter().any(|warning| warning.contains(rule)))
            .collect();
            assert_eq!(
                told,
                [true, true, true, false, false, false],
                "{:?}",
                state.warnings
            );
        });
    }

    #[test]
    fn a_failure_half_way_leaves_nothing_and_says_what_to_do() {
        in_namespace(|| async {
            ip("link set lo down");
            let netlink = Netlink::open().unwrap();
            let error = install(&netlink).await.unwrap_err().to_string();
            assert!(error.contains("ip link set lo up"), "{error}");
            ip("link set lo up");

            // IPv4 is added first; the IPv6 route is refused.
            let mut added = Vec::new();
            let mut route = Item::wanted_route(Family::V6);
            if let Item::Route(_, message) = &mut route {
                message.attributes.push(RouteAttribute::Oif(4_000));
            }
            let wanted = Item::wanted_route(Family::V4);
            settle(&netlink, wanted, &[], &mut added).await.unwrap();
            settle(&netlink, route, &[], &mut added).await.unwrap_err();
            assert_eq!(added.len(), 1);
            undo(&netlink, &added).await;
            assert_eq!(ip("route show table 29808"), "");
        });
    }

    #[test]
    fn without_ipv6_only_ipv4_is_set_up() {
        in_namespace(|| async {
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
            let state = install(&Netlink::open().unwrap()).await.unwrap();
            let told: Vec<_> = state
                .families
                .iter()
                .map(|family| (family.available, family.is_complete()))
                .collect();
            assert_eq!(told, [(true, true), (false, false)]);
        });
    }
}
