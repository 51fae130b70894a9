//! The house rules that no compiler checks: who may import whom, what the pure layers must not name, and names.
//!
//! Start at [`LAYERS`]: it is the picture in `docs/architecture.md`, in a form that fails when the code leaves it. A row
//! names only rows above it, so imports point down and there is no cycle.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Bottom up. A room is a module with everything below it that has no row of its own. Words are for everyone above
/// them; a row names what else its room may import, and names only rows above it.
#[rustfmt::skip]
static LAYERS: [Layer; 6] = [
    Layer { name: "0 words", pure: true, rooms: &[
        Room("address", ""),
        Room("clock", ""),
        Room("disk", ""),
        Room("limits", ""),
        Room("text", ""),
        Room("spread", ""),
        Room("wake", ""),
        Room("sparing", ""),
        Room("secret", ""),
        Room("id", "secret"),
        Room("rpc", "limits"),
        Room("ws::close", ""),
        Room("ws::message", "ws::close"),
    ]},
    Layer { name: "1 decisions", pure: true, rooms: &[
        Room("ws", ""),
        Room("auth", ""),
        Room("config", ""),
        Room("hub::outbox", ""),
        Room("conn::connect", ""),
        Room("conn::machine", "conn::connect"),
        Room("devices::record", "auth"),
        Room("devices::pairing", "auth devices::record"),
        Room("devices::setup", "auth"),
        Room("qr", ""),
        Room("nodes::policy", ""),
        Room("nodes::surface", "nodes::policy"),
        Room("node_host::programs", ""),
        Room("node_host::policy", "node_host::programs"),
        Room("node_host::environment", ""),
        Room("sessions::message", ""),
        Room("sessions::key", "config"),
        Room("agent::context", "sessions::message"),
        Room("agent::providers::sse", ""),
        Room("agent::providers::reply", "sessions::message"),
        Room("api::fault", ""),
        Room("api::completion", "sessions::message api::fault"),
        Room("api::tool_call", "api::fault"),
        Room("channels::pairing", ""),
        Room("channels::telegram::update", "config sessions::key"),
        Room("channels::telegram::text", ""),
    ]},
    Layer { name: "2 adapters", pure: false, rooms: &[
        Room("shutdown", ""),
        Room("task", ""),
        Room("private_file", ""),
        Room("net::stream", ""),
        Room("net::preauth", ""),
        Room("net", "config private_file shutdown task net::stream"),
        Room("tailscale", "shutdown task"),
        Room("store", ""),
        Room("outgoing", ""),
        Room("agent::providers", "outgoing config sessions::message agent::providers::sse agent::providers::reply"),
        Room("config::load", "config"),
        Room("config::snapshot", "config config::load"),
        Room("client", "private_file ws auth config config::load task"),
        Room("host_stats", ""),
        Room("node_host", "task client host_stats node_host::policy node_host::environment node_host::programs"),
    ]},
    Layer { name: "3 drivers", pure: false, rooms: &[
        Room("hub", "auth hub::outbox"),
        Room("rpc::dispatch", "auth task hub hub::outbox"),
        Room("conn", "auth ws net::stream net::preauth task hub hub::outbox rpc::dispatch conn::connect conn::machine"),
        Room("http", "ws net::stream task api::fault"),
    ]},
    // A domain sees another through its handle, the records that the handle gives out, and the rule of who may approve.
    Layer { name: "4 domains", pure: false, rooms: &[
        Room("system", "store task host_stats hub rpc::dispatch"),
        Room("devices", "auth store task hub rpc::dispatch devices::record devices::pairing devices::setup"),
        Room("nodes", "auth store task hub hub::outbox rpc::dispatch devices devices::record devices::pairing nodes::policy nodes::surface"),
        Room("sessions", "auth store task hub hub::outbox rpc::dispatch sessions::message sessions::key"),
        Room("approvals", "auth store hub rpc::dispatch"),
        Room("agent", "approvals store task outgoing hub rpc::dispatch sessions sessions::message sessions::key nodes agent::context agent::providers agent::providers::reply"),
        Room("api", "task agent agent::providers sessions sessions::message sessions::key api::fault api::completion api::tool_call"),
        Room("channels", "store task outgoing config system rpc::dispatch sessions sessions::message sessions::key agent channels::pairing channels::telegram::update channels::telegram::text"),
    ]},
    // The composition sees everything; that is what it is for.
    Layer { name: "5 composition", pure: false, rooms: &[
        Room("methods", "*"),
        Room("fuzz", "*"),
        Room("server", "*"),
        Room("cli", "*"),
        Room("main", "*"),
    ]},
];

/// A layer is `pure` if its rooms must not name what [`IMPURE`] lists.
struct Layer {
    name: &'static str,
    pure: bool,
    rooms: &'static [Room],
}

