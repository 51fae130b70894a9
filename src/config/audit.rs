//! What an owner should know about the security of an installation: rules over the configuration and over who may read its
//! files. Pure; `cli::security` gathers the facts. Start at [`audit`].
//!
//! A finding names the key to change and what to change it to. None of them keeps a gateway from starting: what is plainly
//! wrong is refused at the start already (see [`super::resolve`]).

mod flow;

use std::collections::HashSet;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Serialize;

use super::model::{AuthMode, Bind, TailscaleMode};
use super::resolve::Credential;
use super::secret_ref::SecretInput;
use super::{Config, Problem};
use crate::rpc::scope::Scope;

/// Characters of a shared secret below which it can be guessed: 16 of `openssl rand -hex` are 64 bits.
const SECRET_CHARS: usize = 16;
/// Different characters of a shared secret below which it can be guessed, whatever its length.
const SECRET_ALPHABET: usize = 6;
/// What is said of every secret in the file, and what to do.
const WRITTEN_OUT: &str = "the secret stands in the configuration file, and in every copy of it";
const ELSEWHERE: &str = "keep it elsewhere and refer to it: {source: \"env\"|\"file\"|\"exec\", ...}";
/// Addresses that a trusted network may have before it is hardly one proxy's: a /24, or a /64 of IPv6.
const WIDE_V4: u8 = 24;
const WIDE_V6: u8 = 64;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Someone can get in, or can get the secret, by this alone.
    Critical,
    /// It takes one more mistake, or it is a trade that should be known.
    Warn,
    /// Worth knowing.
    Info,
}

impl Severity {
    /// The name in the output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warn => "warn",
            Self::Info => "info",
        }
    }
}

/// Something an owner should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The key of the configuration, or the path of the file.
    pub key: String,
    /// What is the case, and what follows from it.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// A file or folder of the installation, as it lies there.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Whether the user who asks owns it.
    pub is_own: bool,
    /// Whether what is in it is secret: a token, a key, the state.
    pub is_secret: bool,
    /// Whether it is a folder.
    pub is_folder: bool,
}

/// What there is to judge.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The settings.
    pub config: &'a Config,
    /// How clients prove themselves: as the start would decide it, or as the file says it where the start is refused.
    pub mode: Option<AuthMode>,
    /// Why the start is refused.
    pub refusal: Option<&'a str>,
    /// The shared secret of that mode, from wherever it is.
    pub secret: Option<&'a Credential>,
    /// The files that exist.
    pub entries: &'a [Entry],
    /// Keys that are probably misspelt.
    pub misspelt: &'a [Problem],
}

/// Judges an installation; the worst first.
pub fn audit(facts: &Facts<'_>) -> Vec<Finding> {
    let mut found = Found(Vec::new());
    files(facts, &mut found);
    for Problem { key, message, .. } in facts.misspelt {
        found.add(Severity::Warn, key.to_string(), format!("it {message}"), "correct the key, or remove it");
    }
    access(facts, &mut found);
    proxies(facts, &mut found);
    pages(facts, &mut found);
    nodes(facts, &mut found);
    tokens(facts, &mut found);
    flow::flow(facts, &mut found);
    found.0.sort_by(|one, two| (one.severity, &one.key).cmp(&(two.severity, &two.key)));
    found.0
}

struct Found(Vec<Finding>);

impl Found {
    fn add(&mut self, severity: Severity, key: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { severity, key: key.into(), what: what.into(), fix: fix.into() });
    }
}

fn files(facts: &Facts<'_>, found: &mut Found) {
    for entry in facts.entries {
        let Entry { path, mode, is_own, is_secret, is_folder } = entry;
        let shown = path.display().to_string();
        let right = if *is_folder { "700" } else { "600" };
        let fix = format!("chmod {right} {shown}");
        if !is_own {
            let what = "it belongs to another user, who can change it at will";
            found.add(Severity::Critical, &*shown, what, format!("chown it to the user of the gateway, then {fix}"));
        }
        if mode & 0o022 != 0 {
            found.add(
                Severity::Critical,
                &*shown,
                format!("other users can write it (mode {:03o})", mode & 0o777),
                &*fix,
            );
        } else if *is_secret && mode & 0o044 != 0 {
            let what = format!("other users can read it (mode {:03o}), and there are secrets in it", mode & 0o777);
            found.add(Severity::Critical, &*shown, what, &*fix);
        } else if *is_folder && mode & 0o055 != 0 {
            let what = format!("other users can look into it (mode {:03o})", mode & 0o777);
            found.add(Severity::Warn, &*shown, what, &*fix);
        }
    }
}

