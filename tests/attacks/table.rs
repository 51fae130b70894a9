//! `docs/attacks.md` is true: every row is there, every test it names exists, and every attack test is named there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Rows of each section, first and last, as the table numbers them.
const SECTIONS: [(u32, u32); 6] = [(1, 8), (10, 21), (30, 41), (50, 67), (70, 78), (80, 86)];

fn sources(folder: &Path, out: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "node_modules") {
                sources(&path, out);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// Names that begin with `s_` and a number, wherever they stand in `text`.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.strip_prefix("s_").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
        .collect()
}

#[test]
fn every_row_has_its_test_or_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("docs/attacks.md")).unwrap();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| S-")).collect();
    for (first, last) in SECTIONS {
        for number in first..=last {
            let id = format!("| S-{number:02} |");
            let row = rows.iter().find(|row| row.starts_with(&id)).unwrap_or_else(|| panic!("no row {id}"));
            let says = row.rsplit('|').nth(1).unwrap_or_default().trim();
            assert!(says.contains("`") || says.len() > 20, "{row} says neither test nor reason");
        }
    }
    let mut code = String::new();
    for folder in ["src", "tests"] {
        sources(&root.join(folder), &mut code);
    }
    let defined: BTreeSet<_> = code
        .split("fn ")
        .skip(1)
        .filter_map(|rest| rest.split('(').next())
        .filter(|name| names(name).contains(name))
        .collect();
    let named = names(&table);
    let missing: Vec<_> = named.difference(&defined).collect();
    assert!(missing.is_empty(), "the table names tests that are not there: {missing:?}");
    let silent: Vec<_> = defined.difference(&named).collect();
    assert!(silent.is_empty(), "tests that the table does not name: {silent:?}");
}
