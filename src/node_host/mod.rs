//! This machine as a node: what it offers to a gateway, and what it does when it is asked.
//!
//! It answers `system.which`, `system.run.prepare`, `system.run`, `system.execApprovals.get`, and on a desktop
//! `system.notify`, with the parameters and results of the incumbent's node host. What it runs is decided here, by a
//! [`policy`] of its own; every command is bounded ([`run`]: time, output, environment), their number is, too, and none
//! outlives the connection that asked for it. It knows nothing of terminals and of how the connection came about.
//!
//! Start at [`NodeHost::new`]; the way in is [`NodeHost::hear`], which takes the events of a connection.

pub mod environment;
mod notify;
mod operands;
pub mod plan;
pub mod policy;
mod programs;
mod progress;
mod run;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinHandle;

use self::plan::Plan;
use self::policy::{Approvals, Ask, Denied, Mode, Permit, Program, Security};
use self::programs::Kind;
use self::progress::Progress;
use self::run::{Ended, Spec};
use crate::client::node::{InvokeRequest, NodeError};
use crate::client::{Connection, Event};
use crate::host_stats::HostStats;
use crate::{id, task};

/// Commands that run at a time; what comes beyond is refused.
const MAX_RUNNING: usize = 16;
/// How long a command may take when neither it nor its caller says so.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a command may take at most, also when nobody says how long it is waited for.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Time for the gateway to take a result.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of output in the event that tells of a command's end: the last ones.
const EVENT_TAIL_BYTES: usize = 20_000;
/// Names that are looked up at once.
const MAX_NAMES: usize = 256;

/// Every command that there is, in the order in which they are declared.
pub const COMMANDS: [&str; 5] =
    ["system.run.prepare", "system.run", "system.which", "system.execApprovals.get", "system.notify"];

/// What this machine offers, and on which terms.
#[derive(Clone, Debug)]
pub struct Options {
    /// The policy's document; it may be missing. It is read again for every command.
    pub policy_file: PathBuf,
    /// Replaces what the document says of `security` and `ask`.
    pub mode: Option<Mode>,
    /// The variables of this process.
    pub environment: BTreeMap<String, String>,
}

/// What happened, for a log.
#[derive(Clone, Debug)]
pub enum Note {
    /// A command ended.
    Ran {
        /// It, in one line.
        command: String,
        /// Its status; `None` when a signal ended it, or it did not start.
        exit_code: Option<i32>,
        /// Its time was over.
        timed_out: bool,
        /// How long it took.
        took: Duration,
    },
    /// A command was not run.
    Denied {
        /// It, in one line.
        command: String,
        /// Why.
        why: String,
    },
    /// Something else was asked for, and answered.
    Answered {
        /// What.
        command: String,
    },
    /// The gateway did not take an answer.
    Unanswered {
        /// To what.
        command: String,
        /// Why.
        why: String,
    },
}

/// This machine as a node.
pub struct NodeHost {
    inner: Arc<Inner>,
    running: HashMap<String, JoinHandle<()>>,
}

struct Inner {
    options: Options,
    note: Box<dyn Fn(Note) + Send + Sync>,
}

impl NodeHost {
    /// A node that tells of what it does through `note`.
    pub fn new(options: Options, note: impl Fn(Note) + Send + Sync + 'static) -> Self {
        Self { inner: Arc::new(Inner { options, note: Box::new(note) }), running: HashMap::new() }
    }

    /// The commands that it offers now. Where nothing may run, nothing that runs is offered; where nothing shows
    /// notifications, none are.
    pub fn commands(&self) -> Vec<String> {
        let runs = match self.inner.options.approvals() {
            Ok(approvals) => approvals.rules(None, self.inner.options.mode).security != Security::Deny,
            Err(_) => false,
        };
        let shows = self.inner.options.notifier().is_some();
        let is_offered = |command: &&str| match *command {
            "system.run" | "system.run.prepare" => runs,
            "system.notify" => shows,
            _ => true,
        };
        let offered = COMMANDS.into_iter().filter(is_offered);
        offered.map(str::to_owned).collect()
    }

