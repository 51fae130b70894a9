//! The HTTP API as strangers try it: without a right, from a page, with headers that others should have written, and
//! with bodies that are too much.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, HttpAnswer, Setup};
use crate::support::{PATIENCE, TOKEN};
use crate::{ALICE, code, from, trusting_a_proxy, with_token};

/// With every endpoint there is.
fn serving(auth: &Value, more: &Value) -> Setup {
    let mut gateway = json!({"auth": auth, "http": {"endpoints": {"chatCompletions": {"enabled": true}}}});
    for (key, value) in more.as_object().unwrap() {
        gateway[key.as_str()] = value.clone();
    }
    Setup::new().no_token().config(&json!({"gateway": gateway}))
}

fn token() -> Value {
    json!({"mode": "token", "token": TOKEN})
}

const BEARER: &str = "Authorization: Bearer t0k\r\n";
const ENDPOINTS: [&str; 4] =
    ["GET /v1/models", "GET /v1/models/openclaw", "POST /v1/chat/completions", "POST /tools/invoke"];

/// Calls an endpoint with a body that it takes, and these header lines.
fn call(gateway: &Gateway, endpoint: &str, lines: &str) -> HttpAnswer {
    let body = match endpoint {
        "POST /v1/chat/completions" => r#"{"model":"openclaw","messages":[{"role":"user","content":"hi"}]}"#,
        "POST /tools/invoke" => r#"{"tool":"nothing"}"#,
        _ => "",
    };
    let host = if lines.contains("Host:") { "" } else { "Host: 127.0.0.1\r\n" };
    let length = body.len();
    gateway.http(&format!(
        "{endpoint} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{lines}\r\n{body}"
    ))
}

/// How far a caller gets who is let in: no model is configured, and there is no such tool.
fn let_in(endpoint: &str) -> u16 {
    match endpoint {
        "POST /v1/chat/completions" => 500,
        "POST /tools/invoke" => 404,
        _ => 200,
    }
}

#[test]
fn s_08_no_page_of_another_calls_the_api_in_any_mode() {
    let ui = json!({"controlUi": {"allowedOrigins": ["*"]}});
    for (mode, gateway, good) in [
        ("token", serving(&token(), &json!({})).start(), BEARER),
        ("none", serving(&json!({"mode": "none"}), &json!({})).start(), ""),
        ("none, any origin", serving(&json!({"mode": "none"}), &ui).start(), ""),
    ] {
        for endpoint in ENDPOINTS {
            assert_eq!(call(&gateway, endpoint, good).status, let_in(endpoint), "{mode} {endpoint}");
            let page = format!("Origin: https://evil.example\r\n{good}");
            let answer = call(&gateway, endpoint, &page);
            assert_eq!(answer.status, 403, "{mode} {endpoint}: {}", answer.body);
            assert!(!answer.head.contains("access-control-allow"), "{}", answer.head);
        }
        let asks = format!(
            "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: authorization\r\n{good}"
        );
        let answer = call(&gateway, "OPTIONS /v1/chat/completions", &asks);
        assert!(answer.status == 405 && !answer.head.contains("access-control-allow"), "{mode}: {}", answer.head);
        if mode == "none" {
            // A name that a page has rebound to loopback, and a link that brings no Origin along.
            let rebound = "Host: evil.example\r\n";
            assert_eq!(call(&gateway, "GET /v1/models", rebound).status, 403);
            assert_eq!(call(&gateway, "GET /v1/models", "Sec-Fetch-Site: cross-site\r\n").status, 403);
        }
    }
}

