//! Edits of a document's text that leave comments, order and formatting alone (contract 4.13).
//!
//! A [`Document`] is immutable: [`Document::set`] and [`Document::unset`] give a new one. Nothing here knows
//! what keys mean; whether the result is a valid configuration is for [`super::decode`] to say.

use jsonc_parser::cst::{CstInputValue, CstNode, CstObject, CstObjectProp, CstRootNode, ObjectPropName};

use super::key_path::{KeyPath, Step};
use super::raw::{Document, JSON5, SyntaxError, Value, list_index, syntax_error};

impl Document {
    /// The document with `value` at `path`, everything else as it was. Objects on the way are made where
    /// they are missing; an index just past the end of a list appends.
    ///
    /// # Errors
    /// [`EditError`] when something that is not an object or a list is in the way.
    pub fn set(&self, path: &KeyPath, value: &Value) -> Result<Self, EditError> {
        let root = self.editable()?;
        let Some((last, way)) = path.steps().split_last() else { return Err(EditError::Root) };
        let object = root.object_value().ok_or(EditError::Root)?;
        let style = KeyStyle::of(&object);
        let mut at = CstNode::from(object);
        for (depth, step) in way.iter().enumerate() {
            let next = child(&at, step);
            at = match next {
                Some(node) => node,
                // What comes next says what is missing here.
                None => {
                    let empty = match path.steps()[depth + 1] {
                        Step::Key(_) => CstInputValue::Object(Vec::new()),
                        Step::Index(_) => CstInputValue::Array(Vec::new()),
                    };
                    put(&at, step, empty, style).ok_or_else(|| blocked(path, depth))?
                }
            };
        }
        put(&at, last, value.into(), style).ok_or_else(|| blocked(path, way.len()))?;
        Ok(Self::parse(root.to_string())?)
    }

    /// The document without what is at `path`; `None` when nothing is there.
    ///
    /// # Errors
    /// [`EditError`] when the result would not be a document.
    pub fn unset(&self, path: &KeyPath) -> Result<Option<Self>, EditError> {
        let root = self.editable()?;
        let Some((last, way)) = path.steps().split_last() else { return Err(EditError::Root) };
        let object = root.object_value().ok_or(EditError::Root)?;
        let Some(parent) = way.iter().try_fold(CstNode::from(object), |at, step| child(&at, step)) else {
            return Ok(None);
        };
        if let Some(object) = parent.as_object()
            && let Some(property) = property(&object, &key_of(last))
        {
            property.remove();
        } else if let Some(array) = parent.as_array()
            && let Some(element) = list_index(last).and_then(|index| array.elements().into_iter().nth(index))
        {
            element.remove();
        } else {
            return Ok(None);
        }
        Ok(Some(Self::parse(root.to_string())?))
    }

    fn editable(&self) -> Result<CstRootNode, EditError> {
        CstRootNode::parse(self.text(), &JSON5).map_err(|error| syntax_error(self.text(), &error).into())
    }
}

/// Why an edit is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The path is the whole document.
    #[error("the whole configuration cannot be replaced at once: name a key")]
    Root,
    /// There is a value on the way that cannot hold the rest of the path.
    #[error("{wanted} cannot be set: {at} holds a value that has no such place; remove it first")]
    Blocked {
        /// The path that was to be set.
        wanted: KeyPath,
        /// The value in the way.
        at: KeyPath,
    },
    /// The result would not be a document.
    #[error("the edit would leave a file that cannot be read: {0}")]
    Result(#[from] SyntaxError),
}

fn blocked(path: &KeyPath, depth: usize) -> EditError {
    let at = path.steps()[..depth].iter().fold(KeyPath::default(), |at, step| match step {
        Step::Key(key) => at.key(key),
        Step::Index(index) => at.index(*index),
    });
    EditError::Blocked { wanted: path.clone(), at }
}

fn key_of(step: &Step) -> String {
    match step {
        Step::Key(key) => key.clone(),
        Step::Index(index) => index.to_string(),
    }
}

