//! `rpc`: operators call one method. The smallest thing a gateway does, many times.

use anyhow::Result;

use super::{calls_beside_floor, engine, how, open_all, operators};
use crate::args::{Rpc, Run};
use crate::calls::Calling;
use crate::progress::Progress;
use crate::report::Report;
use crate::target::Target;
use crate::wire::Template;

/// Runs the scenario.
pub fn run(options: &Rpc, run: &Run) -> Result<Report> {
    let Rpc { method, params, calls } = options;
    let target = Target::find(run)?;
    let mut engine = engine(run, 2 * calls.connections as usize)?;
    let mut load = Calling::new(how(calls).0, vec![Template::call(method, params.as_ref())])?;
    let wires = operators(run, &target, calls.connections);
    let mut progress = Progress::new("rpc", run.progress);
    open_all(&mut engine, &mut load, run, &wires, &mut progress, |load, _, key| load.add_operator(key))?;

    let mut report = calls_beside_floor("rpc", method, calls, run, &target, &mut engine, &mut load)?;
    report.set("method", method);
    Ok(report)
}
