//! `top`: the gateway live in a real terminal, which tmux is here.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Namespace, Process, Tproxy,
    addr::host,
    probe::at,
    servers::{Microsocks, TcpEcho},
    traffic::connect,
    wait::{SOON, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A shell in a terminal on the gateway.
struct Terminal<'l> {
    gateway: &'l Namespace,
    socket: PathBuf,
}

impl<'l> Terminal<'l> {
    fn open(lab: &'l Lab, width: u16, height: u16) -> Result<Self> {
        let terminal = Self {
            gateway: &lab.gateway,
            socket: lab.dir().join("tmux"),
        };
        let (width, height) = (width.to_string(), height.to_string());
        // A shell that says nothing of its own.
        let shell = "env PS1='$ ' NO_COLOR= sh";
        terminal.tmux(&["new-session", "-d", "-x", &width, "-y", &height, shell])?;
        Ok(terminal)
    }

    fn tmux(&self, args: &[&str]) -> Result<String> {
        let socket = self.socket.to_str().context("the path is not UTF-8")?;
        let argv = ["tmux", "-u", "-f", "/dev/null", "-S", socket];
        Ok(self.gateway.run(&[&argv, args].concat())?.stdout)
    }

    /// Presses keys, by tmux's names for them.
    fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Types a text, letter by letter.
    fn write(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", text]).map(drop)
    }

    fn command(&self, text: &str) -> Result<()> {
        self.write(text)?;
        self.press(&["Enter"])
    }

    fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The screen, when it is as wanted.
    fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let shown = until(what, 2 * SOON, || {
            Ok(Some(self.screen()?).filter(|text| wanted(text)))
        });
        shown.with_context(|| format!("the screen is\n{}", self.screen().unwrap_or_default()))
    }

    /// Has a program the other screen?
    fn is_taken(&self) -> Result<bool> {
        let taken = self.tmux(&["display-message", "-p", "#{alternate_on}"])?;
        Ok(taken.trim() == "1")
    }

    /// What the shell runs.
    fn child(&self) -> Result<Pid> {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"])?;
        let shell = shell.trim();
        let path = format!("/proc/{shell}/task/{shell}/children");
        let children = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let child = children.split_whitespace().next().context("no child")?;
        Ok(Pid::from_raw(child.parse()?))
    }

    fn top(&self, args: &str) -> Result<()> {
        let program = lab::gateway::binary()?;
        self.command(&format!("{} top {args}", program.display()))
    }

    /// The terminal is the shell's again: the first screen, lines, echo, and a cursor.
    fn is_sane(&self, code: i32) -> Result<()> {
        until("the first screen", SOON, || {
            Ok((!self.is_taken()?).then_some(()))
        })?;
        self.command("echo left=$?=$((40+2))")?;
        self.shows("the shell", |text| {
            text.contains(&format!("left={code}=42"))
        })?;
        // Each of them without a minus in front.
        self.command("clear; stty -a | tr ' ' '\\n' | grep -cxE 'icanon|echo|isig|icrnl'")?;
        self.shows("its settings", |text| text.lines().any(|line| line == "4"))?;
        let cursor = self.tmux(&["display-message", "-p", "#{cursor_flag}"])?;
        ensure!(cursor.trim() == "1", "the cursor is hidden");
        self.command("clear")
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]).ok();
    }
}

/// Bytes a second, as `top` writes them.
fn bytes(text: &str) -> Option<f64> {
    let unit = text.find(|letter: char| letter.is_ascii_uppercase());
    let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
    let power = ["", "K", "M", "G"]
        .iter()
        .position(|known| *known == unit)?;
    Some(number.parse::<f64>().ok()? * 1024_f64.powi(i32::try_from(power).ok()?))
}

/// The line of the screen with all of these words.
fn line<'t>(text: &'t str, words: &[&str]) -> Option<&'t str> {
    let mut lines = text.lines();
    lines.find(|line| words.iter().all(|word| line.contains(word)))
}

