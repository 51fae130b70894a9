//! The calls that one node has not answered yet: a bounded table without IO.
//!
//! A call gets a [`Token`], unique in its table for ever, so that a late or doubled result finds nothing.
//! Whatever goes in comes out exactly once: answered ([`Table::take`]), too late ([`Table::expired`]) or lost
//! with the node ([`Table::drain`]). Putting in and taking out cost a few writes each; nothing is searched.

use std::time::Instant;

/// Names a call in its table: where it stands, and which of all that ever stood there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Token(u64);

/// Bits of a token that say where.
const SLOT_BITS: u32 = 16;

impl Token {
    const fn new(sequence: u64, slot: u16) -> Self {
        Self(sequence << SLOT_BITS | slot as u64)
    }

    const fn slot(self) -> usize {
        (self.0 & ((1 << SLOT_BITS) - 1)) as usize
    }

    /// As a number.
    pub(super) const fn get(self) -> u64 {
        self.0
    }

    /// The token with this number, if there is one.
    pub(super) const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

#[derive(Debug)]
struct Slot<T> {
    token: Token,
    entry: Option<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    deadline: Option<Instant>,
    call: T,
}

/// Calls that wait. `T` is what the owner keeps of each.
#[derive(Debug)]
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u16>,
    next: u64,
    limit: u16,
}

