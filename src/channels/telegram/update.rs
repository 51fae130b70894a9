//! What an update of the Bot API means: whose message it is, and what is to become of it. Pure.
//!
//! Start at [`decide`]. Everything in an update was written by strangers: lengths are bounded, kinds are checked, and
//! what is not understood is ignored, never an error that would stop the reading.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::config::flow::{DmPolicy, DmScope, Group, GroupPolicy, Telegram};
use crate::sessions::key::SessionKey;

/// Characters of a message that are taken.
const MAX_CHARS: usize = 16 * 1024;
/// Characters of the name of a file.
const MAX_FILE_ID_CHARS: usize = 256;
/// Characters of a name.
const MAX_NAME_CHARS: usize = 64;
/// Characters of what a place or a person is called.
const MAX_FACT_CHARS: usize = 256;
/// Messages of one album, as Telegram has it.
pub(super) const MAX_ALBUM: usize = 10;

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
    /// Which album it is a part of: each of its pictures is a message of its own.
    #[serde(default)]
    pub media_group_id: Option<String>,
    /// A picture that stands for a feeling.
    #[serde(default)]
    pub sticker: Option<Sticker>,
    /// Somewhere on Earth.
    #[serde(default)]
    pub location: Option<Location>,
    /// A place with a name.
    #[serde(default)]
    pub venue: Option<Venue>,
    /// Somebody's number.
    #[serde(default)]
    pub contact: Option<Contact>,
    /// Speech.
    #[serde(default)]
    pub voice: Option<IgnoredAny>,
    /// Music.
    #[serde(default)]
    pub audio: Option<IgnoredAny>,
    /// A film.
    #[serde(default)]
    pub video: Option<IgnoredAny>,
    /// A round film.
    #[serde(default)]
    pub video_note: Option<IgnoredAny>,
    /// A film without sound.
    #[serde(default)]
    pub animation: Option<IgnoredAny>,
    /// A vote.
    #[serde(default)]
    pub poll: Option<IgnoredAny>,
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

/// A sticker.
#[derive(Clone, Debug, Deserialize)]
pub struct Sticker {
    /// The feeling.
    #[serde(default)]
    pub emoji: Option<String>,
}

/// A point on Earth.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Location {
    /// Degrees.
    pub latitude: f64,
    /// Degrees.
    pub longitude: f64,
}

/// A place.
#[derive(Clone, Debug, Deserialize)]
pub struct Venue {
    /// Its name.
    #[serde(default)]
    pub title: String,
    /// Where it is.
    #[serde(default)]
    pub address: String,
}

/// Somebody to call.
#[derive(Clone, Debug, Deserialize)]
pub struct Contact {
    /// The number.
    #[serde(default)]
    pub phone_number: String,
    /// The name.
    #[serde(default)]
    pub first_name: String,
    /// The family's name.
    #[serde(default)]
    pub last_name: Option<String>,
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
    /// There is nothing in it but something that can't be read here, and its author is to be told so: what it was, in the
    /// plural.
    Unread(Place, &'static str),
    /// The agent is asked.
    Ask {
        /// In which session.
        key: SessionKey,
        /// What; empty where there is a picture alone.
        text: String,
        /// The pictures that came with it: what to ask the Bot API for.
        pictures: Vec<String>,
        /// A name of the session for people.
        label: String,
        /// Who asks, for the model, in a group.
        sender: Option<String>,
        /// Where the answer goes.
        place: Place,
    },
}

/// Decides about a message. `parts` are the other messages of its album, `approved` says whom an operator has let in.
pub fn decide(
    update: &Update,
    parts: &[Update],
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
    let album =
        || std::iter::once(message).chain(parts.iter().filter_map(|part| part.message.as_ref()).take(MAX_ALBUM));
    // The words of an album stand under one of its pictures, mostly the first.
    let text = album().find_map(Message::words).unwrap_or_default();
    let text: String = text.chars().filter(|c| *c != '\0').take(MAX_CHARS).collect();
    let pictures: Vec<String> = album().filter_map(|part| picture(part, settings.media_max_bytes)).collect();
    let unread = album().find_map(|part| unread(part, &pictures));
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
            let heard = Heard { text: text.trim(), fact: fact(message), pictures, unread, complain: true };
            ask(key, heard, label, None, place)
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
            let is_named = || settings.mention_patterns.iter().any(|pattern| pattern.is_match(&text));
            if group.require_mention && !mentioned && !answers_bot && !is_named() {
                return Decision::Ignore("the bot is not mentioned");
            }
            let thread = message.message_thread_id.filter(|_| message.is_topic_message);
            let chat = message.chat.id.to_string();
            let key = SessionKey::group("telegram", &chat, thread);
            let title = message.chat.title.as_deref().unwrap_or(&chat);
            let title = title.chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect();
            let place = Place { chat, thread, reply_to: Some(message.message_id), message_id: message.message_id };
            // What people show each other is not for the bot to remark on.
            let heard = Heard { text: text.trim(), fact: fact(message), pictures, unread, complain: answers_bot };
            ask(key, heard, title, Some(label), place)
        }
        _ => Decision::Ignore("not a chat of people"),
    }
}

