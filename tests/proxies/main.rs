//! clawgate behind Debian's nginx and Caddy, with the very configuration files of `docs/proxies/`.
//!
//! The claims are played for both proxies and both places: on the gateway's own host (with `allowLoopback`), and in a network
//! namespace of its own (without). Clients have a namespace and two hundred addresses of their own, so that what the gateway
//! writes down as their address can be told from the proxy's.
//!
//! Needs root, iproute2, nginx and caddy. Where one is missing a test says `SKIPPED` and passes, except under `CI`, where
//! it fails.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests: a panic is the report, and libtest keeps the output"
)]

#[path = "../support/mod.rs"]
mod support;

#[path = "../interop/parts.rs"]
#[allow(dead_code, reason = "the other release is for the interoperability tests")]
mod parts;
#[path = "../interop/program.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod program;

mod cli;
mod identity;
mod network;
mod proxy;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use serde_json::{Value, json};

use network::{CLIENTS, Networks};
use proxy::{Kind, Place, Proxy};
use support::PATIENCE;
use support::client::{Client, UPGRADE, cli};
use support::device::Device;
use support::gateway::{Gateway, HttpAnswer, Setup};

type Claim = fn(&Scene);

/// What must hold, in the order in which it is played.
const CLAIMS: [(&str, Claim); 7] = [
    ("an allowed user gets in and calls methods", an_allowed_user_gets_in_and_calls_methods),
    ("others are refused and told why", others_are_refused_and_told_why),
    ("forged headers are overwritten", forged_headers_are_overwritten),
    ("who goes around the proxy is refused", who_goes_around_the_proxy_is_refused),
    ("the doctor sees what comes through", the_doctor_sees_what_comes_through),
    ("two hundred clients come in at once", two_hundred_clients_come_in_at_once),
    ("the real CLI connects", the_real_cli_connects),
];

#[test]
fn all_claims_hold_behind_nginx_on_the_same_host() {
    play(Kind::Nginx, Place::SameHost);
}

#[test]
fn all_claims_hold_behind_nginx_in_a_network_of_its_own() {
    play(Kind::Nginx, Place::OwnNetwork);
}

#[test]
fn all_claims_hold_behind_caddy_on_the_same_host() {
    play(Kind::Caddy, Place::SameHost);
}

#[test]
fn all_claims_hold_behind_caddy_in_a_network_of_its_own() {
    play(Kind::Caddy, Place::OwnNetwork);
}

/// One gateway with one proxy in front, and where their clients are.
struct Scene {
    networks: Networks,
    gateway: Gateway,
    proxy: Proxy,
    place: Place,
}

/// Alice's machine is known to the identity service without a session. It is the one whose address a program there gets
/// when it does not choose.
const ALICES_MACHINE: u8 = 0;

fn play(kind: Kind, place: Place) {
    let missing = if !rustix::process::getuid().is_root() {
        Some("network namespaces need root")
    } else if std::process::Command::new("ip").arg("-V").output().is_err() {
        Some("iproute2 is not installed; run: apt-get install iproute2")
    } else if !kind.is_installed() {
        Some("the proxy is not installed; run: apt-get install nginx-light caddy")
    } else {
        None
    };
    match missing {
        None => {
            let scene = Scene::new(kind, place);
            for (name, claim) in CLAIMS {
                println!("claim: {name}");
                claim(&scene);
            }
        }
        Some(why) => skip(why),
    }
}

/// Says why a claim is not played, and fails where `CI` is set.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{why}");
    // Past libtest's capture: who runs the tests shall see it.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

