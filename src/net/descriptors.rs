//! Open files: raise the limit to what the process may have, and say how many connections that allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for everything that is not a connection: listeners, the store, logs, node tools.
const RESERVE: u64 = 64;

/// What the process may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit now in force.
    pub limit: u64,
    /// Connections that fit under it.
    pub connections: usize,
}

/// Raises the soft limit to the hard one. A failure leaves the limit as it was: fewer connections, no error.
pub fn raise() -> Descriptors {
    let found = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: found.maximum, maximum: found.maximum };
    let limit = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => found.maximum,
        Err(_) => found.current,
    };
    // No limit at all still means a number: the kernel's own (fs.nr_open) is a million by default.
    let limit = limit.unwrap_or(1 << 20);
    Descriptors { limit, connections: usize::try_from(limit.saturating_sub(RESERVE)).unwrap_or(usize::MAX) }
}
