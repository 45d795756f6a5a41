//! What `doctor` finds: each condition is made, found, mended with the remedy that is printed, and gone.

use std::{
    fs,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Namespace, Snapshot,
    foreign::{Foreign, Place, Says},
    gateway,
    probe::Acceptor,
    process,
};
use serde_json::Value;

/// One finding, as `--json` prints it.
#[derive(Clone, Debug)]
struct Finding {
    check: String,
    severity: String,
    found: String,
    remedy: String,
}

/// What the command finds, whatever its exit code.
fn findings(command: Command) -> Result<Vec<Finding>> {
    let output = process::run(command, Duration::from_mins(1))?;
    let report: Value = output.json()?;
    let all = report["findings"].as_array().context("findings")?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let problems = all
        .iter()
        .filter(|finding| finding["severity"] == "problem")
        .count();
    assert_eq!(report["problems"], problems);
    assert_eq!(output.code(), Some(i32::from(problems > 0)));
    Ok(all
        .iter()
        .map(|finding| Finding {
            check: text(finding, "check"),
            severity: text(finding, "severity"),
            found: text(finding, "found"),
            remedy: text(finding, "remedy"),
        })
        .collect())
}

/// What `doctor` says against this check.
fn against(lab: &Lab, args: &[&str], check: &str) -> Result<Vec<Finding>> {
    let command = lab.tproxy_command(&[&["doctor", "--json"], args].concat())?;
    let mut all = findings(command)?;
    ensure!(all.iter().any(|finding| finding.check == check), "{all:?}");
    all.retain(|finding| finding.check == check && finding.severity != "ok");
    Ok(all)
}

/// The only thing that is said against it.
fn one(lab: &Lab, args: &[&str], check: &str, severity: &str) -> Result<Finding> {
    let all = against(lab, args, check)?;
    let [finding] = &all[..] else {
        anyhow::bail!("{all:?}");
    };
    assert_eq!(finding.severity, severity, "{finding:?}");
    Ok(finding.clone())
}

fn nothing(lab: &Lab, args: &[&str], check: &str) -> Result<()> {
    let all = against(lab, args, check)?;
    ensure!(all.is_empty(), "{all:?}");
    Ok(())
}

/// Runs a line of a remedy in the gateway, as a person would.
fn follow(ns: &Namespace, line: &str) -> Result<()> {
    ns.run(&["sh", "-c", line]).map(drop)
}

const LAN: [&str; 2] = ["--lan", "lan0"];

/// The device's connection gets no answer.
fn is_dropped(lab: &Lab, family: Family) -> Result<()> {
    let target = SocketAddr::new(family.far(1), 80);
    let connected = lab
        .device
        .enter(|| TcpStream::connect_timeout(&target, Duration::from_millis(300)).map(drop))?;
    let error = connected.expect_err("nothing drops it");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    Ok(())
}

/// With a firewall that is made by these lines, connections of these families are dropped; with the lines that
/// `doctor` prints all works.
fn firewall(lines: &[&str], dropped: &[Family]) -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy_with("direct://")?;
    far.sees_proxy(&lab)?;
    nothing(&lab, &[], "firewall")?;
    for line in lines {
        follow(&lab.gateway, line)?;
    }
    for family in dropped {
        is_dropped(&lab, *family)?;
    }
    let findings = against(&lab, &[], "firewall")?;
    ensure!(!findings.is_empty(), "it finds nothing");
    let before = Snapshot::take(&lab)?;
    for finding in &findings {
        assert_eq!(finding.severity, "problem", "{finding:?}");
        let line = finding.remedy.split(';').next().context("a line")?;
        follow(&lab.gateway, line)?;
    }
    ensure!(
        !Snapshot::take(&lab)?.since(&before).is_empty(),
        "the lines do nothing"
    );
    far.sees_proxy(&lab).context("with the printed lines")?;
    nothing(&lab, &[], "firewall")
}

#[test]
fn a_firewall_that_drops_is_found_and_its_line_lets_devices_in() -> Result<()> {
    firewall(
        &["nft 'add table inet filter; \
           add chain inet filter input { type filter hook input priority 0; policy drop; }; \
           add rule inet filter input ct state vmap { established : accept, related : accept, invalid : drop }; \
           add rule inet filter input iifname lo accept; \
           add rule inet filter input meta l4proto ipv6-icmp accept; \
           add rule inet filter input iifname lan0 tcp dport { 22, 53 } accept'"],
        &Family::BOTH,
    )
}

