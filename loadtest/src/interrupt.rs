//! Ctrl-C and SIGTERM: the run ends as by an error, so that a gateway it started is stopped and its folder removed.
//! A second one ends the program at once.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

static SEEN: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Listens from now on.
pub fn listen() -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // The second time, when the first has set the flag; hence before it.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&SEEN)).context("listening for signals")?;
        flag::register(signal, Arc::clone(&SEEN)).context("listening for signals")?;
    }
    Ok(())
}

/// An error once a signal has come.
pub fn check() -> io::Result<()> {
    if SEEN.load(Ordering::Relaxed) {
        return Err(io::Error::other("stopped by a signal"));
    }
    Ok(())
}
