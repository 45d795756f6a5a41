//! A lab, and the ways that are set up on its gateway one after the other.

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab,
    servers::{Iperf, TcpEcho, UdpEcho},
    traffic, usage,
    wait::{SOON, until},
};

use crate::{
    peers,
    rows::{CPU_EACH, Readings, SWITCHES},
    ways::{Client, Running, Way},
};

/// A lab and one way through its gateway.
///
/// Two labs differ by several percent for reasons of their own (where their memory lies, for one), which is
/// as much as what is to be measured. So plain forwarding, our ways and the peers whose rules can be taken back
/// share one, and each is there only during its runs. Another peer has its own.
pub struct Stage {
    /// The way.
    pub way: &'static Way,
    running: RefCell<Option<Running>>,
    iperf: Rc<Vec<(Family, Iperf)>>,
    /// Last, so that the programs end before it does.
    pub lab: Rc<Lab>,
}

impl Stage {
    /// Sets up a way, in the lab of `shared` or in one of its own, and makes sure that traffic takes it.
    ///
    /// # Errors
    /// When something does not start, or servers see another client than this way gives.
    pub fn set(way: &'static Way, shared: Option<&Self>) -> Result<Self> {
        let shared = shared.filter(|_| !way.stays);
        let stage = match shared {
            Some(other) => Self {
                way,
                running: RefCell::default(),
                iperf: Rc::clone(&other.iperf),
                lab: Rc::clone(&other.lab),
            },
            None => Self::build(way)?,
        };
        let there = stage.enter()?;
        stage.check()?;
        drop(there);
        Ok(stage)
    }

    fn build(way: &'static Way) -> Result<Self> {
        let lab = Lab::new()?;
        // A run opens more connections than there are ports by default, and the last run's wait for their end.
        for ns in [&lab.device, &lab.gateway] {
            ns.sysctl(&[
                ("net/ipv4/ip_local_port_range", "1024 65535"),
                ("net/ipv4/tcp_tw_reuse", "1"),
            ])?;
        }
        let kept = format!("{}-{}", peers::LISTENING.start(), peers::LISTENING.end());
        lab.gateway
            .sysctl(&[("net/ipv4/ip_local_reserved_ports", &kept)])?;
        let iperf = way
            .families
            .iter()
            .map(|family| Ok((*family, Iperf::start(&lab.internet, family.far(1))?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            way,
            running: RefCell::default(),
            iperf: Rc::new(iperf),
            lab: Rc::new(lab),
        })
    }

    /// Starts the way if it is not there. It goes with what is returned, unless it stays.
    ///
    /// # Errors
    /// When it does not start.
    pub fn enter(&self) -> Result<There<'_>> {
        let mut running = self.running.borrow_mut();
        if running.is_none() {
            *running = (self.way.start)(&self.lab)?;
        }
        Ok(There(self))
    }

    /// Figures of the wrong way would be worse than none.
    fn check(&self) -> Result<()> {
        const PORT: u16 = 7;
        let tcp = TcpEcho::start(&self.lab.internet, PORT)?;
        let udp = UdpEcho::start(&self.lab.internet, PORT..=PORT)?;
        let cases = self.way.families.iter().flat_map(|family| {
            let clients = self.way.clients.iter();
            clients.map(move |client| (family, *client))
        });
        for (family, client) in cases {
            let from = client.of(&self.lab);
            let target = SocketAddr::new(family.far(1), PORT);
            let mut stream = traffic::connect(from, target)?;
            let mut answer = [0];
            stream.write_all(&answer)?;
            stream.read_exact(&mut answer)?;
            let seen = tcp.clients().last().map(SocketAddr::ip);
            self.expect(*family, client, seen, "TCP")?;
            if !self.way.udp {
                continue;
            }
            traffic::echo_sizes(from, target, &[64])?;
            // The echo notes the client after it has answered.
            let seen = until("the echo to note its client", SOON, || {
                Ok(udp.clients().keys().next().map(SocketAddr::ip))
            })?;
            let seen = Some(seen);
            self.expect(*family, client, seen, "UDP")?;
            udp.forget();
        }
        self.check_own()
    }

