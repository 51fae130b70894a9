//! What an update of the Bot API means: whose message it is, and what is to become of it. Pure.
//!
//! Start at [`decide`]. Everything in an update was written by strangers: lengths are bounded, kinds are checked, and
//! what is not understood is ignored, never an error that would stop the reading.

use serde::Deserialize;

use crate::config::flow::{DmPolicy, DmScope, Group, GroupPolicy, Telegram};
use crate::sessions::key::SessionKey;

/// Characters of a message that are taken.
const MAX_CHARS: usize = 16 * 1024;
/// Characters of the name of a file.
const MAX_FILE_ID_CHARS: usize = 256;
/// Characters of a name.
const MAX_NAME_CHARS: usize = 64;

/// One update; only what is used here.
#[derive(Clone, Debug, Deserialize)]
pub struct Update {
    /// Its number.
    pub update_id: i64,
    /// A new message.
    #[serde(default)]
    pub message: Option<Message>,
}

/// A message of the Bot API.
#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    /// Its number in the chat.
    pub message_id: i64,
    /// Who wrote it.
    #[serde(default)]
    pub from: Option<User>,
    /// Where.
    pub chat: Chat,
    /// Its text.
    #[serde(default)]
    pub text: Option<String>,
    /// The text under a picture.
    #[serde(default)]
    pub caption: Option<String>,
    /// A picture, in several sizes.
    #[serde(default)]
    pub photo: Vec<Photo>,
    /// A file; only one that is a picture is taken.
    #[serde(default)]
    pub document: Option<Document>,
    /// The topic of a forum.
    #[serde(default)]
    pub message_thread_id: Option<i64>,
    /// Whether that is a topic.
    #[serde(default)]
    pub is_topic_message: bool,
    /// Which message it answers.
    #[serde(default)]
    pub reply_to_message: Option<Box<Answered>>,
}

/// A picture in one of its sizes.
#[derive(Clone, Debug, Deserialize)]
pub struct Photo {
    /// What to ask the Bot API for.
    pub file_id: String,
    /// Pixels.
    #[serde(default)]
    pub width: i64,
    /// Pixels.
    #[serde(default)]
    pub height: i64,
    /// Bytes, where that is known.
    #[serde(default)]
    pub file_size: Option<u64>,
}

/// A file.
#[derive(Clone, Debug, Deserialize)]
pub struct Document {
    /// What to ask the Bot API for.
    pub file_id: String,
    /// As its sender says.
    #[serde(default)]
    pub mime_type: Option<String>,
}

/// The message that another one answers.
#[derive(Clone, Debug, Deserialize)]
pub struct Answered {
    /// Who wrote it.
    #[serde(default)]
    pub from: Option<User>,
}

/// A person or a bot.
#[derive(Clone, Debug, Deserialize)]
pub struct User {
    /// Its number.
    pub id: i64,
    /// Whether it is a bot.
    #[serde(default)]
    pub is_bot: bool,
    /// As the person calls itself.
    #[serde(default)]
    pub first_name: String,
    /// Without `@`.
    #[serde(default)]
    pub username: Option<String>,
}

/// A chat.
#[derive(Clone, Debug, Deserialize)]
pub struct Chat {
    /// Its number; negative for groups.
    pub id: i64,
    /// `private`, `group`, `supergroup`, `channel`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of a group.
    #[serde(default)]
    pub title: Option<String>,
}

/// Who the bot is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bot {
    /// Its number.
    pub id: i64,
    /// Without `@`.
    pub username: String,
}

/// Where the answer to a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The chat.
    pub chat: String,
    /// The topic.
    pub thread: Option<i64>,
    /// The message, in groups.
    pub reply_to: Option<i64>,
    /// Which message it was.
    pub message_id: i64,
}

/// What is to become of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing; why, for the log.
    Ignore(&'static str),
    /// Its author is to be told how to be let in.
    Pair {
        /// Who.
        sender: String,
        /// A name for people.
        label: String,
        /// Where to answer.
        place: Place,
    },
    /// The session begins anew.
    Reset(SessionKey, Place),
    /// What the session does stops.
    Stop(SessionKey, Place),
    /// Its author greets the bot.
    Greet(Place),
    /// The agent is asked.
    Ask {
        /// In which session.
        key: SessionKey,
        /// What; empty where there is a picture alone.
        text: String,
        /// The picture that came with it: what to ask the Bot API for.
        picture: Option<String>,
        /// A name of the session for people.
        label: String,
        /// Who asks, for the model, in a group.
        sender: Option<String>,
        /// Where the answer goes.
        place: Place,
    },
}