/// Sends to whoever connects, 2 MiB a second: a client that reads slowly would not do, for much fits into the buffers
/// between, and then nothing moves for long.
fn send_slowly(ns: &Namespace, address: SocketAddr) -> Result<()> {
    const PIECE: usize = 100 << 10;
    const PAUSE: Duration = Duration::from_millis(50);
    let listener = ns
        .enter(|| TcpListener::bind(address))?
        .with_context(|| format!("listening at {address}"))?;
    let serve = |mut stream: TcpStream| -> std::io::Result<()> {
        let _request = stream.read(&mut [0; 1024])?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n")?;
        loop {
            stream.write_all(&[0; PIECE])?;
            thread::sleep(PAUSE);
        }
    };
    // They end with their clients, and with the test.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    Ok(())
}

/// A proxy with a group and a rule, and who else is needed for it.
struct World {
    _echo: TcpEcho,
    _socks: Microsocks,
    config: String,
}

impl World {
    fn make(lab: &Lab) -> Result<Self> {
        send_slowly(&lab.internet, at(Family::V4.far(1), 80))?;
        let echo = TcpEcho::start(&lab.internet, 22)?;
        let socks = Microsocks::start_at(&lab.internet, at(Family::V4.upstream(2), 1080))?;
        let config = lab.write(&format!(
            "[lan]\ninterfaces = [\"{}\"]\n[[outbound]]\nname = \"far\"\nurl = \"{}\"\n\
             [[group]]\nname = \"auto\"\nkind = \"select\"\nmembers = [\"far\", \"direct\"]\n\
             [[rule]]\nname = \"echo\"\nport = [22]\noutbound = \"direct\"\n\
             [[rule]]\ndomain = [\"never.example\"]\noutbound = \"block\"\n",
            lab.lan(),
            socks.url()
        ))?;
        Ok(Self {
            _echo: echo,
            _socks: socks,
            config,
        })
    }

    fn proxy(&self, lab: &Lab) -> Result<Tproxy> {
        lab.tproxy(&["run", "-c", &self.config])
    }

    /// A device downloads by name.
    fn download(&self, lab: &Lab) -> Result<Process> {
        let server = Family::V4.far(1);
        lab.device.spawn(&[
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "-o",
            "/dev/null",
            "--resolve",
            &format!("www.lab.example:80:{}", host(server)),
            "http://www.lab.example/",
        ])
    }
}

