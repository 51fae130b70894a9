//! Which gateway a client talks to, and with which credentials (contract 4.1 to 4.8).
//!
//! One pure function, [`resolve`] (and [`explain`], which keeps the way there): flags, environment and configuration in, a [`Resolution`] out that also
//! says, for every source that could have given a credential, what came of it. It reads no file, runs no
//! command and opens no socket itself; how a secret reference is followed is part of what it is given.
//!
//! The rules in order, the first that applies:
//!
//! 1. `--token` or `--password`: exactly those, nothing is mixed in;
//! 2. `--url` without them: an error, for a URL from the command line never borrows credentials;
//! 3. `OPENCLAW_GATEWAY_URL`: only `OPENCLAW_GATEWAY_TOKEN` and `OPENCLAW_GATEWAY_PASSWORD`;
//! 4. local mode: environment, then `gateway.auth.*`, then (only while that is unset) `gateway.remote.*`;
//! 5. remote mode: token from `gateway.remote`, environment, `gateway.auth`; password from environment,
//!    `gateway.remote`, `gateway.auth`. [`Purpose`] narrows both.

use std::fmt;
use std::rc::Rc;

use thiserror::Error;

use super::options::EdgeHeader;
use super::url_policy::{GatewayUrl, UrlError};
use crate::config::fingerprint::{InvalidFingerprint, Pin};
use crate::config::model::{AuthMode, Config, Mode, Transport};
use crate::config::secret_ref::SecretInput;
use crate::secret::Secret;

/// The port of a gateway when nothing names one.
pub const DEFAULT_PORT: u16 = 18789;

/// What the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A command that calls a method.
    Call,
    /// `probe` and `status`: in remote mode they use `gateway.remote.token` and no other token (4.7).
    Probe,
    /// The node host: in local mode it ignores `gateway.remote.*` (4.6), in remote mode the environment comes
    /// first.
    NodeHost,
}

impl Purpose {
    /// The order of sources for this purpose.
    pub const fn rules(self) -> Rules {
        let call = Rules {
            remote_token: RemoteOrder::RemoteFirst,
            remote_password: RemoteOrder::EnvFirst,
            remote_serves_local: true,
        };
        match self {
            Self::Call => call,
            Self::Probe => Rules { remote_token: RemoteOrder::RemoteOnly, ..call },
            Self::NodeHost => Rules { remote_token: RemoteOrder::EnvFirst, remote_serves_local: false, ..call },
        }
    }
}

/// Which sources count, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Sources of the token in remote mode.
    pub remote_token: RemoteOrder,
    /// Sources of the password in remote mode.
    pub remote_password: RemoteOrder,
    /// Whether `gateway.remote.*` stands in for an unset `gateway.auth.*` in local mode.
    pub remote_serves_local: bool,
}

