//! The way in: name, TCP, TLS, HTTP upgrade, challenge, `connect`, `hello-ok`. Every step has its place in the error.
//!
//! Start at [`connect`].

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::net::TcpStream;

use super::connection::{self, Connection, Events};
use super::error::{ConnectError, ConnectFailure, Disconnect, Stage};
use super::frames::{Frames, Inbound};
use super::options::{ConnectOptions, Program};
use super::stream::Stream;
use super::tls;
use super::upgrade::upgrade;
use super::url_policy::GatewayUrl;
use crate::auth::device::SignedFields;
use crate::clock::UnixMs;
use crate::limits::TICK_INTERVAL;
use crate::rpc::envelope::{Reply, Response};
use crate::secret::Secret;
use crate::ws::close::CloseCode;

/// The version of the protocol that this client speaks.
pub const PROTOCOL: u32 = 4;

/// What the gateway said in `hello-ok`.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The version of the protocol that is spoken.
    pub protocol: u32,
    /// The gateway's version.
    pub server_version: String,
    /// The gateway's name for this connection.
    pub conn_id: String,
    /// Scopes that were granted: maybe fewer than asked for.
    pub scopes: Vec<String>,
    /// The token for this device, when the gateway gave one.
    pub device_token: Option<Secret>,
    /// How often the gateway gives a sign of life.
    pub tick_interval: Duration,
    /// Bytes that a message to the gateway may have.
    pub max_payload_bytes: usize,
    /// Time from the first packet to `hello-ok`.
    pub took: Duration,
    /// All of it, as it came.
    pub raw: Box<RawValue>,
}

/// Connects to a gateway and authenticates.
///
/// Gives the connection, which calls methods, and its events. Whoever does not want events drops them.
///
/// ```no_run
/// use clawgate::client::{self, Auth, ConnectOptions, GatewayUrl};
/// use clawgate::rpc::scope::{Scope, ScopeSet};
/// use clawgate::secret::Secret;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let mut options =
///     ConnectOptions::operator(GatewayUrl::parse("ws://127.0.0.1:18789")?, ScopeSet::EMPTY.with(Scope::Read));
/// options.auth = Auth { token: Some(Secret::new("the shared token")), ..Auth::default() };
/// let (connection, _events) = client::connect(&options).await?;
/// let health = connection.call("health", &(), std::time::Duration::from_secs(10)).await?;
/// assert!(health.get().contains("\"ok\":true"));
/// connection.close().await;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ConnectError`] says which step failed, after how long, and why.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn connect(options: &ConnectOptions) -> Result<(Connection, Events), ConnectError> {
    let started = Instant::now();
    let mut stage = Stage::Dns;
    let way = way_in(options, started, &mut stage);
    let result = match tokio::time::timeout(options.timeout, way).await {
        Ok(result) => result,
        Err(_) => Err(ConnectFailure::Timeout),
    };
    result.map_err(|cause| ConnectError { url: options.url.clone(), stage, after: started.elapsed(), cause })
}

/// Sees whether a gateway answers at the URL, and leaves before it has said who it is: the gateway has nobody to refuse.
/// Gives the time until the greeting.
///
/// # Errors
/// As [`connect`]; what the gateway would say to `connect` is not found out.
pub async fn knock(options: &ConnectOptions) -> Result<Duration, ConnectError> {
    let started = Instant::now();
    let mut stage = Stage::Dns;
    let greeted = match tokio::time::timeout(options.timeout, greeting(options, &mut stage)).await {
        Ok(result) => result.map(|_| started.elapsed()),
        Err(_) => Err(ConnectFailure::Timeout),
    };
    greeted.map_err(|cause| ConnectError { url: options.url.clone(), stage, after: started.elapsed(), cause })
}

async fn way_in(
    options: &ConnectOptions,
    started: Instant,
    stage: &mut Stage,
) -> Result<(Connection, Events), ConnectFailure> {
    let (mut frames, nonce) = greeting(options, stage).await?;
    *stage = Stage::Auth;
    frames.send_text(&options.request(&nonce)?);
    let hello = hello(&mut frames, started).await?;
    Ok(connection::start(frames, hello))
}

