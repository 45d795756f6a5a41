//! `top`: a gateway as it works, in the terminal.
//!
//! One thread asks ([`sample`]), one reads keys, one waits for signals; this one draws whenever one of them has something to
//! tell.

mod columns;
mod draw;
mod model;
mod rows;
mod sample;
mod state;
mod terminal;
#[cfg(test)]
mod testing;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use ratatui::crossterm::event::KeyEvent;
use tproxy_userspace::config::parse_duration;
use tproxy_userspace::control::place::Place;

use self::columns::View;
use self::draw::Theme;
use self::sample::Sample;
use self::state::{State, Wish};
use self::terminal::Screen;
use super::output;

/// How many events may wait while one is drawn; who has more waits.
const WAITING: usize = 16;

/// What is looked at, and how often.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// How often it looks, such as "2s" or "500ms".
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// The view that it begins with.
    #[arg(long, value_name = "VIEW", default_value = "flows")]
    view: View,
    /// Print the view as text once, after one interval. It needs no terminal.
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    const ALLOWED: std::ops::RangeInclusive<Duration> =
        Duration::from_millis(100)..=Duration::from_hours(1);
    let interval = parse_duration(text).map_err(|refusal| refusal.to_string())?;
    match ALLOWED.contains(&interval) {
        true => Ok(interval),
        false => Err("it is between 100ms and 1h".into()),
    }
}

/// What the thread that draws is told.
enum Event {
    /// A key was pressed.
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    /// The gateway was looked at.
    Sample(Box<Sample>),
    /// What came of a command.
    Told(String),
    /// It is to end.
    Quit,
    /// Something that it needs is gone.
    Broken(anyhow::Error),
}

/// What the thread that asks is told.
enum Order {
    /// Ask so often, or not at all.
    Pace(Option<Duration>),
    /// End this flow.
    Kill(u64),
}

pub fn top(args: &TopArgs) -> Result<ExitCode> {
    let place = Place::current()?;
    let mut state = State::new(args.interval, args.view);
    if args.once {
        state.take(Sample::take(&place));
        thread::sleep(args.interval);
        state.take(Sample::take(&place));
        output::text_out(&draw::text(&mut state))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !io::stdout().is_terminal() {
        bail!(
            "`top` draws on a terminal, and standard output is none; `tproxy-bpf flows --json` is for programs, and \
             `tproxy-bpf top --once` prints the view as text"
        );
    }
    live(place, state)?;
    Ok(ExitCode::SUCCESS)
}

fn live(place: Place, mut state: State) -> Result<()> {
    let (teller, events) = sync_channel(WAITING);
    let (commander, orders) = channel();
    // Before any other thread, which would else take signals that are not for it.
    terminal::follow_signals(teller.clone())?;
    let mut screen = Screen::open()?;
    terminal::follow_keys(teller.clone());
    let interval = state.interval;
    thread::spawn(move || {
        let _end = Ending(teller.clone());
        ask(&place, interval, &orders, &teller);
    });
    let theme = Theme::of_environment();
    loop {
        screen.draw(|frame| draw::draw(frame, &mut state, theme))?;
        // All that has come meanwhile makes one picture.
        let mut next = events.recv().ok();
        while let Some(event) = next {
            if !handle(event, &mut state, &commander)? {
                return Ok(());
            }
            next = events.try_recv().ok();
        }
    }
}

/// Whether it goes on.
fn handle(event: Event, state: &mut State, commander: &Sender<Order>) -> Result<bool> {
    match event {
        Event::Key(key) => {
            let order = match state.press(key) {
                Wish::None => return Ok(true),
                Wish::Quit => return Ok(false),
                Wish::Kill(flow) => Order::Kill(flow),
                Wish::Pace(interval) => Order::Pace(interval),
            };
            commander
                .send(order)
                .context("the thread that asks the proxy has ended")?;
        }
        Event::Sample(_) if state.paused => {}
        Event::Sample(sample) => state.take(*sample),
        Event::Told(notice) => state.tell(notice),
        Event::Resized => {}
        Event::Quit => return Ok(false),
        Event::Broken(error) => return Err(error),
    }
    Ok(true)
}

/// Tells that the thread that asks has ended, which it does by itself only if it panics.
struct Ending(SyncSender<Event>);

impl Drop for Ending {
    fn drop(&mut self) {
        let why = anyhow!("the thread that asks the proxy has ended");
        let _ = self.0.send(Event::Broken(why));
    }
}

/// Asks in each interval, until nobody listens.
fn ask(place: &Place, interval: Duration, orders: &Receiver<Order>, teller: &SyncSender<Event>) {
    let mut pace = Some(interval);
    loop {
        let begun = Instant::now();
        let mut due = None;
        if let Some(interval) = pace {
            if teller
                .send(Event::Sample(Box::new(Sample::take(place))))
                .is_err()
            {
                return;
            }
            // Whoever asks for less than an answer takes gets no more than half of the time for it.
            let spent = begun.elapsed();
            due = Some(begun + interval.max(2 * spent));
        }
        match next_order(orders, due) {
            Ok(None) => {}
            Ok(Some(Order::Pace(now))) => pace = now,
            Ok(Some(Order::Kill(flow))) => {
                if teller.send(Event::Told(sample::kill(place, flow))).is_err() {
                    return;
                }
            }
            Err(Gone) => return,
        }
    }
}

/// Nobody gives orders any more.
struct Gone;

/// The next order, or none when it is time.
fn next_order(orders: &Receiver<Order>, due: Option<Instant>) -> Result<Option<Order>, Gone> {
    let Some(due) = due else {
        return orders.recv().map(Some).map_err(|_| Gone);
    };
    match orders.recv_timeout(due.saturating_duration_since(Instant::now())) {
        Ok(order) => Ok(Some(order)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(Gone),
    }
}
