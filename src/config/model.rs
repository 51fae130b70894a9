//! The settings this gateway uses, as types: what [`super::decode`] makes of a configuration file.
//!
//! A value that exists here is within its range. Defaults are filled in, except where "not said" decides
//! something (those are `Option`). Keys of the file that are not here belong to other programs or to parts
//! of the gateway that do not exist yet; they stay in [`super::raw::Document`] and are never an error.
//!
//! The names follow the file: `gateway.auth.rateLimit.maxAttempts` is
//! `config.gateway.auth.rate_limit.max_attempts`. What no other program of the installation knows lies under
//! `plugins.entries.clawgate.config`, the one place that the strict schema of the OpenClaw tools, which read
//! the same file, leaves open; here it is [`Limits`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::fingerprint::Pin;
use super::keyword::keywords;
use super::secret_ref::{SecretInput, SecretProviders};
use crate::limits;
use crate::rpc::scope::Scope;

keywords! {
    /// `gateway.mode`: whether this machine runs a gateway or is a client of another one.
    Mode {
        /// Runs one.
        Local = "local",
        /// Is a client of `gateway.remote.url`.
        Remote = "remote",
    }
}

keywords! {
    /// `gateway.bind`: on which addresses to listen (contract 1.2).
    Bind {
        /// 127.0.0.1.
        Loopback = "loopback",
        /// Every IPv4 interface.
        Lan = "lan",
        /// The Tailscale IPv4 address, or loopback when there is none.
        Tailnet = "tailnet",
        /// `gateway.customBindHost`.
        Custom = "custom",
        /// Loopback; every IPv4 interface inside a container.
        Auto = "auto",
    }
}

keywords! {
    /// `gateway.auth.mode`: what lets a caller in (contract 2.1).
    AuthMode {
        /// Everyone who reaches the port. Loopback only.
        None = "none",
        /// A shared token.
        Token = "token",
        /// A shared password.
        Password = "password",
        /// The identity that a trusted reverse proxy vouches for.
        TrustedProxy = "trusted-proxy",
    }
}

keywords! {
    /// `gateway.tailscale.mode`.
    TailscaleMode {
        /// Tailscale is not involved.
        Off = "off",
        /// Reached by the tailnet through `tailscale serve`.
        Serve = "serve",
        /// Reached by the Internet through `tailscale funnel`.
        Funnel = "funnel",
    }
}

keywords! {
    /// `gateway.reload.mode`: whether edits of the file take effect while the gateway runs.
    ReloadMode {
        /// Only when it is told to (SIGHUP), or at its next start.
        Off = "off",
        /// At once, where that can be done; a notice names what needs a restart.
        Hybrid = "hybrid",
        /// An older word for `hybrid`.
        Hot = "hot",
        /// An older word for `hybrid`: this gateway never restarts by itself.
        Restart = "restart",
    }
}

keywords! {
    /// `gateway.remote.transport`: how a client reaches a remote gateway (contract 4.11).
    Transport {
        /// Through an SSH tunnel.
        Ssh = "ssh",
        /// By its URL.
        Direct = "direct",
    }
}

keywords! {
    /// `gateway.remote.sshHostKeyPolicy`.
    HostKeyPolicy {
        /// Only hosts whose key is known already.
        Strict = "strict",
        /// Whatever the user's OpenSSH configuration says.
        OpenSsh = "openssh",
    }
}

keywords! {
    /// `logging.level`, `logging.consoleLevel`.
    LogLevel {
        /// Nothing.
        Silent = "silent",
        /// Logged like `error`: there is no level above it here.
        Fatal = "fatal",
        /// Errors.
        Error = "error",
        /// And warnings.
        Warn = "warn",
        /// And what happens in normal operation.
        Info = "info",
        /// And what helps to find a fault.
        Debug = "debug",
        /// And everything else.
        Trace = "trace",
    }
}

keywords! {
    /// `logging.consoleStyle`.
    ConsoleStyle {
        /// Lines for people.
        Pretty = "pretty",
        /// One JSON object a line.
        Json = "json",
    }
}

