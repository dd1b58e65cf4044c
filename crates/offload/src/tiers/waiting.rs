//! Waiting for transfers, and breaking them off: for engines with nothing else to do, and for the end.

use super::Tiers;
use crate::device::DevicePool;
use crate::store::PageStore;
use crate::ticket::Outcome;
use event_listener::Listener as _;
use memkv_radix::RadixCache;
use std::time::{Duration, Instant};

impl<D: DevicePool, S: PageStore> Tiers<D, S> {
    /// When the next prefetch runs out of time.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.jobs.values().filter_map(|job| job.deadline).min()
    }

    /// Whether a poll would end something, as far as this rank can tell.
    fn has_news(&self) -> bool {
        let now = Instant::now();
        self.context.news.ended() != self.seen || self.jobs.values().any(|job| job.is_given_up(now))
    }

    /// Resolves when [`poll`](Self::poll) has something to end. Any executor may poll it; dropping it does nothing.
    /// What other ranks do is no news here: engines of several ranks poll at their own pace.
    pub async fn changed(&self) {
        loop {
            let listener = self.context.news.listen();
            if self.has_news() {
                return;
            }
            let Some(deadline) = self.next_deadline() else {
                listener.await;
                continue;
            };
            tokio::select! {
                () = listener => {}
                () = self.executor.sleep_until(deadline) => {}
            }
        }
    }

    /// [`changed`](Self::changed) for engines without an executor: waits at most `patience`, and says whether there
    /// is something to end.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let until = self.next_deadline().map_or(until, |deadline| deadline.min(until));
        loop {
            let listener = self.context.news.listen();
            if self.has_news() {
                return true;
            }
            if listener.wait_deadline(until).is_none() {
                return self.has_news();
            }
        }
    }

    /// Waits until nothing is under way, so that all backups have reached the store or failed. Blocks, at most
    /// `patience`; says whether it came to that.
    pub fn drain(&mut self, cache: &mut RadixCache, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            self.poll(cache);
            let left = until.saturating_duration_since(Instant::now());
            if self.is_idle() || left.is_zero() {
                return self.is_idle();
            }
            let _news = self.wait(left);
        }
    }

    /// Breaks off all transfers; nothing begins any more. The next [`poll`](Self::poll)s end their plans.
    pub fn cancel_all(&mut self) {
        self.closed = true;
        for job in self.jobs.values() {
            job.progress.cancel();
        }
    }

    /// Breaks off all transfers and ends all plans. Blocks until no transfer touches memory, at most `patience`;
    /// says whether it came to that. Locks of loads that nobody took are given back.
    pub fn shut_down(&mut self, cache: &mut RadixCache, patience: Duration) -> bool {
        self.cancel_all();
        let ended = self.drain(cache, patience);
        for (_, entry) in std::mem::take(&mut self.tickets) {
            if let Outcome::Loaded(Some(loaded)) = entry.outcome {
                cache.unlock(loaded.lock);
            }
        }
        ended
    }
}
