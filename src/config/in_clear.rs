//! Secrets that the gateway would send to others in clear: plain `http://` through networks of others. Pure.

use std::net::IpAddr;

use url::{Host, Url};

use super::Config;
use crate::address;

/// Names of one's own network, which no public resolver knows: `.local` (RFC 6762), `.home.arpa` (RFC 8375), `.internal`,
/// and those that routers give. `.ts.net` goes through Tailscale, which encrypts.
const OWN_SUFFIXES: [&str; 7] = [".local", ".home.arpa", ".internal", ".lan", ".home", ".localhost", ".ts.net"];

/// A key of the configuration whose address leads there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InClear {
    /// The key of the address.
    pub key: String,
    /// The host.
    pub host: String,
    /// What goes there that is secret, for people.
    pub what: &'static str,
    /// It is a credential, and not only what is said.
    pub is_credential: bool,
}

/// All of them, in the order of their keys.
pub fn in_clear(config: &Config) -> Vec<InClear> {
    let flow = &config.flow;
    let providers = flow.models.providers.iter().filter_map(|(id, provider)| {
        let is_credential = provider.api_key.is_some();
        let what = if is_credential { "the API key and all that is said" } else { "all that is said to the model" };
        let host = plain_public_host(&provider.base_url)?;
        Some(InClear { key: format!("models.providers.{id}.baseUrl"), host, what, is_credential })
    });
    let telegram = flow.telegram.iter().filter(|telegram| telegram.enabled).filter_map(|telegram| {
        let host = plain_public_host(&telegram.api_root)?;
        let (key, what) = ("channels.telegram.apiRoot".to_owned(), "the bot's token and all that is written to it");
        Some(InClear { key, host, what, is_credential: true })
    });
    telegram.chain(providers).collect()
}

/// The host of a plain `http://` address outside of networks of one's own.
fn plain_public_host(address: &str) -> Option<String> {
    let url = Url::parse(address).ok().filter(|url| url.scheme() == "http")?;
    let is_own = match url.host()? {
        Host::Ipv4(address) => address::is_private(IpAddr::V4(address)),
        Host::Ipv6(address) => address::is_private(IpAddr::V6(address)),
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            // One word is a machine of this network, or a container beside this one.
            !name.contains('.') || OWN_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
        }
    };
    (!is_own).then(|| url.host_str().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_networks_of_ones_own() {
        for own in [
            "http://127.0.0.1:8080/v1",
            "http://[::1]/v1",
            "http://192.168.1.5:1234",
            "http://100.64.0.9",
            "http://ollama:11434/v1",
            "http://box.local",
            "http://gpu.tail1234.ts.net",
            "https://api.example.com/v1",
        ] {
            assert_eq!(plain_public_host(own), None, "{own}");
        }
        for (public, host) in [
            ("http://api.example.com/v1", "api.example.com"),
            ("http://203.0.113.9:8080", "203.0.113.9"),
            ("http://[2001:db8::1]/v1", "[2001:db8::1]"),
            ("http://127.0.0.1.evil.example", "127.0.0.1.evil.example"),
            ("http://api.example.com./v1", "api.example.com."),
        ] {
            assert_eq!(plain_public_host(public).as_deref(), Some(host));
        }
    }
}
