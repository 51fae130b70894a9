//! May they? Every decision about access, as pure functions: facts and `now` in, a verdict out.
//!
//! This folder owns who gets in and with which rights. It knows no socket, no HTTP library, no file, no
//! clock and no random source; the `http`, `conn` and `devices` folders bring it facts and carry out what it
//! decides.
//!
//! The way of a connect through it:
//!
//! 1. [`Verdict::of`]: where does the request come from? One verdict, used by everything after it.
//! 2. [`needs_whois`]: must the Tailscale daemon be asked first?
//! 3. [`authorize`]: [`Evidence`] + [`Policy`] + [`RateLimits`] + `now` → [`Decision`]. Start reading there.
//!
//! A plain HTTP request has one step: [`authorize_http`].
//!
//! One file is one proof or one rule: [`shared_secret`], [`trusted_proxy`], [`tailscale`], [`device`],
//! [`origin`], [`missing_device`], [`pairing`], [`scope_cap`], [`rate_limit`]. [`denied`] is the table of
//! reasons. Only this folder makes a [`Grant`]; [`standing`] says whether one holds under newer settings.

mod authenticate;
mod authorize;
pub mod client;
pub mod denied;
pub mod device;
mod evidence;
pub mod explain;
mod grant;
pub mod headers;
pub mod host;
pub mod http;
pub mod ingress;
pub mod missing_device;
pub mod origin;
pub mod pairing;
pub mod pins;
mod policy;
pub mod rate_limit;
pub mod scope_cap;
pub mod shared_secret;
pub mod standing;
pub mod tailscale;
pub mod trusted_proxy;

pub use authenticate::{Authentication, Identity, authenticate, needs_whois};
pub use authorize::{Decision, authorize};
pub use denied::{Denied, Refusal};
pub use device::{DeviceId, DeviceKey};
pub use evidence::{ApprovedRole, BootstrapCode, Credentials, DeviceToken, Evidence, PairedDevice, Request, Surface};
pub use grant::{Grant, Method};
pub use headers::HeaderView;
pub use http::{HttpRequest, authorize_http};
pub use ingress::Verdict;
pub use policy::{AuthMode, Policy};
pub use rate_limit::RateLimits;
