//! The scripts among a command's arguments: files whose content says what runs.
//!
//! An approval is for what a person was shown, and of a script that is its content. Found are the program itself, where it
//! begins with `#!`, and what an interpreter is given (a shell, `python3`, `awk -f`, `make -f`, `node -r`): every file up to
//! the first argument that can be nothing but its script, for what follows is the script's own affair. Behind a wrapper
//! (`env`, `sudo`, `timeout`) every file up to the interpreter counts. Relative names are looked up in the command's
//! folder and in folders that come before them among the arguments (`env -C`, `make -C`).
//!
//! Not found is what a script, a text (`sh -c`) or a program names by itself: a library, a `Makefile`, a configuration.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};

use super::plan::Script;
use super::programs::{is_interpreter, is_wrapper};

/// Content up to this many bytes is read; larger files are known by their size and the times the kernel keeps.
const MAX_SCRIPT_BYTES: u64 = 16 * 1024 * 1024;
/// Files that an approval is bound to, at most.
const MAX_FILES: usize = 16;
/// Folders in which names are looked up, at most.
const MAX_FOLDERS: usize = 4;

/// What binds the scripts of a command; `None` where there are none.
///
/// # Errors
/// They cannot be read, or are too many.
pub(super) fn script(argv: &[String], cwd: Option<&Path>) -> Result<Option<Script>, String> {
    let denied = |file: &Path, why: String| format!("SYSTEM_RUN_DENIED: {}: {why}", file.display());
    let mut bound = Vec::new();
    for (argv_index, file) in operands(argv, cwd)? {
        let content = content(&file).map_err(|error| denied(&file, error.to_string()))?;
        bound.push((argv_index, file.display().to_string(), content));
    }
    let Some((argv_index, path, first)) = bound.first().cloned() else { return Ok(None) };
    let sha256 = match (&bound[..], first) {
        ([_], Content::Sha256(sha256)) => sha256,
        (all, _) => hex_sha256(serde_json::json!(all).to_string().as_bytes()),
    };
    Ok(Some(Script { argv_index, path, sha256 }))
}

/// Whether a file is run by another program, which its first line names.
pub(super) fn begins_with_a_shebang(file: &Path) -> bool {
    let mut start = [0; 2];
    std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut start)).is_ok() && &start == b"#!"
}

/// What is known of the word that is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// A program that runs others.
    Wrapper,
    /// One that is given scripts.
    Interpreter,
    /// Neither.
    Other,
}

impl Reader {
    fn of(program: &str) -> Self {
        if is_interpreter(program) {
            Self::Interpreter
        } else if is_wrapper(program) {
            Self::Wrapper
        } else {
            Self::Other
        }
    }
}

fn operands(argv: &[String], cwd: Option<&Path>) -> Result<Vec<(usize, PathBuf)>, String> {
    let Some(program) = argv.first() else { return Ok(Vec::new()) };
    let mut folders = vec![cwd.unwrap_or(Path::new("/")).to_path_buf()];
    let mut found = Vec::new();
    let file = folders[0].join(program);
    let real = file.canonicalize().unwrap_or_else(|_| file.clone());
    if begins_with_a_shebang(&file) {
        found.push((0, real.clone()));
    }
    let mut reader = Reader::of(program);
    if reader == Reader::Other {
        reader = Reader::of(&real.to_string_lossy());
    }
    let mut follows_an_option = false;
    for (index, word) in argv.iter().enumerate().skip(1) {
        if reader == Reader::Other {
            break;
        }
        let is_option = word.len() > 1 && word.starts_with('-');
        let inner = Reader::of(word);
        if reader == Reader::Wrapper && !is_option && inner != Reader::Other {
            (reader, follows_an_option) = (inner, false);
            continue;
        }
        let mut is_file = false;
        for name in names(word, is_option) {
            for folder in folders.clone() {
                let path = folder.join(name);
                if path.is_file() {
                    let real = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
                    is_file = true;
                    found.push((index, real));
                } else if path.is_dir() && folders.len() < MAX_FOLDERS {
                    folders.push(path);
                }
            }
        }
        if found.len() > MAX_FILES {
            return Err(format!("SYSTEM_RUN_DENIED: more than {MAX_FILES} files to bind an approval to"));
        }
        // Behind an option it may be the option's value, and the script comes later.
        if reader == Reader::Interpreter && is_file && !is_option && !follows_an_option {
            break;
        }
        follows_an_option = is_option && !word.contains('=');
    }
    Ok(found)
}

/// The names that an argument may hold: itself, or what is behind an option's letter or an equals sign.
fn names(word: &str, is_option: bool) -> impl Iterator<Item = &str> {
    let value = word.split_once('=').map(|(_, value)| value);
    let (whole, attached) = match is_option {
        true => (None, word.get(2..).filter(|_| !word.starts_with("--"))),
        false => (Some(word), None),
    };
    [whole, attached, value].into_iter().flatten().filter(|name| !name.is_empty())
}

