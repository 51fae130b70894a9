//! Which tunnel: `gateway.remote` to the command line of `ssh`.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::super::url_policy::GatewayUrl;
use crate::config::Config;
use crate::config::model::HostKeyPolicy;

/// `[user@]host[:port]`; an IPv6 address with a port stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshTarget {
    /// The user; `None` leaves it to OpenSSH.
    pub user: Option<String>,
    /// The host, or an alias of the OpenSSH configuration.
    pub host: String,
    /// The port; `None` leaves it to OpenSSH.
    pub port: Option<u16>,
}

/// A text that is no target.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no SSH target: write [user@]host[:port]")]
pub struct InvalidTarget(String);

impl FromStr for SshTarget {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let invalid = || InvalidTarget(text.to_owned());
        let (user, place) = match text.trim().rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, text.trim()),
        };
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(invalid)?)),
            // More than one colon: an IPv6 address without a port.
            None if place.matches(':').count() == 1 => {
                place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port)))
            }
            None => (place, None),
        };
        let port = match port {
            Some(port) => Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?),
            None => None,
        };
        // What begins with a dash would be an option; what a shell or ssh expands is nobody's host.
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && part.chars().all(|c| c.is_alphanumeric() || "._-:%+~\\".contains(c))
        };
        if !plain(host) || user.is_some_and(|user| !plain(user)) {
            return Err(invalid());
        }
        Ok(Self { user: user.map(str::to_owned), host: host.to_owned(), port })
    }
}

impl fmt::Display for SshTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// One tunnel, wholly described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelPlan {
    /// Where the gateway's host is.
    pub target: SshTarget,
    /// A private key to use, and no other.
    pub identity: Option<PathBuf>,
    /// Whose word counts for the host's key.
    pub host_keys: HostKeyPolicy,
    /// Port of `127.0.0.1` here.
    pub local_port: u16,
    /// Port of `127.0.0.1` there.
    pub remote_port: u16,
    /// Another OpenSSH configuration than the user's.
    pub ssh_config: Option<PathBuf>,
}

/// What a command line changes.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// In place of `gateway.remote.sshTarget`.
    pub target: Option<SshTarget>,
    /// In place of `gateway.remote.sshIdentity`.
    pub identity: Option<PathBuf>,
}

/// Why there is no tunnel to plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// Nothing says where to.
    #[error("nothing says where the tunnel goes: set gateway.remote.sshTarget to user@host, or pass --ssh user@host")]
    NoTarget,
    /// The target is none.
    #[error("gateway.remote.sshTarget: {0}")]
    Target(#[from] InvalidTarget),
    /// `gateway.remote.url` is not the end of a tunnel.
    #[error(
        "gateway.remote.url is {0}, which is not the local end of a tunnel: set it to ws://127.0.0.1:PORT, or set \
         gateway.remote.transport to \"direct\""
    )]
    NotLocal(String),
    /// `gateway.remote.url` is no URL.
    #[error("gateway.remote.url: {0}")]
    Url(String),
}

impl TunnelPlan {
    /// The tunnel that `config` describes. Without `gateway.remote.url` the local port is `default_port`; without
    /// `gateway.remote.remotePort` the remote port is the local one.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn from_config(config: &Config, overrides: &Overrides, default_port: u16) -> Result<Self, PlanError> {
        let remote = &config.gateway.remote;
        let target = match (&overrides.target, &remote.ssh_target) {
            (Some(target), _) => target.clone(),
            (None, Some(text)) => text.parse()?,
            (None, None) => return Err(PlanError::NoTarget),
        };
        let local_port = match &remote.url {
            Some(text) => {
                let url = GatewayUrl::parse(text).map_err(|error| PlanError::Url(error.to_string()))?;
                if !url.is_loopback() || url.is_tls() {
                    return Err(PlanError::NotLocal(url.to_string()));
                }
                url.port()
            }
            None => default_port,
        };
        Ok(Self {
            target,
            identity: overrides.identity.clone().or_else(|| remote.ssh_identity.clone()),
            host_keys: remote.ssh_host_key_policy,
            local_port,
            remote_port: remote.remote_port.unwrap_or(local_port),
            ssh_config: config.tunnel.ssh_config.clone(),
        })
    }

    /// The arguments for OpenSSH's client, `ssh` itself left out.
    ///
    /// It asks nothing and waits for nothing: no password, no unknown host, no shared connection of another program. It
    /// ends when the forwarding cannot be had, and 45 s after the other side fell silent.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        if let Some(path) = &self.ssh_config {
            arguments.extend(["-F".into(), path.into()]);
        }
        arguments.extend(["-N".into(), "-T".into()]);
        let mut options = vec![
            "BatchMode=yes",
            "ExitOnForwardFailure=yes",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=3",
            "ConnectTimeout=15",
            "ControlMaster=no",
            "ControlPath=none",
            "ForkAfterAuthentication=no",
            "PermitLocalCommand=no",
            "ForwardAgent=no",
            "ForwardX11=no",
        ];
        match self.host_keys {
            HostKeyPolicy::Strict => options.extend(["StrictHostKeyChecking=yes", "UpdateHostKeys=no"]),
            HostKeyPolicy::OpenSsh => {}
        }
        if self.identity.is_some() {
            options.push("IdentitiesOnly=yes");
        }
        arguments.extend(options.into_iter().flat_map(|option| ["-o".into(), option.into()]));
        if let Some(path) = &self.identity {
            arguments.extend(["-i".into(), path.into()]);
        }
        if let Some(port) = self.target.port {
            arguments.extend(["-p".into(), port.to_string().into()]);
        }
        if let Some(user) = &self.target.user {
            arguments.extend(["-l".into(), user.into()]);
        }
        arguments.extend(["-L".into(), format!("127.0.0.1:{}:127.0.0.1:{}", self.local_port, self.remote_port).into()]);
        arguments.extend(["--".into(), (&self.target.host).into()]);
        arguments
    }

    /// For the OpenSSH configuration of a person who keeps the tunnel by hand: an entry `remote-gateway`.
    pub fn ssh_config_entry(&self) -> String {
        let mut entry = format!("Host {HOST_ALIAS}\n    HostName {}\n", self.target.host);
        if let Some(user) = &self.target.user {
            entry.push_str(&format!("    User {user}\n"));
        }
        if let Some(port) = self.target.port {
            entry.push_str(&format!("    Port {port}\n"));
        }
        entry.push_str(&format!("    LocalForward {} 127.0.0.1:{}\n", self.local_port, self.remote_port));
        if let Some(identity) = &self.identity {
            entry.push_str(&format!("    IdentityFile {}\n", identity.display()));
        }
        entry
    }
}

