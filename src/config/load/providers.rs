//! Reads the files and runs the commands that SecretRefs lead to (contract 2.2).
//!
//! A file or a command that somebody else could have put there is refused: it must belong to this user or to
//! root, be writable by no one else, and be itself rather than a link. A command gets no shell, no
//! environment but what its provider lists, a deadline and a bound on what it prints; it runs in a process
//! group of its own, which is killed with it.
//!
//! These calls block, for as long as a provider's timeout at most: they belong to the start and to a reload,
//! never to a request.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, geteuid, kill_process_group};

use super::super::environment::Environment;
use super::super::secret_ref::{ExecProvider, FileProvider, ProviderAccess};
use super::read_text;

/// [`ProviderAccess`] to this machine.
#[derive(Clone, Copy, Debug)]
pub struct FilesAndCommands<'a> {
    /// Where `passEnv` takes its variables from.
    pub environment: &'a Environment,
}

impl ProviderAccess for FilesAndCommands<'_> {
    fn read_file(&self, provider: &FileProvider) -> Result<String, String> {
        let path = &provider.path;
        open_private(path)
            .and_then(|file| read_text(file, provider.max_bytes).map_err(|error| error.to_string()))
            .map_err(|reason| format!("{} cannot be used: {reason}", path.display()))
    }

    fn run(&self, provider: &ExecProvider, request: &str) -> Result<String, String> {
        let path = &provider.command;
        check_command(provider)
            .and_then(|()| self.spawn(provider))
            .and_then(|child| converse(child, provider, request))
            .map_err(|reason| format!("{} cannot be used: {reason}", path.display()))
    }
}

impl FilesAndCommands<'_> {
    fn spawn(&self, provider: &ExecProvider) -> Result<Child, String> {
        let mut command = Command::new(&provider.command);
        command.args(&provider.args).env_clear();
        for name in &provider.pass_env {
            if let Some(value) = self.environment.get(name) {
                command.env(name, value);
            }
        }
        command
            .envs(provider.env.iter().map(|(name, value)| (name, value.expose())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| error.to_string())
    }
}

fn open_private(path: &Path) -> Result<File, String> {
    // A pipe would block the open, a link would lead past the checks.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(path)
        .map_err(|error| match rustix::io::Errno::from_io_error(&error) {
        Some(rustix::io::Errno::LOOP) => "it is a symbolic link; name the file itself".to_owned(),
        _ => error.to_string(),
    })?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    check_owner(&meta)?;
    // What root provides to this user, such as the secrets of a container, may be readable to more users.
    if meta.uid() != 0 && meta.mode() & 0o077 != 0 {
        return Err("other users can read it; chmod 600 it".to_owned());
    }
    if meta.nlink() != 1 {
        return Err("it has a second name (a hard link); copy it to a new file".to_owned());
    }
    Ok(file)
}

fn check_command(provider: &ExecProvider) -> Result<(), String> {
    let path = &provider.command;
    let meta = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if meta.is_symlink() {
        return Err("it is a symbolic link; name the program itself".to_owned());
    }
    check_owner(&meta)?;
    let trusted = &provider.trusted_dirs;
    let traverses = path.components().any(|part| part.as_os_str() == OsStr::new(".."));
    if !trusted.is_empty() && (traverses || !trusted.iter().any(|dir| path.starts_with(dir))) {
        return Err("it is in none of its trustedDirs".to_owned());
    }
    Ok(())
}

fn check_owner(meta: &Metadata) -> Result<(), String> {
    if !meta.is_file() {
        return Err("it is not a file".to_owned());
    }
    if meta.uid() != 0 && meta.uid() != geteuid().as_raw() {
        return Err("it belongs to another user".to_owned());
    }
    if meta.mode() & 0o022 != 0 {
        return Err("other users can change it; chmod go-w it".to_owned());
    }
    Ok(())
}

/// Gives the child `request` and collects its answer until the deadline.
fn converse(mut child: Child, provider: &ExecProvider, request: &str) -> Result<String, String> {
    let group = Pid::from_child(&child);
    let deadline = Instant::now() + provider.timeout;
    let (done, answered) = mpsc::channel();
    if let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) {
        let request = request.to_owned();
        // A child may close its input unread, and answer all the same.
        thread::spawn(move || drop(stdin.write_all(request.as_bytes())));
        let max_bytes = provider.max_output_bytes;
        thread::spawn(move || drop(done.send(read_output(stdout, max_bytes))));
    }
    let answer = answered
        .recv_timeout(provider.timeout)
        .unwrap_or_else(|_| Err(format!("it gave no answer within {} ms", provider.timeout.as_millis())));
    let status = answer.and_then(|answer| wait_until(&mut child, deadline).map(|success| (answer, success)));
    // Whatever it started must not outlive the question. The threads end with the pipes.
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
    match status? {
        (answer, true) => Ok(answer),
        (_, false) => Err("it failed; run it by hand to see why".to_owned()),
    }
}

