//! The views, their columns, and what stands in a cell. Pure.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::time::Duration;

use clap::ValueEnum;

use super::super::output;

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
