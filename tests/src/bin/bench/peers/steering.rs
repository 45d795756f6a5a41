//! Rules of nft, and routes, that lead what devices send to a port of the gateway, IPv4.

use anyhow::Result;
use lab::{Lab, Namespace, addr::TYPED_DIRECT};

/// The mark of what is delivered locally, and the table that does it.
const MARK: u8 = 1;
const TABLE: u8 = 101;

/// What is led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Led {
    /// TCP alone.
    Tcp,
    /// TCP and UDP.
    Both,
}

/// The rules and routes. Dropping it takes them away.
pub struct Steering {
    gateway: Namespace,
    routed: bool,
}

impl Steering {
    /// TPROXY, to a transparent socket of 127.0.0.1.
    ///
    /// # Errors
    /// When ip or nft fails.
    pub fn tproxy(lab: &Lab, port: u16, led: Led) -> Result<Self> {
        lab.gateway.ip(&[
            &format!("rule add fwmark {MARK} table {TABLE}"),
            &format!("route add local 0.0.0.0/0 dev lo table {TABLE}"),
        ])?;
        let steering = Self {
            gateway: lab.gateway.clone(),
            routed: true,
        };
        let protocols = match led {
            Led::Tcp => "tcp",
            Led::Both => "{ tcp, udp }",
        };
        // What the guides have go direct, then what belongs to a connection that the proxy holds, then the rest.
        steering.nft(&format!(
            "add table ip peer; \
             add chain ip peer lan {{ type filter hook prerouting priority mangle; }}; \
             add rule ip peer lan ip daddr {{ {direct} }} return; \
             add rule ip peer lan meta l4proto tcp socket transparent 1 meta mark set {MARK} accept; \
             add rule ip peer lan iifname {lan} meta l4proto {protocols} tproxy to 127.0.0.1:{port} \
             meta mark set {MARK} accept",
            direct = TYPED_DIRECT.join(", "),
            lan = lab.lan(),
        ))?;
        Ok(steering)
    }

    /// REDIRECT, to a socket of all addresses, TCP.
    ///
    /// # Errors
    /// When nft fails.
    pub fn redirect(lab: &Lab, port: u16) -> Result<Self> {
        let steering = Self {
            gateway: lab.gateway.clone(),
            routed: false,
        };
        steering.nft(&format!(
            "add table ip peer; \
             add chain ip peer lan {{ type nat hook prerouting priority dstnat; }}; \
             add rule ip peer lan ip daddr {{ {direct} }} return; \
             add rule ip peer lan iifname {lan} meta l4proto tcp redirect to :{port}",
            direct = TYPED_DIRECT.join(", "),
            lan = lab.lan(),
        ))?;
        Ok(steering)
    }

    fn nft(&self, script: &str) -> Result<()> {
        self.gateway.run(&["nft", script]).map(|_| ())
    }

    fn take_back(&self) -> Result<()> {
        if self.routed {
            self.gateway.ip(&[
                &format!("rule del fwmark {MARK} table {TABLE}"),
                &format!("route flush table {TABLE}"),
            ])?;
        }
        self.nft("delete table ip peer")
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        if let Err(error) = self.take_back() {
            eprintln!("taking the rules of a peer away: {error:#}");
        }
    }
}
