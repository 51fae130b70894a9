//! The published OpenClaw CLI through the proxy, from a machine that the identity service knows.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::parts::CURRENT;
use crate::program::{Output, run};
use crate::{ALICES_MACHINE, Scene};

const ENDS_WITHIN: Duration = Duration::from_secs(90);

/// The proxy says who it is, so it needs no token of the gateway's; what it may do is what `identityScopes` gives Alice.
pub(crate) fn connects(scene: &Scene) {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".openclaw");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let url = format!("ws://{}", scene.proxy.address);
    let config = json!({"update": {"checkOnStart": false}, "gateway": {
        "mode": "remote", "remote": {"url": url, "transport": "direct", "token": "not-needed-behind-this-proxy"},
    }});
    fs::write(folder.join("openclaw.json"), config.to_string()).unwrap();
    fs::set_permissions(folder.join("openclaw.json"), fs::Permissions::from_mode(0o600)).unwrap();
    let call = || {
        let mut command = CURRENT.command(home.path());
        command.args(["gateway", "call", "status", "--json"]);
        run(scene.networks.clients.command(&command), ENDS_WITHIN)
    };
    let Output { code, stdout, .. } = call();
    assert_eq!(code, Some(0), "the command above should have succeeded");
    let status: Value = serde_json::from_str(&stdout).expect("the output above is JSON");
    assert!(status.as_object().is_some_and(|fields| !fields.is_empty()), "{status}");
    let address = scene.client(ALICES_MACHINE).to_string();
    let lines = scene.gateway.log_lines("by=trusted-proxy");
    assert!(lines.iter().any(|line| line.contains(&address)), "{address}: {lines:?}");
}
