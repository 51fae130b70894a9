//! `slow`: one operator stops reading while others work.
//!
//! In both columns somebody calls a node for a large burst of answers, again and again: in the one he asks for all
//! at once and reads none, in the other he asks as he reads. What the difference does to the others is the figure;
//! how it ends for him is the note.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{engine, nodes, open_all, operators};
use crate::args::{Run, Slow};
use crate::calls::{Calling, Loop};
use crate::client::{End, Engine, Key, Link, Load, Nanos, Wire};
use crate::control::Control;
use crate::progress::Progress;
use crate::report::{Better, Figure, Report, Unit};
use crate::rounds::{Contest, Contestant, Plan, contest, nanos};
use crate::stats::{Side, Tally};
use crate::target::Target;
use crate::wire::{Heard, Template, Who};

/// Bytes of one answer of a burst.
const ANSWER_BYTES: usize = 64 * 1024;
/// What a kernel may hold of a connection, at both ends: the defaults of Linux.
const KERNEL_BYTES: u64 = 8 * 1024 * 1024;
/// Pause between two bursts.
const PAUSE: Duration = Duration::from_millis(500);
/// Time after which one who reads again and is not closed, never will be.
const PATIENCE: Duration = Duration::from_secs(5);

/// The one with the bursts.
#[derive(Debug)]
enum Guest {
    /// The next one comes then.
    Away(Nanos),
    /// Under way to being one.
    Coming(Key),
    /// Waits for this many answers, since then, and has this many calls to make yet.
    Burst { key: Key, missing: usize, calls_left: usize, since: Nanos, reading: bool },
    /// Has said goodbye.
    Leaving(Key),
}

/// The others, and him.
#[derive(Debug)]
struct Company {
    others: Calling,
    wire: Wire,
    call: Template,
    burst: usize,
    /// Calls that he keeps in flight who reads: what the gateway holds for one is four times as much.
    window: usize,
    stall: Nanos,
    guest: Guest,
    /// Whether he stops reading.
    stops: bool,
    issuing: bool,
    /// How it ended, and how often.
    ends: [BTreeMap<String, u64>; 2],
    calls: u64,
}

impl Company {
    fn key(&self) -> Option<Key> {
        match self.guest {
            Guest::Coming(key) | Guest::Burst { key, .. } | Guest::Leaving(key) => Some(key),
            Guest::Away(_) => None,
        }
    }

    fn ended(&mut self, how: String) {
        *self.ends[usize::from(!self.stops)].entry(how).or_default() += 1;
    }
}

impl Load for Company {
    fn opened(&mut self, link: &mut Link<'_>, hello: &str) {
        if self.key() != Some(link.key) {
            return self.others.opened(link, hello);
        }
        let at_once = if self.stops { self.burst } else { self.burst.min(self.window) };
        for _ in 0..at_once {
            self.calls += 1;
            link.call(&mut self.call, self.calls);
        }
        if self.stops {
            link.pause();
        }
        self.guest = Guest::Burst {
            key: link.key,
            missing: self.burst,
            calls_left: self.burst - at_once,
            since: link.now,
            reading: !self.stops,
        };
    }

    fn text(&mut self, link: &mut Link<'_>, text: &str) {
        if self.key() != Some(link.key) {
            return self.others.text(link, text);
        }
        if let (Guest::Burst { missing, calls_left, key, .. }, Heard::Answer { .. }) =
            (&mut self.guest, Heard::of(text))
        {
            *missing -= 1;
            if *calls_left > 0 {
                *calls_left -= 1;
                self.calls += 1;
                link.call(&mut self.call, self.calls);
            }
            if *missing == 0 {
                self.guest = Guest::Leaving(*key);
                link.leave();
            }
        }
    }

    fn answers(&mut self, _: &mut Link<'_>, _: usize) {}

    fn closed(&mut self, key: Key, end: End) {
        if self.key() != Some(key) {
            return self.others.closed(key, end);
        }
        self.ended(match end {
            End::Left => "got everything".to_owned(),
            end => end.to_string(),
        });
        self.guest = Guest::Away(0);
    }
}

impl Contest for Company {
    fn open(&self) -> usize {
        self.others.open()
    }

    fn begin(&mut self, engine: &mut Engine, side: Side, climb_s: f64) {
        self.stops = side == Side::Gateway;
        self.issuing = true;
        if let Some(key) = self.key() {
            engine.cut(key);
        }
        self.guest = Guest::Away(engine.now());
        self.others.begin(engine, side, climb_s);
    }

    fn count(&mut self, window: Range<Nanos>) {
        self.others.count(window);
    }

