//! `flows`: who is connected where to, by which way, with how many bytes; and an end for those that a person names.

use std::io::{ErrorKind, Read, Write};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab,
    addr::url,
    probe::{at, udp_at},
    servers::{Microsocks, Nginx, TcpEcho},
    traffic::{HeldDownload, connect, open_udp},
    wait::{SOON, until},
};
use serde_json::Value;

/// What `flows --json` lists with these arguments.
fn flows(lab: &Lab, args: &[&str]) -> Result<Vec<Value>> {
    let output = lab.tproxy_run(&[&["flows", "--json"], args].concat())?;
    let shown: Value = output.ok()?.json()?;
    Ok(shown["flows"].as_array().context("no list")?.clone())
}

/// The one flow to this destination.
fn to(lab: &Lab, destination: &str) -> Result<Value> {
    let found = flows(lab, &["--to", destination])?;
    ensure!(found.len() == 1, "{found:#?}");
    Ok(found[0].clone())
}

#[test]
fn each_is_shown_with_its_way_and_its_bytes_and_ends_when_told_to() -> Result<()> {
    const SIZE: u64 = 64 << 20;
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let _echo = TcpEcho::start(&lab.internet, 22)?;
    let socks = Microsocks::start_at(&lab.internet, at(Family::V4.upstream(2), 1080))?;
    let (path, _) = nginx.offer(SIZE)?;
    let lan = lab.lan();
    let config = lab.write(&format!(
        "[lan]\ninterfaces = [\"{lan}\"]\n[[outbound]]\nname = \"far\"\nurl = \"{}\"\n\
         [[group]]\nname = \"auto\"\nkind = \"select\"\nmembers = [\"far\", \"direct\"]\n\
         [[rule]]\nname = \"echo\"\nport = [22, 4000]\noutbound = \"direct\"\n\
         [[rule]]\ndomain = [\"never.example\"]\noutbound = \"block\"\n",
        socks.url()
    ))?;
    let mut command = lab.tproxy_command(&["run", "-c", &config])?;
    command.env("RUST_LOG", "info");
    let tproxy = Lab::tproxy_by(command)?;
    assert!(flows(&lab, &[])?.is_empty());

    let web = at(Family::V4.far(1), 80);
    let mut download = HeldDownload::start(&lab.device, &url(web.ip(), &path))?;
    download.advance(20 << 20)?;
    let direct = at(Family::V6.far(2), 22);
    let mut held = connect(&lab.device, direct)?;
    held.set_read_timeout(Some(SOON))?;
    held.write_all(b"hello")?;
    held.read_exact(&mut [0; 5])?;
    let peer = at(Family::V4.far(3), 4000);
    let far = udp_at(&lab.internet, peer)?;
    let device = open_udp(&lab.device, Family::V4)?;
    device.set_read_timeout(Some(SOON))?;
    let talk = || -> Result<std::net::SocketAddr> {
        let mut buffer = [0; 100];
        device.send_to(b"datagram", peer)?;
        let (length, from) = far.recv_from(&mut buffer)?;
        far.send_to(&buffer[..length], from)?;
        device.recv_from(&mut buffer)?;
        Ok(from)
    };
    let port = talk()?;

    let all = flows(&lab, &["--sort", "age"])?;
    let order: Vec<_> = all.iter().map(|flow| flow["destination"].clone()).collect();
    assert_eq!(
        order,
        [web.to_string(), direct.to_string(), peer.to_string()]
    );
    let web_flow = to(&lab, &web.to_string())?;
    assert_eq!(
        (&web_flow["group"], &web_flow["outbound"]),
        (&"auto".into(), &"far".into())
    );
    assert_eq!(
        (&web_flow["protocol"], &web_flow["rule"]),
        (&"tcp".into(), &Value::Null)
    );
    assert_eq!(
        web_flow["name"],
        Value::Null,
        "there is an address in the URL"
    );
    let down = web_flow["down"].as_u64().context("bytes")?;
    ensure!((20 << 20..SIZE).contains(&down), "{down}");
    let held_flow = to(&lab, &direct.to_string())?;
    assert_eq!(
        (&held_flow["up"], &held_flow["down"]),
        (&5.into(), &5.into())
    );
    assert_eq!(held_flow["client"], held.local_addr()?.to_string());
    assert_eq!(
        (&held_flow["rule"], &held_flow["group"]),
        (&"echo".into(), &Value::Null)
    );
    let udp_flow = to(&lab, &peer.to_string())?;
    assert_eq!((&udp_flow["up"], &udp_flow["down"]), (&8.into(), &8.into()));
    let device_v4 = Family::V4.device().to_string();
    assert_eq!(flows(&lab, &["--device", &device_v4])?.len(), 2);
    let udp = flows(&lab, &["--protocol", "udp"])?;
    assert_eq!((udp.len(), &udp[0]["id"]), (1, &udp_flow["id"]));
    assert_eq!(flows(&lab, &["--outbound", "auto"])?.len(), 1);
    let mut named = connect(&lab.device, at(Family::V4.far(5), 80))?;
    named.write_all(b"GET /whoami HTTP/1.1\r\nHost: www.lab.example\r\n\r\n")?;
    named.set_read_timeout(Some(SOON))?;
    named.read_exact(&mut [0; 12])?;
    assert_eq!(to(&lab, "LAB.example")?["name"], "www.lab.example");
    drop(named);
    until("three flows", SOON, || {
        Ok((flows(&lab, &[])?.len() == 3).then_some(()))
    })?;
    // For people: the most bytes first.
    let table = lab.tproxy_run(&["flows", "--limit", "1"])?.ok()?.stdout;
    ensure!(
        table.contains("auto: far") && table.contains("MiB"),
        "{table}"
    );
    ensure!(table.ends_with("and 2 more\n"), "{table}");

    // Told to end: RST, and a new association.
    let id = |flow: &Value| flow["id"].to_string();
    let ids = [id(&held_flow), id(&udp_flow)];
    let told = lab.tproxy_run(&["flows", "kill", &ids[0], &ids[1]])?.ok()?;
    assert_eq!(told.stdout, format!("ended: {}\n", ids.join(", ")));
    let end = held.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    for destination in [direct, peer] {
        let line = format!("destination={destination}");
        let line = tproxy.process().wait_for_line(&line, SOON)?;
        ensure!(line.contains("outcome=\"killed\""), "{line}");
    }
    assert_eq!(flows(&lab, &[])?.len(), 1);
    let again = lab.tproxy_run(&["flows", "kill", &ids[0], &id(&web_flow)])?;
    assert_eq!(
        (again.code(), &*again.stdout),
        (Some(1), &*format!("ended: {}\n", id(&web_flow)))
    );
    ensure!(
        again.stderr.contains("there is no flow of that number"),
        "{}",
        again.stderr
    );
    ensure!(download.finish().is_err(), "the download goes on");
    assert_ne!(talk()?, port, "the old association");
    until("one flow", SOON, || {
        Ok((flows(&lab, &[])?.len() == 1).then_some(()))
    })?;
    tproxy.stop()?;
    let none = lab.tproxy_run(&["flows"])?;
    ensure!(
        none.code() == Some(1) && none.stderr.contains("no proxy runs here"),
        "{none:?}"
    );
    Ok(())
}
