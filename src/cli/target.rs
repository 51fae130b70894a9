//! Which gateway a command talks to, and the connection to it.
//!
//! The flags that all such commands have, the decision about URL and credentials, and how the CLI introduces itself:
//! on the gateway's own host the shared secret is enough; elsewhere, and where the gateway wants it, the key of
//! this device comes along.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Mutex;

use super::context::Context;
use super::error::CliError;
use super::output::Output;
use crate::client::credentials::{self, Credential, Flags, Resolution, Settings, Variables};
use crate::client::error::Stage;
use crate::client::error::{CallError, ConnectError, ConnectFailure, RemoteError};
use crate::client::identity::DeviceTokens;
use crate::client::tunnel::plan::Overrides;
use crate::client::tunnel::supervise::{Phase, Place};
use crate::client::tunnel::{Ssh, TunnelError, TunnelPlan, holder};
use crate::client::{self, ConnectOptions, Connection, Identity, Program, Purpose, run_token};
use crate::config::fingerprint::{Fingerprint, Pin};
use crate::config::load::FilesAndCommands;
use crate::config::model::Tls;
use crate::config::secret_ref::{SecretInput, SecretReader};
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::rpc::catalog::{self, Access};
use crate::rpc::scope::{Role, Scope, ScopeSet};
use crate::secret::Secret;
use crate::server::lock;

/// Time between looks at a tunnel that is on its way.
const LOOK: Duration = Duration::from_millis(50);
/// What is kept of a command's time for the call itself, when it waits for a tunnel.
const TUNNEL_GRACE: Duration = Duration::from_secs(1);

/// Flags of every command that talks to a gateway.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct GatewayFlags {
    /// Print JSON, and nothing else, on standard output
    #[arg(long)]
    pub(super) json: bool,
    /// The gateway's URL (needs --token or --password)
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,
    /// Port of a gateway on this host
    #[arg(long, value_name = "PORT", conflicts_with = "url", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,
    /// The gateway's shared token
    #[arg(long, value_name = "TOKEN")]
    pub(super) token: Option<String>,
    /// The gateway's shared password
    #[arg(long, value_name = "PASSWORD")]
    pub(super) password: Option<String>,
    /// The certificate of a wss:// gateway (SHA-256, as openssl prints it; several with commas)
    #[arg(long, value_name = "SHA256")]
    pub(super) tls_fingerprint: Option<String>,
    /// Time for everything, in milliseconds
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) timeout: Option<u64>,
}

impl GatewayFlags {
    /// What they say to the decision.
    pub(super) fn given(&self) -> Flags {
        Flags {
            url: self.url.clone(),
            port: self.port,
            token: self.token.clone(),
            password: self.password.clone(),
            tls_fingerprint: self.tls_fingerprint.clone(),
            ..Flags::default()
        }
    }
}

/// What configuration and environment say beside the flags. Whoever says it all needs no configuration, and no
/// unbroken one; of one that can be read, what is known of the gateway's certificate counts all the same.
pub(super) fn said(context: &Context, given: &Flags) -> Result<(Settings, Variables), CliError> {
    let complete = given.url.is_some() && (given.token.is_some() || given.password.is_some());
    match (complete, settings(context)) {
        (true, settings) => {
            let settings = settings.map(|(settings, _)| settings).unwrap_or_default();
            let Settings { remote_url, remote_pins, .. } = settings;
            Ok((Settings { remote_url, remote_pins, ..Settings::default() }, Variables::default()))
        }
        (false, settings) => settings,
    }
}

/// A gateway to talk to.
pub(super) struct Target {
    /// URL and credentials, and where they came from.
    pub(super) resolution: Resolution,
    /// The tunnel that `gateway.remote` asks for, when the URL is its local end.
    plan: Option<TunnelPlan>,
    /// One that this command opened for itself; it ends with the command.
    ssh: Mutex<Option<Ssh>>,
    output: Output,
    state_dir: PathBuf,
    config_file: PathBuf,
    started: Instant,
    timeout: Duration,
}

impl Target {
    /// Decides which gateway, and with what. `timeout` is for everything, unless `--timeout` says another.
    ///
    /// # Errors
    /// The configuration is broken, or nothing says where to connect.
    pub(super) fn resolve(
        context: &Context,
        flags: &GatewayFlags,
        purpose: Purpose,
        timeout: Duration,
    ) -> Result<Self, CliError> {
        let given = flags.given();
        let (settings, variables) = said(context, &given)?;
        let resolution = credentials::resolve(&given, &variables, &settings, purpose)?;
        let plan = match resolution.tunnel {
            true => {
                let config = context.load()?.config;
                Some(TunnelPlan::from_config(&config, &Overrides::default(), context.profile.default_port())?)
            }
            false => None,
        };
        Ok(Self::of(context, resolution, plan, flags.timeout.map_or(timeout, Duration::from_millis)))
    }

