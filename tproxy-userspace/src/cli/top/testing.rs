//! Samples for tests.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tproxy_common::abi::{Counter, Reason};

use super::sample::{Answer, Kernel, Sample, Sums, Whole};
use super::state::State;

/// The process of most tests.
pub const PID: u32 = 4711;

/// A flow as the proxy tells it; `keys` take the place of what it has by itself.
pub fn flow(id: u64, up: u64, down: u64, keys: Value) -> Value {
    let mut flow = json!({
        "id": id, "protocol": "tcp", "client": format!("[::ffff:10.0.0.5]:{id}"), "destination": "203.0.113.1:443",
        "name": "www.example.com", "outbound": "far", "group": "auto", "rule": null,
        "up": up, "down": down, "age_ms": 3_000,
    });
    for (key, value) in keys.as_object().into_iter().flatten() {
        flow[key] = value.clone();
    }
    flow
}

/// The state of the proxy, as it tells it.
pub fn status(pid: u32, up: u64, down: u64) -> Value {
    let health = |state: &str| json!({ "state": state, "since_seconds": 3_700, "delay_milliseconds": 12, "error": null, "check_in_seconds": 3 });
    json!({
        "pid": pid, "uptime_seconds": 7_300, "rules": 2, "trial_seconds": null, "draining": [],
        "outbounds": [
            { "name": "far", "url": "socks5://192.0.2.1:1080", "tcp": health("up"), "udp": health("down") },
            { "name": "direct", "url": "direct://", "tcp": health("unknown"), "udp": health("unknown") },
        ],
        "groups": [{ "name": "auto", "kind": "select", "members": ["far", "direct"], "tcp": "far", "udp": null }],
        "traffic": {
            "connections": 12, "associations": 3, "bytes_up": up, "bytes_down": down,
            "limits": { "open_files": 20_000, "connections": 7_212, "associations": 2_500, "pipes": 256 },
        },
    })
}

/// Makes samples, the first one at some moment.
pub struct Samples(Instant);

impl Default for Samples {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Samples {
    /// So many milliseconds after the first, with these parts of the answers.
    pub fn whole(&self, at_ms: u64, status: &Value, flows: &[Value], account: &Value) -> Sample {
        let at = self.0 + Duration::from_millis(at_ms);
        let read = |value: &Value| serde_json::from_value(value.clone()).expect("a flow");
        Sample {
            kernel: Ok(Some(self.kernel(at_ms, &[]))),
            proxy: Answer::Whole(Box::new(Whole {
                status: serde_json::from_value(status.clone()).expect("a status"),
                status_at: at,
                flows: flows.iter().map(read).collect(),
                flows_at: at,
                sums: serde_json::from_value::<Sums>(account.clone()).expect("an account"),
                sums_at: at,
            })),
        }
    }

    /// With nothing but flows.
    pub fn flows(&self, at_ms: u64, flows: &[Value]) -> Sample {
        self.whole(at_ms, &status(PID, 0, 0), flows, &json!({}))
    }

    /// With no proxy.
    pub fn none(&self, at_ms: u64, counters: &[(Reason, u64, u64)]) -> Sample {
        Sample {
            kernel: Ok(Some(self.kernel(at_ms, counters))),
            proxy: Answer::None,
        }
    }

    /// With these counts; 0 for all others.
    pub fn kernel(&self, at_ms: u64, counters: &[(Reason, u64, u64)]) -> Kernel {
        let counter = |reason: &Reason| {
            let found = counters.iter().find(|(of, ..)| of == reason);
            let (packets, bytes) = found.map_or((0, 0), |(_, packets, bytes)| (*packets, *bytes));
            (*reason, Counter { packets, bytes })
        };
        Kernel {
            at: self.0 + Duration::from_millis(at_ms),
            counters: Reason::ALL.iter().map(counter).collect(),
            down_drops: true,
        }
    }
}

/// Presses keys: letters stand for themselves.
pub fn press(state: &mut State, keys: &str) {
    use ratatui::crossterm::event::{KeyCode, KeyModifiers};
    for key in keys.chars() {
        state.press(ratatui::crossterm::event::KeyEvent::new(
            KeyCode::Char(key),
            KeyModifiers::NONE,
        ));
    }
}
