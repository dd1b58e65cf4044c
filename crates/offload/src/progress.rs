//! What a transfer tells the scheduler, and what the scheduler tells it. Both sides only look and never wait.

use event_listener::{Event, EventListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Tells whoever waits that a transfer has ended.
#[derive(Default)]
pub(crate) struct News {
    ended: AtomicU64,
    event: Event,
}

impl News {
    /// How many transfers have ended so far.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// Hears of ends from now on.
    pub(crate) fn listen(&self) -> EventListener {
        self.event.listen()
    }
}

/// The state of one transfer.
#[derive(Default)]
pub(crate) struct Progress {
    pages: AtomicUsize,
    done: AtomicBool,
    stop: AtomicBool,
    cancelled: AtomicBool,
    cancel: Event,
}

impl Progress {
    /// Leading pages whose bytes are where they should be.
    pub(crate) fn pages(&self) -> usize {
        self.pages.load(Ordering::Acquire)
    }

    /// Whether the transfer is over: it touches no memory any more.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Asks the transfer to end after what it is doing.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Asks the transfer to break off.
    pub(crate) fn cancel(&self) {
        self.stop();
        self.cancelled.store(true, Ordering::Release);
        self.cancel.notify(usize::MAX);
    }
}

/// The transfer's end of a [`Progress`]. Whatever becomes of the transfer, it is over when this goes away.
pub(crate) struct Report {
    progress: Arc<Progress>,
    news: Arc<News>,
}

impl Report {
    pub(crate) fn new(news: &Arc<News>) -> Self {
        Self { progress: Arc::default(), news: news.clone() }
    }

    pub(crate) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// So many more leading pages have arrived.
    pub(crate) fn add(&self, pages: usize) {
        self.progress.pages.fetch_add(pages, Ordering::AcqRel);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.progress.is_stopped()
    }

    /// Resolves when the transfer is to break off.
    pub(crate) async fn cancelled(&self) {
        loop {
            let listener = self.progress.cancel.listen();
            if self.progress.cancelled.load(Ordering::Acquire) {
                return;
            }
            listener.await;
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.progress.done.store(true, Ordering::Release);
        self.news.ended.fetch_add(1, Ordering::AcqRel);
        self.news.event.notify(usize::MAX);
    }
}
