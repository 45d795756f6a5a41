//! Who is in the two worlds, and what their DNS servers say.

use std::net::{IpAddr, UdpSocket};

use anyhow::Result;

use super::{Split, names};
use crate::{
    Family,
    probe::udp_at,
    servers::{Danted, Dnsmasq, Log, Nginx, Serve, Unbound, Zone},
};

/// The servers of both worlds.
#[derive(Debug)]
pub struct SplitServers {
    /// The near DNS server, at every near address.
    pub near_dns: Dnsmasq,
    /// The far DNS server, also over TLS.
    pub far_dns: Unbound,
    /// HTTP at every near address, HTTPS for [`names::SHARED_NEAR`] and [`names::SHARED_FAR`].
    pub near_web: Nginx,
    /// HTTP at every far address, HTTPS for [`names::FAR`].
    pub far_web: Nginx,
    /// SOCKS5 in the far world.
    pub socks: Danted,
    _silent: UdpSocket,
}

impl SplitServers {
    /// Starts them.
    ///
    /// # Errors
    /// When one of them does not start; the message holds its log.
    pub fn start(split: &Split) -> Result<Self> {
        Self::start_with(split, Log::Questions)
    }

    /// Starts them, with DNS servers that log this.
    ///
    /// # Errors
    /// As [`SplitServers::start`].
    pub fn start_with(split: &Split, log: Log) -> Result<Self> {
        let (near, far, dir) = (split.near(), &split.far, split.lab.dir());
        let silent = udp_at(near, ([127, 0, 0, 1], 0).into())?;
        let silent_port = silent.local_addr()?.port();
        Ok(Self {
            near_dns: Dnsmasq::start_with(near, log, &near_names(silent_port))?,
            far_dns: Unbound::start(
                far,
                dir,
                &Serve {
                    addresses: &Family::BOTH.map(Split::far_dns),
                    zones: &far_names(),
                    unanswered: &[names::SILENT_FAR],
                    log,
                },
            )?,
            near_web: Nginx::start_sites(near, dir, &[names::SHARED_NEAR, names::SHARED_FAR])?,
            far_web: Nginx::start_sites(far, dir, &[names::FAR])?,
            socks: Danted::start(far, dir)?,
            _silent: silent,
        })
    }
}

/// What makes a TXT record big: over 3,000 bytes.
fn big() -> Vec<String> {
    vec!["x".repeat(250); 13]
}

fn near_names(silent_port: u16) -> Vec<String> {
    let host = |name: &str, address: fn(Family) -> IpAddr| {
        let [v4, v6] = Family::BOTH.map(address);
        format!("--host-record={name},{v4},{v6}")
    };
    let all_of = |zone: &str, address: IpAddr| format!("--address=/{zone}/{address}");
    let mut arguments = vec![
        "--local-ttl=60".to_owned(),
        host(names::NEAR, Split::near_site),
        host(names::SHARED_NEAR, Split::shared),
        format!("--cname={},{}", names::ALIAS_NEAR, names::NEAR),
        format!("--mx-host={},{},10", names::NEAR_ZONE, names::NEAR),
        format!("--txt-record={},near", names::NEAR_ZONE),
        format!("--txt-record={},{}", names::BIG_NEAR, big().join(",")),
        // An address that is none: no such name.
        format!("--address=/{}/", names::GONE_NEAR),
        format!("--server=/{}/127.0.0.1#{silent_port}", names::SILENT_NEAR),
    ];
    for family in Family::BOTH {
        arguments.push(all_of(names::NEAR_ZONE, Split::near_site(family)));
        arguments.push(all_of(names::FAR_ZONE, Split::forged(family)));
    }
    arguments
}

fn far_names() -> [Zone; 2] {
    let host = |name: &str, address: fn(Family) -> IpAddr| {
        let [v4, v6] = Family::BOTH.map(address);
        format!("{name} A {v4}\n{name} AAAA {v6}\n")
    };
    let big = big()
        .iter()
        .map(|text| format!(" \"{text}\""))
        .collect::<String>();
    [
        Zone {
            name: names::FAR_ZONE,
            records: [
                host("www", Split::far_site),
                host("shared", Split::shared),
                host("dns", Split::far_dns),
                "alias CNAME www\n@ MX 10 www\n@ TXT \"far\"\n".to_owned(),
                format!("big TXT{big}\n"),
            ]
            .concat(),
        },
        Zone {
            name: names::NEAR_ZONE,
            records: host("*", Split::near_from_afar),
        },
    ]
}