/// Everything this gateway reads from the file.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `gateway`.
    pub gateway: Gateway,
    /// `logging`.
    pub logging: Logging,
    /// The agent and its channels.
    pub flow: super::flow::Flow,
    /// `secrets`: where SecretRefs lead.
    pub secrets: SecretProviders,
    /// `plugins.entries.clawgate.config.limits`.
    pub limits: Limits,
    /// `plugins.entries.clawgate.config.tailscale`.
    pub tailscale: TailscaleHost,
    /// `plugins.entries.clawgate.config.deviceTokens`.
    pub device_tokens: DeviceTokens,
    /// `plugins.entries.clawgate.config.tunnel`.
    pub tunnel: Tunnel,
    /// `plugins.entries.device-pair.config.publicUrl`: the address that setup codes lead to; `None` when unset or blank.
    /// The incumbent's key, so that one file serves both.
    pub public_url: Option<String>,
}

/// `plugins.entries.clawgate.config.deviceTokens`: when the token of a paired device ends. Without them, when it is revoked
/// or replaced, and not before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceTokens {
    /// `maxAgeDays`, 1 to 3650: from its making on, whatever it is used for.
    pub max_age: Option<Duration>,
    /// `idleDays`, 1 to 3650: from its last use on.
    pub idle: Option<Duration>,
}

/// `plugins.entries.clawgate.config.tunnel`: what the `ssh` transport of remote mode needs beyond `gateway.remote`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// `sshConfig`: an OpenSSH configuration file in place of the user's and the system's (`ssh -F`).
    pub ssh_config: Option<PathBuf>,
}

/// `gateway`.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// `mode`. Not said: `local` for everything but the tools that ask.
    pub mode: Option<Mode>,
    /// `port`, 1 to 65535. Not said: see [`super::resolve::port`].
    pub port: Option<u16>,
    /// `bind`. Default `loopback`.
    pub bind: Bind,
    /// `customBindHost`: one address, or several with commas between them. Wanted by `bind: "custom"`.
    pub custom_bind_host: Vec<IpAddr>,
    /// `auth`.
    pub auth: Auth,
    /// `trustedProxies`: addresses and CIDRs, IPv4-mapped ones as IPv4. Default none.
    pub trusted_proxies: Vec<IpNet>,
    /// `allowRealIpFallback`: `X-Real-IP` counts where `X-Forwarded-For` is missing. Default false.
    pub allow_real_ip_fallback: bool,
    /// `controlUi`.
    pub control_ui: ControlUi,
    /// `tailscale.mode`. Default `off`.
    pub tailscale: TailscaleMode,
    /// `remote`: for clients on this machine; the server never reads it (contract 2.3).
    pub remote: Remote,
    /// `tls`.
    pub tls: Tls,
    /// `reload.mode`. Default `hybrid`.
    pub reload: ReloadMode,
    /// `nodes`.
    pub nodes: Nodes,
    /// Time from accept to `hello-ok`: `OPENCLAW_HANDSHAKE_TIMEOUT_MS`, else `handshakeTimeoutMs`, 1 ms to
    /// 10 min. Default 15 s.
    pub handshake_timeout: Duration,
    /// `http.securityHeaders.strictTransportSecurity`: the value of that header. Default none is sent.
    pub strict_transport_security: Option<String>,
    /// `http.endpoints.chatCompletions.enabled`: OpenAI's chat completions and models. Default false.
    pub chat_completions: bool,
    /// `tools.deny`: tools that are not called over HTTP. Default none beyond the built-in ones.
    pub deny_tools: Vec<String>,
    /// `tools.allow`: tools that are, although they are on the built-in list. Default none.
    pub allow_tools: Vec<String>,
}

/// `gateway.auth`.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// `mode`. Not said: see [`super::resolve::server_auth`].
    pub mode: Option<AuthMode>,
    /// `token`; `None` when unset or blank.
    pub token: Option<SecretInput>,
    /// `password`; `None` when unset or blank.
    pub password: Option<SecretInput>,
    /// `allowTailscale`. Not said: see [`super::resolve::server_auth`].
    pub allow_tailscale: Option<bool>,
    /// `identityScopes`: what a verified proxy or Tailscale identity is granted for one connection.
    pub identity_scopes: BTreeMap<String, Vec<Scope>>,
    /// `trustedProxy`, when there is such a section.
    pub trusted_proxy: Option<TrustedProxy>,
    /// `rateLimit`.
    pub rate_limit: RateLimit,
}

