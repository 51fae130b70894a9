//! The load of `rpc` and `invoke`: operators that call, in a closed or an open loop, beside the floor.
//!
//! Closed loop: every operator keeps `depth` calls in flight. Open loop: calls are due at fixed times, whatever the
//! server does; a call that had to wait, here or there, has waited from when it was due ("coordinated omission" is
//! what happens when it has not).

use std::collections::VecDeque;
use std::ops::Range;

use crate::client::{End, Engine, Key, Link, Load, Nanos};
use crate::rounds::Contest;
use crate::stats::{Side, Tally};
use crate::wire::{Heard, Template, string_value};

/// Calls of one operator that wait for answers. The identifier of a call says whose and which it is, and differs
/// from all others of the run.
#[derive(Debug, Default)]
struct InFlight {
    begun: Vec<Option<Nanos>>,
    generations: Vec<u32>,
    free: Vec<u16>,
}

/// Calls that an operator can have in flight: what the slot's twelve bits of the identifier can tell apart.
const MAX_DEPTH: usize = 1 << 12;

/// Calls of an open loop that may wait until an operator has room.
const MAX_LATE: usize = 1 << 22;

impl InFlight {
    /// Takes a call in. `None` when there is no room.
    #[inline]
    fn begin(&mut self, key: Key, at: Nanos) -> Option<u64> {
        let slot = match self.free.pop() {
            Some(slot) => usize::from(slot),
            None if self.begun.len() == MAX_DEPTH => return None,
            None => {
                self.begun.push(None);
                self.generations.push(0);
                self.begun.len() - 1
            }
        };
        self.begun[slot] = Some(at);
        self.generations[slot] = self.generations[slot].wrapping_add(1);
        Some((key as u64 & 0xf_ffff) << 44 | (slot as u64) << 32 | u64::from(self.generations[slot]))
    }

    /// When the call `id` was begun; `None` when no such call waits.
    #[inline]
    fn end(&mut self, id: u64) -> Option<Nanos> {
        let slot = (id >> 32) as usize & (MAX_DEPTH - 1);
        if self.generations.get(slot) != Some(&(id as u32)) {
            return None;
        }
        let at = self.begun[slot].take()?;
        self.free.push(slot as u16);
        Some(at)
    }
}

/// What a connection is to the load.
#[derive(Debug)]
enum Line {
    /// Nothing yet, or ended.
    None,
    /// An operator.
    Operator(InFlight),
    /// A connection to the floor, whose answers come in the order of the calls.
    Floor(VecDeque<Nanos>),
    /// A node; what precedes and follows the identifier in its answers.
    Node(Box<[String; 2]>),
}

/// How calls come.
#[derive(Clone, Copy, Debug)]
pub enum Loop {
    /// So many in flight on every connection.
    Closed(usize),
    /// So many a second over all connections.
    Open(f64),
}

/// The times of an open loop: from zero to the full rate in a climb, then evenly.
#[derive(Clone, Copy, Debug)]
struct Pace {
    start: Nanos,
    climb_s: f64,
    rate: f64,
    issued: u64,
    turn: usize,
}

impl Pace {
    /// When the next call is due.
    fn due(&self) -> Nanos {
        let number = self.issued as f64;
        let in_climb = self.rate * self.climb_s / 2.0;
        let seconds = if number < in_climb {
            (2.0 * number * self.climb_s / self.rate).sqrt()
        } else {
            self.climb_s + (number - in_climb) / self.rate
        };
        self.start + (seconds * 1e9) as Nanos
    }
}

/// The load.
#[derive(Debug)]
pub struct Calling {
    lines: Vec<Line>,
    operators: Vec<Key>,
    floors: Vec<Key>,
    nodes: usize,
    how: Loop,
    /// What is called, in turns.
    templates: Vec<Template>,
    next_template: usize,
    request: Vec<u8>,
    side: Side,
    issuing: bool,
    pace: Option<Pace>,
    /// Calls that were due when their operator had no room.
    late: VecDeque<Nanos>,
    window: Range<Nanos>,
    in_flight: usize,
    answer_bytes: usize,
    tallies: [Tally; 2],
    /// Connections that ended, which none should have.
    lost: Option<String>,
}

impl Calling {
    /// A load that calls `templates` in turns.
    pub fn new(how: Loop, templates: Vec<Template>) -> anyhow::Result<Self> {
        Ok(Self {
            lines: Vec::new(),
            operators: Vec::new(),
            floors: Vec::new(),
            nodes: 0,
            how,
            request: request(&templates),
            templates,
            next_template: 0,
            side: Side::Gateway,
            issuing: false,
            pace: None,
            late: VecDeque::new(),
            window: 0..0,
            in_flight: 0,
            answer_bytes: 0,
            tallies: [Tally::new()?, Tally::new()?],
            lost: None,
        })
    }

