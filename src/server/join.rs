//! Join URLs: `https://gw.example/j/<shortcode>` is a setup code that fits into one line to paste. Whoever asks for it first
//! gets what the code holds, once.
//!
//! What is to be handed out is a secret in clear, so it is kept in memory alone and goes with the process. It is worth
//! nothing once its code is used, over or void, whatever is asked for here.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::request::Parts;
use url::Url;

use super::admission::{Admission, header_lines};
use super::reception::too_many;
use crate::auth::ingress::Listener;
use crate::auth::rate_limit::CredentialKind;
use crate::auth::{Denied, HeaderView};
use crate::clock::{UnixMs, monotonic_s};
use crate::devices::{Devices, IssuedCode};
use crate::http::Answer;
use crate::http::join::{self, SHORTCODE_BYTES};
use crate::http::reject::Reject;
use crate::id;
use crate::net::preauth::Slot;
use crate::rpc::error::RpcError;
use crate::secret::{Secret, SecretHash};
use crate::sparing::LeftOut;

/// What waits to be fetched. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Joins(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    devices: Devices,
    /// One for an open setup code at most, of which there is a bounded number.
    waiting: Mutex<Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    shortcode: SecretHash,
    setup_id: Box<str>,
    payload: Secret,
}

impl Joins {
    /// Nothing waits yet.
    pub(super) fn new(devices: Devices) -> Self {
        Self(Arc::new(Inner { devices, waiting: Mutex::default() }))
    }

    /// Keeps what `code` holds to be fetched, and returns the URL that leads to it.
    ///
    /// # Errors
    /// `gateway` leads over plain HTTP, where whoever listens could be faster.
    pub(super) fn keep(
        &self,
        gateway: &str,
        code: &IssuedCode,
        payload: String,
        now: UnixMs,
    ) -> Result<String, RpcError> {
        let base = base(gateway).ok_or_else(no_tls)?;
        let shortcode = id::base64_url(&id::random_bytes::<SHORTCODE_BYTES>());
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|waiting| self.0.devices.is_code_open(&waiting.setup_id, now));
        waiting.push(Waiting {
            shortcode: SecretHash::of(&shortcode),
            setup_id: code.setup_id.clone(),
            payload: Secret::new(payload),
        });
        Ok(format!("{base}/j/{shortcode}"))
    }

    /// Takes what waits under `shortcode`. Whoever is second gets nothing.
    fn take(&self, shortcode: &str, now: UnixMs) -> Option<(Box<str>, Secret)> {
        let shortcode = SecretHash::of(shortcode);
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let at = waiting.iter().position(|waiting| waiting.shortcode == shortcode)?;
        let Waiting { setup_id, payload, .. } = waiting.swap_remove(at);
        self.0.devices.is_code_open(&setup_id, now).then_some((setup_id, payload))
    }
}

/// Whether a join URL can lead to a gateway of this address.
///
/// # Errors
/// It can't.
pub(super) fn check(gateway: &str) -> Result<(), RpcError> {
    base(gateway).map(drop).ok_or_else(no_tls)
}

fn no_tls() -> RpcError {
    RpcError::invalid(
        "a join URL needs an address with TLS (wss://), for whoever listens on the way could use it first: set \
         gateway.tls.enabled, or gateway.tailscale.mode to \"serve\"; or give the setup code itself to `openclaw connect`",
    )
}

/// The HTTP address of a gateway: as its WebSocket's, and over plain HTTP within this host alone.
fn base(gateway: &str) -> Option<String> {
    let url = Url::parse(gateway).ok()?;
    let is_loopback = match url.host()? {
        url::Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    };
    let rest = match url.scheme() {
        "wss" => gateway.strip_prefix("wss").map(|rest| format!("https{rest}")),
        "ws" if is_loopback => gateway.strip_prefix("ws").map(|rest| format!("http{rest}")),
        _ => None,
    }?;
    Some(rest.trim_end_matches('/').to_owned())
}

impl Admission {
    /// Answers who asks for what waits under `shortcode`, the end of the path. Wrong ones count as guesses of their own kind.
    ///
    /// # Errors
    /// The request cannot be attributed, comes from a page of another, or there is no place for the client.
    pub(super) fn join(
        &self,
        peer: SocketAddr,
        listener: Listener,
        slot: &Slot,
        shortcode: &str,
        head: &Parts,
    ) -> Result<Answer, Reject> {
        let (verdict, _) = self.judge(peer, head, listener)?;
        if let Some(client) = verdict.client().filter(|client| !client.is_loopback()) {
            slot.attribute(client).map_err(too_many)?;
        }
        let (now, lines) = (UnixMs::now(), header_lines(head));
        let mut attempts = self.limits.attempts(verdict, HeaderView::new(&lines), now);
        if let Err(denied) = attempts.check(CredentialKind::JoinCode, shortcode) {
            self.count_refusal(denied.label());
            let retry_after_ms = if let Denied::RateLimited { retry_after_ms } = denied { retry_after_ms } else { 0 };
            return Ok(join::rate_limited(retry_after_ms));
        }
        let is_plain_get = head.method == http::Method::GET && head.uri.query().is_none();
        let Some((setup, payload)) = is_plain_get.then(|| self.joins.as_ref()?.take(shortcode, now)).flatten() else {
            attempts.wrong(CredentialKind::JoinCode, shortcode);
            self.count_refusal("join_code_invalid");
            if let Some(LeftOut(left_out)) = self.said.http.say(monotonic_s()) {
                tracing::info!(%peer, client = ?verdict.client(), reason = "join_code_invalid", left_out, "http request refused");
            }
            return Ok(join::not_found());
        };
        attempts.right(CredentialKind::JoinCode);
        tracing::info!(%peer, client = ?verdict.client(), setup = &*setup, "a setup code was fetched by its join URL");
        Ok(join::found(payload.expose()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_url_is_the_gateways_own_over_tls() {
        let base = |gateway| base(gateway).unwrap_or_default();
        assert_eq!(base("wss://gw.example"), "https://gw.example");
        assert_eq!(base("wss://gw.example:8443/oc"), "https://gw.example:8443/oc");
        assert_eq!(base("ws://127.0.0.1:18789"), "http://127.0.0.1:18789");
        assert_eq!(base("ws://[::1]:18789"), "http://[::1]:18789");
        for plain in ["ws://192.168.1.5:18789", "ws://gw.local", "ws://127.evil.example"] {
            assert_eq!(base(plain), "", "{plain}");
        }
    }
}
