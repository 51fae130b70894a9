//! What a start of the gateway would say to a configuration that is valid in itself: the rules of
//! [`crate::config::resolve`], and what the start looks at on this machine.

use crate::config::load::host_facts;
use crate::config::model::Mode;
use crate::config::resolve::{self, Flags, Refusal};
use crate::config::secret_ref::{ExecProvider, FileProvider, ProviderAccess};
use crate::config::{Config, Environment, Paths, Profile};
use crate::http::files::Files;
use crate::net::tls::certificate;
use crate::server::tls_files;

/// The key of [`page`].
pub(super) const PAGE_KEY: &str = "gateway.controlUi.root";

/// No SecretRef is followed.
struct NoSecrets;

impl ProviderAccess for NoSecrets {
    fn read_file(&self, _: &FileProvider) -> Result<String, String> {
        Err("it was not looked at".to_owned())
    }

    fn run(&self, _: &ExecProvider, _: &str) -> Result<String, String> {
        Err("it was not looked at".to_owned())
    }
}

/// Why a gateway would not start, with this environment and without flags; `None` when it would, and on a machine that is a
/// client of another gateway. Without `access` no SecretRef is followed, and what one of them leads to is not judged.
pub(super) fn start(
    config: &Config,
    environment: &Environment,
    paths: &Paths,
    access: Option<&dyn ProviderAccess>,
) -> Option<String> {
    if config.gateway.mode == Some(Mode::Remote) {
        return None;
    }
    let judged = resolve::start(
        config,
        environment,
        &Flags::default(),
        &host_facts(),
        Profile::Default.default_port(),
        access.unwrap_or(&NoSecrets),
    );
    match judged.and_then(|_| resolve::handshake_timeout(config, environment)) {
        Err(Refusal::Unresolved { .. }) if access.is_none() => None,
        Err(refusal) => Some(refusal.to_string()),
        Ok(_) => certificate(config, paths),
    }
}

/// What is wrong with the certificate. One that is made at the first start is not there before.
fn certificate(config: &Config, paths: &Paths) -> Option<String> {
    let settings = &config.gateway.tls;
    let files = tls_files(settings, paths);
    if !settings.enabled || (settings.auto_generate && !files.cert.exists() && !files.key.exists()) {
        return None;
    }
    certificate::fingerprints(&files.cert).err().map(|error| error.to_string())
}

/// Why there would be no Control UI although a folder for it is set, as the rest of a sentence that begins with the key. The
/// gateway starts without it.
pub(super) fn page(config: &Config) -> Option<String> {
    let ui = &config.gateway.control_ui;
    let root = ui.root.as_ref().filter(|_| ui.enabled)?;
    let error = Files::open(root, &ui.base_path).err()?;
    Some(format!("is {}, which cannot be served, so there would be no Control UI: {error}", root.display()))
}
