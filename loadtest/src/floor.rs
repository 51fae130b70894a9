//! The floor: what the same bytes cost a server that does nothing with them.
//!
//! A child process of this same program holds TCP connections with readiness and one buffer, without framing,
//! parsing or allocation: whatever a gateway needs beyond it is the gateway's own. [`Floor::start`] runs one;
//! [`serve`] is what the child does.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::process::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use crate::cores::Cores;
use crate::procfs::Process;

/// What a floor server does.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Kind {
    /// Answers: after so many bytes come, so many bytes go. The last step repeats. A first step of no bytes greets.
    Exchange {
        /// The steps of a connection, `REQUEST_BYTES:ANSWER_BYTES`.
        #[arg(required = true, value_parser = parse_step)]
        steps: Vec<(usize, usize)>,
    },
    /// Sends: a byte from any connection makes one message go to every other one. Greets with [`GREETING_BYTES`].
    Send {
        /// Bytes of the message.
        message_bytes: usize,
    },
}

/// Bytes that go to a new connection: without them, one that still waits to be accepted would look open to its
/// client.
pub const GREETING_BYTES: usize = 1;

fn parse_step(text: &str) -> Result<(usize, usize), String> {
    let step = text.split_once(':').and_then(|(request, answer)| Some((request.parse().ok()?, answer.parse().ok()?)));
    step.ok_or_else(|| "expected REQUEST_BYTES:ANSWER_BYTES".to_owned())
}

impl Kind {
    fn arguments(&self) -> Vec<String> {
        match self {
            Self::Exchange { steps } => std::iter::once("exchange".to_owned())
                .chain(steps.iter().map(|(request, answer)| format!("{request}:{answer}")))
                .collect(),
            Self::Send { message_bytes } => vec!["send".to_owned(), message_bytes.to_string()],
        }
    }
}

/// A running floor server; ends when dropped.
#[derive(Debug)]
pub struct Floor {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// The process, to be measured.
    pub process: Process,
}

impl Floor {
    /// Starts one on `cores`.
    pub fn start(kind: &Kind, cores: &Cores) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        // As many as a gateway has workers.
        let threads = ["--threads".to_owned(), cores.server.len().to_string()];
        let mut child = cores
            .on_server(|| {
                Command::new(program).arg("floor").args(&threads).args(kind.arguments()).stdout(Stdio::piped()).spawn()
            })?
            .context("starting the floor server")?;
        let mut line = String::new();
        let output = child.stdout.take().context("the floor server's output")?;
        BufReader::new(output).read_line(&mut line)?;
        let process = Process::new(child.id());
        // In place first, so that it is ended whatever comes of the line.
        let mut floor = Self { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), process };
        floor.address.set_port(line.trim().parse().context("the floor server did not say its port")?);
        Ok(floor)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const LISTENER: Token = Token(usize::MAX);
const MAIL: Token = Token(usize::MAX - 1);
/// Connections that may wait to be accepted, as far as the system lets them.
const BACKLOG: i32 = 4096;
/// Bytes read or written at a time.
const CHUNK_BYTES: usize = 256 * 1024;

struct Connection {
    stream: TcpStream,
    step: usize,
    /// Bytes of the request under way.
    carried: usize,
    /// Bytes that the socket has not taken yet.
    owed: usize,
}

/// How a floor server is started: what it does, on how many threads.
#[derive(Clone, Debug, clap::Args)]
pub struct Service {
    /// Threads that connections are spread over, one after the other
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[command(subcommand)]
    kind: Kind,
}

/// Sockets for a thread from the one that accepts.
struct Mailbox {
    waker: Waker,
    sockets: Mutex<Vec<TcpStream>>,
}

/// Runs a floor server until its parent ends. Prints its port.
///
/// # Errors
/// The system refuses a socket.
pub fn serve(Service { threads, kind }: &Service) -> io::Result<()> {
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    clawgate::net::descriptors::raise();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from_std(socket.into());
    // What goes to all connections goes from one thread.
    let others = if matches!(kind, Kind::Send { .. }) { 0 } else { threads.saturating_sub(1) };
    let mut mailboxes = Vec::new();
    for _ in 0..others {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), MAIL)?;
        let mailbox = Arc::new(Mailbox { waker, sockets: Mutex::default() });
        mailboxes.push(Arc::clone(&mailbox));
        let mut share = Share::new(parent, kind.clone(), poll);
        std::thread::spawn(move || {
            share.run(&mut |share| mailbox.sockets().drain(..).try_for_each(|it| share.take(it)))
        });
    }
    let mut share = Share::new(parent, kind.clone(), Poll::new()?);
    share.listen(listener, mailboxes)
}

