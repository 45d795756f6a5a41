//! `explain`: what would happen to such a packet, and why.

mod destination;
mod report;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use serde_json::Value;
use tproxy_common::abi::{Effect, Reason, Settings};
use tproxy_userspace::control::Netlink;
use tproxy_userspace::control::accounts::getent;
use tproxy_userspace::control::bpf::{Maps, Rehearsal};
use tproxy_userspace::control::explain::{Course, Explainer, Known, NoCourse, Sender};
use tproxy_userspace::control::frame::Made;
use tproxy_userspace::control::gateway;
use tproxy_userspace::control::links::Snapshot;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::control::way_out::WayOut;
use tproxy_userspace::data::Explained;
use tproxy_userspace::observe::socket::{Request, ask};
use tproxy_userspace::policy::rule::Protocol;

use self::destination::Host;
use self::report::{Bypassed, Local, LookedUp, Packet, Report};
use super::exempt::locked;
use super::{Cli, ExplainArgs, output, small_runtime};

pub use self::destination::{Destination, SentBy, name};

/// How long a proxy may take to say what its rules say.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same for a name: it asks several servers, some twice.
const LOOK_UP_PATIENCE: Duration = Duration::from_secs(20);

pub fn explain(args: &ExplainArgs) -> Result<ExitCode> {
    check_families(args);
    let place = Place::current()?;
    let mut gateway = Gateway::open(&place)?;
    let (addresses, looked_up) = match &args.destination.host {
        Host::Address(address) => (vec![*address], None),
        Host::Name(name) => {
            let found = look_up(&place, name)?;
            (found.addresses.clone(), Some(found))
        }
    };
    let name = match &args.destination.host {
        Host::Name(name) if args.name.is_none() => Some(name.clone()),
        _ => args.name.clone(),
    };
    let mut report = Report {
        destination: args.destination.text(),
        protocol: protocol(args),
        name,
        looked_up,
        packets: Vec::new(),
        left_out: Vec::new(),
    };
    for address in addresses {
        if is_of_other_family(args, address) {
            report
                .left_out
                .push(format!("{address}: the sender is of the other family"));
            continue;
        }
        match gateway.packet(args, &report, address) {
            Ok(packet) => report.packets.push(packet),
            // Of a name, the addresses that devices cannot use are no failure of the others.
            Err(error) if report.looked_up.is_some() && error.is::<NoCourse>() => {
                report.left_out.push(format!("{address}: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    if report.packets.is_empty() {
        bail!(
            "nothing can be said of {}: {}",
            report.destination,
            report.left_out.join("; ")
        );
    }
    if args.read.json {
        output::json(&report)?;
    } else {
        output::text_out(&report::text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn protocol(args: &ExplainArgs) -> Protocol {
    if args.udp {
        Protocol::Udp
    } else {
        Protocol::Tcp
    }
}

/// Ends with a word on usage if nobody could send such a packet.
fn check_families(args: &ExplainArgs) {
    if let Host::Address(address) = args.destination.host
        && is_of_other_family(args, address)
    {
        let text =
            format!("{address} cannot be reached from an address of the other family (--from)");
        Cli::command()
            .error(ErrorKind::ArgumentConflict, text)
            .exit();
    }
}

fn is_of_other_family(args: &ExplainArgs, destination: IpAddr) -> bool {
    matches!(args.from, Some(SentBy::Address(source)) if source.is_ipv4() != destination.is_ipv4())
}

/// A name's addresses, as a device would get them.
fn look_up(place: &Place, name: &str) -> Result<LookedUp> {
    let failed = || format!("looking up {name} failed");
    if place.proxy_pid().is_some() {
        let request = Request::LookUp {
            name: name.to_owned(),
        };
        let answer = ask(&place.control_socket(), &request, LOOK_UP_PATIENCE);
        let answer = answer.with_context(failed)?;
        if let Some(error) = answer["error"].as_str() {
            bail!(
                "{}: {error}; `[dns]` says which servers are asked",
                failed()
            );
        }
        if let Value::Array(_) = answer["addresses"] {
            let addresses: Vec<IpAddr> = serde_json::from_value(answer["addresses"].clone())?;
            return LookedUp::new(name, "proxy", addresses);
        }
    }
    let found = system_addresses(name);
    let found = found.with_context(|| format!("{} (the system's resolver was asked)", failed()))?;
    LookedUp::new(name, "system", found)
}

/// A name's addresses, as the gateway's programs get them.
fn system_addresses(name: &str) -> Result<Vec<IpAddr>> {
    // There the C library dies of loading what /etc/nsswitch.conf names.
    if !cfg!(all(target_env = "gnu", target_feature = "crt-static")) {
        let found = (name, 0).to_socket_addrs()?;
        return Ok(found.map(|address| address.ip()).collect());
    }
    let text = getent("ahosts", name)?.context("it has no address, or there is no `getent`")?;
    let mut found: Vec<IpAddr> = Vec::new();
    let words = text.lines().filter_map(|line| line.split(' ').next());
    for address in words.filter_map(|word| word.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

/// What is attached here.
struct Gateway<'p> {
    place: &'p Place,
    maps: Maps,
    known: Known,
    settings: Settings,
    explainer: Explainer,
    snapshot: Snapshot,
    /// Is anybody exempt?
    exempt: bool,
}

impl<'p> Gateway<'p> {
    fn open(place: &'p Place) -> Result<Self> {
        let (maps, lock) = locked(place)?;
        let rehearsal = Rehearsal::load(place.pins())?;
        drop(lock);
        let snapshot =
            small_runtime()?.block_on(async { Snapshot::take(&Netlink::open()?).await })?;
        let settings = maps.settings()?;
        Ok(Self {
            place,
            known: Known::read(&maps, gateway::links(&maps, &snapshot)?)?,
            settings,
            explainer: Explainer::new(rehearsal, settings),
            snapshot,
            exempt: !maps.exempt()?.is_empty() || maps.exempt_marks()?.count > 0,
            maps,
        })
    }

    fn packet(
        &mut self,
        args: &ExplainArgs,
        report: &Report,
        destination: IpAddr,
    ) -> Result<Packet> {
        let sender = match args.from {
            None => Sender::Anyone,
            Some(SentBy::Gateway) => Sender::Gateway,
            Some(SentBy::Address(address)) => Sender::Address(address),
        };
        let way = small_runtime()?
            .block_on(async { WayOut::to(&Netlink::open()?, destination).await })?;
        let course = self
            .known
            .course(sender, destination, args.on.as_deref(), way)?;
        let destination = SocketAddr::new(destination, args.destination.port);
        let mut packet = Packet::new(destination, self.settings.has(Settings::DOWN_DROPS));
        packet.proxy.pid = self.place.proxy_pid();
        let (via, source) = match course {
            Course::Seen { via, source } => (via, source),
            Course::Unseen(way) => {
                packet.own = true;
                packet.unseen(way.map(|way| (self.link(way.link), way.source)));
                return Ok(packet);
            }
        };
        let made = Made {
            protocol: report.protocol,
            source: SocketAddr::new(source, self.explainer.source_port()),
            destination,
            fragment: false,
        };
        let fate = self.explainer.fate(&self.maps, &self.known, via, made)?;
        packet.own = via.own;
        packet.link = Some(self.link(via.link));
        packet.source = Some(source);
        packet.admitted = fate.admitted;
        packet.local = fate.local.map(Local::from);
        packet.bypass = fate.bypass.as_ref().map(Bypassed::from);
        packet.judge(fate.reason);
        packet.outdated = fate.outdated;
        packet.may_be_exempt = via.own && self.exempt;
        if fate.reason.map(Reason::effect) == Some(Effect::Steer) {
            let request = Request::Explain {
                protocol: made.protocol,
                source: made.source,
                destination,
                name: report.name.clone(),
            };
            match self.rules(&request) {
                Ok(explained) => packet.proxy.says = Some(explained),
                Err(error) => packet.proxy.error = Some(output::one_message(&error)),
            }
        }
        Ok(packet)
    }

    fn rules(&self, request: &Request) -> Result<Explained> {
        let answer = ask(&self.place.control_socket(), request, PATIENCE)?;
        if let Some(error) = answer["error"].as_str() {
            bail!("the running proxy is of another version: {error}");
        }
        serde_json::from_value(answer).context("the running proxy is of another version")
    }

    fn link(&self, index: u32) -> String {
        let link = self.snapshot.link(index);
        link.map_or_else(|| format!("link {index}"), |link| link.name.clone())
    }
}
