//! Binding: every address of the plan, or none.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel holds for us before we accept them. Linux caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// An address that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", explain(source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the operating system said.
    pub source: io::Error,
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is taken by another program (see who with `ss -ltnp`; choose another with --port or gateway.port)"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address (see `ip address`; check gateway.bind)".to_owned()
        }
        io::ErrorKind::PermissionDenied => "not permitted (ports below 1024 need a privilege)".to_owned(),
        _ => error.to_string(),
    }
}

/// Binds all of `addresses`, in order. The first that fails ends it: a gateway never listens on less, or on
/// anything else, than it was told (contract 1.2).
pub fn bind_all(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, BindError> {
    addresses.iter().map(|&address| bind(address).map_err(|source| BindError { address, source })).collect()
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted gateway must not wait for its old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named() {
        let first = bind_all(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = bind_all(&[address]).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()) && error.to_string().contains("--port"), "{error}");
    }

    #[test]
    fn a_missing_address_is_fatal() {
        // TEST-NET-3 (RFC 5737) is on no machine.
        let error = bind_all(&["203.0.113.7:0".parse().unwrap()]).unwrap_err();
        assert!(error.to_string().contains("gateway.bind"), "{error}");
    }
}
