//! The decision on a connect, case by case, and what must hold whatever comes.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::address::AddressList;
use crate::auth::client::Client;
use crate::auth::device::tests::Device;
use crate::auth::device::{DeviceKey, SignedDevice};
use crate::auth::evidence::{ApprovedRole, BootstrapCode, Credentials, DeviceToken, Request, Surface};
use crate::auth::headers::HeaderView;
use crate::auth::ingress::Listener;
use crate::auth::origin::OriginPolicy;
use crate::auth::policy::AuthMode;
use crate::auth::rate_limit::RateLimitPolicy;
use crate::auth::tailscale::Whois;
use crate::auth::trusted_proxy::TrustedProxy;
use crate::rpc::scope::Scope;

const NOW: UnixMs = UnixMs(1_700_000_000_000);
const CHALLENGE: &str = "nonce-1";

/// One connect and the gateway it comes to. Starts as the CLI on the gateway's host with the right token.
/// `unsigned`: the signature is another device's.
#[derive(Debug)]
struct Scene {
    policy: Policy,
    limits: RateLimits,
    peer: &'static str,
    listener: Listener,
    headers: Vec<(&'static str, &'static str)>,
    client: Client<'static>,
    role: Option<&'static str>,
    scopes: Option<Vec<&'static str>>,
    credentials: Credentials<'static>,
    device: Option<u8>,
    unsigned: bool,
    payload_v2: bool,
    paired: Option<PairedDevice>,
    bootstrap: Option<BootstrapCode>,
    whois: Option<Whois<'static>>,
    generation: u64,
}

fn hash(text: &str) -> Option<SecretHash> {
    Some(SecretHash::of(text))
}

fn client(id: &'static str, mode: &'static str) -> Client<'static> {
    Client { id, mode, platform: "linux", device_family: "Linux" }
}

fn scene() -> Scene {
    Scene {
        policy: Policy::new(1, AuthMode::Token(hash("tok"))),
        limits: RateLimits::new(RateLimitPolicy::default()),
        peer: "127.0.0.1",
        listener: Listener::Main,
        headers: vec![("host", "127.0.0.1:18789")],
        client: client("cli", "cli"),
        role: None,
        scopes: Some(vec!["operator.read"]),
        credentials: Credentials { token: Some("tok"), ..Credentials::default() },
        device: None,
        unsigned: false,
        payload_v2: false,
        paired: None,
        bootstrap: None,
        whois: None,
        generation: 1,
    }
}

/// The same from a stranger's address.
fn remote() -> Scene {
    Scene { peer: "198.51.100.7", headers: vec![("host", "gw.example")], ..scene() }
}

/// A node host with a device.
fn node() -> Scene {
    Scene { client: client("node-host", "node"), role: Some("node"), scopes: Some(vec![]), device: Some(1), ..remote() }
}

/// The Control UI on the gateway's own host.
fn control_ui() -> Scene {
    let headers = vec![("host", "localhost:18789"), ("origin", "http://localhost:18789")];
    Scene { client: client("openclaw-control-ui", "webchat"), headers, device: Some(1), ..scene() }
}

/// The Control UI behind an authenticating proxy.
fn proxied_ui() -> Scene {
    let proxy = TrustedProxy { user_header: "x-forwarded-user".into(), ..TrustedProxy::default() };
    let mut policy = Policy::new(1, AuthMode::TrustedProxy { proxy: Some(proxy), password: hash("pw") });
    policy.ingress.trusted_proxies = AddressList::parse(["10.0.0.1"]);
    policy.origins = OriginPolicy::parse(["https://gw.example"]);
    let headers = vec![
        ("host", "gw.example"),
        ("origin", "https://gw.example"),
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-user", "alice@example.com"),
    ];
    let scopes = Some(vec!["operator.read", "operator.write"]);
    let credentials = Credentials::default();
    Scene { policy, peer: "10.0.0.1", headers, scopes, credentials, ..control_ui() }
}

fn paired(seed: u8, scopes: &[&str], token: Option<&str>) -> PairedDevice {
    let scopes = ScopeSet::parse(scopes.iter().copied());
    let token = token.map(|token| DeviceToken { hash: SecretHash::of(token), scopes, expires_at: None });
    PairedDevice {
        key: Device::new(seed).key(),
        operator: Some(ApprovedRole { scopes, token }),
        node: None,
        platform: Some("linux".into()),
        device_family: Some("Linux".into()),
    }
}

fn paired_node(seed: u8, token: &str) -> PairedDevice {
    let token = DeviceToken { hash: SecretHash::of(token), scopes: ScopeSet::EMPTY, expires_at: None };
    let node = Some(ApprovedRole { scopes: ScopeSet::EMPTY, token: Some(token) });
    PairedDevice { operator: None, node, ..paired(seed, &[], None) }
}

