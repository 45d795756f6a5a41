//! The program is killed or stopped at each step of a start, a reload, a takeover and a stop.

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
struct At {
    step: Step,
    time: u32,
    /// Whether it is tried when not all are.
    often: bool,
}

impl At {
    fn name(&self) -> String {
        match self.time {
            1 => self.step.name().to_owned(),
            time => format!("{}:{time}", self.step),
        }
    }
}

/// The steps whose name begins with one of these, and those that come again for each link: `lo`, the LAN's, the WAN's.
fn steps(prefixes: &[&str], often: &[(Step, u32)]) -> Vec<At> {
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

fn chosen(all: Vec<At>) -> impl Iterator<Item = (usize, At)> {
    let all = all.into_iter().enumerate();
    all.filter(|(_, at)| at.often || whole())
}

/// What holds when the programs are attached and nobody serves.
fn down(policy: Policy) -> Sight {
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
fn detach_tells(scene: &Scene, process: &Process) -> Result<()> {
    let lock = scene.lab.state().join("proxy.lock");
    let pid = process.pid().to_string();
    if fs::read_to_string(lock).is_ok_and(|holder| holder.trim() == pid) {
        let kill = format!("kill -CONT {pid}");
        scene.lab.refused(&["detach"], 1, &["is stopped", &kill])?;
    }
    Ok(())
}

fn serves(scene: &Scene) -> Result<()> {
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
    let wan = scene.wan()?;
    let look = scene.look(expected)?;
    let row = row.seen(look.sight, wan.leaves_as(expected)?);
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
    if !expected.device_goes_direct() {
        watched.meanwhile.nothing_of_devices()?;
    }
    let wan = scene.wan()?;
    let look = scene.look(expected)?;
    let row = row.seen(look.sight, wan.leaves_as(expected)?);
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
    started(Policy::Pass, false)
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
    Policy::BOTH.into_iter().try_for_each(reloaded)
}

/// The process that takes over comes to its fault.
fn taken_over(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let config = scene.write(policy, "")?;
    let often = [(Step::HeirCommitted, 1), (Step::HeirDone, 1)];
    let mut all = steps(&["start-", "heir-"], &often);
    // Neither is a step of a takeover, and it attaches nothing anew before it has the others' sockets.
    all.retain(|at| {
        !matches!(
            at.step,
            Step::StartLocked | Step::StartBound | Step::StartLinked
        )
    });
    for (place, at) in chosen(all) {
        for fault in Fault::BOTH {
            let title = format!("{}: {}", at.name(), fault.word());
            let row = Row::new(
                "Takeover, the new process",
                2 * place + fault as usize,
                &title,
                policy,
            );
            let one = || one_heir(&scene, &config, &at, fault, policy, row);
            one().context(title)?;
        }
    }
    Ok(())
}

/// Who has what is new when the heir has come to a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// The old process serves.
    Old,
    /// It waits for the new one, and goes on if that dies.
    Waits,
    /// It has let go.
    New,
}

fn holder(step: Step) -> Holder {
    match step {
        Step::HeirDone | Step::StartReady => Holder::New,
        Step::StartChecked
        | Step::StartPinned
        | Step::StartRouted
        | Step::StartLookup
        | Step::HeirAsked
        | Step::HeirLoaded => Holder::Old,
        _ => Holder::Waits,
    }
}

fn one_heir(
    scene: &Scene,
    config: &str,
    at: &At,
    fault: Fault,
    policy: Policy,
    row: Row<'_>,
) -> Result<()> {
    let mut old = scene.run(config, None)?;
    let trickle = Trickle::start(&scene.lab)?;
    let held = scene.streams()?;
    let meanwhile = scene.wan()?;
    let args = ["run", "-c", config, "--takeover"];
    let mut heir = scene.spawn(&args, Some((&at.name(), fault)))?;
    fault.wait(&mut heir)?;
    let expected = match (holder(at.step), fault) {
        (Holder::Old, _) | (Holder::Waits, Fault::Kill) => Sight::all(Seen::Proxied),
        (Holder::New, Fault::Kill) => down(policy),
        (Holder::Waits | Holder::New, Fault::Stop) => Sight::held(),
    };
    if holder(at.step) == Holder::New {
        old.wait_for_line("has taken over", SOON)?;
    }
    if !expected.device_goes_direct() {
        meanwhile.nothing_of_devices()?;
    }
    let wan = scene.wan()?;
    let look = scene.look(expected)?;
    let row = row.seen(look.sight, wan.leaves_as(expected)?);
    // What the old process has it keeps, whatever happens to the new one.
    held.iter().try_for_each(moves)?;
    drop(trickle);
    let then = match (fault, holder(at.step)) {
        (Fault::Kill, Holder::New) => "the old process ends its connections in peace",
        (Fault::Kill, _) => "the old process serves on",
        (Fault::Stop, _) => {
            if holder(at.step) == Holder::New {
                detach_tells(scene, &heir)?;
            }
            go_on(&heir)?;
            heir.wait_for_line("ready", SOON)?;
            look.answered()?;
            serves(scene)?;
            held.iter().try_for_each(moves)?;
            "the new process serves after SIGCONT"
        }
    };
    drop(held);
    match (fault, holder(at.step)) {
        (Fault::Kill, Holder::Old | Holder::Waits) => old.stop(2 * SOON)?,
        (Fault::Kill, Holder::New) => {
            scene.detached()?;
            old.kill();
        }
        (Fault::Stop, _) => {
            heir.stop(2 * SOON)?;
            old.kill();
        }
    }
    row.then(then).left(scene.clean()?)
}

/// The process that is taken over from comes to its fault.
fn bequeathed(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let config = scene.write(policy, "")?;
    let often = [(Step::TestatorHanded, 1), (Step::TestatorReplaced, 1)];
    for (place, at) in chosen(steps(&["testator-"], &often)) {
        for fault in Fault::BOTH {
            let title = format!("{}: {}", at.name(), fault.word());
            let part = "Takeover, the old process";
            let row = Row::new(part, 2 * place + fault as usize, &title, policy);
            let one = || one_testator(&scene, &config, &at, fault, policy, row);
            one().context(title)?;
        }
    }
    Ok(())
}

fn one_testator(
    scene: &Scene,
    config: &str,
    at: &At,
    fault: Fault,
    policy: Policy,
    row: Row<'_>,
) -> Result<()> {
    let mut old = scene.run(config, Some((&at.name(), fault)))?;
    let trickle = Trickle::start(&scene.lab)?;
    let held = scene.streams()?;
    let meanwhile = scene.wan()?;
    let mut heir = scene.spawn(&["run", "-c", config, "--takeover"], None)?;
    fault.wait(&mut old)?;
    let replaced = at.step == Step::TestatorReplaced;
    let expected = match fault {
        _ if replaced => Sight::all(Seen::Proxied),
        Fault::Kill => {
            // It has the sockets until it ends, and has nothing to go on with.
            let status = heir.wait(SOON)?;
            ensure!(status.code() == Some(1), "{:?}", heir.lines());
            down(policy)
        }
        Fault::Stop => Sight::held(),
    };
    if !expected.device_goes_direct() {
        meanwhile.nothing_of_devices()?;
    }
    let wan = scene.wan()?;
    let look = scene.look(expected)?;
    let row = row.seen(look.sight, wan.leaves_as(expected)?);
    drop(trickle);
    let then = match fault {
        Fault::Kill => {
            are_reset(&held)?;
            match replaced {
                true => "the new process serves; connections of the old one are reset",
                false => "the new process ends; proxied connections are reset",
            }
        }
        Fault::Stop => {
            go_on(&old)?;
            heir.wait_for_line("ready", 2 * SOON)?;
            look.answered()?;
            serves(scene)?;
            held.iter().try_for_each(moves)?;
            "all goes on after SIGCONT"
        }
    };
    drop(held);
    if fault == Fault::Kill && !replaced {
        return row.then(then).left(scene.detached()?);
    }
    heir.stop(2 * SOON)?;
    old.kill();
    row.then(then).left(scene.clean()?)
}

/// A proxy that is to stop comes to its fault.
fn stopped(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let config = scene.write(policy, "")?;
    let often = [
        (Step::StopAsked, 1),
        (Step::StopDetached, 1),
        (Step::StopUnpinned, 1),
    ];
    for (place, at) in chosen(steps(&["stop-"], &often)) {
        for fault in Fault::BOTH {
            let title = format!("{}: {}", at.name(), fault.word());
            let row = Row::new("Stop", 2 * place + fault as usize, &title, policy);
            let one = || one_stop(&scene, &config, &at, fault, policy, row);
            one().context(title)?;
        }
    }
    Ok(())
}

fn one_stop(
    scene: &Scene,
    config: &str,
    at: &At,
    fault: Fault,
    policy: Policy,
    row: Row<'_>,
) -> Result<()> {
    let mut process = scene.run(config, Some((&at.name(), fault)))?;
    let trickle = Trickle::start(&scene.lab)?;
    let meanwhile = scene.wan()?;
    process.signal(Signal::SIGTERM)?;
    fault.wait(&mut process)?;
    let expected = match (at.step, at.time, fault) {
        (Step::StopAsked, _, Fault::Stop) => Sight::held(),
        // The sockets are the programs' no more.
        (step, ..) if step < Step::StopDetached => down(policy),
        (Step::StopDetached, 1, _) => Sight::device(Seen::Direct).and_own(policy.seen()),
        _ => Sight::all(Seen::Direct),
    };
    if !expected.device_goes_direct() {
        meanwhile.nothing_of_devices()?;
    }
    let wan = scene.wan()?;
    let look = scene.look(expected)?;
    let row = row.seen(look.sight, wan.leaves_as(expected)?);
    drop(trickle);
    if fault == Fault::Kill {
        if policy == Policy::Drop {
            return row.left(scene.detached()?);
        }
        let mut next = scene.run(config, None)?;
        serves(scene)?;
        next.stop(2 * SOON)?;
        return row.then("the next start serves").left(scene.clean()?);
    }
    detach_tells(scene, &process)?;
    go_on(&process)?;
    look.answered()?;
    let status = process.wait(2 * SOON)?;
    ensure!(status.success(), "{:?}", process.lines());
    row.then("ends well after SIGCONT").left(scene.clean()?)
}

/// `detach` is killed while it clears up after a proxy that was killed; the next one does the rest.
fn detaching(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let config = scene.write(policy, "")?;
    let often = [(Step::StopUnpinned, 1)];
    let mut all = steps(&["stop-"], &often);
    all.retain(|at| at.step >= Step::StopDetached);
    for (place, at) in chosen(all) {
        let name = at.name();
        let row = Row::new("Detach", place, format!("{name}: kill"), policy);
        let one = || -> Result<()> {
            scene.run(&config, None)?.kill();
            let mut detach = scene.spawn(&["detach"], Some((&name, Fault::Kill)))?;
            Fault::Kill.wait(&mut detach)?;
            let expected = match (at.step, at.time) {
                (Step::StopDetached, 1) => Sight::device(Seen::Direct).and_own(policy.seen()),
                _ => Sight::all(Seen::Direct),
            };
            let wan = scene.wan()?;
            let look = scene.look(expected)?;
            row.seen(look.sight, wan.leaves_as(expected)?)
                .left(scene.detached()?)
        };
        one().context(name)?;
    }
    Ok(())
}

#[test]
fn at_any_step_of_the_process_that_takes_over_with_pass() -> Result<()> {
    taken_over(Policy::Pass)
}

#[test]
fn at_any_step_of_the_process_that_takes_over_with_drop() -> Result<()> {
    taken_over(Policy::Drop)
}

#[test]
fn at_any_step_of_the_process_that_is_taken_over_from() -> Result<()> {
    Policy::BOTH.into_iter().try_for_each(bequeathed)
}

#[test]
fn at_any_step_of_a_stop_with_pass() -> Result<()> {
    stopped(Policy::Pass)
}

#[test]
fn at_any_step_of_a_stop_with_drop() -> Result<()> {
    stopped(Policy::Drop)
}

#[test]
fn at_any_step_of_detach() -> Result<()> {
    Policy::BOTH.into_iter().try_for_each(detaching)
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
