//! Drawing: from the state to the cells of a terminal, or to plain text.

mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use unicode_width::UnicodeWidthStr;

use self::table::{fit, line, natural, widths};
use super::super::flows::{protocol_word, way};
use super::super::output;
use super::columns::{Column, Value, View, short};
use super::model::{Model, Presence};
use super::rows::{Row, canonical};
use super::state::{Mode, State};

const KEYS: &str =
    "q quit  Tab view  s sort  r reverse  / filter  K end flow  p pause  + - interval  ? help";
const HELP: [&str; 15] = [
    "1-5, Tab        flows, devices, destinations, counters, outbounds",
    "arrows, PgUp, PgDn, End   choose a row: it stays chosen where it moves",
    "Home            the first row, whichever it is",
    "s               sort by the next column; r turns the order round",
    "/               show only rows with this text; Enter keeps it, Esc clears it",
    "K, Del          end the chosen flow: RST to both sides; asks before",
    "p               pause",
    "+, -            look less often, more often",
    "q, Esc, Ctrl-C  quit",
    "",
    "Bytes are in units of 1024. A flow that was there before `top` has no rate at first.",
    "Devices and outbounds: all bytes since the proxy began. Destinations: flows that live,",
    "by the last two labels of their name (three where it ends as co.uk does) or by address.",
    "direct: what devices, and the gateway, send that the kernel forwards past the proxy.",
    "What comes back to them by that way is not counted.",
];
/// A terminal that is lower shows no more than is needed.
const ROOMY: u16 = 16;

/// With or without colours.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// Are there colours?
    pub colour: bool,
}

