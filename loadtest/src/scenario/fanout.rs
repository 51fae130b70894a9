//! `fanout`: one event to many operators, again as soon as all of them have it.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{engine, floor_wire, open_all, operators, plan};
use crate::args::{Fanout, Run, Trigger};
use crate::client::{End, Engine, Key, Link, Load, Nanos};
use crate::control::Control;
use crate::floor::{Floor, Kind};
use crate::progress::Progress;
use crate::report::{Better, Figure, Report, Unit};
use crate::rounds::{Contest, contest, nanos};
use crate::stats::{Side, Tally};
use crate::target::Target;
use crate::wire::{Heard, Template, received_frame_bytes};

/// Time that an event has to reach everybody; who does not have it then has lost it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What tells a delivery of the present event from one of an earlier event.
#[derive(Debug)]
struct Sign {
    /// Name of the event.
    event: &'static str,
    /// What its payload holds.
    text: String,
}

/// The listeners of both sides, and the event that is under way.
#[derive(Debug)]
struct Broadcast {
    trigger: Trigger,
    listeners: [Vec<Key>; 2],
    /// Which event each connection has had last.
    had: Vec<u64>,
    /// What the next heartbeat event says: the gateway tells of a change only.
    enabled: bool,
    /// Numbers the events.
    event: u64,
    sign: Sign,
    begun: Nanos,
    missing: usize,
    side: Side,
    issuing: bool,
    window: Range<Nanos>,
    events: [u64; 2],
    delivery_bytes: usize,
    tallies: [Tally; 2],
    lost: Option<String>,
}

impl Broadcast {
    fn new(trigger: Trigger) -> Result<Self> {
        Ok(Self {
            trigger,
            listeners: [Vec::new(), Vec::new()],
            had: Vec::new(),
            enabled: false,
            event: 0,
            sign: Sign { event: "", text: String::new() },
            begun: 0,
            missing: 0,
            side: Side::Gateway,
            issuing: false,
            window: 0..0,
            events: [0; 2],
            delivery_bytes: 0,
            tallies: [Tally::new()?, Tally::new()?],
            lost: None,
        })
    }

