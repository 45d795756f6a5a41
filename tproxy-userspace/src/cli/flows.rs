//! `flows`: the connections and associations that live.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::data::FlowStatus;
use tproxy_userspace::observe::socket::Request;
use tproxy_userspace::policy::rule::Protocol;

use super::ReadArgs;
use super::asking::{asked, asked_as};
use super::output::{self, Table};
use super::status::PATIENCE;

/// Which flows are shown, and how.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct FlowsArgs {
    #[command(subcommand)]
    command: Option<FlowsCommand>,
    #[command(flatten)]
    filter: Filter,
    /// What comes first.
    #[arg(long, value_name = "ORDER", default_value = "bytes")]
    sort: Order,
    /// Show only so many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, Subcommand)]
enum FlowsCommand {
    /// End flows: connections with RST, to both sides; of an association the next datagram makes a new one.
    Kill {
        /// Their numbers, the first column of `flows`.
        #[arg(required = true, value_name = "ID")]
        flows: Vec<u64>,
    },
}

/// Which flows.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Of this device, or of devices in this prefix.
    #[arg(long, value_name = "IP", value_parser = prefix)]
    device: Option<IpNet>,
    /// Whose name or destination contains this text.
    #[arg(long, value_name = "TEXT")]
    to: Option<String>,
    /// By this outbound or group.
    #[arg(long, value_name = "NAME")]
    outbound: Option<String>,
    /// TCP or UDP alone.
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    protocol: Option<Protocol>,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Most bytes, both directions.
    Bytes,
    /// Most bytes from the device.
    Up,
    /// Most bytes to the device.
    Down,
    /// The oldest.
    Age,
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>();
    address
        .map(|address| address.to_canonical().into())
        .or_else(|_| text.parse::<IpNet>().map(|net| net.trunc()))
        .map_err(|_| {
            "neither an address nor a prefix, such as 192.168.1.50 or 192.168.1.0/24".into()
        })
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err("it is tcp or udp".into()),
    }
}

impl Filter {
    /// Is this flow meant?
    #[must_use]
    pub fn takes(&self, flow: &FlowStatus) -> bool {
        let device = flow.client.ip().to_canonical();
        self.device.is_none_or(|wanted| wanted.contains(&device))
            && self.protocol.is_none_or(|wanted| wanted == flow.protocol)
            && self.to.as_ref().is_none_or(|wanted| {
                let wanted = wanted.to_lowercase();
                let name = flow.name.as_deref().unwrap_or_default();
                name.contains(&wanted) || flow.destination.to_string().contains(&wanted)
            })
            && self.outbound.as_ref().is_none_or(|wanted| {
                [&flow.outbound, &flow.group]
                    .into_iter()
                    .flatten()
                    .any(|name| name == wanted)
            })
    }
}

impl Order {
    /// Puts the first first.
    pub fn sort(self, flows: &mut [FlowStatus]) {
        flows.sort_by_key(|flow| {
            std::cmp::Reverse(match self {
                Self::Bytes => flow.bytes.up + flow.bytes.down,
                Self::Up => flow.bytes.up,
                Self::Down => flow.bytes.down,
                Self::Age => flow.age_ms,
            })
        });
    }
}

/// All flows of the proxy that runs here.
///
/// # Errors
/// When none runs, or it does not answer.
pub fn living(place: &Place) -> Result<Vec<FlowStatus>> {
    let answer: Living = asked_as(place, "asking for the flows", &Request::Flows, PATIENCE)?;
    Ok(answer.flows)
}

/// The proxy's answer.
#[derive(Deserialize)]
struct Living {
    flows: Vec<FlowStatus>,
}

#[derive(Serialize)]
struct Shown<'f> {
    total: usize,
    flows: &'f [FlowStatus],
}

