//! The terminal: taken, and given back whatever happens.

use std::io::{self, BufWriter, Stdout, Write};
use std::panic;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{SigSet, Signal};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, KeyEventKind};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{Frame, Terminal};

use super::Event;

/// Signals that ask it to end.
const ENDING: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
];
/// A picture of a large terminal goes out in one piece.
const PICTURE: usize = 64 << 10;

/// A queue that stays full for so long will not be emptied any more.
const PATIENCE: Duration = Duration::from_secs(1);

/// Is the terminal ours?
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is ours. Dropping it gives it back.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

impl Screen {
    /// Takes the terminal. A panic of any thread gives it back before it is told.
    pub fn open() -> Result<Self> {
        const TAKING: &str = "taking the terminal failed";
        enable_raw_mode().context(TAKING)?;
        TAKEN.store(true, Ordering::SeqCst);
        // From here on dropping it gives the terminal back.
        let back = Back;
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            tell(panic);
        }));
        execute!(io::stdout(), EnterAlternateScreen).context(TAKING)?;
        let backend = CrosstermBackend::new(BufWriter::with_capacity(PICTURE, io::stdout()));
        let terminal = Terminal::new(backend).context(TAKING)?;
        std::mem::forget(back);
        Ok(Self { terminal })
    }

    /// Draws what has changed.
    pub fn draw(&mut self, render: impl FnOnce(&mut Frame<'_>)) -> Result<()> {
        let drawn = self.terminal.draw(render);
        drawn.context("drawing on the terminal failed")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        give_back();
    }
}

/// Once: whoever leaves the other screen twice puts the cursor where it was long ago. There is nobody to tell if it fails.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        let _ = execute!(out, LeaveAlternateScreen, Show);
        let _ = out.flush();
        let _ = disable_raw_mode();
    }
}

/// Tells of signals that ask for the end. If that is not heeded (the terminal takes nothing any more, say), the second one
/// ends the process.
pub fn follow_signals(teller: SyncSender<Event>) -> Result<()> {
    let signals = SigSet::from_iter(ENDING);
    signals
        .thread_block()
        .context("taking care of signals failed")?;
    thread::spawn(move || {
        if signals.wait().is_ok() && tell_in_time(&teller) {
            let _ = signals.wait();
        }
        let _ = disable_raw_mode();
        process::exit(1);
    });
    Ok(())
}

/// Whether there was room to tell of the end.
fn tell_in_time(teller: &SyncSender<Event>) -> bool {
    let begun = Instant::now();
    while teller.try_send(Event::Quit).is_err() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(PATIENCE / 50);
    }
    true
}

/// Tells of keys, and of the terminal's size.
pub fn follow_keys(teller: SyncSender<Event>) {
    thread::spawn(move || {
        loop {
            let told = match event::read() {
                Ok(event::Event::Key(key)) if key.kind != KeyEventKind::Release => Event::Key(key),
                Ok(event::Event::Resize(..)) => Event::Resized,
                Ok(_) => continue,
                Err(error) => Event::Broken(anyhow!("reading keys failed: {error}")),
            };
            let is_last = matches!(told, Event::Broken(_));
            if teller.send(told).is_err() || is_last {
                return;
            }
        }
    });
}
