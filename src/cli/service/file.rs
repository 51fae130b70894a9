//! A program of ours as a service: what a service manager reads. Pure.
//!
//! launchd gets an agent, systemd a user unit of the same name. The manager brings the program back after a crash and
//! after a reboot.

use std::path::{Path, PathBuf};

/// Name of the tunnel's service (contract 4.12).
pub(in crate::cli) const TUNNEL: &str = "ai.openclaw.ssh-tunnel";
/// Name that it had in older setups; nothing of ours removes it unasked.
pub(in crate::cli) const LEGACY_TUNNEL: &str = "com.openclaw.ssh-tunnel";
/// Name of the node host's service: another than the incumbent's, which may be here, too.
pub(in crate::cli) const NODE: &str = "ai.openclaw.clawgate-node";

/// Name of the gateway's service.
pub(in crate::cli) const GATEWAY: &str = "ai.openclaw.clawgate";
/// Names of the incumbent's gateway, which would want the same port.
pub(in crate::cli) const INCUMBENT_GATEWAYS: [&str; 2] = ["ai.openclaw.gateway", "openclaw-gateway"];

/// A kind of service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Manager {
    /// systemd's manager for one user.
    Systemd,
    /// launchd's agents of one user.
    Launchd,
}

/// What is to run.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Service {
    /// The service's name, with the profile's name behind a dot.
    pub(in crate::cli) label: String,
    /// What it is, for people.
    pub(in crate::cli) description: &'static str,
    /// The program and its arguments.
    pub(in crate::cli) command: Vec<String>,
    /// Variables that it needs.
    pub(in crate::cli) environment: Vec<(String, String)>,
    /// The status with which it ends when trying again is of no use.
    pub(in crate::cli) final_status: u8,
}

/// The name of a service for a profile.
pub(in crate::cli) fn label(name: &str, profile: Option<&str>) -> String {
    profile.map_or_else(|| name.to_owned(), |profile| format!("{name}.{profile}"))
}

impl Manager {
    /// The file of the service `label`; `config_home` is `$XDG_CONFIG_HOME` or what stands for it.
    pub(in crate::cli) fn file(self, home: &Path, config_home: &Path, label: &str) -> PathBuf {
        match self {
            Self::Systemd => config_home.join("systemd/user").join(format!("{label}.service")),
            Self::Launchd => home.join("Library/LaunchAgents").join(format!("{label}.plist")),
        }
    }

    /// What stands in the file.
    pub(in crate::cli) fn text(self, service: &Service) -> String {
        match self {
            Self::Systemd => unit(service),
            Self::Launchd => plist(service),
        }
    }
}

fn unit(service: &Service) -> String {
    // In a command line, and there alone, systemd puts variables in.
    let command: Vec<String> = service.command.iter().map(|word| quoted(&word.replace('$', "$$"))).collect();
    let environment: String = service
        .environment
        .iter()
        .map(|(name, value)| format!("Environment={}\n", quoted(&format!("{name}={value}"))))
        .collect();
    format!(
        "[Unit]\n\
         Description={}\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         ExecStart={}\n\
         {environment}\
         Restart=always\n\
         RestartSec=5\n\
         RestartPreventExitStatus={}\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n",
        service.description,
        command.join(" "),
        service.final_status,
    )
}

/// A word of a unit file: quoted, with what systemd would expand doubled.
fn quoted(word: &str) -> String {
    let mut out = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn plist(service: &Service) -> String {
    let string = |text: &str| format!("<string>{}</string>", escaped(text));
    let arguments: String = service.command.iter().map(|word| format!("        {}\n", string(word))).collect();
    let environment: String = service
        .environment
        .iter()
        .map(|(name, value)| format!("        <key>{}</key>\n        {}\n", escaped(name), string(value)))
        .collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n\
         <dict>\n    \
             <key>Label</key>\n    {}\n    \
             <key>ProgramArguments</key>\n    <array>\n{arguments}    </array>\n    \
             <key>EnvironmentVariables</key>\n    <dict>\n{environment}    </dict>\n    \
             <key>KeepAlive</key>\n    <true/>\n    \
             <key>RunAtLoad</key>\n    <true/>\n    \
             <key>ThrottleInterval</key>\n    <integer>10</integer>\n\
         </dict>\n\
         </plist>\n",
        string(&service.label),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        Service {
            label: label(TUNNEL, None),
            description: "SSH tunnel to an OpenClaw gateway",
            command: ["/opt/my $tools/clawgate", "tunnel", "run"].map(str::to_owned).into(),
            environment: vec![("OPENCLAW_STATE_DIR".into(), "/home/u/50% $\"x\" & <y>".into())],
            final_status: 78,
        }
    }

    #[test]
    fn a_unit_restarts_and_comes_with_the_login() {
        let unit = Manager::Systemd.text(&service());
        for line in [
            "ExecStart=\"/opt/my $$tools/clawgate\" \"tunnel\" \"run\"",
            "Environment=\"OPENCLAW_STATE_DIR=/home/u/50%% $\\\"x\\\" & <y>\"",
            "Restart=always",
            "RestartPreventExitStatus=78",
            "WantedBy=default.target",
        ] {
            assert!(unit.lines().any(|it| it == line), "{line}\n{unit}");
        }
    }

    #[test]
    fn a_plist_has_the_label_and_stays_alive() {
        let plist = Manager::Launchd.text(&service());
        for part in [
            "    <key>Label</key>\n    <string>ai.openclaw.ssh-tunnel</string>",
            "        <string>/opt/my $tools/clawgate</string>\n        <string>tunnel</string>",
            "    <key>KeepAlive</key>\n    <true/>",
            "    <key>RunAtLoad</key>\n    <true/>",
            "&amp; &lt;y&gt;",
        ] {
            assert!(plist.contains(part), "{part}\n{plist}");
        }
    }

    #[test]
    fn files_are_where_the_managers_look() {
        let (home, config) = (Path::new("/h"), Path::new("/h/.config"));
        let file = |manager: Manager, label: &str| manager.file(home, config, label).display().to_string();
        assert_eq!(file(Manager::Systemd, TUNNEL), "/h/.config/systemd/user/ai.openclaw.ssh-tunnel.service");
        assert_eq!(file(Manager::Launchd, LEGACY_TUNNEL), "/h/Library/LaunchAgents/com.openclaw.ssh-tunnel.plist");
        assert_eq!(label(TUNNEL, Some("work")), "ai.openclaw.ssh-tunnel.work");
    }
}