#[test]
fn flows_are_seen_found_and_ended_in_a_terminal() -> Result<()> {
    let lab = Lab::new()?;
    let world = World::make(&lab)?;
    let proxy = world.proxy(&lab)?;
    let terminal = Terminal::open(&lab, 120, 40)?;
    terminal.top("--interval 500ms")?;
    let pid = proxy.process().pid();
    terminal.shows("an idle proxy", |text| {
        text.contains(&format!("proxy {pid}, up")) && text.contains("0 rows")
    })?;
    ensure!(terminal.is_taken()?, "not on the other screen");

    let _download = world.download(&lab)?;
    let mut held = connect(&lab.device, at(Family::V6.far(2), 22))?;
    held.set_read_timeout(Some(SOON))?;
    held.write_all(b"hello")?;
    held.read_exact(&mut [0; 5])?;
    let device = Family::V4.device().to_string();
    let web = [&*device, "www.lab.example:80", "auto: far"];
    let near = |rate: f64| (1_048_576.0..4_194_304.0).contains(&rate);
    terminal.shows("2 MiB a second", |text| {
        let words = line(text, &web).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let down = words.and_then(|words| bytes(words.get(words.len().checked_sub(3)?)?));
        down.is_some_and(near)
    })?;
    // The same of all, and at the top.
    let all = terminal.shows("the same of all", |text| {
        let header = text.lines().next().unwrap_or_default();
        let down = header
            .split_once(" down ")
            .and_then(|(_, rest)| rest.split_once("/s"));
        down.and_then(|(rate, _)| bytes(rate)).is_some_and(near)
    })?;
    let echo_words = [&*Family::V6.device().to_string(), ":22", "direct", "echo"];
    ensure!(
        line(&all, &echo_words).is_some() && all.contains("2 rows"),
        "{all}"
    );
    ensure!(
        line(&all, &["flow ", "www.lab.example", "→"]).is_some(),
        "no details: {all}"
    );

    // The order, both ways round.
    let row_of = |text: &str, word: &str| {
        text.lines()
            .position(|line| line.contains(word) && !line.starts_with("flow "))
    };
    terminal.press(&["r"])?;
    terminal.shows("the other order", |text| {
        text.contains("down/s▲") && row_of(text, ":22") < row_of(text, "www.lab.example:80")
    })?;
    terminal.press(&["s", "s", "s"])?;
    terminal.shows("by device", |text| {
        text.contains("device▼") && row_of(text, ":22") > row_of(text, "www.lab.example:80")
    })?;

    // Found by text, and ended.
    terminal.press(&["/"])?;
    terminal.write("]:22")?;
    let found = terminal.shows("one flow", |text| {
        text.contains("filter: ]:22_")
            && text.contains("1 row")
            && !text.contains("www.lab.example")
    })?;
    ensure!(line(&found, &echo_words).is_some(), "{found}");
    terminal.press(&["Enter", "K"])?;
    terminal.shows("the question", |text| {
        line(text, &["end flow", ":22", "y/N"]).is_some()
    })?;
    terminal.press(&["n"])?;
    terminal.shows("no question", |text| !text.contains("y/N"))?;
    held.write_all(b"again")?;
    held.read_exact(&mut [0; 5])?;
    terminal.press(&["K"])?;
    terminal.shows("the question", |text| text.contains("y/N"))?;
    terminal.press(&["y"])?;
    let end = held.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    terminal.shows("that it is ended", |text| {
        text.contains("is ended") && text.contains("0 rows")
    })?;
    terminal.press(&["Escape"])?;
    terminal.shows("the other flow", |text| {
        text.contains("1 row") && line(text, &web).is_some()
    })?;

    // The other views.
    let views: [(&str, &[&str]); 4] = [
        ("2", &[&device, " 1 "]),
        ("3", &["lab.example", " 1 "]),
        (
            "4",
            &[
                "tcp_steered",
                "steer",
                "Part of a TCP connection that the proxy holds.",
            ],
        ),
        ("5", &["auto", "→ far", "group: select"]),
    ];
    for (view, words) in views {
        terminal.press(&[view])?;
        terminal.shows(view, |text| line(text, words).is_some())?;
    }
    terminal.press(&["Tab", "?"])?;
    terminal.shows("the help", |text| text.contains("any key goes back"))?;
    terminal.press(&["x"])?;

    // Smaller, and larger again.
    terminal.tmux(&["resize-window", "-x", "60", "-y", "10"])?;
    let small = terminal.shows("a small terminal", |text| {
        text.lines().count() == 10 && line(text, &[&device, "www.lab.example:80"]).is_some()
    })?;
    ensure!(line(&small, &["q quit"]).is_some(), "{small}");
    terminal.tmux(&["resize-window", "-x", "100", "-y", "30"])?;
    terminal.shows("a larger one", |text| {
        line(text, &["flow ", "www.lab.example", "→"]).is_some()
    })?;

    terminal.press(&["q"])?;
    terminal.is_sane(0)?;
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        terminal.top("")?;
        terminal.shows("it again", |text| line(text, &web).is_some())?;
        kill(terminal.child()?, signal)?;
        terminal.is_sane(0)?;
    }
    terminal.top("")?;
    terminal.shows("it again", |text| line(text, &web).is_some())?;
    terminal.press(&["C-c"])?;
    terminal.is_sane(0)?;
    drop(terminal);
    proxy.stop()
}

