//! What the dashboards made for Clash ask: the part of its REST interface that shows what is there here.

mod connections;
mod proxies;
mod streams;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::Level;

use super::Hub;
use super::reply::{Asking, Failure, Sent};
use crate::observe::log::{Directives, Log};
use crate::observe::socket::Request;

type Shared = State<Arc<Hub>>;
type Answer = Result<Json<Value>, Fault>;

/// A failure as these dashboards read it.
#[derive(Debug)]
pub struct Fault(Failure);

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let Failure { status, text } = self.0;
        let body = json!({ "error": text, "message": text });
        (status, Json(body)).into_response()
    }
}

/// See the module.
pub fn routes() -> Router<Arc<Hub>> {
    let provider = "/providers/proxies/{name}";
    Router::new()
        .route("/", get(async || Json(json!({ "hello": "clash" }))))
        .route("/version", get(version))
        .route("/configs", get(configs).patch(change_configs).put(reload))
        .route("/rules", get(rules))
        .route(
            "/providers/rules",
            get(async || Json(json!({ "providers": {} }))),
        )
        .route("/proxies", get(proxies::all))
        .route("/proxies/{name}", get(proxies::one).put(proxies::select))
        .route("/proxies/{name}/delay", get(proxies::delay))
        .route("/group/{name}/delay", get(proxies::group_delay))
        .route("/providers/proxies", get(proxies::providers))
        .route(provider, get(proxies::provider))
        .route(&format!("{provider}/healthcheck"), get(proxies::check_all))
        .route(
            "/connections",
            get(streams::connections).delete(connections::kill_all),
        )
        .route("/connections/{id}", delete(connections::kill))
        .route("/traffic", get(streams::traffic))
        .route("/memory", get(streams::memory))
        .route("/logs", get(streams::logs))
        .route("/dns/query", get(dns_query))
}

async fn version() -> Json<Value> {
    let version = format!("tproxy-bpf {}", env!("CARGO_PKG_VERSION"));
    Json(json!({ "version": version, "meta": true, "premium": true }))
}

/// Levels by the names that these dashboards have for them.
const LEVELS: [(&str, Option<Level>); 5] = [
    ("debug", Some(Level::DEBUG)),
    ("info", Some(Level::INFO)),
    ("warning", Some(Level::WARN)),
    ("error", Some(Level::ERROR)),
    ("silent", None),
];

fn level_word(log: &Log) -> &'static str {
    let level = log.level().map(|level| level.min(Level::DEBUG));
    let found = LEVELS.iter().find(|(_, one)| *one == level);
    found.map_or("info", |(word, _)| word)
}

/// Nothing of it is a secret: the configuration itself is not told here.
async fn configs(State(hub): Shared) -> Json<Value> {
    Json(json!({
        "port": 0,
        "socks-port": 0,
        "redir-port": 0,
        "tproxy-port": 0,
        "mixed-port": 0,
        "allow-lan": true,
        "bind-address": "*",
        "mode": "rule",
        "mode-list": ["rule"],
        "modes": ["rule"],
        "log-level": level_word(&hub.log),
        "ipv6": true,
        "sniffing": true,
        "tun": { "enable": false },
    }))
}

async fn change_configs(
    State(hub): Shared,
    Sent(changes): Sent<Map<String, Value>>,
) -> Result<StatusCode, Fault> {
    let mut level = None;
    for (key, value) in &changes {
        match (&**key, value.as_str()) {
            ("mode", Some(mode)) if mode.eq_ignore_ascii_case("rule") => {}
            ("log-level", Some(word)) => {
                let found = LEVELS.iter().find(|(known, _)| *known == word);
                let (_, found) =
                    found.ok_or_else(|| Failure::bad(format!("there is no level {word:?}")))?;
                level = Some(found.map_or("off", |level| level.as_str()));
            }
            _ => {
                let text = format!(
                    "`{key}` cannot be changed to {value} here; the configuration says what holds"
                );
                return Err(Failure::bad(text).into());
            }
        }
    }
    if let Some(level) = level {
        let directives =
            Directives::parse(level).map_err(|error| Failure::bad(error.to_string()))?;
        hub.log.set(directives.with_access(hub.log.tells_access()));
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Default, Deserialize)]
struct Reload {
    #[serde(default)]
    path: String,
    #[serde(default)]
    payload: String,
}

async fn reload(
    State(hub): Shared,
    sent: Result<Sent<Reload>, Failure>,
) -> Result<StatusCode, Fault> {
    // No body is as good as an empty one.
    let Sent(Reload { path, payload }) = sent.unwrap_or(Sent(Reload::default()));
    if !path.is_empty() || !payload.is_empty() {
        let text =
            "the configuration is read from the file that the proxy was started with, no other";
        return Err(Failure::bad(text).into());
    }
    hub.ask(Request::Reload, StatusCode::UNPROCESSABLE_ENTITY)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn rules(State(hub): Shared) -> Answer {
    let default = hub.present().await?.view.default_exit();
    let facts = hub.facts();
    let rule = |kind: &str, payload: &str, exit: &str| json!({ "type": kind, "payload": payload, "proxy": exit, "size": -1 });
    let rules = facts.rules.iter();
    let mut rules: Vec<Value> = rules
        .map(|one| {
            rule(
                one.kind,
                &format!("{}: {}", one.name, one.conditions),
                &one.outbound,
            )
        })
        .collect();
    rules.push(rule("Match", "", &default));
    Ok(Json(json!({ "rules": rules })))
}

#[derive(Deserialize)]
struct DnsQuery {
    name: String,
    #[serde(rename = "type", default)]
    kind: String,
}

async fn dns_query(State(hub): Shared, Asking(asked): Asking<DnsQuery>) -> Answer {
    const A: u16 = 1;
    const AAAA: u16 = 28;
    let kind = match &*asked.kind.to_ascii_uppercase() {
        "" | "A" => A,
        "AAAA" => AAAA,
        other => {
            let text = format!("only addresses are looked up here (A, AAAA), not {other}");
            return Err(Failure::bad(text).into());
        }
    };
    let name = asked.name.trim_end_matches('.');
    if name.is_empty() || name.len() > 253 {
        return Err(Failure::bad("this is no name").into());
    }
    let found = hub.present().await?.view.look_up(name).await;
    let none = || Failure::missing("there is no resolver: the configuration has no [dns]");
    let failed = |error| Failure::new(StatusCode::BAD_GATEWAY, error);
    let found = found.ok_or_else(none)?.map_err(failed)?;
    let fits = |address: &&IpAddr| address.is_ipv4() == (kind == A);
    let answers = found.iter().filter(fits).map(
        |address| json!({ "name": format!("{name}."), "type": kind, "TTL": 0, "data": address }),
    );
    let answers: Vec<Value> = answers.collect();
    Ok(Json(json!({
        "Status": 0,
        "TC": false,
        "RD": true,
        "RA": true,
        "AD": false,
        "CD": false,
        "Question": [{ "Name": format!("{name}."), "Qtype": kind, "Qclass": 1 }],
        "Answer": answers,
    })))
}

/// The parts of a path, decoded.
type Name = Path<String>;

/// What is told by name.
type ByName<T> = BTreeMap<String, T>;