    /// The gateway at the far end of a tunnel from `port` of this host, with the credentials of a remote gateway,
    /// whatever mode is configured.
    ///
    /// # Errors
    /// As [`Target::resolve`].
    pub(super) fn through_tunnel(context: &Context, port: u16) -> Result<Self, CliError> {
        let (settings, variables) = settings(context)?;
        let url = Some(format!("ws://127.0.0.1:{port}"));
        let settings = Settings { remote_mode: true, remote_url: url, tunnel: false, ..settings };
        let resolution = credentials::resolve(&Flags::default(), &variables.without_url(), &settings, Purpose::Call)?;
        Ok(Self::of(context, resolution, None, HANDSHAKE_TIMEOUT))
    }

    fn of(context: &Context, resolution: Resolution, plan: Option<TunnelPlan>, timeout: Duration) -> Self {
        Self {
            resolution,
            plan,
            ssh: Mutex::new(None),
            output: context.output,
            state_dir: context.paths.state_dir.clone(),
            config_file: context.paths.config_file.clone(),
            started: Instant::now(),
            timeout,
        }
    }

    /// What is left of the time for everything.
    pub(super) fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed())
    }

    /// The time for everything.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Connects with these scopes, through an SSH tunnel where the configuration asks for one: a tunnel that is there
    /// is used, and where there is none, this command opens one for itself.
    ///
    /// # Errors
    /// No connection, or the key of this device is needed and cannot be used; no tunnel.
    pub(super) async fn connect(&self, scopes: ScopeSet) -> Result<Connection, CliError> {
        let result = self.connect_directly(scopes).await;
        let (Some(plan), Err(CliError::Connect { error, .. })) = (&self.plan, &result) else { return result };
        match error.stage {
            // Nobody listens: there is no tunnel.
            Stage::Tcp if self.ssh.lock().await.is_none() => {
                self.open_tunnel(plan).await?;
                self.connect_directly(scopes).await.map_err(|error| self.at_the_far_end(plan, error))
            }
            Stage::Http | Stage::Challenge if !self.is_tunnelled().await => {
                let holder = holder::of(plan.local_port);
                let taken = TunnelError::PortTaken { port: plan.local_port, holder };
                let why = format!("{taken}, and that is no tunnel to the gateway: {error}");
                Err(CliError::Other { message: why, advice: taken.advice(plan) })
            }
            Stage::Http => result.map_err(|error| self.at_the_far_end(plan, error)),
            _ => result,
        }
    }

    /// Whether what listens at the local end is a tunnel of ours, or some other `ssh`.
    async fn is_tunnelled(&self) -> bool {
        self.ssh.lock().await.is_some()
            || Place::new(&self.state_dir).is_supervised()
            || holder::of(self.resolution.url.port()).is_none_or(|holder| holder.name.as_deref() == Some("ssh"))
    }

    async fn open_tunnel(&self, plan: &TunnelPlan) -> Result<(), CliError> {
        let place = Place::new(&self.state_dir);
        if place.is_supervised() {
            // `tunnel up` keeps one; it may be on its way.
            while let Some(state) = place.state() {
                if matches!(state.phase, Phase::Ready | Phase::NoGateway) || self.left() < TUNNEL_GRACE {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        let failed = |error: TunnelError| CliError::Other { advice: error.advice(plan), message: error.to_string() };
        let mut ssh = Ssh::start(plan, |_| {}).map_err(failed)?;
        ssh.listening(self.left()).await.map_err(failed)?;
        *self.ssh.lock().await = Some(ssh);
        Ok(())
    }

    /// An error that came through a tunnel: what broke off is not this host's.
    fn at_the_far_end(&self, plan: &TunnelPlan, error: CliError) -> CliError {
        match error {
            CliError::Connect { error, .. } if error.stage == Stage::Http => CliError::with_advice(
                format!("the tunnel to {} is up, but no gateway answers at its end: {}", plan.target, error.cause),
                format!(
                    "Is the gateway running there, on port {} (gateway.remote.remotePort)? On that host: clawgate gateway status",
                    plan.remote_port
                ),
            ),
            error => error,
        }
    }

    /// Connects to the URL as it is.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub(super) async fn connect_directly(&self, scopes: ScopeSet) -> Result<Connection, CliError> {
        let Resolution { url, token, password, pins, edge, .. } = &self.resolution;
        let mut options = ConnectOptions::operator(url.clone(), scopes);
        options.timeout = HANDSHAKE_TIMEOUT.min(self.left());
        options.edge.clone_from(edge);
        options.tls.known = Some(self.state_dir.clone());
        if let Some((pins, source)) = pins {
            options.tls.pins.clone_from(pins);
            options.tls.pins_from = source.to_string();
        }
        options.auth.token = token.value().cloned();
        options.auth.password = password.value().cloned();
        let has_secret = options.auth.token.is_some() || options.auth.password.is_some();

        // On the gateway's own host its secret says enough. A gateway that sees it otherwise, because a proxy stands
        // in between, refuses or takes the scopes away; then it is told which device this is.
        if url.is_loopback() && has_secret {
            let helper = Program { display_name: Some("clawgate".into()), ..Program::new("gateway-client", "backend") };
            match client::connect(&ConnectOptions { program: helper, ..options.clone() }).await {
                Ok((connection, _)) => {
                    let granted = ScopeSet::parse(connection.hello().scopes.iter().map(String::as_str));
                    if granted.covers_all(scopes) {
                        return Ok(connection);
                    }
                }
                Err(error) if refused_with(&error, "DEVICE_IDENTITY_REQUIRED") => {}
                Err(error) => return Err(self.unreachable(error)),
            }
        }

        let identity = Arc::new(Identity::load_or_create(&self.state_dir)?);
        let mut tokens = DeviceTokens::load(&self.state_dir, &identity);
        let stored = tokens.get(url, Role::Operator);
        options.identity = Some(identity);
        if !has_secret {
            options.auth.device_token.clone_from(&stored);
        }
        let mut result = client::connect(&options).await;
        if let (Err(error), Some(stored), true) = (&result, stored, has_secret)
            && error.refusal().and_then(|refusal| refusal.details.as_ref()?.get("canRetryWithDeviceToken")?.as_bool())
                == Some(true)
        {
            // The shared secret has changed, but the gateway knows this device.
            options.auth.device_token = Some(stored);
            result = client::connect(&options).await;
        }
        let (connection, _) = result.map_err(|error| self.unreachable(error))?;
        let hello = connection.hello();
        if let Some(token) = &hello.device_token
            && let Err(error) = tokens.put(url, Role::Operator, token, &hello.scopes)
        {
            self.output.note(&format!("the device token cannot be kept: {error}"));
        }
        Ok(connection)
    }

    /// Calls one method over a connection of its own, with the least scope that it needs.
    ///
    /// # Errors
    /// As [`Target::connect`] and [`Target::call`].
    pub(super) async fn call_once(&self, method: &str, params: &impl Serialize) -> Result<Box<RawValue>, CliError> {
        let connection = self.connect(scopes_for([method])).await?;
        self.call(&connection, method, params).await
    }

    /// Calls a method in what is left of the time.
    ///
    /// # Errors
    /// [`CliError::Call`].
    pub(super) async fn call(
        &self,
        connection: &Connection,
        method: &str,
        params: &impl Serialize,
    ) -> Result<Box<RawValue>, CliError> {
        let deadline = self.left();
        match connection.call(method, params, deadline).await {
            // What counts for the person is the time that was given, not what was left of it.
            Err(CallError::Timeout { method, .. }) => Err(CallError::Timeout { method, after: self.timeout }.into()),
            Err(CallError::Remote(mut error)) if error.specific_code() == "MISSING_SCOPE" => {
                // The gateway says what is missing; what there is was said at the beginning.
                if let Some(details) = error.details.as_mut().and_then(serde_json::Value::as_object_mut) {
                    details.insert("grantedScopes".into(), connection.hello().scopes.clone().into());
                }
                Err(CallError::Remote(error).into())
            }
            result => Ok(result?),
        }
    }

    /// Where URL and credentials come from, in one line, without the credentials.
    pub(super) fn provenance(&self) -> String {
        let Resolution { url, url_source, token, password, .. } = &self.resolution;
        let mut text = format!("{url} (from {url_source})");
        for (name, credential) in [("token", token), ("password", password)] {
            if let (Some(value), Some(source)) = (credential.value(), credential.source()) {
                text.push_str(&format!(", {name} from {source} (fingerprint {})", value.fingerprint()));
            }
        }
        if token.value().is_none() && password.value().is_none() {
            text.push_str(", no token or password");
        }
        text.push_str(&format!("; configuration: {}", self.config_file.display()));
        text
    }

    fn unreachable(&self, mut error: ConnectError) -> CliError {
        if let ConnectFailure::Refused(refusal) = &mut error.cause
            && matches!(refusal.specific_code(), "AUTH_TOKEN_MISSING" | "AUTH_PASSWORD_MISSING")
        {
            self.tell_what_was_sent(refusal);
        }
        CliError::Connect { error: Box::new(error), via: format!("Tried {}", self.provenance()) }
    }
}

impl Target {
    /// Adds to a refusal for want of a secret what only this side knows.
    fn tell_what_was_sent(&self, refusal: &mut RemoteError) {
        let Resolution { url, token, password, .. } = &self.resolution;
        let sent = match (token.value(), password.value()) {
            (Some(_), _) => Some("token"),
            (None, Some(_)) => Some("password"),
            (None, None) => None,
        };
        // The gateway of this very state folder takes its secret from the same file: when it has one and the file has none,
        // it goes on with what it read before.
        let is_ours = url.is_loopback() && lock::holder(&self.state_dir).is_some();
        let details = refusal.details.get_or_insert_with(|| serde_json::json!({}));
        let Some(details) = details.as_object_mut() else { return };
        if let Some(sent) = sent {
            details.insert("sent".into(), sent.into());
        }
        details.insert("isLocal".into(), url.is_loopback().into());
        if is_ours && sent.is_none() {
            let text = format!(
                "The gateway that runs here has a secret that {} does not have (now): it was given as a flag or a variable, or \
                 the file was edited since. The gateway's first lines say where it is from; a restart takes what the file says.",
                self.config_file.display()
            );
            details.insert("settings".into(), text.into());
        }
    }
}

fn refused_with(error: &ConnectError, code: &str) -> bool {
    error.refusal().is_some_and(|refusal| refusal.specific_code() == code)
}

/// The least scopes with which an operator may call all of `methods`. A method that this program does not know may
/// need any.
pub(super) fn scopes_for<'a>(methods: impl IntoIterator<Item = &'a str>) -> ScopeSet {
    methods.into_iter().fold(ScopeSet::EMPTY, |scopes, method| match catalog::access(method) {
        Some(Access::Operator(scope)) => scopes.with(scope),
        Some(Access::Node) => scopes,
        None => scopes.union(Scope::ALL.into_iter().collect()),
    })
}

