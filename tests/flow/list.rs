//! A long list of sessions over the socket: every session once, page by page, and how long the first page takes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::gateway::Gateway;

/// Sessions of an ordinary run; `FLOW_SESSIONS` says another number.
const SESSIONS: usize = 600;
/// Requests that are on their way at once.
const AT_ONCE: usize = 200;

#[test]
fn a_long_list_is_read_by_cursor_and_its_first_page_is_quick() {
    let sessions = std::env::var("FLOW_SESSIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(SESSIONS);
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    let all: Vec<usize> = (0..sessions).collect();
    for some in all.chunks(AT_ONCE) {
        let patch = |n: &usize| json!({"key": format!("s{n}"), "label": format!("Session number {n}"), "pinned": n.is_multiple_of(100)});
        let asked: Vec<_> = some.iter().map(|n| client.send("sessions.patch", &patch(n))).collect();
        for id in asked {
            client.answer(&id).unwrap();
        }
    }
    for limit in [50, 200, 1000] {
        let mut times: Vec<Duration> = (0..20)
            .map(|_| {
                let started = Instant::now();
                let list = client.call("sessions.list", &json!({"limit": limit})).unwrap();
                assert_eq!(list["totalCount"], sessions);
                started.elapsed()
            })
            .collect();
        times.sort_unstable();
        println!("sessions.list of {sessions}, a page of {limit}: median {:?}, slowest {:?}", times[10], times[19]);
    }
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), Value::Null, 0);
    loop {
        let mut params = json!({"limit": 250});
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let list = client.call("sessions.list", &params).unwrap();
        for row in list["sessions"].as_array().unwrap() {
            assert!(seen.insert(row["key"].as_str().unwrap().to_owned()), "{} comes twice", row["key"]);
        }
        // What is new, or has moved to the beginning, is not in the way of the next page.
        client.call("sessions.patch", &json!({"key": format!("new{pages}"), "label": "new"})).unwrap();
        (cursor, pages) = (list["nextCursor"].clone(), pages + 1);
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(seen.iter().filter(|key| key.starts_with("agent:main:s")).count(), sessions);
    let refused = client.call("sessions.list", &json!({"cursor": "x"})).unwrap_err();
    assert_eq!(refused["code"], "INVALID_REQUEST");
}
