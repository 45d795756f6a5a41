//! `import`: a set-up of iptables and v2ray that works is imported, and the same destinations go the same way.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Namespace, Output,
    addr::TYPED_DIRECT,
    servers::{Nginx, UdpEcho, V2ray},
    traffic,
    ways::soon,
};
use serde_json::{Value, json};

/// Where v2ray listens for what the kernel leads to it.
const PORT: u16 = 12345;
/// Where the far side echoes datagrams.
const ECHO: u16 = 7000;
/// The mark of v2ray's own packets.
const OWN: u8 = 255;

/// Destinations, and whether they go direct by the rules and routing below.
const TABLE: [(u8, bool); 6] = [
    (1, false),
    (2, false),
    (5, true),
    (6, true),
    (9, true),
    (12, false),
];
/// What iptables lets pass by itself, by the set, and what v2ray's routing sends direct.
const DIRECT: [&str; 2] = ["203.0.113.5/32", "203.0.113.9"];
const IN_SET: &str = "203.0.113.6";

fn far(n: u8) -> IpAddr {
    Family::V4.far(n)
}

/// A row of the table: the destination, and for TCP and UDP of the device and of the gateway itself whether the SOCKS5
/// server was seen there.
type Row = (u8, [bool; 4]);

/// The servers of the table, and the address that the SOCKS5 server has there.
struct World<'l> {
    lab: &'l Lab,
    echo: UdpEcho,
    upstream: IpAddr,
}

impl World<'_> {
    fn by_server(&self, client: IpAddr, server: IpAddr) -> Result<bool> {
        let near = [Family::V4.device(), Family::V4.gateway_wan()];
        ensure!(
            client == self.upstream || near.contains(&client),
            "{server} saw {client}"
        );
        Ok(client == self.upstream)
    }

    fn tcp(&self, from: &Namespace, server: IpAddr) -> Result<bool> {
        let client = traffic::whoami(from, server).with_context(|| format!("asking {server}"))?;
        self.by_server(client, server)
    }

    fn udp(&self, from: &Namespace, server: IpAddr) -> Result<bool> {
        self.echo.forget();
        traffic::echo_sizes(from, SocketAddr::new(server, ECHO), &[100])?;
        let clients = self.echo.clients();
        let client = clients.keys().next().context("nobody was seen")?;
        self.by_server(client.ip(), server)
    }

    fn table(&self) -> Result<Vec<Row>> {
        let (device, gateway) = (&self.lab.device, &self.lab.gateway);
        let rows = TABLE.iter().map(|(n, _)| {
            let server = far(*n);
            Ok((
                *n,
                [
                    self.tcp(device, server)?,
                    self.udp(device, server)?,
                    self.tcp(gateway, server)?,
                    self.udp(gateway, server)?,
                ],
            ))
        });
        rows.collect()
    }
}

fn iptables(lab: &Lab, line: &str) -> Result<()> {
    let words = ["iptables", "-w", "-t", "mangle"];
    let argv: Vec<&str> = words.into_iter().chain(line.split(' ')).collect();
    lab.gateway.run(&argv)?;
    Ok(())
}

/// Rules as guides have them, written for this network: devices and the gateway itself.
fn steer(lab: &Lab) -> Result<()> {
    lab.gateway.ip(&[
        "rule add fwmark 1 table 100",
        "route add local 0.0.0.0/0 dev lo table 100",
    ])?;
    let lan = lab.lan();
    let mut lines = vec!["-N LAN_IN".to_owned(), "-N OWN_OUT".to_owned()];
    for chain in ["LAN_IN", "OWN_OUT"] {
        for net in TYPED_DIRECT.into_iter().chain([DIRECT[0]]) {
            lines.push(format!("-A {chain} -d {net} -j RETURN"));
        }
        lines.push(format!("-A {chain} -d {IN_SET} -j RETURN"));
        lines.push(format!("-A {chain} -m mark --mark {OWN} -j RETURN"));
    }
    for protocol in ["tcp", "udp"] {
        lines.push(format!(
            "-A LAN_IN -p {protocol} -j TPROXY --on-ip 127.0.0.1 --on-port {PORT} --tproxy-mark 1"
        ));
        lines.push(format!("-A OWN_OUT -p {protocol} -j MARK --set-mark 1"));
    }
    lines.push(format!("-A PREROUTING -i {lan} -j LAN_IN"));
    lines.push("-A PREROUTING -i lo -m mark --mark 1 -j LAN_IN".to_owned());
    lines.push("-A OUTPUT -j OWN_OUT".to_owned());
    lines.iter().try_for_each(|line| iptables(lab, line))
}

fn stop_steering(lab: &Lab) -> Result<()> {
    for line in [
        "-F PREROUTING",
        "-F OUTPUT",
        "-F LAN_IN",
        "-F OWN_OUT",
        "-X LAN_IN",
        "-X OWN_OUT",
    ] {
        iptables(lab, line)?;
    }
    lab.gateway
        .ip(&["rule del fwmark 1 table 100", "route flush table 100"])?;
    Ok(())
}

