//! `system.notify`: a notification on this machine's desktop, by `notify-send` of libnotify.
//!
//! It is there where that program is, and a desktop session for it to talk to. Nothing of what is shown is run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::plan;
use super::run::{self, Spec};

/// Time for the desktop to take it.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);
/// Characters of a title that are shown.
const TITLE_CHARS: usize = 200;
/// Characters of a body that are shown.
const BODY_CHARS: usize = 2000;
/// Characters of what `notify-send` complains about.
const COMPLAINT_CHARS: usize = 300;

/// Parameters of `system.notify`. `sound` and `delivery`, which the wire knows, mean nothing to `notify-send`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Notification {
    #[serde(default)]
    title: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    priority: Option<String>,
}

/// What shows notifications here, given the variables of this process; `None` where nothing does.
pub(super) fn notifier(environment: &BTreeMap<String, String>, path: &str) -> Option<PathBuf> {
    let said = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    let has_session = said("DBUS_SESSION_BUS_ADDRESS").is_some()
        || said("XDG_RUNTIME_DIR").is_some_and(|folder| Path::new(folder).join("bus").exists());
    plan::which("notify-send", path).filter(|_| has_session)
}

impl Notification {
    /// The command that shows it.
    ///
    /// # Errors
    /// There is nothing to show.
    fn command(&self) -> Result<Vec<String>, &'static str> {
        let (title, body) = match (cut(&self.title, TITLE_CHARS), cut(&self.body, BODY_CHARS)) {
            (title, body) if title.is_empty() && body.is_empty() => return Err("empty notification: title or body"),
            // Desktops show none without a title.
            (title, body) if title.is_empty() => (body, String::new()),
            both => both,
        };
        let urgency = match self.priority.as_deref() {
            Some("passive") => "low",
            Some("timeSensitive") => "critical",
            _ => "normal",
        };
        let words = ["notify-send", "--app-name=OpenClaw", "--urgency", urgency, "--", title.as_str(), body.as_str()];
        Ok(words.map(str::to_owned).into())
    }

    /// Shows it with `program`.
    ///
    /// # Errors
    /// `INVALID_REQUEST` or `UNAVAILABLE`, and why.
    pub(super) async fn show(
        &self,
        program: Option<&Path>,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), (&'static str, String)> {
        let argv = self.command().map_err(|why| ("INVALID_REQUEST", why.to_owned()))?;
        let unavailable = |why: &str| ("UNAVAILABLE", format!("NOTIFICATIONS_UNAVAILABLE: {why}"));
        let program = program.ok_or_else(|| {
            unavailable("this machine has no notify-send (libnotify), or its node host no desktop session to talk to")
        })?;
        let spec = Spec { program, argv: &argv, cwd: None, environment, timeout: SHOWN_WITHIN };
        let ended = run::run(spec, |_| {}).await;
        match (ended.exit_code, ended.timed_out) {
            (Some(0), false) => Ok(()),
            (_, true) => Err(unavailable(&format!("the desktop did not answer within {} s", SHOWN_WITHIN.as_secs()))),
            (code, false) => {
                let said = cut(&String::from_utf8_lossy(&ended.stderr), COMPLAINT_CHARS);
                let code = code.map_or_else(|| "no exit code".to_owned(), |code| format!("exit {code}"));
                let why = ended.error.unwrap_or(if said.is_empty() { code } else { said });
                Err(unavailable(&why))
            }
        }
    }
}

/// What people are shown of a text: without control characters but line breaks, and not for ever.
fn cut(text: &str, chars: usize) -> String {
    let plain: String = text.trim().chars().filter(|c| !c.is_control() || *c == '\n').take(chars + 1).collect();
    match plain.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &plain[..end]),
        None => plain,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn notification(params: serde_json::Value) -> Notification {
        serde_json::from_value(params).unwrap()
    }

    #[test]
    fn a_notification_is_words_and_no_options() {
        let words = |params| notification(params).command().map(|words| words[3..].join("|"));
        assert_eq!(words(serde_json::json!({"title": "--help", "body": "b"})).unwrap(), "normal|--|--help|b");
        assert_eq!(words(serde_json::json!({"body": " b\u{1b}[31m ", "sound": "x"})).unwrap(), "normal|--|b[31m|");
        assert_eq!(words(serde_json::json!({"title": "t", "priority": "timeSensitive"})).unwrap(), "critical|--|t|");
        assert_eq!(words(serde_json::json!({"title": "t", "priority": "passive"})).unwrap(), "low|--|t|");
        assert!(words(serde_json::json!({"title": " \u{7}"})).is_err());
        assert_eq!(
            words(serde_json::json!({"title": "ü".repeat(300)})).unwrap().chars().filter(|c| *c == 'ü').count(),
            200
        );
    }

    #[tokio::test]
    async fn it_is_there_with_a_program_and_a_session_and_says_what_went_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("notify-send");
        let path = folder.path().display().to_string();
        let session = BTreeMap::from([("DBUS_SESSION_BUS_ADDRESS".to_owned(), "unix:path=/x".to_owned())]);
        assert_eq!(notifier(&session, &path), None);
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(notifier(&BTreeMap::new(), &path), None);
        assert_eq!(notifier(&session, &path).as_deref(), Some(&*program));

        let hello = notification(serde_json::json!({"title": "t", "body": "hello"}));
        let found = |name: &str| plan::which(name, "/usr/bin:/bin").unwrap();
        assert_eq!(hello.show(Some(&found("true")), &session).await, Ok(()));
        let (code, why) = hello.show(Some(&found("false")), &session).await.unwrap_err();
        assert_eq!((code, why.as_str()), ("UNAVAILABLE", "NOTIFICATIONS_UNAVAILABLE: exit 1"));
        assert!(hello.show(None, &session).await.unwrap_err().1.contains("no notify-send"));
        assert_eq!(Notification::default().show(None, &session).await.unwrap_err().0, "INVALID_REQUEST");
    }
}
