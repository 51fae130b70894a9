//! Approvals: a person's word for one command, given once, good for that command and for a short time; or, where the
//! person says so, for that very command until it is revoked ([`grants`]).
//!
//! The handle is [`Approvals`]. Whoever wants to run something asks ([`Approvals::request`]) with a [`Command`]; those
//! who may approve hear of it and decide ([`methods`]); whoever runs it then takes the approval
//! ([`Approvals::take`]) with the very same command: another argument, another folder, another node, a script of another
//! content, a second time or too late, and there is none. Approvals live in memory: what a restart cuts off was not approved. Standing grants are on
//! disk, and looked at before anybody is asked ([`Approvals::standing`]).

pub mod grants;
pub mod methods;
mod snapshot;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::clock::UnixMs;
use crate::hub::Hub;
use crate::id;
use crate::rpc::catalog::Event;
use crate::rpc::error::{ErrorCode, RpcError};
use crate::secret::SecretHash;
use crate::store::{Change, Store, StoreError};

/// Requests that may be known at a time, decided ones included.
const MAX_REQUESTS: usize = 256;
/// How long a request waits unless it says otherwise, and at most.
pub const TIMEOUT: Duration = Duration::from_secs(120);
const MAX_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long after the decision an approval can be taken, and a decision be asked for.
const KEEP_MS: u64 = 60_000;

/// What is to be run, as it is shown and as it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Command {
    /// Program and arguments, each as the program gets it.
    pub command_argv: Vec<String>,
    /// In which folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// On which node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// For which session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_key: Option<String>,
    /// Scripts among the arguments, where the node that is to run it has found any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutable_file_operand: Option<FileOperand>,
}

/// Files among a command's arguments that say what runs, as a node's plan has them: with another content it is another
/// command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileOperand {
    /// Which argument the first of them is.
    pub argv_index: u64,
    /// Its path.
    pub path: String,
    /// SHA-256 in hex, of its content or of whatever binds them all: the node compares it.
    pub sha256: String,
}

impl Command {
    /// One line for people: arguments with anything but plain letters are quoted.
    pub fn text(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
        let word = |word: &String| match !word.is_empty() && word.chars().all(plain) {
            true => word.clone(),
            false => format!("{word:?}"),
        };
        self.command_argv.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    /// What binds an approval to this command and no other.
    fn binding(&self) -> SecretHash {
        // The JSON of a list of strings has one reading.
        SecretHash::of(&serde_json::to_string(self).unwrap_or_default())
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may run, once.
    AllowOnce,
    /// It may run, now and whenever it is asked for again.
    AllowAlways,
    /// It may not.
    Deny,
}

impl Decision {
    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllowOnce => "allow-once",
            Self::AllowAlways => "allow-always",
            Self::Deny => "deny",
        }
    }
}

#[derive(Debug)]
struct Request {
    command: Command,
    created_at: UnixMs,
    expires_at: UnixMs,
    decided: watch::Sender<Option<Decision>>,
    decided_at: Option<UnixMs>,
    /// Who has decided, for people.
    decided_by: Option<String>,
    /// Nobody wants it any more: whoever asked has gone before anybody decided.
    withdrawn: bool,
    taken: bool,
}

impl Request {
    fn is_pending(&self, now: UnixMs) -> bool {
        self.decided_at.is_none() && now < self.expires_at
    }

    fn row(&self, id: &str) -> Value {
        let mut request = serde_json::to_value(&self.command).unwrap_or_default();
        request["command"] = json!(self.command.text());
        request["host"] = json!("node");
        request["agentId"] = json!("main");
        json!({"id": id, "request": request, "createdAtMs": self.created_at, "expiresAtMs": self.expires_at})
    }
}

/// Handle to the approvals. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Approvals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hub: Hub,
    store: Store,
    requests: Mutex<HashMap<String, Request>>,
}

impl Approvals {
    /// None yet but the grants in `store`, which must have been opened with [`grants::SCHEMA`].
    pub fn new(store: Store, hub: Hub) -> Self {
        Self(Arc::new(Inner { hub, store, requests: Mutex::default() }))
    }

