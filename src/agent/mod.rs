//! The agent: runs, one at a time a session, that ask a model, call its tools, and answer.
//!
//! The handle is [`Agent`]. Everything here happens on a runtime of its own, so that a slow model is nothing to the
//! threads that carry frames. What a run needs to go on after a crash is on disk before anybody is told of it:
//!
//! | step | stored | after a crash |
//! |---|---|---|
//! | taken in | `runs` (with the channel's offset, in one transaction) | it runs |
//! | begins | its message in the transcript, state `running` | it goes on from the transcript |
//! | the model answered | the answer in the transcript | not asked again; without it the model is asked again |
//! | a tool is called | the call, as part of the answer, *before* it is made | never made twice: it is answered with "may have run" |
//! | the tool answered | its result in the transcript | it goes on |
//! | the end | last answer, state, and what is to be sent, in one transaction | the channel sends |
//!
//! So a tool is called at most once, a model at least once, and a run ends exactly once.
//!
//! Where to start reading: [`run`] (a run from beginning to end), [`context`], [`tools`], [`providers`], [`record`].

pub mod context;
pub mod media;
pub mod methods;
pub mod profiles;
pub mod providers;
pub mod record;
mod run;
#[cfg(test)]
mod tests;
pub mod tools;

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use record::{Asked, End, Outcome, Route, SCHEMA, Taken};

use crate::approvals::Approvals;
use crate::clock::UnixMs;
use crate::nodes::Nodes;
use crate::outgoing::Outgoing;
use crate::rpc::error::RpcError;
use crate::sessions::key::SessionKey;
use crate::sessions::message::{Block, Message, Usage};
use crate::sessions::{DefaultModel, Origin, Sessions};
use crate::store::{Change, Store, StoreError, Tx};
use crate::task;
use profiles::{Credential, Profiles};
use providers::Endpoint;

/// Model calls of one run.
pub const MAX_TURNS: u32 = 32;
/// Tool calls of one run.
pub const MAX_TOOL_CALLS: u32 = 96;
/// Tokens of one run, read and written together, as its provider counts.
pub const MAX_RUN_TOKENS: u64 = 4_000_000;

/// What the operator has set for the agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Every configured model.
    pub models: Vec<Endpoint>,
    /// Which of them are asked, in this order: places in `models`.
    pub order: Vec<usize>,
    /// The longest run.
    pub timeout: Duration,
    /// Runs that go on at a time, all sessions together.
    pub max_concurrent: usize,
}

impl Settings {
    /// The model that is asked first.
    fn default_model(&self) -> Option<DefaultModel> {
        let first = self.order.first().and_then(|at| self.models.get(*at))?;
        Some(DefaultModel { name: first.full_name(), context_window: first.model.context_window })
    }
}

/// A run that has not ended.
#[derive(Debug)]
struct Live {
    id: String,
    key: SessionKey,
    origin: Origin,
    asked: Asked,
    /// Its message stands in the transcript already.
    began: bool,
    /// Why it is to stop.
    stop: watch::Sender<Option<&'static str>>,
    /// What it says, for those who listen to this run alone.
    said: watch::Sender<Said>,
    /// How it ended.
    end: watch::Sender<Option<Outcome>>,
}

/// A model, and the key to ask it with.
#[derive(Debug)]
struct Candidate {
    endpoint: Endpoint,
    credential: Credential,
    /// The provider has another key behind this one.
    has_other_key: bool,
}

#[derive(Debug, Default)]
struct Lane {
    running: Option<Arc<Live>>,
    waiting: VecDeque<Arc<Live>>,
    /// It stands in [`Lanes::ready`].
    is_ready: bool,
}

/// What goes on and what waits: one run at a time a session, and so many of them together as the operator has set.
#[derive(Debug, Default)]
struct Lanes {
    by_session: HashMap<SessionKey, Lane>,
    by_id: HashMap<String, Arc<Live>>,
    /// Sessions whose next run could begin, in the order in which they will.
    ready: VecDeque<SessionKey>,
    running: usize,
}

