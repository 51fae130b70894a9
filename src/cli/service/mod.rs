//! Programs of ours as services of this user: written, loaded, told, taken away.
//!
//! What stands in the files is in [`file`].

pub(super) mod file;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Args;
use serde_json::{Value, json};

use self::file::{Manager, Service, label};
use super::context::Context;
use super::error::CliError;
use super::output::Output;
use crate::config::Profile;

/// The service manager of this machine's operating system, and its files for this user.
#[derive(Clone, Debug)]
pub(super) struct Services {
    manager: Manager,
    home: PathBuf,
    config_home: PathBuf,
    label: String,
}

impl Services {
    /// The service `name` of this user and profile.
    ///
    /// # Errors
    /// There is no home directory.
    pub(super) fn of(context: &Context, name: &str) -> Result<Self, CliError> {
        let home = context.environment.get("HOME").map(PathBuf::from);
        let home = home.ok_or_else(|| CliError::other("no home directory is known: set HOME"))?;
        let config_home =
            context.environment.get("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
        let manager = if cfg!(target_os = "macos") { Manager::Launchd } else { Manager::Systemd };
        let label = match &context.profile {
            Profile::Default => label(name, None),
            Profile::Dev => label(name, Some("dev")),
            Profile::Named(profile) => label(name, Some(profile)),
        };
        Ok(Self { manager, home, config_home, label })
    }

    /// Its name.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// The home folder of this user.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// Its file.
    pub(super) fn file(&self) -> PathBuf {
        self.manager.file(&self.home, &self.config_home, &self.label)
    }

    /// Whether the service is installed, and its manager runs.
    pub(super) fn is_in_charge(&self) -> bool {
        self.file().is_file() && self.runs()
    }

    /// Whether the manager answers.
    pub(super) fn runs(&self) -> bool {
        match self.manager {
            Manager::Systemd => succeeds("systemctl", &["--user", "show-environment"]),
            Manager::Launchd => succeeds("launchctl", &["print", &domain()]),
        }
    }

    /// Files of a service that is called `label`, whichever the manager.
    pub(super) fn files_of(&self, label: &str) -> Vec<PathBuf> {
        [Manager::Launchd, Manager::Systemd]
            .map(|manager| manager.file(&self.home, &self.config_home, label))
            .into_iter()
            .filter(|path| path.exists())
            .collect()
    }

    /// Lets the manager start it.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn start(&self) -> Result<(), CliError> {
        match self.manager {
            Manager::Systemd => tell("systemctl", &["--user", "start", &self.unit()]),
            Manager::Launchd => {
                let file = self.file().display().to_string();
                // It may be loaded already.
                let _ = tell("launchctl", &["bootstrap", &domain(), &file]);
                tell("launchctl", &["kickstart", &self.target()])
            }
        }
    }

    /// Lets the manager stop it.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn stop(&self) -> Result<(), CliError> {
        match self.manager {
            Manager::Systemd => tell("systemctl", &["--user", "stop", &self.unit()]),
            Manager::Launchd => tell("launchctl", &["bootout", &self.target()]),
        }
    }

    fn unit(&self) -> String {
        format!("{}.service", self.label)
    }

    fn target(&self) -> String {
        format!("{}/{}", domain(), self.label)
    }

    fn load(&self) -> Result<(), CliError> {
        match self.manager {
            Manager::Systemd => {
                tell("systemctl", &["--user", "daemon-reload"])?;
                tell("systemctl", &["--user", "enable", "--now", &self.unit()])
            }
            Manager::Launchd => {
                let _ = tell("launchctl", &["bootout", &self.target()]);
                tell("launchctl", &["bootstrap", &domain(), &self.file().display().to_string()])
            }
        }
    }

    fn unload(&self, label: &str) {
        // What is not loaded cannot be unloaded; the file goes either way.
        let _ = match self.manager {
            Manager::Systemd => tell("systemctl", &["--user", "disable", "--now", &format!("{label}.service")]),
            Manager::Launchd => tell("launchctl", &["bootout", &format!("{}/{label}", domain())]),
        };
    }

    /// Takes away the service `label`: what of it was there.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn remove(&self, label: &str) -> Result<Vec<PathBuf>, CliError> {
        let found = self.files_of(label);
        if !found.is_empty() && self.runs() {
            self.unload(label);
        }
        found.iter().try_for_each(|path| remove(path))?;
        Ok(found)
    }

    /// Writes the file and loads it where a manager runs; whether one does.
    ///
    /// # Errors
    /// The file cannot be written, or the manager does not take it.
    pub(super) fn install(&self, text: &str) -> Result<bool, CliError> {
        write(&self.file(), text)?;
        let runs = self.runs();
        if runs {
            self.load()?;
        }
        Ok(runs)
    }

    /// What stands in the file of this program called with `arguments`.
    ///
    /// # Errors
    /// This program's own path is not known.
    pub(super) fn text(
        &self,
        context: &Context,
        description: &'static str,
        arguments: Vec<String>,
        final_status: u8,
    ) -> Result<String, CliError> {
        let failed = |error: std::io::Error| CliError::other(format!("this program's own path is not known: {error}"));
        let mut command = vec![std::env::current_exe().map_err(failed)?.display().to_string()];
        command.extend(context.profile.flags());
        command.extend(arguments);
        let path = |path: &Path| path.display().to_string();
        let environment = vec![
            ("OPENCLAW_STATE_DIR".to_owned(), path(&context.paths.state_dir)),
            ("OPENCLAW_CONFIG_PATH".to_owned(), path(&context.paths.config_file)),
        ];
        let service = Service { label: self.label.clone(), description, command, environment, final_status };
        Ok(self.manager.text(&service))
    }

    /// How the manager is called, for people.
    pub(super) const fn manager_name(&self) -> &'static str {
        match self.manager {
            Manager::Systemd => "systemd's user manager",
            Manager::Launchd => "launchd",
        }
    }

    /// What to say of a service that was installed and loaded: when it runs.
    pub(super) const fn runs_when(&self) -> Option<&'static str> {
        match self.manager {
            Manager::Systemd => Some("It runs while you are logged in; to let it run always: loginctl enable-linger"),
            Manager::Launchd => None,
        }
    }

    /// Whether the manager has it running.
    pub(super) fn is_active(&self) -> bool {
        match self.manager {
            Manager::Systemd => succeeds("systemctl", &["--user", "is-active", "--quiet", &self.unit()]),
            Manager::Launchd => succeeds("launchctl", &["print", &self.target()]),
        }
    }
}

