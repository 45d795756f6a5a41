//! Figures and what is made of them.

use std::{collections::BTreeMap, fs};

use crate::{
    kernel, lists,
    options::Options,
    rows::{Bound, Metric, Row, Target},
    ways::Way,
};

/// Everything.
pub struct Results {
    /// How often each figure was taken.
    pub rounds: u32,
    /// The length of a run.
    pub seconds: u32,
    /// What was compared.
    pub ways: Vec<&'static Way>,
    /// The machine.
    pub machine: Machine,
    /// In the order of the table.
    pub rows: Vec<RowResult>,
    /// The programs alone.
    pub kernel: Vec<kernel::CaseResult>,
    /// Large lists.
    pub lists: Vec<lists::Line>,
    /// What looking costs.
    pub top: Vec<lists::Line>,
}

impl Results {
    /// Nothing measured yet.
    pub fn new(options: &Options, ways: &[&'static Way]) -> Self {
        Self {
            rounds: options.rounds(),
            seconds: options.seconds(),
            ways: ways.to_vec(),
            machine: Machine::this(),
            rows: Vec::new(),
            kernel: Vec::new(),
            lists: Vec::new(),
            top: Vec::new(),
        }
    }

    /// Where the figures are from, in a line.
    pub fn source(&self) -> String {
        format!(
            "Linux {}, {} cores; {} rounds of {} s each, medians",
            self.machine.kernel, self.machine.cores, self.rounds, self.seconds
        )
    }

    /// Rows that were measured elsewhere.
    #[cfg(test)]
    pub fn with(ways: &[&'static Way], rows: Vec<RowResult>) -> Self {
        use clap::Parser;
        let options = Options::parse_from(["bench"]);
        Self {
            rows,
            ..Self::new(&options, ways)
        }
    }
}

/// Where it was measured.
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// How many cores.
    pub cores: usize,
    /// The load of the last minute, before the first run.
    pub load: f64,
}

impl Machine {
    fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or_default(),
        }
    }
}

/// The figures of one row.
pub struct RowResult {
    /// The row.
    pub row: &'static Row,
    /// How often it was measured.
    pub rounds: u32,
    /// In the order they first came.
    pub metrics: Vec<&'static Metric>,
    /// Metric and way to figures by round.
    samples: BTreeMap<(&'static str, &'static str), BTreeMap<u32, f64>>,
    /// Way, and why a run failed.
    pub failures: Vec<(&'static str, String)>,
}

impl RowResult {
    /// Nothing measured yet.
    pub fn new(row: &'static Row) -> Self {
        Self {
            row,
            rounds: 0,
            metrics: Vec::new(),
            samples: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    /// Notes a figure.
    pub fn add(&mut self, metric: &'static Metric, way: &'static Way, round: u32, value: f64) {
        if !self.metrics.iter().any(|known| known.name == metric.name) {
            self.metrics.push(metric);
        }
        self.samples
            .entry((metric.name, way.name))
            .or_default()
            .insert(round, value);
    }

    /// Notes a run that gave none.
    pub fn fail(&mut self, way: &'static Way, round: u32, error: &anyhow::Error) {
        self.failures
            .push((way.name, format!("round {}: {error:#}", round + 1)));
    }

    /// The ways that have figures or failures here.
    pub fn has(&self, way: &str) -> bool {
        self.samples.keys().any(|(_, name)| *name == way)
            || self.failures.iter().any(|(name, _)| *name == way)
    }

    /// All figures of one kind, by round.
    pub fn samples(&self, metric: &Metric, way: &'static str) -> Vec<f64> {
        self.samples
            .get(&(metric.name, way))
            .map(|samples| samples.values().copied().collect())
            .unwrap_or_default()
    }

    /// Their median.
    pub fn median(&self, metric: &Metric, way: &'static str) -> Option<f64> {
        median(self.samples(metric, way))
    }

    /// Each round's ratio to the way that this row compares with, in the same round.
    pub fn ratios(&self, metric: &Metric, way: &'static str) -> Vec<f64> {
        self.ratios_to(self.row.subject().base(), metric, way)
    }

    /// Each round's figure less that of the way that this row compares with, in the same round.
    pub fn differences(&self, metric: &Metric, way: &'static str) -> Vec<f64> {
        self.beside(self.row.subject().base(), metric, way)
            .map(|(value, base)| value - base)
            .collect()
    }

    /// Their median.
    pub fn difference(&self, metric: &Metric, way: &'static str) -> Option<f64> {
        median(self.differences(metric, way))
    }

    /// Each round's ratio to this other way, in the same round.
    fn ratios_to(&self, base: &'static str, metric: &Metric, way: &'static str) -> Vec<f64> {
        self.beside(base, metric, way)
            .map(|(value, base)| value / base)
            .collect()
    }

    /// The figures of a way and of another, of the rounds that both have.
    fn beside(
        &self,
        base: &'static str,
        metric: &Metric,
        way: &'static str,
    ) -> impl Iterator<Item = (f64, f64)> {
        let of = |way| self.samples.get(&(metric.name, way));
        let base = of(base);
        of(way)
            .into_iter()
            .flatten()
            .filter_map(move |(round, value)| Some((*value, *base?.get(round)?)))
    }

    /// Their median.
    pub fn ratio(&self, metric: &Metric, way: &'static str) -> Option<f64> {
        median(self.ratios(metric, way))
    }

    /// The ratio of what this row's ways are compared in.
    pub fn compared(&self, way: &'static str) -> Option<f64> {
        let metric = self.metrics.iter().find(|metric| metric.compared)?;
        self.ratio(metric, way)
    }

    /// The targets that can be judged.
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.row
            .targets
            .iter()
            .filter_map(|target| {
                let figures = match target.bound {
                    Bound::Ratio(_) => self.ratios(target.metric, target.way),
                    Bound::Most(_) => self.samples(target.metric, target.way),
                    Bound::Added(_) => self.differences(target.metric, target.way),
                    Bound::NotBelow(other) | Bound::NotAbove(other) => {
                        self.ratios_to(other, target.metric, target.way)
                    }
                };
                let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
                let most = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let figure = median(figures)?;
                Some(Verdict {
                    target,
                    figure,
                    range: (least, most),
                    reached: match target.bound {
                        Bound::Ratio(bound) => figure >= bound,
                        Bound::Most(bound) | Bound::Added(bound) => figure <= bound,
                        Bound::NotBelow(_) => figure >= 1.0,
                        Bound::NotAbove(_) => figure <= 1.0,
                    },
                })
            })
            .collect()
    }
}

/// Whether a target is reached.
pub struct Verdict {
    /// What was promised.
    pub target: &'static Target,
    /// The median.
    pub figure: f64,
    /// The least and the most of all rounds: how much the median is worth.
    pub range: (f64, f64),
    /// Is the median good enough?
    pub reached: bool,
}

/// The middle one, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) {
        (values[middle - 1] + upper) / 2.0
    } else {
        upper
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rows::{FILES, GBIT, P50, RATE, ROWS},
        ways::{BYPASSED, PLAIN, PROXIED, WAYS},
    };

