//! The decision vectors: inputs with the expected decision, one file a family (`tests/vectors/README.md`).
//!
//! Every file of the folder that `CLAWGATE_VECTORS` names (default `tests/vectors`) is run through the functions
//! that the gateway itself calls. Each case that differs is reported by family and name. The cases of
//! `stricter.json` win over equal inputs of their family.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clawgate::address::{self, AddressList};
use clawgate::auth::client::Client as ClientInfo;
use clawgate::auth::device::SignedFields;
use clawgate::auth::ingress::{Client, IngressPolicy, Listener, client_address};
use clawgate::auth::missing_device::{MissingDevice, WithoutDevice};
use clawgate::auth::origin::OriginPolicy;
use clawgate::auth::pairing::{Locality, PairingReason, is_silent};
use clawgate::auth::rate_limit::RateLimitPolicy;
use clawgate::auth::shared_secret::SharedSecret;
use clawgate::auth::tailscale::Whois;
use clawgate::auth::trusted_proxy::TrustedProxy;
use clawgate::auth::{
    AuthMode, Authentication, Credentials, HeaderView, Method, Policy, RateLimits, Request, Surface, Verdict,
    authenticate, needs_whois, scope_cap,
};
use clawgate::clock::UnixMs;
use clawgate::nodes::policy::{CommandPolicy, Kind, Platform};
use clawgate::rpc::scope::{Role, role_covers};
use clawgate::secret::SecretHash;
use serde_json::{Map, Value, json};

/// What this gateway decides on the input of a case, in the words of the family.
type Decide = fn(&Value) -> Value;

/// The families, and what runs them.
const FAMILIES: &[(&str, Decide)] = &[
    ("client_ip", client_ip),
    ("device_payload", device_payload),
    ("locality", locality),
    ("missing_device", missing_device),
    ("node_command", node_command),
    ("origin", origin),
    ("pairing_locality", pairing_locality),
    ("role_scopes", role_scopes),
    ("scope_cap", scope_caps),
    ("shared_secret", shared_secret),
    ("silent_pairing", silent_pairing),
    ("tailscale", tailscale),
    ("trusted_proxy_auth", trusted_proxy_auth),
    ("trusted_proxy_match", trusted_proxy_match),
];

/// Families that this test does not run, and who does.
const PENDING: &[(&str, &str)] = &[
    ("credentials_grid", "tests/vectors_client.rs runs it"),
    ("credentials_scenarios", "tests/vectors_client.rs runs it"),
    ("fingerprint", "its one case is in words; src/config/fingerprint.rs tests it"),
    ("server_auth", "tests/vectors_server.rs runs it"),
    ("start_guard", "tests/vectors_server.rs runs it"),
    ("url_policy", "tests/vectors_client.rs runs it"),
];

#[test]
fn every_vector_holds() {
    let folder = std::env::var_os("CLAWGATE_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors"), PathBuf::from);
    let mut families = read(&folder);
    let stricter = families.remove("stricter").unwrap_or_default();
    for case in &stricter {
        let family = text(case, "of").expect("a stricter case names its family");
        let cases = families.entry(family.to_owned()).or_default();
        cases.retain(|other| other.get("of").is_some() || !overrides(case, other));
        cases.push(case.clone());
    }
    let mut differences = Vec::new();
    for (family, cases) in &families {
        match FAMILIES.iter().find(|(name, _)| name == family) {
            Some((_, decide)) => {
                cases.iter().for_each(|case| compare(family, *decide, case, &mut differences));
                println!("family {family}: {} cases", cases.len());
            }
            None => {
                let pending = PENDING.iter().find(|(name, _)| name == family);
                println!("family {family}: not run ({})", pending.map_or("an unknown family", |(_, why)| why));
            }
        }
    }
    assert!(differences.is_empty(), "{} cases differ:\n{}", differences.len(), differences.join("\n"));
}

/// The cases of each file, by family.
fn read(folder: &Path) -> BTreeMap<String, Vec<Value>> {
    let mut families = BTreeMap::new();
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("the folder can be listed").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let family = file["family"].as_str().expect("a file names its family").to_owned();
        let cases = file["cases"].as_array().expect("a file has cases").clone();
        families.entry(family).or_insert_with(Vec::new).extend(cases);
    }
    assert!(!families.is_empty(), "{}: no vectors", folder.display());
    families
}

