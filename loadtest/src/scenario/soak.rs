//! `soak`: a bit of everything for a long time. What grows is a leak.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::{engine, nodes, open_all, operators, plan};
use crate::args::{Run, Soak};
use crate::calls::{Calling, Loop};
use crate::client::{End, Engine, Key, Link, Load, Nanos, Wire};
use crate::progress::Progress;
use crate::report::{Better, Figure, Report, Unit};
use crate::rounds::{Contest, contest};
use crate::stats::{Side, Tally, slope};
use crate::target::Target;
use crate::wire::Template;

/// The callers, and those who come and leave.
#[derive(Debug)]
struct Day {
    callers: Calling,
    wires: Vec<Wire>,
    interval: Option<Nanos>,
    next_visit: Nanos,
    visits: u64,
    visitors: HashSet<Key>,
    issuing: bool,
}

impl Load for Day {
    fn opened(&mut self, link: &mut Link<'_>, hello: &str) {
        if self.visitors.contains(&link.key) { link.leave() } else { self.callers.opened(link, hello) }
    }

    fn text(&mut self, link: &mut Link<'_>, text: &str) {
        if !self.visitors.contains(&link.key) {
            self.callers.text(link, text);
        }
    }

    fn answers(&mut self, _: &mut Link<'_>, _: usize) {}

    fn closed(&mut self, key: Key, end: End) {
        if !self.visitors.remove(&key) {
            self.callers.closed(key, end);
        } else if end != End::Left {
            self.callers.tally(Side::Gateway).fail(|| format!("a visitor {end}"));
        }
    }
}

impl Contest for Day {
    fn open(&self) -> usize {
        self.callers.open()
    }

    fn begin(&mut self, engine: &mut Engine, side: Side, climb_s: f64) {
        self.issuing = true;
        self.next_visit = engine.now();
        self.callers.begin(engine, side, climb_s);
    }

    fn count(&mut self, window: Range<Nanos>) {
        self.callers.count(window);
    }

    fn keep_up(&mut self, engine: &mut Engine, now: Nanos) -> Option<Nanos> {
        let due = self.callers.keep_up(engine, now);
        let Some(interval) = self.interval.filter(|_| self.issuing) else { return due };
        while self.next_visit <= now {
            self.next_visit += interval;
            match engine.open(&self.wires[self.visits as usize % self.wires.len()]) {
                Ok(key) => {
                    self.visitors.insert(key);
                    self.visits += 1;
                }
                Err(error) => self.callers.tally(Side::Gateway).fail(|| format!("nobody could come: {error}")),
            }
        }
        Some(due.unwrap_or(Nanos::MAX).min(self.next_visit))
    }

    fn stop(&mut self) {
        self.issuing = false;
        self.callers.stop();
    }

    fn in_flight(&self) -> usize {
        self.callers.in_flight() + self.visitors.len()
    }

    fn give_up(&mut self, now: Nanos) {
        self.callers.give_up(now);
    }

    fn tally(&mut self, side: Side) -> &mut Tally {
        self.callers.tally(side)
    }

    fn lost(&self) -> Option<&str> {
        self.callers.lost()
    }
}

/// Runs the scenario.
pub fn run(options: &Soak, run: &Run) -> Result<Report> {
    let target = Target::find(run)?;
    let mut progress = Progress::new("soak", run.progress);
    let spare = 1024;
    let mut engine = engine(run, (options.operators + options.nodes + spare) as usize)?;
    let mut callers = Calling::new(Loop::Open(options.rate.into()), Vec::new())?;
    let payload_bytes = options.payload_bytes as usize;
    let invokes = nodes::connect(&mut engine, &mut callers, run, &target, options.nodes, [payload_bytes; 2])?;
    callers.set_templates(mixture(&invokes));
    let wires = operators(run, &target, options.operators);
    open_all(&mut engine, &mut callers, run, &wires, &mut progress, |load, _, key| load.add_operator(key))?;

    let interval = (options.churn > 0).then(|| 1_000_000_000 / u64::from(options.churn));
    let mut day = Day { callers, wires, interval, next_visit: 0, visits: 0, visitors: HashSet::new(), issuing: false };
    let whole = Run { rounds: 1, ..run.clone() };
    let (gateway, _) = contest(&mut engine, &mut day, &plan(&whole, &target, None), &mut progress)?;

    let title = format!(
        "{} operators at {} calls a second, {} nodes, {} visits a second",
        options.operators, options.rate, options.nodes, options.churn
    );
    let mut report = Report::new("soak", title, &target);
    report.set("operators", options.operators);
    report.set("rate", options.rate);
    report.set("nodes", options.nodes);
    report.set("churn", options.churn);
    report.set("payload", options.payload_bytes);
    report.set("duration", format!("{:?}", run.duration));
    report.add_contest("calls", &gateway, None);
    // The first quarter fills caches and pools.
    let settled = gateway.moments.len() / 4;
    let memory: Vec<_> = gateway.moments[settled..]
        .iter()
        .filter_map(|moment| Some((moment.at_s / 3600.0, moment.resident_bytes? as f64)))
        .collect();
    let ends = memory.first().zip(memory.last());
    report.figures.extend([
        Figure::new("growth", "memory, growth", Unit::BytesPerHour, Better::Lower, [slope(&memory), None]),
        Figure::new(
            "resident-first",
            "resident after a quarter",
            Unit::Bytes,
            Better::Lower,
            [ends.map(|(first, _)| first.1), None],
        ),
        Figure::new(
            "resident-last",
            "resident at the end",
            Unit::Bytes,
            Better::Lower,
            [ends.map(|(_, last)| last.1), None],
        ),
        Figure::new("visits", "visits", Unit::Count, Better::Neither, [Some(day.visits as f64), None]),
    ]);
    if run.duration < Duration::from_secs(600) {
        report.note("growth over less than ten minutes says little: caches and pools still fill".to_owned());
    }
    Ok(report)
}

/// A hundred calls, well mixed.
fn mixture(invokes: &[Template]) -> Vec<Template> {
    let presence = Template::call("system-presence", None);
    let health = Template::call("health", Some(&json!({})));
    let heartbeats = [true, false].map(|on| Template::call("set-heartbeats", Some(&json!({"enabled": on}))));
    let mut invokes = invokes.iter().cycle();
    (0..100)
        .map(|number| match number {
            25 => heartbeats[0].clone(),
            75 => heartbeats[1].clone(),
            _ if number % 10 == 0 => health.clone(),
            _ if number % 5 == 3 && number > 12 => invokes.next().unwrap_or(&presence).clone(),
            _ => presence.clone(),
        })
        .collect()
}
