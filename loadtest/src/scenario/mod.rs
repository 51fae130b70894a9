//! The scenarios: one file each. A scenario opens its connections, runs its load, and makes a report.

pub mod rpc;

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::args::{Calls, Run};
use crate::calls::{Calling, Loop};
use crate::client::{CONNECTIONS_PER_SOURCE, Engine, Key, Load, Wire};
use crate::progress::Progress;
use crate::rounds::{Plan, nanos};
use crate::target::Target;
use crate::wire::Who;

/// Connections that may be under way at once while many are opened: more than a listener's backlog holds would
/// only wait for SYN retries.
const OPENING: usize = 256;
/// Time that one connection may take to open, all of them to go on.
const STALL: Duration = Duration::from_secs(30);

/// An engine with source addresses for `connections`.
fn engine(run: &Run, connections: usize) -> Result<Engine> {
    let descriptors = clawgate::net::descriptors::raise();
    if connections > descriptors.connections {
        bail!(
            "{connections} connections need more open files than this process may have ({}); raise the limit \
             (ulimit -Hn)",
            descriptors.limit
        );
    }
    let sources = run.sources.map_or(connections.div_ceil(CONNECTIONS_PER_SOURCE), usize::from);
    Engine::new(sources).context("the engine")
}

/// Opens a connection to each of `wires`, spread over the ramp, and waits until `load` has all of them. `begun` is
/// told the key of each.
fn open_all<L: Load>(
    engine: &mut Engine,
    load: &mut L,
    run: &Run,
    wires: &[Wire],
    progress: &mut Progress,
    mut begun: impl FnMut(&mut L, usize, Key),
    opened: impl Fn(&L) -> usize,
    lost: impl Fn(&L) -> Option<String>,
) -> Result<()> {
    let already = opened(load);
    let start = engine.now();
    let mut moved = start;
    let mut next = 0;
    loop {
        let done = opened(load) - already;
        if let Some(why) = lost(load) {
            bail!("{why}");
        }
        if done == wires.len() {
            progress.clear();
            return Ok(());
        }
        let now = engine.now();
        let share = (now - start) as f64 / nanos(run.ramp).max(1) as f64;
        let due = ((share * wires.len() as f64) as usize).min(wires.len());
        let before = (next, done);
        while next < due && next - done < OPENING {
            let key = engine.open(&wires[next]).context("opening a connection")?;
            begun(load, next, key);
            next += 1;
        }
        engine.turn(load, Duration::from_millis(1))?;
        if (next, opened(load) - already) != before {
            moved = now;
            progress.say(&format!("opening connections: {done} of {}", wires.len()));
        } else if now - moved > nanos(STALL) {
            bail!("no connection was opened for {} s; {done} of {} are open", STALL.as_secs(), wires.len());
        }
    }
}

/// Opens the connections of a load of calls.
fn open_callers(
    engine: &mut Engine,
    load: &mut Calling,
    run: &Run,
    wires: &[Wire],
    progress: &mut Progress,
    begun: impl FnMut(&mut Calling, usize, Key),
) -> Result<()> {
    let lost = |load: &Calling| crate::rounds::Contest::lost(load).map(ToOwned::to_owned);
    open_all(engine, load, run, wires, progress, begun, Calling::open, lost)
}

/// So many operators.
fn operators(run: &Run, target: &Target, count: u32) -> Vec<Wire> {
    let one = Rc::new(Who::Operator(clawgate::id::uuid()));
    let who = || if run.distinct { Rc::new(Who::Operator(clawgate::id::uuid())) } else { Rc::clone(&one) };
    (0..count).map(|_| Wire::Gateway(Rc::clone(&target.gateway), who())).collect()
}

/// How the calls come, and that in words.
fn how(calls: &Calls) -> (Loop, String) {
    match calls.rate {
        Some(rate) => (
            Loop::Open(f64::from(rate)),
            format!("{} operators, open loop at {rate} calls a second", calls.connections),
        ),
        None => (
            Loop::Closed(calls.depth as usize),
            format!("{} operators with {} in flight each", calls.connections, calls.depth),
        ),
    }
}

/// The plan of a contest.
fn plan(run: &Run, target: &Target, floor: Option<&crate::floor::Floor>) -> Plan {
    Plan {
        rounds: run.rounds,
        duration: run.duration,
        warmup: run.warmup,
        gateway: target.process,
        floor: floor.map(|floor| floor.process),
    }
}
