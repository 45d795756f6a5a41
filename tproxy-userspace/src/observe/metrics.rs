//! What can be counted and measured, in the text format that Prometheus reads (OpenMetrics 1.0).
//!
//! Nothing is kept for it: all numbers are read when they are asked for.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;
use tproxy_common::abi::{Counter, Effect, Reason};

use super::process::{self, Usage};
use crate::data::dns::DnsStats;
use crate::data::{Bytes, GroupStatus, OutboundStatus, Outcome, Stats, View};
use crate::policy::health::State;

/// What the text is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The word for what happens to a packet.
#[must_use]
pub fn effect_word(effect: Effect) -> &'static str {
    match effect {
        Effect::Pass => "pass",
        Effect::Steer => "steer",
        Effect::Drop => "drop",
    }
}

/// A counter of the kernel's programs, as people and programs are told of it.
#[derive(Clone, Debug, Serialize)]
pub struct CounterRow {
    /// Why.
    pub reason: &'static str,
    /// What happened to the packets.
    pub effect: &'static str,
    /// How many there were.
    pub packets: u64,
    /// Their bytes, with IP headers.
    pub bytes: u64,
    /// What the reason means.
    pub sentence: &'static str,
}

impl From<(Reason, Counter)> for CounterRow {
    fn from((reason, counter): (Reason, Counter)) -> Self {
        Self {
            reason: reason.word(),
            effect: effect_word(reason.effect()),
            packets: counter.packets,
            bytes: counter.bytes,
            sentence: reason.sentence(),
        }
    }
}

/// What came to the doors of the control API.
#[derive(Clone, Copy, Debug)]
pub struct Doors {
    /// Connections to the Unix socket that live.
    pub unix: usize,
    /// Connections by TCP that live.
    pub tcp: usize,
    /// What was refused, and why.
    pub refused: [(&'static str, u64); 4],
}

/// All numbers at one time.
#[derive(Debug)]
pub struct Scrape {
    stats: Stats,
    ended: Vec<(Outcome, u64)>,
    outbound_bytes: Vec<(Arc<str>, Bytes)>,
    outbounds: Vec<OutboundStatus>,
    groups: Vec<GroupStatus>,
    dns: Option<DnsStats>,
    counters: Vec<(Reason, Counter)>,
    uptime: Duration,
    usage: Usage,
    tasks: usize,
    doors: Doors,
}

impl Scrape {
    /// Reads them.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[must_use]
    pub fn take(
        view: &View,
        counters: Vec<(Reason, Counter)>,
        uptime: Duration,
        doors: Doors,
    ) -> Self {
        Self {
            stats: view.stats(),
            ended: view.ended(),
            outbound_bytes: view.outbound_bytes(),
            outbounds: view.outbounds(),
            groups: view.groups(),
            dns: view.dns_stats(),
            counters,
            uptime,
            usage: process::usage(),
            tasks: view.tasks(),
            doors,
        }
    }

    /// The text.
    ///
    /// # Errors
    /// When a metric is not written as the format wants it, which is an error of this code.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::with_capacity(32 * 1024);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut to = Writer(encoder);
        self.traffic(&mut to)?;
        self.drops(&mut to)?;
        self.kernel(&mut to)?;
        self.ways(&mut to)?;
        self.resolver(&mut to)?;
        self.own(&mut to)
    }
}

struct Writer<'e>(DescriptorEncoder<'e>);

impl Writer<'_> {
    /// Numbers that only grow; `_total` is put behind the name.
    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let kind = MetricType::Counter;
        let mut metric = self.0.encode_descriptor(name, help, unit, kind)?;
        rows.into_iter().try_for_each(|(labels, value)| {
            ConstCounter::new(value).encode(metric.encode_family(&labels)?)
        })
    }

    /// One such number.
    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let kind = MetricType::Counter;
        let metric = self.0.encode_descriptor(name, help, unit, kind)?;
        ConstCounter::new(value).encode(metric)
    }

    /// A number that goes up and down.
    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> fmt::Result {
        let kind = MetricType::Gauge;
        let metric = self.0.encode_descriptor(name, help, unit, kind)?;
        ConstGauge::new(value).encode(metric)
    }

    /// Numbers that go up and down.
    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        rows: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let kind = MetricType::Gauge;
        let mut metric = self.0.encode_descriptor(name, help, unit, kind)?;
        rows.into_iter().try_for_each(|(labels, value)| {
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)
        })
    }
}

