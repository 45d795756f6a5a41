//! Tables of hosts: an address, then names (hosts(5)). The names are taken, each alone.

use std::net::IpAddr;

use super::EntryError;
use super::reading::{Reading, Trouble};

/// Names that every machine's own table has.
const OWN: [&str; 10] = [
    "localhost",
    "localhost.localdomain",
    "local",
    "broadcasthost",
    "ip6-localhost",
    "ip6-loopback",
    "ip6-localnet",
    "ip6-mcastprefix",
    "ip6-allnodes",
    "ip6-allrouters",
];

pub(super) fn read(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    out.lines(bytes, without_comment, entry)
}

/// One line. Also filter lists have some.
pub(super) fn entry(out: &mut Reading, line: &str) -> Result<(), EntryError> {
    let mut words = line.split_whitespace();
    let address = words.next().unwrap_or("");
    // A zone may follow a link-local address.
    if address
        .split('%')
        .next()
        .unwrap_or("")
        .parse::<IpAddr>()
        .is_err()
    {
        return Err(EntryError::Line(
            "a line of a hosts file is an address and names",
        ));
    }
    for name in words {
        if OWN.contains(&name) || name == "ip6-allhosts" || name.parse::<IpAddr>().is_ok() {
            out.pass_over("names of the machine itself");
        } else {
            out.full_name(name)?;
        }
    }
    Ok(())
}

fn without_comment(line: &str) -> &str {
    line.split_once('#').map_or(line, |(entry, _)| entry)
}
