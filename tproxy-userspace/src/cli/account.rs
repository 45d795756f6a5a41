//! `account`: bytes by the proxy and past it, by device, network and outbound.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::data::{Account, Bytes};
use tproxy_userspace::observe::api::Direct;
use tproxy_userspace::observe::socket::Request;

use super::asking::asked_as;
use super::output::{self, Table};
use super::status::PATIENCE;
use super::{ReadArgs, api};

/// Whose bytes are shown.
#[derive(Debug, Args)]
pub struct AccountArgs {
    /// What they are put together by.
    #[arg(long, value_name = "WHAT", default_value = "device")]
    by: By,
    /// Show only so many, those with most bytes.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// The devices, by address.
    Device,
    /// The networks that devices talk to: /24 for IPv4, /48 for IPv6.
    Network,
    /// The outbounds.
    Outbound,
}

/// One line.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    of: String,
    /// By the proxy: what it relayed.
    proxied: Bytes,
    /// Past the proxy, link headers included. None: it is not counted.
    direct: Option<Bytes>,
}

impl Row {
    fn total(&self) -> u64 {
        let direct = self.direct.unwrap_or_default();
        self.proxied.up + self.proxied.down + direct.up + direct.down
    }
}

/// Asked of the proxy and read from the kernel.
struct Whole {
    proxied: Account,
    direct: Direct,
}

pub fn account(args: &AccountArgs) -> Result<ExitCode> {
    let place = Place::current()?;
    let whole = whole(&place)?;
    let mut rows = whole.rows(args.by);
    rows.sort_by_key(|row| Reverse(row.total()));
    let total = rows.len();
    rows.truncate(args.limit.unwrap_or(total));
    if args.read.json {
        output::json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::text_out(&text(&rows, total, args.by, whole.direct.is_counted))?;
    Ok(ExitCode::SUCCESS)
}

/// Without a proxy there are the kernel's numbers alone, and without programs there is neither.
fn whole(place: &Place) -> Result<Whole> {
    let direct = api::direct(place)?;
    let proxied = match place.proxy_pid() {
        Some(_) => asked_as(place, "asking for the account", &Request::Account, PATIENCE)?,
        None if direct.is_counted => Account::default(),
        None => bail!(
            "nothing is accounted here: no proxy runs, and what goes past it is not counted; set `account = true` in [gateway]"
        ),
    };
    Ok(Whole { proxied, direct })
}

impl Whole {
    fn rows(&self, by: By) -> Vec<Row> {
        let (proxied, direct) = (&self.proxied, &self.direct);
        match by {
            By::Device => self.join(&proxied.devices, &direct.devices, proxied.other_devices),
            By::Network => self.join(&proxied.networks, &direct.networks, proxied.other_networks),
            By::Outbound => proxied
                .outbounds
                .iter()
                .map(|(name, bytes)| Row {
                    of: name.clone(),
                    proxied: *bytes,
                    direct: None,
                })
                .collect(),
        }
    }

    /// What stands in either list.
    fn join<K: Copy + Ord + Display>(
        &self,
        proxied: &[(K, Bytes)],
        direct: &[(K, Bytes)],
        others: Bytes,
    ) -> Vec<Row> {
        let mut sums: BTreeMap<K, (Bytes, Bytes)> = BTreeMap::new();
        for (key, bytes) in proxied {
            sums.entry(*key).or_default().0 = *bytes;
        }
        for (key, bytes) in direct {
            sums.entry(*key).or_default().1 = *bytes;
        }
        let row = |of, (proxied, direct)| Row {
            of,
            proxied,
            direct: self.direct.is_counted.then_some(direct),
        };
        let mut rows: Vec<_> = sums
            .into_iter()
            .map(|(key, sums)| row(key.to_string(), sums))
            .collect();
        if others != Bytes::default() {
            rows.push(row("others".to_owned(), (others, Bytes::default())));
        }
        rows
    }
}

fn text(rows: &[Row], total: usize, by: By, is_counted: bool) -> String {
    let of = match by {
        By::Device => "device",
        By::Network => "network",
        By::Outbound => "outbound",
    };
    let with_direct = is_counted && by != By::Outbound;
    let mut headings = vec![of, "total", "proxied up", "proxied down"];
    if with_direct {
        headings.extend(["direct up", "direct down"]);
    }
    let mut table = Table::new(&headings, &[1, 2, 3, 4, 5]);
    for row in rows {
        let mut numbers = vec![row.total(), row.proxied.up, row.proxied.down];
        if with_direct {
            let direct = row.direct.unwrap_or_default();
            numbers.extend([direct.up, direct.down]);
        }
        let numbers = numbers.into_iter().map(output::bytes);
        table.row([row.of.clone()].into_iter().chain(numbers));
    }
    let mut text = table.render();
    if rows.len() < total {
        let more = output::number((total - rows.len()) as u64);
        text.push_str(&format!("and {more} more\n"));
    }
    if !is_counted && by != By::Outbound {
        text.push_str(
            "What goes past the proxy is not counted; `account = true` in [gateway] has the kernel count it.\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use tproxy_userspace::data::Account;

    use super::*;

    fn bytes(up: u64, down: u64) -> Bytes {
        Bytes { up, down }
    }

    fn whole(is_counted: bool) -> Whole {
        let device = |last: u8| [192, 168, 1, last].into();
        Whole {
            proxied: Account {
                devices: vec![(device(2), bytes(1, 2)), (device(3), bytes(4, 8))],
                outbounds: vec![("out".into(), bytes(5, 10))],
                other_devices: bytes(16, 32),
                ..Account::default()
            },
            direct: Direct {
                is_counted,
                devices: vec![(device(3), bytes(64, 128)), (device(4), bytes(256, 512))],
                networks: Vec::new(),
            },
        }
    }

    #[test]
    fn a_device_has_one_line_for_both_ways() {
        let rows = whole(true).rows(By::Device);
        let lines: Vec<_> = rows
            .iter()
            .map(|row| (row.of.as_str(), row.proxied, row.direct, row.total()))
            .collect();
        assert_eq!(
            lines,
            [
                ("192.168.1.2", bytes(1, 2), Some(bytes(0, 0)), 3),
                ("192.168.1.3", bytes(4, 8), Some(bytes(64, 128)), 204),
                ("192.168.1.4", bytes(0, 0), Some(bytes(256, 512)), 768),
                ("others", bytes(16, 32), Some(bytes(0, 0)), 48),
            ]
        );
        let shown = text(&rows, 6, By::Device, true);
        assert!(shown.contains("direct down"), "{shown}");
        assert!(shown.ends_with("and 2 more\n"), "{shown}");
    }

    #[test]
    fn what_is_not_counted_is_no_zero() {
        let whole = whole(false);
        assert!(
            whole
                .rows(By::Device)
                .iter()
                .all(|row| row.direct.is_none())
        );
        let shown = text(&whole.rows(By::Device), 4, By::Device, false);
        assert!(!shown.contains("direct up"), "{shown}");
        assert!(shown.contains("account = true"), "{shown}");
        // It has nothing to do with what goes past it.
        let shown = text(&whole.rows(By::Outbound), 1, By::Outbound, false);
        assert!(!shown.contains("account = true"), "{shown}");
    }
}
