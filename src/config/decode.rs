//! From a document to the typed [`Config`], or to everything that is wrong with it at once.
//!
//! The keys are those of [`super::model`], in its order. A key that is not read here is not looked at, so it
//! can be anything. A key that is read must hold what it should: `null`, a number in quotes or a word in the
//! wrong case is refused with its place and with what is allowed, never guessed. `${NAME}` in a string stands
//! for a variable. No problem shows any part of a secret.
//!
//! Start at [`decode`]; `Reader` has one method a kind of value.

mod flow;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::Environment;
use super::environment::{Expanded, expand, is_reference_name, leading_reference};
use super::fingerprint::Pin;
use super::key_path::KeyPath;
use super::keyword::Keyword;
use super::model::{
    Auth, Config, ConsoleStyle, ControlUi, DeviceTokens, Gateway, HostKeyPolicy, Limits, LogLevel, Logging, Nodes,
    RateLimit, Remote, TailscaleHost, Tls, Transport, TrustedProxy, Tunnel,
};
use super::raw::{Document, Member, Node, Position, Value};
use super::secret_ref::{
    ExecProvider, FileProvider, Provider, REDACTED, SecretInput, SecretProviders, SecretRef, SecretSource,
    is_provider_alias,
};
use super::spelling::misspelt;
use crate::address::parse_network;
use crate::rpc::scope::Scope;
use crate::secret::Secret;

/// Headers that `gateway.remote.edgeAuth` may have.
const MAX_EDGE_HEADERS: usize = 16;

/// A valid configuration, and what its author should know about it.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The settings.
    pub config: Config,
    /// What is allowed but has no effect here.
    pub notices: Vec<Problem>,
}

/// Something wrong with the value of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key.
    pub key: KeyPath,
    /// Where its value stands.
    pub position: Position,
    /// What is wrong, as the rest of a sentence that begins with the key.
    pub message: String,
    /// The words that are allowed, when it is a closed set.
    pub allowed: &'static [&'static str],
}

impl fmt::Display for Problem {
    /// `8:11: gateway.port must be …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.position, self.key, self.message)
    }
}

/// Reads the settings of `document`. Variables come from `environment`.
///
/// # Errors
/// Every problem up to a hundred, in the order of the file.
pub fn decode(document: &Document, environment: &Environment) -> Result<Decoded, Vec<Problem>> {
    let mut reader = Reader { document, environment, default_env: None, problems: Vec::new(), notices: Vec::new() };
    let config = reader.config();
    if reader.problems.is_empty() {
        reader.notices.extend(misspelt(document));
        return Ok(Decoded { config, notices: reader.notices });
    }
    reader.problems.sort_by_key(|problem| problem.position);
    Err(reader.problems)
}

/// The assignments of `env.vars`: variables that hold where nothing else sets them.
pub fn inline_variables(document: &Document) -> Vec<(String, String)> {
    let variables = document.root().value.get("env").and_then(|env| env.value.get("vars"));
    variables
        .and_then(|node| node.value.as_object())
        .unwrap_or_default()
        .iter()
        .filter_map(|member| Some((member.key.clone(), member.node.value.as_str()?.to_owned())))
        .collect()
}

/// What a wrong `gateway.bind` or `--bind` was probably meant to be, as a sentence without the full stop.
pub fn bind_hint(found: &str) -> Option<String> {
    let word = match found {
        "0.0.0.0" | "::" | "[::]" | "*" | "all" | "any" => "to listen on every interface use \"lan\"",
        "127.0.0.1" | "localhost" | "::1" | "[::1]" | "local" => "to listen on this machine only use \"loopback\"",
        "tailscale" => "use \"tailnet\"",
        _ if found.parse::<IpAddr>().is_ok() => {
            return Some(format!("to listen on {found} use \"custom\" and set gateway.customBindHost to {found:?}"));
        }
        _ => return None,
    };
    Some(word.to_owned())
}

/// An object of the document and the way to it; without members where it is missing.
#[derive(Clone)]
struct Section<'a> {
    path: KeyPath,
    members: &'a [Member],
}

impl<'a> Section<'a> {
    fn get(&self, key: &str) -> Option<&'a Node> {
        self.members.iter().find(|member| member.key == key).map(|member| &member.node)
    }
}

struct Reader<'a> {
    document: &'a Document,
    environment: &'a Environment,
    /// `secrets.defaults.env`.
    default_env: Option<String>,
    problems: Vec<Problem>,
    notices: Vec<Problem>,
}

/// The sections, in the order of the model.
impl<'a> Reader<'a> {
    fn config(&mut self) -> Config {
        let root =
            Section { path: KeyPath::default(), members: self.document.root().value.as_object().unwrap_or_default() };
        self.refuse_include(&root);
        let secrets = self.section(&root, "secrets");
        let secrets = self.secrets(&secrets);
        let gateway = self.section(&root, "gateway");
        let logging = self.section(&root, "logging");
        let own = ["plugins", "entries", "clawgate", "config"]
            .iter()
            .fold(root.clone(), |section, key| self.section(&section, key));
        let device_pair = ["plugins", "entries", "device-pair", "config"]
            .iter()
            .fold(root.clone(), |section, key| self.section(&section, key));
        let [limits, tailscale, tunnel, device_tokens] =
            ["limits", "tailscale", "tunnel", "deviceTokens"].map(|key| self.section(&own, key));
        Config {
            gateway: self.gateway(&gateway),
            logging: self.logging(&logging),
            flow: self.flow(&root),
            secrets,
            limits: self.limits(&limits),
            tailscale: self.tailscale(&tailscale),
            device_tokens: DeviceTokens {
                max_age: self.days(&device_tokens, "maxAgeDays"),
                idle: self.days(&device_tokens, "idleDays"),
            },
            tunnel: Tunnel { ssh_config: self.path(&tunnel, "sshConfig") },
            public_url: self.text(&device_pair, "publicUrl").filter(|url| !url.trim().is_empty()),
        }
    }

