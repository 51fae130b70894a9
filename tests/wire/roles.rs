//! What each role may not do.

use serde_json::json;

use crate::support::client::{Client, node};
use crate::support::device::Device;
use crate::support::gateway::Gateway;

fn connect_node(gateway: &Gateway) -> Client {
    let mut client = gateway.client();
    Device::new(1).connect(&mut client, &node(&["system.which"])).expect("a node of this host is let in");
    client
}

#[test]
fn an_operator_may_not_call_the_methods_of_nodes() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    for method in ["node.event", "node.invoke.result", "node.pending.pull", "skills.bins"] {
        let error = client.call(method, &json!({})).unwrap_err();
        assert_eq!(error["code"], "INVALID_REQUEST");
        assert!(error["message"].as_str().unwrap().starts_with("unauthorized role: operator"), "{error}");
    }
}

#[test]
fn a_node_may_not_call_the_methods_of_operators() {
    let gateway = Gateway::start();
    let mut client = connect_node(&gateway);
    for method in ["health", "node.list", "node.invoke", "config.get", "no.such"] {
        let error = client.call(method, &json!({})).unwrap_err();
        assert_eq!(error["code"], "INVALID_REQUEST");
        assert!(error["message"].as_str().unwrap().starts_with("unauthorized role: node"), "{error}");
    }
}

#[test]
fn a_node_that_goes_on_calling_them_is_closed() {
    let gateway = Gateway::start();
    let mut client = connect_node(&gateway);
    for _ in 0..10 {
        client.send("health", &json!({}));
    }
    for number in 1..=10 {
        client.answer(&format!("c{}", number + 1)).unwrap_err();
    }
    let (code, reason) = client.closed();
    assert_eq!(code, 1008);
    assert!(reason.contains("unauthorized"), "{reason}");
    assert_eq!(gateway.log_lines("code=1008").len(), 1);
}

#[test]
fn a_node_sees_nothing_of_the_state() {
    let gateway = Gateway::start();
    let mut client = gateway.client();
    let hello = Device::new(1).connect(&mut client, &node(&[])).unwrap();
    assert_eq!(hello["auth"]["role"], "node");
    assert_eq!(hello["auth"]["scopes"], json!([]));
    assert_eq!(hello["snapshot"]["presence"], json!([]));
    let methods = hello["features"]["methods"].as_array().unwrap();
    assert!(!methods.contains(&json!("health")), "{methods:?}");
}

#[test]
fn a_node_may_speak_the_previous_protocol() {
    let gateway = Gateway::start();
    let mut params = node(&[]);
    (params["minProtocol"], params["maxProtocol"]) = (json!(3), json!(3));
    let hello = Device::new(1).connect(&mut gateway.client(), &params).unwrap();
    assert_eq!(hello["protocol"], 3);
}

#[test]
fn a_node_needs_a_device() {
    let gateway = Gateway::start();
    let mut client = gateway.client();
    let error = client.connect(&node(&[])).unwrap_err();
    assert_eq!((&error["code"], &error["details"]["code"]), (&json!("NOT_PAIRED"), &json!("DEVICE_IDENTITY_REQUIRED")));
    assert_eq!(client.closed().0, 1008);
}