/// A module, and what it may import besides words: names between blanks, or `*` for everything.
struct Room(&'static str, &'static str);

/// Who names what its layer must not, and why.
const EXCEPTIONS: &[Exception] = &[
    Exception { room: "clock", word: "SystemTime::now", reason: "it is the clock" },
    Exception { room: "clock", word: "Instant::now", reason: "it is the clock" },
    Exception { room: "id", word: "getrandom", reason: "it is the source of unguessable ids" },
    Exception { room: "conn::machine", word: "rpc::dispatch::Routed", reason: "a word of two cases, no more" },
];

/// What layers 0 and 1 do not name: they are given bytes, facts and `now`, so that they can be fuzzed and measured.
#[rustfmt::skip]
const IMPURE: &[&str] = &[
    "tokio", "hyper", "rusqlite", "getrandom", "std::fs", "std::env", "std::thread", "std::process",
    "TcpStream", "TcpListener", "UdpSocket", "UnixStream", "SystemTime::now", "Instant::now",
];

/// Words that have few homes. Elsewhere they are a second opinion.
const HOMES: &[Home] = &[
    Home {
        words: &["tokio::spawn", "tokio::task::spawn(", "spawn_local"],
        files: &["task.rs"],
        reason: "tasks are named, tracked, and their panics counted",
    },
    Home {
        words: &["StatusCode"],
        files: &[
            "http/reject.rs",
            "http/page.rs",
            "http/upgrade.rs",
            "http/api.rs",
            "http/files.rs",
            "http/join.rs",
            "client/",
        ],
        reason: "the server's refusals are chosen in one table a kind; the client reads what it is told",
    },
];

/// Names that say nothing: of modules, and the ends of the names of types.
const EMPTY_NAMES: &[&str] = &["common", "helper", "helpers", "manager", "misc", "util", "utils"];

struct Exception {
    room: &'static str,
    word: &'static str,
    reason: &'static str,
}

struct Home {
    words: &'static [&'static str],
    files: &'static [&'static str],
    reason: &'static str,
}

#[test]
fn the_table_points_down() {
    let mut above = BTreeSet::new();
    for Room(room, imports) in LAYERS.iter().flat_map(|layer| layer.rooms) {
        for import in imports.split_whitespace().filter(|import| *import != "*") {
            assert!(above.contains(import), "{room} may not import {import}: its row is not above");
        }
        assert!(above.insert(*room), "{room} has two rows");
    }
}

#[test]
fn imports_point_down_or_stay_in_their_room() {
    let mut faults = BTreeSet::new();
    for source in sources() {
        let (layer, Room(room, allowed)) =
            room_of(&source.module).unwrap_or_else(|| panic!("{} is in no room", source.file));
        for path in source.imports() {
            let Some((below, Room(target, _))) = room_of(&path) else { continue };
            let is_word = below.name == LAYERS[0].name && layer.name != below.name;
            let is_listed = *allowed == "*" || allowed.split_whitespace().any(|import| import == *target);
            if !(target == room || is_word || is_listed || is_excepted(room, &path.join("::"))) {
                faults.insert(format!("src/{}: {room} ({}) imports {}", source.file, layer.name, path.join("::")));
            }
        }
    }
    none(faults);
}

#[test]
fn words_and_decisions_are_pure() {
    let mut faults = BTreeSet::new();
    for source in sources() {
        let Some((Layer { name, pure: true, .. }, Room(room, _))) = room_of(&source.module) else { continue };
        for word in IMPURE.iter().filter(|word| source.names(word)) {
            if !is_excepted(room, word) {
                faults.insert(format!("src/{}: {word} in layer {name}", source.file));
            }
        }
    }
    none(faults);
}

#[test]
fn every_exception_is_needed() {
    for Exception { room, word, reason } in EXCEPTIONS {
        let needed = |source: &Source| {
            let is_there = room_of(&source.module).is_some_and(|(_, Room(found, _))| found == room);
            is_there && (source.names(word) || source.imports().iter().any(|path| path.join("::") == *word))
        };
        assert!(sources().any(|source| needed(&source)), "{room} does without {word} ({reason}): take the row away");
    }
}

#[test]
fn words_with_one_home_stay_there() {
    let mut faults = BTreeSet::new();
    for source in sources() {
        for Home { words, files, reason } in
            HOMES.iter().filter(|home| !home.files.iter().any(|file| source.file.starts_with(file)))
        {
            for word in words.iter().filter(|word| source.code.contains(**word)) {
                faults.insert(format!("src/{}: {word} belongs in {}: {reason}", source.file, files.join(", ")));
            }
        }
    }
    none(faults);
}

