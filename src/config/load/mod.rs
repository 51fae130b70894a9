//! The configuration's contact with the outside: the file, the `.env` beside the state, the process's
//! environment. Everything that is read is bounded; what it means is decided elsewhere.
//!
//! Start at [`load`]. [`mod@save`] writes the file, [`providers`] reads SecretRefs, [`host`] looks at the machine, [`watch`] at
//! what changes.

pub mod host;
pub mod providers;
pub mod save;
pub mod watch;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::decode::{Decoded, Problem, decode, inline_variables};
use super::environment::{Environment, parse_dotenv};
use super::model::Config;
use super::paths::{NoHome, Paths, Profile};
use super::raw::{Document, MAX_DOCUMENT_BYTES, SyntaxError};

pub use self::host::host_facts;
pub use self::providers::FilesAndCommands;
pub use self::save::{SaveError, save};

/// Bytes a `.env` file may have.
const MAX_DOTENV_BYTES: usize = 1024 * 1024;

/// The variables of this process. What is not UTF-8 is replaced, so a secret in it matches nothing.
pub fn process_environment() -> Environment {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    Environment::new(std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))))
}

/// Where the file and the state are for this process; see [`Paths::resolve`].
///
/// # Errors
/// [`NoHome`] when nothing says where.
pub fn process_paths(environment: &Environment, profile: &Profile) -> Result<Paths, NoHome> {
    let working_dir = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    Paths::resolve(environment, profile, std::env::home_dir().as_deref(), &working_dir)
}

/// The text of the configuration file at one moment. `Debug` does not show it, for it holds secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// What was in it; `None` when there was no such file.
    pub text: Option<String>,
}

impl Source {
    /// Reads `path`. No file is not an error: the defaults hold then.
    ///
    /// # Errors
    /// [`LoadError::Read`] when there is a file that cannot be read, is too long, or is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text =
            read_bounded(path, MAX_DOCUMENT_BYTES).map_err(|error| LoadError::Read { path: path.to_owned(), error })?;
        Ok(Self { path: path.to_owned(), text })
    }

    /// Parses the text; the empty document when there is no file.
    ///
    /// # Errors
    /// [`LoadError::Syntax`].
    pub fn document(&self) -> Result<Document, LoadError> {
        match &self.text {
            None => Ok(Document::empty()),
            Some(text) => {
                Document::parse(text.as_str()).map_err(|error| LoadError::Syntax { path: self.path.clone(), error })
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.text.as_ref().map(String::len);
        f.debug_struct("Source").field("path", &self.path).field("bytes", &bytes).finish()
    }
}

/// A configuration that is in order.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Where things are.
    pub paths: Paths,
    /// The file as it was read.
    pub source: Source,
    /// The file, parsed.
    pub document: Document,
    /// The settings.
    pub config: Config,
    /// What is allowed in the file but has no effect.
    pub notices: Vec<Problem>,
    /// All variables: the process, the `.env` of the state directory, `env.vars` of the file.
    pub environment: Environment,
}

/// Why there is no configuration to go by. A broken file is never followed in part.
#[derive(Debug)]
pub enum LoadError {
    /// A file is there and cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not JSON5.
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: SyntaxError,
    },
    /// Values are wrong.
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong; at least one.
        problems: Vec<Problem>,
    },
}

impl std::error::Error for LoadError {}

impl fmt::Display for LoadError {
    /// One line a fault, each beginning with `file:line:column` where there is such a place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, error } => write!(f, "{} cannot be read: {error}", path.display()),
            Self::Syntax { path, error } => {
                write!(f, "{}:{}: {}", path.display(), error.position, error.message)
            }
            Self::Invalid { path, problems } => {
                for (at, problem) in problems.iter().enumerate() {
                    let line_break = if at == 0 { "" } else { "\n" };
                    write!(f, "{line_break}{}:{problem}", path.display())?;
                }
                Ok(())
            }
        }
    }
}