impl<T> Table<T> {
    /// An empty table for at most `limit` calls.
    pub(super) const fn new(limit: u16) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), next: 0, limit }
    }

    /// How many calls wait.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a call in; without a deadline it waits as long as the node lives.
    ///
    /// # Errors
    /// The table is full: the call comes back.
    pub(super) fn insert(&mut self, deadline: Option<Instant>, call: T) -> Result<Token, T> {
        let slot = match (self.free.pop(), u16::try_from(self.slots.len())) {
            (Some(slot), _) => slot,
            (None, Ok(slot)) if slot < self.limit => slot,
            _ => return Err(call),
        };
        let token = Token::new(self.next, slot);
        self.next += 1;
        let filled = Slot { token, entry: Some(Entry { deadline, call }) };
        match self.slots.get_mut(usize::from(slot)) {
            Some(place) => *place = filled,
            None => self.slots.push(filled),
        }
        Ok(token)
    }

    /// Takes out the call, if it still waits.
    pub(super) fn take(&mut self, token: Token) -> Option<T> {
        let slot = self.slots.get_mut(token.slot()).filter(|slot| slot.token == token)?;
        let entry = slot.entry.take()?;
        self.vacate(token.slot());
        Some(entry.call)
    }

    /// The call, if it still waits.
    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.slot()).filter(|slot| slot.token == token)?;
        slot.entry.as_mut().map(|entry| &mut entry.call)
    }

    /// Takes out the calls whose deadline has passed, in no order, and says when the next one's does.
    pub(super) fn expired(&mut self, now: Instant, mut take: impl FnMut(Token, T)) -> Option<Instant> {
        let mut next = None;
        let mut at = 0;
        // The last to leave may take the slots along.
        while let Some(slot) = self.slots.get_mut(at) {
            match slot.entry.as_ref().and_then(|entry| entry.deadline) {
                Some(deadline) if deadline > now => {
                    next = Some(next.map_or(deadline, |next: Instant| next.min(deadline)));
                }
                Some(_) => {
                    if let Some(entry) = slot.entry.take() {
                        take(slot.token, entry.call);
                        self.vacate(at);
                    }
                }
                None => {}
            }
            at += 1;
        }
        next
    }

    /// Takes out all of them, in no order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (Token, T)> + use<T> {
        self.free = Vec::new();
        // Tokens go on from `next`, so those of the calls that leave now never come back.
        std::mem::take(&mut self.slots).into_iter().filter_map(|slot| Some((slot.token, slot.entry?.call)))
    }

    fn vacate(&mut self, slot: usize) {
        // Memory of a burst is given back when the table has run empty.
        if self.free.len() + 1 == self.slots.len() && self.slots.len() > 64 {
            self.slots = Vec::new();
            self.free = Vec::new();
        } else if let Ok(slot) = u16::try_from(slot) {
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::time::Duration;

    #[test]
    fn a_call_comes_out_once() {
        let mut table = Table::new(4);
        let token = table.insert(None, "call").unwrap();
        assert_eq!((table.len(), table.get_mut(token).copied()), (1, Some("call")));
        assert_eq!(table.take(token), Some("call"));
        assert_eq!(table.take(token), None);
        assert_eq!(table.get_mut(token), None);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_token_is_never_used_again() {
        let mut table = Table::new(1);
        let first = table.insert(None, 1).unwrap();
        table.take(first);
        let second = table.insert(None, 2).unwrap();
        assert_eq!((first == second, first.slot() == second.slot()), (false, true));
        assert_eq!(table.take(first), None);
        assert_eq!(table.take(second), Some(2));
    }

    #[test]
    fn a_full_table_says_so() {
        let mut table = Table::new(2);
        let first = table.insert(None, 1).unwrap();
        table.insert(None, 2).unwrap();
        assert_eq!(table.insert(None, 9), Err(9));
        table.take(first);
        assert!(table.insert(None, 3).is_ok());
    }

    #[test]
    fn calls_without_a_deadline_never_expire() {
        let now = Instant::now();
        let mut table = Table::new(4);
        table.insert(None, "for ever").unwrap();
        table.insert(Some(now), "now").unwrap();
        table.insert(Some(now + Duration::from_secs(1)), "later").unwrap();
        let mut out = Vec::new();
        assert_eq!(table.expired(now, |_, call| out.push(call)), Some(now + Duration::from_secs(1)));
        assert_eq!(out, ["now"]);
        assert_eq!(table.expired(now + Duration::from_secs(9), |_, call| out.push(call)), None);
        assert_eq!((out.len(), table.len()), (2, 1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(Option<u64>),
        /// A token of one that was ever put in, by its place in the order.
        Take(usize),
        Expire(u64),
        Drain,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => proptest::option::of(0..1000u64).prop_map(Step::Insert),
            4 => any::<usize>().prop_map(Step::Take),
            1 => (0..1000u64).prop_map(Step::Expire),
            1 => Just(Step::Drain),
        ];
        proptest::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_comes_out_twice(steps in steps()) {
            const LIMIT: u16 = 100;
            let start = Instant::now();
            let at = |ms: u64| start + Duration::from_millis(ms);
            let mut table = Table::new(LIMIT);
            let mut waiting: HashMap<usize, Option<u64>> = HashMap::new();
            let mut tokens: Vec<Token> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(deadline) => {
                        let number = tokens.len();
                        match table.insert(deadline.map(at), number) {
                            Ok(token) => {
                                prop_assert!(!tokens.contains(&token));
                                tokens.push(token);
                                waiting.insert(number, deadline);
                            }
                            Err(_) => prop_assert_eq!(waiting.len(), usize::from(LIMIT)),
                        }
                    }
                    Step::Take(which) if !tokens.is_empty() => {
                        let number = which % tokens.len();
                        let there = waiting.remove(&number).map(|_| number);
                        prop_assert_eq!(table.get_mut(tokens[number]).copied(), there);
                        prop_assert_eq!(table.take(tokens[number]), there);
                    }
                    Step::Take(_) => {}
                    Step::Expire(now) => {
                        let mut out = Vec::new();
                        let next = table.expired(at(now), |token, number| out.push((token, number)));
                        for (token, number) in out {
                            prop_assert_eq!(token, tokens[number]);
                            prop_assert!(matches!(waiting.remove(&number), Some(Some(deadline)) if deadline <= now));
                        }
                        prop_assert!(waiting.values().flatten().all(|deadline| *deadline > now));
                        prop_assert_eq!(next, waiting.values().flatten().min().map(|ms| at(*ms)));
                    }
                    Step::Drain => {
                        let mut out: Vec<_> = table.drain().map(|(_, number)| number).collect();
                        out.sort_unstable();
                        let mut expected: Vec<_> = waiting.drain().map(|(number, _)| number).collect();
                        expected.sort_unstable();
                        prop_assert_eq!(out, expected);
                    }
                }
                prop_assert_eq!(table.len(), waiting.len());
            }
        }
    }
}
