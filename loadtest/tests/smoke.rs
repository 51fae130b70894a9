//! Every scenario, for a moment, against the gateway of this workspace.
//!
//! The gateway's binary lies beside this program's when the whole workspace is built (`cargo test --workspace`);
//! `cargo test -p loadtest` alone does not build it, and there is nothing to test against then.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what it skips")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn gateway() -> Option<PathBuf> {
    let gateway = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("clawgate");
    if !gateway.exists() {
        eprintln!("skipped: build {} first", gateway.display());
    }
    gateway.exists().then_some(gateway)
}

/// Runs a scenario for so many seconds and gives its report.
fn report_of(seconds: &str, gateway: &Path, arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let (json, html) = (folder.path().join("report.json"), folder.path().join("report.html"));
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(arguments)
        .args(["--duration", seconds, "--rounds", "2", "--warmup", "0.1", "--spawn"])
        .arg(gateway)
        .args(["--json".as_ref(), json.as_os_str(), "--html".as_ref(), html.as_os_str()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read_to_string(html).unwrap().contains("</html>"));
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

fn report(gateway: &Path, arguments: &[&str]) -> Value {
    report_of("0.4", gateway, arguments)
}

fn row<'a>(report: &'a Value, key: &str) -> &'a Value {
    let figures = report["figures"].as_array().unwrap();
    figures.iter().find(|figure| figure["key"] == key).unwrap_or_else(|| panic!("no {key}: {report}"))
}

/// The columns of a row.
fn figure(report: &Value, key: &str) -> [f64; 2] {
    let row = row(report, key);
    [0, 1].map(|column| row["values"][column].as_f64().unwrap_or(f64::NAN))
}

#[test]
fn calls_and_events_succeed_on_both_sides() {
    let Some(gateway) = gateway() else { return };
    for arguments in [
        &["rpc", "--connections", "8"][..],
        &["rpc", "--connections", "4", "--depth", "16", "--method", "health", "--params", "{}"],
        &["rpc", "--connections", "4", "--rate", "500"],
        &["invoke", "--connections", "8", "--nodes", "2", "--payload-bytes", "300"],
        &["fanout", "--operators", "20"],
    ] {
        let report = report(&gateway, arguments);
        let [rate, floor] = figure(&report, "rate");
        assert!(rate > 0.0 && floor > 0.0, "{arguments:?}: {report}");
        assert_eq!(figure(&report, "errors"), [0.0, 0.0], "{arguments:?}: {}", report["notes"]);
        // In each round, each side was loaded when it was its turn.
        for key in ["rate", "cpu"] {
            let range = &row(&report, key)["ratio_range"];
            assert!(range[0].as_f64().unwrap() > 0.0, "{arguments:?} {key}: {range}");
        }
    }
}

#[test]
fn clients_of_every_kind_are_let_in() {
    let Some(gateway) = gateway() else { return };
    for kind in ["operator", "known-node", "new-node"] {
        let report = report(&gateway, &["connect", "--kind", kind, "--concurrency", "8"]);
        assert!(figure(&report, "rate").iter().all(|rate| *rate > 0.0), "{kind}: {report}");
        assert_eq!(figure(&report, "errors"), [0.0, 0.0], "{kind}: {}", report["notes"]);
    }
}

#[test]
fn idle_connections_are_weighed() {
    let Some(gateway) = gateway() else { return };
    for arguments in [&["idle", "--connections", "50"][..], &["idle", "--connections", "20", "--nodes"]] {
        let report = report(&gateway, &[arguments, &["--settle", "0.3"]].concat());
        assert!(figure(&report, "resident")[0] > 1e6, "{report}");
        assert!(figure(&report, "ready")[0] > 0.0);
    }
}

#[test]
fn one_who_stops_reading_is_closed_with_a_reason_and_the_others_go_on() {
    let Some(gateway) = gateway() else { return };
    let report = report_of("4", &gateway, &["slow", "--operators", "10", "--rate", "200"]);
    assert_eq!(figure(&report, "errors"), [0.0, 0.0], "{}", report["notes"]);
    assert!(figure(&report, "closed")[0] > 0.0, "{}", report["notes"]);
    assert_eq!(figure(&report, "closed")[1], 0.0, "{}", report["notes"]);
}

#[test]
fn strangers_who_knock_are_all_refused_and_the_operators_go_on() {
    let Some(gateway) = gateway() else { return };
    let report = report(&gateway, &["storm", "--operators", "10", "--rate", "200", "--storm", "200"]);
    assert_eq!(figure(&report, "errors"), [0.0, 0.0], "{}", report["notes"]);
    assert!(figure(&report, "strangers")[0] > 0.0, "{}", report["notes"]);
    assert!(report["notes"].to_string().contains("token mismatch"), "{}", report["notes"]);
}

#[test]
fn a_soak_goes_through_every_kind_of_call() {
    let Some(gateway) = gateway() else { return };
    let report = report(&gateway, &["soak", "--operators", "5", "--nodes", "2", "--rate", "500", "--churn", "10"]);
    assert_eq!(figure(&report, "errors")[0], 0.0, "{}", report["notes"]);
    assert!(figure(&report, "visits")[0] > 0.0);
}

#[test]
fn another_host_is_not_loaded_unless_it_is_said_to_be_ours() {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["rpc", "--url", "ws://192.0.2.1:18789", "--token", "t"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--i-own-this-host"));
}
