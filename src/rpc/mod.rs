//! The wire's words: the envelope of a frame, error shapes, scopes, the method catalogue, dispatch.
//!
//! Frames are JSON text: `{"type":"req","id":..,"method":..,"params":..}`, `{"type":"res",..}`,
//! `{"type":"event",..}`. This folder knows what they mean; it does not know sockets.

pub mod catalog;
pub mod dispatch;
pub mod envelope;
pub mod error;
pub mod json;
pub mod scope;
