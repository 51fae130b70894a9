//! What a connection's end tells of sizes, for `diagnostics.stability`.

use crate::clock::UnixMs;
use crate::conn::End;
use crate::hub::Connection;
use crate::system::stability::{Action, Large, Recorder, Surface};
use crate::ws::close::CloseCode;

/// Remembers what was too large for a connection that has ended; one that was never let in has no `connection`.
pub(super) fn note(recorder: &Recorder, connection: Option<&Connection>, end: &End, now: UnixMs) {
    let left_out = connection.map_or(0, |connection| connection.outbox.dropped());
    if left_out > 0 {
        let large = Large {
            surface: Surface::Outbound,
            action: Action::Truncated,
            bytes: None,
            limit_bytes: None,
            count: Some(left_out),
            reason: "ws_send_buffer_drop",
        };
        recorder.record(large, now);
    }
    let Some(too_much) = end.too_much else { return };
    let (surface, reason) = match connection {
        None => (Surface::Preauth, "preauth_frame_limit"),
        Some(_) if end.code == Some(CloseCode::MESSAGE_TOO_BIG.get()) => (Surface::Inbound, "ws_payload_limit"),
        Some(_) => (Surface::Outbound, "ws_send_buffer_close"),
    };
    let (bytes, limit_bytes) = (Some(too_much.bytes), Some(too_much.limit));
    recorder.record(Large { surface, action: Action::Rejected, bytes, limit_bytes, count: None, reason }, now);
}
