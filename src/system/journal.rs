//! The gateway's log as a file, and its end as `logs.tail` shows it.
//!
//! One JSON object a line, with the keys that the clients' log views read: `time`, `_meta.logLevelName`,
//! `_meta.name`, `message`. One file a day, [`KEPT_FILES`] kept.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};

use crate::rpc::error::RpcError;
use crate::text::plain;

/// Days of log that are kept.
pub const KEPT_FILES: usize = 14;
const PREFIX: &str = "clawgate";
const SUFFIX: &str = "log";

/// Opens the log of the day in `folder`, which is made when it is not there.
///
/// # Errors
/// The folder or the file cannot be made.
pub fn open(folder: &Path) -> Result<RollingFileAppender, InitError> {
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(PREFIX)
        .filename_suffix(SUFFIX)
        .max_log_files(KEPT_FILES)
        .build(folder)
}

/// Parameters of `logs.tail`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tail {
    /// Byte of the file to go on from; the end of an earlier answer.
    pub cursor: Option<u64>,
    /// Lines at most: 1 to 5,000, default 500.
    pub limit: Option<usize>,
    /// Bytes at most: 1 to 1,000,000, default 250,000.
    pub max_bytes: Option<u64>,
}

impl Tail {
    /// Checks the ranges.
    pub fn check(&self) -> Result<(), RpcError> {
        let refuse = |what: &'static str| Err(RpcError::invalid(format!("invalid logs.tail params: {what}")));
        match self {
            Self { limit: Some(limit), .. } if !(1..=5000).contains(limit) => refuse("at limit: must be 1 to 5000"),
            Self { max_bytes: Some(bytes), .. } if !(1..=1_000_000).contains(bytes) => {
                refuse("at maxBytes: must be 1 to 1000000")
            }
            _ => Ok(()),
        }
    }
}

/// What `logs.tail` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tailed {
    /// The file.
    pub file: PathBuf,
    /// Where to go on.
    pub cursor: u64,
    /// Bytes of the file.
    pub size: u64,
    /// The lines, oldest first.
    pub lines: Vec<String>,
    /// Lines before these were left out.
    pub truncated: bool,
    /// The cursor was of another file: the tail starts anew.
    pub reset: bool,
}

/// Reads the end of the newest log in `folder`.
///
/// # Errors
/// There is no log there, or it cannot be read.
pub fn tail(folder: &Path, tail: &Tail) -> Result<Tailed, RpcError> {
    let unreadable = |error: io::Error| RpcError::unavailable(format!("the log cannot be read: {error}"));
    let file = newest(folder).map_err(unreadable)?;
    let Some(file) = file else {
        return Err(RpcError::unavailable(format!("there is no log in {} yet", folder.display())));
    };
    read_end(&file, tail).map_err(unreadable)
}

/// The files are named by day, so the newest is the last by name.
fn newest(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) && newest.as_ref().is_none_or(|known| *known < path) {
            newest = Some(path);
        }
    }
    Ok(newest)
}

fn read_end(path: &Path, tail: &Tail) -> io::Result<Tailed> {
    let limit = tail.limit.unwrap_or(500);
    let max_bytes = tail.max_bytes.unwrap_or(250_000);
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let reset = tail.cursor.is_some_and(|cursor| cursor > size);
    let from = tail.cursor.filter(|_| !reset);
    let start = from.unwrap_or(0).max(size.saturating_sub(max_bytes));
    let mut truncated = start > from.unwrap_or(0);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(size - start).read_to_end(&mut bytes)?;
    // The last line may still be being written: it is for the next time.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let cursor = start + whole as u64;
    let text = String::from_utf8_lossy(&bytes[..whole]);
    // A start in the middle of the file is in the middle of a line.
    let cut = if truncated { text.find('\n').map_or(text.len(), |at| at + 1) } else { 0 };
    let mut lines: Vec<String> = text[cut..].lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if lines.len() > limit {
        truncated = true;
        lines.drain(..lines.len() - limit);
    }
    Ok(Tailed { file: path.to_owned(), cursor, size, lines, truncated, reset })
}

/// Writes events as lines for [`tail`].
#[derive(Debug)]
pub struct LineFormat;

impl<S, N> tracing_subscriber::fmt::FormatEvent<S, N> for LineFormat
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    N: for<'a> tracing_subscriber::fmt::FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &tracing_subscriber::fmt::FmtContext<'_, S, N>,
        mut writer: tracing_subscriber::fmt::format::Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let mut text = Text::default();
        event.record(&mut text);
        let message = match text.fields.is_empty() {
            true => text.message,
            false => format!("{}{}", text.message, text.fields),
        };
        let line = serde_json::json!({
            "time": crate::clock::UnixMs::now().to_rfc3339(),
            "_meta": {
                "logLevelName": event.metadata().level().as_str(),
                "name": serde_json::json!({"subsystem": subsystem(event.metadata().target())}).to_string(),
            },
            "message": message,
        });
        writeln!(writer, "{line}")
    }
}

/// `clawgate::conn::driver` -> `conn/driver`.
fn subsystem(target: &str) -> String {
    target.strip_prefix("clawgate::").unwrap_or(target).replace("::", "/")
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        use fmt::Write as _;
        let value = plain(value, 300);
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("clawgate.2026-01-01.log"), "old\n").unwrap();
        std::fs::write(folder.path().join("clawgate.2026-01-02.log"), text).unwrap();
        folder
    }

    #[test]
    fn shows_the_last_lines_of_the_newest_file() {
        let folder = folder("a\nb\nc\nhalf");
        let tailed = tail(folder.path(), &Tail { limit: Some(2), ..Tail::default() }).unwrap();
        assert_eq!(tailed.lines, ["b", "c"]);
        assert!(tailed.truncated && !tailed.reset);
        assert_eq!(tailed.cursor, 6);
        let next = tail(folder.path(), &Tail { cursor: Some(2), ..Tail::default() }).unwrap();
        assert_eq!(next.lines, ["b", "c"]);
        assert!(!next.truncated);
    }

    #[test]
    fn a_cursor_of_another_file_starts_anew() {
        let folder = folder("a\n");
        let tailed = tail(folder.path(), &Tail { cursor: Some(1000), ..Tail::default() }).unwrap();
        assert!(tailed.reset);
        assert_eq!(tailed.lines, ["a"]);
    }

    #[test]
    fn a_cut_line_is_left_out() {
        let folder = folder("aaaaaaaaaa\nb\n");
        let tailed = tail(folder.path(), &Tail { max_bytes: Some(5), ..Tail::default() }).unwrap();
        assert_eq!(tailed.lines, ["b"]);
    }
}
