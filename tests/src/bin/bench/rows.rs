//! The table of rows: what is measured, and what was promised.

use anyhow::Result;
use lab::Family;

use crate::{
    load::{
        self,
        connections::{self, BYTE, REQUEST},
        dns::{self, Names},
        idle, tcp, udp,
    },
    options::Options,
    outbounds::Protocol,
    stage::Stage,
    ways::{BYPASSED, Client, OWN_BYPASSED, OWN_PROXIED, PROXIED, RESOLVER, RULES, Subject, Way},
};

/// One kind of figure.
#[derive(Debug)]
pub struct Metric {
    /// Its name in the JSON.
    pub name: &'static str,
    /// How it is shown.
    pub title: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// Is it shown as a ratio to the way that the row compares with, too?
    pub compared: bool,
}

const fn metric(name: &'static str, title: &'static str, digits: usize, compared: bool) -> Metric {
    Metric {
        name,
        title,
        digits,
        compared,
    }
}

/// What a server or client received.
pub static GBIT: Metric = metric("gbit_per_second", "Gbit/s", 2, true);
/// User and system time of the relaying process.
pub static CPU: Metric = metric("cpu_seconds_per_gib", "CPU s/GiB", 3, false);
/// User and system time of the relaying process, for each exchange or datagram that arrived.
pub static CPU_EACH: Metric = metric("cpu_us_each", "CPU µs each", 2, false);
/// How often a thread of the relaying process went to sleep, for each of them.
pub static SWITCHES: Metric = metric("switches_each", "switches each", 2, false);
/// User and system time of the resolver.
pub static CPU_QUESTIONS: Metric =
    metric("cpu_seconds_per_100k_questions", "CPU s/100,000", 2, true);
/// Completed exchanges.
pub static RATE: Metric = metric("per_second", "per second", 0, true);
/// What the sender brought out: less than it should is the machine's fault, not the way's.
pub static SENT: Metric = metric("sent_per_second", "sent per second", 0, false);
/// Half of them took no longer.
pub static P50: Metric = metric("p50_us", "p50 µs", 1, false);
/// Of a hundred one took longer.
pub static P99: Metric = metric("p99_us", "p99 µs", 1, false);
/// What did not arrive or was refused, of all that was tried.
pub static LOST: Metric = metric("lost_percent", "lost %", 2, false);
/// How many idle connections came about.
pub static HELD: Metric = metric("connections_held", "held", 0, false);
/// VmRSS of the relaying process before the first connection.
pub static REST: Metric = metric("mib_at_rest", "MiB, none open", 1, false);
/// VmRSS with all connections open.
pub static LOADED: Metric = metric("mib_with_connections", "MiB, all open", 1, false);
/// What each of them takes.
pub static KIB_EACH: Metric = metric("kib_per_connection", "KiB each", 2, false);
/// Open files that each connection costs.
pub static FILES: Metric = metric("files_per_connection", "files each", 2, false);