/// What there is in a message.
struct Heard<'a> {
    text: &'a str,
    /// What else it says that has words.
    fact: Option<String>,
    pictures: Vec<String>,
    /// What came along and can't be read here, in the plural.
    unread: Option<&'static str>,
    /// Its author is told when there is nothing but that.
    complain: bool,
}

fn ask(key: SessionKey, heard: Heard<'_>, label: String, sender: Option<String>, place: Place) -> Decision {
    let Heard { text, fact, pictures, unread, complain } = heard;
    // `/new@bot` is how groups write it.
    let command = text.split_whitespace().next().unwrap_or_default();
    match (command.split('@').next().unwrap_or_default(), unread) {
        ("", Some(what)) if pictures.is_empty() && fact.is_none() && complain => Decision::Unread(place, what),
        ("", _) if pictures.is_empty() && fact.is_none() => Decision::Ignore("nothing to read in it"),
        ("/start", _) => Decision::Greet(place),
        ("/new" | "/reset", _) => Decision::Reset(key, place),
        ("/stop", _) => Decision::Stop(key, place),
        _ => {
            let mut text = text.to_owned();
            let note = unread.map(|what| format!("[something came along that can't be read here: {what}]"));
            for more in fact.into_iter().chain(note) {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&more);
            }
            Decision::Ask { key, text, pictures, label, sender, place }
        }
    }
}

impl Message {
    /// Its text, or the one under its picture.
    fn words(&self) -> Option<&str> {
        [&self.text, &self.caption].into_iter().filter_map(Option::as_deref).find(|text| !text.trim().is_empty())
    }
}

/// What a message says without words that can be put into some.
fn fact(message: &Message) -> Option<String> {
    let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(MAX_FACT_CHARS).collect::<String>();
    if let Some(contact) = &message.contact {
        let family = contact.last_name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
        return Some(short(&format!("[contact: {}{family}, {}]", contact.first_name, contact.phone_number)));
    }
    // A venue has its location beside it.
    let at = message.location.map(|at| format!("{:.6}, {:.6}", at.latitude, at.longitude));
    match (&message.venue, at) {
        (Some(venue), at) => {
            let at = at.map(|at| format!(", {at}")).unwrap_or_default();
            return Some(short(&format!("[place: {}, {}{at}]", venue.title, venue.address)));
        }
        (None, Some(at)) => return Some(format!("[location: {at}]")),
        (None, None) => {}
    }
    let emoji = message.sticker.as_ref()?.emoji.as_deref()?;
    Some(short(&format!("[sticker: {emoji}]")))
}

