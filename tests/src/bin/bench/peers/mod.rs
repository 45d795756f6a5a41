//! Other programs in the place of ours, on IPv4, each as its own documentation has it, with what makes it fastest.

mod haproxy;
mod redsocks;
mod shadowsocks;
mod sing_box;
mod steering;
mod v2ray;

pub use steering::{Protocols, Steering};

use std::fs;

use anyhow::{Context, Result};
use lab::{
    Family, Lab, Namespace, Process,
    wait::{Transport, listening},
};

use crate::ways::{Client, FORWARDING, Running, Way};

/// All of them, in the order of their columns.
pub const WAYS: [Way; 6] = [
    peer(
        "sing-box",
        "sing-box with its inbound tproxy, outbound direct",
        Protocols::Both,
        sing_box::tproxy,
    ),
    peer(
        "sing-box-tun",
        "sing-box with its inbound tun, outbound direct",
        Protocols::Both,
        sing_box::tun,
    ),
    peer(
        "v2ray",
        "Debian's v2ray with the rules of the TPROXY guides, outbound freedom",
        Protocols::Both,
        v2ray::start,
    ),
    peer(
        "haproxy",
        "Debian's haproxy, splicing, TPROXY rules",
        Protocols::Tcp,
        haproxy::start,
    ),
    Way {
        by_server: true,
        ..peer(
            "redsocks",
            "Debian's redsocks with REDIRECT rules, to microsocks",
            Protocols::Tcp,
            redsocks::start,
        )
    },
    Way {
        by_server: true,
        ..peer(
            "sslocal",
            "sslocal of shadowsocks-rust with TPROXY rules, to its ssserver, aes-128-gcm",
            Protocols::Both,
            shadowsocks::start,
        )
    },
];

const fn peer(
    name: &'static str,
    what: &'static str,
    protocols: Protocols,
    start: fn(&Lab) -> Result<Option<Running>>,
) -> Way {
    Way {
        name,
        what,
        subjects: FORWARDING,
        clients: &[Client::Device],
        peer: true,
        relays: true,
        protocols,
        by_server: false,
        families: &[Family::V4],
        start,
    }
}

/// Starts a program with this configuration, and waits until it listens at a port of TCP.
fn serve(
    ns: &Namespace,
    lab: &Lab,
    argv: &[&str],
    configuration: &str,
    port: u16,
) -> Result<Process> {
    let path = lab.dir().join(format!("{}-{port}.conf", ns.inode()));
    fs::write(&path, configuration).with_context(|| format!("writing {}", path.display()))?;
    let mut command = ns.command(argv[0]);
    command.args(&argv[1..]).arg(&path);
    let process = Process::spawn(command)?;
    listening(ns, Transport::Tcp, port)
        .with_context(|| format!("{} said: {}", argv[0], process.lines().join("\n")))?;
    Ok(process)
}