impl Scene {
    fn decide(&self) -> Decision {
        let lines: Vec<(&str, &[u8])> = self.headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let headers = HeaderView::new(&lines);
        let peer: IpAddr = self.peer.parse().unwrap();
        let verdict = Verdict::of(peer, headers, self.listener, &self.policy.ingress);
        let request = Request {
            surface: Surface::WebSocket,
            peer: Some(peer),
            verdict,
            headers,
            credentials: self.credentials,
            whois: self.whois,
            own_addresses: Some(&[]),
        };
        let mut evidence = Evidence {
            request,
            client: self.client,
            role: self.role,
            scopes: self.scopes.as_deref(),
            device: None,
            challenge: CHALLENGE,
            paired: self.paired.as_ref(),
            bootstrap: self.bootstrap.as_ref(),
            generation: self.generation,
        };
        let Some(seed) = self.device else { return authorize(&evidence, &self.policy, &self.limits, NOW) };
        let device = Device::new(seed);
        let (id, key) = (device.id(), device.key().to_string());
        let role = self.role.and_then(Role::parse).unwrap_or(Role::Operator);
        let signed = signed_fields(&evidence, role);
        let signed = SignedFields { device_id: &id, signed_at_ms: NOW.0, nonce: CHALLENGE, ..signed };
        let payload = if self.payload_v2 { signed.payload_v2() } else { signed.payload_v3() };
        let signer = if self.unsigned { Device::new(seed ^ 0x80) } else { Device::new(seed) };
        let signature = signer.sign(&payload);
        let proof = SignedDevice {
            id: &id,
            public_key: &key,
            signature: &signature,
            signed_at_ms: Some(NOW.0),
            nonce: CHALLENGE,
        };
        evidence.device = Some(proof);
        authorize(&evidence, &self.policy, &self.limits, NOW)
    }

    #[track_caller]
    fn granted(&self) -> Grant {
        match self.decide() {
            Decision::Granted(grant) => grant,
            other => panic!("expected a grant, not {other:?}"),
        }
    }

    #[track_caller]
    fn denied(&self) -> Denied {
        match self.decide() {
            Decision::Denied(refusal) => refusal.reason,
            other => panic!("expected a refusal, not {other:?}"),
        }
    }

    #[track_caller]
    fn pairing(&self) -> PairingNeeded {
        match self.decide() {
            Decision::NeedsPairing(needed) => *needed,
            other => panic!("expected a pairing, not {other:?}"),
        }
    }

    fn token(mut self, token: &'static str) -> Self {
        self.credentials.token = Some(token);
        self
    }
}

fn names(scopes: ScopeSet) -> Vec<&'static str> {
    scopes.iter().map(Scope::as_str).collect()
}

#[test]
fn the_cli_on_the_gateways_host_keeps_its_scopes_without_a_device() {
    let grant = scene().granted();
    assert_eq!(
        (grant.role(), grant.method(), names(grant.scopes())),
        (Role::Operator, Method::Token, vec!["operator.read"])
    );
    assert!(grant.device().is_none() && !grant.issues_device_token());
    let probe = Scene { client: client("cli", "probe"), ..scene() };
    assert_eq!(names(probe.granted().scopes()), ["operator.read"]);
}

#[test]
fn s_50_a_shared_token_from_elsewhere_gives_no_scopes_without_a_device() {
    let admin = Scene { scopes: Some(vec!["operator.admin"]), ..remote() };
    assert!(admin.granted().scopes().is_empty());
    let page = Scene {
        headers: vec![("host", "localhost:1"), ("origin", "http://localhost:1")],
        client: client("test", "test"),
        ..scene()
    };
    assert!(page.granted().scopes().is_empty());
}

#[test]
fn s_16_an_unvalidated_field_opens_nothing() {
    for credentials in [
        Credentials { token: Some("wrong"), ..Credentials::default() },
        Credentials { token: Some("wrong"), device_token: Some("x"), ..Credentials::default() },
        Credentials {
            token: Some("wrong"),
            password: Some("tok"),
            bootstrap_token: Some("x"),
            ..Credentials::default()
        },
    ] {
        assert_eq!(Scene { credentials, ..scene() }.denied(), Denied::TokenMismatch);
    }
    for credentials in [
        Credentials::default(),
        Credentials { token: Some("  "), ..Credentials::default() },
        Credentials { device_token: Some("x"), bootstrap_token: Some("x"), ..Credentials::default() },
    ] {
        assert_eq!(Scene { credentials, ..scene() }.denied(), Denied::DeviceRequired);
    }
}

#[test]
fn s_32_every_wrong_credential_counts_under_its_own_kind() {
    let attack = Scene { device: Some(1), ..remote() };
    let headers: Vec<(&str, &[u8])> = vec![];
    let there = Verdict::DirectRemote { client: "198.51.100.7".parse().unwrap() };
    let locked =
        |scene: &Scene, kind| scene.limits.attempts(there, HeaderView::new(&headers), NOW).check(kind, "new").is_err();
    let mut attack = attack;
    for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        attack.credentials =
            Credentials { token: Some(guess), device_token: Some(guess), bootstrap_token: Some(guess), password: None };
        attack.decide();
    }
    for kind in [CredentialKind::SharedSecret, CredentialKind::DeviceToken, CredentialKind::BootstrapToken] {
        assert!(locked(&attack, kind), "{kind:?}");
    }
    attack.credentials = Credentials { token: Some("tok"), ..Credentials::default() };
    assert!(matches!(attack.denied(), Denied::RateLimited { .. }));
}

