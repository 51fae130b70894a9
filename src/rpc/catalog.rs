//! The catalogue: every method and event the wire knows, and who may use it. One table each.
//!
//! It holds also what this gateway does not have yet, so that a call to such a method is answered for
//! what it is (known, not here) and not as a typing error. Sources: the published schema of the wire
//! (2026.9) and, where that leaves the scope to the method, the narrower rule of 2026.6.11.

use super::scope::{Role, Scope, ScopeSet};

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Operators whose scopes cover this one.
    Operator(Scope),
    /// Nodes only.
    Node,
}

impl Access {
    /// The role that may call at all.
    pub const fn role(self) -> Role {
        match self {
            Self::Operator(_) => Role::Operator,
            Self::Node => Role::Node,
        }
    }
}

const READ: Access = Access::Operator(Scope::Read);
const WRITE: Access = Access::Operator(Scope::Write);
const ADMIN: Access = Access::Operator(Scope::Admin);
const APPROVALS: Access = Access::Operator(Scope::Approvals);
const PAIRING: Access = Access::Operator(Scope::Pairing);
const TALK: Access = Access::Operator(Scope::Talk);
const QUESTIONS: Access = Access::Operator(Scope::Questions);
const NODE: Access = Access::Node;

/// Who may call `method`; `None` when the wire has no such method.
pub fn access(method: &str) -> Option<Access> {
    METHODS.binary_search_by(|(name, _)| (*name).cmp(method)).ok().map(|at| METHODS[at].1)
}

/// Who receives an event that is broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Every authenticated connection, nodes included.
    Everyone,
    /// Operators, whatever their scopes.
    Operators,
    /// Operators whose scopes cover this one.
    Holders(Scope),
    /// Operators with `operator.read`, and nodes.
    ReadersAndNodes,
    /// Nobody by broadcast: it is sent to one connection at a time.
    Targeted,
    /// Nobody by broadcast: it is sent to operators who follow what it is about.
    Followers,
}

impl Audience {
    /// Whether a connection of this role and these scopes receives the event.
    pub fn includes(self, role: Role, scopes: ScopeSet) -> bool {
        match (self, role) {
            (Self::Everyone, _) | (Self::ReadersAndNodes, Role::Node) => true,
            (Self::Operators, Role::Operator) => true,
            (Self::Holders(scope), Role::Operator) => scopes.covers(scope),
            (Self::ReadersAndNodes, Role::Operator) => scopes.covers(Scope::Read),
            (Self::Targeted | Self::Followers, _) | (_, Role::Node) => false,
        }
    }
}

/// What happens to an event when its receiver does not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A newer one replaces what it says: it may be left out for a slow receiver.
    Droppable,
    /// It must arrive, or the connection ends.
    Kept,
}

/// An event's entry in the catalogue.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// The name on the wire.
    pub name: &'static str,
    /// Who receives it.
    pub audience: Audience,
    /// Whether it may be left out.
    pub delivery: Delivery,
}

