//! `device.pair.setupCode`: makes a code that pairs one device, and says all that the device must know to use it.
//!
//! What a code is good for, and how it is used up, is the business of [`crate::devices::setup`]. Here it is put together
//! with the address that it leads to ([`crate::config::advertised`]), in the incumbent's form, which its apps and its node
//! host read: base64 of `{url, bootstrapToken, expiresAtMs, tlsFingerprint?}`. A node host
//! can fetch it by a join URL instead ([`super::join`]).

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::join::{self, Joins};
use crate::auth::Method as Proof;
use crate::clock::UnixMs;
use crate::config::Config;
use crate::config::advertised::{self, Advertised, Facts, Wish};
use crate::config::fingerprint::Pin;
use crate::config::model::{AuthMode, TailscaleMode};
use crate::config::resolve::ListenPlan;
use crate::devices::methods::{manager, refusal};
use crate::devices::setup::{Access, Issuer};
use crate::devices::{Devices, IssuedCode};
use crate::hub::Connection;
use crate::id;
use crate::net::tls::Tls;
use crate::qr;
use crate::rpc::dispatch::{Call, Method, Outcome};
use crate::rpc::error::RpcError;
use crate::tailscale::LocalApi;

/// The method.
pub(super) const METHODS: &[Method<SetupCodes>] = &[Method { name: "device.pair.setupCode", handler: make }];

/// Handle to the making of codes. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct SetupCodes(Arc<Place>);

/// Where this gateway is, for those who look for it.
#[derive(Debug)]
pub(super) struct Place {
    /// Who keeps the codes.
    pub(super) devices: Devices,
    /// Who hands them out by join URLs.
    pub(super) joins: Joins,
    /// What is listened on.
    pub(super) listen: ListenPlan,
    /// The certificate of that, if it speaks TLS.
    pub(super) tls: Option<Arc<Tls>>,
    /// The route that is kept through Tailscale.
    pub(super) tailscale: TailscaleMode,
    /// The daemon that knows this host's name.
    pub(super) daemon: Arc<LocalApi>,
    /// The settings, and the mode that came out of them.
    pub(super) settings: ArcSwap<(Config, AuthMode)>,
}

impl SetupCodes {
    /// Codes for the gateway at `place`.
    pub(super) fn new(place: Place) -> Self {
        Self(Arc::new(place))
    }

