//! The real proxies, each with its configuration file of `docs/proxies/`, in which only addresses are replaced.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::identity;
use crate::network::Networks;
use crate::program::{Program, eventually};
use crate::support::gateway::free_port;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nginx,
    Caddy,
}

/// Where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the gateway's host: it connects from loopback.
    SameHost,
    /// In a network of its own: it connects from an address of its own.
    OwnNetwork,
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    _program: Program,
    _folder: TempDir,
    /// Which program it is.
    pub(crate) kind: Kind,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// The address it connects to the gateway from.
    pub(crate) source: Ipv4Addr,
}

/// The addresses of the files in `docs/proxies/`.
const GATEWAY: &str = "127.0.0.1:18789";
const IDENTITY: &str = "127.0.0.1:4180";

impl Kind {
    /// Whether it is installed.
    pub(crate) fn is_installed(self) -> bool {
        let version = if self == Self::Nginx { "-v" } else { "version" };
        Command::new(self.program()).arg(version).output().is_ok_and(|output| output.status.success())
    }

    fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Caddy => "caddy",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Nginx => "nginx.conf",
            Self::Caddy => "Caddyfile",
        }
    }

    /// The command that serves the configuration in `folder` until it is stopped.
    fn command(self, folder: &Path) -> Command {
        let file = folder.join(self.file());
        let mut command = Command::new(self.program());
        match self {
            Self::Nginx => {
                let pid = format!("daemon off; pid {}; error_log stderr;", folder.join("pid").display());
                command.arg("-p").arg(folder).arg("-c").arg(file).args(["-g", &pid]);
            }
            Self::Caddy => {
                command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
            }
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.current_dir(folder).env_clear().env("PATH", path).env("HOME", folder);
        command
    }
}

impl Place {
    /// The address that the proxy has for its clients, and the gateway for the proxy.
    pub(crate) fn addresses(self, networks: &Networks) -> (Ipv4Addr, Ipv4Addr) {
        match self {
            Self::SameHost => (networks.host_for_clients(), Ipv4Addr::LOCALHOST),
            Self::OwnNetwork => (networks.proxy_for_clients(), networks.host_for_proxy()),
        }
    }

    /// The address the proxy connects from.
    pub(crate) fn source(self, networks: &Networks) -> Ipv4Addr {
        match self {
            Self::SameHost => Ipv4Addr::LOCALHOST,
            Self::OwnNetwork => networks.proxy_for_host(),
        }
    }
}

impl Proxy {
    /// Starts one in front of the gateway at `gateway_port`. `alices_machine` is known to its identity service.
    pub(crate) fn start(
        kind: Kind,
        place: Place,
        networks: &Networks,
        gateway_port: u16,
        alices_machine: Ipv4Addr,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (own, gateway) = place.addresses(networks);
        let address = SocketAddr::new(own.into(), free_port());
        let identity = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port());
        let listener = match place {
            Place::SameHost => identity::listen(identity),
            Place::OwnNetwork => networks.proxy.listen(identity),
        };
        identity::serve(listener, alices_machine.to_string());

        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/proxies").join(kind.file());
        let mut text = fs::read_to_string(original).unwrap();
        let listen = match kind {
            Kind::Nginx => vec![("listen 127.0.0.1:8080;", format!("listen {address};"))],
            Kind::Caddy => {
                vec![("http://:8080", format!("http://:{}", address.port())), ("bind 127.0.0.1", format!("bind {own}"))]
            }
        };
        let upstreams =
            [(GATEWAY, SocketAddr::new(gateway.into(), gateway_port).to_string()), (IDENTITY, identity.to_string())];
        for (from, to) in listen.into_iter().chain(upstreams) {
            assert_eq!(text.matches(from).count(), 1, "{from} stands once in the file");
            text = text.replace(from, &to);
        }
        if kind == Kind::Caddy {
            // Its own port for administration would be one for all that run here.
            text = format!("{{\n\tadmin off\n}}\n{text}");
        }
        fs::write(folder.path().join(kind.file()), text).unwrap();
        let command = kind.command(folder.path());
        let command = match place {
            Place::SameHost => command,
            Place::OwnNetwork => networks.proxy.command(&command),
        };
        let mut program = Program::start(kind.program(), command, &folder.path().join("log"));
        eventually("the proxy answers", Duration::from_secs(20), || {
            if let Some(status) = program.ended() {
                panic!("the proxy ended at its start: {status}\n{}", program.log());
            }
            networks.clients.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok())
        });
        Self { _program: program, _folder: folder, kind, address, source: place.source(networks) }
    }
}
