//! The kernel programs alone: nanoseconds a packet under `BPF_PROG_TEST_RUN`.
//!
//! A trial run cannot assign a packet to a socket, so what would be steered is measured up to the refused
//! assignment. The packets of a case go to many destinations, since a trie is not equally deep everywhere.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsFd,
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use lab::{Family, Lab};
use tproxy_common::abi::{Bypass, Listener, Origin, Reason, Settings, program};
use tproxy_userspace::control::{
    account::account,
    bpf::{BypassEntry, Maps, Programs, Trial},
    place::Place,
    sync::Via,
};

use crate::{options::Options, prefixes, results::median};

/// The name for `--only` and in the JSON.
pub const NAME: &str = "lan-ingress";
/// The sizes of the bypass set, for each family.
pub const SIZES: [usize; 2] = [16_384, 65_536];
/// What a bypassed packet may cost, in nanoseconds above what the trial run itself costs ([`FLOOR`]).
pub const TARGET: f64 = 120.0;
/// The first case: what even the cheapest packet costs in a trial run.
const FLOOR: &str = "not IP (the floor)";
/// How many destinations a case has.
const DESTINATIONS: usize = 16;
const REPEAT: u32 = 1_000_000;
const QUICK_REPEAT: u32 = 100_000;
const TIMES: usize = 5;
/// The interface that trial packets come from.
const LO: u32 = 1;

/// A kind of packet.
#[derive(Clone, Copy)]
enum Kind {
    /// Looked at and let go.
    Arp,
    TcpSyn,
    TcpData,
    Udp,
}

/// Where it goes to.
#[derive(Clone, Copy)]
enum To {
    Bypassed,
    Own,
    Proxied,
}

struct Case {
    title: &'static str,
    kind: Kind,
    to: To,
    course: Course,
    /// Is it one that [`TARGET`] is for?
    target: bool,
    /// Is it counted for the device?
    account: bool,
}

/// Which program sees it.
#[derive(Clone, Copy)]
enum Course {
    /// `lan_ingress`, which passes it for this reason.
    FromDevice(Reason),
    /// `udp_reply`: an answer, forwarded to the device.
    ToDevice,
}

const fn case(title: &'static str, kind: Kind, to: To, reason: Reason, target: bool) -> Case {
    Case {
        title,
        kind,
        to,
        course: Course::FromDevice(reason),
        target,
        account: false,
    }
}

const fn answer(title: &'static str) -> Case {
    Case {
        title,
        kind: Kind::Udp,
        to: To::Bypassed,
        course: Course::ToDevice,
        target: false,
        account: false,
    }
}

/// The same with `gateway.account`.
const fn counted(title: &'static str, case: Case) -> Case {
    Case {
        title,
        target: false,
        account: true,
        ..case
    }
}

static CASES: [Case; 10] = [
    case(FLOOR, Kind::Arp, To::Own, Reason::NotIp, false),
    case(
        "TCP SYN, bypassed",
        Kind::TcpSyn,
        To::Bypassed,
        Reason::Bypassed,
        true,
    ),
    case(
        "TCP data, bypassed",
        Kind::TcpData,
        To::Bypassed,
        Reason::DirectConnection,
        true,
    ),
    case(
        "UDP, bypassed",
        Kind::Udp,
        To::Bypassed,
        Reason::Bypassed,
        true,
    ),
    case(
        "UDP, own address",
        Kind::Udp,
        To::Own,
        Reason::OwnAddress,
        false,
    ),
    case(
        "UDP, to be steered",
        Kind::Udp,
        To::Proxied,
        Reason::DownPassed,
        false,
    ),
    counted(
        "TCP data, counted",
        case(
            "",
            Kind::TcpData,
            To::Bypassed,
            Reason::DirectConnection,
            false,
        ),
    ),
    counted(
        "UDP, bypassed, counted",
        case("", Kind::Udp, To::Bypassed, Reason::Bypassed, false),
    ),
    answer("forwarded back"),
    // The device is known from what it sent.
    counted("forwarded back, counted", answer("")),
];