    /// Takes an event of `connection`: begins what it asks for, ends what it calls off, and leaves alone what is not for
    /// a node. Answers go back over the same connection.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn hear(&mut self, event: &Event, connection: &Connection) {
        if &*event.name == "node.invoke.cancel" {
            let invocation = serde_json::from_str::<Cancel>(event.payload.get());
            if let Some(task) = invocation.ok().and_then(|cancel| self.running.remove(&cancel.invoke_id)) {
                task.abort();
            }
            return;
        }
        let Some(request) = InvokeRequest::from_event(event) else { return };
        self.running.retain(|_, task| !task.is_finished());
        if self.running.contains_key(&request.id) {
            return;
        }
        let (inner, connection, id) = (Arc::clone(&self.inner), connection.clone(), request.id.clone());
        let is_full = self.running.len() >= MAX_RUNNING;
        let task = task::spawn("node command", async move {
            let answer = match is_full {
                true => Err(unavailable(format!("busy: {MAX_RUNNING} commands run already"))),
                false => inner.answer(&request, &connection).await,
            };
            let sent = connection.respond(&request, answer.as_deref(), ANSWER_WITHIN).await;
            if let Err(error) = sent {
                (inner.note)(Note::Unanswered { command: request.command, why: error.to_string() });
            }
        });
        // A refusal takes no place: it is over in a moment.
        if !is_full {
            self.running.insert(id, task);
        }
    }

    /// Tells the gateway how busy this machine is. Whether its commands wait for approval there; `None` when the gateway
    /// does not say.
    pub fn report(&self, connection: &Connection) -> impl Future<Output = Option<bool>> + Send + 'static + use<> {
        let home = self.inner.options.environment.get("HOME");
        let stats = HostStats::now(home.map(Path::new));
        let connection = connection.clone();
        async move {
            let told = connection.tell("node.host.stats", &stats, ANSWER_WITHIN).await.ok()?;
            match (told.handled, told.reason.as_deref()) {
                (_, Some("awaiting_approval")) => Some(true),
                (true, _) => Some(false),
                _ => None,
            }
        }
    }

    /// Ends everything that runs: whoever asked for it is gone.
    pub fn end_all(&mut self) {
        for (_, task) in self.running.drain() {
            task.abort();
        }
    }
}

impl Drop for NodeHost {
    fn drop(&mut self) {
        self.end_all();
    }
}

impl std::fmt::Debug for NodeHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeHost").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

/// `node.invoke.cancel`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cancel {
    invoke_id: String,
}

/// Parameters of `system.run` and `system.run.prepare`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RunParams {
    #[serde(default)]
    command: Vec<String>,
    raw_command: Option<String>,
    system_run_plan: Option<Plan>,
    cwd: Option<String>,
    env: Option<BTreeMap<String, String>>,
    timeout_ms: Option<f64>,
    needs_screen_recording: Option<bool>,
    agent_id: Option<String>,
    session_key: Option<String>,
    suppress_notify_on_exit: Option<bool>,
    run_id: Option<String>,
    approved: Option<bool>,
    approval_decision: Option<String>,
}

/// The events `exec.finished` and `exec.denied`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExecEvent<'a> {
    session_key: &'a str,
    run_id: &'a str,
    host: &'static str,
    command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timed_out: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    success: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    suppress_notify_on_exit: bool,
}

type Answer = Result<String, NodeError>;

fn invalid(message: impl Into<String>) -> NodeError {
    NodeError { code: "INVALID_REQUEST".into(), message: message.into() }
}

fn unavailable(message: impl Into<String>) -> NodeError {
    NodeError { code: "UNAVAILABLE".into(), message: message.into() }
}

fn params<'a, T: Deserialize<'a>>(request: &'a InvokeRequest) -> Result<T, NodeError> {
    let text = request.params_json.as_deref().unwrap_or("{}");
    serde_json::from_str(text).map_err(|error| invalid(format!("{} params: {error}", request.command)))
}

