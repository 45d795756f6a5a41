//! `status`: the first thing a worried user types.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use tproxy_common::abi::{Effect, Settings};
use tproxy_userspace::control::bpf::{self, AttachWay, Maps};
use tproxy_userspace::control::exempt;
use tproxy_userspace::control::gateway;
use tproxy_userspace::control::links::Snapshot;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::control::{Netlink, route};
use tproxy_userspace::observe::socket::{Request, ask};

use super::asking::can_answer;
use super::exempt::Force;
use super::{ReadArgs, output, small_runtime};

/// How long a proxy may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Status {
    /// Is the kernel half attached anywhere?
    attached: bool,
    links: Vec<LinkStatus>,
    rules_and_routes: bool,
    proxy: ProxyStatus,
    on_proxy_down: Option<&'static str>,
    bypass_private: Option<bool>,
    bypass_prefixes: usize,
    exempt: Option<ExemptStatus>,
    counts: Counts,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct LinkStatus {
    name: String,
    index: u32,
    role: &'static str,
    persistent: bool,
    way: &'static str,
}

#[derive(Serialize)]
struct ProxyStatus {
    running: bool,
    pid: Option<u32>,
    /// What the proxy itself says; null if it does not answer.
    detail: Option<Value>,
}

#[derive(Serialize)]
struct ExemptStatus {
    entries: usize,
    in_force: Force,
}

#[derive(Default, Serialize)]
struct Counts {
    passed_packets: u64,
    steered_packets: u64,
    dropped_packets: u64,
}