/// The figures of one case.
pub struct CaseResult {
    /// What kind of packet.
    pub title: &'static str,
    /// Its family.
    pub family: Family,
    /// How many prefixes of each family the bypass set had.
    pub prefixes: usize,
    /// The best of all runs, in nanoseconds a packet.
    pub best: f64,
    /// Their median.
    pub median: f64,
    /// The median less that of the floor of the same family and bypass set.
    pub above_floor: f64,
    /// Whether the target is reached, for what it is for. Judged by what is above the floor.
    pub reached: Option<bool>,
}

/// Measures all cases.
///
/// # Errors
/// When the programs cannot be loaded, or a packet goes another way than its case says.
pub fn measure(options: &Options) -> Result<Vec<CaseResult>> {
    let repeat = if options.quick { QUICK_REPEAT } else { REPEAT };
    let mut results = Vec::new();
    for size in SIZES {
        let lab = Lab::new()?;
        results.extend(
            lab.gateway
                .enter(|| Bench::new(size)?.all(repeat))?
                .with_context(|| format!("measuring lan_ingress with {size} prefixes"))?,
        );
    }
    Ok(results)
}

/// The programs, with maps of their own.
struct Bench {
    programs: Programs,
    maps: Maps,
    prefixes: Vec<IpNet>,
    _sockets: [UdpSocket; 2],
}

impl Bench {
    /// To be called in a network namespace that goes away.
    fn new(size: usize) -> Result<Self> {
        let place = Place::current()?;
        let (programs, mut maps) = Programs::load(place.create_pins()?)?;
        maps.set_settings(Settings {
            flags: Settings::BYPASS_PRIVATE,
            ..maps.settings()?
        })?;
        for family in Family::BOTH {
            let bits = family.host_bits();
            let lan = if family == Family::V4 { 24 } else { 64 };
            maps.set_source(
                Via::arriving(LO),
                IpNet::new(family.device(), lan)?.trunc(),
                true,
            )?;
            maps.set_local(IpNet::new(family.gateway_lan(), bits)?, Some(true))?;
        }
        let prefixes = prefixes::random(size);
        for prefix in &prefixes {
            let value = Bypass {
                prefix_len: prefix.prefix_len().into(),
                origin: Origin::Command as u32,
                ..Bypass::default()
            };
            maps.insert_bypass(&BypassEntry {
                prefix: *prefix,
                value,
                note: String::new(),
            })?;
        }
        let sockets = [
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?,
            UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?,
        ];
        maps.set_listener(Listener::Udp4, &[sockets[0].as_fd()])?;
        maps.set_listener(Listener::Udp6, &[sockets[1].as_fd()])?;
        Ok(Self {
            programs,
            maps,
            prefixes,
            _sockets: sockets,
        })
    }

    fn all(mut self, repeat: u32) -> Result<Vec<CaseResult>> {
        let mut results: Vec<CaseResult> = Vec::new();
        for case in &CASES {
            for family in Family::BOTH {
                let mut settings = self.maps.settings()?;
                settings.set(Settings::ACCOUNT, case.account);
                self.maps.set_settings(settings)?;
                let frames = self.frames(case, family);
                self.expect(case, family, &frames)
                    .with_context(|| format!("{} over {family:?}", case.title))?;
                let mut runs = Vec::with_capacity(TIMES);
                for _ in 0..TIMES {
                    runs.push(self.run(case.course, &frames, repeat)?);
                }
                let best = runs.iter().copied().fold(f64::INFINITY, f64::min);
                let median = median(runs).unwrap_or(f64::NAN);
                let floor = results
                    .iter()
                    .find(|result| result.title == FLOOR && result.family == family)
                    .map_or(median, |floor| floor.median);
                let above_floor = median - floor;
                results.push(CaseResult {
                    title: case.title,
                    family,
                    prefixes: self.prefixes.len() / 2,
                    best,
                    median,
                    above_floor,
                    reached: case.target.then_some(above_floor <= TARGET),
                });
            }
        }
        Ok(results)
    }

