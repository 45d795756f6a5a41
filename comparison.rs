//! Ours beside other programs in one table: a line for a figure of a row, a column for a way.

use std::fmt::{self, Display};

use serde_json::{Value, json};

use crate::{
    results::{RowResult, median},
    rows::{CPU, FILES, GBIT, KIB_EACH, LOST, Metric, P50, RATE, REST, Row, Work},
    ways::{Client, PLAIN, Subject, Way},
};

/// What a line shows of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Shown {
    /// Its ratio to plain forwarding.
    Ratio(&'static Metric),
    /// How much it is above that of plain forwarding.
    Added(&'static Metric),
    /// Itself.
    Figure(&'static Metric),
}

impl Shown {
    /// The head of the line.
    fn title(self) -> String {
        match self {
            Self::Ratio(metric) => format!("{}, ratio", metric.title),
            Self::Added(metric) => format!("{}, added", metric.title),
            Self::Figure(metric) => metric.title.to_owned(),
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Ratio(_) => 2,
            Self::Added(metric) | Self::Figure(metric) => metric.digits,
        }
    }

    fn of(self, result: &RowResult, way: &'static str) -> Option<f64> {
        match self {
            Self::Ratio(metric) => result.ratio(metric, way),
            Self::Added(metric) => median(result.differences(metric, way)),
            Self::Figure(metric) => result.median(metric, way),
        }
    }
}

/// One line.
#[derive(Debug)]
pub struct Line {
    /// The row that it is of.
    pub row: &'static Row,
    /// What it shows.
    pub shown: Shown,
    /// One for each way; nothing where the row is not measured for it.
    pub cells: Vec<Option<f64>>,
}

/// All of them.
#[derive(Debug)]
pub struct Table {
    /// The ways, in the order of the columns.
    pub ways: Vec<&'static Way>,
    /// The lines, in the order of the rows.
    pub lines: Vec<Line>,
}

impl Table {
    /// Of the rows that another program takes part in. It is empty where none does.
    pub fn new(results: &[RowResult], ways: &[&'static Way]) -> Self {
        let ways: Vec<_> = ways
            .iter()
            .copied()
            .filter(|way| way.name != PLAIN && way.subjects.contains(&Subject::Forwarding))
            .filter(|way| way.clients.contains(&Client::Device))
            .collect();
        let mut lines = Vec::new();
        for result in results {
            let rivals = ways.iter().filter(|way| way.is_rival());
            if !rivals.into_iter().any(|way| result.has(way.name)) {
                continue;
            }
            for shown in shown(result.row) {
                let cells = ways.iter().map(|way| shown.of(result, way.name)).collect();
                lines.push(Line {
                    row: result.row,
                    shown: *shown,
                    cells,
                });
            }
        }
        Self { ways, lines }
    }

    /// The same for programs.
    pub fn json(&self) -> Vec<Value> {
        let line = |line: &Line| {
            let cells = self.ways.iter().zip(&line.cells);
            json!({
                "row": line.row.name,
                "shown": line.shown.title(),
                "ways": cells
                    .map(|(way, cell)| (way.name.to_owned(), json!(cell)))
                    .collect::<serde_json::Map<_, _>>(),
            })
        };
        self.lines.iter().map(line).collect()
    }
}

/// The lines of a row.
fn shown(row: &Row) -> &'static [Shown] {
    match row.work {
        Work::Tcp { .. } => &const { [Shown::Ratio(&GBIT), Shown::Figure(&CPU)] },
        Work::Connections { at_once: 1 } | Work::RoundTrips { in_flight: 1 } => {
            &const { [Shown::Added(&P50)] }
        }
        Work::Connections { .. } | Work::RoundTrips { .. } | Work::OneWay { .. } => {
            &const { [Shown::Ratio(&RATE), Shown::Figure(&LOST)] }
        }
        Work::Idle { .. } => {
            &const {
                [
                    Shown::Figure(&REST),
                    Shown::Figure(&KIB_EACH),
                    Shown::Figure(&FILES),
                ]
            }
        }
        Work::Outbound { .. } | Work::Requests { .. } | Work::Questions { .. } => &[],
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ROW: usize = 16;
        const SHOWN: usize = 20;
        let width = |way: &Way| way.name.len().max(8) + 2;
        let mut head = format!("{:<ROW$}{:<SHOWN$}", "", "");
        for way in &self.ways {
            head += &format!("{:>1$}", way.name, width(way));
        }
        writeln!(f, "{head}")?;
        let mut last = "";
        for line in &self.lines {
            // A row is named once.
            let name = if line.row.name == last {
                ""
            } else {
                line.row.name
            };
            last = line.row.name;
            write!(f, "{name:<ROW$}{:<SHOWN$}", line.shown.title())?;
            for (way, cell) in self.ways.iter().zip(&line.cells) {
                let cell = cell.map_or_else(
                    || "-".to_owned(),
                    |figure| format!("{figure:.*}", line.shown.digits()),
                );
                write!(f, "{cell:>0$}", width(way))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rows::ROWS, ways::WAYS};

    fn way(name: &str) -> &'static Way {
        WAYS.iter().find(|way| way.name == name).expect("a way")
    }

    fn result(row: &str, figures: &[(&'static Metric, &str, f64)]) -> RowResult {
        let row = ROWS.iter().find(|other| other.name == row).expect("a row");
        let mut result = RowResult::new(row);
        for (metric, name, value) in figures {
            result.add(metric, way(name), 0, *value);
        }
        result
    }

    fn table() -> Table {
        let results = [
            result(
                "tcp-1-up",
                &[
                    (&GBIT, PLAIN, 20.0),
                    (&GBIT, "proxied", 15.0),
                    (&CPU, "proxied", 0.125),
                    (&GBIT, "haproxy", 10.0),
                ],
            ),
            result(
                "udp-trips-1",
                &[
                    (&P50, PLAIN, 20.0),
                    (&P50, "proxied", 75.5),
                    (&P50, "v2ray", 120.0),
                ],
            ),
            result(
                "tcp6-1-up",
                &[(&GBIT, PLAIN, 20.0), (&GBIT, "proxied", 15.0)],
            ),
        ];
        let ways = [PLAIN, "proxied", "own-proxied", "v2ray", "haproxy"].map(way);
        Table::new(&results, &ways)
    }

    #[test]
    fn a_line_has_a_cell_for_each_way() {
        let table = table();
        let names: Vec<&str> = table.ways.iter().map(|way| way.name).collect();
        assert_eq!(names, ["proxied", "v2ray", "haproxy"]);
        let cells: Vec<_> = table
            .lines
            .iter()
            .map(|line| (line.row.name, line.shown.title(), line.cells.clone()))
            .collect();
        assert_eq!(
            cells,
            [
                (
                    "tcp-1-up",
                    "Gbit/s, ratio".to_owned(),
                    vec![Some(0.75), None, Some(0.5)]
                ),
                (
                    "tcp-1-up",
                    "CPU s/GiB".to_owned(),
                    vec![Some(0.125), None, None]
                ),
                (
                    "udp-trips-1",
                    "p50 µs, added".to_owned(),
                    vec![Some(55.5), Some(100.0), None]
                ),
            ]
        );
    }

    #[test]
    fn it_is_aligned_and_names_a_row_once() {
        let text = table().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].ends_with("proxied     v2ray   haproxy"), "{text}");
        assert!(lines[1].starts_with("tcp-1-up "), "{text}");
        assert!(lines[1].ends_with("0.75         -      0.50"), "{text}");
        assert!(lines[2].starts_with("    "), "{text}");
        let widths = lines.iter().map(|line| line.chars().count());
        assert!(widths.clone().all(|width| Some(width) == widths.clone().next()));
    }

    #[test]
    fn programs_read_the_same() {
        let json = table().json();
        assert_eq!(json[0]["row"], "tcp-1-up");
        assert_eq!(json[0]["ways"]["haproxy"], 0.5);
        assert!(json[0]["ways"]["v2ray"].is_null());
    }
}
