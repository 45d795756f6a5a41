//! The program is killed or stopped at each step of a stop and of `detach`.

use anyhow::{Context, Result, ensure};
use lab::{
    Lab,
    faults::{Fault, Policy, Row, Scene, Seen, Sight, Trickle, go_on, whole},
    wait::SOON,
};
use nix::sys::signal::Signal;
use tproxy_userspace::step::Step;

use super::steps::{At, chosen, detach_tells, down, policies, serves, steps};

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
    meanwhile.nothing_unless(expected)?;
    let (row, look) = scene.observe(row, expected)?;
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
    // It waits for the lock where the process has no more than that.
    if whole() || at.step == Step::StopAsked {
        detach_tells(scene, &process)?;
    }
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
            let (row, _) = scene.observe(row, expected)?;
            row.left(scene.detached()?)
        };
        one().context(name)?;
    }
    Ok(())
}

#[test]
fn at_any_step_of_a_stop_with_pass() -> Result<()> {
    match whole() {
        true => stopped(Policy::Pass),
        false => Ok(()),
    }
}

#[test]
fn at_any_step_of_a_stop_with_drop() -> Result<()> {
    stopped(Policy::Drop)
}

#[test]
fn at_any_step_of_detach() -> Result<()> {
    policies().iter().copied().try_for_each(detaching)
}
