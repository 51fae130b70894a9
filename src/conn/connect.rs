//! The parameters of `connect`: what a client says of itself, parsed strictly, believed nowhere.
//!
//! Shape: the wire's `ConnectParams`. Every text is bounded before it is kept. Keys that the schema does not
//! have are refused with their path, as the incumbent does.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::rpc::error::RpcError;

/// Characters of a short text (names, versions, ids).
const SHORT: usize = 256;
/// Characters of `pathEnv`, and of a token.
const LONG: usize = 16 * 1024;
/// Entries of a list (caps, commands, scopes).
const LIST: usize = 512;

/// Protocol versions this gateway speaks to operators.
pub const PROTOCOL: u32 = 4;
/// The older version that nodes and probes may still speak.
pub const PROTOCOL_PREVIOUS: u32 = 3;

/// What a client says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectParams {
    /// Lowest version of the protocol it speaks.
    pub min_protocol: u32,
    /// Highest version of the protocol it speaks.
    pub max_protocol: u32,
    /// The program.
    pub client: ClientParams,
    /// Role asked for; `operator` when absent.
    pub role: Option<String>,
    /// Scopes asked for; absent is not the same as none.
    pub scopes: Option<Vec<String>>,
    /// Capabilities it declares.
    #[serde(default)]
    pub caps: Vec<String>,
    /// Commands a node declares.
    #[serde(default)]
    pub commands: Vec<String>,
    /// Permissions a node declares.
    #[serde(default)]
    pub permissions: BTreeMap<String, bool>,
    /// Its `PATH`, for diagnosis.
    pub path_env: Option<String>,
    /// Proof of a device.
    pub device: Option<DeviceParams>,
    /// Credentials.
    #[serde(default)]
    pub auth: AuthParams,
    /// Language of the user.
    pub locale: Option<String>,
    /// The program in one line.
    pub user_agent: Option<String>,
    /// Details of a node's computer-use offer; carried, not interpreted.
    pub computer_use: Option<Box<RawValue>>,
    /// Details of a node's worker offer; carried, not interpreted.
    pub worker_runs: Option<Box<RawValue>>,
}

/// The program.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientParams {
    /// Kind of program, from the wire's closed list ([`CLIENT_IDS`]).
    pub id: String,
    /// Name for people.
    pub display_name: Option<String>,
    /// Its version.
    pub version: String,
    /// Its build.
    pub build_id: Option<String>,
    /// Operating system.
    pub platform: String,
    /// Kind of device.
    pub device_family: Option<String>,
    /// Hardware model.
    pub model_identifier: Option<String>,
    /// Time zone of the user.
    pub time_zone: Option<String>,
    /// What it is doing, from the wire's closed list ([`CLIENT_MODES`]).
    pub mode: String,
    /// Identifier of this run of the program.
    pub instance_id: Option<String>,
}

/// Proof of a device: a key and its signature over the challenge (contract 2.9).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceParams {
    /// SHA-256 of the raw public key, in hex.
    pub id: String,
    /// Ed25519 public key, in base64url.
    pub public_key: String,
    /// Signature, in base64url.
    pub signature: String,
    /// When it signed, in milliseconds since the epoch.
    pub signed_at: u64,
    /// The challenge it signed.
    #[serde(default)]
    pub nonce: String,
}

/// Credentials. Any may be absent; none is believed before it is checked.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthParams {
    /// Shared token, or a device token.
    pub token: Option<String>,
    /// Token of a setup code.
    pub bootstrap_token: Option<String>,
    /// Device token.
    pub device_token: Option<String>,
    /// Shared password.
    pub password: Option<String>,
    /// Of the incumbent's own processes; never accepted here.
    pub approval_runtime_token: Option<String>,
    /// Of the incumbent's own processes; never accepted here.
    pub agent_runtime_identity_token: Option<String>,
}

