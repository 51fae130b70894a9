//! S-30 to S-41: guessing, flooding, and what is written down of it.

use std::time::{Duration, Instant};

use clawgate::ws::message::Opcode;
use serde_json::{Value, json};

use crate::support::TOKEN;
use crate::support::client::{Client, Incoming, cli, fragment, frame, node, operator};
use crate::support::device::Device;
use crate::support::gateway::{Gateway, Setup};
use crate::{READ, behind_a_proxy, code, from, with, with_token};

/// Ten wrong tokens from `address`, each another.
fn lock_out(gateway: &Gateway, address: &str) {
    for number in 0..10 {
        let error = from(gateway, address).connect(&with_token(&format!("guess {number}"))).unwrap_err();
        assert_eq!(code(&error), "AUTH_TOKEN_MISMATCH", "{number}");
    }
}

fn answer_to(gateway: &Gateway, address: &str, token: &str) -> Result<Value, Value> {
    from(gateway, address).connect(&with_token(token))
}

fn is_limited(answer: &Result<Value, Value>) -> bool {
    answer.as_ref().is_err_and(|error| code(error) == "AUTH_RATE_LIMITED")
}

#[test]
fn s_31_one_client_is_one_entry_however_its_address_is_written() {
    let gateway = behind_a_proxy();
    for number in 0..10 {
        let address = if number % 2 == 0 { "::ffff:203.0.113.9" } else { "203.0.113.9" };
        from(&gateway, address).connect(&with_token(&format!("guess {number}"))).unwrap_err();
    }
    assert!(is_limited(&answer_to(&gateway, "203.0.113.9", TOKEN)));
    assert!(is_limited(&answer_to(&gateway, "[::ffff:203.0.113.9]:4711", TOKEN)));
    for number in 0..10 {
        let address = format!("2001:db8::{number:x}");
        from(&gateway, &address).connect(&with_token(&format!("guess {number}"))).unwrap_err();
    }
    assert!(is_limited(&answer_to(&gateway, "2001:db8::ffff", TOKEN)), "a /64 is one client");
    answer_to(&gateway, "2001:db8:0:1::1", TOKEN).unwrap();
}

#[test]
fn s_32_a_field_more_takes_no_check_away() {
    let gateway = behind_a_proxy();
    let device = Device::new(1);
    for number in 0..10 {
        let auth = json!({"token": format!("guess {number}"), "deviceToken": "x", "bootstrapToken": "y"});
        let error = device.connect(&mut from(&gateway, "203.0.113.9"), &with(cli(READ), "auth", auth)).unwrap_err();
        assert_ne!(code(&error), "AUTH_RATE_LIMITED", "{number}");
    }
    let answer = device.connect(&mut from(&gateway, "203.0.113.9"), &cli(READ));
    assert!(is_limited(&answer), "the shared secret was guessed at: {answer:?}");
}

#[test]
fn s_33_guesses_are_limited_without_being_configured() {
    let gateway = behind_a_proxy();
    lock_out(&gateway, "203.0.113.9");
    let answer = answer_to(&gateway, "203.0.113.9", TOKEN);
    assert!(is_limited(&answer));
    let error = answer.unwrap_err();
    assert_eq!(error["details"]["recommendedNextStep"], "wait_then_retry", "{error}");
    answer_to(&gateway, "203.0.113.10", TOKEN).unwrap();
    gateway.client().connect(&operator()).expect("the host itself is not concerned");
    assert!(gateway.log_lines("client refused").len() >= 11);
}

#[test]
fn s_34_who_can_not_be_told_apart_locks_out_nobody_who_can() {
    let gateway = behind_a_proxy();
    // The proxy says that it is one (Via), and not for whom it speaks.
    let unsaid = || Client::open_with(gateway.port, "Via: 1.1 proxy\r\n").unwrap();
    for number in 0..100 {
        unsaid().connect(&with_token(&format!("guess {number}"))).unwrap_err();
    }
    assert_eq!(code(&unsaid().connect(&with_token(TOKEN)).unwrap_err()), "AUTH_RATE_LIMITED");
    answer_to(&gateway, "203.0.113.10", TOKEN).unwrap();
    gateway.client().connect(&operator()).unwrap();
}

