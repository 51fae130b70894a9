//! `clawgate gateway install`: the gateway as a service of this user, so that it comes back after a crash and a reboot.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::context::Context;
use super::error::CliError;
use super::service::file::{GATEWAY, INCUMBENT_GATEWAYS};
use super::service::{Kind, Order, ShowFlags, answer};
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

const SERVICE: Kind =
    Kind { name: GATEWAY, what: "The gateway", install: "clawgate gateway install", foreground: "clawgate gateway" };

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
        match self {
            Self::Install(flags) => install(context, flags),
            Self::Uninstall(flags) => SERVICE.obey(context, Order::Uninstall, flags),
            Self::Start(flags) => SERVICE.obey(context, Order::Start, flags),
            Self::Stop(flags) => SERVICE.obey(context, Order::Stop, flags),
            Self::Restart(flags) => SERVICE.obey(context, Order::Restart, flags),
        }
    }
}

fn install(context: &Context, flags: &InstallFlags) -> Result<ExitCode, CliError> {
    starts_as_a_service(context)?;
    let (services, output) = (SERVICE.services(context)?, context.output);
    let text =
        services.text(context, "OpenClaw gateway (clawgate)", ["gateway", "run"].map(str::to_owned).into(), 78)?;
    if flags.print {
        output.print(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let others: Vec<_> = INCUMBENT_GATEWAYS.iter().flat_map(|label| services.files_of(label)).collect();
    let loaded = services.install(&text)?;
    if flags.show.json {
        let more = json!({"file": services.file(), "loaded": loaded, "others": others});
        return answer(output, true, "installed", more);
    }
    let runs = "The gateway runs, and comes back by itself. See: clawgate gateway status";
    services.say_installed(output, loaded, runs)?;
    for other in others {
        let line =
            format!("OpenClaw's own gateway is a service here, too, and wants the same port: {}", other.display());
        output.line(&line)?;
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
