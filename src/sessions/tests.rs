//! What the domain claims, against a store in memory.

use super::*;
use crate::auth::Grant;
use crate::hub::Client;
use crate::rpc::scope::{Role, Scope, ScopeSet};

const NOW: UnixMs = UnixMs(1_795_000_000_000);

fn sessions() -> Sessions {
    let store = Store::open_in_memory(&[SCHEMA]).unwrap();
    Sessions::open(store, Hub::new(1 << 20, 1 << 24)).unwrap()
}

fn key(text: &str) -> SessionKey {
    SessionKey::parse(text).unwrap()
}

fn connection(sessions: &Sessions) -> Arc<Connection> {
    let grant = Grant::for_test(Role::Operator, ScopeSet::EMPTY.with(Scope::Read), None);
    let hub = sessions.hub();
    hub.register(hub.next_id(), grant, Client::default(), None, NOW)
}

#[tokio::test]
async fn a_transcript_grows_in_order_and_pages_backwards() {
    let sessions = sessions();
    for n in 0..5 {
        sessions
            .append(&key("main"), vec![Message::user(format!("word{n} shared"), NOW.plus(n))], NOW.plus(n))
            .await
            .unwrap();
    }
    let session = sessions.get(&key("main")).unwrap();
    assert_eq!((session.messages, session.title.as_deref()), (5, Some("word0 shared")));
    let numbers = |entries: Vec<Entry>| entries.iter().map(|entry| entry.n).collect::<Vec<_>>();
    assert_eq!(numbers(sessions.history(&session.session_id, u64::MAX, 2).await.unwrap()), [4, 5]);
    assert_eq!(numbers(sessions.history(&session.session_id, 4, 2).await.unwrap()), [2, 3]);
}

#[tokio::test]
async fn a_search_finds_words_and_reads_no_operators() {
    let sessions = sessions();
    sessions.append(&key("a"), vec![Message::user("the quick brown fox", NOW)], NOW).await.unwrap();
    sessions.append(&key("b"), vec![Message::user("a lazy dog", NOW)], NOW).await.unwrap();
    let search = async |words: &'static str| {
        let hits = sessions.0.store.read(move |db| record::search(db, words, 10)).await.unwrap();
        hits.len()
    };
    assert_eq!(search("qui fox").await, 1);
    assert_eq!(search("fox dog").await, 0);
    for odd in ["\"", "fox OR dog", "NEAR(", "text:x", "*", "-fox", ""] {
        search(odd).await;
    }
}

#[tokio::test]
async fn a_reset_begins_anew_and_a_delete_takes_the_words_along() {
    let sessions = sessions();
    let key = key("main");
    sessions.append(&key, vec![Message::user("secret", NOW)], NOW).await.unwrap();
    let before = sessions.get(&key).unwrap();
    let after = sessions.reset(&key, NOW).await.unwrap();
    assert!(after.session_id != before.session_id && after.messages == 0);
    assert_eq!(sessions.history(&before.session_id, u64::MAX, 9).await.unwrap().len(), 1);
    sessions.tend(NOW.plus(record::KEEP_MS + 1)).await.unwrap();
    assert_eq!(sessions.history(&before.session_id, u64::MAX, 9).await.unwrap().len(), 0);
    sessions.append(&key, vec![Message::user("secret", NOW)], NOW).await.unwrap();
    assert!(sessions.delete(&key, true, NOW).await.unwrap());
    assert!(!sessions.delete(&key, true, NOW).await.unwrap());
    assert!(sessions.0.store.read(|db| record::search(db, "secret", 9)).await.unwrap().is_empty());
}

#[tokio::test]
async fn events_go_to_those_who_follow_and_to_no_one_after_the_end() {
    let sessions = sessions();
    let (list, messages, other) = (connection(&sessions), connection(&sessions), connection(&sessions));
    sessions.subscribers().follow_list(&list, true);
    sessions.subscribers().follow(&key("main"), &messages, true);
    sessions.append(&key("main"), vec![Message::user("hi", NOW)], NOW).await.unwrap();
    let queued = || [&list, &messages, &other].map(|connection| connection.outbox.queued_bytes() > 0);
    assert_eq!(queued(), [true, true, false]);
    sessions.disconnected(&list);
    sessions.disconnected(&messages);
    let subscribers = sessions.subscribers();
    assert!(!subscribers.anyone_follows_the_list() && !subscribers.anyone_follows(&key("main")));
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite");
    let store = Store::open(&path, &[SCHEMA]).unwrap();
    let sessions = Sessions::open(store.clone(), Hub::new(1 << 20, 1 << 24)).unwrap();
    sessions.append(&key("main"), vec![Message::user("hi", NOW)], NOW).await.unwrap();
    let session = sessions.get(&key("main")).unwrap();
    store.close().await;
    let again = Sessions::open(Store::open(&path, &[SCHEMA]).unwrap(), Hub::new(1 << 20, 1 << 24)).unwrap();
    assert_eq!(again.get(&key("main")), Some(session));
}