pub fn flows(args: &FlowsArgs) -> Result<ExitCode> {
    let place = Place::current()?;
    if let Some(FlowsCommand::Kill { flows }) = &args.command {
        return kill(&place, flows);
    }
    let mut flows = living(&place)?;
    flows.retain(|flow| args.filter.takes(flow));
    args.sort.sort(&mut flows);
    let total = flows.len();
    flows.truncate(args.limit.unwrap_or(total));
    if args.read.json {
        output::json(&Shown {
            total,
            flows: &flows,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(
        &[
            "id",
            "age",
            "device",
            "",
            "destination",
            "name",
            "outbound",
            "rule",
            "up",
            "down",
        ],
        &[0, 1, 8, 9],
    );
    for flow in &flows {
        table.row([
            flow.id.to_string(),
            output::duration(Duration::from_millis(flow.age_ms)),
            flow.client.to_string(),
            protocol_word(flow.protocol).into(),
            flow.destination.to_string(),
            flow.name.clone().unwrap_or_default(),
            way(flow),
            flow.rule.clone().unwrap_or_default(),
            output::bytes(flow.bytes.up),
            output::bytes(flow.bytes.down),
        ]);
    }
    let mut text = table.render();
    if flows.len() < total {
        text.push_str(&format!(
            "and {} more\n",
            output::number((total - flows.len()) as u64)
        ));
    }
    output::text_out(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The word for it.
pub fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// The group and the outbound that it takes; "-" before it has one.
pub fn way(flow: &FlowStatus) -> String {
    match (&flow.group, &flow.outbound) {
        (Some(group), Some(outbound)) => format!("{group}: {outbound}"),
        (_, Some(outbound)) => outbound.clone(),
        (_, None) => "-".into(),
    }
}

fn kill(place: &Place, flows: &[u64]) -> Result<ExitCode> {
    let request = Request::Kill {
        flows: flows.to_vec(),
    };
    let answer = asked(place, "ending flows", &request, PATIENCE)?;
    let list = |key: &str| -> Vec<u64> {
        let ids = answer[key].as_array().into_iter().flatten();
        ids.filter_map(serde_json::Value::as_u64).collect()
    };
    let (killed, unknown) = (list("killed"), list("unknown"));
    if !killed.is_empty() {
        output::text_out(&format!("ended: {}\n", join(&killed)))?;
    }
    if !unknown.is_empty() {
        bail!(
            "ending {} failed: there is no flow of that number (any more); `tproxy-bpf flows` lists those that live",
            join(&unknown)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn join(ids: &[u64]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn filter(arguments: &str) -> Filter {
        let words = ["flows"].into_iter().chain(arguments.split_whitespace());
        Line::parse_from(words).filter
    }

    fn flow(json: serde_json::Value) -> FlowStatus {
        let mut whole = serde_json::json!({
            "id": 1, "protocol": "tcp", "client": "10.0.0.5:1", "destination": "203.0.113.1:443",
            "name": "www.example.com", "outbound": "fast", "group": "auto", "rule": null,
            "up": 1, "down": 2, "age_ms": 3,
        });
        for (key, value) in json.as_object().expect("an object") {
            whole[key] = value.clone();
        }
        serde_json::from_value(whole).expect("a flow")
    }

    #[test]
    fn a_filter_takes_what_it_says_and_nothing_else() {
        let one = flow(serde_json::json!({}));
        for taken in [
            "",
            "--device 10.0.0.5",
            "--device 10.0.0.0/24",
            "--device 10.0.0.77/24",
            "--to EXAMPLE",
            "--to 203.0.113.1:443",
            "--outbound fast",
            "--outbound auto",
            "--protocol tcp --device 10.0.0.0/8 --to www",
        ] {
            assert!(filter(taken).takes(&one), "{taken}");
        }
        for left in [
            "--device 10.0.0.6",
            "--device 2001:db8::/32",
            "--to example.org",
            "--outbound fas",
            "--protocol udp",
            "--protocol tcp --to 203.0.113.2",
        ] {
            assert!(!filter(left).takes(&one), "{left}");
        }
        let mapped = flow(serde_json::json!({ "client": "[::ffff:10.0.0.5]:1", "name": null }));
        assert!(filter("--device 10.0.0.5").takes(&mapped));
        assert!(!filter("--to www").takes(&mapped));
    }

    #[test]
    fn the_first_comes_first() {
        let flows = [(1, 5, 1, 100), (2, 1, 8, 10), (3, 4, 4, 1000)];
        let flows = flows.map(|(id, up, down, age)| {
            flow(serde_json::json!({ "id": id, "up": up, "down": down, "age_ms": age }))
        });
        for (order, wanted) in [
            (Order::Bytes, [2, 3, 1]),
            (Order::Up, [1, 3, 2]),
            (Order::Down, [2, 3, 1]),
            (Order::Age, [3, 1, 2]),
        ] {
            let mut sorted = flows.to_vec();
            order.sort(&mut sorted);
            assert_eq!(
                sorted.iter().map(|flow| flow.id).collect::<Vec<_>>(),
                wanted,
                "{order:?}"
            );
        }
    }
}
