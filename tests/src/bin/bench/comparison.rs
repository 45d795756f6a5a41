//! All ways beside each other: a line a row, a column a way. What the table, the JSON and the picture are made of.

use serde_json::{Value, json};

use crate::{
    results::{Results, RowResult},
    rows::{CPU, KIB_EACH, LOST, P50},
    ways::{Client, Subject, Way},
};

/// What one way did in one row. Medians.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cell {
    /// The ratio to plain forwarding, of what the row measures first.
    pub ratio: Option<f64>,
    /// CPU seconds of who relays, for a GiB.
    pub cpu: Option<f64>,
    /// Microseconds above plain forwarding, of the median time.
    pub added: Option<f64>,
    /// Percent.
    pub lost: Option<f64>,
    /// KiB for each connection.
    pub kib: Option<f64>,
}

impl Cell {
    fn of(result: &RowResult, way: &Way) -> Self {
        Self {
            ratio: result.compared(way.name),
            cpu: result.median(&CPU, way.name),
            added: result.difference(&P50, way.name),
            lost: result.median(&LOST, way.name),
            kib: result.median(&KIB_EACH, way.name),
        }
    }

    /// In a few words; what is not there, and a loss of nothing, is left out.
    pub fn text(&self) -> String {
        let lost = self.lost.filter(|lost| *lost >= 0.005);
        let parts = [
            self.ratio.map(|ratio| format!("{ratio:.2}")),
            self.cpu.map(|cpu| format!("{cpu:.2} s/GiB")),
            self.added.map(|added| format!("{added:+.0} µs")),
            lost.map(|lost| format!("{lost:.2} % lost")),
            self.kib.map(|kib| format!("{kib:.1} KiB each")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            "failed".to_owned()
        } else {
            parts.join(", ")
        }
    }
}

/// One row.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// One for each way; none for a way that does not do what the row is about.
    pub cells: Vec<Option<Cell>>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The heads of the columns. Plain forwarding, which all is compared with, has none.
    pub ways: Vec<&'static Way>,
    /// The lines.
    pub lines: Vec<Line>,
}

impl Comparison {
    /// Of the rows about what devices send through the gateway.
    pub fn of(results: &Results) -> Self {
        let ways: Vec<&'static Way> = results
            .ways
            .iter()
            .copied()
            .filter(|way| way.subjects == [Subject::Forwarding])
            .filter(|way| way.clients == [Client::Device])
            .collect();
        let lines = results
            .rows
            .iter()
            .filter(|result| result.row.subject() == Subject::Forwarding)
            .filter(|result| result.row.client == Client::Device)
            .map(|result| Line {
                name: result.row.name,
                title: result.row.title,
                cells: ways
                    .iter()
                    .map(|way| result.has(way.name).then(|| Cell::of(result, way)))
                    .collect(),
            })
            .collect();
        Self { ways, lines }
    }

    /// As a table in Markdown, whose columns stand below each other in a terminal, too.
    pub fn table(&self) -> String {
        let head = std::iter::once("row".to_owned())
            .chain(self.ways.iter().map(|way| way.name.to_owned()))
            .collect();
        let mut rows: Vec<Vec<String>> = vec![head];
        for line in &self.lines {
            let cell = |cell: &Option<Cell>| cell.map_or_else(|| "-".to_owned(), |c| c.text());
            let cells = line.cells.iter().map(cell);
            rows.push(std::iter::once(line.name.to_owned()).chain(cells).collect());
        }
        let widths: Vec<usize> = (0..=self.ways.len())
            .map(|column| {
                let width = |row: &Vec<String>| row[column].chars().count();
                rows.iter().map(width).max().unwrap_or_default()
            })
            .collect();
        let rule = widths.iter().map(|width| "-".repeat(*width)).collect();
        rows.insert(1, rule);
        let mut text = String::new();
        for row in rows {
            for (cell, width) in row.iter().zip(&widths) {
                text += &format!("| {cell:<width$} ");
            }
            text += "|\n";
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Vec<Value> {
        self.lines
            .iter()
            .flat_map(|line| {
                let cells = self.ways.iter().zip(&line.cells);
                cells.filter_map(|(way, cell)| {
                    let cell = (*cell)?;
                    Some(json!({
                        "row": line.name,
                        "way": way.name,
                        "ratio": cell.ratio,
                        "cpu_seconds_per_gib": cell.cpu,
                        "added_us": cell.added,
                        "lost_percent": cell.lost,
                        "kib_per_connection": cell.kib,
                    }))
                })
            })
            .collect()
    }

    /// Is there anything to draw?
    pub fn has_ratios(&self) -> bool {
        let cells = self.lines.iter().flat_map(|line| &line.cells);
        cells.flatten().any(|cell| cell.ratio.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rows::{GBIT, RATE, ROWS},
        ways::{BYPASSED, OWN_PROXIED, PLAIN, PROXIED, WAYS},
    };

    fn way(name: &str) -> &'static Way {
        WAYS.iter().find(|way| way.name == name).expect("a way")
    }

    fn result(name: &str) -> RowResult {
        RowResult::new(ROWS.iter().find(|row| row.name == name).expect("a row"))
    }

    fn results(rows: Vec<RowResult>) -> Results {
        let ways = [PLAIN, BYPASSED, PROXIED, "haproxy", OWN_PROXIED];
        Results::with(&ways.map(way), rows)
    }

    #[test]
    fn each_row_has_a_line_and_each_way_of_devices_a_column() {
        let mut tcp = result("tcp-1-up");
        tcp.add(&GBIT, way(PLAIN), 0, 20.0);
        tcp.add(&GBIT, way(PROXIED), 0, 15.0);
        tcp.add(&CPU, way(PROXIED), 0, 0.123);
        tcp.fail(way("haproxy"), 0, &anyhow::anyhow!("it died"));
        let own = result("own-tcp-up");
        let mut trips = result("udp-trips-1");
        for (way_name, rate, p50, lost) in [(PLAIN, 1000.0, 40.0, 0.0), (PROXIED, 400.0, 95.0, 1.5)]
        {
            trips.add(&RATE, way(way_name), 0, rate);
            trips.add(&P50, way(way_name), 0, p50);
            trips.add(&LOST, way(way_name), 0, lost);
        }
        let comparison = Comparison::of(&results(vec![tcp, own, trips]));
        let table = comparison.table();
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        assert_eq!(lines[0], ["row", BYPASSED, PROXIED, "haproxy"]);
        // Not measured, and measured in vain, are two things.
        assert_eq!(lines[2], ["tcp-1-up", "-", "0.75, 0.12 s/GiB", "failed"]);
        assert_eq!(
            lines[3],
            ["udp-trips-1", "-", "0.40, +55 µs, 1.50 % lost", "-"]
        );
        assert_eq!(lines.len(), 4);
        let json = comparison.json();
        assert_eq!(json.len(), 3);
        assert_eq!(json[2]["added_us"], 55.0);
    }

    #[test]
    fn the_lines_of_a_table_are_of_one_width() {
        let mut trips = result("connections-1");
        trips.add(&P50, way(PLAIN), 0, 40.0);
        trips.add(&P50, way(PROXIED), 0, 140.0);
        let table = Comparison::of(&results(vec![trips, result("idle-5000")])).table();
        let mut widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        widths.dedup();
        assert_eq!(widths.len(), 1, "{table}");
    }
}
