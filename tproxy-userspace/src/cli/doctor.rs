//! `doctor`: is this machine fit, and if not, what to do.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use tproxy_userspace::config::Config;
use tproxy_userspace::control::Netlink;
use tproxy_userspace::control::doctor::{
    Finding, Severity, Subject, attached_links, examine, gather,
};
use tproxy_userspace::control::links::Snapshot;

use super::run::{DEFAULT_CONFIG, load, parse_patterns};
use super::{DoctorArgs, output, small_runtime};

pub fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let named = parse_patterns(&args.lan)?;
    let facts = small_runtime()?.block_on(async {
        let attached = attached_links(&Snapshot::take(&Netlink::open()?).await?);
        let default = Path::new(DEFAULT_CONFIG);
        let config = match &args.config {
            Some(path) => Config::load(path)?,
            None if named.is_empty() && attached.is_empty() && default.exists() => {
                load(Some(default))?
            }
            None => Config::default(),
        };
        let subject = Subject {
            lan: if named.is_empty() {
                config.lan.interfaces
            } else {
                named
            },
            sources: config.lan.sources,
            configured: config.gateway,
        };
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
