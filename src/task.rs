//! The only place that spawns: tasks have a name, are counted, and a panic in one is a log line and a
//! counter, never silence and never the end of the process.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

static RUNNING: AtomicUsize = AtomicUsize::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Work of any kind. The runtime's machinery for a task is made anew for each type of future and each kind of runtime, and
/// weighs more than most of them; for this one type it is made once, at the price of an allocation a task.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs `future` on the current runtime.
///
/// # Panics
/// Outside a tokio runtime.
pub fn spawn<F>(name: &'static str, future: F) -> tokio::task::JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    spawn_in_place::<Work>(name, Box::pin(future))
}

/// The same without an allocation of its own: for the tasks of which there are tens of thousands.
///
/// # Panics
/// Outside a tokio runtime.
#[expect(clippy::disallowed_methods, reason = "this is the wrapper that the lint points to")]
pub fn spawn_in_place<F>(name: &'static str, future: F) -> tokio::task::JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(Tracked::new(name, future))
}

/// Runs `future` on another runtime than the current one: work that the threads which carry frames are not for.
pub fn spawn_on<F>(runtime: &tokio::runtime::Handle, name: &'static str, future: F) -> tokio::task::JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let work: Work = Box::pin(future);
    runtime.spawn(Tracked::new(name, work))
}

/// Tasks that have not ended.
pub fn running() -> usize {
    RUNNING.load(Ordering::Relaxed)
}

/// Tasks that ended by a panic, since start.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

struct Tracked<F> {
    name: &'static str,
    future: F,
}

impl<F> Tracked<F> {
    fn new(name: &'static str, future: F) -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self { name, future }
    }
}

impl<F> Drop for Tracked<F> {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<F: Future<Output = ()>> Future for Tracked<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let name = self.name;
        // SAFETY: `future` is pinned with `self`: it is never moved out, and `Tracked` has no `Unpin` of its own
        // to promise otherwise; its `Drop` touches no field.
        let future = unsafe { self.map_unchecked_mut(|this| &mut this.future) };
        catch_unwind(AssertUnwindSafe(|| future.poll(cx))).unwrap_or_else(|_| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            tracing::error!(task = name, "a task panicked; this is a defect, please report it with the lines above");
            Poll::Ready(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_the_task_and_is_counted() {
        let before = panics();
        spawn("test", async { panic!("as planned") }).await.unwrap();
        assert!(panics() > before);
    }
}