/// Decides about a message. `approved` says whom an operator has let in.
pub fn decide(
    update: &Update,
    settings: &Telegram,
    dm_scope: DmScope,
    bot: &Bot,
    approved: impl FnOnce(&str) -> bool,
) -> Decision {
    let Some(message) = &update.message else { return Decision::Ignore("not a new message") };
    let Some(from) = message.from.as_ref().filter(|from| !from.is_bot) else {
        return Decision::Ignore("not from a person");
    };
    let sender = from.id.to_string();
    let text =
        message.text.as_deref().filter(|text| !text.is_empty()).or(message.caption.as_deref()).unwrap_or_default();
    let text: String = text.chars().filter(|c| *c != '\0').take(MAX_CHARS).collect();
    let label = name(from);
    match message.chat.kind.as_str() {
        "private" => {
            let place = Place {
                chat: message.chat.id.to_string(),
                thread: None,
                reply_to: None,
                message_id: message.message_id,
            };
            let listed = covers(&settings.allow_from, &sender);
            match settings.dm_policy {
                DmPolicy::Disabled => return Decision::Ignore("direct messages are disabled"),
                DmPolicy::Allowlist | DmPolicy::Open if !listed => return Decision::Ignore("not in allowFrom"),
                DmPolicy::Pairing if !listed && !approved(&sender) => return Decision::Pair { sender, label, place },
                _ => {}
            }
            let key = SessionKey::direct(dm_scope, "telegram", "default", &sender);
            ask(key, text.trim(), picture(message, settings.media_max_bytes), label, None, place)
        }
        "group" | "supergroup" => {
            let group = match group(settings, message.chat.id) {
                Ok(group) => group,
                Err(why) => return Decision::Ignore(why),
            };
            let senders = [&group.allow_from, &settings.group_allow_from, &settings.allow_from];
            let senders = senders.into_iter().find(|list| !list.is_empty()).unwrap_or(&settings.allow_from);
            match group.group_policy.unwrap_or(settings.group_policy) {
                GroupPolicy::Disabled => return Decision::Ignore("groups are disabled"),
                // Whom an operator has let in by pairing was let in for direct messages alone.
                GroupPolicy::Allowlist if !covers(senders, &sender) => {
                    return Decision::Ignore("not in groupAllowFrom");
                }
                _ => {}
            }
            let answers_bot = message
                .reply_to_message
                .as_ref()
                .is_some_and(|to| to.from.as_ref().is_some_and(|from| from.id == bot.id));
            let (text, mentioned) = without_mention(&text, &bot.username);
            // `/stop@otherbot` is for another bot; what was for this one has lost its mention.
            let command = text.split_whitespace().next().unwrap_or_default();
            if command.starts_with('/') && command.contains('@') {
                return Decision::Ignore("a command for another bot");
            }
            if group.require_mention && !mentioned && !answers_bot {
                return Decision::Ignore("the bot is not mentioned");
            }
            let thread = message.message_thread_id.filter(|_| message.is_topic_message);
            let chat = message.chat.id.to_string();
            let key = SessionKey::group("telegram", &chat, thread);
            let title = message.chat.title.as_deref().unwrap_or(&chat);
            let title = title.chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect();
            let place = Place { chat, thread, reply_to: Some(message.message_id), message_id: message.message_id };
            ask(key, text.trim(), picture(message, settings.media_max_bytes), title, Some(label), place)
        }
        _ => Decision::Ignore("not a chat of people"),
    }
}

fn ask(
    key: SessionKey,
    text: &str,
    picture: Option<String>,
    label: String,
    sender: Option<String>,
    place: Place,
) -> Decision {
    // `/new@bot` is how groups write it.
    let command = text.split_whitespace().next().unwrap_or_default();
    match command.split('@').next().unwrap_or_default() {
        "" if picture.is_none() => Decision::Ignore("nothing to read in it"),
        "/start" => Decision::Greet(place),
        "/new" | "/reset" => Decision::Reset(key, place),
        "/stop" => Decision::Stop(key, place),
        _ => Decision::Ask { key, text: text.to_owned(), picture, label, sender, place },
    }
}

/// The picture of a message: the largest that is not too large, or else the smallest, of which it is said that it is.
fn picture(message: &Message, max_bytes: u64) -> Option<String> {
    let pixels = |photo: &&Photo| photo.width.saturating_mul(photo.height);
    let fits = |photo: &&Photo| photo.file_size.is_none_or(|bytes| bytes <= max_bytes);
    let photo =
        message.photo.iter().filter(fits).max_by_key(pixels).or_else(|| message.photo.iter().min_by_key(pixels));
    let is_picture =
        |document: &&Document| document.mime_type.as_deref().is_some_and(|kind| kind.starts_with("image/"));
    let document = message.document.as_ref().filter(is_picture);
    let id = photo.map(|photo| &photo.file_id).or_else(|| document.map(|document| &document.file_id))?;
    let valid = !id.is_empty()
        && id.len() <= MAX_FILE_ID_CHARS
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    valid.then(|| id.clone())
}

