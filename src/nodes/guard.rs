//! Commands that are more than a name: what must not reach a node through `node.invoke`, and what must not
//! travel in the parameters of those that may.
//!
//! The command policy says whether a command may run; this says how. It looks at commands and the raw JSON of
//! their parameters, and knows neither caller nor node. Start at [`Guard::of`].

use serde_json::json;

use super::surface::needs_admin_invoke;
use crate::id;
use crate::rpc::error::RpcError;
use crate::rpc::json::{self, Raw};

/// How a command is guarded. Found once per command, when a node's surface takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// Its parameters are the node's business.
    Plain,
    /// `system.run`: approval is the gateway's to give, and what is shown must be what runs.
    SystemRun,
    /// A browser with its owner's sessions: for admins, and never to change its profiles.
    BrowserProxy,
    /// Reaches the host's files: for admins.
    AdminOnly,
    /// The node's exec approvals: they have methods of their own.
    ExecApprovals,
    /// Between the gateway and the node's worker host; nobody else's.
    Private,
}

impl Guard {
    /// The guard of `command`.
    pub(super) fn of(command: &str) -> Self {
        match command {
            "system.run" => Self::SystemRun,
            "system.execApprovals.get" | "system.execApprovals.set" => Self::ExecApprovals,
            "browser.proxy" | "browser.proxy.upload.v1" => Self::BrowserProxy,
            _ if needs_admin_invoke(command) => Self::AdminOnly,
            _ if command.starts_with("worker.") => Self::Private,
            _ => Self::Plain,
        }
    }

    /// Whether only callers with `operator.admin` may use it.
    pub(super) const fn needs_admin(self) -> bool {
        matches!(self, Self::BrowserProxy | Self::AdminOnly)
    }

    /// Refuses what never goes through `node.invoke`, whatever the node has declared.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, with what to use instead.
    pub(super) fn check_reachable(self, command: &str) -> Result<(), RpcError> {
        let message = match self {
            Self::ExecApprovals => "node.invoke does not allow system.execApprovals.*; use exec.approvals.node.*",
            Self::Private => "node.invoke does not allow private node controls",
            _ => return Ok(()),
        };
        Err(RpcError::invalid(message).with_details(json!({"command": command})))
    }
}

/// Refuses calls of the browser proxy that would change the profiles which outlive the call.
///
/// The path is read as a server might read it: percent-decoded, without query, empty and dot segments.
///
/// # Errors
/// `INVALID_REQUEST`.
pub(super) fn check_browser_proxy(command: &str, params: Option<Raw<'_>>) -> Result<(), RpcError> {
    let text = |value: Option<Raw<'_>>| value.and_then(Raw::as_string).map(|text| text.decode().trim().to_owned());
    let Some(fields) = params.and_then(|params| json::fields(params.as_str(), &["method", "path"]).ok()) else {
        return Ok(());
    };
    if fields.duplicate.is_some() {
        return Err(RpcError::invalid(format!("{command} params: method and path must not come twice")));
    }
    let [method, path] = fields.values.map(text);
    let (method, path) = (method.unwrap_or_default().to_ascii_uppercase(), path.unwrap_or_default());
    let path = percent_decode(path.split(['?', '#']).next().unwrap_or_default());
    let segments: Vec<&str> = path.split(['/', '\\']).filter(|part| !matches!(*part, "" | ".")).collect();
    let changes_profiles = match (method.as_str(), segments.as_slice()) {
        (_, segments) if segments.contains(&"..") => true,
        ("POST", ["profiles", "create"] | ["reset-profile"]) => true,
        ("DELETE", ["profiles", _, ..]) => true,
        _ => false,
    };
    if changes_profiles {
        return Err(RpcError::invalid(format!("node.invoke cannot mutate persistent browser profiles via {command}"))
            .with_details(json!({"command": command})));
    }
    Ok(())
}