/// The order of sources in remote mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteOrder {
    /// `gateway.remote`, environment, `gateway.auth`.
    RemoteFirst,
    /// Environment, `gateway.remote`, `gateway.auth`.
    EnvFirst,
    /// `gateway.remote` and nothing else.
    RemoteOnly,
}

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--url`.
    pub url: Option<String>,
    /// The URL that `--host` stands for. It takes credentials from flags and the environment, none of the configuration.
    pub host: Option<String>,
    /// This device has a token of its own for the gateway: a URL from the command line needs no other.
    pub has_device_token: bool,
    /// `--port`: the gateway on this host at that port, whatever mode is configured.
    pub port: Option<u16>,
    /// `--token`.
    pub token: Option<String>,
    /// `--password`.
    pub password: Option<String>,
    /// `--tls-fingerprint`: pins, with commas between them.
    pub tls_fingerprint: Option<String>,
}

/// The environment variables that count; no others do (4.8).
#[derive(Clone, Debug, Default)]
pub struct Variables {
    url: Option<String>,
    port: Option<u16>,
    token: Configured,
    password: Configured,
    in_gateway_service: bool,
}

impl Variables {
    /// Reads them with `get`. Blank values count as unset.
    pub fn read<S: AsRef<str>>(get: impl Fn(&str) -> Option<S>) -> Self {
        let text = |name: &str| {
            get(name).map(|value| value.as_ref().trim().to_owned()).filter(|value: &String| !value.is_empty())
        };
        Self {
            url: text("OPENCLAW_GATEWAY_URL"),
            port: text("OPENCLAW_GATEWAY_PORT").and_then(|port| port.parse().ok()).filter(|port| *port != 0),
            token: Configured::text(text("OPENCLAW_GATEWAY_TOKEN").as_deref()),
            password: Configured::text(text("OPENCLAW_GATEWAY_PASSWORD").as_deref()),
            // A service manager's unit holds the token of the day it was installed: the file is newer.
            in_gateway_service: text("OPENCLAW_SERVICE_KIND").as_deref() == Some("gateway"),
        }
    }
}

impl Variables {
    /// The same without `OPENCLAW_GATEWAY_URL`: for whoever has a URL already.
    #[must_use]
    pub fn without_url(self) -> Self {
        Self { url: None, ..self }
    }
}

/// One configured credential.
#[derive(Clone, Debug, Default)]
pub enum Configured {
    /// Not set, or blank.
    #[default]
    Unset,
    /// A value.
    Value(Secret),
    /// A secret that is kept elsewhere.
    Reference(Reference),
}

impl Configured {
    /// A plain text: trimmed, and unset when blank.
    pub fn text(text: Option<&str>) -> Self {
        match text.map(str::trim) {
            None | Some("") => Self::Unset,
            Some(text) => Self::Value(Secret::new(text)),
        }
    }

    /// A secret that `read` fetches, or says why it cannot. It is called at most once, and only when the
    /// secret would be sent: it may run a command, or ask a person.
    pub fn reference(read: impl Fn() -> Result<Secret, String> + 'static) -> Self {
        Self::Reference(Reference(Rc::new(read)))
    }

    const fn is_unset(&self) -> bool {
        matches!(self, Self::Unset)
    }
}

/// The way to a secret that is kept elsewhere; see [`Configured::reference`].
#[derive(Clone)]
pub struct Reference(Rc<dyn Fn() -> Result<Secret, String>>);

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reference")
    }
}

/// What the configuration says to a client.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `gateway.mode` is `remote`; every other value, and none, is local.
    pub remote_mode: bool,
    /// `gateway.port`.
    pub port: Option<u16>,
    /// The port when nothing names one; [`DEFAULT_PORT`] unless a profile has another.
    pub default_port: Option<u16>,
    /// `gateway.tls.enabled`: the gateway on this host speaks `wss://`.
    pub tls: bool,
    /// `gateway.auth.mode`.
    pub auth_mode: Option<AuthMode>,
    /// `gateway.auth.token`.
    pub token: Configured,
    /// `gateway.auth.password`.
    pub password: Configured,
    /// `gateway.remote.url`.
    pub remote_url: Option<String>,
    /// `gateway.remote.token`.
    pub remote_token: Configured,
    /// `gateway.remote.password`.
    pub remote_password: Configured,
    /// `gateway.remote.transport` is `ssh`, and `gateway.remote.sshTarget` says where to: `gateway.remote.url` is then
    /// the local end of a tunnel.
    pub tunnel: bool,
    /// `gateway.remote.tlsFingerprint`.
    pub remote_pins: Vec<Pin>,
    /// `gateway.remote.edgeAuth`, by header.
    pub remote_edge: Vec<(String, Configured)>,
    /// The certificate of the gateway on this host, when it speaks TLS and its file can be read.
    pub local_pin: Option<Pin>,
    /// The token that the gateway now running on this host made for this run, with its port.
    pub run_token: Option<(u16, Secret)>,
}

impl Settings {
    /// What `config` says; `read` follows its secret references.
    pub fn from_config(
        config: &Config,
        read: impl Fn(&SecretInput) -> Result<Secret, String> + Clone + 'static,
    ) -> Self {
        let configured = |input: &Option<SecretInput>| match input {
            // A text with a variable in it that is not set is no secret; the incumbent drops it too.
            None | Some(SecretInput::Incomplete { .. }) => Configured::Unset,
            Some(SecretInput::Literal(secret)) => Configured::text(Some(secret.expose())),
            Some(reference @ SecretInput::Ref(_)) => {
                let (read, reference) = (read.clone(), reference.clone());
                Configured::reference(move || read(&reference))
            }
        };
        let gateway = &config.gateway;
        Self {
            remote_mode: gateway.mode == Some(Mode::Remote),
            port: gateway.port,
            default_port: None,
            tls: gateway.tls.enabled,
            auth_mode: gateway.auth.mode,
            token: configured(&gateway.auth.token),
            password: configured(&gateway.auth.password),
            remote_url: gateway.remote.url.clone(),
            remote_token: configured(&gateway.remote.token),
            remote_password: configured(&gateway.remote.password),
            tunnel: gateway.remote.transport == Transport::Ssh && gateway.remote.ssh_target.is_some(),
            remote_pins: gateway.remote.tls_pins.clone(),
            remote_edge: gateway
                .remote
                .edge_auth
                .iter()
                .map(|(name, value)| (name.clone(), configured(&Some(value.clone()))))
                .collect(),
            local_pin: None,
            run_token: None,
        }
    }
}