/// Figures of one run.
pub type Readings = Vec<(&'static Metric, f64)>;

/// What was promised of one way.
#[derive(Debug)]
pub struct Target {
    /// Of which way.
    pub way: &'static str,
    /// Of which figure.
    pub metric: &'static Metric,
    /// How good.
    pub bound: Bound,
}

/// How good.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At least this share of the way that the row compares with.
    Ratio(f64),
    /// At most this figure.
    Most(f64),
    /// At most this much above the way that the row compares with, in the same round.
    Added(f64),
    /// At least as much as this other way.
    NotBelow(&'static str),
    /// At most as much as this other way.
    NotAbove(&'static str),
}

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// iperf3 with this many streams, from the device, or to it.
    Tcp { streams: u32, to_device: bool },
    /// As [`Work::Tcp`] with one stream, by a server of this protocol.
    Outbound { by: Protocol, to_device: bool },
    /// Connect, one byte, one byte back, close; this many at a time.
    Connections { at_once: usize },
    /// 64-byte datagrams and their echoes, this many in flight.
    RoundTrips { in_flight: usize },
    /// 1,200-byte datagrams from the device, this many a second or as many as it can send.
    OneWay { rate: Option<u32> },
    /// As [`Work::Connections`], with an HTTP request instead of the one byte.
    Requests { at_once: usize },
    /// This many connections that do nothing.
    Idle { connections: usize },
    /// DNS questions, this many in flight.
    Questions { names: Names, in_flight: u16 },
}

/// One row.
#[derive(Debug)]
pub struct Row {
    /// Its name for `--only` and in the JSON.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Whose traffic it is.
    pub client: Client,
    /// Over which family.
    pub family: Family,
    /// What a run does.
    pub work: Work,
    /// Does each run need a lab that nothing has run in yet?
    pub fresh: bool,
    /// What was promised.
    pub targets: &'static [Target],
}

impl Row {
    /// What it is about.
    pub const fn subject(&self) -> Subject {
        match self.work {
            Work::Requests { .. } => Subject::Rules,
            Work::Questions { .. } => Subject::Dns,
            Work::Outbound { by, .. } => Subject::Outbound(by),
            _ => Subject::Forwarding,
        }
    }

    /// Is it measured for this way?
    pub fn concerns(&self, way: &Way) -> bool {
        let of_relays = matches!(self.work, Work::Idle { .. });
        let of_udp = matches!(self.work, Work::RoundTrips { .. } | Work::OneWay { .. });
        way.subjects.contains(&self.subject())
            && way.clients.contains(&self.client)
            && way.families.contains(&self.family)
            && (way.relays || !of_relays)
            && (way.udp || !of_udp)
    }

    /// One run.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn measure(&self, stage: &Stage, options: &Options) -> Result<Readings> {
        let time = options.time();
        let client = self.client.of(&stage.lab);
        match self.work {
            Work::Tcp { streams, to_device } => tcp::run(
                stage,
                client,
                self.family,
                streams,
                to_device,
                options.seconds(),
            ),
            Work::Outbound { to_device, .. } => {
                tcp::run(stage, client, self.family, 1, to_device, options.seconds())
            }
            Work::Connections { at_once } => load::relayed(stage, || {
                connections::run(stage, client, self.family, at_once, BYTE, time)
            }),
            Work::Requests { at_once } => {
                connections::run(stage, client, self.family, at_once, REQUEST, time)
                    .map(load::Exchanges::readings)
            }
            Work::RoundTrips { in_flight } => load::relayed(stage, || {
                udp::round_trips(stage, client, self.family, in_flight, time)
            }),
            Work::OneWay { rate } => udp::one_way(stage, client, self.family, rate, time),
            Work::Idle { connections } => idle::run(stage, client, self.family, connections),
            Work::Questions { names, in_flight } => {
                dns::run(stage, client, self.family, names, in_flight, time)
            }
        }
    }
}

static ONE_STREAM: [Target; 3] = streams(0.70);
static MANY_STREAMS: [Target; 3] = streams(0.85);
static MANY_CONNECTIONS: [Target; 2] = [ratio(BYPASSED, &RATE, 0.98), ratio(PROXIED, &RATE, 0.70)];
static ONE_CONNECTION: [Target; 2] = [ratio(BYPASSED, &RATE, 0.98), added(PROXIED, &P50, 110.0)];
static MANY_TRIPS: [Target; 2] = [ratio(BYPASSED, &RATE, 0.98), ratio(PROXIED, &RATE, 0.60)];
static ONE_TRIP: [Target; 2] = [ratio(BYPASSED, &RATE, 0.98), added(PROXIED, &P50, 60.0)];
static FLOOD: [Target; 3] = [
    ratio(BYPASSED, &RATE, 0.98),
    ratio(PROXIED, &RATE, 0.80),
    most(PROXIED, &LOST, 1.0),
];
static BYPASS_ONLY: [Target; 1] = [ratio(BYPASSED, &RATE, 0.98)];
static OWN_STREAM: [Target; 2] = [
    ratio(OWN_BYPASSED, &GBIT, 0.98),
    ratio(OWN_PROXIED, &GBIT, 0.60),
];
static OWN_BYPASS: [Target; 1] = [ratio(OWN_BYPASSED, &RATE, 0.98)];
static SAME_WITH_RULES: [Target; 1] = [ratio(RULES, &RATE, 0.98)];
static AS_FAST_AS_DNSMASQ: [Target; 1] = [ratio(RESOLVER, &RATE, 1.0)];
static MEMORY: [Target; 3] = [
    most(PROXIED, &REST, 10.0),
    most(PROXIED, &KIB_EACH, 2.0),
    most(PROXIED, &FILES, 2.0),
];

/// What was promised of TCP streams.
const fn streams(least: f64) -> [Target; 3] {
    [
        ratio(BYPASSED, &GBIT, 0.98),
        ratio(PROXIED, &GBIT, least),
        most(PROXIED, &CPU, 0.15),
    ]
}

const fn tcp(
    name: &'static str,
    title: &'static str,
    family: Family,
    streams: u32,
    to_device: bool,
) -> Row {
    Row {
        name,
        title,
        client: Client::Device,
        family,
        work: Work::Tcp { streams, to_device },
        fresh: false,
        targets: if streams == 1 {
            &ONE_STREAM
        } else {
            &MANY_STREAMS
        },
    }
}

