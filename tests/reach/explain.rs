//! Contract 4.2 to 4.8 through `gateway explain`, with real files and a real environment, and errors that name the
//! source on both sides.

use serde_json::{Value, json};

use crate::support::TOKEN;
use crate::support::account::{Account, closed_port};
use crate::support::gateway::Setup;

/// Sources of URL, token and password that win.
fn winners(account: &Account, args: &[&str]) -> [Option<String>; 3] {
    let ran = account.run(&[&["gateway", "explain", "--json"], args].concat());
    let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(ran.code == 0, report["ok"] == true, "{ran:?}");
    assert!(!ran.out.contains("s3cret"), "no value is shown: {}", ran.out);
    ["url", "token", "password"].map(|kind| {
        let rows = report["candidates"][kind].as_array().unwrap();
        let won = rows.iter().find(|row| row["outcome"] == "used")?;
        Some(won["source"].as_str().unwrap().to_owned())
    })
}

#[test]
fn every_source_wins_where_the_contract_says() {
    const ENV_TOKEN: &str = "OPENCLAW_GATEWAY_TOKEN";
    const ENV_PASSWORD: &str = "OPENCLAW_GATEWAY_PASSWORD";
    const ENV_URL: &str = "OPENCLAW_GATEWAY_URL";
    let secret = |who: &str| format!("s3cret-{who}");
    let full = json!({"gateway": {
        "auth": {"token": secret("auth"), "password": secret("auth-p")},
        "remote": {"url": "ws://10.0.0.7:18789", "token": secret("remote"), "password": secret("remote-p")},
    }});
    let remote = |mut config: Value| {
        config["gateway"]["mode"] = json!("remote");
        config
    };
    let without = |mut config: Value, section: &str| {
        config["gateway"].as_object_mut().unwrap().remove(section);
        config
    };
    let no_remote_secrets = || {
        let mut config = full.clone();
        config["gateway"]["remote"] = json!({"url": "ws://10.0.0.7:18789"});
        config
    };
    let env: &[&str] = &[ENV_TOKEN, ENV_PASSWORD];
    type Row<'a> = (&'a str, Value, &'a [&'a str], &'a [&'a str], [Option<&'a str>; 3]);
    let rows: Vec<Row<'_>> = vec![
        (
            "4.2 explicit credentials win alone",
            full.clone(),
            env,
            &["--token", "s3cret-x"],
            [Some("default"), Some("--token"), None],
        ),
        ("4.2 --url borrows nothing", full.clone(), env, &["--url", "ws://10.0.0.9:1"], [Some("--url"), None, None]),
        (
            "4.2 --url with its own",
            full.clone(),
            env,
            &["--url", "ws://10.0.0.9:1", "--password", "s3cret-y"],
            [Some("--url"), None, Some("--password")],
        ),
        (
            "4.3 the variable's URL takes the variables",
            full.clone(),
            &[ENV_URL, ENV_TOKEN],
            &[],
            [Some(ENV_URL), Some(ENV_TOKEN), None],
        ),
        ("4.3 and nothing of the file", full.clone(), &[ENV_URL], &[], [Some(ENV_URL), None, None]),
        (
            "4.4 local: environment first",
            full.clone(),
            env,
            &[],
            [Some("default"), Some(ENV_TOKEN), Some(ENV_PASSWORD)],
        ),
        (
            "4.4 local: then gateway.auth",
            full.clone(),
            &[],
            &[],
            [Some("default"), Some("gateway.auth.token"), Some("gateway.auth.password")],
        ),
        (
            "4.4 local: then gateway.remote",
            without(full.clone(), "auth"),
            &[],
            &[],
            [Some("default"), Some("gateway.remote.token"), Some("gateway.remote.password")],
        ),
        (
            "4.5 remote: token remote first, password environment first",
            remote(full.clone()),
            env,
            &[],
            [Some("gateway.remote.url"), Some("gateway.remote.token"), Some(ENV_PASSWORD)],
        ),
        (
            "4.5 remote: then environment",
            remote(no_remote_secrets()),
            env,
            &[],
            [Some("gateway.remote.url"), Some(ENV_TOKEN), Some(ENV_PASSWORD)],
        ),
        (
            "4.5 remote: then gateway.auth",
            remote(no_remote_secrets()),
            &[],
            &[],
            [Some("gateway.remote.url"), Some("gateway.auth.token"), Some("gateway.auth.password")],
        ),
        (
            "4.6 a local node host ignores gateway.remote",
            without(full.clone(), "auth"),
            &[],
            &["--for", "node-host"],
            [Some("default"), None, None],
        ),
        (
            "4.7 a probe in remote mode uses gateway.remote.token alone",
            remote(no_remote_secrets()),
            env,
            &["--for", "probe"],
            [Some("gateway.remote.url"), None, Some(ENV_PASSWORD)],
        ),
        (
            "4.8 no other variables",
            without(full.clone(), "auth"),
            &["CLAWDBOT_GATEWAY_TOKEN", "MOLTBOT_GATEWAY_PASSWORD"],
            &[],
            [Some("default"), Some("gateway.remote.token"), Some("gateway.remote.password")],
        ),
    ];
    for (rule, config, variables, args, expected) in rows {
        let mut account = Account::new().config(&config);
        for name in variables {
            let value = if *name == ENV_URL { "ws://10.0.0.8:1".to_owned() } else { secret(name) };
            account = account.env(name.to_owned(), value);
        }
        assert_eq!(winners(&account, args), expected.map(|source| source.map(str::to_owned)), "{rule}");
    }
}