/// The input of a case: what stands under `input`, or the case itself without its expectation.
fn input(case: &Value) -> Value {
    match case.get("input") {
        Some(input) => input.clone(),
        None => {
            let mut input = case.as_object().cloned().unwrap_or_default();
            for key in ["name", "expected", "silent", "scopesCleared", "of", "why"] {
                input.remove(key);
            }
            input.into()
        }
    }
}

/// Whether a stricter case takes the place of this one: it has the same input. Where a family's cases are flat, a
/// stricter case speaks for all that share the fields it names.
fn overrides(strict: &Value, case: &Value) -> bool {
    let flat = case.get("input").is_none();
    match (input(strict), input(case)) {
        (Value::Object(strict), Value::Object(ours)) if flat => {
            strict.iter().all(|(key, value)| ours.get(key) == Some(value))
        }
        (strict, ours) => without_nulls(&strict) == without_nulls(&ours),
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), without_nulls(v)))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// Runs one case. An expected object is compared by the fields it names.
fn compare(family: &str, decide: Decide, case: &Value, differences: &mut Vec<String>) {
    let mut input = input(case);
    let mut expected = match case.get("expected") {
        Some(expected) => expected.clone(),
        None => json!({ "silent": case["silent"] }),
    };
    if let Some(cleared) = case.get("scopesCleared") {
        expected = json!({"decision": expected, "scopesCleared": cleared});
    }
    // The payload's two versions are one family: which one a case is about stands at the start of its line.
    if let Some((version, _)) = expected.as_str().and_then(|line| line.split_once('|')) {
        input["version"] = version.into();
    }
    let decided = decide(&input);
    let holds = match (&expected, &decided) {
        (Value::Object(expected), Value::Object(decided)) => {
            expected.iter().all(|(key, value)| decided.get(key).unwrap_or(&Value::Null) == value)
        }
        _ => expected == decided,
    };
    if !holds {
        let name = case["name"].as_str().map_or_else(|| input.to_string(), str::to_owned);
        differences.push(format!("  {family}: {name}: expected {expected}, decided {decided}"));
    }
}