impl Scene {
    fn new(kind: Kind, place: Place) -> Self {
        let networks = Networks::new();
        let (own, _) = place.addresses(&networks);
        let proxy = json!({
            "userHeader": "X-Forwarded-User", "requiredHeaders": ["X-Forwarded-Proto"],
            "allowUsers": ["alice@example.com"], "allowLoopback": place == Place::SameHost,
            "deviceAutoApprove": {"enabled": true, "scopes": ["operator.read", "operator.write"]},
        });
        let auth = json!({
            "mode": "trusted-proxy", "trustedProxy": proxy,
            "identityScopes": {"alice@example.com": ["operator.read", "operator.pairing", "operator.admin"]},
        });
        let bind = if place == Place::SameHost { "loopback" } else { "lan" };
        let config = json!({"gateway": {
            "bind": bind, "auth": auth, "trustedProxies": [place.source(&networks).to_string()],
            "controlUi": {"allowedOrigins": ["https://gw.example"]},
        }});
        let gateway = Setup::new().no_token().config(&config).start();
        let alices_machine = networks.client(ALICES_MACHINE, own);
        let proxy = Proxy::start(kind, place, &networks, gateway.port, alices_machine);
        Self { networks, gateway, proxy, place }
    }

    /// The address of the client of that number, as the proxy sees it.
    fn client(&self, number: u8) -> Ipv4Addr {
        let std::net::IpAddr::V4(proxy) = self.proxy.address.ip() else { unreachable!("ours are IPv4") };
        self.networks.client(number, proxy)
    }

    /// Asks for an upgrade at `to`, from the client of that number.
    fn ask(&self, number: u8, to: SocketAddr, lines: &str) -> TcpStream {
        let std::net::IpAddr::V4(peer) = to.ip() else { unreachable!("ours are IPv4") };
        let mut stream = self.networks.clients.connect(self.networks.client(number, peer), to);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: gw.example\r\n{UPGRADE}{lines}\r\n").as_bytes()).unwrap();
        stream
    }

    /// The same at the proxy, with the answer: a WebSocket, or why not.
    fn open(&self, number: u8, lines: &str) -> Result<Client, HttpAnswer> {
        Client::upgraded(self.ask(number, self.proxy.address, lines))
    }

    /// The same, of one who is to be refused. The proxy keeps the connection for the next request, so the end of the
    /// answer is when nothing more comes.
    fn refused(&self, number: u8, lines: &str) -> HttpAnswer {
        let stream = self.ask(number, self.proxy.address, lines);
        stream.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
        Client::upgraded(stream).map(|_| ()).expect_err("it is refused")
    }
}

const ALICE: &str = "Cookie: session=alice\r\n";
const PAGE: &str = "Origin: https://gw.example\r\n";

/// `connect` of a client that brings nothing by itself.
fn plain(scopes: &[&str]) -> Value {
    let mut params = cli(scopes);
    params["auth"] = json!({});
    params
}

/// The Control UI's.
fn control_ui(scopes: &[&str]) -> Value {
    let mut params = plain(scopes);
    params["client"]["id"] = json!("openclaw-control-ui");
    params["client"]["mode"] = json!("webchat");
    params
}

/// Waits for the close frame, and gives its reason.
fn end(client: &mut Client) -> String {
    client.closed().1
}

fn an_allowed_user_gets_in_and_calls_methods(scene: &Scene) {
    let mut page = scene.open(7, &format!("{ALICE}{PAGE}")).expect("the upgrade passes");
    let device = Device::new(1);
    let hello = device.connect(&mut page, &control_ui(&["operator.read", "operator.write"])).expect("Alice is let in");
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read", "operator.write"]));
    assert_eq!(page.call("health", &json!({})).unwrap()["ok"], true);
    assert!(page.call("node.list", &json!({})).unwrap()["nodes"].is_array());
    // Frames of some size pass both ways, and so do pings.
    let large = "x".repeat(200_000);
    page.call("health", &json!({"probe": large})).unwrap_err();
    page.frame(clawgate::ws::message::Opcode::Ping, b"are you there");
    page.call("status", &json!({})).unwrap();
    // Its true address is in the log.
    let address = scene.client(7).to_string();
    let lines = scene.gateway.log_lines("connected");
    assert!(lines.iter().any(|line| line.contains(&address)), "{address}: {lines:?}");
}

