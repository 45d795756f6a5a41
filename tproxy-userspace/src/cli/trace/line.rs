//! What `trace` prints: a line for each event.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use humantime::{Rfc3339Timestamp, format_rfc3339_micros};
use nix::net::if_::if_indextoname;
use serde::Serialize;
use tproxy_common::abi::{Effect, Reason};
use tproxy_common::trace::Message;
use tproxy_userspace::config::format_duration;
use tproxy_userspace::control::trace::{Decision, Event};

use super::super::counters::effect_word;
use super::super::output;

/// Turns events to lines.
pub struct Lines {
    json: bool,
    /// Names of links by index.
    links: HashMap<u32, String>,
    /// Whose sentences have been told.
    explained: HashSet<Reason>,
    /// How many lost decisions have been told.
    lost: u64,
}

/// An event as JSON.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Json<'a> {
    Decision {
        time: String,
        link: &'a str,
        hook: &'static str,
        effect: &'static str,
        reason: &'static str,
        protocol: &'static str,
        /// Null: not a packet of IP, or a broken one.
        source: Option<IpAddr>,
        destination: Option<IpAddr>,
        /// Null: none, or they cannot be told.
        source_port: Option<u16>,
        destination_port: Option<u16>,
        opens: bool,
        fragment: bool,
        bytes: Option<u32>,
        mark: u32,
    },
    Message {
        time: String,
        message: &'static str,
        sentence: &'static str,
        error: Option<String>,
    },
    Lost {
        count: u64,
    },
}

impl Lines {
    /// None printed yet.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            links: HashMap::new(),
            explained: HashSet::new(),
            lost: 0,
        }
    }

    /// The line for an event.
    pub fn event(&mut self, event: &Event) -> String {
        match event {
            Event::Decision(decision) if self.json => self.decision_json(decision),
            Event::Decision(decision) => self.decision(decision),
            Event::Message {
                time,
                message,
                error,
            } => self.message(*time, *message, *error),
        }
    }

    /// Tells how many decisions found no room, of so many in all, since it was told last. For a person that is no part of
    /// what is printed.
    pub fn lost(&mut self, all: u64) -> String {
        let count = all.saturating_sub(self.lost);
        self.lost = all;
        if count == 0 {
            return String::new();
        }
        if self.json {
            return json_line(&Json::Lost { count });
        }
        let number = output::number(count);
        let (decisions, were) = match count {
            1 => ("decision", "was"),
            _ => ("decisions", "were"),
        };
        eprintln!("{number} {decisions} {were} not shown: more came than could be printed");
        String::new()
    }

    /// Says that nothing was told for a time.
    pub fn missed(&self, time: Duration) {
        let time = format_duration(Duration::from_millis(time.as_millis() as u64));
        eprintln!("nothing was shown for {time}, since this process did not run");
    }

    fn decision(&mut self, decision: &Decision) -> String {
        let mut line = format!("{} {}", clock(decision.time), self.link(decision.link));
        match decision.addresses {
            Some((source, destination)) => {
                let ports = decision.ports;
                let from = place(source, ports.map(|ports| ports.0));
                let to = place(destination, ports.map(|ports| ports.1));
                let _ = write!(line, " {from} → {to} {}", decision.protocol.word());
            }
            None => line.push_str(" a frame"),
        }
        if decision.fragment {
            line.push_str(" fragment");
        }
        let effect = match decision.reason.effect() {
            Effect::Pass => "passed",
            Effect::Steer => "steered",
            Effect::Drop => "dropped",
        };
        let _ = write!(line, " {effect} {}", decision.reason.word());
        // Once is enough: the words are few.
        if self.explained.insert(decision.reason) {
            let _ = write!(line, ": {}", decision.reason.sentence());
        }
        line.push('\n');
        line
    }

    fn decision_json(&mut self, decision: &Decision) -> String {
        json_line(&Json::Decision {
            time: stamp(decision.time).to_string(),
            link: self.link(decision.link),
            hook: decision.hook.word(),
            effect: effect_word(decision.reason.effect()),
            reason: decision.reason.word(),
            protocol: decision.protocol.word(),
            source: decision.addresses.map(|addresses| addresses.0),
            destination: decision.addresses.map(|addresses| addresses.1),
            source_port: decision.ports.map(|ports| ports.0),
            destination_port: decision.ports.map(|ports| ports.1),
            opens: decision.opens,
            fragment: decision.fragment,
            bytes: decision.length,
            mark: decision.mark,
        })
    }

    fn message(&self, time: SystemTime, message: Message, error: Option<i32>) -> String {
        let error = error.map(|error| io::Error::from_raw_os_error(error).to_string());
        if self.json {
            return json_line(&Json::Message {
                time: stamp(time).to_string(),
                message: message.word(),
                sentence: message.sentence(),
                error,
            });
        }
        let mut line = format!("{} the kernel half: {}", clock(time), message.sentence());
        if let Some(error) = error {
            let _ = write!(line, " ({error})");
        }
        line.push('\n');
        line
    }

    fn link(&mut self, index: u32) -> &str {
        self.links.entry(index).or_insert_with(|| {
            if_indextoname(index)
                .ok()
                .and_then(|name| name.into_string().ok())
                // The C library gives an empty name to what is gone.
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| format!("link {index}"))
        })
    }
}

