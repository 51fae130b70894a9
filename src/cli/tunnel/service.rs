//! `clawgate tunnel install`, `uninstall` and `ssh-config`: the tunnel across reboots.
//!
//! What stands in the files is in [`crate::client::tunnel::service`]; here they are written, loaded and taken away.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Args;
use serde_json::json;

use super::super::context::Context;
use super::super::error::CliError;
use super::{NEEDS_A_PERSON, TunnelFlags};
use crate::client::tunnel::plan::HOST_ALIAS;
use crate::client::tunnel::service::{LEGACY_LABEL, Manager, Service, label};
use crate::config::Profile;

/// How to install.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct InstallFlags {
    #[command(flatten)]
    tunnel: TunnelFlags,
    /// Print the service's file and change nothing
    #[arg(long)]
    print: bool,
    /// Remove an older com.openclaw.ssh-tunnel, too
    #[arg(long)]
    remove_legacy: bool,
}

/// What to take away.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct UninstallFlags {
    /// Take away an older com.openclaw.ssh-tunnel, and nothing else
    #[arg(long)]
    legacy: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What to do with the entry.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct SshConfigFlags {
    #[command(flatten)]
    tunnel: TunnelFlags,
    /// Add it to ~/.ssh/config
    #[arg(long)]
    write: bool,
}

/// The service manager of this machine's operating system, and its files for this user.
#[derive(Clone, Debug)]
pub(super) struct Services {
    manager: Manager,
    home: PathBuf,
    config_home: PathBuf,
    label: String,
}

impl InstallFlags {
    pub(super) const fn prints_json(&self) -> bool {
        self.tunnel.json
    }
}

impl UninstallFlags {
    pub(super) const fn prints_json(&self) -> bool {
        self.json
    }
}

