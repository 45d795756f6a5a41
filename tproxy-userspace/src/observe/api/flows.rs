//! Which flows are meant: by device, destination, outbound and protocol, in which order, and how many.

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::reply::Failure;
use crate::data::FlowStatus;
use crate::policy::prefix;
use crate::policy::rule::Protocol;

/// What stands behind `/v1/flows?`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// An address or a prefix of devices.
    device: Option<String>,
    /// An address or a prefix of destinations, or a part of a name.
    destination: Option<String>,
    /// The name of an outbound or group.
    outbound: Option<String>,
    protocol: Option<Protocol>,
    sort: Option<Sort>,
    /// At most so many.
    limit: Option<usize>,
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sort {
    /// The oldest.
    #[default]
    Age,
    /// The newest.
    Newest,
    /// The most bytes, both directions together.
    Bytes,
    /// The most bytes from the device.
    Up,
    /// The most bytes to the device.
    Down,
}

/// The same, read.
#[derive(Clone, Debug)]
pub struct Filter {
    device: Option<IpNet>,
    destination: Option<Destination>,
    outbound: Option<String>,
    protocol: Option<Protocol>,
    sort: Sort,
    limit: usize,
}

#[derive(Clone, Debug)]
enum Destination {
    Net(IpNet),
    /// In lower case.
    Part(String),
}

impl TryFrom<Asked> for Filter {
    type Error = Failure;

    fn try_from(asked: Asked) -> Result<Self, Failure> {
        let device = asked.device.map(|text| {
            prefix::parse(&text)
                .map_err(|refusal| Failure::bad(format!("device: {}", refusal.message())))
        });
        let destination = |text: String| match prefix::parse(&text) {
            Ok(net) => Destination::Net(net),
            Err(_) => Destination::Part(text.to_lowercase()),
        };
        Ok(Self {
            device: device.transpose()?,
            destination: asked.destination.map(destination),
            outbound: asked.outbound,
            protocol: asked.protocol,
            sort: asked.sort.unwrap_or_default(),
            limit: asked.limit.unwrap_or(usize::MAX),
        })
    }
}

impl Filter {
    /// Those of the flows that are meant, in their order.
    pub fn apply(&self, flows: impl Iterator<Item = FlowStatus>) -> Vec<FlowStatus> {
        let mut flows: Vec<_> = flows.filter(|flow| self.is_meant(flow)).collect();
        match self.sort {
            Sort::Age => {}
            Sort::Newest => flows.reverse(),
            Sort::Bytes => flows.sort_by_key(|flow| Reverse(flow.bytes.up + flow.bytes.down)),
            Sort::Up => flows.sort_by_key(|flow| Reverse(flow.bytes.up)),
            Sort::Down => flows.sort_by_key(|flow| Reverse(flow.bytes.down)),
        }
        flows.truncate(self.limit);
        flows
    }

    fn is_meant(&self, flow: &FlowStatus) -> bool {
        let within = |net: &IpNet, ip: IpAddr| net.contains(&ip.to_canonical());
        let by_destination = || match &self.destination {
            None => true,
            Some(Destination::Net(net)) => within(net, flow.destination.ip()),
            Some(Destination::Part(part)) => {
                let name = flow.name.as_deref();
                name.is_some_and(|name| name.to_lowercase().contains(part))
            }
        };
        let by_outbound = |wanted: &String| {
            let names = [flow.outbound.as_ref(), flow.group.as_ref()];
            names.into_iter().flatten().any(|name| name == wanted)
        };
        let device = self.device.as_ref();
        device.is_none_or(|net| within(net, flow.client.ip()))
            && by_destination()
            && self.outbound.as_ref().is_none_or(by_outbound)
            && self
                .protocol
                .is_none_or(|protocol| protocol == flow.protocol)
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Query;
    use proptest::prelude::*;

    use super::*;
    use crate::data::Bytes;

    fn filter(query: &str) -> Result<Filter, String> {
        let uri = format!("/v1/flows?{query}")
            .parse()
            .map_err(|_| "no URI".to_owned())?;
        let Query(asked) = Query::<Asked>::try_from_uri(&uri).map_err(|error| error.to_string())?;
        Filter::try_from(asked).map_err(|failure| failure.text)
    }

    fn flow(id: u64, client: &str, destination: &str, name: Option<&str>, up: u64) -> FlowStatus {
        FlowStatus {
            id,
            protocol: if id.is_multiple_of(2) {
                Protocol::Udp
            } else {
                Protocol::Tcp
            },
            client: client.parse().unwrap(),
            destination: destination.parse().unwrap(),
            name: name.map(str::to_owned),
            outbound: Some("fast".to_owned()),
            group: (id == 3).then(|| "auto".to_owned()),
            rule: None,
            bytes: Bytes { up, down: 10 - up },
            age_ms: 0,
        }
    }

    #[test]
    fn flows_are_found_by_all_that_is_known_of_them() {
        let flows = [
            flow(1, "10.0.0.1:1", "192.0.2.1:443", Some("www.Example.com"), 1),
            flow(2, "[::ffff:10.0.0.2]:1", "[2001:db8::1]:443", None, 9),
            flow(3, "10.0.1.1:1", "192.0.2.200:80", Some("example.org"), 5),
        ];
        for (query, ids) in [
            ("", &[1, 2, 3][..]),
            ("device=10.0.0.0/24", &[1, 2]),
            ("device=10.0.1.1", &[3]),
            ("destination=192.0.2.0/25", &[1]),
            ("destination=EXAMPLE", &[1, 3]),
            ("destination=2001%3Adb8%3A%3A/32", &[2]),
            ("outbound=auto", &[3]),
            ("outbound=fast&protocol=udp", &[2]),
            ("sort=up", &[2, 3, 1]),
            ("sort=down&limit=1", &[1]),
            ("sort=newest", &[3, 2, 1]),
            ("limit=0", &[]),
        ] {
            let found = filter(query).unwrap().apply(flows.iter().cloned());
            let found: Vec<_> = found.iter().map(|flow| flow.id).collect();
            assert_eq!(found, ids, "{query}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (query, word) in [
            ("devise=1", "devise"),
            ("device=nobody", "device"),
            ("limit=-1", "limit"),
            ("protocol=icmp", "icmp"),
            ("sort=colour", "colour"),
        ] {
            let error = filter(query).unwrap_err();
            assert!(error.contains(word), "{query}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in "([a-z]{1,11}=[ -~]{0,12}&?){0,4}") {
            if let Ok(filter) = filter(&query) {
                filter.apply([flow(1, "10.0.0.1:1", "192.0.2.1:443", Some("x"), 1)].into_iter());
            }
        }
    }
}
