//! What is told again and again: by a WebSocket, or as lines of JSON that have no end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{Stream, StreamExt, unfold};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tracing::Level;

use super::connections::Connections;
use super::{Fault, LEVELS, Shared};
use crate::observe::api::Present;
use crate::observe::api::accept::Connection;
use crate::observe::api::reply::{Asking, Failure};
use crate::observe::process;

/// How long a listener may take for a message.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a listener may send, in bytes: nothing that is read.
const LARGEST_MESSAGE: usize = 4096;
/// The usual time between two messages.
const SECOND: Duration = Duration::from_secs(1);

/// The request for a WebSocket, if it is one.
type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// What is told in an endless stream.
trait Teller: Send + 'static {
    /// The next message, when it is time.
    fn next(&mut self) -> impl Future<Output = String> + Send;
}

fn stream(upgrade: Upgrade, connection: Connection, teller: impl Teller) -> Response {
    let lines = unfold(teller, async |mut teller| {
        let line = teller.next().await;
        Some((line, teller))
    });
    match upgrade {
        Ok(upgrade) => upgrade
            .read_buffer_size(LARGEST_MESSAGE)
            .write_buffer_size(0)
            .max_message_size(LARGEST_MESSAGE)
            .max_frame_size(LARGEST_MESSAGE)
            .on_upgrade(|socket| feed(socket, connection, lines)),
        Err(_) => {
            let lines = lines.map(|line| Ok::<_, std::convert::Infallible>(line + "\n"));
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (kind, Body::from_stream(lines)).into_response()
        }
    }
}

async fn feed(
    mut socket: WebSocket,
    mut connection: Connection,
    lines: impl Stream<Item = String> + Send,
) {
    let mut lines = pin!(lines);
    loop {
        tokio::select! {
            line = lines.next() => {
                let Some(line) = line else { return };
                // One that does not read takes the place of another.
                if !matches!(timeout(PATIENCE, socket.send(Message::Text(line.into()))).await, Ok(Ok(()))) {
                    return;
                }
            }
            received = socket.recv() => match received {
                None | Some(Err(_) | Ok(Message::Close(_))) => return,
                Some(Ok(_)) => {}
            },
            () = connection.ended() => return,
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

struct Traffic {
    present: Arc<Present>,
    ticks: Interval,
    before: Option<(u64, u64)>,
}

impl Teller for Traffic {
    async fn next(&mut self) -> String {
        self.ticks.tick().await;
        let stats = self.present.view.stats();
        let now = (stats.bytes_up, stats.bytes_down);
        let before = self.before.replace(now).unwrap_or(now);
        let (up, down) = (now.0 - before.0, now.1 - before.1);
        json!({ "up": up, "down": down, "upTotal": now.0, "downTotal": now.1 }).to_string()
    }
}

pub async fn traffic(
    State(hub): Shared,
    Extension(connection): Extension<Connection>,
    upgrade: Upgrade,
) -> Result<Response, Fault> {
    let teller = Traffic {
        present: hub.present().await?,
        ticks: every(SECOND),
        before: None,
    };
    Ok(stream(upgrade, connection, teller))
}

struct Memory(Interval);

impl Teller for Memory {
    async fn next(&mut self) -> String {
        self.0.tick().await;
        let resident = process::resident().unwrap_or_default();
        json!({ "inuse": resident, "oslimit": 0 }).to_string()
    }
}

pub async fn memory(Extension(connection): Extension<Connection>, upgrade: Upgrade) -> Response {
    stream(upgrade, connection, Memory(every(SECOND)))
}

struct Live {
    present: Arc<Present>,
    ticks: Interval,
}

impl Teller for Live {
    async fn next(&mut self) -> String {
        self.ticks.tick().await;
        let connections = Connections::of(&self.present.view);
        serde_json::to_string(&connections).unwrap_or_default()
    }
}

#[derive(Deserialize)]
pub struct Often {
    /// In milliseconds.
    interval: Option<u64>,
}

/// One answer, or by a WebSocket one after the other.
pub async fn connections(
    State(hub): Shared,
    Extension(connection): Extension<Connection>,
    Asking(Often { interval }): Asking<Often>,
    upgrade: Upgrade,
) -> Result<Response, Fault> {
    let present = hub.present().await?;
    if upgrade.is_err() {
        return Ok(Json(Connections::of(&present.view)).into_response());
    }
    let period = interval.map_or(SECOND, Duration::from_millis);
    let ticks = every(period.clamp(Duration::from_millis(200), Duration::from_secs(60)));
    Ok(stream(upgrade, connection, Live { present, ticks }))
}

impl Teller for crate::observe::log::Follower {
    async fn next(&mut self) -> String {
        let line = Self::next(self).await;
        let found = LEVELS.iter().find(|(_, level)| *level == Some(line.level));
        let word = found.map_or("debug", |(word, _)| word);
        json!({ "type": word, "payload": line.text }).to_string()
    }
}

#[derive(Deserialize)]
pub struct Which {
    level: Option<String>,
}

pub async fn logs(
    State(hub): Shared,
    Extension(connection): Extension<Connection>,
    Asking(Which { level }): Asking<Which>,
    upgrade: Upgrade,
) -> Result<Response, Fault> {
    let word = level.as_deref().unwrap_or("info");
    let level = match LEVELS.iter().find(|(known, _)| *known == word) {
        Some((_, level)) => level.unwrap_or(Level::ERROR),
        None if word == "warn" => Level::WARN,
        None => return Err(Failure::bad(format!("there is no level {word:?}")).into()),
    };
    Ok(stream(upgrade, connection, hub.log.follow(level)))
}
