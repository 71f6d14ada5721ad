//! Threads for requests that may wait for a disk, as many as there is such work, up to a bound.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use virtiofs_fuse::Scratch;

use crate::loan::Processors;
use crate::signals::leave_to_others;

/// How long a thread without work stays.
const LINGER: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// An elastic pool of threads. Dropping it waits for its work.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    most: usize,
    pub(crate) processors: Processors,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Shared").field("waiting", &state.jobs.len()).field("threads", &state.threads).finish()
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closing: bool,
}

impl Pool {
    /// A pool that will have `most` threads at the most, and none before there is work.
    pub(crate) fn new(most: usize) -> Pool {
        let shared = Shared { state: Mutex::new(State::default()), work: Condvar::new() };
        Pool { shared: Arc::new(shared), threads: Mutex::default(), most: most.max(1), processors: Processors::here() }
    }

    /// Queues `job`. Where no thread is there for it and none can be made, the caller runs it itself.
    pub(crate) fn run(&self, job: Job, scratch: &mut Scratch) {
        let mut state = self.shared.state.lock();
        if state.idle <= state.jobs.len() && state.threads < self.most {
            state.threads += 1;
            if let Err(error) = self.spawn() {
                state.threads -= 1;
                if state.threads == 0 {
                    drop(state);
                    tracing::warn!(%error, "no thread for slow requests: they run on their queue's own");
                    return job(scratch);
                }
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.work.notify_one();
    }

    fn spawn(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("virtiofs-slow".into()).spawn(move || shared.work())?;
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }
}

impl Shared {
    fn work(&self) {
        leave_to_others();
        let mut scratch = Scratch::default();
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job(&mut scratch);
                state = self.state.lock();
                continue;
            }
            if state.closing {
                break;
            }
            state.idle += 1;
            let late = self.work.wait_for(&mut state, LINGER).timed_out();
            state.idle -= 1;
            if late && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.get_mut().drain(..) {
            // A job that panicked took its thread along; its request was answered by the server's own guard.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn all_work_is_done_by_no_more_threads_than_allowed() {
        let pool = Pool::new(3);
        let (done, running, most) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..200 {
            let (done, running, most) = (done.clone(), running.clone(), most.clone());
            let job = move |_: &mut Scratch| {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::sleep(Duration::from_micros(200));
                running.fetch_sub(1, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
            };
            pool.run(Box::new(job), &mut Scratch::default());
        }
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), 200);
        assert!(most.load(Ordering::SeqCst) <= 3);
    }
}