    fn keep_up(&mut self, engine: &mut Engine, now: Nanos) -> Option<Nanos> {
        match self.guest {
            Guest::Away(0) => self.guest = Guest::Away(now + nanos(PAUSE)),
            Guest::Away(then) if now >= then && self.issuing => match engine.open(&self.wire) {
                Ok(key) => {
                    self.guest = Guest::Coming(key);
                    if self.stops {
                        // A small window: what is not read stays with the gateway. Without it, it takes longer.
                        let _ = engine.narrow(key, 16 * 1024);
                    }
                }
                Err(error) => {
                    self.ended(format!("could not connect: {error}"));
                    self.guest = Guest::Away(now + nanos(PAUSE));
                }
            },
            Guest::Burst { key, since, ref mut reading, .. } if !*reading && now >= since + self.stall => {
                *reading = true;
                engine.resume(key, self);
            }
            Guest::Burst { key, since, reading: true, .. } if now >= since + self.stall + nanos(PATIENCE) => {
                self.ended("was given up, not having got everything".to_owned());
                engine.cut(key);
                self.guest = Guest::Away(now + nanos(PAUSE));
            }
            _ => {}
        }
        self.others.keep_up(engine, now)
    }

    fn stop(&mut self) {
        self.issuing = false;
        self.others.stop();
    }

    fn in_flight(&self) -> usize {
        self.others.in_flight() + usize::from(self.key().is_some())
    }

    fn give_up(&mut self, now: Nanos) {
        self.others.give_up(now);
    }

    fn tally(&mut self, side: Side) -> &mut Tally {
        self.others.tally(side)
    }

    fn lost(&self) -> Option<&str> {
        self.others.lost()
    }
}

/// Runs the scenario.
pub fn run(options: &Slow, run: &Run) -> Result<Report> {
    let target = Target::find(run)?;
    let mut progress = Progress::new("slow", run.progress);
    let mut engine = engine(run, options.operators as usize + 8)?;
    let mut others = Calling::new(Loop::Open(options.rate.into()), vec![Template::call("system-presence", None)])?;
    let call = nodes::connect(&mut engine, &mut others, run, &target, 1, [0, ANSWER_BYTES])?;
    let wires = operators(run, &target, options.operators);
    open_all(&mut engine, &mut others, run, &wires, &mut progress, |load, _, key| load.add_operator(key))?;

    let hello = Control::connect(&target.gateway)?.hello()?;
    let held = hello["policy"]["maxBufferedBytes"].as_u64().unwrap_or(4 << 20);
    let burst_bytes = options.burst_bytes.map_or(2 * held + KERNEL_BYTES, u64::from);
    let burst = usize::try_from(burst_bytes / ANSWER_BYTES as u64)?.max(1);
    let who = Rc::new(Who::Operator(clawgate::id::uuid()));
    let mut load = Company {
        others,
        wire: Wire::Gateway(Rc::clone(&target.gateway), who),
        call: call.into_iter().next().context("no node")?,
        burst,
        window: usize::try_from(held / 4 / ANSWER_BYTES as u64)?.max(1),
        stall: nanos(options.stall),
        guest: Guest::Away(0),
        stops: false,
        issuing: false,
        ends: [BTreeMap::new(), BTreeMap::new()],
        calls: 0,
    };
    let plan = Plan {
        rounds: run.rounds,
        duration: run.duration,
        warmup: run.warmup,
        gateway: Contestant { name: "stops", process: target.process },
        against: Some(Contestant { name: "reads", process: target.process }),
    };
    let (stops, reads) = contest(&mut engine, &mut load, &plan, &mut progress)?;

    let title = format!("one stops reading, {} operators at {} calls a second", options.operators, options.rate);
    let mut report = Report::new("slow", title, &target);
    report.columns = ["stops reading".to_owned(), "reads".to_owned()];
    report.set("operators", options.operators);
    report.set("rate", options.rate);
    report.set("burst", format!("{burst} answers of {ANSWER_BYTES} B"));
    report.set("stall", format!("{:?}", options.stall));
    report.set("duration", format!("{:?} in {} rounds", run.duration, run.rounds));
    report.add_contest("calls of the others", &stops, reads.as_ref());
    // The bursts are in there too.
    report.figures.retain(|figure| figure.key != "bytes");
    let closed = |column: usize| {
        let ends = load.ends[column].iter().filter(|(how, _)| how.starts_with("was closed with 1008 "));
        Some(ends.map(|(_, count)| *count).sum::<u64>() as f64)
    };
    let all = |column: usize| Some(load.ends[column].values().sum::<u64>() as f64);
    let neither = Better::Neither;
    report.figures.push(Figure::new("bursts", "bursts", Unit::Count, neither, [all(0), all(1)]));
    report.figures.push(Figure::new("closed", "closed with 1008", Unit::Count, neither, [closed(0), closed(1)]));
    for (name, ends) in report.columns.clone().iter().zip(&load.ends) {
        for (how, count) in ends {
            report.note(format!("the operator who {name} {how} ({count} times)"));
        }
    }
    Ok(report)
}
