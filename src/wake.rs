//! Waking tasks of another worker, many at a time.
//!
//! To wake a task of another thread costs a system call for each, whether that thread sleeps or not. Here a worker collects
//! whom it has to wake, and hands each other worker its list when the tasks that are ready now have run: one call for
//! a whole list, and none where the other has not looked at its last one yet. What is woken on the worker itself, or from a
//! thread that is no worker, is woken at once.
//!
//! A worker runs [`Post::run`]; [`Home`] says where a task lives. A list holds a connection as often as it
//! is woken, which its outbox lets happen once until it has been looked at.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Whom others want to wake on one worker.
#[derive(Debug, Default)]
struct Inbox {
    state: Mutex<Waiting>,
    /// The worker has been told, and has not looked since.
    told: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    wakers: Vec<Waker>,
    /// The worker's own task, which wakes them.
    postman: Option<Waker>,
}

impl Inbox {
    /// Has all of `wakers` woken there.
    fn deliver(&self, wakers: &mut Vec<Waker>) {
        let postman = {
            let mut waiting = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.wakers.append(wakers);
            if self.told.swap(true, Ordering::AcqRel) { None } else { waiting.postman.clone() }
        };
        if let Some(postman) = postman {
            postman.wake();
        }
    }
}

/// What is to leave this thread.
struct Outgoing {
    home: Arc<Inbox>,
    /// For each other worker, whom to wake there.
    lists: Vec<(Arc<Inbox>, Vec<Waker>)>,
    /// The task that hands the lists over; none before it has begun.
    postman: Option<Waker>,
    /// It will run.
    called: bool,
}

thread_local! {
    static HERE: RefCell<Option<Outgoing>> = const { RefCell::new(None) };
}

/// Where a task lives: on which worker, if on one.
#[derive(Clone, Debug, Default)]
pub struct Home(Option<Arc<Inbox>>);

impl Home {
    /// The present thread.
    pub fn here() -> Self {
        Self(HERE.with_borrow(|here| here.as_ref().map(|here| Arc::clone(&here.home))))
    }

    /// Wakes a task that lives here.
    #[inline]
    pub fn wake(&self, waker: &Waker) {
        let elsewhere = self.0.as_ref().is_some_and(|home| post(home, waker));
        if !elsewhere {
            waker.wake_by_ref();
        }
    }
}

/// Puts the waker on the list for `home`. `false` when it is to be woken at once.
fn post(home: &Arc<Inbox>, waker: &Waker) -> bool {
    HERE.try_with(|here| {
        let Ok(mut here) = here.try_borrow_mut() else { return false };
        let Some(here) = here.as_mut().filter(|here| !Arc::ptr_eq(&here.home, home)) else { return false };
        let Some(postman) = &here.postman else { return false };
        if !here.called {
            here.called = true;
            postman.wake_by_ref();
        }
        match here.lists.iter_mut().find(|(inbox, _)| Arc::ptr_eq(inbox, home)) {
            Some((_, list)) => list.push(waker.clone()),
            None => here.lists.push((Arc::clone(home), vec![waker.clone()])),
        }
        true
    })
    .unwrap_or(false)
}

/// The post of one worker.
#[derive(Debug)]
pub struct Post(Arc<Inbox>);

impl Post {
    /// Makes the present thread a worker, until this is dropped.
    pub fn open() -> Self {
        let home = Arc::<Inbox>::default();
        let outgoing = Outgoing { home: Arc::clone(&home), lists: Vec::new(), postman: None, called: false };
        HERE.set(Some(outgoing));
        Self(home)
    }

    /// Hands over and wakes, as long as it is polled.
    pub async fn run(self) {
        let mut woken = Vec::new();
        std::future::poll_fn(|cx| {
            self.turn(cx, &mut woken);
            Poll::<()>::Pending
        })
        .await;
    }

    fn turn(&self, cx: &Context<'_>, woken: &mut Vec<Waker>) {
        // Said before the look, so that what comes behind it calls again.
        self.0.told.store(false, Ordering::Release);
        {
            let mut waiting = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.postman.is_none() {
                waiting.postman = Some(cx.waker().clone());
            }
            std::mem::swap(&mut waiting.wakers, woken);
        }
        woken.drain(..).for_each(Waker::wake);
        HERE.with_borrow_mut(|here| {
            let Some(here) = here else { return };
            here.called = false;
            if here.postman.is_none() {
                here.postman = Some(cx.waker().clone());
            }
            for (inbox, list) in here.lists.iter_mut().filter(|(_, list)| !list.is_empty()) {
                inbox.deliver(list);
            }
        });
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        // A thread that is ending has none left.
        let _ = HERE.try_with(|here| here.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Counter {
        fn woken(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn another_worker_is_called_once_for_many_tasks() {
        let (task, there) = (Arc::<Counter>::default(), Arc::<Counter>::default());
        let (homes, home) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let (task_waker, there_waker) = (Waker::from(Arc::clone(&task)), Waker::from(Arc::clone(&there)));
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let post = Post::open();
                homes.send(Home::here()).unwrap();
                let mut run = pin!(post.run());
                let mut cx = Context::from_waker(&there_waker);
                assert!(run.as_mut().poll(&mut cx).is_pending());
                homes.send(Home::default()).unwrap();
                gone.recv().unwrap();
                assert!(run.as_mut().poll(&mut cx).is_pending());
            });
            let other = home.recv().unwrap();
            home.recv().unwrap();

            let here = Arc::<Counter>::default();
            let here_waker = Waker::from(Arc::clone(&here));
            let mut cx = Context::from_waker(&here_waker);
            let mut run = pin!(Post::open().run());
            assert!(run.as_mut().poll(&mut cx).is_pending());
            for _ in 0..3 {
                other.wake(&task_waker);
            }
            assert_eq!((task.woken(), there.woken(), here.woken()), (0, 0, 1), "collected");
            assert!(run.as_mut().poll(&mut cx).is_pending());
            other.wake(&task_waker);
            assert!(run.as_mut().poll(&mut cx).is_pending());
            assert_eq!((task.woken(), there.woken(), here.woken()), (0, 1, 2), "handed over, and told of once");
            go.send(()).unwrap();
            worker.join().unwrap();
            assert_eq!(task.woken(), 4);
        });
    }

    #[test]
    fn who_is_no_worker_wakes_at_once() {
        let task = Arc::<Counter>::default();
        Home::here().wake(&Waker::from(Arc::clone(&task)));
        assert_eq!(task.woken(), 1);
    }
}
