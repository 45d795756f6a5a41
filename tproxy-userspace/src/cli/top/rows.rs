//! The views: which rows each has, and which columns with which values. Pure.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::ValueEnum;
use tproxy_common::abi::Effect;
use tproxy_userspace::data::Bytes;

use super::super::counters::effect_word;
use super::super::flows::{protocol_word, way};
use super::super::output;
use super::model::{Counted, Flow, Model, Rate};
use super::sample::{Group, Health, Outbound};

/// What is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum View {
    /// Each flow.
    #[default]
    Flows,
    /// Each device.
    Devices,
    /// Where they go to.
    Destinations,
    /// Why packets passed, were steered or dropped.
    Counters,
    /// The ways out.
    Outbounds,
}

impl View {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Flows,
        Self::Devices,
        Self::Destinations,
        Self::Counters,
        Self::Outbounds,
    ];

    /// Its name.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Devices => "devices",
            Self::Destinations => "destinations",
            Self::Counters => "counters",
            Self::Outbounds => "outbounds",
        }
    }

    /// Its columns.
    pub const fn columns(self) -> &'static [Column] {
        use Column::*;
        match self {
            Self::Flows => &[
                Device,
                Protocol,
                Destination,
                Way,
                Rule,
                Up,
                Down,
                Total,
                Age,
            ],
            Self::Devices => &[Device, Flows, Up, Down, TotalUp, TotalDown],
            Self::Destinations => &[Destination, Flows, Up, Down, TotalUp, TotalDown],
            Self::Counters => &[
                Reason, Effect, PacketRate, ByteRate, Packets, Total, Meaning,
            ],
            Self::Outbounds => &[
                Name, Tcp, Udp, Delay, Since, Flows, Up, Down, Total, Meaning,
            ],
        }
    }

    /// The column that rows are sorted by at first.
    pub const fn first_order(self) -> Column {
        match self {
            Self::Flows | Self::Devices | Self::Destinations => Column::Down,
            Self::Counters => Column::PacketRate,
            Self::Outbounds => Column::Name,
        }
    }
}

/// One column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Device,
    Protocol,
    Destination,
    Way,
    Rule,
    Up,
    Down,
    Total,
    TotalUp,
    TotalDown,
    Age,
    Flows,
    Reason,
    Effect,
    PacketRate,
    ByteRate,
    Packets,
    Meaning,
    Name,
    Tcp,
    Udp,
    Delay,
    Since,
}

/// How a column is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its heading.
    pub title: &'static str,
    /// The least columns of the terminal that it is of use with.
    pub least: usize,
    /// As many as it gets if there is enough to show.
    pub most: usize,
    /// Numbers are set to the right.
    pub right: bool,
    /// Takes all that is left. One of a view does.
    pub fills: bool,
    /// Where there is no room for all, those with the highest numbers go first. 0: it stays.
    pub goes: u8,
}

const fn text(title: &'static str, least: usize, most: usize, goes: u8) -> Layout {
    Layout {
        title,
        least,
        most,
        right: false,
        fills: false,
        goes,
    }
}

const fn number(title: &'static str, width: usize, goes: u8) -> Layout {
    Layout {
        right: true,
        ..text(title, width, width, goes)
    }
}

const fn filling(title: &'static str, least: usize, goes: u8) -> Layout {
    Layout {
        fills: true,
        ..text(title, least, usize::MAX, goes)
    }
}

