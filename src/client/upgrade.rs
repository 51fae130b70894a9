//! From a TCP stream to a WebSocket: one HTTP request, its answer checked (RFC 6455, section 4.1).

use std::pin::pin;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, LOCATION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::{ConnectFailure, HttpAnswer};
use super::options::EdgeHeader;
use super::url_policy::GatewayUrl;
use crate::id;
use crate::ws::accept;

/// Bytes that the head of the answer may have.
const HEAD_BYTES: usize = 16 * 1024;
/// Bytes of an answer's text that are shown to a person.
const SHOWN_BYTES: u64 = 200;

/// Upgrades `stream`. Gives it back with the bytes that came behind the answer.
pub(super) async fn upgrade<S>(stream: S, url: &GatewayUrl, edge: &[EdgeHeader]) -> Result<(S, Bytes), ConnectFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let key = accept::key(id::random_bytes());
    let mut request = Request::get(url.target())
        .header(HOST, url.authority())
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(USER_AGENT, concat!("clawgate/", env!("CARGO_PKG_VERSION")));
    for EdgeHeader { name, value } in edge {
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| ConnectFailure::EdgeValue(name.clone()))?;
        value.set_sensitive(true);
        request = request.header(name, value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|_| ConnectFailure::NotWebSocket("the URL does not fit into a request"))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ConnectFailure::NotHttp)?;

    // The connection does its work only while it is polled; on an upgrade it ends and leaves the stream.
    let mut connection = pin!(connection.without_shutdown());
    let mut left = None;
    let answer = {
        let mut answer = pin!(sender.send_request(request));
        loop {
            tokio::select! {
                answer = &mut answer => break answer.map_err(ConnectFailure::NotHttp)?,
                parts = &mut connection, if left.is_none() => left = Some(parts.map_err(ConnectFailure::NotHttp)?),
            }
        }
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let answer = tokio::select! {
            answer = describe(answer) => answer,
            _ = &mut connection, if left.is_none() => return Err(ConnectFailure::NotWebSocket("it broke off its answer")),
        };
        return Err(ConnectFailure::Http(answer));
    }
    check(&answer, &key)?;
    let parts = match left {
        Some(parts) => parts,
        None => connection.await.map_err(ConnectFailure::NotHttp)?,
    };
    Ok((parts.io.into_inner(), parts.read_buf))
}

/// What RFC 6455 demands of the answer, and that it turns on nothing we did not ask for.
fn check<B>(answer: &Response<B>, key: &str) -> Result<(), ConnectFailure> {
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let wrong = |what| Err(ConnectFailure::NotWebSocket(what));
    let upgrades =
        header(CONNECTION).is_some_and(|list| list.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade")));
    if !upgrades || !header(UPGRADE).is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
        return wrong("it switched to something else");
    }
    if header(SEC_WEBSOCKET_ACCEPT) != accept::accept_for(key.as_bytes()).as_deref() {
        return wrong("its Sec-WebSocket-Accept is wrong");
    }
    if header(SEC_WEBSOCKET_EXTENSIONS).is_some() || header(SEC_WEBSOCKET_PROTOCOL).is_some() {
        return wrong("it turned on what was not asked for");
    }
    Ok(())
}

/// An answer that is no upgrade, for a person: a proxy's login page, another service on the port.
async fn describe(answer: Response<Incoming>) -> HttpAnswer {
    let status = answer.status();
    let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    // The query of a login page is long, and may hold a secret.
    let location = text(LOCATION).map(|url| url.split('?').next().unwrap_or_default().to_owned());
    let readable = text(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/plain") || kind.contains("json"));
    let short = answer.body().size_hint().upper().is_some_and(|bytes| (1..=SHOWN_BYTES * 4).contains(&bytes));
    let says = if readable && short { answer.into_body().collect().await.ok() } else { None }.map(|body| {
        let text = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
        text.chars().filter(|c| !c.is_control()).take(SHOWN_BYTES as usize).collect()
    });
    HttpAnswer { status, location, says }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::secret::Secret;

    /// Upgrades against a server that answers with what `answer` makes of the request.
    async fn against(answer: impl FnOnce(&str) -> String) -> Result<(DuplexStream, Bytes), ConnectFailure> {
        let (client, mut server) = duplex(4096);
        let serve = async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(server.read_buf(&mut request).await.unwrap() > 0);
            }
            server.write_all(answer(&String::from_utf8(request).unwrap()).as_bytes()).await.unwrap();
            server
        };
        let url = GatewayUrl::loopback(7);
        let edge = [EdgeHeader { name: http::HeaderName::from_static("x-edge"), value: Secret::new("pass") }];
        let (result, _server) = tokio::join!(upgrade(client, &url, &edge), serve);
        result
    }

    fn accepting(request: &str) -> String {
        let key = request.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
        let accept = accept::accept_for(key.as_bytes()).unwrap();
        format!("HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n")
    }

    #[tokio::test]
    async fn gives_the_stream_back_with_what_came_behind_the_answer() {
        let (_, read) = against(|request| {
            assert!(request.starts_with("GET / HTTP/1.1\r\nhost: 127.0.0.1:7\r\n"), "{request}");
            assert!(request.contains("\r\nx-edge: pass\r\n"), "{request}");
            accepting(request) + "\u{1}frame"
        })
        .await
        .unwrap();
        assert_eq!(&read[..], b"\x01frame");
    }

    #[tokio::test]
    async fn a_login_page_is_not_a_gateway() {
        let error = against(|_| {
            "HTTP/1.1 302 Found\r\nlocation: https://login.example/x?secret=1\r\ncontent-length: 0\r\n\r\n".into()
        });
        let ConnectFailure::Http(answer) = error.await.unwrap_err() else { panic!("another error") };
        assert_eq!(answer.to_string(), "HTTP 302 Found instead of a WebSocket, sent on to https://login.example/x");
        let error =
            against(|_| "HTTP/1.1 503 x\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\ntry later".into());
        assert!(error.await.unwrap_err().to_string().ends_with("instead of a WebSocket: try later"));
    }

    #[tokio::test]
    async fn a_wrong_proof_is_refused() {
        let replay = |request: &str| accepting(request).replace("accept: ", "accept: A");
        assert!(matches!(against(replay).await, Err(ConnectFailure::NotWebSocket(_))));
        let extension =
            |request: &str| accepting(request).replace("\r\n\r\n", "\r\nsec-websocket-extensions: x\r\n\r\n");
        assert!(matches!(against(extension).await, Err(ConnectFailure::NotWebSocket(_))));
        assert!(matches!(against(|_| "SSH-2.0-OpenSSH_9\r\n".into()).await, Err(ConnectFailure::NotHttp(_))));
    }
}