#[test]
fn every_module_says_what_it_is() {
    let silent = sources()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| format!("src/{}: no //!", source.file));
    none(silent.collect());
}

#[test]
fn names_say_something() {
    let mut faults = BTreeSet::new();
    for source in sources() {
        let modules = source.module.iter().cloned();
        let types = ["struct ", "enum ", "trait "].into_iter().flat_map(|keyword| source.code.split(keyword).skip(1));
        let types = types.filter_map(|rest| suffix(rest.split(|c: char| !c.is_alphanumeric()).next()?));
        for name in modules.chain(types).filter(|name| EMPTY_NAMES.contains(&name.as_str())) {
            faults.insert(format!("src/{}: {name} says nothing", source.file));
        }
    }
    none(faults);
}

/// A source file of the crate.
struct Source {
    /// Its path in `src/`, as `conn/machine.rs`.
    file: String,
    /// Its module, as `[conn, machine]`.
    module: Vec<String>,
    text: String,
    /// Its text without comments and without the tests at its end.
    code: String,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Self {
        let file = path.strip_prefix(root).expect("a file of src").display().to_string();
        let module = file.trim_end_matches(".rs").split('/').filter(|part| !["mod", "lib"].contains(part));
        let text = fs::read_to_string(path).expect("a readable file");
        let ours = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let code = ours.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
        Self { module: module.map(str::to_owned).collect(), file, text, code }
    }

    /// Whether `word` stands in the code as a name of its own.
    fn names(&self, word: &str) -> bool {
        let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
        self.code.match_indices(word).any(|(at, _)| {
            !self.code[..at].ends_with(part_of_name) && !self.code[at + word.len()..].starts_with(part_of_name)
        })
    }

    /// Every path that begins at `crate` or `super`, written out from the root of the crate.
    fn imports(&self) -> BTreeSet<Vec<String>> {
        let mut found = BTreeSet::new();
        let parent = &self.module[..self.module.len().saturating_sub(1)];
        for (root, base) in [("crate::", &[][..]), ("super::", parent)] {
            for (at, _) in self.code.match_indices(root) {
                // `super::super::` climbs further, and its own second word is no start.
                if !self.code[..at].ends_with("super::") {
                    follow(&self.code[at + root.len()..], base.to_vec(), &mut found);
                }
            }
        }
        found
    }
}

/// Reads the path, or the tree of paths in braces, that `text` begins with. Returns what is behind it.
fn follow<'a>(mut text: &'a str, mut path: Vec<String>, found: &mut BTreeSet<Vec<String>>) -> &'a str {
    loop {
        text = text.trim_start();
        if let Some(mut branches) = text.strip_prefix('{') {
            loop {
                branches = follow(branches, path.clone(), found).trim_start();
                match branches.strip_prefix(',') {
                    Some(next) => branches = next,
                    None => return branches.strip_prefix('}').unwrap_or(branches),
                }
            }
        }
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        match word {
            "super" => drop(path.pop()),
            "self" | "" => {}
            _ => path.push(word.to_owned()),
        }
        match rest.strip_prefix("::") {
            Some(next) => text = next,
            None => {
                found.insert(path);
                return rest.trim_start_matches(|c| c != ',' && c != '}' && c != ';' && c != '\n');
            }
        }
    }
}

/// The room with the longest name that `module` is in, and its layer.
fn room_of(module: &[String]) -> Option<(&'static Layer, &'static Room)> {
    let is_in = |room: &str| {
        room.split("::").map(Some).eq(module.iter().map(|part| Some(part.as_str())).take(room.split("::").count()))
    };
    let rooms = LAYERS.iter().flat_map(|layer| layer.rooms.iter().map(move |room| (layer, room)));
    rooms.filter(|(_, Room(room, _))| is_in(room)).max_by_key(|(_, Room(room, _))| room.len())
}

/// The last of several words of a name in camel case, in lower case.
fn suffix(name: &str) -> Option<String> {
    let start = name.rfind(char::is_uppercase).filter(|start| *start > 0)?;
    Some(name[start..].to_lowercase())
}

fn is_excepted(room: &str, word: &str) -> bool {
    EXCEPTIONS.iter().any(|exception| exception.room == room && exception.word == word)
}

/// All source files but the tests and the crate's front page.
fn sources() -> impl Iterator<Item = Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 20, "src/ is where the sources are");
    files.into_iter().map(move |path| Source::read(&root, &path))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "tests" {
            collect(&path, files);
        } else if name.ends_with(".rs") && !["lib.rs", "tests.rs"].contains(&name) {
            files.push(path);
        }
    }
}

#[track_caller]
fn none(faults: BTreeSet<String>) {
    assert!(faults.is_empty(), "\n{}\n", Vec::from_iter(faults).join("\n"));
}