/// Where a credential or a URL comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag of this command.
    Flag(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// A key of the configuration file.
    Key(&'static str),
    /// The running gateway on this host, which made it at start.
    Run,
    /// Nothing was said: the built-in value.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) | Self::Key(name) => f.write_str(name),
            Self::Run => f.write_str("the token the running gateway made"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What came of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is the one that is sent.
    Won,
    /// An earlier source won.
    Outranked,
    /// It has no value.
    Unset,
    /// It is a secret reference that gave nothing; the text says why.
    Failed(String),
    /// It is a secret reference that was not followed, because its value would not be sent.
    NotNeeded,
    /// The rules leave it out; the text says which rule.
    Excluded(&'static str),
}

/// One source of one credential, looked at.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where.
    pub source: Source,
    /// What it holds. Print [`Secret::fingerprint`], nothing else.
    pub value: Option<Secret>,
    /// What came of it.
    pub outcome: Outcome,
}

/// A token or a password, decided.
#[derive(Clone, Debug, Default)]
pub struct Credential {
    /// Every source, in the order in which they count.
    pub candidates: Vec<Candidate>,
}

impl Credential {
    fn winner(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.outcome == Outcome::Won)
    }

    /// What is sent.
    pub fn value(&self) -> Option<&Secret> {
        self.winner()?.value.as_ref()
    }

    /// Where it came from.
    pub fn source(&self) -> Option<Source> {
        Some(self.winner()?.source)
    }
}

/// Where to connect, and with what.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// The gateway.
    pub url: GatewayUrl,
    /// What named it.
    pub url_source: Source,
    /// The shared token.
    pub token: Credential,
    /// The shared password.
    pub password: Credential,
    /// Certificates that are pinned, and what said so; `None` leaves it to normal trust and to memory.
    pub pins: Option<(Vec<Pin>, Source)>,
    /// Headers for a proxy in front of the gateway.
    pub edge: Vec<EdgeHeader>,
    /// The URL is the local end of a tunnel to `gateway.remote.sshTarget`.
    pub tunnel: bool,
}

/// Why there is nothing to connect with.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CredentialError {
    /// A URL was given that must not borrow credentials, and none were given with it (4.2, 4.3).
    #[error("{}", explicit_needed(.0))]
    ExplicitNeeded(Source),
    /// Remote mode without a URL.
    #[error("gateway.mode is \"remote\" but gateway.remote.url is not set: set it, or set gateway.mode to \"local\"")]
    NoRemoteUrl,
    /// The secret reference that should give the credential gives nothing, and nothing may stand in for it.
    #[error("{path} is a secret reference without a value ({why}): provide it, or pass --token or --password")]
    SecretUnavailable {
        /// The key that holds the reference.
        path: &'static str,
        /// Why it has no value.
        why: String,
    },
    /// The URL is refused.
    #[error("{0} (the URL comes from: {1})")]
    Url(UrlError, Source),
    /// `--tls-fingerprint` is none.
    #[error("--tls-fingerprint: {0}")]
    Pin(InvalidFingerprint),
    /// A header for the proxy in front of the gateway has no value.
    #[error("gateway.remote.edgeAuth.{header} has no value ({why}): the proxy in front of the gateway would refuse us")]
    EdgeUnavailable {
        /// The header.
        header: String,
        /// Why.
        why: String,
    },
}

fn explicit_needed(source: &Source) -> String {
    match source {
        Source::Variable(name) => format!(
            "{name} sets the gateway's URL, so its credentials must come from the environment too: set \
             OPENCLAW_GATEWAY_TOKEN or OPENCLAW_GATEWAY_PASSWORD, or pass --token or --password"
        ),
        source if *source == HOST_FLAG => {
            "--host names another gateway than the configuration does, so its credentials \
             are not sent there: set OPENCLAW_GATEWAY_TOKEN or OPENCLAW_GATEWAY_PASSWORD, or pass --token or --password"
                .to_owned()
        }
        source => format!(
            "{source} needs explicit credentials: pass --token or --password with it (credentials of the \
             configuration and the environment are never sent to a URL from the command line)"
        ),
    }
}

const URL_FLAG: Source = Source::Flag("--url");
const HOST_FLAG: Source = Source::Flag("--host");
const PIN_FLAG: Source = Source::Flag("--tls-fingerprint");
const REMOTE_URL: Source = Source::Key("gateway.remote.url");
const LOCAL_PORT: Source = Source::Key("gateway.port");
const PORT_VARIABLE: Source = Source::Variable("OPENCLAW_GATEWAY_PORT");
const PORT_FLAG: Source = Source::Flag("--port");
const URL_VARIABLE: Source = Source::Variable("OPENCLAW_GATEWAY_URL");

/// The whole decision, for [`explain`].
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Every source of the URL, in the order in which they count.
    pub urls: Vec<UrlCandidate>,
    /// The URL that won, when it may be used.
    pub url: Option<GatewayUrl>,
    /// The token.
    pub token: Credential,
    /// The password.
    pub password: Credential,
    /// What comes of it.
    pub outcome: Result<Resolution, CredentialError>,
}

/// One source of the URL, looked at.
#[derive(Clone, Debug)]
pub struct UrlCandidate {
    /// Where.
    pub source: Source,
    /// What it says. It may hold a secret in its user part or its query.
    pub text: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
}

