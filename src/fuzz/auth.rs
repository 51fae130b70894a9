//! The whole decision on a connect: any peer, header lines, settings, credentials and device.
//!
//! Beside the decision stands an oracle that knows how the input was made: which credential is the right one, and whether
//! the signature is honest. What it promises:
//!
//! * nobody is let in, nor asked for approval, without a proof that the oracle sees too;
//! * scopes are at most what was asked for, and at most what somebody gave: an approval, the operator's list for a user,
//!   or the shared secret on this host;
//! * nothing is paired silently but a loopback peer without any trace of a proxy, unless a setting or a code says so;
//! * a header line more never opens what was closed (only `Origin` and `Host` can), cap headers only narrow;
//! * the decision is the same whenever it is asked, and a denial stays one however often it is tried.

use std::net::IpAddr;

use arbitrary::Unstructured;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::forwarded::{NAMES, VALUES, ingress, listener, peer, shows_a_proxy};
use super::{as_view, flip, header_lines, pick, rarely, some};
use crate::address::AddressList;
use crate::auth::client::Client;
use crate::auth::device::{DeviceKey, SignedDevice, SignedFields};
use crate::auth::origin::OriginPolicy;
use crate::auth::rate_limit::RateLimitPolicy;
use crate::auth::tailscale::Whois;
use crate::auth::trusted_proxy::{TrustedProxy, same_user};
use crate::auth::{
    ApprovedRole, AuthMode, BootstrapCode, Credentials, Decision, Denied, DeviceToken, Evidence, Grant, HeaderView,
    Method, PairedDevice, Policy, RateLimits, Request, Surface, Verdict, authorize,
};
use crate::clock::UnixMs;
use crate::id::base64_url;
use crate::rpc::scope::{Role, Scope, ScopeSet};
use crate::secret::SecretHash;

const NOW: UnixMs = UnixMs(1_795_000_000_000);
const TOKEN: &str = "the-shared-token";
const PASSWORD: &str = "the-shared-password";
const DEVICE_TOKEN: &str = "the-device-token";
const CODE: &str = "the-setup-code";
const CREDENTIALS: [&str; 7] = [TOKEN, PASSWORD, DEVICE_TOKEN, CODE, "wrong", "", " "];
const USERS: [&str; 4] = ["alice@example.com", "Alice@Example.com", "bob", "mallory"];
const SCOPES: [&str; 9] = [
    "operator.admin",
    "operator.read",
    "operator.write",
    "operator.pairing",
    "operator.approvals",
    "operator.talk",
    "operator.nonsense",
    "",
    "operator.read ",
];
const IDS: [&str; 6] = ["cli", "gateway-client", "openclaw-control-ui", "openclaw-tui", "node-host", "openclaw-ios"];
const MODES: [&str; 6] = ["cli", "backend", "webchat", "ui", "node", "probe"];
const PLATFORMS: [&str; 4] = ["linux", "macos", "", "ios 17"];

/// What the operator decided, and everything the peer and the records say, owned.
struct Case<'a> {
    policy: Policy,
    peer: IpAddr,
    verdict: Verdict,
    lines: Vec<(&'a str, Vec<u8>)>,
    surface: Surface,
    credentials: Credentials<'a>,
    whois: Option<Whois<'a>>,
    own: Option<Vec<IpAddr>>,
    client: Client<'a>,
    role: Option<&'a str>,
    scopes: Option<Vec<&'a str>>,
    device: Option<Device>,
    paired: Option<PairedDevice>,
    bootstrap: Option<BootstrapCode>,
    generation: u64,
}

struct Device {
    key: DeviceKey,
    id: String,
    public_key: String,
    signature: String,
    signed_at_ms: u64,
    nonce: &'static str,
    /// Whether the signature is this key's over what is claimed, fresh, and over our challenge.
    honest: bool,
}

const CHALLENGE: &str = "challenge";

fn scope_set(u: &mut Unstructured<'_>) -> ScopeSet {
    some(u, &Scope::ALL).into_iter().collect()
}

