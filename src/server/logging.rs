//! Where log lines go: standard error for people, a file a day for `logs.tail`. Neither ever stalls a worker:
//! both are written by threads of their own, and lines that do not fit their queues are counted and left out.

use std::io::IsTerminal;
use std::path::Path;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

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

/// Starts logging. `CLAWGATE_LOG` (the syntax of `tracing`'s `EnvFilter`) wins over `style.console`.
///
/// # Errors
/// The log folder cannot be used.
pub fn start(folder: &Path, style: Style) -> Result<Logging, tracing_appender::rolling::InitError> {
    let (file, file_guard) = queued("log file", journal::open(folder)?);
    let (console, console_guard) = queued("log console", std::io::stderr());
    let filter = EnvFilter::try_from_env("CLAWGATE_LOG")
        .unwrap_or_else(|_| EnvFilter::default().add_directive(style.console.into()));
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
    Ok(Logging { _guards: [file_guard, console_guard] })
}