/// Decides the gateway and the credentials.
///
/// # Errors
/// [`CredentialError`], before anything is sent.
pub fn resolve(
    flags: &Flags,
    variables: &Variables,
    settings: &Settings,
    purpose: Purpose,
) -> Result<Resolution, CredentialError> {
    explain(flags, variables, settings, purpose).outcome
}

/// Decides as [`resolve`] does, and keeps the way there.
pub fn explain(flags: &Flags, variables: &Variables, settings: &Settings, purpose: Purpose) -> Explanation {
    let urls = url_candidates(flags, variables, settings);
    let mut explanation = Explanation {
        url: None,
        token: Credential::default(),
        password: Credential::default(),
        outcome: Err(CredentialError::NoRemoteUrl),
        urls,
    };
    let won = explanation.urls.iter().find(|candidate| candidate.outcome == Outcome::Won);
    let Some((text, url_source)) = won.and_then(|won| Some((won.text.as_deref()?, won.source))) else {
        return explanation;
    };
    let url = match GatewayUrl::parse(text) {
        Ok(url) => url,
        Err(error) => {
            explanation.outcome = Err(CredentialError::Url(error, url_source));
            return explanation;
        }
    };
    let run_token = settings.run_token.as_ref().filter(|(port, _)| *port == url.port()).map(|(_, token)| token);
    let sources = Sources { flags, variables, settings, url_source, run_token, rules: purpose.rules() };
    let error;
    (explanation.token, explanation.password, error) = judge(&sources);
    explanation.url = Some(url.clone());
    explanation.outcome = match error {
        Some(error) => Err(error),
        None => finish(url, url_source, flags, settings, &explanation.token, &explanation.password),
    };
    explanation
}

fn finish(
    url: GatewayUrl,
    url_source: Source,
    flags: &Flags,
    settings: &Settings,
    token: &Credential,
    password: &Credential,
) -> Result<Resolution, CredentialError> {
    let is_foreign = [URL_FLAG, HOST_FLAG, URL_VARIABLE].contains(&url_source);
    if is_foreign && !flags.has_device_token && token.value().is_none() && password.value().is_none() {
        return Err(CredentialError::ExplicitNeeded(url_source));
    }
    let pins = pins(&url, flags, settings, url_source)?;
    let edge = if is_configured_remote(url_source) { edge(&url, settings)? } else { Vec::new() };
    let tunnel = is_configured_remote(url_source) && settings.tunnel && !url.is_tls() && url.is_loopback();
    Ok(Resolution { url, url_source, token: token.clone(), password: password.clone(), pins, edge, tunnel })
}

fn is_configured_remote(url_source: Source) -> bool {
    url_source == REMOTE_URL
}

/// Which certificates are pinned. A pin belongs to a gateway: one of the configuration counts for
/// `gateway.remote.url` alone, however that URL came here.
fn pins(
    url: &GatewayUrl,
    flags: &Flags,
    settings: &Settings,
    url_source: Source,
) -> Result<Option<(Vec<Pin>, Source)>, CredentialError> {
    if let Some(text) = &flags.tls_fingerprint {
        let pins = text.split(',').map(Pin::parse).collect::<Result<_, _>>().map_err(CredentialError::Pin)?;
        return Ok(Some((pins, PIN_FLAG)));
    }
    if !url.is_tls() {
        return Ok(None);
    }
    if [PORT_FLAG, PORT_VARIABLE, LOCAL_PORT, Source::Default].contains(&url_source) {
        return Ok(settings.local_pin.map(|pin| (vec![pin], Source::Key("gateway.tls"))));
    }
    let remote = settings.remote_url.as_deref().and_then(|text| GatewayUrl::parse(text).ok());
    let is_remote = remote.is_some_and(|remote| remote.is_tls() && remote.authority() == url.authority());
    Ok((is_remote && !settings.remote_pins.is_empty())
        .then(|| (settings.remote_pins.clone(), Source::Key("gateway.remote.tlsFingerprint"))))
}

/// The headers for a proxy in front of `gateway.remote.url`. They are secrets: nothing is sent over `ws://`.
fn edge(url: &GatewayUrl, settings: &Settings) -> Result<Vec<EdgeHeader>, CredentialError> {
    if !url.is_tls() {
        return Ok(Vec::new());
    }
    let mut headers = Vec::new();
    for (header, configured) in &settings.remote_edge {
        let unavailable = |why: &str| CredentialError::EdgeUnavailable { header: header.clone(), why: why.to_owned() };
        let value = match configured {
            Configured::Value(value) => value.clone(),
            Configured::Reference(Reference(read)) => read().map_err(|why| unavailable(&why))?,
            // One that is configured and blank would be left out, and nobody would know why the proxy refuses.
            Configured::Unset => return Err(unavailable("it is blank, or names a variable that is not set")),
        };
        let name = header.parse().map_err(|_| unavailable("it is no name of a header"))?;
        headers.push(EdgeHeader { name, value });
    }
    Ok(headers)
}

