//! Outbounds and groups as proxies.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tproxy_common::abi::Reason;

use super::{Answer, ByName, Fault, Name, Shared};
use crate::data::{GroupStatus, HealthStatus, OutboundStatus};
use crate::observe::api::reply::{Failure, Sent};
use crate::observe::api::{Hub, Present};
use crate::policy::health::State as Health;

/// All outbounds and groups in their order, as a group that nobody can choose in.
const GLOBAL: &str = "GLOBAL";
/// What the kernel lets pass.
const BYPASS: &str = "BYPASS";

/// All of them, by name.
fn proxies(present: &Present) -> ByName<Value> {
    let (outbounds, groups) = (present.view.outbounds(), present.view.groups());
    let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let mut all = ByName::new();
    let names = groups.iter().map(|group| &group.name);
    let mut names: Vec<String> = names
        .chain(outbounds.iter().map(|one| &one.name))
        .cloned()
        .collect();
    for outbound in &outbounds {
        all.insert(outbound.name.clone(), proxy(outbound, &now));
    }
    for one in &groups {
        let member = now_in(one, &groups, &outbounds);
        all.insert(one.name.clone(), group(one, member, &now));
    }
    if !all.contains_key(BYPASS) {
        all.insert(BYPASS.to_owned(), bypass(present));
        names.push(BYPASS.to_owned());
    }
    all.entry(GLOBAL.to_owned()).or_insert_with(|| {
        json!({
            "name": GLOBAL,
            "type": "Fallback",
            "now": &*present.view.default_exit(),
            "all": names,
            "udp": true,
            "alive": true,
            "history": [],
        })
    });
    all
}

fn proxy(outbound: &OutboundStatus, now: &str) -> Value {
    let scheme = outbound
        .url
        .split_once("://")
        .map_or("", |(scheme, _)| scheme);
    json!({
        "name": outbound.name,
        "type": match scheme {
            "direct" => "Direct",
            "block" => "Reject",
            "socks5" => "Socks5",
            "http" | "https" => "Http",
            "ss" => "Shadowsocks",
            "trojan" => "Trojan",
            other => other,
        },
        "udp": outbound.udp.state != Health::Unsupported,
        "alive": outbound.tcp.state != Health::Down,
        "history": history(Some(&outbound.tcp), now),
        "dialer-proxy": outbound.via.as_deref().unwrap_or_default(),
        "extra": {},
        "xudp": false,
        "tfo": false,
        "mptcp": false,
        "smux": false,
        "interface": "",
        "routing-mark": 0,
    })
}

/// The last check, if there was one.
fn history(health: Option<&HealthStatus>, now: &str) -> Value {
    let delay = health.and_then(|health| match (health.state, health.delay_milliseconds) {
        // 0 is what failed.
        (Health::Down, _) => Some(0),
        (_, delay) => delay.map(|delay| delay.max(1)),
    });
    match delay {
        Some(delay) => json!([{ "time": now, "delay": delay }]),
        None => json!([]),
    }
}

/// The outbound that a group takes in the end.
fn now_in<'o>(
    group: &GroupStatus,
    groups: &[GroupStatus],
    outbounds: &'o [OutboundStatus],
) -> Option<&'o OutboundStatus> {
    let mut name = group.tcp.as_ref()?;
    for _ in groups {
        match groups.iter().find(|other| other.name == *name) {
            Some(inner) => name = inner.tcp.as_ref()?,
            None => break,
        }
    }
    outbounds.iter().find(|outbound| outbound.name == *name)
}

fn group(group: &GroupStatus, member: Option<&OutboundStatus>, now: &str) -> Value {
    let health = member.map(|member| &member.tcp);
    json!({
        "name": group.name,
        "type": match group.kind {
            "select" => "Selector",
            "url-test" => "URLTest",
            "load-balance" => "LoadBalance",
            _ => "Fallback",
        },
        "now": group.tcp.as_deref().unwrap_or_default(),
        "all": group.members,
        "udp": true,
        "alive": health.is_none_or(|health| health.state != Health::Down),
        "history": history(health, now),
        "hidden": false,
        "icon": "",
        "testUrl": "",
        "extra": {},
    })
}

