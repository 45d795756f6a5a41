//! Columns in the room that there is.

use std::borrow::Cow;

use unicode_width::UnicodeWidthStr;

use super::super::columns::{Column, Value};

/// Between two columns.
const GAP: usize = 1;

/// How wide each column would be to show all of its cells, and its heading with the mark of the order.
pub fn natural(columns: &[Column], cells: &[Vec<Value<'_>>]) -> Vec<usize> {
    let of_column = |(index, column): (usize, &Column)| {
        let cells = cells.iter().map(|cells| cells[index].text().width());
        let title = column.layout().title.width();
        cells.max().unwrap_or(0).max(title)
    };
    columns.iter().enumerate().map(of_column).collect()
}

/// The width of each column; None: there is no room for it. Without a limit there is as much as is needed.
pub fn widths(
    columns: &[Column],
    natural: &[usize],
    available: Option<usize>,
) -> Vec<Option<usize>> {
    let Some(available) = available else {
        return natural.iter().copied().map(Some).collect();
    };
    let mut widths: Vec<Option<usize>> = columns
        .iter()
        .map(|column| Some(column.layout().least))
        .collect();
    let used = |widths: &[Option<usize>]| {
        let shown = widths.iter().flatten();
        shown.clone().sum::<usize>() + GAP * shown.count().saturating_sub(1)
    };
    while used(&widths) > available {
        let shown = (0..columns.len()).filter(|index| widths[*index].is_some());
        let least_needed = shown.max_by_key(|index| columns[*index].layout().goes);
        match least_needed.filter(|index| columns[*index].layout().goes > 0) {
            Some(index) => widths[index] = None,
            None => break,
        }
    }
    let mut rest = available.saturating_sub(used(&widths));
    let mut grow = |index: usize, most: usize| {
        if let Some(width) = &mut widths[index] {
            let more = rest.min(most.saturating_sub(*width));
            *width += more;
            rest -= more;
        }
    };
    // First who needs little to be whole, and last what takes all that is left.
    let mut order: Vec<usize> = (0..columns.len()).collect();
    let missing = |index: usize| {
        let layout = columns[index].layout();
        natural[index].min(layout.most).saturating_sub(layout.least)
    };
    order.sort_by_key(|index| missing(*index));
    for index in order {
        if !columns[index].layout().fills {
            grow(index, natural[index].min(columns[index].layout().most));
        }
    }
    for (index, column) in columns.iter().enumerate() {
        if column.layout().fills {
            grow(index, usize::MAX);
        }
    }
    widths
}

/// One line of cells.
pub fn line<'c>(
    columns: &[Column],
    widths: &[Option<usize>],
    cells: impl Iterator<Item = Cow<'c, str>>,
) -> String {
    let mut text = String::new();
    let shown = columns.iter().zip(widths).zip(cells);
    let shown = shown.filter_map(|((column, width), cell)| Some((column, (*width)?, cell)));
    for (index, (column, width, cell)) in shown.enumerate() {
        if index > 0 {
            text.push_str(&" ".repeat(GAP));
        }
        let cell = fit(&cell, width, false);
        let pad = " ".repeat(width.saturating_sub(cell.width()));
        match column.layout().right {
            true => text.extend([&*pad, &*cell]),
            false => text.extend([&*cell, &*pad]),
        }
    }
    text
}

/// A text in so many columns of a terminal: what is too long ends with an ellipsis, and on demand what is too short with
/// spaces.
pub fn fit(text: &str, width: usize, pad: bool) -> Cow<'_, str> {
    let has = text.width();
    if has <= width {
        return match pad && has < width {
            true => format!("{text}{}", " ".repeat(width - has)).into(),
            false => text.into(),
        };
    }
    if width == 0 {
        return "".into();
    }
    let mut cut = String::new();
    for letter in text.chars() {
        cut.push(letter);
        // Letters may have another width together than each of them.
        if cut.width() > width - 1 {
            cut.pop();
            break;
        }
    }
    cut.push('…');
    // Where a wide letter found no room there is a column left.
    if pad {
        cut.push_str(&" ".repeat(width.saturating_sub(cut.width())));
    }
    cut.into()
}