/// `gateway.auth.trustedProxy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedProxy {
    /// `userHeader`: a header name, as written. `None` when unset or blank, which the mode `trusted-proxy`
    /// does not start with.
    pub user_header: Option<String>,
    /// `requiredHeaders`: header names, as written. Default none.
    pub required_headers: Vec<String>,
    /// `allowUsers`: empty lets every user in. Default empty.
    pub allow_users: Vec<String>,
    /// `allowLoopback`: the proxy may be on this host. Default false.
    pub allow_loopback: bool,
    /// `deviceAutoApprove.scopes` where `deviceAutoApprove.enabled` is true: what a user of the proxy may
    /// pair a device with unasked. Default where enabled: read, write, approvals, questions.
    pub device_auto_approve: Option<Vec<Scope>>,
}

/// `gateway.auth.rateLimit`: wrong credentials per client address and kind (contract 2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// `maxAttempts`, at least 1. Default 10.
    pub max_attempts: u32,
    /// `windowMs`, at least 1. Default 60 s.
    pub window: Duration,
    /// `lockoutMs`, at least 1. Default 5 min.
    pub lockout: Duration,
    /// `exemptLoopback`. Default true.
    pub exempt_loopback: bool,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            window: Duration::from_secs(60),
            lockout: Duration::from_secs(300),
            exempt_loopback: true,
        }
    }
}

/// `gateway.controlUi`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlUi {
    /// `enabled`. Default true.
    pub enabled: bool,
    /// `root`: a folder to serve in place of the built-in pages.
    pub root: Option<PathBuf>,
    /// `basePath`: empty, or a path that begins with `/` and does not end with one.
    pub base_path: String,
    /// `allowedOrigins`: `scheme://host[:port]` each, or `*`; no white space around, no slash at the end.
    pub allowed_origins: Vec<String>,
    /// `allowInsecureAuth`. Default false.
    pub allow_insecure_auth: bool,
    /// `dangerouslyAllowHostHeaderOriginFallback`: an Origin that equals the Host header is allowed wherever
    /// the host is. Default false.
    pub allow_host_header_origin: bool,
}

impl Default for ControlUi {
    fn default() -> Self {
        Self {
            enabled: true,
            root: None,
            base_path: String::new(),
            allowed_origins: Vec::new(),
            allow_insecure_auth: false,
            allow_host_header_origin: false,
        }
    }
}

/// `gateway.remote`.
#[derive(Clone, Debug)]
pub struct Remote {
    /// `url`, as written.
    pub url: Option<String>,
    /// `transport`. Default `ssh`.
    pub transport: Transport,
    /// `token`; `None` when unset or blank.
    pub token: Option<SecretInput>,
    /// `password`; `None` when unset or blank.
    pub password: Option<SecretInput>,
    /// `sshTarget`: `[user@]host[:port]`, as written.
    pub ssh_target: Option<String>,
    /// `sshIdentity`: path of a private key.
    pub ssh_identity: Option<PathBuf>,
    /// `sshHostKeyPolicy`. Default `strict`.
    pub ssh_host_key_policy: HostKeyPolicy,
    /// `remotePort`, 1 to 65535: the gateway's port at the far end of the tunnel.
    pub remote_port: Option<u16>,
    /// `tlsFingerprint`: one pin, or several with commas between them; any of them may match.
    pub tls_pins: Vec<Pin>,
    /// `edgeAuth`: headers for a proxy in front of `url`, sent there over `wss://` and nowhere else; at most 16.
    /// By name, in lower case.
    pub edge_auth: BTreeMap<String, SecretInput>,
}

impl Default for Remote {
    fn default() -> Self {
        Self {
            url: None,
            transport: Transport::Ssh,
            token: None,
            password: None,
            ssh_target: None,
            ssh_identity: None,
            ssh_host_key_policy: HostKeyPolicy::Strict,
            remote_port: None,
            tls_pins: Vec::new(),
            edge_auth: BTreeMap::new(),
        }
    }
}