#[test]
fn s_36_a_stranger_costs_64_kib_and_one_deadline() {
    let gateway = Setup::new().env("OPENCLAW_HANDSHAKE_TIMEOUT_MS", "1000").start();
    // Declared, not sent: nothing is waited for and nothing reserved.
    let mut client = gateway.client();
    client.nonce();
    client.bytes(&[0x81, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!(client.closed(), (1009, "preauth payload too large".to_owned()));
    // In pieces, which count together.
    let mut client = gateway.client();
    client.nonce();
    client.try_bytes(&fragment(Opcode::Text, &[b' '; 40 * 1024]));
    client.try_bytes(&frame(Opcode::Continuation, &[b' '; 40 * 1024]));
    assert_eq!(client.closed().0, 1009);
    // In many tiny ones.
    let mut client = gateway.client();
    client.nonce();
    client.try_bytes(&fragment(Opcode::Text, b"{"));
    for _ in 0..2000 {
        client.try_bytes(&fragment(Opcode::Continuation, b" "));
    }
    assert!(matches!(client.closed().0, 1008 | 1009));
    // Slowly: one byte after the other is no sign of life that counts.
    let mut client = gateway.client();
    client.nonce();
    let begun = Instant::now();
    let whole = frame(Opcode::Text, &[b' '; 1000]);
    for byte in &whole {
        client.try_bytes(&[*byte]);
        std::thread::sleep(Duration::from_millis(20));
        if begun.elapsed() > Duration::from_millis(1500) {
            break;
        }
    }
    let close = std::iter::from_fn(|| client.next_within(Duration::from_secs(3)))
        .find_map(|incoming| if let Incoming::Close(code, reason) = incoming { Some((code, reason)) } else { None });
    let (code, reason) = close.expect("it is closed");
    assert!(code == 1008 && reason.contains("handshake timeout"), "{code} {reason}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    gateway.operator();
}

/// What they leave unfinished is theirs to lose: the socket with which it is too much goes, and who sends a whole `connect`
/// comes in beside them.
#[test]
fn s_36_what_strangers_leave_unfinished_is_bounded_for_all_together() {
    const BUDGET: usize = clawgate::limits::PREAUTH_HELD_BYTES;
    const LEFT: usize = 60 * 1024;
    clawgate::net::descriptors::raise();
    let gateway = Gateway::start();
    let whole = frame(Opcode::Text, &vec![b'x'; 64 * 1024]);
    let fill = || {
        let mut kept = Vec::new();
        loop {
            let mut stranger = gateway.client();
            stranger.nonce();
            stranger.try_bytes(&whole[..LEFT]);
            kept.push(stranger);
            // Beyond the free bytes of each, the budget is full with this one.
            if kept.len() * (LEFT - 4096) > BUDGET + LEFT {
                return kept;
            }
        }
    };
    let mut strangers = fill();
    let (code, reason) = strangers.last_mut().expect("there are many").closed();
    assert!(code == 1013 && reason.contains("unfinished"), "{code} {reason}");
    assert!(strangers[0].next_within(Duration::from_millis(50)).is_none(), "who was there before stays");
    gateway.operator();
    // With their sockets the bytes are free again.
    drop(strangers);
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let mut stranger = gateway.client();
        stranger.nonce();
        stranger.try_bytes(&whole[..LEFT]);
        if stranger.next_within(Duration::from_millis(100)).is_none() {
            break;
        }
        assert!(Instant::now() < until, "the bytes of those who left are still counted");
    }
}

#[test]
fn s_37_wrong_setup_codes_are_limited_by_themselves_and_block_nobody() {
    let gateway = behind_a_proxy();
    let device = Device::new(1);
    let by_code = |number: u32| {
        let auth = json!({"bootstrapToken": format!("code {number}")});
        device.connect(&mut from(&gateway, "203.0.113.9"), &with(node(&[]), "auth", auth)).unwrap_err()
    };
    let begun = Instant::now();
    for number in 0..10 {
        assert_eq!(code(&by_code(number)), "AUTH_BOOTSTRAP_TOKEN_INVALID", "{number}");
    }
    assert_eq!(code(&by_code(10)), "AUTH_RATE_LIMITED");
    // Its own kind alone: the shared token still works from there, and at once.
    answer_to(&gateway, "203.0.113.9", TOKEN).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn s_38b_two_hundred_clients_behind_one_proxy_come_in_at_once() {
    let gateway = behind_a_proxy();
    let opened: Vec<_> = (0..200).map(|number| from(&gateway, &format!("198.51.100.{number}"))).collect();
    // All of them are there, none has authenticated; now all do.
    std::thread::scope(|scope| {
        let threads: Vec<_> = opened
            .into_iter()
            .map(|mut client| scope.spawn(move || client.connect(&with_token(TOKEN)).map(|_| client)))
            .collect();
        for thread in threads {
            thread.join().unwrap().expect("nobody is refused");
        }
    });
    let silent: Vec<_> = (0..200).map(|_| Client::open_with(gateway.port, "Via: 1.1 proxy\r\n").unwrap()).collect();
    assert_eq!(silent.len(), 200, "nor behind one that does not say for whom it speaks");
}

#[test]
fn s_39_a_stale_token_in_a_loop_keeps_no_good_one_out() {
    let gateway = behind_a_proxy();
    let mut limited = false;
    for _ in 0..30 {
        limited |= is_limited(&answer_to(&gateway, "203.0.113.9", "stale"));
    }
    assert!(limited, "it is told to wait");
    answer_to(&gateway, "203.0.113.9", TOKEN).unwrap();
}

#[test]
fn s_39_a_paired_device_comes_in_while_its_address_is_locked_out() {
    let gateway = behind_a_proxy();
    let device = Device::new(1);
    let hello = device.connect(&mut gateway.client(), &cli(READ)).unwrap();
    let token = hello["auth"]["deviceToken"].clone();
    lock_out(&gateway, "203.0.113.9");
    let params = with(cli(READ), "auth", json!({"deviceToken": token}));
    device.connect(&mut from(&gateway, "203.0.113.9"), &params).unwrap();
}

#[test]
fn s_40_what_a_stranger_sends_forges_no_line_of_the_log() {
    let gateway = behind_a_proxy();
    // Bidi overrides, zero-width characters and a terminal's escape, in the headers and in what the client says of itself.
    let hostile = "\u{202e}gnol\u{200b}\u{feff}\u{1b}[2J\nINFO forged line";
    let header: String = hostile.chars().filter(|c| !c.is_control()).collect();
    let mut client = Client::open_with(
        gateway.port,
        &format!("X-Forwarded-For: 203.0.113.9\r\nUser-Agent: {header}\r\nX-Note: {header}\r\nCookie: {header}\r\n"),
    )
    .unwrap();
    let mut params = with_token("wrong");
    params["client"]["displayName"] = json!(hostile);
    params["client"]["version"] = json!(hostile);
    params["client"]["instanceId"] = json!(hostile);
    params["userAgent"] = json!(hostile);
    params["locale"] = json!(hostile);
    client.connect(&params).unwrap_err();
    drop(client);
    let mut client = from(&gateway, "203.0.113.9");
    client.nonce();
    client.call(hostile, &json!({})).unwrap_err();
    drop(client);
    let mut client = from(&gateway, "203.0.113.9");
    client.nonce();
    client.text(&format!(r#"{{"type":"req","id":"1","method":"connect","params":{{"{}":1}}}}"#, "\u{202e}\u{200b}x"));
    client.closed();
    let mut admin = gateway.operator();
    admin.call(hostile, &json!({})).unwrap_err();
    admin.call(&"x".repeat(5000), &json!({})).unwrap_err();
    let log = gateway.log_lines("");
    assert!(log.iter().any(|line| line.contains("gnol")), "it is told of, and does no harm");
    let bad = |c: char| {
        (c.is_control() && c != '\t')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    for line in &log {
        assert!(!line.starts_with("INFO forged"), "{line}");
        assert!(!line.contains(bad), "{line:?}");
        assert!(line.len() < 700, "a line that a stranger made long: {} bytes", line.len());
    }
}

/// A line for each knock would let whoever knocks fill the disk. The counters count them all.
#[test]
fn s_40_who_knocks_and_knocks_does_not_fill_the_log() {
    let gateway = Gateway::start();
    for _ in 0..650 {
        assert_eq!(gateway.get("/nothing").status, 404);
    }
    assert_eq!(gateway.log_lines("reason=\"not_found\"").len(), 600);
    let status = gateway.operator().call("status", &json!({})).unwrap();
    assert_eq!(status["gateway"]["refused"]["not_found"], 650);
}

#[test]
fn s_41_a_flood_of_calls_without_the_right_ends_in_a_close_and_few_lines() {
    let gateway = Gateway::start();
    let mut client = gateway.client();
    Device::new(1).connect(&mut client, &node(&[])).unwrap();
    for _ in 0..200 {
        client.try_bytes(&frame(Opcode::Text, br#"{"type":"req","id":"1","method":"config.get","params":{}}"#));
    }
    assert_eq!(client.closed().0, 1008);
    let lines = gateway.log_lines("call refused").len();
    assert!((1..=20).contains(&lines), "{lines} lines");
}
