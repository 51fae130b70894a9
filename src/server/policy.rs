//! From settings to what the layers below take: the access policy, the node policy, facts about the host.

use std::net::IpAddr;

use crate::address::AddressList;
use crate::agent::profiles::Routing;
use crate::agent::{self, providers::Endpoint};
use crate::api;
use crate::auth::origin::OriginPolicy;
use crate::auth::rate_limit::RateLimitPolicy;
use crate::auth::trusted_proxy::TrustedProxy;
use crate::auth::{AuthMode, Policy};
use crate::channels::telegram;
use crate::config::in_clear::{InClear, in_clear};
use crate::config::model::{AuthMode as ConfiguredMode, Tls};
use crate::config::resolve::{Credential, ServerAuth, Start};
use crate::config::secret_ref::SecretReader;
use crate::config::{Config, Paths};
use crate::devices::pairing::TokenLife;
use crate::http::files::Files;
use crate::net::tls;
use crate::nodes::NodePolicy;
use crate::outgoing::Outgoing;
use crate::rpc::scope::ScopeSet;
use crate::secret::{Secret, SecretHash};

/// The first generation of the access policy.
const FIRST: u64 = 1;

/// The access policy of a configuration, of which `auth` was decided. `generated` is the token made for this run.
pub(super) fn policy(config: &Config, auth: &ServerAuth, generated: Option<&Secret>) -> Policy {
    let gateway = &config.gateway;
    let hash = |credential: &Option<Credential>| credential.as_ref().map(|it| SecretHash::of(it.secret.expose()));
    let mode = match auth.mode {
        ConfiguredMode::None => AuthMode::None,
        ConfiguredMode::Token => {
            AuthMode::Token(hash(&auth.token).or_else(|| generated.map(|token| SecretHash::of(token.expose()))))
        }
        ConfiguredMode::Password => AuthMode::Password(hash(&auth.password)),
        ConfiguredMode::TrustedProxy => AuthMode::TrustedProxy {
            proxy: gateway.auth.trusted_proxy.as_ref().and_then(|proxy| {
                let boxed = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect();
                Some(TrustedProxy {
                    user_header: proxy.user_header.as_deref()?.into(),
                    required_headers: boxed(&proxy.required_headers),
                    allow_users: boxed(&proxy.allow_users),
                    allow_loopback: proxy.allow_loopback,
                })
            }),
            password: hash(&auth.password),
        },
    };
    let networks = |list: &[ipnet::IpNet]| list.iter().copied().collect::<AddressList>();
    let mut policy = Policy::new(FIRST, mode);
    let given = match auth.mode {
        ConfiguredMode::Token => auth.token.as_ref(),
        _ => auth.password.as_ref(),
    };
    policy.secret_source = match (given, generated) {
        (Some(credential), _) => Some(credential.source.to_string().into()),
        (None, Some(_)) => Some("the token it made for this run".into()),
        (None, None) => None,
    };
    policy.ingress.trusted_proxies = networks(&gateway.trusted_proxies);
    policy.ingress.real_ip_fallback = gateway.allow_real_ip_fallback;
    policy.ingress.tailscale_on_main = gateway.auth.allow_tailscale == Some(true);
    policy.origins = OriginPolicy::parse(gateway.control_ui.allowed_origins.iter().map(String::as_str));
    policy.origins.host_fallback = gateway.control_ui.allow_host_header_origin;
    policy.allow_tailscale = auth.allow_tailscale;
    policy.allow_insecure_ui = gateway.control_ui.allow_insecure_auth;
    let scopes = |list: &[crate::rpc::scope::Scope]| list.iter().copied().collect::<ScopeSet>();
    policy.identity_scopes =
        gateway.auth.identity_scopes.iter().map(|(user, list)| (user.as_str().into(), scopes(list))).collect();
    policy.device_auto_approve =
        gateway.auth.trusted_proxy.as_ref().and_then(|proxy| proxy.device_auto_approve.as_deref()).map(scopes);
    policy.pair_local_silently = gateway.nodes.auto_approve_local;
    policy.node_auto_approve = networks(&gateway.nodes.auto_approve_cidrs);
    policy
}

/// The limits on wrong credentials.
pub(super) fn rate_limits(config: &Config) -> RateLimitPolicy {
    let limit = &config.gateway.auth.rate_limit;
    let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    RateLimitPolicy {
        max_attempts: limit.max_attempts,
        window_ms: ms(limit.window),
        lockout_ms: ms(limit.lockout),
        exempt_loopback: limit.exempt_loopback,
        ..RateLimitPolicy::default()
    }
}

/// What nodes may be asked to do.
pub(super) fn nodes(config: &Config) -> NodePolicy {
    let nodes = &config.gateway.nodes;
    NodePolicy {
        allow_commands: nodes.allow_commands.clone(),
        deny_commands: nodes.deny_commands.clone(),
        plugin_tools: nodes.plugin_tools,
        allow_skills: nodes.allow_skills,
    }
}

/// When the tokens of devices end.
pub(super) fn token_life(config: &Config) -> TokenLife {
    let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    TokenLife { max_age_ms: config.device_tokens.max_age.map(ms), idle_ms: config.device_tokens.idle.map(ms) }
}