/// The beginning of what ufw makes: what is not for the gateway's own addresses is dropped.
#[test]
fn a_firewall_of_iptables_that_drops_is_found_and_its_lines_let_devices_in() -> Result<()> {
    firewall(
        &["for program in iptables-nft ip6tables-nft; do \
           $program -N not-local; \
           $program -A INPUT -i lo -j ACCEPT; \
           $program -A INPUT -p ipv6-icmp -j ACCEPT; \
           $program -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
           $program -A INPUT -j not-local; \
           $program -A not-local -m addrtype --dst-type LOCAL -j RETURN; \
           $program -A not-local -m addrtype --dst-type MULTICAST -j RETURN; \
           $program -A not-local -j DROP; done"],
        &Family::BOTH,
    )
}

/// What firewalld has for IPv6: by the mark, the way back of what is steered is looked for in our table.
#[test]
fn a_reverse_path_filter_that_asks_with_the_mark_is_found() -> Result<()> {
    firewall(
        &["nft 'add table inet fw; \
           add chain inet fw pre { type filter hook prerouting priority -290; }; \
           add rule inet fw pre meta nfproto ipv6 fib saddr . mark . iif oif missing drop'"],
        &[Family::V6],
    )
}

#[test]
fn rules_that_overwrite_or_take_are_found() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy_with("direct://")?;
    nothing(&lab, &[], "marks")?;
    follow(
        &lab.gateway,
        "nft 'add table ip old; add chain ip old pre { type filter hook prerouting priority -150; }; \
         add rule ip old pre iifname lan0 meta mark set 0x1'",
    )?;
    let finding = one(&lab, &[], "marks", "problem")?;
    ensure!(finding.found.contains("ip old pre"), "{finding:?}");
    let delete = finding.remedy.split("or: ").last().context("a command")?;
    // It is not steered any more.
    far.sees(Family::V4.device(), &lab.device, Family::V4.far(1))
        .expect_err("the mark is overwritten");
    follow(&lab.gateway, delete)?;
    nothing(&lab, &[], "marks")?;
    far.sees_proxy(&lab)?;

    follow(
        &lab.gateway,
        "ip rule add fwmark 0xb0/0xf0 lookup 200 pref 5000",
    )?;
    let finding = one(&lab, &[], "marks", "hint")?;
    follow(&lab.gateway, &finding.remedy)?;
    nothing(&lab, &[], "marks")
}

#[test]
fn a_rule_or_route_that_a_start_refuses_is_found_before() -> Result<()> {
    let lab = Lab::new()?;
    for line in [
        "ip -6 rule add fwmark 0xa0/0xff lookup 200 pref 5000",
        "ip route add blackhole 192.0.2.0/24 table 29808",
    ] {
        nothing(&lab, &LAN, "marks")?;
        follow(&lab.gateway, line)?;
        lab.refused(&["run", "--lan", "lan0"], 1, &["is in its way"])?;
        let finding = one(&lab, &LAN, "marks", "problem")?;
        follow(&lab.gateway, &finding.remedy)?;
    }
    nothing(&lab, &LAN, "marks")?;
    lab.tproxy_with("direct://")?.stop()
}

#[test]
fn programs_of_others_are_found_where_they_stand() -> Result<()> {
    let lab = Lab::new()?;
    let _proxy = lab.tproxy_with("direct://")?;
    for check in ["XDP", "tc programs"] {
        nothing(&lab, &[], check)?;
    }
    let theirs = Foreign::load(&lab, "doctor", Says::Next)?;
    for (place, word) in [(Place::First, "before ours"), (Place::Last, "behind ours")] {
        let Ok(held) = theirs.tcx(&lab.gateway, "lan0", place) else {
            // A kernel without tcx.
            continue;
        };
        let finding = one(&lab, &[], "tc programs", "hint")?;
        ensure!(
            finding
                .found
                .contains(&format!("(tcx) on the way in, {word}")),
            "{finding:?}"
        );
        drop(held);
        nothing(&lab, &[], "tc programs")?;
    }
    // The qdisc may be there for ours.
    let _ = lab
        .gateway
        .run(&["tc", "qdisc", "add", "dev", "lan0", "clsact"]);
    theirs.filter(&lab.gateway, "lan0", "40000")?;
    let finding = one(&lab, &[], "tc programs", "hint")?;
    for words in [
        "a filter with priority 40000 on the way in, behind ours",
        "lan0, has",
    ] {
        ensure!(finding.found.contains(words), "{finding:?}");
    }
    let remove = finding.remedy.split(": ").nth(1).context("a command")?;
    follow(&lab.gateway, remove)?;
    nothing(&lab, &[], "tc programs")?;

    let first = Foreign::load_xdp(&lab, "doctor-xdp")?;
    first.xdp(&lab.gateway, "lan0")?;
    let finding = one(&lab, &[], "XDP", "hint")?;
    let remove = finding.remedy.split(": ").nth(1).context("a command")?;
    follow(&lab.gateway, remove)?;
    nothing(&lab, &[], "XDP")
}