/// The way to the gateway's challenge, and its nonce.
async fn greeting(options: &ConnectOptions, stage: &mut Stage) -> Result<(Frames<Stream>, String), ConnectFailure> {
    if !options.edge.is_empty() && !options.url.is_tls() {
        return Err(ConnectFailure::PlaintextEdge);
    }
    let stream = open(&options.url, stage).await?;
    let stream = if options.url.is_tls() {
        *stage = Stage::Tls;
        Stream::Tls(Box::new(tls::handshake(stream, &options.url, &options.tls).await?))
    } else {
        Stream::Plain(stream)
    };
    *stage = Stage::Http;
    let (stream, read) = upgrade(stream, &options.url, &options.edge).await?;
    *stage = Stage::Challenge;
    let mut frames = Frames::new(stream, &read);
    let nonce = challenge(&mut frames).await?;
    Ok((frames, nonce))
}

/// Looks the host up and opens a connection to the first address that takes it and that policy allows.
async fn open(url: &GatewayUrl, stage: &mut Stage) -> Result<TcpStream, ConnectFailure> {
    let addresses: Vec<SocketAddr> = match url.ip() {
        Some(ip) => vec![(ip, url.port()).into()],
        None => tokio::net::lookup_host((url.host(), url.port())).await?.collect(),
    };
    *stage = Stage::Tcp;
    let mut failure = ConnectFailure::NoAddress;
    for address in addresses {
        if let Err(refused) = url.check_address(address.ip()) {
            failure = ConnectFailure::Address(refused);
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Calls are small and each waits for its answer.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

/// Waits for `connect.challenge` and gives its nonce.
async fn challenge(frames: &mut Frames<Stream>) -> Result<String, ConnectFailure> {
    #[derive(Deserialize)]
    struct Challenge {
        nonce: String,
    }
    frames
        .next(|inbound| match inbound {
            Inbound::Text(text) => {
                let Ok(Reply::Event(event)) = Reply::parse(text) else {
                    return Err(ConnectFailure::NotGateway("its first message is no event"));
                };
                if event.event != "connect.challenge" {
                    return Err(ConnectFailure::NotGateway("its first event is no challenge"));
                }
                let payload = event.payload.map_or("null", |payload| payload.as_str());
                serde_json::from_str(payload)
                    .map(|Challenge { nonce }| nonce)
                    .map_err(|_| ConnectFailure::NotGateway("its challenge has no nonce"))
            }
            Inbound::Ended(end) => Err(ConnectFailure::Closed(end)),
        })
        .await
}

/// The id of the `connect` request; calls count from 1.
const CONNECT_ID: &str = "\"0\"";

impl ConnectOptions {
    /// The request `connect` that answers the challenge `nonce`, signed and dated now: for whoever carries the messages
    /// himself. Its id is `"0"`.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn request(&self, nonce: &str) -> Result<String, ConnectFailure> {
        request(self, nonce)
    }
}

/// `connect`, as the wire has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectParams<'a> {
    min_protocol: u32,
    max_protocol: u32,
    client: Client<'a>,
    role: &'a str,
    scopes: &'a [&'a str],
    caps: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    commands: &'a [String],
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    permissions: &'a std::collections::BTreeMap<String, bool>,
    #[serde(skip_serializing_if = "AuthParams::is_empty")]
    auth: AuthParams<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<Device<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Client<'a> {
    id: &'a str,
    mode: &'a str,
    version: &'a str,
    platform: &'a str,
    device_family: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<&'a str>,
    instance_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthParams<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootstrap_token: Option<&'a str>,
}

impl AuthParams<'_> {
    const fn is_empty(&self) -> bool {
        let Self { token, password, device_token, bootstrap_token } = self;
        token.is_none() && password.is_none() && device_token.is_none() && bootstrap_token.is_none()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Device<'a> {
    id: &'a str,
    public_key: String,
    signature: String,
    signed_at: u64,
    nonce: &'a str,
}

/// The operating system as devices name themselves.
const DEVICE_FAMILY: &str = if cfg!(target_os = "macos") {
    "Mac"
} else if cfg!(target_os = "windows") {
    "Windows"
} else {
    "Linux"
};