#[test]
fn s_32_a_wrong_device_token_counts_even_beside_the_right_token() {
    let mut scene = Scene { device: Some(1), ..remote() };
    for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        scene.credentials.device_token = Some(guess);
        assert_eq!(scene.pairing().reason, PairingReason::NotPaired);
    }
    scene.credentials = Credentials { device_token: Some("k"), ..Credentials::default() };
    assert!(matches!(scene.denied(), Denied::RateLimited { .. }));
}

#[test]
fn wrong_credentials_count_although_the_device_proof_fails_later() {
    let mut scene = Scene { device: Some(1), client: Client { platform: "a|b", ..client("cli", "cli") }, ..remote() };
    for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        scene.credentials.token = Some(guess);
        assert!(matches!(scene.denied(), Denied::DeviceFieldInvalid(_)));
    }
    scene.device = None;
    assert!(matches!(scene.token("tok").denied(), Denied::RateLimited { .. }));
}

#[test]
fn s_13_unattributable_traffic_is_refused_before_credentials_are_looked_at() {
    let mut scene = remote();
    scene.headers.push(("x-forwarded-for", "127.0.0.1"));
    for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "tok"] {
        scene.credentials.token = Some(guess);
        assert!(matches!(scene.denied(), Denied::ProxyAttributionRequired(_)));
    }
    assert_eq!(scene.limits.entries(), 0);
}

#[test]
fn a_stranger_role_or_origin_is_refused_first() {
    assert_eq!(Scene { role: Some("worker"), ..scene() }.denied(), Denied::InvalidRole);
    let evil = Scene { headers: vec![("host", "localhost"), ("origin", "https://evil.example")], ..scene() };
    assert_eq!(evil.denied(), Denied::OriginNotAllowed(OriginRefused::NotAllowed));
    let no_origin = Scene { headers: vec![], ..control_ui() };
    assert_eq!(no_origin.denied(), Denied::OriginNotAllowed(OriginRefused::MissingOrInvalid));
}

#[test]
fn a_new_device_is_paired_silently_only_when_truly_local() {
    let local = Scene { device: Some(1), ..scene() };
    let needed = local.pairing();
    assert!(needed.silent && needed.reason == PairingReason::NotPaired);
    assert_eq!((&*needed.platform, &*needed.device_family), ("linux", "Linux"));
    assert!(!Scene { device: Some(1), ..remote() }.pairing().silent);
    let rebound = Scene { device: Some(1), headers: vec![("host", "evil.example")], ..scene() };
    assert!(!rebound.pairing().silent);
    let container = Scene { device: Some(1), headers: vec![("host", "192.168.1.5:18789")], ..scene() };
    assert!(container.pairing().silent);
}

#[test]
fn silent_pairing_can_be_switched_off() {
    let mut local = Scene { device: Some(1), ..scene() };
    local.policy.pair_local_silently = false;
    assert!(!local.pairing().silent);
}

#[test]
fn s_17_forged_loopback_names_pair_no_one_silently() {
    let forged = Scene { peer: "172.17.0.1", ..control_ui() };
    assert!(matches!(forged.denied(), Denied::OriginNotAllowed(_)));
    let mut listed = Scene { peer: "172.17.0.1", ..control_ui() };
    listed.policy.origins = OriginPolicy::parse(["http://localhost:18789"]);
    assert!(!listed.pairing().silent);
}

#[test]
fn after_its_pairing_the_same_connect_is_granted() {
    let scene = Scene { device: Some(1), paired: Some(paired(1, &["operator.read"], None)), ..remote() };
    let grant = scene.granted();
    assert_eq!(names(grant.scopes()), ["operator.read"]);
    assert!(grant.is_paired() && grant.issues_device_token());
    assert_eq!(grant.device(), Some(Device::new(1).key().device_id()));
}

#[test]
fn another_key_does_not_inherit_a_pairing() {
    let scene = Scene { device: Some(2), paired: Some(paired(1, &["operator.admin"], Some("dt"))), ..remote() };
    let needed = scene.pairing();
    assert_eq!(needed.reason, PairingReason::NotPaired);
    assert!(needed.approved.is_none());
}

#[test]
fn more_than_approved_comes_without_asking_only_to_who_holds_the_secret_here() {
    let here = Scene { device: Some(1), paired: Some(paired(1, &[], None)), ..scene() };
    let needed = here.pairing();
    assert!(needed.silent && needed.reason == PairingReason::ScopeUpgrade);
    assert_eq!(needed.approved, Some((vec![Role::Operator], ScopeSet::EMPTY)));
    let elsewhere = Scene { device: Some(1), paired: Some(paired(1, &[], None)), ..remote() };
    assert!(!elsewhere.pairing().silent);
}