    fn requests(&self) -> MutexGuard<'_, HashMap<String, Request>> {
        self.0.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks those who may approve. Gives the request's id and when it lapses.
    ///
    /// # Errors
    /// The id is in use, or too many wait.
    pub fn request(
        &self,
        id: Option<String>,
        command: Command,
        timeout: Option<Duration>,
        now: UnixMs,
    ) -> Result<(String, UnixMs), RpcError> {
        let id = id.unwrap_or_else(id::uuid);
        let timeout = timeout.unwrap_or(TIMEOUT).min(MAX_TIMEOUT);
        let expires_at = now.plus(u64::try_from(timeout.as_millis()).unwrap_or(0));
        let row = {
            let mut requests = self.requests();
            requests.retain(|_, request| now < request.decided_at.unwrap_or(request.expires_at).plus(KEEP_MS));
            if requests.contains_key(&id) {
                return Err(RpcError::invalid("an approval of this id was asked for already"));
            }
            if requests.len() >= MAX_REQUESTS {
                return Err(RpcError::unavailable("too many approvals wait; decide about some first").retryable(true));
            }
            let decided = watch::Sender::new(None);
            let request = Request {
                command,
                created_at: now,
                expires_at,
                decided,
                decided_at: None,
                decided_by: None,
                withdrawn: false,
                taken: false,
            };
            let row = request.row(&id);
            requests.insert(id.clone(), request);
            row
        };
        self.0.hub.broadcast(Event::EXEC_APPROVAL_REQUESTED, &row);
        Ok((id, expires_at))
    }