fn policy(u: &mut Unstructured<'_>) -> Policy {
    let secret = |u: &mut Unstructured<'_>, text| (!rarely(u, 5)).then(|| SecretHash::of(text));
    let mode = match u.int_in_range(0..=4).unwrap_or(0) {
        0 => AuthMode::None,
        1 | 2 => AuthMode::Token(secret(u, TOKEN)),
        3 => AuthMode::Password(secret(u, PASSWORD)),
        _ => {
            let proxy = TrustedProxy {
                user_header: "X-Forwarded-User".into(),
                required_headers: some(u, &["X-Forwarded-Proto", "X-Forwarded-Host"])
                    .into_iter()
                    .map(Into::into)
                    .collect(),
                allow_users: some(u, &USERS).into_iter().map(Into::into).collect(),
                allow_loopback: flip(u),
            };
            AuthMode::TrustedProxy { proxy: (!rarely(u, 6)).then_some(proxy), password: secret(u, PASSWORD) }
        }
    };
    let mut policy = Policy::new(u.int_in_range(1..=2).unwrap_or(1), mode);
    let identity_headers = std::mem::take(&mut policy.ingress.identity_headers);
    policy.ingress = ingress(u);
    policy.ingress.identity_headers = identity_headers;
    policy.origins = OriginPolicy::parse(some(u, &["https://gw.example", "*", "bogus"]));
    policy.origins.host_fallback = rarely(u, 6);
    policy.allow_tailscale = flip(u);
    policy.allow_insecure_ui = flip(u);
    policy.identity_scopes = some(u, &USERS).into_iter().map(|user| (user.into(), scope_set(u))).collect();
    policy.device_auto_approve = rarely(u, 3).then(|| scope_set(u));
    policy.pair_local_silently = flip(u);
    policy.node_auto_approve = AddressList::parse(some(u, &["203.0.113.0/24", "10.0.0.1"]));
    policy
}

fn credential<'a>(u: &mut Unstructured<'_>) -> Option<&'a str> {
    flip(u).then(|| pick(u, &CREDENTIALS))
}

fn pairs() -> &'static [Ed25519KeyPair] {
    static PAIRS: std::sync::OnceLock<Vec<Ed25519KeyPair>> = std::sync::OnceLock::new();
    PAIRS.get_or_init(|| {
        (1..=3_u8).map(|seed| Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes")).collect()
    })
}

fn any_pair(u: &mut Unstructured<'_>) -> &'static Ed25519KeyPair {
    &pairs()[u.int_in_range(0..=2).unwrap_or(0)]
}

fn key_of(pair: &Ed25519KeyPair) -> DeviceKey {
    let bytes = pair.public_key().as_ref().try_into().expect("32 bytes");
    DeviceKey::from_bytes(bytes).expect("an honest key")
}

fn paired(u: &mut Unstructured<'_>) -> PairedDevice {
    let approved = |u: &mut Unstructured<'_>, role| {
        flip(u).then(|| {
            let scopes = if role == Role::Node { ScopeSet::EMPTY } else { scope_set(u) };
            ApprovedRole {
                scopes,
                token: flip(u).then(|| DeviceToken {
                    hash: SecretHash::of(DEVICE_TOKEN),
                    scopes: scope_set(u).narrowed_to(scopes),
                    expires_at: rarely(u, 3).then(|| UnixMs(NOW.0 + u.int_in_range(0..=2).unwrap_or(0) - 1)),
                }),
            }
        })
    };
    PairedDevice {
        key: key_of(any_pair(u)),
        operator: approved(u, Role::Operator),
        node: approved(u, Role::Node),
        platform: flip(u).then(|| (pick(u, &PLATFORMS)).into()),
        device_family: flip(u).then(|| "Linux".into()),
    }
}