#[test]
fn a_node_that_calls_itself_a_helper_of_the_gateway_is_approved_like_any_other() {
    let client = Client { id: "gateway-client", mode: "backend", platform: "linux", device_family: "Linux" };
    let mut scene = Scene { peer: "127.0.0.1", headers: vec![], client, ..node() };
    assert_eq!(scene.pairing().reason, PairingReason::NotPaired);
    scene.policy.mode = AuthMode::None;
    assert_eq!(scene.pairing().reason, PairingReason::NotPaired);
}

#[test]
fn a_known_device_in_another_role_is_never_approved_silently() {
    let mut scene = Scene { peer: "127.0.0.1", headers: vec![], paired: Some(paired(1, &[], None)), ..node() };
    let needed = scene.pairing();
    assert!(!needed.silent && needed.reason == PairingReason::RoleUpgrade);
    scene.paired = None;
    assert!(scene.pairing().silent);
}

#[test]
fn a_device_token_lets_its_device_in_and_no_other() {
    let credentials = Credentials { device_token: Some("dt"), ..Credentials::default() };
    let good =
        Scene { device: Some(1), credentials, paired: Some(paired(1, &["operator.read"], Some("dt"))), ..remote() };
    assert_eq!(good.granted().method(), Method::DeviceToken);
    let other = Scene { device: Some(2), credentials, paired: good.paired.clone(), ..remote() };
    assert_eq!(other.denied(), Denied::DeviceTokenMismatch);
    let more = Scene { scopes: Some(vec!["operator.admin"]), ..good };
    assert_eq!(more.denied(), Denied::ScopeMismatch);
    let as_token = Scene { credentials: Credentials { token: Some("dt"), ..Credentials::default() }, ..more };
    let as_token = Scene { scopes: None, ..as_token };
    assert_eq!(names(as_token.granted().scopes()), ["operator.read"]);
    assert_eq!(as_token.limits.entries(), 0, "a device token in the token field is no wrong guess");
}

#[test]
fn s_66_a_device_token_can_end() {
    let mut record = paired(1, &["operator.read"], Some("dt"));
    let token = record.operator.as_mut().and_then(|role| role.token.as_mut()).unwrap();
    token.expires_at = Some(NOW);
    let credentials = Credentials { device_token: Some("dt"), ..Credentials::default() };
    let scene = Scene { device: Some(1), credentials, paired: Some(record), ..remote() };
    assert_eq!(scene.denied(), Denied::DeviceTokenExpired);
}

#[test]
fn s_39_a_device_token_is_still_checked_while_the_shared_path_is_limited() {
    let mut scene = Scene { device: Some(1), paired: Some(paired(1, &["operator.read"], Some("dt"))), ..remote() };
    scene.credentials = Credentials::default();
    for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        scene.credentials.token = Some(guess);
        scene.decide();
    }
    scene.limits = RateLimits::new(RateLimitPolicy::default());
    let there = Verdict::DirectRemote { client: "198.51.100.7".parse().unwrap() };
    let mut attempts = scene.limits.attempts(there, HeaderView::default(), NOW);
    for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        attempts.wrong(CredentialKind::SharedSecret, guess);
        drop(std::mem::replace(&mut attempts, scene.limits.attempts(there, HeaderView::default(), NOW)));
    }
    scene.credentials = Credentials { token: Some("tok"), device_token: Some("dt"), ..Credentials::default() };
    assert_eq!(scene.granted().method(), Method::DeviceToken);
}

#[test]
fn a_mismatch_with_a_device_advises_to_try_the_device_token() {
    let advice = |scene: Scene| match scene.decide() {
        Decision::Denied(refusal) => refusal.can_retry_with_device_token,
        other => panic!("{other:?}"),
    };
    assert!(advice(Scene { device: Some(1), ..remote() }.token("wrong")));
    assert!(!advice(remote().token("wrong")));
    let mut sent = Scene { device: Some(1), ..remote() }.token("wrong");
    sent.credentials.device_token = Some("x");
    assert!(!advice(sent));
}

#[test]
fn the_gateways_own_helper_needs_no_pairing_on_its_host() {
    let helper = Scene { client: client("gateway-client", "backend"), scopes: Some(vec!["operator.admin"]), ..scene() };
    assert_eq!(names(helper.granted().scopes()), ["operator.admin"]);
    let with_device = Scene { device: Some(1), ..helper };
    let grant = with_device.granted();
    assert!(!grant.is_paired() && !grant.issues_device_token());
    let remote_helper =
        Scene { client: client("gateway-client", "backend"), scopes: Some(vec!["operator.admin"]), ..remote() };
    assert!(remote_helper.granted().scopes().is_empty());
}

#[test]
fn a_node_needs_a_device_and_holds_no_scopes() {
    assert_eq!(Scene { device: None, ..node() }.denied(), Denied::DeviceRequired);
    let scene = Scene { scopes: Some(vec!["operator.admin"]), paired: Some(paired_node(1, "dt")), ..node() };
    let grant = scene.granted();
    assert_eq!((grant.role(), grant.scopes()), (Role::Node, ScopeSet::EMPTY));
    assert_eq!((grant.platform(), grant.device_family()), ("linux", "Linux"));
}