impl Mailbox {
    fn sockets(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections of one thread.
struct Share {
    parent: Option<Pid>,
    kind: Kind,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Share {
    fn new(parent: Option<Pid>, kind: Kind, poll: Poll) -> Self {
        let (input, output) = (vec![0; CHUNK_BYTES], vec![b'x'; CHUNK_BYTES]);
        Self { parent, kind, poll, connections: Vec::new(), free: Vec::new(), input, output }
    }

    /// Serves, and spreads what comes over this thread and those with mailboxes.
    fn listen(&mut self, mut listener: TcpListener, mailboxes: Vec<Arc<Mailbox>>) -> io::Result<()> {
        self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        writeln!(io::stdout().lock(), "{}", listener.local_addr()?.port())?;
        let mut turn = 0;
        self.run(&mut |share| {
            loop {
                let stream = match listener.accept() {
                    Ok((stream, _)) => stream,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                };
                turn = (turn + 1) % (mailboxes.len() + 1);
                match mailboxes.get(turn) {
                    None => share.take(stream)?,
                    Some(mailbox) => {
                        mailbox.sockets().push(stream);
                        mailbox.waker.wake()?;
                    }
                }
            }
        })
    }

    /// Serves until the parent ends. `arrivals` takes in who has come, when somebody has.
    fn run(&mut self, arrivals: &mut dyn FnMut(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            // A time limit: a parent that died before the signal was set is missed by it.
            match self.poll.poll(&mut events, Some(Duration::from_secs(5))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if rustix::process::getppid() != self.parent {
                return Ok(());
            }
            for event in &events {
                match event.token() {
                    LISTENER | MAIL => arrivals(self)?,
                    Token(key) => self.serve(key, event.is_read_closed()),
                }
            }
        }
    }

    fn take(&mut self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let key = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.poll.registry().register(&mut stream, Token(key), Interest::READABLE | Interest::WRITABLE)?;
        let mut connection = Connection { stream, step: 0, carried: 0, owed: 0 };
        // Who is gone already says so itself.
        let _ = match &self.kind {
            Kind::Exchange { steps } => connection.answer(0, steps, &self.output),
            Kind::Send { .. } => connection.write(GREETING_BYTES, &self.output),
        };
        self.connections[key] = Some(connection);
        Ok(())
    }

    fn serve(&mut self, key: usize, to_the_end: bool) {
        let Some(connection) = self.connections[key].as_mut() else { return };
        let read = connection.read(&mut self.input, to_the_end);
        let alive = match (&self.kind, read) {
            (_, Err(_)) => false,
            (Kind::Exchange { steps }, Ok(bytes)) => connection.answer(bytes, steps, &self.output).is_ok(),
            (Kind::Send { message_bytes }, Ok(bytes)) => {
                connections_but(&mut self.connections, key).for_each(|other| {
                    // Who is gone says so itself.
                    let _ = other.write(bytes * message_bytes, &self.output);
                });
                true
            }
        };
        if !alive {
            self.connections[key] = None;
            self.free.push(key);
        }
    }
}

fn connections_but(connections: &mut [Option<Connection>], key: usize) -> impl Iterator<Item = &mut Connection> {
    connections.iter_mut().enumerate().filter(move |(other, _)| *other != key).filter_map(|(_, it)| it.as_mut())
}

impl Connection {
    /// Reads once, or to the end of the stream. Bytes that came.
    fn read(&mut self, input: &mut [u8], to_the_end: bool) -> io::Result<usize> {
        let mut came = 0;
        loop {
            match self.stream.read(input) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    came += read;
                    if read < input.len() && !to_the_end {
                        return Ok(came);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(came),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers every whole request among the bytes so far, all in one write.
    fn answer(&mut self, bytes: usize, steps: &[(usize, usize)], output: &[u8]) -> io::Result<()> {
        self.carried += bytes;
        let mut owed = 0;
        let last = steps.len() - 1;
        while let Some((request, answer)) = steps.get(self.step.min(last))
            && self.carried >= *request
            && (*request > 0 || self.step < last)
        {
            self.carried -= request;
            self.step += 1;
            owed += answer;
        }
        self.write(owed, output)
    }

    /// Writes `bytes` more bytes, as far as the socket takes them.
    fn write(&mut self, bytes: usize, output: &[u8]) -> io::Result<()> {
        self.owed += bytes;
        while self.owed > 0 {
            match self.stream.write(&output[..self.owed.min(output.len())]) {
                Ok(written) => self.owed -= written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
