//! The steps of a run, by name: for the log, and for tests that end or stop the process at one of them.
//!
//! What a gateway leaves when it dies half-way is a promise to the devices behind it. So the program that is tried is the
//! one that ships: with `TPROXY_BPF_FAULT=STEP=kill` in its environment it kills itself when it comes to that step, with
//! `=stop` it stops until SIGCONT, and with `STEP:2=` it does so when it comes there for the second time. Without it a
//! step is an event in the log, and only at the level debug.

use std::fmt::{self, Display, Formatter};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, raise};

/// The variable of the environment. For tests.
pub const VARIABLE: &str = "TPROXY_BPF_FAULT";

/// What was asked for, once it was read.
static FAULT: OnceLock<Fault> = OnceLock::new();

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $name:literal,)*) => {
        /// A step of the start, a reload, a takeover or a stop, in the order in which they come.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Step {
            $($(#[$doc])* $step,)*
        }

        impl Step {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$step,)*];

            /// Its name, which begins with what it is a step of.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)*
                }
            }
        }
    };
}

steps! {
    /// Words and machine are found good; nothing is touched.
    StartChecked = "start-checked",
    /// This process has the proxy's lock, and listens for commands.
    StartLocked = "start-locked",
    /// Its sockets are bound, and the outbounds' servers looked up.
    StartBound = "start-bound",
    /// Programs are loaded, maps pinned.
    StartPinned = "start-pinned",
    /// Rules and routes are there.
    StartRouted = "start-routed",
    /// Socket lookup is attached.
    StartLookup = "start-lookup",
    /// The maps hold policy, bypass set and exemptions.
    StartEnforced = "start-enforced",
    /// The maps hold the sockets.
    StartPublished = "start-published",
    /// The proxy serves its sockets.
    StartServing = "start-serving",
    /// The maps hold the gateway's addresses and the sources that may use it.
    StartSources = "start-sources",
    /// A link is noted, at which there is no program yet.
    StartNoted = "start-noted",
    /// Programs are at the link.
    StartAttached = "start-attached",
    /// All links are attached.
    StartLinked = "start-linked",
    /// All is there, and nobody has been told.
    StartReady = "start-ready",
    /// The new configuration is read, and found good.
    ReloadRead = "reload-read",
    /// The proxy goes by the new outbounds and rules.
    ReloadRouted = "reload-routed",
    /// The programs go by the new policy and bypass set.
    ReloadEnforced = "reload-enforced",
    /// The new configuration is the one that holds.
    ReloadHeld = "reload-held",
    /// Links are as it wants them.
    ReloadLinked = "reload-linked",
    /// The new process has the old one's sockets and lock.
    HeirAsked = "heir-asked",
    /// It has its programs, and has not yet said that it is ready.
    HeirLoaded = "heir-loaded",
    /// The old one takes nothing new any more.
    HeirCommitted = "heir-committed",
    /// The new one listens for commands.
    HeirPresent = "heir-present",
    /// It serves the sockets.
    HeirServing = "heir-serving",
    /// Its programs are at the links.
    HeirLinked = "heir-linked",
    /// It has told the old one that it serves.
    HeirDone = "heir-done",
    /// The old process has given its sockets and its lock.
    TestatorGreeted = "testator-greeted",
    /// It listens no more for commands, since the other one is ready.
    TestatorClosed = "testator-closed",
    /// It takes nothing new any more.
    TestatorHanded = "testator-handed",
    /// The other one serves.
    TestatorReplaced = "testator-replaced",
    /// It is asked to stop.
    StopAsked = "stop-asked",
    /// The programs have no sockets any more.
    StopRetracted = "stop-retracted",
    /// Connections have ended.
    StopDrained = "stop-drained",
    /// The outbounds' servers are not spared any more.
    StopUnspared = "stop-unspared",
    /// A link is detached, and still noted.
    StopDetached = "stop-detached",
    /// No link is attached.
    StopUnlinked = "stop-unlinked",
    /// Programs and maps are gone.
    StopUnpinned = "stop-unpinned",
    /// Rules and routes are gone.
    StopUnrouted = "stop-unrouted",
    /// Sysctls are as they were: only folders are left.
    StopRestored = "stop-restored",
}

impl Step {
    fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|step| step.name() == name)
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A step, and what happens to the process there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fault {
    step: Step,
    /// At which time of coming there, from 1.
    time: u32,
    signal: Signal,
}

/// How often the process has come to the step of the fault.
static TIMES: AtomicU32 = AtomicU32::new(0);

/// What [`VARIABLE`] says is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE} is for tests, and {text:?} is no fault: write STEP=kill, STEP=stop, or STEP:N=… for the Nth time, where STEP is one of {}",
    names()
)]
pub struct Unknown {
    text: String,
}

fn names() -> String {
    let names: Vec<_> = Step::ALL.iter().map(|step| step.name()).collect();
    names.join(", ")
}

impl Fault {
    fn parse(text: &str) -> Result<Self, Unknown> {
        let read = || {
            let (step, what) = text.split_once('=')?;
            let signal = match what {
                "kill" => Signal::SIGKILL,
                "stop" => Signal::SIGSTOP,
                _ => return None,
            };
            let (step, time) = step.split_once(':').unwrap_or((step, "1"));
            let (step, time) = (Step::find(step)?, time.parse().ok()?);
            Some(Self { step, time, signal })
        };
        read().ok_or_else(|| Unknown {
            text: text.to_owned(),
        })
    }
}

/// Reads [`VARIABLE`]. Before that, steps are only told of.
///
/// # Errors
/// When it is set and names no fault; the message names all steps.
pub fn arm() -> Result<(), Unknown> {
    let Some(text) = std::env::var_os(VARIABLE) else {
        return Ok(());
    };
    let fault = Fault::parse(&text.to_string_lossy())?;
    // Whoever calls this again gets the same.
    FAULT.get_or_init(|| fault);
    Ok(())
}

/// Warns of a fault that is to come. To be called when there is a log.
pub fn warn() {
    if let Some(Fault { step, signal, .. }) = FAULT.get() {
        tracing::warn!("{VARIABLE} is set, which is for tests: {signal} at the step {step}");
    }
}

/// The process has come to this step.
pub fn step(step: Step) {
    tracing::debug!("step: {step}");
    if let Some(fault) = FAULT.get()
        && fault.step == step
        && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == fault.time
    {
        // By the thread itself: it goes no further, while a signal to the process may be another thread's to take.
        if let Err(error) = raise(fault.signal) {
            tracing::error!("sending this process {} failed: {error}", fault.signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_found() {
        for (index, step) in Step::ALL.iter().enumerate() {
            assert_eq!(Step::find(step.name()), Some(*step));
            assert!(!Step::ALL[..index].contains(step));
        }
        assert_eq!(Step::find("start"), None);
    }

    #[test]
    fn a_fault_is_a_step_and_a_signal() {
        let fault = |step, time, signal| Ok(Fault { step, time, signal });
        assert_eq!(
            Fault::parse("start-pinned=kill"),
            fault(Step::StartPinned, 1, Signal::SIGKILL)
        );
        assert_eq!(
            Fault::parse("stop-detached:2=stop"),
            fault(Step::StopDetached, 2, Signal::SIGSTOP)
        );
        for text in [
            "",
            "start-pinned",
            "start-pinned=end",
            "start-pinned:x=kill",
            "begin=kill",
        ] {
            let error = Fault::parse(text).expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains("heir-asked, heir-loaded"), "{error}");
        }
    }
}