fn read_output(stdout: impl Read, max_bytes: usize) -> Result<String, String> {
    read_text(stdout, max_bytes).map_err(|error| format!("of its answer, {error}"))
}

fn wait_until(child: &mut Child, deadline: Instant) -> Result<bool, String> {
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => return Ok(status.success()),
            None if Instant::now() >= deadline => return Err("it did not end in time".to_owned()),
            None => thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::secret::Secret;

    fn write(path: &Path, mode: u32, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(path: &Path) -> Result<String, String> {
        let provider = FileProvider { path: path.to_owned(), single_value: true, max_bytes: 16 };
        FilesAndCommands { environment: &Environment::default() }.read_file(&provider)
    }

    fn shell(script: &str) -> ExecProvider {
        ExecProvider {
            command: fs::canonicalize("/bin/sh").unwrap(),
            args: ["-c", script, "sh", "an arg"].map(str::to_owned).into(),
            env: BTreeMap::from([("GIVEN".to_owned(), Secret::new("given"))]),
            pass_env: vec!["PASSED".to_owned(), "PATH".to_owned()],
            trusted_dirs: Vec::new(),
            json_only: true,
            timeout: Duration::from_secs(5),
            max_output_bytes: 100,
        }
    }

    fn run(provider: &ExecProvider) -> Result<String, String> {
        let path = std::env::var("PATH").unwrap();
        let environment = Environment::new([("PASSED", "passed"), ("KEPT", "kept"), ("PATH", &path)]);
        FilesAndCommands { environment: &environment }.run(provider, "the request")
    }

    #[test]
    fn reads_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write(&path, 0o600, "s3cret\n");
        assert_eq!(read(&path), Ok("s3cret\n".to_owned()));
    }

    #[test]
    fn refuses_a_file_that_others_could_have_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert!(read(&path).is_err(), "missing");
        write(&path, 0o620, "s3cret");
        assert!(read(&path).unwrap_err().contains("change it"));
        write(&path, 0o600, "longer than sixteen bytes");
        assert!(read(&path).unwrap_err().contains("longer than 16"));
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(read(&link).unwrap_err().contains("symbolic link"));
        fs::hard_link(&path, dir.path().join("second")).unwrap();
        assert!(read(&path).unwrap_err().contains("hard link"));
        assert!(read(dir.path()).unwrap_err().contains("not a file"));
    }

    #[test]
    fn a_command_sees_its_request_and_only_what_it_was_given() {
        let provider = shell(r#"read line; echo "$line|$1|$GIVEN|$PASSED|$KEPT""#);
        assert_eq!(run(&provider), Ok("the request|an arg|given|passed|\n".to_owned()));
    }

    #[test]
    fn a_command_is_bounded_in_time_and_output() {
        assert!(run(&shell("head -c 1000 /dev/zero | tr '\\0' x")).unwrap_err().contains("longer than 100"));
        assert!(run(&shell("echo fine; exit 3")).unwrap_err().contains("failed"));
        let dir = tempfile::tempdir().unwrap();
        let alive = dir.path().join("alive");
        let mut provider = shell(&format!("(sleep 1; touch {}) & sleep 60", alive.display()));
        provider.timeout = Duration::from_millis(100);
        let asked = Instant::now();
        assert!(run(&provider).unwrap_err().contains("within 100 ms"));
        assert!(asked.elapsed() < Duration::from_secs(1));
        thread::sleep(Duration::from_millis(1200));
        assert!(!alive.exists(), "what it started was killed with it");
    }

    #[test]
    fn refuses_a_command_that_others_could_have_put_there() {
        let mut provider = shell("echo fine");
        provider.trusted_dirs = vec![provider.command.parent().unwrap().to_owned()];
        assert_eq!(run(&provider), Ok("fine\n".to_owned()));
        provider.trusted_dirs = vec![PathBuf::from("/elsewhere")];
        assert!(run(&provider).unwrap_err().contains("trustedDirs"));
        let dir = tempfile::tempdir().unwrap();
        let command = dir.path().join("provider");
        write(&command, 0o722, "#!/bin/sh\n");
        assert!(run(&ExecProvider { command: command.clone(), ..shell("") }).unwrap_err().contains("change it"));
        let link = dir.path().join("link");
        symlink(&command, &link).unwrap();
        assert!(run(&ExecProvider { command: link, ..shell("") }).unwrap_err().contains("symbolic link"));
    }
}
