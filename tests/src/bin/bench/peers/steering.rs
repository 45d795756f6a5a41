//! The rules and routes that lead to a program that is not ours.

use std::net::IpAddr;

use anyhow::Result;
use lab::{Lab, Namespace};

/// The mark of what is delivered locally, and the table that does it.
const MARK: u8 = 1;
const TABLE: u8 = 101;
/// What the guides have go direct, and the subnet of the lab's WAN link, which a user would have typed in.
const DIRECT: &str = "10.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.2.0/24, 192.168.0.0/16, 224.0.0.0/3";

/// What is led there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// TCP alone.
    Tcp,
    /// UDP, too.
    Both,
}

impl Protocols {
    const fn words(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Both => "{ tcp, udp }",
        }
    }
}

/// Rules of nft, and routes. Dropping it takes them away.
pub struct Steering {
    gateway: Namespace,
    routed: bool,
}

impl Steering {
    /// TPROXY to a port of 127.0.0.1. `server` goes direct.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn tproxy(
        lab: &Lab,
        protocols: Protocols,
        port: u16,
        server: Option<IpAddr>,
    ) -> Result<Self> {
        lab.gateway.ip(&[
            &format!("rule add fwmark {MARK} table {TABLE}"),
            &format!("route add local 0.0.0.0/0 dev lo table {TABLE}"),
        ])?;
        let steering = Self {
            gateway: lab.gateway.clone(),
            routed: true,
        };
        // What belongs to a connection that the program holds needs no second decision.
        steering.rules(
            "filter hook prerouting priority mangle",
            server,
            &format!(
                "add rule ip peer lan meta l4proto tcp socket transparent 1 meta mark set {MARK} accept; \
                 add rule ip peer lan iifname {} meta l4proto {} tproxy to 127.0.0.1:{port} meta mark set {MARK} accept",
                lab.lan(),
                protocols.words(),
            ),
        )?;
        Ok(steering)
    }

    /// REDIRECT of TCP to a port of the gateway. `server` goes direct.
    ///
    /// # Errors
    /// As [`Steering::tproxy`].
    pub fn redirect(lab: &Lab, port: u16, server: IpAddr) -> Result<Self> {
        let steering = Self {
            gateway: lab.gateway.clone(),
            routed: false,
        };
        steering.rules(
            "nat hook prerouting priority dstnat",
            Some(server),
            &format!(
                "add rule ip peer lan iifname {} meta l4proto tcp redirect to :{port}",
                lab.lan()
            ),
        )?;
        Ok(steering)
    }

    fn rules(&self, chain: &str, server: Option<IpAddr>, rest: &str) -> Result<()> {
        let server = server.map_or(String::new(), |server| format!(", {server}"));
        self.gateway.run(&[
            "nft",
            &format!(
                "add table ip peer; add chain ip peer lan {{ type {chain}; }}; \
                 add rule ip peer lan ip daddr {{ {DIRECT}{server} }} return; {rest}"
            ),
        ])?;
        Ok(())
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        let rule = format!("rule del fwmark {MARK} table {TABLE}");
        let routes = format!("route flush table {TABLE}");
        let table = ["nft", "delete table ip peer"];
        let gone = if self.routed {
            self.gateway.ip(&[&rule, &routes])
        } else {
            Ok(())
        };
        if let Err(error) = gone.and_then(|()| self.gateway.run(&table).map(|_| ())) {
            eprintln!("taking the rules of another program away: {error:#}");
        }
    }
}
