//! This process as the main one of a unit of systemd: what systemd is about to do with the unit, and how this process goes
//! on to serve while systemd starts the next one.
//!
//! A restart is a stop and then a start, and the start waits for the end of the main process. So a stand-in becomes the
//! main process (`MAINPID=` of `sd_notify(3)`) and is stopped. With `KillMode=process` nothing happens to this one. systemd
//! takes another main process for as long as the unit runs, but not while it stops: so this has to happen before.

use std::fs;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use sd_notify::NotifyState;
use thiserror::Error;
use tokio::process::{ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

/// How long systemd may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked whether it has read what it was told.
const RETRY: Duration = Duration::from_millis(10);
/// Says the number of a process that ends well when its input does. Nobody waits for it but the first process: systemd
/// sees the end of no other's child.
const STAND_IN: &str = "exec 3<&0; (read -r _; exit 0) <&3 >/dev/null 2>&1 & echo $!";

/// Why systemd could not be asked or told.
#[derive(Debug, Error)]
pub enum Error {
    /// A program could not be run to its end.
    #[error("running {program} failed: {source}")]
    Run {
        /// Which.
        program: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// It does not answer.
    #[error("{0} does not answer")]
    Silent(&'static str),
    /// It refuses.
    #[error("systemctl failed: {0}")]
    Refused(String),
    /// What it says is not understood.
    #[error("{0} said what is not understood")]
    Unclear(&'static str),
    /// The notification socket failed.
    #[error("telling systemd failed: {0}")]
    Tell(io::Error),
    /// It keeps to this process.
    #[error("systemd did not take another process for the main one")]
    Kept,
}

/// The unit that this process belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    name: String,
}

/// The process that systemd takes for the main one. It lives as long as this, or until systemd ends it.
#[derive(Debug)]
pub struct StandIn {
    pid: u32,
    _held: ChildStdin,
}

/// What is told of the unit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    active: String,
    job: String,
    kill_mode: String,
    main_process: String,
}

impl Unit {
    /// None when no service manager waits to be told, or this process is in no service.
    #[must_use]
    pub fn own() -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET")?;
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        Some(Self {
            name: service_of(&groups)?.to_owned(),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether systemd is about to stop the unit in order to start it again, and ends no more than its main process.
    ///
    /// # Errors
    /// When systemd cannot be asked.
    pub async fn restarts(&self) -> Result<bool, Error> {
        let told = self.ask().await?;
        if told.job.is_empty() || told.kill_mode != "process" {
            return Ok(false);
        }
        let jobs = systemctl(&["list-jobs", "--no-legend", "--plain", "--full"]).await?;
        Ok(kind_of_job(&jobs, &told.job) == Some("restart"))
    }

    /// Whether systemd is still to start a process, or tries to.
    ///
    /// # Errors
    /// When systemd cannot be asked.
    pub async fn expects_a_start(&self) -> Result<bool, Error> {
        let told = self.ask().await?;
        // Between the stop and the start it is inactive, but the job goes on. An active one whose job is gone is not
        // restarted after all.
        Ok(!told.job.is_empty() || ["activating", "deactivating"].contains(&&*told.active))
    }

    /// Has systemd take another process for the main one.
    ///
    /// # Errors
    /// When it does not. Then all is as before.
    pub async fn leave(&self) -> Result<StandIn, Error> {
        let stand_in = StandIn::start().await?;
        sd_notify::notify(&[NotifyState::MainPid(stand_in.pid)]).map_err(Error::Tell)?;
        let pid = stand_in.pid.to_string();
        let start = Instant::now();
        while self.ask().await?.main_process != pid {
            if start.elapsed() > PATIENCE {
                return Err(Error::Kept);
            }
            sleep(RETRY).await;
        }
        Ok(stand_in)
    }

    async fn ask(&self) -> Result<Told, Error> {
        let properties = "--property=ActiveState,Job,KillMode,MainPID";
        let text = systemctl(&["show", properties, "--", &self.name]).await?;
        Told::parse(&text).ok_or(Error::Unclear("systemctl"))
    }
}

impl Told {
    /// Lines of names and values. A unit without a job has none to tell of.
    fn parse(text: &str) -> Option<Self> {
        let mut told = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let place = match name {
                "ActiveState" => &mut told.active,
                "Job" => &mut told.job,
                "KillMode" => &mut told.kill_mode,
                "MainPID" => &mut told.main_process,
                _ => continue,
            };
            value.clone_into(place);
        }
        (!told.active.is_empty()).then_some(told)
    }
}

/// The service in the unified hierarchy of `cgroup(7)`, or in systemd's own.
fn service_of(groups: &str) -> Option<&str> {
    let mut paths = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (hierarchy, path) = rest.split_once(':')?;
        ["", "name=systemd"].contains(&hierarchy).then_some(path)
    });
    paths.find_map(|path| {
        let (_, name) = path.rsplit_once('/')?;
        name.ends_with(".service").then_some(name)
    })
}

/// The third word of the line that begins with the job's number.
fn kind_of_job<'a>(jobs: &'a str, job: &str) -> Option<&'a str> {
    jobs.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(job)).then(|| words.nth(1))?
    })
}

