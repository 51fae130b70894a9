//! `streams`: models talk in many sessions, each to somebody who listens, while operators work.
//!
//! In both columns the operators call at the same rate; in the one the sessions stream, in the other they are silent.
//! What the difference does to the operators' answers is the figure. The model is a stand-in beside the load.

use std::ops::Range;
use std::rc::Rc;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{engine, open_all, operators};
use crate::args::{Run, Streams};
use crate::calls::{Calling, Loop};
use crate::client::{End, Engine, Key, Link, Load, Nanos, Wire};
use crate::cores::Cores;
use crate::model::Model;
use crate::progress::Progress;
use crate::report::{Better, Figure, Report, Unit};
use crate::rounds::{Contest, Contestant, Plan, contest};
use crate::stats::{Side, Tally};
use crate::target::Target;
use crate::wire::{Template, Who};

/// The operators, and those who talk with the agent.
#[derive(Debug)]
struct Talk {
    operators: Calling,
    /// Connections of listeners, one a session.
    listeners: Vec<Key>,
    open: usize,
    streaming: bool,
    /// Numbers of what is said, so that none is a repeat.
    said: u64,
    deltas: u64,
    delta_bytes: u64,
    refused: Option<String>,
    lost: Option<String>,
}

impl Talk {
    fn number(&self, key: Key) -> Option<usize> {
        self.listeners.iter().position(|listener| *listener == key)
    }

    /// Has every listener say something to their session, or stop what it says.
    fn tell_all(&mut self, engine: &mut Engine, starts: bool) {
        let now = engine.now();
        for (number, key) in self.listeners.clone().into_iter().enumerate() {
            self.said += 1;
            let session = format!("load-{number}");
            let mut call = match starts {
                true => {
                    let key = format!("load-{}", self.said);
                    let params = json!({"sessionKey": session, "message": "talk", "idempotencyKey": key});
                    Template::call("chat.send", Some(&params))
                }
                false => Template::call("sessions.reset", Some(&json!({"key": session}))),
            };
            let id = self.said;
            engine.with(key, self, now, |_, link| link.call(&mut call, id));
        }
    }
}

impl Load for Talk {
    fn opened(&mut self, link: &mut Link<'_>, hello: &str) {
        if self.number(link.key).is_some() {
            self.open += 1;
        } else {
            self.operators.opened(link, hello);
        }
    }

    fn text(&mut self, link: &mut Link<'_>, text: &str) {
        if self.number(link.key).is_none() {
            return self.operators.text(link, text);
        }
        if text.contains(r#""event":"chat""#) && text.contains(r#""state":"delta""#) {
            self.deltas += 1;
            self.delta_bytes += text.len() as u64;
        } else if text.contains(r#""ok":false"#) {
            self.refused.get_or_insert_with(|| text.chars().take(300).collect());
        }
    }

    fn answers(&mut self, _: &mut Link<'_>, _: usize) {}

    fn closed(&mut self, key: Key, end: End) {
        if self.number(key).is_some() {
            self.lost.get_or_insert_with(|| format!("a listener {end}"));
        } else {
            self.operators.closed(key, end);
        }
    }
}

impl Contest for Talk {
    fn open(&self) -> usize {
        self.operators.open() + self.open
    }

    fn begin(&mut self, engine: &mut Engine, side: Side, climb_s: f64) {
        let streams = side == Side::Gateway;
        if streams != self.streaming {
            self.streaming = streams;
            self.tell_all(engine, streams);
        }
        self.operators.begin(engine, side, climb_s);
    }

    fn count(&mut self, window: Range<Nanos>) {
        self.operators.count(window);
    }

    fn keep_up(&mut self, engine: &mut Engine, now: Nanos) -> Option<Nanos> {
        self.operators.keep_up(engine, now)
    }

    fn stop(&mut self) {
        self.operators.stop();
    }

    fn in_flight(&self) -> usize {
        self.operators.in_flight()
    }

    fn give_up(&mut self, now: Nanos) {
        self.operators.give_up(now);
    }

    fn tally(&mut self, side: Side) -> &mut Tally {
        self.operators.tally(side)
    }

    fn lost(&self) -> Option<&str> {
        self.lost.as_deref().or(self.operators.lost())
    }
}

/// Runs the scenario.
pub fn run(options: &Streams, run: &Run) -> Result<Report> {
    ensure!(run.spawn.is_some(), "streams needs --spawn: the gateway has to know the stand-in model");
    let cores = Cores::divide(&run.server_cores, run.client_core, run.workers.unwrap_or(1).into())?;
    let model = Model::start(options.deltas, options.sessions, &cores)?;
    let provider = json!({"baseUrl": format!("http://{}/v1", model.address), "apiKey": "none",
        "models": [{"id": "stand-in", "contextWindow": 100_000, "maxTokens": 10_000}]});
    let target = Target::find_with(run, &json!({"models": {"providers": {"load": provider}}}))?;
    let mut progress = Progress::new("streams", run.progress);
    let sessions = options.sessions as usize;
    let mut engine = engine(run, options.operators as usize + sessions)?;
    let operators_load = Calling::new(Loop::Open(options.rate.into()), vec![Template::call("system-presence", None)])?;
    let mut load = Talk {
        operators: operators_load,
        listeners: Vec::new(),
        open: 0,
        streaming: false,
        said: 0,
        deltas: 0,
        delta_bytes: 0,
        refused: None,
        lost: None,
    };
    let wires = operators(run, &target, options.operators);
    open_all(&mut engine, &mut load, run, &wires, &mut progress, |load, _, key| load.operators.add_operator(key))?;
    let who = Rc::new(Who::Operator(clawgate::id::uuid()));
    let wires = vec![Wire::Gateway(Rc::clone(&target.gateway), who); sessions];
    open_all(&mut engine, &mut load, run, &wires, &mut progress, |load, _, key| load.listeners.push(key))?;

    let plan = Plan {
        rounds: run.rounds,
        duration: run.duration,
        warmup: run.warmup,
        gateway: Contestant { name: "stream", process: target.process },
        against: Some(Contestant { name: "silent", process: target.process }),
    };
    let (streaming, silent) = contest(&mut engine, &mut load, &plan, &mut progress)?;
    ensure!(load.refused.is_none(), "the gateway refused: {}", load.refused.unwrap_or_default());

    let title = format!(
        "{sessions} sessions stream {} deltas a second each, {} operators at {} calls a second",
        options.deltas, options.operators, options.rate
    );
    let mut report = Report::new("streams", title, &target);
    report.columns = ["streaming".to_owned(), "silent".to_owned()];
    report.set("sessions", options.sessions);
    report.set("deltas", options.deltas);
    report.set("operators", options.operators);
    report.set("rate", options.rate);
    report.set("duration", format!("{:?} in {} rounds", run.duration, run.rounds));
    report.add_contest("calls of the operators", &streaming, silent.as_ref());
    // The streams are in there too.
    report.figures.retain(|figure| figure.key != "bytes");
    let count = Some(load.deltas as f64);
    report.figures.push(Figure::new("deltas", "chat deltas heard", Unit::Count, Better::Neither, [count, None]));
    report.note(format!("{} bytes a chat delta on average", load.delta_bytes / load.deltas.max(1)));
    Ok(report)
}
