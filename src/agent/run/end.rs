//! The end of a run: stored with the last answer and what is to be sent, then told to everybody who may know.

use std::time::Duration;

use serde_json::json;

use super::{Course, Halt, LastWord, interrupted, unanswered};
use crate::agent::Answer;
use crate::agent::media;
use crate::agent::record::{self, End, Outcome};
use crate::clock::UnixMs;
use crate::rpc::catalog::Event;
use crate::rpc::error::RpcError;
use crate::sessions::message::{Block, Message, Usage};
use crate::store::Change;

/// Tries to store the end of a run: without it the run would begin again at the next start.
const END_TRIES: u32 = 5;

impl Course<'_> {
    /// Stores the end, then tells of it.
    pub(super) async fn finish(mut self, result: Result<LastWord, Halt>, started: UnixMs) {
        let ended_at = UnixMs::now();
        let (message, outcome, kind) = match result {
            Ok(LastWord { message, stop }) => {
                let outcome = Outcome {
                    end: End::Done,
                    stop_reason: stop.as_str().to_owned(),
                    error: None,
                    text: message.text(),
                    ended_at,
                };
                (Some(message), outcome, "unknown")
            }
            Err(halt) => {
                let text = std::mem::take(&mut self.shown);
                let message = (!text.is_empty()).then(|| partial(&text, &halt, ended_at));
                let outcome = Outcome {
                    end: halt.end,
                    stop_reason: halt.stop_reason.to_owned(),
                    error: halt.error,
                    text,
                    ended_at,
                };
                (message, outcome, halt.kind)
            }
        };
        let stored = self.store_end(message, &outcome).await;
        let outcome = match stored {
            Ok(()) => outcome,
            Err(error) => {
                tracing::error!(run = %self.live.id, %error, "the end of a run was not stored; it goes on at the next start");
                let error = Some(format!("the end of the run could not be stored: {error}"));
                Outcome { end: End::Failed, stop_reason: "storage".to_owned(), error, ..outcome }
            }
        };
        self.agent.0.sessions.set_in_flight(&self.live.key, None);
        self.tell_end(&outcome, kind, started);
        self.agent.0.sessions.changed(&self.live.key, "agent.run.ended");
        self.live.end.send_replace(Some(outcome));
    }

    async fn store_end(&self, message: Option<Message>, outcome: &Outcome) -> Result<(), String> {
        let mut last = String::new();
        for attempt in 0..END_TRIES {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
            }
            match self.try_store_end(message.clone(), outcome.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error.message.into_owned(),
            }
        }
        Err(last)
    }

    /// The last answer, the state and what is to be sent: together or not at all.
    async fn try_store_end(&self, message: Option<Message>, outcome: Outcome) -> Result<(), RpcError> {
        let (agent, live) = (self.agent.clone(), self.live);
        let (id, key, origin, route) =
            (live.id.clone(), live.key.clone(), live.origin.clone(), live.asked.route.clone());
        let mut messages: Vec<Message> = match outcome.end {
            End::Done => Vec::new(),
            // Every call has a result, so that the next turn of the session is a whole one.
            End::Failed | End::Aborted => unanswered(&self.messages)
                .iter()
                .map(|(call_id, name)| interrupted(call_id, name, "The run ended before this tool had answered."))
                .collect(),
        };
        messages.extend(message);
        let (said, pictures) = match &route {
            Some(_) => media::attached(&outcome.text, &self.messages),
            None => (String::new(), Vec::new()),
        };
        let (asked, is_new) = (live.asked.message.clone(), !live.began);
        let session_is_there = agent.0.sessions.get(&key).is_some();
        agent
            .clone()
            .0
            .store
            .write(move |tx| {
                if !record::is_open(tx, &id)? {
                    return Ok::<_, RpcError>(Change::of(()));
                }
                // Stopped while it waited: what was said to it was said all the same.
                let mut messages = messages;
                let waited = is_new && record::begin(tx, &id)?;
                if waited {
                    messages.insert(0, asked);
                }
                record::end(tx, &id, &outcome)?;
                let sent = match (route, agent.0.channel.get()) {
                    (Some(route), Some(channel)) => {
                        let answer = Answer { outcome: &outcome, text: &said, pictures: &pictures };
                        Some(channel.deliver(tx, &id, &route, answer, outcome.ended_at)?)
                    }
                    _ => None,
                };
                let status = match (outcome.end, outcome.stop_reason.as_str()) {
                    (End::Done, _) => "done",
                    (End::Aborted, _) => "killed",
                    (End::Failed, "timeout") => "timeout",
                    (End::Failed, _) => "failed",
                };
                // One that was deleted in the meantime does not come back by the end of its run.
                let appended = if session_is_there || waited {
                    let change = |session: &mut crate::sessions::record::Session| {
                        session.status = Some(status.to_owned());
                        session.last_run_error.clone_from(&outcome.error);
                        session.last_activity_at = Some(outcome.ended_at);
                    };
                    let of_run = (&messages[..], Some(id.as_str()));
                    Some(agent.0.sessions.append_of_run_in(tx, &key, &origin, of_run, change, outcome.ended_at)?)
                } else {
                    None
                };
                Ok(Change::of(()).publish(move || {
                    if let Some(appended) = appended {
                        agent.0.sessions.show(appended);
                    }
                    if let Some(sent) = sent {
                        sent();
                    }
                }))
            })
            .await
    }

    fn tell_end(&mut self, outcome: &Outcome, kind: &str, started: UnixMs) {
        let live = self.live;
        self.chat_seq += 1;
        let mut chat = json!({"runId": live.id, "sessionKey": live.key.as_str(), "agentId": live.key.agent(),
            "seq": self.chat_seq, "stopReason": outcome.stop_reason});
        if !outcome.text.is_empty() {
            chat["message"] = json!({"role": "assistant", "content": [{"type": "text", "text": outcome.text}],
                "timestamp": outcome.ended_at});
        }
        match outcome.end {
            End::Done => chat["state"] = json!("final"),
            End::Aborted => chat["state"] = json!("aborted"),
            End::Failed => {
                chat["state"] = json!("error");
                chat["errorMessage"] = json!(outcome.error);
                chat["errorKind"] = json!(kind);
            }
        }
        self.agent.0.sessions.hub().broadcast(Event::CHAT, &chat);
        let phase = if outcome.end == End::Failed { "error" } else { "end" };
        let mut data = json!({"phase": phase, "startedAt": started, "endedAt": outcome.ended_at,
            "stopReason": outcome.stop_reason, "aborted": outcome.end == End::Aborted});
        if let Some(error) = &outcome.error {
            data["error"] = json!(error);
        }
        self.lifecycle(&data);
    }
}

/// What the model had said when the run was stopped.
fn partial(text: &str, halt: &Halt, timestamp: UnixMs) -> Message {
    Message::Assistant {
        content: vec![Block::Text { text: text.to_owned() }],
        api: String::new(),
        provider: String::new(),
        model: String::new(),
        usage: Usage::default(),
        stop_reason: if halt.end == End::Aborted { "aborted" } else { "error" }.to_owned(),
        error_message: halt.error.clone(),
        timestamp,
    }
}