/// Says which credentials are there, and nothing of them.
impl std::fmt::Debug for AuthParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthParams")
            .field("token", &self.token.is_some())
            .field("bootstrap_token", &self.bootstrap_token.is_some())
            .field("device_token", &self.device_token.is_some())
            .field("password", &self.password.is_some())
            .finish_non_exhaustive()
    }
}

/// Programs that the wire knows.
pub const CLIENT_IDS: [&str; 17] = [
    "webchat-ui",
    "openclaw-control-ui",
    "openclaw-browser-copilot",
    "openclaw-tui",
    "webchat",
    "cli",
    "gateway-client",
    "openclaw-macos",
    "openclaw-linux",
    "openclaw-ios",
    "openclaw-watchos",
    "openclaw-android",
    "node-host",
    "openclaw-worker",
    "test",
    "fingerprint",
    "openclaw-probe",
];

/// What programs do that the wire knows.
pub const CLIENT_MODES: [&str; 8] = ["webchat", "cli", "ui", "backend", "node", "worker", "probe", "test"];

impl ConnectParams {
    /// Parses the raw JSON of `params`. The error names the path.
    pub fn parse(json: Option<&str>) -> Result<Self, RpcError> {
        let refuse = |what: String| RpcError::invalid(format!("invalid connect params: {what}"));
        let json = json.ok_or_else(|| refuse("must be object".to_owned()))?;
        let mut parser = serde_json::Deserializer::from_str(json);
        let params: Self = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
            let path = error.path().to_string();
            // serde_json adds "at line 1 column 7", which helps nobody who did not type the frame.
            let text = error.inner().to_string();
            let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
            refuse(if path == "." { what.to_owned() } else { format!("at {path}: {what}") })
        })?;
        parser.end().map_err(|_| refuse("something follows the object".to_owned()))?;
        params.check().map_err(|(path, what)| refuse(format!("at {path}: {what}")))?;
        Ok(params)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.min_protocol == 0 || self.min_protocol > self.max_protocol {
            return Err(("minProtocol", "must be at least 1 and not above maxProtocol".to_owned()));
        }
        let client = &self.client;
        one_of("client.id", &client.id, &CLIENT_IDS)?;
        one_of("client.mode", &client.mode, &CLIENT_MODES)?;
        text("client.version", &client.version, SHORT)?;
        text("client.platform", &client.platform, SHORT)?;
        for (path, value, most) in [
            ("client.displayName", &client.display_name, SHORT),
            ("client.buildId", &client.build_id, 96),
            ("client.deviceFamily", &client.device_family, SHORT),
            ("client.modelIdentifier", &client.model_identifier, SHORT),
            ("client.timeZone", &client.time_zone, 64),
            ("client.instanceId", &client.instance_id, SHORT),
            ("role", &self.role, SHORT),
        ] {
            if let Some(value) = value {
                text(path, value, most)?;
            }
        }
        for (path, value) in [("pathEnv", &self.path_env), ("locale", &self.locale), ("userAgent", &self.user_agent)] {
            if value.as_ref().is_some_and(|value| value.len() > LONG) {
                return Err((path, format!("must not be longer than {LONG} bytes")));
            }
        }
        for (path, list) in
            [("caps", Some(&self.caps)), ("commands", Some(&self.commands)), ("scopes", self.scopes.as_ref())]
        {
            let Some(list) = list else { continue };
            if list.len() > LIST {
                return Err((path, format!("must not have more than {LIST} entries")));
            }
            for value in list {
                text(path, value, SHORT)?;
            }
        }
        if self.permissions.len() > LIST {
            return Err(("permissions", format!("must not have more than {LIST} entries")));
        }
        for name in self.permissions.keys() {
            text("permissions", name, SHORT)?;
        }
        if let Some(device) = &self.device {
            text("device.id", &device.id, SHORT)?;
            text("device.publicKey", &device.public_key, SHORT * 2)?;
            text("device.signature", &device.signature, SHORT)?;
        }
        for (path, value) in [
            ("auth.token", &self.auth.token),
            ("auth.bootstrapToken", &self.auth.bootstrap_token),
            ("auth.deviceToken", &self.auth.device_token),
            ("auth.password", &self.auth.password),
        ] {
            if value.as_ref().is_some_and(|value| value.len() > LONG) {
                return Err((path, format!("must not be longer than {LONG} bytes")));
            }
        }
        Ok(())
    }

    /// The version to speak, if there is one. Operators speak version 4; nodes and probes may still speak 3.
    pub fn negotiate(&self) -> Option<u32> {
        let range = self.min_protocol..=self.max_protocol;
        let previous_may =
            (self.role.as_deref() == Some("node") && self.client.mode == "node") || self.client.mode == "probe";
        if range.contains(&PROTOCOL) {
            Some(PROTOCOL)
        } else if previous_may && range.contains(&PROTOCOL_PREVIOUS) {
            Some(PROTOCOL_PREVIOUS)
        } else {
            None
        }
    }
}

