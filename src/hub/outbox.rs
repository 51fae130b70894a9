//! What waits to be written to one connection: a bounded queue without IO.
//!
//! Anyone may push; the connection's driver drains. Bytes are bounded per connection and for the whole
//! process ([`Budget`]). A consumer that does not keep up loses droppable events first (their `seq` is
//! used up, so the client sees the gap); when something that must arrive does not fit, the outbox closes
//! itself with 1008 and gives its memory back. Nobody else ever waits for it.

mod budget;
pub mod spare;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

pub use budget::Budget;

use crate::rpc::catalog::{Delivery, Event};
use crate::wake::Home;
use crate::ws::close::CloseCode;

/// An event's text up to where recipients differ, shared by all of them.
///
/// Shape: `{"type":"event","event":"tick","payload":{..},"stateVersion":{..}` — without the closing brace, so
/// that `,"seq":7}` can follow.
#[derive(Debug)]
pub struct EncodedEvent {
    event: &'static Event,
    head: Vec<u8>,
}

impl EncodedEvent {
    /// Encodes `event` once. `payload` is JSON; `state_version` is JSON of `{"presence":..,"health":..}`.
    pub fn new(event: &'static Event, payload: &[u8], state_version: Option<&[u8]>) -> Self {
        let mut head = Vec::with_capacity(payload.len() + event.name.len() + 96);
        head.extend_from_slice(br#"{"type":"event","event":""#);
        head.extend_from_slice(event.name.as_bytes());
        head.extend_from_slice(br#"","payload":"#);
        head.extend_from_slice(payload);
        if let Some(version) = state_version {
            head.extend_from_slice(br#","stateVersion":"#);
            head.extend_from_slice(version);
        }
        Self { event, head }
    }

    /// Which event it is.
    pub const fn event(&self) -> &'static Event {
        self.event
    }

    /// Appends the whole text for a recipient whose next number is `seq`.
    pub fn write(&self, seq: Option<u64>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        if let Some(seq) = seq {
            out.extend_from_slice(br#","seq":"#);
            write_decimal(seq, out);
        }
        out.push(b'}');
    }
}

/// Appends `number` in decimal.
fn write_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// One message that waits, as text without its frame.
#[derive(Debug)]
pub enum Item {
    /// A complete text: a response, or an event to this connection alone.
    Text(Vec<u8>),
    /// A shared event with this connection's number for it.
    Event(Arc<EncodedEvent>, u64),
    /// A WebSocket ping.
    Ping,
    /// Nothing to write: the driver may take requests again.
    Resume,
}

impl Item {
    fn bytes(&self) -> usize {
        // What a queued item costs beside its own bytes: the slot, and a share of the bookkeeping.
        const SLOT: usize = 48;
        SLOT + match self {
            // What it holds in memory, which may be more than it says.
            Self::Text(text) => text.capacity(),
            Self::Event(event, _) => event.head.len() + 28,
            Self::Ping => 2,
            Self::Resume => 0,
        }
    }
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits.
    Queued,
    /// It was left out, as a droppable event may be.
    Dropped,
    /// It did not fit: the connection is closing as a slow consumer, now or already.
    Refused,
}

/// What was more than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch {
    /// Bytes there were, or would have been.
    pub bytes: u64,
    /// Bytes there may be.
    pub limit: u64,
}

/// Why and how a connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Code of the close frame.
    pub code: CloseCode,
    /// Reason of the close frame, also for the log.
    pub reason: String,
    /// Whether what waits is still to be written first.
    pub flush: bool,
    /// What would have waited, where that is the reason.
    pub too_much: Option<TooMuch>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Item>,
    queued_bytes: usize,
    seq: u64,
    dropped: u64,
    closing: Option<Closing>,
    waker: Option<Waker>,
    /// Where the driver runs.
    home: Home,
    /// The driver cannot write now: pushes need not wake it, a close does.
    blocked: bool,
}

impl State {
    #[inline]
    fn watch(&mut self, waker: &Waker, blocked: bool) {
        self.blocked = blocked;
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
            self.home = Home::here();
        }
    }
}

