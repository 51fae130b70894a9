//! What goes over the wire: the upgrade, `connect`, calls as templates, and a reader of answers that looks at
//! the few bytes it needs.
//!
//! Knows no sockets. Start with [`Template`] and [`Heard::of`].

use clawgate::client::error::ConnectFailure;
use clawgate::client::{Auth, ConnectOptions, GatewayUrl, Program};
use clawgate::rpc::scope::Scope;
use clawgate::secret::Secret;
use clawgate::ws::codec;
use clawgate::ws::message::Opcode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::identity::Identity;

/// Bytes a message of the gateway may have: what `policy.maxPayload` says by default.
pub const MAX_MESSAGE_BYTES: usize = 25 * 1024 * 1024;

/// The scopes of an operator that measures: all that any scenario calls for.
const SCOPES: [Scope; 5] = [Scope::Admin, Scope::Read, Scope::Write, Scope::Approvals, Scope::Pairing];

/// The upgrade request. The key is that of RFC 6455, section 1.3: no server answers by its value, and a browser
/// is nowhere near.
pub fn upgrade(host: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// What a client proves to be let in.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Shared token.
    pub token: Option<String>,
    /// Shared password.
    pub password: Option<String>,
}

/// Who a connection says it is.
#[derive(Debug)]
pub enum Who {
    /// A control client without a device, as the incumbent's own backend calls are, with all of [`SCOPES`]. The
    /// text names the run of the program: connections that share it are one row of the presence list.
    Operator(String),
    /// A node with a key of its own that offers one command.
    Node(Identity),
}

/// The command that nodes of this harness offer: harmless, and allowed by default on every desktop platform.
pub const COMMAND: &str = "system.which";

impl Who {
    /// The `connect` request that answers `nonce`: what every client of the library sends.
    pub fn connect(&self, credentials: &Credentials, nonce: &str) -> Result<String, ConnectFailure> {
        // Where it goes is the engine's business.
        let url = GatewayUrl::loopback(0);
        let mut options = match self {
            Self::Operator(instance) => {
                let mut options = ConnectOptions::operator(url, SCOPES.into_iter().collect());
                options.program = Program::new("gateway-client", "backend");
                options.program.instance_id.clone_from(instance);
                options
            }
            Self::Node(identity) => {
                let mut options = ConnectOptions::node(url, identity.key(), vec![COMMAND.to_owned()]);
                options.caps = vec!["system".to_owned()];
                options
            }
        };
        options.program.display_name = Some("loadtest".to_owned());
        let secret = |text: &Option<String>| text.as_deref().map(Secret::new);
        options.auth =
            Auth { token: secret(&credentials.token), password: secret(&credentials.password), ..Auth::default() };
        options.request(nonce)
    }
}

/// Digits of a call's identifier.
pub const ID_DIGITS: usize = 16;

/// Stands in a template's text where the identifier goes.
pub const ID_MARK: &str = "@@@@@@@@@@@@@@@@";

/// A request that differs from call to call in its identifier alone, wherever [`ID_MARK`] stood in its text.
#[derive(Clone, Debug)]
pub struct Template {
    text: Vec<u8>,
    marks: Vec<usize>,
}

impl Template {
    /// Takes the marked text of a request.
    pub fn new(text: String) -> Self {
        let marks = text.match_indices(ID_MARK).map(|(at, _)| at).collect();
        Self { text: text.into_bytes(), marks }
    }