impl Services {
    /// Those of this user.
    ///
    /// # Errors
    /// There is no home directory.
    pub(super) fn of(context: &Context) -> Result<Self, CliError> {
        let home = context.environment.get("HOME").map(PathBuf::from);
        let home = home.ok_or_else(|| CliError::other("no home directory is known: set HOME"))?;
        let config_home =
            context.environment.get("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
        let manager = if cfg!(target_os = "macos") { Manager::Launchd } else { Manager::Systemd };
        let label = match &context.profile {
            Profile::Default => label(None),
            Profile::Dev => label(Some("dev")),
            Profile::Named(name) => label(Some(name)),
        };
        Ok(Self { manager, home, config_home, label })
    }

    fn file(&self) -> PathBuf {
        self.manager.file(&self.home, &self.config_home, &self.label)
    }

    /// Whether the service is installed, and its manager runs.
    pub(super) fn is_in_charge(&self) -> bool {
        self.file().is_file() && self.runs()
    }

    /// Whether the manager answers.
    fn runs(&self) -> bool {
        match self.manager {
            Manager::Systemd => succeeds("systemctl", &["--user", "show-environment"]),
            Manager::Launchd => succeeds("launchctl", &["print", &domain()]),
        }
    }

    /// Files of older setups.
    pub(super) fn legacy(&self) -> Vec<PathBuf> {
        [Manager::Launchd, Manager::Systemd]
            .map(|manager| manager.file(&self.home, &self.config_home, LEGACY_LABEL))
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

    fn remove_legacy(&self) -> Result<Vec<PathBuf>, CliError> {
        let found = self.legacy();
        if !found.is_empty() && self.runs() {
            self.unload(LEGACY_LABEL);
        }
        found.iter().try_for_each(|path| remove(path))?;
        Ok(found)
    }
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

/// Runs `tunnel install`.
///
/// # Errors
/// What went wrong, for [`super::super::output::Output::fail`].
pub(super) fn install(context: &Context, flags: &InstallFlags) -> Result<ExitCode, CliError> {
    let output = context.output;
    let plan = flags.tunnel.plan(context)?;
    let services = Services::of(context)?;
    let text = services.manager.text(&service(context, &flags.tunnel, &services)?);
    let file = services.file();
    if flags.print {
        output.print(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let removed = if flags.remove_legacy { services.remove_legacy()? } else { Vec::new() };
    write(&file, &text)?;
    let runs = services.runs();
    if runs {
        services.load()?;
    }
    if flags.tunnel.json {
        output.value(&json!({
            "ok": true, "file": file, "loaded": runs, "route": plan.to_string(),
            "legacyFound": services.legacy(), "legacyRemoved": removed,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(&format!("Wrote {}", file.display()))?;
    for path in &removed {
        output.line(&format!("Removed {}", path.display()))?;
    }
    if runs {
        output.line(&format!("The tunnel {plan} is a service now. See: clawgate tunnel status"))?;
        if services.manager == Manager::Systemd {
            output.line("It runs while you are logged in; to let it run always: loginctl enable-linger")?;
        }
    } else {
        let what = if services.manager == Manager::Systemd { "systemd's user manager" } else { "launchd" };
        output
            .line(&format!("No service manager runs here ({what} does not answer), so it is not loaded. The file:"))?;
        output.print(&format!("\n{}", text.trim_end()))?;
    }
    for path in services.legacy() {
        output.line(&format!("An older tunnel service is there, and would want the same port: {}", path.display()))?;
        output.line("Remove it: clawgate tunnel uninstall --legacy")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn service(context: &Context, flags: &TunnelFlags, services: &Services) -> Result<Service, CliError> {
    let failed = |error: std::io::Error| CliError::other(format!("this program's own path is not known: {error}"));
    let mut command = vec![std::env::current_exe().map_err(failed)?.display().to_string()];
    command.extend(context.profile.flags());
    command.extend(["tunnel", "run"].map(str::to_owned));
    if let Some(target) = &flags.target {
        command.extend(["--ssh".to_owned(), target.to_string()]);
    }
    if let Some(identity) = &flags.identity {
        let identity = std::path::absolute(identity).map_err(failed)?;
        command.extend(["--ssh-identity".to_owned(), identity.display().to_string()]);
    }
    let path = |path: &Path| path.display().to_string();
    let environment = vec![
        ("OPENCLAW_STATE_DIR".to_owned(), path(&context.paths.state_dir)),
        ("OPENCLAW_CONFIG_PATH".to_owned(), path(&context.paths.config_file)),
    ];
    Ok(Service { label: services.label.clone(), command, environment, final_status: NEEDS_A_PERSON })
}

/// Runs `tunnel uninstall`.
///
/// # Errors
/// What went wrong, for [`super::super::output::Output::fail`].
pub(super) fn uninstall(context: &Context, flags: &UninstallFlags) -> Result<ExitCode, CliError> {
    let services = Services::of(context)?;
    let removed = if flags.legacy {
        services.remove_legacy()?
    } else {
        let file = services.file();
        if file.exists() {
            if services.runs() {
                services.unload(&services.label);
            }
            remove(&file)?;
            vec![file]
        } else {
            Vec::new()
        }
    };
    let output = context.output;
    if flags.json {
        output.value(&json!({"ok": true, "removed": removed}))?;
        return Ok(ExitCode::SUCCESS);
    }
    match removed.is_empty() {
        true => output.line("No such service is installed.")?,
        false => removed.iter().try_for_each(|path| output.line(&format!("Removed {}", path.display())))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `tunnel ssh-config`.
///
/// # Errors
/// What went wrong, for [`super::super::output::Output::fail`].
pub(super) fn ssh_config(context: &Context, flags: &SshConfigFlags) -> Result<ExitCode, CliError> {
    let entry = flags.tunnel.plan(context)?.ssh_config_entry();
    if !flags.write {
        context.output.print(entry.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = Services::of(context)?.home.join(".ssh/config");
    let failed = |error: std::io::Error| CliError::other(format!("{} cannot be written: {error}", path.display()));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    if has_entry(&text) {
        return Err(CliError::with_advice(
            format!("{} has an entry for {HOST_ALIAS} already", path.display()),
            "Change it by hand. What it would be: clawgate tunnel ssh-config",
        ));
    }
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
    let gap = if text.is_empty() {
        ""
    } else if text.ends_with('\n') {
        "\n"
    } else {
        "\n\n"
    };
    file.write_all(format!("{gap}{entry}").as_bytes()).map_err(failed)?;
    context.output.line(&format!("Added {HOST_ALIAS} to {}. By hand: ssh -N {HOST_ALIAS}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn has_entry(text: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|word| word.eq_ignore_ascii_case("host")) && words.any(|name| name == HOST_ALIAS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_known_among_others() {
        assert!(has_entry("Host a\n  User x\nhost b remote-gateway\n"));
        assert!(!has_entry("# Host remote-gateway\nHost remote-gateway-2\n  HostName remote-gateway\n"));
    }
}
