//! The decision vectors of how a server starts: families `server_auth` and `start_guard`, and the cases of
//! `stricter` that are about a start, run through the functions that the gateway itself uses.
//!
//! `CLAWGATE_VECTORS` names another folder of the same shape.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clawgate::config::decode::decode;
use clawgate::config::raw::Document;
use clawgate::config::resolve::{Flags, HostFacts, ModeSource, ServerAuth, Start, server_auth, start};
use clawgate::config::secret_ref::EnvironmentOnly;
use clawgate::config::{Config, Environment};
use clawgate::secret::Secret;
use serde_json::{Value, json};

#[test]
fn server_auth_vectors() {
    run("server_auth", run_server_auth);
}

#[test]
fn start_guard_vectors() {
    run("start_guard", run_start_guard);
}

#[test]
fn starts_that_trust_everyone_are_refused() {
    // The family is about addresses; only its `stricter` cases are about a start.
    let cases = stricter("trusted_proxy_match").into_iter().filter(|case| case["expected"].get("starts").is_some());
    let differing: Vec<_> = cases
        .filter_map(|case| {
            difference("trusted_proxy_match", &case, |input| run_start_guard(&json!({"gateway": input})))
        })
        .collect();
    assert!(differing.is_empty(), "\n{}", differing.join("\n"));
}

/// `{authConfig, authOverride, env, tailscaleMode}` -> `{mode, modeSource, token, password, allowTailscale, starts}`.
fn run_server_auth(input: &Value) -> Value {
    match try_server_auth(input) {
        Some(auth) => shown(&auth),
        None => json!({"starts": false}),
    }
}

fn try_server_auth(input: &Value) -> Option<ServerAuth> {
    let environment = environment(input);
    let flags = flags(&json!({"auth": input["authOverride"]}))?;
    let gateway = json!({"auth": input["authConfig"], "tailscale": {"mode": input["tailscaleMode"]}});
    let config = config(&gateway, &environment)?;
    server_auth(&config, &environment, &flags, &EnvironmentOnly).ok()
}

/// `{gateway, env, params}` -> `{starts, host}`.
fn run_start_guard(input: &Value) -> Value {
    match try_start(input) {
        Some(start) => json!({"starts": true, "host": start.listen.addresses[0].to_string()}),
        None => json!({"starts": false}),
    }
}

fn try_start(input: &Value) -> Option<Start> {
    let environment = environment(input);
    let flags = flags(&input["params"])?;
    // A host with nothing but loopback, as the one the vectors were made on.
    let host = HostFacts { addresses: vec![Ipv4Addr::LOCALHOST.into()], ..HostFacts::default() };
    let config = config(&input["gateway"], &environment)?;
    start(&config, &environment, &flags, &host, 18789, &EnvironmentOnly).ok()
}

/// `None` when a flag has a value that the command line would refuse.
fn flags(params: &Value) -> Option<Flags> {
    let secret = |value: &Value| value.as_str().map(Secret::new);
    Some(Flags {
        port: params["port"].as_u64().and_then(|port| u16::try_from(port).ok()),
        bind: word(&params["bind"])?,
        auth: word(&params["auth"]["mode"])?,
        token: secret(&params["auth"]["token"]),
        password: secret(&params["auth"]["password"]),
        tailscale: word(&params["tailscale"]["mode"])?,
        allow_unconfigured: false,
    })
}

fn word<K: FromStr>(value: &Value) -> Option<Option<K>> {
    value.as_str().map_or(Some(None), |text| text.parse().ok().map(Some))
}

fn shown(auth: &ServerAuth) -> Value {
    let source = match auth.mode_source {
        ModeSource::Flag => "override",
        ModeSource::Config => "config",
        ModeSource::Password => "password",
        ModeSource::Token => "token",
        ModeSource::Default => "default",
    };
    json!({
        "mode": auth.mode.as_str(),
        "modeSource": source,
        "token": auth.token.as_ref().map(|it| it.secret.expose()),
        "password": auth.password.as_ref().map(|it| it.secret.expose()),
        "allowTailscale": auth.allow_tailscale,
        "starts": true,
    })
}

fn environment(input: &Value) -> Environment {
    let pairs = input["env"].as_object().into_iter().flatten();
    Environment::new(pairs.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))))
}

/// `None` when the values are refused, which is a start that does not happen.
fn config(gateway: &Value, environment: &Environment) -> Option<Config> {
    let document = Document::parse(json!({"gateway": without_nulls(gateway)}).to_string()).expect("JSON is JSON5");
    decode(&document, environment).ok().map(|decoded| decoded.config)
}

/// `null` in the vectors means that the key is not there.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        Value::Null => json!({}),
        other => other.clone(),
    }
}

fn run(family: &str, decide: impl Fn(&Value) -> Value) {
    let cases = read(family)["cases"].as_array().cloned().unwrap_or_default();
    let stricter = stricter(family);
    let overruled = |case: &Value| stricter.iter().any(|other| other["input"] == case["input"]);
    let differing: Vec<_> = cases
        .iter()
        .filter(|case| !overruled(case))
        .chain(&stricter)
        .filter_map(|case| difference(family, case, &decide))
        .collect();
    assert!(differing.is_empty(), "\n{}", differing.join("\n"));
}

/// How the decision differs from what is expected, in those fields that are; of a start that does not happen,
/// that is all there is to say.
fn difference(family: &str, case: &Value, decide: impl Fn(&Value) -> Value) -> Option<String> {
    let (expected, decided) = (&case["expected"], decide(&case["input"]));
    let fields = expected.as_object()?.iter();
    let differs = fields
        .filter(|(name, _)| expected["starts"] == true || *name == "starts")
        .any(|(name, value)| decided[name] != *value);
    differs.then(|| format!("{family}: {}: expected {expected}, decided {decided}", case["name"]))
}

fn stricter(family: &str) -> Vec<Value> {
    let all = read("stricter");
    let cases = all.as_array().or_else(|| all["cases"].as_array()).cloned().unwrap_or_default();
    cases.into_iter().filter(|case| case["of"] == family).collect()
}

/// A folder need not have every family.
fn read(file: &str) -> Value {
    let folder = std::env::var_os("CLAWGATE_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors"), PathBuf::from);
    let path = folder.join(format!("{file}.json"));
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        Err(_) => Value::Null,
    }
}