const fn rate(name: &'static str, title: &'static str, work: Work) -> Row {
    Row {
        name,
        title,
        client: Client::Device,
        family: Family::V4,
        work,
        fresh: false,
        targets: match work {
            Work::Connections { at_once: 1 } => &ONE_CONNECTION,
            Work::Connections { .. } => &MANY_CONNECTIONS,
            Work::RoundTrips { in_flight: 1 } => &ONE_TRIP,
            Work::RoundTrips { .. } => &MANY_TRIPS,
            Work::OneWay { rate: None } => &FLOOD,
            _ => &BYPASS_ONLY,
        },
    }
}

/// A row about what rules cost, IPv4.
const fn requests(name: &'static str, title: &'static str, at_once: usize) -> Row {
    Row {
        targets: if at_once == 1 { &[] } else { &SAME_WITH_RULES },
        ..rate(name, title, Work::Requests { at_once })
    }
}

/// A row about DNS.
const fn questions(
    name: &'static str,
    title: &'static str,
    family: Family,
    names: Names,
    in_flight: u16,
) -> Row {
    let row = rate(name, title, Work::Questions { names, in_flight });
    Row {
        family,
        targets: match names {
            Names::Known if in_flight > 1 => &AS_FAST_AS_DNSMASQ,
            _ => &[],
        },
        ..row
    }
}

/// A row about relaying by a server.
const fn outbound(
    name: &'static str,
    title: &'static str,
    by: Protocol,
    to_device: bool,
    targets: &'static [Target],
) -> Row {
    Row {
        targets,
        ..rate(name, title, Work::Outbound { by, to_device })
    }
}

/// As fast as another way, for no more time of the processor.
const fn as_good_as(way: &'static str, other: &'static str) -> [Target; 2] {
    [
        Target {
            way,
            metric: &GBIT,
            bound: Bound::NotBelow(other),
        },
        Target {
            way,
            metric: &CPU,
            bound: Bound::NotAbove(other),
        },
    ]
}

/// A row about the gateway's own traffic, IPv4.
const fn own(name: &'static str, title: &'static str, work: Work) -> Row {
    Row {
        name,
        title,
        client: Client::Gateway,
        family: Family::V4,
        work,
        fresh: false,
        targets: match work {
            Work::Tcp { .. } => &OWN_STREAM,
            _ => &OWN_BYPASS,
        },
    }
}

const fn ratio(way: &'static str, metric: &'static Metric, least: f64) -> Target {
    Target {
        way,
        metric,
        bound: Bound::Ratio(least),
    }
}

const fn most(way: &'static str, metric: &'static Metric, most: f64) -> Target {
    Target {
        way,
        metric,
        bound: Bound::Most(most),
    }
}

const fn added(way: &'static str, metric: &'static Metric, most: f64) -> Target {
    Target {
        way,
        metric,
        bound: Bound::Added(most),
    }
}

