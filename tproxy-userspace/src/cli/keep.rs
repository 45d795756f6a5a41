//! The keeper: a process of root that waits for the end of a proxy of another user, and then does what that user may not:
//! removes the folders below `/run` and `/sys/fs/bpf`, and the cgroup of `exempt run`.
//!
//! It is started as a program of its own, so it has nothing of the proxy's memory. It hears one thing only, by its
//! standard input: whether the proxy came to serve, and its end.

use std::io::{Read as _, Write as _, stdin};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use tproxy_userspace::control::place::{Owner, Place};
use tproxy_userspace::privileges::{Identity, KEEPER, confine};

/// Says that the proxy serves.
const SERVES: u8 = b's';

/// The keeper as the proxy sees it. When this is dropped, it clears up and is waited for.
pub struct Keeper(Child);

impl Keeper {
    /// Starts it. `before` is whose the folders were: they get them back if the proxy does not come to serve.
    pub fn start(before: Option<Owner>) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("tproxy-bpf").arg("keep");
        if let Some(owner) = before {
            let Owner { uid, gid, shared } = owner;
            command.arg(format!("--before={uid}:{gid}"));
            if shared {
                command.arg("--shared");
            }
        }
        let child = command
            .stdin(Stdio::piped())
            // A Ctrl-C that ends the proxy must not end what clears up behind it.
            .process_group(0)
            .spawn();
        Ok(Self(child.context(
            "starting the process that clears up behind the proxy failed",
        )?))
    }

    /// The proxy serves.
    pub fn serves(&mut self) {
        if let Some(input) = &mut self.0.stdin {
            // If it is gone, nobody clears up, which `detach` then does.
            let _ = input.write_all(&[SERVES]);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The keeper itself.
pub fn keep(before: Option<&str>, shared: bool) -> Result<ExitCode> {
    let place = Place::current()?;
    let before = before.map(|text| owner(text, shared)).transpose()?;
    confine(&KEEPER, &Identity::default())?;
    let mut heard = Vec::new();
    // An end by an error is an end, too.
    let _ = stdin().read_to_end(&mut heard);
    place.tidy()?;
    if !heard.contains(&SERVES)
        && let Some(owner) = before
        && place.owner().is_some()
    {
        place.give(owner)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn owner(text: &str, shared: bool) -> Result<Owner> {
    let (uid, gid) = text.split_once(':').context("--before is UID:GID")?;
    let (uid, gid) = (uid.parse()?, gid.parse()?);
    Ok(Owner { uid, gid, shared })
}