fn access(facts: &Facts<'_>, found: &mut Found) {
    let gateway = &facts.config.gateway;
    let beyond_loopback = !matches!(gateway.bind, Bind::Loopback);
    if let Some(Credential { secret, source }) = facts.secret {
        let secret = secret.expose();
        let (count, different) = (secret.chars().count(), secret.chars().collect::<HashSet<_>>().len());
        if count < SECRET_CHARS || different < SECRET_ALPHABET {
            let severity = if is_reached(facts.config) { Severity::Critical } else { Severity::Warn };
            let what = match count < SECRET_CHARS {
                true => format!("the secret has {count} characters: it can be guessed"),
                false => format!("the secret has {different} different characters: it can be guessed"),
            };
            let key = source.to_string();
            let fix = match key.starts_with("gateway.") {
                true => format!("clawgate config set {key} \"$(openssl rand -hex 24)\""),
                false => "give it what this prints: openssl rand -hex 24".to_owned(),
            };
            found.add(severity, key, what, fix);
        }
    }
    for (key, secret) in [
        ("gateway.auth.token", &gateway.auth.token),
        ("gateway.auth.password", &gateway.auth.password),
        ("gateway.remote.token", &gateway.remote.token),
        ("gateway.remote.password", &gateway.remote.password),
    ] {
        if let Some(SecretInput::Literal(_)) = secret {
            found.add(Severity::Info, key, WRITTEN_OUT, ELSEWHERE);
        }
    }
    if let Some(refusal) = facts.refusal {
        let (what, fix) = refusal.split_once(". ").unwrap_or((refusal, "see what it says: clawgate gateway run"));
        found.add(Severity::Critical, "gateway", format!("the gateway does not start like this: {what}"), fix);
    }
    if facts.mode == Some(AuthMode::None) {
        let (who, fix) = match gateway.trusted_proxies.is_empty() {
            true => ("every program on this machine is let in", "set gateway.auth.mode to token"),
            false => (
                "every program on this machine is let in, and everybody whom a proxy of gateway.trustedProxies passes on,",
                "set gateway.auth.mode to trusted-proxy where the proxy knows its users, else to token",
            ),
        };
        let what = format!("no authentication: {who} with all scopes");
        found.add(Severity::Critical, "gateway.auth.mode", what, fix);
    }
    if beyond_loopback && !gateway.tls.enabled && facts.mode != Some(AuthMode::TrustedProxy) {
        found.add(
            Severity::Warn,
            "gateway.tls.enabled",
            format!("the gateway listens beyond loopback (gateway.bind: {}) without TLS: who listens on the network reads the secret", gateway.bind.as_str()),
            "set gateway.tls.enabled to true, or listen on loopback behind a proxy, Tailscale Serve or an SSH tunnel",
        );
    }
    let limit = &gateway.auth.rate_limit;
    if limit.max_attempts > 100 {
        let what = format!("{} wrong guesses are allowed before an address is locked out", limit.max_attempts);
        found.add(Severity::Warn, "gateway.auth.rateLimit.maxAttempts", what, "leave it at 10");
    }
    match gateway.tailscale {
        TailscaleMode::Off | TailscaleMode::Serve => {}
        TailscaleMode::Funnel => found.add(
            Severity::Warn,
            "gateway.tailscale.mode",
            "Tailscale Funnel: the gateway is reached by the whole Internet",
            "use serve, unless strangers are meant to reach it",
        ),
    }
    if gateway.auth.allow_tailscale == Some(true) {
        found.add(
            Severity::Warn,
            "gateway.auth.allowTailscale",
            "written out as true, it also takes a Serve route made by hand to the ordinary port: every program of this host can then claim to be that route, and only the daemon's whois stands against it",
            "remove the key and set gateway.tailscale.mode to serve, which has a listener of its own",
        );
    }
}