#[tokio::test]
async fn no_setting_of_a_client_stands_in_for_what_a_row_says_of_itself() {
    let sessions = sessions();
    let settings = serde_json::json!({"key": "agent:main:other", "hasActiveRun": true, "colour": "red"});
    let session = Session {
        session_id: "id".to_owned(),
        settings: settings.as_object().unwrap().clone(),
        updated_at: NOW,
        ..Session::default()
    };
    sessions.set_index(&key("main"), Some(Arc::new(session)));
    let row = &methods::list_for_test(&sessions, 1)["sessions"][0];
    assert_eq!(
        (row["key"].as_str(), row["hasActiveRun"].as_bool(), row["colour"].as_str()),
        (Some("agent:main:main"), Some(false), Some("red"))
    );
}

#[tokio::test]
async fn a_page_of_ten_thousand_is_the_newest_of_all() {
    let sessions = sessions();
    for n in 0..10_000u64 {
        let session =
            Session { session_id: n.to_string(), updated_at: NOW.plus(n * 7919 % 10_000), ..Session::default() };
        sessions.set_index(&key(&format!("s{n}")), Some(Arc::new(session)));
    }
    assert_eq!(sessions.len(), 10_000);
    sessions.set_index(&key("none"), None);
    let list = methods::list_for_test(&sessions, 50);
    assert_eq!((list["count"].as_u64(), list["totalCount"].as_u64()), (Some(50), Some(10_000)));
    assert_eq!(list["sessions"][0]["updatedAt"], NOW.plus(9_999).0);
}

#[tokio::test]
async fn pages_by_cursor_hold_every_row_once_whatever_comes_in_between() {
    let sessions = sessions();
    let put = |name: &str, at: u64| {
        let session = Session { session_id: name.to_owned(), updated_at: NOW.plus(at), ..Session::default() };
        sessions.set_index(&key(name), Some(Arc::new(session)));
    };
    for n in 0..25 {
        put(&format!("s{n:02}"), n % 7);
    }
    let mut new = 0;
    let pages = methods::pages_for_test(&sessions, 10, || {
        new += 1;
        put(&format!("new{new}"), 1000);
    });
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 5]);
    let all: std::collections::BTreeSet<_> = pages.into_iter().flatten().collect();
    assert_eq!(all.len(), 25);
    assert!(!all.contains("agent:main:new1"), "what is new stands before the page that was read");
}

#[tokio::test]
async fn a_reader_that_fell_behind_gets_the_whole_and_no_gap() {
    let store = Store::open_in_memory(&[SCHEMA]).unwrap();
    // Room for one delta at a time: droppable events may fill half of it.
    let sessions = Sessions::open(store, Hub::new(600, 1 << 20)).unwrap();
    let reader = connection(&sessions);
    sessions.opened(&key("main"), &reader);
    let said = |text: &str| json!({"deltaText": text, "fill": "x".repeat(120)});
    let send = |text: &str, whole: &'static str| {
        sessions.send_delta(&key("main"), &said(text), || Some(json!({"deltaText": whole, "replace": true})));
    };
    let heard = || {
        let mut texts = Vec::new();
        let waker = std::task::Waker::noop();
        reader.outbox.drain(waker, |item| {
            let mut bytes = Vec::new();
            if let crate::hub::outbox::Item::Event(event, seq) = item {
                event.write(Some(seq), &mut bytes);
                let event: Value = serde_json::from_slice(&bytes).unwrap();
                texts.push(event["payload"]["deltaText"].as_str().unwrap().to_owned());
            }
            true
        });
        reader.outbox.settle();
        texts
    };
    send("a", "a");
    send("b", "ab");
    send("c", "abc");
    assert_eq!(heard(), ["a"], "the others found no room");
    send("d", "abcd");
    assert_eq!(heard(), ["abcd"], "then everything in one event");
    send("e", "abcde");
    assert_eq!(heard(), ["e"], "and on from there");
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_and_a_client_hears_what_it_missed() {
    let sessions = sessions();
    for n in 0..5 {
        sessions.append(&key("main"), vec![Message::user("x".repeat(1000), NOW.plus(n))], NOW.plus(n)).await.unwrap();
    }
    let id = sessions.get(&key("main")).unwrap().session_id.clone();
    let read = async |before, max_bytes| {
        let id = id.clone();
        let page = move |db: &rusqlite::Connection| record::history(db, &id, before, 100, max_bytes);
        sessions.0.store.read(page).await.unwrap().iter().map(|entry| entry.n).collect::<Vec<_>>()
    };
    assert_eq!(read(6, 2500).await, [4, 5]);
    assert_eq!(read(4, 1).await, [3], "one at least");
    let since = async |after, limit| {
        let id = id.clone();
        let found = sessions.0.store.read(move |db| record::since(db, &id, after, limit, 1 << 20)).await.unwrap();
        found.map(|entries| entries.iter().map(|entry| entry.n).collect::<Vec<_>>())
    };
    assert_eq!(since(3, 10).await, Some(vec![4, 5]));
    assert_eq!(since(5, 10).await, Some(vec![]));
    assert_eq!(since(0, 4).await, None, "too far behind");
}