/// Reads everything and decodes it.
///
/// # Errors
/// [`LoadError`], without a partial result.
pub fn load(paths: Paths, environment: Environment) -> Result<Loaded, LoadError> {
    let environment = with_dotenv(environment, &paths)?;
    let source = Source::read(&paths.config_file)?;
    let document = source.document()?;
    let (decoded, environment) = check(&document, environment)
        .map_err(|problems| LoadError::Invalid { path: paths.config_file.clone(), problems })?;
    Ok(Loaded { paths, source, document, config: decoded.config, notices: decoded.notices, environment })
}

/// `environment`, filled up from the `.env` file of the state directory. One in the working directory is not
/// read: whoever can put a file there would set the gateway's token.
///
/// # Errors
/// [`LoadError::Read`] when there is one that cannot be read.
pub fn with_dotenv(mut environment: Environment, paths: &Paths) -> Result<Environment, LoadError> {
    let path = paths.state_dir.join(".env");
    match read_bounded(&path, MAX_DOTENV_BYTES) {
        Ok(text) => environment.fill(parse_dotenv(&text.unwrap_or_default())),
        Err(error) => return Err(LoadError::Read { path, error }),
    }
    Ok(environment)
}

/// Decodes `document`; also gives `environment`, filled up from the document's `env.vars`.
///
/// # Errors
/// As [`decode`].
pub fn check(document: &Document, mut environment: Environment) -> Result<(Decoded, Environment), Vec<Problem>> {
    environment.fill(inline_variables(document));
    decode(document, &environment).map(|decoded| (decoded, environment))
}

/// The text of a regular file of at most `max_bytes`; `None` when there is no such file.
fn read_bounded(path: &Path, max_bytes: usize) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    read_text(file, max_bytes).map(Some)
}

fn read_text(file: impl Read, max_bytes: usize) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes {
        return Err(io::Error::other(format!("it is longer than {max_bytes} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        io::Error::other(format!("line {line} is not UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn paths(dir: &tempfile::TempDir) -> Paths {
        Paths { config_file: dir.path().join("openclaw.json"), state_dir: dir.path().to_owned() }
    }

    #[test]
    fn no_file_is_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = load(paths(&dir), Environment::default()).unwrap();
        assert_eq!(loaded.source.text, None);
        assert_eq!(loaded.config.gateway.port, None);
    }

    #[test]
    fn variables_come_from_the_process_then_dotenv_then_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".env"), "A=dotenv\nB=dotenv\n").unwrap();
        fs::write(dir.path().join("openclaw.json"), "{env: {vars: {A: 'file', B: 'file', C: 'file'}}}").unwrap();
        let loaded = load(paths(&dir), Environment::new([("A", "process")])).unwrap();
        let get = |name| loaded.environment.get(name);
        assert_eq!((get("A"), get("B"), get("C")), (Some("process"), Some("dotenv"), Some("file")));
    }

    #[test]
    fn debug_shows_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let text = "{gateway: {auth: {token: 's3cret'}}, secrets: {providers: {x: {source: 'exec', command: '/x', env: {A: 's3cret'}}}}}";
        fs::write(dir.path().join("openclaw.json"), text).unwrap();
        fs::write(dir.path().join(".env"), "A=s3cret").unwrap();
        let shown = format!("{:?}", load(paths(&dir), Environment::default()).unwrap());
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn a_broken_file_is_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("openclaw.json");
        let error = |contents: &[u8]| {
            fs::write(&path, contents).unwrap();
            load(paths(&dir), Environment::default()).unwrap_err().to_string()
        };
        let place = path.display();
        assert_eq!(error(b"{gateway: {port: 1}"), format!("{place}:1:1: unterminated object"));
        assert!(error(b"").contains("there is no value"));
        assert!(error(b"{\n\xff}").contains("line 2 is not UTF-8"));
        let invalid = error(b"{gateway: {\nport: 0,\nmode: 1}}");
        assert_eq!(invalid.lines().count(), 2);
        assert!(invalid.starts_with(&format!("{place}:2:7: gateway.port must be")), "{invalid}");
        let long = vec![b' '; MAX_DOCUMENT_BYTES + 1];
        assert!(error(&long).contains("longer"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(load(paths(&dir), Environment::default()).is_err());
    }
}