/// What of a message can't be read here, in the plural.
fn unread(message: &Message, pictures: &[String]) -> Option<&'static str> {
    let kinds = [
        (message.voice.is_some(), "voice messages"),
        (message.audio.is_some(), "audio files"),
        (message.video.is_some(), "videos"),
        (message.video_note.is_some(), "video messages"),
        (message.animation.is_some(), "animations"),
        (message.poll.is_some(), "polls"),
        (message.document.is_some() && pictures.is_empty(), "files other than pictures"),
        (message.sticker.is_some() && fact(message).is_none(), "stickers"),
    ];
    kinds.into_iter().find_map(|(is_there, kind)| is_there.then_some(kind))
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
        decide(&update, &[], &settings(&extra), DmScope::PerChannelPeer, &bot, |_| approved)
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
                Decision::Ask { pictures, text, .. } => Some((pictures.concat(), text)),
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
        assert!(matches!(decided(all(), message.clone(), false), Decision::Ask { pictures, .. } if pictures == ["d"]));
        message["document"] = json!({"file_id": "d", "mime_type": "application/pdf"});
        assert!(matches!(decided(all(), message, false), Decision::Unread(..)));
    }

    #[test]
    fn an_album_is_one_question_with_all_its_pictures() {
        let part = |id: i64, caption: Value| -> Update {
            let mut message = private("");
            message["photo"] = json!([{"file_id": format!("p{id}"), "width": 9, "height": 9}]);
            message["caption"] = caption;
            message["media_group_id"] = json!("g");
            serde_json::from_value(json!({"update_id": id, "message": message})).unwrap()
        };
        let (first, rest) = (part(1, Value::Null), [part(2, json!("which one?")), part(3, Value::Null)]);
        let open = settings(&json!({"dmPolicy": "open", "allowFrom": ["*"]}));
        let Decision::Ask { text, pictures, .. } =
            decide(&first, &rest, &open, DmScope::Main, &Bot::default(), |_| false)
        else {
            panic!("it is asked")
        };
        assert_eq!((text.as_str(), pictures), ("which one?", vec!["p1".into(), "p2".into(), "p3".into()]));
    }

    #[test]
    fn what_cannot_be_read_is_said_to_be_so_and_what_has_words_is_put_into_them() {
        let all = || json!({"dmPolicy": "open", "allowFrom": ["*"], "groups": {"-7": {"requireMention": false}}});
        let with = |mut message: Value, key: &str, value: Value| {
            message[key] = value;
            decided(all(), message, false)
        };
        for (key, what) in
            [("voice", "voice messages"), ("video", "videos"), ("audio", "audio files"), ("poll", "polls")]
        {
            assert!(
                matches!(with(private(""), key, json!({"file_id": "x"})), Decision::Unread(_, said) if said == what)
            );
            let group = with(in_group(""), key, json!({"file_id": "x"}));
            assert!(matches!(group, Decision::Ignore(_)), "nobody spoke to it");
        }
        let said = |decision: Decision| match decision {
            Decision::Ask { text, .. } => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            said(with(private("hear this"), "voice", json!({}))),
            "hear this\n[something came along that can't be read here: voice messages]"
        );
        let at = json!({"latitude": 52.5, "longitude": 13.25});
        assert_eq!(said(with(private(""), "location", at)), "[location: 52.500000, 13.250000]");
        assert_eq!(said(with(private(""), "sticker", json!({"emoji": "👍"}))), "[sticker: 👍]");
        let ann = json!({"phone_number": "+49 1", "first_name": "Ann"});
        assert_eq!(said(with(private(""), "contact", ann)), "[contact: Ann, +49 1]");
    }

    #[test]
    fn a_group_may_call_the_bot_by_a_pattern() {
        let text = r#"{messages: {groupChat: {mentionPatterns: ["\\bhal\\b", "(", "клешня"]}},
            channels: {telegram: {botToken: "1:a", groups: {"-7": {}}, allowFrom: ["*"]}}}"#;
        let document = crate::config::raw::Document::parse(text).unwrap();
        let decoded = crate::config::decode::decode(&document, &crate::config::Environment::default()).unwrap();
        assert_eq!(decoded.notices.len(), 1, "what is no pattern is said to be none");
        let settings = decoded.config.flow.telegram.unwrap();
        for (text, is_asked) in [("HAL, open the door", true), ("halt", false), ("Клешня?", true), ("(", false)] {
            let update = serde_json::from_value(json!({"update_id": 1, "message": in_group(text)})).unwrap();
            let decision = decide(&update, &[], &settings, DmScope::Main, &Bot::default(), |_| false);
            assert_eq!(matches!(decision, Decision::Ask { .. }), is_asked, "{text}: {decision:?}");
        }
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
