//! `clawgate tunnel install`, `uninstall` and `ssh-config`: the tunnel across reboots.
//!
//! launchd gets the agent `ai.openclaw.ssh-tunnel`, systemd a user unit of the same name (contract 4.12). Both run
//! `clawgate tunnel run`, which restarts `ssh` by itself.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::super::context::Context;
use super::super::error::CliError;
use super::super::service::Services;
use super::super::service::file::{LEGACY_TUNNEL, TUNNEL};
use super::{NEEDS_A_PERSON, TunnelFlags};
use crate::client::tunnel::plan::HOST_ALIAS;

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

/// Runs `tunnel install`.
///
/// # Errors
/// What went wrong, for [`super::super::output::Output::fail`].
pub(super) fn install(context: &Context, flags: &InstallFlags) -> Result<ExitCode, CliError> {
    let output = context.output;
    let plan = flags.tunnel.plan(context)?;
    let services = services(context)?;
    let text = text(context, &flags.tunnel, &services)?;
    let file = services.file();
    if flags.print {
        output.print(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let removed = if flags.remove_legacy { services.remove(LEGACY_TUNNEL)? } else { Vec::new() };
    let runs = services.install(&text)?;
    if flags.tunnel.json {
        output.value(&json!({
            "ok": true, "file": file, "loaded": runs, "route": plan.to_string(),
            "legacyFound": legacy(&services), "legacyRemoved": removed,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(&format!("Wrote {}", file.display()))?;
    for path in &removed {
        output.line(&format!("Removed {}", path.display()))?;
    }
    if runs {
        output.line(&format!("The tunnel {plan} is a service now. See: clawgate tunnel status"))?;
        if let Some(when) = services.runs_when() {
            output.line(when)?;
        }
    } else {
        let what = services.manager_name();
        output
            .line(&format!("No service manager runs here ({what} does not answer), so it is not loaded. The file:"))?;
        output.print(&format!("\n{}", text.trim_end()))?;
    }
    for path in legacy(&services) {
        output.line(&format!("An older tunnel service is there, and would want the same port: {}", path.display()))?;
        output.line("Remove it: clawgate tunnel uninstall --legacy")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The tunnel's service.
///
/// # Errors
/// There is no home directory.
pub(super) fn services(context: &Context) -> Result<Services, CliError> {
    Services::of(context, TUNNEL)
}

/// Files of older setups.
pub(super) fn legacy(services: &Services) -> Vec<std::path::PathBuf> {
    services.files_of(LEGACY_TUNNEL)
}

fn text(context: &Context, flags: &TunnelFlags, services: &Services) -> Result<String, CliError> {
    let mut arguments = ["tunnel", "run"].map(str::to_owned).to_vec();
    if let Some(target) = &flags.target {
        arguments.extend(["--ssh".to_owned(), target.to_string()]);
    }
    if let Some(identity) = &flags.identity {
        let failed = |error: std::io::Error| CliError::other(format!("{}: {error}", identity.display()));
        let identity = std::path::absolute(identity).map_err(failed)?;
        arguments.extend(["--ssh-identity".to_owned(), identity.display().to_string()]);
    }
    services.text(context, "SSH tunnel to an OpenClaw gateway", arguments, NEEDS_A_PERSON)
}

/// Runs `tunnel uninstall`.
///
/// # Errors
/// What went wrong, for [`super::super::output::Output::fail`].
pub(super) fn uninstall(context: &Context, flags: &UninstallFlags) -> Result<ExitCode, CliError> {
    let services = services(context)?;
    let removed = services.remove(if flags.legacy { LEGACY_TUNNEL } else { services.label() })?;
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
    let path = services(context)?.home().join(".ssh/config");
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
