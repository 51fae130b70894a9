//! `docs/compatibility.md` is true: its tables are made here, from the catalogue and from what a gateway announces.
//!
//! With `UPDATE_DOCS=1` the page is written anew instead of compared.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use clawgate::rpc::catalog::{Access, Audience, Delivery, EVENTS, METHODS};
use serde_json::Value;

use crate::support::client::{node, operator};
use crate::support::device::Device;
use crate::support::gateway::Gateway;

/// What stands between the words of the page and its tables.
const MARK: &str = "<!-- The rest is made from the code: UPDATE_DOCS=1 cargo test --test wire compatibility -->\n";

/// The methods that a gateway says it has, to operators and to nodes.
fn announced(gateway: &Gateway) -> BTreeSet<String> {
    let names = |hello: &Value| -> Vec<String> {
        let methods = hello["features"]["methods"].as_array().expect("a list of methods");
        methods.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let of_operator = gateway.client().connect(&operator()).unwrap();
    let of_node = Device::new(3).connect(&mut gateway.client(), &node(&[])).unwrap();
    names(&of_operator).into_iter().chain(names(&of_node)).collect()
}

fn tables(announced: &BTreeSet<String>) -> String {
    let empty: BTreeSet<&str> = clawgate::methods::EMPTY.iter().map(|method| method.name).collect();
    let mut page = String::from("\n## Over HTTP\n\n| endpoint | here | |\n|---|---|---|\n");
    for (endpoint, is_here, about) in clawgate::http::api::TABLE {
        let _ = writeln!(page, "| `{endpoint}` | {} | {about} |", if *is_here { "yes" } else { "no" });
    }
    let kind = |name: &str| match (announced.contains(name), empty.contains(name)) {
        (true, false) => 0,
        (true, true) => 1,
        (false, _) => 2,
    };
    let titles = [
        "Answered",
        "Answered empty, because there is none of it here",
        "Not there: `UNAVAILABLE` with `details.code = \"METHOD_NOT_IMPLEMENTED\"`",
    ];
    let _ = write!(
        page,
        "\n## Methods\n\nOf the {} that the wire knows. In brackets: what a caller needs.\n",
        METHODS.len()
    );
    for (number, title) in titles.into_iter().enumerate() {
        let names: Vec<_> = METHODS.iter().filter(|(name, _)| kind(name) == number).collect();
        let _ = write!(page, "\n### {title} ({})\n\n", names.len());
        let mut line = String::new();
        for (at, (name, access)) in names.iter().enumerate() {
            let needs = match access {
                Access::Operator(scope) => scope.as_str().trim_start_matches("operator."),
                Access::Node => "node",
            };
            let comma = if at + 1 < names.len() { "," } else { "" };
            let item = format!("`{name}` ({needs}){comma}");
            if line.len() + item.len() > 120 {
                let _ = writeln!(page, "{}", line.trim_end());
                line.clear();
            }
            let _ = write!(line, "{item} ");
        }
        let _ = writeln!(page, "{}", line.trim_end());
    }
    page.push_str("\n## Events\n\n| event | who gets it | a slow client |\n|---|---|---|\n");
    for event in EVENTS {
        let who = match event.audience {
            Audience::Everyone => "everybody".to_owned(),
            Audience::Operators => "operators".to_owned(),
            Audience::Holders(scope) => format!("operators with `{scope}`"),
            Audience::ReadersAndNodes => "operators with `operator.read`, nodes".to_owned(),
            Audience::Targeted => "the one it is for".to_owned(),
            Audience::Followers => "who follows what it is about".to_owned(),
        };
        let slow = match event.delivery {
            Delivery::Droppable => "may miss it",
            Delivery::Kept => "gets it, or is closed",
        };
        let _ = writeln!(page, "| `{}` | {who} | {slow} |", event.name);
    }
    page
}

#[test]
fn the_page_about_compatibility_is_true() {
    let gateway = Gateway::start();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/compatibility.md");
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let (words, _) = page.split_once(MARK).expect("the page has its mark");
    let wanted = format!("{words}{MARK}{}", tables(&announced(&gateway)));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).expect("the page can be written");
    } else {
        assert!(
            page == wanted,
            "docs/compatibility.md is not what the code says: UPDATE_DOCS=1 cargo test --test wire compatibility"
        );
    }
}