    /// Calls other templates from now on.
    pub fn set_templates(&mut self, templates: Vec<Template>) {
        self.request = request(&templates);
        self.templates = templates;
    }

    /// Bytes of the frame of a call, the first template's.
    pub fn request_bytes(&self) -> usize {
        self.request.len()
    }

    /// Forgets what was counted.
    pub fn forget(&mut self) -> anyhow::Result<()> {
        self.window = 0..0;
        self.tallies = [Tally::new()?, Tally::new()?];
        Ok(())
    }

    fn line(&mut self, key: Key) -> &mut Line {
        if self.lines.len() <= key {
            self.lines.resize_with(key + 1, || Line::None);
        }
        &mut self.lines[key]
    }

    /// Makes the connection `key` an operator, as soon as it is open.
    pub fn add_operator(&mut self, key: Key) {
        *self.line(key) = Line::Operator(InFlight::default());
    }

    /// Makes it a connection to the floor.
    pub fn add_floor(&mut self, key: Key) {
        *self.line(key) = Line::Floor(VecDeque::new());
    }

    /// Makes it the node `node_id`, which answers every call with `payload`.
    pub fn add_node(&mut self, key: Key, node_id: &str, payload: &str) {
        let answer = serde_json::json!({
            "type": "req", "id": "answer", "method": "node.invoke.result",
            "params": {"id": "@", "nodeId": node_id, "ok": true, "payloadJSON": payload},
        });
        let text = answer.to_string();
        let (before, after) = text.split_once('@').unwrap_or_default();
        *self.line(key) = Line::Node(Box::new([before.to_owned(), after.to_owned()]));
    }

    /// Bytes of the text of the last answer.
    pub fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// The connections of the side that is loaded. A contest of two ways to load one gateway has no floor: both of
    /// its sides are the operators.
    fn callers(&self) -> &[Key] {
        match self.side {
            Side::Floor if !self.floors.is_empty() => &self.floors,
            Side::Gateway | Side::Floor => &self.operators,
        }
    }

    /// Calls on `link`, a call that was due at `due`. `false` when the connection has no room for it.
    #[inline]
    fn call(&mut self, link: &mut Link<'_>, due: Nanos) -> bool {
        match &mut self.lines[link.key] {
            Line::Operator(calls) => {
                let Some(id) = calls.begin(link.key, due) else { return false };
                link.call(&mut self.templates[self.next_template], id);
                self.next_template = (self.next_template + 1) % self.templates.len();
            }
            Line::Floor(calls) => {
                calls.push_back(due);
                link.send_raw(&self.request);
            }
            Line::None | Line::Node(_) => return false,
        }
        self.in_flight += 1;
        true
    }

    /// An answer came to a call that was due at `due`.
    #[inline]
    fn answered(&mut self, link: &mut Link<'_>, due: Nanos, ok: bool, text: &str) {
        self.in_flight -= 1;
        let tally = &mut self.tallies[self.side as usize];
        let now_counts = self.window.contains(&link.now);
        if ok {
            tally.operations += u64::from(now_counts);
            self.answer_bytes = text.len();
            let belongs = match self.how {
                Loop::Closed(_) => now_counts,
                Loop::Open(_) => self.window.contains(&due),
            };
            if belongs {
                tally.latencies.record(link.now.saturating_sub(due));
            }
        } else if now_counts {
            tally.fail(|| text.chars().take(400).collect());
        }
        if self.issuing {
            match (self.how, self.late.front()) {
                (Loop::Closed(_), _) => {
                    self.call(link, link.now);
                }
                (Loop::Open(_), Some(due)) => {
                    let due = *due;
                    if self.call(link, due) {
                        self.late.pop_front();
                    }
                }
                (Loop::Open(_), None) => {}
            }
        }
    }
}

impl Load for Calling {
    fn opened(&mut self, link: &mut Link<'_>, _hello: &str) {
        match &self.lines[link.key] {
            Line::Operator(_) => self.operators.push(link.key),
            Line::Floor(_) => self.floors.push(link.key),
            Line::Node(_) => self.nodes += 1,
            Line::None => {}
        }
    }

    #[inline]
    fn text(&mut self, link: &mut Link<'_>, text: &str) {
        match (Heard::of(text), &mut self.lines[link.key]) {
            (Heard::Answer { id, ok }, Line::Operator(calls)) => match calls.end(id) {
                Some(due) => self.answered(link, due, ok, text),
                None => self.tallies[0].fail(|| format!("an answer to no call: {text}")),
            },
            (Heard::Event { name: "node.invoke.request", rest }, Line::Node(answer)) => {
                if let Some(id) = string_value(rest, "id") {
                    let [before, after] = &**answer;
                    link.send_parts(&[before.as_bytes(), id.as_bytes(), after.as_bytes()]);
                }
            }
            _ => {}
        }
    }