impl Lanes {
    /// Lines a session up whose next run could begin; forgets one with nothing to do.
    fn line_up(&mut self, key: &SessionKey) {
        let Some(lane) = self.by_session.get_mut(key) else { return };
        if lane.running.is_some() || lane.is_ready {
            return;
        }
        match lane.waiting.front() {
            None => drop(self.by_session.remove(key)),
            Some(next) => {
                lane.is_ready = true;
                // What was stopped has nothing to do but to end.
                if next.is_stopped() {
                    self.ready.push_front(key.clone());
                } else {
                    self.ready.push_back(key.clone());
                }
            }
        }
    }

    /// A run that waits was stopped: it ends now, whatever else goes on.
    fn hurry(&mut self, key: &SessionKey) {
        if self.by_session.get(key).is_some_and(|lane| lane.is_ready) {
            self.ready.retain(|other| other != key);
            self.ready.push_front(key.clone());
        }
    }

    /// Takes out what may begin while no more than `most` go on.
    fn take_ready(&mut self, most: usize) -> Vec<Arc<Live>> {
        let mut begun = Vec::new();
        while let Some(key) = self.ready.front() {
            let Some(lane) = self.by_session.get_mut(key) else {
                self.ready.pop_front();
                continue;
            };
            let is_stopped = lane.waiting.front().is_some_and(|next| next.is_stopped());
            if self.running >= most && !is_stopped {
                break;
            }
            lane.is_ready = false;
            if let Some(next) = lane.waiting.pop_front() {
                lane.running = Some(Arc::clone(&next));
                self.running += 1;
                begun.push(next);
            }
            self.ready.pop_front();
        }
        begun
    }
}

/// Where people write from, as the agent sees it.
pub trait Channel: Send + Sync {
    /// Takes down, inside the transaction that ends a run, what is to be sent to where it came from: what the model said,
    /// and the pictures it shows. What this returns is called when that is on disk.
    ///
    /// # Errors
    /// It can't be written.
    fn deliver(
        &self,
        tx: &Tx<'_>,
        run_id: &str,
        route: &Route,
        answer: Answer<'_>,
        now: UnixMs,
    ) -> Result<Box<dyn FnOnce() + Send>, RpcError>;

    /// Fetches a picture that came with a message; the error says why there is none, for the model.
    fn fetch<'a>(&'a self, route: &'a Route, picture: &'a str) -> Fetching<'a>;
}

/// A picture on its way.
pub type Fetching<'a> = Pin<Box<dyn Future<Output = Result<Block, String>> + Send + 'a>>;

/// What is to be sent at the end of a run.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// How it ended.
    pub outcome: &'a Outcome,
    /// What the model said, without the lines that show pictures.
    pub text: &'a str,
    /// Those pictures.
    pub pictures: &'a [Block],
}

/// Handle to the agent. Cheap to clone.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    store: Store,
    sessions: Sessions,
    nodes: Nodes,
    approvals: Approvals,
    outgoing: Outgoing,
    profiles: Profiles,
    settings: ArcSwap<Settings>,
    runtime: tokio::runtime::Handle,
    lanes: Mutex<Lanes>,
    /// Providers that rest after a failure, and until when.
    resting: Mutex<HashMap<String, Instant>>,
    channel: OnceLock<Box<dyn Channel>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("open", &self.lanes().by_id.len()).finish_non_exhaustive()
    }
}

/// What a run has said so far: everything, for who listens to it as one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The model's words, answers before a tool call included, with an empty line between two answers.
    pub text: String,
    /// Tokens of all its answers.
    pub usage: Usage,
}

/// The end of a run to listen at. Whoever is slow misses nothing but the steps between.
#[derive(Debug)]
pub struct Listener {
    /// What it says.
    pub said: watch::Receiver<Said>,
    end: watch::Receiver<Option<Outcome>>,
}

/// What a listener has heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// [`Listener::said`] has changed.
    More,
    /// The run has ended; `None` when it was lost with the process's end.
    End(Option<Outcome>),
}

