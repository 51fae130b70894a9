//! The result: one value that becomes a table, JSON and a page.
//!
//! Start with [`Report`]. A [`Figure`] is a row with two columns, mostly the gateway and its floor; the ratio of
//! the two is what survives a change of machine.

mod compare;
mod html;
mod machine;
mod plot;
pub mod show;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clawgate::clock::UnixMs;
use serde::{Deserialize, Serialize};

use crate::args::Run;
use crate::stats::{Latencies, Measured, Moment, Piece, median};
use crate::target::Target;

pub use machine::Machine;

/// Version of the JSON's shape.
const SCHEMA: u32 = 1;

/// Everything a run found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this shape.
    pub schema: u32,
    /// The scenario's name.
    pub scenario: String,
    /// What was done, in a line.
    pub title: String,
    /// When it was done, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Where.
    pub machine: Machine,
    /// Options that matter for a comparison, as given.
    pub settings: BTreeMap<String, String>,
    /// What the two columns are.
    pub columns: [String; 2],
    /// The rows.
    pub figures: Vec<Figure>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Latency by percentile.
    pub curves: Vec<Curve>,
    /// What happened over time.
    pub timelines: Vec<Timeline>,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Things a second.
    PerSecond,
    /// Nanoseconds.
    Nanoseconds,
    /// Bytes.
    Bytes,
    /// Bytes an hour.
    BytesPerHour,
    /// Things.
    Count,
    /// Parts of one.
    Share,
}

/// Which way is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
    /// It depends.
    Neither,
}

/// A row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Names the row in comparisons; never changes.
    pub key: String,
    /// Names it for people.
    pub label: String,
    /// What is counted.
    pub unit: Unit,
    /// Which way is up.
    pub better: Better,
    /// A number for each column, as far as there is one.
    pub values: [Option<f64>; 2],
    /// The first column by the second.
    pub ratio: Option<f64>,
    /// The least and the greatest ratio of a round, where there are rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_range: Option<[f64; 2]>,
}

impl Figure {
    /// A row.
    pub fn new(key: &str, label: &str, unit: Unit, better: Better, values: [Option<f64>; 2]) -> Self {
        let ratio = match values {
            [Some(first), Some(second)] if second > 0.0 => Some(first / second),
            _ => None,
        };
        Self { key: key.to_owned(), label: label.to_owned(), unit, better, values, ratio, ratio_range: None }
    }

    /// The same row with the median of the rounds' ratios instead of the ratio of the sums: one disturbed round
    /// moves it less.
    pub fn with_rounds(mut self, ratios: Vec<f64>) -> Self {
        let least = ratios.iter().copied().reduce(f64::min);
        let greatest = ratios.iter().copied().reduce(f64::max);
        self.ratio_range = least.zip(greatest).map(|(least, greatest)| [least, greatest]);
        self.ratio = median(ratios).or(self.ratio);
        self
    }
}

/// Latency by percentile.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// Of what.
    pub name: String,
    /// Quantile (0 to 1) and nanoseconds.
    pub points: Vec<(f64, f64)>,
}

/// What happened over time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timeline {
    /// On which side.
    pub name: String,
    /// Seconds since the beginning and operations a second.
    pub rate: Vec<(f64, f64)>,
    /// Seconds and resident bytes.
    pub resident_bytes: Vec<(f64, f64)>,
    /// Seconds and busy cores.
    pub cores_busy: Vec<(f64, f64)>,
}

impl Timeline {
    /// The timeline that `moments` make.
    pub fn new(name: &str, moments: &[Moment]) -> Self {
        let series = |of: fn(&Moment) -> Option<f64>| {
            moments.iter().filter_map(|moment| Some((moment.at_s, of(moment)?))).collect()
        };
        Self {
            name: name.to_owned(),
            rate: series(|moment| Some(moment.rate)),
            resident_bytes: series(|moment| moment.resident_bytes.map(|bytes| bytes as f64)),
            cores_busy: series(|moment| moment.cores_busy),
        }
    }
}

impl Report {
    /// A report without figures.
    pub fn new(scenario: &str, title: String, target: &Target) -> Self {
        let mut report = Self {
            schema: SCHEMA,
            scenario: scenario.to_owned(),
            title,
            at_ms: UnixMs::now().0,
            machine: Machine::here(),
            settings: BTreeMap::new(),
            columns: ["gateway".to_owned(), "floor".to_owned()],
            figures: Vec::new(),
            notes: Vec::new(),
            curves: Vec::new(),
            timelines: Vec::new(),
        };
        let cores = &target.cores;
        report.set("server cores", format!("{:?}", cores.server));
        report.set("load core", format!("{:?}", cores.client));
        if !cores.are_apart() {
            report.note("server and load share cores: rates and latencies are those of both together".to_owned());
        }
        if target.process.is_none() {
            report.note("the gateway's CPU and memory are not known: give --pid or --spawn".to_owned());
        }
        report
    }