    /// Makes the next event happen.
    fn fire(&mut self, engine: &mut Engine, now: Nanos) {
        self.event += 1;
        let (event, text, method, params) = match self.trigger {
            Trigger::Heartbeat => {
                let enabled = self.enabled;
                self.enabled ^= self.side == Side::Gateway;
                ("heartbeat", format!(r#""enabled":{enabled}"#), "set-heartbeats", json!({"enabled": enabled}))
            }
            Trigger::Presence => {
                let text = format!("loadtest event {:016}", self.event);
                let params = json!({"text": text, "instanceId": "loadtest-fanout", "mode": "test"});
                ("presence", text, "system-event", params)
            }
        };
        self.sign = Sign { event, text };
        self.begun = now;
        let listeners = &self.listeners[self.side as usize];
        self.missing = listeners.len();
        let Some(first) = listeners.first().copied() else { return };
        let mut call = Template::call(method, Some(&params));
        let id = self.event;
        if self.side == Side::Floor {
            // The one that triggers does not get what it triggered there.
            self.missing -= 1;
            self.had[first] = id;
        }
        engine.with(first, self, now, |load, link| match load.side {
            Side::Gateway => link.call(&mut call, id),
            Side::Floor => link.send_raw(b"!"),
        });
    }

    fn delivered(&mut self, link: &Link<'_>) {
        if self.missing == 0 || self.had[link.key] == self.event {
            return;
        }
        self.had[link.key] = self.event;
        self.missing -= 1;
        let tally = &mut self.tallies[self.side as usize];
        if self.window.contains(&link.now) {
            tally.operations += 1;
            tally.latencies.record(link.now.saturating_sub(self.begun));
            self.events[self.side as usize] += u64::from(self.missing == 0);
        }
    }
}

impl Load for Broadcast {
    fn opened(&mut self, link: &mut Link<'_>, hello: &str) {
        let side = if hello.is_empty() { Side::Floor } else { Side::Gateway };
        self.listeners[side as usize].push(link.key);
        if self.had.len() <= link.key {
            self.had.resize(link.key + 1, 0);
        }
    }

    fn text(&mut self, link: &mut Link<'_>, text: &str) {
        match Heard::of(text) {
            Heard::Event { name, rest } if name == self.sign.event && rest.contains(&self.sign.text) => {
                self.delivery_bytes = text.len();
                self.delivered(link);
            }
            Heard::Answer { ok: false, .. } => self.tallies[0].fail(|| text.to_owned()),
            _ => {}
        }
    }

    fn answers(&mut self, link: &mut Link<'_>, _: usize) {
        self.delivered(link);
    }

    fn closed(&mut self, _: Key, end: End) {
        self.lost.get_or_insert_with(|| format!("a connection {end}"));
    }
}

impl Contest for Broadcast {
    fn open(&self) -> usize {
        self.listeners.iter().map(Vec::len).sum()
    }

    fn begin(&mut self, _: &mut Engine, side: Side, _: f64) {
        self.side = side;
        self.issuing = true;
        self.missing = 0;
    }

    fn count(&mut self, window: Range<Nanos>) {
        self.window = window;
    }

    fn keep_up(&mut self, engine: &mut Engine, now: Nanos) -> Option<Nanos> {
        if self.missing > 0 && now.saturating_sub(self.begun) > nanos(PATIENCE) {
            self.give_up(now);
        }
        if self.issuing && self.missing == 0 {
            self.fire(engine, now);
        }
        None
    }

    fn stop(&mut self) {
        self.issuing = false;
    }

    fn in_flight(&self) -> usize {
        self.missing
    }

    fn give_up(&mut self, _: Nanos) {
        let tally = &mut self.tallies[self.side as usize];
        for _ in 0..std::mem::take(&mut self.missing) {
            tally.fail(|| format!("an event did not arrive within {} s", PATIENCE.as_secs()));
        }
    }

    fn tally(&mut self, side: Side) -> &mut Tally {
        &mut self.tallies[side as usize]
    }

    fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }
}

/// Runs the scenario.
pub fn run(options: &Fanout, run: &Run) -> Result<Report> {
    let target = Target::find(run)?;
    let mut progress = Progress::new("fanout", run.progress);
    let count = options.operators;
    let mut engine = engine(run, 2 * count as usize + 1)?;
    let mut load = Broadcast::new(options.trigger)?;
    let wires = operators(run, &target, count);
    open_all(&mut engine, &mut load, run, &wires, &mut progress, |_, _, _| {})?;

    if options.trigger == Trigger::Heartbeat {
        // The load begins by switching them off: what is off already would tell nobody.
        let mut control = Control::connect(&target.gateway)?;
        control.call("set-heartbeats", Some(&json!({"enabled": true})))?.payload().context("set-heartbeats")?;
    }
    let deadline = engine.now() + nanos(PATIENCE);
    load.begin(&mut engine, Side::Gateway, 0.0);
    while load.delivery_bytes == 0 || load.missing > 0 {
        let now = engine.now();
        ensure!(
            now < deadline,
            "the event reached {} of {count} operators within {} s: this gateway may not tell of it; try another \
             --trigger",
            count as usize - load.missing,
            PATIENCE.as_secs(),
        );
        if load.event == 0 {
            load.keep_up(&mut engine, now);
        }
        engine.turn(&mut load, Duration::from_millis(5))?;
    }
    load.stop();

    let message_bytes = received_frame_bytes(load.delivery_bytes);
    let floor = (!run.no_floor).then(|| Floor::start(&Kind::Send { message_bytes }, &target.cores)).transpose()?;
    if let Some(floor) = &floor {
        let wires = vec![floor_wire(floor, message_bytes); count as usize + 1];
        open_all(&mut engine, &mut load, run, &wires, &mut progress, |_, _, _| {})?;
    }
    let (gateway, beside) = contest(&mut engine, &mut load, &plan(run, &target, floor.as_ref()), &mut progress)?;

    let trigger = load.sign.event;
    let mut report = Report::new("fanout", format!("{trigger} to {count} operators"), &target);
    report.set("operators", count);
    report.set("trigger", trigger);
    report.set("duration", format!("{:?} in {} rounds", run.duration, run.rounds));
    report.set("bytes", format!("{message_bytes} a delivery"));
    report.add_contest("deliveries", &gateway, beside.as_ref());
    let seconds = [Some(gateway.seconds()), beside.as_ref().map(crate::stats::Measured::seconds)];
    let events = [0, 1].map(|side| seconds[side].map(|seconds| load.events[side] as f64 / seconds));
    report.figures.insert(1, Figure::new("events", "events", Unit::PerSecond, Better::Higher, events));
    Ok(report)
}