#[test]
fn s_71_a_node_can_not_change_what_it_is() {
    let other = Client { platform: "ios", device_family: "iPhone", ..client("node-host", "node") };
    let scene = Scene { client: other, paired: Some(paired_node(1, "dt")), ..node() };
    assert_eq!(scene.pairing().reason, PairingReason::MetadataUpgrade);
    let mut open = paired_node(1, "dt");
    open.platform = None;
    let adds = Scene { paired: Some(open), ..node() };
    assert_eq!(adds.pairing().reason, PairingReason::MetadataUpgrade);
}

#[test]
fn unsigned_metadata_is_neither_pinned_nor_believed() {
    let needed = Scene { payload_v2: true, ..node() }.pairing();
    assert_eq!((&*needed.platform, &*needed.device_family), ("", ""));
    let mut open = paired_node(1, "dt");
    (open.platform, open.device_family) = (None, None);
    let grant = Scene { payload_v2: true, paired: Some(open), ..node() }.granted();
    assert_eq!((grant.platform(), grant.device_family()), ("", ""));
}

#[test]
fn listed_networks_pair_new_nodes_and_nothing_else() {
    let mut listed = node();
    listed.policy.node_auto_approve = AddressList::parse(["198.51.100.0/24"]);
    assert!(listed.pairing().silent);
    listed.paired = Some(paired(1, &[], None));
    assert!(!listed.pairing().silent);
    let mut operator = Scene { device: Some(1), ..remote() };
    operator.policy.node_auto_approve = AddressList::parse(["198.51.100.0/24"]);
    assert!(!operator.pairing().silent);
}

#[test]
fn s_55_a_setup_code_serves_its_first_key_only() {
    let code = |bound_key: Option<DeviceKey>| {
        let expires_at = NOW.plus(1);
        Some(BootstrapCode { expires_at, bound_key, roles: vec![Role::Node], scopes: ScopeSet::EMPTY, approves: false })
    };
    let credentials = Credentials { bootstrap_token: Some("code"), ..Credentials::default() };
    let scene = Scene { credentials, bootstrap: code(None), ..node() };
    let needed = scene.pairing();
    assert!(needed.retry_after_approval && needed.method == Method::BootstrapToken && !needed.silent);
    let own = Scene { bootstrap: code(Some(Device::new(1).key())), ..scene };
    assert_eq!(own.pairing().method, Method::BootstrapToken);
    let other = Scene { bootstrap: code(Some(Device::new(2).key())), ..own };
    assert_eq!(other.denied(), Denied::BootstrapTokenInvalid);
    let operator = Scene { credentials, bootstrap: code(None), device: Some(1), ..remote() };
    assert_eq!(operator.denied(), Denied::BootstrapTokenInvalid);
}

#[test]
fn s_59_settings_that_changed_meanwhile_let_no_one_in() {
    let stale = Scene { generation: 0, ..scene() };
    assert_eq!(stale.denied(), Denied::AuthChanged);
    assert_eq!(Denied::AuthChanged.close_code().get(), 4001);
}

#[test]
fn s_51_a_proxied_control_ui_holds_what_its_device_was_approved_for() {
    let without = Scene { device: None, ..proxied_ui() };
    assert!(without.granted().scopes().is_empty());
    assert!(!proxied_ui().pairing().silent);
    let mut known = Scene { paired: Some(paired(1, &["operator.admin"], None)), ..proxied_ui() };
    let grant = known.granted();
    assert_eq!(names(grant.scopes()), ["operator.read", "operator.write"]);
    assert_eq!(grant.user(), Some("alice@example.com"));
    assert!(!grant.issues_device_token());
    known.headers.push(("x-openclaw-scopes", "operator.read, operator.admin"));
    assert_eq!(names(known.granted().scopes()), ["operator.read"]);
    known.headers.pop();
    known.headers.push(("x-openclaw-scopes", ""));
    assert!(known.granted().scopes().is_empty());
}

#[test]
fn other_operators_behind_the_proxy_hold_no_scopes_and_nodes_need_a_device() {
    let automation = Scene { client: client("test", "backend"), device: None, ..proxied_ui() };
    assert!(automation.granted().scopes().is_empty());
    let node = Scene { client: client("node-host", "node"), role: Some("node"), device: None, ..proxied_ui() };
    assert_eq!(node.denied(), Denied::DeviceRequired);
}