impl<'a> Case<'a> {
    fn draw(u: &mut Unstructured<'a>) -> Self {
        let policy = policy(u);
        let (peer, listener) = (peer(u), listener(u));
        let lines = header_lines(u, &NAMES, &VALUES);
        let verdict = Verdict::of(peer, HeaderView::new(&as_view(&lines)), listener, &policy.ingress);
        let credentials = Credentials {
            token: credential(u),
            password: credential(u),
            device_token: credential(u),
            bootstrap_token: credential(u),
        };
        let mut case = Self {
            policy,
            peer,
            verdict,
            lines,
            surface: Surface::WebSocket,
            credentials,
            whois: pick(
                u,
                &[None, Some(Whois::Failed), Some(Whois::Login("alice@example.com")), Some(Whois::Login("bob"))],
            ),
            own: (!rarely(u, 5)).then(|| some(u, &[IpAddr::from([10, 0, 0, 1]), IpAddr::from([192, 168, 1, 5])])),
            client: Client {
                id: pick(u, &IDS),
                mode: pick(u, &MODES),
                platform: pick(u, &PLATFORMS),
                device_family: pick(u, &["Linux", "iPhone", ""]),
            },
            role: pick(u, &[None, Some("operator"), Some("operator"), Some("node"), Some("root")]),
            scopes: (!rarely(u, 4)).then(|| some(u, &SCOPES)),
            device: None,
            paired: flip(u).then(|| paired(u)),
            bootstrap: None,
            generation: u.int_in_range(1..=2).unwrap_or(1),
        };
        // As the gateway looks it up: by the text that was sent.
        if case.credentials.bootstrap_token == Some(CODE) && flip(u) {
            case.bootstrap = Some(BootstrapCode {
                expires_at: UnixMs(NOW.0 + u.int_in_range(0..=2).unwrap_or(0)),
                bound_key: flip(u).then(|| key_of(any_pair(u))),
                roles: some(u, &[Role::Operator, Role::Node]),
                scopes: scope_set(u),
                approves: flip(u),
            });
        }
        if flip(u) {
            case.device = Some(case.sign(u));
        }
        case
    }

    fn role(&self) -> Option<Role> {
        self.role.map_or(Some(Role::Operator), Role::parse)
    }

    fn sign(&self, u: &mut Unstructured<'_>) -> Device {
        let pair = any_pair(u);
        let key = key_of(pair);
        let id = key.device_id().to_string();
        let fault = u.int_in_range(0..=11).unwrap_or(0);
        let signed_at_ms = if fault == 1 { NOW.0 - 120_001 } else { NOW.0 - u.int_in_range(0..=120_000).unwrap_or(0) };
        let nonce = if fault == 2 { "another" } else { CHALLENGE };
        let credentials = &self.credentials;
        let token = credentials.token.or(credentials.device_token).or(credentials.bootstrap_token).unwrap_or_default();
        let scopes = self.scopes.clone().unwrap_or_default();
        let fields = SignedFields {
            device_id: &id,
            client_id: if fault == 3 { "other" } else { self.client.id },
            client_mode: self.client.mode,
            role: self.role().unwrap_or(Role::Operator).as_str(),
            scopes: if fault == 4 { &["operator.admin", "operator.secrets"] } else { &scopes },
            signed_at_ms,
            token: if fault == 5 { "other" } else { token },
            nonce,
            platform: if fault == 6 { "other" } else { self.client.platform },
            device_family: self.client.device_family,
        };
        let line = if fault == 7 { fields.payload_v2() } else { fields.payload_v3() };
        let other = &pairs()[0];
        let signer = if fault == 8 { other } else { pair };
        let honest = matches!(fault, 0 | 7 | 9..) || (fault == 8 && key_of(other) == key);
        Device {
            key,
            id,
            public_key: key.to_string(),
            signature: base64_url(signer.sign(line.as_bytes()).as_ref()),
            signed_at_ms,
            nonce,
            honest,
        }
    }

