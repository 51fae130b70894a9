//! Who this device is to gateways: an Ed25519 key, and the tokens gateways gave it (contract 2.9).
//!
//! Owns two files in the state directory's `identity` folder, both mode 0600:
//!
//! * `device.json`, the key, in the incumbent's form, so that a device stays the same device whichever of
//!   the two programs runs;
//! * `device-tokens.json`, the tokens, by gateway and role: a token goes back to the gateway it came from
//!   and to no other.
//!
//! What is signed, and how a device's id follows from its key, is in [`crate::auth::device`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::url_policy::GatewayUrl;
use crate::auth::device::{DeviceId, DeviceKey};
use crate::clock::UnixMs;
use crate::id::{self, base64_url};
use crate::private_file::{Existing, lock_folder, write_private};
use crate::rpc::scope::Role;
use crate::secret::Secret;

/// What precedes the 32 bytes of an Ed25519 seed in PKCS #8 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// What precedes the 32 bytes of an Ed25519 public key in `SubjectPublicKeyInfo` (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a file of the identity cannot be used.
#[derive(Debug, Error)]
#[error("the device identity in {} cannot be used: {why}", .path.display())]
pub struct IdentityError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

impl IdentityError {
    fn new(path: &Path, why: impl ToString) -> Self {
        Self { path: path.to_path_buf(), why: why.to_string() }
    }
}

/// The key of this device.
pub struct Identity {
    key: Ed25519KeyPair,
    id: DeviceId,
}

/// `device.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyFile {
    version: u32,
    device_id: String,
    public_key_pem: String,
    private_key_pem: Zeroizing<String>,
    created_at_ms: UnixMs,
}

impl Identity {
    /// The identity in `state_dir`, made if there is none.
    ///
    /// # Errors
    /// The file is there and cannot be read or understood, or cannot be made. An existing file is never
    /// replaced: gateways know this device by it.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, IdentityError> {
        let path = state_dir.join("identity").join("device.json");
        for _ in 0..2 {
            match fs::read(&path) {
                Ok(text) => return Self::parse(&Zeroizing::new(text)).map_err(|why| IdentityError::new(&path, why)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(IdentityError::new(&path, error)),
            }
            let (identity, text) = Self::generate();
            match write_private(&path, text.as_bytes(), Existing::Keep) {
                Ok(()) => return Ok(identity),
                // Another process was faster: its key is the one.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(IdentityError::new(&path, error)),
            }
        }
        Err(IdentityError::new(&path, "it comes and goes"))
    }

    /// The identity in `state_dir`, if there is one.
    ///
    /// # Errors
    /// The file is there and cannot be read or understood.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = state_dir.join("identity").join("device.json");
        match fs::read(&path) {
            Ok(text) => Self::parse(&Zeroizing::new(text)).map(Some).map_err(|why| IdentityError::new(&path, why)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(IdentityError::new(&path, error)),
        }
    }

    /// A new identity that is kept nowhere: for tests and load.
    pub fn ephemeral() -> Self {
        Self::from_seed(&id::random_bytes())
    }

    fn generate() -> (Self, Zeroizing<String>) {
        let seed = Zeroizing::new(id::random_bytes::<32>());
        let identity = Self::from_seed(&seed);
        let pem = |label: &str, der: &[u8]| {
            format!("-----BEGIN {label} KEY-----\n{}\n-----END {label} KEY-----\n", STANDARD.encode(der))
        };
        let file = KeyFile {
            version: 1,
            device_id: identity.id.to_string(),
            public_key_pem: pem("PUBLIC", &[&SPKI_PREFIX[..], identity.key.public_key().as_ref()].concat()),
            private_key_pem: Zeroizing::new(pem("PRIVATE", &Zeroizing::new([&PKCS8_PREFIX[..], &seed[..]].concat()))),
            created_at_ms: UnixMs::now(),
        };
        (identity, Zeroizing::new(pretty(&file)))
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let file: KeyFile = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let seed = seed(&file.private_key_pem).ok_or("privateKeyPem is not an Ed25519 key in PKCS #8")?;
        let identity = Self::from_seed(&seed);
        if file.device_id != identity.id.to_string() {
            return Err("deviceId does not belong to the key".into());
        }
        Ok(identity)
    }

