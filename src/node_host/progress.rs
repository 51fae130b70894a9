//! A command's output as it comes, for a caller who follows it.
//!
//! The node does not know who follows: it sends a first piece, and the gateway's answer says whether anybody wants more.
//! What is over before the first piece is due sends nothing. A gateway that does not keep up misses the middle, never the
//! result.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::client::Connection;
use crate::client::node::InvokeRequest;

/// Time for which output is gathered before it is sent.
const EVERY: Duration = Duration::from_millis(250);
/// Bytes of a piece, as the wire bounds them.
const PIECE_BYTES: usize = 16 * 1024;
/// Bytes that wait.
const WAITING_BYTES: usize = 64 * 1024;
const LEFT_OUT: &str = "\n[... left out ...]\n";

/// Output on its way.
#[derive(Default)]
pub(super) struct Progress {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    left_out: bool,
}

impl Progress {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More output.
    pub(super) fn add(&self, piece: &[u8]) {
        let mut waiting = self.waiting();
        let room = WAITING_BYTES.saturating_sub(waiting.bytes.len());
        waiting.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        waiting.left_out |= piece.len() > room;
        self.more.notify_one();
    }

    /// What waits, up to the last whole character; what is cut stays.
    fn take(&self) -> String {
        let mut waiting = self.waiting();
        let cut = cut_at_the_end(&waiting.bytes);
        let whole = waiting.bytes.len() - cut;
        let rest = waiting.bytes.split_off(whole);
        let mut text = String::from_utf8_lossy(&std::mem::replace(&mut waiting.bytes, rest)).into_owned();
        if std::mem::take(&mut waiting.left_out) {
            text.push_str(LEFT_OUT);
        }
        text
    }

    /// Waits for `running`, and sends what it says meanwhile.
    pub(super) async fn while_running<T>(
        &self,
        running: impl Future<Output = T>,
        request: &InvokeRequest,
        connection: &Connection,
    ) -> T {
        let sending = async {
            let mut seq = 0;
            loop {
                self.more.notified().await;
                sleep(EVERY).await;
                let text = self.take();
                for piece in pieces(&text) {
                    match connection.progress(request, seq, piece, super::ANSWER_WITHIN).await {
                        Ok(true) => seq += 1,
                        // Nobody follows, or nobody is there.
                        _ => return,
                    }
                }
            }
        };
        tokio::pin!(running, sending);
        tokio::select! {
            result = &mut running => return result,
            () = sending => {}
        }
        running.await
    }
}

/// Bytes at the end that begin a character and do not end it.
fn cut_at_the_end(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    for (at, &byte) in tail.iter().enumerate().rev() {
        let length = match byte {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            _ => 1,
        };
        let has = tail.len() - at;
        return if has < length { has } else { 0 };
    }
    0
}

/// `text` in pieces that the wire takes.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let end = (0..=text.len().min(PIECE_BYTES)).rev().find(|at| text.is_char_boundary(*at))?;
        let (piece, rest) = text.split_at(end);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn characters_are_never_cut(text in "\\PC{0,40}", cuts in proptest::collection::vec(0usize..160, 0..8)) {
            let progress = Progress::default();
            let mut heard = String::new();
            let mut bytes = text.as_bytes();
            for cut in cuts {
                let (piece, rest) = bytes.split_at(cut.min(bytes.len()));
                progress.add(piece);
                heard += &progress.take();
                bytes = rest;
            }
            progress.add(bytes);
            heard += &progress.take();
            prop_assert_eq!(heard, text);
        }
    }

    #[test]
    fn pieces_are_as_long_as_the_wire_allows() {
        let text = "ü".repeat(PIECE_BYTES);
        assert!(pieces(&text).all(|piece| piece.len() <= PIECE_BYTES));
        assert_eq!(pieces(&text).collect::<String>(), text);
        assert_eq!(pieces("").count(), 0);
    }

    #[test]
    fn what_nobody_takes_is_left_out_and_said_so() {
        let progress = Progress::default();
        progress.add(&vec![b'x'; WAITING_BYTES + 1]);
        assert!(progress.take().ends_with(LEFT_OUT));
        progress.add(b"more");
        assert_eq!(progress.take(), "more");
    }
}
