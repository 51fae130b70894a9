//! Workers: one thread and one single-threaded runtime a core. A connection lives on one worker from accept
//! to close, so its bytes, its task and its timers stay on one core.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::task;
use crate::wake::Post;

/// What a worker runs for a socket.
pub type Serve = dyn Fn(tokio::net::TcpStream, SocketAddr) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// Sockets that may wait for a worker to take them; beyond it the accept loop drops new ones.
const HANDOFF: usize = 1024;

/// Tasks that run before the worker asks the kernel again what is ready. The more, the more calls to one node are
/// written to it at once; what is ready waits for at most so many turns, some milliseconds.
const TASKS_A_POLL: u32 = 256;

struct Worker {
    sockets: mpsc::Sender<(TcpStream, SocketAddr)>,
    load: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// The set of workers.
pub struct Workers(Vec<Worker>);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Workers({})", self.0.len())
    }
}

impl Workers {
    /// Starts `count` workers that run `serve` for every socket they get.
    pub fn start(count: usize, serve: &Arc<Serve>) -> io::Result<Self> {
        (0..count.max(1)).map(|number| Worker::start(number, Arc::clone(serve))).collect::<io::Result<_>>().map(Self)
    }

    /// Gives a socket to the worker with the fewest. `false` when it cannot be taken: the socket is closed.
    pub fn place(&self, stream: tokio::net::TcpStream, peer: SocketAddr) -> bool {
        let Some(worker) = self.0.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed)) else { return false };
        let Ok(stream) = stream.into_std() else { return false };
        worker.load.fetch_add(1, Ordering::Relaxed);
        if worker.sockets.try_send((stream, peer)).is_err() {
            worker.load.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Sockets on all workers, waiting ones included.
    pub fn load(&self) -> usize {
        self.0.iter().map(|worker| worker.load.load(Ordering::Relaxed)).sum()
    }

    /// Ends the workers; what still runs on them is dropped.
    pub fn stop(self) {
        for Worker { sockets, thread, .. } in self.0 {
            drop(sockets);
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// Counts a socket out when its task ends, however it ends.
struct Placed(Arc<AtomicUsize>);

impl Drop for Placed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    fn start(number: usize, serve: Arc<Serve>) -> io::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().event_interval(TASKS_A_POLL).enable_all().build()?;
        let (sockets, mut incoming) = mpsc::channel::<(TcpStream, SocketAddr)>(HANDOFF);
        let load = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&load);
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let post = Post::open();
            runtime.block_on(async move {
                task::spawn("post", post.run());
                while let Some((stream, peer)) = incoming.recv().await {
                    let placed = Placed(Arc::clone(&counter));
                    let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
                    let serving = serve(stream, peer);
                    task::spawn_in_place("connection", async move {
                        serving.await;
                        drop(placed);
                    });
                }
            });
        })?;
        Ok(Self { sockets, load, thread })
    }
}
