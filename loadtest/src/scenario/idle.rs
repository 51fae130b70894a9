//! `idle`: connections that do nothing. What is left of them is what a gateway pays for being reachable.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::nodes::SEED;
use super::{STALL, engine, floor_wire, open_all, operators};
use crate::args::{Idle, Run};
use crate::client::{End, Engine, Key, Link, Load, Nanos, Wire};
use crate::control::Control;
use crate::floor::{Floor, GREETING_BYTES, Kind};
use crate::identity::Identity;
use crate::procfs::{Process, Usage};
use crate::progress::Progress;
use crate::report::{Better, Figure, Report, Timeline, Unit, show};
use crate::rounds::{Contest, nanos};
use crate::stats::{Follower, Moment, Side, Tally};
use crate::target::Target;
use crate::wire::Who;

/// Connections that come and go before any is measured.
const FIRST: u32 = 50;
/// Interval of the moments of a rest.
const MOMENT: Duration = Duration::from_millis(500);

/// Connections that only have to be there.
#[derive(Debug)]
struct Crowd {
    open: usize,
    lost: Option<String>,
    tally: Tally,
}

impl Crowd {
    fn new() -> Result<Self> {
        Ok(Self { open: 0, lost: None, tally: Tally::new()? })
    }
}

impl Load for Crowd {
    fn opened(&mut self, _: &mut Link<'_>, _: &str) {
        self.open += 1;
    }