/// Where the certificate and its key lie: as configured, else where every program of the installation looks.
pub(crate) fn tls_files(settings: &Tls, paths: &Paths) -> tls::Files {
    let folder = paths.state_dir.join("gateway").join("tls");
    tls::Files {
        cert: settings.cert_path.clone().unwrap_or_else(|| folder.join("gateway-cert.pem")),
        key: settings.key_path.clone().unwrap_or_else(|| folder.join("gateway-key.pem")),
        may_make: settings.auto_generate,
    }
}

/// What a certificate of ours is for: this host by its names, and every address that is listened on.
pub(super) fn tls_names(start: &Start) -> Vec<String> {
    let mut names = vec!["localhost".to_owned()];
    let host = host_name();
    let is_dns =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if is_dns(&host) {
        names.extend([host.clone(), format!("{}.local", host.trim_end_matches(".local"))]);
    }
    let own = || if_addrs::get_if_addrs().unwrap_or_default().into_iter().map(|interface| interface.ip());
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
    for address in &start.listen.addresses {
        match address.is_unspecified() {
            true => addresses.extend(own().filter(|own| own.is_ipv4() == address.is_ipv4())),
            false => addresses.push(*address),
        }
    }
    names.extend(addresses.iter().map(ToString::to_string));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// In which order the keys of a provider are used.
pub(super) fn routing(config: &Config) -> Routing {
    let auth = config.flow.auth.clone();
    Routing { order: auth.order, profiles: auth.profiles }
}

/// The models and limits of the agent, and how many of its keys can't be had: their providers are left out, with a word in
/// the log.
pub(super) fn agent(config: &Config, secrets: &SecretReader<'_>) -> (agent::Settings, usize) {
    let flow = &config.flow;
    let (mut models, mut unresolved) = (Vec::new(), 0);
    for (id, provider) in &flow.models.providers {
        let key = match provider.api_key.as_ref().map(|key| secrets.read(key)).transpose() {
            Ok(key) => key,
            Err(error) => {
                tracing::error!("models.providers.{id}.apiKey cannot be resolved, so its models are left out: {error}");
                unresolved += 1;
                continue;
            }
        };
        models.extend(provider.models.iter().map(|model| Endpoint {
            provider: id.clone(),
            api: provider.api,
            base_url: provider.base_url.clone(),
            key: key.clone(),
            model: model.clone(),
        }));
    }
    let place = |name: &String| {
        let is_it = |endpoint: &Endpoint| *name == format!("{}/{}", endpoint.provider, endpoint.model.id);
        let found = models.iter().position(is_it);
        if found.is_none() {
            tracing::warn!("agents.defaults.model: there is no model {name:?} in models.providers");
        }
        found
    };
    let mut order: Vec<usize> = flow.agents.primary.iter().chain(&flow.agents.fallbacks).filter_map(place).collect();
    // With nothing said, the first model there is.
    if flow.agents.primary.is_none() && order.is_empty() && !models.is_empty() {
        order.push(0);
    }
    let max_concurrent = flow.agents.max_concurrent;
    (agent::Settings { models, order, timeout: flow.agents.timeout, max_concurrent }, unresolved)
}

/// Says which secrets would leave in clear, as `security audit` does: who never asks that should hear of it, too.
pub(super) fn warn_of_what_leaves_in_clear(config: &Config) {
    for leak in in_clear(config) {
        let InClear { key, host, what, .. } = leak;
        tracing::warn!(
            "{key} is plain http:// to {host}: whoever is on the way reads {what}; use its https:// address"
        );
    }
}

/// What the HTTP API serves.
pub(super) fn api(config: &Config) -> api::Settings {
    let gateway = &config.gateway;
    api::Settings {
        chat_completions: gateway.chat_completions,
        deny_tools: gateway.deny_tools.iter().cloned().collect(),
        allow_tools: gateway.allow_tools.iter().cloned().collect(),
    }
}

/// The Control UI's files, where the operator has named a folder with them.
pub(super) fn interface(config: &Config) -> Option<Files> {
    let ui = &config.gateway.control_ui;
    let root = ui.root.as_ref().filter(|_| ui.enabled)?;
    Files::open(root, &ui.base_path)
        .inspect_err(|error| {
            tracing::error!(root = %root.display(), %error, "gateway.controlUi.root cannot be served, so there is no Control UI");
        })
        .ok()
}

/// The Telegram account, or why there is none although one is configured.
pub(super) fn telegram(
    config: &Config,
    secrets: &SecretReader<'_>,
    outgoing: &Outgoing,
) -> Option<Result<telegram::Account, String>> {
    let settings = config.flow.telegram.clone()?;
    let token = match &settings.bot_token {
        Some(token) => {
            secrets.read(token).map_err(|error| format!("channels.telegram.botToken cannot be resolved: {error}"))
        }
        None if settings.enabled => Err("channels.telegram is enabled and has no botToken".to_owned()),
        None => return None,
    };
    let secret = settings.webhook_secret.as_ref().filter(|_| settings.webhook_url.is_some());
    let secret = secret.map(|secret| {
        secrets.read(secret).map_err(|error| format!("channels.telegram.webhookSecret cannot be resolved: {error}"))
    });
    let dm_scope = config.flow.dm_scope;
    Some(
        token
            .and_then(|token| telegram::Account::new(settings, dm_scope, token, secret.transpose()?, outgoing.clone())),
    )
}

/// Name of the machine.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Operating system and release: `linux 6.18.1`.
pub(super) fn platform() -> String {
    format!("{} {}", std::env::consts::OS, rustix::system::uname().release().to_string_lossy())
}