fn covers(list: &[String], sender: &str) -> bool {
    list.iter().any(|id| id == "*" || id == sender)
}

/// The rules of a group, or why it has none.
fn group(settings: &Telegram, chat: i64) -> Result<Group, &'static str> {
    let found = match &settings.groups {
        Some(groups) => groups.get(&chat.to_string()).or_else(|| groups.get("*")).cloned(),
        None if settings.group_policy == GroupPolicy::Open => Some(Group::default()),
        None => None,
    };
    found.filter(|group| group.enabled).ok_or("the group is not in channels.telegram.groups")
}

/// The text without mentions of the bot, and whether there were any.
fn without_mention(text: &str, username: &str) -> (String, bool) {
    if username.is_empty() {
        return (text.to_owned(), false);
    }
    let mention = format!("@{username}").to_lowercase();
    let (mut rest, mut out, mut found) = (text, String::with_capacity(text.len()), false);
    while let Some(at) = rest.find('@') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = from[1..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(from.len(), |end| end + 1);
        // Telegram's user names are ASCII, in any case.
        if from[..end].to_ascii_lowercase() == mention {
            found = true;
        } else {
            out.push_str(&from[..end]);
        }
        rest = &from[end..];
    }
    out.push_str(rest);
    (out, found)
}

fn name(user: &User) -> String {
    let name = user.username.as_ref().map_or_else(|| user.first_name.clone(), |name| format!("@{name}"));
    name.chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn settings(extra: &Value) -> Telegram {
        let mut telegram = json!({"botToken": "1:a"});
        for (key, value) in extra.as_object().unwrap() {
            telegram[key.as_str()] = value.clone();
        }
        let text = json!({"channels": {"telegram": telegram}}).to_string();
        let document = crate::config::raw::Document::parse(text).unwrap();
        let decoded = crate::config::decode::decode(&document, &crate::config::Environment::default()).unwrap();
        decoded.config.flow.telegram.unwrap()
    }

    fn decided(extra: Value, message: Value, approved: bool) -> Decision {
        let update = json!({"update_id": 1, "message": message});
        let update: Update = serde_json::from_value(update).unwrap();
        let bot = Bot { id: 99, username: "HomeBot".into() };
        decide(&update, &settings(&extra), DmScope::PerChannelPeer, &bot, |_| approved)
    }

    fn private(text: &str) -> Value {
        json!({"message_id": 5, "from": {"id": 42, "first_name": "Ann"}, "chat": {"id": 42, "type": "private"}, "text": text})
    }

    fn in_group(text: &str) -> Value {
        json!({"message_id": 5, "from": {"id": 42, "first_name": "Ann", "username": "ann"},
            "chat": {"id": -7, "type": "supergroup", "title": "Home"}, "text": text})
    }

    #[test]
    fn a_direct_message_follows_the_policy() {
        let ask = |extra: Value, approved| matches!(decided(extra, private("hi"), approved), Decision::Ask { .. });
        assert!(matches!(decided(json!({}), private("hi"), false), Decision::Pair { sender, .. } if sender == "42"));
        assert!(ask(json!({}), true));
        assert!(ask(json!({"allowFrom": [42]}), false));
        assert!(ask(json!({"dmPolicy": "allowlist", "allowFrom": ["tg:42"]}), false));
        assert!(
            !ask(json!({"dmPolicy": "allowlist", "allowFrom": ["43"]}), true),
            "pairing does not widen an allowlist"
        );
        assert!(ask(json!({"dmPolicy": "open", "allowFrom": ["*"]}), false));
        assert!(!ask(json!({"dmPolicy": "open"}), true), "open needs its *");
        assert!(!ask(json!({"dmPolicy": "disabled", "allowFrom": ["*"]}), true));
    }

    #[test]
    fn a_group_needs_its_entry_its_people_and_a_mention() {
        let open = json!({"groups": {"-7": {}}, "allowFrom": [42]});
        let Decision::Ask { key, text, sender, place, .. } =
            decided(open.clone(), in_group("@homebot turn it off"), false)
        else {
            panic!("it is asked")
        };
        assert_eq!(
            (key.as_str(), text.as_str(), sender.as_deref()),
            ("agent:main:telegram:group:-7", "turn it off", Some("@ann"))
        );
        assert_eq!(place.reply_to, Some(5));
        let ignored = |extra: Value, message: Value| matches!(decided(extra, message, true), Decision::Ignore(_));
        assert!(ignored(open.clone(), in_group("turn it off")));
        assert!(ignored(open.clone(), in_group("@homebot2 turn it off")));
        assert!(ignored(json!({"groups": {"-8": {}}, "allowFrom": [42]}), in_group("@homebot hi")));
        assert!(ignored(json!({"groups": {"-7": {}}}), in_group("@homebot hi")), "pairing opens no group");
        assert!(ignored(json!({"groups": {"-7": {"enabled": false}}, "allowFrom": [42]}), in_group("@homebot hi")));
        let mut answer = in_group("and now?");
        answer["reply_to_message"] = json!({"message_id": 4, "from": {"id": 99, "is_bot": true, "first_name": "b"}});
        assert!(matches!(decided(open, answer, false), Decision::Ask { .. }));
    }

    #[test]
    fn a_group_may_have_people_and_a_policy_of_its_own() {
        let asked = |extra: Value, text: &str| matches!(decided(extra, in_group(text), false), Decision::Ask { .. });
        let own = json!({"groups": {"-7": {"allowFrom": [42], "requireMention": false}}, "groupAllowFrom": [1]});
        assert!(asked(own, "turn it off"));
        assert!(!asked(json!({"groups": {"-7": {"allowFrom": [43]}}, "allowFrom": [42]}), "@homebot hi"));
        assert!(asked(json!({"groups": {"-7": {"groupPolicy": "open"}}}), "@homebot hi"));
        assert!(!asked(json!({"groups": {"-7": {"groupPolicy": "disabled"}}, "allowFrom": ["*"]}), "@homebot hi"));
        assert!(asked(json!({"groupPolicy": "open"}), "@homebot hi"));
        let free = || json!({"groups": {"-7": {"requireMention": false}}, "allowFrom": [42]});
        let other = decided(free(), in_group("/stop@otherbot"), false);
        assert!(matches!(other, Decision::Ignore(_)), "a command for another bot");
        assert!(matches!(decided(free(), in_group("/stop@HomeBot"), false), Decision::Stop(..)));
        assert!(matches!(decided(free(), in_group("/stop"), false), Decision::Stop(..)));
    }

    #[test]
    fn a_picture_comes_with_its_caption_in_the_largest_size_that_fits() {
        let all = || json!({"dmPolicy": "open", "allowFrom": ["*"], "mediaMaxMb": 1});
        let with = |photo: Value, caption: Value| {
            let mut message = private("");
            message["photo"] = photo;
            message["caption"] = caption;
            match decided(all(), message, false) {
                Decision::Ask { picture, text, .. } => Some((picture.unwrap_or_default(), text)),
                _ => None,
            }
        };
        let size = |id: &str, side: i64, bytes: Value| json!({"file_id": id, "width": side, "height": side, "file_size": bytes});
        let sizes = json!([size("s", 90, json!(900)), size("l", 2000, json!(3_000_000)), size("m", 320, json!(9000))]);
        assert_eq!(with(sizes, json!("what is it?")), Some(("m".into(), "what is it?".into())));
        assert_eq!(with(json!([size("s", 90, Value::Null)]), Value::Null), Some(("s".into(), String::new())));
        assert_eq!(with(json!([size("../x", 90, Value::Null)]), Value::Null), None);
        let mut message = private("");
        message["document"] = json!({"file_id": "d", "mime_type": "image/png"});
        assert!(matches!(decided(all(), message.clone(), false), Decision::Ask { picture: Some(_), .. }));
        message["document"] = json!({"file_id": "d", "mime_type": "application/pdf"});
        assert!(matches!(decided(all(), message, false), Decision::Ignore(_)));
    }

    #[test]
    fn commands_bots_and_other_things_are_told_apart() {
        let all = || json!({"dmPolicy": "open", "allowFrom": ["*"]});
        assert!(matches!(decided(all(), private("/start"), false), Decision::Greet(_)));
        assert!(matches!(decided(all(), private("/new"), false), Decision::Reset(..)));
        assert!(matches!(decided(all(), private("/stop@homebot"), false), Decision::Stop(..)));
        assert!(matches!(decided(all(), private("  "), false), Decision::Ignore(_)));
        let mut bot = private("hi");
        bot["from"]["is_bot"] = json!(true);
        assert!(matches!(decided(all(), bot, false), Decision::Ignore(_)));
        let mut channel = private("hi");
        channel["chat"]["type"] = json!("channel");
        assert!(matches!(decided(all(), channel, false), Decision::Ignore(_)));
    }

    #[test]
    fn a_key_of_an_update_that_is_odd_is_no_error() {
        let update: Update = serde_json::from_value(json!({"update_id": 3, "poll": {"id": "x"}})).unwrap();
        assert!(update.message.is_none());
    }
}
