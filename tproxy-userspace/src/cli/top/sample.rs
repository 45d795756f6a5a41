//! What is asked in each interval, of the kernel and of the proxy.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Deserialize;
use tproxy_common::abi::{Counter, Reason, Settings};
use tproxy_userspace::control::bpf::Maps;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::data::{Bytes, FlowStatus};
use tproxy_userspace::observe::socket::Request;

use super::super::asking::asked_as;
use super::super::output;
use super::super::status::PATIENCE;

/// What is known at one moment.
#[derive(Debug)]
pub struct Sample {
    /// What the kernel counts. None: nothing is attached here.
    pub kernel: Result<Option<Kernel>, String>,
    /// What the proxy says.
    pub proxy: Answer,
}

/// What the kernel's maps hold.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// When they were read.
    pub at: Instant,
    /// In the order of the reasons.
    pub counters: Vec<(Reason, Counter)>,
    /// With no proxy: is new traffic dropped?
    pub down_drops: bool,
}

/// What the proxy says.
#[derive(Debug)]
pub enum Answer {
    /// None runs.
    None,
    /// This process runs, and does not answer, or not as it should.
    Silent { pid: u32, error: String },
    /// All that was asked.
    Whole(Box<Whole>),
}

/// All answers of one process.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The state of the process.
    pub status: Status,
    /// When that came.
    pub status_at: Instant,
    /// The flows that live.
    pub flows: Vec<FlowStatus>,
    /// When they came.
    pub flows_at: Instant,
    /// Who sent and got how much.
    pub sums: Sums,
    /// When that came.
    pub sums_at: Instant,
}

/// What is used of the answer to [`Request::Status`]. What an older process does not say has its default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The process that answered.
    pub pid: u32,
    /// How long it has run.
    pub uptime_seconds: u64,
    /// The outbounds.
    pub outbounds: Vec<Outbound>,
    /// The groups.
    pub groups: Vec<Group>,
    /// For how long the configuration holds, if it is on trial.
    pub trial_seconds: Option<u64>,
    /// Processes that were taken over from, with what lives there.
    pub draining: Vec<Draining>,
    /// How much passed, and how many live.
    pub traffic: Traffic,
}

/// An outbound.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Outbound {
    /// Its name.
    pub name: String,
    /// How it carries TCP.
    pub tcp: Health,
    /// How it carries UDP.
    pub udp: Health,
}

/// What is known of an outbound and one protocol.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Its word.
    pub state: String,
    /// For how long it is so.
    pub since_seconds: u64,
    /// What the last check took.
    pub delay_milliseconds: Option<u64>,
    /// What went wrong last.
    pub error: Option<String>,
}

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// How it chooses.
    pub kind: String,
    /// The member that TCP takes now. None: it depends on the connection.
    pub tcp: Option<String>,
    /// The same of UDP.
    pub udp: Option<String>,
}

/// A process that was taken over from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Draining {
    /// Its number.
    pub pid: u32,
    /// TCP connections that live there.
    pub connections: u64,
    /// UDP associations that live there.
    pub associations: u64,
}

/// What passed, and what lives.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// TCP connections that live.
    pub connections: u64,
    /// UDP associations that live.
    pub associations: u64,
    /// Bytes from devices.
    pub bytes_up: u64,
    /// Bytes to devices.
    pub bytes_down: u64,
    /// How many of each may live at once.
    pub limits: Limits,
}

/// How many may live at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// TCP connections.
    pub connections: u64,
    /// UDP associations.
    pub associations: u64,
}

/// What is used of the answer to [`Request::Account`]: the networks are passed over unread.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Sums {
    /// By device, since the start of the proxy.
    pub devices: Vec<(IpAddr, Bytes)>,
    /// By outbound, since then.
    pub outbounds: Vec<(String, Bytes)>,
}

/// The answer to [`Request::Flows`].
#[derive(Deserialize)]
struct Flows {
    flows: Vec<FlowStatus>,
}

impl Sample {
    /// Asks for everything.
    pub fn take(place: &Place) -> Self {
        Self {
            kernel: kernel(place).map_err(|error| output::one_message(&error)),
            proxy: match place.proxy_pid() {
                None => Answer::None,
                Some(pid) => match whole(place) {
                    Ok(whole) => Answer::Whole(Box::new(whole)),
                    // It may have ended meanwhile.
                    Err(_) if place.proxy_pid().is_none() => Answer::None,
                    Err(error) => Answer::Silent {
                        pid,
                        error: output::one_message(&error),
                    },
                },
            },
        }
    }
}

/// The maps are opened anew each time: those of a gateway that was detached count no more.
fn kernel(place: &Place) -> Result<Option<Kernel>> {
    let Some(maps) = Maps::open(place.pins())? else {
        return Ok(None);
    };
    let at = Instant::now();
    Ok(Some(Kernel {
        at,
        counters: maps.counters()?,
        down_drops: maps.settings()?.has(Settings::DOWN_DROPS),
    }))
}

fn whole(place: &Place) -> Result<Whole> {
    let status: Status = ask(place, "asking for the status", &Request::Status)?;
    let status_at = Instant::now();
    ensure!(
        status.pid != 0,
        "the proxy does not say which process it is"
    );
    let flows: Flows = ask(place, "asking for the flows", &Request::Flows)?;
    let flows_at = Instant::now();
    let sums: Sums = ask(place, "asking for the account", &Request::Account)?;
    Ok(Whole {
        status,
        status_at,
        flows: flows.flows,
        flows_at,
        sums,
        sums_at: Instant::now(),
    })
}

fn ask<T: for<'de> Deserialize<'de>>(place: &Place, doing: &str, request: &Request) -> Result<T> {
    asked_as(place, doing, request, PATIENCE)
}

/// Ends a flow; what came of it, for a person.
pub fn kill(place: &Place, flow: u64) -> String {
    #[derive(Deserialize)]
    struct Killed {
        killed: Vec<u64>,
    }
    let request = Request::Kill { flows: vec![flow] };
    let doing = format!("ending flow {flow}");
    match asked_as::<Killed>(place, &doing, &request, PATIENCE) {
        Ok(answer) if answer.killed.contains(&flow) => format!("flow {flow} is ended"),
        Ok(_) => format!("flow {flow} had ended before"),
        Err(error) => output::one_message(&error),
    }
}