fn text(path: &'static str, value: &str, most: usize) -> Result<(), (&'static str, String)> {
    if value.is_empty() {
        return Err((path, "must not be empty".to_owned()));
    }
    if value.len() > most {
        return Err((path, format!("must not be longer than {most} bytes")));
    }
    Ok(())
}

fn one_of(path: &'static str, value: &str, allowed: &[&str]) -> Result<(), (&'static str, String)> {
    if allowed.contains(&value) { Ok(()) } else { Err((path, format!("must be one of {}", allowed.join(", ")))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn minimal() -> serde_json::Value {
        json!({"minProtocol":4,"maxProtocol":4,"client":{"id":"cli","version":"1","platform":"linux","mode":"cli"}})
    }

    fn parse(value: &serde_json::Value) -> Result<ConnectParams, String> {
        ConnectParams::parse(Some(&value.to_string())).map_err(|error| error.message.into_owned())
    }

    #[test]
    fn takes_what_the_schema_takes() {
        let params = parse(&minimal()).unwrap();
        assert!(params.scopes.is_none() && params.device.is_none());
    }

    #[test]
    fn names_the_path_of_what_is_wrong() {
        let wrong = |pointer: &str, value: serde_json::Value| {
            let mut params = minimal();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            params.pointer_mut(parent).unwrap()[key] = value;
            parse(&params).unwrap_err()
        };
        assert!(wrong("/client/id", json!("curl")).starts_with("invalid connect params: at client.id: must be one of"));
        assert!(wrong("/client/version", json!("")).contains("at client.version: must not be empty"));
        assert!(wrong("/client/version", json!(7)).contains("at client.version: invalid type"));
        assert!(wrong("/colour", json!("red")).contains("unknown field `colour`"));
        assert!(wrong("/minProtocol", json!(0)).contains("at minProtocol"));
        assert!(wrong("/caps", json!(vec!["x"; 600])).contains("at caps: must not have more than 512"));
        assert_eq!(ConnectParams::parse(None).unwrap_err().message, "invalid connect params: must be object");
    }

    #[test]
    fn speaks_the_previous_protocol_only_with_nodes_and_probes() {
        let negotiate = |role: &str, mode: &str, min: u32, max: u32| {
            let mut params = minimal();
            params["role"] = json!(role);
            params["client"]["mode"] = json!(mode);
            params["minProtocol"] = json!(min);
            params["maxProtocol"] = json!(max);
            parse(&params).unwrap().negotiate()
        };
        assert_eq!(negotiate("operator", "cli", 3, 3), None);
        assert_eq!(negotiate("operator", "cli", 3, 5), Some(4));
        assert_eq!(negotiate("operator", "probe", 3, 3), Some(3));
        assert_eq!(negotiate("node", "node", 3, 3), Some(3));
        assert_eq!(negotiate("node", "node", 3, 4), Some(4));
        assert_eq!(negotiate("node", "node", 5, 6), None);
    }

    #[test]
    fn never_prints_a_credential() {
        let mut params = minimal();
        params["auth"] = json!({"token":"s3cret","password":"s3cret"});
        assert!(!format!("{:?}", parse(&params).unwrap()).contains("s3cret"));
    }
}