    fn way(name: &str) -> &'static Way {
        WAYS.iter().find(|way| way.name == name).expect("a way")
    }

    /// Figures of a row by way, one for each round.
    fn row(name: &str, metric: &'static Metric, figures: &[(&str, &[f64])]) -> RowResult {
        let mut result = RowResult::new(ROWS.iter().find(|row| row.name == name).expect("a row"));
        for (name, samples) in figures {
            for (round, sample) in samples.iter().enumerate() {
                result.add(metric, way(name), round as u32, *sample);
            }
        }
        result
    }

    fn verdict(result: &RowResult, way: &str) -> (f64, bool) {
        let verdicts = result.verdicts();
        let verdict = verdicts.iter().find(|verdict| verdict.target.way == way);
        verdict
            .map(|verdict| (verdict.figure, verdict.reached))
            .expect("a verdict")
    }

    #[test]
    fn what_is_added_is_counted_in_the_same_round() {
        // 110 µs is what is allowed. The difference of the medians would be 150.
        let plain: &[f64] = &[50.0, 250.0, 60.0];
        let within = row(
            "connections-1",
            &P50,
            &[(PLAIN, plain), (PROXIED, &[160.0, 350.0, 210.0])],
        );
        assert_eq!(verdict(&within, PROXIED), (110.0, true));
        let above = row(
            "connections-1",
            &P50,
            &[(PLAIN, plain), (PROXIED, &[161.0, 361.0, 171.0])],
        );
        assert_eq!(verdict(&above, PROXIED), (111.0, false));
    }

    #[test]
    fn a_round_without_the_base_does_not_count() {
        let mut result = row("udp-trips-1", &P50, &[(PROXIED, &[500.0, 70.0])]);
        assert!(result.verdicts().is_empty());
        result.add(&P50, way(PLAIN), 1, 20.0);
        assert_eq!(result.differences(&P50, PROXIED), [50.0]);
        assert_eq!(verdict(&result, PROXIED), (50.0, true));
    }

    #[test]
    fn a_ratio_that_is_just_enough_is_enough() {
        for (proxied, bypassed, reached) in [(70.0, 98.0, true), (69.9, 97.9, false)] {
            let result = row(
                "tcp-1-up",
                &GBIT,
                &[
                    (PLAIN, &[100.0]),
                    (PROXIED, &[proxied]),
                    (BYPASSED, &[bypassed]),
                ],
            );
            assert_eq!(verdict(&result, PROXIED).1, reached);
            assert_eq!(verdict(&result, BYPASSED).1, reached);
        }
    }

    #[test]
    fn a_row_that_is_compared_with_nothing_is_judged_by_its_own_figures() {
        let enough = row("idle-5000", &FILES, &[(PROXIED, &[2.0])]);
        assert_eq!(verdict(&enough, PROXIED), (2.0, true));
        let more = row("idle-5000", &FILES, &[(PROXIED, &[2.01])]);
        assert!(!verdict(&more, PROXIED).1);
        assert!(row("udp-paced", &RATE, &[]).verdicts().is_empty());
    }
}