    fn decide(&self, lines: &[(&str, Vec<u8>)], limits: &RateLimits) -> Decision {
        let view = as_view(lines);
        let headers = HeaderView::new(&view);
        // A header more is judged from the start, as every request is.
        let verdict = if lines.len() == self.lines.len() {
            self.verdict
        } else {
            Verdict::of(self.peer, headers, crate::auth::ingress::Listener::Main, &self.policy.ingress)
        };
        let evidence = Evidence {
            request: Request {
                surface: self.surface,
                peer: Some(self.peer),
                verdict,
                headers,
                credentials: self.credentials,
                whois: self.whois,
                own_addresses: self.own.as_deref(),
            },
            client: self.client,
            role: self.role,
            scopes: self.scopes.as_deref(),
            device: self.device.as_ref().map(|device| SignedDevice {
                id: &device.id,
                public_key: &device.public_key,
                signature: &device.signature,
                signed_at_ms: Some(device.signed_at_ms),
                nonce: device.nonce,
            }),
            challenge: CHALLENGE,
            paired: self.paired.as_ref(),
            bootstrap: self.bootstrap.as_ref(),
            generation: self.generation,
        };
        authorize(&evidence, &self.policy, limits, NOW)
    }

    /// The record of the very key that signed.
    fn own_record(&self) -> Option<&PairedDevice> {
        let key = self.device.as_ref()?.key;
        self.paired.as_ref().filter(|paired| paired.key == key)
    }

    fn approved(&self, role: Role) -> Option<&ApprovedRole> {
        let record = self.own_record()?;
        if role == Role::Operator { record.operator.as_ref() } else { record.node.as_ref() }
    }

    /// Whether `method` is truly proved, by what the input was made of.
    fn is_proved(&self, method: Method, user: Option<&str>, role: Role) -> bool {
        let sent = |text: Option<&str>, right: &str| text.map(str::trim) == Some(right);
        let view = as_view(&self.lines);
        let headers = HeaderView::new(&view);
        match method {
            Method::None => matches!(self.policy.mode, AuthMode::None),
            Method::Token => {
                matches!(self.policy.mode, AuthMode::Token(Some(_))) && sent(self.credentials.token, TOKEN)
            }
            Method::Password => {
                let configured = match &self.policy.mode {
                    AuthMode::Password(password) => password.is_some(),
                    AuthMode::TrustedProxy { password, .. } => {
                        password.is_some() && self.verdict == Verdict::DirectLocal
                    }
                    _ => false,
                };
                configured && sent(self.credentials.password, PASSWORD)
            }
            Method::TrustedProxy => {
                let AuthMode::TrustedProxy { proxy: Some(proxy), .. } = &self.policy.mode else { return false };
                let peer = self.peer.to_canonical();
                let is_own = self.own.as_ref().is_none_or(|own| own.contains(&peer));
                let values: Vec<_> = headers.values("x-forwarded-user").collect();
                let [value] = values.as_slice() else { return false };
                let said = str::from_utf8(value).unwrap_or_default().trim();
                self.policy.ingress.trusted_proxies.contains(peer)
                    && (if peer.is_loopback() { proxy.allow_loopback } else { !is_own })
                    && proxy.required_headers.iter().all(|name| headers.is_filled(name))
                    && !said.is_empty()
                    && user.is_some_and(|user| same_user(user, said))
                    && (proxy.allow_users.is_empty()
                        || proxy.allow_users.iter().any(|allowed| same_user(allowed, said)))
            }
            Method::Tailscale => {
                let login = headers.first("tailscale-user-login").unwrap_or_default().trim().to_lowercase();
                let by_daemon = matches!(self.whois, Some(Whois::Login(known)) if known.to_lowercase() == login);
                self.policy.allow_tailscale
                    && matches!(self.verdict, Verdict::TailscaleServe { .. })
                    && by_daemon
                    && !login.is_empty()
            }
            Method::DeviceToken => {
                let Some(token) = self.approved(role).and_then(|approved| approved.token.as_ref()) else {
                    return false;
                };
                let sent =
                    sent(self.credentials.device_token, DEVICE_TOKEN) || sent(self.credentials.token, DEVICE_TOKEN);
                sent && token.expires_at.is_none_or(|end| NOW < end)
            }
            Method::BootstrapToken => self.bootstrap.as_ref().is_some_and(|code| {
                let key = self.device.as_ref().map(|device| device.key);
                NOW < code.expires_at
                    && code.roles.contains(&role)
                    && code.bound_key.is_none_or(|bound| Some(bound) == key)
            }),
        }
    }

