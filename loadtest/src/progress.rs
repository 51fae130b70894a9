//! The line that says how far a run is, on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::report::show;
use crate::stats::{Moment, Tally};

/// Writes the line, where somebody reads it.
#[derive(Debug)]
pub struct Progress {
    scenario: String,
    /// Which piece of the run it is.
    pub piece: String,
    shown: bool,
    wanted: bool,
    terminal: bool,
    said: Option<Instant>,
}

/// Lines come no faster.
const INTERVAL: Duration = Duration::from_millis(250);

impl Progress {
    /// A line for `scenario`; shown on a terminal, or when `forced`.
    pub fn new(scenario: &str, forced: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let wanted = terminal || forced;
        Self { scenario: scenario.to_owned(), piece: String::new(), shown: false, wanted, terminal, said: None }
    }

    /// Shows a moment of a contest.
    pub fn show(&mut self, moment: &Moment, tally: &Tally) {
        let mut line = format!(
            "{} {:>5.1} s  {:>10}/s  p99 {}",
            self.piece,
            moment.at_s,
            show::count(moment.rate),
            show::duration(tally.latencies.at(0.99)),
        );
        if let Some(busy) = moment.cores_busy {
            line += &format!("  CPU {:.0} %", busy * 100.0);
        }
        if let Some(bytes) = moment.resident_bytes {
            line += &format!("  {}", show::bytes(bytes as f64));
        }
        if tally.errors > 0 {
            line += &format!("  {} errors", tally.errors);
        }
        self.say(&line);
    }

    /// Shows any line.
    pub fn say(&mut self, line: &str) {
        if !self.wanted || self.said.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        self.said = Some(Instant::now());
        let mut output = std::io::stderr().lock();
        // Nobody is there to be told that nobody is there.
        let _ = if self.terminal {
            write!(output, "\r\x1b[K{}  {line}", self.scenario).and_then(|()| output.flush())
        } else {
            writeln!(output, "{}  {line}", self.scenario)
        };
        self.shown = true;
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if self.shown && self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        self.shown = false;
    }
}
