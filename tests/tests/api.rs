//! The control API of a running proxy: what scripts, Prometheus, dashboards and the commands get from it, and what
//! those get who may not ask.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Panel,
    api::{ECHO, NAME, PAGE, Stream, TOKEN, of_project, samples},
    probe::{End, read_to_end},
    traffic::{connect, whoami},
    wait::{SOON, until},
};
use serde_json::{Value, json};

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}")
}

/// The connections to the echo, as dashboards see them.
fn echoes(panel: &Panel) -> Result<Vec<Value>> {
    let all = panel.get("/connections")?.json()?;
    let all = all["connections"].as_array().context("a list")?;
    let port = ECHO.to_string();
    let meant = |one: &&Value| one["metadata"]["destinationPort"] == *port;
    Ok(all.iter().filter(meant).cloned().collect())
}

#[test]
fn flows_are_shown_found_and_ended_by_http() -> Result<()> {
    let panel = Panel::start(None)?;
    let socket = panel.lab.state().join("control.sock");
    assert_eq!(fs::metadata(socket)?.permissions().mode() & 0o777, 0o600);
    let (first, second) = (panel.open()?, panel.open()?);
    let flows = |query: &str| -> Result<Vec<Value>> {
        let answer = panel.unix("GET", &format!("/v1/flows?{query}"), None)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        Ok(answer.json()?["flows"]
            .as_array()
            .context("a list")?
            .clone())
    };
    let found = flows("device=10.77.0.0/24&destination=203.0.113.1&outbound=mine&protocol=tcp")?;
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0]["client"], first.local_addr()?.to_string());
    assert_eq!(found[0]["rule"], "echoes");
    assert_eq!(
        flows("outbound=mine&limit=1&sort=newest")?[0]["client"],
        second.local_addr()?.to_string()
    );
    assert!(flows("device=192.0.2.99")?.is_empty());

    let id = found[0]["id"].as_u64().context("a number")?;
    assert_eq!(
        panel
            .unix("DELETE", &format!("/v1/flows/{id}"), None)?
            .status,
        200
    );
    assert_eq!(read_to_end(&first)?.1, End::Reset);
    assert_eq!(
        panel
            .unix("DELETE", &format!("/v1/flows/{id}"), None)?
            .status,
        404
    );
    let both = json!({ "flows": [id, found[1]["id"]] });
    let answer = panel.unix("DELETE", "/v1/flows", Some(&both))?.json()?;
    assert_eq!(
        answer,
        json!({ "killed": [found[1]["id"]], "unknown": [id] })
    );
    assert_eq!(read_to_end(&second)?.1, End::Reset);

    let account = panel.unix("GET", "/v1/account", None)?.json()?;
    assert_eq!(account["devices"][0][0], Family::V4.device().to_string());
    let direct = panel.get("/v1/account/direct")?.json()?;
    assert_eq!(direct["is_counted"], false, "{direct}");
    let counters = panel.get("/v1/counters")?.json()?;
    let counters = counters["counters"].as_array().context("a list")?;
    let opened = counters.iter().find(|row| row["reason"] == "tcp_opened");
    assert!(opened.context("no such counter")?["packets"].as_u64() >= Some(2));
    let explain = "/v1/explain?protocol=tcp&source=10.77.0.2:1&destination=203.0.113.1:7";
    let explained = panel.unix("GET", explain, None)?.json()?;
    assert_eq!(explained["rule"]["name"], "echoes", "{explained}");
    let chosen = panel.unix("PUT", "/v1/groups/mine", Some(&json!({ "member": "two" })))?;
    assert_eq!(chosen.json()?["selected"], "two");
    let third = panel.open()?;
    assert_eq!(panel.echo_client()?, Family::V4.upstream(3));
    drop(third);
    for (group, member, status) in [
        ("mine", "nobody", 400),
        ("nobody", "one", 404),
        ("auto", "two", 400),
    ] {
        let path = format!("/v1/groups/{group}");
        let answer = panel.unix("PUT", &path, Some(&json!({ "member": member })))?;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    Ok(())
}