    fn gateway(&mut self, s: &Section<'a>) -> Gateway {
        let default = Gateway::default();
        let [auth, control_ui, tailscale, remote, tls, reload, nodes, http, tools] =
            ["auth", "controlUi", "tailscale", "remote", "tls", "reload", "nodes", "http", "tools"]
                .map(|key| self.section(s, key));
        let headers = self.section(&http, "securityHeaders");
        let endpoints = self.section(&http, "endpoints");
        let completions = self.section(&endpoints, "chatCompletions");
        Gateway {
            mode: self.keyword(s, "mode", |_| None),
            port: self.port(s, "port"),
            bind: self.keyword(s, "bind", bind_hint).unwrap_or(default.bind),
            custom_bind_host: self.custom_bind_host(s),
            auth: self.auth(&auth),
            trusted_proxies: self.networks(s, "trustedProxies"),
            allow_real_ip_fallback: self.boolean(s, "allowRealIpFallback").unwrap_or(default.allow_real_ip_fallback),
            control_ui: self.control_ui(&control_ui),
            tailscale: self.keyword(&tailscale, "mode", |_| None).unwrap_or(default.tailscale),
            remote: self.remote(&remote),
            tls: self.tls(&tls),
            reload: self.keyword(&reload, "mode", |_| None).unwrap_or(default.reload),
            nodes: self.nodes(&nodes),
            handshake_timeout: self
                .milliseconds(s, "handshakeTimeoutMs", 1..=600_000)
                .unwrap_or(default.handshake_timeout),
            strict_transport_security: self.header_value_or_false(&headers, "strictTransportSecurity"),
            chat_completions: self.boolean(&completions, "enabled").unwrap_or(default.chat_completions),
            deny_tools: self.texts(&tools, "deny"),
            allow_tools: self.texts(&tools, "allow"),
        }
    }

    fn auth(&mut self, s: &Section<'a>) -> Auth {
        let rate_limit = self.section(s, "rateLimit");
        let identities = self.section(s, "identityScopes");
        Auth {
            mode: self.keyword(s, "mode", |_| None),
            token: self.secret(s, "token"),
            password: self.secret(s, "password"),
            allow_tailscale: self.boolean(s, "allowTailscale"),
            identity_scopes: identities
                .members
                .iter()
                .map(|member| (member.key.trim().to_owned(), self.scopes(&identities, &member.key)))
                .collect(),
            trusted_proxy: s.get("trustedProxy").is_some().then(|| {
                let section = self.section(s, "trustedProxy");
                self.trusted_proxy(&section)
            }),
            rate_limit: self.rate_limit(&rate_limit),
        }
    }

    fn trusted_proxy(&mut self, s: &Section<'a>) -> TrustedProxy {
        let approve = self.section(s, "deviceAutoApprove");
        let enabled = self.boolean(&approve, "enabled").unwrap_or(false);
        let scopes = match approve.get("scopes") {
            Some(_) => self.scopes(&approve, "scopes"),
            None => vec![Scope::Read, Scope::Write, Scope::Approvals, Scope::Questions],
        };
        TrustedProxy {
            user_header: self.parsed(s, "userHeader", header_name),
            required_headers: self.parsed_list(s, "requiredHeaders", header_name),
            allow_users: self.texts(s, "allowUsers"),
            allow_loopback: self.boolean(s, "allowLoopback").unwrap_or(false),
            device_auto_approve: enabled.then_some(scopes),
        }
    }

    fn rate_limit(&mut self, s: &Section<'a>) -> RateLimit {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        let default = RateLimit::default();
        RateLimit {
            max_attempts: self
                .integer(s, "maxAttempts", 1..=1_000_000)
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(default.max_attempts),
            window: self.milliseconds(s, "windowMs", 1..=DAY_MS).unwrap_or(default.window),
            lockout: self.milliseconds(s, "lockoutMs", 1..=DAY_MS).unwrap_or(default.lockout),
            exempt_loopback: self.boolean(s, "exemptLoopback").unwrap_or(default.exempt_loopback),
        }
    }

    fn control_ui(&mut self, s: &Section<'a>) -> ControlUi {
        let default = ControlUi::default();
        ControlUi {
            enabled: self.boolean(s, "enabled").unwrap_or(default.enabled),
            root: self.path(s, "root"),
            base_path: self.parsed(s, "basePath", base_path).unwrap_or(default.base_path),
            allowed_origins: self.parsed_list(s, "allowedOrigins", origin),
            allow_insecure_auth: self.boolean(s, "allowInsecureAuth").unwrap_or(default.allow_insecure_auth),
            allow_host_header_origin: self
                .boolean(s, "dangerouslyAllowHostHeaderOriginFallback")
                .unwrap_or(default.allow_host_header_origin),
        }
    }

    fn remote(&mut self, s: &Section<'a>) -> Remote {
        Remote {
            url: self.text(s, "url"),
            transport: self.keyword(s, "transport", |_| None).unwrap_or(Transport::Ssh),
            token: self.secret(s, "token"),
            password: self.secret(s, "password"),
            ssh_target: self.text(s, "sshTarget"),
            ssh_identity: self.path(s, "sshIdentity"),
            ssh_host_key_policy: self.keyword(s, "sshHostKeyPolicy", |_| None).unwrap_or(HostKeyPolicy::Strict),
            remote_port: self.port(s, "remotePort"),
            tls_pins: self
                .parsed(s, "tlsFingerprint", |text| {
                    text.split(',').map(Pin::parse).collect::<Result<_, _>>().map_err(|e| e.to_string())
                })
                .unwrap_or_default(),
            edge_auth: self.edge_auth(s),
        }
    }

