//! Which web pages may talk to the gateway (contract 2.7, RFC 6454).
//!
//! Every request that carries `Origin` is judged here, whatever its auth mode and headers (S-02). An origin
//! is `scheme://host[:port]` and nothing else (S-05).

use super::headers::HeaderView;
use super::host::Host;

/// A parsed `Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Box<str>,
    /// Host and port in lower case, the scheme's default port left out: comparable with `Host` as browsers
    /// send it.
    authority: Box<str>,
}

impl Origin {
    /// Parses a serialised origin; `None` for `null`, paths, user-info and anything else that is not one. The
    /// `file://` that some web views send names no host; only a wildcard can allow it.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.trim_matches([' ', '\t']).split_once("://")?;
        let mut letters = scheme.bytes();
        if !letters.next()?.is_ascii_alphabetic()
            || !letters.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            "file" if authority.is_empty() => return Some(Self { scheme: scheme.into(), authority: Box::default() }),
            _ => None,
        };
        // Space around a header's value is no part of it; inside an origin there is none.
        if !authority.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let host = Host::parse(authority)?;
        let mut authority = authority.to_ascii_lowercase();
        if host.port().is_some() && host.port() == default_port {
            authority.truncate(authority.rfind(':').unwrap_or(authority.len()));
        }
        Some(Self { scheme: scheme.into(), authority: authority.into() })
    }

    /// Whether it names its host and port, as web origins do. Those of extensions and other schemes are
    /// opaque: no list entry equals them.
    fn is_web(&self) -> bool {
        matches!(&*self.scheme, "http" | "https" | "ws" | "wss")
    }

    /// Whether the page comes from loopback, or exactly `localhost`. The pages of native shells do, under schemes
    /// of their own (`tauri://localhost`).
    pub fn is_loopback(&self) -> bool {
        self.host().is_some_and(|host| host.is_loopback())
    }

    fn host(&self) -> Option<Host<'_>> {
        Host::parse(&self.authority)
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

/// `gateway.controlUi.allowedOrigins`, and the Host fallback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginPolicy {
    any: bool,
    listed: Vec<Origin>,
    invalid: Vec<Box<str>>,
    /// `gateway.controlUi.dangerouslyAllowHostHeaderOriginFallback`: an origin whose host and port equal
    /// `Host` is allowed, which gives away DNS rebinding protection.
    pub host_fallback: bool,
}

impl OriginPolicy {
    /// Reads the list: origins (a trailing slash is forgiven) and `*`. Entries that are neither never match.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        let mut policy = Self::default();
        for entry in entries {
            let text = entry.trim();
            if text == "*" {
                policy.any = true;
                continue;
            }
            match Origin::parse(text.strip_suffix('/').unwrap_or(text)) {
                Some(origin) if origin.is_web() => policy.listed.push(origin),
                _ => policy.invalid.push(entry.into()),
            }
        }
        policy
    }

    /// The entries that can't match, as written.
    pub fn invalid(&self) -> impl Iterator<Item = &str> {
        self.invalid.iter().map(AsRef::as_ref)
    }

    /// Judges `origin`, which came to `host`. `local` says that the peer is truly local.
    ///
    /// # Errors
    /// [`OriginRefused`], with the text that goes on the wire.
    pub fn check(&self, origin: Option<&str>, host: Option<&str>, local: bool) -> Result<OriginMatch, OriginRefused> {
        let origin = origin.and_then(Origin::parse).ok_or(OriginRefused::MissingOrInvalid)?;
        if origin.is_web() && self.listed.contains(&origin) {
            return Ok(OriginMatch::Listed);
        }
        if self.any {
            return Ok(OriginMatch::Wildcard);
        }
        let here = host.and_then(Host::parse).filter(|here| origin.host().is_some_and(|there| here.same(&there)));
        match here {
            Some(_) if self.host_fallback => Ok(OriginMatch::HostFallback),
            Some(here) if here.is_private_site() && (local || !here.is_loopback()) => {
                Ok(OriginMatch::PrivateSameOrigin)
            }
            _ if local && origin.is_loopback() => Ok(OriginMatch::LocalLoopback),
            _ => Err(OriginRefused::NotAllowed),
        }
    }

    /// Judges the `Origin` of a request, if it has one. `None`: no page is behind it, as far as it says.
    ///
    /// # Errors
    /// As [`OriginPolicy::check`]; also when `Origin` or `Host` stands twice.
    pub fn check_request(&self, headers: HeaderView<'_>, local: bool) -> Result<Option<OriginMatch>, OriginRefused> {
        if !headers.has("origin") {
            return Ok(None);
        }
        let origin = headers.single("origin").map_err(|_| OriginRefused::MissingOrInvalid)?;
        let host = headers.single("host").map_err(|_| OriginRefused::NotAllowed)?;
        self.check(origin, host, local).map(Some)
    }
}