impl Listener {
    /// Waits until more was said, or the run has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn hear(&mut self) -> Heard {
        tokio::select! {
            biased;
            Ok(()) = self.said.changed() => Heard::More,
            ended = self.end.wait_for(Option::is_some) => Heard::End(ended.ok().and_then(|end| end.clone())),
        }
    }

    /// How the run has ended; waits for it. `None` when it was lost with the process's end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn end(&mut self) -> Option<Outcome> {
        self.end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone())
    }
}

/// What was taken in, to be started once it is on disk.
#[derive(Debug)]
pub struct Accepted {
    /// Whether it is new.
    pub taken: Taken,
    live: Option<Arc<Live>>,
}

impl Agent {
    /// An agent that has not begun: [`Agent::resume`] starts what a former process left behind. `store` must have been
    /// opened with the schemas of the sessions and of this domain.
    #[expect(clippy::too_many_arguments, reason = "one call, from the composition root")]
    pub fn new(
        store: Store,
        sessions: Sessions,
        nodes: Nodes,
        approvals: Approvals,
        outgoing: Outgoing,
        profiles: Profiles,
        settings: Settings,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        sessions.set_default_model(settings.default_model());
        Self(Arc::new(Inner {
            store,
            sessions,
            nodes,
            approvals,
            outgoing,
            profiles,
            settings: ArcSwap::from_pointee(settings),
            runtime,
            lanes: Mutex::default(),
            resting: Mutex::default(),
            channel: OnceLock::new(),
        }))
    }

    /// Says who takes answers to channels. Once, before [`Agent::resume`].
    pub fn set_channel(&self, channel: Box<dyn Channel>) {
        // A second one would be a defect of the composition; the first stands.
        let _ = self.0.channel.set(channel);
    }

    /// Takes other settings: from the next question to a model on. A run that goes on keeps the time it has.
    pub fn set_settings(&self, settings: Settings) {
        self.0.sessions.set_default_model(settings.default_model());
        self.0.settings.store(Arc::new(settings));
    }

