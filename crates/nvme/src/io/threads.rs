//! I/O by threads, for kernels and containers that do not allow io_uring.

use crate::io::bell::Bell;
use crate::io::{Ended, Op};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// The most threads for one drive: enough to keep a drive busy, few enough to be cheap.
const THREADS_MAX: usize = 32;

#[derive(Default)]
struct Shared {
    jobs: Mutex<Jobs>,
    available: Condvar,
    ended: Mutex<Vec<Ended>>,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Op>,
    stop: bool,
}

/// Threads that each do one operation at a time.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    workers: Vec<JoinHandle<()>>,
    depth: usize,
    in_flight: usize,
}

impl Threads {
    /// Starts the threads.
    pub(crate) fn start(depth: usize, bell: Arc<Bell>, drive: u8) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Self { shared, bell, workers: Vec::new(), depth, in_flight: 0 };
        for _ in 0..depth.min(THREADS_MAX) {
            let (shared, bell) = (Arc::clone(&threads.shared), Arc::clone(&threads.bell));
            let builder = thread::Builder::new().name(format!("memkv-io-{drive}"));
            threads.workers.push(builder.spawn(move || work(&shared, &bell))?);
        }
        Ok(threads)
    }

    pub(crate) fn room(&self) -> usize {
        self.depth - self.in_flight
    }

    pub(crate) fn submit(&mut self, op: Op) {
        self.in_flight += 1;
        self.shared.jobs.lock().waiting.push_back(op);
        self.shared.available.notify_one();
    }

    pub(crate) fn wait(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        if ended.is_empty() && self.shared.ended.lock().is_empty() {
            self.bell.hear();
        }
        let mut over = self.shared.ended.lock();
        self.in_flight -= over.len();
        ended.append(&mut over);
        Ok(())
    }
}

fn work(shared: &Shared, bell: &Bell) {
    loop {
        let mut jobs = shared.jobs.lock();
        let mut op = loop {
            if let Some(op) = jobs.waiting.pop_front() {
                break op;
            }
            if jobs.stop {
                return;
            }
            shared.available.wait(&mut jobs);
        };
        drop(jobs);
        let end = op.run(usize::MAX);
        shared.ended.lock().push((op, end));
        bell.ring();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.jobs.lock().stop = true;
        self.shared.available.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has told so already.
            worker.join().ok();
        }
    }
}
