//! The table of ways through the gateway.

use std::{any::Any, fmt};

use anyhow::Result;
use lab::{Family, Lab, Namespace, Tproxy};

use crate::{prefixes, v2ray};

/// How many prefixes of each family are in the bypass set.
pub const PREFIXES: usize = 16_384;

/// Whose traffic it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A device's, which the gateway forwards.
    Device,
    /// The gateway's own.
    Gateway,
}

impl Client {
    /// Where it runs.
    pub fn of(self, lab: &Lab) -> &Namespace {
        match self {
            Self::Device => &lab.device,
            Self::Gateway => &lab.gateway,
        }
    }
}

/// One way through the gateway.
pub struct Way {
    /// One word, the head of its column.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub what: &'static str,
    /// Whose traffic goes that way.
    pub clients: &'static [Client],
    /// Is it another program than ours?
    pub peer: bool,
    /// Does a process relay the traffic, so that servers see the gateway?
    pub relays: bool,
    /// The families it is set up for.
    pub families: &'static [Family],
    /// Sets it up on the gateway of a lab.
    pub start: fn(&Lab) -> Result<Option<Running>>,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The program of a way. It ends when this is dropped.
pub struct Running {
    /// Its process.
    pub pid: u32,
    _guard: Box<dyn Any>,
}

impl Running {
    /// A program that lives as long as its guard.
    pub fn new(pid: u32, guard: impl Any) -> Self {
        Self {
            pid,
            _guard: Box::new(guard),
        }
    }
}

/// All of them. The first is what the others are compared with.
pub static WAYS: [Way; 6] = [
    Way {
        name: PLAIN,
        what: "forwarding by the kernel, with nothing attached",
        clients: &[Client::Device, Client::Gateway],
        peer: false,
        relays: false,
        families: &Family::BOTH,
        start: |_| Ok(None),
    },
    Way {
        name: BYPASSED,
        what: "tproxy-bpf attached, the destination is in its bypass set",
        clients: &[Client::Device],
        peer: false,
        relays: false,
        families: &Family::BOTH,
        start: |lab| tproxy(lab, LAN, true),
    },
    Way {
        name: PROXIED,
        what: "tproxy-bpf with the outbound direct://",
        clients: &[Client::Device],
        peer: false,
        relays: true,
        families: &Family::BOTH,
        start: |lab| tproxy(lab, LAN, false),
    },
    Way {
        name: "v2ray",
        what: "Debian's v2ray with the iptables rules of the TPROXY guides, outbound freedom",
        clients: &[Client::Device],
        peer: true,
        relays: true,
        families: &[Family::V4],
        start: v2ray::start,
    },
    Way {
        name: OWN_BYPASSED,
        what: "the gateway's own traffic, tproxy-bpf attached, the destination is in its bypass set",
        clients: &[Client::Gateway],
        peer: false,
        relays: false,
        families: &Family::BOTH,
        start: |lab| tproxy(lab, WAN, true),
    },
    Way {
        name: OWN_PROXIED,
        what: "the gateway's own traffic, tproxy-bpf with the outbound direct://",
        clients: &[Client::Gateway],
        peer: false,
        relays: true,
        families: &Family::BOTH,
        start: |lab| tproxy(lab, WAN, false),
    },
];

/// The name of plain forwarding.
pub const PLAIN: &str = "plain";
/// The name of our bypass.
pub const BYPASSED: &str = "bypassed";
/// The name of our proxy.
pub const PROXIED: &str = "proxied";

/// The name of our bypass for the gateway itself.
pub const OWN_BYPASSED: &str = "own-bypassed";
/// The name of our proxy for the gateway itself.
pub const OWN_PROXIED: &str = "own-proxied";

const LAN: [&str; 2] = ["--lan", "lan0"];
const WAN: [&str; 2] = ["--wan", "wan0"];

/// Ours. All have a bypass set of the same size; only what is in it differs.
fn tproxy(lab: &Lab, link: [&str; 2], bypass: bool) -> Result<Option<Running>> {
    let tproxy = lab.tproxy(&["run", link[0], link[1], "--outbound", "direct://"])?;
    let mut prefixes = prefixes::random(PREFIXES);
    if bypass {
        for family in Family::BOTH {
            let bits = if family == Family::V4 { 24 } else { 48 };
            prefixes.push(ipnet::IpNet::new(family.far(1), bits)?.trunc());
        }
    }
    let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    // One by one: a load would join them, and the others have each of them.
    for some in texts.chunks(4096) {
        let some = some.iter().map(String::as_str);
        let args: Vec<&str> = ["bypass", "add"].into_iter().chain(some).collect();
        lab.tproxy_run(&args)?.ok()?;
    }
    Ok(Some(Running::new(
        tproxy.process().pid(),
        Stopping(Some(tproxy)),
    )))
}

/// Ours, which is to detach when it ends.
struct Stopping(Option<Tproxy>);

impl Drop for Stopping {
    fn drop(&mut self) {
        if let Some(tproxy) = self.0.take()
            && let Err(error) = tproxy.stop()
        {
            eprintln!("stopping tproxy-bpf: {error:#}");
        }
    }
}