impl Column {
    /// How it is laid out.
    pub const fn layout(self) -> Layout {
        match self {
            Self::Device => text("device", 15, 39, 0),
            Self::Protocol => text("", 3, 3, 3),
            Self::Destination => filling("destination", 20, 0),
            Self::Way => text("way", 8, 24, 2),
            Self::Rule => text("rule", 6, 20, 6),
            Self::Up => number("up/s", 6, 0),
            Self::Down => number("down/s", 7, 0),
            Self::Total => number("total", 6, 4),
            Self::TotalUp => number("up", 6, 2),
            Self::TotalDown => number("down", 6, 1),
            Self::Age => number("age", 7, 5),
            Self::Flows => number("flows", 7, 1),
            Self::Reason => text("reason", 12, 20, 0),
            Self::Effect => text("effect", 6, 6, 1),
            Self::PacketRate => number("packets/s", 10, 0),
            Self::ByteRate => number("bytes/s", 8, 0),
            Self::Packets => number("packets", 8, 2),
            Self::Meaning => filling("", 12, 3),
            Self::Name => text("name", 10, 24, 0),
            Self::Tcp => text("TCP", 6, 16, 0),
            Self::Udp => text("UDP", 6, 16, 0),
            Self::Delay => number("delay", 6, 2),
            Self::Since => number("since", 7, 4),
        }
    }
}

/// What stands in a cell. Cells of one column are of one kind, which has an order.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'m> {
    Text(Cow<'m, str>),
    Address(IpAddr),
    /// Bytes a second.
    Rate(Option<f64>),
    Bytes(Option<u64>),
    /// Packets (a second, too) or flows.
    Count(Option<f64>),
    Age(Option<Duration>),
    Milliseconds(Option<u64>),
}

impl Value<'_> {
    /// For people. Nothing in it moves the cursor, whatever a device sent as a name.
    pub fn text(&self) -> Cow<'_, str> {
        let nothing = || "-".to_owned();
        match self {
            Self::Text(text) if text.contains(char::is_control) => {
                text.replace(char::is_control, "\u{fffd}").into()
            }
            Self::Text(text) => Cow::Borrowed(text),
            Self::Address(address) => address.to_string().into(),
            Self::Rate(rate) => rate.map_or_else(nothing, short).into(),
            Self::Bytes(bytes) => bytes
                .map_or_else(nothing, |bytes| short(bytes as f64))
                .into(),
            Self::Count(number) => number.map_or_else(nothing, count).into(),
            Self::Age(age) => age.map_or_else(nothing, output::duration).into(),
            Self::Milliseconds(time) => time
                .map_or_else(nothing, |time| format!("{time} ms"))
                .into(),
        }
    }

    /// Text begins with its first, numbers with the greatest; what is not known comes last.
    pub fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => one.cmp(other),
            (Self::Address(one), Self::Address(other)) => one.cmp(other),
            (Self::Rate(one), Self::Rate(other)) | (Self::Count(one), Self::Count(other)) => {
                let order = |rate: &Option<f64>| rate.unwrap_or(-1.0);
                order(other).total_cmp(&order(one))
            }
            (Self::Bytes(one), Self::Bytes(other))
            | (Self::Milliseconds(one), Self::Milliseconds(other)) => other.cmp(one),
            (Self::Age(one), Self::Age(other)) => other.cmp(one),
            _ => Ordering::Equal,
        }
    }
}

/// Bytes in at most five characters; K is 1024.
pub fn short(bytes: f64) -> String {
    in_units(bytes, 1024.0)
}

/// How many, to the last one up to a million; K is 1,000.
pub fn count(number: f64) -> String {
    if number < 999_999.5 {
        return output::number(number.round() as u64);
    }
    in_units(number, 1000.0)
}

fn in_units(number: f64, base: f64) -> String {
    const UNITS: [&str; 6] = ["", "K", "M", "G", "T", "P"];
    let (mut value, mut unit) = (number, 0);
    // What would be rounded up to the base is one of the next unit.
    while value >= base - 0.5 && unit + 1 < UNITS.len() {
        value /= base;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 9.95);
    format!("{value:.digits$}{}", UNITS[unit])
}

/// What a row is of. It stays the same while the row moves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Flow(u64),
    Device(IpAddr),
    Destination(String),
    Reason(usize),
    /// A group or an outbound.
    Way(String),
}

/// One row of a view.
#[derive(Clone, Debug)]
pub enum Row {
    /// By its index in the model.
    Flow(usize),
    /// Flows with something in common.
    Sum(SumRow),
    /// By its index in the model.
    Reason(usize),
    /// A way out.
    Way(Box<WayRow>),
}

