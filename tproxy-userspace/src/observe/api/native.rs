//! The routes below `/v1/`, and `/metrics`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::flows;
use super::reply::{Asking, Failure, Sent};
use super::{Hub, own_status};
use crate::data::FlowStatus;
use crate::observe::log::Directives;
use crate::observe::metrics::{self, Scrape};
use crate::observe::socket::Request;
use crate::policy::rule::{Protocol, Query};

/// The longest name that is looked up or asked about: what DNS allows.
const LONGEST_NAME: usize = 255;
/// Flows that one request may end.
const MOST_KILLED: usize = 10_000;

type Answer = Result<Json<Value>, Failure>;
type Shared = State<Arc<Hub>>;

/// See the module.
pub fn routes() -> Router<Arc<Hub>> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows).delete(kill))
        .route("/v1/flows/{id}", axum::routing::delete(kill_one))
        .route("/v1/account", get(account))
        .route("/v1/account/direct", get(direct))
        .route("/v1/counters", get(counters))
        .route("/v1/explain", get(explain))
        .route("/v1/lookup", get(look_up))
        .route("/v1/groups", get(groups))
        .route("/v1/groups/{name}", put(select))
        .route("/v1/outbounds", get(outbounds))
        .route("/v1/detach", post(detach))
        .route("/v1/reload", post(reload))
        .route("/v1/apply", post(apply))
        .route("/v1/confirm", post(confirm))
        .route("/v1/log", get(log).put(set_log))
        .route("/metrics", get(metrics))
}

async fn status(State(hub): Shared) -> Answer {
    let mut status = hub.ask(Request::Status, StatusCode::CONFLICT).await?;
    status["log"] = json!(hub.log.directives().to_string());
    status["api"] = own_status(&hub);
    Ok(Json(status))
}

/// There may be many: they are written as they are, without a [`Value`] between.
#[derive(Serialize)]
struct Living {
    flows: Vec<FlowStatus>,
}

