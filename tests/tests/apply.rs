//! `apply` and `confirm`: a configuration that cuts off who applied it goes again by itself.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Snapshot, Tproxy,
    probe::{at, fate},
    servers::TcpEcho,
    traffic::connect,
    wait::SOON,
    ways::soon,
};
use serde_json::Value;

/// A proxy with a configuration that works, and one that does not beside it.
struct House<'l> {
    lab: &'l Lab,
    file: String,
    other: String,
}

impl<'l> House<'l> {
    /// Starts a proxy with the configuration, and has another one at this path.
    fn start(lab: &'l Lab, config: &str, other: &Path) -> Result<(Self, Tproxy)> {
        let file = lab.write(config)?;
        let other = other.to_str().context("UTF-8")?.to_owned();
        let tproxy = lab.tproxy(&["run", "--config", &file])?;
        Ok((Self { lab, file, other }, tproxy))
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        Ok(self.lab.tproxy_run(args)?.ok()?.stdout)
    }

    /// What a command that fails says.
    fn refused(&self, args: &[&str]) -> Result<String> {
        let output = self.lab.tproxy_run(args)?;
        ensure!(output.code() == Some(1), "{args:?}: {output:?}");
        Ok(output.stderr)
    }

    fn trial(&self) -> Result<Value> {
        Ok(self.lab.status()?["proxy"]["detail"]["trial_seconds"].clone())
    }

    fn text(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.file)?)
    }
}

/// Does the operator's session still move?
fn moves(session: &mut TcpStream) -> Result<()> {
    session.write_all(b"x")?;
    session.read_exact(&mut [0])?;
    Ok(())
}

#[test]
fn what_cuts_the_operator_off_is_taken_back() -> Result<()> {
    const TRIAL: Duration = Duration::from_secs(3);
    let lab = Lab::new()?;
    lab.gateway.sysctl(&[
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
    ])?;
    let before = Snapshot::take(&lab)?;
    let far = Far::start(&lab)?;
    let _echo = TcpEcho::start(&lab.internet, 22)?;
    let lan = lab.lan();
    let direct = Family::V4.far(4);
    let lan = format!("[lan]\ninterfaces = [\"{lan}\"]\n[bypass]\nprefixes = [\"{direct}/32\"]\n");
    let good = format!("{lan}[gateway]\nforward = true\n");
    // The machine forwards no more, and the proxy sends nothing on.
    let bad = format!("{lan}[[outbound]]\nname = \"no\"\nurl = \"block://\"\n");
    let (house, tproxy) = House::start(&lab, &good, &lab.dir().join("other.toml"))?;
    fs::write(&house.other, &bad)?;
    // The operator works on a far machine, direct, and through the proxy.
    let mut session = connect(&lab.device, at(direct, 22))?;
    session.set_read_timeout(Some(SOON))?;
    moves(&mut session)?;
    far.sees_proxy(&lab)?;

    let start = Instant::now();
    let told = house.run(&["apply", &house.other, "--confirm", "3s"])?;
    ensure!(told.contains("in force for 3"), "{told}");
    ensure!(house.trial()?.as_u64().is_some_and(|left| left < 3));
    let status = house.run(&["status"])?;
    ensure!(status.contains("`tproxy-bpf confirm` keeps it"), "{status}");
    // Cut off: nothing that the operator could say would arrive now.
    session.set_read_timeout(Some(Duration::from_millis(700)))?;
    ensure!(moves(&mut session).is_err(), "the session goes on");
    let (answer, end) = fate(&lab.device, at(Family::V4.far(5), 22))?;
    ensure!(answer.is_empty(), "{answer:?} {end:?}");
    ensure!(start.elapsed() < TRIAL, "too late to tell");
    // And back, by itself: the same session, since nobody has told it anything.
    session.set_read_timeout(Some(SOON))?;
    session.read_exact(&mut [0])?;
    ensure!(start.elapsed() >= TRIAL, "{:?}", start.elapsed());
    moves(&mut session)?;
    soon("the way through the proxy", || far.sees_proxy(&lab))?;
    tproxy
        .process()
        .wait_for_line("nobody confirmed the configuration in time", SOON)?;
    assert_eq!((house.trial()?, house.text()?), (Value::Null, good.clone()));
    let refused = house.refused(&["confirm"])?;
    ensure!(
        refused.contains("no configuration is on trial"),
        "{refused}"
    );

    // A second one on trial does not become what comes back.
    for _ in 0..2 {
        house.run(&["apply", &house.other, "--confirm", "1h"])?;
    }
    tproxy.process().signal(nix::sys::signal::Signal::SIGHUP)?;
    soon("the file", || far.sees_proxy(&lab))?;
    assert_eq!(house.trial()?, Value::Null);
    tproxy.stop()?;
    drop(far);
    lab.restored(&before)
}

#[test]
fn what_is_confirmed_or_applied_for_good_is_the_file_from_then_on() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let one = format!("[lan]\ninterfaces = [\"{}\"]\n", lab.lan());
    let bypass = |prefix: &str| format!("{one}[bypass]\nprefixes = [\"{prefix}\"]\n");
    let folder = lab.dir().join("edited");
    fs::create_dir(&folder)?;
    let (house, tproxy) = House::start(&lab, &one, &folder.join("other.toml"))?;
    far.sees_proxy(&lab)?;

    // Bad ones change nothing.
    fs::write(&house.other, one.replace("lan]", "lam]"))?;
    let refused = house.refused(&["apply", &house.other])?;
    ensure!(refused.contains("other.toml:1:"), "{refused}");
    fs::write(
        &house.other,
        format!("{one}[bypass]\nfiles = [\"a.txt\"]\n"),
    )?;
    let refused = house.refused(&["apply", &house.other, "--confirm", "5s"])?;
    ensure!(refused.contains("has not changed"), "{refused}");
    fs::write(&house.other, bypass("0.0.0.0/0"))?;
    for time in ["0s", "soon"] {
        let refused = house.refused(&["apply", &house.other, "--confirm", time])?;
        ensure!(refused.contains("--confirm"), "{refused}");
    }
    assert_eq!((house.trial()?, house.text()?), (Value::Null, one.clone()));
    far.sees_proxy(&lab)?;

    // Where the file of the proxy is, there is the list.
    fs::write(lab.dir().join("a.txt"), "0.0.0.0/0\n::/0\n")?;
    let listed = format!("{one}[bypass]\nfiles = [\"a.txt\"]\n");
    fs::write(&house.other, &listed)?;
    house.run(&["apply", &house.other, "--confirm", "1h"])?;
    far.sees_device(&lab)?;
    assert_eq!(house.text()?, one);
    let told = house.run(&["confirm"])?;
    ensure!(told.contains("written to"), "{told}");
    assert_eq!(
        (house.trial()?, house.text()?),
        (Value::Null, listed.clone())
    );
    assert_eq!(fs::read_to_string(format!("{}.before", house.file))?, one);

    // For good at once, and from the file itself.
    fs::write(&house.other, &one)?;
    house.run(&["apply", &house.other])?;
    far.sees_proxy(&lab)?;
    assert_eq!(house.text()?, one);
    fs::write(&house.file, &listed)?;
    let told = house.run(&["apply", &house.file])?;
    ensure!(told.contains("in force, as in"), "{told}");
    far.sees_device(&lab)?;
    tproxy.stop()?;

    let refused = house.refused(&["apply", &house.file])?;
    ensure!(refused.contains("no proxy runs here"), "{refused}");
    Ok(())
}