    /// Servers see the gateway both ways, so the counters tell which way its own traffic took.
    fn check_own(&self) -> Result<()> {
        if self.way.clients == [Client::Gateway] {
            let taken = if self.way.relays {
                ["tcp_opened", "udp_steered"]
            } else {
                ["bypassed", "bypassed"]
            };
            for reason in taken {
                ensure!(
                    self.lab.packets(reason)? > 0,
                    "nothing took the way \"{}\": the counter {reason} is 0",
                    self.way.name
                );
            }
        }
        Ok(())
    }

    fn expect(
        &self,
        family: Family,
        client: Client,
        seen: Option<IpAddr>,
        protocol: &str,
    ) -> Result<()> {
        let expected = if self.way.by_server {
            // It is on the same machine, which then speaks to itself.
            family.far(1)
        } else if self.way.relays || client == Client::Gateway {
            family.gateway_wan()
        } else {
            family.device()
        };
        ensure!(
            seen == Some(expected),
            "{protocol} over {family:?} did not take the way \"{}\": the server saw {seen:?}, not {expected}",
            self.way.name
        );
        Ok(())
    }

    /// Where iperf3 listens.
    ///
    /// # Errors
    /// When this way has no such family.
    pub fn iperf(&self, family: Family) -> Result<SocketAddr> {
        self.iperf
            .iter()
            .find(|(of, _)| *of == family)
            .map(|(_, iperf)| iperf.address())
            .with_context(|| format!("no {family:?} here"))
    }

    /// The process that relays, if this way has one.
    pub fn relay(&self) -> Option<u32> {
        self.running
            .borrow()
            .as_ref()
            .filter(|_| self.way.relays)
            .map(|running| running.pid)
    }

    /// The CPU seconds that the program of this way has used so far.
    ///
    /// # Errors
    /// When there is none, or it is gone.
    pub fn program_cpu_seconds(&self) -> Result<f64> {
        let running = self.running.borrow();
        let pid = running.as_ref().context("nothing runs here")?.pid;
        Ok(self.used_by(pid)?.cpu_seconds)
    }

    /// What the relaying process has used so far, if this way has one.
    ///
    /// # Errors
    /// When it is gone.
    pub fn effort(&self) -> Result<Option<Effort>> {
        self.relay().map(|pid| self.used_by(pid)).transpose()
    }

    fn used_by(&self, pid: u32) -> Result<Effort> {
        Effort::of(pid).with_context(|| format!("the program of \"{}\" has died", self.way.name))
    }

    /// Runs something, and tells what the relaying process has used for it.
    ///
    /// # Errors
    /// When it fails, or the process dies.
    pub fn with_effort<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<(T, Option<Effort>)> {
        let before = self.effort()?;
        let result = run()?;
        let after = self.effort()?;
        let used = before.zip(after).map(|(before, after)| Effort {
            cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            switches: after.switches.saturating_sub(before.switches),
        });
        Ok((result, used))
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// User and system time.
    pub cpu_seconds: f64,
    /// How often its threads went to sleep of their own accord.
    pub switches: u64,
}

impl Effort {
    /// What the process of this id has used so far.
    fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            cpu_seconds: usage::cpu_time(pid)?.as_secs_f64(),
            switches: usage::voluntary_switches(pid)?,
        })
    }

    /// The same for each of so many exchanges.
    pub fn each(self, exchanges: f64) -> Readings {
        vec![
            (&CPU_EACH, self.cpu_seconds / exchanges * 1e6),
            (&SWITCHES, self.switches as f64 / exchanges),
        ]
    }
}

/// A way that is set up.
pub struct There<'a>(&'a Stage);

impl Drop for There<'_> {
    fn drop(&mut self) {
        if !self.0.way.stays {
            self.0.running.take();
        }
    }
}
