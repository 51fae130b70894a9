//! Clients that do not read: what they hold up, which is nobody but themselves.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;

use crate::support::client::{Client, Incoming, cli};
use crate::support::device::Device;
use crate::support::gateway::{Gateway, Setup};

/// Requests of a stalled client.
const REQUESTS: usize = 64;

/// A setup under which answers to `config.get` are large: together more than the kernel's buffers hold.
pub(crate) fn large_answers(more: &Value) -> Setup {
    let mut config = more.clone();
    config["meta"] = json!({"note": "x".repeat(200_000)});
    Setup::new().config(&config)
}

/// Sends requests with large answers, of which the client reads nothing.
pub(crate) fn stall(client: &mut Client) -> Vec<String> {
    SockRef::from(&client.stream).set_recv_buffer_size(200_000).expect("an option of the socket");
    (0..REQUESTS).map(|_| client.send("config.get", &json!({}))).collect()
}

#[test]
fn a_client_that_does_not_read_its_answers_stalls_itself_alone() {
    let gateway = large_answers(&json!({})).start();
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

#[test]
fn a_stalled_client_that_reads_again_gets_every_answer() {
    let gateway = large_answers(&json!({})).start();
    let mut client = gateway.operator();
    let requests = stall(&mut client);
    // Its turn came and it could not go on: others were served meanwhile.
    gateway.operator().call("health", &json!({})).unwrap();
    for id in requests {
        let answer = client.find(|frame| frame["type"] == "res");
        assert_eq!((&answer["id"], &answer["ok"]), (&json!(id), &json!(true)));
    }
    client.call("health", &json!({})).unwrap();
}

#[test]
fn a_consumer_that_is_too_slow_is_closed_and_told_why() {
    let limits = json!({"outboxBytes": 65_536, "totalOutboxBytes": 1_048_576});
    let gateway = large_answers(&json!({
        "gateway": {"trustedProxies": ["127.0.0.1"]},
        "plugins": {"entries": {"clawgate": {"config": {"limits": limits}}}},
    }))
    .start();
    let mut slow = gateway.operator();
    let mut quick = gateway.operator();
    stall(&mut slow);
    // Requests for approval must reach whoever may approve: these are large, and they are not left out.
    for seed in 1..=250 {
        if gateway.stderr.text().contains("slow consumer") {
            break;
        }
        let mut client = Client::open_with(gateway.port, &format!("X-Forwarded-For: 203.0.113.{seed}\r\n")).unwrap();
        let mut params = cli(&["operator.read"]);
        params["client"]["displayName"] = json!("x".repeat(250));
        params["client"]["platform"] = json!("y".repeat(250));
        params["client"]["deviceFamily"] = json!("z".repeat(250));
        Device::new(seed).connect(&mut client, &params).unwrap_err();
        quick.event("device.pair.requested");
    }
    let line = gateway.stderr.wait_for(|line| line.contains("slow consumer")).expect("it is closed");
    assert!(line.contains("code=1008"), "{line}");
    assert_eq!(slow.closed(), (1008, "slow consumer".to_owned()));
    assert_eq!(gateway.log_lines("slow consumer").len(), 1);
    let noted = quick.call("diagnostics.stability", &json!({"type": "payload.large"})).unwrap();
    let large = noted["events"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&large["surface"], &large["reason"]),
        (&json!("gateway.ws.outbound_buffer"), &json!("ws_send_buffer_close"))
    );
    assert!(large["bytes"].as_u64() > large["limitBytes"].as_u64(), "{large}");
}

#[test]
fn a_removed_device_that_does_not_read_is_cut_off_all_the_same() {
    let gateway = large_answers(&json!({})).start();
    let mut operator = gateway.operator();
    let (device, mut client) = (Device::new(1), gateway.client());
    device.connect(&mut client, &cli(&["operator.read"])).unwrap();
    stall(&mut client);
    operator.call("health", &json!({})).unwrap();
    let begun = Instant::now();
    operator.call("device.pair.remove", &json!({"deviceId": device.id()})).unwrap();
    gateway.stderr.wait_for(|line| line.contains("code=4001")).expect("it is closed");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // It had its time to read the close frame; the socket goes without it.
    loop {
        match client.next() {
            Incoming::Close(code, _) => break assert_eq!(code, 4001),
            Incoming::End { .. } => break,
            _ => {}
        }
    }
}

#[test]
#[ignore = "needs a quiet machine: a busy one looks like a gateway that has stopped reading"]
fn what_waits_for_a_client_that_is_closed_comes_before_the_close() {
    let gateway = large_answers(&json!({})).start();
    let mut operator = gateway.operator();
    let (device, mut client) = (Device::new(1), gateway.client());
    device.connect(&mut client, &cli(&["operator.admin"])).unwrap();
    let mut requests = stall(&mut client);
    requests.truncate(2);
    operator.call("health", &json!({})).unwrap();
    let removal = operator.send("device.pair.remove", &json!({"deviceId": device.id()}));
    // What is on its way already is read in time.
    for id in requests {
        client.answer(&id).unwrap();
    }
    assert_eq!(client.closed().0, 4001);
    operator.answer(&removal).unwrap();
}

#[test]
#[ignore = "takes two minutes: a connection counts as dead after 75 s of silence"]
fn a_client_that_reads_slowly_is_alive() {
    let gateway = large_answers(&json!({})).start();
    let mut client = gateway.operator();
    stall(&mut client);
    let until = Instant::now() + Duration::from_secs(110);
    while Instant::now() < until {
        for _ in 0..4 {
            client.find(|frame| frame["type"] == "res");
        }
        std::thread::sleep(Duration::from_secs(10));
    }
    client.find(|frame| frame["type"] == "res");
}

#[test]
fn a_client_that_vanishes_is_forgotten() {
    let gateway = Gateway::start();
    let mut watcher = gateway.operator();
    let mut client = gateway.client();
    let hello = Device::new(1).connect(&mut client, &cli(&["operator.read"])).unwrap();
    let id = hello["server"]["connId"].clone();
    assert!(id.is_string());
    drop(client);
    // Not even a close frame came.
    gateway.stderr.wait_for(|line| line.contains("connection lost")).expect("it is noticed");
    let listed = watcher.call("device.pair.list", &json!({})).unwrap();
    assert_eq!(listed["paired"][0]["connected"], false, "{listed}");
}