    fn edge_auth(&mut self, remote: &Section<'a>) -> BTreeMap<String, SecretInput> {
        let s = self.section(remote, "edgeAuth");
        let mut headers = BTreeMap::new();
        for member in s.members {
            let name = member.key.to_ascii_lowercase();
            let objection = match header_name(&member.key) {
                Err(reason) => Some(reason),
                Ok(_) if is_of_the_upgrade(&name) => Some("this header is set by the connection itself".to_owned()),
                Ok(_) if headers.len() == MAX_EDGE_HEADERS => {
                    Some(format!("there are more than {MAX_EDGE_HEADERS} headers"))
                }
                Ok(_) => None,
            };
            if let Some(objection) = objection {
                self.problem(s.path.key(&member.key), &member.node, objection);
            } else if let Some(value) = self.secret(&s, &member.key) {
                headers.insert(name, value);
            }
        }
        headers
    }

    fn tls(&mut self, s: &Section<'a>) -> Tls {
        let default = Tls::default();
        Tls {
            enabled: self.boolean(s, "enabled").unwrap_or(default.enabled),
            auto_generate: self.boolean(s, "autoGenerate").unwrap_or(default.auto_generate),
            cert_path: self.path(s, "certPath"),
            key_path: self.path(s, "keyPath"),
            ca_path: self.path(s, "caPath"),
        }
    }

    fn nodes(&mut self, s: &Section<'a>) -> Nodes {
        let default = Nodes::default();
        let [commands, plugin_tools, pairing] = ["commands", "pluginTools", "pairing"].map(|key| self.section(s, key));
        let mut both = |newer: &str, older: &str| {
            let mut names = self.texts(&commands, newer);
            names.extend(self.texts(s, older));
            names
        };
        Nodes {
            allow_commands: both("allow", "allowCommands"),
            deny_commands: both("deny", "denyCommands"),
            plugin_tools: self.boolean(&plugin_tools, "enabled").unwrap_or(default.plugin_tools),
            allow_skills: self.boolean(s, "allowSkills").unwrap_or(default.allow_skills),
            auto_approve_local: self.boolean(&pairing, "autoApproveLocal").unwrap_or(default.auto_approve_local),
            auto_approve_cidrs: self.networks(&pairing, "autoApproveCidrs"),
        }
    }

    fn logging(&mut self, s: &Section<'a>) -> Logging {
        Logging {
            level: self.keyword(s, "level", |_| None).unwrap_or(LogLevel::Info),
            console_level: self.keyword(s, "consoleLevel", |_| None),
            console_style: self.keyword(s, "consoleStyle", |_| None).unwrap_or(ConsoleStyle::Pretty),
            file: self.path(s, "file"),
        }
    }

    fn tailscale(&mut self, s: &Section<'a>) -> TailscaleHost {
        let default = TailscaleHost::default();
        TailscaleHost {
            socket: self.path(s, "socket").unwrap_or(default.socket),
            command: self.path(s, "command").unwrap_or(default.command),
        }
    }

    fn days(&mut self, s: &Section<'a>, key: &str) -> Option<Duration> {
        self.bytes(s, key, 1..=3650).map(|days| Duration::from_secs(86_400 * days as u64))
    }

    fn limits(&mut self, s: &Section<'a>) -> Limits {
        const MIB: usize = 1 << 20;
        let default = Limits::default();
        let outbox_bytes = self.bytes(s, "outboxBytes", MIB / 16..=1024 * MIB).unwrap_or(default.outbox_bytes);
        let total_outbox_bytes =
            self.bytes(s, "totalOutboxBytes", MIB..=65_536 * MIB).unwrap_or(default.total_outbox_bytes);
        if outbox_bytes > total_outbox_bytes {
            let (key, node) = ["totalOutboxBytes", "outboxBytes"]
                .iter()
                .find_map(|key| Some((*key, s.get(key)?)))
                .unwrap_or(("outboxBytes", self.document.root()));
            let message = format!(
                "makes one connection's share ({outbox_bytes} bytes) larger than what all share ({total_outbox_bytes} bytes)"
            );
            self.problem(s.path.key(key), node, message);
        }
        let preauth_sockets = self.bytes(s, "preauthSockets", 16..=MIB).unwrap_or(default.preauth_sockets);
        Limits { outbox_bytes, total_outbox_bytes, preauth_sockets }
    }

    fn secrets(&mut self, s: &Section<'a>) -> SecretProviders {
        let [providers, defaults] = ["providers", "defaults"].map(|key| self.section(s, key));
        self.default_env = self.text(&defaults, "env");
        let providers: BTreeMap<_, _> = providers
            .members
            .iter()
            .map(|member| {
                let section = self.section(&providers, &member.key);
                (member.key.clone(), self.provider(&section))
            })
            .collect();
        SecretProviders { providers, default_env: self.default_env.clone() }
    }

    fn provider(&mut self, s: &Section<'a>) -> Provider {
        match self.keyword(s, "source", |_| None) {
            Some(SecretSource::Env) => {
                let allowlist = s.get("allowlist").is_some().then(|| self.texts(s, "allowlist"));
                Provider::Env { allowlist }
            }
            Some(SecretSource::File) => match self.path(s, "path") {
                Some(path) => Provider::File(FileProvider {
                    path,
                    single_value: self.keyword(s, "mode", |_| None) == Some(FileMode::SingleValue),
                    max_bytes: self.bytes(s, "maxBytes", 1..=MAX_SECRET_BYTES).unwrap_or(SECRET_BYTES),
                }),
                None => self.incomplete_provider(s, "path"),
            },
            Some(SecretSource::Exec) if s.get("pluginIntegration").is_some() => {
                Provider::Unsupported { what: "made by a plugin" }
            }
            Some(SecretSource::Exec) => match self.path(s, "command") {
                Some(command) => self.exec_provider(s, command),
                None => self.incomplete_provider(s, "command"),
            },
            Some(SecretSource::Store) | None => Provider::Unsupported { what: "the secret store of OpenClaw" },
        }
    }

