//! Asking the proxy that runs here.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::observe::socket::{Request, ask};

/// The proxy's answer. `doing` is what the person wants, as the beginning of a sentence; an answer that says what is wrong is
/// an error.
pub fn asked(place: &Place, doing: &str, request: &Request, patience: Duration) -> Result<Value> {
    if place.proxy_pid().is_none() {
        bail!("{doing} failed: no proxy runs here; start one with `tproxy-bpf run`");
    }
    let answer = ask(&place.control_socket(), request, patience).context(doing.to_owned())?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{doing} failed: {error}");
    }
    Ok(answer)
}