    /// The mean of a run over all frames, in nanoseconds.
    fn run(&mut self, course: Course, frames: &[Vec<u8>], repeat: u32) -> Result<f64> {
        let (program, came_by) = match course {
            Course::FromDevice(_) => (program::LAN_INGRESS, 0),
            Course::ToDevice => (program::UDP_REPLY, LO),
        };
        let mut sum = 0.0;
        for frame in frames {
            let outcome = self.programs.try_packet(&Trial {
                program,
                frame,
                interface: 0,
                came_by,
                mark: 0,
                repeat: repeat / frames.len() as u32,
            })?;
            sum += outcome.time.as_nanos() as f64;
        }
        Ok(sum / frames.len() as f64)
    }

    /// Does each frame go the way that the case says, and is it counted?
    fn expect(&mut self, case: &Case, family: Family, frames: &[Vec<u8>]) -> Result<()> {
        let count = |maps: &Maps| -> Result<[u64; 2]> {
            let passed = match case.course {
                Course::FromDevice(reason) => maps.counters()?[reason as usize].1.packets,
                Course::ToDevice => 0,
            };
            let device = family.device();
            let devices = account(maps)?.devices;
            let own = devices.iter().find(|(address, _)| *address == device);
            let counted = own.map_or(0, |(_, own)| match case.course {
                Course::FromDevice(_) => own.up.packets,
                Course::ToDevice => own.down.packets,
            });
            Ok([passed, counted])
        };
        let before = count(&self.maps)?;
        self.run(case.course, frames, frames.len() as u32)?;
        let after = count(&self.maps)?;
        let all = frames.len() as u64;
        let expected = [
            if let Course::FromDevice(_) = case.course {
                all
            } else {
                0
            },
            if case.account { all } else { 0 },
        ];
        let moved = [after[0] - before[0], after[1] - before[1]];
        ensure!(
            moved == expected,
            "of {all} packets {} passed as they should, and {} were counted for the device",
            moved[0],
            moved[1]
        );
        Ok(())
    }

    fn frames(&self, case: &Case, family: Family) -> Vec<Vec<u8>> {
        let of_family: Vec<&IpNet> = self
            .prefixes
            .iter()
            .filter(|prefix| Family::of(prefix.addr()) == family)
            .collect();
        let step = of_family.len() / DESTINATIONS;
        let destinations: Vec<IpAddr> = match case.to {
            To::Own => vec![family.gateway_lan()],
            To::Proxied => (1..=DESTINATIONS as u8).map(|n| family.far(n)).collect(),
            To::Bypassed => of_family
                .into_iter()
                .step_by(step)
                .take(DESTINATIONS)
                .map(IpNet::broadcast)
                .collect(),
        };
        destinations
            .into_iter()
            .map(|far| match case.course {
                Course::FromDevice(_) => frame(case.kind, family.device(), far),
                Course::ToDevice => frame(case.kind, far, family.device()),
            })
            .collect()
    }
}

/// A frame to `lo`, whose address is all zeros.
fn frame(kind: Kind, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    // Ports 40000 and 443 in each.
    const TCP: [u8; 20] = [
        0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0,
    ];
    let (protocol, payload) = match kind {
        Kind::Arp => (0, vec![0; 28]),
        Kind::TcpSyn => (6, TCP.to_vec()),
        Kind::TcpData => {
            let mut segment = TCP.to_vec();
            segment[13] = 0x10;
            segment.resize(1_460, 0);
            (6, segment)
        }
        Kind::Udp => {
            let mut datagram = vec![0x9c, 0x40, 0x01, 0xbb, 0, 72, 0, 0];
            datagram.resize(72, 0);
            (17, datagram)
        }
    };
    let length = payload.len() as u16;
    let mut frame = vec![0; 12];
    match (kind, source, destination) {
        (Kind::Arp, _, _) => frame.extend([0x08, 0x06]),
        (_, IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (_, IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => unreachable!("source and destination are of one family"),
    }
    frame.extend(payload);
    frame
}