    fn exec_provider(&mut self, s: &Section<'a>, command: PathBuf) -> Provider {
        if !command.is_absolute()
            && let Some(node) = s.get("command")
        {
            self.problem(s.path.key("command"), node, "must be an absolute path".to_owned());
        }
        let env = self.section(s, "env");
        Provider::Exec(ExecProvider {
            command,
            args: self.texts(s, "args"),
            env: env
                .members
                .iter()
                .filter_map(|member| Some((member.key.clone(), Secret::new(self.text(&env, &member.key)?))))
                .collect(),
            pass_env: self.texts(s, "passEnv"),
            trusted_dirs: self.texts(s, "trustedDirs").into_iter().map(|text| self.user_path(&text)).collect(),
            json_only: self.boolean(s, "jsonOnly").unwrap_or(true),
            timeout: self.milliseconds(s, "timeoutMs", 1..=600_000).unwrap_or(Duration::from_secs(5)),
            max_output_bytes: self.bytes(s, "maxOutputBytes", 1..=MAX_SECRET_BYTES).unwrap_or(SECRET_BYTES),
        })
    }

    fn incomplete_provider(&mut self, s: &Section<'a>, key: &str) -> Provider {
        // What is there and wrong has been reported already.
        if s.get(key).is_none()
            && let Some(source) = s.get("source")
        {
            self.problem(s.path.clone(), source, format!("needs {key:?}"));
        }
        Provider::Unsupported { what: "incomplete" }
    }
}

/// Problems that are reported of one file; nobody reads more, and each costs a walk through the text.
const MAX_PROBLEMS: usize = 100;
/// Bytes a file or the answer of a command may have unless it says otherwise.
const SECRET_BYTES: usize = 1 << 20;
/// The most it may say.
const MAX_SECRET_BYTES: usize = 64 << 20;

super::keyword::keywords! {
    /// `mode` of a file provider.
    FileMode {
        /// A JSON object.
        Json = "json",
        /// One secret.
        SingleValue = "singleValue",
    }
}

/// One method a kind of value. Each gives `None` when the key is missing, or wrong and reported.
impl<'a> Reader<'a> {
    fn problem(&mut self, key: KeyPath, node: &Node, message: String) {
        if self.problems.len() == MAX_PROBLEMS {
            return;
        }
        let position = self.document.position(node.span.start);
        self.problems.push(Problem { key, position, message, allowed: &[] });
    }

    fn wrong(&mut self, section: &Section<'_>, key: &str, node: &Node, wanted: &str) {
        self.problem(section.path.key(key), node, format!("must be {wanted}, but is {}", show(&node.value)));
    }

