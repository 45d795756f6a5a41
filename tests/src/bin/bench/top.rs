//! What it costs to look: `top` at a gateway with thousands of flows.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use lab::{
    Family, Lab,
    servers::{Iperf, OneByte},
    traffic::{self, Test},
    usage,
    wait::{SOON, until},
};
use nix::pty::{Winsize, openpty};

use crate::{
    lists::Line,
    load::connections::{self, PORT, REQUEST},
    options::Options,
};

/// The name for `--only` and in the JSON.
pub const NAME: &str = "top";
/// How many flows live: what 20,000 open files are enough for, on either side.
pub const FLOWS: usize = 9_000;
/// How often `top` looks while nothing else happens.
const INTERVALS: u32 = 10;
const QUICK_INTERVALS: u32 = 3;

/// Measures all.
///
/// # Errors
/// When the program does not start, or not all flows come about.
pub fn measure(options: &Options) -> Result<Vec<Line>> {
    let lab = Lab::new()?;
    for ns in [&lab.device, &lab.gateway] {
        ns.sysctl(&[("net/ipv4/ip_local_port_range", "1024 65535")])?;
    }
    let iperf = Iperf::start(&lab.internet, Family::V4.far(1))?;
    let server = OneByte::start(&lab.internet, PORT)?;
    // With rules by name, each flow has one; few associations leave files for connections.
    let proxy = lab.tproxy_configured(
        "[udp]\nmax_associations = 64\n[[outbound]]\nname = \"near\"\nurl = \"direct://\"\n\
         [[rule]]\nname = \"site\"\ndomain = [\"bench.test\"]\noutbound = \"near\"\n",
    )?;
    let targets = connections::targets(Family::V4);
    let open = lab
        .device
        .enter(|| traffic::hold(&targets, FLOWS, REQUEST))??;
    let pid = proxy.process().pid();
    let intervals = if options.quick {
        QUICK_INTERVALS
    } else {
        INTERVALS
    };
    let time = Duration::from_secs(intervals.into());
    let gbit = || -> Result<f64> {
        let seconds = options.seconds();
        let test = Test {
            seconds,
            reverse: true,
            ..Test::default()
        };
        let report = traffic::iperf(&lab.device, iperf.address(), test)?;
        Ok(report.bits_per_second / 1e9)
    };
    let mut samples: [Vec<f64>; 7] = Default::default();
    for _ in 0..options.rounds() {
        let [alone] = shares([pid], time)?;
        let plain = gbit()?;
        let top = Top::start(&lab)?;
        let [of_top, of_proxy] = shares([top.child.id(), pid], time)?;
        let looked_at = gbit()?;
        drop(top);
        let scraping = Scraping::start(&lab)?;
        let [scraped] = shares([pid], time)?;
        scraping.end()?;
        let asked = of_proxy - alone;
        let all = [
            of_top,
            asked,
            of_top + asked,
            plain,
            looked_at,
            looked_at / plain,
            scraped - alone,
        ];
        for (samples, figure) in samples.iter_mut().zip(all) {
            samples.push(figure);
        }
    }
    drop((open, server));
    let titles = [
        ("top", "% of a core"),
        ("the proxy, more than without it", "% of a core"),
        ("both", "% of a core"),
        ("relayed without it", "Gbit/s"),
        ("relayed with it", "Gbit/s"),
        ("with it by without it", "(ratio)"),
        ("the proxy, for /metrics every second", "% of a core"),
    ];
    let lines = titles.into_iter().zip(samples);
    let lines = lines.map(|((title, unit), samples)| Line::new(title, unit, samples));
    Ok(lines.collect())
}

/// How much of a core these processes use meanwhile, in percent.
fn shares<const N: usize>(pids: [u32; N], time: Duration) -> Result<[f64; N]> {
    let used =
        || -> Result<Vec<Duration>> { pids.iter().map(|pid| usage::cpu_time(*pid)).collect() };
    let (before, begun) = (used()?, Instant::now());
    thread::sleep(time);
    let (after, elapsed) = (used()?, begun.elapsed());
    let mut shares = [0.0; N];
    for (share, (after, before)) in shares.iter_mut().zip(after.iter().zip(before)) {
        *share = 100.0 * (*after - before).as_secs_f64() / elapsed.as_secs_f64();
    }
    Ok(shares)
}

/// Reads `/metrics` every second, fifteen times as often as Prometheus by itself.
struct Scraping {
    ended: mpsc::Sender<()>,
    task: thread::JoinHandle<Result<()>>,
}

impl Scraping {
    fn start(lab: &Lab) -> Result<Self> {
        let socket = lab.state().join("control.sock");
        let scrape = move || -> Result<()> {
            let mut stream = UnixStream::connect(&socket)?;
            stream.write_all(
                b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            )?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            ensure!(text.contains("\ntproxy_flows"), "{text}");
            Ok(())
        };
        scrape()?;
        let (ended, end) = mpsc::channel();
        let task = thread::spawn(move || {
            while end.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                scrape()?;
            }
            Ok(())
        });
        Ok(Self { ended, task })
    }

    fn end(self) -> Result<()> {
        drop(self.ended);
        self.task.join().map_err(|_| anyhow!("scraping panicked"))?
    }
}

/// `top` in a terminal that nobody looks at.
struct Top {
    child: Child,
}

impl Top {
    /// Starts it and waits until it shows all flows.
    fn start(lab: &Lab) -> Result<Self> {
        let size = Winsize {
            ws_row: 40,
            ws_col: 120,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = openpty(Some(&size), None).context("making a terminal")?;
        let end = |file: &OwnedFd| file.try_clone().map(Stdio::from);
        let mut command = lab.tproxy_command(&["top"])?;
        command
            .stdin(end(&terminal.slave)?)
            .stdout(end(&terminal.slave)?)
            .stderr(end(&terminal.slave)?);
        let child = command.spawn().context("starting top")?;
        let top = Self { child };
        drop(terminal.slave);
        let drawn = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&drawn);
        let mut screen = File::from(terminal.master);
        // It ends when the last program has closed the terminal.
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                let mut drawn = written.lock().unwrap_or_else(PoisonError::into_inner);
                // A few pictures are enough.
                if drawn.len() < 1 << 20 {
                    drawn.extend_from_slice(&buffer[..read]);
                }
            }
        });
        until("all flows in top", SOON, || {
            let drawn = drawn.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(String::from_utf8_lossy(&drawn)
                .contains("9,000")
                .then_some(()))
        })?;
        Ok(top)
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