    #[inline]
    fn answers(&mut self, link: &mut Link<'_>, count: usize) {
        for _ in 0..count {
            let Line::Floor(calls) = &mut self.lines[link.key] else { return };
            let Some(due) = calls.pop_front() else { return };
            self.answered(link, due, true, "");
        }
    }

    fn closed(&mut self, key: Key, end: End) {
        self.lines[key] = Line::None;
        self.lost.get_or_insert_with(|| format!("a connection {end}"));
    }
}

/// What the floor gets for a call.
fn request(templates: &[Template]) -> Vec<u8> {
    vec![b'x'; templates.first().map_or(0, Template::frame_bytes)]
}

impl Contest for Calling {
    fn open(&self) -> usize {
        self.operators.len() + self.floors.len() + self.nodes
    }

    fn begin(&mut self, engine: &mut Engine, side: Side, climb_s: f64) {
        self.side = side;
        self.issuing = true;
        let start = engine.now();
        match self.how {
            Loop::Closed(depth) => {
                for key in self.callers().to_vec() {
                    engine.with(key, self, start, |load, link| {
                        for _ in 0..depth {
                            load.call(link, link.now);
                        }
                    });
                }
            }
            Loop::Open(rate) => self.pace = Some(Pace { start, climb_s, rate, issued: 0, turn: 0 }),
        }
    }

    fn count(&mut self, window: Range<Nanos>) {
        self.window = window;
    }

    fn keep_up(&mut self, engine: &mut Engine, now: Nanos) -> Option<Nanos> {
        let mut pace = self.pace.filter(|_| self.issuing)?;
        while pace.due() <= now && !self.callers().is_empty() {
            let due = pace.due();
            pace.issued += 1;
            pace.turn = (pace.turn + 1) % self.callers().len();
            let key = self.callers()[pace.turn];
            // Behind those that wait already, nobody is early.
            let called =
                self.late.is_empty() && engine.with(key, self, now, |load, link| load.call(link, due)) == Some(true);
            if !called && self.late.len() < MAX_LATE {
                self.late.push_back(due);
            } else if !called {
                self.tallies[self.side as usize].fail(|| "too many calls wait to be made".to_owned());
            }
        }
        self.pace = Some(pace);
        Some(pace.due())
    }

    fn stop(&mut self) {
        self.issuing = false;
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn give_up(&mut self, now: Nanos) {
        // What never came has taken at least until now.
        let mut unanswered: Vec<Nanos> = self.late.drain(..).collect();
        for line in &mut self.lines {
            match line {
                Line::Operator(calls) => {
                    unanswered.extend(calls.begun.iter().flatten());
                    *calls = InFlight { generations: std::mem::take(&mut calls.generations), ..InFlight::default() };
                    calls.begun = vec![None; calls.generations.len()];
                    calls.free = (0..calls.begun.len() as u16).collect();
                }
                Line::Floor(_) | Line::None | Line::Node(_) => {}
            }
        }
        let tally = &mut self.tallies[self.side as usize];
        for due in unanswered.into_iter().filter(|due| self.window.contains(due)) {
            tally.latencies.record(now - due);
            tally.fail(|| "no answer came in time".to_owned());
        }
        self.in_flight = 0;
    }

    fn tally(&mut self, side: Side) -> &mut Tally {
        &mut self.tallies[side as usize]
    }

    fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_the_call_it_answers_and_no_other() {
        let mut calls = InFlight::default();
        let first = calls.begin(7, 10).unwrap();
        let second = calls.begin(7, 20).unwrap();
        assert_eq!(calls.end(second), Some(20));
        assert_eq!(calls.end(second), None);
        let third = calls.begin(7, 30).unwrap();
        assert_ne!(third, second);
        assert_eq!(calls.end(second), None);
        assert_eq!((calls.end(first), calls.end(third)), (Some(10), Some(30)));
    }

    #[test]
    fn an_operator_has_room_for_so_many_calls() {
        let mut calls = InFlight::default();
        assert!((0..MAX_DEPTH).all(|_| calls.begin(1, 1).is_some()));
        assert_eq!(calls.begin(1, 1), None);
    }

    #[test]
    fn an_open_loop_climbs_to_its_rate() {
        let mut pace = Pace { start: 0, climb_s: 2.0, rate: 100.0, issued: 0, turn: 0 };
        let mut due = Vec::new();
        for _ in 0..201 {
            due.push(pace.due() as f64 / 1e9);
            pace.issued += 1;
        }
        assert!(due.is_sorted());
        assert!((due[25] - 1.0).abs() < 0.01, "a quarter of the climb's calls in its first half: {}", due[25]);
        assert!((due[100] - 2.0).abs() < 0.01 && (due[200] - 3.0).abs() < 0.01, "{} {}", due[100], due[200]);
    }
}
