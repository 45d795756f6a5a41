//! The other side fails: servers and upstream proxies that take no notice, are slow, or reset in mid-stream.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Tproxy,
    faults::{Leaves, Policy, Row, Scene, TCP, whole},
    probe::{Acceptor, End, at, fate, read_to_end, reset},
    servers::Microsocks,
    traffic::connect,
    wait::{SOON, patient, until},
};

const PART: &str = "The other side";
/// The port of a server that the test itself is.
const OWN: u16 = 8_000;
/// How long the other side may take to accept.
const LIMIT: Duration = Duration::from_secs(2);

/// A gateway whose other side fails, and what it had open before.
struct Case {
    scene: Scene,
    tproxy: Tproxy,
    socks: Option<Microsocks>,
    open: (usize, usize),
    tasks: u64,
    policy: Policy,
}

impl Case {
    fn new(policy: Policy, by_socks: bool) -> Result<Self> {
        let scene = Scene::new(Lab::builder())?;
        let socks = by_socks.then(|| Microsocks::start(&scene.lab.internet, Family::V4));
        let socks = socks.transpose()?;
        let url = socks
            .as_ref()
            .map_or_else(|| "direct://".to_owned(), Microsocks::url);
        let more = format!(
            "[tcp]\nconnect_timeout = \"{}s\"\n[[outbound]]\nname = \"out\"\nurl = \"{url}\"\n",
            patient(LIMIT).as_secs()
        );
        let config = scene.write(policy, &more)?;
        let tproxy = Tproxy::from(scene.run(&config, None)?);
        let mut case = Self {
            open: (0, 0),
            tasks: 0,
            scene,
            tproxy,
            socks,
            policy,
        };
        // Once there and back, so that what is kept for the next connection is there.
        case.works()?;
        case.tasks = case.tasks()?;
        case.open = case.tproxy.open_now()?;
        Ok(case)
    }

    fn works(&self) -> Result<()> {
        connect(&self.scene.lab.device, at(Family::V4.far(1), TCP))
            .and_then(|stream| lab::faults::moves(&stream))
    }

    fn tasks(&self) -> Result<u64> {
        let mut last = None;
        // Those of the connection just ended are about to go.
        until("the number of tasks to stand still", SOON, || {
            let status = self.scene.lab.status()?;
            let tasks = status["proxy"]["detail"]["tasks"].as_u64();
            let same = last == tasks;
            last = tasks;
            Ok(tasks.filter(|_| same))
        })
    }

    fn name(&self) -> &'static str {
        match self.socks {
            Some(_) => "SOCKS5",
            None => "direct",
        }
    }

    /// Nothing of the device went past the proxy, nor past its upstream.
    fn judge(&self, leaves: Leaves) -> Result<()> {
        ensure!(!leaves.device, "packets of the device left");
        ensure!(
            self.socks.is_none() || !leaves.gateway,
            "the proxy went round its outbound"
        );
        Ok(())
    }

    /// What it had open it has again.
    fn ends(self, row: Row<'_>) -> Result<()> {
        self.tproxy.back_to(self.open)?;
        until("the tasks to be as many as before", SOON, || {
            Ok((self.tasks()? <= self.tasks).then_some(()))
        })
        .with_context(|| format!("{:?}, before {}", self.tasks(), self.tasks))?;
        self.tproxy.stop()?;
        row.left(self.scene.clean()?)
    }

    fn row(&self, place: usize, what: &str) -> Row<'static> {
        let place = 2 * place + usize::from(self.socks.is_some());
        Row::new(
            PART,
            place,
            format!("{what} ({})", self.name()),
            self.policy,
        )
    }
}

