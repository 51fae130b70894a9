//! `invoke`: operators call a command of nodes, through the gateway and back.

use anyhow::Result;

use super::{calls_beside_floor, engine, how, nodes, open_all, operators};
use crate::args::{Invoke, Run};
use crate::calls::Calling;
use crate::progress::Progress;
use crate::report::Report;
use crate::target::Target;

/// Runs the scenario.
pub fn run(options: &Invoke, run: &Run) -> Result<Report> {
    let Invoke { nodes, payload_bytes, calls } = options;
    let target = Target::find(run)?;
    let mut engine = engine(run, 2 * calls.connections as usize + *nodes as usize)?;
    let mut load = Calling::new(how(calls).0, Vec::new())?;
    let payload = [*payload_bytes as usize; 2];
    let templates = nodes::connect(&mut engine, &mut load, run, &target, *nodes, payload)?;
    load.set_templates(templates);
    let wires = operators(run, &target, calls.connections);
    let mut progress = Progress::new("invoke", run.progress);
    open_all(&mut engine, &mut load, run, &wires, &mut progress, |load, _, key| load.add_operator(key))?;

    let title = format!("node.invoke on {nodes} nodes with {payload_bytes} B");
    let mut report = calls_beside_floor("invoke", &title, calls, run, &target, &mut engine, &mut load)?;
    report.set("nodes", nodes);
    report.set("payload", payload_bytes);
    Ok(report)
}