    /// What the operator has set.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.0.settings.load_full()
    }

    /// Goes on with the runs that had not ended when the process did. Blocks for the reading.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn resume(&self) -> Result<usize, StoreError> {
        let open = self.0.store.load(record::open)?;
        let count = open.len();
        for run in open {
            let is_awaited = run.asked.is_awaited;
            let (id, key) = (run.id.clone(), run.session.clone());
            let live = Arc::new(Live::new(run.id, run.session, Origin::default(), run.asked, run.running));
            if is_awaited {
                tracing::info!(run = %id, session = %key, "a run whose caller went with the restart ends");
                live.stop.send_replace(Some("aborted"));
            } else {
                tracing::info!(run = %id, session = %key, running = live.began, "a run goes on after a restart");
            }
            self.start(live);
        }
        Ok(count)
    }

    /// Takes a run in, inside a transaction; [`Agent::begin`] it when that is on disk.
    ///
    /// # Errors
    /// Too many wait; the id was used in another session; or it can't be written.
    pub fn take_in(
        &self,
        tx: &Tx<'_>,
        id: &str,
        key: &SessionKey,
        origin: Origin,
        asked: Asked,
        now: UnixMs,
    ) -> Result<Accepted, RpcError> {
        let taken = record::take_in(tx, id, key, &asked, now)?;
        let live = (taken == Taken::New).then(|| Arc::new(Live::new(id.to_owned(), key.clone(), origin, asked, false)));
        Ok(Accepted { taken, live })
    }

    /// Begins what was taken in. For [`Change::publish`].
    pub fn begin(&self, accepted: Accepted) {
        if let Some(live) = accepted.live {
            self.start(live);
        }
    }

    /// Takes a run in, in a transaction of its own, and begins it.
    ///
    /// # Errors
    /// As [`Agent::take_in`].
    pub async fn ask(
        &self,
        id: String,
        key: SessionKey,
        origin: Origin,
        asked: Asked,
        now: UnixMs,
    ) -> Result<Taken, RpcError> {
        let agent = self.clone();
        self.0
            .store
            .write(move |tx| {
                let accepted = agent.take_in(tx, &id, &key, origin, asked, now)?;
                Ok::<_, RpcError>(Change::of(accepted.taken.clone()).publish(move || agent.begin(accepted)))
            })
            .await
    }

    /// Takes in a run of a new id and listens to it. `before` is what was said before it, for a session in which nothing
    /// has been said yet.
    ///
    /// # Errors
    /// As [`Agent::take_in`]; also when the id was used before.
    pub async fn ask_and_listen(
        &self,
        id: String,
        key: SessionKey,
        origin: Origin,
        before: Vec<Message>,
        asked: Asked,
        now: UnixMs,
    ) -> Result<Listener, RpcError> {
        let agent = self.clone();
        self.0
            .store
            .write(move |tx| {
                let sessions = agent.0.sessions.clone();
                let is_new = sessions.get(&key).is_none_or(|session| session.last_message.is_none());
                let appended = match is_new && !before.is_empty() {
                    true => Some(sessions.append_in(tx, &key, &origin, &before, |_| (), now)?),
                    false => None,
                };
                let accepted = agent.take_in(tx, &id, &key, origin, asked, now)?;
                let Some(live) = &accepted.live else { return Err(RpcError::invalid("this run id was used before")) };
                let listener = Listener { said: live.said.subscribe(), end: live.end.subscribe() };
                Ok::<_, RpcError>(Change::of(listener).publish(move || {
                    if let Some(appended) = appended {
                        sessions.show(appended);
                    }
                    agent.begin(accepted);
                }))
            })
            .await
    }

    /// Waits for the end of a run; `None` when it does not end within `within`, or there is no such run.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn wait(&self, id: &str, within: Duration) -> Result<Option<Outcome>, RpcError> {
        let live = self.lanes().by_id.get(id).cloned();
        if let Some(live) = live {
            let mut end = live.end.subscribe();
            let ended = tokio::time::timeout(within, end.wait_for(Option::is_some)).await;
            return Ok(ended.ok().and_then(Result::ok).and_then(|end| end.clone()));
        }
        let id = id.to_owned();
        Ok(match self.0.store.read(move |db| record::find(db, &id)).await? {
            Some(Taken::Ended(outcome)) => Some(outcome),
            _ => None,
        })
    }

    /// Whether there is a run of this id that has not ended.
    pub fn is_open(&self, id: &str) -> bool {
        self.lanes().by_id.contains_key(id)
    }

    /// Whether `name` is a model that can be asked: `provider/model`, or the model's id alone. Gives the full name.
    pub fn model_named(&self, name: &str) -> Option<String> {
        let models = &self.settings().models;
        let found = models.iter().find(|endpoint| endpoint.full_name() == name);
        found.or_else(|| models.iter().find(|endpoint| endpoint.model.id == name)).map(Endpoint::full_name)
    }

    /// Where runs, and whatever else may be slow, are done.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.0.runtime
    }

    /// Whether there is a run of this id that has not ended, as the transaction sees it.
    ///
    /// # Errors
    /// It can't be read.
    pub fn is_open_in(&self, tx: &Tx<'_>, id: &str) -> Result<bool, StoreError> {
        record::is_open(tx, id)
    }

    /// What a run that is under way has said so far of its answer.
    pub fn said_so_far(&self, key: &SessionKey, id: &str) -> Option<String> {
        self.0.sessions.in_flight(key).filter(|run| run.run_id == id).map(|run| run.text)
    }

    /// Stops a run, or all runs of a session, at once: also those that wait. Returns the ids of those that were stopped.
    pub fn stop(&self, key: &SessionKey, id: Option<&str>, why: &'static str) -> Vec<String> {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.by_session.get(key) else { return Vec::new() };
        let mut stopped = Vec::new();
        for live in lane.running.iter().chain(&lane.waiting) {
            if id.is_none_or(|id| id == live.id) {
                live.stop.send_replace(Some(why));
                stopped.push(live.id.clone());
            }
        }
        lanes.hurry(key);
        drop(lanes);
        self.run_next(key);
        stopped
    }

    /// The session of a run that has not ended.
    pub fn session_of(&self, id: &str) -> Option<SessionKey> {
        self.lanes().by_id.get(id).map(|live| live.key.clone())
    }

    /// Puts a run into its session's lane, and runs it if nothing else does there.
    fn start(&self, live: Arc<Live>) {
        {
            let mut lanes = self.lanes();
            lanes.by_id.insert(live.id.clone(), Arc::clone(&live));
            lanes.by_session.entry(live.key.clone()).or_default().waiting.push_back(Arc::clone(&live));
        }
        self.run_next(&live.key);
    }

    fn run_next(&self, key: &SessionKey) {
        let most = self.settings().max_concurrent;
        let begun = {
            let mut lanes = self.lanes();
            lanes.line_up(key);
            lanes.take_ready(most)
        };
        for next in begun {
            let agent = self.clone();
            task::spawn_on(&self.0.runtime, "agent.run", async move {
                // Also when the run panics: the lane must not stand still for ever.
                let _leaves = Leaves { agent: agent.clone(), live: Arc::clone(&next) };
                run::drive(&agent, &next).await;
            });
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The models to ask and the keys to ask them with, best first; what rests comes last.
    fn candidates(&self, own: Option<&str>, now: UnixMs) -> Vec<Candidate> {
        let settings = self.settings();
        let named = |endpoint: &&Endpoint| own == Some(&*endpoint.full_name());
        let mut models: Vec<&Endpoint> = settings.models.iter().filter(named).collect();
        for endpoint in settings.order.iter().filter_map(|at| settings.models.get(*at)) {
            if !models.iter().any(|known| std::ptr::eq(*known, endpoint)) {
                models.push(endpoint);
            }
        }
        let mut candidates = Vec::with_capacity(models.len());
        for endpoint in models {
            let keys = self.0.profiles.credentials(&endpoint.provider, endpoint.key.as_ref(), now);
            let last = keys.len() - 1;
            candidates.extend(keys.into_iter().enumerate().map(|(at, credential)| Candidate {
                endpoint: Endpoint { key: credential.key.clone(), ..endpoint.clone() },
                credential,
                has_other_key: at < last,
            }));
        }
        let rests = |candidate: &Candidate| {
            candidate.credential.rests || self.rests_for(&candidate.endpoint.provider).is_some()
        };
        candidates.sort_by_cached_key(rests);
        candidates
    }

    fn rest(&self, provider: &str, time: Duration) {
        if !time.is_zero() {
            let mut resting = self.0.resting.lock().unwrap_or_else(PoisonError::into_inner);
            // As many as there are providers.
            resting.insert(provider.to_owned(), Instant::now() + time);
        }
    }

    /// How long a provider still rests.
    fn rests_for(&self, provider: &str) -> Option<Duration> {
        let resting = self.0.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.get(provider)?.checked_duration_since(Instant::now())
    }

    /// Forgets runs that ended long ago. To be called now and then.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn tend(&self, now: UnixMs) -> Result<(), StoreError> {
        self.0.store.write(move |tx| record::purge(tx, now).map(|()| Change::of(()))).await
    }
}

impl Live {
    fn is_stopped(&self) -> bool {
        self.stop.borrow().is_some()
    }

    fn new(id: String, key: SessionKey, origin: Origin, asked: Asked, began: bool) -> Self {
        let (stop, end) = (watch::Sender::new(None), watch::Sender::new(None));
        Self { id, key, origin, asked, began, stop, said: watch::Sender::default(), end }
    }
}

/// Lets the next run of a session begin when one has ended, however it ended.
struct Leaves {
    agent: Agent,
    live: Arc<Live>,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        {
            let mut lanes = self.agent.lanes();
            lanes.by_id.remove(&self.live.id);
            lanes.running = lanes.running.saturating_sub(1);
            if let Some(lane) = lanes.by_session.get_mut(&self.live.key) {
                lane.running = None;
            }
        }
        self.agent.0.sessions.set_in_flight(&self.live.key, None);
        self.agent.run_next(&self.live.key);
    }
}