impl StandIn {
    async fn start() -> Result<Self, Error> {
        let failed = |source| Error::Run {
            program: "sh",
            source,
        };
        let mut shell = Command::new("/bin/sh")
            .args(["-c", STAND_IN])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let held = shell.stdin.take().ok_or(Error::Unclear("sh"))?;
        let output = timeout(PATIENCE, shell.wait_with_output()).await;
        let output = output.map_err(|_| Error::Silent("sh"))?.map_err(failed)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let pid = text.trim().parse().map_err(|_| Error::Unclear("sh"))?;
        Ok(Self { pid, _held: held })
    }
}

async fn systemctl(arguments: &[&str]) -> Result<String, Error> {
    let mut command = Command::new("systemctl");
    command
        .args(arguments)
        .env("LC_ALL", "C")
        // It would compare its root with the first process's, which a service may not look at.
        .env("SYSTEMD_IGNORE_CHROOT", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await;
    let output = output.map_err(|_| Error::Silent("systemctl"))?;
    let output = output.map_err(|source| Error::Run {
        program: "systemctl",
        source,
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Refused(said.trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_the_last_word_of_the_right_hierarchy() {
        for (groups, service) in [
            ("0::/system.slice/a.service\n", Some("a.service")),
            ("0::/a@b\\x2dc.service\n", Some("a@b\\x2dc.service")),
            (
                "3:cpu:/x.service\n1:name=systemd:/system.slice/a.service\n0::/\n",
                Some("a.service"),
            ),
            ("0::/system.slice/a.service/below\n", None),
            ("0::/user.slice/user-0.slice/session-1.scope\n", None),
            ("3:cpu:/x.service\n", None),
            ("", None),
        ] {
            assert_eq!(service_of(groups), service, "{groups:?}");
        }
    }

    #[test]
    fn a_job_is_found_by_its_number() {
        let jobs = "12 other.service stop running\n 1 tproxy-bpf.service restart running\n";
        assert_eq!(kind_of_job(jobs, "1"), Some("restart"));
        assert_eq!(kind_of_job(jobs, "12"), Some("stop"));
        assert_eq!(kind_of_job(jobs, "2"), None);
        assert_eq!(kind_of_job("No jobs running.\n", "1"), None);
    }

    #[test]
    fn what_is_told_may_lack_a_job() {
        let told = Told::parse("MainPID=7\nKillMode=process\nActiveState=active\nJob=\nX=y\n");
        let wanted = Told {
            active: "active".to_owned(),
            job: String::new(),
            kill_mode: "process".to_owned(),
            main_process: "7".to_owned(),
        };
        assert_eq!(told, Some(wanted));
        assert_eq!(Told::parse("Failed to connect"), None);
    }

    #[tokio::test]
    async fn a_stand_in_lives_as_long_as_it_is_held() {
        let stand_in = StandIn::start().await.unwrap();
        let pid = stand_in.pid;
        let lives = || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let (_, state) = state.rsplit_once(')').unwrap_or_default();
            !["", "Z"].contains(&state.split_whitespace().next().unwrap_or_default())
        };
        assert!(lives());
        drop(stand_in);
        let gone = async {
            while lives() {
                sleep(RETRY).await;
            }
        };
        timeout(PATIENCE, gone).await.unwrap();
    }
}