/// How to show it.
#[derive(Clone, Debug, Args)]
pub(super) struct ShowFlags {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What a service is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Uninstall,
    Start,
    Stop,
    Restart,
}

/// A service in the words of its commands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Its name: one of [`file`].
    pub(super) name: &'static str,
    /// What runs, at the beginning of a sentence.
    pub(super) what: &'static str,
    /// The command that installs it.
    pub(super) install: &'static str,
    /// The command that runs it in the foreground.
    pub(super) foreground: &'static str,
}

impl Kind {
    /// This service of this user and profile.
    ///
    /// # Errors
    /// There is no home directory.
    pub(super) fn services(&self, context: &Context) -> Result<Services, CliError> {
        Services::of(context, self.name)
    }

    /// Carries out what it is told, and says so.
    ///
    /// # Errors
    /// There is no such service, or its manager does not do it.
    pub(super) fn obey(&self, context: &Context, order: Order, flags: &ShowFlags) -> Result<ExitCode, CliError> {
        const NONE: &str = "No such service is installed.";
        let services = self.services(context)?;
        let (text, more) = match order {
            Order::Uninstall => {
                let removed = services.remove(services.label())?;
                let text =
                    removed.first().map_or_else(|| NONE.to_owned(), |file| format!("Removed {}", file.display()));
                (text, json!({"removed": removed}))
            }
            Order::Start => {
                self.installed(&services)?.start()?;
                (format!("{} is started.", self.what), json!({}))
            }
            Order::Stop if !services.is_in_charge() => (NONE.to_owned(), json!({})),
            Order::Stop => {
                services.stop()?;
                (format!("{} is stopped.", self.what), json!({}))
            }
            Order::Restart => {
                let services = self.installed(&services)?;
                // It may not run.
                let _ = services.stop();
                services.start()?;
                (format!("{} is started anew.", self.what), json!({}))
            }
        };
        answer(context.output, flags.json, &text, more)
    }

    /// The service, where there is one and its manager runs.
    fn installed<'a>(&self, services: &'a Services) -> Result<&'a Services, CliError> {
        if !services.file().exists() {
            return Err(CliError::with_advice("no such service is installed", format!("Install it: {}", self.install)));
        }
        if !services.runs() {
            let what = services.manager_name();
            return Err(CliError::with_advice(
                format!("{what} does not answer"),
                format!("In the foreground: {}", self.foreground),
            ));
        }
        Ok(services)
    }
}

impl Services {
    /// Says for people what [`Services::install`] did; `loaded` is what that gave, `runs` what to say where it runs now.
    ///
    /// # Errors
    /// Nothing can be printed.
    pub(super) fn say_installed(&self, output: Output, loaded: bool, runs: &str) -> Result<(), CliError> {
        output.line(&format!("Wrote {}", self.file().display()))?;
        if loaded {
            output.line(runs)?;
            return self.runs_when().map_or(Ok(()), |when| output.line(when));
        }
        let what = self.manager_name();
        output.line(&format!("No service manager runs here ({what} does not answer), so it is not loaded."))
    }
}

/// A sentence for people, or the same with `more` as JSON.
///
/// # Errors
/// Nothing can be printed.
pub(super) fn answer(output: Output, as_json: bool, text: &str, more: Value) -> Result<ExitCode, CliError> {
    if as_json {
        let mut report = json!({"ok": true, "message": text});
        if let (Some(report), Value::Object(more)) = (report.as_object_mut(), more) {
            report.extend(more);
        }
        output.value(&report)?;
    } else {
        output.line(text)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn domain() -> String {
    format!("gui/{}", rustix::process::getuid().as_raw())
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let quiet =
        Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

fn tell(program: &str, args: &[&str]) -> Result<(), CliError> {
    let line = || format!("{program} {}", args.join(" "));
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| CliError::other(format!("{}: {error}", line())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CliError::other(format!("{} failed: {said}", line())))
}

fn remove(path: &Path) -> Result<(), CliError> {
    std::fs::remove_file(path)
        .map_err(|error| CliError::other(format!("{} cannot be removed: {error}", path.display())))
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let write = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text)
    };
    write().map_err(|error| CliError::other(format!("{} cannot be written: {error}", path.display())))
}
