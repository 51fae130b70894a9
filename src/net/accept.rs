//! The accept loop: survives what a listener can meet, and never spins.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::shutdown::Shutdown;

/// Pause after the process ran out of descriptors or memory: long enough not to spin, short enough that a
/// freed descriptor is used at once by human measure.
const STARVED_PAUSE: Duration = Duration::from_millis(50);

/// What an error of `accept` means for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The peer was gone before we took it: go on.
    Peer,
    /// The process or the system has run out of something: pause, then go on.
    Starved,
}

/// Sorts an error of `accept(2)`. There is no error after which a listening socket is better abandoned.
fn sort(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted => Failure::Peer,
        _ => Failure::Starved,
    }
}

/// Accepts until `shutdown`, handing each socket to `take`.
pub async fn accept_loop(listener: TcpListener, shutdown: Shutdown, mut take: impl FnMut(TcpStream, SocketAddr)) {
    let mut starving = false;
    loop {
        let accepted = tokio::select! {
            // Cancel safe: a connection is either returned or still in the kernel's queue.
            accepted = listener.accept() => accepted,
            () = shutdown.begun() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                if std::mem::take(&mut starving) {
                    tracing::info!("accepting connections again");
                }
                take(stream, peer);
            }
            Err(error) if sort(&error) == Failure::Peer => {}
            Err(error) => {
                if !std::mem::replace(&mut starving, true) {
                    tracing::warn!(%error, "cannot accept connections for now; raise the open-file limit if this lasts");
                }
                tokio::time::sleep(STARVED_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_descriptors_pauses_and_a_lost_peer_does_not() {
        assert_eq!(sort(&io::Error::from_raw_os_error(24)), Failure::Starved); // EMFILE
        assert_eq!(sort(&io::Error::from_raw_os_error(23)), Failure::Starved); // ENFILE
        assert_eq!(sort(&io::Error::from_raw_os_error(103)), Failure::Peer); // ECONNABORTED
    }
}