/// Every source of the URL. Without a winner it is remote mode, and has no URL.
fn url_candidates(flags: &Flags, variables: &Variables, settings: &Settings) -> Vec<UrlCandidate> {
    let local = |port: u16| format!("{}://127.0.0.1:{port}", if settings.tls { "wss" } else { "ws" });
    let said =
        |text: &Option<String>| text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let local_mode = (!settings.remote_mode).then_some("in local mode the gateway is the one on this host");
    let remote_mode = settings.remote_mode.then_some("in remote mode gateway.remote.url says where");
    let sources = [
        (URL_FLAG, said(&flags.url), None),
        (HOST_FLAG, said(&flags.host), None),
        (PORT_FLAG, flags.port.map(local), None),
        (URL_VARIABLE, said(&variables.url), None),
        (REMOTE_URL, said(&settings.remote_url), local_mode),
        (PORT_VARIABLE, variables.port.map(local), remote_mode),
        (LOCAL_PORT, settings.port.map(local), remote_mode),
        (Source::Default, Some(local(settings.default_port.unwrap_or(DEFAULT_PORT))), remote_mode),
    ];
    let mut won = false;
    sources
        .into_iter()
        .map(|(source, text, excluded)| {
            let outcome = match (&text, excluded) {
                (None, _) => Outcome::Unset,
                (Some(_), Some(why)) => Outcome::Excluded(why),
                (Some(_), None) if won => Outcome::Outranked,
                (Some(_), None) => Outcome::Won,
            };
            won |= outcome == Outcome::Won;
            UrlCandidate { source, text, outcome }
        })
        .collect()
}

/// What [`credentials`] decides from.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    pub flags: &'a Flags,
    pub variables: &'a Variables,
    pub settings: &'a Settings,
    pub url_source: Source,
    pub run_token: Option<&'a Secret>,
    pub rules: Rules,
}

impl Sources<'_> {
    fn remote_mode(&self) -> bool {
        self.settings.remote_mode && self.url_source != PORT_FLAG
    }
}

/// Decides token and password. [`resolve`] is the way in; this is public for the decision vectors, which name
/// rules one by one.
///
/// # Errors
/// [`CredentialError::SecretUnavailable`].
#[doc(hidden)]
pub fn credentials(sources: &Sources<'_>) -> Result<(Credential, Credential), CredentialError> {
    match judge(sources) {
        (token, password, None) => Ok((token, password)),
        (.., Some(error)) => Err(error),
    }
}

fn judge(sources: &Sources<'_>) -> (Credential, Credential, Option<CredentialError>) {
    let remote_mode = sources.remote_mode();
    let [token, password] = [Kind::Token, Kind::Password].map(|kind| kind.slots(sources));
    let literal = |slots: &[Slot]| {
        slots.iter().any(|slot| slot.excluded.is_none() && matches!(slot.configured, Configured::Value(_)))
    };
    // Where the mode says which of the two the gateway looks at, that one; else the one that is there will do.
    let wanted = |kind: Kind, other_found: bool| match sources.settings.auth_mode {
        Some(mode) if !remote_mode => kind.serves(mode),
        _ => !other_found,
    };
    let token = Credential::choose(token, wanted(Kind::Token, literal(&password)));
    let password = Credential::choose(password, wanted(Kind::Password, token.value().is_some()));

    let neither = token.value().is_none() && password.value().is_none();
    let mut error = None;
    for candidate in token.candidates.iter().chain(&password.candidates) {
        if let (Outcome::Failed(why), Source::Key(path)) = (&candidate.outcome, candidate.source) {
            // Locally nothing stands in for what is configured (contract 4.4), but a stand-in itself may fail.
            let fatal = if remote_mode { neither } else { path.starts_with("gateway.auth.") };
            if fatal {
                error.get_or_insert_with(|| CredentialError::SecretUnavailable { path, why: why.clone() });
            }
        }
    }
    (token, password, error)
}

/// One source of one kind of credential, before it is looked at.
struct Slot {
    source: Source,
    configured: Configured,
    excluded: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Token,
    Password,
}

/// What one kind of credential is called, by source.
struct Names {
    flag: &'static str,
    variable: &'static str,
    local: &'static str,
    remote: &'static str,
}

impl Kind {
    const fn names(self) -> Names {
        match self {
            Self::Token => Names {
                flag: "--token",
                variable: "OPENCLAW_GATEWAY_TOKEN",
                local: "gateway.auth.token",
                remote: "gateway.remote.token",
            },
            Self::Password => Names {
                flag: "--password",
                variable: "OPENCLAW_GATEWAY_PASSWORD",
                local: "gateway.auth.password",
                remote: "gateway.remote.password",
            },
        }
    }

    /// Whether a gateway of this mode looks at this kind of credential.
    const fn serves(self, mode: AuthMode) -> bool {
        match self {
            Self::Token => matches!(mode, AuthMode::Token),
            Self::Password => matches!(mode, AuthMode::Password | AuthMode::TrustedProxy),
        }
    }

