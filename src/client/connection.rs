//! A connection that is up: calls and their answers, events, signs of life.
//!
//! One task owns the socket. [`Connection`] hands it calls over a bounded channel, and it hands answers and events
//! back; the channel's bound is what slows callers down when the gateway does not read. Start at
//! [`Connection::call`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::connect::Hello;
use super::error::{CallError, Disconnect};
use super::frames::{Frames, Inbound};
use crate::limits::CLOSE_GRACE;
use crate::rpc::envelope::{Event as WireEvent, Reply, Response};
use crate::rpc::json::push_string;
use crate::task;
use crate::ws::close::CloseCode;

/// Calls that wait to be taken by the connection's task.
const COMMAND_QUEUE: usize = 64;
/// Calls without an answer, above which no further ones are taken.
const MAX_IN_FLIGHT: usize = 1024;
/// Bytes not yet written, above which no further calls are taken.
const MAX_UNSENT_BYTES: usize = 1024 * 1024;
/// Events that wait for whoever reads them.
const EVENT_QUEUE: usize = 1024;

/// A connection to a gateway. Clones are the same connection; it is closed when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    hello: Arc<Hello>,
    commands: mpsc::Sender<Command>,
    next_id: Arc<AtomicU64>,
    ended: watch::Receiver<Option<Disconnect>>,
}

#[derive(Debug)]
enum Command {
    Call(Call),
    Close,
}

#[derive(Debug)]
struct Call {
    id: u64,
    text: String,
    answer: oneshot::Sender<Result<Box<RawValue>, CallError>>,
}

impl Connection {
    /// What the gateway said at the beginning.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Calls a method and gives the JSON of its result (`null` when the gateway gave none).
    ///
    /// Cancel safe: a call that is dropped is forgotten here; whether the gateway still carries it out is not known.
    ///
    /// # Errors
    /// [`CallError`]: the gateway's error, no answer within `deadline`, or the end of the connection.
    pub async fn call(
        &self,
        method: &str,
        params: &(impl Serialize + ?Sized),
        deadline: Duration,
    ) -> Result<Box<RawValue>, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let text = request(id, method, params)?;
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            let command = Command::Call(Call { id, text, answer });
            self.commands.send(command).await.map_err(|_| self.gone())?;
            answered.await.unwrap_or_else(|_| Err(self.gone()))
        };
        match timeout(deadline, exchange).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Timeout { method: method.into(), after: deadline }),
        }
    }

    /// Calls a method and reads its result as `T`.
    ///
    /// # Errors
    /// As [`Connection::call`], and [`CallError::Result`] when the result is not a `T`.
    pub async fn call_as<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &(impl Serialize + ?Sized),
        deadline: Duration,
    ) -> Result<T, CallError> {
        let result = self.call(method, params, deadline).await?;
        serde_json::from_str(result.get())
            .map_err(|error| CallError::Result { method: method.into(), why: error.to_string().into() })
    }

    /// Waits for the end of the connection and says how it came.
    pub async fn ended(&self) -> Disconnect {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Disconnect::ByUs),
            Err(_) => Disconnect::ByUs,
        }
    }

    /// Closes the connection, for all clones, and waits until the gateway has taken note or a second has passed.
    pub async fn close(self) {
        if self.commands.send(Command::Close).await.is_ok() {
            self.commands.closed().await;
        }
    }

    fn gone(&self) -> CallError {
        CallError::Disconnected(self.ended.borrow().clone().unwrap_or(Disconnect::ByUs))
    }
}

/// `{"type":"req","id":"7","method":"health","params":{}}`.
fn request(id: u64, method: &str, params: &(impl Serialize + ?Sized)) -> Result<String, CallError> {
    let mut text = format!(r#"{{"type":"req","id":"{id}","method":"#).into_bytes();
    push_string(method, &mut text);
    text.extend_from_slice(br#","params":"#);
    let start = text.len();
    serde_json::to_writer(&mut text, params).map_err(|error| CallError::Params(error.to_string().into()))?;
    // `()` is how a caller says that there are none.
    if &text[start..] == b"null" {
        text.truncate(start);
        text.extend_from_slice(b"{}");
    }
    text.push(b'}');
    String::from_utf8(text).map_err(|error| CallError::Params(error.to_string().into()))
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name.
    pub name: Box<str>,
    /// What it says; `null` when nothing.
    pub payload: Box<RawValue>,
    /// Counts the events of this connection; a gap means that the gateway left some out. Events for this connection
    /// alone have none.
    pub seq: Option<u64>,
}

/// The events of a connection, in order.
///
/// At most 1024 wait here; what comes beyond is dropped and counted, so that a reader that is slow delays no answer.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Event>,
    missed: Arc<AtomicU64>,
}

impl Events {
    /// The next event; `None` when the connection has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.queue.recv().await
    }

    /// Events that were dropped because too many waited.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// Takes over a WebSocket that is past `hello-ok`.
pub(super) fn start<S>(frames: Frames<S>, hello: Hello) -> (Connection, Events)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (commands, command_queue) = mpsc::channel(COMMAND_QUEUE);
    let (events, event_queue) = mpsc::channel(EVENT_QUEUE);
    let (end, ended) = watch::channel(None);
    let missed = Arc::new(AtomicU64::new(0));
    let driver = Driver {
        frames,
        commands: command_queue,
        in_flight: HashMap::new(),
        events,
        missed: Arc::clone(&missed),
        silence: hello.tick_interval.saturating_mul(2),
        end,
    };
    task::spawn("client connection", driver.run());
    let connection = Connection { hello: Arc::new(hello), commands, next_id: Arc::new(AtomicU64::new(1)), ended };
    (connection, Events { queue: event_queue, missed })
}

