//! Programs that run to their end, and programs that stay.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde::de::DeserializeOwned;

use crate::wait;

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Program and arguments.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Output {
    /// The exit code; `None` when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Itself, if the program succeeded.
    ///
    /// # Errors
    /// Names the command, its exit code and all it printed.
    pub fn ok(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!(
            "`{}` ended with {}\n{}{}",
            self.command,
            describe(self.status),
            indented(&self.stdout),
            indented(&self.stderr)
        )
    }

    /// Reads standard output as JSON.
    ///
    /// # Errors
    /// When it is not JSON of that shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.stdout).with_context(|| {
            format!(
                "`{}` printed what is not the JSON that was wanted:\n{}",
                self.command,
                indented(&self.stdout)
            )
        })
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Program and arguments of a command, for messages.
#[must_use]
pub fn words(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started, or is not done after `limit` (then it is killed).
pub fn run(command: Command, limit: Duration) -> Result<Output> {
    run_with_input(command, &[], limit)
}

/// Runs a command to its end and gives it `input`.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(mut command: Command, input: &[u8], limit: Duration) -> Result<Output> {
    let limit = wait::patient(limit);
    let text = words(&command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    let mut child = command
        .spawn()
        .with_context(|| format!("starting `{text}`"))?;
    let (done, finished) = mpsc::channel();
    let stdout = collect(child.stdout.take(), done.clone());
    let stderr = collect(child.stderr.take(), done);
    if let Some(mut stdin) = child.stdin.take() {
        // It may end without having read all of it; its exit code tells.
        stdin.write_all(input).ok();
    }
    let start = Instant::now();
    for _ in 0..2 {
        if finished
            .recv_timeout(limit.saturating_sub(start.elapsed()))
            .is_err()
        {
            child.kill().ok();
            child.wait().ok();
            bail!("`{text}` was not done after {limit:?} and was killed");
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{text}`"))?;
    Ok(Output {
        command: text,
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn collect(
    pipe: Option<impl Read + Send + 'static>,
    done: mpsc::Sender<()>,
) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).ok();
        }
        done.send(()).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    open: u32,
}

/// A program that runs until it is stopped. Dropping it kills it and its process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
}

impl Process {
    /// Starts it; what it prints is kept, see [`Process::lines`]. With `LAB_LOG` in the environment it
    /// is also shown.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let name = words(&command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("starting `{name}`"))?;
        let log = Arc::new(Log::default());
        log.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .open = 2;
        follow(child.stdout.take(), &log);
        follow(child.stderr.take(), &log);
        Ok(Self { name, child, log })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far, on either stream.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.log
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .clone()
    }

    /// Waits until it has printed a line that contains `pattern`, and gives that line.
    ///
    /// # Errors
    /// When it ends before, or does not do so within `limit`; the message holds its log.
    pub fn wait_for_line(&self, pattern: &str, limit: Duration) -> Result<String> {
        self.wait_for_line_after(0, pattern, limit)
    }

    /// The same, where the first `seen` lines do not count.
    ///
    /// # Errors
    /// As [`Process::wait_for_line`].
    pub fn wait_for_line_after(
        &self,
        mut seen: usize,
        pattern: &str,
        limit: Duration,
    ) -> Result<String> {
        let limit = wait::patient(limit);
        let start = Instant::now();
        let mut state = self
            .log
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = state.lines[seen..]
                .iter()
                .find(|line| line.contains(pattern))
            {
                return Ok(line.clone());
            }
            seen = state.lines.len();
            let left = limit.saturating_sub(start.elapsed());
            if state.open == 0 || left.is_zero() {
                let why = if state.open == 0 { "ended" } else { "went on" };
                bail!(
                    "`{}` {why} without a line with \"{pattern}\" ({:?}); it printed\n{}",
                    self.name,
                    start.elapsed(),
                    indented(&state.lines.join("\n"))
                );
            }
            state = self
                .log
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Has it ended?
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("asking for `{}`", self.name))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.group(), signal).with_context(|| format!("sending {signal} to `{}`", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of `{}`", self.name);
        let status = wait::until(&what, limit, || Ok(self.child.try_wait()?))?;
        // Its last words are on their way through the pipe.
        let start = Instant::now();
        let mut state = self
            .log
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while state.open > 0 && start.elapsed() < Duration::from_millis(200) {
            state = self
                .log
                .changed
                .wait_timeout(state, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(status)
    }

    /// Sends SIGTERM, waits, and wants exit code 0.
    ///
    /// # Errors
    /// When it does not end within `limit`, or ends otherwise; the message holds its log.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait(limit)?;
        if status.success() {
            return Ok(());
        }
        Err(anyhow!(
            "`{}` ended with {} after SIGTERM; it printed\n{}",
            self.name,
            describe(status),
            indented(&self.lines().join("\n"))
        ))
    }

    /// Kills it and its process group with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        // A group that is gone is as good as one that is killed.
        killpg(self.group(), Signal::SIGKILL).ok();
        self.child.kill().ok();
        self.child.wait().ok();
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id is a positive i32"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn follow(pipe: Option<impl Read + Send + 'static>, log: &Arc<Log>) {
    let log = Arc::clone(log);
    let show = std::env::var_os("LAB_LOG").is_some();
    thread::spawn(move || {
        let mut reader = pipe.map(BufReader::new);
        let mut bytes = Vec::new();
        while let Some(reader) = &mut reader
            && reader
                .read_until(b'\n', &mut bytes)
                .is_ok_and(|read| read > 0)
        {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if show {
                eprintln!("| {line}");
            }
            let mut state = log.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.lines.push(line);
            drop(state);
            log.changed.notify_all();
        }
        let mut state = log.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.open -= 1;
        drop(state);
        log.changed.notify_all();
    });
}
