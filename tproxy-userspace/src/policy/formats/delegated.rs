//! The table of what a regional Internet registry has delegated, by country.
//!
//! Format: "RIR statistics exchange format", version 2 (and the extended one). After a first line with the
//! version and the number of rows come summaries and rows:
//!
//! ```text
//! 2|apnic|20261101|70123|19830613|20261031|+1000
//! apnic|*|ipv4|*|51234|summary
//! apnic|CN|ipv4|1.0.1.0|256|20110414|allocated
//! apnic|CN|ipv6|2001:250::|35|20000426|allocated
//! ```
//!
//! A row of IPv4 has a first address and how many there are, which need not be a power of two. A row of
//! IPv6 has a prefix length.

use std::net::{IpAddr, Ipv4Addr};

use super::reading::{Codes, Reading, Trouble};
use super::{EntryError, Fault, Format};
use crate::policy::source::Selector;

pub(super) fn read(
    bytes: &[u8],
    selector: Option<&Selector>,
    out: &mut Reading,
) -> Result<(), Trouble> {
    let mut codes = Codes::default();
    let (mut promised, mut rows, mut found) = (None, 0, false);
    out.lines(bytes, without_comment, |out, line| {
        let fields: Vec<&str> = line.splitn(8, '|').map(str::trim).collect();
        rows += 1;
        if rows == 1 && fields[0].starts_with(|first: char| first.is_ascii_digit()) {
            promised = fields.get(3).and_then(|rows| rows.parse().ok());
            rows = 0;
            return Ok(());
        }
        if fields.last() == Some(&"summary") {
            return Ok(());
        }
        let [_, country, kind, first, count, _, status, ..] = fields[..] else {
            return Err(EntryError::Line(
                "a row has at least seven fields, with | between",
            ));
        };
        // What nobody has yet stands in the extended table, without a country.
        if country.is_empty() || !matches!(status, "allocated" | "assigned") {
            return Ok(());
        }
        codes.note(country);
        if !selector.is_some_and(|selector| selector.code.eq_ignore_ascii_case(country)) {
            return Ok(());
        }
        found = true;
        match kind {
            "ipv4" => {
                let (first, last) = addresses(first, count).ok_or(EntryError::Line(
                    "a row of IPv4 has an address and how many there are from it on",
                ))?;
                out.range(first, last)
            }
            "ipv6" => out.prefix_text(&format!("{first}/{count}")),
            _ => Ok(()),
        }
    })?;
    // Some registries count the summaries as rows, so they are not held against the file.
    if let Some(promised) = promised.filter(|promised| *promised > rows) {
        return Err(Trouble::whole(Fault::Rows {
            promised,
            found: rows,
        }));
    }
    if found {
        Ok(())
    } else {
        Err(Trouble::whole(codes.fault(Format::Delegated, selector)))
    }
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        ""
    } else {
        line
    }
}

fn addresses(first: &str, count: &str) -> Option<(IpAddr, IpAddr)> {
    let first: Ipv4Addr = first.parse().ok()?;
    let more = count.parse::<u32>().ok()?.checked_sub(1)?;
    let last = u32::from(first).checked_add(more)?;
    Some((first.into(), Ipv4Addr::from(last).into()))
}
