//! The program is killed or stopped at each step of a start and of a reload.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::{
    Lab, Process,
    faults::{Fault, Policy, Row, Scene, Seen, Sight, Trickle, are_reset, go_on, moves, whole},
    wait::SOON,
};
use nix::sys::signal::Signal;
use tproxy_userspace::step::Step;

/// A configuration that differs in what each step of a reload changes.
const CHANGED: &str = "[bypass]\nprefixes = [\"203.0.113.20/32\"]\n[[outbound]]\nname = \"other\"\nurl = \"direct://\"\n";

/// A step, the how manieth time it comes, and what is there then.
pub struct At {
    pub step: Step,
    pub time: u32,
    /// Whether it is tried when not all are.
    often: bool,
}

impl At {
    pub fn name(&self) -> String {
        match self.time {
            1 => self.step.name().to_owned(),
            time => format!("{}:{time}", self.step),
        }
    }
}

/// The steps whose name begins with one of these, and those that come again for each link: `lo`, the LAN's, the WAN's.
pub fn steps(prefixes: &[&str], often: &[(Step, u32)]) -> Vec<At> {
    let mut all = Vec::new();
    for &step in Step::ALL {
        if !prefixes
            .iter()
            .any(|prefix| step.name().starts_with(prefix))
        {
            continue;
        }
        let times = match step {
            Step::StartAttached | Step::StartNoted | Step::StopDetached => 3,
            _ => 1,
        };
        all.extend((1..=times).map(|time| At {
            step,
            time,
            often: often.contains(&(step, time)),
        }));
    }
    all
}

pub fn policies() -> &'static [Policy] {
    match whole() {
        true => &Policy::BOTH,
        false => &[Policy::Drop],
    }
}

pub fn chosen(all: Vec<At>) -> impl Iterator<Item = (usize, At)> {
    let all = all.into_iter().enumerate();
    all.filter(|(_, at)| at.often || whole())
}

/// What holds when the programs are attached and nobody serves.
pub fn down(policy: Policy) -> Sight {
    Sight::all(policy.seen())
}

/// What is there when a start has come to a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    Lan,
    Both,
}

fn there(at: &At) -> There {
    match (at.step, at.time) {
        (Step::StartAttached, 1) | (Step::StartNoted, 1 | 2) => There::Nothing,
        (Step::StartAttached, 2) | (Step::StartNoted, 3) => There::Lan,
        (step, _) if step >= Step::StartAttached => There::Both,
        _ => There::Nothing,
    }
}

fn sight_of(there: There, attached: Sight) -> Sight {
    match there {
        There::Nothing => Sight::all(Seen::Direct),
        There::Lan => attached.and_own(Seen::Direct),
        There::Both => attached,
    }
}

/// `detach` beside a process that is stopped says so at once, if there is a proxy yet.
pub fn detach_tells(scene: &Scene, process: &Process) -> Result<()> {
    let lock = scene.lab.state().join("proxy.lock");
    let pid = process.pid().to_string();
    if fs::read_to_string(lock).is_ok_and(|holder| holder.trim() == pid) {
        let kill = format!("kill -CONT {pid}");
        scene.lab.refused(&["detach"], 1, &["is stopped", &kill])?;
    }
    Ok(())
}

pub fn serves(scene: &Scene) -> Result<()> {
    scene.look(Sight::all(Seen::Proxied)).map(drop)
}

fn started(policy: Policy, clsact: bool) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let config = scene.write(policy, "")?;
    let often = [
        (Step::StartPinned, 1),
        (Step::StartAttached, 2),
        (Step::StartLinked, 1),
    ];
    let all = steps(&["start-"], &often);
    // The ways differ in how links are attached.
    let all = all
        .into_iter()
        .filter(|at| !clsact || matches!(at.step, Step::StartAttached | Step::StartNoted));
    let part = match clsact {
        false => "Start",
        true => "Start, with clsact",
    };
    for (place, at) in chosen(all.collect()) {
        for fault in Fault::BOTH {
            let name = at.name();
            let row = Row::new(
                part,
                2 * place + fault as usize,
                format!("{name}: {}", fault.word()),
                policy,
            );
            let one = || one_start(&scene, &config, &at, fault, policy, clsact, row);
            one().with_context(|| format!("{name}={}", fault.word()))?;
        }
    }
    Ok(())
}

