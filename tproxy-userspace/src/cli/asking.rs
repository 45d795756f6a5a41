//! Asking the proxy that runs here.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tproxy_userspace::control::life::{Life, life};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::observe::socket::{Request, ask, ask_bytes};

/// The proxy's answer. `doing` is what the person wants, as the beginning of a sentence; an answer that says what is wrong is
/// an error.
pub fn asked(place: &Place, doing: &str, request: &Request, patience: Duration) -> Result<Value> {
    must_run(place, doing)?;
    let answer = ask(&place.control_socket(), request, patience).context(doing.to_owned())?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{doing} failed: {error}");
    }
    Ok(answer)
}

/// The same, read as `T` without a [`Value`] between: for answers that are long or frequent. An answer that says what is
/// wrong must not pass for a `T`.
pub fn asked_as<T: DeserializeOwned>(
    place: &Place,
    doing: &str,
    request: &Request,
    patience: Duration,
) -> Result<T> {
    must_run(place, doing)?;
    let text = ask_bytes(&place.control_socket(), request, patience).context(doing.to_owned())?;
    serde_json::from_slice(&text).map_err(|error| {
        let refusal = serde_json::from_slice::<Value>(&text).unwrap_or_default();
        match refusal["error"].as_str() {
            Some(refusal) => anyhow!("{doing} failed: {refusal}"),
            None => anyhow!("{doing} failed: the answer cannot be read: {error}"),
        }
    })
}

/// A proxy must run here.
fn must_run(place: &Place, doing: &str) -> Result<()> {
    if place.is_closed() {
        bail!(
            "{doing} failed: only root, and who is in `[api] group` of the configuration, may ask the proxy; run this as root"
        );
    }
    let Some(pid) = place.proxy_pid() else {
        bail!("{doing} failed: no proxy runs here; start one with `tproxy-bpf run`");
    };
    can_answer(pid).with_context(|| format!("{doing} failed"))
}

/// Says at once what is wrong with a proxy that is stopped: it would be asked in vain.
pub fn can_answer(pid: u32) -> Result<()> {
    if life(pid) == Life::Stopped {
        bail!(
            "the proxy (process {pid}) is stopped, by a signal, Ctrl-Z or a debugger, and answers nobody, so new connections \
             wait; `kill -CONT {pid}` lets it go on, `kill -KILL {pid}` ends it, and then `tproxy-bpf detach` removes what is left"
        );
    }
    Ok(())
}