fn property(object: &CstObject, key: &str) -> Option<CstObjectProp> {
    object.properties().into_iter().find(|property| property.decoded_name().as_deref() == Some(key))
}

fn child(at: &CstNode, step: &Step) -> Option<CstNode> {
    if let Some(object) = at.as_object() {
        return property(&object, &key_of(step))?.value();
    }
    at.as_array()?.elements().into_iter().nth(list_index(step)?)
}

/// Puts `value` at `step` of `at` and gives it back; `None` when `at` has no such place.
fn put(at: &CstNode, step: &Step, value: CstInputValue, style: KeyStyle) -> Option<CstNode> {
    if let Some(object) = at.as_object() {
        let key = key_of(step);
        let property = match property(&object, &key) {
            Some(property) => {
                property.set_value(value);
                property
            }
            None => object.append(&key, value),
        };
        style.apply(&property);
        return property.value();
    }
    let array = at.as_array()?;
    let elements = array.elements();
    let index = list_index(step)?;
    match elements.get(index) {
        Some(element) => replace(element, value)?,
        None if index == elements.len() => {
            array.append(value);
        }
        None => return None,
    }
    array.elements().into_iter().nth(index)
}

fn replace(node: &CstNode, value: CstInputValue) -> Option<()> {
    use jsonc_parser::cst::{CstContainerNode as Container, CstLeafNode as Leaf};
    let node = node.clone();
    match node {
        CstNode::Container(Container::Object(node)) => node.replace_with(value),
        CstNode::Container(Container::Array(node)) => node.replace_with(value),
        CstNode::Leaf(Leaf::BooleanLit(node)) => node.replace_with(value),
        CstNode::Leaf(Leaf::NullKeyword(node)) => node.replace_with(value),
        CstNode::Leaf(Leaf::NumberLit(node)) => node.replace_with(value),
        CstNode::Leaf(Leaf::StringLit(node)) => node.replace_with(value),
        CstNode::Leaf(Leaf::WordLit(node)) => node.replace_with(value),
        CstNode::Container(_) | CstNode::Leaf(_) => None,
    }
    .map(drop)
}

/// How new keys are written: like those that are there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyStyle {
    Quoted,
    Bare,
}

impl KeyStyle {
    fn of(root: &CstObject) -> Self {
        match root.properties().first().and_then(CstObjectProp::name) {
            Some(ObjectPropName::Word(_)) => Self::Bare,
            _ => Self::Quoted,
        }
    }

    /// Takes the quotes off the keys of `property` and of what it holds, where they need none.
    fn apply(self, property: &CstObjectProp) {
        if self == Self::Quoted {
            return;
        }
        if let Some(ObjectPropName::String(name)) = property.name()
            && let Ok(key) = name.decoded_value()
            && is_identifier(&key)
        {
            name.set_raw_value(key);
        }
        let mut values: Vec<CstNode> = property.value().into_iter().collect();
        while let Some(value) = values.pop() {
            if let Some(object) = value.as_object() {
                object.properties().iter().for_each(|property| self.apply(property));
            } else if let Some(array) = value.as_array() {
                values.extend(array.elements());
            }
        }
    }
}

/// Whether `key` can stand without quotes everywhere: ASCII identifiers only.
fn is_identifier(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '$'))
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$'))
        && !matches!(key, "true" | "false" | "null" | "Infinity" | "NaN")
}