impl Theme {
    /// As `NO_COLOR` says: there are none if it is there and not empty.
    pub fn of_environment() -> Self {
        let none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: !none }
    }

    fn of(self, colour: Color) -> Style {
        match self.colour {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    fn title(self) -> Style {
        self.of(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    fn warning(self) -> Style {
        self.of(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    fn bad(self) -> Style {
        self.of(Color::Red)
    }
}

/// Where the next line goes.
struct Pen<'b> {
    buffer: &'b mut Buffer,
    area: Rect,
}

impl Pen<'_> {
    /// Writes a line at the top of what is left.
    fn line(&mut self, text: &str, style: Style) {
        if self.area.height > 0 {
            self.write(self.area.y, text, style);
            self.area.y += 1;
            self.area.height -= 1;
        }
    }

    /// Writes a line at the bottom of what is left.
    fn last(&mut self, text: &str, style: Style) {
        if self.area.height > 0 {
            self.area.height -= 1;
            self.write(self.area.bottom(), text, style);
        }
    }

    fn write(&mut self, y: u16, text: &str, style: Style) {
        let width = usize::from(self.area.width);
        let text = fit(text, width, false);
        self.buffer.set_stringn(self.area.x, y, text, width, style);
    }
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &mut State, theme: Theme) {
    let area = frame.area();
    let mut pen = Pen {
        buffer: frame.buffer_mut(),
        area,
    };
    let width = usize::from(area.width);
    let lines = if area.height < ROOMY { 2 } else { 3 };
    for text in wrapped(&header(state), width).iter().take(lines) {
        pen.line(text, Style::new());
    }
    for notice in notices(state) {
        pen.line(&notice, theme.warning());
    }
    tabs(&mut pen, state, theme);
    footer(&mut pen, state, theme);
    if area.height >= ROOMY
        && let Some(text) = details(state)
    {
        pen.last(&text, Style::new().add_modifier(Modifier::DIM));
    }
    if state.mode == Mode::Help {
        for text in HELP {
            pen.line(text, Style::new());
        }
        return;
    }
    rows(&mut pen, state, theme);
}

/// What is said of the proxy as a whole, in parts that stay together.
fn header(state: &State) -> Vec<String> {
    let model = &state.model;
    let rate = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{}/s", short(rate)));
    let mut parts = Vec::new();
    if let Some(status) = &model.status {
        let uptime = output::duration(Duration::from_secs(status.uptime_seconds));
        parts.push(format!("proxy {}, up {uptime}", status.pid));
        parts.push(format!(
            "proxied: up {} down {}",
            rate(model.proxied.map(|rate| rate.up)),
            rate(model.proxied.map(|rate| rate.down))
        ));
    }
    if model.down_drops.is_some() {
        parts.push(format!("direct: {}", rate(model.direct())));
    }
    if let Some(status) = &model.status {
        let (traffic, limits) = (&status.traffic, status.traffic.limits);
        let of =
            |now: u64, limit: u64| format!("{} of {}", output::number(now), output::number(limit));
        parts.push(format!(
            "TCP {}, UDP {}",
            of(traffic.connections, limits.connections),
            of(traffic.associations, limits.associations)
        ));
    }
    parts.push(match state.paused {
        true => "PAUSED".into(),
        false => format!("every {}", interval(state.interval)),
    });
    if let Some(drops) = model.down_drops {
        let down = if drops { "dropped" } else { "direct" };
        parts.push(format!("without a proxy: {down}"));
    }
    parts
}

fn interval(interval: Duration) -> String {
    format!("{} s", interval.as_secs_f64())
}

/// The parts in lines.
fn wrapped(parts: &[String], width: usize) -> Vec<String> {
    const BETWEEN: &str = " | ";
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.width() + BETWEEN.len() + part.width() <= width => {
                line.push_str(BETWEEN);
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

/// What a person should know.
fn notices(state: &State) -> Vec<String> {
    let Model {
        presence,
        status,
        down_drops,
        ..
    } = &state.model;
    let mut notices = Vec::new();
    let down = match down_drops {
        None => "nothing is attached",
        Some(true) => "new traffic is dropped",
        Some(false) => "new traffic goes direct",
    };
    let shown = match status {
        None => "these are the kernel's counters",
        Some(_) => "these are its last values",
    };
    match presence {
        Presence::Unknown | Presence::Here => {}
        Presence::None => notices.push(format!("no proxy runs: {down}; {shown}")),
        Presence::Silent(pid, error) => {
            notices.push(format!("proxy {pid} does not answer; {shown}: {error}"));
        }
    }
    if let Some(error) = &state.model.kernel_error {
        notices.push(error.clone());
    }
    let Some(status) = status.as_ref().filter(|_| *presence == Presence::Here) else {
        return notices;
    };
    if let Some(left) = status.trial_seconds {
        notices.push(format!(
            "on trial: the configuration holds for {left} s more; `tproxy-bpf confirm` keeps it"
        ));
    }
    for old in &status.draining {
        notices.push(format!(
            "draining: process {}, which was taken over from: {} connections, {} associations",
            old.pid, old.connections, old.associations
        ));
    }
    notices
}

fn tabs(pen: &mut Pen<'_>, state: &State, theme: Theme) {
    let y = pen.area.y;
    pen.line("", Style::new());
    if y >= pen.area.bottom() {
        return;
    }
    let (left, right) = (pen.area.x, pen.area.right());
    let mut x = left;
    for (index, view) in View::ALL.into_iter().enumerate() {
        let style = match view == state.view() {
            true => theme.title().add_modifier(Modifier::REVERSED),
            false => Style::new(),
        };
        let text = format!("{} {}", index + 1, view.title());
        let room = usize::from(right.saturating_sub(x));
        x = pen.buffer.set_stringn(x, y, &text, room, style).0 + 2;
    }
    let mut text = match state.count() {
        1 => "1 row".to_owned(),
        rows => format!("{} rows", output::number(rows as u64)),
    };
    if !state.filter().is_empty() && state.mode != Mode::Filter {
        text = format!("{text} with \"{}\"", state.filter());
    }
    let width = text.width();
    if usize::from(x) + width <= usize::from(right) {
        let x = right - u16::try_from(width).unwrap_or(right);
        pen.buffer.set_stringn(x, y, &text, width, Style::new());
    }
}

fn footer(pen: &mut Pen<'_>, state: &State, theme: Theme) {
    match (&state.mode, &state.notice) {
        (Mode::Filter, _) => pen.last(&format!("filter: {}_", state.filter()), theme.title()),
        (Mode::Question { flow, what }, _) => {
            pen.last(&format!("end flow {flow}, {what}? y/N"), theme.warning());
        }
        (Mode::Help, _) => pen.last("any key goes back", theme.title()),
        (Mode::Normal, Some(notice)) => pen.last(notice, theme.warning()),
        (Mode::Normal, None) if !state.filter().is_empty() => {
            let text = format!("only rows with \"{}\"; Esc shows all", state.filter());
            pen.last(&text, theme.title());
        }
        (Mode::Normal, None) => pen.last(KEYS, theme.title()),
    }
}

/// All of the chosen row that may not be seen in it.
fn details(state: &State) -> Option<String> {
    let Row::Flow(index) = state.chosen()? else {
        return None;
    };
    let flow = &state.model.flows[*index].status;
    let name = flow.name.as_deref().unwrap_or("no name");
    let rule = flow.rule.as_deref().unwrap_or("none");
    Some(format!(
        "flow {}: {} {} → {} ({name}), {}, rule {rule}, up {}, down {}",
        flow.id,
        protocol_word(flow.protocol),
        canonical(flow.client),
        canonical(flow.destination),
        way(flow),
        output::bytes(flow.bytes.up),
        output::bytes(flow.bytes.down)
    ))
}

/// What stands in the columns of the rows.
fn cells<'m>(rows: &'m [Row], columns: &[Column], model: &'m Model) -> Vec<Vec<Value<'m>>> {
    let of = |row: &'m Row| columns.iter().map(|column| row.value(model, *column));
    rows.iter().map(|row| of(row).collect()).collect()
}

fn rows(pen: &mut Pen<'_>, state: &mut State, theme: Theme) {
    let (view, (sorted, reverse)) = (state.view(), state.order());
    let stale = state.model.is_stale() && view != View::Counters;
    let heading = pen.area;
    pen.line("", Style::new());
    // The rows of the window are borrowed from the state, and so is the model.
    let (seen, chosen) = state.window(usize::from(pen.area.height));
    let seen: Vec<Row> = seen.to_vec();
    let model = &state.model;
    let columns = view.columns();
    let cells = cells(&seen, columns, model);
    let widths = widths(
        columns,
        &natural(columns, &cells),
        Some(usize::from(heading.width)),
    );
    let titles: Vec<String> = columns
        .iter()
        .map(|column| {
            let title = column.layout().title;
            match *column == sorted {
                true => format!("{title}{}", if reverse { '▲' } else { '▼' }),
                false => title.to_owned(),
            }
        })
        .collect();
    let mut top = Pen {
        buffer: &mut *pen.buffer,
        area: heading,
    };
    let titles = titles.iter().map(|title| title.as_str().into());
    top.line(&line(columns, &widths, titles), theme.title());
    for (index, (row, cells)) in seen.iter().zip(&cells).enumerate() {
        let mut style = match row.is_bad(model) {
            true => theme.bad(),
            false => Style::new(),
        };
        if stale {
            style = Style::new().add_modifier(Modifier::DIM);
        }
        let text = line(columns, &widths, cells.iter().map(|cell| cell.text()));
        if chosen == Some(index) {
            style = style.add_modifier(Modifier::REVERSED);
            pen.line(&fit(&text, usize::from(heading.width), true), style);
        } else {
            pen.line(&text, style);
        }
    }
}

/// All as plain text, with all rows and columns.
pub fn text(state: &mut State) -> String {
    let mut text = String::new();
    let mut add = |line: &str| {
        text.push_str(line.trim_end());
        text.push('\n');
    };
    let parts = header(state);
    // It is taken once, so how often is not said.
    let parts: Vec<_> = parts
        .into_iter()
        .filter(|part| !part.starts_with("every "))
        .collect();
    add(&parts.join(" | "));
    for notice in notices(state) {
        add(&notice);
    }
    let columns = state.view().columns();
    let all = state.window(usize::MAX).0.to_vec();
    let model = &state.model;
    let cells = cells(&all, columns, model);
    let widths = widths(columns, &natural(columns, &cells), None);
    let titles = columns.iter().map(|column| column.layout().title.into());
    add(&line(columns, &widths, titles));
    for cells in &cells {
        add(&line(
            columns,
            &widths,
            cells.iter().map(|cell| cell.text()),
        ));
    }
    text
}