fn json_line(event: &Json<'_>) -> String {
    let mut line = serde_json::to_string(event).expect("names and numbers");
    line.push('\n');
    line
}

fn stamp(time: SystemTime) -> Rfc3339Timestamp {
    format_rfc3339_micros(time)
}

/// The time of the day, in UTC as the log's.
fn clock(time: SystemTime) -> String {
    let text = stamp(time).to_string();
    let clock = text.split_once('T').map(|(_, clock)| clock.to_owned());
    clock.unwrap_or(text)
}

/// An address with its port, if it has one.
fn place(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tproxy_common::trace::Hook;
    use tproxy_userspace::control::trace::Protocol;

    use super::*;

    fn decision(source: &str, destination: &str) -> Decision {
        Decision {
            time: SystemTime::UNIX_EPOCH + Duration::from_micros(43_384_123_456),
            // There is no such link.
            link: i32::MAX as u32,
            hook: Hook::LanIngress,
            reason: Reason::TcpOpened,
            addresses: Some((source.parse().unwrap(), destination.parse().unwrap())),
            ports: Some((40_312, 443)),
            protocol: Protocol::Tcp,
            opens: true,
            fragment: false,
            length: Some(74),
            mark: 0xa0,
        }
    }

    #[test]
    fn a_reason_is_explained_once() {
        let mut lines = Lines::new(false);
        let mut line = |decision: &Decision| lines.event(&Event::Decision(decision.clone()));
        assert_eq!(
            line(&decision("10.0.0.5", "203.0.113.1")),
            "12:03:04.123456Z link 2147483647 10.0.0.5:40312 → 203.0.113.1:443 tcp steered tcp_opened: \
             A new TCP connection, given to the proxy.\n"
        );
        assert_eq!(
            line(&decision("2001:db8::5", "2001:db8:f::1")),
            "12:03:04.123456Z link 2147483647 [2001:db8::5]:40312 → [2001:db8:f::1]:443 tcp steered tcp_opened\n"
        );
        let frame = Decision {
            addresses: None,
            ports: None,
            protocol: Protocol::Other,
            reason: Reason::NotIp,
            ..decision("10.0.0.5", "203.0.113.1")
        };
        assert!(line(&frame).contains(" a frame passed not_ip: "));
    }

    #[test]
    fn json_has_one_object_a_line() {
        let mut lines = Lines::new(true);
        let fragment = Decision {
            ports: None,
            fragment: true,
            ..decision("10.0.0.5", "203.0.113.1")
        };
        let line = lines.event(&Event::Decision(fragment));
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["event"], "decision");
        assert_eq!(value["time"], "1970-01-01T12:03:04.123456Z");
        assert_eq!(value["destination"], "203.0.113.1");
        assert_eq!(value["destination_port"], serde_json::Value::Null);
        let message = lines.event(&Event::Message {
            time: SystemTime::UNIX_EPOCH,
            message: Message::NotAssigned,
            error: Some(libc::EOPNOTSUPP),
        });
        let value: serde_json::Value = serde_json::from_str(&message).unwrap();
        assert_eq!(value["message"], "not_assigned");
        assert!(value["error"].as_str().unwrap().contains("not supported"));
        assert_eq!(lines.lost(12), "{\"event\":\"lost\",\"count\":12}\n");
        assert_eq!(lines.lost(12), "");
        assert_eq!(lines.lost(13), "{\"event\":\"lost\",\"count\":1}\n");
    }
}