pub fn status(args: &ReadArgs) -> Result<ExitCode> {
    let place = Place::current()?;
    let status = read(&place)?;
    if args.json {
        output::json(&status)?;
    } else {
        output::text_out(&text(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(place: &Place) -> Result<Status> {
    let (snapshot, routes) = small_runtime()?.block_on(async {
        let netlink = Netlink::open()?;
        anyhow::Ok((
            Snapshot::take(&netlink).await?,
            route::present(&netlink).await?,
        ))
    })?;
    let pid = place.proxy_pid();
    let mut warnings = routes.warnings.clone();
    let detail = pid.and_then(|pid| {
        let asked = can_answer(pid).and_then(|()| {
            let asked = ask(&place.control_socket(), &Request::Status, PATIENCE);
            asked.map_err(anyhow::Error::from)
        });
        asked
            .inspect_err(|error| warnings.push(error.to_string()))
            .ok()
    });
    let mut status = Status {
        attached: false,
        links: Vec::new(),
        rules_and_routes: routes.families.iter().all(route::FamilyState::is_complete),
        proxy: ProxyStatus {
            running: pid.is_some(),
            pid,
            detail,
        },
        on_proxy_down: None,
        bypass_private: None,
        bypass_prefixes: 0,
        exempt: None,
        counts: Counts::default(),
        warnings,
    };
    let maps = match Maps::open(place.pins()) {
        // Who may only use the socket sees what it tells.
        Err(error @ bpf::Error::Denied(_)) if status.proxy.detail.is_some() => {
            status.warnings.push(error.to_string());
            None
        }
        maps => maps?,
    };
    if let Some(maps) = maps {
        fill(&mut status, &maps, &snapshot)?;
        status.exempt = Some(ExemptStatus {
            entries: exempt::list(&maps)?.len(),
            in_force: Force::of(place, &maps)?,
        });
    }
    Ok(status)
}

fn fill(status: &mut Status, maps: &Maps, snapshot: &Snapshot) -> Result<()> {
    for link in gateway::links(maps, snapshot)? {
        if snapshot.link(link.index).is_none() {
            status
                .warnings
                .push(format!("the link with index {} is gone", link.index));
        }
        let (roles, stays) = (link.roles(), link.stays());
        for (role, has, persistent) in
            [("lan", roles.lan, stays.lan), ("wan", roles.wan, stays.wan)]
        {
            if has {
                status.links.push(LinkStatus {
                    name: link.name.clone(),
                    index: link.index,
                    role,
                    persistent,
                    way: match link.way() {
                        AttachWay::Tcx => "tcx",
                        AttachWay::Clsact => "clsact",
                    },
                });
            }
        }
    }
    status.links.sort_by(|a, b| a.name.cmp(&b.name));
    status.attached = !status.links.is_empty();
    let settings = maps.settings()?;
    let drops = settings.has(Settings::DOWN_DROPS);
    status.on_proxy_down = Some(if drops { "drop" } else { "pass" });
    status.bypass_private = Some(settings.has(Settings::BYPASS_PRIVATE));
    let (v4, v6) = maps.bypass_count()?;
    status.bypass_prefixes = v4 + v6;
    for (reason, counter) in maps.counters()? {
        *match reason.effect() {
            Effect::Pass => &mut status.counts.passed_packets,
            Effect::Steer => &mut status.counts.steered_packets,
            Effect::Drop => &mut status.counts.dropped_packets,
        } += counter.packets;
    }
    if status.attached && !status.rules_and_routes {
        status.warnings.push(
            "rules or routes are missing, so steered packets go astray; `tproxy-bpf attach` or a \
             restart of the proxy puts them back"
                .into(),
        );
    }
    Ok(())
}

/// The outbounds that rules may lead to.
fn other_outbounds(detail: &Value) -> Option<String> {
    let rules = detail["rules"].as_u64().filter(|rules| *rules > 0)?;
    let all = ["outbounds", "groups"].into_iter();
    let all = all.flat_map(|key| detail[key].as_array().into_iter().flatten());
    let names = all.filter_map(|one| one["name"].as_str());
    // Those that are there without being named may be left out.
    let names: Vec<_> = names
        .filter(|name| detail["default"] != *name && *name != "block")
        .collect();
    let rules = match rules {
        1 => "1 rule".to_owned(),
        rules => format!("{} rules", output::number(rules)),
    };
    Some(format!("{}; {rules}", names.join(", ")))
}

/// What is known of outbounds and groups, each with its name.
fn health(detail: &Value) -> Vec<(String, String)> {
    let list = |key: &str| detail[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let mut lines = Vec::new();
    for group in list("groups") {
        let now = |protocol: &str| group[protocol].as_str().map(ToOwned::to_owned);
        let members = match (now("tcp"), now("udp")) {
            (Some(tcp), Some(udp)) if tcp == udp => format!("{tcp} now"),
            (Some(tcp), Some(udp)) => format!("{tcp} for TCP now, {udp} for UDP"),
            _ => {
                let members = group["members"].as_array().into_iter().flatten();
                members.map(text).collect::<Vec<_>>().join(", ")
            }
        };
        lines.push((
            text(&group["name"]),
            format!("{}: {members}", text(&group["kind"])),
        ));
    }
    for outbound in list("outbounds") {
        let parts = ["tcp", "udp"].into_iter().filter_map(|protocol| {
            let of = &outbound[protocol];
            let state = of["state"].as_str()?;
            // Nothing is known, or the URL says it.
            if of["error"].is_null() && matches!(state, "unknown" | "unsupported") {
                return None;
            }
            let since = Duration::from_secs(of["since_seconds"].as_u64().unwrap_or(0));
            let mut part = format!("{} {state}", protocol.to_uppercase());
            if let Some(delay) = of["delay_milliseconds"].as_u64().filter(|_| state == "up") {
                part.push_str(&format!(", {delay} ms"));
            }
            if state != "unknown" {
                part.push_str(&format!(", for {}", output::duration(since)));
            }
            if let Some(error) = of["error"].as_str() {
                part.push_str(&format!(": {error}"));
            }
            Some(part)
        });
        let parts: Vec<String> = parts.collect();
        if !parts.is_empty() {
            lines.push((text(&outbound["name"]), parts.join("; ")));
        }
    }
    lines
}

/// What the process of the proxy may do.
fn held(process: &Value) -> Option<String> {
    let user = process["user"].as_str()?;
    let capabilities = process["capabilities"].as_array()?.iter();
    let capabilities: Vec<_> = capabilities.filter_map(Value::as_str).collect();
    let calls = match process["seccomp"].as_bool()? {
        true => "filtered",
        false => "not filtered",
    };
    let capabilities = match capabilities.is_empty() {
        true => "no capability".to_owned(),
        false => capabilities.join(" "),
    };
    Some(format!(
        "user {user}; {capabilities}; system calls are {calls}"
    ))
}

/// What the resolver does.
fn dns(detail: &Value) -> Option<String> {
    let dns = detail["dns"].as_object()?;
    let count = |key: &str| {
        let count = dns.get(key).and_then(Value::as_u64);
        output::number(count.unwrap_or(0))
    };
    let learned = detail["learned"]["bypassed"].as_u64().unwrap_or(0);
    Some(format!(
        "{} questions: {} of the cache, {} asked directly, {} through the outbound, {} failed; {} addresses of names \
         go direct",
        count("queries"),
        count("cache_hits"),
        count("direct"),
        count("proxy"),
        count("failures"),
        output::number(learned)
    ))
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<14} {value}");
    };
    let down = match status.on_proxy_down {
        Some("drop") => "new traffic is dropped",
        _ => "new traffic goes direct",
    };
    match (&status.proxy.pid, &status.proxy.detail) {
        (Some(pid), Some(detail)) => {
            let uptime = Duration::from_secs(detail["uptime_seconds"].as_u64().unwrap_or(0));
            let uptime = output::duration(uptime);
            line("proxy", &format!("running since {uptime}, process {pid}"));
            if detail["restarting"] == true {
                line(
                    "restart",
                    "this process serves until the next one takes over; `systemctl status` says why none does",
                );
            }
            if let Some(left) = detail["trial_seconds"].as_u64() {
                line(
                    "on trial",
                    &format!(
                        "the configuration holds for {left} s more; `tproxy-bpf confirm` keeps it"
                    ),
                );
            }
            for old in detail["draining"].as_array().into_iter().flatten() {
                line(
                    "draining",
                    &format!(
                        "process {}, which was taken over from: {} connections, {} associations",
                        old["pid"], old["connections"], old["associations"]
                    ),
                );
            }
            if let Some(held) = held(&detail["process"]) {
                line("holds", &held);
            }
            line("outbound", detail["outbound"].as_str().unwrap_or("?"));
            let servers: Vec<_> = detail["servers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            if !servers.is_empty() {
                line("server at", &servers.join(", "));
            }
            if let Some(names) = other_outbounds(detail) {
                line("and by rules", &names);
            }
            for (name, text) in health(detail) {
                line(&format!("  {name}"), &text);
            }
            if let Some(text) = dns(detail) {
                line("dns", &text);
            }
            let traffic = &detail["traffic"];
            let count = |key: &str| output::number(traffic[key].as_u64().unwrap_or(0));
            line(
                "connections",
                &format!(
                    "{} now, {} in all; the limit is {}",
                    count("connections"),
                    count("connections_total"),
                    output::number(traffic["limits"]["connections"].as_u64().unwrap_or(0))
                ),
            );
            line(
                "associations",
                &format!(
                    "{} now, {} in all",
                    count("associations"),
                    count("associations_total")
                ),
            );
            let failures: Vec<String> = traffic["failures"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(word, count)| {
                    let count = output::number(count.as_u64().unwrap_or(0));
                    format!("{count} {word}")
                })
                .collect();
            if !failures.is_empty() {
                line("failures", &failures.join(", "));
            }
            for limit in detail["limits_reached"].as_array().into_iter().flatten() {
                let text = |key: &str| limit[key].as_str().unwrap_or("?");
                let times = output::number(limit["times"].as_u64().unwrap_or(0));
                let (what, remedy) = (text("what"), text("remedy"));
                line(
                    "limit reached",
                    &format!("{what} ({times} times); {remedy}"),
                );
            }
            if traffic["blocked"].as_u64() > Some(0) {
                line("blocked", &count("blocked"));
            }
        }
        (Some(pid), None) => line("proxy", &format!("process {pid} runs but does not answer")),
        (None, _) if status.attached => line("proxy", &format!("not running: {down}")),
        (None, _) => line("proxy", "not running"),
    }
    if status.attached {
        for link in &status.links {
            let stays = if link.persistent {
                ", stays without a proxy"
            } else {
                ""
            };
            line(
                "link",
                &format!("{} ({}, {}{stays})", link.name, link.role, link.way),
            );
        }
        line("if it is down", down);
        let private = if status.bypass_private == Some(true) {
            " and private ranges"
        } else {
            ""
        };
        let prefixes = output::prefixes(status.bypass_prefixes);
        line("bypass", &format!("{prefixes}{private}"));
        if let Some(exempt) = &status.exempt
            && (exempt.entries > 0 || exempt.in_force.wan)
        {
            let force = exempt.in_force.text();
            let entries = if exempt.entries == 1 {
                "entry"
            } else {
                "entries"
            };
            line("exempt", &format!("{} {entries}; {force}", exempt.entries));
        }
        line(
            "packets",
            &format!(
                "{} passed, {} steered, {} dropped (`tproxy-bpf counters` says why)",
                output::number(status.counts.passed_packets),
                output::number(status.counts.steered_packets),
                output::number(status.counts.dropped_packets)
            ),
        );
    } else if status.on_proxy_down.is_some() || status.proxy.detail.is_none() {
        line("links", "none is attached");
    }
    for warning in &status.warnings {
        line("warning", warning);
    }
    text
}