    /// Says an option.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.settings.insert(name.to_owned(), value.to_string());
    }

    /// Says something that a reader should know.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Adds the rows of a contest, whose operations are called `operation`.
    pub fn add_contest(&mut self, operation: &str, gateway: &Measured, floor: Option<&Measured>) {
        use Better::{Higher, Lower, Neither};
        let both = |of: &dyn Fn(&Measured) -> Option<f64>| [of(gateway), floor.and_then(of)];
        let rounds = |of: &dyn Fn(&Piece) -> Option<f64>| {
            let pieces = gateway.pieces.iter().zip(floor.map_or(&[][..], |floor| &floor.pieces));
            pieces.filter_map(|(a, b)| Some(of(a)? / of(b)?)).filter(|ratio| ratio.is_finite()).collect()
        };
        let rate = |it: &Piece| Some(it.operations as f64 / it.seconds);
        let cpu = |it: &Piece| Some(it.usage?.cpu.as_nanos() as f64 / it.operations as f64);
        self.figures.push(
            Figure::new("rate", operation, Unit::PerSecond, Higher, both(&|it| Some(it.rate())))
                .with_rounds(rounds(&rate)),
        );
        self.add_latencies([Some(&gateway.tally.latencies), floor.map(|floor| &floor.tally.latencies)]);
        let per_operation = |it: &Measured, used: f64| used / it.tally.operations.max(1) as f64;
        self.figures.extend([
            Figure::new(
                "cpu",
                &format!("server CPU, each of {operation}"),
                Unit::Nanoseconds,
                Lower,
                both(&|it| Some(per_operation(it, it.usage()?.cpu.as_nanos() as f64))),
            )
            .with_rounds(rounds(&cpu)),
            Figure::new(
                "busy",
                "server CPU, cores busy",
                Unit::Share,
                Neither,
                both(&|it| Some(it.usage()?.cpu.as_secs_f64() / it.seconds())),
            ),
            Figure::new("load-busy", "load CPU, cores busy", Unit::Share, Neither, both(&|it| Some(it.load_busy()))),
            Figure::new(
                "wakeups",
                &format!("server wake-ups, each of {operation}"),
                Unit::Count,
                Lower,
                both(&|it| Some(per_operation(it, it.usage()?.wakeups as f64))),
            ),
            Figure::new(
                "resident",
                "server memory, most resident",
                Unit::Bytes,
                Lower,
                both(&|it| it.peak_bytes().map(|bytes| bytes as f64)),
            ),
            Figure::new(
                "bytes",
                &format!("bytes on the wire, each of {operation}"),
                Unit::Bytes,
                Neither,
                both(&|it| Some(it.bytes_per_operation)),
            ),
            Figure::new("errors", "errors", Unit::Count, Lower, both(&|it| Some(it.tally.errors as f64))),
        ]);
        for (name, side) in self.columns.clone().iter().zip([Some(gateway), floor]) {
            let Some(side) = side else { continue };
            self.timelines.push(Timeline::new(name, &side.moments));
            if let Some(error) = &side.tally.first_error {
                self.note(format!("errors in the column {name}: {}; the first: {error}", side.tally.errors));
            }
        }
    }

    /// Adds the rows and the curves of latencies, one set a column.
    pub fn add_latencies(&mut self, columns: [Option<&Latencies>; 2]) {
        for (key, label, quantile) in [
            ("p50", "latency p50", 0.5),
            ("p90", "latency p90", 0.9),
            ("p99", "latency p99", 0.99),
            ("p99.9", "latency p99.9", 0.999),
        ] {
            let values = columns.map(|it| it.filter(|it| it.count() > 0).map(|it| it.at(quantile)));
            self.figures.push(Figure::new(key, label, Unit::Nanoseconds, Better::Lower, values));
        }
        let values = columns.map(|it| it.filter(|it| it.count() > 0).map(Latencies::max));
        self.figures.push(Figure::new("max", "latency max", Unit::Nanoseconds, Better::Lower, values));
        for (name, latencies) in self.columns.clone().iter().zip(columns) {
            if let Some(latencies) = latencies.filter(|it| it.count() > 0) {
                self.curves.push(Curve { name: name.clone(), points: latencies.curve() });
            }
        }
    }

    /// Whether nothing stands beside the first column.
    fn is_alone(&self) -> bool {
        self.figures.iter().all(|figure| figure.values[1].is_none())
    }

    /// Prints the report and writes the files that were asked for.
    pub fn publish(&self, run: &Run) -> Result<()> {
        let mut text = table::of(self);
        if let Some(path) = &run.compare {
            let base = Self::read(path)?;
            text += "\n";
            text += &compare::of(self, &base, &path.display().to_string());
        }
        if let Some(path) = &run.json {
            let json = serde_json::to_string_pretty(self)?;
            fs::write(path, json + "\n").with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some(path) = &run.html {
            fs::write(path, html::of(self)?).with_context(|| format!("writing {}", path.display()))?;
        }
        std::io::stdout().lock().write_all(text.as_bytes()).context("writing the result")
    }

    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let report: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no result of this program (written with --json)", path.display()))?;
        ensure!(report.schema == SCHEMA, "{} was written by another version of this program", path.display());
        Ok(report)
    }
}
