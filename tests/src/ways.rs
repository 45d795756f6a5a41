//! Finding out by which way traffic goes: what the far servers see, and what comes to the internet at all.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    Family, Lab, Namespace, Output, Snapshot,
    servers::{Nginx, UdpEcho},
    traffic,
    wait::{SOON, until},
};

/// The port of [`Far`]'s echo.
const ECHO: u16 = 7000;
/// A datagram that goes in one packet, and one that goes in several.
const SIZES: [usize; 2] = [100, 9_000];

/// Servers in the internet that tell who came: nginx, and a UDP echo.
#[derive(Debug)]
pub struct Far {
    /// Downloads, and the addresses of their clients.
    pub nginx: Nginx,
    echo: UdpEcho,
}

impl Far {
    /// Starts them.
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn start(lab: &Lab) -> Result<Self> {
        Ok(Self {
            nginx: Nginx::start(&lab.internet, lab.dir())?,
            echo: UdpEcho::start(&lab.internet, ECHO..=ECHO)?,
        })
    }

    /// Wants traffic from `from` to `server` (TCP, small and fragmented datagrams) to be answered and
    /// the server to see `client`.
    ///
    /// # Errors
    /// Names what was not answered, or whom the server saw instead.
    pub fn sees(&self, client: IpAddr, from: &Namespace, server: IpAddr) -> Result<()> {
        let seen = traffic::whoami(from, server)?;
        ensure!(
            seen == client,
            "TCP to {server}: the server saw {seen}, not {client}"
        );
        self.echo.forget();
        traffic::echo_sizes(from, SocketAddr::new(server, ECHO), &SIZES)?;
        let clients: Vec<IpAddr> = self.echo.clients().keys().map(SocketAddr::ip).collect();
        ensure!(
            clients == [client],
            "UDP to {server}: the server saw {clients:?}, not {client}"
        );
        Ok(())
    }

    /// Traffic of the device to far servers of both families is proxied.
    ///
    /// # Errors
    /// As [`Far::sees`].
    pub fn sees_proxy(&self, lab: &Lab) -> Result<()> {
        Family::BOTH
            .into_iter()
            .try_for_each(|family| self.sees(family.gateway_wan(), &lab.device, family.far(1)))
    }

    /// It goes direct.
    ///
    /// # Errors
    /// As [`Far::sees`].
    pub fn sees_device(&self, lab: &Lab) -> Result<()> {
        Family::BOTH
            .into_iter()
            .try_for_each(|family| self.sees(family.device(), &lab.device, family.far(1)))
    }

    /// The addresses that datagrams came from since the last [`Far::sees`].
    #[must_use]
    pub fn udp_clients(&self) -> Vec<IpAddr> {
        self.echo.clients().keys().map(SocketAddr::ip).collect()
    }

    /// An address and the echo's port.
    #[must_use]
    pub const fn echo_at(server: IpAddr) -> SocketAddr {
        SocketAddr::new(server, ECHO)
    }
}

/// Counts what comes from the device's own addresses to the internet, each fragment by itself, by
/// nft rules there.
#[derive(Debug)]
pub struct Wire<'a> {
    lab: &'a Lab,
}

impl<'a> Wire<'a> {
    /// Starts to count.
    ///
    /// # Errors
    /// When nft fails.
    pub fn tap(lab: &'a Lab) -> Result<Self> {
        let [v4, v6] = Family::BOTH.map(Family::device);
        lab.internet.run(&[
            "nft",
            &format!(
                "add table inet wire; add counter inet wire sent; \
                 add chain inet wire in {{ type filter hook prerouting priority -450; }}; \
                 add rule inet wire in ip saddr {v4} counter name sent; \
                 add rule inet wire in ip6 saddr {v6} counter name sent"
            ),
        ])?;
        Ok(Self { lab })
    }

    /// How many packets came so far.
    ///
    /// # Errors
    /// When nft fails.
    pub fn packets(&self) -> Result<u64> {
        nft_packets(&self.lab.internet, ["inet", "wire"])
    }
}

/// The packets of the counter in a table of nft: its family and its name.
///
/// # Errors
/// When nft fails, or there is no counter.
pub fn nft_packets(ns: &Namespace, [family, table]: [&str; 2]) -> Result<u64> {
    let list = ["nft", "-j", "list", "counters", "table", family, table];
    let report: Value = ns.run(&list)?.json()?;
    report["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|object| object["counter"]["packets"].as_u64())
        .with_context(|| format!("no counter in {report}"))
}

impl Lab {
    /// `tproxy-bpf bypass` with these arguments, which must succeed.
    ///
    /// # Errors
    /// When it does not; the message holds what it printed.
    pub fn bypass(&self, args: &[&str]) -> Result<Output> {
        self.tproxy_run(&[&["bypass"], args].concat())?.ok()
    }

    /// The prefixes of `tproxy-bpf bypass list`.
    ///
    /// # Errors
    /// As [`Lab::bypass`].
    pub fn bypass_list(&self) -> Result<Vec<Value>> {
        self.bypass(&["list", "--json"])?.json()
    }

    /// `tproxy-bpf status --json`.
    ///
    /// # Errors
    /// When it fails.
    pub fn status(&self) -> Result<Value> {
        self.tproxy_run(&["status", "--json"])?.ok()?.json()
    }

    /// The names of the attached links, by `status`.
    ///
    /// # Errors
    /// When it fails.
    pub fn attached_links(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let links = status["links"].as_array().into_iter().flatten();
        Ok(links
            .filter_map(|link| Some(link["name"].as_str()?.to_owned()))
            .collect())
    }

    /// Runs `tproxy-bpf` to its end and wants it to fail with this exit code and a message that holds
    /// all of `words`.
    ///
    /// # Errors
    /// When it succeeds, or fails otherwise.
    pub fn refused(&self, args: &[&str], code: i32, words: &[&str]) -> Result<Output> {
        let output = self.tproxy_run(args)?;
        if output.code() != Some(code) {
            bail!(
                "`{}` ended with {:?}, not {code}: {}{}",
                output.command,
                output.code(),
                output.stdout,
                output.stderr
            );
        }
        for word in words {
            ensure!(
                output.stderr.contains(word),
                "`{}` says nothing of \"{word}\": {}",
                output.command,
                output.stderr
            );
        }
        Ok(output)
    }

    /// Waits until the gateway is as it was before: the kernel frees programs and maps a moment after
    /// the last reference is gone.
    ///
    /// # Errors
    /// Lists what differs.
    pub fn restored(&self, before: &Snapshot) -> Result<()> {
        let mut last = Ok(());
        until("the gateway to be as before", SOON, || {
            last = Snapshot::take(self)?.same_as(before);
            Ok(last.is_ok().then_some(()))
        })
        .or(last)
    }
}

/// Tries a check again until it holds.
///
/// # Errors
/// The last error of the check, when it does not hold in time.
pub fn soon(what: &str, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let mut last = Ok(());
    until(what, SOON, || {
        last = check();
        Ok(last.is_ok().then_some(()))
    })
    .or(last)
    .with_context(|| format!("waiting for {what}"))
}
