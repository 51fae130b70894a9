//! The thread for everything that may be slow: models, channels, and what they wait for. Never a frame.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The thread's nice value, on Linux where threads have their own.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// A runtime on a thread of its own.
#[derive(Debug)]
pub(super) struct Background {
    handle: Handle,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Background {
    /// Starts it.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("agent".to_owned()).spawn(move || {
            // Where there are fewer cores than threads, frames go first. Failing, they share.
            #[cfg(target_os = "linux")]
            let _ = rustix::process::setpriority_process(None, NICE);
            let _ = runtime.block_on(stopped);
            // A name that is being looked up does not hold the end up.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop, thread })
    }

    /// To spawn on.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Drops what runs there, and ends.
    pub(super) fn stop(self) {
        let _ = self.stop.send(());
        // A thread that panicked has said so.
        let _ = self.thread.join();
    }
}
