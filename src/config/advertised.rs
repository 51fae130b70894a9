//! The address by which devices of their owner are to reach this gateway: what a setup code says. Pure.
//!
//! In this order: what the request says, `plugins.entries.device-pair.config.publicUrl` (the incumbent's key for it), the
//! route that the gateway keeps through Tailscale, `gateway.remote.url`, the address that is listened on. A code is a secret
//! that whoever sees it may use, so it leads over plain `ws://` only within a network of one's own.

use std::net::IpAddr;

use url::{Host, Url};

use super::Config;
use super::model::{Bind, Mode, TailscaleMode};

/// What of the address is decided elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The addresses that are listened on.
    pub listening: &'a [IpAddr],
    /// The port.
    pub port: u16,
    /// The port speaks TLS.
    pub is_tls: bool,
    /// The route that is kept through Tailscale.
    pub tailscale: TailscaleMode,
    /// This host's name in its tailnet, or why it is not known; asked for only with such a route.
    pub tailnet_name: Result<&'a str, &'a str>,
    /// This host's address in its network.
    pub lan: Option<IpAddr>,
}

/// What the person who asks for a code wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// This address and no other.
    pub public_url: Option<&'a str>,
    /// `gateway.remote.url` first.
    pub prefers_remote: bool,
}

/// An address, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// `ws://` or `wss://`, in the form that every client reads alike.
    pub url: String,
    /// The key it is from, or `request.publicUrl`.
    pub source: &'static str,
    /// It leads straight to this gateway's port, so that its certificate is the one to pin.
    pub is_direct: bool,
}

impl Advertised {
    /// Whether nobody on the way can read what is sent: so that a code may give everything.
    pub fn is_private(&self) -> bool {
        Url::parse(&self.url).is_ok_and(|url| url.scheme() == "wss" || is_loopback(&url))
    }
}

/// Why there is no address to give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the text of each variant says what it is")]
pub enum Unreachable {
    #[error("{0} is no address of a gateway: it takes wss://host, without a user, a query or a fragment")]
    Invalid(&'static str),
    #[error(
        "{0} leads over plain ws:// through networks of others, where whoever listens could use the code first: take a wss:// address, or gateway.tailscale.mode \"serve\""
    )]
    Plain(&'static str),
    #[error("gateway.tailscale.mode is {mode:?}, and this host's name in the tailnet is not known: {why}", mode = .0.as_str(), why = .1)]
    NoTailnetName(TailscaleMode, String),
    #[error(
        "only this host can reach the gateway: set gateway.bind to \"lan\", gateway.tailscale.mode to \"serve\", or plugins.entries.device-pair.config.publicUrl to the address that devices can reach"
    )]
    LoopbackOnly,
    #[error("this host has no address in a network: set plugins.entries.device-pair.config.publicUrl")]
    NoNetwork,
}

const REQUEST: &str = "request.publicUrl";
const PUBLIC_URL: &str = "plugins.entries.device-pair.config.publicUrl";
/// [`Advertised::source`] of the address of `gateway.remote.url`.
pub const REMOTE_URL: &str = "gateway.remote.url";

/// The address to give.
///
/// # Errors
/// [`Unreachable`], which names the key to set. An address that is set and wrong is an error: no other stands in for it.
pub fn advertised(config: &Config, facts: &Facts<'_>, wish: Wish<'_>) -> Result<Advertised, Unreachable> {
    let found = find(config, facts, wish)?;
    let url = Url::parse(&found.url).map_err(|_| Unreachable::Invalid(found.source))?;
    if url.scheme() == "wss" || is_own_network(&url) { Ok(found) } else { Err(Unreachable::Plain(found.source)) }
}

fn find(config: &Config, facts: &Facts<'_>, wish: Wish<'_>) -> Result<Advertised, Unreachable> {
    let scheme = if facts.is_tls { "wss" } else { "ws" };
    let set = |text: &str, source| {
        let url = normalized(text, scheme).ok_or(Unreachable::Invalid(source))?;
        Ok(Advertised { url, source, is_direct: false })
    };
    if let Some(text) = wish.public_url {
        return set(text, REQUEST);
    }
    // As a client of another gateway, this machine knows that one's address and not its own.
    let remote = config.gateway.remote.url.as_deref().filter(|url| !url.trim().is_empty());
    let remote = remote.filter(|_| wish.prefers_remote || config.gateway.mode != Some(Mode::Remote));
    if wish.prefers_remote {
        if let Some(text) = remote {
            return set(text, REMOTE_URL);
        }
    } else if let Some(text) = config.public_url.as_deref() {
        return set(text, PUBLIC_URL);
    }
    let through_tailscale = match facts.tailscale {
        TailscaleMode::Off => None,
        TailscaleMode::Serve => Some("gateway.tailscale.mode=serve"),
        TailscaleMode::Funnel => Some("gateway.tailscale.mode=funnel"),
    };
    if let Some(source) = through_tailscale {
        let name = facts.tailnet_name.map_err(|why| Unreachable::NoTailnetName(facts.tailscale, why.to_owned()))?;
        return set(&format!("wss://{}", name.trim_end_matches('.')), source);
    }
    if let Some(text) = remote {
        return set(text, REMOTE_URL);
    }
    let source = match config.gateway.bind {
        Bind::Loopback => "gateway.bind=loopback",
        Bind::Lan => "gateway.bind=lan",
        Bind::Tailnet => "gateway.bind=tailnet",
        Bind::Custom => "gateway.bind=custom",
        Bind::Auto => "gateway.bind=auto",
    };
    let address = if facts.listening.iter().any(IpAddr::is_unspecified) {
        facts.lan.ok_or(Unreachable::NoNetwork)?
    } else {
        *facts.listening.iter().find(|address| !address.is_loopback()).ok_or(Unreachable::LoopbackOnly)?
    };
    let direct = set(&format!("{scheme}://{}", std::net::SocketAddr::new(address, facts.port)), source)?;
    Ok(Advertised { is_direct: true, ..direct })
}

