//! Keys that are probably misspelt: not known here, and within a letter or two of one that is.
//!
//! A key that clawgate does not know belongs to another program and is no fault. So nothing here is ever more than a notice,
//! and only what is very close is told: of the keys that OpenClaw's own schema has in the same places, none is. Start at
//! [`misspelt`].

use super::KeyPath;
use super::decode::Problem;
use super::raw::{Document, Member};
use super::schema;

/// Letters of a key from which on two may be wrong.
const LONG: usize = 8;
/// Letters below which a key is too short to be compared.
const SHORT: usize = 4;
/// Notices of one file at most.
const MAX_NOTICES: usize = 20;

/// Keys that are read and stand in no table: maps whose entries have names of their own.
const MAPS: &[&str] =
    &["models.providers", "agents.list", "env.vars", "channels.telegram.groups", "channels.telegram.allowFrom"];

/// The keys of `document` that are probably misspelt, each with what was probably meant.
pub fn misspelt(document: &Document) -> Vec<Problem> {
    let mut found = Vec::new();
    if let Some(members) = document.root().value.as_object() {
        look(document, &KeyPath::default(), "", members, &mut found);
    }
    found
}

fn look(document: &Document, path: &KeyPath, below: &str, members: &[Member], found: &mut Vec<Problem>) {
    let known = known(below);
    for member in members {
        if found.len() == MAX_NOTICES {
            return;
        }
        let key = path.key(&member.key);
        if known.contains(&&*member.key) {
            let below = if below.is_empty() { member.key.clone() } else { format!("{below}.{}", member.key) };
            if let Some(members) = member.node.value.as_object() {
                look(document, &key, &below, members, found);
            }
        } else if let Some(meant) = nearest(&member.key, &known) {
            found.push(Problem {
                position: document.position(member.key_span.start),
                message: format!(
                    "is no key that clawgate knows, and has no effect; {} was probably meant",
                    path.key(meant)
                ),
                key,
                allowed: &[],
            });
        }
    }
}

/// The names that may stand in the object at `path`; none where everything may.
fn known(path: &str) -> Vec<&'static str> {
    // Plugins are called as their authors like.
    if path == "plugins.entries" {
        return vec!["clawgate", "device-pair"];
    }
    let rest = |key: &'static str| match path {
        "" => Some(key),
        path => key.strip_prefix(path)?.strip_prefix('.'),
    };
    let mut names: Vec<&str> =
        schema::keys().chain(MAPS.iter().copied()).filter_map(rest).filter_map(|rest| rest.split('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let key = key.to_lowercase();
    let distance = |name: &str| strsim::osa_distance(&key, &name.to_lowercase());
    let near = known.iter().filter(|name| name.len() >= SHORT && **name != "clawgate" && **name != "device-pair");
    near.map(|name| (distance(name), *name))
        .filter(|(distance, name)| *distance <= if name.len() < LONG { 1 } else { 2 })
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn misspelt_in(text: &str) -> Vec<(String, String)> {
        let found = misspelt(&Document::parse(text).unwrap());
        found.into_iter().map(|problem| (problem.key.to_string(), problem.message)).collect()
    }

    #[test]
    fn a_typo_is_told_with_what_was_meant() {
        for (text, key, meant) in [
            ("{gatway: {port: 1}}", "gatway", "gateway was probably"),
            ("{gateway: {auth: {tokn: 'x'}}}", "gateway.auth.tokn", "gateway.auth.token was probably"),
            ("{gateway: {Port: 1}}", "gateway.Port", "gateway.port was"),
            ("{gateway: {prot: 1}}", "gateway.prot", "gateway.port was"),
            ("{gateway: {trustedProxys: []}}", "gateway.trustedProxys", "gateway.trustedProxies was"),
            ("{modles: {}}", "modles", "models was"),
            (
                "{plugins: {entries: {clawgate: {config: {limit: {}}}}}}",
                "plugins.entries.clawgate.config.limit",
                "limits was",
            ),
        ] {
            let found = misspelt_in(text);
            assert!(found.len() == 1 && found[0].0 == key && found[0].1.contains(meant), "{text}: {found:?}");
        }
    }

    #[test]
    fn keys_of_others_are_no_typos() {
        let text = "{ui: {}, cron: {}, meta: {}, gateway: {push: 1, nodes: {browser: {}}, auth: {x: 1, rateLimits2x: 1}, \
                    remote: {edgeAuth: {'X-Tokn': 'x'}}}, plugins: {entries: {clawgat: {}}}, models: {providers: {provider: {}}}, \
                    channels: {telegram: {groups: {'-1': {}}, reactionLevel: 1}, slack: {botTokn: 1}}}";
        assert_eq!(misspelt_in(text), []);
    }

    #[test]
    fn every_key_of_the_table_is_known() {
        for key in schema::keys() {
            let text = key.split('.').rev().fold("1".to_owned(), |inner, name| format!("{{\"{name}\": {inner}}}"));
            assert_eq!(misspelt_in(&text), [], "{key}");
        }
    }
}
