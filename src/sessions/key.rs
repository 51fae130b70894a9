//! Session keys, as the incumbent writes them: `agent:main:main`, `agent:main:telegram:group:-100123`. Pure.

use std::fmt;

use crate::config::flow::DmScope;

/// The agent whose sessions these are.
pub const MAIN_AGENT: &str = "main";
/// The key that stands for the main session.
pub const MAIN_KEY: &str = "agent:main:main";
/// Bytes of a key.
const MAX_KEY_BYTES: usize = 512;

/// A key in its full form: lower case, without white space around, beginning with `agent:`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(std::sync::Arc<str>);

impl SessionKey {
    /// Reads what a client calls a session: a full key, or its rest behind `agent:main:`. `None` when it can't be one.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_lowercase();
        let valid = !text.is_empty()
            && text.len() <= MAX_KEY_BYTES
            && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        if !valid {
            return None;
        }
        let full = match text.strip_prefix("agent:") {
            Some(rest) => {
                let (agent, rest) = rest.split_once(':')?;
                if agent.is_empty() || rest.is_empty() {
                    return None;
                }
                text
            }
            None => format!("agent:{MAIN_AGENT}:{text}"),
        };
        Some(Self(full.into()))
    }

    /// The main session.
    pub fn main() -> Self {
        Self(MAIN_KEY.into())
    }

    /// The session of a direct message.
    pub fn direct(scope: DmScope, channel: &str, account: &str, peer: &str) -> Self {
        let rest = match scope {
            DmScope::Main => return Self::main(),
            DmScope::PerPeer => format!("direct:{peer}"),
            DmScope::PerChannelPeer => format!("{channel}:direct:{peer}"),
            DmScope::PerAccountChannelPeer => format!("{channel}:{account}:direct:{peer}"),
        };
        Self(format!("agent:{MAIN_AGENT}:{rest}").to_lowercase().into())
    }

    /// The session of a group, or of a topic in it.
    pub fn group(channel: &str, group: &str, topic: Option<i64>) -> Self {
        let topic = topic.map(|topic| format!(":topic:{topic}")).unwrap_or_default();
        Self(format!("agent:{MAIN_AGENT}:{channel}:group:{group}{topic}").to_lowercase().into())
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Which agent's.
    pub fn agent(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or(MAIN_AGENT)
    }

    /// `direct`, `group`, or `global` of the wire.
    pub fn kind(&self) -> &'static str {
        if self.0.contains(":group:") || self.0.contains(":channel:") { "group" } else { "direct" }
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_form() {
        let parse = |text| SessionKey::parse(text).map(|key| key.to_string());
        for alias in ["main", " MAIN ", "agent:main:main", "Agent:Main:main"] {
            assert_eq!(parse(alias).as_deref(), Some(MAIN_KEY), "{alias}");
        }
        assert_eq!(parse("telegram:group:-1").as_deref(), Some("agent:main:telegram:group:-1"));
        for wrong in ["", " ", "agent:", "agent:main", "agent::x", "a b", "a\nb"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(parse(&"x".repeat(MAX_KEY_BYTES + 1)), None);
    }

    #[test]
    fn direct_messages_are_scoped_as_configured() {
        let key = |scope| SessionKey::direct(scope, "telegram", "default", "42").to_string();
        assert_eq!(key(DmScope::Main), MAIN_KEY);
        assert_eq!(key(DmScope::PerPeer), "agent:main:direct:42");
        assert_eq!(key(DmScope::PerChannelPeer), "agent:main:telegram:direct:42");
        assert_eq!(key(DmScope::PerAccountChannelPeer), "agent:main:telegram:default:direct:42");
        assert_eq!(SessionKey::group("telegram", "-1", Some(7)).as_str(), "agent:main:telegram:group:-1:topic:7");
        assert_eq!(SessionKey::group("telegram", "-1", None).kind(), "group");
    }
}
