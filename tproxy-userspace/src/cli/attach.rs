//! `attach` and `detach`: the kernel half alone.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use tproxy_common::abi::Origin;
use tproxy_userspace::config::Config;
use tproxy_userspace::control::bpf::Maps;
use tproxy_userspace::control::bypass::{self, Terms};
use tproxy_userspace::control::exempt;
use tproxy_userspace::control::gateway::{self, Gateway};
use tproxy_userspace::control::links::{LinkInfo, Snapshot};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::control::sync::{Selection, wanted};
use tproxy_userspace::control::{Netlink, preflight};
use tproxy_userspace::observe::socket::{Request, ask};

use super::asking::can_answer;
use super::run::{load, parse_patterns, policy};
use super::session::{select, way};
use super::{AttachArgs, DetachArgs, Role, lists, output, small_runtime};

/// Longer than any proxy drains by default; one that is told to drain longer is waited for in vain.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a proxy that was killed may take to be gone.
const DEATH: Duration = Duration::from_secs(1);

pub fn attach(args: AttachArgs) -> Result<ExitCode> {
    let mut named = Selection::default();
    match args.role {
        Role::Lan => named.lan = parse_patterns(&args.links)?,
        Role::Wan => named.wan = parse_patterns(&args.links)?,
    }
    let mut config = load(args.config.as_deref())?;
    if let Some(policy) = args.on_proxy_down {
        config.on_proxy_down = policy.into();
    }
    let prefixes = lists::bypass(&config)?.entries;
    exempt::check(&config.exempt)?;
    let kernel = preflight::check_machine()?.kernel;
    let place = Place::current()?;
    small_runtime()?.block_on(async {
        let snapshot = Snapshot::take(&Netlink::open()?).await?;
        preflight::check_links(&named, &snapshot)?;
        let lock = place.lock()?;
        let fresh = Maps::open(place.pins())?.is_none();
        let mut gateway = match Gateway::open(place.clone(), way(kernel)).await {
            Ok(gateway) => gateway,
            Err(error) => {
                // The folders were made for this; the first failure is the one to tell.
                if fresh {
                    let _ = place.remove(lock);
                }
                return Err(error.into());
            }
        };
        let attached = put_up(
            &mut gateway,
            &args,
            &config,
            &prefixes,
            &named,
            &snapshot,
            fresh,
        )
        .await;
        drop(gateway);
        match attached {
            Ok(names) => output::text_out(&format!("attached to {}\n", names.join(", "))),
            Err(error) => {
                // The first failure is the one to tell.
                if fresh && let Err(undo) = gateway::detach(&place, &[], &snapshot, lock).await {
                    eprintln!("tproxy-bpf: taking back what was attached: {undo}");
                }
                Err(error)
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What `attach` does to a gateway that is loaded. Returns the names of the links that were attached.
async fn put_up(
    gateway: &mut Gateway,
    args: &AttachArgs,
    config: &Config,
    prefixes: &[IpNet],
    named: &Selection,
    snapshot: &Snapshot,
    fresh: bool,
) -> Result<Vec<String>> {
    // A gateway that is there keeps its policy unless told otherwise.
    let mut machine = config.gateway.clone();
    if !fresh && args.config.is_none() {
        machine.masquerade = gateway.masquerades()?;
    }
    if fresh || args.config.is_some() {
        if machine.forward {
            gateway.enable_forwarding()?;
        }
        gateway.set_policy(policy(config))?;
        bypass::replace(gateway.maps(), prefixes, &Terms::default(), Origin::Config)?;
        exempt::configure(gateway.maps(), &config.exempt)?;
    } else if args.on_proxy_down.is_some() {
        let present = gateway.policy()?;
        gateway.set_policy(gateway::Policy {
            down_drops: policy(config).down_drops,
            ..present
        })?;
    }
    let mut all = named.clone();
    all.sources.clone_from(&config.lan.sources);
    for link in gateway.links(snapshot)? {
        select(&mut all, &link.name, link.roles())?;
    }
    let mut synced = gateway.sync(&wanted(snapshot, &all), snapshot).await?;
    gateway.keep(named, snapshot)?;
    let machine = gateway.sync_machine(&machine, snapshot);
    synced.failed.extend(machine.err());
    if let Some(error) = synced.failed.pop() {
        return Err(error.into());
    }
    let meant = |link: &&LinkInfo| !named.roles(link, snapshot).is_empty();
    let links = snapshot.links.iter().filter(meant);
    Ok(links.map(|link| link.name.clone()).collect())
}

pub fn detach(args: &DetachArgs) -> Result<ExitCode> {
    let place = Place::current()?;
    if let Some(pid) = place.proxy_pid() {
        can_answer(pid)?;
        let detached = detach_running(&place, pid, &args.links);
        // One that was killed may hold its lock for a moment longer, as may a program that it was about to start.
        if detached.is_ok() || !ends(&place, pid, DEATH) {
            return detached;
        }
    }
    detach_here(&place, &args.links)
}

/// Does this proxy end within so much time?
fn ends(place: &Place, pid: u32, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while place.proxy_pid() == Some(pid) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

fn detach_here(place: &Place, links: &[String]) -> Result<ExitCode> {
    let detached = small_runtime()?.block_on(async {
        let snapshot = Snapshot::take(&Netlink::open()?).await?;
        let lock = place.lock()?;
        anyhow::Ok(gateway::detach(place, links, &snapshot, lock).await?)
    })?;
    let text = match &detached[..] {
        [] => "nothing was attached; what was left has been removed\n".into(),
        names => format!("detached from {}\n", names.join(", ")),
    };
    output::text_out(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A running proxy gives its links up itself, so that its connections can end first.
fn detach_running(place: &Place, pid: u32, links: &[String]) -> Result<ExitCode> {
    if links.is_empty() {
        ask(
            &place.control_socket(),
            &Request::Detach { links: Vec::new() },
            PATIENCE,
        )?;
        if !ends(place, pid, PATIENCE) {
            bail!("the proxy (process {pid}) is still draining its connections; try again later");
        }
        return detach_here(place, links);
    }
    for link in links {
        let answer = ask(
            &place.control_socket(),
            &Request::Detach {
                links: vec![link.clone()],
            },
            PATIENCE,
        )?;
        if let Some(error) = answer["error"].as_str() {
            bail!("detaching {link} failed: {error}");
        }
        answer["detached"]
            .as_str()
            .context("the proxy gave an answer that is not understood")?;
        output::text_out(&format!("detached from {link}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