/// With programs held by filters, on any kernel.
#[test]
fn filters_before_and_behind_ours_are_told_apart() -> Result<()> {
    let lab = Lab::new()?;
    let mut command = lab.tproxy_command(&["run", "--lan", "lan0", "--outbound", "direct://"])?;
    command.env("TPROXY_BPF_ATTACH", "clsact");
    let _proxy = Lab::tproxy_by(command)?;
    // Our own filters are nobody else's.
    nothing(&lab, &[], "tc programs")?;
    let theirs = Foreign::load(&lab, "doctor-filter", Says::Next)?;
    for (priority, word) in [("5", "before ours"), ("40000", "behind ours")] {
        theirs.filter(&lab.gateway, "lan0", priority)?;
        let finding = one(&lab, &[], "tc programs", "hint")?;
        ensure!(
            finding
                .found
                .contains(&format!("priority {priority} on the way in, {word}")),
            "{finding:?}"
        );
        let remove = finding.remedy.split(": ").nth(1).context("a command")?;
        follow(&lab.gateway, remove)?;
        nothing(&lab, &[], "tc programs")?;
    }
    Ok(())
}

#[test]
fn a_program_on_a_port_of_the_bridge_is_found() -> Result<()> {
    let lab = Lab::builder().lan(lab::Lan::Bridge).build()?;
    let first = |line: &str| -> Result<String> {
        let output = lab.gateway.run(&["sh", "-c", line])?;
        let name = output.stdout.split([' ', '@']).next().context("a link")?;
        Ok(name.trim().to_owned())
    };
    let bridge = first("ip -br link show type bridge")?;
    let port = first(&format!("ip -br link show master {bridge}"))?;
    let lan = ["--lan", bridge.as_str()];
    nothing(&lab, &lan, "tc programs")?;
    let theirs = Foreign::load(&lab, "doctor-port", Says::Next)?;
    lab.gateway
        .run(&["tc", "qdisc", "add", "dev", &port, "clsact"])?;
    theirs.filter(&lab.gateway, &port, "7")?;
    let finding = one(&lab, &lan, "tc programs", "hint")?;
    let words = format!("{port}, which the packets of {bridge} come by");
    ensure!(
        finding.found.contains(&words) && finding.found.contains("before ours"),
        "{finding:?}"
    );
    let remove = finding.remedy.split(": ").nth(1).context("a command")?;
    follow(&lab.gateway, remove)?;
    nothing(&lab, &lan, "tc programs")
}

#[test]
fn who_has_a_port_that_the_configuration_needs_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let config = lab.write(
        "[lan]\ninterfaces = [\"lan0\"]\n[proxy]\nport = 12345\n\
         [api]\nlisten = [\"127.0.0.1:9090\"]\ntoken = \"correct horse\"\n",
    )?;
    let args = ["-c", config.as_str()];
    nothing(&lab, &args, "ports")?;
    let this = format!("process {}", std::process::id());
    for address in [
        "127.0.0.1:12345",
        "[::1]:12345",
        "0.0.0.0:9090",
        "[::]:9090",
    ] {
        let theirs = Acceptor::listen(&lab.gateway, address.parse()?)?;
        let finding = one(&lab, &args, "ports", "problem")?;
        ensure!(
            finding.found.contains(&this) && finding.found.contains(address),
            "{finding:?}"
        );
        drop(theirs);
        nothing(&lab, &args, "ports")?;
    }
    let theirs = lab.gateway.enter(|| UdpSocket::bind("127.0.0.1:12345"))??;
    one(&lab, &args, "ports", "problem")?;
    lab.refused(&["run", "-c", &config], 1, &["12345"])?;
    drop(theirs);
    // The proxy itself has them now.
    let _proxy = lab.tproxy(&["run", "-c", &config])?;
    nothing(&lab, &args, "ports")
}

