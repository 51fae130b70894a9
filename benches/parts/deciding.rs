//! The decision on a connect, in each mode: from the facts to the grant or the refusal, rate limits included.

use std::net::IpAddr;

use clawgate::address::AddressList;
use clawgate::auth::client::Client;
use clawgate::auth::device::{DeviceKey, SignedDevice, SignedFields};
use clawgate::auth::ingress::{IngressPolicy, Listener};
use clawgate::auth::rate_limit::RateLimitPolicy;
use clawgate::auth::tailscale::Whois;
use clawgate::auth::trusted_proxy::TrustedProxy;
use clawgate::auth::{
    ApprovedRole, AuthMode, Credentials, Decision, DeviceToken, Evidence, HeaderView, PairedDevice, Policy, RateLimits,
    Request, Surface, Verdict, authorize,
};
use clawgate::clock::UnixMs;
use clawgate::id::base64_url;
use clawgate::rpc::scope::ScopeSet;
use clawgate::secret::SecretHash;
use ring::signature::{Ed25519KeyPair, KeyPair};

const NOW: UnixMs = UnixMs(1_795_000_000_000);
const TOKEN: &str = "5f2b8c1d9e7a4063b1c2d3e4f5a69788";
const SCOPES: &[&str] = &["operator.read", "operator.write"];
const CHALLENGE: &str = "e135bb80-3b0b-4487-98e3-93c72443de25";
/// What a browser and a proxy send between them.
const HEADERS: &[(&str, &[u8])] = &[
    ("host", b"gw.example"),
    ("user-agent", b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
    ("accept-encoding", b"gzip, deflate, br"),
    ("accept-language", b"de,en;q=0.9"),
    ("cache-control", b"no-cache"),
    ("connection", b"Upgrade"),
    ("upgrade", b"websocket"),
    ("sec-websocket-version", b"13"),
    ("sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ("x-forwarded-for", b"203.0.113.9"),
    ("x-forwarded-proto", b"https"),
    ("x-forwarded-host", b"gw.example"),
    ("x-forwarded-user", b"alice@example.com"),
    ("tailscale-user-login", b"alice@example.com"),
];
/// The same from a program on the gateway's host.
const LOCAL: &[(&str, &[u8])] = &[("host", b"127.0.0.1:18789"), ("connection", b"Upgrade"), ("upgrade", b"websocket")];

const CLIENT: Client<'static> = Client { id: "cli", mode: "cli", platform: "linux", device_family: "Linux" };

struct Device {
    key: DeviceKey,
    id: String,
    public_key: String,
    signature: String,
}

impl Device {
    /// It lives as long as the program.
    fn new(token: &str) -> &'static Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes");
        let key = DeviceKey::from_bytes(pair.public_key().as_ref().try_into().expect("32 bytes")).expect("a key");
        let id = key.device_id().to_string();
        let fields = SignedFields {
            device_id: &id,
            client_id: CLIENT.id,
            client_mode: CLIENT.mode,
            role: "operator",
            scopes: SCOPES,
            signed_at_ms: NOW.0,
            token,
            nonce: CHALLENGE,
            platform: CLIENT.platform,
            device_family: CLIENT.device_family,
        };
        let signature = base64_url(pair.sign(fields.payload_v3().as_bytes()).as_ref());
        Box::leak(Box::new(Self { key, public_key: key.to_string(), id, signature }))
    }
}

/// Who comes, and with what.
#[derive(Clone, Copy)]
struct Case {
    peer: &'static str,
    headers: &'static [(&'static str, &'static [u8])],
    listener: Listener,
    credentials: Credentials<'static>,
    whois: Option<Whois<'static>>,
    device: Option<&'static Device>,
    paired: Option<&'static PairedDevice>,
}

/// A case under a policy: what a decision is made from.
pub(crate) struct Deciding {
    policy: Policy,
    limits: RateLimits,
    peer: IpAddr,
    case: Case,
}

impl Deciding {
    fn new(policy: Policy, case: Case) -> Self {
        let limits = RateLimits::new(RateLimitPolicy { max_attempts: u32::MAX, ..RateLimitPolicy::default() });
        Self { policy, limits, peer: case.peer.parse().expect("an address"), case }
    }

    /// The case of that name.
    #[allow(dead_code, reason = "not every program that has these asks for one")]
    pub(crate) fn named(name: &str) -> Self {
        let (_, deciding, _) = cases().into_iter().find(|(known, ..)| *known == name).expect("a case of that name");
        (0..3).for_each(|_| drop(deciding.decide()));
        deciding
    }

    /// From the peer and the headers to the grant.
    pub(crate) fn decide(&self) -> Decision {
        let Self { policy, limits, peer, case } = self;
        let headers = HeaderView::new(case.headers);
        let evidence = Evidence {
            request: Request {
                surface: Surface::WebSocket,
                peer: Some(*peer),
                verdict: Verdict::of(*peer, headers, case.listener, &policy.ingress),
                headers,
                credentials: case.credentials,
                whois: case.whois,
                own_addresses: Some(&[]),
            },
            client: CLIENT,
            role: Some("operator"),
            scopes: Some(SCOPES),
            device: case.device.map(|device| SignedDevice {
                id: &device.id,
                public_key: &device.public_key,
                signature: &device.signature,
                signed_at_ms: Some(NOW.0),
                nonce: CHALLENGE,
            }),
            challenge: CHALLENGE,
            paired: case.paired,
            bootstrap: None,
            generation: 1,
        };
        authorize(&evidence, policy, limits, NOW)
    }
}

/// All cases by name, and whether each is let in.
pub(crate) fn cases() -> Vec<(&'static str, Deciding, bool)> {
    let trusting = |mode| {
        let mut policy = Policy::new(1, mode);
        let identity_headers = std::mem::take(&mut policy.ingress.identity_headers);
        policy.ingress = IngressPolicy {
            trusted_proxies: AddressList::parse(["10.0.0.0/24"]),
            identity_headers,
            ..IngressPolicy::default()
        };
        policy
    };
    let token = Credentials { token: Some(TOKEN), ..Credentials::default() };
    let near = Case {
        peer: "127.0.0.1",
        headers: LOCAL,
        listener: Listener::Main,
        credentials: token,
        whois: None,
        device: None,
        paired: None,
    };
    let behind = Case { peer: "10.0.0.1", headers: HEADERS, ..near };
    let hash = || Some(SecretHash::of(TOKEN));

    let mut cases = Vec::new();
    let mut add = |name, policy, case, good| cases.push((name, Deciding::new(policy, case), good));
    add("token", trusting(AuthMode::Token(hash())), behind, true);
    let wrong = Credentials { token: Some("wrong"), ..Credentials::default() };
    add("token_wrong", trusting(AuthMode::Token(hash())), Case { credentials: wrong, ..behind }, false);
    let password = Credentials { password: Some(TOKEN), ..Credentials::default() };
    add("password", trusting(AuthMode::Password(hash())), Case { credentials: password, ..behind }, true);
    let proxy = TrustedProxy {
        user_header: "X-Forwarded-User".into(),
        required_headers: vec!["X-Forwarded-Proto".into()],
        allow_users: vec!["bob@example.com".into(), "alice@example.com".into()],
        allow_loopback: false,
    };
    let mode = AuthMode::TrustedProxy { proxy: Some(proxy), password: None };
    add("trusted_proxy", trusting(mode), Case { credentials: Credentials::default(), ..behind }, true);
    add("unattributable", Policy::new(1, AuthMode::Token(hash())), behind, false);

    let device = Device::new(TOKEN);
    let scopes = ScopeSet::parse(SCOPES.iter().copied());
    let device_token = DeviceToken { hash: SecretHash::of("a-device-token"), scopes, expires_at: None };
    let paired: &PairedDevice = Box::leak(Box::new(PairedDevice {
        key: device.key,
        operator: Some(ApprovedRole { scopes, token: Some(device_token) }),
        node: None,
        platform: Some("linux".into()),
        device_family: Some("Linux".into()),
    }));
    let with_device = Case { device: Some(device), paired: Some(paired), ..behind };
    add("token_ed25519", trusting(AuthMode::Token(hash())), with_device, true);
    let device = Device::new("a-device-token");
    let credentials = Credentials { device_token: Some("a-device-token"), ..Credentials::default() };
    let by_device_token = Case { device: Some(device), paired: Some(paired), credentials, ..behind };
    add("device_token_ed25519", trusting(AuthMode::Token(hash())), by_device_token, true);
    let device = Device::new("");
    let nothing = Credentials::default();
    let none = Case { device: Some(device), paired: Some(paired), credentials: nothing, ..near };
    add("none_ed25519", Policy::new(1, AuthMode::None), none, true);
    let mut tailscale = Policy::new(1, AuthMode::Token(hash()));
    tailscale.allow_tailscale = true;
    let serve = Case {
        peer: "127.0.0.1",
        headers: HEADERS,
        listener: Listener::TailscaleServe,
        credentials: nothing,
        whois: Some(Whois::Login("alice@example.com")),
        device: Some(device),
        paired: Some(paired),
    };
    add("tailscale_ed25519", tailscale, serve, true);
    cases
}
