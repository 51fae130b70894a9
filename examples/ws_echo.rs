//! The frame codec behind the HTTP upgrade, and nothing else: every message goes back as it came.
//!
//! `cargo run --release --example ws_echo -- 9001`, then point a WebSocket conformance suite at
//! `ws://127.0.0.1:9001`. `docs/conformance.md` says how the Autobahn cases are run.

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use clawgate::http::reject::Reject;
use clawgate::http::{Readiness, Site, Upgraded, serve};
use clawgate::net::stream::Stream;
use clawgate::task;
use clawgate::ws::close::Close;
use clawgate::ws::codec::{self, Decoder, Limits, Role};
use clawgate::ws::message::{Message, Opcode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
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
        drop(echo(upgraded).await);
    }
}

async fn echo(upgraded: Upgraded<()>) -> std::io::Result<()> {
    let Upgraded { mut stream, read, .. } = upgraded;
    let mut decoder = Decoder::new(Role::Server, Limits { max_message_bytes: 32 << 20, max_fragments: 1 << 20 });
    let mut buffer = vec![0; 64 * 1024];
    let mut output = Vec::new();
    let mut filled = read.len();
    buffer[..filled].copy_from_slice(&read);
    loop {
        let mut input = &mut buffer[..filled];
        let mut ended = false;
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(Message::Text(text))) => codec::frame(Opcode::Text, text.into_bytes(), None, &mut output),
                Ok(Some(Message::Binary(bytes))) => codec::frame(Opcode::Binary, bytes, None, &mut output),
                Ok(Some(Message::Ping(payload))) => codec::frame(Opcode::Pong, payload, None, &mut output),
                Ok(Some(Message::Pong(_))) => {}
                Ok(Some(Message::Close(close))) => {
                    codec::close(close, None, &mut output);
                    ended = true;
                }
                Err(error) => {
                    codec::close(Some(Close::from(error)), None, &mut output);
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

fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::args().nth(1).map_or(Ok(9001), |port| port.parse())?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let site = Arc::new(Echo);
        loop {
            let (stream, peer) = listener.accept().await?;
            task::spawn("echo", serve(Stream::Plain(stream), peer, Instant::now(), Arc::clone(&site)));
        }
    })
}