impl fmt::Display for TunnelPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "127.0.0.1:{} -> {} -> 127.0.0.1:{}", self.local_port, self.target, self.remote_port)
    }
}

/// The name that the tunnel's entry has in `~/.ssh/config`.
pub const HOST_ALIAS: &str = "remote-gateway";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::config::decode::decode;
    use crate::config::raw::Document;

    fn config(remote: &str) -> Config {
        let text = format!("{{gateway: {{remote: {remote}}}}}");
        decode(&Document::parse(text).unwrap(), &Environment::default()).unwrap().config
    }

    #[test]
    fn a_target_is_user_host_and_port() {
        let parsed = |text: &str| text.parse::<SshTarget>().map(|target| (target.user, target.host, target.port));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parsed("me@gw.example:2222"), Ok((some("me"), "gw.example".into(), Some(2222))));
        assert_eq!(parsed(" gw "), Ok((None, "gw".into(), None)));
        assert_eq!(parsed("a@b@host"), Err(InvalidTarget("a@b@host".into())));
        assert_eq!(parsed("u@[fd00::1]:22"), Ok((some("u"), "fd00::1".into(), Some(22))));
        assert_eq!(parsed("fe80::1%eth0"), Ok((None, "fe80::1%eth0".into(), None)));
        for wrong in
            ["", "-oProxyCommand=x", "u@-l", "@h", "h:", "h:0", "h:70000", "a b", "h;x", "$(x)", "[::1]x", "h\n"]
        {
            let text = if wrong == "h\n" { "h\nx" } else { wrong };
            assert!(text.parse::<SshTarget>().is_err(), "{text:?}");
        }
        for text in ["me@gw:2222", "gw", "u@[fd00::1]:22"] {
            assert_eq!(text.parse::<SshTarget>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_configuration_says_both_ends() {
        let plan = |remote: &str| TunnelPlan::from_config(&config(remote), &Overrides::default(), 18789);
        let full = plan("{url: 'ws://127.0.0.1:18790', sshTarget: 'me@gw:22', remotePort: 18789, sshIdentity: '/k'}");
        let full = full.unwrap();
        assert_eq!(full.to_string(), "127.0.0.1:18790 -> me@gw:22 -> 127.0.0.1:18789");
        assert_eq!(plan("{sshTarget: 'gw'}").unwrap().to_string(), "127.0.0.1:18789 -> gw -> 127.0.0.1:18789");
        assert_eq!(plan("{}"), Err(PlanError::NoTarget));
        assert!(matches!(plan("{sshTarget: '-x'}"), Err(PlanError::Target(_))));
        assert!(matches!(plan("{sshTarget: 'gw', url: 'wss://gw.example'}"), Err(PlanError::NotLocal(_))));
        assert_eq!(
            full.ssh_config_entry(),
            "Host remote-gateway\n    HostName gw\n    User me\n    Port 22\n    LocalForward 18790 127.0.0.1:18789\n    IdentityFile /k\n"
        );
    }

    #[test]
    fn ssh_is_told_to_ask_nothing_and_to_know_its_host() {
        let plan = |remote: &str| TunnelPlan::from_config(&config(remote), &Overrides::default(), 1).unwrap();
        let line =
            |plan: &TunnelPlan| plan.arguments().join("\u{1}".as_ref()).into_string().unwrap().replace('\u{1}', " ");
        let strict = line(&plan("{sshTarget: 'me@gw:2222', sshIdentity: '/k'}"));
        for part in ["BatchMode=yes", "StrictHostKeyChecking=yes", "ExitOnForwardFailure=yes", "-i /k", "-p 2222"] {
            assert!(strict.contains(part), "{part}: {strict}");
        }
        assert!(strict.ends_with("-l me -L 127.0.0.1:1:127.0.0.1:1 -- gw"), "{strict}");
        let own = line(&plan("{sshTarget: 'gw', sshHostKeyPolicy: 'openssh'}"));
        assert!(!own.contains("StrictHostKeyChecking") && !own.contains("IdentitiesOnly"), "{own}");
    }
}
