//! What was acknowledged survives `kill -9`, and what was taken away stays away (contract 5.1).
//!
//! A child process storms the devices with pairings, removals, revocations and approvals, and says on
//! standard output what it is about to take away and what was acknowledged. It is killed at a random moment;
//! then the state file must agree with everything it said. Several rounds share one file.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clawgate::auth::device::DeviceKey;
use clawgate::clock::UnixMs;
use clawgate::devices::pairing::Manager;
use clawgate::devices::record::Claims;
use clawgate::devices::{Devices, PairingRequest, Requested, SCHEMA, TokenCheck};
use clawgate::hub::Hub;
use clawgate::id::random_bytes;
use clawgate::rpc::scope::{Role, Scope, ScopeSet};
use clawgate::store::Store;
use tokio::task::JoinSet;

const ROUNDS: u64 = 6;
const WRITERS: usize = 32;
const OWNER: Manager = Manager { scopes: ScopeSet::EMPTY.with(Scope::Admin), device: None, connection: None };

/// Where the child finds its state file, and its first device's number.
const FILE: &str = "CLAWGATE_STORM_FILE";
const FIRST: &str = "CLAWGATE_STORM_FIRST";

fn key(number: u64) -> DeviceKey {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    DeviceKey::from_bytes(bytes).expect("not of small order")
}

fn open(file: &Path) -> (Store, Devices) {
    let store = Store::open(file, &[SCHEMA]).expect("the file opens again");
    let devices = Devices::open(store.clone(), Hub::new(1 << 20, 1 << 24), UnixMs::now()).expect("it can be read");
    (store, devices)
}

fn say(what: &str, number: u64, token: &str) {
    // Standard output is line buffered: the line is in the pipe before the next step.
    writeln!(std::io::stdout(), "storm {what} {number} {token}").expect("the parent reads");
}

/// The child. As a test of its own it does nothing.
#[test]
fn storm() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let first: u64 = std::env::var(FIRST).expect("set with the file").parse().expect("a number");
    let next = Arc::new(AtomicU64::new(first));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    runtime.block_on(async move {
        let (_store, devices) = open(Path::new(&file));
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let (devices, next) = (devices.clone(), Arc::clone(&next));
            writers.spawn(async move {
                loop {
                    one_device(&devices, next.fetch_add(1, Ordering::Relaxed)).await;
                }
            });
        }
        while writers.join_next().await.is_some() {}
    });
}

async fn one_device(devices: &Devices, number: u64) {
    let (key, now) = (key(number), UnixMs::now());
    let claims = Claims { platform: "linux".into(), client_id: "node-host".into(), ..Claims::default() };
    let silent = number % 4 != 3;
    let asks = PairingRequest { key, role: Role::Node, scopes: ScopeSet::EMPTY, claims, remote_ip: None, silent };
    let id = key.device_id();
    match devices.request(asks, now).await.expect("stored") {
        Requested::Paired { token } => say("paired", number, token.expect("its first").token.expose()),
        Requested::Pending { request_id, .. } => {
            say("waits", number, "");
            say("deciding", number, "");
            devices.approve(&request_id, OWNER, now).await.expect("approved");
            say("approved", number, "");
        }
        Requested::Covered => panic!("a number was used twice"),
    }
    devices.touch(id, Role::Node, true, None, now);
    match number % 4 {
        1 => {
            say("taking", number, "");
            devices.remove(id, OWNER, now).await.expect("removed");
            say("removed", number, "");
        }
        2 => {
            say("taking", number, "");
            devices.revoke(id, Role::Node, OWNER, now).await.expect("revoked");
            say("revoked", number, "");
        }
        _ => devices.tend(now).await,
    }
}

/// What the children have said so far.
#[derive(Default)]
struct Said {
    paired: HashMap<u64, String>,
    approved: HashSet<u64>,
    waits: HashSet<u64>,
    deciding: HashSet<u64>,
    taking: HashSet<u64>,
    removed: HashSet<u64>,
    revoked: HashSet<u64>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        // A line that the kill cut off has no line feed; the reader has taken care of that.
        let Some(storm) = line.find("storm ") else { return };
        let mut words = line[storm..].trim_end_matches('\n').split(' ').skip(1);
        let (Some(what), Some(Ok(number))) = (words.next(), words.next().map(str::parse)) else { return };
        match what {
            "paired" => drop(self.paired.insert(number, words.next().unwrap_or_default().to_owned())),
            "approved" => drop(self.approved.insert(number)),
            "waits" => drop(self.waits.insert(number)),
            "deciding" => drop(self.deciding.insert(number)),
            "taking" => drop(self.taking.insert(number)),
            "removed" => drop(self.removed.insert(number)),
            "revoked" => drop(self.revoked.insert(number)),
            other => panic!("the child says {other:?}"),
        }
    }

    fn check(&self, devices: &Devices) {
        for (number, token) in &self.paired {
            if !self.taking.contains(number) {
                let check = devices.check_token(key(*number).device_id(), Role::Node, token);
                assert!(matches!(check, TokenCheck::Ok { .. }), "device {number} was paired and is {check:?}");
            }
        }
        for number in &self.approved {
            assert!(devices.facts(key(*number).device_id()).is_some(), "device {number} was approved and is gone");
        }
        let pending: HashSet<_> = devices.pending(UnixMs::now()).iter().map(|request| request.id).collect();
        for number in self.waits.difference(&self.deciding) {
            assert!(pending.contains(&key(*number).device_id()), "device {number} waited and is gone");
        }
        for number in &self.removed {
            assert!(devices.facts(key(*number).device_id()).is_none(), "device {number} was removed and is back");
        }
        for number in &self.revoked {
            let facts = devices.facts(key(*number).device_id()).expect("a tombstone stays");
            assert!(facts.approvals.iter().all(|role| role.is_revoked()), "device {number} was revoked and is back");
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_to_sigkill_and_nothing_taken_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("clawgate.sqlite");
    let mut said = Said::default();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "storm", "--nocapture"])
            .env(FILE, &file)
            .env(FIRST, (round * 1_000_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("storm ") {
            line.clear();
            assert!(output.read_line(&mut line).expect("the child speaks") > 0, "the child ended by itself");
        }
        said.hear(&line);
        let killer = std::thread::spawn(move || {
            let [a, b] = random_bytes();
            std::thread::sleep(Duration::from_millis(u64::from(u16::from_be_bytes([a, b])) % 300));
            child.kill().expect("it runs");
            child.wait().expect("it is dead")
        });
        loop {
            line.clear();
            if output.read_line(&mut line).expect("readable") == 0 {
                break;
            }
            if line.ends_with('\n') {
                said.hear(&line);
            }
        }
        assert!(!killer.join().expect("killed").success());
        let (store, devices) = open(&file);
        said.check(&devices);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(store.close());
    }
    let counts = [said.paired.len(), said.approved.len(), said.removed.len(), said.revoked.len()];
    assert!(counts.iter().all(|count| *count > 10), "too little happened to prove anything: {counts:?}");
}