/// All of them.
pub static ROWS: [Row; 38] = [
    tcp(
        "tcp-1-up",
        "TCP, 1 stream from the device",
        Family::V4,
        1,
        false,
    ),
    tcp(
        "tcp-1-down",
        "TCP, 1 stream to the device",
        Family::V4,
        1,
        true,
    ),
    tcp(
        "tcp-8-up",
        "TCP, 8 streams from the device",
        Family::V4,
        8,
        false,
    ),
    tcp(
        "tcp-8-down",
        "TCP, 8 streams to the device",
        Family::V4,
        8,
        true,
    ),
    tcp(
        "tcp6-1-up",
        "TCP over IPv6, 1 stream from the device",
        Family::V6,
        1,
        false,
    ),
    tcp(
        "tcp6-1-down",
        "TCP over IPv6, 1 stream to the device",
        Family::V6,
        1,
        true,
    ),
    rate(
        "connections-50",
        "new TCP connections, 50 at a time",
        Work::Connections { at_once: 50 },
    ),
    rate(
        "connections-1",
        "new TCP connections, one at a time",
        Work::Connections { at_once: 1 },
    ),
    rate(
        "udp-trips-1",
        "UDP round trips of 64 bytes, 1 in flight",
        Work::RoundTrips { in_flight: 1 },
    ),
    rate(
        "udp-trips-64",
        "UDP round trips of 64 bytes, 64 in flight",
        Work::RoundTrips { in_flight: 64 },
    ),
    rate(
        "udp-full",
        "UDP from the device, 1,200 bytes, as many as it can send",
        Work::OneWay { rate: None },
    ),
    rate(
        "udp-paced",
        "UDP from the device, 1,200 bytes, 50,000 a second",
        Work::OneWay { rate: Some(50_000) },
    ),
    own(
        "own-tcp-up",
        "TCP of the gateway itself, 1 stream",
        Work::Tcp {
            streams: 1,
            to_device: false,
        },
    ),
    own(
        "own-tcp-down",
        "TCP of the gateway itself, 1 stream to it",
        Work::Tcp {
            streams: 1,
            to_device: true,
        },
    ),
    own(
        "own-connections-50",
        "new TCP connections of the gateway itself, 50 at a time",
        Work::Connections { at_once: 50 },
    ),
    own(
        "own-udp-trips-64",
        "UDP round trips of the gateway itself, 64 bytes, 64 in flight",
        Work::RoundTrips { in_flight: 64 },
    ),
    Row {
        name: "idle-5000",
        title: "resident memory of the proxy, 5,000 idle connections",
        client: Client::Device,
        family: Family::V4,
        work: Work::Idle { connections: 5_000 },
        fresh: true,
        targets: &MEMORY,
    },
    questions(
        "dns-cached-64",
        "DNS, known names, 64 questions in flight",
        Family::V4,
        Names::Known,
        64,
    ),
    questions(
        "dns6-cached-64",
        "DNS over IPv6, known names, 64 questions in flight",
        Family::V6,
        Names::Known,
        64,
    ),
    questions(
        "dns-cached-1",
        "DNS, known names, one question after the other",
        Family::V4,
        Names::Known,
        1,
    ),
    questions(
        "dns-forwarded-64",
        "DNS, each name once, 64 questions in flight",
        Family::V4,
        Names::New,
        64,
    ),
    questions(
        "dns-forwarded-1",
        "DNS, each name once, one question after the other",
        Family::V4,
        Names::New,
        1,
    ),
    requests(
        "rules-50",
        "new TCP connections with an HTTP request, 50 at a time",
        50,
    ),
    requests(
        "rules-1",
        "new TCP connections with an HTTP request, one at a time",
        1,
    ),
    outbound(
        "outbounds-socks5-up",
        "TCP by socks5://, 1 stream from the device",
        Protocol::Socks5,
        false,
        const { &as_good_as("socks5", "sing-box-socks5") },
    ),
    outbound(
        "outbounds-socks5-down",
        "TCP by socks5://, 1 stream to the device",
        Protocol::Socks5,
        true,
        const { &as_good_as("socks5", "sing-box-socks5") },
    ),
    outbound(
        "outbounds-http-up",
        "TCP by http://, 1 stream from the device",
        Protocol::Http,
        false,
        const { &as_good_as("http", "sing-box-http") },
    ),
    outbound(
        "outbounds-http-down",
        "TCP by http://, 1 stream to the device",
        Protocol::Http,
        true,
        const { &as_good_as("http", "sing-box-http") },
    ),
    outbound(
        "outbounds-https-up",
        "TCP by https://, 1 stream from the device",
        Protocol::Https,
        false,
        const { &as_good_as("https", "sing-box-https") },
    ),
    outbound(
        "outbounds-https-down",
        "TCP by https://, 1 stream to the device",
        Protocol::Https,
        true,
        const { &as_good_as("https", "sing-box-https") },
    ),
    outbound(
        "outbounds-ss-aes-up",
        "TCP by ss:// (aes-128-gcm), 1 stream from the device",
        Protocol::ShadowsocksAes,
        false,
        const { &as_good_as("ss-aes", "sing-box-ss-aes") },
    ),
    outbound(
        "outbounds-ss-aes-down",
        "TCP by ss:// (aes-128-gcm), 1 stream to the device",
        Protocol::ShadowsocksAes,
        true,
        const { &as_good_as("ss-aes", "sing-box-ss-aes") },
    ),
    outbound(
        "outbounds-ss-chacha-up",
        "TCP by ss:// (chacha20-ietf-poly1305), 1 stream from the device",
        Protocol::ShadowsocksChacha,
        false,
        const { &as_good_as("ss-chacha", "sing-box-ss-chacha") },
    ),
    outbound(
        "outbounds-ss-chacha-down",
        "TCP by ss:// (chacha20-ietf-poly1305), 1 stream to the device",
        Protocol::ShadowsocksChacha,
        true,
        const { &as_good_as("ss-chacha", "sing-box-ss-chacha") },
    ),
    outbound(
        "outbounds-ss-2022-up",
        "TCP by ss:// (2022-blake3-aes-128-gcm), 1 stream from the device",
        Protocol::Shadowsocks2022,
        false,
        const { &as_good_as("ss-2022", "sing-box-ss-2022") },
    ),
    outbound(
        "outbounds-ss-2022-down",
        "TCP by ss:// (2022-blake3-aes-128-gcm), 1 stream to the device",
        Protocol::Shadowsocks2022,
        true,
        const { &as_good_as("ss-2022", "sing-box-ss-2022") },
    ),
    outbound(
        "outbounds-trojan-up",
        "TCP by trojan://, 1 stream from the device",
        Protocol::Trojan,
        false,
        const { &as_good_as("trojan", "sing-box-trojan") },
    ),
    outbound(
        "outbounds-trojan-down",
        "TCP by trojan://, 1 stream to the device",
        Protocol::Trojan,
        true,
        const { &as_good_as("trojan", "sing-box-trojan") },
    ),
];
