//! dig.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::Namespace;

/// Asks `server` over UDP; gives the lines of the short answer.
///
/// # Errors
/// When no answer comes within 3 s, or one that says something failed.
pub fn dig(ns: &Namespace, server: IpAddr, name: &str, kind: &str) -> Result<Vec<String>> {
    ask(ns, server, name, kind, "+notcp")
}

/// Asks `server` over TCP.
///
/// # Errors
/// As [`dig`].
pub fn dig_tcp(ns: &Namespace, server: IpAddr, name: &str, kind: &str) -> Result<Vec<String>> {
    ask(ns, server, name, kind, "+tcp")
}

fn ask(ns: &Namespace, server: IpAddr, name: &str, kind: &str, how: &str) -> Result<Vec<String>> {
    let at = format!("@{server}");
    let output = ns
        .run(&[
            "dig", "+short", "+time=3", "+tries=1", "+ignore", how, &at, name, kind,
        ])
        .with_context(|| format!("asking {server} for {name} {kind} ({how})"))?;
    Ok(output.stdout.lines().map(str::to_owned).collect())
}
