//! Counters, and a snapshot of them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use super::limits::Budget;
use super::record::{Outcome, Protocol};
use crate::net::mmsg::SendReport;

/// Live counters, written by all tasks.
#[derive(Debug)]
pub struct Counters {
    now: [AtomicU64; 2],
    total: [AtomicU64; 2],
    ended: [AtomicU64; Outcome::ALL.len()],
    /// Bytes from devices to the upstream side, TCP and UDP.
    pub up: AtomicU64,
    /// Bytes from the upstream side to devices, TCP and UDP.
    pub down: AtomicU64,
    /// Accepting failed because this machine had no file or memory left.
    pub accept_failed: AtomicU64,
    /// Bytes went through a buffer of this process because no pipe was to be had.
    pub pipe_missing: AtomicU64,
    /// UDP flows whose way is remembered or still to be decided. Those of the time without rules are not among them.
    pub flows: AtomicU64,
    /// Flows that were forgotten to make room for others.
    pub flows_evicted: AtomicU64,
    /// QUIC flows that went on without a name: it did not come in time, or there was no room to wait for it.
    pub names_missed: AtomicU64,
    /// Datagrams to port 0.
    pub port_zero: AtomicU64,
    /// Datagrams to the proxy's own port.
    pub own_port_datagrams: AtomicU64,
    /// Datagrams that a full send buffer or queue had no room for.
    pub datagrams_blocked: AtomicU64,
    /// Datagrams that the kernel refused to send (too large, no route).
    pub datagrams_refused: AtomicU64,
    /// Datagrams from devices that the receivers' buffers had no room for.
    pub datagrams_lost: AtomicU64,
    /// Datagrams that were cut off, malformed, fragments of SOCKS5 or without an association.
    pub datagrams_dropped: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            now: Default::default(),
            total: Default::default(),
            ended: [const { AtomicU64::new(0) }; Outcome::ALL.len()],
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            accept_failed: AtomicU64::new(0),
            pipe_missing: AtomicU64::new(0),
            flows: AtomicU64::new(0),
            flows_evicted: AtomicU64::new(0),
            names_missed: AtomicU64::new(0),
            port_zero: AtomicU64::new(0),
            own_port_datagrams: AtomicU64::new(0),
            datagrams_blocked: AtomicU64::new(0),
            datagrams_refused: AtomicU64::new(0),
            datagrams_lost: AtomicU64::new(0),
            datagrams_dropped: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// How many live.
    #[must_use]
    pub fn now(&self, protocol: Protocol) -> &AtomicU64 {
        &self.now[protocol as usize]
    }

    /// How many there ever were.
    #[must_use]
    pub fn total(&self, protocol: Protocol) -> &AtomicU64 {
        &self.total[protocol as usize]
    }

    /// How many ended so.
    #[must_use]
    pub fn ended(&self, outcome: Outcome) -> &AtomicU64 {
        &self.ended[outcome as usize]
    }

    /// Counts what was not sent.
    pub fn count_sent(&self, report: &SendReport) {
        if report.blocked + report.refused > 0 {
            self.datagrams_blocked
                .fetch_add(report.blocked as u64, Relaxed);
            self.datagrams_refused
                .fetch_add(report.refused as u64, Relaxed);
        }
    }

    /// How many connections and associations ended in each way, those that never occurred included.
    #[must_use]
    pub fn ended_by_outcome(&self) -> Vec<(Outcome, u64)> {
        let count = |outcome: &Outcome| (*outcome, self.ended(*outcome).load(Relaxed));
        Outcome::ALL.iter().map(count).collect()
    }

    /// A snapshot.
    #[must_use]
    pub fn snapshot(&self, budget: Budget) -> Stats {
        let ended = |outcome: Outcome| self.ended(outcome).load(Relaxed);
        Stats {
            connections: self.now(Protocol::Tcp).load(Relaxed),
            connections_total: self.total(Protocol::Tcp).load(Relaxed),
            associations: self.now(Protocol::Udp).load(Relaxed),
            associations_total: self.total(Protocol::Udp).load(Relaxed),
            bytes_up: self.up.load(Relaxed),
            bytes_down: self.down.load(Relaxed),
            own_port: ended(Outcome::OwnPort) + self.own_port_datagrams.load(Relaxed),
            limit_reached: ended(Outcome::LimitReached),
            evicted: ended(Outcome::Evicted),
            blocked: ended(Outcome::Blocked),
            accept_failed: self.accept_failed.load(Relaxed),
            pipe_missing: self.pipe_missing.load(Relaxed),
            flows: self.flows.load(Relaxed),
            flows_evicted: self.flows_evicted.load(Relaxed),
            names_missed: self.names_missed.load(Relaxed),
            port_zero: self.port_zero.load(Relaxed),
            datagrams_blocked: self.datagrams_blocked.load(Relaxed),
            datagrams_refused: self.datagrams_refused.load(Relaxed),
            datagrams_lost: self.datagrams_lost.load(Relaxed),
            datagrams_dropped: self.datagrams_dropped.load(Relaxed),
            failures: Outcome::ALL
                .iter()
                .filter(|outcome| outcome.is_failure() && ended(**outcome) > 0)
                .map(|outcome| (outcome.word(), ended(*outcome)))
                .collect(),
            limits: budget,
        }
    }
}

/// What the proxy did so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// TCP connections that live.
    pub connections: u64,
    /// TCP connections that ever were accepted.
    pub connections_total: u64,
    /// UDP associations that live.
    pub associations: u64,
    /// UDP associations that ever were made.
    pub associations_total: u64,
    /// Bytes from devices to the upstream side.
    pub bytes_up: u64,
    /// Bytes from the upstream side to devices.
    pub bytes_down: u64,
    /// Connections and datagrams to the proxy's own port, refused.
    pub own_port: u64,
    /// Connections refused because the limit was reached.
    pub limit_reached: u64,
    /// Associations that made room for others.
    pub evicted: u64,
    /// Connections and associations that an outbound block:// ended.
    pub blocked: u64,
    /// Times that accepting failed for want of files or memory.
    pub accept_failed: u64,
    /// Times that bytes were copied because no pipe was to be had.
    pub pipe_missing: u64,
    /// UDP flows whose way is remembered or still to be decided. 0 without rules.
    pub flows: u64,
    /// Flows that were forgotten to make room for others.
    pub flows_evicted: u64,
    /// QUIC flows that went on without a name: it did not come in time, or there was no room to wait for it.
    pub names_missed: u64,
    /// Datagrams to port 0, dropped.
    pub port_zero: u64,
    /// Datagrams that a full buffer or queue had no room for.
    pub datagrams_blocked: u64,
    /// Datagrams that the kernel refused to send.
    pub datagrams_refused: u64,
    /// Datagrams from devices that came faster than they could be relayed. The socket counts them: those of a process that
    /// was taken over from are among them.
    pub datagrams_lost: u64,
    /// Datagrams dropped because they were malformed or belonged to nobody.
    pub datagrams_dropped: u64,
    /// How many connections and associations failed, by outcome.
    pub failures: BTreeMap<&'static str, u64>,
    /// How many of each are allowed at once.
    pub limits: Budget,
}