/// v2ray behind them: a SOCKS5 server, and one destination that its routing sends direct.
fn configuration(upstream: SocketAddr) -> Value {
    let marked = json!({ "sockopt": { "mark": OWN } });
    json!({
        "log": { "loglevel": "warning" },
        "inbounds": [{
            "tag": "lan", "port": PORT, "protocol": "dokodemo-door",
            "settings": { "network": "tcp,udp", "followRedirect": true },
            "streamSettings": { "sockopt": { "tproxy": "tproxy", "mark": OWN } }
        }],
        "outbounds": [
            {
                "tag": "rented", "protocol": "socks",
                "settings": { "servers": [{
                    "address": upstream.ip(), "port": upstream.port()
                }] },
                "streamSettings": marked.clone()
            },
            { "tag": "direct", "protocol": "freedom", "streamSettings": marked },
        ],
        "routing": {
            "rules": [{ "type": "field", "ip": [DIRECT[1]], "outboundTag": "direct" }]
        }
    })
}

fn import(lab: &Lab, files: &[&Path]) -> Result<Output> {
    let paths: Vec<String> = files
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let args: Vec<&str> = ["import"]
        .into_iter()
        .chain(paths.iter().map(String::as_str))
        .collect();
    lab.tproxy_run(&args)?.ok()
}

#[test]
fn what_is_imported_sends_everything_where_it_went() -> Result<()> {
    let lab = Lab::new()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let (serving, server) = V2ray::socks(Family::V4);
    let _upstream = V2ray::start(&lab.internet, lab.dir(), &serving, server.port())?;
    let world = World {
        lab: &lab,
        echo: UdpEcho::start(&lab.internet, ECHO..=ECHO)?,
        upstream: server.ip(),
    };
    let old = configuration(server);

    // The old world.
    steer(&lab)?;
    let v2ray = V2ray::start(&lab.gateway, lab.dir(), &old, PORT)?;
    let before = world.table()?;
    let wanted: Vec<Row> = TABLE.iter().map(|(n, direct)| (*n, [!direct; 4])).collect();
    assert_eq!(before, wanted);

    // What iptables-save says of it, and the configuration with a comment in it.
    let saved = lab.dir().join("iptables.save");
    let output = lab.gateway.run(&["iptables-save"])?;
    fs::write(&saved, &output.stdout)?;
    let json = lab.dir().join("config.json");
    fs::write(&json, format!("// ours\n{old:#}"))?;
    let imported = import(&lab, &[&saved, &json])?;
    let config = lab.dir().join("imported.toml");
    fs::write(&config, &imported.stdout)?;
    let config = config.display().to_string();
    lab.tproxy_run(&["check", &config])?.ok()?;
    for words in ["Taken over", "Needs no line here", "For you to do", "0xff"] {
        assert!(
            imported.stderr.contains(words),
            "{words}: {}",
            imported.stderr
        );
        assert!(
            imported.stdout.contains(words),
            "{words}: {}",
            imported.stdout
        );
    }

    // The new one.
    drop(v2ray);
    stop_steering(&lab)?;
    let proxy = lab.tproxy(&["run", "-c", &config])?;
    soon("the same ways as before", || {
        let after = world.table()?;
        ensure!(after == before, "{after:?}, not {before:?}");
        Ok(())
    })?;
    proxy.stop()
}

#[test]
fn every_sample_is_a_configuration_that_check_takes() -> Result<()> {
    let lab = Lab::new()?;
    let samples =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tproxy-userspace/src/import/tests/samples");
    let names: Vec<_> = fs::read_dir(&samples)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    let sets = samples.join("near.ipset");
    let mut checked = 0;
    for path in names.iter().filter(|path| **path != sets) {
        let output = import(&lab, &[path, &sets])?;
        let config = lab.dir().join("config.toml");
        // The lists are not there, so what asks for them is answered by lists of the lab.
        let text = output
            .stdout
            .replace("geoip.dat:cn", "near.txt")
            .replace("geosite.dat:cn", "names.txt");
        let text = text.replace("geosite.dat:category-ads-all", "names.txt");
        fs::write(&config, text)?;
        fs::write(lab.dir().join("near.txt"), "198.18.0.0/15\n")?;
        fs::write(lab.dir().join("names.txt"), "near.example\n")?;
        lab.tproxy_run(&["check", &config.display().to_string()])?
            .ok()
            .with_context(|| path.display().to_string())?;
        checked += 1;
    }
    assert!(checked >= 7, "{checked}");
    Ok(())
}

#[test]
fn what_is_no_set_up_is_refused_and_nothing_is_printed() -> Result<()> {
    let lab = Lab::new()?;
    let path = lab.dir().join("nft");
    fs::write(&path, "table inet x {\n\tchain y { }\n}\n")?;
    let output = lab.refused(
        &["import", &path.display().to_string()],
        1,
        &["ruleset of nft", "iptables-save"],
    )?;
    assert_eq!(output.stdout, "");
    lab.refused(
        &["import", "/nowhere/at/all"],
        1,
        &["/nowhere/at/all", "No such file"],
    )?;
    lab.refused(
        &["import", "--lan", "a/b", &path.display().to_string()],
        1,
        &["--lan"],
    )?;
    lab.refused(&["import"], 2, &["FILE"])?;
    Ok(())
}