/// Packets to it vanish, those of the server or those of the upstream proxy.
fn black_hole(policy: Policy, by_socks: bool) -> Result<()> {
    let case = Case::new(policy, by_socks)?;
    let lab = &case.scene.lab;
    let addresses = match by_socks {
        true => "ip daddr 198.51.100.2 drop".to_owned(),
        false => format!(
            "ip daddr {} drop; add rule inet hole in ip6 daddr {} drop",
            Family::V4.far(6),
            Family::V6.far(6)
        ),
    };
    lab.internet.run(&[
        "nft",
        &format!(
            "add table inet hole; add chain inet hole in {{ type filter hook input priority 0; }}; \
             add rule inet hole in {addresses}"
        ),
    ])?;
    let wan = case.scene.wan()?;
    for family in Family::BOTH {
        let start = Instant::now();
        let fate = fate(&lab.device, at(family.far(6), TCP))?;
        ensure!(fate == (Vec::new(), End::Reset), "{fate:?}");
        let took = start.elapsed();
        ensure!(took < patient(3 * LIMIT), "{took:?}");
    }
    let leaves = wan.leaves()?;
    case.judge(leaves)?;
    let what = match by_socks {
        true => "the upstream proxy takes no notice",
        false => "the server takes no notice",
    };
    let mut row = case
        .row(0, what)
        .then("files and tasks as before; works again when it does");
    row.sees = "connected, then reset after `tcp.connect_timeout`".to_owned();
    row.leaves = leaves.to_string();
    lab.internet.run(&["nft", "delete table inet hole"])?;
    case.works()?;
    case.ends(row)
}

/// A byte at a time, then a reset in the middle.
fn slow_and_reset(policy: Policy, by_socks: bool) -> Result<()> {
    let mut case = Case::new(policy, by_socks)?;
    let lab = &case.scene.lab;
    let target = at(Family::V4.far(2), OWN);
    let server = Acceptor::listen(&lab.internet, target)?;
    let wan = case.scene.wan()?;
    let mut device = connect(&lab.device, target)?;
    let (mut far, _) = server.accept()?;
    for byte in 0..20_u8 {
        far.write_all(&[byte])?;
        let mut got = [0];
        device.read_exact(&mut got)?;
        ensure!(got == [byte], "{got:?}");
    }
    let start = Instant::now();
    far.write_all(b"the first half")?;
    match case.socks.take() {
        // The upstream proxy dies with all that it carries.
        Some(socks) => drop(socks),
        None => reset(far)?,
    }
    let (bytes, end) = read_to_end(&device)?;
    let took = start.elapsed();
    ensure!(b"the first half".starts_with(&bytes), "{bytes:?}");
    ensure!(took < patient(SOON), "{took:?}");
    let sees = if by_socks {
        // Nobody listens there any more.
        let again = fate(&lab.device, target)?;
        ensure!(again == (Vec::new(), End::Reset), "{again:?}");
        "ended at once; new connections are reset"
    } else {
        ensure!(end == End::Reset, "{end:?}");
        "reset at once"
    };
    let leaves = wan.leaves()?;
    ensure!(!leaves.device, "packets of the device left");
    ensure!(!by_socks || !leaves.gateway, "the proxy went round it");
    drop((device, server));
    let what = match by_socks {
        true => "the upstream proxy is killed in mid-stream",
        false => "the server is slow, then resets in mid-stream",
    };
    let place = 2 + usize::from(by_socks);
    let mut row = Row::new(PART, place, what, policy).then("files and tasks as before");
    row.sees = sees.to_owned();
    row.leaves = leaves.to_string();
    if by_socks {
        case.socks = Some(Microsocks::start(&case.scene.lab.internet, Family::V4)?);
    }
    case.works()?;
    case.ends(row)
}

fn all(case: fn(Policy, bool) -> Result<()>) -> Result<()> {
    for policy in Policy::BOTH {
        for by_socks in [false, true] {
            if whole() || policy == Policy::Drop {
                case(policy, by_socks)?;
            }
        }
    }
    Ok(())
}

#[test]
fn it_takes_no_notice() -> Result<()> {
    all(black_hole)
}

#[test]
fn it_is_slow_and_resets() -> Result<()> {
    all(slow_and_reset)
}