type InFlight = HashMap<u64, oneshot::Sender<Result<Box<RawValue>, CallError>>>;

struct Driver<S> {
    frames: Frames<S>,
    commands: mpsc::Receiver<Command>,
    in_flight: InFlight,
    events: mpsc::Sender<Event>,
    missed: Arc<AtomicU64>,
    silence: Duration,
    end: watch::Sender<Option<Disconnect>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    async fn run(mut self) {
        let end = self.serve().await;
        match end {
            Disconnect::ByUs => self.frames.send_close(CloseCode::NORMAL, ""),
            Disconnect::Silent(_) => self.frames.send_close(CloseCode::TICK_TIMEOUT, "tick timeout"),
            // A close frame that came, and a breach of the protocol, were answered where they were found.
            Disconnect::ByGateway { .. } | Disconnect::Protocol(_) | Disconnect::Lost(_) => {}
        }
        for (_, answer) in self.in_flight.drain() {
            // A caller that has gone wants no answer.
            let _ = answer.send(Err(CallError::Disconnected(end.clone())));
        }
        let lost = matches!(end, Disconnect::Lost(_));
        self.end.send_replace(Some(end));
        if !lost {
            let _ = timeout(CLOSE_GRACE, self.frames.finish()).await;
        }
    }

    /// Works until the connection ends.
    async fn serve(&mut self) -> Disconnect {
        let mut heard = Instant::now();
        let silent = sleep_until(heard + self.silence);
        tokio::pin!(silent);
        loop {
            while let Some(end) = self.frames.pop(|inbound| match inbound {
                Inbound::Text(text) => {
                    deliver(text, &mut self.in_flight, &self.events, &self.missed);
                    None
                }
                Inbound::Ended(end) => Some(end),
            }) {
                if let Some(end) = end {
                    return end;
                }
            }
            let may_take = self.in_flight.len() < MAX_IN_FLIGHT && self.frames.unsent_bytes() < MAX_UNSENT_BYTES;
            tokio::select! {
                io = self.frames.io() => match io {
                    Ok(()) => heard = Instant::now(),
                    Err(end) => return end,
                },
                command = self.commands.recv(), if may_take => match command {
                    Some(Command::Call(call)) => self.send(call),
                    Some(Command::Close) | None => return Disconnect::ByUs,
                },
                () = &mut silent => {
                    self.in_flight.retain(|_, answer| !answer.is_closed());
                    if heard.elapsed() >= self.silence {
                        return Disconnect::Silent(self.silence);
                    }
                    silent.as_mut().reset(heard + self.silence);
                }
            }
            if self.in_flight.len() >= MAX_IN_FLIGHT {
                self.in_flight.retain(|_, answer| !answer.is_closed());
            }
        }
    }

    fn send(&mut self, call: Call) {
        if call.answer.is_closed() {
            return;
        }
        self.frames.send_text(&call.text);
        self.in_flight.insert(call.id, call.answer);
    }
}

/// Brings one message to whom it is for. What is not understood is for nobody: a newer gateway may say more than this
/// client knows.
fn deliver(text: &str, in_flight: &mut InFlight, events: &mpsc::Sender<Event>, missed: &AtomicU64) {
    match Reply::parse(text) {
        Ok(Reply::Response(response)) => {
            let id = response.id.as_str().trim_matches('"').parse().ok();
            if let Some(answer) = id.and_then(|id: u64| in_flight.remove(&id)) {
                // A caller that has gone wants no answer.
                let _ = answer.send(result(&response));
            }
        }
        Ok(Reply::Event(event)) => {
            if !events.is_closed() && events.try_send(owned(&event)).is_err() {
                missed.fetch_add(1, Ordering::Relaxed);
            }
        }
        Err(error) => tracing::debug!(%error, "the gateway sent what is no message of the protocol"),
    }
}

fn result(response: &Response<'_>) -> Result<Box<RawValue>, CallError> {
    if response.ok {
        return Ok(raw(response.payload.map(|payload| payload.as_str())));
    }
    let error = response.error.map_or("{}", |error| error.as_str());
    match serde_json::from_str(error) {
        Ok(error) => Err(CallError::Remote(error)),
        Err(error) => Err(CallError::Result { method: "the call".into(), why: error.to_string().into() }),
    }
}

fn owned(event: &WireEvent<'_>) -> Event {
    Event { name: (*event.event).into(), payload: raw(event.payload.map(|payload| payload.as_str())), seq: event.seq }
}

/// A span that the envelope scanner has validated.
fn raw(json: Option<&str>) -> Box<RawValue> {
    json.and_then(|json| RawValue::from_string(json.to_owned()).ok()).unwrap_or_else(|| RawValue::NULL.to_owned())
}
