//! Clients that do not read: what they hold up, which is nobody but themselves.

use std::io::Write;
use std::time::{Duration, Instant};

use clawgate::ws::message::Opcode;
use serde_json::json;

use crate::support::PATIENCE;
use crate::support::client::{Client, frame};
use crate::support::gateway::Gateway;

/// Sends requests without reading an answer until the gateway reads no more of them. Gives how many it sent whole.
pub fn stall(client: &mut Client) -> usize {
    let request = frame(Opcode::Text, br#"{"type":"req","id":"s","method":"status"}"#);
    let batch = request.repeat(1000);
    client.stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    let mut sent = 0;
    let until = Instant::now() + PATIENCE;
    'sending: loop {
        assert!(Instant::now() < until, "the gateway reads on and on");
        let mut rest = &batch[..];
        while !rest.is_empty() {
            match client.stream.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(_) => break 'sending,
            }
            sent += 1;
        }
    }
    sent
}

#[test]
fn a_client_that_does_not_read_its_answers_stalls_itself_alone() {
    let gateway = Gateway::start();
    // On both workers.
    let mut stalled = [gateway.operator(), gateway.operator()];
    for client in &mut stalled {
        stall(client);
    }
    let begun = Instant::now();
    let mut others = [gateway.operator(), gateway.operator()];
    for client in &mut others {
        for _ in 0..100 {
            client.call("health", &json!({})).unwrap();
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