/// What configuration and environment say to a client.
fn settings(context: &Context) -> Result<(Settings, Variables), CliError> {
    let loaded = context.load()?;
    let variables = Variables::read(|name| loaded.environment.get(name).map(str::to_owned));
    let secrets = Rc::new((loaded.config.secrets.clone(), loaded.environment.clone()));
    let read = move |input: &SecretInput| -> Result<Secret, String> {
        let (providers, environment) = &*secrets;
        let access = FilesAndCommands { environment };
        SecretReader { providers, environment, access: &access }.read(input).map_err(|why| why.to_string())
    };
    let mut settings = Settings::from_config(&loaded.config, read);
    settings.default_port = Some(context.profile.default_port());
    settings.run_token = run_token::find(&context.paths.state_dir);
    settings.local_pin = local_pin(&loaded.config.gateway.tls, &context.paths.state_dir);
    Ok((settings, variables))
}

/// The certificate that the gateway on this host shows. One that cannot be read is no pin: normal trust decides then.
fn local_pin(tls: &Tls, state_dir: &Path) -> Option<Pin> {
    if !tls.enabled {
        return None;
    }
    let path = tls.cert_path.clone().unwrap_or_else(|| state_dir.join("gateway/tls/gateway-cert.pem"));
    let certificate = CertificateDer::from_pem_file(path).ok()?;
    Some(Pin::Certificate(Fingerprint::of(&certificate)))
}

/// Where a credential came from, or that there is none.
pub(super) fn source_of(credential: &Credential) -> String {
    credential.source().map_or_else(|| "none".into(), |source| source.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_called_with_the_least_scope() {
        let names = |methods: &[&str]| {
            scopes_for(methods.iter().copied()).iter().map(|scope| scope.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(names(&["health"]), ["operator.read"]);
        assert_eq!(names(&["node.list", "node.pair.list"]), ["operator.pairing", "operator.read"]);
        assert_eq!(names(&["no.such.method"]).len(), Scope::ALL.len());
    }
}