impl Options {
    /// The policy's document as it is now.
    fn approvals(&self) -> Result<Approvals, String> {
        let unusable = |why: String| format!("{}: {why}", self.policy_file.display());
        match std::fs::read_to_string(&self.policy_file) {
            Ok(text) => Approvals::parse(&text).map_err(unusable),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Approvals::none()),
            Err(error) => Err(unusable(error.to_string())),
        }
    }

    /// What shows notifications.
    fn notifier(&self) -> Option<PathBuf> {
        notify::notifier(&self.environment, self.path())
    }

    fn path(&self) -> &str {
        self.environment.get("PATH").map_or(environment::DEFAULT_PATH, String::as_str)
    }
}

impl Inner {
    async fn answer(&self, request: &InvokeRequest, connection: &Connection) -> Answer {
        let answer = match request.command.as_str() {
            "system.run" => return self.run(request, connection).await,
            "system.run.prepare" => self.prepare(request),
            "system.which" => self.which(request),
            "system.execApprovals.get" => self.policy(),
            "system.notify" => self.notify(request).await,
            _ => Err(unavailable("command not supported")),
        };
        (self.note)(Note::Answered { command: request.command.clone() });
        answer
    }

    /// `{"bins":["sh"]}` to `{"bins":{"sh":"/bin/sh"}}`.
    fn which(&self, request: &InvokeRequest) -> Answer {
        #[derive(Deserialize)]
        struct Which {
            bins: Vec<String>,
        }
        let Which { bins } = params(request)?;
        if bins.len() > MAX_NAMES {
            return Err(invalid(format!("bins: {MAX_NAMES} names at most")));
        }
        let path = self.options.path();
        let find = |name: &String| Some((name.clone(), json!(plan::which(name.trim(), path)?.to_str()?)));
        let found: serde_json::Map<_, _> = bins.iter().filter_map(find).collect();
        Ok(json!({ "bins": found }).to_string())
    }

    /// `{"title":"t","body":"b","priority":"active"}` to `{"ok":true}`, when the desktop has taken it.
    async fn notify(&self, request: &InvokeRequest) -> Answer {
        let notification: notify::Notification = params(request)?;
        let environment = environment::of_command(self.options.environment.clone(), &BTreeMap::new(), false);
        let environment = environment.map_err(unavailable)?;
        let shown = notification.show(self.options.notifier().as_deref(), &environment).await;
        shown.map_err(|(code, message)| NodeError { code: code.into(), message })?;
        Ok(json!({"ok": true}).to_string())
    }

    /// The policy's document: `{path, exists, hash, file}`.
    fn policy(&self) -> Answer {
        let text = std::fs::read_to_string(&self.options.policy_file).ok();
        let approvals = self.options.approvals().map_err(unavailable)?;
        let hash: Option<String> = text
            .as_ref()
            .map(|text| digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect());
        let path = self.options.policy_file.display().to_string();
        Ok(json!({"path": path, "exists": text.is_some(), "hash": hash, "file": approvals}).to_string())
    }

    fn prepare(&self, request: &InvokeRequest) -> Answer {
        let asked: RunParams = params(request)?;
        let cwd = asked.cwd.as_deref().map(str::trim).filter(|cwd| !cwd.is_empty());
        let mut plan = plan::prepare(&asked.command, cwd, self.options.path()).map_err(invalid)?;
        self.environment(&asked, &Found::at(PathBuf::from(&plan.argv[0])))?;
        (plan.agent_id, plan.session_key) = (asked.agent_id, asked.session_key);
        let approvals = self.options.approvals().map_err(|why| unavailable(format!("SYSTEM_RUN_DISABLED: {why}")))?;
        let rules = approvals.rules(plan.agent_id.as_deref(), self.options.mode);
        let policy = json!({"security": rules.security, "ask": rules.ask});
        let coverage = json!({"complete": false, "patterns": []});
        Ok(json!({"plan": plan, "execPolicy": policy, "allowAlwaysCoverage": coverage}).to_string())
    }

