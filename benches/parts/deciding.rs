//! The decision on a connect through a proxy: with the shared token alone, and with a device that signs besides.

use std::net::IpAddr;

use clawgate::address::AddressList;
use clawgate::auth::client::Client;
use clawgate::auth::device::{DeviceKey, SignedDevice, SignedFields};
use clawgate::auth::ingress::Listener;
use clawgate::auth::rate_limit::RateLimitPolicy;
use clawgate::auth::{
    ApprovedRole, AuthMode, Credentials, Decision, Evidence, HeaderView, PairedDevice, Policy, RateLimits, Request,
    Surface, Verdict, authorize,
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
const CLIENT: Client<'static> = Client { id: "cli", mode: "cli", platform: "linux", device_family: "Linux" };
const HEADERS: &[(&str, &[u8])] = &[
    ("host", b"gw.example"),
    ("user-agent", b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
    ("accept-encoding", b"gzip, deflate, br"),
    ("connection", b"Upgrade"),
    ("upgrade", b"websocket"),
    ("sec-websocket-version", b"13"),
    ("sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ("x-forwarded-for", b"203.0.113.9"),
    ("x-forwarded-proto", b"https"),
    ("x-forwarded-host", b"gw.example"),
];

/// What a decision is made from.
pub(crate) struct Deciding {
    policy: Policy,
    limits: RateLimits,
    paired: PairedDevice,
    id: String,
    public_key: String,
    signature: String,
    signs: bool,
}

impl Deciding {
    /// A client with the right token; if it `signs`, with a paired device too.
    pub(crate) fn new(signs: bool) -> Self {
        let mut policy = Policy::new(1, AuthMode::Token(Some(SecretHash::of(TOKEN))));
        policy.ingress.trusted_proxies = AddressList::parse(["10.0.0.0/24"]);
        let limits = RateLimits::new(RateLimitPolicy { max_attempts: u32::MAX, ..RateLimitPolicy::default() });
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
            token: TOKEN,
            nonce: CHALLENGE,
            platform: CLIENT.platform,
            device_family: CLIENT.device_family,
        };
        let signature = base64_url(pair.sign(fields.payload_v3().as_bytes()).as_ref());
        let scopes = ScopeSet::parse(SCOPES.iter().copied());
        let paired = PairedDevice {
            key,
            operator: Some(ApprovedRole { scopes, token: None }),
            node: None,
            platform: Some("linux".into()),
            device_family: Some("Linux".into()),
        };
        let deciding = Self { policy, limits, paired, public_key: key.to_string(), id, signature, signs };
        for _ in 0..3 {
            let decision = deciding.decide();
            assert!(matches!(decision, Decision::Granted(_)), "{decision:?}");
        }
        deciding
    }

    /// From the peer and the headers to the grant.
    pub(crate) fn decide(&self) -> Decision {
        let peer = IpAddr::from([10, 0, 0, 1]);
        let headers = HeaderView::new(HEADERS);
        let evidence = Evidence {
            request: Request {
                surface: Surface::WebSocket,
                peer: Some(peer),
                verdict: Verdict::of(peer, headers, Listener::Main, &self.policy.ingress),
                headers,
                credentials: Credentials { token: Some(TOKEN), ..Credentials::default() },
                whois: None,
                own_addresses: Some(&[]),
            },
            client: CLIENT,
            role: Some("operator"),
            scopes: Some(SCOPES),
            device: self.signs.then_some(SignedDevice {
                id: &self.id,
                public_key: &self.public_key,
                signature: &self.signature,
                signed_at_ms: Some(NOW.0),
                nonce: CHALLENGE,
            }),
            challenge: CHALLENGE,
            paired: self.signs.then_some(&self.paired),
            bootstrap: None,
            generation: 1,
        };
        authorize(&evidence, &self.policy, &self.limits, NOW)
    }
}
