//! What exactly will run: the program's file, the folder, and the scripts among the arguments.
//!
//! `system.run.prepare` makes a [`Plan`], which the gateway shows to a person and sends back with the approved command.
//! Then it must still be true: the same words, the same folder, and scripts of the same content. One that was changed
//! in between is another command. Which arguments are scripts is told in [`operands`](super::operands).

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::operands::script;
use super::programs::is_shell;

/// A command as it was shown to a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Program and arguments; the program by its path.
    pub argv: Vec<String>,
    /// In which folder.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The command in one line.
    pub command_text: String,
    /// What a shell is given to run, when the program is one.
    #[serde(default)]
    pub command_preview: Option<String>,
    /// For which agent.
    #[serde(default)]
    pub agent_id: Option<String>,
    /// In which session.
    #[serde(default)]
    pub session_key: Option<String>,
    /// The files among the arguments that say what runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutable_file_operand: Option<Script>,
}

/// The files among the arguments that say what runs: the first of them, and what binds them all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Script {
    /// Which argument it is.
    pub argv_index: usize,
    /// Its path, links followed.
    pub path: String,
    /// SHA-256 of its content, in hex. Where there are several, or it is larger than 16 MiB, of a list: of each, argument,
    /// path, and what its content is known by.
    pub sha256: String,
}

/// Makes the plan of a command.
///
/// # Errors
/// Why it cannot be made, for whoever asked.
pub(super) fn prepare(argv: &[String], cwd: Option<&str>, path: &str) -> Result<Plan, String> {
    let cwd = cwd.map(folder).transpose()?;
    let program = program(argv, cwd.as_deref(), path)?;
    let mut argv = argv.to_vec();
    let name = program.to_str().ok_or("the program's path is no text")?;
    argv[0] = name.to_owned();
    let mutable_file_operand = script(&argv, cwd.as_deref())?;
    Ok(Plan {
        command_text: line(&argv),
        command_preview: shell_text(&argv).map(str::to_owned),
        cwd: cwd.map(|cwd| cwd.display().to_string()),
        agent_id: None,
        session_key: None,
        mutable_file_operand,
        argv,
    })
}

impl Plan {
    /// Whether `argv` in `cwd` is what was shown, and its script is what it was.
    ///
    /// # Errors
    /// What has changed.
    pub(super) fn check(&self, argv: &[String], cwd: Option<&Path>) -> Result<(), String> {
        let changed = |what: &str| Err(format!("SYSTEM_RUN_DENIED: approval {what} before execution"));
        if self.argv != argv {
            return changed("command changed");
        }
        if self.cwd.as_deref().map(Path::new) != cwd {
            return changed("cwd changed");
        }
        match (script(argv, cwd)?, &self.mutable_file_operand) {
            (now, then) if now.as_ref() == then.as_ref() => Ok(()),
            (Some(_), None) => Err("SYSTEM_RUN_DENIED: approval missing script operand binding".into()),
            _ => changed("script operand changed"),
        }
    }
}

/// A folder, without links and `..`.
pub(super) fn folder(cwd: &str) -> Result<PathBuf, String> {
    let path = Path::new(cwd);
    if !path.is_absolute() {
        return Err(format!("cwd must be an absolute path: {cwd}"));
    }
    let canonical = path.canonicalize().map_err(|error| format!("cwd {cwd}: {error}"))?;
    if canonical.is_dir() { Ok(canonical) } else { Err(format!("cwd {cwd} is no folder")) }
}

/// The file that would run.
pub(super) fn program(argv: &[String], cwd: Option<&Path>, path: &str) -> Result<PathBuf, String> {
    let name = argv.first().filter(|name| !name.is_empty()).ok_or("command required")?;
    let found = if name.contains('/') {
        let file = match cwd {
            Some(cwd) => cwd.join(name),
            None => std::path::absolute(name).map_err(|error| error.to_string())?,
        };
        // With `..` in it, a path says little about where it leads.
        let climbs = file.components().any(|part| part == Component::ParentDir);
        let file = if climbs { file.canonicalize().map_err(|error| format!("{name}: {error}"))? } else { file };
        is_program(&file).then_some(file)
    } else {
        which(name, path)
    };
    found.ok_or_else(|| format!("command not found: {name}"))
}

/// Where a program is, by `path`.
pub(super) fn which(name: &str, path: &str) -> Option<PathBuf> {
    if name.is_empty() || name.contains('/') {
        return None;
    }
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The command in one line, as people are shown it.
pub(super) fn line(argv: &[String]) -> String {
    let quoted = argv.iter().map(|arg| {
        let plain = !arg.is_empty() && !arg.contains(|c: char| c.is_whitespace() || c == '"');
        if plain { arg.clone() } else { format!("\"{}\"", arg.replace('"', "\\\"")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// What a shell is given to run, when that is all it is given.
pub(super) fn shell_text(argv: &[String]) -> Option<&str> {
    match argv {
        [shell, flag, text] if is_shell(shell) && matches!(flag.as_str(), "-c" | "-lc") => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "relative:/usr/bin:/bin";

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_plan_names_the_file_that_will_run() {
        let plan = prepare(&words(&["uname", "-a b"]), None, PATH).unwrap();
        assert!(plan.argv[0].ends_with("bin/uname") && plan.argv[0].starts_with('/'));
        assert_eq!(plan.command_text, format!("{} \"-a b\"", plan.argv[0]));
        assert!(plan.check(&plan.argv, None).is_ok());
        let shell = prepare(&words(&["sh", "-lc", "echo hi | cat"]), None, PATH).unwrap();
        assert_eq!((shell.command_preview.as_deref(), shell.mutable_file_operand), (Some("echo hi | cat"), None));
        for (argv, why) in [
            (&["no-such-program"][..], "command not found: no-such-program"),
            (&[], "command required"),
            (&[""], "command required"),
            (&["/etc/passwd"], "command not found"),
        ] {
            let error = prepare(&words(argv), None, PATH).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(prepare(&words(&["uname"]), Some("tmp"), PATH).unwrap_err().contains("absolute"));
    }

    #[test]
    fn what_changed_after_it_was_shown_does_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let cwd = folder.path().canonicalize().unwrap();
        let file = cwd.join("job.sh");
        std::fs::write(&file, "echo one\n").unwrap();
        let argv = words(&["sh", "job.sh"]);
        let plan = prepare(&argv, cwd.to_str(), PATH).unwrap();
        let script = plan.mutable_file_operand.clone().unwrap();
        assert_eq!((script.argv_index, script.sha256.len()), (1, 64));
        assert!(plan.check(&plan.argv, Some(&cwd)).is_ok());

        let denied = |argv: &[String], cwd: Option<&Path>| plan.check(argv, cwd).unwrap_err();
        let other = words(&[&plan.argv[0], "other.sh"]);
        assert!(denied(&other, Some(&cwd)).contains("command changed"));
        assert!(denied(&plan.argv, Some(Path::new("/"))).contains("cwd changed"));
        std::fs::write(&file, "echo two\n").unwrap();
        assert!(denied(&plan.argv, Some(&cwd)).contains("script operand changed"));
        let unbound = Plan { mutable_file_operand: None, ..plan.clone() };
        assert!(unbound.check(&plan.argv, Some(&cwd)).unwrap_err().contains("missing script operand binding"));
    }

    #[test]
    fn a_path_that_climbs_is_followed_before_it_is_judged() {
        let found = program(&words(&["/usr/bin/../bin/uname"]), None, PATH).unwrap();
        assert!(!found.display().to_string().contains(".."), "{}", found.display());
    }
}