// ---- reading inputs

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn list<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    value
        .get(key)
        .and_then(Value::as_array)
        .map(|items| items.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

fn peer(input: &Value, key: &str) -> Option<IpAddr> {
    text(input, key).and_then(address::parse)
}

fn proxies(input: &Value) -> AddressList {
    AddressList::parse(list(input, "trustedProxies"))
}

/// A header's value is one text or several lines.
fn lines(name: &str, value: &Value) -> Vec<(String, Vec<u8>)> {
    match value {
        Value::String(text) => vec![(name.to_owned(), text.clone().into_bytes())],
        Value::Array(values) => values.iter().flat_map(|value| lines(name, value)).collect(),
        _ => Vec::new(),
    }
}

/// The header lines of an input.
struct Lines(Vec<(String, Vec<u8>)>);

impl Lines {
    fn of(headers: &Value) -> Self {
        Self(headers.as_object().into_iter().flatten().flat_map(|(name, value)| lines(name, value)).collect())
    }

    fn with(mut self, name: &str, value: Option<&Value>) -> Self {
        self.0.extend(value.into_iter().flat_map(|value| lines(name, value)));
        self
    }

    fn view<T>(&self, look: impl FnOnce(HeaderView<'_>) -> T) -> T {
        let lines: Vec<(&str, &[u8])> = self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        look(HeaderView::new(&lines))
    }
}

fn method(name: Option<&str>) -> Option<Method> {
    use Method::{BootstrapToken, DeviceToken, None as Open, Password, Tailscale, Token, TrustedProxy};
    [Open, Token, Password, TrustedProxy, Tailscale, DeviceToken, BootstrapToken]
        .into_iter()
        .find(|method| Some(method.as_str()) == name)
}

fn credentials(input: &Value) -> Credentials<'_> {
    let auth = &input["connectAuth"];
    Credentials { token: text(auth, "token"), password: text(auth, "password"), ..Credentials::default() }
}

/// The words of the families on authentication.
fn authenticated(outcome: &Authentication) -> Value {
    match &outcome.outcome {
        Ok(identity) => {
            let mut decided = json!({"ok": true, "method": identity.method.as_str()});
            if let Some(user) = &identity.user {
                decided["user"] = (**user).into();
            }
            decided
        }
        Err(denied) => json!({"ok": false, "reason": denied.reason()}),
    }
}

// ---- the families

fn client_ip(input: &Value) -> Value {
    let Some(peer) = peer(input, "remoteAddr") else { return Value::Null };
    let policy = IngressPolicy {
        trusted_proxies: proxies(input),
        real_ip_fallback: flag(input, "allowRealIpFallback"),
        ..IngressPolicy::default()
    };
    let headers =
        Lines(Vec::new()).with("x-forwarded-for", input.get("forwardedFor")).with("x-real-ip", input.get("realIp"));
    match headers.view(|headers| client_address(peer, headers, &policy)) {
        Client::Known(client) => client.to_string().into(),
        Client::Unsaid | Client::Invalid => Value::Null,
    }
}

fn locality(input: &Value) -> Value {
    let policy = IngressPolicy { trusted_proxies: proxies(input), ..IngressPolicy::default() };
    let verdict =
        |peer| Lines::of(&input["headers"]).view(|headers| Verdict::of(peer, headers, Listener::Main, &policy));
    json!({"localDirect": peer(input, "remote").is_some_and(|peer| verdict(peer).is_local())})
}

fn trusted_proxy_match(input: &Value) -> Value {
    let list = proxies(input);
    match input.get("ip") {
        Some(_) => peer(input, "ip").is_some_and(|peer| list.contains(peer)).into(),
        None => json!({"starts": !list.covers_everything()}),
    }
}

fn device_payload(input: &Value) -> Value {
    let scopes = list(input, "scopes");
    let field = |key| text(input, key).unwrap_or_default();
    let fields = SignedFields {
        device_id: field("deviceId"),
        client_id: field("clientId"),
        client_mode: field("clientMode"),
        role: field("role"),
        scopes: &scopes,
        signed_at_ms: input["signedAtMs"].as_u64().unwrap_or_default(),
        token: field("token"),
        nonce: field("nonce"),
        platform: field("platform"),
        device_family: field("deviceFamily"),
    };
    if text(input, "version") == Some("v2") { fields.payload_v2() } else { fields.payload_v3() }.into()
}

fn missing_device(input: &Value) -> Value {
    if flag(input, "device") {
        return json!({"decision": "allow", "scopesCleared": false});
    }
    let client = WithoutDevice {
        role: text(input, "role").and_then(Role::parse).unwrap_or(Role::Operator),
        is_control_ui: flag(input, "isControlUi"),
        is_local: flag(input, "isLocalClient"),
        has_browser_origin: false,
        allows_insecure_ui: flag(&input["controlUi"], "allowInsecureAuth"),
        is_self_pairing: flag(input, "selfPairing"),
        shared_auth_ok: flag(input, "sharedAuthOk"),
        auth_ok: flag(input, "authOk"),
        sent_shared_auth: flag(input, "hasSharedAuth"),
        method: method(text(input, "authMethod")),
    };
    let decision = match client.decide() {
        MissingDevice::Allow => "allow",
        MissingDevice::ControlUiNeedsDevice => "reject-control-ui-insecure-auth",
        MissingDevice::Unauthorized => "reject-unauthorized",
        MissingDevice::DeviceRequired => "reject-device-required",
    };
    json!({"decision": decision, "scopesCleared": client.clears_scopes()})
}

fn node_command(input: &Value) -> Value {
    let (node, nodes) = (&input["node"], &input["cfg"]["gateway"]["nodes"]);
    let both = |list_name: &str, older: &str| [list(&nodes["commands"], list_name), list(nodes, older)].concat();
    let policy = CommandPolicy::new(both("allow", "allowCommands"), both("deny", "denyCommands"));
    let field = |key| text(node, key).unwrap_or_default();
    let commands = list(node, "commands");
    let platform = Platform::of(field("platform"), field("deviceFamily"));
    let kind = Kind::new(platform, list(node, "caps"), commands.iter().copied());
    // What was approved is said, or it is what a live session offers.
    let live = !field("nodeId").trim().is_empty() && !field("connId").trim().is_empty();
    let approved = match node.get("approvedCommands") {
        Some(_) => list(node, "approvedCommands"),
        None if live => commands,
        None => Vec::new(),
    };
    let command = text(input, "command").unwrap_or_default();
    match policy.check(kind, command, list(input, "declared"), |command| approved.contains(&command)) {
        Ok(()) => json!({"ok": true}),
        Err(denied) => json!({"ok": false, "reason": denied.as_str()}),
    }
}

fn origin(input: &Value) -> Value {
    let mut policy = OriginPolicy::parse(list(input, "allowedOrigins"));
    policy.host_fallback = flag(input, "allowHostHeaderOriginFallback");
    let (origin, host) = (text(input, "origin"), text(input, "requestHost"));
    // A case may leave open where the client is. Then a page may talk to where it came from, and nowhere else.
    let same_place = || {
        origin
            .and_then(|origin| origin.split_once("://"))
            .is_some_and(|(_, place)| host.is_some_and(|host| host.eq_ignore_ascii_case(place)))
    };
    let local = input.get("isLocalClient").and_then(Value::as_bool).unwrap_or_else(same_place);
    match policy.check(origin, host, local) {
        Ok(matched) => json!({"ok": true, "matchedBy": matched.as_str()}),
        Err(refused) => json!({"ok": false, "reason": refused.as_str()}),
    }
}

fn pairing_locality(input: &Value) -> Value {
    let client = ClientInfo {
        id: text(&input["client"], "id").unwrap_or_default(),
        mode: text(&input["client"], "mode").unwrap_or_default(),
        ..ClientInfo::default()
    };
    let Some(remote) = peer(input, "remote") else { return "remote".into() };
    // Whether the client is truly local, and whether a proxy stands in between, are inputs of this family.
    let verdict = if flag(input, "local") || flag(input, "isLocalClient") {
        Verdict::DirectLocal
    } else if flag(input, "proxy") {
        Verdict::TrustedProxy { proxy: remote, client: None }
    } else {
        Verdict::DirectRemote { client: remote }
    };
    let method = method(text(input, "authMethod").or(Some("token")));
    Locality::of(verdict, text(input, "host"), text(input, "origin"), &client, flag(input, "shared"), method)
        .as_str()
        .into()
}

fn silent_pairing(input: &Value) -> Value {
    use Locality::{BrowserContainerLocal, CliContainerLocal, DirectLocal, Remote, SharedSecretLoopbackLocal};
    use PairingReason::{MetadataUpgrade, NotPaired, RoleUpgrade, ScopeUpgrade};
    let locality = [DirectLocal, CliContainerLocal, SharedSecretLoopbackLocal, BrowserContainerLocal]
        .into_iter()
        .find(|locality| Some(locality.as_str()) == text(input, "locality"))
        .unwrap_or(Remote);
    let (id, mode, page) = match text(input, "client").unwrap_or("cli") {
        "control-ui" => ("openclaw-control-ui", "webchat", true),
        "webchat" => ("webchat-ui", "webchat", true),
        "native-ui" => ("openclaw-macos", "ui", false),
        "browser-other" => ("test", "test", true),
        _ => ("cli", "cli", false),
    };
    let client = ClientInfo { id, mode, ..ClientInfo::default() };
    let reasons = match text(input, "reason") {
        Some(name) => vec![
            [NotPaired, MetadataUpgrade, RoleUpgrade, ScopeUpgrade]
                .into_iter()
                .find(|reason| reason.as_str() == name)
                .expect("a known reason"),
        ],
        None => vec![NotPaired, MetadataUpgrade, RoleUpgrade, ScopeUpgrade],
    };
    json!({"silent": reasons.into_iter().any(|reason| is_silent(locality, reason, &client, page))})
}

fn role_scopes(input: &Value) -> Value {
    let role = text(input, "role").and_then(Role::parse).expect("a role of the wire");
    role_covers(role, list(input, "requestedScopes"), list(input, "allowedScopes")).into()
}

fn scope_caps(input: &Value) -> Value {
    let header = match &input["header"] {
        Value::Array(values) => values.first().and_then(Value::as_str),
        other => other.as_str(),
    };
    json!(scope_cap::cap(list(input, "requested"), header))
}

fn shared_secret(input: &Value) -> Value {
    let auth = &input["auth"];
    let given = credentials(input);
    let (secret, configured, supplied) = match text(auth, "mode") {
        Some("none") => return json!({"ok": true, "method": "none"}),
        Some("token") => (SharedSecret::Token, text(auth, "token"), given.token),
        Some("password") => (SharedSecret::Password, text(auth, "password"), given.password),
        // The gateway has no other mode; where a mode is read, others are refused.
        _ => return json!({"ok": false, "reason": "unauthorized"}),
    };
    let configured = configured.filter(|text| !text.is_empty()).map(SecretHash::of);
    match secret.check(configured.as_ref(), supplied) {
        Ok(()) => json!({"ok": true, "method": text(auth, "mode")}),
        Err(denied) => json!({"ok": false, "reason": denied.reason()}),
    }
}

fn tailscale(input: &Value) -> Value {
    let mode = match text(input, "authMode") {
        Some("none") => AuthMode::None,
        Some("password") => AuthMode::Password(Some(SecretHash::of("pw"))),
        Some("trusted-proxy") => AuthMode::TrustedProxy { proxy: None, password: None },
        _ => AuthMode::Token(Some(SecretHash::of("tok"))),
    };
    let mut policy = Policy::new(1, mode);
    policy.allow_tailscale = flag(input, "allowTailscale");
    policy.ingress.tailscale_on_main = policy.allow_tailscale;
    let whois = text(&input["whois"], "login").map_or(Whois::Failed, Whois::Login);
    Lines::of(&input["headers"]).view(|headers| {
        let mut request = request(input, &policy, headers);
        let asked = needs_whois(&request, &policy);
        request.whois = asked.map(|_| whois);
        let mut decided = authenticated(&outcome(&request, &policy));
        decided["whoisCalledWith"] = asked.iter().map(ToString::to_string).collect();
        decided
    })
}

fn trusted_proxy_auth(input: &Value) -> Value {
    let section = &input["trustedProxy"];
    let boxed = |names: Vec<&str>| names.into_iter().map(Into::into).collect();
    let proxy = section.is_object().then(|| TrustedProxy {
        user_header: text(section, "userHeader").unwrap_or_default().into(),
        required_headers: boxed(list(section, "requiredHeaders")),
        allow_users: boxed(list(section, "allowUsers")),
        allow_loopback: flag(section, "allowLoopback"),
    });
    let password = text(input, "password").filter(|text| !text.is_empty()).map(SecretHash::of);
    let mut policy = Policy::new(1, AuthMode::TrustedProxy { proxy, password });
    policy.ingress.trusted_proxies = proxies(input);
    let page = &input["origin"];
    policy.origins = OriginPolicy::parse(list(page, "allowedOrigins"));
    policy.origins.host_fallback = flag(page, "allowHostHeaderOriginFallback");
    let headers = Lines::of(&input["headers"]).with("origin", page.get("origin")).with("host", page.get("requestHost"));
    headers.view(|headers| authenticated(&outcome(&request(input, &policy, headers), &policy)))
}

fn request<'a>(input: &'a Value, policy: &Policy, headers: HeaderView<'a>) -> Request<'a> {
    let peer = peer(input, "remote");
    let unknown = Verdict::DirectRemote { client: IpAddr::from([192, 0, 2, 1]) };
    Request {
        surface: if text(input, "surface") == Some("http") { Surface::Http } else { Surface::WebSocket },
        peer,
        verdict: peer.map_or(unknown, |peer| Verdict::of(peer, headers, Listener::Main, &policy.ingress)),
        headers,
        credentials: credentials(input),
        whois: None,
        own_addresses: Some(&[]),
    }
}

fn outcome(request: &Request<'_>, policy: &Policy) -> Authentication {
    let limits = RateLimits::new(RateLimitPolicy::default());
    let mut attempts = limits.attempts(request.verdict, request.headers, UnixMs(0));
    authenticate(request, policy, &mut attempts)
}