    fn text(&mut self, _: &mut Link<'_>, _: &str) {}

    fn answers(&mut self, _: &mut Link<'_>, _: usize) {}

    fn closed(&mut self, _: Key, end: End) {
        self.lost.get_or_insert_with(|| format!("an idle connection {end}"));
    }
}

/// A rest of one side.
#[derive(Debug)]
struct Rest {
    /// Resident bytes without connections, and with them at the end.
    resident_bytes: [u64; 2],
    /// The same by share of pages, where the kernel tells.
    proportional_bytes: [Option<u64>; 2],
    usage: Usage,
    seconds: f64,
    moments: Vec<Moment>,
}

impl Rest {
    /// Opens `wires` and rests; `process` is what holds them.
    fn of(
        run: &Run,
        settle: Duration,
        engine: &mut Engine,
        process: Process,
        wires: &[Wire],
        progress: &mut Progress,
    ) -> Result<Self> {
        let before = (process.resident_bytes()?, process.proportional_bytes());
        let mut crowd = Crowd::new()?;
        open_all(engine, &mut crowd, run, wires, progress, |_, _, _| {})?;
        let mut moments = Vec::new();
        rest(engine, &mut crowd, process, settle, progress, &mut moments)?;
        let (start, usage) = (engine.now(), process.usage()?);
        rest(engine, &mut crowd, process, run.duration, progress, &mut moments)?;
        let usage = process.usage()?.since(usage);
        let seconds = (engine.now() - start) as f64 / 1e9;
        progress.clear();
        let after = (process.resident_bytes()?, process.proportional_bytes());
        Ok(Self {
            resident_bytes: [before.0, after.0],
            proportional_bytes: [before.1, after.1],
            usage,
            seconds,
            moments,
        })
    }
}

/// Does nothing for `duration` but answer pings.
fn rest(
    engine: &mut Engine,
    crowd: &mut Crowd,
    process: Process,
    duration: Duration,
    progress: &mut Progress,
    moments: &mut Vec<Moment>,
) -> Result<()> {
    let end = engine.now() + nanos(duration);
    let mut follower = Follower::begin(Some(process), engine.now(), 0)?;
    let mut next = engine.now() + nanos(MOMENT);
    loop {
        let now = engine.now();
        if let Some(why) = &crowd.lost {
            anyhow::bail!("{why}");
        }
        if now >= next {
            let moment = follower.moment(now, 0)?;
            let resident = moment.resident_bytes.unwrap_or_default();
            progress.say(&format!(
                "{} connections rest, {:.0} s to go, {}",
                crowd.open,
                end.saturating_sub(now) as f64 / 1e9,
                show::bytes(resident as f64),
            ));
            moments.push(moment);
            next = now + nanos(MOMENT);
        }
        if now >= end {
            return Ok(());
        }
        engine.turn(crowd, Duration::from_nanos(next.min(end) - now).max(Duration::from_millis(1)))?;
    }
}

impl Contest for Crowd {
    fn open(&self) -> usize {
        self.open
    }

    fn begin(&mut self, _: &mut Engine, _: Side, _: f64) {}

    fn count(&mut self, _: std::ops::Range<Nanos>) {}

    fn keep_up(&mut self, _: &mut Engine, _: Nanos) -> Option<Nanos> {
        None
    }

    fn stop(&mut self) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn give_up(&mut self, _: Nanos) {}

    fn tally(&mut self, _: Side) -> &mut Tally {
        &mut self.tally
    }

    fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }
}

/// Runs the scenario.
pub fn run(options: &Idle, run: &Run) -> Result<Report> {
    let target = Target::find(run)?;
    let process = target.process.context("idle connections are measured from outside: give --pid or --spawn")?;
    let mut progress = Progress::new("idle", run.progress);
    let count = options.connections;
    let wires = if options.nodes { nodes(&target, count)? } else { operators(run, &target, count) };

    // What the first connection ever makes a gateway allocate is not the price of a connection, and what it needed to start
    // and gives back soon after is not to be taken off it.
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..FIRST {
        Control::connect(&target.gateway)?.call("health", Some(&json!({})))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let mut crowd = engine(run, count as usize)?;
    let gateway = Rest::of(run, options.settle, &mut crowd, process, &wires, &mut progress)?;
    drop(crowd);

    let beside = match run.no_floor {
        true => None,
        false => {
            let floor = Floor::start(&Kind::Exchange { steps: vec![(0, GREETING_BYTES), (1, 1)] }, &target.cores)?;
            let wires = vec![floor_wire(&floor, 1); count as usize];
            let short = Run { duration: run.duration.min(STALL / 10), ..run.clone() };
            let mut crowd = engine(run, count as usize)?;
            let settle = options.settle.min(Duration::from_secs(1));
            Some(Rest::of(&short, settle, &mut crowd, floor.process, &wires, &mut progress)?)
        }
    };

    let kind = if options.nodes { "nodes" } else { "operators" };
    let mut report = Report::new("idle", format!("{count} {kind} that do nothing"), &target);
    report.set("connections", count);
    report.set("kind", kind);
    report.set("duration", format!("{:?} after {:?}", run.duration, options.settle));
    let both = |of: &dyn Fn(&Rest) -> Option<f64>| [of(&gateway), beside.as_ref().and_then(of)];
    let each = |bytes: [u64; 2]| (bytes[1] as f64 - bytes[0] as f64) / f64::from(count);
    let rest_s = |it: &Rest| it.seconds * f64::from(count);
    use Better::Lower;
    report.figures = vec![
        Figure::new(
            "bytes-each",
            "resident memory, each connection",
            Unit::Bytes,
            Lower,
            both(&|it| Some(each(it.resident_bytes))),
        ),
        Figure::new(
            "pss-each",
            "proportional memory, each connection",
            Unit::Bytes,
            Lower,
            both(&|it| Some(each([it.proportional_bytes[0]?, it.proportional_bytes[1]?]))),
        ),
        Figure::new(
            "cpu-each",
            "server CPU a second, each connection",
            Unit::Nanoseconds,
            Lower,
            both(&|it| Some(it.usage.cpu.as_nanos() as f64 / rest_s(it))),
        ),
        Figure::new(
            "wakeups-each",
            "server wake-ups a second, each connection",
            Unit::Count,
            Lower,
            both(&|it| Some(it.usage.wakeups as f64 / rest_s(it))),
        ),
        Figure::new(
            "resident-before",
            "resident without connections",
            Unit::Bytes,
            Lower,
            both(&|it| Some(it.resident_bytes[0] as f64)),
        ),
        Figure::new(
            "resident",
            "resident with them",
            Unit::Bytes,
            Lower,
            both(&|it| Some(it.resident_bytes[1] as f64)),
        ),
        Figure::new(
            "ready",
            "from start to ready",
            Unit::Nanoseconds,
            Lower,
            [target.ready_after.map(|it| it.as_nanos() as f64), None],
        ),
    ];
    report.timelines = vec![Timeline::new("gateway", &gateway.moments)];
    report.timelines.iter_mut().for_each(|timeline| timeline.rate.clear());
    Ok(report)
}

/// Nodes; those that a gateway has not seen before are paired when they connect.
fn nodes(target: &Target, count: u32) -> Result<Vec<Wire>> {
    let node = |number: u32| {
        let who = Rc::new(Who::Node(Identity::new(SEED, number.into())?));
        Ok(Wire::Gateway(Rc::clone(&target.gateway), who))
    };
    (0..count).map(node).collect()
}
