//! Tailscale on this host: who an address of the tailnet belongs to, and the route that leads the tailnet here.
//!
//! [`localapi`] asks the daemon over its Unix socket; [`route`] holds `tailscale serve` or `tailscale funnel` through the
//! command. What an answer is worth is decided in [`crate::auth::tailscale`]; nothing here lets anyone in.

pub mod localapi;
pub mod route;

pub use localapi::LocalApi;
pub use route::Route;