/// What goes by the kernel alone, as a proxy. The bytes are told beside what such a thing has.
fn bypass(present: &Present) -> Value {
    let counters = present.kernel.counters().unwrap_or_default();
    // Not what passes whoever its destination is: answers of the proxy, what is for the gateway itself, other protocols.
    let passes = |reason: Reason| {
        matches!(
            reason,
            Reason::Bypassed
                | Reason::OwnSubnet
                | Reason::PrivateRange
                | Reason::DirectConnection
                | Reason::DirectFragment
                | Reason::DownPassed
        )
    };
    let passed = counters.iter().filter(|(reason, _)| passes(*reason));
    let (packets, bytes) = passed.fold((0, 0), |(packets, bytes), (_, counter)| {
        (packets + counter.packets, bytes + counter.bytes)
    });
    json!({
        "name": BYPASS,
        "type": "Direct",
        "udp": true,
        "alive": true,
        "history": [],
        "packets": packets,
        "bytes": bytes,
    })
}

fn named(present: &Present, name: &str) -> Result<Value, Failure> {
    let found = proxies(present).remove(name);
    found.ok_or_else(|| Failure::missing(format!("there is no outbound or group {name:?}")))
}

pub async fn all(State(hub): Shared) -> Answer {
    let proxies = proxies(&*hub.present().await?);
    Ok(Json(json!({ "proxies": proxies })))
}

pub async fn one(State(hub): Shared, Path(name): Name) -> Answer {
    Ok(Json(named(&*hub.present().await?, &name)?))
}

#[derive(Deserialize)]
pub struct Member {
    name: String,
}

pub async fn select(
    State(hub): Shared,
    Path(group): Name,
    Sent(Member { name }): Sent<Member>,
) -> Result<StatusCode, Fault> {
    let present = hub.present().await?;
    named(&present, &group)?;
    present.view.select(&group, &name).map_err(Failure::bad)?;
    Ok(StatusCode::NO_CONTENT)
}

/// How long the answer to a check took, in milliseconds, at least 1.
async fn check(hub: &Hub, present: &Present, name: &str) -> Result<u64, Failure> {
    let _turn = hub.checks.acquire().await;
    let missing = || Failure::missing(format!("there is no outbound or group {name:?}"));
    let checked = present.view.check(name).await.ok_or_else(missing)?;
    let failed = |error: String| Failure::new(StatusCode::SERVICE_UNAVAILABLE, error);
    let delay: Duration = checked.map_err(failed)?;
    Ok(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).max(1))
}

/// The URL that is asked for is that of `[check]`, whatever the dashboard wants: no page makes the gateway ask for
/// something of its choice.
pub async fn delay(State(hub): Shared, Path(name): Name) -> Answer {
    let present = hub.present().await?;
    let delay = check(&hub, &present, &name).await?;
    Ok(Json(json!({ "delay": delay })))
}

pub async fn group_delay(State(hub): Shared, Path(name): Name) -> Answer {
    let present = hub.present().await?;
    let groups = present.view.groups();
    let group = groups.iter().find(|group| group.name == name);
    let missing = || Failure::missing(format!("there is no group {name:?}"));
    let members = group.ok_or_else(missing)?.members.iter();
    let checks = members.map(async |member| (member, check(&hub, &present, member).await));
    let checked = join_all(checks).await.into_iter();
    let delays: ByName<u64> = checked
        .filter_map(|(member, delay)| Some((member.clone(), delay.ok()?)))
        .collect();
    if delays.is_empty() {
        let text = "no member has answered";
        return Err(Failure::new(StatusCode::GATEWAY_TIMEOUT, text).into());
    }
    Ok(Json(json!(delays)))
}

/// All outbounds as one provider, as those have it that were written down.
fn provided(present: &Present) -> Value {
    let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let outbounds = present.view.outbounds();
    let proxies: Vec<Value> = outbounds.iter().map(|one| proxy(one, &now)).collect();
    json!({
        "name": "default",
        "type": "Proxy",
        "vehicleType": "Compatible",
        "proxies": proxies,
        "testUrl": "",
        "updatedAt": now,
    })
}

pub async fn providers(State(hub): Shared) -> Answer {
    let provided = provided(&*hub.present().await?);
    Ok(Json(json!({ "providers": { "default": provided } })))
}

fn is_provider(name: &str) -> Result<(), Failure> {
    match name {
        "default" => Ok(()),
        _ => Err(Failure::missing(format!("there is no provider {name:?}"))),
    }
}

pub async fn provider(State(hub): Shared, Path(name): Name) -> Answer {
    is_provider(&name)?;
    Ok(Json(provided(&*hub.present().await?)))
}

pub async fn check_all(State(hub): Shared, Path(name): Name) -> Result<StatusCode, Fault> {
    is_provider(&name)?;
    let present = hub.present().await?;
    let outbounds = present.view.outbounds();
    // What came of it is in the proxies.
    join_all(outbounds.iter().map(|one| check(&hub, &present, &one.name))).await;
    Ok(StatusCode::NO_CONTENT)
}