    /// The most that an operator may hold, whoever gave it.
    fn most(&self, grant: &Grant) -> ScopeSet {
        let everything: ScopeSet = Scope::ALL.into_iter().collect();
        let asked = self.scopes.as_ref().map(|names| ScopeSet::parse(names.iter().copied()));
        let vouched = grant.user().map_or(ScopeSet::EMPTY, |user| {
            let entry = self.policy.identity_scopes.iter().find(|(name, _)| same_user(name, user));
            entry.map_or(ScopeSet::EMPTY, |(_, scopes)| *scopes)
        });
        let by_secret = matches!(grant.method(), Method::Token | Method::Password);
        // Who is near and holds the secret (or there is none), and the Control UI of somebody who is known already.
        let near = self.peer.to_canonical().is_loopback() && (by_secret || grant.method() == Method::None);
        let helper = near || (grant.method() == Method::DeviceToken && self.peer.to_canonical().is_loopback());
        let known_ui = self.client.is_control_ui() && matches!(grant.method(), Method::Tailscale | Method::None);
        let given = match (&self.device, self.own_record()) {
            (None, _) if near => asked.unwrap_or_default(),
            (None, _) => ScopeSet::EMPTY,
            (Some(_), Some(_)) => self.approved(Role::Operator).map_or(ScopeSet::EMPTY, |approved| approved.scopes),
            (Some(_), None) if helper || known_ui => asked.unwrap_or_default(),
            (Some(_), None) => ScopeSet::EMPTY,
        };
        let given = given.union(vouched);
        asked.map_or(given, |asked| {
            // `asked` may name a wider word for what was given: what counts is what the result covers.
            if given.contains(Scope::Admin) { asked } else { everything.narrowed_to(given) }
        })
    }
}

/// See the module's head.
///
/// # Panics
/// When a promise is broken.
pub fn check(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let case = Case::draw(u);
    let fresh = || RateLimits::new(RateLimitPolicy::default());
    let limits = fresh();
    let decision = case.decide(&case.lines, &limits);
    let again = case.decide(&case.lines, &fresh());
    assert_eq!(outcome(&decision), outcome(&again), "the same facts, the same decision");

    if let Verdict::Unattributable { why, .. } = case.verdict {
        let Decision::Denied(refusal) = &decision else { panic!("unattributable and let in") };
        assert_eq!(refusal.reason, Denied::ProxyAttributionRequired(why));
        assert_eq!(limits.entries(), 0, "no credential was looked at");
    }
    match &decision {
        Decision::Granted(grant) => granted(&case, grant),
        Decision::NeedsPairing(needed) => {
            let device = case.device.as_ref().expect("only a device is paired");
            assert!(device.honest && needed.device.key == device.key, "nobody waits under a key that is not theirs");
            assert_eq!(Some(needed.role), case.role());
            assert!(case.is_proved(needed.method, needed.user.as_deref(), needed.role), "{:?}", needed.method);
            assert!(needed.role == Role::Operator || needed.scopes.is_empty());
            assert_eq!(needed.approved.is_some(), case.own_record().is_some(), "told to the key alone");
            if needed.silent {
                let view = as_view(&case.lines);
                let near = case.peer.to_canonical().is_loopback()
                    && !shows_a_proxy(HeaderView::new(&view), &case.policy.ingress);
                let by_setting = case.policy.device_auto_approve.is_some() || !case.policy.node_auto_approve.is_empty();
                let by_code = case.bootstrap.as_ref().is_some_and(|code| code.approves);
                assert!(near || by_setting || by_code, "silently, from {}", case.peer);
            }
        }
        Decision::Denied(refusal) => {
            let error = refusal.to_rpc_error();
            assert!(!error.message.is_empty() && error.details.is_some());
            let text = serde_json::to_string(&error.details).unwrap_or_default() + &error.message;
            assert!(![TOKEN, PASSWORD, DEVICE_TOKEN, CODE].iter().any(|secret| text.contains(secret)), "{text}");
            for _ in 0..3 {
                assert!(matches!(case.decide(&case.lines, &limits), Decision::Denied(_)), "a denial stays one");
            }
        }
    }
    a_header_more_opens_nothing(&case, &decision, u);
}