#[test]
fn it_goes_on_by_itself_when_the_proxy_comes_goes_and_comes_again() -> Result<()> {
    let lab = Lab::new()?;
    let world = World::make(&lab)?;
    let terminal = Terminal::open(&lab, 100, 30)?;
    terminal.top("--interval 200ms")?;
    terminal.shows("nothing", |text| {
        text.contains("no proxy runs: nothing is attached")
    })?;
    lab.tproxy_run(&["attach", lab.lan()])?.ok()?;
    terminal.shows("the kernel's counters", |text| {
        text.contains("no proxy runs: new traffic goes direct; these are the kernel's counters")
    })?;
    let first = world.proxy(&lab)?;
    let download = world.download(&lab)?;
    let web = "www.lab.example:80";
    let here = |pid: u32, text: &str| text.contains(&format!("proxy {pid}, up"));
    let pid = first.process().pid();
    terminal.shows("the proxy", |text| here(pid, text) && text.contains(web))?;
    first.kill9();
    terminal.shows("its last values", |text| {
        text.contains("these are its last values") && here(pid, text) && text.contains(web)
    })?;
    drop(download);
    let second = world.proxy(&lab)?;
    let pid = second.process().pid();
    terminal.shows("the next one", |text| {
        here(pid, text) && text.contains("0 rows") && !text.contains("last values")
    })?;

    // Another takes over: what lives is not there any more, and no rate is a figure of both.
    let _download = world.download(&lab)?;
    terminal.shows("the download", |text| text.contains(web))?;
    let third = lab.tproxy(&["run", "-c", &world.config, "--takeover"])?;
    let heir = third.process().pid();
    terminal.shows("the heir", |text| {
        here(heir, text)
            && text.contains(&format!(
                "draining: process {pid}, which was taken over from: 1 connections"
            ))
    })?;
    terminal.press(&["q"])?;
    terminal.is_sane(0)?;
    Ok(())
}

#[test]
fn without_a_terminal_it_says_so_or_prints_once() -> Result<()> {
    let lab = Lab::new()?;
    let world = World::make(&lab)?;
    let _proxy = world.proxy(&lab)?;
    let refused = lab.tproxy_run(&["top"])?;
    ensure!(
        refused.code() == Some(1)
            && refused.stderr.contains("tproxy-bpf flows --json")
            && refused.stderr.contains("--once")
            && refused.stdout.is_empty(),
        "{refused:?}"
    );
    let wrong = lab.tproxy_run(&["top", "--interval", "1ms"])?;
    assert_eq!(wrong.code(), Some(2), "{wrong:?}");

    let _download = world.download(&lab)?;
    let device = Family::V4.device().to_string();
    until("the flow as text", SOON, || {
        let once = lab
            .tproxy_run(&["top", "--once", "--interval", "300ms"])?
            .ok()?;
        ensure!(!once.stdout.contains('\u{1b}'), "{}", once.stdout);
        let row = line(&once.stdout, &[&device, "www.lab.example:80", "auto: far"]);
        // There was time between, so there is a rate.
        Ok(row.filter(|row| !row.contains(" - ")).map(drop))
    })?;
    let once = lab
        .tproxy_run(&["top", "--once", "--view", "counters", "--interval", "100ms"])?
        .ok()?;
    ensure!(
        line(&once.stdout, &["tcp_steered", "steer"]).is_some(),
        "{}",
        once.stdout
    );

    // Colours, and none.
    let terminal = Terminal::open(&lab, 100, 30)?;
    let coloured = |terminal: &Terminal<'_>| -> Result<bool> {
        terminal.shows("the flow", |text| text.contains("www.lab.example:80"))?;
        let screen = terminal.tmux(&["capture-pane", "-p", "-e"])?;
        Ok(screen.contains("38;5;")
            || (30..38).any(|colour| screen.contains(&format!("{colour}m"))))
    };
    terminal.top("")?;
    ensure!(coloured(&terminal)?, "no colours");
    terminal.press(&["q"])?;
    terminal.is_sane(0)?;
    terminal.command("export NO_COLOR=1")?;
    terminal.top("")?;
    ensure!(!coloured(&terminal)?, "colours in spite of NO_COLOR");
    Ok(())
}