fn request(options: &ConnectOptions, nonce: &str) -> Result<String, ConnectFailure> {
    let Program { id, mode, display_name, instance_id } = &options.program;
    let client = Client {
        id,
        mode,
        version: env!("CARGO_PKG_VERSION"),
        platform: std::env::consts::OS,
        device_family: DEVICE_FAMILY,
        display_name: display_name.as_deref(),
        instance_id,
    };
    let scopes: Vec<&str> = options.scopes.iter().map(|scope| scope.as_str()).collect();
    let auth = AuthParams {
        token: options.auth.token.as_ref().map(Secret::expose),
        password: options.auth.password.as_ref().map(Secret::expose),
        device_token: options.auth.device_token.as_ref().map(Secret::expose),
        bootstrap_token: options.auth.bootstrap_token.as_ref().map(Secret::expose),
    };
    let device_id = options.identity.as_ref().map(|identity| identity.id().to_string());
    let device = options.identity.as_ref().zip(device_id.as_deref()).map(|(identity, id)| {
        let signed_at = UnixMs::now().0;
        let fields = SignedFields {
            device_id: id,
            client_id: client.id,
            client_mode: client.mode,
            role: options.role.as_str(),
            scopes: &scopes,
            signed_at_ms: signed_at,
            token: auth.token.or(auth.device_token).or(auth.bootstrap_token).unwrap_or_default(),
            nonce,
            platform: client.platform,
            device_family: client.device_family,
        };
        let signature = identity.sign(&fields.payload_v3());
        Device { id, public_key: identity.public_key(), signature, signed_at, nonce }
    });
    let params = ConnectParams {
        min_protocol: options.min_protocol,
        max_protocol: PROTOCOL,
        client,
        role: options.role.as_str(),
        scopes: &scopes,
        caps: &options.caps,
        commands: &options.commands,
        permissions: &options.permissions,
        auth,
        device,
    };
    let params = serde_json::to_string(&params)
        .map_err(|_| ConnectFailure::NotGateway("the parameters of connect cannot be written"))?;
    Ok(format!(r#"{{"type":"req","id":{CONNECT_ID},"method":"connect","params":{params}}}"#))
}

/// Waits for the answer to `connect`.
async fn hello(frames: &mut Frames<Stream>, started: Instant) -> Result<Hello, ConnectFailure> {
    loop {
        let answer = frames
            .next(|inbound| match inbound {
                Inbound::Text(text) => match Reply::parse(text) {
                    Ok(Reply::Response(response)) if response.id.as_str() == CONNECT_ID => {
                        answered(&response, started).map(Some)
                    }
                    // Nothing else should come before the answer; what does is nothing to fail for.
                    Ok(_) => Ok(None),
                    Err(_) => Err(ConnectFailure::NotGateway("it sent what is no message of the protocol")),
                },
                Inbound::Ended(Disconnect::ByGateway { code: Some(code), reason })
                    if code == CloseCode::POLICY_VIOLATION.get() && reason.is_empty() =>
                {
                    Err(ConnectFailure::NotGateway("it refused to talk"))
                }
                Inbound::Ended(end) => Err(ConnectFailure::Closed(end)),
            })
            .await?;
        if let Some(hello) = answer {
            return Ok(hello);
        }
    }
}

fn answered(response: &Response<'_>, started: Instant) -> Result<Hello, ConnectFailure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct HelloOk {
        protocol: u32,
        server: Server,
        #[serde(default)]
        auth: Granted,
        #[serde(default)]
        policy: Policy,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Server {
        version: String,
        #[serde(default)]
        conn_id: String,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Granted {
        #[serde(default)]
        scopes: Vec<String>,
        device_token: Option<String>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Policy {
        tick_interval_ms: Option<u64>,
        max_payload: Option<usize>,
    }

    if !response.ok {
        let error = response.error.map_or("{}", |error| error.as_str());
        return Err(match serde_json::from_str(error) {
            Ok(error) => ConnectFailure::Refused(error),
            Err(_) => ConnectFailure::NotGateway("its refusal is not understood"),
        });
    }
    let payload = response.payload.map_or("null", |payload| payload.as_str());
    let (Ok(hello), Ok(raw)) = (serde_json::from_str::<HelloOk>(payload), RawValue::from_string(payload.to_owned()))
    else {
        return Err(ConnectFailure::NotGateway("its hello-ok is not understood"));
    };
    Ok(Hello {
        protocol: hello.protocol,
        server_version: hello.server.version,
        conn_id: hello.server.conn_id,
        scopes: hello.auth.scopes,
        device_token: hello.auth.device_token.map(Secret::new),
        tick_interval: hello.policy.tick_interval_ms.map_or(TICK_INTERVAL, Duration::from_millis),
        max_payload_bytes: hello.policy.max_payload.unwrap_or(crate::limits::MAX_PAYLOAD_BYTES),
        took: started.elapsed(),
        raw,
    })
}
