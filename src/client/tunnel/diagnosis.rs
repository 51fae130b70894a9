//! What OpenSSH's client meant by what it said. Pure.

use std::path::PathBuf;

use thiserror::Error;

/// Why `ssh` ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SshFailure {
    /// The host shows another key than the known one.
    #[error("the SSH host's key has changed: somebody else may answer there")]
    HostKeyChanged {
        /// `SHA256:...` of the key that was shown.
        presented: String,
        /// `SHA256:...` of the key that is known; `None` when it cannot be read.
        known: Option<String>,
        /// File and line of the known key, as `ssh` says: a host that may write to its standard error can say it, too.
        place: Option<(PathBuf, usize)>,
        /// The command that forgets the known key; `None` when `ssh` does not say where it keeps it.
        forget: Option<Box<str>>,
    },
    /// The host's key is not known, and only known ones are taken.
    #[error("the SSH host's key is not known on this machine")]
    HostKeyUnknown,
    /// No key of ours is taken.
    #[error("the SSH host takes none of our keys ({0})")]
    NoAccess(String),
    /// The name has no address.
    #[error("the SSH host's name cannot be looked up ({0})")]
    Dns(String),
    /// The host cannot be reached.
    #[error("the SSH host cannot be reached ({0})")]
    Unreachable(String),
    /// The local port is another program's.
    #[error("the local port is taken")]
    PortTaken,
    /// The connection broke.
    #[error("the SSH connection was lost ({0})")]
    Lost(String),
    /// Anything else; what it said last.
    #[error("ssh ended: {0}")]
    Other(String),
}

impl SshFailure {
    /// What `said`, the text of standard error, means.
    pub fn of(said: &str) -> Self {
        let line_with = |needle: &str| said.lines().find(|line| line.contains(needle)).map(str::trim);
        let after = |marker: &str| {
            said.find(marker).map(|at| said[at + marker.len()..].lines().next().unwrap_or_default().trim().to_owned())
        };
        if said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") || said.contains("HOST IDENTIFICATION HAS CHANGED") {
            let presented = said
                .lines()
                .find_map(|line| {
                    let digest = &line[line.find("SHA256:")? + 7..];
                    let is_base64 = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
                    let end = digest.find(|c| !is_base64(c)).unwrap_or(digest.len());
                    Some(format!("SHA256:{}", &digest[..end]))
                })
                .unwrap_or_default();
            let place = said.lines().find(|line| line.starts_with("Offending ")).and_then(|line| {
                let (path, number) = line.split_once(" key in ")?.1.trim().rsplit_once(':')?;
                Some((PathBuf::from(path), number.trim().parse().ok()?))
            });
            return Self::HostKeyChanged { presented, known: None, place, forget: None };
        }
        if said.contains("host key is known for") || said.contains("Host key verification failed") {
            return Self::HostKeyUnknown;
        }
        if said.contains("Address already in use") || said.contains("cannot listen to port") {
            return Self::PortTaken;
        }
        if let Some(line) = line_with("Permission denied").or(line_with("Too many authentication failures")) {
            let how = line.split_once("Permission denied").map_or(line, |(_, how)| how);
            return Self::NoAccess(how.trim_matches(['(', ')', '.', ' ']).to_owned());
        }
        if let Some(why) = after("Could not resolve hostname ") {
            return Self::Dns(why);
        }
        if let Some(line) = line_with("connect to host ") {
            return Self::Unreachable(line.rsplit(": ").next().unwrap_or(line).to_owned());
        }
        const LOST: [&str; 6] = [
            "not responding",
            "Connection closed by",
            "Connection reset by",
            "Connection to ",
            "Broken pipe",
            "kex_exchange",
        ];
        let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
        match LOST.iter().find_map(|needle| line_with(needle)) {
            Some(line) => Self::Lost(line.trim_end_matches('.').to_owned()),
            None => Self::Other(last.to_owned()),
        }
    }

    /// Whether trying again is of no use, or is wrong, until a person has done something.
    pub const fn needs_a_person(&self) -> bool {
        matches!(self, Self::HostKeyChanged { .. } | Self::HostKeyUnknown | Self::NoAccess(_) | Self::PortTaken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_changed_key_with_its_place() {
        let said = "@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@\nIT IS POSSIBLE\nThe fingerprint for \
                    the ED25519 key sent by the remote host is\nSHA256:abc+/1.\nPlease contact\nAdd correct host key in \
                    /k h\nOffending ED25519 key in /home/u/known_hosts:7\nHost key verification failed.\n";
        assert_eq!(
            SshFailure::of(said),
            SshFailure::HostKeyChanged {
                presented: "SHA256:abc+/1".into(),
                known: None,
                place: Some(("/home/u/known_hosts".into(), 7)),
                forget: None,
            }
        );
    }

    #[test]
    fn tells_the_other_ends_apart() {
        for (said, meant) in [
            (
                "No ED25519 host key is known for [h]:22 and you have requested strict checking.\r\nHost key verification failed.\r\n",
                SshFailure::HostKeyUnknown,
            ),
            ("me@h: Permission denied (publickey,password).\r\n", SshFailure::NoAccess("publickey,password".into())),
            (
                "ssh: Could not resolve hostname gw: Name or service not known\r\n",
                SshFailure::Dns("gw: Name or service not known".into()),
            ),
            (
                "ssh: connect to host 127.0.0.1 port 9: Connection refused\r\n",
                SshFailure::Unreachable("Connection refused".into()),
            ),
            (
                "bind [127.0.0.1]:7: Address already in use\r\nchannel_setup_fwd_listener_tcpip: cannot listen to port: 7\r\n",
                SshFailure::PortTaken,
            ),
            ("Timeout, server h not responding.\r\n", SshFailure::Lost("Timeout, server h not responding".into())),
            (
                "Connection to h closed by remote host.\r\n",
                SshFailure::Lost("Connection to h closed by remote host".into()),
            ),
            ("", SshFailure::Other("it said nothing".into())),
            ("first\nlast\n\n", SshFailure::Other("last".into())),
        ] {
            assert_eq!(SshFailure::of(said), meant, "{said}");
        }
    }
}
