//! Gateway and floor in turns, on connections that stay open: what disturbs the machine disturbs both.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::client::{Engine, Load, Nanos};
use crate::procfs::Process;
use crate::progress::Progress;
use crate::stats::{Follower, Measured, Piece, Side, Tally};

/// Time that answers under way have after a piece.
const DRAIN: Duration = Duration::from_secs(5);
/// Interval of the moments of a run.
const MOMENT: Duration = Duration::from_millis(100);

/// A load that can be put on either side.
pub trait Contest: Load {
    /// Connections that are open, of all kinds.
    fn open(&self) -> usize;
    /// Begins to load `side`; an open loop climbs to its rate in `climb_s` seconds.
    fn begin(&mut self, engine: &mut Engine, side: Side, climb_s: f64);
    /// Counts from now on what ends (closed loop) or is due (open loop) in `window`.
    fn count(&mut self, window: Range<Nanos>);
    /// Does what is due at `now`. When the next thing is, in a load that goes by time.
    fn keep_up(&mut self, engine: &mut Engine, now: Nanos) -> Option<Nanos>;
    /// Begins nothing new.
    fn stop(&mut self);
    /// Operations that have not ended.
    fn in_flight(&self) -> usize;
    /// Counts what has not ended by `now` as failed, and forgets it.
    fn give_up(&mut self, now: Nanos);
    /// What was counted.
    fn tally(&mut self, side: Side) -> &mut Tally;
    /// Why it makes no sense to go on.
    fn lost(&self) -> Option<&str>;
}

/// How a contest goes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Pieces of each side.
    pub rounds: u32,
    /// What is measured of each side, all pieces together.
    pub duration: Duration,
    /// Load before each piece.
    pub warmup: Duration,
    /// The gateway.
    pub gateway: Contestant,
    /// What it is measured against, if anything.
    pub against: Option<Contestant>,
}

/// A side as people see it.
#[derive(Clone, Copy, Debug)]
pub struct Contestant {
    /// Its name.
    pub name: &'static str,
    /// The process that serves it, where it is known.
    pub process: Option<Process>,
}

/// Runs a contest. What comes first is the gateway's.
pub fn contest(
    engine: &mut Engine,
    load: &mut impl Contest,
    plan: &Plan,
    progress: &mut Progress,
) -> Result<(Measured, Option<Measured>)> {
    let blank = Measured { tally: Tally::new()?, pieces: Vec::new(), moments: Vec::new(), bytes_per_operation: 0.0 };
    let mut sides = vec![(Side::Gateway, plan.gateway, blank.clone())];
    sides.extend(plan.against.map(|against| (Side::Floor, against, blank)));
    for round in 1..=plan.rounds {
        for (side, contestant, measured) in &mut sides {
            progress.piece = format!("round {round}/{} {:<7}", plan.rounds, contestant.name);
            piece(engine, load, plan, *side, contestant.process, measured, progress)?;
        }
    }
    progress.clear();
    let mut measured = sides.into_iter().map(|(side, _, mut measured)| {
        measured.tally = load.tally(side).clone();
        measured.bytes_per_operation /= measured.tally.operations.max(1) as f64;
        measured
    });
    let gateway = measured.next().unwrap_or_else(|| unreachable!("the gateway's side was put in"));
    Ok((gateway, measured.next()))
}

/// One piece: warm up, measure, let what is under way end.
fn piece(
    engine: &mut Engine,
    load: &mut impl Contest,
    plan: &Plan,
    side: Side,
    process: Option<Process>,
    measured: &mut Measured,
    progress: &mut Progress,
) -> Result<()> {
    load.begin(engine, side, plan.warmup.as_secs_f64());
    let start = engine.now() + nanos(plan.warmup);
    run(engine, load, start, |_, _| Ok(()))?;

    let usage = || process.map(Process::usage).transpose();
    let myself = Process::new(std::process::id());
    let start = engine.now();
    let before = (usage()?, load.tally(side).operations, engine.traffic, myself.usage()?);
    let end = start + nanos(plan.duration) / u64::from(plan.rounds);
    load.count(start..end);
    let mut follower = Follower::begin(process, start, before.1)?;
    run(engine, load, end, |load, now| {
        let moment = follower.moment(now, load.tally(side).operations)?;
        measured.moments.push(moment);
        progress.show(&moment, load.tally(side));
        Ok(())
    })?;
    let after = (usage()?, load.tally(side).operations, engine.traffic, myself.usage()?);
    measured.pieces.push(Piece {
        seconds: (engine.now() - start) as f64 / 1e9,
        operations: after.1 - before.1,
        usage: after.0.zip(before.0).map(|(after, before)| after.since(before)),
        load_cpu: after.3.since(before.3).cpu,
    });
    measured.bytes_per_operation +=
        (after.2.sent_bytes - before.2.sent_bytes) as f64 + (after.2.received_bytes - before.2.received_bytes) as f64;

    load.stop();
    let deadline = engine.now() + nanos(DRAIN);
    let mut now = engine.now();
    while load.in_flight() > 0 && now < deadline {
        load.keep_up(engine, now);
        engine.turn(load, Duration::from_millis(10))?;
        now = engine.now();
    }
    load.give_up(now);
    load.count(0..0);
    Ok(())
}

/// Loads until `end`, telling of every moment.
fn run<C: Contest>(
    engine: &mut Engine,
    load: &mut C,
    end: Nanos,
    mut each_moment: impl FnMut(&mut C, Nanos) -> Result<()>,
) -> Result<()> {
    let mut next_moment = engine.now() + nanos(MOMENT);
    loop {
        let now = engine.now();
        if let Some(why) = load.lost() {
            bail!("{why}");
        }
        if now >= next_moment || now >= end {
            each_moment(load, now)?;
            next_moment = now + nanos(MOMENT);
        }
        if now >= end {
            return Ok(());
        }
        let due = load.keep_up(engine, now).unwrap_or(Nanos::MAX);
        let wait = Duration::from_nanos(due.min(next_moment).min(end).saturating_sub(now));
        // The system's clock for this wait has milliseconds: what is due sooner is waited for awake.
        let wait = if wait < Duration::from_millis(1) { Duration::ZERO } else { wait };
        engine.turn(load, wait)?;
    }
}

/// A duration as the engine counts it.
pub fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