#[test]
fn an_identity_can_hold_scopes_of_its_own() {
    let mut scene = Scene { device: None, ..proxied_ui() };
    scene.policy.identity_scopes =
        vec![("Alice@example.com".into(), ScopeSet::parse(["operator.admin"])), ("bob".into(), ScopeSet::EMPTY)];
    assert_eq!(names(scene.granted().scopes()), ["operator.read", "operator.write"]);
    scene.scopes = None;
    assert_eq!(names(scene.granted().scopes()), ["operator.admin"]);
    scene.headers.push(("x-openclaw-scopes", "operator.read"));
    assert!(scene.granted().scopes().is_empty());
    let known = Scene { paired: Some(paired(1, &[], None)), device: Some(1), ..scene };
    let known = Scene { scopes: Some(vec!["operator.read"]), ..known };
    assert_eq!(names(known.granted().scopes()), ["operator.read"]);
}

#[test]
fn the_proxys_word_can_approve_user_interfaces_up_to_a_limit() {
    let mut scene = proxied_ui();
    scene.policy.device_auto_approve = Some(ScopeSet::parse(["operator.read"]));
    let needed = scene.pairing();
    assert!(needed.silent);
    assert_eq!(names(needed.scopes), ["operator.read"]);
    scene.paired = Some(paired(1, &["operator.read"], None));
    assert_eq!(names(scene.granted().scopes()), ["operator.read"]);
    scene.client = client("cli", "cli");
    scene.paired = None;
    assert!(!scene.pairing().silent);
}

#[test]
fn behind_a_proxy_a_local_caller_may_use_the_password() {
    let local =
        Scene { peer: "127.0.0.1", client: client("cli", "cli"), headers: vec![], device: None, ..proxied_ui() };
    let password = Credentials { password: Some("pw"), ..Credentials::default() };
    assert_eq!(Scene { credentials: password, ..local }.granted().method(), Method::Password);
    let with_header = Scene { headers: vec![("x-forwarded-user", "root")], credentials: password, ..proxied_ui() };
    let with_header = Scene { peer: "127.0.0.1", client: client("cli", "cli"), device: None, ..with_header };
    assert!(matches!(with_header.denied(), Denied::ProxyAttributionRequired(_)));
}

#[test]
fn a_tailscale_identity_needs_the_daemons_word() {
    let headers = vec![
        ("host", "gw.tail.ts.net"),
        ("origin", "https://gw.tail.ts.net"),
        ("x-forwarded-for", "100.64.0.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "gw.tail.ts.net"),
        ("tailscale-user-login", "alice@example.com"),
    ];
    let mut served =
        Scene { listener: Listener::TailscaleServe, headers, credentials: Credentials::default(), ..control_ui() };
    served.policy.allow_tailscale = true;
    let refused = |scene: &Scene, reason: Denied| match scene.decide() {
        Decision::Denied(refusal) => {
            assert_eq!((&refusal.reason, refusal.identity.as_ref()), (&Denied::TokenMissing, Some(&reason)));
        }
        other => panic!("{other:?}"),
    };
    refused(&served, Denied::TailscaleWhoisFailed);
    served.whois = Some(Whois::Login("mallory@example.com"));
    refused(&served, Denied::TailscaleUserMismatch);
    served.whois = Some(Whois::Login("alice@example.com"));
    let grant = served.granted();
    assert_eq!(
        (grant.method(), grant.user(), grant.is_paired()),
        (Method::Tailscale, Some("alice@example.com"), false)
    );
    served.policy.origins = OriginPolicy::parse(["*"]);
    refused(&served, Denied::TailscaleOriginNotAllowed);
    served.policy.origins = OriginPolicy::default();
    served.device = None;
    assert_eq!(served.denied(), Denied::ControlUiDeviceRequired);
}

#[test]
fn without_auth_only_devices_and_own_helpers_come_in() {
    let open = || Scene { policy: Policy::new(1, AuthMode::None), credentials: Credentials::default(), ..scene() };
    assert_eq!(open().denied(), Denied::DeviceRequired);
    assert!(Scene { device: Some(1), ..open() }.pairing().silent);
    let helper = Scene { client: client("gateway-client", "backend"), ..open() };
    assert_eq!(names(helper.granted().scopes()), ["operator.read"]);
}

// ---- whatever comes

fn one_of<T: Clone + std::fmt::Debug + 'static>(choices: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(choices.to_vec())
}

fn credential() -> impl Strategy<Value = Option<&'static str>> {
    one_of(&[None, None, None, Some(""), Some("tok"), Some("pw"), Some("dt"), Some("dt"), Some("x")])
}

fn any_mode() -> impl Strategy<Value = AuthMode> {
    let proxy = |allow_loopback| TrustedProxy {
        user_header: "x-forwarded-user".into(),
        allow_loopback,
        ..TrustedProxy::default()
    };
    one_of(&[
        AuthMode::None,
        AuthMode::Token(None),
        AuthMode::Token(hash("tok")),
        AuthMode::Password(hash("pw")),
        AuthMode::TrustedProxy { proxy: None, password: hash("pw") },
        AuthMode::TrustedProxy { proxy: Some(proxy(false)), password: None },
        AuthMode::TrustedProxy { proxy: Some(proxy(true)), password: hash("pw") },
    ])
}