    /// The identity that follows from `seed`, whoever computes it: for devices that come back without a file.
    #[expect(clippy::expect_used, reason = "32 bytes are always a seed, and no seed has a public key of small order")]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = Ed25519KeyPair::from_seed_unchecked(seed).expect("32 bytes are a seed");
        let public = key.public_key().as_ref().try_into().ok().and_then(DeviceKey::from_bytes);
        Self { id: public.expect("a seed gives a proper key").device_id(), key }
    }

    /// The name that gateways know this device by.
    pub const fn id(&self) -> DeviceId {
        self.id
    }

    /// The public key in the wire's form.
    pub fn public_key(&self) -> String {
        base64_url(self.key.public_key().as_ref())
    }

    /// The signature of `payload` in the wire's form.
    pub fn sign(&self, payload: &str) -> String {
        base64_url(self.key.sign(payload.as_bytes()).as_ref())
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

/// The seed in a PKCS #8 PEM, with or without the public key behind it (version 1 and 2 of the form).
fn seed(pem: &str) -> Option<Zeroizing<[u8; 32]>> {
    let body = pem.trim().strip_prefix("-----BEGIN PRIVATE KEY-----")?.strip_suffix("-----END PRIVATE KEY-----")?;
    let text = Zeroizing::new(body.split_ascii_whitespace().collect::<String>());
    let der = Zeroizing::new(STANDARD.decode(text.as_bytes()).ok()?);
    // Length and version differ between the two; what lies between them and the seed does not.
    let seed = der.get(16..48).filter(|_| der[5..16] == PKCS8_PREFIX[5..])?;
    Some(Zeroizing::new(seed.try_into().ok()?))
}

/// The tokens that gateways gave this device.
#[derive(Debug)]
pub struct DeviceTokens {
    path: PathBuf,
    file: TokenFile,
}

/// `device-tokens.json`: gateway -> role -> token.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenFile {
    version: u32,
    device_id: String,
    gateways: BTreeMap<String, BTreeMap<String, StoredToken>>,
}

/// One token, and what it is good for.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredToken {
    token: Zeroizing<String>,
    scopes: Vec<String>,
    updated_at_ms: UnixMs,
}

impl std::fmt::Debug for StoredToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredToken").field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

impl DeviceTokens {
    /// The tokens of `identity` in `state_dir`. A file that is missing, broken, or of another device counts
    /// as empty: a gateway gives a new token to a device it knows.
    pub fn load(state_dir: &Path, identity: &Identity) -> Self {
        let path = state_dir.join("identity").join("device-tokens.json");
        let file = TokenFile::read(&path, &identity.id().to_string());
        Self { path, file }
    }

    /// The token for `role` on the gateway at `url`, as it was when the file was last looked at.
    pub fn get(&self, url: &GatewayUrl, role: Role) -> Option<Secret> {
        self.file.get(url, role).map(|stored| Secret::new(stored.token.as_str()))
    }

    /// Keeps a token that the gateway at `url` gave, beside whatever is in the file by now.
    ///
    /// # Errors
    /// The file cannot be written. The token is good all the same.
    pub fn put(&mut self, url: &GatewayUrl, role: Role, token: &Secret, scopes: &[String]) -> io::Result<()> {
        self.change(|file| {
            let roles = file.gateways.entry(url.to_string()).or_default();
            let same = |stored: &StoredToken| *stored.token == *token.expose() && stored.scopes == scopes;
            if roles.get(role.as_str()).is_some_and(same) {
                return false;
            }
            let token = Zeroizing::new(token.expose().to_owned());
            let stored = StoredToken { token, scopes: scopes.to_vec(), updated_at_ms: UnixMs::now() };
            roles.insert(role.as_str().to_owned(), stored);
            true
        })
    }

    /// Forgets a token that the gateway at `url` takes no more. One that another program has put there since stays.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn forget(&mut self, url: &GatewayUrl, role: Role) -> io::Result<()> {
        let Some(refused) = self.file.get(url, role).map(|stored| stored.token.clone()) else { return Ok(()) };
        self.change(|file| {
            if file.get(url, role).is_none_or(|stored| stored.token != refused) {
                return false;
            }
            file.gateways.get_mut(&url.to_string()).is_some_and(|roles| roles.remove(role.as_str()).is_some())
        })
    }

    /// Changes the file as it is now: other programs of this device write it, too. `change` says whether it did.
    fn change(&mut self, change: impl FnOnce(&mut TokenFile) -> bool) -> io::Result<()> {
        let _alone = lock_folder(self.path.parent().unwrap_or(Path::new(".")))?;
        self.file = TokenFile::read(&self.path, &self.file.device_id);
        if change(&mut self.file) {
            write_private(&self.path, Zeroizing::new(pretty(&self.file)).as_bytes(), Existing::Replace)?;
        }
        Ok(())
    }
}

impl TokenFile {
    fn read(path: &Path, device_id: &str) -> Self {
        fs::read(path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Self>(&Zeroizing::new(text)).ok())
            .filter(|file| file.version == 1 && file.device_id == device_id)
            .unwrap_or_else(|| Self { version: 1, device_id: device_id.to_owned(), gateways: BTreeMap::new() })
    }