#[test]
fn a_reference_that_leads_nowhere_is_never_covered_by_another_source() {
    let reference = json!({"source": "env", "provider": "default", "id": "GW_SECRET"});
    let config = json!({"gateway": {"auth": {"token": reference}, "remote": {"token": "s3cret-remote"}}});
    let account = Account::new().config(&config);
    assert_eq!(winners(&account, &[])[1], None);
    let explained = account.run(&["gateway", "explain"]);
    assert_eq!(explained.code, 1);
    for part in ["Refused", "GW_SECRET is not set", "a reference without a value"] {
        assert!(explained.out.contains(part), "{part}: {}", explained.out);
    }
    let account = account.env("GW_SECRET", "s3cret-there");
    assert_eq!(winners(&account, &[])[1].as_deref(), Some("gateway.auth.token"));
}

#[test]
fn an_explanation_is_for_people_too() {
    let config = json!({"gateway": {"port": closed_port(), "auth": {"token": "s3cret"}}});
    let account = Account::new().config(&config).env("OPENCLAW_GATEWAY_TOKEN", "s3cret-2");
    let text = account.ok(&["gateway", "explain"]);
    assert!(
        text.contains("from OPENCLAW_GATEWAY_TOKEN, fingerprint ") && text.contains("one above counts more"),
        "{text}"
    );
    assert!(!text.contains("s3cret"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100 && !line.contains('\x1b')), "{text}");
    let password = Account::new().env("OPENCLAW_GATEWAY_URL", "ws://u:s3cret@10.0.0.1");
    let refused = password.run(&["gateway", "explain"]);
    assert!(refused.code == 1 && refused.out.contains("must not carry credentials"), "{}", refused.out);
    assert!(!refused.out.contains("s3cret"), "{}", refused.out);
}

#[test]
fn a_mismatch_names_the_source_on_both_sides() {
    let config = json!({"gateway": {"auth": {"token": "the-gateways-own"}}});
    let gateway = Setup::new().no_token().config(&config).start();
    let announced = gateway.stdout.wait_for(|line| line.contains("token, from")).unwrap();
    assert!(announced.contains("gateway.auth.token (fingerprint "), "{announced}");
    let account = Account::of(&gateway);
    let refused = account.fails(&["health"]);
    assert!(refused.contains("The gateway's comes from gateway.auth.token"), "{refused}");
    assert!(refused.contains("token from OPENCLAW_GATEWAY_TOKEN (fingerprint "), "{refused}");
    let fingerprint = |text: &str| text.split("fingerprint ").nth(1).unwrap()[..8].to_owned();
    let (ours, theirs) = (fingerprint(&announced), fingerprint(&refused));
    assert_ne!(ours, theirs);
    // The gateway's log has both, so that whoever reads it need not ask.
    let line = gateway.stderr.wait_for(|line| line.contains("another secret")).unwrap();
    assert!(line.contains(&ours) && line.contains(&theirs) && line.contains("gateway.auth.token"), "{line}");
    assert!(!refused.contains("the-gateways-own") && !line.contains(TOKEN), "{line}");
}