#[test]
fn only_those_may_ask_who_know_the_token_from_pages_and_by_names_that_are_known() -> Result<()> {
    let panel = Panel::start(None)?;
    let (token, page) = (bearer(), format!("Origin: {PAGE}"));
    let asked = "Access-Control-Request-Method: PUT";
    for (method, headers, status) in [
        ("GET", &[&*token][..], 200),
        ("GET", &[], 401),
        ("GET", &["Authorization: Bearer wrong"], 401),
        ("GET", &[&token, &format!("Host: {NAME}:9090")], 200),
        ("GET", &[&token, "Host: evil.lab:9090"], 403),
        ("GET", &[&token, "Origin: https://evil.lab"], 403),
        ("GET", &[&token, &page], 200),
        ("PUT", &[], 401),
        ("POST", &[&token, "Host: evil.lab:9090"], 403),
        ("DELETE", &[&token, "Origin: https://evil.lab"], 403),
        ("OPTIONS", &[&page, asked], 204),
        ("OPTIONS", &["Origin: https://evil.lab", asked], 403),
        ("OPTIONS", &[asked], 204),
    ] {
        for path in ["/v1/flows", "/configs", "/metrics", "/nothing"] {
            let answer = panel.curl(method, path, headers, None)?;
            let wanted = if status == 200 && path == "/nothing" {
                404
            } else {
                status
            };
            assert_eq!(
                answer.status, wanted,
                "{method} {path} {headers:?}: {answer:?}"
            );
            let is_allowed = answer.head.contains("access-control-allow-origin");
            assert_eq!(is_allowed, headers.contains(&&*page), "{answer:?}");
        }
    }
    // A WebSocket has it in its address, and a page of its own.
    let in_address = format!("/traffic?token={}", TOKEN.replace(' ', "+"));
    Stream::open(&panel, &in_address, None)?.receive()?;
    Stream::open(&panel, &in_address, Some(PAGE))?.receive()?;
    for (path, origin, status) in [
        ("/traffic", None, "401"),
        ("/traffic?token=wrong", None, "401"),
        (&*in_address, Some("https://evil.lab"), "403"),
    ] {
        let error = Stream::open(&panel, path, origin).expect_err("refused");
        assert!(error.to_string().contains(status), "{error}");
    }
    // Not so what is asked otherwise: addresses are noted in many places.
    assert_eq!(panel.curl("GET", &in_address, &[], None)?.status, 401);
    // Nobody but root by the socket, and no token there.
    assert_eq!(panel.unix("GET", "/version", None)?.status, 200);

    let samples = samples(&panel.get("/metrics")?.body)?;
    let refused = |why: &str| {
        let name = format!("tproxy_api_refused_total{{why=\"{why}\"}}");
        samples
            .iter()
            .find(|(sample, _)| *sample == name)
            .map(|(_, value)| *value)
    };
    assert_eq!(refused("token"), Some(12.0 + 3.0));
    assert_eq!(refused("host"), Some(8.0));
    assert_eq!(refused("origin"), Some(12.0 + 1.0));
    Ok(())
}

#[test]
fn nothing_tells_a_secret() -> Result<()> {
    let panel = Panel::start(None)?;
    for path in [
        "/v1/status",
        "/v1/outbounds",
        "/v1/groups",
        "/configs",
        "/proxies",
        "/proxies/secret",
        "/providers/proxies",
        "/rules",
        "/connections",
        "/metrics",
    ] {
        let answer = panel.get(path)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        for word in ["hunter2", TOKEN] {
            assert!(!answer.body.contains(word), "{path}: {}", answer.body);
        }
    }
    let log = panel.tproxy.process().lines().join("\n");
    ensure!(!log.contains(TOKEN) && !log.contains("hunter2"), "{log}");
    Ok(())
}