fn others_are_refused_and_told_why(scene: &Scene) {
    let answer = scene.refused(6, PAGE);
    assert_eq!(answer.status, 401, "the proxy itself asks for the session");
    let mut mallory = scene.open(1, &format!("Cookie: session=mallory\r\n{PAGE}")).expect("the proxy knows her");
    let error = mallory.connect(&control_ui(&["operator.read"])).unwrap_err();
    assert_eq!(error["details"]["authReason"], "trusted_proxy_user_not_allowed", "{error}");
    end(&mut mallory);
    let answer = scene.refused(2, &format!("{ALICE}Origin: https://evil.example\r\n"));
    assert_eq!(answer.status, 403);
    let address = scene.client(1).to_string();
    let lines = scene.gateway.log_lines("client refused");
    assert!(lines.iter().any(|line| line.contains(&address)), "{address}: {lines:?}");
}

fn forged_headers_are_overwritten(scene: &Scene) {
    let forged = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-For: 192.0.2.66\r\nX-Real-IP: 127.0.0.1\r\n\
                  Forwarded: for=127.0.0.1\r\nX-Forwarded-User: alice@example.com\r\nX-Forwarded-Proto: https\r\n\
                  X-Forwarded-Host: 127.0.0.1\r\nX-OpenClaw-Scopes: operator.admin\r\n";
    // Mallory claims to be Alice, and who has no name at all does.
    for (session, reason) in
        [("mallory", "trusted_proxy_user_not_allowed"), ("anonymous", "trusted_proxy_user_missing")]
    {
        let mut client =
            scene.open(3, &format!("Cookie: session={session}\r\n{forged}{PAGE}")).expect("the proxy lets pass");
        let error = client.connect(&control_ui(&["operator.admin"])).unwrap_err();
        let told = &error["details"]["authReason"];
        // Caddy 2.6 sends the name of its own placeholder where the identity service says nothing: nobody is called that.
        assert!(
            told == reason || (session == "anonymous" && told == "trusted_proxy_user_not_allowed"),
            "{session}: {error}"
        );
        end(&mut client);
    }
    // Alice claims to be somewhere else and to have more: the address is hers, and no cap is added by a client.
    let mut alice = scene.open(4, &format!("{ALICE}{forged}{PAGE}")).expect("the upgrade passes");
    let hello = alice.connect(&control_ui(&["operator.read"])).expect("Alice is let in");
    assert_eq!(hello["auth"]["scopes"], json!(["operator.read"]));
    let address = scene.client(4).to_string();
    let lines = scene.gateway.log_lines("connected");
    assert!(lines.iter().any(|line| line.contains(&address)), "{address}: {lines:?}");
    assert!(!scene.gateway.stderr.text().contains("192.0.2.66"));
}

