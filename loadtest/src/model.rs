//! A stand-in for a model's server: every request is answered with a stream that goes on until the caller leaves.
//!
//! It is a child process of this same program. It has the time that the gateway's core leaves over, so that it takes none from
//! the gateway, and none from the load, whose own delay would be in the figures. It sends at one rate whether anybody listens
//! or not: what it takes from the machine is in both columns of a comparison.
//! [`Model::start`] runs one; [`serve`] is what the child does.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cores::Cores;

/// Bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;
/// Bytes of text in one delta.
const TEXT: &str = "word ";

/// A running stand-in; ends when dropped.
#[derive(Debug)]
pub struct Model {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Model {
    /// Starts one that sends `deltas` a second to each of `places` callers.
    pub fn start(deltas: u32, places: u32, cores: &Cores) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut command = Command::new(program);
        command.args(["model", &deltas.to_string(), &places.to_string()]).stdout(Stdio::piped());
        let mut child = cores.on_server(|| command.spawn())?.context("starting the stand-in model")?;
        let output = child.stdout.take().context("the stand-in model's output")?;
        let mut model = Self { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        model.address.set_port(line.trim().parse().context("the stand-in model did not say its port")?);
        Ok(model)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a stand-in until its parent ends. Prints its port.
///
/// # Errors
/// The system refuses a socket.
pub fn serve(deltas: u32, places: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    rustix::process::setpriority_process(None, 19)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    writeln!(io::stdout().lock(), "{}", listener.local_addr()?.port())?;
    let (begun, streams) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let begun = begun.clone();
            // Short: it ends when the request has been read.
            thread::spawn(move || {
                if let Some(stream) = begin(stream) {
                    let _ = begun.send(stream);
                }
            });
        }
    });
    let delta = chunk(&format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{TEXT}"}},"finish_reason":null}}]}}"#));
    // Where nobody listens, as much is sent to nowhere: what this process takes from the machine is always the same.
    let nowhere = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    nowhere.connect(nowhere.local_addr()?)?;
    nowhere.set_nonblocking(true)?;
    let mut callers: Vec<Option<TcpStream>> = (0..places.max(1)).map(|_| None).collect();
    let step = Duration::from_secs(1) / (deltas.max(1) * places.max(1));
    let mut due = Instant::now();
    loop {
        for place in &mut callers {
            due += step;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if place.is_none() {
                *place = streams.try_recv().ok();
            }
            match place.as_mut().map(|stream| stream.write_all(delta.as_bytes())) {
                Some(Ok(())) => {}
                // Who has left makes room.
                Some(Err(_)) => *place = None,
                // Full, as nobody reads it.
                None => drop(nowhere.send(delta.as_bytes())),
            }
        }
    }
}

/// Reads the request, and begins the answer.
fn begin(mut stream: TcpStream) -> Option<TcpStream> {
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.set_write_timeout(Some(Duration::from_millis(100))).ok()?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let end = loop {
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if bytes.len() > MAX_HEAD {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())?;
    let mut missing = (end + length).saturating_sub(bytes.len());
    while missing > 0 {
        let most = missing.min(buffer.len());
        let read = stream.read(&mut buffer[..most]).ok().filter(|read| *read > 0)?;
        missing -= read;
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).ok()?;
    Some(stream)
}

fn chunk(json: &str) -> String {
    let event = format!("data: {json}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}
