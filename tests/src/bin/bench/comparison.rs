//! Ours and other programs in one table.

use std::fmt::Write;

use crate::{
    results::Results,
    rows::{CPU, CPU_EACH, FILES, GBIT, KIB, LOST, Metric, P50, RATE, Work},
    ways::{Client, Subject},
};

/// The columns are ways, of which each has a figure in a line or none.
pub struct Comparison {
    /// The heads of the columns.
    pub ways: Vec<&'static str>,
    /// One below the other.
    pub lines: Vec<Line>,
}

/// A figure of each way.
pub struct Line {
    /// What was done.
    pub title: &'static str,
    /// Which figure it is.
    pub what: What,
    /// In the order of the columns.
    pub figures: Vec<Option<f64>>,
}

/// Kinds of figures.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// The ratio to plain forwarding.
    Ratio,
    /// The median time above that of plain forwarding, in microseconds.
    Added,
    /// The figure itself.
    Itself(&'static Metric),
}

impl What {
    const fn title(self) -> &'static str {
        match self {
            Self::Ratio => "ratio to plain",
            Self::Added => "p50 above plain, µs",
            Self::Itself(metric) => metric.title,
        }
    }

    const fn digits(self) -> usize {
        match self {
            Self::Ratio => 2,
            Self::Added => 0,
            Self::Itself(metric) => metric.digits,
        }
    }
}

impl Comparison {
    /// What was measured of ways that relay what devices send.
    pub fn of(results: &Results) -> Self {
        let ways: Vec<&'static str> = results
            .ways
            .iter()
            .filter(|way| way.relays && way.subjects.contains(&Subject::Forwarding))
            .filter(|way| way.clients == [Client::Device])
            .map(|way| way.name)
            .collect();
        let mut lines = Vec::new();
        let rows = results.rows.iter().filter(|result| {
            result.row.subject() == Subject::Forwarding && result.row.client == Client::Device
        });
        for result in rows {
            let mut add = |what, figure: &dyn Fn(&'static str) -> Option<f64>| {
                let figures: Vec<_> = ways.iter().map(|way| figure(way)).collect();
                if figures.iter().any(Option::is_some) {
                    let title = result.row.title;
                    lines.push(Line {
                        title,
                        what,
                        figures,
                    });
                }
            };
            let alone = matches!(
                result.row.work,
                Work::Connections { at_once: 1 } | Work::RoundTrips { in_flight: 1 }
            );
            for metric in &result.metrics {
                let is = |other: &Metric| metric.name == other.name;
                if (is(&GBIT) || is(&RATE))
                    && !alone
                    && !matches!(result.row.work, Work::OneWay { rate: Some(_) })
                {
                    // One way, both are the same.
                    if is(&RATE) && result.metrics.iter().any(|one| one.name == GBIT.name) {
                        continue;
                    }
                    add(What::Ratio, &|way| result.ratio(metric, way));
                } else if is(&P50) && alone {
                    add(What::Added, &|way| result.added_median(metric, way));
                } else if [&CPU, &CPU_EACH, &KIB, &FILES].into_iter().any(is) {
                    add(What::Itself(metric), &|way| result.median(metric, way));
                } else if is(&LOST) && matches!(result.row.work, Work::OneWay { .. }) {
                    add(What::Itself(metric), &|way| result.median(metric, way));
                }
            }
        }
        Self { ways, lines }
    }

    /// As a table of Markdown, which is good to read by itself.
    pub fn table(&self) -> String {
        let mut cells: Vec<Vec<String>> = vec![
            ["", ""]
                .into_iter()
                .chain(self.ways.iter().copied())
                .map(str::to_owned)
                .collect(),
        ];
        let mut last = "";
        for line in &self.lines {
            let title = if line.title == last { "" } else { line.title };
            last = line.title;
            let figures = line.figures.iter().map(|figure| match figure {
                Some(figure) => format!("{figure:.*}", line.what.digits()),
                None => "–".to_owned(),
            });
            let words = [title.to_owned(), line.what.title().to_owned()];
            cells.push(words.into_iter().chain(figures).collect());
        }
        let width = |column: usize| {
            let lengths = cells.iter().map(|line| line[column].chars().count());
            lengths.max().unwrap_or(0).max(3)
        };
        let widths: Vec<usize> = (0..2 + self.ways.len()).map(width).collect();
        let mut table = String::new();
        for (number, line) in cells.iter().enumerate() {
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(table, "| {cell:<width$} ");
            }
            table += "|\n";
            if number == 0 {
                for width in &widths {
                    let _ = write!(table, "|{}", "-".repeat(width + 2));
                }
                table += "|\n";
            }
        }
        table
    }
}

/// Two ways, a line of ratios and one of something else.
#[cfg(test)]
pub fn example() -> Comparison {
    Comparison {
        ways: vec!["proxied", "a <peer>"],
        lines: vec![
            Line {
                title: "TCP & more",
                what: What::Ratio,
                figures: vec![Some(0.789), Some(1.5)],
            },
            Line {
                title: "TCP & more",
                what: What::Itself(&CPU),
                figures: vec![Some(0.1), None],
            },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_stands_once_and_what_is_missing_is_a_dash() {
        assert_eq!(
            example().table(),
            "|            |                | proxied | a <peer> |\n\
             |------------|----------------|---------|----------|\n\
             | TCP & more | ratio to plain | 0.79    | 1.50     |\n\
             |            | CPU s/GiB      | 0.100   | –        |\n"
        );
    }
}