fn who_goes_around_the_proxy_is_refused(scene: &Scene) {
    let port = scene.gateway.port;
    let forged = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-User: alice@example.com\r\nX-Forwarded-Proto: https\r\n";
    match scene.place {
        // The gateway listens on loopback alone: nobody else can go around.
        Place::SameHost => {
            let to = SocketAddr::new(scene.networks.host_for_clients().into(), port);
            let reached = scene
                .networks
                .clients
                .enter(|| TcpStream::connect_timeout(&to, std::time::Duration::from_secs(2)).is_ok());
            assert!(!reached, "the gateway is not there for the network");
        }
        Place::OwnNetwork => {
            let to = SocketAddr::new(scene.networks.host_for_clients().into(), port);
            let answer = Client::upgraded(scene.ask(5, to, forged)).map(|_| ()).expect_err("forged headers");
            assert_eq!(answer.status, 403, "{answer:?}");
            assert!(answer.body.contains("gateway.trustedProxies"), "{answer:?}");
            let mut client = Client::upgraded(scene.ask(5, to, "")).expect("without them it may try");
            let error = client.connect(&plain(&["operator.read"])).unwrap_err();
            assert_eq!(error["details"]["authReason"], "trusted_proxy_untrusted_source", "{error}");
        }
    }
    // Nor does the host itself, by whatever address.
    for host in [Ipv4Addr::LOCALHOST, scene.networks.host_for_proxy()] {
        if scene.place == Place::SameHost {
            continue;
        }
        let mut stream = TcpStream::connect((host, port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: gw.example\r\n{UPGRADE}{forged}\r\n").as_bytes()).unwrap();
        let answer = Client::upgraded(stream).map(|_| ()).expect_err("forged headers");
        assert_eq!(answer.status, 403, "{host}");
    }
}

fn two_hundred_clients_come_in_at_once(scene: &Scene) {
    let asked: Vec<_> = (0..CLIENTS).map(|number| scene.ask(number, scene.proxy.address, ALICE)).collect();
    let mut clients: Vec<_> =
        asked.into_iter().map(|stream| Client::upgraded(stream).expect("the upgrade of each passes")).collect();
    // All sockets are open and none has said a word; now all do.
    let ids: Vec<_> = clients
        .iter_mut()
        .map(|client| {
            client.nonce();
            client.send("connect", &plain(&["operator.read"]))
        })
        .collect();
    let mut unnamed = 0;
    for (number, (client, id)) in clients.iter_mut().zip(&ids).enumerate() {
        if let Err(error) = client.answer(id) {
            // Caddy 2.6 sometimes forgets the name that the identity service gave, when it asks for many at once. Who comes
            // without a name is nobody to the gateway; asked again, they have one.
            let reason = &error["details"]["authReason"];
            assert!(
                scene.proxy.kind == Kind::Caddy && reason == "trusted_proxy_user_missing",
                "each is let in: {error}"
            );
            unnamed += 1;
            *client = scene.open(u8::try_from(number).unwrap(), ALICE).expect("the upgrade passes");
            client.connect(&plain(&["operator.read"])).expect("with a name they are let in");
        }
    }
    assert!(unnamed <= CLIENTS / 20, "{unnamed} came without a name");
    for client in &mut clients {
        assert_eq!(client.call("health", &json!({})).unwrap()["ok"], true);
    }
    let lines = scene.gateway.log_lines("connected");
    for number in [0, CLIENTS / 2, CLIENTS - 1] {
        let address = scene.client(number).to_string();
        assert!(lines.iter().any(|line| line.contains(&address)), "{address} is in the log");
    }
    assert_eq!(scene.proxy.source, scene.place.source(&scene.networks));
}

fn the_doctor_sees_what_comes_through(scene: &Scene) {
    let mut alice = scene.open(0, ALICE).expect("the upgrade passes");
    alice.connect(&plain(&["operator.admin"])).expect("Alice is let in");
    let begun = alice.call("gateway.doctor.proxy.begin", &json!({})).unwrap();
    let (number, path, header) = (&begun["number"], &begun["path"], &begun["header"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: gw.example\r\n{}: {}\r\n{ALICE}X-Forwarded-For: 127.0.0.1\r\nConnection: close\r\n\r\n",
        text(path),
        text(header),
        text(number)
    );
    let mut stream = scene.networks.clients.connect(scene.client(9), scene.proxy.address);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    assert_eq!(HttpAnswer::read(&mut stream).status, 200);
    let report = alice.call("gateway.doctor.proxy.report", &json!({"number": number})).unwrap()["report"].take();
    assert_eq!(report["peer"], scene.proxy.source.to_string());
    assert_eq!((&report["verdict"], &report["peerIsTrusted"]), (&json!("trusted-proxy"), &json!(true)));
    assert_eq!(report["client"], scene.client(9).to_string());
    assert_eq!(report["identity"], json!({"user": "alice@example.com"}));
    assert_eq!(report["advice"], json!([]), "{report}");
    assert!(!report.to_string().contains("session="), "{report}");
}

fn the_real_cli_connects(scene: &Scene) {
    parts::with(|| cli::connects(scene));
}
