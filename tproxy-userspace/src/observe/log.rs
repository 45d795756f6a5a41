//! The log: events to standard error, which of them can be changed while it runs, and a copy for those who listen to
//! it by the control API.

mod tail;

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt as form, reload};

use self::tail::Tail;
pub use self::tail::{Follower, Line};

/// The levels, the one that tells least first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// The target of the events that tell of a connection or association that has ended.
const ACCESS: &str = "access";

/// What the log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `human` at a terminal, `json` elsewhere.
    #[default]
    Auto,
    /// A line for people.
    Human,
    /// A JSON object a line.
    Json,
}

/// Why a text says nothing of which events are told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{directive}` is neither a level nor a target with a level ({why}); write one of {}, or TARGET=LEVEL, with commas between them", LEVELS.join(", "))]
pub struct FilterError {
    /// The part that is wrong.
    pub directive: String,
    /// What is wrong with it.
    pub why: String,
}

/// Which events are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives(String);

impl Directives {
    /// Reads a level, or directives: `warn`, `info,access=info`, `info,tproxy_userspace::data=debug`. A word that is
    /// neither a level nor has one is refused: it is a slip, though `tracing` takes it for a target.
    ///
    /// # Errors
    /// When a part is not understood.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let text = text.trim();
        for part in text.split(',') {
            let refuse = |why: &str| FilterError {
                directive: part.trim().chars().take(64).collect(),
                why: why.to_owned(),
            };
            let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
            let level = level.trim().to_ascii_lowercase();
            if !LEVELS.contains(&&*level) {
                return Err(refuse("it has no level"));
            }
            if let Err(error) = EnvFilter::builder().parse(part.trim()) {
                return Err(refuse(&error.to_string()));
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The same, with or without a line for each connection, if the text does not say that itself.
    #[must_use]
    pub fn with_access(self, access: bool) -> Self {
        if self.0.contains(ACCESS) {
            return self;
        }
        let level = if access { "info" } else { "warn" };
        Self(format!("{},{ACCESS}={level}", self.0))
    }

    fn filter(&self) -> EnvFilter {
        EnvFilter::builder().parse_lossy(&self.0)
    }
}

impl fmt::Display for Directives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for Directives {
    fn default() -> Self {
        Self("info".to_owned()).with_access(false)
    }
}

/// The log of this process.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// None: nobody looks at the events of this one.
    reload: Option<reload::Handle<EnvFilter, Registry>>,
    directives: Mutex<Directives>,
    tail: Arc<Tail>,
    /// The environment says which events are told, so no configuration does.
    is_fixed: bool,
}

impl Log {
    /// Sends the events of this process to standard error. `RUST_LOG` in the environment comes before `directives`.
    ///
    /// # Panics
    /// If there is a log already.
    #[must_use]
    pub fn start(format: Format, directives: Directives) -> Self {
        let given = std::env::var(EnvFilter::DEFAULT_ENV).ok();
        let given = given.filter(|text| !text.is_empty() && text.parse::<EnvFilter>().is_ok());
        let is_fixed = given.is_some();
        let directives = given.map_or(directives, Directives);
        let (filter, reload) = reload::Layer::new(directives.filter());
        let tail = Arc::<Tail>::default();
        let is_terminal = io::stderr().is_terminal();
        let is_human = match format {
            Format::Auto => is_terminal,
            Format::Human => true,
            Format::Json => false,
        };
        let lines = form::layer().with_writer(io::stderr);
        let lines = if is_human {
            lines.with_ansi(is_terminal).with_target(false).boxed()
        } else {
            let lines = lines.json().flatten_event(true);
            lines.with_current_span(false).with_span_list(false).boxed()
        };
        tracing_subscriber::registry()
            .with(lines.with_filter(filter))
            .with(tail::layer(&tail))
            .init();
        Self {
            shared: Arc::new(Shared {
                reload: Some(reload),
                directives: Mutex::new(directives),
                tail,
                is_fixed,
            }),
        }
    }

