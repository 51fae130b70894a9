//! Which node a person means: by id, address, name, or the beginning of an id.

use thiserror::Error;

use super::nodes::Node;

/// Letters of an id that are enough to mean it.
const MIN_PREFIX: usize = 6;

/// Why no node is meant.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum QueryError {
    /// Nothing fits.
    #[error("unknown node: {query}{}", if .known.is_empty() { String::new() } else { format!(" (known: {})", .known.join(", ")) })]
    Unknown {
        /// What was asked for.
        query: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Several fit equally well.
    #[error("ambiguous node: {query} (matches: {})", .matches.join(", "))]
    Ambiguous {
        /// What was asked for.
        query: String,
        /// What fits.
        matches: Vec<String>,
    },
}

/// The node that `query` means. The strongest kind of match counts: the exact id, the address, the name (in any
/// case, any punctuation as a dash), the beginning of the id. Among equals those that are connected count.
pub(super) fn find<'a>(nodes: &'a [Node], query: &str) -> Result<&'a Node, QueryError> {
    let query = query.trim();
    let name = folded(query);
    let kinds: [&dyn Fn(&Node) -> bool; 4] = [
        &|node| node.node_id == query,
        &|node| !query.is_empty() && node.remote_ip.as_deref() == Some(query),
        &|node| !name.is_empty() && node.display_name.as_deref().map(folded).as_deref() == Some(&name),
        &|node| query.len() >= MIN_PREFIX && node.node_id.starts_with(query),
    ];
    let matches = kinds.iter().map(|fits| nodes.iter().filter(|node| fits(node)).collect::<Vec<_>>());
    let matches = matches.into_iter().find(|matches| !matches.is_empty()).unwrap_or_default();
    let connected: Vec<&Node> = matches.iter().copied().filter(|node| node.connected).collect();
    match if connected.is_empty() { &matches[..] } else { &connected[..] } {
        [node] => Ok(node),
        [] => Err(QueryError::Unknown {
            query: query.to_owned(),
            known: nodes.iter().map(|node| node.label().to_owned()).collect(),
        }),
        several => Err(QueryError::Ambiguous {
            query: query.to_owned(),
            matches: several.iter().map(|node| format!("{} [{}]", node.label(), node.node_id)).collect(),
        }),
    }
}

/// A name in lower case, with one dash for whatever is no letter or digit.
fn folded(name: &str) -> String {
    let lower = name.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(id: &str, name: &str, ip: &str, connected: bool) -> Node {
        let node = json!({"nodeId": id, "displayName": name, "remoteIp": ip, "connected": connected});
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn the_strongest_match_counts() {
        let nodes = [
            node("abcdef01", "Living Room", "10.0.0.5", true),
            node("abcdef02", "10.0.0.5", "", true),
            node("kitchen", "abcdef01", "", true),
        ];
        let id = |query| find(&nodes, query).map(|node| node.node_id.as_str());
        assert_eq!(id("abcdef01"), Ok("abcdef01"));
        assert_eq!(id("10.0.0.5"), Ok("abcdef01"));
        assert_eq!(id(" living_room "), Ok("abcdef01"));
        assert_eq!(id("abcdef02"), Ok("abcdef02"));
        assert!(matches!(id("abcdef"), Err(QueryError::Ambiguous { .. })));
        assert!(matches!(id("abcde"), Err(QueryError::Unknown { .. })), "too short to mean an id");
        assert!(matches!(id("  "), Err(QueryError::Unknown { .. })));
    }

    #[test]
    fn among_equals_the_connected_one_counts() {
        let mut nodes = [node("a", "Pi", "", false), node("b", "pi", "", true)];
        assert_eq!(find(&nodes, "PI").map(|node| node.node_id.as_str()), Ok("b"));
        nodes[0].connected = true;
        let error = find(&nodes, "pi").unwrap_err();
        assert_eq!(error.to_string(), "ambiguous node: pi (matches: Pi [a], pi [b])");
    }

    #[test]
    fn an_unknown_node_comes_with_the_known_ones() {
        let nodes = [node("a", "Pi", "", true), node("b", "", "10.0.0.9", true)];
        assert_eq!(find(&nodes, "nope").unwrap_err().to_string(), "unknown node: nope (known: Pi, 10.0.0.9)");
        assert_eq!(find(&[], "nope").unwrap_err().to_string(), "unknown node: nope");
    }
}