/// Whether a browser sent this request for another site without saying which: `Sec-Fetch-Site` without
/// `Origin`. Identity that comes with the connection (a proxy's, Tailscale's) must not serve it (S-08).
pub fn is_cross_site_without_origin(headers: HeaderView<'_>) -> bool {
    !headers.has("origin") && headers.values("sec-fetch-site").any(|site| site.trim_ascii() != b"same-origin")
}

/// Why an origin was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginMatch {
    /// An entry of the list.
    Listed,
    /// `*` is in the list. Never enough for identity that the browser's place on the network provides.
    Wildcard,
    /// Same host and port as `Host`, by explicit configuration.
    HostFallback,
    /// Same host and port as `Host`, and no stranger can serve pages there.
    PrivateSameOrigin,
    /// A page of this very host, and a peer of this very host.
    LocalLoopback,
}

impl OriginMatch {
    /// The name in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Listed | Self::Wildcard => "allowlist",
            Self::HostFallback => "host-header-fallback",
            Self::PrivateSameOrigin => "private-same-origin",
            Self::LocalLoopback => "local-loopback",
        }
    }
}

/// Why an origin was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginRefused {
    /// There is none where one is needed, or it is not an origin.
    MissingOrInvalid,
    /// It is one, and nothing allows it.
    NotAllowed,
}

impl OriginRefused {
    /// The `reason` on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissingOrInvalid => "origin missing or invalid",
            Self::NotAllowed => "origin not allowed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s_05_only_a_serialised_origin_parses() {
        for text in ["https://a.example", "HTTP://127.0.0.1:18789", "https://[::1]:8443", "chrome-extension://abcdef"] {
            assert!(Origin::parse(text).is_some(), "{text}");
        }
        for text in [
            "null",
            "https://",
            "https:/a",
            "a.example",
            "https://a.example/",
            "https://a.example/path",
            "https://a.example?x",
            "https://a.example#x",
            "https://u@a.example",
            "https://u:p@a.example",
            "https://a.example:",
            "https://a.example:0x50",
            "https://a b",
            "http://\tlocalhost",
            "http:// localhost",
            "http://localhost\u{a0}",
            "https://a.example, https://b.example",
            "1http://a.example",
        ] {
            assert_eq!(Origin::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_default_port_is_no_difference() {
        assert_eq!(Origin::parse("https://A.example:443"), Origin::parse("https://a.example"));
        assert_ne!(Origin::parse("https://a.example:80"), Origin::parse("https://a.example"));
    }

    #[test]
    fn an_origin_header_is_judged_even_when_it_is_empty_or_doubled() {
        let policy = OriginPolicy::parse(["https://a.example"]);
        let refused = |lines: &[(&str, &[u8])]| policy.check_request(HeaderView::new(lines), true).unwrap_err();
        assert_eq!(refused(&[("origin", b"")]), OriginRefused::MissingOrInvalid);
        let doubled: &[(&str, &[u8])] = &[("origin", b"https://a.example"), ("origin", b"https://a.example")];
        assert_eq!(refused(doubled), OriginRefused::MissingOrInvalid);
        assert_eq!(policy.check_request(HeaderView::default(), false), Ok(None));
    }
}