    /// A call of `method`; without parameters there is no `params` key.
    pub fn call(method: &str, params: Option<&Value>) -> Self {
        let params = params.map(|params| format!(r#","params":{params}"#)).unwrap_or_default();
        Self::new(format!(r#"{{"type":"req","id":"{ID_MARK}","method":{}{params}}}"#, json!(method)))
    }

    /// Appends the frame of the call `id`.
    pub fn write(&mut self, id: u64, mask: [u8; 4], out: &mut Vec<u8>) {
        let digits = hex16(id);
        for at in &self.marks {
            self.text[*at..at + ID_DIGITS].copy_from_slice(&digits);
        }
        codec::frame(Opcode::Text, &self.text, Some(mask), out);
    }

    /// Bytes of the frame.
    pub fn frame_bytes(&self) -> usize {
        masked_frame_bytes(self.text.len())
    }
}

/// Bytes of a client's frame with `text_bytes` of text.
pub fn masked_frame_bytes(text_bytes: usize) -> usize {
    codec::head(Opcode::Text, text_bytes, Some([0; 4])).len() + text_bytes
}

/// Bytes of a gateway's frame with `text_bytes` of text.
pub fn received_frame_bytes(text_bytes: usize) -> usize {
    codec::head(Opcode::Text, text_bytes, None).len() + text_bytes
}

/// Sixteen hexadecimal digits.
fn hex16(number: u64) -> [u8; ID_DIGITS] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|at| DIGITS[(number >> (60 - 4 * at) & 15) as usize])
}

/// The number that sixteen hexadecimal digits say; `None` for anything else.
fn parse_hex16(digits: &[u8]) -> Option<u64> {
    let digits: &[u8; ID_DIGITS] = digits.try_into().ok()?;
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

/// A message of the gateway, as far as a load needs to know it.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// The answer to the call with this identifier.
    Answer {
        /// The call.
        id: u64,
        /// Whether the call succeeded.
        ok: bool,
    },
    /// An event, its name and what follows the name.
    Event {
        /// Its name.
        name: &'a str,
        /// The rest of the message: its payload first, where the gateway writes in the usual order.
        rest: &'a str,
    },
    /// Neither: an answer to a call that no template made.
    Other,
}

impl<'a> Heard<'a> {
    /// Reads `text`. The order of keys that gateways use is taken apart without parsing; any other order too, by
    /// parsing.
    #[inline]
    pub fn of(text: &'a str) -> Self {
        Self::usual(text).unwrap_or_else(|| Self::unusual(text))
    }

    #[inline]
    fn usual(text: &'a str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix(r#"{"type":"res","id":""#) {
            let (id, rest) = rest.as_bytes().split_at_checked(ID_DIGITS)?;
            let id = parse_hex16(id)?;
            return match rest {
                [b'"', b',', b'"', b'o', b'k', b'"', b':', value, ..] => Some(Self::Answer { id, ok: *value == b't' }),
                _ => None,
            };
        }
        let rest = text.strip_prefix(r#"{"type":"event","event":""#)?;
        let (name, rest) = rest.split_once('"')?;
        Some(Self::Event { name, rest })
    }

    #[cold]
    fn unusual(text: &'a str) -> Self {
        #[derive(Deserialize)]
        struct Frame<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            id: Option<&'a str>,
            ok: Option<bool>,
            event: Option<&'a str>,
        }
        match serde_json::from_str(text) {
            Ok(Frame { kind: "res", id: Some(id), ok: Some(ok), .. }) => match parse_hex16(id.as_bytes()) {
                Some(id) => Self::Answer { id, ok },
                None => Self::Other,
            },
            Ok(Frame { kind: "event", event: Some(name), .. }) => Self::Event { name, rest: text },
            _ => Self::Other,
        }
    }
}

/// The value of the first key `key` in `json` whose value is a string without escapes. For values of known
/// shape: nonces, identifiers.
pub fn string_value<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = json;
    loop {
        let (_, after) = rest.split_once('"')?;
        let Some(value) = after.strip_prefix(key).and_then(|it| it.strip_prefix("\":\"")) else {
            rest = after;
            continue;
        };
        return value.split_once('"').map(|(value, _)| value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_carries_its_identifier_wherever_it_is_marked() {
        let mut template = Template::new(format!(r#"{{"id":"{ID_MARK}","key":"{ID_MARK}"}}"#));
        let mut out = Vec::new();
        template.write(0x0123_4567_89ab_cdef, [0; 4], &mut out);
        assert_eq!(&out[6..], br#"{"id":"0123456789abcdef","key":"0123456789abcdef"}"#);
        assert_eq!(out.len(), template.frame_bytes());
    }

    #[test]
    fn answers_are_understood_in_any_order_of_keys() {
        let usual = r#"{"type":"res","id":"00000000000000ff","ok":true,"payload":{}}"#;
        let unusual = r#"{"ok":false,"payload":{},"id":"00000000000000ff","type":"res"}"#;
        assert_eq!(Heard::of(usual), Heard::Answer { id: 255, ok: true });
        assert_eq!(Heard::of(unusual), Heard::Answer { id: 255, ok: false });
        assert_eq!(Heard::of(r#"{"type":"res","id":"setup","ok":true}"#), Heard::Other);
    }

    #[test]
    fn events_are_understood_in_any_order_of_keys() {
        let Heard::Event { name, rest } = Heard::of(r#"{"type":"event","event":"tick","payload":{"ts":1}}"#) else {
            panic!("an event")
        };
        assert_eq!((name, rest), ("tick", r#","payload":{"ts":1}}"#));
        let Heard::Event { name, .. } = Heard::of(r#"{"event":"tick","type":"event"}"#) else { panic!("an event") };
        assert_eq!(name, "tick");
    }

    #[test]
    fn a_string_is_found_by_its_key() {
        let json = r#"{"nonces":"no","x":{"nonce":"yes"}}"#;
        assert_eq!(string_value(json, "nonce"), Some("yes"));
        assert_eq!(string_value(json, "none"), None);
    }
}
