//! `clawgate doctor proxy`: sends a request through a proxy, and shows what the gateway made of it.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use url::Url;

use super::context::Context;
use super::error::CliError;
use super::output::Tone;
use super::parse_result;
use super::target::{GatewayFlags, Target, scopes_for};
use crate::client::{Connection, Purpose};

/// Time for all of it, the request by hand included.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two questions whether the request has come.
const PAUSE: Duration = Duration::from_millis(200);
/// Time that a proxy has to pass a request on.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// `doctor ...`.
#[derive(Debug, Subcommand)]
pub(super) enum DoctorCommand {
    /// Show what the gateway sees of a request that comes through your proxy, and what to change
    Proxy(ProxyArgs),
}

/// Through which proxy.
#[derive(Debug, Args)]
pub(super) struct ProxyArgs {
    /// The address of the proxy, as its users type it; through https://, and without it, the request is made by hand
    #[arg(value_name = "PROXY_URL")]
    proxy: Option<String>,
    /// A header line to send, such as the session's "Cookie: ..."; may be given several times
    #[arg(long, value_name = "LINE")]
    header: Vec<String>,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// The answer of `gateway.doctor.proxy.begin`.
#[derive(Deserialize)]
struct Begun {
    number: String,
    path: String,
    header: String,
}

impl DoctorCommand {
    /// Whether the result, and so an error, is printed as JSON.
    pub(super) const fn prints_json(&self) -> bool {
        let Self::Proxy(args) = self;
        args.gateway.json
    }

    /// Runs it.
    ///
    /// # Errors
    /// What went wrong, for [`super::output::Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let Self::Proxy(args) = self;
        let proxy = args.proxy.as_deref().map(address).transpose()?;
        let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
        let connection = target.connect(scopes_for(["gateway.doctor.proxy.begin"])).await?;
        let raw = target.call(&connection, "gateway.doctor.proxy.begin", &json!({})).await?;
        let begun: Begun = parse_result("gateway.doctor.proxy.begin", &raw)?;
        let status = match &proxy {
            Some(url) if url.scheme() == "http" => Some(send(url, &begun, &args.header).await?),
            _ => {
                let proxy = proxy.as_ref().map_or("https://YOUR-PROXY", Url::as_str).trim_end_matches('/');
                context.output.note("Send this request through the proxy, with the session of a user who may come in:");
                context
                    .output
                    .note(&format!("  curl -i -H '{}: {}' '{proxy}{}'", begun.header, begun.number, begun.path));
                let seconds = target.left().as_secs();
                context
                    .output
                    .note(&format!("Waiting for it, up to {seconds} s; Ctrl-C ends, --timeout MS waits longer."));
                None
            }
        };
        let report = wait(&target, &connection, &begun, status).await?;
        if args.gateway.json {
            context.output.value(&report)?;
        } else {
            print(context, &report)?;
        }
        let good = report["advice"].as_array().is_some_and(Vec::is_empty);
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The address of a proxy.
fn address(text: &str) -> Result<Url, CliError> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err(CliError::Usage(format!("{text} is no address of a proxy: it takes http://HOST or https://HOST"))),
    }
}

/// Sends the request; gives the status of the answer.
async fn send(url: &Url, begun: &Begun, lines: &[String]) -> Result<u16, CliError> {
    let failed = |why: String| CliError::with_advice(format!("{url}: {why}"), "Is this where the proxy listens?");
    let host = url.host_str().ok_or_else(|| failed("there is no host in it".to_owned()))?;
    let port = url.port_or_known_default().unwrap_or(80);
    let mut request = http::Request::get(&begun.path)
        .header(http::header::HOST, if url.port().is_some() { format!("{host}:{port}") } else { host.to_owned() })
        .header(&begun.header, &begun.number);
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| CliError::Usage(format!("--header must be \"Name: value\", not {line:?}")))?;
        request = request.header(name.trim(), value.trim());
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| CliError::Usage(format!("--header: {error}")))?;
    let exchange = async {
        let stream =
            TcpStream::connect((host.trim_matches(['[', ']']), port)).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let answer = sender.send_request(request);
        tokio::pin!(connection, answer);
        loop {
            tokio::select! {
                answer = &mut answer => break answer.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string()),
                ended = &mut connection => ended.map_err(|error| error.to_string())?,
            }
        }
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, exchange).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed(format!("no answer within {REQUEST_TIMEOUT:?}"))),
    }
}

/// Asks until the report is there. When we sent the request ourselves and it was answered, it is there at once or never.
async fn wait(target: &Target, connection: &Connection, begun: &Begun, status: Option<u16>) -> Result<Value, CliError> {
    loop {
        let raw = target.call(connection, "gateway.doctor.proxy.report", &json!({"number": begun.number})).await?;
        let mut answer: Value = parse_result("gateway.doctor.proxy.report", &raw)?;
        if answer["report"].is_object() {
            return Ok(answer["report"].take());
        }
        if let Some(status) = status {
            return Err(CliError::with_advice(
                format!("the proxy answered {status} and the request did not reach the gateway with its header"),
                "Give it a session of a user who may come in: --header 'Cookie: ...'; and let it pass X-Clawgate-Doctor on",
            ));
        }
        if target.left() < PAUSE * 2 {
            return Err(CliError::with_advice("no request has come", "Begin again with: clawgate doctor proxy"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn print(context: &Context, report: &Value) -> Result<(), CliError> {
    let output = context.output;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let trusted =
        if report["peerIsTrusted"] == true { "in gateway.trustedProxies" } else { "not in gateway.trustedProxies" };
    output.line(&format!("peer      {} ({trusted})", text(&report["peer"])))?;
    for header in report["headers"].as_array().into_iter().flatten() {
        output.line(&format!("header    {}: {}", text(&header[0]), text(&header[1])))?;
    }
    for hop in report["hops"].as_array().into_iter().flatten() {
        output.line(&format!("hop       {} ({})", text(&hop["value"]), text(&hop["is"])))?;
    }
    let client = if report["client"].is_string() { text(&report["client"]) } else { "not known".to_owned() };
    output.line(&format!("client    {client}"))?;
    let refused = if report["refused"].is_string() { format!(": {}", text(&report["refused"])) } else { String::new() };
    output.line(&format!("verdict   {}{refused}", text(&report["verdict"])))?;
    if report["identity"].is_object() {
        let identity = &report["identity"];
        let says = if identity["user"].is_string() { text(&identity["user"]) } else { text(&identity["reason"]) };
        output.line(&format!("identity  {says}"))?;
    }
    let advice: Vec<_> = report["advice"].as_array().into_iter().flatten().collect();
    if advice.is_empty() {
        output.painted(&[(Tone::Good, "all is well")])?;
    }
    for line in advice {
        output.painted(&[(Tone::Warning, "change"), (Tone::Plain, &format!("    {}", text(line)))])?;
    }
    Ok(())
}