impl From<&Value> for CstInputValue {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(text) => Self::Number(text.clone()),
            Value::String(text) => Self::String(text.clone()),
            Value::Array(nodes) => Self::Array(nodes.iter().map(|node| (&node.value).into()).collect()),
            Value::Object(members) => {
                Self::Object(members.iter().map(|member| (member.key.clone(), (&member.node.value).into())).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw::parse_value;
    use super::*;

    fn set(text: &str, path: &str, value: &str) -> String {
        let value = parse_value(value).unwrap().value;
        Document::parse(text).unwrap().set(&path.parse().unwrap(), &value).unwrap().text().to_owned()
    }

    fn unset(text: &str, path: &str) -> Option<String> {
        let edited = Document::parse(text).unwrap().unset(&path.parse().unwrap()).unwrap();
        edited.map(|document| document.text().to_owned())
    }

    const TEXT: &str = "\
// my gateway
{
  // who gets in
  gateway: {
    port: 18789, // the usual one
    bind: 'loopback',
    remote: { url: \"ws://127.0.0.1:1\" },
  },
  agents: { list: [ 1, 2 ] }, /* kept */
}
";

    #[test]
    fn a_changed_value_changes_nothing_else() {
        let edited = set(TEXT, "gateway.port", "19001");
        assert_eq!(edited, TEXT.replace("18789", "19001"));
        let edited = set(TEXT, "gateway.bind", "\"lan\"");
        assert_eq!(edited, TEXT.replace("'loopback'", "\"lan\""));
        assert_eq!(set(TEXT, "agents.list[1]", "{a: 1}").matches("//").count(), TEXT.matches("//").count());
    }

    #[test]
    fn a_new_key_goes_to_the_end_of_its_object_in_the_style_of_the_file() {
        let edited = set(TEXT, "gateway.auth.token", "\"s3cret\"");
        assert!(edited.contains("    auth: {\n      token: \"s3cret\""), "{edited}");
        for kept in ["// my gateway", "// who gets in", "// the usual one", "/* kept */", "'loopback'"] {
            assert!(edited.contains(kept), "{edited}");
        }
        assert!(edited.find("bind").unwrap() < edited.find("auth").unwrap());
        assert!(set("{\n  \"a\": 1\n}\n", "b.c", "2").contains("\"b\": {"));
        assert_eq!(set("{a: 1}", "x-y", "2"), "{\n  a: 1,\n  \"x-y\": 2\n}");
    }

    #[test]
    fn makes_what_is_missing_on_the_way() {
        let document = Document::parse(set("{}\n", "a.b[0].c", "1")).unwrap();
        assert_eq!(document.root().value.to_json(), serde_json::json!({"a": {"b": [{"c": 1}]}}));
        let document = Document::parse(set("{a: [1]}", "a[1]", "2")).unwrap();
        assert_eq!(document.root().value.to_json(), serde_json::json!({"a": [1, 2]}));
    }

    #[test]
    fn strings_survive_with_everything_in_them() {
        for value in ["", "a\"b\\c\n\t", "// no comment", "ä😀\u{0}", "${X}"] {
            let literal = serde_json::to_string(value).unwrap();
            let document = Document::parse(set("{a: 1}", "a", &literal)).unwrap();
            assert_eq!(document.root().value.get("a").unwrap().value.as_str(), Some(value));
        }
    }

    #[test]
    fn refuses_to_write_through_a_value() {
        let document = Document::parse("{a: 'text', list: [1]}").unwrap();
        let error = document.set(&"a.b.c".parse().unwrap(), &Value::Null).unwrap_err();
        assert_eq!(error.to_string(), "a.b.c cannot be set: a holds a value that has no such place; remove it first");
        assert!(document.set(&"list[5]".parse().unwrap(), &Value::Null).is_err());
        assert!(document.set(&"list.x".parse().unwrap(), &Value::Null).is_err());
    }

    #[test]
    fn unset_removes_the_key_and_its_comma() {
        let edited = unset(TEXT, "gateway.bind").unwrap();
        assert_eq!(edited, TEXT.replace("    bind: 'loopback',\n", ""));
        assert_eq!(unset(TEXT, "agents.list[0]").unwrap(), TEXT.replace("[ 1, 2 ]", "[ 2 ]"));
        assert_eq!(unset(TEXT, "gateway.nope"), None);
        assert_eq!(unset(TEXT, "gateway.port.x"), None);
        let emptied = unset("{a: 1}", "a").unwrap();
        assert_eq!(Document::parse(emptied).unwrap().root().value.to_json(), serde_json::json!({}));
    }
}
