//! `rpc`: operators call one method. The smallest thing a gateway does, many times.

use anyhow::{Result, ensure};

use super::{engine, how, open_callers, operators, plan};
use crate::args::{Rpc, Run};
use crate::calls::Calling;
use crate::client::Wire;
use crate::control::Control;
use crate::floor::{Floor, Kind};
use crate::progress::Progress;
use crate::report::Report;
use crate::rounds::contest;
use crate::target::Target;
use crate::wire::{Template, received_frame_bytes};

/// Runs the scenario.
pub fn run(options: &Rpc, run: &Run) -> Result<Report> {
    let target = Target::find(run)?;
    let mut progress = Progress::new("rpc", run.progress);
    let template = Template::call(&options.method, options.params.as_ref());
    let request_bytes = template.frame_bytes();
    let count = options.calls.connections;
    let mut engine = engine(run, 2 * count as usize)?;
    let (calls, words) = how(&options.calls);
    let mut load = Calling::new(calls, vec![template], request_bytes)?;
    let wires = operators(run, &target, count);
    open_callers(&mut engine, &mut load, run, &wires, &mut progress, |load, _, key| load.add_operator(key))?;

    // With everybody connected, an answer is as long as it is going to be.
    let answer = Control::connect(&target.gateway)?.call(&options.method, options.params.as_ref())?;
    ensure!(answer.ok, "{} fails: {}", options.method, answer.text);
    let answer_bytes = received_frame_bytes(answer.text.len());
    let steps = vec![(request_bytes, answer_bytes)];
    let floor = (!run.no_floor).then(|| Floor::start(&Kind::Exchange { steps }, &target.cores)).transpose()?;
    if let Some(floor) = &floor {
        let wires = vec![Wire::Floor(floor.address, answer_bytes); count as usize];
        open_callers(&mut engine, &mut load, run, &wires, &mut progress, |load, _, key| load.add_floor(key))?;
    }
    let plan = plan(run, &target, floor.as_ref());
    let (gateway, beside) = contest(&mut engine, &mut load, &plan, &mut progress)?;

    let mut report = Report::new("rpc", format!("{}, {words}", options.method), &target);
    report.set("method", &options.method);
    report.set("connections", count);
    report.set("depth", if options.calls.rate.is_some() { 0 } else { options.calls.depth });
    report.set("rate", options.calls.rate.unwrap_or_default());
    report.set("duration", format!("{:?} in {} rounds", run.duration, run.rounds));
    report.set("bytes", format!("{request_bytes} sent, {answer_bytes} received"));
    report.add_contest("calls", &gateway, beside.as_ref());
    Ok(report)
}
