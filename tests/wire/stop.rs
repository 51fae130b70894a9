//! How the gateway stops: in order, in time, and saying who was left.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::client::operator;
use crate::support::device::Device;
use crate::support::gateway::{Gateway, Setup};

#[test]
fn a_stop_says_goodbye_to_every_client_and_exits_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut gateway = Gateway::start();
        let mut clients = [gateway.operator(), gateway.operator()];
        gateway.signal(signal);
        for client in &mut clients {
            let shutdown = client.event("shutdown");
            assert!(shutdown["reason"].is_string(), "{shutdown}");
            assert_eq!(client.closed(), (1012, "service restart".to_owned()));
        }
        assert_eq!(gateway.wait().expect("it stops").code(), Some(0));
        assert!(gateway.stderr.to_end().contains("stopped ended=2 left=0"), "{}", gateway.stderr.text());
    }
}

#[test]
fn what_was_asked_before_the_stop_is_answered() {
    let mut gateway = Gateway::start();
    let mut client = gateway.operator();
    let ids: Vec<_> = (0..100).map(|_| client.send("health", &json!({}))).collect();
    // The gateway has read them all when it answers the last.
    client.answer(&ids[99]).unwrap();
    gateway.signal(Signal::TERM);
    for id in &ids[..99] {
        client.answer(id).unwrap();
    }
    assert_eq!(client.closed().0, 1012);
    assert!(gateway.wait().expect("it stops").success());
}

#[test]
fn a_client_that_does_not_read_is_named_and_a_second_signal_ends_the_wait() {
    let mut gateway = crate::slow::large_answers(&json!({})).start();
    let mut client = gateway.operator();
    crate::slow::stall(&mut client);
    gateway.signal(Signal::TERM);
    gateway.stderr.wait_for(|line| line.contains(" stopping ")).expect("it stops");
    std::thread::sleep(Duration::from_millis(100));
    assert!(gateway.is_running(), "it does not wait for the client");
    gateway.signal(Signal::TERM);
    gateway.wait().expect("it stops");
    let log = gateway.stderr.to_end();
    assert!(log.contains("did not leave in time") && log.contains("gateway-client"), "{log}");
}

#[test]
fn who_has_not_connected_yet_is_told_and_does_not_hold_up_the_stop() {
    let mut gateway = Gateway::start();
    let mut client = gateway.client();
    client.nonce();
    let silent = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    let mut idle = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(idle.read(&mut [0; 1024]).unwrap() > 0);
    let begun = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(client.closed(), (1012, "service restart".to_owned()));
    assert!(gateway.wait().expect("it stops").success());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    for mut stream in [silent, idle] {
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    }
}

#[test]
fn who_connects_while_it_stops_is_not_forgotten() {
    let mut gateway = Gateway::start();
    let mut clients: Vec<_> = (0..50).map(|_| gateway.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.nonce();
        if number == 25 {
            gateway.signal(Signal::TERM);
        }
        client.send("connect", &operator());
    }
    let begun = Instant::now();
    for client in &mut clients {
        assert_eq!(client.closed(), (1012, "service restart".to_owned()));
    }
    assert!(gateway.wait().expect("it stops").success());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_kill_loses_nothing_that_was_answered() {
    let gateway = Setup::new().start();
    let device = Device::new(1);
    let mut params = operator();
    params["client"]["id"] = json!("cli");
    params["client"]["mode"] = json!("cli");
    let hello = device.connect(&mut gateway.client(), &params).unwrap();
    let token = hello["auth"]["deviceToken"].as_str().expect("a token").to_owned();
    let setup = gateway.setup();
    gateway.signal(Signal::KILL);
    drop(gateway);
    let gateway = setup.start();
    params["auth"] = json!({"deviceToken": token});
    device.connect(&mut gateway.client(), &params).unwrap();
}
