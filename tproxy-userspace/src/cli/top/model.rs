//! From samples to rates. Pure: a sample comes in with the times at which its parts were taken.
//!
//! A rate is the difference between two samples divided by the time between them. It is known only where both come from the
//! same process (or, for the kernel, from counters that went on): else there is none, not a wrong one.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Instant;

use tproxy_common::abi::{Counter, Effect, Reason};
use tproxy_userspace::data::{Bytes, FlowStatus};

use super::sample::{Answer, Kernel, Sample, Status, Whole};

/// Bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// From devices.
    pub up: f64,
    /// To devices.
    pub down: f64,
}

/// A flow with its rate.
#[derive(Clone, Debug)]
pub struct Flow {
    /// What the proxy says of it.
    pub status: FlowStatus,
    /// None: it was there already when this began to look.
    pub rate: Option<Rate>,
}

impl Flow {
    /// Who it is of.
    pub fn device(&self) -> IpAddr {
        self.status.client.ip().to_canonical()
    }
}

/// Bytes so far, and their rate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Since the start of the proxy.
    pub bytes: Bytes,
    /// Now.
    pub rate: Option<Rate>,
}

/// A reason with its rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// Why packets passed, were steered or dropped.
    pub reason: Reason,
    /// How many did.
    pub counter: Counter,
    /// Packets and bytes a second.
    pub rate: Option<(f64, f64)>,
}

/// Whether there is a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// None runs.
    None,
    /// This process does not answer, for this reason.
    Silent(u32, String),
    /// It answers.
    Here,
}

/// What is known now. What the proxy said stays when it goes.
#[derive(Debug, Default)]
pub struct Model {
    /// Is there a proxy?
    pub presence: Presence,
    /// Its state when it answered last. None: it never did.
    pub status: Option<Status>,
    /// All bytes of the proxy a second.
    pub proxied: Option<Rate>,
    /// The flows, the oldest first.
    pub flows: Vec<Flow>,
    /// By device, those included that have no flow any more.
    pub devices: HashMap<IpAddr, Sum>,
    /// By outbound.
    pub outbounds: HashMap<String, Sum>,
    /// All reasons, in their order; none before the first sample, or if nothing is attached.
    pub counters: Vec<Counted>,
    /// With no proxy: is new traffic dropped? None: nothing is attached.
    pub down_drops: Option<bool>,
    /// Why the kernel's counters cannot be read.
    pub kernel_error: Option<String>,
    kernel: Option<Kernel>,
    before: Option<Before>,
}

/// What the next answer is compared with, besides the flows and sums that are shown.
#[derive(Clone, Copy, Debug)]
struct Before {
    pid: u32,
    uptime_seconds: u64,
    bytes: Bytes,
    status_at: Instant,
    flows_at: Instant,
    sums_at: Instant,
}

impl Model {
    /// A sample has come.
    pub fn take(&mut self, sample: Sample) {
        let process = self.status.as_ref().map(|status| status.pid);
        match sample.proxy {
            Answer::None => {
                self.presence = Presence::None;
                self.before = None;
            }
            Answer::Silent { pid, error } => self.presence = Presence::Silent(pid, error),
            Answer::Whole(whole) => {
                self.presence = Presence::Here;
                // Counters of a process that was started anew may be new as well, and look as if they went on.
                if process.is_some_and(|process| process != whole.status.pid) {
                    self.kernel = None;
                }
                self.answered(*whole);
            }
        }
        match sample.kernel {
            Ok(kernel) => {
                self.kernel_error = None;
                self.count(kernel);
            }
            Err(error) => self.kernel_error = Some(error),
        }
    }

    /// Is what is shown of the proxy from before it went?
    pub fn is_stale(&self) -> bool {
        self.presence != Presence::Here
    }

    /// What devices (and the gateway) sent that the kernel forwarded by itself, in bytes a second. What comes back to
    /// them is seen by no program and counted nowhere.
    pub fn direct(&self) -> Option<f64> {
        let forwarded = self.counters.iter().filter(|one| is_forwarded(one.reason));
        forwarded
            .map(|one| one.rate.map(|(_, bytes)| bytes))
            .reduce(|sum, rate| Some(sum? + rate?))?
    }

