//! What must hold for every text that could be a configuration file; the body of a fuzz target.

use super::decode::decode;
use super::raw::{Document, Value};
use super::redact::{redact, redact_text};
use super::{Environment, KeyPath};

/// Parses, decodes, redacts and edits `data`.
///
/// # Panics
/// When a property does not hold: redacting the text and redacting the tree agree, and an edit changes what
/// it should and nothing else.
pub fn config_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(document) = Document::parse(text) else { return };
    if let Err(problems) = decode(&document, &Environment::new([("SET", "value")])) {
        assert!(!problems.is_empty(), "refused without a reason");
    }
    let redacted = Document::parse(redact_text(&document)).expect("redacted text is a document");
    assert_eq!(redacted.root().value.to_json(), redact(document.root()), "text and tree are redacted alike");

    let path = KeyPath::default().key("a key that is not there");
    if document.get(&path).is_none() {
        let edited = document.set(&path, &Value::Bool(true)).expect("a key can be added to an object");
        assert_eq!(edited.get(&path).map(|node| &node.value), Some(&Value::Bool(true)), "what was set is there");
        let restored = edited.unset(&path).expect("a key can be removed").expect("it was there");
        assert_eq!(restored.root().value.to_json(), document.root().value.to_json(), "nothing else has changed");
    }
    for member in document.root().value.as_object().unwrap_or_default().iter().take(3) {
        let path = KeyPath::default().key(&member.key);
        let value = Value::String("changed".to_owned());
        let edited = document.set(&path, &value).expect("a value can be replaced");
        let mut expected = document.root().value.to_json();
        expected[&member.key] = value.to_json();
        assert_eq!(edited.root().value.to_json(), expected, "the value is replaced and nothing else");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces that make documents more often than single characters do.
    fn text() -> impl Strategy<Value = String> {
        let pieces = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            " ",
            "\n",
            "\r\n",
            "a",
            "gateway",
            "auth",
            "token",
            "port",
            "\"s\"",
            "'s'",
            "1",
            "0x1f",
            "+.5",
            "null",
            "true",
            "Infinity",
            "// c\n",
            "/* token */",
            "// c",
            "\"${SET}\"",
            "\"\\u0041\\\n\"",
            "\u{feff}",
            "ä",
            "$include",
        ];
        proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..40)
            .prop_map(|pieces| format!("{{{}}}", pieces.concat()))
    }

    fn value(depth: u32) -> BoxedStrategy<String> {
        let scalar = proptest::sample::select(vec![
            "1",
            "'s'",
            "\"${SET}\"",
            "null",
            "-0x1",
            "{}",
            "[]",
            "'sk-x' // c\n",
            "/* c */ true",
        ]);
        let scalar = scalar.prop_map(str::to_owned);
        let nested = scalar.prop_recursive(depth, 24, 4, |inner| {
            let key = proptest::sample::select(vec![
                "gateway",
                "auth",
                "'token'",
                "\"port\"",
                "mode",
                "trustedProxies",
                "id",
                "source",
                "provider",
            ]);
            let members = proptest::collection::btree_map(key, inner.clone(), 0..4).prop_map(|members| {
                let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}: {value}")).collect();
                format!("{{ // c\n {} }}", members.join(", /* secret */ "))
            });
            let list = proptest::collection::vec(inner, 0..4)
                .prop_map(|values| format!("[{},]", values.join(",\n")).replace("[,]", "[]"));
            prop_oneof![members, list]
        });
        nested.boxed()
    }

    proptest! {
        #[test]
        fn holds_for_pieces(text in text()) {
            config_text(text.as_bytes());
        }

        #[test]
        fn holds_for_documents(value in value(5)) {
            config_text(format!("{{gateway: {value}}}").as_bytes());
        }
    }
}