fn percent_decode(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The parameters of a `system.run` as the node gets them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SystemRun {
    /// JSON, with the known keys only.
    pub params: String,
    /// Under which name the node will tell of the run; made here where the caller gave none.
    pub run_id: String,
}

/// Keys of `system.run` that a caller may set. `approved` and `approvalDecision` are not among them: a node takes
/// them for the gateway's word that a person has approved.
const SYSTEM_RUN_KEYS: [&str; 13] = [
    "command",
    "rawCommand",
    "systemRunPlan",
    "cwd",
    "env",
    "timeoutMs",
    "needsScreenRecording",
    "agentId",
    "sessionKey",
    "suppressNotifyOnExit",
    "runId",
    "approved",
    "approvalDecision",
];

/// Rebuilds the parameters of `system.run` from the keys a caller may set.
///
/// # Errors
/// `INVALID_REQUEST`: not an object; a claim of approval; or a `rawCommand` (what people are shown) that is not
/// `command` (what runs).
pub(super) fn system_run(params: Option<Raw<'_>>) -> Result<SystemRun, RpcError> {
    let refuse = |code: &str, message: &str| {
        Err(RpcError::invalid(message.to_owned()).with_details(json!({"code": code, "command": "system.run"})))
    };
    let Some(fields) = params.and_then(|params| json::fields(params.as_str(), &SYSTEM_RUN_KEYS).ok()) else {
        return refuse("INVALID_PARAMS", "system.run params must be an object");
    };
    if let Some(key) = fields.duplicate {
        return refuse("INVALID_PARAMS", &format!("system.run params: {key} must not come twice"));
    }
    let [command, raw_command, .., run_id, approved, decision] = fields.values;
    let run_id = run_id.and_then(text).filter(|id| !id.is_empty());
    let claims_approval = approved.and_then(Raw::as_bool) == Some(true)
        || decision.and_then(text).is_some_and(|decision| matches!(&*decision, "allow-once" | "allow-always"));
    match (claims_approval, &run_id) {
        (false, _) => {}
        (true, None) => return refuse("MISSING_RUN_ID", "approval override requires params.runId"),
        (true, Some(_)) => {
            return refuse(
                "APPROVALS_UNAVAILABLE",
                "approval is given by the gateway from a stored decision, never by a caller, and this gateway holds \
                 no exec approvals: call without approved and approvalDecision",
            );
        }
    }
    check_raw_command(command, raw_command)?;
    let run_id = run_id.unwrap_or_else(id::uuid);
    let mut out = Vec::with_capacity(256);
    out.push(b'{');
    for (key, value) in SYSTEM_RUN_KEYS.iter().zip(fields.values).take(10) {
        if let Some(value) = value {
            json::push_string(key, &mut out);
            out.push(b':');
            out.extend_from_slice(value.as_str().as_bytes());
            out.push(b',');
        }
    }
    out.extend_from_slice(br#""runId":"#);
    json::push_string(&run_id, &mut out);
    out.push(b'}');
    Ok(SystemRun { params: String::from_utf8(out).unwrap_or_default(), run_id })
}

/// The same for a run that a person has approved: the gateway's own word, which no caller can give.
///
/// # Errors
/// As [`system_run`].
pub(super) fn approved_run(params: Option<Raw<'_>>) -> Result<SystemRun, RpcError> {
    let mut run = system_run(params)?;
    // `runId` was just written behind all others, so the object is not empty.
    run.params.truncate(run.params.trim_end_matches('}').len());
    run.params.push_str(r#","approved":true,"approvalDecision":"allow-once"}"#);
    Ok(run)
}

fn text(value: Raw<'_>) -> Option<String> {
    value.as_string().map(|text| text.decode().trim().to_owned())
}

/// Refuses a `rawCommand` that does not say what `command` runs.
fn check_raw_command(command: Option<Raw<'_>>, raw: Option<Raw<'_>>) -> Result<(), RpcError> {
    let Some(raw) = raw.and_then(text).filter(|raw| !raw.is_empty()) else { return Ok(()) };
    let argv: Vec<String> = command.and_then(|command| serde_json::from_str(command.as_str()).ok()).unwrap_or_default();
    if argv.is_empty() {
        return Err(RpcError::invalid("rawCommand requires params.command")
            .with_details(json!({"code": "MISSING_COMMAND", "command": "system.run"})));
    }
    let shown = shown_command(&argv);
    if raw == shown || shell_text(&argv).is_some_and(|text| text.trim() == raw) {
        return Ok(());
    }
    Err(RpcError::invalid("INVALID_REQUEST: rawCommand does not match command")
        .with_details(json!({"code": "RAW_COMMAND_MISMATCH", "rawCommand": raw, "inferred": shown})))
}

/// The arguments as people are shown them: those with space or quotes in quotes.
fn shown_command(argv: &[String]) -> String {
    let quoted = argv.iter().map(|arg| {
        let plain = !arg.is_empty() && !arg.contains(|c: char| c.is_whitespace() || c == '"');
        if plain { arg.clone() } else { format!("\"{}\"", arg.replace('"', "\\\"")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The text that a shell is given to run, where that is all it is given.
fn shell_text(argv: &[String]) -> Option<&str> {
    match argv {
        [shell, flag, text] if matches!(flag.as_str(), "-c" | "-lc") => {
            let name = shell.rsplit('/').next()?;
            matches!(name, "ash" | "bash" | "dash" | "fish" | "ksh" | "sh" | "zsh").then_some(text)
        }
        [shell, d, s, c, text] if shell.eq_ignore_ascii_case("cmd.exe") => {
            let flags = [d, s, c].map(|flag| flag.to_ascii_lowercase());
            (flags == ["/d", "/s", "/c"]).then_some(text)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn run(params: &Value) -> Result<Value, RpcError> {
        let text = params.to_string();
        system_run(Raw::new(&text).ok()).map(|run| serde_json::from_str(&run.params).unwrap())
    }

    fn code(params: &Value) -> Value {
        run(params).unwrap_err().details.unwrap()["code"].take()
    }

    #[test]
    fn approval_is_never_a_callers_to_give() {
        for claim in [json!({"approved": true}), json!({"approvalDecision": "allow-always"})] {
            let mut params = json!({"command": ["id"]});
            params.as_object_mut().unwrap().extend(claim.as_object().unwrap().clone());
            assert_eq!(code(&params), "MISSING_RUN_ID");
            params["runId"] = json!("r1");
            assert_eq!(code(&params), "APPROVALS_UNAVAILABLE");
        }
        // Doubled keys are read differently by different parsers.
        let doubled = Raw::new(r#"{"command":["id"],"approved":false,"approved":true}"#).unwrap();
        assert!(system_run(Some(doubled)).is_err());
        let escaped = Raw::new(r#"{"command":["id"],"\u0061pproved":true}"#).unwrap();
        assert!(system_run(Some(escaped)).is_err());
    }

    #[test]
    fn what_a_caller_may_not_set_is_left_out() {
        let sent = run(&json!({"command": ["id"], "cwd": "/", "runId": " r1 ", "approved": false,
            "approvalDecision": "deny", "security": "full", "__proto__": {"approved": true}}))
        .unwrap();
        assert_eq!(sent, json!({"command": ["id"], "cwd": "/", "runId": "r1"}));
    }

    #[test]
    fn every_run_has_a_name() {
        let sent = run(&json!({"command": ["id"]})).unwrap();
        assert_eq!(sent["runId"].as_str().unwrap().len(), 36);
        assert!(system_run(None).is_err());
        assert!(system_run(Raw::new("[]").ok()).is_err());
    }

    #[test]
    fn what_is_shown_is_what_runs() {
        for (command, raw) in [
            (json!(["uname", "-a"]), "uname -a"),
            (json!(["echo", "a b", "", "q\""]), r#"echo "a b" "" "q\"""#),
            (json!(["/bin/sh", "-lc", "echo hi | cat"]), "echo hi | cat"),
            (json!(["/bin/sh", "-lc", "echo hi"]), "/bin/sh -lc \"echo hi\""),
            (json!(["cmd.exe", "/d", "/s", "/c", "dir"]), "dir"),
        ] {
            assert!(run(&json!({"command": command, "rawCommand": raw})).is_ok(), "{raw}");
        }
        for (command, raw) in [
            (json!(["rm", "-rf", "/"]), "ls"),
            (json!(["/bin/sh", "-lc", "rm -rf /", "x"]), "rm -rf /"),
            (json!(["/tmp/evil/sh -lc", "-lc", "x"]), "x"),
        ] {
            assert_eq!(code(&json!({"command": command, "rawCommand": raw})), "RAW_COMMAND_MISMATCH", "{raw}");
        }
        assert_eq!(code(&json!({"rawCommand": "ls"})), "MISSING_COMMAND");
    }

    #[test]
    fn browser_profiles_are_not_changed_through_the_proxy() {
        let check = |method: &str, path: &str| {
            let text = json!({"method": method, "path": path}).to_string();
            check_browser_proxy("browser.proxy", Raw::new(&text).ok()).is_ok()
        };
        for (method, path) in [
            ("POST", "/profiles/create"),
            (" post ", "profiles/create/"),
            ("POST", "//profiles/./create?x=1"),
            ("POST", "/profiles%2Fcreate"),
            ("POST", "/reset-profile#a"),
            ("DELETE", "/profiles/work"),
            ("DELETE", "/profiles/a%2Fb"),
            ("DELETE", "/tabs/../profiles/work"),
        ] {
            assert!(!check(method, path), "{method} {path}");
        }
        for (method, path) in [("GET", "/profiles"), ("POST", "/tabs/open"), ("DELETE", "/tabs/1"), ("POST", "")] {
            assert!(check(method, path), "{method} {path}");
        }
        assert!(check_browser_proxy("browser.proxy", None).is_ok());
    }

    #[test]
    fn some_commands_never_go_through_invoke() {
        for command in ["system.execApprovals.get", "system.execApprovals.set", "worker.launch.v1"] {
            assert!(Guard::of(command).check_reachable(command).is_err(), "{command}");
        }
        assert!(Guard::of("system.run").check_reachable("system.run").is_ok());
    }
}
