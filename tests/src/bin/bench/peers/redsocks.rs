//! redsocks, the oldest of its kind: TCP by REDIRECT to a SOCKS5 server.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use anyhow::Result;
use lab::{
    Family, Lab,
    servers::{Microsocks, PASSWORD, USER},
};

use super::{Steering, serve};
use crate::ways::Running;

/// Another port each time: it does not share one with the closed connections of its last run.
static NEXT_PORT: AtomicU16 = AtomicU16::new(12_400);

/// Starts it and its server.
pub fn start(lab: &Lab) -> Result<Option<Running>> {
    let port = NEXT_PORT.fetch_add(1, Relaxed);
    let server = Microsocks::start(&lab.internet, Family::V4)?;
    let address = server.address();
    let configuration = format!(
        "base {{ log_info = off; daemon = off; redirector = iptables; rlimit_nofile = 20000; redsocks_conn_max = 8000; }}\n\
         redsocks {{ local_ip = 0.0.0.0; local_port = {port}; ip = {}; port = {}; type = socks5; \
         login = \"{USER}\"; password = \"{PASSWORD}\"; listenq = 1024; }}\n",
        address.ip(),
        address.port(),
    );
    let process = serve(&lab.gateway, lab, &["redsocks", "-c"], &configuration, port)?;
    let pid = process.pid();
    let steering = Steering::redirect(lab, port, address.ip())?;
    Ok(Some(Running::new(pid, (steering, process, server))))
}
