//! `clawgate gateway install`: the gateway as a service of this user, so that it comes back after a crash and a reboot.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::service::Services;
use super::service::file::{GATEWAY, INCUMBENT_GATEWAYS};
use crate::config::load::{self, FilesAndCommands};
use crate::config::{Environment, resolve};

/// Variables that a service has from its manager, too.
const OF_A_SERVICE: [&str; 5] = ["HOME", "PATH", "USER", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"];

/// Commands about the service.
#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// Make the gateway a service: a systemd user unit, or a LaunchAgent
    Install(InstallFlags),
    /// Take the service away
    Uninstall(ShowFlags),
    /// Start the service
    Start(ShowFlags),
    /// Stop the service
    Stop(ShowFlags),
    /// Stop the service and start it again
    Restart(ShowFlags),
}

/// How to install.
#[derive(Debug, Args)]
pub(super) struct InstallFlags {
    /// Print what would be written, and write nothing
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    show: ShowFlags,
}

/// How to show it.
#[derive(Debug, Args)]
pub(super) struct ShowFlags {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ServiceCommand {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        match self {
            Self::Install(flags) => flags.show.json,
            Self::Uninstall(flags) | Self::Start(flags) | Self::Stop(flags) | Self::Restart(flags) => flags.json,
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`super::output::Output::fail`].
    pub(super) fn run(&self, context: &Context) -> Result<ExitCode, CliError> {
        let services = Services::of(context, GATEWAY)?;
        match self {
            Self::Install(flags) => install(context, &services, flags),
            Self::Uninstall(flags) => {
                let removed = services.remove(services.label())?;
                let text = match removed.first() {
                    Some(file) => format!("Removed {}", file.display()),
                    None => "No such service is installed.".to_owned(),
                };
                answer(context, flags, &text, json!({"removed": removed}))
            }
            Self::Start(flags) => {
                installed(&services)?.start()?;
                answer(context, flags, "The gateway is started. See: clawgate gateway status", json!({}))
            }
            Self::Stop(flags) => {
                installed(&services)?.stop()?;
                answer(context, flags, "The gateway is stopped.", json!({}))
            }
            Self::Restart(flags) => {
                let services = installed(&services)?;
                // It may not run.
                let _ = services.stop();
                services.start()?;
                answer(context, flags, "The gateway is started anew.", json!({}))
            }
        }
    }
}

/// The service, where there is one and its manager runs.
fn installed(services: &Services) -> Result<&Services, CliError> {
    if !services.file().exists() {
        return Err(CliError::with_advice("no such service is installed", "Install it: clawgate gateway install"));
    }
    if !services.runs() {
        let what = services.manager_name();
        return Err(CliError::with_advice(format!("{what} does not answer"), "In the foreground: clawgate gateway"));
    }
    Ok(services)
}

fn answer(context: &Context, flags: &ShowFlags, text: &str, more: Value) -> Result<ExitCode, CliError> {
    if flags.json {
        let mut report = json!({"ok": true, "message": text});
        if let (Some(report), Value::Object(more)) = (report.as_object_mut(), more) {
            report.extend(more);
        }
        context.output.value(&report)?;
    } else {
        context.output.line(text)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn install(context: &Context, services: &Services, flags: &InstallFlags) -> Result<ExitCode, CliError> {
    starts_as_a_service(context)?;
    let text =
        services.text(context, "OpenClaw gateway (clawgate)", ["gateway", "run"].map(str::to_owned).into(), 78)?;
    if flags.print {
        context.output.print(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let others: Vec<_> = INCUMBENT_GATEWAYS.iter().flat_map(|label| services.files_of(label)).collect();
    let runs = services.install(&text)?;
    let file = services.file();
    if flags.show.json {
        return answer(context, &flags.show, "installed", json!({"file": file, "loaded": runs, "others": others}));
    }
    context.output.line(&format!("Wrote {}", file.display()))?;
    if runs {
        context.output.line("The gateway runs, and comes back by itself. See: clawgate gateway status")?;
        if let Some(when) = services.runs_when() {
            context.output.line(when)?;
        }
    } else {
        let what = services.manager_name();
        context.output.line(&format!("No service manager runs here ({what} does not answer), so it is not loaded."))?;
    }
    for other in others {
        let line =
            format!("OpenClaw's own gateway is a service here, too, and wants the same port: {}", other.display());
        context.output.line(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What would not start, or start each time with another secret, is not installed.
fn starts_as_a_service(context: &Context) -> Result<(), CliError> {
    let variables = OF_A_SERVICE.iter().filter_map(|name| Some((*name, context.environment.get(name)?)));
    let loaded = load::load(context.paths.clone(), Environment::new(variables))?;
    let access = FilesAndCommands { environment: &loaded.environment };
    let flags = resolve::Flags::default();
    let (host, port) = (load::host_facts(), context.profile.default_port());
    let start = resolve::start(&loaded.config, &loaded.environment, &flags, &host, port, &access);
    let start = start.map_err(|refusal| {
        CliError::with_advice(
            format!("the gateway would not start as a service: {refusal}"),
            "A service sees the configuration and the .env file beside it, and no variable of this terminal.",
        )
    })?;
    if start.needs_token() {
        return Err(CliError::with_advice(
            "no token is configured: a service would make another one at every start",
            "Keep one: clawgate config set gateway.auth.token \"$(openssl rand -hex 24)\"",
        ));
    }
    Ok(())
}
