//! The proxy doctor: who may ask, and what a stranger sees of it.

use serde_json::{Value, json};

use crate::support::client::{Client, operator_with};
use crate::support::gateway::{Gateway, HttpAnswer, Setup};

/// Asks for a number.
fn begin(client: &mut Client) -> String {
    let begun = client.call("gateway.doctor.proxy.begin", &json!({})).expect("an admin may ask");
    begun["number"].as_str().expect("a number").to_owned()
}

fn request(gateway: &Gateway, number: &str, lines: &str) -> HttpAnswer {
    let path = "/clawgate/doctor";
    gateway.http(&format!(
        "GET {path} HTTP/1.1\r\nHost: gw.example\r\nX-Clawgate-Doctor: {number}\r\n{lines}Connection: close\r\n\r\n"
    ))
}

fn report(client: &mut Client, number: &str) -> Result<Value, Value> {
    client.call("gateway.doctor.proxy.report", &json!({"number": number}))
}

#[test]
fn shows_an_admin_what_the_gateway_sees_and_the_line_to_add() {
    let gateway = Gateway::start();
    let mut admin = gateway.operator();
    let number = begin(&mut admin);
    assert_eq!(report(&mut admin, &number).unwrap()["report"], Value::Null, "nothing has come yet");
    let answer = request(&gateway, &number, "X-Forwarded-For: 203.0.113.9\r\nCookie: session=s3cret\r\n");
    assert_eq!(answer.status, 200);
    assert!(!answer.body.contains("203.0.113.9") && !answer.body.contains("proxy"), "{}", answer.body);
    let seen = report(&mut admin, &number).unwrap()["report"].take();
    assert_eq!((&seen["peer"], &seen["verdict"]), (&json!("127.0.0.1"), &json!("unattributable-proxy")));
    assert_eq!(seen["advice"], json!(["gateway.trustedProxies: [\"127.0.0.1\"]"]));
    assert!(!seen.to_string().contains("s3cret"), "{seen}");
    report(&mut admin, &number).unwrap_err();

    // With that line, all is well.
    let gateway = Setup::new().config(&json!({"gateway": {"trustedProxies": ["127.0.0.1"]}})).start();
    let mut admin = gateway.operator();
    let number = begin(&mut admin);
    request(&gateway, &number, "X-Forwarded-For: 203.0.113.9\r\n");
    let seen = report(&mut admin, &number).unwrap()["report"].take();
    assert_eq!((&seen["client"], &seen["advice"]), (&json!("203.0.113.9"), &json!([])));
}

#[test]
fn shows_a_stranger_a_page_that_is_not_there() {
    let gateway = Gateway::start();
    let nothing = gateway.get("/no/such/page");
    let mut admin = gateway.operator();
    let number = begin(&mut admin);
    for number in ["", "x", &number[1..]] {
        let answer = request(&gateway, number, "");
        assert_eq!((answer.status, answer.body), (nothing.status, nothing.body.clone()), "{number}");
    }
    assert_eq!(request(&gateway, &number, "").status, 200);
    assert_eq!(request(&gateway, &number, "").status, 404, "it serves once");
    let mut reader = gateway.client();
    reader.connect(&operator_with(&["operator.read", "operator.write", "operator.pairing"])).unwrap();
    for method in ["gateway.doctor.proxy.begin", "gateway.doctor.proxy.report"] {
        let error = reader.call(method, &json!({"number": number})).unwrap_err();
        assert_eq!(error["details"]["code"], "MISSING_SCOPE", "{method}");
    }
}
