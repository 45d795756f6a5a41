//! haproxy as a transparent proxy that splices. It does TCP alone.

use std::fs;

use anyhow::{Context, Result};
use lab::{
    Lab,
    wait::{Transport, listening},
};

use super::steering::{Led, Steering};
use crate::ways::Running;

const PORT: u16 = 12347;

/// Starts it and has nft steer to it.
///
/// # Errors
/// When it does not listen in time; the message holds its log.
pub fn start(lab: &Lab) -> Result<Option<Running>> {
    let path = lab.dir().join("haproxy.cfg");
    fs::write(&path, configuration()).with_context(|| format!("writing {}", path.display()))?;
    let path = path.to_string_lossy();
    let process = lab.gateway.spawn(&["haproxy", "-db", "-f", &path])?;
    listening(&lab.gateway, Transport::Tcp, PORT)
        .with_context(|| format!("haproxy said: {}", process.lines().join("\n")))?;
    let steering = Steering::tproxy(lab, PORT, Led::Tcp)?;
    Ok(Some(Running::new(process.pid(), (steering, process))))
}

/// A thread for each of two processors, the largest pipes that the kernel gives to anybody, and more connections than a row
/// opens, as 20,000 open files allow. It splices always: told to choose (`splice-auto`) it copies a single stream to its end.
/// A server at 0.0.0.0 is where the client wanted to go.
fn configuration() -> String {
    format!(
        "global\n  \
           nbthread 2\n  \
           maxconn 6000\n  \
           maxpipes 2000\n  \
           tune.pipesize 1048576\n\
         defaults\n  \
           mode tcp\n  \
           option splice-request\n  \
           option splice-response\n  \
           timeout connect 5s\n  \
           timeout client 5m\n  \
           timeout server 5m\n\
         listen devices\n  \
           bind 127.0.0.1:{PORT} transparent\n  \
           server wanted 0.0.0.0\n"
    )
}