impl Scrape {
    fn traffic(&self, to: &mut Writer<'_>) -> fmt::Result {
        let stats = &self.stats;
        let of = |protocol: &'static str| [("protocol", protocol)];
        to.gauges(
            "tproxy_flows",
            "TCP connections and UDP associations that live.",
            None,
            [
                (of("tcp"), stats.connections as f64),
                (of("udp"), stats.associations as f64),
            ],
        )?;
        to.counters(
            "tproxy_flows_opened",
            "TCP connections and UDP associations that ever began.",
            None,
            [
                (of("tcp"), stats.connections_total),
                (of("udp"), stats.associations_total),
            ],
        )?;
        let ended = self.ended.iter();
        to.counters(
            "tproxy_flows_ended",
            "TCP connections and UDP associations that have ended, by how.",
            None,
            ended.map(|(outcome, count)| ([("outcome", outcome.word())], *count)),
        )?;
        let direction = |direction: &'static str| [("direction", direction)];
        to.counters(
            "tproxy_relayed",
            "Bytes relayed: up from devices, down to them.",
            Some(&Unit::Bytes),
            [
                (direction("up"), stats.bytes_up),
                (direction("down"), stats.bytes_down),
            ],
        )?;
        let by_outbound = self.outbound_bytes.iter().flat_map(|(name, bytes)| {
            let labels = |direction: &str| {
                [
                    ("outbound", name.to_string()),
                    ("direction", direction.to_owned()),
                ]
            };
            [(labels("up"), bytes.up), (labels("down"), bytes.down)]
        });
        to.counters(
            "tproxy_outbound",
            "Bytes relayed by each outbound: up from devices, down to them.",
            Some(&Unit::Bytes),
            by_outbound,
        )?;
        to.gauge(
            "tproxy_udp_flows",
            "UDP flows whose way is remembered or still to be decided; 0 without rules.",
            None,
            stats.flows as f64,
        )?;
        let limits = &stats.limits;
        let what = |what: &'static str| [("what", what)];
        to.gauges(
            "tproxy_limit",
            "How many of each are allowed at once.",
            None,
            [
                (what("connections"), limits.connections as f64),
                (what("associations"), limits.associations as f64),
                (what("pipes"), limits.pipes as f64),
                (what("open_files"), limits.open_files as f64),
            ],
        )
    }

    fn drops(&self, to: &mut Writer<'_>) -> fmt::Result {
        let stats = &self.stats;
        let why = |why: &'static str| [("why", why)];
        to.counters(
            "tproxy_datagrams_dropped",
            "Datagrams that went nowhere: no room in a buffer or queue, refused by the kernel, malformed or nobody's, to port 0.",
            None,
            [
                (why("no_room"), stats.datagrams_blocked),
                (why("too_fast"), stats.datagrams_lost),
                (why("refused"), stats.datagrams_refused),
                (why("malformed"), stats.datagrams_dropped),
                (why("port_zero"), stats.port_zero),
            ],
        )?;
        let all = [
            (
                "tproxy_own_port",
                "Connections and datagrams to the proxy's own port, refused.",
                stats.own_port,
            ),
            (
                "tproxy_accept_failures",
                "Times that a connection could not be accepted for want of files or memory.",
                stats.accept_failed,
            ),
            (
                "tproxy_pipes_missing",
                "Times that bytes were copied because no pipe was to be had.",
                stats.pipe_missing,
            ),
            (
                "tproxy_udp_flows_evicted",
                "UDP flows that were forgotten to make room for others.",
                stats.flows_evicted,
            ),
            (
                "tproxy_names_missed",
                "QUIC flows that went on without a name.",
                stats.names_missed,
            ),
        ];
        let mut all = all.into_iter();
        all.try_for_each(|(name, help, value)| to.counter(name, help, None, value))
    }

    fn kernel(&self, to: &mut Writer<'_>) -> fmt::Result {
        let labels = |reason: Reason| {
            let effect = effect_word(reason.effect());
            [("reason", reason.word()), ("effect", effect)]
        };
        let all = || {
            self.counters
                .iter()
                .map(|(reason, count)| (labels(*reason), count))
        };
        to.counters(
            "tproxy_kernel_packets",
            "Packets that the kernel's programs decided about, by reason.",
            None,
            all().map(|(labels, count)| (labels, count.packets)),
        )?;
        to.counters(
            "tproxy_kernel",
            "Bytes of these packets.",
            Some(&Unit::Bytes),
            all().map(|(labels, count)| (labels, count.bytes)),
        )
    }

    fn ways(&self, to: &mut Writer<'_>) -> fmt::Result {
        let each = || {
            self.outbounds.iter().flat_map(|one| {
                let labels = |protocol: &str| {
                    [
                        ("outbound", one.name.clone()),
                        ("protocol", protocol.to_owned()),
                    ]
                };
                [(labels("tcp"), &one.tcp), (labels("udp"), &one.udp)]
            })
        };
        to.gauges(
            "tproxy_outbound_up",
            "Is an outbound of use? 1: it is, 0: it is down. There is none for what is not known.",
            None,
            each().filter_map(|(labels, health)| match health.state {
                State::Up => Some((labels, 1.0)),
                State::Down => Some((labels, 0.0)),
                State::Unknown | State::Unsupported => None,
            }),
        )?;
        to.gauges(
            "tproxy_outbound_delay",
            "How long the last check of an outbound took that was answered.",
            Some(&Unit::Seconds),
            each().filter_map(|(labels, health)| {
                let delay = health.delay_milliseconds?;
                Some((labels, delay as f64 / 1000.0))
            }),
        )?;
        let members = self.groups.iter().flat_map(|group| {
            let member = |protocol: &str, member: &Option<String>| {
                let labels = [
                    ("group", group.name.clone()),
                    ("protocol", protocol.to_owned()),
                    ("member", member.clone()?),
                ];
                Some((labels, 1.0))
            };
            [member("tcp", &group.tcp), member("udp", &group.udp)]
        });
        to.gauges(
            "tproxy_group_member",
            "1 for the member that a group takes now.",
            None,
            members.flatten(),
        )
    }