async fn flows(
    State(hub): Shared,
    Asking(asked): Asking<flows::Asked>,
) -> Result<Json<Living>, Failure> {
    let filter = flows::Filter::try_from(asked)?;
    let present = hub.present().await?;
    let flows = present.view.flows();
    let flows = filter.apply(flows.iter().map(|flow| flow.status()));
    Ok(Json(Living { flows }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kill {
    flows: Vec<u64>,
}

async fn kill(State(hub): Shared, Sent(Kill { flows }): Sent<Kill>) -> Answer {
    if flows.len() > MOST_KILLED {
        let text = format!("one request ends {MOST_KILLED} flows at most");
        return Err(Failure::bad(text));
    }
    let present = hub.present().await?;
    let (killed, unknown): (Vec<_>, Vec<_>) =
        flows.into_iter().partition(|flow| present.view.kill(*flow));
    Ok(Json(json!({ "killed": killed, "unknown": unknown })))
}

async fn kill_one(State(hub): Shared, Path(id): Path<String>) -> Answer {
    let none = || Failure::missing(format!("no flow that lives has the number {id}"));
    let id: u64 = id.parse().map_err(|_| none())?;
    if !hub.present().await?.view.kill(id) {
        return Err(none());
    }
    Ok(Json(json!({ "killed": [id], "unknown": [] })))
}

async fn account(State(hub): Shared) -> Answer {
    Ok(Json(json!(hub.present().await?.view.account())))
}

async fn direct(State(hub): Shared) -> Answer {
    let direct = hub.present().await?.kernel.direct();
    Ok(Json(json!(direct.map_err(unread)?)))
}

/// The kernel's numbers cannot be read.
fn unread(error: String) -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}

async fn counters(State(hub): Shared) -> Answer {
    let counters = hub.present().await?.kernel.counters();
    let rows = counters.map_err(unread)?.into_iter();
    let rows: Vec<_> = rows.map(metrics::CounterRow::from).collect();
    Ok(Json(json!({ "counters": rows })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Explain {
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    name: Option<String>,
}

async fn explain(State(hub): Shared, Asking(asked): Asking<Explain>) -> Answer {
    let query = Query {
        protocol: asked.protocol,
        source: asked.source,
        destination: asked.destination,
        name: asked.name.as_deref(),
    };
    Ok(Json(json!(hub.present().await?.view.explain(&query))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LookUp {
    name: String,
}

async fn look_up(State(hub): Shared, Asking(LookUp { name }): Asking<LookUp>) -> Answer {
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err(Failure::bad("this is no name"));
    }
    let failed = |error| Failure::new(StatusCode::BAD_GATEWAY, error);
    let found = hub.present().await?.view.look_up(&name).await;
    let addresses = found.transpose().map_err(failed)?;
    Ok(Json(json!({ "addresses": addresses })))
}

async fn groups(State(hub): Shared) -> Answer {
    Ok(Json(
        json!({ "groups": hub.present().await?.view.groups() }),
    ))
}

async fn outbounds(State(hub): Shared) -> Answer {
    Ok(Json(
        json!({ "outbounds": hub.present().await?.view.outbounds() }),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Select {
    member: String,
}

async fn select(
    State(hub): Shared,
    Path(group): Path<String>,
    Sent(Select { member }): Sent<Select>,
) -> Answer {
    let view = &hub.present().await?.view;
    view.select(&group, &member).map_err(|text| {
        let is_there = view.groups().iter().any(|one| one.name == group);
        match is_there {
            true => Failure::bad(text),
            false => Failure::missing(text),
        }
    })?;
    Ok(Json(json!({ "selected": member })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Detach {
    #[serde(default)]
    links: Vec<String>,
}

async fn detach(State(hub): Shared, Sent(Detach { links }): Sent<Detach>) -> Answer {
    if links.len() > 1 {
        return Err(Failure::bad("one link at a time"));
    }
    let request = Request::Detach { links };
    hub.ask(request, StatusCode::NOT_FOUND).await.map(Json)
}

async fn reload(State(hub): Shared) -> Answer {
    let refusal = StatusCode::UNPROCESSABLE_ENTITY;
    hub.ask(Request::Reload, refusal).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Apply {
    text: String,
    path: PathBuf,
    confirm_seconds: Option<u64>,
}

async fn apply(State(hub): Shared, Sent(apply): Sent<Apply>) -> Answer {
    let request = Request::Apply {
        text: apply.text,
        path: apply.path,
        confirm_seconds: apply.confirm_seconds,
    };
    let refusal = StatusCode::UNPROCESSABLE_ENTITY;
    hub.ask(request, refusal).await.map(Json)
}

async fn confirm(State(hub): Shared) -> Answer {
    hub.ask(Request::Confirm, StatusCode::CONFLICT)
        .await
        .map(Json)
}

async fn log(State(hub): Shared) -> Answer {
    Ok(Json(json!({ "filter": hub.log.directives().to_string() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetLog {
    filter: String,
}

async fn set_log(State(hub): Shared, Sent(SetLog { filter }): Sent<SetLog>) -> Answer {
    let directives = Directives::parse(&filter).map_err(|error| Failure::bad(error.to_string()))?;
    // Who only says how much is told does not mean the line for each connection.
    let access = hub.log.tells_access();
    hub.log.set(directives.with_access(access));
    log(State(hub)).await
}

async fn metrics(State(hub): Shared) -> Result<impl IntoResponse, Failure> {
    let present = hub.present().await?;
    let counters = present.kernel.counters().unwrap_or_else(|error| {
        tracing::debug!("reading the kernel's counters for the metrics: {error}");
        Vec::new()
    });
    let scrape = Scrape::take(
        &present.view,
        counters,
        present.started.elapsed(),
        hub.doors(),
    );
    let failed = |_| {
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics cannot be written",
        )
    };
    let text = scrape.text().map_err(failed)?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}