#[test]
fn s_14_tailscale_headers_call_no_api() {
    let tailscale = "Host: gw.tail.ts.net\r\nTailscale-User-Login: alice@example.com\r\nX-Forwarded-For: 100.64.0.9\r\n\
                     X-Forwarded-Proto: https\r\nX-Forwarded-Host: gw.tail.ts.net\r\n";
    let auth = json!({"mode": "token", "token": TOKEN, "allowTailscale": true});
    let gateway = serving(&auth, &json!({})).start();
    for endpoint in ENDPOINTS {
        let answer = call(&gateway, endpoint, tailscale);
        assert_eq!(answer.status, 401, "{endpoint}: {}", answer.body);
        assert_eq!(answer.json()["error"]["code"], "token_missing");
    }
    // And where nobody said that Tailscale is in front, they are those of an unknown proxy.
    let gateway = serving(&token(), &json!({})).start();
    assert_eq!(call(&gateway, "GET /v1/models", &format!("{tailscale}{BEARER}")).status, 403);
}

#[test]
fn s_64_a_call_needs_the_scope_of_its_endpoint() {
    let setup = trusting_a_proxy(&json!({"allowLoopback": true}));
    let path = setup.state_dir().join("openclaw.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    config["gateway"]["http"] = json!({"endpoints": {"chatCompletions": {"enabled": true}}});
    let gateway = setup.config(&config).start();
    let with = |scopes: &str| format!("{ALICE}X-OpenClaw-Scopes: {scopes}\r\n");
    for endpoint in ENDPOINTS {
        let writes = endpoint.starts_with("POST");
        assert_eq!(call(&gateway, endpoint, ALICE).status, let_in(endpoint), "{endpoint}");
        assert_eq!(call(&gateway, endpoint, &with("operator.write")).status, let_in(endpoint), "{endpoint}");
        let reader = call(&gateway, endpoint, &with("operator.read"));
        assert_eq!(reader.status, if writes { 403 } else { 200 }, "{endpoint}: {}", reader.body);
        let nothing = call(&gateway, endpoint, &with(""));
        assert_eq!((nothing.status, nothing.json()["error"]["code"].as_str()), (403, Some("missing_scope")));
        // Neither somebody else, nor somebody who is not the proxy's.
        assert_eq!(call(&gateway, endpoint, "").status, 401, "{endpoint}");
        let mallory = ALICE.replace("alice", "mallory");
        assert_eq!(call(&gateway, endpoint, &mallory).status, 401, "{endpoint}");
    }
    // Any page may ask, by a wildcard; the user's identity that the browser brings along is lent to none of them (S-08).
    config["gateway"]["controlUi"]["allowedOrigins"] = json!(["*"]);
    std::fs::write(gateway.state_dir().join("openclaw.json"), config.to_string()).unwrap();
    gateway.stderr.wait_for(|line| line.contains("who gets in has changed")).unwrap();
    let page = format!("{ALICE}Origin: https://evil.example\r\n");
    for endpoint in ENDPOINTS {
        let answer = call(&gateway, endpoint, &page);
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (403, Some("trusted_proxy_origin_not_allowed"))
        );
    }
    let model = format!("{}X-OpenClaw-Model: local/m\r\n", with("operator.write"));
    let answer = call(&gateway, "POST /v1/chat/completions", &model);
    assert_eq!(answer.json()["error"]["message"], "missing scope: operator.admin", "{}", answer.body);
}

