//! A connection for setting things up: one call after the other, waiting for each.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::client::{End, Engine, Gateway, Key, Link, Load, Wire};
use crate::rounds::nanos;
use crate::wire::{Heard, Template, Who};
use std::rc::Rc;

/// Time that the gateway has for an answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Whether the call succeeded.
    pub ok: bool,
    /// The whole message.
    pub text: String,
}

impl Answer {
    /// The payload.
    ///
    /// # Errors
    /// The call failed.
    pub fn payload(&self) -> Result<Value> {
        let mut frame: Value = serde_json::from_str(&self.text).context("an answer that is not JSON")?;
        ensure!(self.ok, "the gateway refused: {}", frame["error"]["message"].as_str().unwrap_or(&self.text));
        Ok(frame["payload"].take())
    }
}

/// The connection.
#[derive(Debug)]
pub struct Control {
    engine: Engine,
    heard: Listener,
    key: Key,
    calls: u64,
}

/// What has been heard and not been asked for.
#[derive(Debug, Default)]
struct Listener {
    hello: Option<String>,
    answers: VecDeque<(u64, Answer)>,
    end: Option<End>,
}

impl Load for Listener {
    fn opened(&mut self, _: &mut Link<'_>, hello: &str) {
        self.hello = Some(hello.to_owned());
    }

    fn text(&mut self, _: &mut Link<'_>, text: &str) {
        if let Heard::Answer { id, ok } = Heard::of(text) {
            self.answers.push_back((id, Answer { ok, text: text.to_owned() }));
        }
    }

    fn answers(&mut self, _: &mut Link<'_>, _: usize) {}

    fn closed(&mut self, _: Key, end: End) {
        self.end = Some(end);
    }
}

impl Control {
    /// Connects as an operator with all scopes.
    pub fn connect(gateway: &Rc<Gateway>) -> Result<Self> {
        let mut engine = Engine::new(1)?;
        let key = engine
            .open(&Wire::Gateway(Rc::clone(gateway), Rc::new(Who::Operator("loadtest-setup".to_owned()))))
            .with_context(|| format!("connecting to {}", gateway.address))?;
        let mut control = Self { engine, heard: Listener::default(), key, calls: 0 };
        control.wait(|heard| heard.hello.is_some().then_some(())).context("connecting to the gateway")?;
        Ok(control)
    }

    /// The gateway's answer to `connect`, its payload.
    pub fn hello(&self) -> Result<Value> {
        let text = self.heard.hello.clone().context("no hello")?;
        Answer { ok: true, text }.payload()
    }

    /// Calls, and waits for the answer.
    pub fn call(&mut self, method: &str, params: Option<&Value>) -> Result<Answer> {
        self.calls += 1;
        let id = self.calls;
        let mut template = Template::call(method, params);
        let now = self.engine.now();
        self.engine
            .with(self.key, &mut self.heard, now, |_, link| link.call(&mut template, id))
            .ok_or_else(|| anyhow!("the connection has ended"))?;
        self.wait(|heard| {
            let at = heard.answers.iter().position(|(of, _)| *of == id)?;
            heard.answers.drain(..=at).next_back().map(|(_, answer)| answer)
        })
        .with_context(|| format!("calling {method}"))
    }

    fn wait<T>(&mut self, mut found: impl FnMut(&mut Listener) -> Option<T>) -> Result<T> {
        let deadline = self.engine.now() + nanos(TIMEOUT);
        loop {
            if let Some(found) = found(&mut self.heard) {
                return Ok(found);
            }
            if let Some(end) = &self.heard.end {
                bail!("the connection {end}");
            }
            ensure!(self.engine.now() < deadline, "the gateway did not answer within {} s", TIMEOUT.as_secs());
            self.engine.turn(&mut self.heard, Duration::from_millis(50))?;
        }
    }
}
