//! The log for those who listen. With no listener no event comes here, and none is even looked at.

use std::fmt::{self, Write as _};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast::{self, error::RecvError};
use tracing::callsite::rebuild_interest_cache;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Lines that wait for a listener that is slow; then the oldest are lost to it.
const WAITING: usize = 512;
/// A line is cut off behind so many bytes.
const LONGEST: usize = 4096;
/// The levels by their numbers; 0 is none.
const LEVELS: [Level; 5] = [
    Level::ERROR,
    Level::WARN,
    Level::INFO,
    Level::DEBUG,
    Level::TRACE,
];

/// One event.
#[derive(Debug)]
pub struct Line {
    /// How much it matters.
    pub level: Level,
    /// What happened.
    pub text: String,
}

/// Where listeners get the events from.
#[derive(Debug)]
pub(super) struct Tail {
    lines: broadcast::Sender<Arc<Line>>,
    /// How many listen at each level.
    listeners: Mutex<[usize; LEVELS.len()]>,
    /// The number of the highest level that somebody listens at, or 0.
    most: AtomicUsize,
}

impl Default for Tail {
    fn default() -> Self {
        Self {
            lines: broadcast::Sender::new(WAITING),
            listeners: Mutex::default(),
            most: AtomicUsize::new(0),
        }
    }
}

impl Tail {
    fn count(&self, level: Level, change: impl FnOnce(&mut usize)) {
        // No code that can panic runs under the lock.
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut listeners[number(level) - 1]);
        let most = listeners.iter().rposition(|count| *count > 0);
        let most = most.map_or(0, |place| place + 1);
        if self.most.swap(most, Relaxed) != most {
            // Each place in the code that could tell something asks anew whether anybody wants it.
            rebuild_interest_cache();
        }
    }

    /// Only this program's own events: those of libraries help nobody who looks at a page.
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        number(*metadata.level()) <= self.most.load(Relaxed)
            && (metadata.target().starts_with("tproxy") || metadata.target() == super::ACCESS)
    }
}

fn number(level: Level) -> usize {
    let place = LEVELS.iter().position(|one| *one == level);
    place.map_or(LEVELS.len(), |place| place + 1)
}

/// What brings the events.
pub(super) fn layer<S>(tail: &Arc<Tail>) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    Copy(Arc::clone(tail)).with_filter(Wanted(Arc::clone(tail)))
}

struct Copy(Arc<Tail>);

impl<S: Subscriber> Layer<S> for Copy {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let mut text = text.finish();
        if event.metadata().target() == super::ACCESS {
            text.insert_str(0, "connection ended: ");
        }
        let level = *event.metadata().level();
        // Nobody listens any more: no concern of the event.
        let _ = self.0.lines.send(Arc::new(Line { level, text }));
    }
}

struct Wanted(Arc<Tail>);

impl<S> Filter<S> for Wanted {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.0.wants(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.0.wants(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let most = self.0.most.load(Relaxed);
        Some(match most.checked_sub(1) {
            Some(place) => LevelFilter::from_level(LEVELS[place]),
            None => LevelFilter::OFF,
        })
    }
}

/// An event as one line.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> String {
        if self.message.is_empty() {
            self.message = self.fields.trim_start().to_owned();
        } else {
            self.message.push_str(&self.fields);
        }
        if self.message.len() > LONGEST {
            let end = self.message.floor_char_boundary(LONGEST);
            self.message.truncate(end);
            self.message.push('…');
        }
        self.message
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let (name, enough) = (field.name(), LONGEST * 2);
        let _ = match name {
            "message" => write!(self.message, "{value:?}"),
            _ if self.fields.len() > enough => Ok(()),
            _ => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// A listener. Events are only made while there is one.
#[derive(Debug)]
pub struct Follower {
    tail: Arc<Tail>,
    lines: broadcast::Receiver<Arc<Line>>,
    level: Level,
}

impl Follower {
    pub(super) fn new(tail: Arc<Tail>, level: Level) -> Self {
        let lines = tail.lines.subscribe();
        tail.count(level, |count| *count += 1);
        Self { tail, lines, level }
    }

    /// The next event. A listener that was too slow is told how many it missed.
    pub async fn next(&mut self) -> Arc<Line> {
        loop {
            match self.lines.recv().await {
                Ok(line) if line.level <= self.level => return line,
                Ok(_) => {}
                Err(RecvError::Lagged(lines)) => {
                    return Arc::new(Line {
                        level: Level::WARN,
                        text: format!(
                            "{lines} lines were lost: they came faster than they were read"
                        ),
                    });
                }
                // The sender lives as long as this does.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.tail.count(self.level, |count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[tokio::test]
    async fn events_are_made_only_for_those_who_listen() {
        let tail = Arc::<Tail>::default();
        let subscriber = tracing_subscriber::registry().with(layer(&tail));
        let _guard = tracing::subscriber::set_default(subscriber);
        let made = AtomicU32::new(0);
        let debug = || tracing::debug!("event {}", made.fetch_add(1, Relaxed));
        let info = || tracing::info!(target: "access", outcome = "idle", up = 1);
        debug();
        info();
        assert_eq!(made.load(Relaxed), 0);

        let mut info_only = Follower::new(Arc::clone(&tail), Level::INFO);
        debug();
        info();
        assert_eq!(made.load(Relaxed), 0);
        let line = info_only.next().await;
        assert_eq!(line.text, "connection ended: outcome=idle up=1");

        let mut both = Follower::new(Arc::clone(&tail), Level::DEBUG);
        debug();
        info();
        assert_eq!(made.load(Relaxed), 1);
        assert_eq!(both.next().await.text, "event 0");
        // It asked for less.
        assert_eq!(info_only.next().await.level, Level::INFO);
        // What libraries tell is not for pages.
        tracing::info!(target: "hyper", "nothing");
        drop(both);
        debug();
        assert_eq!(made.load(Relaxed), 1);
        for _ in 0..=WAITING {
            info();
        }
        let lost = info_only.next().await;
        assert!(lost.text.contains("lines were lost"), "{}", lost.text);
        drop(info_only);
        assert_eq!(tail.most.load(Relaxed), 0);
    }

    #[test]
    fn a_long_event_is_cut_off() {
        let text = Text {
            message: "ä".repeat(LONGEST),
            fields: String::new(),
        };
        assert!(text.finish().len() <= LONGEST + 3);
    }
}