    /// A log that nothing comes to, for tests.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            shared: Arc::new(Shared {
                reload: None,
                directives: Mutex::default(),
                tail: Arc::default(),
                is_fixed: false,
            }),
        }
    }

    /// Which events are told.
    #[must_use]
    pub fn directives(&self) -> Directives {
        self.present().clone()
    }

    fn present(&self) -> MutexGuard<'_, Directives> {
        // No code that can panic runs under the lock.
        let present = self.shared.directives.lock();
        present.unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these events are told.
    pub fn set(&self, directives: Directives) {
        if let Some(reload) = &self.shared.reload
            && let Err(error) = reload.reload(directives.filter())
        {
            // Only if the subscriber were gone.
            tracing::error!("changing the log's filter failed: {error}");
            return;
        }
        *self.present() = directives;
    }

    /// The same by a configuration, which says nothing where the environment does.
    pub fn configure(&self, directives: Directives) {
        if !self.shared.is_fixed {
            self.set(directives);
        }
    }

    /// Is there a line for each connection?
    #[must_use]
    pub fn tells_access(&self) -> bool {
        let directives = self.directives().0;
        let mut parts = directives.split(',').rev();
        let level = parts.find_map(|part| part.trim().strip_prefix(ACCESS)?.strip_prefix('='));
        level.is_some_and(|level| {
            let place = LEVELS
                .iter()
                .position(|one| level.eq_ignore_ascii_case(one));
            place >= LEVELS.iter().position(|one| *one == "info")
        })
    }

    /// The most that is told of any target.
    #[must_use]
    pub fn level(&self) -> Option<Level> {
        let hint = self.directives().filter().max_level_hint();
        hint.and_then(LevelFilter::into_level)
    }

    /// All events of this program from now on, up to this level, whatever the log tells.
    #[must_use]
    pub fn follow(&self, level: Level) -> Follower {
        Follower::new(Arc::clone(&self.shared.tail), level)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn levels_and_targets_are_read_and_slips_are_not() {
        for text in [
            "info",
            "WARN",
            "off",
            "info,access=info",
            "error, tproxy_userspace::data=debug",
        ] {
            assert_eq!(Directives::parse(text).unwrap().0, text);
        }
        for (text, part) in [
            ("", ""),
            ("wran", "wran"),
            ("info,acess", "acess"),
            ("access=yes", "access=yes"),
            ("info,,warn", ""),
            ("a=b=c", "a=b=c"),
        ] {
            let error = Directives::parse(text).unwrap_err();
            assert_eq!(error.directive, part, "{error}");
        }
    }

    #[test]
    fn a_line_for_each_connection_is_a_matter_of_its_own() {
        let access = |text: &str, access| {
            let directives = Directives::parse(text).unwrap();
            directives.with_access(access).to_string()
        };
        assert_eq!(access("info", false), "info,access=warn");
        assert_eq!(access("warn", true), "warn,access=info");
        assert_eq!(access("info,access=off", true), "info,access=off");
        assert_eq!(Directives::default().to_string(), "info,access=warn");
    }

    #[test]
    fn the_level_is_the_most_that_is_told() {
        let log = Log::silent();
        assert_eq!(log.level(), Some(Level::INFO));
        for (text, level) in [
            ("off", None),
            ("error", Some(Level::ERROR)),
            ("warn,a=trace", Some(Level::TRACE)),
        ] {
            log.set(Directives::parse(text).unwrap());
            assert_eq!(log.level(), level, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_read_has_a_filter(text in "\\PC*|([a-z]{1,5}[=,\\[\\]{}:]?(info|warn)?,?){0,5}") {
            if let Ok(directives) = Directives::parse(&text) {
                prop_assert!(EnvFilter::builder().parse(&directives.0).is_ok());
            }
        }
    }
}
