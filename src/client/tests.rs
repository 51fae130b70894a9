//! The client against a gateway that follows a script, over real sockets.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::error::{ConnectFailure, Disconnect, Stage};
use super::node::{InvokeRequest, NodeError};
use super::*;
use crate::auth::device::{SignedDevice, SignedFields, verify};
use crate::clock::UnixMs;
use crate::rpc::scope::{Scope, ScopeSet};
use crate::secret::Secret;
use crate::ws::accept::accept_for;
use crate::ws::close::{Close, CloseCode};
use crate::ws::codec::{self, Decoder, Limits, Role};
use crate::ws::message::{Message, Opcode};

const SOON: Duration = Duration::from_secs(5);

/// The gateway's end of one connection.
struct Peer {
    stream: TcpStream,
    decoder: Decoder,
    texts: std::collections::VecDeque<Value>,
    pongs: Vec<Vec<u8>>,
    close: Option<Option<(u16, String)>>,
}

impl Peer {
    async fn upgraded(mut stream: TcpStream) -> Self {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0, "the request ends");
        }
        let request = String::from_utf8(request).unwrap();
        let key = request.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
        let accept = accept_for(key.as_bytes()).unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let decoder = Decoder::new(Role::Server, Limits { max_message_bytes: 1 << 20, max_fragments: 16 });
        Self { stream, decoder, texts: Default::default(), pongs: Vec::new(), close: None }
    }

    async fn frame(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut out = Vec::new();
        codec::frame(opcode, payload, None, &mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    async fn send(&mut self, message: Value) {
        self.frame(Opcode::Text, message.to_string().as_bytes()).await;
    }

    async fn close(&mut self, code: CloseCode, reason: &str) {
        let mut out = Vec::new();
        codec::close(Some(Close::new(code, reason)), None, &mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    /// Reads once; false at the end.
    async fn read(&mut self) -> bool {
        let mut buffer = vec![0; 4096];
        let count = self.stream.read(&mut buffer).await.unwrap_or(0);
        let mut input = &mut buffer[..count];
        while let Some(message) = self.decoder.next(&mut input).unwrap() {
            match message {
                Message::Text(text) => self.texts.push_back(serde_json::from_str(&text).unwrap()),
                Message::Pong(payload) => self.pongs.push(payload.to_vec()),
                Message::Close(close) => {
                    self.close = Some(close.map(|close| (close.code.get(), close.reason.to_owned())));
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        count > 0
    }

    async fn next(&mut self) -> Value {
        while self.texts.is_empty() {
            assert!(self.read().await, "the client went away");
        }
        self.texts.pop_front().unwrap()
    }

    async fn until_closed(&mut self) -> Option<(u16, String)> {
        while self.close.is_none() {
            assert!(self.read().await, "the client went away without a close frame");
        }
        self.close.take().unwrap()
    }

    async fn challenge(&mut self) {
        self.send(json!({"type":"event","event":"connect.challenge","payload":{"nonce":"n-1","ts":1}})).await;
    }

    /// Challenge, `connect`, `hello-ok`. Gives the parameters of `connect`.
    async fn welcome(&mut self, tick_ms: u64) -> Value {
        self.challenge().await;
        let connect = self.next().await;
        assert_eq!(connect["method"], "connect");
        self.send(json!({"type":"res","id":connect["id"],"ok":true,"payload":{
            "type":"hello-ok","protocol":4,"server":{"version":"9.9","connId":"c-1"},
            "auth":{"role":"operator","scopes":["operator.read"],"deviceToken":"dt"},
            "policy":{"tickIntervalMs":tick_ms,"maxPayload":1000}}}))
            .await;
        connect["params"].clone()
    }

    async fn answer(&mut self, request: &Value, payload: Value) {
        self.send(json!({"type":"res","id":request["id"],"ok":true,"payload":payload})).await;
    }
}

/// Runs `script` as the gateway, and gives options that lead to it.
async fn gateway<F>(script: impl FnOnce(Peer) -> F) -> (ConnectOptions, impl Future<Output = F::Output>)
where
    F: Future,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = GatewayUrl::loopback(listener.local_addr().unwrap().port());
    let serve = async move {
        let (stream, _) = listener.accept().await.unwrap();
        script(Peer::upgraded(stream).await).await
    };
    let mut options = ConnectOptions::operator(url, ScopeSet::EMPTY.with(Scope::Read));
    options.auth.token = Some(Secret::new("t"));
    options.timeout = SOON;
    (options, serve)
}

#[tokio::test]
async fn calls_are_answered_in_any_order() {
    let (options, serve) = gateway(async |mut peer: Peer| {
        let params = peer.welcome(30_000).await;
        let (first, second) = (peer.next().await, peer.next().await);
        assert_eq!((&first["method"], &first["params"]), (&json!("status"), &json!({})));
        peer.answer(&second, json!({"n": 2})).await;
        peer.send(json!({"type":"res","id":first["id"],"ok":false,
            "error":{"code":"FORBIDDEN","message":"no","details":{"code":"MISSING_SCOPE"}}}))
            .await;
        assert_eq!(peer.until_closed().await, Some((1000, String::new())));
        params
    })
    .await;
    let work = async {
        let (connection, _) = connect(&options).await.unwrap();
        let hello = connection.hello();
        assert_eq!((hello.server_version.as_str(), hello.max_payload_bytes), ("9.9", 1000));
        assert!(hello.device_token.as_ref().unwrap().matches("dt"));
        let params = json!({"a": 1});
        let (first, second) =
            tokio::join!(connection.call("status", &(), SOON), connection.call_as::<Value>("x", &params, SOON));
        let Err(CallError::Remote(error)) = first else { panic!("{first:?}") };
        assert_eq!((error.code.as_str(), error.specific_code()), ("FORBIDDEN", "MISSING_SCOPE"));
        assert_eq!(second.unwrap(), json!({"n": 2}));
        connection.close().await;
    };
    let (params, ()) = tokio::join!(serve, work);
    assert_eq!(params["auth"], json!({"token": "t"}));
    assert_eq!(params["scopes"], json!(["operator.read"]));
    assert!(params.get("device").is_none() && params.get("commands").is_none());
    // The gateway's own parser takes what this client sends.
    crate::conn::connect::ConnectParams::parse(Some(&params.to_string())).unwrap();
}

#[tokio::test]
async fn a_device_signs_the_challenge() {
    let identity = Arc::new(Identity::ephemeral());
    let (mut options, serve) = gateway(async |mut peer: Peer| peer.welcome(30_000).await).await;
    options.identity = Some(Arc::clone(&identity));
    options.auth.device_token = Some(Secret::new("dt"));
    let (params, connected) = tokio::join!(serve, connect(&options));
    connected.unwrap();
    let params = crate::conn::connect::ConnectParams::parse(Some(&params.to_string())).unwrap();
    let device = params.device.unwrap();
    let signed = SignedDevice {
        id: &device.id,
        public_key: &device.public_key,
        signature: &device.signature,
        signed_at_ms: Some(device.signed_at),
        nonce: &device.nonce,
    };
    let fields = SignedFields {
        client_id: &params.client.id,
        client_mode: &params.client.mode,
        role: "operator",
        scopes: &["operator.read"],
        token: "t",
        platform: &params.client.platform,
        device_family: params.client.device_family.as_deref().unwrap(),
        ..SignedFields::default()
    };
    let verified = verify(&signed, fields, "n-1", UnixMs::now()).unwrap();
    assert!(verified.binds_metadata && verified.id == identity.id());
}

#[tokio::test]
async fn events_come_in_order_and_pings_are_answered() {
    let (options, serve) = gateway(async |mut peer: Peer| {
        peer.welcome(30_000).await;
        for n in 1..=3 {
            peer.send(json!({"type":"event","event":"presence","payload":{"n":n},"seq":n})).await;
        }
        peer.frame(Opcode::Ping, b"are you there").await;
        while peer.pongs.is_empty() {
            assert!(peer.read().await);
        }
        peer.close(CloseCode::SERVICE_RESTART, "service restart").await;
        assert_eq!(peer.until_closed().await.map(|(code, _)| code), Some(1012));
        peer.pongs
    })
    .await;
    let work = async {
        let (connection, mut events) = connect(&options).await.unwrap();
        for n in 1..=3 {
            let event = events.next().await.unwrap();
            assert_eq!(
                (&*event.name, event.seq, event.payload.get()),
                ("presence", Some(n), &*format!("{{\"n\":{n}}}"))
            );
        }
        assert!(events.next().await.is_none());
        let end = connection.ended().await;
        assert_eq!(end, Disconnect::ByGateway { code: Some(1012), reason: "service restart".into() });
        let late = connection.call("health", &(), SOON).await;
        assert_eq!(late.unwrap_err(), CallError::Disconnected(end));
    };
    let (pongs, ()) = tokio::join!(serve, work);
    assert_eq!(pongs, [b"are you there"]);
}

#[tokio::test]
async fn a_silent_gateway_is_left() {
    let (options, serve) = gateway(async |mut peer: Peer| {
        peer.welcome(50).await;
        peer.until_closed().await
    })
    .await;
    let work = async {
        let (connection, _) = connect(&options).await.unwrap();
        let call = connection.call("health", &(), SOON).await;
        assert_eq!(call.unwrap_err(), CallError::Disconnected(Disconnect::Silent(Duration::from_millis(100))));
    };
    let (close, ()) = tokio::join!(serve, work);
    assert_eq!(close, Some((4000, "tick timeout".to_owned())));
}

#[tokio::test]
async fn a_call_can_run_out_of_time_and_another_go_on() {
    let (options, serve) = gateway(async |mut peer: Peer| {
        peer.welcome(30_000).await;
        let _slow = peer.next().await;
        let next = peer.next().await;
        peer.answer(&next, json!(2)).await;
        peer.until_closed().await;
    })
    .await;
    let work = async {
        let (connection, _) = connect(&options).await.unwrap();
        let slow = connection.call("slow", &(), Duration::from_millis(20)).await;
        assert!(matches!(slow, Err(CallError::Timeout { .. })));
        assert_eq!(connection.call_as::<u32>("next", &(), SOON).await, Ok(2));
    };
    tokio::join!(serve, work);
}

#[tokio::test]
async fn a_node_answers_what_it_is_asked() {
    let (mut options, serve) = gateway(async |mut peer: Peer| {
        let params = peer.welcome(30_000).await;
        assert_eq!((&params["role"], &params["commands"]), (&json!("node"), &json!(["x"])));
        let mut results = Vec::new();
        for id in ["i-1", "i-2"] {
            let payload = json!({"id":id,"nodeId":"n","command":"x","paramsJSON":"{\"a\":1}","timeoutMs":5});
            peer.send(json!({"type":"event","event":"node.invoke.request","payload":payload})).await;
            let result = peer.next().await;
            assert_eq!(result["method"], "node.invoke.result");
            peer.answer(&result, json!({"ok":true})).await;
            results.push(result["params"].clone());
        }
        results
    })
    .await;
    options = ConnectOptions {
        timeout: SOON,
        ..ConnectOptions::node(options.url, Arc::new(Identity::ephemeral()), vec!["x".into()])
    };
    let work = async {
        let (connection, mut events) = connect(&options).await.unwrap();
        let request = InvokeRequest::from_event(&events.next().await.unwrap()).unwrap();
        assert_eq!((request.command.as_str(), request.params_json.as_deref()), ("x", Some("{\"a\":1}")));
        connection.respond(&request, Ok("{\"b\":2}"), SOON).await.unwrap();
        let request = InvokeRequest::from_event(&events.next().await.unwrap()).unwrap();
        let error = NodeError { code: "UNAVAILABLE".into(), message: "off".into() };
        connection.respond(&request, Err(&error), SOON).await.unwrap();
    };
    let (results, ()) = tokio::join!(serve, work);
    assert_eq!(results[0], json!({"id":"i-1","nodeId":"n","ok":true,"payloadJSON":"{\"b\":2}"}));
    assert_eq!(results[1], json!({"id":"i-2","nodeId":"n","ok":false,"error":{"code":"UNAVAILABLE","message":"off"}}));
}

#[tokio::test]
async fn a_refusal_carries_the_gateways_reason() {
    let (options, serve) = gateway(async |mut peer: Peer| {
        peer.challenge().await;
        let connect = peer.next().await;
        peer.send(
            json!({"type":"res","id":connect["id"],"ok":false,"error":{"code":"NOT_PAIRED","message":"pairing required",
            "details":{"code":"PAIRING_REQUIRED","requestId":"r-7"}}}),
        )
        .await;
        peer.close(CloseCode::POLICY_VIOLATION, "pairing required").await;
        let _ = peer.read().await;
    })
    .await;
    let ((), result) = tokio::join!(serve, connect(&options));
    let error = result.unwrap_err();
    assert_eq!((error.stage, error.refusal().unwrap().specific_code()), (Stage::Auth, "PAIRING_REQUIRED"));
    assert!(error.advice().unwrap().contains("devices approve r-7"));
}

#[tokio::test]
async fn every_step_fails_by_its_own_name() {
    let stage = async |script: fn(Peer) -> std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        let (options, serve) = gateway(script).await;
        let ((), result) = tokio::join!(serve, connect(&options));
        let error = result.unwrap_err();
        (error.stage, error.cause.to_string())
    };
    let closed = stage(|mut peer| {
        Box::pin(async move {
            peer.close(CloseCode::TRY_AGAIN_LATER, "gateway starting").await;
            let _ = peer.read().await;
        })
    });
    let text = "the gateway closed the connection (1013: gateway starting)";
    assert_eq!(closed.await, (Stage::Challenge, text.to_owned()));
    let chatty = stage(|mut peer| {
        Box::pin(async move {
            peer.send(json!({"hello": "I am a chat server"})).await;
            let _ = peer.read().await;
        })
    });
    assert_eq!(chatty.await.0, Stage::Challenge);
    let gone = stage(|mut peer| {
        Box::pin(async move {
            peer.challenge().await;
            peer.next().await;
        })
    });
    assert_eq!(gone.await, (Stage::Auth, "the connection was lost: connection closed".to_owned()));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = GatewayUrl::loopback(listener.local_addr().unwrap().port());
    let options =
        ConnectOptions { timeout: Duration::from_millis(50), ..ConnectOptions::operator(url, ScopeSet::EMPTY) };
    let error = connect(&options).await.unwrap_err();
    assert!(matches!((error.stage, &error.cause), (Stage::Http, ConnectFailure::Timeout)));
    drop(listener);
    let error = connect(&options).await.unwrap_err();
    assert!(matches!((error.stage, &error.cause), (Stage::Tcp, ConnectFailure::Io(_))));
    let options = ConnectOptions::operator(GatewayUrl::parse("wss://127.0.0.1:1").unwrap(), ScopeSet::EMPTY);
    assert!(connect(&options).await.unwrap_err().advice().is_some());
}
