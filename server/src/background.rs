//! Threads that work on the store beside requests: the evictor and the scrubber.
//!
//! Each ends soon after its [`Worker`] is dropped.

use crate::node::Node;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the evictor waits for pressure before it looks whether the server stops.
const EVICTOR_PAUSE: Duration = Duration::from_millis(200);
/// How long the evictor rests after a round that could free nothing, because every page is in use.
const EVICTOR_REST: Duration = Duration::from_millis(10);
/// Steps of the scrubber in a second, so that it reads a little and often.
const SCRUB_STEPS: u64 = 10;
/// The least time from the end of one pass of the scrubber to the next: a small store need not be read all the time.
const SCRUB_REST: Duration = Duration::from_secs(60);

/// A thread that ends when this is dropped; dropping waits for it.
pub(crate) struct Worker {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(name: &str, work: impl FnOnce(Stop) + Send + 'static) -> io::Result<Self> {
        // Nothing is ever sent: the channel says by its end that the worker is to stop.
        let (stop, stopped) = sync_channel(0);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(Stop(stopped)))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A worker that panicked has said so; there is nothing to add.
            drop(thread.join());
        }
    }
}

/// How a worker learns that it is to end.
struct Stop(Receiver<()>);

impl Stop {
    /// Waits; `true` if the worker is to end.
    fn wait(&self, time: Duration) -> bool {
        !matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}

/// Starts the thread that makes room.
pub(crate) fn evictor(node: &Arc<Node>) -> io::Result<Worker> {
    let node = Arc::clone(node);
    Worker::start("memkv-evictor", move |stop| {
        let mut rest = Duration::ZERO;
        while !stop.wait(rest) {
            let begun = Instant::now();
            node.engine.wait_for_pressure(EVICTOR_PAUSE);
            let evicted = node.engine.evict_round(node.clock.now_ms());
            rest = Duration::ZERO;
            if evicted.pages > 0 {
                tracing::debug!(evicted.pages, evicted.bytes, "evicted");
            } else if begun.elapsed() < EVICTOR_REST {
                rest = EVICTOR_REST;
            }
        }
    })
}

/// Starts the thread that checks stored pages, if there is to be one.
pub(crate) fn scrubber(node: &Arc<Node>) -> io::Result<Option<Worker>> {
    let rate = node.config.storage.scrub_bytes_per_s;
    if rate == 0 {
        return Ok(None);
    }
    let node = Arc::clone(node);
    let work = move |stop: Stop| {
        let mut rest = Duration::ZERO;
        while !stop.wait(rest) {
            let step = node.engine.scrub((rate / SCRUB_STEPS).max(1));
            if step.corrupt > 0 {
                tracing::error!(
                    pages = step.corrupt,
                    "stored pages did not match their checksums and were taken out; see memkv-cli inspect server"
                );
            }
            rest = if step.pass_ended { SCRUB_REST } else { time_for(step.bytes, rate) };
        }
    };
    Worker::start("memkv-scrub", work).map(Some)
}

/// How long this many bytes take at a pace.
fn time_for(bytes: u64, bytes_per_s: u64) -> Duration {
    let millis = u128::from(bytes) * 1000 / u128::from(bytes_per_s.max(1));
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_ends_when_it_is_dropped() {
        let (tell, hear) = sync_channel(1);
        let worker = Worker::start("test", move |stop| {
            while !stop.wait(Duration::from_millis(1)) {}
            tell.send("ended").unwrap();
        });
        drop(worker.unwrap());
        assert_eq!(hear.try_recv(), Ok("ended"));
    }

    #[test]
    fn the_pace_is_kept() {
        assert_eq!(time_for(16 << 20, 16 << 20), Duration::from_secs(1));
        assert_eq!(time_for(0, 1), Duration::from_millis(1));
        assert!(time_for(u64::MAX, 0) > Duration::from_secs(1));
    }
}
