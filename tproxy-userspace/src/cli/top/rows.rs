//! Which rows each view has, and what stands in their columns. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tproxy_common::abi::Effect;
use tproxy_userspace::data::Bytes;

use super::super::counters::effect_word;
use super::super::flows::{protocol_word, way};
use super::columns::{Column, Value, View};
use super::model::{Counted, Flow, Model, Rate};
use super::sample::{Group, Health, Outbound};

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