/// Flows with something in common.
#[derive(Clone, Debug)]
pub struct SumRow {
    key: Key,
    flows: u64,
    bytes: Bytes,
    rate: Option<Rate>,
}

/// An outbound or a group.
#[derive(Clone, Debug)]
pub struct WayRow {
    name: String,
    tcp: String,
    udp: String,
    delay: Option<u64>,
    since: Option<Duration>,
    flows: u64,
    bytes: Option<u64>,
    rate: Option<Rate>,
    remark: String,
}

/// The rows of a view, in no order that a person asked for.
pub fn rows(model: &Model, view: View) -> Vec<Row> {
    match view {
        View::Flows => (0..model.flows.len()).map(Row::Flow).collect(),
        View::Devices => devices(model),
        View::Destinations => destinations(model),
        View::Counters => {
            let all = model.counters.iter().enumerate();
            let seen = all.filter(|(_, one)| one.counter.packets > 0);
            seen.map(|(index, _)| Row::Reason(index)).collect()
        }
        View::Outbounds => ways(model),
    }
}

fn devices(model: &Model) -> Vec<Row> {
    let mut living: HashMap<IpAddr, SumRow> = HashMap::new();
    for flow in &model.flows {
        let device = flow.device();
        let row = living
            .entry(device)
            .or_insert_with(|| SumRow::new(Key::Device(device)));
        row.add(flow);
    }
    // The account knows flows that have ended, too.
    for (device, sum) in &model.devices {
        let row = living
            .entry(*device)
            .or_insert_with(|| SumRow::new(Key::Device(*device)));
        (row.bytes, row.rate) = (sum.bytes, sum.rate);
    }
    living.into_values().map(Row::Sum).collect()
}

fn destinations(model: &Model) -> Vec<Row> {
    #[derive(PartialEq, Eq, Hash)]
    enum To<'m> {
        Name(&'m str),
        Address(IpAddr),
    }
    let mut living: HashMap<To<'_>, SumRow> = HashMap::new();
    for flow in &model.flows {
        let to = match flow.status.name.as_deref() {
            Some(name) => To::Name(site(name)),
            None => To::Address(flow.status.destination.ip().to_canonical()),
        };
        let name = match &to {
            To::Name(name) => (*name).to_owned(),
            To::Address(address) => address.to_string(),
        };
        let row = living
            .entry(to)
            .or_insert_with(|| SumRow::new(Key::Destination(name)));
        row.add(flow);
    }
    living.into_values().map(Row::Sum).collect()
}

/// The end of a name that one owner is likely to have: the last two labels, or three where the last but one is short and
/// the last that of a country ("co.uk", "com.cn"). It is a guess, without a list of what registries sell.
pub fn site(name: &str) -> &str {
    let mut dots = name.rmatch_indices('.').map(|(at, _)| at);
    let (Some(last), Some(second)) = (dots.next(), dots.next()) else {
        return name;
    };
    let of_country = name.len() - last - 1 == 2 && last - second - 1 <= 3;
    let cut = match of_country {
        true => dots.next(),
        false => Some(second),
    };
    cut.map_or(name, |at| &name[at + 1..])
}

fn ways(model: &Model) -> Vec<Row> {
    let Some(status) = &model.status else {
        return Vec::new();
    };
    let mut flows: HashMap<&str, u64> = HashMap::new();
    let mut of_groups: HashMap<&str, (u64, Option<Rate>)> = HashMap::new();
    for flow in &model.flows {
        if let Some(outbound) = &flow.status.outbound {
            *flows.entry(outbound).or_default() += 1;
        }
        if let Some(group) = &flow.status.group {
            let (count, rate) = of_groups.entry(group).or_default();
            *count += 1;
            *rate = added(*rate, flow.rate);
        }
    }
    let groups = status.groups.iter().map(|group| {
        let (flows, rate) = of_groups.get(&*group.name).copied().unwrap_or_default();
        WayRow::of_group(group, flows, rate)
    });
    let outbounds = status.outbounds.iter().map(|outbound| {
        let flows = flows.get(&*outbound.name).copied().unwrap_or_default();
        let sum = model.outbounds.get(&outbound.name);
        let mut row = WayRow::of_outbound(outbound, flows);
        row.bytes = Some(sum.map_or(0, |sum| sum.bytes.up + sum.bytes.down));
        row.rate = sum.and_then(|sum| sum.rate);
        row
    });
    let all = groups.chain(outbounds);
    all.map(|row| Row::Way(Box::new(row))).collect()
}