fn any_header() -> impl Strategy<Value = (&'static str, &'static str)> {
    one_of(&[
        ("host", "127.0.0.1:18789"),
        ("host", "gw.example"),
        ("host", "192.168.1.5"),
        ("origin", "http://127.0.0.1:18789"),
        ("origin", "https://gw.example"),
        ("origin", "null"),
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-for", ""),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "gw.example"),
        ("x-forwarded-user", "alice"),
        ("x-real-ip", "127.0.0.1"),
        ("x-openclaw-scopes", "operator.admin"),
        ("tailscale-user-login", "alice"),
        ("forwarded", ""),
        ("user-agent", "x"),
    ])
}

/// Peer, listener, trusted proxies, headers.
type Arrival = (&'static str, Listener, &'static [&'static str], Vec<(&'static str, &'static str)>);

/// Requests as they come, sometimes with a header too many, and now and then some that never do.
fn any_arrival() -> impl Strategy<Value = Arrival> {
    const PROXY: &[&str] = &["10.0.0.1", "127.0.0.1"];
    let local = vec![("host", "127.0.0.1:18789")];
    let page = vec![("host", "127.0.0.1:18789"), ("origin", "http://127.0.0.1:18789")];
    let proxied = vec![("host", "gw.example"), ("x-forwarded-for", "198.51.100.7"), ("x-forwarded-user", "alice")];
    let proxied_page = [&proxied[..], &[("origin", "https://gw.example")]].concat();
    let served = vec![
        ("host", "gw.example"),
        ("origin", "https://gw.example"),
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "gw.example"),
        ("tailscale-user-login", "alice"),
    ];
    let usual = one_of(&[
        ("127.0.0.1", Listener::Main, PROXY, local.clone()),
        ("127.0.0.1", Listener::Main, &[], page),
        ("198.51.100.7", Listener::Main, PROXY, vec![("host", "gw.example")]),
        ("10.0.0.1", Listener::Main, PROXY, proxied.clone()),
        ("10.0.0.1", Listener::Main, PROXY, proxied_page),
        ("127.0.0.1", Listener::Main, PROXY, proxied),
        ("127.0.0.1", Listener::TailscaleServe, &[], served.clone()),
        ("127.0.0.1", Listener::Main, &[], served.clone()),
        ("127.0.0.1", Listener::TailscaleFunnel, &[], served),
    ]);
    let extra = prop_oneof![4 => Just(None), 1 => any_header().prop_map(Some)];
    let odd = (
        one_of(&["127.0.0.1", "::1", "10.0.0.1", "192.168.1.5", "198.51.100.7"]),
        one_of(&[Listener::Main, Listener::TailscaleServe, Listener::TailscaleFunnel]),
        one_of(&[&[][..], &["10.0.0.1"], PROXY]),
        prop::collection::vec(any_header(), 0..6),
    );
    prop_oneof![
        5 => (usual, extra).prop_map(|((peer, listener, trusted, headers), extra)| {
            (peer, listener, trusted, headers.into_iter().chain(extra).collect())
        }),
        1 => odd,
    ]
}

prop_compose! {
    fn any_scene()(
        mode in any_mode(),
        (peer, listener, trusted, headers) in any_arrival(),
        (id, client_mode) in one_of(&[("cli", "cli"), ("cli", "cli"), ("gateway-client", "backend"),
            ("openclaw-control-ui", "webchat"), ("openclaw-macos", "ui"), ("node-host", "node")]),
        role in one_of(&[None, None, Some("operator"), Some("node"), Some("node"), Some("admin")]),
        scopes in one_of(&[None, Some(vec![]), Some(vec!["operator.read"]), Some(vec!["operator.admin"])]),
        credentials in (credential(), credential(), credential(), credential()),
        device in one_of(&[None, Some(1), Some(2)]),
        (payload_v2, unsigned) in (any::<bool>(), one_of(&[false, false, false, true])),
        pairing in one_of(&[None, Some(paired(1, &["operator.read"], Some("dt"))), Some(paired_node(1, "dt"))]),
        code in one_of(&[None, Some(false), Some(true)]),
        whois in one_of(&[None, Some(Whois::Failed), Some(Whois::Login("alice")), Some(Whois::Login("bob"))]),
        tailscale in any::<bool>(),
        identity_scopes in any::<bool>(),
    ) -> Scene {
        let mut policy = Policy::new(1, mode);
        policy.ingress.trusted_proxies = AddressList::parse(trusted.iter().copied());
        policy.ingress.tailscale_on_main = tailscale;
        policy.allow_tailscale = tailscale;
        policy.origins = OriginPolicy::parse(["https://gw.example"]);
        if identity_scopes {
            policy.identity_scopes = vec![("alice".into(), ScopeSet::parse(["operator.write"]))];
        }
        let (token, password, device_token, bootstrap_token) = credentials;
        Scene {
            policy,
            limits: RateLimits::new(RateLimitPolicy::default()),
            peer,
            listener,
            headers,
            client: client(id, client_mode),
            role,
            scopes,
            credentials: Credentials { token, password, device_token, bootstrap_token },
            device,
            unsigned,
            payload_v2,
            paired: pairing,
            bootstrap: code.map(|bound| BootstrapCode {
                expires_at: NOW.plus(1),
                bound_key: bound.then(|| Device::new(2).key()),
                roles: vec![Role::Node],
                scopes: ScopeSet::EMPTY,
                approves: true,
            }),
            whois,
            generation: 1,
        }
    }
}

/// Whether something in the scene proves its client by `method`: worked out again, the long way round.
fn proves(scene: &Scene, method: Method) -> bool {
    let Credentials { token, password, device_token, bootstrap_token } = scene.credentials;
    let has = |name: &str, value: &str| scene.headers.contains(&(name, value));
    let loopback = matches!(scene.peer, "127.0.0.1" | "::1");
    let paired =
        scene.paired.as_ref().is_some_and(|paired| scene.device == Some(1) && paired.key == Device::new(1).key());
    match (method, &scene.policy.mode) {
        (Method::None, AuthMode::None) => true,
        (Method::Token, AuthMode::Token(Some(_))) => token == Some("tok"),
        (Method::Password, AuthMode::Password(_)) => password == Some("pw"),
        (Method::Password, AuthMode::TrustedProxy { password: Some(_), .. }) => loopback && password == Some("pw"),
        (Method::TrustedProxy, AuthMode::TrustedProxy { proxy: Some(proxy), .. }) => {
            let trusted = scene.policy.ingress.trusted_proxies.contains(scene.peer.parse().unwrap());
            has("x-forwarded-user", "alice") && trusted && (proxy.allow_loopback || !loopback)
        }
        (Method::Tailscale, AuthMode::Token(_) | AuthMode::Password(_)) => {
            scene.policy.allow_tailscale
                && loopback
                && scene.whois == Some(Whois::Login("alice"))
                && has("tailscale-user-login", "alice")
                && has("x-forwarded-for", "198.51.100.7")
        }
        (Method::DeviceToken, _) => !scene.unsigned && paired && (device_token == Some("dt") || token == Some("dt")),
        (Method::BootstrapToken, _) => {
            let bound = scene.bootstrap.as_ref().map(|code| code.bound_key.is_none() || scene.device == Some(2));
            !scene.unsigned && bound == Some(true) && bootstrap_token.is_some_and(|code| !code.is_empty())
        }
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_grant_without_a_verified_proof(scene in any_scene()) {
        match scene.decide() {
            Decision::Granted(grant) => {
                prop_assert!(proves(&scene, grant.method()), "{:?}", grant);
                prop_assert!(grant.device().is_none() || !scene.unsigned);
                prop_assert!(grant.role() == Role::Operator || grant.is_paired());
                prop_assert!(grant.role() == Role::Operator || grant.scopes().is_empty());
                prop_assert!(!grant.issues_device_token() || grant.is_paired());
                let asked = scene.scopes.as_ref().map(|names| ScopeSet::parse(names.iter().copied()));
                prop_assert!(asked.is_none_or(|asked| asked.covers_all(grant.scopes())), "{:?}", grant);
            }
            Decision::NeedsPairing(needed) => {
                prop_assert!(proves(&scene, needed.method), "{:?}", needed);
                prop_assert!(!scene.unsigned);
                let near = matches!(scene.peer, "127.0.0.1" | "::1")
                    && !scene.headers.iter().any(|(name, _)| name.starts_with("x-forwarded") || *name == "forwarded");
                prop_assert!(!needed.silent || near || needed.method == Method::BootstrapToken, "{:?}", needed);
            }
            Decision::Denied(_) => {}
        }
    }

    #[test]
    fn headers_never_widen(scene in any_scene(), more in any_header()) {
        // Some headers are how someone is let in: the proxy's user, Tailscale's, the origin that a page shows.
        if matches!(more.0, "x-forwarded-user" | "origin") {
            return Ok(());
        }
        let mut scene = Scene { listener: Listener::Main, ..scene };
        (scene.policy.allow_tailscale, scene.policy.ingress.tailscale_on_main) = (false, false);
        let rank = |decision: &Decision| match decision {
            Decision::Granted(grant) => (2, grant.scopes()),
            Decision::NeedsPairing(needed) if needed.silent => (2, needed.scopes),
            Decision::NeedsPairing(_) => (1, ScopeSet::EMPTY),
            Decision::Denied(_) => (0, ScopeSet::EMPTY),
        };
        let before = scene.decide();
        // A client that could not be attributed can be once its proxy says who it is.
        if matches!(&before, Decision::Denied(refusal) if matches!(refusal.reason, Denied::ProxyAttributionRequired(_))) {
            return Ok(());
        }
        scene.limits = RateLimits::new(RateLimitPolicy::default());
        scene.headers.push(more);
        let after = scene.decide();
        let ((old, held), (new, holds)) = (rank(&before), rank(&after));
        prop_assert!(new <= old, "{before:?} -> {after:?}");
        prop_assert!(new < 2 || held.covers_all(holds), "{before:?} -> {after:?}");
    }
}