fn one_start(
    scene: &Scene,
    config: &str,
    at: &At,
    fault: Fault,
    policy: Policy,
    clsact: bool,
    row: Row<'_>,
) -> Result<()> {
    let mut command = scene.lab.tproxy_command(&["run", "-c", config])?;
    if clsact {
        command.env("TPROXY_BPF_ATTACH", "clsact");
    }
    command.env(
        tproxy_userspace::step::VARIABLE,
        format!("{}={}", at.name(), fault.word()),
    );
    let mut process = Process::spawn(command)?;
    fault.wait(&mut process)?;
    let attached = match fault {
        Fault::Kill => down(policy),
        Fault::Stop => Sight::held(),
    };
    let expected = sight_of(there(at), attached);
    let (row, look) = scene.observe(row, expected)?;
    if fault == Fault::Stop {
        detach_tells(scene, &process)?;
        go_on(&process)?;
        process.wait_for_line("ready", 2 * SOON)?;
        look.answered()?;
        serves(scene)?;
        process.stop(2 * SOON)?;
        return row.then("serves after SIGCONT").left(scene.clean()?);
    }
    if policy == Policy::Drop {
        return row.then("").left(scene.detached()?);
    }
    let mut next = scene.run(config, None)?;
    serves(scene)?;
    next.stop(2 * SOON)?;
    row.then("the next start serves").left(scene.clean()?)
}

fn reloaded(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let config = scene.write(policy, "")?;
    let often = [(Step::ReloadEnforced, 1)];
    for (place, at) in chosen(steps(&["reload-"], &often)) {
        for fault in Fault::BOTH {
            let name = at.name();
            let title = format!("{name}: {}", fault.word());
            let row = Row::new("Reload", 2 * place + fault as usize, &title, policy);
            let one = || -> Result<()> {
                scene.write(policy, "")?;
                let process = scene.run(&config, Some((&name, fault)))?;
                let trickle = Trickle::start(&scene.lab)?;
                let held = scene.streams()?;
                let meanwhile = scene.wan()?;
                scene.write(policy, CHANGED)?;
                process.signal(Signal::SIGHUP)?;
                interrupted(
                    &scene,
                    process,
                    fault,
                    policy,
                    Watched {
                        trickle,
                        held,
                        meanwhile,
                    },
                    row,
                    |process| process.wait_for_line("reloaded", SOON).map(drop),
                )
            };
            one().context(title)?;
        }
    }
    Ok(())
}

/// What is watched from before the fault.
struct Watched {
    trickle: Trickle,
    held: Vec<std::net::TcpStream>,
    meanwhile: lab::faults::Wan,
}

/// A proxy that served comes to its fault.
fn interrupted(
    scene: &Scene,
    mut process: Process,
    fault: Fault,
    policy: Policy,
    watched: Watched,
    row: Row<'_>,
    ends_well: impl FnOnce(&Process) -> Result<()>,
) -> Result<()> {
    fault.wait(&mut process)?;
    let expected = match fault {
        Fault::Kill => down(policy),
        Fault::Stop => Sight::held(),
    };
    watched.meanwhile.nothing_unless(expected)?;
    let (row, look) = scene.observe(row, expected)?;
    drop(watched.trickle);
    if fault == Fault::Kill {
        are_reset(&watched.held)?;
        return row
            .then("proxied connections are reset")
            .left(scene.detached()?);
    }
    detach_tells(scene, &process)?;
    go_on(&process)?;
    ends_well(&process)?;
    look.answered()?;
    serves(scene)?;
    watched.held.iter().try_for_each(moves)?;
    drop(watched.held);
    process.stop(2 * SOON)?;
    row.then("all goes on after SIGCONT").left(scene.clean()?)
}

#[test]
fn at_any_step_of_a_start_with_pass() -> Result<()> {
    match whole() {
        true => started(Policy::Pass, false),
        false => Ok(()),
    }
}

#[test]
fn at_any_step_of_a_start_with_drop() -> Result<()> {
    started(Policy::Drop, false)
}

#[test]
fn at_any_step_of_a_start_with_clsact() -> Result<()> {
    if whole() {
        started(Policy::Pass, true)?;
    }
    started(Policy::Drop, true)
}

#[test]
fn at_any_step_of_a_reload() -> Result<()> {
    policies().iter().copied().try_for_each(reloaded)
}

#[test]
fn a_fault_that_is_none_is_refused() -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let mut command = scene.lab.tproxy_command(&["run", "--lan", "lan0"])?;
    command.env(tproxy_userspace::step::VARIABLE, "start=kill");
    let output = lab::process::run(command, SOON)?;
    ensure!(output.code() == Some(1), "{output:?}");
    for step in Step::ALL {
        ensure!(output.stderr.contains(step.name()), "{}", output.stderr);
    }
    scene.clean().map(drop)
}
