//! A call of the HTTP API: who it is, whether they may, its body, then what it asks for. Start at [`Admission::call`].
//!
//! The order is that of a connect, for the same reasons: where it comes from, which page is behind it, who it is, by
//! which scopes. Nothing of a body is read before all of that has been decided; then the socket is no stranger's any more.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;

use super::admission::{Admission, header_lines};
use super::reception::too_many;
use crate::api::fault::{Fault, Kind};
use crate::api::{Api, Reply, Wants};
use crate::auth::ingress::Listener;
use crate::auth::standing::stands;
use crate::auth::{AuthMode, Denied, Grant, HeaderView, HttpRequest, Verdict, authorize_http};
use crate::clock::{UnixMs, monotonic_s};
use crate::http::api::{self, Endpoint};
use crate::http::reject::{self, Reject};
use crate::http::{Answer, files};
use crate::net::preauth::Slot;
use crate::rpc::scope::Scope;
use crate::sparing::LeftOut;

impl Endpoint {
    /// What a caller needs for it.
    const fn scope(self) -> Scope {
        match self {
            Self::ChatCompletions | Self::ToolsInvoke => Scope::Write,
            Self::Models | Self::Model => Scope::Read,
        }
    }
}

impl Admission {
    /// Answers a call. Dropped, what it started is stopped.
    ///
    /// # Errors
    /// There is no such endpoint here, or no place for the client.
    pub(super) async fn call(
        self: Arc<Self>,
        peer: SocketAddr,
        listener: Listener,
        slot: &Slot,
        endpoint: Endpoint,
        request: Request<Incoming>,
    ) -> Result<Answer, Reject> {
        let Some(api) = self.api.clone() else { return Err(reject::NOT_FOUND) };
        let is_completions = matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Models | Endpoint::Model);
        if is_completions && !api.serves_completions() {
            return Ok(api::switched_off());
        }
        let (head, body) = request.into_parts();
        let grant = match self.let_in(peer, listener, slot, endpoint, &head)? {
            Ok(grant) => grant,
            Err(fault) => return Ok(self.refuse(peer, endpoint, &fault)),
        };
        slot.leave();
        tracing::debug!(%peer, ?endpoint, by = %grant.method(), user = grant.user(), "http call");
        let answered = match api::read(endpoint, body, &self.body_room).await {
            Err(fault) => Err(fault),
            // A body takes as long as its sender likes: the settings may be others by now (S-59).
            Ok((body, held)) => match stands(&grant, &self.policy.load()) {
                Err(lost) => {
                    self.count_refusal(Denied::AuthChanged.label());
                    Err(Fault::new(Kind::Unauthorized, lost.reason()).coded(Denied::AuthChanged.label()))
                }
                Ok(()) => {
                    let serving = Serving { admission: &self, api: &api, grant, head: &head };
                    serving.answer(endpoint, body).await.map(|reply| match reply {
                        Reply::Json(value) => api::json(serde_json::to_vec(&value).unwrap_or_default()),
                        Reply::Events(pieces) => api::events(pieces, held),
                    })
                }
            },
        };
        Ok(answered.unwrap_or_else(|fault| {
            tracing::info!(%peer, ?endpoint, kind = ?fault.kind, "http call failed: {}", fault.message);
            api::fault(&fault)
        }))
    }

    /// Who it is, and whether they may.
    fn let_in(
        &self,
        peer: SocketAddr,
        listener: Listener,
        slot: &Slot,
        endpoint: Endpoint,
        head: &http::request::Parts,
    ) -> Result<Result<Grant, Fault>, Reject> {
        let policy = self.policy.load();
        let lines = header_lines(head);
        let headers = HeaderView::new(&lines);
        let verdict = Verdict::of(peer.ip(), headers, listener, &policy.ingress);
        if let Some(client) = verdict.client().filter(|client| !client.is_loopback()) {
            slot.attribute(client).map_err(too_many)?;
        }
        let own = matches!(policy.mode, AuthMode::TrustedProxy { .. }).then(|| self.own_addresses.current());
        let own_addresses = own.as_ref().and_then(|own| own.list.as_deref());
        let request = HttpRequest { peer: peer.ip(), verdict, headers, own_addresses };
        let decided = authorize_http(&request, &policy, &self.limits, UnixMs::now());
        Ok(match decided {
            Err(denied) => {
                self.count_refusal(denied.label());
                Err(fault_of(&denied))
            }
            Ok(grant) if !grant.scopes().covers(endpoint.scope()) => {
                self.count_refusal("missing_scope");
                Err(Fault::missing_scope(endpoint.scope().as_str()))
            }
            Ok(grant) => Ok(grant),
        })
    }

    fn refuse(&self, peer: SocketAddr, endpoint: Endpoint, fault: &Fault) -> Answer {
        if let Some(LeftOut(left_out)) = self.said.http.say(monotonic_s()) {
            tracing::info!(%peer, ?endpoint, reason = fault.code, left_out, "http call refused");
        }
        api::fault(fault)
    }
}

fn fault_of(denied: &Denied) -> Fault {
    let kind = match denied {
        Denied::RateLimited { retry_after_ms } => Kind::RateLimited { retry_after_ms: *retry_after_ms },
        Denied::OriginNotAllowed(_) | Denied::ProxyAttributionRequired(_) | Denied::ProxyOriginNotAllowed => {
            Kind::Forbidden
        }
        _ => Kind::Unauthorized,
    };
    let message: Cow<'static, str> = match denied {
        Denied::TokenMissing | Denied::PasswordMissing => {
            "unauthorized: send the gateway's token or password as \"Authorization: Bearer ...\"".into()
        }
        denied => denied.message(),
    };
    Fault::new(kind, message).coded(denied.label())
}

/// A call that was let in.
struct Serving<'a> {
    admission: &'a Arc<Admission>,
    api: &'a Api,
    grant: Grant,
    head: &'a http::request::Parts,
}

impl Serving<'_> {
    async fn answer(self, endpoint: Endpoint, body: bytes::Bytes) -> Result<Reply, Fault> {
        let scopes = self.grant.scopes();
        match endpoint {
            Endpoint::ChatCompletions => {
                let wants = self.wants()?;
                let lost = Arc::clone(self.admission).lost(self.grant);
                self.api.complete(scopes, wants, body, lost).await
            }
            Endpoint::ToolsInvoke => {
                let user = self.grant.user().map(str::to_owned);
                let lost = Arc::clone(self.admission).lost(self.grant);
                self.api.invoke_tool(scopes, user, body, lost).await.map(Reply::Json)
            }
            Endpoint::Models => Ok(Reply::Json(Api::models())),
            Endpoint::Model => {
                let name = self.head.uri.path().strip_prefix("/v1/models/").and_then(files::decode);
                Api::model(&name.unwrap_or_default()).map(Reply::Json)
            }
        }
    }

    fn wants(&self) -> Result<Wants, Fault> {
        let text = |name: &str| match self.head.headers.get(name) {
            None => Ok(None),
            Some(value) => match value.to_str() {
                Ok(value) => Ok(Some(value.trim().to_owned()).filter(|value| !value.is_empty())),
                Err(_) => Err(Fault::invalid(format!("{name}: plain text only"))),
            },
        };
        Ok(Wants {
            model: text("x-openclaw-model")?,
            agent: text("x-openclaw-agent-id")?,
            session_key: text("x-openclaw-session-key")?,
        })
    }
}
