//! clawgate against the programs its users already have: the published OpenClaw CLI and node host, in the current
//! release and an older one, and the reference client.
//!
//! Each claim below is played once for each release, against a gateway of its own. The clients come from
//! `tests/interop/package.json` (`npm ci` there; about 1 GB). Without them a claim says `SKIPPED` and passes, except
//! under `CI`, where it fails.
//!
//! `INTEROP_GATEWAY` names another gateway to play against: the path of a binary, or `openclaw` for the incumbent
//! itself. A claim that fails against both says more about the claim than about clawgate.
//!
//! Start reading at the claims; [`gateway`], [`client`] and [`node_host`] are the three kinds of program in play.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests: a panic is the report, and libtest keeps the output"
)]

mod client;
mod control_ui;
mod flow;
mod gateway;
mod incumbent;
mod node_host;
mod parts;
mod program;
#[path = "../standin/mod.rs"]
mod standin;

use std::time::Duration;

use client::Cli;
use flow::{
    a_telegram_message_is_answered_with_what_a_real_node_says, the_cli_talks_with_the_agent_and_sees_the_channel,
    the_terminal_ui_holds_a_conversation,
};
use gateway::Gateway;
use node_host::NodeHost;
use parts::{CURRENT, OLDER, Release};
use program::eventually;
use serde_json::Value;