    fn environment(&self, asked: &RunParams, program: &Found) -> Result<BTreeMap<String, String>, NodeError> {
        let name = asked.command.first().map_or("", String::as_str);
        let for_shell = Kind::of(name, &program.path, &program.real) == Kind::RunsOthers
            || operands::begins_with_a_shebang(&program.path);
        let inherited = self.options.environment.clone();
        environment::of_command(inherited, asked.env.as_ref().unwrap_or(&BTreeMap::new()), for_shell).map_err(invalid)
    }

    async fn run(&self, request: &InvokeRequest, connection: &Connection) -> Answer {
        let asked: RunParams = params(request)?;
        let command = plan::line(&asked.command);
        let checked = self.check(&asked);
        let Checked { program, cwd, environment } = match checked {
            Ok(checked) => checked,
            Err(Refused { reason, error }) => {
                (self.note)(Note::Denied { command: command.clone(), why: error.message.clone() });
                if let Some(reason) = reason {
                    self.tell(connection, &asked, "exec.denied", |event| event.reason = Some(reason)).await;
                }
                return Err(error);
            }
        };
        let started = Instant::now();
        let spec = Spec {
            program: &program,
            argv: &asked.command,
            cwd: cwd.as_deref(),
            environment: &environment,
            timeout: timeout(&asked, request),
        };
        let progress = Progress::default();
        let ended = progress.while_running(run::run(spec, |piece| progress.add(piece)), request, connection).await;
        (self.note)(Note::Ran {
            command,
            exit_code: ended.exit_code,
            timed_out: ended.timed_out,
            took: started.elapsed(),
        });
        let result = RunResult::of(ended);
        self.tell(connection, &asked, "exec.finished", |event| {
            (event.exit_code, event.timed_out) = (result.exit_code, Some(result.timed_out));
            (event.success, event.output) = (Some(result.success), Some(result.tail()));
        })
        .await;
        Ok(json!(result).to_string())
    }

    /// Decides whether it may run, and as what.
    fn check(&self, asked: &RunParams) -> Result<Checked, Refused> {
        let argv = &asked.command;
        let shown = asked.raw_command.as_deref().map(str::trim).filter(|shown| !shown.is_empty());
        if let Some(shown) = shown
            && shown != plan::line(argv)
            && plan::shell_text(argv).is_none_or(|text| text.trim() != shown)
        {
            return Err(invalid("INVALID_REQUEST: rawCommand does not match command").into());
        }
        let cwd = asked.cwd.as_deref().map(str::trim).filter(|cwd| !cwd.is_empty());
        let cwd = cwd.map(plan::folder).transpose().map_err(invalid)?;
        let program = Found::at(plan::program(argv, cwd.as_deref(), self.options.path()).map_err(invalid)?);
        let environment = self.environment(asked, &program)?;
        if asked.needs_screen_recording == Some(true) {
            let reason = "permission:screenRecording";
            return Err(Refused { reason: Some(reason), error: unavailable("PERMISSION_MISSING: screenRecording") });
        }
        let approvals = self.options.approvals().map_err(|why| unavailable(format!("SYSTEM_RUN_DISABLED: {why}")))?;
        let approved = asked.approved == Some(true)
            || matches!(asked.approval_decision.as_deref(), Some("allow-once" | "allow-always"));
        let home = self.options.environment.get("HOME").map(String::as_str);
        let name = argv.first().map_or("", String::as_str);
        let named = Program { name, path: &program.path, real: &program.real, home };
        let rules = approvals.rules(asked.agent_id.as_deref(), self.options.mode);
        let refused = |why: Denied, more: &str| Refused {
            reason: Some(why.reason()),
            error: unavailable(format!("{why}{more}")),
        };
        let because = || rules.why_not(named).map(|why| format!(" ({why})")).unwrap_or_default();
        let permit = rules.decide(named, approved).map_err(|why| refused(why, &because()))?;
        // The list says nothing about variables that make a program do something else.
        let meant = asked.env.as_ref().map(environment::not_of_display).unwrap_or_default();
        if permit == Permit::Listed && !meant.is_empty() {
            let why = if rules.ask == Ask::Off { Denied::NotListed } else { Denied::ApprovalRequired };
            let more = format!(" (the list allows the program without the variables {})", meant.join(", "));
            return Err(refused(why, &more));
        }
        if let Some(plan) = &asked.system_run_plan {
            let checked = plan.check(argv, cwd.as_deref());
            checked.map_err(|why| Refused { reason: Some("approval-required"), error: unavailable(why) })?;
        }
        Ok(Checked { program: program.path, cwd, environment })
    }