#[test]
fn what_is_too_much_is_refused_and_nobody_waits_for_the_slow() -> Result<()> {
    let panel = Panel::start(None)?;
    let large = json!({ "filter": "x".repeat(100_000) });
    assert_eq!(panel.send("PUT", "/v1/log", Some(&large))?.status, 413);
    assert_eq!(panel.send("DELETE", "/v1/status", None)?.status, 405);
    assert_eq!(panel.get("/v1/nothing")?.status, 404);

    // A head that comes byte by byte, a body that does not come, and an answer that nobody reads.
    let say = |text: &str| -> Result<TcpStream> {
        let mut stream = connect(&panel.lab.device, Panel::address())?;
        stream.write_all(text.as_bytes())?;
        Ok(stream)
    };
    let head = format!("Host: 10.77.0.1\r\n{}\r\n", bearer());
    let mut slow = vec![
        say("GET /v1/fl")?,
        say(&format!(
            "PUT /v1/log HTTP/1.1\r\n{head}Content-Length: 50\r\n\r\n{{"
        ))?,
        say(&format!("GET /logs HTTP/1.1\r\n{head}\r\n"))?,
    ];
    let start = Instant::now();
    assert_eq!(panel.get("/v1/flows")?.status, 200);
    ensure!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    let mut answer = String::new();
    slow[1].set_read_timeout(Some(2 * SOON))?;
    let mut bytes = [0; 512];
    let read = slow[1].read(&mut bytes)?;
    answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
    ensure!(answer.starts_with("HTTP/1.1 408"), "{answer}");

    // A hundred at a time: each is served or refused, and then all is as before.
    let files = panel.tproxy.open_sockets()?;
    let mut many = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(&panel.lab.device, Panel::address())?;
        stream.set_read_timeout(Some(SOON))?;
        // One that is refused may be reset under it.
        let _ = stream.write_all(format!("GET /version HTTP/1.1\r\n{head}\r\n").as_bytes());
        many.push(stream);
    }
    let (mut served, mut refused) = (0, 0);
    for stream in &mut many {
        let mut bytes = [0; 64];
        match stream.read(&mut bytes) {
            Ok(read) if bytes[..read].starts_with(b"HTTP/1.1 200") => served += 1,
            Ok(_) | Err(_) => refused += 1,
        }
    }
    eprintln!("{served} of 100 were served, {refused} refused");
    ensure!(
        served >= 50 && refused >= 36 && served + refused == 100,
        "{served} {refused}"
    );
    // The commands have places of their own.
    panel.lab.tproxy_run(&["status", "--json"])?.ok()?;
    drop(many);
    drop(slow);
    until("the connections to be closed", 2 * SOON, || {
        Ok((panel.tproxy.open_sockets()? <= files).then_some(()))
    })?;
    assert_eq!(panel.get("/version")?.status, 200);
    // All the while devices were served.
    whoami(&panel.lab.device, Family::V4.far(1))?;
    Ok(())
}