    fn answered(&mut self, whole: Whole) {
        let Whole {
            status,
            status_at,
            mut flows,
            flows_at,
            sums,
            sums_at,
        } = whole;
        let now = Before {
            pid: status.pid,
            uptime_seconds: status.uptime_seconds,
            bytes: Bytes {
                up: status.traffic.bytes_up,
                down: status.traffic.bytes_down,
            },
            status_at,
            flows_at,
            sums_at,
        };
        let before = self
            .before
            .filter(|before| before.pid == now.pid && before.uptime_seconds <= now.uptime_seconds);
        self.proxied =
            before.and_then(|before| rate(before.bytes, now.bytes, before.status_at, status_at));
        flows.sort_unstable_by_key(|flow| flow.id);
        let known = std::mem::take(&mut self.flows);
        let with_rate = |flow: FlowStatus| Flow {
            rate: before.and_then(|before| {
                let then = known.binary_search_by_key(&flow.id, |known| known.status.id);
                // Numbers are not used again and all flows were told, so one that was not there is new.
                let then = then.map_or_else(|_| Bytes::default(), |at| known[at].status.bytes);
                rate(then, flow.bytes, before.flows_at, flows_at)
            }),
            status: flow,
        };
        self.flows = flows.into_iter().map(with_rate).collect();
        let sums_before = before.map(|before| before.sums_at);
        self.devices = with_rates(sums.devices, &self.devices, sums_before, sums_at);
        self.outbounds = with_rates(sums.outbounds, &self.outbounds, sums_before, sums_at);
        self.before = Some(now);
        self.status = Some(status);
    }

    fn count(&mut self, kernel: Option<Kernel>) {
        let Some(kernel) = kernel else {
            self.counters.clear();
            self.down_drops = None;
            self.kernel = None;
            return;
        };
        self.down_drops = Some(kernel.down_drops);
        // Maps that were made anew began at 0: one that went back is enough to tell.
        let before = self
            .kernel
            .take()
            .filter(|before| goes_on(&before.counters, &kernel.counters));
        self.counters = kernel
            .counters
            .iter()
            .enumerate()
            .map(|(index, (reason, counter))| Counted {
                reason: *reason,
                counter: *counter,
                rate: before.as_ref().and_then(|before| {
                    let then = before.counters[index].1;
                    let seconds = seconds(before.at, kernel.at)?;
                    Some((
                        (counter.packets - then.packets) as f64 / seconds,
                        (counter.bytes - then.bytes) as f64 / seconds,
                    ))
                }),
            })
            .collect();
        self.kernel = Some(kernel);
    }
}

/// The time between, if it is enough to divide by.
fn seconds(then: Instant, now: Instant) -> Option<f64> {
    let seconds = now.checked_duration_since(then)?.as_secs_f64();
    (seconds > 0.001).then_some(seconds)
}

/// None also if something went backwards, which bytes do not.
fn rate(then: Bytes, now: Bytes, then_at: Instant, now_at: Instant) -> Option<Rate> {
    let seconds = seconds(then_at, now_at)?;
    Some(Rate {
        up: now.up.checked_sub(then.up)? as f64 / seconds,
        down: now.down.checked_sub(then.down)? as f64 / seconds,
    })
}

/// What is new counts from 0. Without a time of the sample before there are no rates.
fn with_rates<K: Eq + Hash>(
    now: Vec<(K, Bytes)>,
    then: &HashMap<K, Sum>,
    then_at: Option<Instant>,
    now_at: Instant,
) -> HashMap<K, Sum> {
    let sum = |(key, bytes): (K, Bytes)| {
        let rate = then_at.and_then(|then_at| {
            let then = then.get(&key).map(|sum| sum.bytes).unwrap_or_default();
            rate(then, bytes, then_at, now_at)
        });
        (key, Sum { bytes, rate })
    };
    now.into_iter().map(sum).collect()
}

/// Can these be the same counters, later?
fn goes_on(then: &[(Reason, Counter)], now: &[(Reason, Counter)]) -> bool {
    then.len() == now.len()
        && then.iter().zip(now).all(|((reason, then), (same, now))| {
            reason == same && then.packets <= now.packets && then.bytes <= now.bytes
        })
}

/// Does what passes for this reason go on to another machine by the kernel alone? What the gateway itself sends past the
/// proxy (the proxy's own packets among it) does not count, nor what ends here or on the link.
fn is_forwarded(reason: Reason) -> bool {
    reason.effect() == Effect::Pass
        && matches!(
            reason,
            Reason::OtherProtocol
                | Reason::OwnSubnet
                | Reason::PrivateRange
                | Reason::Bypassed
                | Reason::ForeignSource
                | Reason::DirectConnection
                | Reason::DownPassed
                | Reason::DirectFragment
        )
}