#[test]
fn a_dns_server_of_the_gateway_that_is_asked_must_be_exempt() -> Result<()> {
    let lab = Lab::new()?;
    let config = |exempt: &str| {
        lab.write(&format!(
            "stage = 3\n[lan]\ninterfaces = [\"lan0\"]\n[dns]\ndirect = [\"127.0.0.1\"]\n\
             proxy = [\"192.0.2.53\"]\ndirect_domains = [\"example.com\"]\n{exempt}"
        ))
    };
    let args = ["-c", &config("")?];
    nothing(&lab, &args, "ports")?;
    let _server = lab.gateway.enter(|| UdpSocket::bind("127.0.0.1:53"))??;
    let finding = one(&lab, &args, "ports", "hint")?;
    ensure!(
        finding.remedy.contains("`uids = [\"root\"]` in `[exempt]`"),
        "{finding:?}"
    );
    config("[exempt]\nuids = [\"root\"]\n")?;
    nothing(&lab, &args, "ports")
}

#[test]
fn few_open_files_are_found_and_enough_are_enough() -> Result<()> {
    let lab = Lab::new()?;
    let program = gateway::binary()?;
    let doctor = |limit: &str| -> Result<Vec<Finding>> {
        let line = format!(
            "ulimit -n {limit} && exec {} doctor --lan lan0 --json",
            program.display()
        );
        let mut command = lab.gateway.command("sh");
        command.args(["-c", &line]);
        let mut all = findings(command)?;
        all.retain(|finding| finding.check == "open files");
        Ok(all)
    };
    let [finding] = &doctor("2000")?[..] else {
        anyhow::bail!("no finding");
    };
    assert_eq!(finding.severity, "hint", "{finding:?}");
    ensure!(finding.found.contains("may have 2000"), "{finding:?}");
    let enough = finding
        .remedy
        .split("ulimit -Hn ")
        .nth(1)
        .and_then(|rest| rest.split('`').next());
    let all = doctor(enough.context("a number")?)?;
    assert_eq!(all[0].severity, "ok", "{all:?}");
    Ok(())
}

/// A copy of the program, with a time of its own.
#[test]
fn a_clock_that_is_behind_the_program_is_found() -> Result<()> {
    let lab = Lab::new()?;
    let copy = lab.dir().join("tproxy-bpf");
    fs::copy(gateway::binary()?, &copy)?;
    let clock = |copy: &Path| -> Result<Finding> {
        let mut command = lab.gateway.command(&copy.to_string_lossy());
        command.args(["doctor", "--lan", "lan0", "--json"]);
        let all = findings(command)?;
        all.into_iter()
            .find(|finding| finding.check == "clock")
            .context("the clock")
    };
    lab.gateway.run(&[
        "touch",
        "-d",
        "2100-01-01 00:00:00 UTC",
        &copy.to_string_lossy(),
    ])?;
    let finding = clock(&copy)?;
    assert_eq!(finding.severity, "problem", "{finding:?}");
    for words in ["2100-01-01T00:00:00Z", "timedatectl set-ntp true"] {
        ensure!(
            finding.found.contains(words) || finding.remedy.contains(words),
            "{finding:?}"
        );
    }
    let touch = finding
        .remedy
        .split("is right: ")
        .nth(1)
        .context("a command")?;
    follow(&lab.gateway, touch)?;
    // Whether somebody sets this machine's clock is not known here.
    assert_ne!(clock(&copy)?.severity, "problem");
    Ok(())
}

#[test]
fn what_cannot_be_asked_is_said_and_the_rest_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let mut command = lab.tproxy_command(&["doctor", "--lan", "lan0", "--json"])?;
    command.env("PATH", "/nowhere");
    let all = findings(command)?;
    let firewall = all
        .iter()
        .find(|finding| finding.check == "firewall")
        .context("firewall")?;
    assert_eq!(firewall.severity, "hint", "{firewall:?}");
    ensure!(
        firewall.remedy.contains("install the package nftables"),
        "{firewall:?}"
    );
    for check in [
        "XDP",
        "tc programs",
        "marks",
        "ports",
        "open files",
        "clock",
    ] {
        ensure!(
            all.iter().any(|finding| finding.check == check),
            "{check}: {all:?}"
        );
    }
    Ok(())
}