impl WayRow {
    fn of_group(group: &Group, flows: u64, rate: Option<Rate>) -> Self {
        let member = |member: &Option<String>| match member {
            Some(member) => format!("→ {member}"),
            None => "-".into(),
        };
        Self {
            name: group.name.clone(),
            tcp: member(&group.tcp),
            udp: member(&group.udp),
            delay: None,
            since: None,
            flows,
            bytes: None,
            rate,
            remark: format!("group: {}", group.kind),
        }
    }

    fn of_outbound(outbound: &Outbound, flows: u64) -> Self {
        let Outbound { name, tcp, udp } = outbound;
        let known = |health: &Health| health.state != "unknown" && health.state != "unsupported";
        let since = [tcp, udp].into_iter().find(|health| known(health));
        let errors = [("TCP", tcp), ("UDP", udp)].into_iter();
        let errors = errors.filter_map(|(protocol, health)| {
            let error = health.error.as_ref()?;
            Some(format!("{protocol}: {error}"))
        });
        Self {
            name: name.clone(),
            tcp: tcp.state.clone(),
            udp: udp.state.clone(),
            delay: tcp.delay_milliseconds.or(udp.delay_milliseconds),
            since: since.map(|health| Duration::from_secs(health.since_seconds)),
            flows,
            bytes: None,
            rate: None,
            remark: errors.collect::<Vec<_>>().join("; "),
        }
    }
}

/// Rates that are not known add nothing; without any that is, the sum is not known.
fn added(sum: Option<Rate>, rate: Option<Rate>) -> Option<Rate> {
    match (sum, rate) {
        (Some(sum), Some(rate)) => Some(Rate {
            up: sum.up + rate.up,
            down: sum.down + rate.down,
        }),
        (sum, rate) => sum.or(rate),
    }
}

impl SumRow {
    fn new(key: Key) -> Self {
        Self {
            key,
            flows: 0,
            bytes: Bytes::default(),
            rate: None,
        }
    }

    fn add(&mut self, flow: &Flow) {
        self.flows += 1;
        self.bytes.up += flow.status.bytes.up;
        self.bytes.down += flow.status.bytes.down;
        self.rate = added(self.rate, flow.rate);
    }
}

impl Row {
    /// What it is of.
    pub fn key(&self, model: &Model) -> Key {
        match self {
            Self::Flow(index) => Key::Flow(model.flows[*index].status.id),
            Self::Sum(sum) => sum.key.clone(),
            Self::Reason(index) => Key::Reason(*index),
            Self::Way(way) => Key::Way(way.name.clone()),
        }
    }

    /// What stands in this column.
    pub fn value<'m>(&'m self, model: &'m Model, column: Column) -> Value<'m> {
        match self {
            Self::Flow(index) => of_flow(&model.flows[*index], column),
            Self::Sum(sum) => of_sum(sum, column),
            Self::Reason(index) => of_reason(&model.counters[*index], column),
            Self::Way(way) => of_way(way, column),
        }
    }

    /// Does one of its texts contain this, in lower case?
    pub fn contains(&self, model: &Model, view: View, wanted: &str) -> bool {
        let contains = |text: &str| text.to_lowercase().contains(wanted);
        let of_columns = view
            .columns()
            .iter()
            .any(|column| match self.value(model, *column) {
                value @ (Value::Text(_) | Value::Address(_)) => contains(&value.text()),
                _ => false,
            });
        // A person may know the address, or the port, where a name is shown.
        of_columns
            || matches!(self, Self::Flow(index) if {
                let flow = &model.flows[*index].status;
                contains(&canonical(flow.destination)) || contains(&canonical(flow.client))
            })
    }

