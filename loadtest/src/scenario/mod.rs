//! The scenarios: one file each. A scenario opens its connections, runs its load, and makes a report.

pub mod connect;
pub mod fanout;
pub mod idle;
pub mod invoke;
pub mod nodes;
pub mod rpc;
pub mod slow;
pub mod soak;
pub mod storm;
pub mod streams;

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::args::{Calls, Run};
use crate::calls::{Calling, Loop};
use crate::client::{CONNECTIONS_PER_SOURCE, Engine, Key, Wire};
use crate::floor::{Floor, GREETING_BYTES, Kind};
use crate::progress::Progress;
use crate::report::Report;
use crate::rounds::{Contest, Contestant, Plan, contest, nanos};
use crate::stats::Side;
use crate::target::Target;
use crate::wire::{Who, received_frame_bytes};

/// Connections that may be under way at once while many are opened: more than a listener's backlog holds would
/// only wait for SYN retries.
const OPENING: usize = 256;
/// Time in which at least one connection has to open, for all of them to go on.
const STALL: Duration = Duration::from_secs(30);

/// An engine with room and source addresses for `connections`.
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

/// Opens a connection to each of `wires`, spread over the ramp, and waits until the load has all of them. `begun`
/// is told the number and the key of each.
fn open_all<L: Contest>(
    engine: &mut Engine,
    load: &mut L,
    run: &Run,
    wires: &[Wire],
    progress: &mut Progress,
    mut begun: impl FnMut(&mut L, usize, Key),
) -> Result<()> {
    let already = load.open();
    let start = engine.now();
    let mut moved = start;
    let mut next = 0;
    loop {
        let done = load.open() - already;
        if let Some(why) = load.lost() {
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
        if (next, load.open() - already) != before {
            moved = now;
            progress.say(&format!("opening connections: {done} of {}", wires.len()));
        } else if now - moved > nanos(STALL) {
            bail!("no connection was opened for {} s; {done} of {} are open", STALL.as_secs(), wires.len());
        }
    }
}

/// So many operators.
fn operators(run: &Run, target: &Target, count: u32) -> Vec<Wire> {
    let one = Rc::new(Who::Operator(clawgate::id::uuid()));
    let who = || if run.distinct { Rc::new(Who::Operator(clawgate::id::uuid())) } else { Rc::clone(&one) };
    (0..count).map(|_| Wire::Gateway(Rc::clone(&target.gateway), who())).collect()
}

/// How the calls come, and that in words.
fn how(calls: &Calls) -> (Loop, String) {
    let operators = calls.connections;
    match calls.rate {
        Some(rate) => {
            (Loop::Open(f64::from(rate)), format!("{operators} operators, open loop at {rate} calls a second"))
        }
        None => {
            (Loop::Closed(calls.depth as usize), format!("{operators} operators with {} in flight each", calls.depth))
        }
    }
}

/// Calls until an answer has come, to see that calls succeed; bytes of the answer's frame.
fn probe(engine: &mut Engine, load: &mut Calling) -> Result<usize> {
    load.count(0..u64::MAX);
    load.begin(engine, Side::Gateway, 0.0);
    let deadline = engine.now() + nanos(STALL);
    while load.answer_bytes() == 0 {
        if let Some(error) = &load.tally(Side::Gateway).first_error {
            bail!("the first call fails: {error}");
        }
        if let Some(why) = load.lost() {
            bail!("{why}");
        }
        ensure!(engine.now() < deadline, "no answer to the first call within {} s", STALL.as_secs());
        let now = engine.now();
        load.keep_up(engine, now);
        engine.turn(load, Duration::from_millis(1))?;
    }
    load.stop();
    while load.in_flight() > 0 && engine.now() < deadline {
        engine.turn(load, Duration::from_millis(1))?;
    }
    load.forget()?;
    Ok(received_frame_bytes(load.answer_bytes()))
}

/// Puts a floor beside operators that are connected, has both loaded in turns, and reports.
fn calls_beside_floor(
    name: &str,
    title: &str,
    calls: &Calls,
    run: &Run,
    target: &Target,
    engine: &mut Engine,
    load: &mut Calling,
) -> Result<Report> {
    let mut progress = Progress::new(name, run.progress);
    // With everybody connected, an answer is as long as it is going to be.
    let answer_bytes = probe(engine, load)?;
    let request_bytes = load.request_bytes();
    let steps = vec![(0, GREETING_BYTES), (request_bytes, answer_bytes)];
    let floor = (!run.no_floor).then(|| Floor::start(&Kind::Exchange { steps }, &target.cores)).transpose()?;
    if let Some(floor) = &floor {
        let wires = vec![floor_wire(floor, answer_bytes); calls.connections as usize];
        open_all(engine, load, run, &wires, &mut progress, |load, _, key| load.add_floor(key))?;
    }
    let (gateway, beside) = contest(engine, load, &plan(run, target, floor.as_ref()), &mut progress)?;

    let (_, words) = how(calls);
    let mut report = Report::new(name, format!("{title}, {words}"), target);
    report.set("connections", calls.connections);
    report.set("depth", if calls.rate.is_some() { 0 } else { calls.depth });
    report.set("rate", calls.rate.unwrap_or_default());
    report.set("duration", format!("{:?} in {} rounds", run.duration, run.rounds));
    report.set("bytes", format!("{request_bytes} sent, {answer_bytes} received"));
    report.add_contest("calls", &gateway, beside.as_ref());
    Ok(report)
}

/// A connection to a floor that greets.
fn floor_wire(floor: &Floor, answer_bytes: usize) -> Wire {
    Wire::Floor { address: floor.address, greeting_bytes: GREETING_BYTES, answer_bytes }
}

/// The gateway against a floor, if there is one.
fn plan(run: &Run, target: &Target, floor: Option<&Floor>) -> Plan {
    Plan {
        rounds: run.rounds,
        duration: run.duration,
        warmup: run.warmup,
        gateway: Contestant { name: "gateway", process: target.process },
        against: floor.map(|floor| Contestant { name: "floor", process: Some(floor.process) }),
    }
}
