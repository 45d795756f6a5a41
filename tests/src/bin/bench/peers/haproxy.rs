//! haproxy, which splices as ours does: a relay for TCP in C, with nothing to decide.

use anyhow::Result;
use lab::Lab;

use super::{Protocols, Steering, serve};
use crate::ways::Running;

const PORT: u16 = 12347;

/// Starts it.
pub fn start(lab: &Lab) -> Result<Option<Running>> {
    // A server at 0.0.0.0 without a port is where the client wanted to go.
    let configuration = format!(
        "global\n\
         \x20   nbthread 2\n\
         \x20   maxconn 8000\n\
         \x20   tune.pipesize 1048576\n\
         \x20   maxpipes 1000\n\
         defaults\n\
         \x20   mode tcp\n\
         \x20   option splice-auto\n\
         \x20   timeout connect 10s\n\
         \x20   timeout client 1h\n\
         \x20   timeout server 1h\n\
         frontend devices\n\
         \x20   bind 127.0.0.1:{PORT} transparent\n\
         \x20   default_backend anywhere\n\
         backend anywhere\n\
         \x20   server original 0.0.0.0\n"
    );
    let process = serve(
        &lab.gateway,
        lab,
        &["haproxy", "-db", "-f"],
        &configuration,
        PORT,
    )?;
    let pid = process.pid();
    let steering = Steering::tproxy(lab, Protocols::Tcp, PORT, None)?;
    Ok(Some(Running::new(pid, (steering, process))))
}
