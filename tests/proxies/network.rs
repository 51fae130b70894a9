//! Networks of our own: namespaces for clients and for the proxy, joined to this host and to each other by pairs of virtual
//! Ethernet.
//!
//! ```text
//!  clients  10.205.n.2 ... .201 ── 10.205.n.1  proxy  10.203.n.2 ── 10.203.n.1  this host
//!     └──── 10.204.n.2 ... .201 ─────────────────────────────────── 10.204.n.1 ──┘
//! ```

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

/// Addresses that clients have on each of their networks.
pub(crate) const CLIENTS: u8 = 200;

/// The networks. Dropped, they are gone.
#[derive(Debug)]
pub(crate) struct Networks {
    /// Of the clients.
    pub(crate) clients: Namespace,
    /// Of a proxy that is not on this host.
    pub(crate) proxy: Namespace,
    number: u8,
}

/// A network namespace by its name.
#[derive(Debug)]
pub(crate) struct Namespace(String);

impl Networks {
    /// Makes them. Needs root and iproute2.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Test programs and tests side by side have numbers of their own.
        let unique = std::process::id().wrapping_mul(8).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let n = (unique % 250) as u8;
        let name = |end: &str| format!("cg{unique}{end}");
        let networks = Self { clients: Namespace(name("c")), proxy: Namespace(name("p")), number: n };
        let (c, p) = (&networks.clients.0, &networks.proxy.0);
        // Names of interfaces have at most 15 characters; inside a namespace they need not be unique to us.
        let (to_proxy, to_clients) = (format!("cgp{n}"), format!("cgc{n}"));
        let mut script = format!(
            "netns add {c}\nnetns add {p}\n\
             link add {to_proxy} type veth peer name host0 netns {p}\n\
             link add {to_clients} type veth peer name host0 netns {c}\n\
             addr add 10.203.{n}.1/24 dev {to_proxy}\naddr add 10.204.{n}.1/24 dev {to_clients}\n\
             link set {to_proxy} up\nlink set {to_clients} up\n"
        );
        ip(&[], &script);
        script = format!(
            "link set lo up\naddr add 10.203.{n}.2/24 dev host0\nlink set host0 up\n\
             link add side0 type veth peer name side0 netns {c}\naddr add 10.205.{n}.1/24 dev side0\nlink set side0 up\n"
        );
        ip(&["-n", p], &script);
        script = "link set lo up\nlink set host0 up\nlink set side0 up\n".to_owned();
        for client in 2..2 + CLIENTS {
            script +=
                &format!("addr add 10.204.{n}.{client}/24 dev host0\naddr add 10.205.{n}.{client}/24 dev side0\n");
        }
        ip(&["-n", c], &script);
        networks
    }

    /// This host, as the proxy's network sees it.
    pub(crate) fn host_for_proxy(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 203, self.number, 1)
    }

    /// This host, as the clients' network sees it.
    pub(crate) fn host_for_clients(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 204, self.number, 1)
    }

    /// The proxy's own namespace, as this host sees it.
    pub(crate) fn proxy_for_host(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 203, self.number, 2)
    }

    /// The proxy's own namespace, as the clients see it.
    pub(crate) fn proxy_for_clients(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 205, self.number, 1)
    }

    /// The client of that number, from 0, on the network of `peer`.
    pub(crate) fn client(&self, number: u8, peer: Ipv4Addr) -> Ipv4Addr {
        let [a, b, c, _] = peer.octets();
        Ipv4Addr::new(a, b, c, 2 + number)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for namespace in [&self.clients, &self.proxy] {
            // Its interfaces go with it.
            let _ = Command::new("ip").args(["netns", "del", &namespace.0]).status();
        }
    }
}

impl Namespace {
    /// `command`, to be run inside.
    pub(crate) fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(inner.get_program()).args(inner.get_args());
        command.env_clear();
        for (name, value) in inner.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        if let Some(folder) = inner.get_current_dir() {
            command.current_dir(folder);
        }
        command
    }

    /// Runs `act` on a thread inside. A socket stays in the network that it was made in.
    pub(crate) fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).expect("the namespace is there");
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
                act()
            });
            inside.join().expect("what runs inside does not fail")
        })
    }

    /// Connects from inside, from the address `from`.
    pub(crate) fn connect(&self, from: Ipv4Addr, to: SocketAddr) -> TcpStream {
        self.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into()).expect("an address of the client");
            socket.connect(&to.into()).unwrap_or_else(|error| panic!("{to} does not answer: {error}"));
            socket.into()
        })
    }

    /// Listens inside.
    pub(crate) fn listen(&self, address: SocketAddr) -> TcpListener {
        self.enter(|| TcpListener::bind(address).expect("an address of the namespace"))
    }
}

/// Runs the lines of `script` as commands of iproute2.
fn ip(arguments: &[&str], script: &str) {
    let mut child =
        Command::new("ip").args(arguments).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("iproute2");
    child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("it reads");
    assert!(child.wait().expect("a child of ours").success(), "iproute2 refused:\n{script}");
}
