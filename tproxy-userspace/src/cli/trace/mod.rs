//! `trace`: decisions about packets, as they happen.

mod line;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{CommandFactory, ValueEnum};
use nix::net::if_::{if_indextoname, if_nametoindex};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tproxy_common::abi::{Effect, Reason};
use tproxy_common::trace::TraceFilter;
use tproxy_userspace::control::bpf::Maps;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::control::trace::{Event, Filter, Protocol, Tracer};

use self::line::Lines;
use super::exempt::locked;
use super::{Cli, TraceArgs, output, small_runtime};

/// How many events are printed at once.
const BATCH: usize = 64;
/// How many batches wait for the printer; then events wait in the kernel, until they find no room there.
const QUEUE: usize = 4;
/// How long what was printed last may take to get out.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Effects, as they are asked for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum EffectWord {
    /// The kernel goes on with it as without tproxy-bpf.
    Pass,
    /// The proxy gets it.
    Steer,
    /// It ends in the gateway.
    Drop,
}

/// Protocols, as they are asked for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ProtocolWord {
    Tcp,
    Udp,
    /// Another, or it cannot be told.
    Other,
}

/// The words for the reasons.
pub fn reasons() -> impl TypedValueParser<Value = Reason> {
    let words = Reason::ALL.iter().map(|reason| reason.word());
    PossibleValuesParser::new(words).map(|word| {
        let named = Reason::ALL.iter().find(|reason| reason.word() == word);
        *named.expect("it is one of those words")
    })
}

pub fn trace(args: &TraceArgs) -> Result<ExitCode> {
    let mut filter = filter(args);
    let place = Place::current()?;
    let (maps, lock) = locked(&place)?;
    filter.link = args.on.as_deref().map_or(Ok(0), |name| link(name, &maps))?;
    small_runtime()?.block_on(async {
        let tracer = Tracer::start(&place, filter)?;
        drop(lock);
        follow(tracer, args).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The conditions but for the link. Ends with a word on usage if no packet meets them.
fn filter(args: &TraceArgs) -> TraceFilter {
    let filter = Filter {
        source: args.from,
        destination: args.to,
        port: args.port,
        destination_port: args.to_port,
        protocols: args.protocol.iter().copied().map(Protocol::from).collect(),
        effects: args.effect.iter().copied().map(Effect::from).collect(),
        reasons: args.reason.clone(),
        new: args.new,
    };
    filter.for_kernel().unwrap_or_else(|error| {
        Cli::command()
            .error(ErrorKind::ArgumentConflict, error)
            .exit()
    })
}

/// The index of a link. It need not be attached: datagrams that socket lookup finds are those of the bridge
/// whose port is.
fn link(name: &str, maps: &Maps) -> Result<u32> {
    if let Ok(index) = if_nametoindex(name) {
        return Ok(index);
    }
    let attached: Vec<String> = maps
        .links()?
        .into_iter()
        .filter_map(|(index, _)| if_indextoname(index).ok()?.into_string().ok())
        .collect();
    bail!(
        "there is no link {name:?}; attached are: {}",
        attached.join(", ")
    )
}

async fn follow(mut tracer: Tracer, args: &TraceArgs) -> Result<()> {
    let mut stop = Stop::new()?;
    let mut lines = Lines::new(args.json);
    let (queue, printed) = print();
    // Said when it is true: from here on no decision is missed.
    eprintln!("tracing; Ctrl-C ends it");
    let end = args.time.map(|time| Instant::now() + time);
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut renewal = interval(Tracer::RENEWAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while left > 0 {
        let next = async {
            let room = queue.reserve().await.ok()?;
            Some((room, tracer.events(BATCH).await))
        };
        tokio::select! {
            biased;
            () = stop.asked() => break,
            // Nobody reads any more.
            () = queue.closed() => break,
            () = at(end) => break,
            _ = renewal.tick() => {
                if let Some(time) = tracer.renew()? {
                    lines.missed(time);
                }
                // If there is no room for that either, it is told with what comes next.
                if let Ok(room) = queue.try_reserve() {
                    room.send(lines.lost(tracer.lost()?));
                }
            }
            batch = next => {
                let Some((room, events)) = batch else { break };
                let mut text = lines.lost(tracer.lost()?);
                for event in events? {
                    if matches!(event, Event::Decision(_)) {
                        if left == 0 {
                            break;
                        }
                        left -= 1;
                    }
                    text.push_str(&lines.event(&event));
                }
                room.send(text);
            }
        }
    }
    let rest = lines.lost(tracer.lost()?);
    // Whoever waits for a number of decisions gets them; else the reader's time is short.
    let patience = if left > 0 { LAST_WORDS } else { Duration::MAX };
    drop(tracer);
    let finish = async {
        // If it fails nobody reads.
        let _ = queue.send(rest).await;
        drop(queue);
        printed.await.unwrap_or(Ok(()))
    };
    tokio::select! {
        result = finish => result,
        () = stop.asked() => Ok(()),
        () = tokio::time::sleep(patience) => Ok(()),
    }
}

async fn at(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Prints in a thread of its own: who reads may be slow, and a signal is to end it all the same.
fn print() -> (mpsc::Sender<String>, oneshot::Receiver<Result<()>>) {
    let (queue, mut texts) = mpsc::channel::<String>(QUEUE);
    let (done, printed) = oneshot::channel();
    thread::spawn(move || {
        let mut result = Ok(());
        while let Some(text) = texts.blocking_recv() {
            match output::line_out(&text) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        drop(texts);
        let _ = done.send(result);
    });
    (queue, printed)
}

/// The signals that end it.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        let open = |kind| signal(kind).context("listening for signals failed");
        Ok(Self {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

impl From<EffectWord> for Effect {
    fn from(word: EffectWord) -> Self {
        match word {
            EffectWord::Pass => Self::Pass,
            EffectWord::Steer => Self::Steer,
            EffectWord::Drop => Self::Drop,
        }
    }
}

impl From<ProtocolWord> for Protocol {
    fn from(word: ProtocolWord) -> Self {
        match word {
            ProtocolWord::Tcp => Self::Tcp,
            ProtocolWord::Udp => Self::Udp,
            ProtocolWord::Other => Self::Other,
        }
    }
}
