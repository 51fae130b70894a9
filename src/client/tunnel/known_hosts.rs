//! Where OpenSSH's client keeps the key of a host, and how a person has it forgotten. Pure.
//!
//! What the client says on its standard error is not asked: the host's own words come the same way, and a command that a
//! person pastes must not be made of them. `ssh -G` says it without connecting.

use std::path::{Path, PathBuf};

/// What `ssh -G` says of a host's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHosts {
    /// The name that its key is kept by.
    name: String,
    /// The files that are looked into; those of the user first.
    files: Vec<PathBuf>,
}

impl KnownHosts {
    /// Understands what `ssh -G` has printed.
    pub fn of(printed: &str) -> Option<Self> {
        let of = |key: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            line.map(str::trim).filter(|value| !value.is_empty() && *value != "none")
        };
        let (host, port) = (of("hostname")?, of("port").unwrap_or("22"));
        let name = match (of("hostkeyalias"), port) {
            (Some(alias), _) => alias.to_owned(),
            (None, "22") => host.to_owned(),
            (None, port) => format!("[{host}]:{port}"),
        };
        let files = [of("userknownhostsfile"), of("globalknownhostsfile")].into_iter().flatten();
        Some(Self { name, files: files.flat_map(str::split_whitespace).map(PathBuf::from).collect() })
    }

    /// Whether the client looks into this file.
    pub fn looks_into(&self, file: &Path) -> bool {
        self.files.iter().any(|known| known == file)
    }

    /// The command that forgets the key; `file` is where it was found, if it is one of ours.
    pub fn forget(&self, file: Option<&Path>) -> String {
        let file = file.filter(|file| self.looks_into(file)).or_else(|| self.files.first().map(PathBuf::as_path));
        let name = shell_word(&self.name);
        match file {
            Some(file) => format!("ssh-keygen -R {name} -f {}", shell_word(&file.to_string_lossy())),
            None => format!("ssh-keygen -R {name}"),
        }
    }
}

/// A word that a shell takes as it is.
fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "user me\nhostname gw.example\nport 2222\nhostkeyalias none\n\
                           globalknownhostsfile /etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2\n\
                           userknownhostsfile /home/u/.ssh/known_hosts /home/u/.ssh/known_hosts2\n";

    #[test]
    fn a_key_is_forgotten_where_ssh_itself_looks() {
        let known = KnownHosts::of(PRINTED).unwrap();
        let forget = |file: Option<&str>| known.forget(file.map(Path::new));
        let own = "ssh-keygen -R '[gw.example]:2222' -f /home/u/.ssh/known_hosts";
        assert_eq!(forget(None), own);
        assert_eq!(forget(Some("$(touch /tmp/x)")), own, "somebody else's word");
        assert_eq!(forget(Some("/etc/ssh/ssh_known_hosts")), own.replace("/home/u/.ssh/", "/etc/ssh/ssh_"));
        let plain = KnownHosts::of(&PRINTED.replace("2222", "22")).unwrap();
        assert!(plain.forget(None).starts_with("ssh-keygen -R gw.example -f "), "{}", plain.forget(None));
        let alias = KnownHosts::of(&PRINTED.replace("alias none", "alias it's")).unwrap();
        assert!(alias.forget(None).starts_with(r"ssh-keygen -R 'it'\''s' -f "), "{}", alias.forget(None));
        assert_eq!(KnownHosts::of("port 22\n"), None);
    }
}
