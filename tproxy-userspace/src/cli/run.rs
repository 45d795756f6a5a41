//! `run`: the composition root of a gateway with its proxy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use tproxy_userspace::config::{Config, OnProxyDown, Outbound, Refusal};
use tproxy_userspace::control::gateway;
use tproxy_userspace::observe::log::Log;
use tproxy_userspace::step;

use super::{Policy, RunArgs, session, small_runtime};

/// The configuration of a machine that has one.
pub const DEFAULT_CONFIG: &str = "/etc/tproxy-bpf/config.toml";

pub fn run(args: RunArgs) -> Result<ExitCode> {
    let first = config(&args, None)?;
    let file = file(&args);
    let log = Log::start(
        args.log_format.unwrap_or(first.log.format),
        first.log.directives(),
    );
    step::warn();
    // Before the runtime makes threads: privileges are a thread's own.
    let mut ready = session::Ready::new(&first, file.as_deref(), args.takeover)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime failed")?;
    let ran = runtime.block_on(session::run(
        first,
        file,
        &|given| config(&args, given),
        log,
        &mut ready,
    ));
    ready.end();
    ran?;
    Ok(ExitCode::SUCCESS)
}

/// Tells the proxy that runs here that its service manager is about to end it.
pub fn leave() -> Result<ExitCode> {
    small_runtime()?.block_on(session::leave())?;
    Ok(ExitCode::SUCCESS)
}

/// The file that the configuration is read from.
fn file(args: &RunArgs) -> Option<PathBuf> {
    let default = Path::new(DEFAULT_CONFIG);
    match &args.config {
        Some(path) => Some(path.clone()),
        None if args.lan.is_empty() && args.wan.is_empty() && default.exists() => {
            Some(default.to_owned())
        }
        None => None,
    }
}

/// The file, or what a command gave in its place, with what the command line says over it. Paths are relative to where
/// the file is, where what is given may come to be.
fn config(args: &RunArgs, given: session::Source<'_>) -> Result<Config> {
    let path = file(args);
    let mut config = match given {
        None => load(path.as_deref())?,
        Some(given) => {
            let place = path.as_deref().unwrap_or(&given.path);
            Config::parse(&given.text, place)?
        }
    };
    if !args.lan.is_empty() {
        config.lan.interfaces = parse_patterns(&args.lan)?;
    }
    if !args.wan.is_empty() {
        config.wan.interfaces = parse_patterns(&args.wan)?;
    }
    if let Some(url) = &args.outbound {
        let url = url.parse().context("--outbound")?;
        config.outbounds = vec![Outbound::new("command-line", url)];
        (config.groups, config.proxy.outbound) = (Vec::new(), None);
    }
    if let Some(policy) = args.on_proxy_down {
        config.on_proxy_down = policy.into();
    }
    if config.lan.interfaces.is_empty() && config.wan.interfaces.is_empty() {
        bail!(
            "no LAN link is named: give one with --lan IF, or `[lan] interfaces = [\"IF\"]` in {}; \
             or --wan default for the gateway's own traffic alone",
            path.as_deref()
                .unwrap_or(Path::new(DEFAULT_CONFIG))
                .display()
        );
    }
    Ok(config)
}

/// The configuration in the file, or the defaults without one.
pub fn load(path: Option<&Path>) -> Result<Config> {
    Ok(match path {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    })
}

/// Names or globs of links.
pub fn parse_patterns<P>(texts: &[String]) -> Result<Vec<P>>
where
    P: FromStr<Err = Refusal>,
{
    texts
        .iter()
        .map(|text| text.parse().map_err(anyhow::Error::from))
        .collect()
}

/// What the kernel half is told of a configuration.
pub fn policy(config: &Config) -> gateway::Policy {
    gateway::Policy {
        bypass_private: config.bypass.private,
        down_drops: config.on_proxy_down == OnProxyDown::Drop,
        account: config.gateway.account,
    }
}

impl From<Policy> for OnProxyDown {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Pass => Self::Pass,
            Policy::Drop => Self::Drop,
        }
    }
}
