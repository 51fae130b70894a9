//! One connection's life: from the upgrade to the close.
//!
//! [`machine`] decides, without IO, what a message means now; [`driver`] moves the bytes. What lies behind a
//! connection — who gets in, what methods do — is a [`Service`]; this folder does not know it.

pub mod connect;
pub mod driver;
pub mod machine;

use std::borrow::Cow;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::auth::Verdict;
use crate::clock::UnixMs;
use crate::hub::Connection;
use crate::hub::outbox::TooMuch;
use crate::id::ConnId;
use crate::net::preauth::Slot;
use crate::rpc::dispatch::{Params, Routed};
use crate::rpc::error::RpcError;
use crate::ws::close::{Close, CloseCode};
use connect::ConnectParams;

/// What is known of a socket before its client has said a word.
#[derive(Clone, Debug)]
pub struct Socket {
    /// Its number.
    pub id: ConnId,
    /// The other end.
    pub peer: SocketAddr,
    /// The head of the request that opened it.
    pub head: Arc<http::request::Parts>,
    /// The challenge that the client has to sign.
    pub nonce: Arc<str>,
    /// Where its request came from: the one verdict.
    pub verdict: Verdict,
    /// Generation of the access settings under which it was accepted.
    pub generation: u64,
    /// When it was accepted, or had its last answer by HTTP: its time to authenticate counts from here.
    pub since: Instant,
    /// Its place among the strangers, until it is let in.
    pub slot: Arc<Slot>,
    /// Why its client was not let in, in one word, once that is decided.
    pub denied: Arc<OnceLock<Cow<'static, str>>>,
}

/// A client that was let in.
#[derive(Debug)]
pub struct Accepted {
    /// Its place in the hub.
    pub connection: Arc<Connection>,
    /// The payload of `hello-ok`, as JSON.
    pub hello: Vec<u8>,
}

/// A client that was not.
#[derive(Debug)]
pub struct Refused {
    /// The answer to its `connect`.
    pub error: RpcError,
    /// The code of the close frame that follows.
    pub code: CloseCode,
    /// Its reason; the error's message when empty.
    pub reason: String,
}

/// How a connection ended, for logs and counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Who ended it.
    pub by: EndedBy,
    /// Close code, where a close frame was sent or came.
    pub code: Option<u16>,
    /// What was said, or what happened.
    pub reason: String,
    /// What was too much, where that is the reason.
    pub too_much: Option<TooMuch>,
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// The gateway closed it.
    Gateway,
    /// The client closed it.
    Client,
    /// The transport broke without a close frame.
    Transport,
}

/// The future of a [`Service::connect`].
pub type Connecting = Pin<Box<dyn Future<Output = Result<Accepted, Refused>> + Send>>;

/// The future of a [`Service::called_off`].
pub type CalledOff = Pin<Box<dyn Future<Output = Close<'static>> + Send>>;

/// What connections are for.
pub trait Service: Send + Sync + 'static {
    /// Time from the accept to `hello-ok`.
    fn handshake_timeout(&self) -> Duration;

    /// Ends when `socket` is not let in any more, because the gateway stops or needs its place; says which.
    fn called_off(&self, socket: &Socket) -> CalledOff;

    /// Decides on a `connect`. Durable work may take a while; the deadline of the handshake goes on.
    fn connect(self: Arc<Self>, socket: Socket, params: ConnectParams) -> Connecting;

    /// Called when `hello-ok` is on its way, before any request of the connection is routed.
    fn opened(&self, connection: &Arc<Connection>);

    /// Routes one request; see [`crate::rpc::dispatch::Router::route`].
    fn route(
        &self,
        caller: &Arc<Connection>,
        id: &str,
        method: &str,
        params: Params<'_>,
        now: UnixMs,
        out: &mut Vec<u8>,
    ) -> Routed;

    /// Called once when a connection has ended: with its `socket` if it was never let in, else with its `connection`.
    fn ended(&self, socket: Option<&Socket>, connection: Option<&Arc<Connection>>, end: &End);
}