fn proxies(facts: &Facts<'_>, found: &mut Found) {
    let gateway = &facts.config.gateway;
    for network in &gateway.trusted_proxies {
        let wide = match network {
            IpNet::V4(v4) => v4.prefix_len() < WIDE_V4,
            IpNet::V6(v6) => v6.prefix_len() < WIDE_V6,
        };
        if wide {
            let what = format!(
                "{network} is trusted to say who clients are: every machine there can claim any address, and in mode trusted-proxy any user"
            );
            found.add(Severity::Warn, "gateway.trustedProxies", what, "list the proxy's own address");
        }
    }
    if gateway.allow_real_ip_fallback && !gateway.trusted_proxies.is_empty() {
        let what = "X-Real-IP counts where X-Forwarded-For is missing: a proxy that does not overwrite it passes on what the client made up";
        found.add(
            Severity::Warn,
            "gateway.allowRealIpFallback",
            what,
            "let the proxy send X-Forwarded-For, and remove the key",
        );
    }
    if facts.mode != Some(AuthMode::TrustedProxy) {
        return;
    }
    let Some(proxy) = &gateway.auth.trusted_proxy else { return };
    let key = |name: &str| format!("gateway.auth.trustedProxy.{name}");
    if proxy.allow_loopback {
        let what = "the proxy may be on this host: every program here can claim to be any user";
        found.add(
            Severity::Warn,
            key("allowLoopback"),
            what,
            "run the proxy under an address of its own, or know who runs programs here",
        );
    }
    if proxy.allow_users.is_empty() {
        let what = "everybody whom the proxy lets through is let in";
        found.add(Severity::Warn, key("allowUsers"), what, "list who may come in");
    }
    if proxy.required_headers.is_empty() {
        let what = "one header is all that a request from the proxy's address needs";
        found.add(
            Severity::Info,
            key("requiredHeaders"),
            what,
            "name headers that the proxy always sends, such as X-Forwarded-Proto",
        );
    }
    match &proxy.device_auto_approve {
        Some(scopes) if scopes.contains(&Scope::Admin) => found.add(
            Severity::Critical,
            key("deviceAutoApprove.scopes"),
            "every user of the proxy may pair a device with operator.admin unasked",
            "take operator.admin out, and give it by gateway.auth.identityScopes to those who need it",
        ),
        Some(_) => {
            let what = "users of the proxy pair their devices unasked";
            found.add(Severity::Info, key("deviceAutoApprove.enabled"), what, "nothing, if that is meant");
        }
        None => {}
    }
}

fn pages(facts: &Facts<'_>, found: &mut Found) {
    let ui = &facts.config.gateway.control_ui;
    let origins = "gateway.controlUi.allowedOrigins";
    if ui.allowed_origins.iter().any(|origin| origin == "*") {
        let what = "every page on the web may open a connection from its visitors' browsers";
        found.add(Severity::Critical, origins, what, "list the origins of your own pages");
    }
    if ui.allow_host_header_origin {
        let what = "a page is let in when its origin equals Host, and an attacker's name that points here does (DNS rebinding)";
        let key = "gateway.controlUi.dangerouslyAllowHostHeaderOriginFallback";
        found.add(Severity::Critical, key, what, format!("remove it, and list the origin in {origins}"));
    }
    if ui.allow_insecure_auth {
        let what =
            "a Control UI on this host may do without a device of its own: the shared secret is then all it takes";
        found.add(
            Severity::Warn,
            "gateway.controlUi.allowInsecureAuth",
            what,
            "remove it: browsers have a device identity on localhost",
        );
    }
}

fn nodes(facts: &Facts<'_>, found: &mut Found) {
    let nodes = &facts.config.gateway.nodes;
    if !nodes.auto_approve_cidrs.is_empty() {
        let what = "new nodes from these networks are paired unasked; what they may run still waits for you";
        found.add(
            Severity::Warn,
            "gateway.nodes.pairing.autoApproveCidrs",
            what,
            "remove it when your nodes are paired",
        );
    }
    let dangerous: Vec<_> = ["camera.snap", "camera.clip", "screen.record", "sms.send", "sms.search", "contacts.add"]
        .into_iter()
        .filter(|command| nodes.allow_commands.iter().any(|allowed| allowed == command))
        .filter(|command| !nodes.deny_commands.iter().any(|denied| denied == command))
        .collect();
    if !dangerous.is_empty() {
        let what = format!("nodes may be asked for {}, which no platform allows by itself", dangerous.join(", "));
        found.add(Severity::Info, "gateway.nodes.commands.allow", what, "nothing, if that is meant");
    }
}

/// Whether others than programs of this host can reach it, as far as the file says.
fn is_reached(config: &Config) -> bool {
    let gateway = &config.gateway;
    gateway.bind != Bind::Loopback
        || gateway.tailscale != TailscaleMode::Off
        || gateway.auth.allow_tailscale == Some(true)
        || !gateway.trusted_proxies.is_empty()
}

/// A token of a device that was stolen serves until somebody notices, unless it ends by itself (S-66).
fn tokens(facts: &Facts<'_>, found: &mut Found) {
    let config = facts.config;
    if is_reached(config) && config.device_tokens.max_age.is_none() && config.device_tokens.idle.is_none() {
        found.add(
            Severity::Warn,
            "plugins.entries.clawgate.config.deviceTokens",
            "tokens of paired devices never end by themselves, and other hosts can reach the gateway: a stolen one serves until it is revoked",
            "set idleDays (30, say), and maxAgeDays where devices can come back by the gateway's secret",
        );
    }
}

#[cfg(test)]
mod tests;
