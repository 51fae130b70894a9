//! Contract 4.12: the tunnel as a service, and the gateway and the node host likewise, where no service manager runs (as in a
//! test), and its file before the eyes of the manager's own tool.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::account::Account;

fn account() -> Account {
    let remote = json!({"url": "ws://127.0.0.1:18790", "sshTarget": "me@gw.example:2222", "remotePort": 18789});
    Account::new().config(&json!({"gateway": {"mode": "remote", "remote": remote}}))
}

#[test]
#[cfg(target_os = "linux")]
fn without_a_service_manager_it_says_so_and_prints_the_file() {
    let account = account();
    let said = account.ok(&["tunnel", "install"]);
    assert!(said.contains("No service manager runs here") && said.contains("WantedBy=default.target"), "{said}");
    let file = account.home.path().join(".config/systemd/user/ai.openclaw.ssh-tunnel.service");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"tunnel\" \"run\"") && text.contains("Restart=always"), "{text}");
    assert_eq!(account.ok(&["tunnel", "install", "--print"]), text);
    if Path::new("/usr/bin/systemd-analyze").exists() {
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--user", "--man=no"])
            .arg(&file)
            .env("XDG_RUNTIME_DIR", account.home.path())
            .output()
            .unwrap();
        let complaints = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(!complaints.contains("ssh-tunnel"), "{complaints}");
    } else {
        println!("SKIPPED: there is no systemd-analyze to check the unit");
    }
    assert!(account.ok(&["tunnel", "uninstall"]).starts_with("Removed "));
    assert!(!file.exists());
    assert_eq!(account.ok(&["tunnel", "uninstall"]), "No such service is installed.\n");
}

#[test]
fn an_older_agent_is_found_and_removed_only_when_asked() {
    let account = account();
    let legacy = account.home.path().join("Library/LaunchAgents/com.openclaw.ssh-tunnel.plist");
    std::fs::create_dir_all(legacy.parent().unwrap()).unwrap();
    std::fs::write(&legacy, "<plist/>").unwrap();
    for command in [&["tunnel", "install"][..], &["tunnel", "status"]] {
        let said = account.run(command).out;
        assert!(said.contains("com.openclaw.ssh-tunnel.plist") && said.contains("uninstall --legacy"), "{said}");
    }
    assert!(legacy.exists());
    assert!(account.ok(&["tunnel", "uninstall", "--legacy"]).contains("Removed "));
    assert!(!legacy.exists());
    std::fs::write(&legacy, "<plist/>").unwrap();
    account.ok(&["tunnel", "install", "--remove-legacy"]);
    assert!(!legacy.exists());
}

#[test]
fn the_entry_for_openssh_is_printed_and_added_once() {
    let account = account();
    let entry = account.ok(&["tunnel", "ssh-config"]);
    assert_eq!(
        entry,
        "Host remote-gateway\n    HostName gw.example\n    User me\n    Port 2222\n    LocalForward 18790 127.0.0.1:18789\n"
    );
    let file = account.home.path().join(".ssh/config");
    assert!(!file.exists());
    account.ok(&["tunnel", "ssh-config", "--write"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), entry);
    assert!(account.fails(&["tunnel", "ssh-config", "--write"]).contains("already"));
    std::fs::write(&file, "Host other").unwrap();
    account.ok(&["tunnel", "ssh-config", "--write"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("Host other\n\n{entry}"));
    if Path::new("/usr/bin/ssh").exists() {
        // OpenSSH reads it as it is meant.
        let read = Command::new("/usr/bin/ssh").arg("-G").arg("-F").arg(&file).arg("remote-gateway").output().unwrap();
        let read = String::from_utf8(read.stdout).unwrap();
        assert!(read.contains("hostname gw.example\n") && read.contains("port 2222\n"), "{read}");
        assert!(read.contains("localforward 18790 [127.0.0.1]:18789\n"), "{read}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_gateway_becomes_a_service_once_it_starts_without_this_terminal() {
    let account = Account::new();
    let said = account.fails(&["gateway", "install"]);
    assert!(said.contains("another one at every start") && said.contains("config set gateway.auth.token"), "{said}");
    // What only this terminal knows is nothing to a service.
    let account = account.env("OPENCLAW_GATEWAY_TOKEN", "of-the-terminal");
    assert!(account.fails(&["gateway", "install"]).contains("another one at every start"));
    let account = account.config(&json!({"gateway": {"auth": {"mode": "password"}}}));
    assert!(account.fails(&["gateway", "install"]).contains("would not start as a service"));
    assert!(account.fails(&["gateway", "restart"]).contains("no such service is installed"));

    let account = account.config(&json!({"gateway": {"auth": {"token": "of-the-file"}}}));
    let file = account.home.path().join(".config/systemd/user/ai.openclaw.clawgate.service");
    let incumbent = file.with_file_name("openclaw-gateway.service");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&incumbent, "").unwrap();
    let said = account.ok(&["gateway", "install"]);
    assert!(said.contains("No service manager runs here") && said.contains("wants the same port"), "{said}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"gateway\" \"run\"") && !text.contains("of-the-"), "{text}");
    assert_eq!(account.ok(&["gateway", "install", "--print"]), text);
    assert_eq!(account.json(&["gateway", "uninstall", "--json"])["removed"], json!([file]));
    assert!(!file.exists() && incumbent.exists());
}

#[test]
fn a_nodes_service_goes_to_the_gateway_that_the_terminal_names() {
    let print = |name: &'static str, value: &str| {
        let account = Account::new().env(name, value);
        account.ok(&["node", "install", "--print", "--exec", "deny"])
    };
    let unit = print("OPENCLAW_GATEWAY_PORT", "19999");
    assert!(unit.contains("\"--port\" \"19999\"") || unit.contains("<string>19999</string>"), "{unit}");
    assert!(!print("NO_COLOR", "1").contains("--port"));
}
