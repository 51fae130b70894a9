//! A node that says where `uname` is, and comes back by itself when the gateway does.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Client, Incoming, node};
use crate::support::device::Device;
use crate::support::gateway::Gateway;

const COMMANDS: &[&str] = &["system.which", "system.run"];

/// Bytes that begin as a JPEG does.
pub(crate) const PICTURE: &[u8] = &[0xFF, 0xD8, 0xFF, 0xE0, 0, 16, b'J', b'F', b'I', b'F', 0, 1];
const PICTURE_BASE64: &str = "/9j/4AAQSkZJRgAB";

/// One call that the node carried out.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    pub key: String,
    pub command: String,
    /// As the gateway sent them.
    pub params: Value,
    pub took: Duration,
}

/// A node on a thread of its own.
pub(crate) struct Which {
    port: Arc<AtomicU16>,
    stop: Arc<AtomicBool>,
    carried: Arc<Mutex<Vec<Carried>>>,
}

impl Which {
    /// Connects to `gateway`, is approved, and serves until dropped.
    pub(crate) fn start(gateway: &Gateway) -> Self {
        Self::start_with(gateway, COMMANDS)
    }

    /// The same with these commands.
    pub(crate) fn start_with(gateway: &Gateway, commands: &'static [&'static str]) -> Self {
        let mut operator = gateway.operator();
        let device = Device::new(7);
        let mut client = gateway.client();
        device.connect(&mut client, &node(commands)).expect("a node of this host is let in");
        let asked = operator.event("node.pair.requested");
        operator.call("node.pair.approve", &json!({"requestId": asked["requestId"]})).expect("an operator may approve");
        let which =
            Self { port: Arc::new(AtomicU16::new(gateway.port)), stop: Arc::default(), carried: Arc::default() };
        let (port, stop, carried) = (Arc::clone(&which.port), Arc::clone(&which.stop), Arc::clone(&which.carried));
        thread::spawn(move || {
            let mut client = Some(client);
            while !stop.load(Ordering::SeqCst) {
                match client.take().or_else(|| reconnect(&device, port.load(Ordering::SeqCst), commands)) {
                    Some(connected) => serve(connected, &stop, &carried),
                    None => thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        which
    }

    /// The gateway has another port now.
    pub(crate) fn moved(&self, port: u16) {
        self.port.store(port, Ordering::SeqCst);
    }

    /// What it carried out so far.
    pub(crate) fn carried(&self) -> Vec<Carried> {
        self.carried.lock().unwrap().clone()
    }
}

impl Drop for Which {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn reconnect(device: &Device, port: u16, commands: &[&str]) -> Option<Client> {
    let probe = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    drop(probe);
    // The gateway may be killed at any moment of this.
    std::panic::catch_unwind(|| {
        let mut client = Client::open(port);
        device.connect(&mut client, &node(commands)).ok().map(|_| client)
    })
    .ok()
    .flatten()
}

fn serve(mut client: Client, stop: &AtomicBool, carried: &Mutex<Vec<Carried>>) {
    while !stop.load(Ordering::SeqCst) {
        match client.next_within(Duration::from_millis(200)) {
            Some(Incoming::Json(frame)) if frame["event"] == "node.invoke.request" => {
                let at = Instant::now();
                let request = &frame["payload"];
                let key = request["idempotencyKey"].as_str().unwrap_or_default().to_owned();
                let command = request["command"].as_str().unwrap_or_default().to_owned();
                let params: Value =
                    serde_json::from_str(request["paramsJSON"].as_str().unwrap_or_default()).unwrap_or_default();
                let payload = match command.as_str() {
                    "camera.snap" => json!({"format": "jpg", "base64": PICTURE_BASE64, "width": 1, "height": 1}),
                    // A plan, as the real node host makes it: with the program's whole path and a folder.
                    "system.run.prepare" => {
                        let mut argv = params["command"].clone();
                        // Somebody changes the script all the time.
                        let plans = carried.lock().unwrap().len();
                        let script = json!({"argvIndex": 2, "path": "/work/2", "sha256": format!("{plans:064x}")});
                        argv[0] = json!(format!("/usr/bin/{}", argv[0].as_str().unwrap_or_default()));
                        json!({"plan": {"argv": argv, "cwd": "/work", "commandText": "", "agentId": params["agentId"],
                            "sessionKey": params["sessionKey"], "mutableFileOperand": script}})
                    }
                    "system.run" => json!({"exitCode": 0, "stdout": "it ran", "success": true}),
                    _ => json!({"bins": {"uname": "/usr/bin/uname"}}),
                };
                let payload = payload.to_string();
                let result = json!({"type": "req", "id": format!("r{}", request["id"]), "method": "node.invoke.result",
                    "params": {"id": request["id"], "nodeId": request["nodeId"], "ok": true, "payloadJSON": payload}});
                carried.lock().unwrap().push(Carried { key, command, params, took: at.elapsed() });
                client.try_bytes(&crate::support::client::frame(
                    clawgate::ws::message::Opcode::Text,
                    result.to_string().as_bytes(),
                ));
            }
            Some(Incoming::Ping(_)) => {
                client.try_bytes(&crate::support::client::frame(clawgate::ws::message::Opcode::Pong, b""))
            }
            Some(Incoming::End { .. } | Incoming::Close(..)) => return,
            _ => {}
        }
    }
}
