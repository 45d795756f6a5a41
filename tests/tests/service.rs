//! What a service manager hears of a run (`sd_notify(3)`), from the start to the end.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, wait::SOON};
use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};

/// The watchdog's limit. Pings come twice as often.
const LIMIT: Duration = Duration::from_secs(2);

/// The socket that a service manager listens on.
struct Manager(UnixDatagram);

impl Manager {
    /// The fields of the next message.
    fn hear(&self) -> Result<Vec<String>> {
        let mut buffer = [0; 4096];
        let read = self.0.recv(&mut buffer).context("nothing more was told")?;
        let text = String::from_utf8(buffer[..read].to_vec())?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The next message that is more than a sign of life.
    fn hear_news(&self) -> Result<Vec<String>> {
        loop {
            let fields = self.hear()?;
            if fields != ["WATCHDOG=1"] {
                return Ok(fields);
            }
        }
    }
}

/// Microseconds of `CLOCK_MONOTONIC`.
fn now() -> Result<i64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000)
}

/// The value of a field, which is there once.
fn field<'f>(fields: &'f [String], name: &str) -> Result<&'f str> {
    let mut values = fields
        .iter()
        .filter_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    let value = values.next();
    ensure!(values.next().is_none(), "{name} is twice in {fields:?}");
    value.with_context(|| format!("{name} is not in {fields:?}"))
}

#[test]
fn a_service_manager_hears_of_start_reload_and_end() -> Result<()> {
    let lab = Lab::new()?;
    let path = lab.dir().join("notify");
    let manager = Manager(UnixDatagram::bind(&path)?);
    manager.0.set_read_timeout(Some(SOON))?;
    let lan = lab.lan();
    let config = |more: &str| format!("{more}[lan]\ninterfaces = [\"{lan}\"]\n");
    let file = lab.write(&config(""))?;
    let mut command = lab.tproxy_command(&["run", "-c", &file])?;
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", LIMIT.as_micros().to_string());
    let mut tproxy = Lab::tproxy_by(command)?;

    // Nothing comes before it is ready.
    let ready = manager.hear()?;
    assert_eq!(ready[0], "READY=1");
    let status = field(&ready, "STATUS")?;
    ensure!(
        status.contains(lan) && status.contains("direct://"),
        "{status}"
    );
    assert_eq!(lab.attached_links()?, [lan]);

    // Signs of life, twice in the time of the watchdog; the first comes at once.
    manager.hear()?;
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(manager.hear()?, ["WATCHDOG=1"]);
    }
    let three = start.elapsed();
    let rhythm = LIMIT / 2;
    ensure!(three > rhythm * 2 && three < LIMIT * 3, "{three:?}");

    // A reload, which is dated after the request for it, as systemd wants.
    let reload = || -> Result<Vec<String>> {
        let asked = now()?;
        tproxy.process().signal(Signal::SIGHUP)?;
        let reloading = manager.hear_news()?;
        assert_eq!(reloading[0], "RELOADING=1");
        let dated: i64 = field(&reloading, "MONOTONIC_USEC")?.parse()?;
        ensure!(asked <= dated && dated <= now()?, "{asked} {dated}");
        let done = manager.hear_news()?;
        assert_eq!(done[0], "READY=1");
        Ok(done)
    };
    fs::write(&file, config("on_proxy_down = \"drop\"\n"))?;
    ensure!(field(&reload()?, "STATUS")?.contains("proxied through"));
    assert_eq!(lab.status()?["on_proxy_down"], "drop");

    // One that fails says why, in one line, and what was goes on.
    fs::write(&file, config("stage = 9\n"))?;
    let refused = reload()?;
    let status = field(&refused, "STATUS")?;
    for word in ["reload failed", "9 is not a stage", &file] {
        ensure!(status.contains(word), "no {word:?} in {status}");
    }
    assert_eq!(lab.status()?["on_proxy_down"], "drop");

    // And one that mends it takes the word back.
    fs::write(&file, config(""))?;
    ensure!(!field(&reload()?, "STATUS")?.contains("failed"));

    // The end may take the drain's 10 s and what comes after.
    tproxy.process().signal(Signal::SIGTERM)?;
    let stopping = manager.hear_news()?;
    assert_eq!(stopping[0], "STOPPING=1");
    assert_eq!(field(&stopping, "EXTEND_TIMEOUT_USEC")?, "40000000");
    let ended = tproxy.process_mut().wait(SOON)?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

/// Whoever listens no more is no reason to end.
#[test]
fn a_service_manager_that_is_gone_is_told_of_once() -> Result<()> {
    let lab = Lab::new()?;
    let path = lab.dir().join("nobody");
    let mut command =
        lab.tproxy_command(&["run", "--lan", lab.lan(), "--outbound", "direct://"])?;
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "20000");
    let tproxy = Lab::tproxy_by(command)?;
    let process = tproxy.process();
    process.wait_for_line("telling the service manager failed", SOON)?;
    process.signal(Signal::SIGHUP)?;
    process.wait_for_line("reloaded", SOON)?;
    let lines = process.lines();
    let complaints = lines.iter().filter(|line| line.contains("service manager"));
    assert_eq!(complaints.count(), 1, "{lines:?}");
    tproxy.stop()
}
