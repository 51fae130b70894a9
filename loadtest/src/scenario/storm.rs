//! `storm`: strangers with wrong tokens knock, thousands a second from many addresses, while operators work.
//!
//! In both columns the operators call at the same rate; in the one the strangers are there, in the other they are not. What
//! they do to the operators' answers is the figure. Every stranger must be refused: one who is let in ends the run.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

use anyhow::Result;

use super::{engine, open_all, operators};
use crate::args::{Run, Storm};
use crate::calls::{Calling, Loop};
use crate::client::{End, Engine, Gateway, Key, Link, Load, Nanos, Wire};
use crate::progress::Progress;
use crate::report::{Better, Figure, Report, Unit, show};
use crate::rounds::{Contest, Contestant, Plan, contest};
use crate::stats::{Side, Tally};
use crate::target::Target;
use crate::wire::{Credentials, Template, Who};

/// Addresses of the loopback network that connections come from, in turn.
const SOURCES: u16 = 200;

/// The operators, and the strangers.
#[derive(Debug)]
struct Town {
    operators: Calling,
    wire: Wire,
    rate: f64,
    /// Strangers that may be under way at a time; those that are due meanwhile do not come, and are counted.
    most: usize,
    under_way: HashSet<Key>,
    raging: bool,
    start: Nanos,
    due: u64,
    came: u64,
    stayed_away: u64,
    ends: BTreeMap<String, u64>,
    failure: Option<String>,
}

impl Town {
    fn ended(&mut self, how: String) {
        // Text of the gateway: bounded by how many ways there are to be refused.
        if self.ends.len() < 32 || self.ends.contains_key(&how) {
            *self.ends.entry(how).or_default() += 1;
        }
    }
}

impl Load for Town {
    fn opened(&mut self, link: &mut Link<'_>, hello: &str) {
        if self.under_way.contains(&link.key) {
            self.failure.get_or_insert_with(|| format!("a stranger with a wrong token was let in: {hello:.200}"));
            return link.leave();
        }
        self.operators.opened(link, hello);
    }

    fn text(&mut self, link: &mut Link<'_>, text: &str) {
        if !self.under_way.contains(&link.key) {
            self.operators.text(link, text);
        }
    }

    fn answers(&mut self, _: &mut Link<'_>, _: usize) {}

    fn closed(&mut self, key: Key, end: End) {
        if self.under_way.remove(&key) {
            self.ended(end.to_string());
        } else {
            self.operators.closed(key, end);
        }
    }
}

impl Contest for Town {
    fn open(&self) -> usize {
        self.operators.open()
    }

    fn begin(&mut self, engine: &mut Engine, side: Side, climb_s: f64) {
        self.raging = side == Side::Gateway;
        (self.start, self.due) = (engine.now(), 0);
        self.operators.begin(engine, side, climb_s);
    }

    fn count(&mut self, window: Range<Nanos>) {
        self.operators.count(window);
    }

    fn keep_up(&mut self, engine: &mut Engine, now: Nanos) -> Option<Nanos> {
        let mut next = None;
        if self.raging {
            let due = ((now - self.start) as f64 / 1e9 * self.rate) as u64;
            while self.due < due {
                self.due += 1;
                if self.under_way.len() >= self.most {
                    self.stayed_away += 1;
                    continue;
                }
                match engine.open(&self.wire) {
                    Ok(key) => {
                        self.came += 1;
                        self.under_way.insert(key);
                    }
                    Err(error) => self.ended(format!("could not connect: {error}")),
                }
            }
            next = Some(self.start + ((self.due + 1) as f64 / self.rate * 1e9) as Nanos);
        }
        let calls = self.operators.keep_up(engine, now);
        match (next, calls) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    fn stop(&mut self) {
        self.raging = false;
        self.operators.stop();
    }

    fn in_flight(&self) -> usize {
        self.operators.in_flight() + self.under_way.len()
    }

    fn give_up(&mut self, now: Nanos) {
        self.operators.give_up(now);
    }

    fn tally(&mut self, side: Side) -> &mut Tally {
        self.operators.tally(side)
    }

    fn lost(&self) -> Option<&str> {
        self.failure.as_deref().or(self.operators.lost())
    }
}

/// Runs the scenario.
pub fn run(options: &Storm, run: &Run) -> Result<Report> {
    let target = Target::find(run)?;
    let mut progress = Progress::new("storm", run.progress);
    let most = options.strangers as usize;
    let sources = run.sources.unwrap_or(SOURCES);
    let connections = options.operators as usize + most;
    let mut engine = engine(&Run { sources: Some(sources), ..run.clone() }, connections)?;
    let mut operators_load =
        Calling::new(Loop::Open(options.rate.into()), vec![Template::call("system-presence", None)])?;
    let wires = operators(run, &target, options.operators);
    open_all(&mut engine, &mut operators_load, run, &wires, &mut progress, |load, _, key| load.add_operator(key))?;

    let credentials = Credentials { token: Some("not-the-token".to_owned()), password: None };
    let gateway = Gateway { address: target.gateway.address, host: target.gateway.host.clone(), credentials };
    let stranger = Rc::new(Who::Operator(clawgate::id::uuid()));
    let mut load = Town {
        operators: operators_load,
        wire: Wire::Gateway(Rc::new(gateway), stranger),
        rate: options.storm.into(),
        most,
        under_way: HashSet::new(),
        raging: false,
        start: 0,
        due: 0,
        came: 0,
        stayed_away: 0,
        ends: BTreeMap::new(),
        failure: None,
    };
    let resident = || target.process.map(|process| process.resident_bytes()).transpose();
    let before = resident()?;
    let plan = Plan {
        rounds: run.rounds,
        duration: run.duration,
        warmup: run.warmup,
        gateway: Contestant { name: "storm", process: target.process },
        against: Some(Contestant { name: "quiet", process: target.process }),
    };
    let (storm, quiet) = contest(&mut engine, &mut load, &plan, &mut progress)?;
    let after = resident()?;

    let title = format!(
        "{} wrong tokens a second, {} operators at {} calls a second",
        options.storm, options.operators, options.rate
    );
    let mut report = Report::new("storm", title, &target);
    report.columns = ["storm".to_owned(), "quiet".to_owned()];
    report.set("operators", options.operators);
    report.set("rate", options.rate);
    report.set("storm", options.storm);
    report.set("sources", sources);
    report.set("duration", format!("{:?} in {} rounds", run.duration, run.rounds));
    report.add_contest("calls of the operators", &storm, quiet.as_ref());
    // The strangers are in there too.
    report.figures.retain(|figure| figure.key != "bytes");
    let neither = Better::Neither;
    report.figures.push(Figure::new(
        "strangers",
        "strangers that came",
        Unit::Count,
        neither,
        [Some(load.came as f64), None],
    ));
    if load.stayed_away > 0 {
        report.note(format!("{} more were due when {most} were under way already, and did not come", load.stayed_away));
    }
    for (how, count) in &load.ends {
        report.note(format!("a stranger {how} ({count} times)"));
    }
    if let (Some(before), Some(after)) = (before, after) {
        report.note(format!(
            "the gateway held {} before and {} after",
            show::bytes(before as f64),
            show::bytes(after as f64)
        ));
    }
    Ok(report)
}