/// The queue of one connection.
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
    /// The driver has something to look at: set with the lock held, read without it on every turn.
    signalled: AtomicBool,
    /// Mirrors `state.closing.is_some()`, for a look without the lock.
    is_closing: AtomicBool,
    /// Bytes of what was drained and may not have left the process yet: still the connection's to answer for.
    drained_bytes: AtomicUsize,
    budget: Arc<Budget>,
    limit_bytes: usize,
}

impl Outbox {
    /// An empty queue of at most `limit_bytes`, which also count against `budget`.
    pub fn new(limit_bytes: usize, budget: Arc<Budget>) -> Self {
        Self {
            state: Mutex::default(),
            // The first drain takes the lock, and leaves its waker.
            signalled: AtomicBool::new(true),
            is_closing: AtomicBool::new(false),
            drained_bytes: AtomicUsize::new(0),
            budget,
            limit_bytes,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way; a poisoned lock still holds a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a complete text.
    pub fn push_text(&self, text: impl Into<Vec<u8>>) -> Pushed {
        self.push(|_| Item::Text(text.into()), Delivery::Kept)
    }

    /// Queues a shared event under this connection's next number.
    pub fn push_event(&self, event: &Arc<EncodedEvent>) -> Pushed {
        self.push(
            |state| {
                state.seq += 1;
                Item::Event(Arc::clone(event), state.seq)
            },
            event.event.delivery,
        )
    }

    /// Queues a ping.
    pub fn push_ping(&self) -> Pushed {
        self.push(|_| Item::Ping, Delivery::Droppable)
    }

    /// Lets the driver take requests again, once it has written what was queued before.
    pub fn push_resume(&self) -> Pushed {
        self.push(|_| Item::Resume, Delivery::Kept)
    }

    fn push(&self, item: impl FnOnce(&mut State) -> Item, delivery: Delivery) -> Pushed {
        let mut state = self.state();
        if state.closing.is_some() {
            return Pushed::Refused;
        }
        let item = item(&mut state);
        let bytes = item.bytes();
        // Droppable events may fill half of the room, so that what must arrive finds some.
        let room = if delivery == Delivery::Droppable { self.limit_bytes / 2 } else { self.limit_bytes };
        // An empty queue takes any one message: the limit is on what piles up, not on a message's size.
        let waiting = state.queued_bytes + self.drained_bytes.load(Ordering::Relaxed);
        let fits = waiting == 0 || waiting + bytes <= room;
        if fits && self.budget.take(bytes) {
            state.queued_bytes += bytes;
            state.queue.push_back(item);
            let wake = !state.blocked;
            self.signal(&state, wake);
            Pushed::Queued
        } else if delivery == Delivery::Droppable {
            state.dropped += 1;
            Pushed::Dropped
        } else {
            let reason = "slow consumer".to_owned();
            let limit = if fits { self.budget.limit() } else { room };
            let too_much = Some(TooMuch { bytes: (waiting + bytes) as u64, limit: limit as u64 });
            self.close_locked(
                &mut state,
                Closing { code: CloseCode::POLICY_VIOLATION, reason, flush: false, too_much },
            );
            Pushed::Refused
        }
    }

    /// Asks for the connection to be closed; the first reason stands.
    pub fn close(&self, closing: Closing) {
        let mut state = self.state();
        if state.closing.is_none() {
            self.close_locked(&mut state, closing);
        }
    }

    /// Lets the driver know, once until it has looked. Waking under the lock costs the driver a short wait at worst; a
    /// waker that is cloned and dropped to wake outside of it costs every push.
    fn signal(&self, state: &State, wake: bool) {
        let first = !self.signalled.swap(true, Ordering::Release);
        if wake
            && (first || state.closing.is_some())
            && let Some(waker) = &state.waker
        {
            state.home.wake(waker);
        }
    }

    fn close_locked(&self, state: &mut State, closing: Closing) {
        if !closing.flush {
            state.queue = VecDeque::new();
            self.budget.give_back(std::mem::take(&mut state.queued_bytes));
        }
        state.closing = Some(closing);
        self.is_closing.store(true, Ordering::Release);
        self.signal(state, true);
    }

    /// Whether the connection is to be closed: nothing more is to be done for it.
    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Takes items out, oldest first, handing each to `take`, until it says to stop. Returns the closing reason once
    /// nothing more waits. The next push, or close, wakes `waker`, which has to be that of one task for as long as the
    /// queue lives.
    ///
    /// What was drained counts as waiting until [`Outbox::settle`] says that it has left the process.
    ///
    /// Cost: an atomic load when nothing has come since the queue was last emptied.
    pub fn drain(&self, waker: &Waker, mut take: impl FnMut(Item) -> bool) -> Option<Closing> {
        if !self.signalled.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state();
        while let Some(item) = state.queue.pop_front() {
            let bytes = item.bytes();
            state.queued_bytes -= bytes;
            self.drained_bytes.fetch_add(bytes, Ordering::Relaxed);
            if !take(item) {
                return None;
            }
        }
        if state.queue.capacity() > 64 {
            state.queue = VecDeque::new();
        }
        state.watch(waker, false);
        if state.closing.is_none() {
            self.signalled.store(false, Ordering::Relaxed);
        }
        state.closing.clone()
    }

    /// Everything that was drained has left the process: its bytes are given back.
    pub fn settle(&self) {
        let bytes = self.drained_bytes.swap(0, Ordering::Relaxed);
        if bytes > 0 {
            self.budget.give_back(bytes);
        }
    }

    /// Registers `waker` for a close alone: the driver has something half written and can take no more. Returns
    /// the closing reason at once, whatever still waits.
    pub fn watch_close(&self, waker: &Waker) -> Option<Closing> {
        let mut state = self.state();
        state.watch(waker, true);
        // The next drain takes the lock, and listens to pushes again.
        self.signalled.store(true, Ordering::Relaxed);
        state.closing.clone()
    }

    /// Whether the next [`Outbox::drain`] may find something.
    pub fn is_signalled(&self) -> bool {
        self.signalled.load(Ordering::Acquire)
    }

    /// Bytes that wait, drained ones that may not have left yet included.
    pub fn queued_bytes(&self) -> usize {
        self.state().queued_bytes + self.drained_bytes.load(Ordering::Relaxed)
    }

    /// Droppable events left out so far.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let bytes = self.queued_bytes();
        self.budget.give_back(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(limit: usize) -> Outbox {
        Outbox::new(limit, Arc::new(Budget::new(1 << 20)))
    }

    fn drain(outbox: &Outbox) -> (Vec<String>, Option<Closing>) {
        let mut texts = Vec::new();
        let closing = outbox.drain(Waker::noop(), |item| {
            let mut out = Vec::new();
            match item {
                Item::Text(text) => out.extend_from_slice(&text),
                Item::Event(event, seq) => event.write(Some(seq), &mut out),
                Item::Ping => out.extend_from_slice(b"ping"),
                Item::Resume => {}
            }
            texts.push(String::from_utf8(out).unwrap());
            true
        });
        (texts, closing)
    }

    #[test]
    fn numbers_events_per_connection_and_keeps_their_order() {
        let event = Arc::new(EncodedEvent::new(Event::TICK, br#"{"ts":1}"#, None));
        let (a, b) = (outbox(1000), outbox(1000));
        a.push_event(&event);
        a.push_text("{}");
        a.push_event(&event);
        b.push_event(&event);
        let tick = |seq: u64| format!(r#"{{"type":"event","event":"tick","payload":{{"ts":1}},"seq":{seq}}}"#);
        assert_eq!(drain(&a).0, [tick(1), "{}".to_owned(), tick(2)]);
        assert_eq!(drain(&b).0, [tick(1)]);
    }

    #[test]
    fn a_slow_consumer_loses_droppable_events_first_and_sees_the_gap() {
        let outbox = outbox(600);
        let tick = Arc::new(EncodedEvent::new(Event::TICK, &[b'1'; 100], None));
        let pushed: Vec<_> = (0..4).map(|_| outbox.push_event(&tick)).collect();
        assert_eq!(pushed, [Pushed::Queued, Pushed::Dropped, Pushed::Dropped, Pushed::Dropped]);
        assert_eq!(outbox.push_text("kept"), Pushed::Queued);
        assert_eq!(outbox.dropped(), 3);
        assert_eq!(drain(&outbox).0.len(), 2);
        assert_eq!(outbox.push_event(&tick), Pushed::Dropped, "what was drained may not have left yet");
        outbox.settle();
        outbox.push_event(&tick);
        assert!(drain(&outbox).0[0].ends_with(r#","seq":6}"#));
    }

    #[test]
    fn a_slow_consumer_is_closed_when_something_must_arrive() {
        let outbox = outbox(300);
        assert_eq!(outbox.push_text(vec![b'x'; 200]), Pushed::Queued);
        assert_eq!(outbox.push_text(vec![b'x'; 200]), Pushed::Refused);
        assert_eq!(outbox.push_text("later"), Pushed::Refused);
        assert_eq!(outbox.queued_bytes(), 0);
        let (texts, closing) = drain(&outbox);
        assert!(texts.is_empty());
        assert_eq!(closing.unwrap().reason, "slow consumer");
    }

    #[test]
    fn one_large_message_fits_an_empty_queue() {
        assert_eq!(outbox(100).push_text(vec![b'x'; 5000]), Pushed::Queued);
    }

    #[test]
    fn the_budget_of_the_process_is_shared_and_given_back() {
        let budget = Arc::new(Budget::new(500));
        let (a, b) = (Outbox::new(1000, budget.clone()), Outbox::new(1000, budget.clone()));
        assert_eq!(a.push_text(vec![b'x'; 400]), Pushed::Queued);
        assert_eq!(b.push_text(vec![b'x'; 400]), Pushed::Refused);
        drop(a);
        assert_eq!(budget.used(), 0);
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl std::task::Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn wakes_once_for_a_burst_and_not_while_the_driver_cannot_write() {
        let (outbox, bell) = (outbox(1 << 16), Arc::new(Bell::default()));
        let waker = Waker::from(Arc::clone(&bell));
        let empty = || outbox.drain(&waker, |_| true);
        let woken = || bell.0.swap(0, Ordering::Relaxed);
        outbox.push_text("before the driver looked");
        empty();
        assert_eq!(woken(), 0);
        outbox.push_text("a");
        outbox.push_text("b");
        assert_eq!(woken(), 1);
        empty();
        outbox.watch_close(&waker);
        outbox.push_text("c");
        assert_eq!(woken(), 0, "it cannot be written");
        empty();
        outbox.watch_close(&waker);
        empty();
        outbox.push_text("d");
        assert_eq!(woken(), 1, "written again, it listens again");
        outbox.watch_close(&waker);
        outbox.close(Closing { code: CloseCode::POLICY_VIOLATION, reason: "x".into(), flush: true, too_much: None });
        assert_eq!(woken(), 1, "a close is heard at any time");
    }

    #[test]
    fn an_orderly_close_lets_the_queue_out_first() {
        let outbox = outbox(1000);
        outbox.push_text("last words");
        outbox.close(Closing { code: CloseCode::POLICY_VIOLATION, reason: "x".into(), flush: true, too_much: None });
        let (texts, closing) = drain(&outbox);
        assert_eq!(texts, ["last words"]);
        assert!(closing.is_some());
    }
}
