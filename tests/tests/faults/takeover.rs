//! Either process of a takeover is killed or stopped at each step.

use anyhow::{Context, Result, ensure};
use lab::{
    Lab,
    faults::{Fault, Policy, Row, Scene, Seen, Sight, Trickle, are_reset, go_on, moves, whole},
    wait::SOON,
};
use tproxy_userspace::step::Step;

use super::steps::{At, chosen, detach_tells, down, policies, serves, steps};

/// The process that takes over comes to its fault.
fn taken_over(policy: Policy, fault: Fault) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let config = scene.write(policy, "")?;
    let often = [(Step::HeirCommitted, 1), (Step::HeirDone, 1)];
    let mut all = steps(&["start-", "heir-"], &often);
    // Neither is a step of a takeover.
    all.retain(|at| {
        !matches!(
            at.step,
            Step::StartLocked | Step::StartBound | Step::StartLinked
        )
    });
    for (place, at) in chosen(all) {
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
    meanwhile.nothing_unless(expected)?;
    let (row, look) = scene.observe(row, expected)?;
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
    meanwhile.nothing_unless(expected)?;
    let (row, look) = scene.observe(row, expected)?;
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

/// The old process is killed when it has given all and has not heard yet that the new one serves.
fn dies_too_early_to_hear(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let config = scene.write(policy, "")?;
    let mut old = scene.run(&config, None)?;
    let trickle = Trickle::start(&scene.lab)?;
    let held = scene.streams()?;
    let meanwhile = scene.wan()?;
    let args = ["run", "-c", &config, "--takeover"];
    let step = Step::HeirLinked.name();
    let mut heir = scene.spawn(&args, Some((step, Fault::Stop)))?;
    Fault::Stop.wait(&mut heir)?;
    old.kill();
    // The new one has the sockets.
    let look = scene.look(Sight::held())?;
    go_on(&heir)?;
    heir.wait_for_line("ready", SOON)?;
    look.answered()?;
    let expected = Sight::all(Seen::Proxied);
    scene.look(expected)?;
    meanwhile.nothing_of_devices()?;
    let title = format!("{step} of the new one: kill");
    let row = Row::new("Takeover, the old process", 90, title, policy);
    let (row, _) = scene.observe(row, expected)?;
    drop(trickle);
    are_reset(&held)?;
    heir.stop(2 * SOON)?;
    row.then("the new process serves; connections of the old one are reset")
        .left(scene.clean()?)
}

#[test]
fn the_process_that_takes_over_is_killed_at_any_step_with_pass() -> Result<()> {
    taken_over(Policy::Pass, Fault::Kill)
}

#[test]
fn the_process_that_takes_over_is_killed_at_any_step_with_drop() -> Result<()> {
    taken_over(Policy::Drop, Fault::Kill)
}

#[test]
fn the_process_that_takes_over_is_stopped_at_any_step_with_pass() -> Result<()> {
    match whole() {
        true => taken_over(Policy::Pass, Fault::Stop),
        false => Ok(()),
    }
}

#[test]
fn the_process_that_takes_over_is_stopped_at_any_step_with_drop() -> Result<()> {
    taken_over(Policy::Drop, Fault::Stop)
}

#[test]
fn at_any_step_of_the_process_that_is_taken_over_from() -> Result<()> {
    for &policy in policies() {
        bequeathed(policy)?;
        dies_too_early_to_hear(policy)?;
    }
    Ok(())
}
