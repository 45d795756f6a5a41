//! `check`: a configuration validated without touching anything.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use tproxy_userspace::config::Config;
use tproxy_userspace::control::exempt;

use super::lists::Lists;
use super::{CheckArgs, output};

pub fn check(args: &CheckArgs) -> Result<ExitCode> {
    let config = match Config::load(&args.file) {
        Ok(config) => config,
        Err(error) if args.read.json => {
            output::json(&json!({ "valid": false, "findings": error.findings() }))?;
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    };
    let names = || {
        exempt::resolve(&config.exempt)?;
        anyhow::Ok(config.api.check()?)
    };
    let lists = match Lists::load(&config).and_then(|found| names().map(|()| found)) {
        Ok(lists) => lists,
        Err(error) if args.read.json => {
            let finding = json!({ "message": output::one_message(&error) });
            output::json(&json!({ "valid": false, "findings": [finding] }))?;
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error),
    };
    let prefixes = lists.bypass.len();
    let (rules, domains) = (lists.rules.len(), lists.rules.domains());
    if args.read.json {
        output::json(&json!({
            "valid": true,
            "bypass_prefixes": prefixes,
            "rules": rules,
            "rule_domains": domains,
            "notes": lists.notes,
            "config": config,
        }))?;
    } else {
        output::text_out(&format!(
            "{} is valid; with all defaults it comes to:\n\n{}\n\n{} prefixes are bypassed; {} rules \
             have {} domains\n{}",
            args.file.display(),
            config,
            output::number(prefixes as u64),
            output::number(rules as u64),
            output::number(domains as u64),
            lists
                .notes
                .iter()
                .map(|note| format!("{note}\n"))
                .collect::<String>()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
