//! What the gateway says when it is ready: a few lines for the person who started it.

use std::fmt;
use std::io::Write as _;

use crate::config::Paths;
use crate::config::model::AuthMode;
use crate::config::resolve::{Credential, Start};
use crate::net::descriptors::Descriptors;
use crate::net::tls::Fingerprints;
use crate::secret::Secret;

/// The announcement; displays as its text.
#[derive(Debug)]
pub struct Announcement<'a> {
    /// What was decided.
    pub start: &'a Start,
    /// The token that was made for this run. This is the one place where a secret is shown.
    pub generated: Option<&'a Secret>,
    /// Where things lie.
    pub paths: &'a Paths,
    /// How many connections fit.
    pub descriptors: Descriptors,
    /// Of the certificate, where the gateway speaks TLS.
    pub fingerprints: Option<Fingerprints>,
}

impl Announcement<'_> {
    /// Prints it to standard output. A closed output is no reason not to run.
    pub fn print(&self) {
        for notice in &self.start.notices {
            tracing::warn!("{notice}");
        }
        let _ = write!(std::io::stdout().lock(), "{self}");
        tracing::info!(
            listen = ?self.start.listen.addresses,
            port = self.start.listen.port,
            auth = self.start.auth.mode.as_str(),
            connections = self.descriptors.connections,
            "ready"
        );
    }
}

/// Where a token comes from, and what it can be compared with another by (`clawgate gateway explain`).
fn origin(credential: Option<&Credential>) -> String {
    credential.map_or_else(String::new, |it| format!("{} (fingerprint {})", it.source, it.secret.fingerprint()))
}

impl fmt::Display for Announcement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Start { listen, auth, .. } = self.start;
        let addresses: Vec<_> =
            listen.addresses.iter().map(|ip| std::net::SocketAddr::new(*ip, listen.port).to_string()).collect();
        let shown = super::shown_address(self.start);
        let host = if shown.ip().is_unspecified() { "127.0.0.1".to_owned() } else { shown.ip().to_string() };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        writeln!(f, "clawgate {} listens on {}", env!("CARGO_PKG_VERSION"), addresses.join(", "))?;
        match (auth.mode, self.generated) {
            (AuthMode::Token, Some(token)) => writeln!(
                f,
                "  auth    token, made for this run: {}  (keep one: clawgate config set gateway.auth.token \"...\")",
                token.expose()
            )?,
            (AuthMode::Token, None) => {
                writeln!(f, "  auth    token, from {}", origin(auth.token.as_ref()))?;
            }
            (AuthMode::Password, _) => {
                // No digits of its hash: they would help whoever reads the log to guess a weak one.
                let source = auth.password.as_ref().map(|it| it.source.to_string()).unwrap_or_default();
                writeln!(f, "  auth    password, from {source}")?;
            }
            (AuthMode::TrustedProxy, _) => writeln!(f, "  auth    trusted-proxy")?,
            (AuthMode::None, _) => writeln!(f, "  auth    none: every program on this machine is let in")?,
        }
        let scheme = if self.fingerprints.is_some() { "https" } else { "http" };
        writeln!(f, "  open    {scheme}://{host}:{}/", listen.port)?;
        if let Some(Fingerprints { certificate, public_key }) = self.fingerprints {
            writeln!(f, "  tls     certificate sha256 {certificate}")?;
            writeln!(f, "          public key  sha256 {public_key}")?;
        }
        writeln!(f, "  state   {} (config: {})", self.paths.state_dir.display(), self.paths.config_file.display())?;
        writeln!(f, "  room    {} connections; stop with Ctrl-C", self.descriptors.connections)
    }
}
