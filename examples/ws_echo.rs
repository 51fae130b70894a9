//! The frame codec behind the HTTP upgrade, and nothing else: every message goes back as it came.
//!
//! ```console
//! $ cargo run --release --example ws_echo -- 9001                   # in server role, for a suite that is a client
//! $ cargo run --release --example ws_echo -- client 127.0.0.1:9001  # in client role, through all cases of a suite
//! ```
//!
//! `docs/conformance.md` says how the Autobahn cases are run with it.

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use clawgate::http::reject::Reject;
use clawgate::http::{Readiness, Site, Upgraded, serve};
use clawgate::net::stream::Stream;
use clawgate::task;
use clawgate::ws::close::Close;
use clawgate::ws::codec::{self, Decoder, Limits, Role};
use clawgate::ws::message::{Message, Opcode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

struct Echo;

impl Site for Echo {
    type Admitted = ();

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn uptime_ms(&self) -> u64 {
        0
    }

    fn called_off(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    fn admit(&self, _: SocketAddr, _: &http::request::Parts) -> Result<(), Reject> {
        Ok(())
    }

    async fn connected(self: Arc<Self>, upgraded: Upgraded<()>) {
        // A peer that breaks the connection is no news here.
        let Upgraded { stream, read, .. } = upgraded;
        drop(echo(stream, &read, Role::Server, |_| ()).await);
    }
}

/// Sends everything back until the peer closes; `saw` sees each text.
async fn echo<S>(mut stream: S, read: &[u8], role: Role, mut saw: impl FnMut(&str)) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Any mask will do for a peer of a test; a real client draws a new one for each frame.
    let mask = (role == Role::Client).then_some([0x5a, 0x17, 0xc3, 0x88]);
    let mut decoder = Decoder::new(role, Limits { max_message_bytes: 32 << 20, max_fragments: 1 << 20 });
    let mut buffer = vec![0; 64 * 1024];
    let mut output = Vec::new();
    let mut filled = read.len();
    buffer[..filled].copy_from_slice(read);
    loop {
        let mut input = &mut buffer[..filled];
        let mut ended = false;
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(Message::Text(text))) => {
                    saw(&text);
                    codec::frame(Opcode::Text, text.as_bytes(), mask, &mut output);
                }
                Ok(Some(Message::Binary(bytes))) => codec::frame(Opcode::Binary, bytes, mask, &mut output),
                Ok(Some(Message::Ping(payload))) => codec::frame(Opcode::Pong, payload, mask, &mut output),
                Ok(Some(Message::Pong(_))) => {}
                Ok(Some(Message::Close(close))) => {
                    codec::close(close, mask, &mut output);
                    ended = true;
                }
                Err(error) => {
                    codec::close(Some(Close::from(error)), mask, &mut output);
                    ended = true;
                    break;
                }
            }
        }
        stream.write_all(&output).await?;
        output.clear();
        if ended {
            stream.shutdown().await?;
            // Read on until the peer has gone: closing with unread bytes would reset the connection.
            while stream.read(&mut buffer).await? > 0 {}
            return Ok(());
        }
        filled = stream.read(&mut buffer).await?;
        if filled == 0 {
            return Ok(());
        }
    }
}

/// Opens a WebSocket to `path` of a suite's server and sends everything back. Returns the last text.
async fn visit(server: &str, path: &str) -> Result<String, Box<dyn Error>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(server).await?)).await?;
    task::spawn("http", async move { drop(connection.with_upgrades().await) });
    let request = Request::get(path)
        .header("host", server)
        .header("upgrade", "websocket")
        .header("connection", "Upgrade")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("{path}: {}", answer.status()).into());
    }
    let upgraded = hyper::upgrade::on(answer).await?;
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| "not the stream that was upgraded")?;
    let mut last = String::new();
    // How a case ends is for the suite to judge, also when it ends the transport.
    let _ = echo(parts.io.into_inner(), &parts.read_buf, Role::Client, |text| text.clone_into(&mut last)).await;
    Ok(last)
}

/// Goes through all cases of a suite that is a server, as Autobahn's clients do.
async fn client(server: &str) -> Result<(), Box<dyn Error>> {
    let cases: u32 = visit(server, "/getCaseCount").await?.trim().parse()?;
    for case in 1..=cases {
        visit(server, &format!("/runCase?case={case}&agent=clawgate")).await?;
    }
    visit(server, "/updateReports?agent=clawgate").await?;
    Ok(())
}

async fn server(port: u16) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let site = Arc::new(Echo);
    loop {
        let (stream, peer) = listener.accept().await?;
        task::spawn("echo", serve(Stream::Plain(stream), peer, Instant::now(), Arc::clone(&site)));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["client", address] => runtime.block_on(client(address)),
        [port] => runtime.block_on(server(port.parse()?)),
        [] => runtime.block_on(server(9001)),
        _ => Err("usage: ws_echo [PORT] | ws_echo client HOST:PORT".into()),
    }
}
