//! What the server runs with, or why it must not start: the authentication (contract 2.1 to 2.3), the
//! addresses and the port (1.1, 1.2), and whether the two go together (1.3).
//!
//! Pure: settings, environment, flags and facts about the host come in. It opens no socket and makes no
//! token; [`Start::needs_token`] asks the caller for one. Every refusal names the key to set. Start at
//! [`start`].
//!
//! One order holds on both sides of the wire (contract 4.4): a flag, then the environment, then the file.
//! A flag takes the place of its key; the environment is another source beside it, so a SecretRef in the
//! file must resolve even where the environment would win. A reference that leads nowhere is a mistake that
//! should show on the day it is made.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::environment::Environment;
use super::model::{AuthMode, Bind, Config, Mode, TailscaleMode};
use super::secret_ref::{ProviderAccess, REDACTED, SecretInput, SecretReader, Unresolved};
use crate::limits;
use crate::rpc::scope::Scope;
use crate::secret::Secret;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What was said on the command line.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--port`.
    pub port: Option<u16>,
    /// `--bind`.
    pub bind: Option<Bind>,
    /// `--auth`.
    pub auth: Option<AuthMode>,
    /// `--token`.
    pub token: Option<Secret>,
    /// `--password`.
    pub password: Option<Secret>,
    /// `--tailscale`.
    pub tailscale: Option<TailscaleMode>,
    /// `--allow-unconfigured`: run although the file says this machine is a client.
    pub allow_unconfigured: bool,
}

/// What the host is like.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// The addresses of its interfaces. Empty when they could not be found out; then nothing is concluded
    /// from an address not being there.
    pub addresses: Vec<IpAddr>,
    /// Its Tailscale IPv4 address.
    pub tailnet: Option<Ipv4Addr>,
    /// Whether the process is in a container.
    pub in_container: bool,
}

/// A shared secret and where it came from.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The secret.
    pub secret: Secret,
    /// Where from, for people: a mismatch is found by comparing this and the fingerprint on both sides.
    pub source: CredentialSource,
}

/// Where a credential came from. Displays as what the operator wrote it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// A command line flag.
    Flag(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// A key of the configuration file.
    Key(&'static str),
}

impl fmt::Display for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Flag(name) | Self::Variable(name) | Self::Key(name)) = self;
        f.write_str(name)
    }
}

/// What decided the authentication mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeSource {
    /// `--auth`, or `--token` or `--password` where nothing says a mode.
    Flag,
    /// `gateway.auth.mode`.
    Config,
    /// A password is there.
    Password,
    /// A token is there.
    Token,
    /// Nothing: token mode is the default.
    Default,
}

/// What the server's authentication runs with.
#[derive(Clone, Debug)]
pub struct ServerAuth {
    /// The mode.
    pub mode: AuthMode,
    /// What decided it.
    pub mode_source: ModeSource,
    /// The shared token. Always `None` in mode `trusted-proxy`; may be `None` in mode `token`.
    pub token: Option<Credential>,
    /// The shared password. In mode `trusted-proxy` it serves callers on this host that do not come through
    /// the proxy.
    pub password: Option<Credential>,
    /// Whether an identity that Tailscale Serve vouches for is enough.
    pub allow_tailscale: bool,
}

/// Where to listen. Every address must be bound or the start fails; no other stands in (U-04).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenPlan {
    /// The addresses, without repetition; the first is the one to show. An IPv6 one is bound for IPv6 only.
    pub addresses: Vec<IpAddr>,
    /// The port.
    pub port: u16,
}

impl ListenPlan {
    /// Whether other hosts can connect.
    pub fn is_exposed(&self) -> bool {
        !self.addresses.iter().all(IpAddr::is_loopback)
    }
}

/// A start that may go ahead.
#[derive(Clone, Debug)]
pub struct Start {
    /// Where to listen.
    pub listen: ListenPlan,
    /// Who gets in.
    pub auth: ServerAuth,
    /// What the operator should know; a sentence each.
    pub notices: Vec<String>,
}

impl Start {
    /// Whether a token must be made for this run and printed once (contract 2.1).
    pub fn needs_token(&self) -> bool {
        self.auth.mode == AuthMode::Token && self.auth.token.is_none()
    }
}

/// Why the gateway must not start. The text names what to set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the text of each variant says what it is")]
pub enum Refusal {
    #[error(
        "gateway.mode is \"remote\": this machine is a client of another gateway. Set gateway.mode to \"local\", or pass --allow-unconfigured"
    )]
    RemoteMode,
    #[error("OPENCLAW_GATEWAY_PORT is {found:?}: it must be a whole number from 1 to 65535")]
    InvalidPort { found: String },
    #[error("OPENCLAW_MAX_PREAUTH_CONNECTIONS_PER_IP is {found:?}: it must be a whole number from 1 to 16384")]
    InvalidPreauthSockets { found: String },
    #[error("OPENCLAW_HANDSHAKE_TIMEOUT_MS is {found:?}: it must be a whole number from 1 to 600000")]
    InvalidHandshakeTimeout { found: String },
    #[error(
        "both a token and a password are configured and nothing says which to use. Set gateway.auth.mode to \"token\" or \"password\""
    )]
    TokenAndPassword,
    #[error("{key} cannot be resolved: {reason}. Make it resolvable, or remove it")]
    Unresolved { key: &'static str, reason: Unresolved },
    #[error("{place} holds the placeholder for a redacted value, not a secret. Set it again")]
    Placeholder { place: CredentialSource },
    #[error(
        "gateway.auth.mode is \"password\" and there is none. Set gateway.auth.password or OPENCLAW_GATEWAY_PASSWORD"
    )]
    NoPassword,
    #[error(
        "gateway.auth.mode is \"trusted-proxy\" and there is a shared token beside it, which would let callers around the proxy. Remove {place}, or set gateway.auth.mode to \"token\""
    )]
    TokenBesideTrustedProxy { place: CredentialSource },
    #[error(
        "gateway.auth.mode is \"trusted-proxy\" and nothing says which header holds the user. Set gateway.auth.trustedProxy.userHeader"
    )]
    NoUserHeader,
    #[error(
        "gateway.auth.mode is \"trusted-proxy\" and no proxy is trusted. Set gateway.trustedProxies to the proxy's addresses"
    )]
    NoTrustedProxies,
    #[error(
        "gateway.trustedProxies trusts every address there is ({network}). List the addresses of your proxies only"
    )]
    TrustsEveryone { network: &'static str },
    #[error(
        "{address} can be reached by other hosts and gateway.auth.mode is \"none\". Set gateway.auth.mode to \"token\", \"password\" or \"trusted-proxy\", or gateway.bind to \"loopback\""
    )]
    NoAuthBeyondLoopback { address: IpAddr },
    #[error(
        "{address} can be reached by other hosts and there is no token. Set gateway.auth.token or OPENCLAW_GATEWAY_TOKEN, or gateway.bind to \"loopback\""
    )]
    NoTokenBeyondLoopback { address: IpAddr },
    #[error("gateway.tailscale.mode is {mode:?}, which other hosts can reach, and gateway.auth.mode is \"none\". Set gateway.auth.mode to \"token\" or \"password\"", mode = mode.as_str())]
    NoAuthWithTailscale { mode: TailscaleMode },
    #[error(
        "gateway.tailscale.mode is \"funnel\", which the whole Internet can reach. Set gateway.auth.mode to \"password\" and gateway.auth.password or OPENCLAW_GATEWAY_PASSWORD"
    )]
    FunnelWithoutPassword,
    #[error("gateway.tailscale.mode is {mode:?}, which leads to loopback, but the gateway would listen on {address}. Set gateway.bind to \"loopback\"", mode = mode.as_str())]
    TailscaleBeyondLoopback { mode: TailscaleMode, address: IpAddr },
    #[error("gateway.bind is \"custom\" and nothing says where. Set gateway.customBindHost to an address of this host")]
    NoCustomHost,
    #[error("{address} is not an address of this host. Set gateway.customBindHost to one of: {known}")]
    UnknownAddress { address: IpAddr, known: String },
}

/// Decides whether the gateway may start, where it listens and who gets in. `default_port` is the profile's.
///
/// # Errors
/// The first reason not to start.
pub fn start(
    config: &Config,
    environment: &Environment,
    flags: &Flags,
    host: &HostFacts,
    default_port: u16,
    access: &dyn ProviderAccess,
) -> Result<Start, Refusal> {
    let gateway = &config.gateway;
    if gateway.mode == Some(Mode::Remote) && !flags.allow_unconfigured {
        return Err(Refusal::RemoteMode);
    }
    let auth = trusted_auth(config, environment, flags, access)?;
    let mut notices = Vec::new();
    let bind = flags.bind.unwrap_or(gateway.bind);
    let listen = ListenPlan {
        addresses: addresses(bind, &gateway.custom_bind_host, host, &mut notices)?,
        port: port(config, environment, flags, default_port)?,
    };
    guard(config, flags.tailscale.unwrap_or(gateway.tailscale), &auth, &listen)?;
    notices.extend(advice(config, &auth, &listen));
    Ok(Start { listen, auth, notices })
}

/// Decides who gets in to a gateway that runs already: on `listen`, with `tailscale`, which another configuration does
/// not change before the next start.
///
/// # Errors
/// The first reason why it must not run like that.
pub fn reload(
    config: &Config,
    environment: &Environment,
    flags: &Flags,
    listen: &ListenPlan,
    tailscale: TailscaleMode,
    access: &dyn ProviderAccess,
) -> Result<ServerAuth, Refusal> {
    let flags = Flags { tailscale: Some(tailscale), ..flags.clone() };
    let auth = trusted_auth(config, environment, &flags, access)?;
    guard(config, tailscale, &auth, listen)?;
    Ok(auth)
}

fn trusted_auth(
    config: &Config,
    environment: &Environment,
    flags: &Flags,
    access: &dyn ProviderAccess,
) -> Result<ServerAuth, Refusal> {
    refuse_trusting_everyone(&config.gateway.trusted_proxies)?;
    server_auth(config, environment, flags, access)
}

/// Whether that authentication is enough for where the gateway can be reached.
fn guard(config: &Config, tailscale: TailscaleMode, auth: &ServerAuth, listen: &ListenPlan) -> Result<(), Refusal> {
    if auth.mode == AuthMode::TrustedProxy && config.gateway.trusted_proxies.is_empty() {
        return Err(Refusal::NoTrustedProxies);
    }
    if let Some(address) = listen.addresses.iter().copied().find(|address| !address.is_loopback()) {
        refuse_open_door(auth, address)?;
    }
    guard_tailscale(tailscale, auth, listen)
}

/// Decides the authentication mode and its secrets (contract 2.1 to 2.3).
///
/// A mode that nobody said follows from what is configured: a password selects `password`, else it is
/// `token`. A token and a password in the file, or on the command line, need a mode beside them. Only the
/// secrets that the mode uses have to resolve. `gateway.remote.*` is not looked at.
///
/// # Errors
/// The first reason not to start.
pub fn server_auth(
    config: &Config,
    environment: &Environment,
    flags: &Flags,
    access: &dyn ProviderAccess,
) -> Result<ServerAuth, Refusal> {
    let auth = &config.gateway.auth;
    let token = Candidate {
        flag: flags.token.as_ref().map(|secret| (secret, "--token")),
        variable: "OPENCLAW_GATEWAY_TOKEN",
        key: "gateway.auth.token",
        input: auth.token.as_ref(),
    };
    let password = Candidate {
        flag: flags.password.as_ref().map(|secret| (secret, "--password")),
        variable: "OPENCLAW_GATEWAY_PASSWORD",
        key: "gateway.auth.password",
        input: auth.password.as_ref(),
    };
    let (mode, mode_source) = match (flags.auth, auth.mode) {
        (Some(mode), _) => (mode, ModeSource::Flag),
        (None, Some(mode)) => (mode, ModeSource::Config),
        (None, None) => unsaid_mode(&token, &password, environment)?,
    };
    let reader = SecretReader { providers: &config.secrets, environment, access };
    let needs = |candidate: &Candidate<'_>, needed: bool| match candidate.read(&reader) {
        Err(refusal) if needed => Err(refusal),
        outcome => Ok(outcome.ok().flatten()),
    };
    if mode == AuthMode::TrustedProxy {
        if let Some(place) = token.source(environment) {
            return Err(Refusal::TokenBesideTrustedProxy { place });
        }
        if auth.trusted_proxy.as_ref().is_none_or(|proxy| proxy.user_header.is_none()) {
            return Err(Refusal::NoUserHeader);
        }
    }
    let token = needs(&token, mode == AuthMode::Token)?;
    let password = needs(&password, matches!(mode, AuthMode::Password | AuthMode::TrustedProxy))?;
    if mode == AuthMode::Password && password.is_none() {
        return Err(Refusal::NoPassword);
    }
    // Where a caller must know a password or come through a proxy, a tailnet login is not enough unless the
    // operator says so.
    let tailscale = flags.tailscale.unwrap_or(config.gateway.tailscale);
    let allow_tailscale = auth.allow_tailscale.unwrap_or_else(|| {
        tailscale == TailscaleMode::Serve && !matches!(mode, AuthMode::Password | AuthMode::TrustedProxy)
    });
    Ok(ServerAuth { mode, mode_source, token, password, allow_tailscale })
}

/// The port: `--port`, else `OPENCLAW_GATEWAY_PORT`, else `gateway.port`, else `default_port` (contract 1.1).
///
/// # Errors
/// [`Refusal::InvalidPort`] when the variable holds something else than a port.
pub fn port(config: &Config, environment: &Environment, flags: &Flags, default_port: u16) -> Result<u16, Refusal> {
    if let Some(port) = flags.port {
        return Ok(port);
    }
    match environment.get("OPENCLAW_GATEWAY_PORT") {
        Some(text) => match text.parse() {
            Ok(0) | Err(_) => Err(Refusal::InvalidPort { found: text.chars().take(40).collect() }),
            Ok(port) => Ok(port),
        },
        None => Ok(config.gateway.port.unwrap_or(default_port)),
    }
}

/// The time from accept to `hello-ok`: `OPENCLAW_HANDSHAKE_TIMEOUT_MS`, else the configuration's.
///
/// # Errors
/// [`Refusal::InvalidHandshakeTimeout`] when the variable holds something else than 1 to 600000.
pub fn handshake_timeout(config: &Config, environment: &Environment) -> Result<Duration, Refusal> {
    match environment.get("OPENCLAW_HANDSHAKE_TIMEOUT_MS") {
        Some(text) => match text.parse() {
            Ok(ms @ 1..=600_000) => Ok(Duration::from_millis(ms)),
            _ => Err(Refusal::InvalidHandshakeTimeout { found: text.chars().take(40).collect() }),
        },
        None => Ok(config.gateway.handshake_timeout),
    }
}

/// Sockets that one client may have open without having authenticated: `OPENCLAW_MAX_PREAUTH_CONNECTIONS_PER_IP`, else
/// [`limits::PREAUTH_SOCKETS_CLIENT`].
///
/// # Errors
/// [`Refusal::InvalidPreauthSockets`] when the variable holds something else than 1 to 16384.
pub fn preauth_sockets(environment: &Environment) -> Result<usize, Refusal> {
    match environment.get("OPENCLAW_MAX_PREAUTH_CONNECTIONS_PER_IP") {
        Some(text) => match text.parse() {
            Ok(sockets @ 1..=limits::PREAUTH_SOCKETS) => Ok(sockets),
            _ => Err(Refusal::InvalidPreauthSockets { found: text.chars().take(40).collect() }),
        },
        None => Ok(limits::PREAUTH_SOCKETS_CLIENT),
    }
}

/// Everywhere one shared secret may be said.
struct Candidate<'a> {
    flag: Option<(&'a Secret, &'static str)>,
    variable: &'static str,
    key: &'static str,
    input: Option<&'a SecretInput>,
}

impl Candidate<'_> {
    /// The source that would win, whether or not it resolves.
    fn source(&self, environment: &Environment) -> Option<CredentialSource> {
        match self.flag {
            Some((_, name)) => Some(CredentialSource::Flag(name)),
            None if environment.get(self.variable).is_some() => Some(CredentialSource::Variable(self.variable)),
            None => self.input.map(|_| CredentialSource::Key(self.key)),
        }
    }

    fn read(&self, reader: &SecretReader<'_>) -> Result<Option<Credential>, Refusal> {
        let Some(source) = self.source(reader.environment) else { return Ok(None) };
        let configured = match (self.flag, self.input) {
            (None, Some(input)) => {
                Some(reader.read(input).map_err(|reason| Refusal::Unresolved { key: self.key, reason })?)
            }
            _ => None,
        };
        let secret = match source {
            CredentialSource::Flag(_) => self.flag.map(|(secret, _)| secret.clone()),
            CredentialSource::Variable(name) => reader.environment.get(name).map(Secret::new),
            CredentialSource::Key(_) => configured,
        };
        match secret {
            Some(secret) if secret.expose() == REDACTED => Err(Refusal::Placeholder { place: source }),
            secret => Ok(secret.map(|secret| Credential { secret, source })),
        }
    }
}

fn unsaid_mode(
    token: &Candidate<'_>,
    password: &Candidate<'_>,
    environment: &Environment,
) -> Result<(AuthMode, ModeSource), Refusal> {
    match (token.flag, password.flag) {
        (Some(_), Some(_)) => return Err(Refusal::TokenAndPassword),
        (Some(_), None) => return Ok((AuthMode::Token, ModeSource::Flag)),
        (None, Some(_)) => return Ok((AuthMode::Password, ModeSource::Flag)),
        (None, None) => {}
    }
    if token.input.is_some() && password.input.is_some() {
        return Err(Refusal::TokenAndPassword);
    }
    Ok(match (password.source(environment), token.source(environment)) {
        (Some(_), _) => (AuthMode::Password, ModeSource::Password),
        (None, Some(_)) => (AuthMode::Token, ModeSource::Token),
        (None, None) => (AuthMode::Token, ModeSource::Default),
    })
}

fn addresses(
    bind: Bind,
    custom: &[IpAddr],
    host: &HostFacts,
    notices: &mut Vec<String>,
) -> Result<Vec<IpAddr>, Refusal> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    match bind {
        Bind::Loopback => addresses.push(LOCALHOST),
        Bind::Lan => addresses.push(EVERYWHERE),
        Bind::Auto => {
            let has_loopback = host.addresses.is_empty() || host.addresses.iter().any(IpAddr::is_loopback);
            addresses.push(if host.in_container || !has_loopback { EVERYWHERE } else { LOCALHOST });
        }
        Bind::Tailnet => match host.tailnet {
            Some(tailnet) => addresses.extend([tailnet.into(), LOCALHOST]),
            None => {
                notices.push("gateway.bind is \"tailnet\", but this host has no Tailscale address: only this machine can connect. Restart the gateway once Tailscale is up.".to_owned());
                addresses.push(LOCALHOST);
            }
        },
        Bind::Custom => {
            if custom.is_empty() {
                return Err(Refusal::NoCustomHost);
            }
            for address in custom {
                refuse_unknown(*address, &host.addresses)?;
                if !addresses.contains(address) {
                    addresses.push(*address);
                }
            }
            // Callers on this host dial 127.0.0.1 whatever the bind mode.
            if !addresses.contains(&LOCALHOST) && !addresses.contains(&EVERYWHERE) {
                addresses.push(LOCALHOST);
            }
        }
    }
    Ok(addresses)
}

/// An address the host does not have cannot be bound; saying so before trying gives the better error.
fn refuse_unknown(address: IpAddr, known: &[IpAddr]) -> Result<(), Refusal> {
    let ipv4_loopback = address.is_ipv4() && address.is_loopback();
    if ipv4_loopback || address.is_unspecified() || known.is_empty() || known.contains(&address) {
        return Ok(());
    }
    let known = known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(Refusal::UnknownAddress { address, known })
}

fn refuse_open_door(auth: &ServerAuth, address: IpAddr) -> Result<(), Refusal> {
    match auth.mode {
        AuthMode::None => Err(Refusal::NoAuthBeyondLoopback { address }),
        // A token made for this run would have to be carried to every client by hand, on every start.
        AuthMode::Token if auth.token.is_none() => Err(Refusal::NoTokenBeyondLoopback { address }),
        AuthMode::Token | AuthMode::Password | AuthMode::TrustedProxy => Ok(()),
    }
}

fn guard_tailscale(mode: TailscaleMode, auth: &ServerAuth, listen: &ListenPlan) -> Result<(), Refusal> {
    if mode == TailscaleMode::Off {
        return Ok(());
    }
    if let Some(address) = listen.addresses.iter().copied().find(|address| !address.is_loopback()) {
        return Err(Refusal::TailscaleBeyondLoopback { mode, address });
    }
    match (mode, auth.mode) {
        (TailscaleMode::Funnel, AuthMode::Password) => Ok(()),
        (TailscaleMode::Funnel, _) => Err(Refusal::FunnelWithoutPassword),
        (_, AuthMode::None) => Err(Refusal::NoAuthWithTailscale { mode }),
        _ => Ok(()),
    }
}

/// A list that covers all of IPv4 or IPv6, in one entry or in several.
fn refuse_trusting_everyone(networks: &[IpNet]) -> Result<(), Refusal> {
    let v4: Vec<Ipv4Net> =
        networks.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None }).collect();
    let v6: Vec<Ipv6Net> =
        networks.iter().filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None }).collect();
    if Ipv4Net::aggregate(&v4).iter().any(|net| net.prefix_len() == 0) {
        return Err(Refusal::TrustsEveryone { network: "0.0.0.0/0" });
    }
    if Ipv6Net::aggregate(&v6).iter().any(|net| net.prefix_len() == 0) {
        return Err(Refusal::TrustsEveryone { network: "::/0" });
    }
    Ok(())
}

fn advice(config: &Config, auth: &ServerAuth, listen: &ListenPlan) -> Vec<String> {
    let gateway = &config.gateway;
    let mut notices = Vec::new();
    if auth.mode == AuthMode::TrustedProxy && !listen.is_exposed() {
        let trusts_loopback = gateway.trusted_proxies.iter().any(|net| net.contains(&LOCALHOST))
            && gateway.auth.trusted_proxy.as_ref().is_some_and(|proxy| proxy.allow_loopback);
        if !trusts_loopback {
            notices.push("gateway.auth.mode is \"trusted-proxy\" and only this machine can connect, but a proxy on this machine is not trusted: set gateway.auth.trustedProxy.allowLoopback to true and add 127.0.0.1 to gateway.trustedProxies.".to_owned());
        }
    }
    let approves = gateway.auth.trusted_proxy.as_ref().and_then(|proxy| proxy.device_auto_approve.as_ref());
    if auth.mode == AuthMode::TrustedProxy && approves.is_some_and(|scopes| scopes.contains(&Scope::Admin)) {
        notices.push("Every user that the proxy lets through can make a device with operator.admin, which stays: take it out of gateway.auth.trustedProxy.deviceAutoApprove.scopes, and name administrators in gateway.auth.identityScopes.".to_owned());
    }
    let ui = &gateway.control_ui;
    if listen.is_exposed() && ui.enabled && ui.allowed_origins.is_empty() && !ui.allow_host_header_origin {
        notices.push("Browsers are let in from this machine and from private addresses only. For any other address, list its origin in gateway.controlUi.allowedOrigins.".to_owned());
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::super::decode::decode;
    use super::super::raw::Document;
    use super::super::secret_ref::EnvironmentOnly;
    use super::*;

    struct Case<'a> {
        gateway: &'a str,
        env: &'a [(&'a str, &'a str)],
        flags: Flags,
        host: HostFacts,
    }

    fn case(gateway: &str) -> Case<'_> {
        let addresses = ["127.0.0.1", "192.168.1.5", "100.64.0.7", "fd00::5"];
        let host = HostFacts {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..HostFacts::default()
        };
        Case { gateway, env: &[], flags: Flags::default(), host }
    }

    impl Case<'_> {
        fn start(&self) -> Result<Start, Refusal> {
            let environment = Environment::new(self.env.iter().copied());
            let document = Document::parse(format!("{{gateway: {{{}}}}}", self.gateway)).unwrap();
            let config = decode(&document, &environment).unwrap().config;
            start(&config, &environment, &self.flags, &self.host, 18789, &EnvironmentOnly)
        }

        fn addresses(&self) -> String {
            let start = self.start().unwrap_or_else(|refusal| panic!("{}: {refusal}", self.gateway));
            start.listen.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        }

        fn refusal(&self) -> String {
            match self.start() {
                Ok(start) => panic!("{}: starts on {:?}", self.gateway, start.listen),
                Err(refusal) => refusal.to_string(),
            }
        }
    }

    fn secret(credential: Option<&Credential>) -> (String, String) {
        credential.map(|it| (it.secret.expose().to_owned(), it.source.to_string())).unwrap_or_default()
    }

    #[test]
    fn nothing_configured_starts_on_loopback_and_wants_a_token() {
        let start = case("").start().unwrap();
        assert!(start.needs_token());
        assert_eq!((start.auth.mode, start.auth.mode_source), (AuthMode::Token, ModeSource::Default));
        assert_eq!(start.listen, ListenPlan { addresses: vec![LOCALHOST], port: 18789 });
    }

    #[test]
    fn the_port_comes_from_the_flag_then_the_environment_then_the_file() {
        let mut with = case("port: 3");
        assert_eq!(with.start().unwrap().listen.port, 3);
        with.env = &[("OPENCLAW_GATEWAY_PORT", "2")];
        assert_eq!(with.start().unwrap().listen.port, 2);
        with.flags.port = Some(1);
        assert_eq!(with.start().unwrap().listen.port, 1);
        for wrong in ["0", "65536", "x", "-1"] {
            let env = [("OPENCLAW_GATEWAY_PORT", wrong)];
            assert!(Case { env: &env, ..case("") }.refusal().contains(wrong));
        }
    }

    #[test]
    fn bind_modes_have_their_addresses() {
        let token = "auth: {token: 't'}";
        let with = |bind: &str| format!("{token}, bind: {bind}");
        assert_eq!(case(&with("'loopback'")).addresses(), "127.0.0.1");
        assert_eq!(case(&with("'lan'")).addresses(), "0.0.0.0");
        assert_eq!(case(&with("'auto'")).addresses(), "127.0.0.1");
        assert_eq!(case(&with("'tailnet'")).addresses(), "127.0.0.1");
        assert_eq!(case(&with("'custom', customBindHost: '192.168.1.5'")).addresses(), "192.168.1.5 127.0.0.1");
        assert_eq!(case(&with("'custom', customBindHost: '0.0.0.0'")).addresses(), "0.0.0.0");
        assert_eq!(case(&with("'custom', customBindHost: '127.0.0.1'")).addresses(), "127.0.0.1");
        assert_eq!(case(&with("'custom', customBindHost: '127.0.0.2'")).addresses(), "127.0.0.2 127.0.0.1");
        assert_eq!(
            case(&with("'custom', customBindHost: 'fd00::5,192.168.1.5'")).addresses(),
            "fd00::5 192.168.1.5 127.0.0.1"
        );
        let tailnet = with("'tailnet'");
        let mut on_tailnet = case(&tailnet);
        on_tailnet.host.tailnet = Some(Ipv4Addr::new(100, 64, 0, 7));
        assert_eq!(on_tailnet.addresses(), "100.64.0.7 127.0.0.1");
    }

    #[test]
    fn auto_is_everywhere_in_a_container_and_without_loopback() {
        let mut with = case("auth: {token: 't'}, bind: 'auto'");
        with.host.in_container = true;
        assert_eq!(with.addresses(), "0.0.0.0");
        with.host.in_container = false;
        with.host.addresses.retain(|address| !address.is_loopback());
        assert_eq!(with.addresses(), "0.0.0.0");
        with.host.addresses.clear();
        assert_eq!(with.addresses(), "127.0.0.1");
    }

    #[test]
    fn an_address_of_another_host_is_refused_unless_the_own_ones_are_unknown() {
        let mut with = case("auth: {token: 't'}, bind: 'custom', customBindHost: '203.0.113.77'");
        assert!(with.refusal().contains("192.168.1.5"));
        with.host.addresses.clear();
        assert_eq!(with.addresses(), "203.0.113.77 127.0.0.1");
        assert!(case("bind: 'custom'").refusal().contains("gateway.customBindHost"));
    }

    #[test]
    fn tailnet_without_tailscale_says_so() {
        assert!(case("bind: 'tailnet'").start().unwrap().notices[0].contains("Tailscale"));
    }

    #[test]
    fn refuses_to_listen_beyond_loopback_without_authentication() {
        for gateway in [
            "bind: 'lan'",
            "bind: 'lan', auth: {mode: 'none'}",
            "bind: 'lan', auth: {mode: 'none', token: 't'}",
            "bind: 'lan', auth: {mode: 'token', allowTailscale: true}",
            "bind: 'lan', auth: {token: ' '}",
            "bind: 'lan', remote: {token: 't', password: 'p'}",
            "bind: 'custom', customBindHost: '0.0.0.0'",
            "bind: 'custom', customBindHost: '127.0.0.1, 192.168.1.5'",
            "bind: 'custom', customBindHost: '::'",
        ] {
            assert!(case(gateway).refusal().contains("gateway.auth."), "{gateway}");
        }
        assert!(case("auth: {mode: 'none'}").start().is_ok());
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let mut with = case("auth: {token: 'file'}");
        let token = |case: &Case<'_>| secret(case.start().unwrap().auth.token.as_ref());
        assert_eq!(token(&with), ("file".to_owned(), "gateway.auth.token".to_owned()));
        with.env = &[("OPENCLAW_GATEWAY_TOKEN", " env ")];
        assert_eq!(token(&with), ("env".to_owned(), "OPENCLAW_GATEWAY_TOKEN".to_owned()));
        with.flags.token = Some(Secret::new("flag"));
        assert_eq!(token(&with), ("flag".to_owned(), "--token".to_owned()));
        with.flags.auth = Some(AuthMode::None);
        assert_eq!(with.start().unwrap().auth.mode, AuthMode::None);
        with.flags.bind = Some(Bind::Lan);
        assert!(with.refusal().contains("none"));
    }

    #[test]
    fn an_unsaid_mode_follows_from_the_secrets() {
        type Variables<'a> = &'a [(&'a str, &'a str)];
        type Expected = Option<(AuthMode, ModeSource)>;
        let both_in_env = [("OPENCLAW_GATEWAY_TOKEN", "t"), ("OPENCLAW_GATEWAY_PASSWORD", "p")];
        let cases: [(&str, Variables<'_>, Expected); 6] = [
            ("auth: {token: 't'}", &[], Some((AuthMode::Token, ModeSource::Token))),
            ("auth: {password: 'p'}", &[], Some((AuthMode::Password, ModeSource::Password))),
            ("auth: {token: 't', password: 'p'}", &[], None),
            ("auth: {token: '${X}', password: 'p'}", &[], None),
            ("", &both_in_env, Some((AuthMode::Password, ModeSource::Password))),
            ("auth: {token: 't'}", &both_in_env[1..], Some((AuthMode::Password, ModeSource::Password))),
        ];
        for (gateway, env, expected) in cases {
            let auth = Case { env, ..case(gateway) }.start().map(|start| start.auth);
            assert_eq!(auth.ok().map(|auth| (auth.mode, auth.mode_source)), expected, "{gateway}");
        }
        let mut with = case("auth: {password: 'p'}");
        with.flags.token = Some(Secret::new("t"));
        let auth = with.start().unwrap().auth;
        assert_eq!((auth.mode, auth.mode_source), (AuthMode::Token, ModeSource::Flag));
        with.flags.password = Some(Secret::new("p"));
        assert!(with.refusal().contains("gateway.auth.mode"));
    }

    #[test]
    fn a_secret_that_is_needed_and_does_not_resolve_stops_the_start() {
        for gateway in [
            "auth: {token: '${NOPE}'}",
            "auth: {token: 'a${NOPE}z'}",
            "auth: {token: {source: 'env', provider: 'default', id: 'NOPE'}}",
            "auth: {token: {source: 'file', provider: 'nope', id: '/x'}}",
            "auth: {mode: 'token', token: {source: 'store', provider: 'default', id: 'NOPE'}}",
        ] {
            assert!(case(gateway).refusal().starts_with("gateway.auth.token cannot be resolved"), "{gateway}");
            let env = [("OPENCLAW_GATEWAY_TOKEN", "env")];
            let refusal = Case { env: &env, ..case(gateway) }.refusal();
            assert!(refusal.starts_with("gateway.auth.token cannot be resolved"), "nothing stands in: {refusal}");
        }
        assert!(case("auth: {password: '${NOPE}'}").refusal().starts_with("gateway.auth.password"));
        let mut replaced = case("auth: {token: '${NOPE}'}");
        replaced.flags.token = Some(Secret::new("flag"));
        assert!(replaced.start().is_ok());
    }

    #[test]
    fn a_secret_that_is_not_needed_may_be_unresolvable() {
        let start = case("auth: {mode: 'token', token: 't', password: '${NOPE}'}").start().unwrap();
        assert!(start.auth.password.is_none());
        assert!(case("auth: {mode: 'none', token: '${NOPE}'}").start().is_ok());
        assert!(case("auth: {token: 't'}, remote: {token: '${NOPE}'}").start().is_ok());
    }

    #[test]
    fn password_mode_needs_a_password() {
        assert!(case("auth: {mode: 'password'}").refusal().contains("OPENCLAW_GATEWAY_PASSWORD"));
        assert!(case("auth: {mode: 'password', token: 't'}").start().is_err());
        let placeholder = [("OPENCLAW_GATEWAY_PASSWORD", REDACTED)];
        assert!(Case { env: &placeholder, ..case("auth: {mode: 'password'}") }.refusal().contains("placeholder"));
    }

    #[test]
    fn trusted_proxy_needs_its_header_and_proxies_and_no_token() {
        let proxy = "mode: 'trusted-proxy', trustedProxy: {userHeader: 'x-user'}";
        let proxies = "trustedProxies: ['10.0.0.1'], bind: 'lan'";
        assert!(case(&format!("auth: {{{proxy}}}, {proxies}")).start().is_ok());
        for (gateway, key) in [
            (format!("auth: {{{proxy}}}"), "gateway.trustedProxies"),
            (format!("auth: {{{proxy}, token: 't'}}, {proxies}"), "gateway.auth.token"),
            (format!("auth: {{{proxy}, token: '${{NOPE}}'}}, {proxies}"), "gateway.auth.token"),
            (format!("auth: {{mode: 'trusted-proxy'}}, {proxies}"), "gateway.auth.trustedProxy.userHeader"),
            (format!("auth: {{mode: 'trusted-proxy', trustedProxy: {{userHeader: ' '}}}}, {proxies}"), "userHeader"),
        ] {
            assert!(case(&gateway).refusal().contains(key), "{gateway}");
        }
        let gateway = format!("auth: {{{proxy}, password: 'p'}}, {proxies}");
        assert!(case(&gateway).start().unwrap().auth.password.is_some());
        let gateway = format!("auth: {{{proxy}}}, trustedProxies: ['10.0.0.1']");
        assert!(case(&gateway).start().unwrap().notices[0].contains("allowLoopback"));
    }

    #[test]
    fn refuses_to_trust_the_whole_internet() {
        for list in ["'0.0.0.0/0'", "'::/0'", "'0.0.0.0/1', '128.0.0.0/1'", "'10.0.0.1', '::/1', '8000::/1'"] {
            assert!(case(&format!("trustedProxies: [{list}]")).refusal().contains("gateway.trustedProxies"), "{list}");
        }
        assert!(case("trustedProxies: ['0.0.0.0/1', '10.0.0.0/8']").start().is_ok());
    }

    #[test]
    fn tailscale_stays_behind_loopback_and_authentication() {
        assert!(case("tailscale: {mode: 'serve'}").start().is_ok());
        assert!(case("tailscale: {mode: 'serve'}, auth: {mode: 'none'}").refusal().contains("gateway.auth.mode"));
        assert!(case("tailscale: {mode: 'serve'}, bind: 'lan', auth: {token: 't'}").refusal().contains("gateway.bind"));
        assert!(case("tailscale: {mode: 'funnel'}, auth: {token: 't'}").refusal().contains("gateway.auth.password"));
        assert!(case("tailscale: {mode: 'funnel'}, auth: {password: 'p'}").start().is_ok());
        let mut with = case("auth: {token: 't'}");
        with.flags.tailscale = Some(TailscaleMode::Funnel);
        assert!(with.start().is_err());
    }

    #[test]
    fn a_reload_is_judged_by_where_the_gateway_listens_already() {
        let edited = case("bind: 'loopback', auth: {mode: 'none'}");
        let environment = Environment::default();
        let document = Document::parse(format!("{{gateway: {{{}}}}}", edited.gateway)).unwrap();
        let config = decode(&document, &environment).unwrap().config;
        let judge = |address: &str, tailscale| {
            let listen = ListenPlan { addresses: vec![address.parse().unwrap()], port: 1 };
            reload(&config, &environment, &Flags::default(), &listen, tailscale, &EnvironmentOnly).map(|auth| auth.mode)
        };
        assert_eq!(judge("127.0.0.1", TailscaleMode::Off), Ok(AuthMode::None));
        assert!(matches!(judge("0.0.0.0", TailscaleMode::Off), Err(Refusal::NoAuthBeyondLoopback { .. })));
        assert!(matches!(judge("127.0.0.1", TailscaleMode::Serve), Err(Refusal::NoAuthWithTailscale { .. })));
    }

    #[test]
    fn a_client_machine_does_not_run_a_gateway_by_accident() {
        let mut with = case("mode: 'remote'");
        assert!(with.refusal().contains("gateway.mode"));
        with.flags.allow_unconfigured = true;
        assert!(with.start().is_ok());
    }

    #[test]
    fn the_handshake_timeout_comes_from_the_environment_then_the_file() {
        let config = Config::default();
        let timeout =
            |value: &str| handshake_timeout(&config, &Environment::new([("OPENCLAW_HANDSHAKE_TIMEOUT_MS", value)]));
        assert_eq!(timeout(""), Ok(config.gateway.handshake_timeout));
        assert_eq!(timeout("250"), Ok(Duration::from_millis(250)));
        for wrong in ["0", "600001", "x"] {
            assert!(timeout(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_sockets_of_a_stranger_come_from_the_environment() {
        let sockets =
            |value: &str| preauth_sockets(&Environment::new([("OPENCLAW_MAX_PREAUTH_CONNECTIONS_PER_IP", value)]));
        assert_eq!(sockets(""), Ok(limits::PREAUTH_SOCKETS_CLIENT));
        assert_eq!(sockets("500"), Ok(500));
        for wrong in ["0", "16385", "x"] {
            assert!(sockets(wrong).is_err(), "{wrong}");
        }
    }
}