/// Makes a test of each claim for each release of the real clients.
macro_rules! for_each_release {
    (always: [$($claim:ident),+ $(,)?], at_length: [$($longer:ident),+ $(,)?] $(,)?) => {
        mod release_2026_9_6 {
            $(#[test] fn $claim() { crate::parts::with(|| super::$claim(super::CURRENT)); })+
            $(#[test] fn $longer() { crate::parts::with(|| super::$longer(super::CURRENT)); })+
        }
        mod release_2026_6_11 {
            $(#[test] fn $claim() { crate::parts::with(|| super::$claim(super::OLDER)); })+
            $(
                #[test]
                #[ignore = "a minute and a half for these: before a release, with --ignored"]
                fn $longer() { crate::parts::with(|| super::$longer(super::OLDER)); }
            )+
        }
    };
}

for_each_release! {
    always: [
        the_cli_reads_health_status_channels_and_logs,
        a_node_pairs_is_invoked_and_survives_a_restart,
        the_cli_talks_with_the_agent_and_sees_the_channel,
    ],
    at_length: [
        the_cli_says_what_the_gateway_refused,
        the_cli_comes_in_over_tls_by_its_pin_and_by_no_other,
        a_node_is_renamed_and_a_removed_one_is_cut_off_at_once,
        a_telegram_message_is_answered_with_what_a_real_node_says,
        the_terminal_ui_holds_a_conversation,
    ],
}

fn the_cli_reads_health_status_channels_and_logs(release: Release) {
    let gateway = Gateway::start();
    let cli = Cli::of(release, &gateway);

    let health = cli.json(["gateway", "call", "health", "--json"]);
    assert_eq!(health["ok"], true, "health is a payload with ok: {health}");
    let status = cli.json(["gateway", "call", "status", "--json"]);
    assert!(status.as_object().is_some_and(|fields| !fields.is_empty()), "status is an object that says something");

    cli.succeeds(["gateway", "call", "health"]).says("Gateway call: health");
    cli.succeeds(["gateway", "health"]).says("OK (");
    cli.succeeds(["gateway", "probe"]).says("Reachable: yes").says("Connect: ok");
    cli.succeeds(["health"]).says("Agents:");
    cli.succeeds(["status", "--deep"]).says("reachable").does_not_say("unreachable");
    cli.succeeds(["channels", "status"]).says("Gateway reachable");
    // A CLI that cannot reach the gateway reads the log file itself and says so.
    cli.succeeds(["logs", "--limit", "5"]).says("Log file:").does_not_say("unavailable");
}

fn the_cli_says_what_the_gateway_refused(release: Release) {
    let gateway = Gateway::start();
    let cli = Cli::of(release, &gateway);

    cli.fails(["gateway", "call", "health", "--url", &gateway.url(), "--token", "not-the-token"])
        .says("token mismatch");
    cli.fails(["gateway", "call", "no.such.method"]).says("unknown method");
    cli.fails(["nodes", "invoke", "--node", "nobody", "--command", "system.which"]).says("nobody");
    cli.fails(["nodes", "approve", "no-such-request"]).says("requestId");

    assert_eq!(cli.json(["gateway", "call", "health", "--json"])["ok"], true, "the gateway lives");
}

fn the_cli_comes_in_over_tls_by_its_pin_and_by_no_other(release: Release) {
    let gateway = Gateway::start_secure();
    let cli = Cli::elsewhere(release, &gateway, &gateway.fingerprint());
    assert_eq!(cli.json(["gateway", "call", "health", "--json"])["ok"], true);
    let other = Cli::elsewhere(release, &gateway, &"0".repeat(64));
    other.fails(["gateway", "call", "health"]).says("fingerprint mismatch");
}

fn a_node_pairs_is_invoked_and_survives_a_restart(release: Release) {
    let mut gateway = Gateway::start();
    let cli = Cli::of(release, &gateway);
    let mut node = NodeHost::start(release, &gateway, "Shed");

    let request = pending_request(&cli, "Shed");
    cli.succeeds(["nodes", "status"]).says("pending");
    let refused = cli.fails(which_uname("Shed").as_slice());
    assert!(!refused.stdout.contains("/uname"), "a node whose commands are not approved runs none");

    cli.succeeds(["nodes", "approve", &request]);
    invokes_uname(&cli, "Shed");
    let approved = node_named(&cli, "Shed").unwrap();
    assert_eq!(approved["approvalState"], "approved", "the surface is approved: {approved}");

    gateway.restart();
    let returned = eventually("the node comes back by itself", Duration::from_secs(60), || {
        node_named(&cli, "Shed").filter(|node| node["connected"] == true)
    });
    assert_eq!(returned["approvalState"], "approved", "no new approval is asked for: {returned}");
    assert_eq!(returned["nodeId"], approved["nodeId"], "it is the same node");
    invokes_uname(&cli, "Shed");

    node.stop();
    eventually("the node is seen to be gone", Duration::from_secs(20), || {
        node_named(&cli, "Shed").filter(|node| node["connected"] != true)
    });
    cli.fails(which_uname("Shed").as_slice()).says("not connected");
}

fn a_node_is_renamed_and_a_removed_one_is_cut_off_at_once(release: Release) {
    let gateway = Gateway::start();
    let cli = Cli::of(release, &gateway);
    let node = NodeHost::start(release, &gateway, "Shed");
    let request = pending_request(&cli, "Shed");
    cli.succeeds(["nodes", "approve", &request]);

    let devices = cli.json(["devices", "list", "--json"]);
    let node_id = node_named(&cli, "Shed").unwrap()["nodeId"].clone();
    assert!(
        devices["paired"].as_array().unwrap().iter().any(|device| device["deviceId"] == node_id),
        "the node's device is among the paired ones: {devices}"
    );
    cli.succeeds(["devices", "list"]).says("Shed");

    cli.succeeds(["nodes", "rename", "--node", "Shed", "--name", "Boat House"]);
    assert_eq!(node_named(&cli, "Boat House").unwrap()["nodeId"], node_id, "the name is another, the node is the same");
    invokes_uname(&cli, "Boat House");

    cli.succeeds(["nodes", "remove", "--node", "Boat House"]).says(node_id.as_str().unwrap());
    eventually("the node host sees its connection closed", Duration::from_secs(2), || {
        node.log().contains("closed (4001)").then_some(())
    });
    // It may knock again and be a stranger: known to no one, or waiting for a new approval.
    let stranger = cli.json(["nodes", "status", "--json"]);
    for node in stranger["nodes"].as_array().unwrap() {
        assert_ne!(node["approvalState"], "approved", "a removed node keeps no approval: {node}");
    }
    cli.fails(which_uname(node_id.as_str().unwrap()).as_slice());
}

/// The older release has no such flag.
#[test]
fn a_node_host_is_set_up_by_a_code_and_by_each_code_one() {
    parts::with(|| {
        let gateway = Gateway::start();
        let cli = Cli::of(CURRENT, &gateway);
        let params = format!(r#"{{"publicUrl":"{}","bootstrapProfile":"node","includeQr":false}}"#, gateway.url());
        let made = cli.json(["gateway", "call", "device.pair.setupCode", "--params", &params, "--json"]);
        let code = made["setupCode"].as_str().unwrap();

        let node = NodeHost::set_up_by(CURRENT, code, "Shed");
        // It is paired, without the gateway's secret; what it may run is another question.
        pending_request(&cli, "Shed");
        let late = NodeHost::set_up_by(CURRENT, code, "Late");
        eventually("a second one is refused", Duration::from_secs(60), || {
            late.log().contains("AUTH_BOOTSTRAP_TOKEN_INVALID").then_some(())
        });
        assert!(node_named(&cli, "Late").is_none());
        assert!(!node.log().contains("AUTH_"), "the first one stays");

        let params = format!(r#"{{"publicUrl":"{}","joinUrl":true,"includeQr":false}}"#, gateway.url());
        let made = cli.json(["gateway", "call", "device.pair.setupCode", "--params", &params, "--json"]);
        let _joined = NodeHost::joined_by(CURRENT, made["joinUrl"].as_str().unwrap(), "Barn");
        pending_request(&cli, "Barn");
    });
}

#[test]
fn our_cli_speaks_to_the_incumbents_gateway_2026_9_6() {
    parts::with(|| incumbent::our_cli_speaks_to_the_incumbents_gateway(CURRENT, "2026.9.6"));
}

#[test]
fn our_cli_speaks_to_the_incumbents_gateway_2026_6_11() {
    parts::with(|| incumbent::our_cli_speaks_to_the_incumbents_gateway(OLDER, "2026.6.11"));
}

#[test]
fn the_reference_client_runs_the_quickstart_of_its_readme() {
    parts::with(|| {
        let gateway = Gateway::start();
        let output = client::run_quickstart(&gateway);
        assert!(output.stdout.contains('{'), "it prints the status it asked for");
    });
}

#[test]
fn every_frame_fits_the_published_schema() {
    parts::with(|| {
        let gateway = Gateway::start();
        client::run_script("schema.mjs", &gateway).says("every frame fits");
    });
}

/// Waits until the node called `name` asks for approval, and returns the id of its request.
fn pending_request(cli: &Cli, name: &str) -> String {
    eventually("the node asks for approval", Duration::from_secs(60), || {
        let pending = cli.json(["nodes", "pending", "--json"]);
        let request = pending.as_array().unwrap().iter().find(|request| request["displayName"] == name)?;
        Some(request["requestId"].as_str().unwrap().to_owned())
    })
}

/// The node called `name` as `nodes status --json` has it.
fn node_named(cli: &Cli, name: &str) -> Option<Value> {
    let status = cli.json(["nodes", "status", "--json"]);
    status["nodes"].as_array().unwrap().iter().find(|node| node["displayName"] == name).cloned()
}

/// The arguments that ask a node where `uname` is.
fn which_uname(node: &str) -> [&str; 8] {
    ["nodes", "invoke", "--node", node, "--command", "system.which", "--params", r#"{"bins":["uname"]}"#]
}

fn invokes_uname(cli: &Cli, node: &str) {
    let answer = cli.json(which_uname(node).as_slice());
    let path = answer["payload"]["bins"]["uname"].as_str().unwrap_or_else(|| panic!("no path of uname in {answer}"));
    assert!(path.ends_with("/uname") && std::path::Path::new(path).exists(), "{path} is the path of uname");
}