fn granted(case: &Case<'_>, grant: &Grant) {
    assert_eq!(Some(grant.role()), case.role());
    assert_eq!(case.generation, case.policy.generation, "under settings that are gone");
    assert!(case.is_proved(grant.method(), grant.user(), grant.role()), "{:?} as {:?}", grant.method(), grant.user());
    if let Some(device) = &case.device {
        assert!(device.honest && grant.device_key() == Some(device.key), "under a key that is not theirs");
    } else {
        assert!(grant.device().is_none() && !grant.is_paired() && grant.role() == Role::Operator);
    }
    assert_eq!(grant.is_paired(), case.own_record().is_some());
    assert!(!grant.issues_device_token() || grant.is_paired());
    if grant.role() == Role::Node {
        assert!(grant.scopes().is_empty() && grant.is_paired(), "a node has no scopes and was approved");
        return;
    }
    if let Some(asked) = &case.scopes {
        let asked = ScopeSet::parse(asked.iter().copied());
        assert!(asked.covers_all(grant.scopes()), "{:?} of {asked:?}", grant.scopes());
    }
    let most = case.most(grant);
    assert!(most.covers_all(grant.scopes()), "{:?} of {most:?} by {:?}", grant.scopes(), grant.method());
    let view = as_view(&case.lines);
    if grant.method() == Method::TrustedProxy
        && let Some(cap) = HeaderView::new(&view).first("x-openclaw-scopes")
    {
        let cap = ScopeSet::parse(cap.split(','));
        assert!(grant.scopes().iter().all(|scope| cap.contains(scope)), "{:?} above the cap", grant.scopes());
    }
}

/// Where no proxy is believed, a line more may close and must not open.
fn a_header_more_opens_nothing(case: &Case<'_>, before: &Decision, u: &mut Unstructured<'_>) {
    let believed = matches!(case.policy.mode, AuthMode::TrustedProxy { .. })
        || case.policy.ingress.trusted_proxies.contains(case.peer)
        || case.policy.allow_tailscale
        || case.policy.ingress.tailscale_on_main
        || !matches!(
            case.verdict,
            Verdict::DirectLocal | Verdict::DirectRemote { .. } | Verdict::Unattributable { .. }
        )
        || Verdict::of(
            case.peer,
            HeaderView::new(&as_view(&case.lines)),
            crate::auth::ingress::Listener::Main,
            &case.policy.ingress,
        ) != case.verdict;
    let name = pick(u, &NAMES);
    // Of a page, `Origin` is asked for; and `Host` says under which name the page came.
    if believed || name == "Origin" || name == "Host" {
        return;
    }
    let mut lines = case.lines.clone();
    lines.push((name, pick(u, &VALUES).to_vec()));
    let after = case.decide(&lines, &RateLimits::new(RateLimitPolicy::default()));
    match (before, &after) {
        (_, Decision::Denied(_)) => {}
        (Decision::Denied(_), _) => panic!("{name} opened what was closed"),
        (Decision::NeedsPairing(before), Decision::NeedsPairing(after)) => {
            assert!(before.silent || !after.silent, "{name} made a pairing silent");
            assert!(before.scopes.covers_all(after.scopes));
        }
        (Decision::NeedsPairing(_), Decision::Granted(_)) => panic!("{name} made an approval needless"),
        (Decision::Granted(before), Decision::Granted(after)) => {
            assert!(before.scopes().covers_all(after.scopes()), "{name} widened the scopes");
        }
        (Decision::Granted(_), Decision::NeedsPairing(after)) => assert!(!after.silent),
    }
}

/// What a decision comes to, comparable.
fn outcome(decision: &Decision) -> String {
    match decision {
        Decision::Granted(grant) => format!("{grant:?}"),
        Decision::NeedsPairing(needed) => format!("{needed:?}"),
        Decision::Denied(refusal) => format!("{:?}", refusal.reason),
    }
}