#[test]
fn dashboards_get_what_they_ask_for() -> Result<()> {
    let panel = Panel::start(None)?;
    assert_eq!(panel.get("/")?.json()?["hello"], "clash");
    let version = panel.get("/version")?.json()?;
    assert_eq!(version["meta"], true);
    let configs = panel.get("/configs")?.json()?;
    assert_eq!(
        (&configs["mode"], &configs["log-level"]),
        (&json!("rule"), &json!("info"))
    );

    // Outbounds and groups.
    let proxies = panel.get("/proxies")?.json()?["proxies"].clone();
    for (name, kind) in [
        ("one", "Socks5"),
        ("secret", "Trojan"),
        ("direct", "Direct"),
        ("block", "Reject"),
        ("auto", "Fallback"),
        ("mine", "Selector"),
        ("BYPASS", "Direct"),
    ] {
        assert_eq!(proxies[name]["type"], kind, "{name}");
        assert_eq!(proxies[name]["name"], name);
        assert!(proxies[name]["history"].is_array() && proxies[name]["udp"].is_boolean());
    }
    assert_eq!(proxies["mine"]["all"], json!(["one", "two", "direct"]));
    assert_eq!(proxies["mine"]["now"], "one");
    assert_eq!(proxies["GLOBAL"]["now"], "auto");
    assert!(proxies["one"]["history"][0]["delay"].as_u64() > Some(0));
    assert_eq!(panel.get("/proxies/nobody")?.status, 404);
    let select = |group: &str, member: &str| {
        panel.send(
            "PUT",
            &format!("/proxies/{group}"),
            Some(&json!({ "name": member })),
        )
    };
    let connection = panel.open()?;
    assert_eq!(panel.echo_client()?, Family::V4.upstream(2));
    assert_eq!(select("mine", "two")?.status, 204);
    for (group, member, status) in [
        ("mine", "x", 400),
        ("auto", "two", 400),
        ("x", "two", 404),
        ("GLOBAL", "one", 400),
    ] {
        let answer = select(group, member)?;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.json()?["message"].is_string());
    }
    let moved = panel.open()?;
    assert_eq!(panel.echo_client()?, Family::V4.upstream(3));

    // Real checks.
    let asked = "?url=http%3A%2F%2Fevil.lab%2F&timeout=5000";
    let delay = panel.get(&format!("/proxies/two/delay{asked}"))?.json()?;
    assert!(delay["delay"].as_u64() > Some(0), "{delay}");
    let dead = panel.get(&format!("/proxies/secret/delay{asked}"))?;
    assert_eq!(dead.status, 503, "{dead:?}");
    assert!(
        dead.json()?["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    let group = panel.get(&format!("/group/auto/delay{asked}"))?.json()?;
    assert!(
        group["one"].as_u64() > Some(0) && group["two"].as_u64() > Some(0),
        "{group}"
    );
    let providers = panel.get("/providers/proxies")?.json()?;
    assert!(
        providers["providers"]["default"]["proxies"]
            .as_array()
            .is_some_and(|all| all.len() == 5),
        "{providers}"
    );
    assert_eq!(
        panel.get("/providers/rules")?.json()?,
        json!({ "providers": {} })
    );
    let rules = panel.get("/rules")?.json()?["rules"].clone();
    assert_eq!(rules[0]["type"], "DstPort");
    assert_eq!(rules[0]["proxy"], "mine");
    assert_eq!(
        (&rules[1]["type"], &rules[1]["proxy"]),
        (&json!("Match"), &json!("auto"))
    );

    // Connections.
    let all = echoes(&panel)?;
    let [one, two] = &all[..] else {
        panic!("{all:?}");
    };
    assert_eq!(one["chains"], json!(["one", "mine"]));
    assert_eq!(two["chains"], json!(["two", "mine"]));
    assert_eq!(one["rule"], "echoes");
    let metadata = &one["metadata"];
    assert_eq!(metadata["network"], "tcp");
    assert_eq!(metadata["sourceIP"], Family::V4.device().to_string());
    assert_eq!(
        metadata["sourcePort"],
        connection.local_addr()?.port().to_string()
    );
    assert_eq!(metadata["destinationIP"], Family::V4.far(1).to_string());
    assert_eq!(
        (one["upload"].as_u64(), one["download"].as_u64()),
        (Some(5), Some(5))
    );
    let start = one["start"].as_str().unwrap_or_default();
    assert!(
        start.len() >= 20 && start.ends_with('Z') && start.contains('T'),
        "{start}"
    );
    let id = one["id"].as_str().context("a text")?;
    assert_eq!(
        panel
            .send("DELETE", &format!("/connections/{id}"), None)?
            .status,
        204
    );
    assert_eq!(read_to_end(&connection)?.1, End::Reset);
    assert_eq!(
        panel
            .send("DELETE", &format!("/connections/{id}"), None)?
            .status,
        204
    );
    assert_eq!(panel.send("DELETE", "/connections/x", None)?.status, 404);
    assert_eq!(panel.send("DELETE", "/connections", None)?.status, 204);
    assert_eq!(read_to_end(&moved)?.1, End::Reset);
    assert_eq!(panel.get("/dns/query?name=x.lab&type=A")?.status, 404);
    assert_eq!(panel.get("/dns/query?name=x.lab&type=MX")?.status, 400);
    Ok(())
}

#[test]
fn what_happens_is_told_as_it_happens() -> Result<()> {
    let panel = Panel::start(None)?;
    let mut connections = panel.listen("/connections?interval=300")?;
    let mut traffic = panel.listen("/traffic")?;
    let mut memory = panel.listen("/memory")?;
    let mut logs = panel.listen("/logs?level=info")?;
    connections.receive()?;
    let mut stream = panel.open()?;
    let port = stream.local_addr()?.port().to_string();
    let shown = connections.find("the new connection", |message| {
        let mut all = message["connections"].as_array().into_iter().flatten();
        all.any(|one| one["metadata"]["sourcePort"] == *port)
    })?;
    assert!(shown["memory"].as_u64() > Some(0) && shown["uploadTotal"].as_u64() >= Some(5));
    let (mut sent, bytes) = (0, vec![7; 1 << 20]);
    while sent < 3 {
        stream.write_all(&bytes[..1 << 16])?;
        let mut back = vec![0; 1 << 16];
        stream.read_exact(&mut back)?;
        sent += 1;
    }
    traffic.find("bytes in both directions", |message| {
        message["up"].as_u64() >= Some(1 << 16) && message["down"].as_u64() >= Some(1 << 16)
    })?;
    assert!(memory.receive()?["inuse"].as_u64() > Some(1 << 20));
    drop(stream);
    let ended = |message: &Value| {
        message["payload"]
            .as_str()
            .is_some_and(|text| text.contains(&port))
    };
    let line = logs.find("the end of the connection", ended)?;
    assert_eq!(line["type"], "info");
    let text = line["payload"].as_str().unwrap_or_default();
    assert!(
        text.contains("outcome=finished") && text.contains("group=mine"),
        "{text}"
    );

    // The same as lines that have no end.
    let mut plain = connect(&panel.lab.device, Panel::address())?;
    let request = format!(
        "GET /logs?level=warning HTTP/1.1\r\nHost: 10.77.0.1\r\n{}\r\n\r\n",
        bearer()
    );
    plain.write_all(request.as_bytes())?;
    let read = |stream: &mut TcpStream, wanted: &str| -> Result<String> {
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains(wanted) {
            let read = stream
                .read(&mut buffer)
                .with_context(|| format!("after {text}"))?;
            ensure!(read > 0, "the end came after {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        Ok(text)
    };
    let mut text = read(&mut plain, "\r\n\r\n")?;
    // A reload that is refused is an error, and the end of a connection no warning.
    drop(panel.open()?);
    let config = panel.lab.dir().join("config.toml");
    let good = fs::read_to_string(&config)?;
    fs::write(&config, "nonsense")?;
    assert_eq!(
        panel
            .send(
                "PUT",
                "/configs?force=true",
                Some(&json!({ "path": "", "payload": "" }))
            )?
            .status,
        422
    );
    text.push_str(&read(&mut plain, "the reload failed")?);
    assert!(
        text.contains("\"type\":\"error\"") && !text.contains("outcome="),
        "{text}"
    );
    fs::write(&config, good)?;
    assert_eq!(panel.send("PUT", "/configs?force=true", None)?.status, 204);
    // With nobody to listen the log is what it was: no line for each connection.
    let log = panel.tproxy.process().lines().join("\n");
    assert!(!log.contains("outcome="), "{log}");
    Ok(())
}

/// The names of the metrics that a text speaks of.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_of_name(c));
    let is_metric = |word: &&str| {
        ["tproxy_", "process_"]
            .iter()
            .any(|start| word.starts_with(start))
            && !word.ends_with('_')
    };
    words.filter(is_metric).map(ToOwned::to_owned).collect()
}

#[test]
fn prometheus_gets_what_the_dashboard_and_the_documentation_name() -> Result<()> {
    let dns = format!("[dns]\nproxy = [\"{}\"]\n", Family::V4.far(1));
    let panel = Panel::start_with(None, &dns)?;
    let mut stream = panel.open()?;
    stream.write_all(&[0; 1000])?;
    stream.read_exact(&mut [0; 1000])?;
    drop(stream);
    let is_over = || -> Result<Option<Vec<(String, f64)>>> {
        let samples = samples(&panel.get("/metrics")?.body)?;
        let ended = |(name, value): &(String, f64)| {
            name == "tproxy_flows_ended_total{outcome=\"finished\"}" && *value >= 1.0
        };
        Ok(samples.iter().any(ended).then_some(samples))
    };
    let samples = until("the end of the connection to be counted", SOON, is_over)?;
    let value = |name: &str| -> Result<f64> {
        let found = samples.iter().find(|(sample, _)| sample == name);
        found
            .map(|(_, value)| *value)
            .with_context(|| format!("there is no {name}"))
    };
    assert!(value("tproxy_outbound_bytes_total{outbound=\"one\",direction=\"up\"}")? >= 1005.0);
    assert!(value("tproxy_relayed_bytes_total{direction=\"down\"}")? >= 1005.0);
    assert!(value("tproxy_kernel_packets_total{reason=\"tcp_opened\",effect=\"steer\"}")? >= 1.0);
    assert!(value("tproxy_kernel_bytes_total{reason=\"tcp_steered\",effect=\"steer\"}")? > 1000.0);
    assert_eq!(
        value("tproxy_outbound_up{outbound=\"one\",protocol=\"tcp\"}")?,
        1.0
    );
    assert!(value("tproxy_outbound_delay_seconds{outbound=\"one\",protocol=\"tcp\"}")? < 5.0);
    assert_eq!(
        value("tproxy_group_member{group=\"mine\",protocol=\"tcp\",member=\"one\"}")?,
        1.0
    );
    assert!(value("process_resident_memory_bytes")? > 1e6);
    assert!(value("process_open_fds")? > 10.0);
    assert!(value("tproxy_uptime_seconds")? > 0.0);

    let bare = |sample: &str| sample.split('{').next().unwrap_or_default().to_owned();
    let there: BTreeSet<String> = samples.iter().map(|(sample, _)| bare(sample)).collect();
    let board = of_project("packaging/grafana/tproxy-bpf.json")?;
    let json: Value = serde_json::from_str(&board)?;
    assert!(
        json["panels"]
            .as_array()
            .is_some_and(|panels| panels.len() > 8)
    );
    let used = metrics_in(&board);
    let unknown: Vec<_> = used.difference(&there).collect();
    ensure!(
        unknown.is_empty(),
        "the dashboard names {unknown:?}, which are not there"
    );
    assert!(used.len() > 12, "{used:?}");
    let documented = metrics_in(&of_project("docs/api.md")?);
    let missing: Vec<_> = there.difference(&documented).collect();
    ensure!(missing.is_empty(), "docs/api.md does not name {missing:?}");
    let gone: Vec<_> = documented.difference(&there).collect();
    ensure!(
        gone.is_empty(),
        "docs/api.md names {gone:?}, which are not there"
    );
    Ok(())
}

#[test]
fn a_reload_moves_the_listener_and_breaks_no_connection() -> Result<()> {
    let panel = Panel::start(None)?;
    let mut stream = panel.open()?;
    let config = panel.lab.dir().join("config.toml");
    let good = fs::read_to_string(&config)?;
    let reload = || panel.lab.tproxy_run(&["reload"]);
    let moved = good
        .replace("10.77.0.1:9090", "10.77.0.1:9091")
        .replace(TOKEN, "another token");
    let mut old = panel.listen("/memory")?;
    old.receive()?;
    fs::write(&config, &moved)?;
    let said = reload()?.ok()?.stdout;
    assert!(said.contains("reloaded: lan0"), "{said}");
    // Who knew the old token has to come again.
    until("the old WebSocket to end", SOON, || {
        Ok(old.receive().is_err().then_some(()))
    })?;
    connect(&panel.lab.device, Panel::address()).expect_err("nobody listens there");
    let status = |token: &str| -> Result<String> {
        let header = format!("Authorization: Bearer {token}");
        let argv = [
            "curl",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            &header,
            "http://10.77.0.1:9091/version",
        ];
        Ok(panel.lab.device.run(&argv)?.stdout)
    };
    assert_eq!(status("another token")?, "200");
    assert_eq!(status(TOKEN)?, "401");

    // What is refused changes nothing, and is told.
    let taken = moved.replace("10.77.0.1:9091", "203.0.113.99:9091");
    for (bad, words) in [
        (&*taken, "control API"),
        ("nonsense", "config.toml"),
        (
            &*moved.replace("token = \"another token\"", "token_file = \"nowhere\""),
            "nowhere",
        ),
        (
            &*moved.replace("token = \"another token\"\n", ""),
            "without a token",
        ),
    ] {
        fs::write(&config, bad)?;
        let output = reload()?;
        assert_eq!(output.code(), Some(1), "{output:?}");
        let said = output.stderr;
        assert!(
            said.contains(words) && said.contains("old one goes on"),
            "{said}"
        );
        assert_eq!(status("another token")?, "200");
    }
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])?;

    // None at all.
    let without = moved
        .lines()
        .filter(|line| !line.starts_with("listen"))
        .collect::<Vec<_>>()
        .join("\n");
    fs::write(&config, without)?;
    reload()?.ok()?;
    let target = "10.77.0.1:9091".parse()?;
    connect(&panel.lab.device, target).expect_err("nobody listens there");
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])?;
    drop(stream);
    panel.tproxy.stop()
}