    /// Every source of this kind, in the order in which they count.
    fn slots(self, sources: &Sources<'_>) -> Vec<Slot> {
        let Sources { flags, variables, settings, url_source, run_token, rules } = *sources;
        let names = self.names();
        let (flag, variable, local, remote, remote_order) = match self {
            Self::Token => {
                (&flags.token, &variables.token, &settings.token, &settings.remote_token, rules.remote_token)
            }
            Self::Password => (
                &flags.password,
                &variables.password,
                &settings.password,
                &settings.remote_password,
                rules.remote_password,
            ),
        };
        let explicit = [&flags.token, &flags.password].iter().any(|flag| !Configured::text(flag.as_deref()).is_unset());
        let no_env = if explicit {
            Some("explicit credentials are sent alone")
        } else {
            (url_source == URL_FLAG).then_some("--url never borrows credentials")
        };
        let no_config = no_env.or(match url_source {
            URL_VARIABLE => Some("OPENCLAW_GATEWAY_URL takes credentials from the environment only"),
            HOST_FLAG => Some("--host takes credentials from the command line and the environment only"),
            _ => None,
        });
        let slot = |source, configured: &Configured, excluded: Option<&'static str>| Slot {
            source,
            configured: configured.clone(),
            excluded,
        };
        let flag =
            Slot { source: Source::Flag(names.flag), configured: Configured::text(flag.as_deref()), excluded: None };
        let env = |why: Option<&'static str>| slot(Source::Variable(names.variable), variable, no_env.or(why));
        let auth = |why: Option<&'static str>| slot(Source::Key(names.local), local, no_config.or(why));
        let remote = |why: Option<&'static str>| slot(Source::Key(names.remote), remote, no_config.or(why));
        if sources.remote_mode() {
            return match remote_order {
                RemoteOrder::RemoteFirst => vec![flag, remote(None), env(None), auth(None)],
                RemoteOrder::EnvFirst => vec![flag, env(None), remote(None), auth(None)],
                RemoteOrder::RemoteOnly => {
                    let why = Some("in remote mode this command uses gateway.remote alone");
                    vec![flag, remote(None), env(why), auth(why)]
                }
            };
        }
        let run = match (self, run_token) {
            (Self::Token, Some(token)) => Configured::Value(token.clone()),
            _ => Configured::Unset,
        };
        let taken = (!local.is_unset()).then_some("it serves only while gateway.auth has none");
        let no_remote = if !rules.remote_serves_local {
            Some("a node host in local mode ignores gateway.remote")
        } else if self == Self::Password && settings.auth_mode == Some(AuthMode::TrustedProxy) {
            Some("with trusted-proxy the password is local")
        } else {
            taken
        };
        let [auth, run, remote] = [auth(None), slot(Source::Run, &run, no_config.or(taken)), remote(no_remote)];
        match self {
            // A gateway makes a token for itself, and never a password.
            Self::Password => vec![flag, env(None), auth, remote],
            Self::Token if variables.in_gateway_service => vec![flag, auth, run, remote, env(None)],
            Self::Token => vec![flag, env(None), auth, run, remote],
        }
    }
}