    fn resolver(&self, to: &mut Writer<'_>) -> fmt::Result {
        let Some(dns) = &self.dns else {
            return Ok(());
        };
        let group = |group: &'static str| [("group", group)];
        let all = [
            ("tproxy_dns_queries", "Questions of devices.", dns.queries),
            (
                "tproxy_dns_cache_hits",
                "Answered out of the cache.",
                dns.cache_hits,
            ),
            (
                "tproxy_dns_stale",
                "Answered with what was over its time.",
                dns.stale,
            ),
            (
                "tproxy_dns_coalesced",
                "Waited for the answer to an equal question.",
                dns.coalesced,
            ),
            (
                "tproxy_dns_failures",
                "Questions that no server answered.",
                dns.failures,
            ),
            (
                "tproxy_dns_server_failures",
                "Times that one server failed.",
                dns.upstream_failures,
            ),
            (
                "tproxy_dns_forged",
                "Answers that did not fit the question, ignored.",
                dns.forged,
            ),
            (
                "tproxy_dns_malformed",
                "Questions that were malformed.",
                dns.malformed,
            ),
            (
                "tproxy_dns_malformed_answers",
                "Answers that could not be read.",
                dns.malformed_answers,
            ),
            (
                "tproxy_dns_limited",
                "Questions refused because too many were under way.",
                dns.limited,
            ),
            (
                "tproxy_dns_truncated",
                "UDP answers that were cut off.",
                dns.truncated,
            ),
            (
                "tproxy_dns_evicted",
                "Answers that made room for others in the cache.",
                dns.evicted,
            ),
            (
                "tproxy_dns_events_dropped",
                "Announcements of addresses that nobody took in time.",
                dns.events_dropped,
            ),
        ];
        for (name, help, value) in all {
            to.counter(name, help, None, value)?;
        }
        to.counters(
            "tproxy_dns_asked",
            "Questions that were put to servers, directly or through the outbound.",
            None,
            [(group("direct"), dns.direct), (group("proxy"), dns.proxy)],
        )?;
        to.gauge(
            "tproxy_dns_cache_entries",
            "Answers in the cache.",
            None,
            dns.cached as f64,
        )?;
        to.gauge(
            "tproxy_dns_cache",
            "Memory that they take, about.",
            Some(&Unit::Bytes),
            dns.cached_bytes as f64,
        )
    }

    fn own(&self, to: &mut Writer<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        to.gauges(
            "tproxy_build_info",
            "The version, as a label.",
            None,
            [(version, 1.0)],
        )?;
        to.gauge(
            "tproxy_uptime",
            "For how long the proxy has run.",
            Some(&Unit::Seconds),
            self.uptime.as_secs_f64(),
        )?;
        to.gauge(
            "tproxy_tasks",
            "Tasks of the runtime that live.",
            None,
            self.tasks as f64,
        )?;
        let door = |door: &'static str| [("door", door)];
        to.gauges(
            "tproxy_api_connections",
            "Connections to the control API that live.",
            None,
            [
                (door("unix"), self.doors.unix as f64),
                (door("tcp"), self.doors.tcp as f64),
            ],
        )?;
        to.counters(
            "tproxy_api_refused",
            "Requests and connections that the control API refused, by what was wrong.",
            None,
            self.doors
                .refused
                .map(|(why, count)| ([("why", why)], count)),
        )?;
        let kind = MetricType::Counter;
        let (name, help) = ("process_cpu", "Time on a CPU, user and system.");
        let unit = Some(&Unit::Seconds);
        let metric = to.0.encode_descriptor(name, help, unit, kind)?;
        ConstCounter::new(self.usage.cpu.as_secs_f64()).encode(metric)?;
        to.gauge(
            "process_resident_memory",
            "Resident memory.",
            Some(&Unit::Bytes),
            self.usage.resident as f64,
        )?;
        to.gauge(
            "process_open_fds",
            "Open files.",
            None,
            self.usage.open_files as f64,
        )?;
        to.gauge(
            "process_max_fds",
            "The limit of open files.",
            None,
            self.stats.limits.open_files as f64,
        )
    }
}

#[cfg(test)]
mod tests;