/// What the content of a file is known by.
#[derive(Clone, serde::Serialize)]
enum Content {
    /// The whole of it.
    Sha256(String),
    /// Where it is, its size, and its times of change, in nanoseconds: a writer cannot set the last one.
    Stat { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
}

fn content(file: &Path) -> std::io::Result<Content> {
    let opened = std::fs::File::open(file)?;
    let meta = opened.metadata()?;
    if meta.len() > MAX_SCRIPT_BYTES {
        return Ok(Content::Stat {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        });
    }
    let mut content = Vec::new();
    opened.take(MAX_SCRIPT_BYTES + 1).read_to_end(&mut content)?;
    Ok(Content::Sha256(hex_sha256(&content)))
}

fn hex_sha256(content: &[u8]) -> String {
    digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::plan::prepare;
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// A folder with scripts and data, and with programs of these names in `bin`.
    fn workshop(programs: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let cwd = folder.path().canonicalize().unwrap();
        for name in ["bin", "sub"] {
            std::fs::create_dir(cwd.join(name)).unwrap();
        }
        for name in ["job.sh", "pre.js", "main.js", "data", "lib.mk", "sub/inner.sh"] {
            std::fs::write(cwd.join(name), "one\n").unwrap();
        }
        for name in programs {
            let program = cwd.join("bin").join(name);
            std::fs::write(&program, b"\x7fELF").unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        (folder, cwd)
    }

    #[test]
    fn a_script_is_bound_however_its_interpreter_is_come_by() {
        let programs = ["sh", "python3.12", "timeout", "env", "sudo", "flock", "gawk", "make", "node"];
        let changed = |argv: &[&str], file: &str| {
            let (_folder, cwd) = workshop(&programs);
            std::os::unix::fs::symlink("sh", cwd.join("bin/tool")).unwrap();
            let path = cwd.join("bin").display().to_string();
            let plan = prepare(&words(argv), cwd.to_str(), &path).unwrap();
            plan.check(&plan.argv, Some(&cwd)).unwrap();
            std::fs::write(cwd.join(file), "two\n").unwrap();
            plan.check(&plan.argv, Some(&cwd)).is_err()
        };
        for (argv, file) in [
            (&["sh", "job.sh"][..], "job.sh"),
            (&["sh", "-eu", "job.sh", "data"], "job.sh"),
            (&["tool", "job.sh"], "job.sh"),
            (&["python3.12", "job.sh"], "job.sh"),
            (&["env", "LANG=C", "python3.12", "job.sh"], "job.sh"),
            (&["timeout", "9", "sh", "job.sh"], "job.sh"),
            (&["timeout", "9", "./job.sh"], "job.sh"),
            (&["sudo", "-u", "www", "timeout", "9", "sh", "./job.sh"], "job.sh"),
            (&["flock", "data", "sh", "job.sh"], "job.sh"),
            (&["env", "-C", "sub", "sh", "inner.sh"], "sub/inner.sh"),
            (&["env", "--chdir=sub", "sh", "inner.sh"], "sub/inner.sh"),
            (&["gawk", "-f", "job.sh", "data"], "job.sh"),
            (&["gawk", "-fjob.sh", "data"], "job.sh"),
            (&["make", "-f", "lib.mk", "all"], "lib.mk"),
            (&["make", "--file=lib.mk", "all"], "lib.mk"),
            (&["node", "-r", "./pre.js", "./main.js", "data"], "pre.js"),
            (&["node", "-r", "./pre.js", "./main.js", "data"], "main.js"),
        ] {
            assert!(changed(argv, file), "{argv:?} with another {file}");
        }
        // What a script is given is its own affair: it may change between the word of a person and the run.
        for (argv, file) in [(&["sh", "job.sh", "data"][..], "data"), (&["sh", "-c", "cat data"], "data")] {
            assert!(!changed(argv, file), "{argv:?} with another {file}");
        }
    }

    #[test]
    fn a_large_file_is_bound_by_its_size_and_time() {
        let (_folder, cwd) = workshop(&["sh"]);
        let file = std::fs::File::create(cwd.join("job.sh")).unwrap();
        file.set_len(MAX_SCRIPT_BYTES + 1).unwrap();
        let path = cwd.join("bin").display().to_string();
        let plan = prepare(&words(&["sh", "job.sh"]), cwd.to_str(), &path).unwrap();
        plan.check(&plan.argv, Some(&cwd)).unwrap();
        file.set_len(MAX_SCRIPT_BYTES + 2).unwrap();
        assert!(plan.check(&plan.argv, Some(&cwd)).unwrap_err().contains("script operand changed"));
    }

    #[test]
    fn what_would_take_for_ever_to_bind_is_refused() {
        let (_folder, cwd) = workshop(&["flock"]);
        let path = cwd.join("bin").display().to_string();
        let many = [&words(&["flock"])[..], &vec!["data".to_owned(); MAX_FILES + 1]].concat();
        assert!(prepare(&many, cwd.to_str(), &path).unwrap_err().contains("more than 16 files"));
    }
}