    /// Is something dropped here, or down?
    pub fn is_bad(&self, model: &Model) -> bool {
        match self {
            Self::Reason(index) => {
                let one = &model.counters[*index];
                let now = one.rate.is_some_and(|(packets, _)| packets > 0.0);
                one.reason.effect() == Effect::Drop && now
            }
            Self::Way(way) => way.tcp == "down" || way.udp == "down",
            Self::Flow(_) | Self::Sum(_) => false,
        }
    }
}

/// An address with its port, IPv4 as such.
pub fn canonical(address: SocketAddr) -> String {
    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}

/// The name that a flow goes to, or else the address, with the port.
pub fn destination(flow: &Flow) -> String {
    match &flow.status.name {
        Some(name) => format!("{name}:{}", flow.status.destination.port()),
        None => canonical(flow.status.destination),
    }
}

fn of_flow(flow: &Flow, column: Column) -> Value<'_> {
    let status = &flow.status;
    match column {
        Column::Device => Value::Address(flow.device()),
        Column::Protocol => Value::Text(protocol_word(status.protocol).into()),
        Column::Destination => Value::Text(destination(flow).into()),
        Column::Way => Value::Text(way(status).into()),
        Column::Rule => Value::Text(status.rule.as_deref().unwrap_or_default().into()),
        Column::Up => Value::Rate(flow.rate.map(|rate| rate.up)),
        Column::Down => Value::Rate(flow.rate.map(|rate| rate.down)),
        Column::Total => Value::Bytes(Some(status.bytes.up + status.bytes.down)),
        Column::Age => Value::Age(Some(Duration::from_millis(status.age_ms))),
        _ => Value::Text("".into()),
    }
}

fn of_sum(sum: &SumRow, column: Column) -> Value<'_> {
    match (column, &sum.key) {
        (Column::Device, Key::Device(device)) => Value::Address(*device),
        (Column::Destination, Key::Destination(name)) => Value::Text(name.into()),
        (Column::Flows, _) => Value::Count(Some(sum.flows as f64)),
        (Column::Up, _) => Value::Rate(sum.rate.map(|rate| rate.up)),
        (Column::Down, _) => Value::Rate(sum.rate.map(|rate| rate.down)),
        (Column::TotalUp, _) => Value::Bytes(Some(sum.bytes.up)),
        (Column::TotalDown, _) => Value::Bytes(Some(sum.bytes.down)),
        _ => Value::Text("".into()),
    }
}

fn of_reason(one: &Counted, column: Column) -> Value<'_> {
    match column {
        Column::Reason => Value::Text(one.reason.word().into()),
        Column::Effect => Value::Text(effect_word(one.reason.effect()).into()),
        Column::PacketRate => Value::Count(one.rate.map(|(packets, _)| packets)),
        Column::ByteRate => Value::Rate(one.rate.map(|(_, bytes)| bytes)),
        Column::Packets => Value::Count(Some(one.counter.packets as f64)),
        Column::Total => Value::Bytes(Some(one.counter.bytes)),
        Column::Meaning => Value::Text(one.reason.sentence().into()),
        _ => Value::Text("".into()),
    }
}

fn of_way(way: &WayRow, column: Column) -> Value<'_> {
    match column {
        Column::Name => Value::Text(way.name.as_str().into()),
        Column::Tcp => Value::Text(way.tcp.as_str().into()),
        Column::Udp => Value::Text(way.udp.as_str().into()),
        Column::Delay => Value::Milliseconds(way.delay),
        Column::Since => Value::Age(way.since),
        Column::Flows => Value::Count(Some(way.flows as f64)),
        Column::Up => Value::Rate(way.rate.map(|rate| rate.up)),
        Column::Down => Value::Rate(way.rate.map(|rate| rate.down)),
        Column::Total => Value::Bytes(way.bytes),
        Column::Meaning => Value::Text(way.remark.as_str().into()),
        _ => Value::Text("".into()),
    }
}