    /// Tells of a run. A gateway that does not take it has the result all the same.
    async fn tell(
        &self,
        connection: &Connection,
        asked: &RunParams,
        name: &str,
        fill: impl FnOnce(&mut ExecEvent<'_>),
    ) {
        let made_up;
        let run_id = match asked.run_id.as_deref().map(str::trim).filter(|id| !id.is_empty()) {
            Some(id) => id,
            None => {
                made_up = id::uuid();
                &made_up
            }
        };
        let command = plan::line(&asked.command);
        let mut event = ExecEvent {
            session_key: asked.session_key.as_deref().unwrap_or("node"),
            run_id,
            host: "node",
            command: &command,
            reason: None,
            exit_code: None,
            timed_out: None,
            success: None,
            output: None,
            suppress_notify_on_exit: asked.suppress_notify_on_exit == Some(true),
        };
        fill(&mut event);
        let _ = connection.tell(name, &event, ANSWER_WITHIN).await;
    }
}

/// A program's file.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    /// Where the path leads to, links followed.
    real: PathBuf,
}

impl Found {
    fn at(path: PathBuf) -> Self {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        Self { path, real }
    }
}

/// A command that may run.
#[derive(Debug)]
struct Checked {
    program: PathBuf,
    cwd: Option<PathBuf>,
    environment: BTreeMap<String, String>,
}

/// Why a command is not run; `reason` is for the event, where there is one.
struct Refused {
    reason: Option<&'static str>,
    error: NodeError,
}

impl From<NodeError> for Refused {
    fn from(error: NodeError) -> Self {
        Self { reason: None, error }
    }
}

/// How long the command may take: as it says, and no longer than its caller waits, for nobody tells this machine that a
/// caller waits no more.
fn timeout(asked: &RunParams, request: &InvokeRequest) -> Duration {
    let said = asked.timeout_ms.filter(|ms| *ms > 0.0 && ms.is_finite()).map(|ms| ms as u64);
    let waits = request.timeout_ms.filter(|ms| *ms > 0);
    let shortest = [said, waits].into_iter().flatten().min();
    shortest.map_or(DEFAULT_TIMEOUT, Duration::from_millis).min(MAX_TIMEOUT)
}

/// The result of `system.run`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunResult {
    exit_code: Option<i32>,
    timed_out: bool,
    success: bool,
    stdout: String,
    stderr: String,
    error: Option<String>,
}

impl RunResult {
    fn of(ended: Ended) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut result = Self {
            exit_code: ended.exit_code,
            timed_out: ended.timed_out,
            success: ended.exit_code == Some(0) && !ended.timed_out && ended.error.is_none(),
            stdout: text(&ended.stdout),
            stderr: text(&ended.stderr),
            error: ended.error,
        };
        if ended.truncated {
            let note = "\n... (truncated)";
            if result.stderr.trim().is_empty() { result.stdout.push_str(note) } else { result.stderr.push_str(note) }
        }
        result
    }

    /// The end of all that it said.
    fn tail(&self) -> String {
        let parts = [self.stdout.as_str(), self.stderr.as_str(), self.error.as_deref().unwrap_or_default()];
        let all = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n");
        let all = all.trim();
        let start = all.len().saturating_sub(EVENT_TAIL_BYTES);
        match (start..all.len()).find(|at| all.is_char_boundary(*at)) {
            Some(at) if at > 0 => format!("... (truncated) {}", &all[at..]),
            _ => all.to_owned(),
        }
    }
}