/// `gateway.tls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// `enabled`. Default false.
    pub enabled: bool,
    /// `autoGenerate`: make a self-signed pair when both files are missing. Default true.
    pub auto_generate: bool,
    /// `certPath`.
    pub cert_path: Option<PathBuf>,
    /// `keyPath`.
    pub key_path: Option<PathBuf>,
    /// `caPath`: no effect. `certPath` holds the whole chain, and clients prove themselves by `gateway.auth`.
    pub ca_path: Option<PathBuf>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { enabled: false, auto_generate: true, cert_path: None, key_path: None, ca_path: None }
    }
}

/// `gateway.nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// `commands.allow` with the older `allowCommands`: exact command names.
    pub allow_commands: Vec<String>,
    /// `commands.deny` with the older `denyCommands`: exact command names. They win over everything.
    pub deny_commands: Vec<String>,
    /// `pluginTools.enabled`: nodes may publish tools for agents. Default true.
    pub plugin_tools: bool,
    /// `allowSkills`: nodes may publish skills. Default true.
    pub allow_skills: bool,
    /// `pairing.autoApproveLocal`: truly local devices pair silently. Default true.
    pub auto_approve_local: bool,
    /// `pairing.autoApproveCidrs`: where a new node may pair unasked from. Default none.
    pub auto_approve_cidrs: Vec<IpNet>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            allow_commands: Vec::new(),
            deny_commands: Vec::new(),
            plugin_tools: true,
            allow_skills: true,
            auto_approve_local: true,
            auto_approve_cidrs: Vec::new(),
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            mode: None,
            port: None,
            bind: Bind::Loopback,
            custom_bind_host: Vec::new(),
            auth: Auth::default(),
            trusted_proxies: Vec::new(),
            allow_real_ip_fallback: false,
            control_ui: ControlUi::default(),
            chat_completions: false,
            deny_tools: Vec::new(),
            allow_tools: Vec::new(),
            tailscale: TailscaleMode::Off,
            remote: Remote::default(),
            tls: Tls::default(),
            reload: ReloadMode::Hybrid,
            nodes: Nodes::default(),
            handshake_timeout: limits::HANDSHAKE_TIMEOUT,
            strict_transport_security: None,
        }
    }
}

/// `logging`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// `level`. Default `info`.
    pub level: LogLevel,
    /// `consoleLevel`. Not said: `level`.
    pub console_level: Option<LogLevel>,
    /// `consoleStyle`. Default `pretty`.
    pub console_style: ConsoleStyle,
    /// `file`: also log there.
    pub file: Option<PathBuf>,
}

impl Default for Logging {
    fn default() -> Self {
        Self { level: LogLevel::Info, console_level: None, console_style: ConsoleStyle::Pretty, file: None }
    }
}

/// `plugins.entries.clawgate.config.tailscale`: where Tailscale is on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailscaleHost {
    /// `socket`: of the daemon's LocalAPI. Default `/var/run/tailscale/tailscaled.sock`; on macOS
    /// `/var/run/tailscaled.socket`.
    pub socket: PathBuf,
    /// `command`: an absolute path, or a name to look for in `PATH`. Default `tailscale`.
    pub command: PathBuf,
}

impl Default for TailscaleHost {
    fn default() -> Self {
        let socket = match cfg!(target_os = "macos") {
            true => "/var/run/tailscaled.socket",
            false => "/var/run/tailscale/tailscaled.sock",
        };
        Self { socket: socket.into(), command: "tailscale".into() }
    }
}

/// `plugins.entries.clawgate.config.limits`: how much slow consumers and strangers may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `outboxBytes`: bytes that may wait for one connection, 64 KiB to 1 GiB. Default 4 MiB.
    pub outbox_bytes: usize,
    /// `totalOutboxBytes`: bytes that may wait for all connections together, 1 MiB to 64 GiB and not less
    /// than `outboxBytes`. Default 256 MiB.
    pub total_outbox_bytes: usize,
    /// `preauthSockets`: sockets that may be open without having authenticated, all together, 16 to 1048576. Half of
    /// them from one peer that many share. Default 16384.
    pub preauth_sockets: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            outbox_bytes: limits::OUTBOX_BYTES,
            total_outbox_bytes: 256 << 20,
            preauth_sockets: limits::PREAUTH_SOCKETS,
        }
    }
}