    /// Waits for the decision; `None` when the request lapses first, or there is none of this id.
    ///
    /// # Cancel safety
    /// Dropped, the request goes on waiting.
    pub async fn wait(&self, id: &str) -> Option<Decision> {
        let (mut decided, left) = {
            let requests = self.requests();
            let request = requests.get(id)?;
            (request.decided.subscribe(), request.expires_at.since(UnixMs::now()))
        };
        let waited = tokio::time::timeout(Duration::from_millis(left), decided.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(decision)) => *decision,
            _ => None,
        }
    }

    /// Decides about a request that waits.
    ///
    /// # Errors
    /// There is none, it has lapsed, or it is decided already.
    pub fn resolve(&self, id: &str, decision: Decision, by: &str, now: UnixMs) -> Result<(), RpcError> {
        self.claim(id, now)?;
        self.settle(id, decision, by, now);
        Ok(())
    }

    /// Decides that a command may run now and whenever it is asked for again, for `days` or until that is revoked. Nobody
    /// hears of it before it is on disk.
    ///
    /// # Errors
    /// As [`Approvals::resolve`]; the command is for no node; too many grants stand; or it can't be written. Then the
    /// request goes on waiting.
    pub async fn grant(&self, id: &str, by: &str, days: Option<u64>, now: UnixMs) -> Result<(), RpcError> {
        let command = self.claim(id, now)?;
        if command.node_id.is_none() {
            self.unclaim(id);
            return Err(RpcError::invalid("this command is for no node: it can be allowed once, not always"));
        }
        let expires_at = days.map(|days| now.plus(days.saturating_mul(24 * 3600 * 1000)));
        let (minted_by, given_by) = (id.to_owned(), by.to_owned());
        let give = move |tx: &crate::store::Tx<'_>| {
            grants::give(tx, &minted_by, &command, &given_by, expires_at, now).map(Change::of)
        };
        if let Err(error) = self.0.store.write(give).await {
            self.unclaim(id);
            return Err(error);
        }
        self.settle(id, Decision::AllowAlways, by, now);
        Ok(())
    }

    /// Takes a request that waits for deciding: nobody else decides about it.
    fn claim(&self, id: &str, now: UnixMs) -> Result<Command, RpcError> {
        let mut requests = self.requests();
        let request = requests.get_mut(id).filter(|request| request.is_pending(now)).ok_or_else(|| {
            RpcError::new(
                ErrorCode::NotFound,
                "no approval of this id waits; it may have lapsed, or be decided already",
            )
        })?;
        request.decided_at = Some(now);
        Ok(request.command.clone())
    }

    fn unclaim(&self, id: &str) {
        if let Some(request) = self.requests().get_mut(id) {
            request.decided_at = None;
        }
    }

    fn settle(&self, id: &str, decision: Decision, by: &str, now: UnixMs) {
        let row = {
            let mut requests = self.requests();
            let Some(request) = requests.get_mut(id) else { return };
            request.decided_by = Some(by.to_owned());
            request.decided.send_replace(Some(decision));
            let mut row = request.row(id);
            row["decision"] = json!(decision.as_str());
            row["resolvedBy"] = json!(by);
            row["ts"] = json!(now);
            row
        };
        tracing::info!(approval = id, decision = decision.as_str(), ?by, "an approval was decided");
        self.0.hub.broadcast(Event::EXEC_APPROVAL_RESOLVED, &row);
    }

    /// Uses the standing grant of a command, where there is one: its id. The use is on disk.
    ///
    /// # Errors
    /// It can't be written: nothing may run.
    pub async fn standing(&self, command: &Command, now: UnixMs) -> Result<Option<String>, RpcError> {
        let command = command.clone();
        self.0.store.write(move |tx| grants::take(tx, &command, now).map(Change::of)).await
    }

    /// The grants, the latest first: also those that have lapsed or were revoked lately.
    ///
    /// # Errors
    /// They can't be read.
    pub async fn grants(&self) -> Result<Vec<grants::Grant>, StoreError> {
        self.0.store.read(grants::all).await
    }

    /// Revokes a grant: `revoked`, `already-revoked` or `not-found`.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn revoke(&self, grant_id: String, by: String, now: UnixMs) -> Result<&'static str, RpcError> {
        self.0.store.write(move |tx| grants::revoke(tx, &grant_id, &by, now).map(Change::of)).await
    }

    /// Forgets grants that have not stood for long. To be called now and then.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn tend(&self, now: UnixMs) -> Result<(), StoreError> {
        self.0.store.write(move |tx| grants::purge(tx, now).map(Change::of)).await
    }

    /// Uses an approval up: true once, for the command it was given for, while it is fresh.
    pub fn take(&self, id: &str, command: &Command, now: UnixMs) -> bool {
        let mut requests = self.requests();
        let Some(request) = requests.get_mut(id) else { return false };
        let is_fresh = request.decided_at.is_some_and(|at| now.since(at) < KEEP_MS);
        let is_allowed = matches!(*request.decided.borrow(), Some(Decision::AllowOnce | Decision::AllowAlways));
        let is_same = request.command.binding() == command.binding();
        is_allowed && is_fresh && is_same && !std::mem::replace(&mut request.taken, true)
    }

    /// A request that is not wanted any more.
    pub fn withdraw(&self, id: &str, now: UnixMs) {
        // One that was decided in the meantime stays decided.
        if self.claim(id, now).is_ok() {
            if let Some(request) = self.requests().get_mut(id) {
                request.withdrawn = true;
            }
            self.settle(id, Decision::Deny, "withdrawn", now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    fn command(argv: &[&str]) -> Command {
        Command {
            command_argv: argv.iter().map(|&word| word.to_owned()).collect(),
            cwd: None,
            node_id: Some("aa".into()),
            session_key: None,
            mutable_file_operand: None,
        }
    }

    fn approvals() -> Approvals {
        let store = Store::open_in_memory(&[grants::SCHEMA]).unwrap();
        Approvals::new(store, Hub::new(1 << 20, 1 << 24))
    }

    #[tokio::test]
    async fn a_grant_stands_for_the_very_command_until_it_lapses_or_is_revoked() {
        let approvals = approvals();
        let ls =
            Command { cwd: Some("/tmp".into()), session_key: Some("agent:main:main".into()), ..command(&["ls", "-l"]) };
        let given = async |id: &str, days| {
            approvals.request(Some(id.into()), ls.clone(), None, NOW).unwrap();
            approvals.grant(id, "op", days, NOW).await.unwrap();
            assert!(approvals.take(id, &ls, NOW), "it runs now");
        };
        given("a", None).await;
        let standing = async |command: &Command, now| approvals.standing(command, now).await.unwrap();
        let years_later = NOW.plus(10 * 365 * 24 * 3600 * 1000);
        let elsewhere = Command { session_key: Some("agent:main:other".into()), ..ls.clone() };
        assert!(standing(&ls, NOW).await.is_some() && standing(&elsewhere, years_later).await.is_some());
        for other in [
            Command { command_argv: vec!["ls".into(), "-la".into()], ..ls.clone() },
            Command { command_argv: vec!["ls -l".into()], ..ls.clone() },
            Command { cwd: Some("/".into()), ..ls.clone() },
            Command { cwd: None, ..ls.clone() },
            Command { node_id: Some("bb".into()), ..ls.clone() },
        ] {
            assert_eq!(standing(&other, NOW).await, None, "{other:?}");
        }
        let grants = approvals.grants().await.unwrap();
        assert_eq!((grants.len(), grants[0].use_count, grants[0].last_used_at), (1, 2, Some(years_later)));
        let revoke = async |id: &str| approvals.revoke(id.to_owned(), "op".into(), NOW).await.unwrap();
        assert_eq!(revoke(&grants[0].id).await, "revoked");
        assert_eq!(revoke(&grants[0].id).await, "already-revoked");
        assert_eq!(revoke("other").await, "not-found");
        assert_eq!(standing(&ls, NOW).await, None);
        given("b", Some(1)).await;
        assert!(standing(&ls, NOW.plus(24 * 3600 * 1000 - 1)).await.is_some());
        assert_eq!(standing(&ls, NOW.plus(24 * 3600 * 1000)).await, None);
        approvals.tend(NOW.plus(40 * 24 * 3600 * 1000)).await.unwrap();
        assert!(approvals.grants().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_grant_for_a_script_lapses_with_its_content() {
        let approvals = approvals();
        let content = |sha256: &str| {
            let operand = FileOperand { argv_index: 1, path: "/w/job.sh".into(), sha256: sha256.into() };
            Command { mutable_file_operand: Some(operand), ..command(&["sh", "job.sh"]) }
        };
        approvals.request(Some("a".into()), content("aa"), None, NOW).unwrap();
        approvals.grant("a", "op", None, NOW).await.unwrap();
        assert!(!approvals.take("a", &content("bb"), NOW), "it was changed while a person thought about it");
        assert!(approvals.take("a", &content("aa"), NOW));
        let standing = async |command: &Command| approvals.standing(command, NOW).await.unwrap();
        assert!(standing(&content("aa")).await.is_some());
        assert_eq!(standing(&content("bb")).await, None);
        assert_eq!(standing(&command(&["sh", "job.sh"])).await, None, "a node that does not say what is in it");
    }

    #[tokio::test]
    async fn a_command_for_no_node_is_not_allowed_always() {
        let approvals = approvals();
        let local = Command { node_id: None, ..command(&["ls"]) };
        approvals.request(Some("a".into()), local, None, NOW).unwrap();
        assert!(approvals.grant("a", "op", None, NOW).await.is_err());
        approvals.resolve("a", Decision::AllowOnce, "op", NOW).unwrap();
    }

    #[test]
    fn an_approval_is_good_once_for_one_command_and_for_a_while() {
        let approvals = approvals();
        let ls = command(&["ls", "-l"]);
        let approved = |id: &str| {
            approvals.request(Some(id.into()), ls.clone(), None, NOW).unwrap();
            approvals.resolve(id, Decision::AllowOnce, "op", NOW).unwrap();
        };
        approved("a");
        for other in [command(&["ls", "-l", "/"]), command(&["ls -l"]), Command { cwd: Some("/".into()), ..ls.clone() }]
        {
            assert!(!approvals.take("a", &other, NOW), "{other:?}");
        }
        assert!(approvals.take("a", &ls, NOW));
        assert!(!approvals.take("a", &ls, NOW), "a second time");
        approved("b");
        assert!(!approvals.take("b", &ls, NOW.plus(KEEP_MS)), "too late");
        approvals.request(Some("c".into()), ls.clone(), None, NOW).unwrap();
        assert!(!approvals.take("c", &ls, NOW), "nobody has decided");
        approvals.resolve("c", Decision::Deny, "op", NOW).unwrap();
        assert!(!approvals.take("c", &ls, NOW), "denied");
        assert!(approvals.resolve("c", Decision::AllowOnce, "op", NOW).is_err(), "the first decision stands");
    }

    #[test]
    fn a_request_lapses_and_their_number_is_bounded() {
        let approvals = approvals();
        let (id, expires_at) = approvals.request(None, command(&["ls"]), Some(Duration::from_secs(1)), NOW).unwrap();
        assert!(approvals.resolve(&id, Decision::AllowOnce, "op", expires_at).is_err());
        for _ in 1..MAX_REQUESTS {
            approvals.request(None, command(&["ls"]), None, NOW).unwrap();
        }
        assert!(approvals.request(None, command(&["ls"]), None, NOW).is_err());
        assert!(approvals.request(None, command(&["ls"]), None, NOW.plus(10 * KEEP_MS)).is_ok());
    }

    #[test]
    fn what_is_shown_cannot_hide_where_one_argument_ends() {
        assert_eq!(command(&["rm", "-rf", "a b", ""]).text(), "rm -rf \"a b\" \"\"");
        assert_eq!(command(&["echo", "x\ny;z"]).text(), "echo \"x\\ny;z\"");
    }
}
