//! What a person sees and does: view, order, filter, the chosen row, questions. Pure: samples and keys go in, wishes come
//! out.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::columns::{Column, View};
use super::model::{Model, Presence};
use super::rows::{self, Key, Row};
use super::sample::Sample;

/// The intervals that + and - choose from, in milliseconds.
const INTERVALS: [u64; 9] = [
    200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000,
];

/// What is to be done besides drawing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    None,
    /// The end.
    Quit,
    /// End this flow.
    Kill(u64),
    /// Ask in this interval, or not at all for now.
    Pace(Option<Duration>),
}

/// What keys mean now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Commands.
    #[default]
    Normal,
    /// They make up the filter.
    Filter,
    /// They answer whether this flow is to end.
    Question {
        /// Its number.
        flow: u64,
        /// What it is, for a person.
        what: String,
    },
    /// Any of them ends the help.
    Help,
}

/// What one view keeps while another is shown.
#[derive(Clone, Debug)]
struct Panel {
    sort: usize,
    reverse: bool,
    filter: String,
    chosen: Option<Key>,
    /// Where the chosen row was last: what is there is chosen when it goes.
    at: usize,
    /// The first row that is shown.
    first: usize,
}

impl Panel {
    fn new(view: View) -> Self {
        let first = view.first_order();
        let sort = view.columns().iter().position(|column| *column == first);
        Self {
            sort: sort.unwrap_or(0),
            reverse: false,
            filter: String::new(),
            chosen: None,
            at: 0,
            first: 0,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct State {
    /// What is known.
    pub model: Model,
    /// What keys mean.
    pub mode: Mode,
    /// Is nothing asked for now?
    pub paused: bool,
    /// How often it is asked.
    pub interval: Duration,
    /// What came of the last command.
    pub notice: Option<String>,
    view: View,
    panels: [Panel; View::ALL.len()],
    /// The rows of the view that is shown: those that the filter takes, in order.
    rows: Vec<Row>,
    /// How many rows are seen at once.
    page: usize,
}

impl State {
    /// Nothing is known yet.
    pub fn new(interval: Duration, view: View) -> Self {
        Self {
            model: Model::default(),
            mode: Mode::default(),
            paused: false,
            interval,
            notice: None,
            view,
            panels: View::ALL.map(Panel::new),
            rows: Vec::new(),
            page: 1,
        }
    }

    /// The view that is shown: while no proxy has been seen, there are counters only.
    pub fn view(&self) -> View {
        match (&self.model.presence, &self.model.status) {
            (Presence::None | Presence::Silent(..), None) => View::Counters,
            _ => self.view,
        }
    }

    /// The column that rows are sorted by, and whether it is the wrong way round.
    pub fn order(&self) -> (Column, bool) {
        let panel = self.panel();
        (self.view().columns()[panel.sort], panel.reverse)
    }

    /// The text that rows must contain.
    pub fn filter(&self) -> &str {
        &self.panel().filter
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// The chosen row.
    pub fn chosen(&self) -> Option<&Row> {
        self.rows.get(self.panel().at)
    }

    /// The rows that are seen, and which of them is chosen. So many fit.
    pub fn window(&mut self, page: usize) -> (&[Row], Option<usize>) {
        self.page = page.max(1);
        self.scroll();
        let (first, at) = (self.panel().first, self.panel().at);
        let end = self.rows.len().min(first + page);
        (&self.rows[first.min(end)..end], at.checked_sub(first))
    }

    /// A sample has come.
    pub fn take(&mut self, sample: Sample) {
        self.model.take(sample);
        self.arrange();
    }

    /// What came of a command.
    pub fn tell(&mut self, notice: String) {
        self.notice = Some(notice);
    }

    /// A key was pressed.
    pub fn press(&mut self, key: KeyEvent) -> Wish {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control {
            return match key.code {
                KeyCode::Char('c') => Wish::Quit,
                _ => Wish::None,
            };
        }
        match std::mem::take(&mut self.mode) {
            Mode::Normal => self.command(key.code),
            Mode::Filter => {
                self.edit(key.code);
                Wish::None
            }
            Mode::Question { flow, .. } => match key.code {
                KeyCode::Char('y' | 'Y') => {
                    self.notice = Some(format!("ending flow {flow} …"));
                    Wish::Kill(flow)
                }
                _ => Wish::None,
            },
            Mode::Help => Wish::None,
        }
    }

    fn command(&mut self, key: KeyCode) -> Wish {
        self.notice = None;
        match key {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Esc if self.filter().is_empty() => return Wish::Quit,
            KeyCode::Esc => self.set_filter(String::new()),
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(View::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='5') => {
                self.view = View::ALL[usize::from(digit as u8 - b'1')];
                self.arrange();
            }
            KeyCode::Up => self.move_to(self.panel().at.saturating_sub(1)),
            KeyCode::Down => self.move_to(self.panel().at + 1),
            KeyCode::PageUp => self.move_to(self.panel().at.saturating_sub(self.page)),
            KeyCode::PageDown => self.move_to(self.panel().at + self.page),
            KeyCode::Home => self.move_to(0),
            KeyCode::End => self.move_to(usize::MAX),
            KeyCode::Char('s') => {
                let columns = self.view().columns().len();
                let panel = self.panel_mut();
                panel.sort = (panel.sort + 1) % columns;
                panel.reverse = false;
                self.arrange();
            }
            KeyCode::Char('r') => {
                let panel = self.panel_mut();
                panel.reverse = !panel.reverse;
                self.arrange();
            }
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Char('K') | KeyCode::Delete => self.ask_to_kill(),
            KeyCode::Char('p') => {
                self.paused = !self.paused;
                return self.pace();
            }
            KeyCode::Char('+' | '=') => return self.change_interval(true),
            KeyCode::Char('-') => return self.change_interval(false),
            _ => {}
        }
        Wish::None
    }

    /// A key while the filter is typed.
    fn edit(&mut self, key: KeyCode) {
        self.mode = Mode::Filter;
        let mut filter = self.filter().to_owned();
        match key {
            KeyCode::Enter => self.mode = Mode::Normal,
            KeyCode::Esc => {
                self.mode = Mode::Normal;
                self.set_filter(String::new());
            }
            KeyCode::Backspace => {
                filter.pop();
                self.set_filter(filter);
            }
            KeyCode::Char(letter) => {
                filter.push(letter);
                self.set_filter(filter);
            }
            _ => {}
        }
    }

    fn set_filter(&mut self, filter: String) {
        self.panel_mut().filter = filter;
        self.arrange();
    }

    fn ask_to_kill(&mut self) {
        match self.chosen() {
            Some(Row::Flow(index)) if !self.model.is_stale() => {
                let flow = &self.model.flows[*index];
                self.mode = Mode::Question {
                    flow: flow.status.id,
                    what: format!("{} → {}", flow.device(), rows::destination(flow)),
                };
            }
            Some(Row::Flow(_)) => self.tell("no proxy answers that could end it".into()),
            _ => self.tell("only a flow can be ended: choose one in the view of flows (1)".into()),
        }
    }

    fn change_interval(&mut self, longer: bool) -> Wish {
        let mut steps = INTERVALS.into_iter().map(Duration::from_millis);
        let next = match longer {
            true => steps.find(|step| *step > self.interval),
            false => steps.rfind(|step| *step < self.interval),
        };
        self.interval = next.unwrap_or(self.interval);
        self.pace()
    }

    fn pace(&self) -> Wish {
        Wish::Pace((!self.paused).then_some(self.interval))
    }

    fn turn(&mut self, by: usize) {
        let at = self.view() as usize;
        self.view = View::ALL[(at + by) % View::ALL.len()];
        self.arrange();
    }

    /// A person chooses this row, and keeps it wherever it moves. Nobody keeps the first: it is whatever comes first.
    fn move_to(&mut self, at: usize) {
        let at = at.min(self.rows.len().saturating_sub(1));
        let chosen = self.rows.get(at).filter(|_| at > 0);
        let chosen = chosen.map(|row| row.key(&self.model));
        let panel = self.panel_mut();
        panel.at = at;
        panel.chosen = chosen;
    }

    /// Makes up the rows, and finds the chosen one again.
    fn arrange(&mut self) {
        let view = self.view();
        let (column, reverse) = self.order();
        let wanted = self.filter().to_lowercase();
        let model = &self.model;
        let mut rows = rows::rows(model, view);
        if !wanted.is_empty() {
            rows.retain(|row| row.contains(model, view, &wanted));
        }
        let rows = ordered(rows, model, column, reverse);
        let chosen = self.panel().chosen.clone();
        let found = chosen.map(|key| rows.iter().position(|row| row.key(model) == key));
        self.rows = rows;
        match found {
            None => self.panel_mut().at = 0,
            Some(Some(at)) => self.panel_mut().at = at,
            // What is now in its place.
            Some(None) => self.move_to(self.panel().at),
        }
    }

    /// Brings the chosen row into the window, and no empty lines where there are rows.
    fn scroll(&mut self) {
        let (page, count) = (self.page, self.rows.len());
        let panel = self.panel_mut();
        let lowest = panel.at.saturating_sub(page - 1);
        panel.first = panel.first.clamp(lowest, panel.at.max(lowest));
        panel.first = panel.first.min(count.saturating_sub(page));
    }

    fn panel(&self) -> &Panel {
        &self.panels[self.view() as usize]
    }

    fn panel_mut(&mut self) -> &mut Panel {
        let view = self.view();
        &mut self.panels[view as usize]
    }
}

/// The rows by what stands in a column.
fn ordered(rows: Vec<Row>, model: &Model, column: Column, reverse: bool) -> Vec<Row> {
    let values = rows.iter().map(|row| (row.value(model, column), row));
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(|(one, row), (other, other_row)| {
        let order = one.compare(other);
        let order = if reverse { order.reverse() } else { order };
        // Rows that are alike must not change places with each sample.
        order.then_with(|| compare_keys(row, other_row, model))
    });
    values.into_iter().map(|(_, row)| row.clone()).collect()
}

fn compare_keys(one: &Row, other: &Row, model: &Model) -> Ordering {
    match (one, other) {
        // By far the most, and their order is that of the numbers.
        (Row::Flow(one), Row::Flow(other)) => one.cmp(other),
        _ => one.key(model).cmp(&other.key(model)),
    }
}