/// A body takes as long as its sender likes; the right to send it may be gone by its end.
#[test]
fn s_59_a_call_whose_body_comes_after_its_secret_has_gone_is_not_carried_out() {
    let gateway = serving(&token(), &json!({})).start();
    let mut calling: Vec<_> = ["POST /tools/invoke", "POST /v1/chat/completions"]
        .into_iter()
        .map(|endpoint| {
            let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let head = format!("{endpoint} HTTP/1.1\r\nHost: 127.0.0.1\r\n{BEARER}Content-Length: 18\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(br#"{"tool":"#).unwrap();
            stream
        })
        .collect();
    // Both have been let in once a call that came after them is answered.
    assert_eq!(call(&gateway, "GET /v1/models", BEARER).status, 200);
    let path = gateway.state_dir().join("openclaw.json");
    let config = std::fs::read_to_string(&path).unwrap().replace(TOKEN, "another");
    std::fs::write(path, config).unwrap();
    gateway.stderr.wait_for(|line| line.contains("who gets in has changed")).unwrap();
    for stream in &mut calling {
        stream.write_all(br#""nothing"}"#).unwrap();
        let answer = HttpAnswer::read(stream);
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (401, Some("auth_changed")));
        assert!(answer.body.contains("gateway.auth.mode or its secret"), "{}", answer.body);
    }
}

#[test]
fn s_33_guesses_over_http_count_with_those_of_sockets() {
    let gateway = serving(&token(), &json!({"trustedProxies": ["127.0.0.1"]})).start();
    let guess = |number: u32| {
        let lines = format!("X-Forwarded-For: 203.0.113.7\r\nAuthorization: Bearer guess-{number}\r\n");
        call(&gateway, "GET /v1/models", &lines)
    };
    for number in 0..10 {
        let answer = guess(number);
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (401, Some("token_mismatch")));
    }
    let answer = guess(10);
    assert!(answer.status == 429 && answer.head.contains("retry-after: "), "{}", answer.head);
    let right = format!("X-Forwarded-For: 203.0.113.7\r\n{BEARER}");
    assert_eq!(call(&gateway, "GET /v1/models", &right).status, 429, "not even with the right one");
    let error = from(&gateway, "203.0.113.7").connect(&with_token(TOKEN)).unwrap_err();
    assert_eq!(code(&error), "AUTH_RATE_LIMITED", "and not by a socket");
    let other = format!("X-Forwarded-For: 203.0.113.8\r\n{BEARER}");
    assert_eq!(call(&gateway, "GET /v1/models", &other).status, 200, "others are not concerned");
}

#[test]
fn s_36_nothing_of_a_strangers_body_is_read() {
    let gateway = serving(&token(), &json!({})).start();
    let begin = |lines: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    // A stranger is answered although the body has not come, and one with a right is told that it is too long.
    let asked = Instant::now();
    let answer = HttpAnswer::read(&mut begin("Content-Length: 1000\r\n"));
    assert_eq!(answer.status, 401);
    let answer = HttpAnswer::read(&mut begin(&format!("Content-Length: 20971521\r\n{BEARER}")));
    assert_eq!(answer.status, 413, "{}", answer.body);
    assert!(asked.elapsed() < Duration::from_secs(5));
    // What does not say how long it is ends when it is too long.
    let mut endless = begin(&format!("Transfer-Encoding: chunked\r\n{BEARER}"));
    let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
    let mut sent = 0;
    while sent < 30 << 20 && endless.write_all(&chunk).is_ok() {
        sent += 0x10000;
    }
    assert!((20 << 20..30 << 20).contains(&sent), "{sent} bytes were taken");
    let mut answer = Vec::new();
    let _ = endless.read_to_end(&mut answer);
    // The answer may be lost with the connection; that the gateway lives is what counts.
    assert_eq!(call(&gateway, "GET /v1/models", BEARER).status, 200);
    // All bodies together have room for three of the longest: of four one is told to come back. Which, depends on how far
    // each was read; its answer may be lost with the connection, as the rest of its body is not read.
    let mut callers: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = begin(&format!("Content-Length: 20971520\r\n{BEARER}"));
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let _ = stream.write_all(&vec![b' '; 17 << 20]);
            stream
        })
        .collect();
    let waits = |stream: &TcpStream| {
        let error = stream.peek(&mut [0]).err();
        error.is_some_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    };
    let since = Instant::now();
    let refused = loop {
        if let Some(at) = callers.iter().position(|stream| !waits(stream)) {
            break callers.swap_remove(at);
        }
        assert!(since.elapsed() < PATIENCE, "four bodies of 17 MiB had room");
    };
    let mut answer = Vec::new();
    let _ = { &refused }.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&answer));
    assert!(callers.iter().all(waits), "and the other three have their room");
}