/// Makes the constants and the list from one table.
macro_rules! events {
    ($($(#[doc = $doc:literal])+ $id:ident = $name:literal, $audience:expr, $delivery:ident;)+) => {
        impl Event { $($(#[doc = $doc])+ pub const $id: &'static Self =
            &Self { name: $name, audience: $audience, delivery: Delivery::$delivery };)+ }

        /// Every event of this gateway.
        pub const EVENTS: &[&Event] = &[$(Event::$id,)+];
    };
}

events! {
    /// First frame on every socket: the nonce to sign.
    CONNECT_CHALLENGE = "connect.challenge", Audience::Targeted, Kept;
    /// Proof of life.
    TICK = "tick", Audience::Everyone, Droppable;
    /// Who is there.
    PRESENCE = "presence", Audience::Operators, Droppable;
    /// How the gateway is.
    HEALTH = "health", Audience::Operators, Droppable;
    /// The agent's heartbeat.
    HEARTBEAT = "heartbeat", Audience::Operators, Droppable;
    /// The gateway is going; clients come back later.
    SHUTDOWN = "shutdown", Audience::Everyone, Kept;
    /// To a node: run a command.
    NODE_INVOKE_REQUEST = "node.invoke.request", Audience::Targeted, Kept;
    /// To a node: the caller gave up or is gone.
    NODE_INVOKE_CANCEL = "node.invoke.cancel", Audience::Targeted, Kept;
    /// To the caller: a piece of a running command's output.
    NODE_INVOKE_PROGRESS = "node.invoke.progress", Audience::Targeted, Kept;
    /// A node's command surface waits for approval.
    NODE_PAIR_REQUESTED = "node.pair.requested", Audience::Holders(Scope::Pairing), Kept;
    /// It was approved, rejected, or has lapsed.
    NODE_PAIR_RESOLVED = "node.pair.resolved", Audience::Holders(Scope::Pairing), Kept;
    /// A device waits for approval.
    DEVICE_PAIR_REQUESTED = "device.pair.requested", Audience::Holders(Scope::Pairing), Kept;
    /// It was approved, rejected, or has lapsed.
    DEVICE_PAIR_RESOLVED = "device.pair.resolved", Audience::Holders(Scope::Pairing), Kept;
    /// A device has used a setup code, and has its tokens.
    DEVICE_PAIR_SETUP_COMPLETED = "device.pair.setup.completed", Audience::Holders(Scope::Pairing), Droppable;
    /// A device has used a setup code, and left before it had its tokens.
    DEVICE_PAIR_SETUP_DELIVERY_UNCERTAIN =
        "device.pair.setup.deliveryUncertain", Audience::Holders(Scope::Pairing), Droppable;
    /// A node's resource snapshot.
    NODE_HOST_STATS = "node.hostStats", Audience::Holders(Scope::Read), Droppable;
    /// A node's user is active, or not.
    NODE_PRESENCE = "node.presence", Audience::Holders(Scope::Read), Droppable;
    /// What the model of a run has said since the last one: `state: "delta"`. The next one, or the end, says it again.
    CHAT_DELTA = "chat", Audience::Followers, Droppable;
    /// How a run ended: `final`, `aborted`, `error`.
    CHAT = "chat", Audience::Holders(Scope::Read), Kept;
    /// What a run says or does, by stream; to those who have its session open.
    AGENT = "agent", Audience::Followers, Droppable;
    /// A run begins or ends.
    AGENT_LIFECYCLE = "agent", Audience::Holders(Scope::Read), Kept;
    /// The list of sessions changed; to those who follow it.
    SESSIONS_CHANGED = "sessions.changed", Audience::Followers, Kept;
    /// A message was appended; to those who follow its session.
    SESSION_MESSAGE = "session.message", Audience::Followers, Kept;
    /// A tool of a run begins or ends; to those who follow its session.
    SESSION_TOOL = "session.tool", Audience::Followers, Kept;
    /// A command waits for a person's approval.
    EXEC_APPROVAL_REQUESTED = "exec.approval.requested", Audience::Holders(Scope::Approvals), Kept;
    /// It was approved, denied, or has lapsed.
    EXEC_APPROVAL_RESOLVED = "exec.approval.resolved", Audience::Holders(Scope::Approvals), Kept;
    /// Wake words changed; nodes listen for them.
    VOICEWAKE_CHANGED = "voicewake.changed", Audience::ReadersAndNodes, Kept;
}

/// Every method of the wire, by name.
pub const METHODS: &[(&str, Access)] = &[
    ("agent", WRITE),
    ("agent.identity.get", READ),
    ("agent.wait", WRITE),
    ("agents.create", ADMIN),
    ("agents.delete", ADMIN),
    ("agents.files.get", READ),
    ("agents.files.list", READ),
    ("agents.files.set", ADMIN),
    ("agents.list", READ),
    ("agents.update", ADMIN),
    ("agents.workspace.get", READ),
    ("agents.workspace.list", READ),
    ("approval.get", APPROVALS),
    ("approval.history", APPROVALS),
    ("approval.resolve", APPROVALS),
    ("artifacts.download", READ),
    ("artifacts.get", READ),
    ("artifacts.list", READ),
    ("assistant.media.get", READ),
    ("attach.grant", ADMIN),
    ("attach.revoke", ADMIN),
    ("audit.activity.list", READ),
    ("audit.list", READ),
    ("audit.run.inspect", READ),
    ("board.action", WRITE),
    ("board.data.read", READ),
    ("board.event", WRITE),
    ("board.get", READ),
    ("board.prompt.authorize", READ),
    ("board.update", WRITE),
    ("board.widget.appView", READ),
    ("board.widget.grant", APPROVALS),
    ("board.widget.put", WRITE),
    ("channels.logout", ADMIN),
    ("channels.pairing.approve", ADMIN),
    ("channels.pairing.dismiss", PAIRING),
    ("channels.pairing.list", PAIRING),
    ("channels.start", ADMIN),
    ("channels.status", READ),
    ("channels.stop", ADMIN),
    ("chat.abort", WRITE),
    ("chat.history", READ),
    ("chat.inject", ADMIN),
    ("chat.message.get", READ),
    ("chat.metadata", READ),
    ("chat.send", WRITE),
    ("chat.startup", READ),
    ("chat.toolTitles", WRITE),
    ("commands.list", READ),
    ("config.apply", ADMIN),
    ("config.get", READ),
    ("config.openFile", ADMIN),
    ("config.patch", ADMIN),
    ("config.schema", ADMIN),
    ("config.schema.lookup", READ),
    ("config.set", ADMIN),
    ("controlUi.githubPreview", READ),
    ("controlUi.sessionPreview", READ),
    ("controlUi.sessionPullRequests.subscribe", READ),
    ("conversations.list", ADMIN),
    ("conversations.send", ADMIN),
    ("conversations.turn", ADMIN),
    ("conversations.turn.cancel", ADMIN),
    ("cron.add", ADMIN),
    ("cron.get", READ),
    ("cron.list", READ),
    ("cron.remove", ADMIN),
    ("cron.run", ADMIN),
    ("cron.runs", READ),
    ("cron.scratch.get", ADMIN),
    ("cron.scratch.set", ADMIN),
    ("cron.status", READ),
    ("cron.update", ADMIN),
    ("desktop.launch", ADMIN),
    ("desktop.observe", ADMIN),
    ("device.pair.approve", PAIRING),
    ("device.pair.list", PAIRING),
    ("device.pair.reject", PAIRING),
    ("device.pair.remove", PAIRING),
    ("device.pair.rename", PAIRING),
    ("device.pair.setupCode", ADMIN),
    ("device.pair.setupStatus", ADMIN),
    ("device.scopes.requestUpgrade", READ),
    ("device.scopes.waitUpgrade", READ),
    ("device.token.revoke", PAIRING),
    ("device.token.rotate", PAIRING),
    ("diagnostics.lanes", READ),
    ("diagnostics.stability", READ),
    ("doctor.memory.backfillDreamDiary", WRITE),
    ("doctor.memory.dedupeDreamDiary", WRITE),
    ("doctor.memory.dreamDiary", READ),
    ("doctor.memory.remHarness", READ),
    ("doctor.memory.repairDreamingArtifacts", WRITE),
    ("doctor.memory.resetDreamDiary", WRITE),
    ("doctor.memory.resetGroundedShortTerm", WRITE),
    ("doctor.memory.status", READ),
    ("environments.create", ADMIN),
    ("environments.destroy", ADMIN),
    ("environments.list", READ),
    ("environments.status", READ),
    ("exec.approval.get", APPROVALS),
    ("exec.approval.grants.list", APPROVALS),
    ("exec.approval.grants.revoke", APPROVALS),
    ("exec.approval.list", APPROVALS),
    ("exec.approval.request", APPROVALS),
    ("exec.approval.resolve", APPROVALS),
    ("exec.approval.waitDecision", APPROVALS),
    ("exec.approvals.get", ADMIN),
    ("exec.approvals.node.get", ADMIN),
    ("exec.approvals.node.set", ADMIN),
    ("exec.approvals.set", ADMIN),
    ("fs.listDir", WRITE),
    // Not of the wire: this gateway's own, for `clawgate doctor proxy`.
    ("gateway.doctor.proxy.begin", ADMIN),
    ("gateway.doctor.proxy.report", ADMIN),
    ("gateway.identity.get", READ),
    ("gateway.restart.preflight", READ),
    ("gateway.restart.request", ADMIN),
    ("gateway.suspend.prepare", ADMIN),
    ("gateway.suspend.resume", ADMIN),
    ("gateway.suspend.status", READ),
    ("health", READ),
    ("hooks.status", READ),
    ("last-heartbeat", READ),
    ("logs.tail", READ),
    ("mcp.app.callTool", WRITE),
    ("mcp.app.listResourceTemplates", READ),
    ("mcp.app.listResources", READ),
    ("mcp.app.listTools", READ),
    ("mcp.app.readResource", READ),
    ("mcp.app.updateModelContext", WRITE),
    ("mcp.app.view", READ),
    ("memory.search", READ),
    ("message.action", WRITE),
    ("migrations.memory.apply", ADMIN),
    ("migrations.memory.plan", ADMIN),
    ("models.authLogout", ADMIN),
    ("models.authSetApiKey", ADMIN),
    ("models.authStatus", READ),
    ("models.list", READ),
    ("models.probe", ADMIN),
    ("nativeHook.invoke", ADMIN),
    ("node.describe", READ),
    ("node.event", NODE),
    ("node.invoke", WRITE),
    ("node.invoke.progress", NODE),
    ("node.invoke.result", NODE),
    ("node.list", READ),
    ("node.pair.approve", PAIRING),
    ("node.pair.list", PAIRING),
    ("node.pair.reject", PAIRING),
    ("node.pair.remove", PAIRING),
    ("node.pair.request", PAIRING),
    ("node.pair.verify", PAIRING),
    ("node.pending.ack", NODE),
    ("node.pending.drain", NODE),
    ("node.pending.enqueue", WRITE),
    ("node.pending.pull", NODE),
    ("node.pluginSurface.refresh", NODE),
    ("node.pluginTools.update", NODE),
    ("node.rename", PAIRING),
    ("node.runnerInventory.update", NODE),
    ("node.skills.update", NODE),
    ("openclaw.approval.list", APPROVALS),
    ("openclaw.changes.list", ADMIN),
    ("openclaw.chat", ADMIN),
    ("openclaw.chat.history", ADMIN),
    ("openclaw.setup.activate", ADMIN),
    ("openclaw.setup.activate.start", ADMIN),
    ("openclaw.setup.auth.start", ADMIN),
    ("openclaw.setup.detect", ADMIN),
    ("openclaw.setup.prepare.start", ADMIN),
    ("openclaw.setup.verify", ADMIN),
    ("plugin.approval.list", APPROVALS),
    ("plugin.approval.request", APPROVALS),
    ("plugin.approval.resolve", APPROVALS),
    ("plugin.approval.waitDecision", APPROVALS),
    ("plugin.surface.refresh", READ),
    ("plugins.inspect", READ),
    ("plugins.install", ADMIN),
    ("plugins.list", READ),
    ("plugins.refresh", ADMIN),
    ("plugins.search", READ),
    ("plugins.sessionAction", WRITE),
    ("plugins.setEnabled", ADMIN),
    ("plugins.uiDescriptors", READ),
    ("plugins.uninstall", ADMIN),
    ("poll", WRITE),
    ("portal.close", WRITE),
    ("portal.list", READ),
    ("portal.open", WRITE),
    ("progressCard.get", READ),
    ("progressCard.put", WRITE),
    ("projects.add", WRITE),
    ("projects.list", READ),
    ("projects.register", ADMIN),
    ("projects.remove", ADMIN),
    ("projects.searchRemote", READ),
    ("push.test", WRITE),
    ("push.web.preferences.get", READ),
    ("push.web.preferences.set", WRITE),
    ("push.web.subscribe", WRITE),
    ("push.web.test", WRITE),
    ("push.web.unsubscribe", WRITE),
    ("push.web.vapidPublicKey", WRITE),
    ("question.get", QUESTIONS),
    ("question.list", QUESTIONS),
    ("question.request", QUESTIONS),
    ("question.resolve", QUESTIONS),
    ("question.waitAnswer", QUESTIONS),
    ("secrets.reload", ADMIN),
    ("secrets.resolve", ADMIN),
    ("secrets.store.delete", ADMIN),
    ("secrets.store.list", ADMIN),
    ("secrets.store.set", ADMIN),
    ("send", WRITE),
    ("session.discussion.info", READ),
    ("session.discussion.open", WRITE),
    ("session.members.add", WRITE),
    ("session.members.list", READ),
    ("session.members.listEvidence", READ),
    ("session.members.remove", WRITE),
    ("session.suggestions.add", WRITE),
    ("session.suggestions.list", READ),
    ("session.suggestions.resolve", WRITE),
    ("session.typing", WRITE),
    ("session.visibility.set", WRITE),
    ("sessions.abort", WRITE),
    ("sessions.assignOwner", WRITE),
    ("sessions.branches.list", READ),
    ("sessions.branches.switch", ADMIN),
    ("sessions.catalog.archive", WRITE),
    ("sessions.catalog.continue", WRITE),
    ("sessions.catalog.list", READ),
    ("sessions.catalog.read", READ),
    ("sessions.catalog.startTerminal", ADMIN),
    ("sessions.cleanup", ADMIN),
    ("sessions.compact", ADMIN),
    ("sessions.compaction.branch", WRITE),
    ("sessions.compaction.get", READ),
    ("sessions.compaction.list", READ),
    ("sessions.compaction.restore", ADMIN),
    ("sessions.companion.ask", READ),
    ("sessions.companion.reset", WRITE),
    ("sessions.companion.state", READ),
    ("sessions.create", WRITE),
    ("sessions.delete", ADMIN),
    ("sessions.describe", READ),
    ("sessions.diff", READ),
    ("sessions.dispatch", ADMIN),
    ("sessions.files.get", READ),
    ("sessions.files.list", READ),
    ("sessions.files.reveal", ADMIN),
    ("sessions.files.set", ADMIN),
    ("sessions.fork", WRITE),
    ("sessions.get", READ),
    ("sessions.github.confirm", WRITE),
    ("sessions.github.options", READ),
    ("sessions.github.publish", WRITE),
    ("sessions.github.status", READ),
    ("sessions.goal.clear", WRITE),
    ("sessions.goal.update", WRITE),
    ("sessions.groups.defaults", WRITE),
    ("sessions.groups.delete", WRITE),
    ("sessions.groups.list", READ),
    ("sessions.groups.put", WRITE),
    ("sessions.groups.rename", WRITE),
    ("sessions.groups.update", WRITE),
    ("sessions.list", READ),
    ("sessions.messages.subscribe", READ),
    ("sessions.messages.unsubscribe", READ),
    ("sessions.move", ADMIN),
    ("sessions.observer.visibility", READ),
    ("sessions.patch", ADMIN),
    ("sessions.patchMany", ADMIN),
    ("sessions.pluginPatch", ADMIN),
    ("sessions.preview", READ),
    ("sessions.reclaim", WRITE),
    ("sessions.recover", WRITE),
    ("sessions.reset", ADMIN),
    ("sessions.resolve", READ),
    ("sessions.rewind", ADMIN),
    ("sessions.search", READ),
    ("sessions.send", WRITE),
    ("sessions.steer", WRITE),
    ("sessions.subscribe", READ),
    ("sessions.title.prepare", WRITE),
    ("sessions.unsubscribe", READ),
    ("sessions.usage", READ),
    ("sessions.usage.logs", READ),
    ("sessions.usage.timeseries", READ),
    ("sessions.viewers.set", READ),
    ("set-heartbeats", ADMIN),
    ("skills.bins", NODE),
    ("skills.curator.pin", ADMIN),
    ("skills.curator.restore", ADMIN),
    ("skills.curator.status", READ),
    ("skills.curator.unpin", ADMIN),
    ("skills.detail", READ),
    ("skills.install", ADMIN),
    ("skills.library.activate", WRITE),
    ("skills.library.import", WRITE),
    ("skills.library.list", READ),
    ("skills.library.mutate", WRITE),
    ("skills.library.read", READ),
    ("skills.library.save", WRITE),
    ("skills.library.upload", WRITE),
    ("skills.proposals.apply", ADMIN),
    ("skills.proposals.create", ADMIN),
    ("skills.proposals.evaluate", ADMIN),
    ("skills.proposals.events.list", READ),
    ("skills.proposals.historyScan", ADMIN),
    ("skills.proposals.historyStatus", READ),
    ("skills.proposals.inspect", READ),
    ("skills.proposals.list", READ),
    ("skills.proposals.quarantine", ADMIN),
    ("skills.proposals.reject", ADMIN),
    ("skills.proposals.requestRevision", ADMIN),
    ("skills.proposals.revise", ADMIN),
    ("skills.proposals.update", ADMIN),
    ("skills.search", READ),
    ("skills.securityVerdicts", READ),
    ("skills.skillCard", READ),
    ("skills.status", READ),
    ("skills.update", ADMIN),
    ("skills.upload.begin", ADMIN),
    ("skills.upload.chunk", ADMIN),
    ("skills.upload.commit", ADMIN),
    ("status", READ),
    ("system-event", ADMIN),
    ("system-presence", READ),
    ("system.info", READ),
    ("talk.catalog", READ),
    ("talk.client.close", TALK),
    ("talk.client.create", TALK),
    ("talk.client.steer", TALK),
    ("talk.client.toolCall", TALK),
    ("talk.client.transcript", TALK),
    ("talk.config", READ),
    ("talk.mode", TALK),
    ("talk.session.acknowledgeMark", TALK),
    ("talk.session.appendAudio", TALK),
    ("talk.session.cancelOutput", TALK),
    ("talk.session.cancelTurn", WRITE),
    ("talk.session.close", TALK),
    ("talk.session.create", TALK),
    ("talk.session.endTurn", WRITE),
    ("talk.session.join", WRITE),
    ("talk.session.startTurn", WRITE),
    ("talk.session.steer", TALK),
    ("talk.session.submitToolResult", TALK),
    ("talk.speak", TALK),
    ("taskSuggestions.accept", ADMIN),
    ("taskSuggestions.create", WRITE),
    ("taskSuggestions.dismiss", WRITE),
    ("taskSuggestions.list", READ),
    ("tasks.cancel", WRITE),
    ("tasks.dismiss", WRITE),
    ("tasks.get", READ),
    ("tasks.list", READ),
    ("tasks.retry", WRITE),
    ("terminal.attach", ADMIN),
    ("terminal.close", ADMIN),
    ("terminal.input", ADMIN),
    ("terminal.list", ADMIN),
    ("terminal.open", ADMIN),
    ("terminal.resize", ADMIN),
    ("terminal.upload", ADMIN),
    ("tools.catalog", READ),
    ("tools.effective", READ),
    ("tools.github.authorize.cancel", ADMIN),
    ("tools.github.authorize.poll", ADMIN),
    ("tools.github.authorize.start", ADMIN),
    ("tools.github.configure", ADMIN),
    ("tools.github.status", READ),
    ("tools.invoke", WRITE),
    ("tts.convert", WRITE),
    ("tts.disable", WRITE),
    ("tts.enable", WRITE),
    ("tts.personas", READ),
    ("tts.providers", READ),
    ("tts.setPersona", WRITE),
    ("tts.setProvider", WRITE),
    ("tts.speak", WRITE),
    ("tts.status", READ),
    ("ui.command", WRITE),
    ("update.hold", ADMIN),
    ("update.run", ADMIN),
    ("update.status", ADMIN),
    ("usage.cost", READ),
    ("usage.status", READ),
    ("users.github.authorize.cancel", READ),
    ("users.github.authorize.poll", READ),
    ("users.github.authorize.start", READ),
    ("users.github.disconnect", READ),
    ("users.github.status", READ),
    ("users.linkEmail", ADMIN),
    ("users.list", READ),
    ("users.prefs.get", READ),
    ("users.prefs.set", WRITE),
    ("users.self", WRITE),
    ("users.setAvatar", WRITE),
    ("users.setDisplayName", WRITE),
    ("users.setRole", ADMIN),
    ("voicewake.get", READ),
    ("voicewake.routing.get", READ),
    ("voicewake.routing.set", WRITE),
    ("voicewake.set", WRITE),
    ("wake", WRITE),
    ("web.login.start", ADMIN),
    ("web.login.wait", ADMIN),
    ("wizard.cancel", ADMIN),
    ("wizard.next", ADMIN),
    ("wizard.start", ADMIN),
    ("wizard.status", ADMIN),
    ("worker.desktop.launch", ADMIN),
    ("worker.desktop.observe", ADMIN),
    ("worktrees.branches", WRITE),
    ("worktrees.create", WRITE),
    ("worktrees.gc", ADMIN),
    ("worktrees.list", READ),
    ("worktrees.remove", ADMIN),
    ("worktrees.restore", ADMIN),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_without_repeats() {
        assert!(METHODS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn every_method_is_found() {
        assert!(METHODS.iter().all(|(name, who)| access(name) == Some(*who)));
        assert_eq!(access("node.invok"), None);
    }

    #[test]
    fn config_writes_need_admin() {
        for (name, who) in METHODS {
            let reserved = ["config.", "exec.approvals.", "wizard.", "update."].iter().any(|p| name.starts_with(p));
            let reads = matches!(*name, "config.get" | "config.schema.lookup");
            assert!(!reserved || reads || *who == ADMIN, "{name}");
        }
    }

    #[test]
    fn pairing_events_go_to_those_who_pair() {
        let reader = ScopeSet::EMPTY.with(Scope::Read);
        assert!(!Event::DEVICE_PAIR_REQUESTED.audience.includes(Role::Operator, reader));
        assert!(!Event::DEVICE_PAIR_REQUESTED.audience.includes(Role::Node, ScopeSet::EMPTY));
        assert!(Event::TICK.audience.includes(Role::Node, ScopeSet::EMPTY));
        assert!(!Event::PRESENCE.audience.includes(Role::Node, ScopeSet::EMPTY));
    }

    #[test]
    fn what_ends_something_is_never_dropped() {
        for event in EVENTS.iter().filter(|e| e.name.ends_with("resolved") || e.name == "shutdown") {
            assert_eq!(event.delivery, Delivery::Kept, "{}", event.name);
        }
    }
}