    /// Takes edited settings over.
    pub(super) fn set(&self, config: &Config, mode: AuthMode) {
        self.0.settings.store(Arc::new((config.clone(), mode)));
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Params {
    public_url: Option<String>,
    #[serde(default)]
    prefer_remote_url: bool,
    #[serde(default = "yes")]
    include_qr: bool,
    bootstrap_profile: Option<String>,
    join_url: Option<bool>,
}

const fn yes() -> bool {
    true
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    setup_id: Box<str>,
    expires_at_ms: UnixMs,
    setup_code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qr_data_url: Option<String>,
    gateway_url: String,
    auth: &'static str,
    url_source: &'static str,
    access: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    access_downgraded: bool,
}

fn make(codes: &SetupCodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    let params: Params = call.params()?;
    let wanted = wanted(&params)?;
    let (codes, caller, now) = (codes.clone(), Arc::clone(call.caller()), call.now());
    call.spawn(async move { codes.make(&params, wanted, &caller, now).await })
}

fn wanted(params: &Params) -> Result<Access, RpcError> {
    let refused = |what: &str| Err(RpcError::invalid(format!("invalid device.pair.setupCode params: {what}")));
    match (params.join_url, params.bootstrap_profile.as_deref()) {
        (Some(false), _) => refused("at joinUrl: expected true"),
        (Some(true), None | Some("node")) => Ok(Access::Node),
        (Some(true), Some(_)) => refused("at joinUrl: a join URL is for a node host, so bootstrapProfile is node"),
        (None, None) => Ok(Access::Full),
        (None, Some("limited")) => Ok(Access::Limited),
        (None, Some("node")) => Ok(Access::Node),
        (None, Some("voice-node")) => Ok(Access::VoiceNode),
        (None, Some(_)) => refused("at bootstrapProfile: expected limited, node or voice-node"),
    }
}

impl SetupCodes {
    async fn make(
        &self,
        params: &Params,
        wanted: Access,
        caller: &Connection,
        now: UnixMs,
    ) -> Result<Answer, RpcError> {
        let Place { devices, joins, tls, settings, .. } = &*self.0;
        let settings = settings.load_full();
        let (config, mode) = &*settings;
        let auth = match mode {
            AuthMode::Token | AuthMode::Password | AuthMode::TrustedProxy => mode.as_str(),
            AuthMode::None => {
                return Err(RpcError::invalid(
                    "whoever reaches this gateway is let in, so there is nothing to set up: set gateway.auth.mode first",
                ));
            }
        };
        let place = self.advertised(config, params).await.map_err(|error| RpcError::invalid(error.to_string()))?;
        if params.join_url.is_some() {
            join::check(&place.url)?;
        }
        let access = match wanted {
            Access::Full if !place.is_private() => Access::Limited,
            wanted => wanted,
        };
        let grant = &caller.grant;
        let issuer = Issuer {
            device: grant.device().filter(|_| grant.is_paired()),
            by_settings: !matches!(grant.method(), Proof::DeviceToken | Proof::BootstrapToken),
        };
        let issued = devices.issue_code(access, manager(caller), issuer, now).await;
        let issued = issued.map_err(|error| refusal("device setup code denied", "setting up", error))?;
        let pin = match (place.is_direct, tls) {
            (true, Some(tls)) => Some(tls.fingerprints().certificate),
            (false, _) if place.source == advertised::REMOTE_URL => {
                config.gateway.remote.tls_pins.iter().find_map(|pin| match pin {
                    Pin::Certificate(certificate) => Some(*certificate),
                    Pin::PublicKey(_) => None,
                })
            }
            _ => None,
        };
        let payload = payload(&place.url, &issued, pin.map(|pin| pin.to_string()));
        let setup_code = id::base64_url(payload.as_bytes());
        let join_url = params.join_url.map(|_| joins.keep(&place.url, &issued, payload, now)).transpose()?;
        Ok(Answer {
            join_url,
            qr_data_url: params.include_qr.then(|| qr::data_url(&setup_code)).flatten(),
            setup_id: issued.setup_id,
            expires_at_ms: issued.expires_at,
            setup_code,
            gateway_url: place.url,
            auth,
            url_source: place.source,
            access: access.on_the_wire(),
            access_downgraded: access != wanted,
        })
    }

    async fn advertised(&self, config: &Config, params: &Params) -> Result<Advertised, advertised::Unreachable> {
        let Place { listen, tls, tailscale, daemon, .. } = &*self.0;
        let wish = Wish { public_url: params.public_url.as_deref(), prefers_remote: params.prefer_remote_url };
        let name = match tailscale {
            TailscaleMode::Off => Err("it is not asked for".to_owned()),
            TailscaleMode::Serve | TailscaleMode::Funnel => daemon.own_name().await.map_err(|error| error.to_string()),
        };
        let facts = Facts {
            listening: &listen.addresses,
            port: listen.port,
            is_tls: tls.is_some(),
            tailscale: *tailscale,
            tailnet_name: name.as_deref().map_err(String::as_str),
            lan: lan_address(),
        };
        advertised::advertised(config, &facts, wish)
    }
}

/// What is written into a code.
fn payload(url: &str, issued: &IssuedCode, pin: Option<String>) -> String {
    let mut payload = json!({
        "url": url, "bootstrapToken": issued.token.expose(), "expiresAtMs": issued.expires_at,
    });
    if let Some(pin) = pin {
        payload["tlsFingerprint"] = Value::from(pin);
    }
    payload.to_string()
}

/// This host's address in its network: the one from which it would speak to others. Nothing is sent to find it out.
fn lan_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // An address of a documentation network (RFC 5737): only the route to it is looked up.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    Some(address).filter(|address| !address.is_unspecified() && !address.is_loopback()).or_else(|| {
        let all = if_addrs::get_if_addrs().ok()?;
        let mut own = all.iter().map(if_addrs::Interface::ip).filter(|ip| ip.is_ipv4() && !ip.is_loopback());
        own.next()
    })
}