/// Where the policy's document is.
pub fn policy_file(state_dir: &Path) -> PathBuf {
    state_dir.join("exec-approvals.json")
}

/// What a gateway is told that this machine can do.
pub const CAPS: [&str; 1] = ["system"];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn inner(mode: Option<Mode>, policy: Option<&str>) -> (Inner, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let policy_file = policy_file(folder.path());
        if let Some(text) = policy {
            std::fs::write(&policy_file, text).unwrap();
        }
        let environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let options = Options { policy_file, mode, environment };
        (Inner { options, note: Box::new(|_| {}) }, folder)
    }

    fn request(command: &str, params: &Value) -> InvokeRequest {
        let payload = json!({"id": "i", "nodeId": "n", "command": command, "paramsJSON": params.to_string()});
        serde_json::from_value(payload).unwrap()
    }

    fn check(mode: Option<Mode>, policy: Option<&str>, params: Value) -> Result<PathBuf, String> {
        let (inner, _folder) = inner(mode, policy);
        let asked = serde_json::from_value(params).unwrap();
        inner.check(&asked).map(|checked| checked.program).map_err(|refused| refused.error.message)
    }

    #[test]
    fn nothing_runs_unless_a_person_or_the_policy_says_so() {
        let run = |mode, policy, approved: bool| {
            check(mode, policy, json!({"command": ["uname"], "approved": approved, "cwd": null}))
        };
        assert_eq!(run(None, None, false).unwrap_err(), "SYSTEM_RUN_DENIED: approval required");
        assert!(run(None, None, true).unwrap().ends_with("uname"));
        assert_eq!(run(Some(Mode::Deny), None, true).unwrap_err(), "SYSTEM_RUN_DISABLED: security=deny");
        assert!(run(Some(Mode::Full), None, false).is_ok());
        let open = r#"{"version":1,"defaults":{"security":"full","ask":"off"}}"#;
        assert!(run(None, Some(open), false).is_ok());
        // One that cannot be read opens nothing.
        assert!(run(None, Some("{"), true).unwrap_err().starts_with("SYSTEM_RUN_DISABLED: /"));
        assert!(run(Some(Mode::Full), Some("{"), true).is_err());
    }

    #[test]
    fn what_people_were_shown_is_what_runs() {
        let run = |raw: &str| check(Some(Mode::Full), None, json!({"command": ["uname", "-a"], "rawCommand": raw}));
        assert!(run("uname -a").is_ok() && run("").is_ok());
        assert!(run("uname").unwrap_err().contains("rawCommand does not match"));
        let screen = json!({"command": ["uname"], "needsScreenRecording": true});
        assert_eq!(check(Some(Mode::Full), None, screen).unwrap_err(), "PERMISSION_MISSING: screenRecording");
        let env = json!({"command": ["uname"], "env": {"LD_PRELOAD": "x"}});
        assert!(check(Some(Mode::Full), None, env).unwrap_err().contains("LD_PRELOAD (blocked)"));
    }

    #[test]
    fn what_no_person_has_approved_gets_no_variables_that_programs_understand() {
        let policy = r#"{"version":1,"agents":{"*":{"allowlist":[{"pattern":"uname"}]}}}"#;
        let run = |mode, env: Value, approved: bool| {
            check(mode, Some(policy), json!({"command": ["uname"], "env": env, "approved": approved}))
        };
        assert!(run(None, json!({"LANG": "C", "LC_ALL": "C", "NO_COLOR": "1"}), false).is_ok());
        let refused = run(None, json!({"LANG": "C", "MY_SETTING": "1"}), false).unwrap_err();
        assert!(refused.contains("MY_SETTING") && !refused.contains("LANG"), "{refused}");
        assert!(run(None, json!({"MY_SETTING": "1"}), true).is_ok(), "a person has seen it");
        assert!(run(Some(Mode::Allowlist), json!({"MY_SETTING": "1"}), true).is_err(), "no person is asked");
        assert!(run(Some(Mode::Full), json!({"MY_SETTING": "1"}), false).is_ok());
    }

    #[test]
    fn a_script_is_a_shell_to_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("job");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (inner, _folder) = inner(Some(Mode::Full), None);
        let asked = json!({"command": [script], "env": {"MY_SETTING": "1", "LANG": "C"}});
        let Ok(checked) = inner.check(&serde_json::from_value(asked).unwrap()) else { panic!("it may run") };
        assert_eq!((checked.environment.get("MY_SETTING"), checked.environment["LANG"].as_str()), (None, "C"));
    }

    #[test]
    fn a_plan_is_made_and_kept_to() {
        let (inner, _folder) = inner(None, None);
        let asked = request("system.run.prepare", &json!({"command": ["uname"], "agentId": "main", "env": null}));
        let answer: Value = serde_json::from_str(&inner.prepare(&asked).unwrap()).unwrap();
        assert_eq!(answer["execPolicy"], json!({"security": "allowlist", "ask": "on-miss"}));
        let argv = answer["plan"]["argv"].clone();
        let run = |command: &Value| {
            let params = json!({"command": command, "systemRunPlan": answer["plan"], "approved": true});
            inner.check(&serde_json::from_value(params).unwrap()).map_err(|refused| refused.error.message)
        };
        assert!(run(&argv).is_ok());
        assert!(run(&json!(["id"])).unwrap_err().contains("command changed"));
    }

    #[test]
    fn where_nothing_may_run_nothing_that_runs_is_offered() {
        let offered = |mode, policy| {
            let (inner, _folder) = inner(mode, policy);
            NodeHost { inner: Arc::new(inner), running: HashMap::new() }.commands()
        };
        assert_eq!(offered(None, None), COMMANDS[..4], "nothing shows notifications here");
        for (mode, policy) in [
            (Some(Mode::Deny), None),
            (None, Some("{")),
            (None, Some(r#"{"version":1,"defaults":{"security":"deny"}}"#)),
        ] {
            assert_eq!(offered(mode, policy), ["system.which", "system.execApprovals.get"]);
        }
    }

    #[test]
    fn programs_are_found_by_name_only() {
        let (inner, _folder) = inner(None, None);
        let which = |bins: Value| inner.which(&request("system.which", &json!({ "bins": bins })));
        let found: Value = serde_json::from_str(&which(json!(["sh", "/bin/sh", "no-such", ""])).unwrap()).unwrap();
        assert_eq!(found["bins"].as_object().unwrap().keys().collect::<Vec<_>>(), ["sh"]);
        assert!(which(json!("sh")).is_err() && which(json!(vec!["x"; MAX_NAMES + 1])).is_err());
        assert!(inner.policy().unwrap().contains(r#""exists":false"#));
    }

    #[test]
    fn the_tail_of_an_output_begins_at_a_character() {
        let ended = Ended { stdout: "ü".repeat(EVENT_TAIL_BYTES).into_bytes(), truncated: true, ..Ended::default() };
        let result = RunResult::of(ended);
        assert!(result.stdout.ends_with("\n... (truncated)") && !result.success);
        assert!(result.tail().starts_with("... (truncated) ü"));
    }

    #[test]
    fn a_command_has_as_long_as_it_says_and_no_longer_than_its_caller_waits() {
        let timeout = |params: Value, waits: Option<u64>| {
            let mut request = request("system.run", &params);
            request.timeout_ms = waits;
            timeout(&serde_json::from_value(params).unwrap(), &request).as_millis()
        };
        assert_eq!(timeout(json!({"timeoutMs": 1500}), Some(30_000)), 1500);
        assert_eq!(timeout(json!({"timeoutMs": 1e15}), Some(30_000)), 30_000, "nobody waits for it any more");
        assert_eq!(timeout(json!({"timeoutMs": 1e19}), None), MAX_TIMEOUT.as_millis());
        assert_eq!(timeout(json!({"timeoutMs": null}), Some(30_000)), 30_000);
        assert_eq!(timeout(json!({"timeoutMs": 0}), Some(0)), 600_000);
    }
}