    fn section(&mut self, parent: &Section<'a>, key: &str) -> Section<'a> {
        let path = parent.path.key(key);
        let members = match parent.get(key) {
            None => &[],
            Some(node) => node.value.as_object().unwrap_or_else(|| {
                self.wrong(parent, key, node, "an object");
                &[]
            }),
        };
        let section = Section { path, members };
        self.refuse_include(&section);
        section
    }

    fn refuse_include(&mut self, section: &Section<'a>) {
        if let Some(node) = section.get("$include") {
            let message = "is not supported by this gateway: put the included settings in this file".to_owned();
            self.problem(section.path.key("$include"), node, message);
        }
    }

    fn boolean(&mut self, section: &Section<'a>, key: &str) -> Option<bool> {
        match section.get(key)? {
            Node { value: Value::Bool(value), .. } => Some(*value),
            node => {
                self.wrong(section, key, node, "true or false");
                None
            }
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "range and fraction are checked, and no range ends above 2^53"
    )]
    fn integer(&mut self, section: &Section<'a>, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let node = section.get(key)?;
        let number = node
            .value
            .as_f64()
            .filter(|n| n.fract() == 0.0 && *n >= *range.start() as f64 && *n <= *range.end() as f64);
        if number.is_none() {
            self.wrong(section, key, node, &format!("a whole number from {} to {}", range.start(), range.end()));
        }
        number.map(|n| n as u64)
    }

    fn port(&mut self, section: &Section<'a>, key: &str) -> Option<u16> {
        self.integer(section, key, 1..=65_535).and_then(|n| u16::try_from(n).ok())
    }

    fn bytes(&mut self, section: &Section<'a>, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        let range = *range.start() as u64..=*range.end() as u64;
        self.integer(section, key, range).and_then(|n| usize::try_from(n).ok())
    }

    fn milliseconds(&mut self, section: &Section<'a>, key: &str, range: RangeInclusive<u64>) -> Option<Duration> {
        self.integer(section, key, range).map(Duration::from_millis)
    }

    /// A string with its variables put in, trimmed; `None` when it is blank.
    fn string(&mut self, path: KeyPath, node: &'a Node) -> Option<String> {
        let Value::String(text) = &node.value else {
            self.problem(path, node, format!("must be a string, but is {}", show(&node.value)));
            return None;
        };
        match expand(text, self.environment) {
            Expanded::Complete(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Expanded::Missing(variable) => {
                self.problem(path, node, format!("uses the environment variable {variable}, which is not set"));
                None
            }
        }
    }

    fn text(&mut self, section: &Section<'a>, key: &str) -> Option<String> {
        self.string(section.path.key(key), section.get(key)?)
    }

    fn path(&mut self, section: &Section<'a>, key: &str) -> Option<PathBuf> {
        self.text(section, key).map(|text| self.user_path(&text))
    }

    /// A path in which `~/` stands for the home directory.
    fn user_path(&self, text: &str) -> PathBuf {
        let home = ["OPENCLAW_HOME", "HOME", "USERPROFILE"].iter().find_map(|name| self.environment.get(name));
        match (text.strip_prefix("~/"), home) {
            (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
            _ => PathBuf::from(text),
        }
    }

    /// A string that `parse` understands; its error is the rest of a sentence that begins with "it".
    fn parsed<T>(&mut self, section: &Section<'a>, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let node = section.get(key)?;
        let path = section.path.key(key);
        let text = self.string(path.clone(), node)?;
        parse(&text).map_err(|reason| self.problem(path, node, format!("is {text:?}: {reason}"))).ok()
    }

    fn elements(&mut self, section: &Section<'a>, key: &str) -> Vec<(KeyPath, &'a Node)> {
        let path = section.path.key(key);
        match section.get(key) {
            None => Vec::new(),
            Some(Node { value: Value::Array(nodes), .. }) => {
                nodes.iter().enumerate().map(|(index, node)| (path.index(index), node)).collect()
            }
            Some(node) => {
                self.wrong(section, key, node, "a list of strings");
                Vec::new()
            }
        }
    }

    fn texts(&mut self, section: &Section<'a>, key: &str) -> Vec<String> {
        let elements = self.elements(section, key);
        elements.into_iter().filter_map(|(path, node)| self.string(path, node)).collect()
    }

    fn parsed_list<T>(
        &mut self,
        section: &Section<'a>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let mut parsed = Vec::new();
        for (path, node) in self.elements(section, key) {
            if let Some(text) = self.string(path.clone(), node) {
                match parse(&text) {
                    Ok(value) => parsed.push(value),
                    Err(reason) => self.problem(path, node, format!("is {text:?}: {reason}")),
                }
            }
        }
        parsed
    }

    fn keyword<K: Keyword>(
        &mut self,
        section: &Section<'a>,
        key: &str,
        hint: impl Fn(&str) -> Option<String>,
    ) -> Option<K> {
        let node = section.get(key)?;
        let found = match node.value.as_str().map(|text| expand(text, self.environment)) {
            Some(Expanded::Complete(text)) => text,
            Some(Expanded::Missing(_)) | None => node.value.as_str().unwrap_or_default().to_owned(),
        };
        if let Some(value) = K::parse(&found) {
            return Some(value);
        }
        let words: Vec<_> = K::WORDS.iter().map(|word| format!("{word:?}")).collect();
        let hint = hint(&found).map(|hint| format!("; {hint}")).unwrap_or_default();
        let message = format!("must be one of {}, but is {}{hint}", words.join(", "), show(&node.value));
        let before = self.problems.len();
        self.problem(section.path.key(key), node, message);
        if let Some(problem) = self.problems.get_mut(before) {
            problem.allowed = K::WORDS;
        }
        None
    }

    fn networks(&mut self, section: &Section<'a>, key: &str) -> Vec<IpNet> {
        self.parsed_list(section, key, |text| {
            parse_network(text).ok_or_else(|| "it must be an IP address or a CIDR such as 10.0.0.0/8".to_owned())
        })
    }

    fn custom_bind_host(&mut self, section: &Section<'a>) -> Vec<IpAddr> {
        self.parsed(section, "customBindHost", |text| {
            text.split(',')
                .map(|part| part.trim().parse::<IpAddr>())
                .collect::<Result<_, _>>()
                .map_err(|_| "it must be an IP address, or several with commas between them".to_owned())
        })
        .unwrap_or_default()
    }

    fn scopes(&mut self, section: &Section<'a>, key: &str) -> Vec<Scope> {
        let mut scopes = Vec::new();
        for (path, node) in self.elements(section, key) {
            let Some(text) = self.string(path.clone(), node) else { continue };
            match Scope::parse(&text) {
                Some(scope) => scopes.push(scope),
                // Leaving a scope out grants less, so it need not keep the gateway from starting.
                None => self.notices.push(Problem {
                    key: path,
                    position: self.document.position(node.span.start),
                    message: format!("is {text:?}, a scope this gateway does not have; it is left out"),
                    allowed: &[],
                }),
            }
        }
        scopes
    }

    fn header_value_or_false(&mut self, section: &Section<'a>, key: &str) -> Option<String> {
        if matches!(section.get(key)?.value, Value::Bool(false)) {
            return None;
        }
        self.parsed(section, key, |text| {
            let valid = text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
            valid.then(|| text.to_owned()).ok_or_else(|| "a header value is printable ASCII".to_owned())
        })
    }

    fn secret(&mut self, section: &Section<'a>, key: &str) -> Option<SecretInput> {
        let node = section.get(key)?;
        match &node.value {
            Value::String(text) => match text.trim() {
                "" => None,
                REDACTED => {
                    let message = "is the placeholder for a redacted value, not a secret; set it again".to_owned();
                    self.problem(section.path.key(key), node, message);
                    None
                }
                text => Some(self.secret_text(text)),
            },
            Value::Object(members) => {
                let reference = Section { path: section.path.key(key), members };
                self.secret_ref(&reference, node).map(SecretInput::Ref)
            }
            // The value may be a secret that lacks its quotes: only its kind is said.
            value => {
                let message = format!(
                    "must be a string or {{source, provider, id}}, but is {}; put quotes around it if it is the secret",
                    value.kind()
                );
                self.problem(section.path.key(key), node, message);
                None
            }
        }
    }

    fn secret_text(&self, text: &str) -> SecretInput {
        let braced = leading_reference(text).filter(|name| name.len() + "${}".len() == text.len());
        let bare = text.strip_prefix('$').filter(|name| is_reference_name(name));
        match braced.or(bare).filter(|name| SecretSource::Env.objection_to_id(name).is_none()) {
            Some(name) => SecretInput::Ref(SecretRef {
                source: SecretSource::Env,
                provider: self.default_env.clone().unwrap_or_else(|| "default".to_owned()),
                id: name.to_owned(),
            }),
            None => match expand(text, self.environment) {
                Expanded::Complete(text) => SecretInput::Literal(Secret::new(text)),
                Expanded::Missing(variable) => SecretInput::Incomplete { variable },
            },
        }
    }

    fn secret_ref(&mut self, section: &Section<'a>, node: &'a Node) -> Option<SecretRef> {
        let missing: Vec<_> =
            ["source", "provider", "id"].into_iter().filter(|key| section.get(key).is_none()).collect();
        if !missing.is_empty() {
            let message = format!("is a reference to a secret without {}", missing.join(" and "));
            self.problem(section.path.clone(), node, message);
            return None;
        }
        let source: SecretSource = self.keyword(section, "source", |_| None)?;
        let provider = self.parsed(section, "provider", |alias| {
            let wanted = "it must be up to 64 of \"a-z0-9_-\" and begin with a letter";
            is_provider_alias(alias).then(|| alias.to_owned()).ok_or_else(|| wanted.to_owned())
        })?;
        // An id is not shown: people put the secret itself there by mistake.
        let id = section.get("id").and_then(|node| node.value.as_str()).unwrap_or_default();
        if let Some(objection) = source.objection_to_id(id) {
            self.problem(section.path.key("id"), section.get("id").unwrap_or(node), objection.to_owned());
            return None;
        }
        Some(SecretRef { source, provider, id: id.to_owned() })
    }
}

/// A value as it is quoted in a problem: short, and never the inside of a list or an object.
fn show(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Number(text) => text.chars().take(LONGEST).collect(),
        Value::String(text) if text.chars().count() <= LONGEST => format!("{text:?}"),
        Value::String(text) => format!("{:?}…", text.chars().take(LONGEST).collect::<String>()),
        other => other.kind().to_owned(),
    }
}

/// Headers that the WebSocket upgrade itself needs, or that frame the request.
fn is_of_the_upgrade(name: &str) -> bool {
    name.starts_with("sec-websocket-")
        || matches!(name, "host" | "upgrade" | "connection" | "content-length" | "transfer-encoding" | "te" | "trailer")
}

fn header_name(text: &str) -> Result<String, String> {
    match http::HeaderName::from_bytes(text.as_bytes()) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("it must be the name of a header, such as x-forwarded-user".to_owned()),
    }
}

fn base_path(text: &str) -> Result<String, String> {
    let inner = text.trim_matches('/');
    let valid = inner.split('/').all(|part| {
        !matches!(part, "." | "..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
            && (inner.is_empty() || !part.is_empty())
    });
    match (valid, inner) {
        (false, _) => Err("it must be a path of letters, digits and \"-._~\", such as /openclaw".to_owned()),
        (true, "") => Ok(String::new()),
        (true, inner) => Ok(format!("/{inner}")),
    }
}

fn origin(text: &str) -> Result<String, String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let valid = text == "*"
        || text.split_once("://").is_some_and(|(scheme, authority)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
                && !authority.is_empty()
                && !authority.contains(|c: char| matches!(c, '/' | '?' | '#' | '@' | '\\') || c.is_whitespace())
        });
    match valid {
        true => Ok(text.to_owned()),
        false => {
            Err("it must be scheme://host[:port] and nothing else, such as https://control.example.com".to_owned())
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::model::{AuthMode, Bind, Mode, TailscaleMode};
    use super::*;

    fn environment() -> Environment {
        Environment::new([("PROXY", "10.1.2.3"), ("HOME", "/home/u"), ("TOKEN", "from-env")])
    }

    fn config(text: &str) -> Config {
        let decoded = decode(&Document::parse(text).unwrap(), &environment());
        decoded.unwrap_or_else(|problems| panic!("{text}: {problems:?}")).config
    }

    fn problems(text: &str) -> Vec<String> {
        match decode(&Document::parse(text).unwrap(), &environment()) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(format!("{:?}", config("{}")), format!("{:?}", Config::default()));
    }

    /// A document with every key there is.
    pub(in crate::config) const EVERY_KEY: &str = r#"{
            gateway: {
                mode: "local", port: 0x4965, bind: "custom", customBindHost: "192.168.1.5, ::1",
                auth: {
                    mode: "trusted-proxy", token: "", password: "pw", allowTailscale: false,
                    identityScopes: { "a@b.c": ["operator.read", "operator.sessions.read"] },
                    trustedProxy: {
                        userHeader: "X-User", requiredHeaders: ["x-a"], allowUsers: ["u"], allowLoopback: true,
                        deviceAutoApprove: { enabled: true, scopes: ["operator.write"] },
                    },
                    rateLimit: { maxAttempts: 3, windowMs: 1e3, lockoutMs: 2000, exemptLoopback: false },
                },
                trustedProxies: ["${PROXY}", "10.0.0.9/8", "192.168.0.0/16", "fd00::/8"],
                allowRealIpFallback: true,
                controlUi: {
                    enabled: false, root: "~/ui", basePath: "openclaw/", allowedOrigins: ["https://a.example/", "*"],
                    allowInsecureAuth: true, dangerouslyAllowHostHeaderOriginFallback: true,
                },
                tailscale: { mode: "serve" },
                remote: {
                    url: "wss://x", transport: "direct", token: "${TOKEN}", sshTarget: "u@h", remotePort: 1,
                    sshIdentity: "~/.ssh/id", sshHostKeyPolicy: "openssh",
                    edgeAuth: {"CF-Access-Client-Id": {source: "env", provider: "default", id: "CF_ID"}, "X-Edge": "plain"},
                    tlsFingerprint: "0000000000000000000000000000000000000000000000000000000000000000",
                },
                tls: { enabled: true, autoGenerate: false, certPath: "/c", keyPath: "/k", caPath: "/a" },
                nodes: {
                    commands: { allow: ["a"], deny: ["b"] }, allowCommands: ["c"], denyCommands: ["d"],
                    pluginTools: { enabled: false }, allowSkills: false,
                    pairing: { autoApproveLocal: false, autoApproveCidrs: ["192.168.0.0/16"] },
                },
                handshakeTimeoutMs: 3000,
                http: { securityHeaders: { strictTransportSecurity: "max-age=1" },
                    endpoints: { chatCompletions: { enabled: true } } },
                tools: { deny: ["x"], allow: ["nodes"] },
            },
            logging: { level: "debug", consoleLevel: "silent", consoleStyle: "json", file: "~/log" },
            plugins: { entries: { clawgate: { config: { limits: { outboxBytes: 65536, totalOutboxBytes: 1048576, preauthSockets: 64 },
                tunnel: { sshConfig: "~/ssh" } } } } },
        }"#;

    #[test]
    fn reads_every_key() {
        let config = config(EVERY_KEY);
        let gateway = &config.gateway;
        assert_eq!((gateway.mode, gateway.port, gateway.bind), (Some(Mode::Local), Some(0x4965), Bind::Custom));
        assert_eq!(format!("{:?}", gateway.custom_bind_host), "[192.168.1.5, ::1]");
        assert_eq!(gateway.auth.mode, Some(AuthMode::TrustedProxy));
        assert!(gateway.auth.token.is_none());
        assert!(matches!(&gateway.auth.password, Some(SecretInput::Literal(secret)) if secret.expose() == "pw"));
        assert_eq!(gateway.auth.allow_tailscale, Some(false));
        assert_eq!(gateway.auth.identity_scopes["a@b.c"], [Scope::Read]);
        let proxy = gateway.auth.trusted_proxy.as_ref().unwrap();
        assert_eq!(proxy.user_header.as_deref(), Some("X-User"));
        assert_eq!((proxy.required_headers.len(), proxy.allow_users.len(), proxy.allow_loopback), (1, 1, true));
        assert_eq!(proxy.device_auto_approve.as_deref(), Some(&[Scope::Write][..]));
        assert_eq!(gateway.auth.rate_limit.window, Duration::from_secs(1));
        let trusted: Vec<_> = gateway.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(trusted, ["10.1.2.3/32", "10.0.0.9/8", "192.168.0.0/16", "fd00::/8"]);
        assert_eq!(gateway.control_ui.base_path, "/openclaw");
        assert_eq!(gateway.control_ui.root.as_deref(), Some("/home/u/ui".as_ref()));
        assert_eq!(gateway.control_ui.allowed_origins, ["https://a.example", "*"]);
        assert_eq!(gateway.tailscale, TailscaleMode::Serve);
        assert!(matches!(&gateway.remote.token, Some(SecretInput::Ref(reference)) if reference.id == "TOKEN"));
        assert_eq!((gateway.remote.transport, gateway.remote.tls_pins.len()), (Transport::Direct, 1));
        assert_eq!(gateway.remote.edge_auth.keys().collect::<Vec<_>>(), ["cf-access-client-id", "x-edge"]);
        assert_eq!(gateway.nodes.allow_commands, ["a", "c"]);
        assert_eq!(gateway.nodes.deny_commands, ["b", "d"]);
        assert_eq!(gateway.handshake_timeout, Duration::from_secs(3));
        assert_eq!(gateway.strict_transport_security.as_deref(), Some("max-age=1"));
        assert_eq!(
            (gateway.chat_completions, &gateway.deny_tools[0][..], &gateway.allow_tools[0][..]),
            (true, "x", "nodes")
        );
        assert_eq!(config.logging.console_style, ConsoleStyle::Json);
        assert_eq!(config.tunnel.ssh_config.as_deref(), Some("/home/u/ssh".as_ref()));
        assert_eq!(config.limits, Limits { outbox_bytes: 65_536, total_outbox_bytes: 1 << 20, preauth_sockets: 64 });
    }

    #[test]
    fn keys_of_others_are_never_an_error() {
        config(
            "{gateway: {frob: [], auth: {x: 1}, nodes: {browser: 5}}, cron: 'anything', ui: null, plugins: {entries: {other: 1}}}",
        );
    }

    #[test]
    fn tells_every_wrong_value_with_its_place() {
        let text = "{\n  gateway: {\n    port: 70000,\n    bind: \"0.0.0.0\",\n    auth: { mode: 'Token', token: 12345 },\n  },\n}";
        assert_eq!(
            problems(text),
            [
                "3:11: gateway.port must be a whole number from 1 to 65535, but is 70000",
                "4:11: gateway.bind must be one of \"loopback\", \"lan\", \"tailnet\", \"custom\", \"auto\", but is \"0.0.0.0\"; to listen on every interface use \"lan\"",
                "5:19: gateway.auth.mode must be one of \"none\", \"token\", \"password\", \"trusted-proxy\", but is \"Token\"",
                "5:35: gateway.auth.token must be a string or {source, provider, id}, but is a number; put quotes around it if it is the secret",
            ]
        );
    }

    #[test]
    fn refuses_what_is_almost_right() {
        for text in [
            "{gateway: []}",
            "{gateway: {port: '18789'}}",
            "{gateway: {port: null}}",
            "{gateway: {port: 1.5}}",
            "{gateway: {port: Infinity}}",
            "{gateway: {mode: 'server'}}",
            "{gateway: {customBindHost: 'localhost'}}",
            "{gateway: {customBindHost: '010.0.0.1'}}",
            "{gateway: {customBindHost: '${NOT_SET}'}}",
            "{gateway: {trustedProxies: '10.0.0.1'}}",
            "{gateway: {trustedProxies: ['10.0.0.0/33']}}",
            "{gateway: {trustedProxies: ['proxy']}}",
            "{gateway: {trustedProxies: [1]}}",
            "{gateway: {auth: {trustedProxy: {userHeader: 'a b'}}}}",
            "{gateway: {auth: {rateLimit: {maxAttempts: 0}}}}",
            "{gateway: {controlUi: {basePath: '/a?b'}}}",
            "{gateway: {controlUi: {basePath: '/a/../b'}}}",
            "{gateway: {controlUi: {allowedOrigins: ['https://a.example/path']}}}",
            "{gateway: {controlUi: {allowedOrigins: ['https://u@a.example']}}}",
            "{gateway: {controlUi: {allowedOrigins: ['a.example']}}}",
            "{gateway: {remote: {tlsFingerprint: 'abcd'}}}",
            "{gateway: {remote: {edgeAuth: {'Sec-WebSocket-Key': 'x'}}}}",
            "{gateway: {remote: {edgeAuth: {'two words': 'x'}}}}",
            "{gateway: {remote: {edgeAuth: {'x-edge': 7}}}}",
            "{gateway: {remote: {edgeAuth: ['x-edge']}}}",
            "{gateway: {http: {securityHeaders: {strictTransportSecurity: 'a\\nb'}}}}",
            "{gateway: {auth: {token: {source: 'env', id: 'X'}}}}",
            "{gateway: {auth: {token: {source: 'env', provider: 'default', id: 'lower'}}}}",
            "{gateway: {auth: {token: {source: 'env', provider: 'Default', id: 'X'}}}}",
            "{gateway: {auth: {token: {source: 'vault', provider: 'default', id: 'X'}}}}",
            "{gateway: {auth: {token: '__OPENCLAW_REDACTED__'}}}",
            "{gateway: {$include: './gateway.json5'}}",
            "{$include: './all.json5'}",
            "{secrets: {providers: {f: {source: 'file'}}}}",
            "{secrets: {providers: {x: {source: 'exec', command: 'relative'}}}}",
            "{plugins: {entries: {clawgate: {config: {limits: {outboxBytes: 1}}}}}}",
            "{plugins: {entries: {clawgate: {config: {limits: {totalOutboxBytes: 1048576}}}}}}",
        ] {
            assert_eq!(problems(text).len(), 1, "{text}: {:?}", problems(text));
        }
    }

    #[test]
    fn reports_a_bounded_number_of_problems() {
        let text = format!("{{gateway: {{trustedProxies: [{}]}}}}", "1,".repeat(10_000));
        assert_eq!(problems(&text).len(), MAX_PROBLEMS);
    }

    #[test]
    fn problems_show_no_secret() {
        for text in [
            "{gateway: {auth: {token: 987654321}}}",
            "{gateway: {auth: {token: ['987654321']}}}",
            "{gateway: {auth: {token: {source: 'env', provider: 'default', id: '987654321'}}}}",
            "{gateway: {remote: {password: {value: '987654321'}}}}",
        ] {
            let problems = problems(text).join("\n");
            assert!(!problems.is_empty() && !problems.contains("987654321"), "{problems}");
        }
    }

    #[test]
    fn secrets_are_literals_references_or_incomplete() {
        let token = |text: &str| config(&format!("{{gateway: {{auth: {{token: {text}}}}}}}")).gateway.auth.token;
        let literal = |text: &str| match token(text) {
            Some(SecretInput::Literal(secret)) => secret.expose().to_owned(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(literal("' plain '"), "plain");
        assert_eq!(literal("'a${TOKEN}z'"), "afrom-envz");
        assert_eq!(literal("'$${TOKEN}'"), "${TOKEN}");
        assert_eq!(literal("'$lower'"), "$lower");
        assert!(token("'  '").is_none());
        assert!(matches!(token("'a${NOT_SET}z'"), Some(SecretInput::Incomplete { variable }) if variable == "NOT_SET"));
        for text in ["'${NOT_SET}'", "'$NOT_SET'", "{source: 'env', provider: 'default', id: 'NOT_SET'}"] {
            assert!(matches!(token(text), Some(SecretInput::Ref(reference)) if reference.id == "NOT_SET"), "{text}");
        }
    }

    #[test]
    fn reads_inline_variables() {
        let document = Document::parse("{env: {vars: {A: '1', B: 2}, shellEnv: {}}}").unwrap();
        assert_eq!(inline_variables(&document), [("A".to_owned(), "1".to_owned())]);
        assert!(inline_variables(&Document::parse("{env: 1}").unwrap()).is_empty());
    }

    #[test]
    fn hints_at_what_a_bind_was_meant_to_be() {
        for (found, word) in
            [("0.0.0.0", "lan"), ("localhost", "loopback"), ("tailscale", "tailnet"), ("192.168.1.2", "custom")]
        {
            assert!(bind_hint(found).unwrap().contains(word), "{found}");
        }
        assert_eq!(bind_hint("LAN"), None);
    }
}
