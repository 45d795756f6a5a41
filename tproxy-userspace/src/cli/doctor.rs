//! `doctor`: is this machine fit, and if not, what to do.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use tproxy_userspace::config::{Config, LinkPattern};
use tproxy_userspace::control::Netlink;
use tproxy_userspace::control::doctor::{
    Files, Finding, Severity, Subject, Wanted, attached_links, examine, gather,
};
use tproxy_userspace::control::links::Snapshot;
use tproxy_userspace::data::{Budget, ENOUGH_CONNECTIONS};

use super::run::{DEFAULT_CONFIG, load, parse_patterns};
use super::{DoctorArgs, output, small_runtime};

pub fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let named = parse_patterns(&args.lan)?;
    let facts = small_runtime()?.block_on(async {
        let attached = attached_links(&Snapshot::take(&Netlink::open()?).await?);
        let default = Path::new(DEFAULT_CONFIG);
        let is_default = named.is_empty() && attached.is_empty() && default.exists();
        let file = args
            .config
            .clone()
            .or_else(|| is_default.then(|| default.to_owned()));
        let config = match &file {
            Some(path) if args.config.is_some() => Config::load(path)?,
            Some(path) => load(Some(path))?,
            None => Config::default(),
        };
        let subject = subject(config, file, named);
        anyhow::Ok(gather(&subject).await?)
    })?;
    let findings = examine(&facts);
    let problems = count(&findings, Severity::Problem);
    if args.read.json {
        output::json(&json!({ "problems": problems, "findings": findings }))?;
    } else {
        output::text_out(&text(&findings))?;
    }
    Ok(if problems == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is to be examined for this configuration.
fn subject(config: Config, file: Option<PathBuf>, named: Vec<LinkPattern>) -> Subject {
    let files = files(&config);
    let ports = ports(&config);
    let dns_servers = own_dns_servers(&config);
    Subject {
        lan: if named.is_empty() {
            config.lan.interfaces
        } else {
            named
        },
        sources: config.lan.sources,
        configured: config.gateway,
        ports,
        dns_servers,
        exempt_users: config.exempt.uids,
        files,
        file,
        token_file: config.api.token_file,
    }
}

/// The ports that are written in the configuration: the proxy's own for both protocols and families, and the API's.
fn ports(config: &Config) -> Vec<Wanted> {
    let mut ports = Vec::new();
    if config.proxy.port != 0 {
        for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let address = SocketAddr::new(ip, config.proxy.port);
            ports.extend([false, true].map(|udp| Wanted {
                key: "[proxy] port",
                address,
                udp,
            }));
        }
    }
    ports.extend(config.api.listen.iter().map(|address| Wanted {
        key: "[api] listen",
        address: *address,
        udp: false,
    }));
    ports
}

/// The DNS servers for `direct_domains` that have an address, if the gateway's own questions are answered by the
/// resolver. Those that do not run here nobody listens on.
fn own_dns_servers(config: &Config) -> Vec<SocketAddr> {
    let dns = config.dns.as_ref().filter(|dns| dns.hijack);
    let dns = dns.filter(|_| !config.wan.interfaces.is_empty());
    let servers = dns.into_iter().flat_map(|dns| &dns.direct);
    servers
        .filter_map(|server| Some(SocketAddr::new(server.address()?, server.port)))
        .collect()
}

/// How many open files the configuration lets in.
fn files(config: &Config) -> Files {
    let connections = config.tcp.max_connections.map(u64::from);
    let associations = config.udp.max_associations.into();
    Files {
        needed: Budget::files_for(connections, associations),
        connections: connections.unwrap_or(ENOUGH_CONNECTIONS),
        associations,
    }
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    let meant = findings
        .iter()
        .filter(|finding| finding.severity == severity);
    meant.count()
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Ok => "ok",
            Severity::Hint => "hint",
            Severity::Problem => "PROBLEM",
        };
        let _ = writeln!(text, "{severity:<9}{}: {}", finding.check, finding.found);
        for (name, value) in [("why", &finding.why), ("remedy", &finding.remedy)] {
            if !value.is_empty() {
                let _ = writeln!(text, "         {name}: {value}");
            }
        }
    }
    let number = |count, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    let _ = writeln!(
        text,
        "\n{}, {}",
        number(count(findings, Severity::Problem), "problem"),
        number(count(findings, Severity::Hint), "hint")
    );
    text
}