#[test]
fn the_log_is_for_people_or_programs_and_changes_while_it_runs() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab::servers::TcpEcho::start(&lab.internet, ECHO)?;
    let text = format!(
        "[lan]\ninterfaces = [\"{}\"]\n[log]\naccess = true\nlevel = \"warn\"\n",
        lab.lan()
    );
    let config = lab.write(&text)?;
    let mut command = lab.tproxy_command(&["run", "-c", &config, "--log-format", "json"])?;
    command.env_remove("RUST_LOG");
    let process = lab::Process::spawn(command)?;
    until("the proxy to run", SOON, || {
        let status: Value = lab.tproxy_run(&["status", "--json"])?.ok()?.json()?;
        Ok((status["proxy"]["detail"]["log"] == "warn,access=info").then_some(()))
    })?;
    let echo = || -> Result<String> {
        let mut stream = connect(&lab.device, lab::probe::at(Family::V4.far(1), ECHO))?;
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])?;
        Ok(stream.local_addr()?.to_string())
    };
    let client = echo()?;
    let line = process.wait_for_line(&client, SOON)?;
    let event: Value = serde_json::from_str(&line)?;
    assert_eq!(event["target"], "access");
    assert_eq!(
        (&event["outcome"], event["up"].as_u64()),
        (&json!("finished"), Some(5))
    );
    assert_eq!(process.lines().len(), 1, "{:?}", process.lines());

    let log = |args: &[&str]| lab.tproxy_run(&[&["log"], args].concat());
    assert!(log(&[])?.ok()?.stdout.contains("warn,access=info"));
    log(&["info,access=off"])?.ok()?;
    let status: Value = lab.tproxy_run(&["status", "--json"])?.ok()?.json()?;
    assert_eq!(status["proxy"]["detail"]["log"], "info,access=off");
    let unseen = echo()?;
    lab.refused(&["log", "wran"], 1, &["wran", "info"])?;
    // A reload with another level counts; one with the same leaves what was said by hand.
    lab.tproxy_run(&["reload"])?.ok()?;
    let told = process.wait_for_line("reloaded", SOON)?;
    assert!(
        serde_json::from_str::<Value>(&told)?["message"].is_string(),
        "{told}"
    );
    assert!(log(&["--json"])?.ok()?.stdout.contains("info,access=off"));
    lab.write(&text.replace("warn", "debug"))?;
    lab.tproxy_run(&["reload"])?.ok()?;
    assert!(log(&[])?.ok()?.stdout.contains("debug,access=info"));
    let seen = echo()?;
    process.wait_for_line(&seen, SOON)?;
    assert!(!process.lines().iter().any(|line| line.contains(&unseen)));
    for line in process.lines() {
        serde_json::from_str::<Value>(&line).with_context(|| line.clone())?;
    }
    Ok(())
}