impl Credential {
    /// Goes through the sources; a reference is followed only when its value is `wanted`.
    fn choose(slots: Vec<Slot>, wanted: bool) -> Self {
        let mut won = false;
        let candidates = slots
            .into_iter()
            .map(|Slot { source, configured, excluded }| {
                let (value, outcome) = match (configured, excluded) {
                    (Configured::Unset, _) => (None, Outcome::Unset),
                    (Configured::Value(value), Some(why)) => (Some(value), Outcome::Excluded(why)),
                    (Configured::Value(value), None) if won => (Some(value), Outcome::Outranked),
                    (Configured::Value(value), None) => (Some(value), Outcome::Won),
                    (Configured::Reference(_), Some(why)) => (None, Outcome::Excluded(why)),
                    (Configured::Reference(_), None) if won => (None, Outcome::Outranked),
                    (Configured::Reference(_), None) if !wanted => (None, Outcome::NotNeeded),
                    (Configured::Reference(Reference(read)), None) => match read() {
                        Ok(value) => (Some(value), Outcome::Won),
                        Err(why) => (None, Outcome::Failed(why)),
                    },
                };
                won |= outcome == Outcome::Won;
                Candidate { source, value, outcome }
            })
            .collect();
        Self { candidates }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Configured {
        Configured::text(Some(text))
    }

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        Variables::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| *value))
    }

    #[test]
    fn s_86_edge_headers_go_to_the_configured_gateway_alone() {
        let settings = Settings {
            remote_mode: true,
            remote_url: Some("wss://gw.example".into()),
            remote_token: secret("rt"),
            remote_edge: vec![("x-edge".into(), secret("pass"))],
            remote_pins: vec![Pin::parse(&"0".repeat(64)).unwrap()],
            ..Settings::default()
        };
        let edge = |flags: &Flags, pairs: &[(&str, &str)], settings: &Settings| {
            let resolution = resolve(flags, &variables(pairs), settings, Purpose::Call).unwrap();
            (resolution.edge.len(), resolution.pins.map(|(_, source)| source.to_string()))
        };
        let pinned = Some("gateway.remote.tlsFingerprint".to_owned());
        assert_eq!(edge(&Flags::default(), &[], &settings), (1, pinned.clone()));
        let flags = |url: &str| Flags { url: Some(url.into()), token: Some("t".into()), ..Flags::default() };
        // The pin is no secret, and the certificate is the gateway's; the headers are secrets.
        assert_eq!(edge(&flags("wss://gw.example/x"), &[], &settings), (0, pinned));
        assert_eq!(edge(&flags("wss://other.example"), &[], &settings), (0, None));
        assert_eq!(edge(&flags("wss://gw.example:8443"), &[], &settings), (0, None));
        let variable = [("OPENCLAW_GATEWAY_URL", "wss://gw.example"), ("OPENCLAW_GATEWAY_TOKEN", "t")];
        assert_eq!(edge(&Flags::default(), &variable, &settings).0, 0);
        let plain = Settings { remote_url: Some("ws://127.0.0.1:1".into()), ..settings.clone() };
        assert_eq!(edge(&Flags::default(), &[], &plain), (0, None));
        let local = Settings { remote_mode: false, tls: true, ..settings.clone() };
        assert_eq!(edge(&Flags::default(), &[], &local), (0, None));

        let broken = Configured::reference(|| Err("EDGE is not set".into()));
        let broken = Settings { remote_edge: vec![("x-edge".into(), broken)], ..settings };
        let error = resolve(&Flags::default(), &variables(&[]), &broken, Purpose::Call).unwrap_err().to_string();
        assert!(error.contains("edgeAuth.x-edge") && error.contains("EDGE is not set"), "{error}");
        let wrong = Flags { tls_fingerprint: Some("ab:cd".into()), ..flags("wss://gw.example") };
        assert!(matches!(resolve(&wrong, &variables(&[]), &broken, Purpose::Call), Err(CredentialError::Pin(_))));
    }

    fn sent(resolution: &Resolution) -> (Option<&str>, Option<&str>) {
        (resolution.token.value().map(Secret::expose), resolution.password.value().map(Secret::expose))
    }

    #[test]
    fn a_url_from_the_command_line_borrows_nothing() {
        let settings = Settings { token: secret("local"), ..Settings::default() };
        let mut flags = Flags { url: Some("wss://gw.example".into()), ..Flags::default() };
        let variables = variables(&[("OPENCLAW_GATEWAY_TOKEN", "env")]);
        let error = resolve(&flags, &variables, &settings, Purpose::Call).unwrap_err();
        assert_eq!(error, CredentialError::ExplicitNeeded(URL_FLAG));
        flags.token = Some(" given ".into());
        let resolution = resolve(&flags, &variables, &settings, Purpose::Call).unwrap();
        assert_eq!(sent(&resolution), (Some("given"), None));
    }

    #[test]
    fn a_url_from_the_environment_takes_credentials_from_there_only() {
        let settings = Settings { token: secret("local"), password: secret("local"), ..Settings::default() };
        let url = ("OPENCLAW_GATEWAY_URL", "wss://gw.example");
        let error = resolve(&Flags::default(), &variables(&[url]), &settings, Purpose::Call).unwrap_err();
        assert_eq!(error, CredentialError::ExplicitNeeded(URL_VARIABLE));
        let with_token = variables(&[url, ("OPENCLAW_GATEWAY_TOKEN", "env")]);
        let resolution = resolve(&Flags::default(), &with_token, &settings, Purpose::Call).unwrap();
        assert_eq!(sent(&resolution), (Some("env"), None));
        assert_eq!(resolution.url_source, URL_VARIABLE);
    }

    #[test]
    fn the_url_has_an_order_of_its_own() {
        let settings = Settings { remote_mode: true, port: Some(7), ..Settings::default() };
        let none = Variables::default();
        let url = |flags: &Flags, variables: &Variables, settings: &Settings| {
            resolve(flags, variables, settings, Purpose::Call).map(|resolution| resolution.url.to_string())
        };
        assert_eq!(url(&Flags::default(), &none, &settings), Err(CredentialError::NoRemoteUrl));
        let port = Flags { port: Some(9), ..Flags::default() };
        assert_eq!(url(&port, &none, &settings).unwrap(), "ws://127.0.0.1:9");
        let remote = Settings { remote_url: Some("wss://r.example".into()), ..settings.clone() };
        assert_eq!(url(&Flags::default(), &none, &remote).unwrap(), "wss://r.example:443");
        let local = Settings { remote_mode: false, tls: true, ..settings };
        assert_eq!(url(&Flags::default(), &none, &local).unwrap(), "wss://127.0.0.1:7");
        let env_port = variables(&[("OPENCLAW_GATEWAY_PORT", "8")]);
        assert_eq!(url(&Flags::default(), &env_port, &local).unwrap(), "wss://127.0.0.1:8");
        assert_eq!(url(&Flags::default(), &none, &Settings::default()).unwrap(), "ws://127.0.0.1:18789");
    }

    #[test]
    fn a_refused_url_names_what_set_it() {
        let settings = Settings { remote_mode: true, remote_url: Some("ws://r.example".into()), ..Settings::default() };
        let error = resolve(&Flags::default(), &Variables::default(), &settings, Purpose::Call).unwrap_err();
        assert!(error.to_string().ends_with("(the URL comes from: gateway.remote.url)"), "{error}");
    }

    #[test]
    fn the_token_of_this_run_serves_its_own_port_only() {
        let run_token = Some((18789, Secret::new("run")));
        let settings = Settings { run_token, remote_token: secret("remote"), ..Settings::default() };
        let none = Variables::default();
        let resolution = resolve(&Flags::default(), &none, &settings, Purpose::Call).unwrap();
        assert_eq!((sent(&resolution), resolution.token.source()), ((Some("run"), None), Some(Source::Run)));
        let other = Flags { port: Some(9), ..Flags::default() };
        assert_eq!(sent(&resolve(&other, &none, &settings, Purpose::Call).unwrap()), (Some("remote"), None));
        let configured = Settings { token: secret("local"), ..settings };
        assert_eq!(sent(&resolve(&other, &none, &configured, Purpose::Call).unwrap()), (Some("local"), None));
    }

    #[test]
    fn a_node_host_knows_no_remote_credentials_in_local_mode() {
        let settings =
            Settings { remote_token: secret("remote"), remote_password: secret("remote"), ..Settings::default() };
        let resolution = resolve(&Flags::default(), &Variables::default(), &settings, Purpose::NodeHost).unwrap();
        assert_eq!(sent(&resolution), (None, None));
        let remote = Settings { remote_mode: true, remote_url: Some("wss://r.example".into()), ..settings };
        let env = variables(&[("OPENCLAW_GATEWAY_TOKEN", "env")]);
        let resolution = resolve(&Flags::default(), &env, &remote, Purpose::NodeHost).unwrap();
        assert_eq!(sent(&resolution), (Some("env"), Some("remote")));
    }

    #[test]
    fn an_unresolved_reference_says_which_and_why() {
        let settings = Settings {
            token: Configured::reference(|| Err("environment variable GW is not set".into())),
            remote_token: secret("remote"),
            ..Settings::default()
        };
        let error = resolve(&Flags::default(), &Variables::default(), &settings, Purpose::Call).unwrap_err();
        assert_eq!(
            error.to_string(),
            "gateway.auth.token is a secret reference without a value (environment variable GW is not set): provide it, \
             or pass --token or --password"
        );
    }

    #[test]
    fn says_what_came_of_every_source() {
        let settings = Settings { token: secret("local"), remote_token: secret("remote"), ..Settings::default() };
        let resolution = resolve(&Flags::default(), &Variables::default(), &settings, Purpose::Call).unwrap();
        let outcomes: Vec<_> =
            resolution.token.candidates.into_iter().map(|c| (c.source.to_string(), c.outcome)).collect();
        let excluded = Outcome::Excluded("it serves only while gateway.auth has none");
        assert_eq!(
            outcomes,
            [
                ("--token".to_owned(), Outcome::Unset),
                ("OPENCLAW_GATEWAY_TOKEN".to_owned(), Outcome::Unset),
                ("gateway.auth.token".to_owned(), Outcome::Won),
                ("the token the running gateway made".to_owned(), Outcome::Unset),
                ("gateway.remote.token".to_owned(), excluded),
            ]
        );
    }

    #[test]
    fn a_reference_is_followed_only_when_its_value_would_be_sent() {
        let never = || Configured::reference(|| panic!("followed"));
        let none = Variables::default();
        let check = |settings: &Settings, variables: &Variables, expected: (Option<&str>, Option<&str>)| {
            let resolution = resolve(&Flags::default(), variables, settings, Purpose::Call).unwrap();
            assert_eq!(sent(&resolution), expected);
        };
        let token = Settings { token: secret("t"), password: never(), ..Settings::default() };
        check(&token, &none, (Some("t"), None));
        let by_mode = Settings { auth_mode: Some(AuthMode::Token), ..token };
        check(&by_mode, &none, (Some("t"), None));
        let outranked = Settings { token: never(), ..Settings::default() };
        check(&outranked, &variables(&[("OPENCLAW_GATEWAY_TOKEN", "env")]), (Some("env"), None));
        let followed = Settings { token: Configured::reference(|| Ok(Secret::new("kept"))), ..Settings::default() };
        check(&followed, &none, (Some("kept"), None));
    }
}