    fn get(&self, url: &GatewayUrl, role: Role) -> Option<&StoredToken> {
        self.gateways.get(&url.to_string())?.get(role.as_str())
    }
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn is_the_same_device_the_next_time() {
        let state = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(&state.path().join("new")).unwrap();
        let second = Identity::load_or_create(&state.path().join("new")).unwrap();
        assert_eq!((first.id(), first.sign("x")), (second.id(), second.sign("x")));
        let folder = state.path().join("new/identity");
        assert_eq!((mode(&folder), mode(&folder.join("device.json"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no draft stays");
    }

    #[test]
    fn reads_the_incumbents_file() {
        let text = r#"{"version":1,"deviceId":"27a40ab980968bcb0eecf1f3bf1e916605a81d41b6a766a2f5e843785b65b264",
            "publicKeyPem":"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAKVxnYlxHdbIbHzDrsMlnBfOhCptUT2LMya7jYk5lPRI=\n-----END PUBLIC KEY-----\n",
            "privateKeyPem":"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIBAs0IzNnPtvbyEFkADoca3/G/S6VIc8F8B+5D7bHwB8\n-----END PRIVATE KEY-----\n",
            "createdAtMs":1795351232798}"#;
        let identity = Identity::parse(text.as_bytes()).unwrap();
        assert_eq!(identity.public_key(), "KVxnYlxHdbIbHzDrsMlnBfOhCptUT2LMya7jYk5lPRI");
        assert!(Identity::parse(text.replace("27a4", "27a5").as_bytes()).unwrap_err().contains("deviceId"));
        assert!(Identity::parse(text.replace("MC4C", "MC4D").as_bytes()).is_ok(), "the version is not looked at");
        assert!(Identity::parse(text.replace("MC4CAQAwBQYDK2Vw", "MC4CAQAwBQYDK2Vx").as_bytes()).is_err());
    }

    #[test]
    fn never_replaces_a_key_it_cannot_read() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("identity/device.json");
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(Identity::load_or_create(state.path()).unwrap_err().to_string().contains("device.json"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{");
    }

    #[test]
    fn a_token_goes_back_to_its_own_gateway_only() {
        let state = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(state.path()).unwrap();
        let (a, b) = (GatewayUrl::loopback(1), GatewayUrl::loopback(2));
        let mut tokens = DeviceTokens::load(state.path(), &identity);
        tokens.put(&a, Role::Operator, &Secret::new("t"), &["operator.read".into()]).unwrap();
        let tokens = DeviceTokens::load(state.path(), &identity);
        assert!(tokens.get(&a, Role::Operator).unwrap().matches("t"));
        assert!(tokens.get(&a, Role::Node).is_none() && tokens.get(&b, Role::Operator).is_none());
        assert_eq!(mode(&state.path().join("identity/device-tokens.json")), 0o600);
        assert!(!format!("{tokens:?}").contains("\"t\""));
        assert!(DeviceTokens::load(state.path(), &Identity::ephemeral()).get(&a, Role::Operator).is_none());
    }

    #[test]
    fn what_another_program_has_kept_or_forgotten_meanwhile_stays_so() {
        let state = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(state.path()).unwrap();
        let (a, b, c) = (GatewayUrl::loopback(1), GatewayUrl::loopback(2), GatewayUrl::loopback(3));
        let load = || DeviceTokens::load(state.path(), &identity);
        let token = |text: &str| Secret::new(text);
        load().put(&a, Role::Node, &token("old"), &[]).unwrap();
        load().put(&b, Role::Node, &token("b"), &[]).unwrap();
        // One that runs for weeks, and one that comes and goes.
        let (mut old, mut refused, mut other) = (load(), load(), load());
        other.put(&c, Role::Operator, &token("c"), &[]).unwrap();
        other.put(&a, Role::Node, &token("new"), &[]).unwrap();
        other.forget(&b, Role::Node).unwrap();
        old.put(&a, Role::Operator, &token("o"), &[]).unwrap();
        assert!(load().get(&c, Role::Operator).unwrap().matches("c"));
        assert!(load().get(&b, Role::Node).is_none(), "forgotten");
        // What a gateway has refused is the token that this one knew, not the one that came since.
        refused.forget(&a, Role::Node).unwrap();
        assert!(load().get(&a, Role::Node).unwrap().matches("new"));
    }

    #[test]
    fn two_at_a_time_lose_no_token() {
        let state = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(state.path()).unwrap();
        std::thread::scope(|scope| {
            for port in 1..=8 {
                let (state, identity) = (state.path(), &identity);
                scope.spawn(move || {
                    let url = GatewayUrl::loopback(port);
                    DeviceTokens::load(state, identity).put(&url, Role::Node, &Secret::new("t"), &[]).unwrap();
                });
            }
        });
        let tokens = DeviceTokens::load(state.path(), &identity);
        let kept = (1..=8).filter(|port| tokens.get(&GatewayUrl::loopback(*port), Role::Node).is_some()).count();
        assert_eq!(kept, 8);
    }
}