/// The one form of an address: `ws` or `wss`, no user, no query, no default port, no slash alone.
fn normalized(text: &str, scheme: &str) -> Option<String> {
    let text = text.trim();
    let text = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
    let url = Url::parse(&text).ok()?;
    let scheme = match url.scheme() {
        "ws" | "http" => "ws",
        "wss" | "https" => "wss",
        _ => return None,
    };
    let has_more = !url.username().is_empty() || url.password().is_some() || url.query().is_some();
    let host = url.host_str().filter(|host| !host.is_empty() && !has_more && url.fragment().is_none())?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path = if url.path() == "/" { "" } else { url.path() };
    Some(format!("{scheme}://{host}{port}{path}"))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

/// A network that one's own router ends. Tailscale's addresses are not among them: there, TLS is to be had.
fn is_own_network(url: &Url) -> bool {
    is_loopback(url)
        || match url.host() {
            Some(Host::Domain(name)) => name.trim_end_matches('.').to_ascii_lowercase().ends_with(".local"),
            Some(Host::Ipv4(address)) => address.is_private() || address.is_link_local(),
            Some(Host::Ipv6(address)) => address.is_unique_local() || address.is_unicast_link_local(),
            None => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)];
    const EVERYWHERE: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)];

    fn facts() -> Facts<'static> {
        Facts {
            listening: &LOOPBACK,
            port: 18789,
            is_tls: false,
            tailscale: TailscaleMode::Off,
            tailnet_name: Err("nobody asked"),
            lan: Some(IpAddr::from([192, 168, 1, 5])),
        }
    }

    fn lan() -> (Config, Facts<'static>) {
        let mut config = Config::default();
        config.gateway.bind = Bind::Lan;
        (config, Facts { listening: &EVERYWHERE, ..facts() })
    }

    #[test]
    fn loopback_alone_is_no_address_for_others() {
        let config = Config::default();
        assert_eq!(advertised(&config, &facts(), Wish::default()), Err(Unreachable::LoopbackOnly));
        let wish = Wish { public_url: Some("ws://127.0.0.1:18789"), ..Wish::default() };
        let found = advertised(&config, &facts(), wish).unwrap();
        assert!(found.is_private() && found.source == "request.publicUrl" && !found.is_direct);
    }

    #[test]
    fn what_is_said_comes_before_what_is_found() {
        let (mut config, mut facts) = lan();
        let at =
            |config: &Config, facts: &Facts<'_>, wish| advertised(config, facts, wish).map(|it| (it.url, it.source));
        let lan = at(&config, &facts, Wish::default()).unwrap();
        assert_eq!(lan, ("ws://192.168.1.5:18789".into(), "gateway.bind=lan"));
        config.gateway.remote.url = Some("wss://gw.example/ws".into());
        assert_eq!(at(&config, &facts, Wish::default()).unwrap().1, "gateway.remote.url");
        facts.tailscale = TailscaleMode::Serve;
        let error = at(&config, &facts, Wish::default()).unwrap_err().to_string();
        assert!(error.contains("serve") && error.contains("nobody asked"), "{error}");
        facts.tailnet_name = Ok("gw.tail.ts.net.");
        let serve = at(&config, &facts, Wish::default()).unwrap();
        assert_eq!(serve, ("wss://gw.tail.ts.net".into(), "gateway.tailscale.mode=serve"));
        config.public_url = Some("https://Public.Example:443/".into());
        assert_eq!(at(&config, &facts, Wish::default()).unwrap(), ("wss://public.example".into(), PUBLIC_URL));
        let remote = Wish { prefers_remote: true, ..Wish::default() };
        assert_eq!(at(&config, &facts, remote).unwrap().0, "wss://gw.example/ws");
        let said = Wish { public_url: Some("gw.example"), prefers_remote: true };
        assert_eq!(at(&config, &Facts { is_tls: true, ..facts }, said).unwrap().0, "wss://gw.example");
        config.public_url = Some("ftp://x".into());
        assert_eq!(at(&config, &facts, Wish::default()), Err(Unreachable::Invalid(PUBLIC_URL)));
    }

    #[test]
    fn a_code_crosses_no_network_of_others_in_the_clear() {
        let (config, facts) = lan();
        let at = |url: &'static str| advertised(&config, &facts, Wish { public_url: Some(url), prefers_remote: false });
        for plain in
            ["ws://gw.example", "ws://100.64.0.9:18789", "ws://gw.tail.ts.net", "http://8.8.8.8", "ws://[2001:db8::1]"]
        {
            assert_eq!(at(plain), Err(Unreachable::Plain(REQUEST)), "{plain}");
        }
        for (own, private) in [
            ("ws://10.0.2.2:18789", false),
            ("ws://desk.local", false),
            ("ws://[fd00::1]", false),
            ("ws://localhost:1", true),
            ("ws://[::1]:1", true),
            ("wss://gw.example", true),
        ] {
            assert_eq!(at(own).unwrap().is_private(), private, "{own}");
        }
        for wrong in ["", "ws://", "ws://a@b", "wss://a?b", "wss://a#b", "javascript:alert(1)", "wss://a b"] {
            assert_eq!(at(wrong), Err(Unreachable::Invalid(REQUEST)), "{wrong}");
        }
    }
}
