//! Decision vectors of the client side: `url_policy`, `credentials_grid`, `credentials_scenarios`, and the
//! cases of `stricter` that belong to them. The folder is `CLAWGATE_VECTORS`, by default `tests/vectors`.

use std::collections::HashSet;
use std::path::PathBuf;

use clawgate::client::credentials::{
    Configured, Credential, CredentialError, Flags, RemoteOrder, Rules, Settings, Source, Sources, Variables,
    credentials,
};
use clawgate::client::{GatewayUrl, Purpose};
use clawgate::config::Environment;
use clawgate::config::decode::decode;
use clawgate::config::model::AuthMode;
use clawgate::config::raw::Document;
use clawgate::config::secret_ref::{EnvironmentOnly, SecretInput, SecretReader};
use clawgate::secret::Secret;
use serde_json::{Value, json};

fn cases(family: &str) -> Vec<Value> {
    let folder = std::env::var_os("CLAWGATE_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors"), PathBuf::from);
    let Ok(text) = std::fs::read_to_string(folder.join(format!("{family}.json"))) else { return Vec::new() };
    let file: Value = serde_json::from_str(&text).expect("a vector file is JSON");
    file["cases"].as_array().expect("a vector file has cases").clone()
}

/// Runs a family and those cases of `stricter` that are of it; the latter win.
fn run(family: &str, decide: impl Fn(&Value) -> Value) {
    let stricter: Vec<Value> = cases("stricter").into_iter().filter(|case| case["of"] == family).collect();
    let overruled: HashSet<String> = stricter.iter().map(|case| case["input"].to_string()).collect();
    let regular = cases(family).into_iter().filter(|case| !overruled.contains(&case["input"].to_string()));
    let differing: Vec<String> = regular
        .chain(stricter.iter().cloned())
        .filter_map(|case| {
            let actual = decide(&case["input"]);
            let name = case["name"].as_str().map_or_else(|| case["input"].to_string(), str::to_owned);
            (actual != case["expected"])
                .then(|| format!("{family}: {name}: expected {}, got {actual}", case["expected"]))
        })
        .collect();
    assert!(differing.is_empty(), "{} cases differ:\n{}", differing.len(), differing.join("\n"));
}

#[test]
fn url_policy() {
    run("url_policy", |input| json!({"accept": GatewayUrl::parse(input.as_str().unwrap_or_default()).is_ok()}));
}

const CLI_URL: Source = Source::Flag("--url");
const ENV_URL: Source = Source::Variable("OPENCLAW_GATEWAY_URL");

fn answer(result: Result<(Credential, Credential), CredentialError>) -> Value {
    match result {
        Ok((token, password)) => {
            let text = |credential: &Credential| credential.value().map(|secret| secret.expose().to_owned());
            json!({"token": text(&token), "password": text(&password)})
        }
        Err(CredentialError::SecretUnavailable { path, .. }) => {
            json!({"error": format!("SECRET_REF_UNAVAILABLE:{path}")})
        }
        Err(error) => json!({"error": error.to_string()}),
    }
}

fn auth_mode(name: &Value) -> Option<AuthMode> {
    match name.as_str()? {
        "none" => Some(AuthMode::None),
        "token" => Some(AuthMode::Token),
        "password" => Some(AuthMode::Password),
        "trusted-proxy" => Some(AuthMode::TrustedProxy),
        other => panic!("unknown auth mode {other}"),
    }
}

#[test]
fn credentials_grid() {
    run("credentials_grid", |input| {
        let set = |group: &str, name: &str, value: &str| {
            let there = input[group].as_array().is_some_and(|names| names.iter().any(|set| set == name));
            if there { Configured::Value(Secret::new(value)) } else { Configured::Unset }
        };
        let variable = |name: &str, value: &'static str| {
            input["env"].as_array().is_some_and(|names| names.iter().any(|set| set == name)).then_some(value)
        };
        let variables = Variables::read(|name| match name {
            "OPENCLAW_GATEWAY_TOKEN" => variable("TOKEN", "ENV_T"),
            "OPENCLAW_GATEWAY_PASSWORD" => variable("PASSWORD", "ENV_P"),
            _ => None,
        });
        let settings = Settings {
            remote_mode: input["mode"] == "remote",
            auth_mode: auth_mode(&input["authMode"]),
            token: set("auth", "token", "LOCAL_T"),
            password: set("auth", "password", "LOCAL_P"),
            remote_token: set("remote", "token", "REMOTE_T"),
            remote_password: set("remote", "password", "REMOTE_P"),
            ..Settings::default()
        };
        let flags = Flags::default();
        let decide = |url_source, purpose: Purpose| {
            let rules = purpose.rules();
            let (variables, settings) = (&variables, &settings);
            answer(credentials(&Sources { flags: &flags, variables, settings, url_source, run_token: None, rules }))
        };
        json!({
            "call": decide(Source::Default, Purpose::Call),
            "probe": decide(Source::Default, Purpose::Probe),
            "urlOverrideCli": decide(CLI_URL, Purpose::Call),
            "urlOverrideEnv": decide(ENV_URL, Purpose::Call),
        })
    });
}

#[test]
fn credentials_scenarios() {
    run("credentials_scenarios", |input| {
        let variable = |name: &str| input["env"][name].as_str();
        let mut cfg = input["cfg"].clone();
        if let Some(mode) = input.get("modeOverride") {
            cfg["gateway"]["mode"] = mode.clone();
        }
        let environment = Environment::new(
            input["env"]
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))),
        );
        let document = Document::parse(cfg.to_string()).expect("a configuration is JSON");
        let config = decode(&document, &environment).expect("a configuration is valid").config;
        let providers = config.secrets.clone();
        let settings = Settings::from_config(&config, move |input: &SecretInput| {
            let reader = SecretReader { providers: &providers, environment: &environment, access: &EnvironmentOnly };
            reader.read(input).map_err(|why| why.to_string())
        });
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let flags = Flags {
            token: text(&input["explicitAuth"]["token"]),
            password: text(&input["explicitAuth"]["password"]),
            ..Flags::default()
        };
        let url_source = match input["urlOverride"].as_str().map(str::trim) {
            None | Some("") => Source::Default,
            Some(_) if input["urlOverrideSource"] == "env" => ENV_URL,
            Some(_) => CLI_URL,
        };
        let order = |fallback: &str, precedence: &str, usual: RemoteOrder| match (
            input[fallback].as_str(),
            input[precedence].as_str(),
        ) {
            (Some("remote-only"), _) => RemoteOrder::RemoteOnly,
            (_, Some("env-first")) => RemoteOrder::EnvFirst,
            (_, Some("remote-first")) => RemoteOrder::RemoteFirst,
            _ => usual,
        };
        let call = Purpose::Call.rules();
        let rules = Rules {
            remote_token: order("remoteTokenFallback", "remoteTokenPrecedence", call.remote_token),
            remote_password: order("remotePasswordFallback", "remotePasswordPrecedence", call.remote_password),
            ..call
        };
        let variables = &Variables::read(variable);
        let (flags, settings) = (&flags, &settings);
        answer(credentials(&Sources { flags, variables, settings, url_source, run_token: None, rules }))
    });
}
