//! Where log lines go: standard error for people, a file a day for `logs.tail`. Neither ever stalls a worker:
//! both are written by threads of their own, and lines that do not fit their queues are counted and left out.

use std::io::IsTerminal;
use std::path::Path;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::system::journal::{self, LineFormat};

/// How much is said, and how.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Least level on standard error.
    pub console: LevelFilter,
    /// Least level in the file.
    pub file: LevelFilter,
    /// JSON on standard error too.
    pub json: bool,
}

/// Lines that may wait for a writer. The queue's slots are there from the start, so each is memory of an idle gateway.
const QUEUED_LINES: usize = 4096;

fn queued(thread: &str, writer: impl std::io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES).thread_name(thread).finish(writer)
}

/// Flushes what is queued when it is dropped: keep it until the very end.
#[derive(Debug)]
pub struct Logging {
    _guards: [WorkerGuard; 2],
}

/// What goes to standard error: `wanted` is the value of `CLAWGATE_LOG`, a level and levels of parts of the program
/// (`warn,clawgate::channels=debug`). One that can't be read gives way to `least`, and is told of.
fn console_filter(wanted: Option<&str>, least: LevelFilter) -> (Targets, Option<String>) {
    match wanted.filter(|wanted| !wanted.is_empty()).map(str::parse::<Targets>) {
        None => (Targets::new().with_default(least), None),
        Some(Ok(targets)) => (targets, None),
        Some(Err(error)) => {
            let why = format!("CLAWGATE_LOG cannot be read ({error}): a level, or PART=LEVEL with commas between");
            (Targets::new().with_default(least), Some(why))
        }
    }
}

/// Starts logging. `CLAWGATE_LOG` wins over `style.console`.
///
/// # Errors
/// The log folder cannot be used.
pub fn start(folder: &Path, style: Style) -> Result<Logging, tracing_appender::rolling::InitError> {
    let (file, file_guard) = queued("log file", journal::open(folder)?);
    let (console, console_guard) = queued("log console", std::io::stderr());
    let (filter, complaint) = console_filter(std::env::var("CLAWGATE_LOG").ok().as_deref(), style.console);
    let lines = tracing_subscriber::fmt::layer().event_format(LineFormat);
    let console = if style.json {
        lines.with_writer(console).with_filter(filter).boxed()
    } else {
        tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_writer(console)
            .with_filter(filter)
            .boxed()
    };
    let file = tracing_subscriber::fmt::layer().event_format(LineFormat).with_writer(file).with_filter(style.file);
    // A second start in one process (tests) keeps the first one's subscriber.
    let _ = tracing_subscriber::registry().with(console).with(file).try_init();
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
    Ok(Logging { _guards: [file_guard, console_guard] })
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_filter_names_parts_and_a_wrong_one_silences_nothing() {
        let (filter, complaint) = console_filter(Some("warn,clawgate::channels=debug"), LevelFilter::INFO);
        assert!(complaint.is_none());
        assert!(filter.would_enable("clawgate::channels::telegram", &Level::DEBUG));
        assert!(
            !filter.would_enable("clawgate::http", &Level::INFO) && filter.would_enable("clawgate::http", &Level::WARN)
        );
        for (wanted, complains) in [(None, false), (Some(""), false), (Some("clawgate=loud"), true)] {
            let (filter, complaint) = console_filter(wanted, LevelFilter::INFO);
            assert!(
                filter.would_enable("clawgate::http", &Level::INFO) && complaint.is_some() == complains,
                "{wanted:?}"
            );
        }
    }
}
