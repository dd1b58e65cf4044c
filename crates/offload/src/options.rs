//! What the tiers are told when they are made. What is worth a transfer (thresholds, quota, tokens under way) is
//! said to the cache, in [`memkv_radix::Config`].

use std::time::Duration;

/// When a request stops waiting for its prefetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPolicy {
    /// At once: what has come by the time it is asked for is used.
    BestEffort,
    /// When all has come or failed.
    WaitComplete,
    /// Then, or when `base` and `per_1024_tokens` for each 1024 tokens have passed since it began.
    Timeout {
        /// Time for any prefetch.
        base: Duration,
        /// Time for each 1024 tokens besides.
        per_1024_tokens: Duration,
    },
}

impl Default for StopPolicy {
    /// One second, and a quarter more for each 1024 tokens.
    fn default() -> Self {
        Self::Timeout { base: Duration::from_secs(1), per_1024_tokens: Duration::from_millis(250) }
    }
}

impl StopPolicy {
    /// How long a prefetch of `tokens` tokens may take, if there is a bound.
    pub(crate) fn patience(self, tokens: usize) -> Option<Duration> {
        match self {
            StopPolicy::BestEffort | StopPolicy::WaitComplete => None,
            StopPolicy::Timeout { base, per_1024_tokens } => {
                let nanos = per_1024_tokens.as_nanos().saturating_mul(tokens as u128) / 1024;
                Some(base.saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))))
            }
        }
    }
}

/// Bounds and choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// When a request stops waiting for its prefetch.
    pub stop: StopPolicy,
    /// The most pages of one question to the store.
    pub exists_batch: usize,
    /// The most pages of one read or write of the store, unless `batch_bytes` makes it fewer.
    pub batch_pages: usize,
    /// The most bytes of one read or write of the store, unless one page has more. Each has a deadline of its own.
    pub batch_bytes: usize,
    /// The most bytes that a thread copies from or to the device before it looks after others.
    pub copy_bytes: usize,
    /// Reads of the store at one time.
    pub reads: usize,
    /// Writes to the store at one time.
    pub writes: usize,
    /// Copies from the device under way at one time; more wait in the cache.
    pub max_backups: usize,
    /// Writes to the store that run or wait; more are dropped.
    pub max_stores: usize,
    /// Loads under way at one time; more are refused.
    pub max_loads: usize,
    /// Prefetches under way at one time; more are refused.
    pub max_prefetches: usize,
    /// Threads that carry transfers out, if the tiers have their own.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stop: StopPolicy::default(),
            exists_batch: 128,
            batch_pages: 128,
            batch_bytes: 64 << 20,
            copy_bytes: 4 << 20,
            reads: 4,
            writes: 2,
            max_backups: 16,
            max_stores: 256,
            max_loads: 64,
            max_prefetches: 64,
            threads: 2,
        }
    }
}

impl Options {
    /// Pages of one read or write of the store.
    pub(crate) fn store_pages(&self, page_bytes: usize) -> usize {
        (self.batch_bytes / page_bytes.max(1)).clamp(1, self.batch_pages.max(1))
    }

    /// Pages of one copy.
    pub(crate) fn copy_pages(&self, page_bytes: usize) -> usize {
        (self.copy_bytes / page_bytes.max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_the_tokens() {
        let patience = |tokens| StopPolicy::default().patience(tokens);
        assert_eq!(patience(0), Some(Duration::from_secs(1)));
        assert_eq!(patience(1024), Some(Duration::from_millis(1250)));
        assert_eq!(patience(512), Some(Duration::from_millis(1125)));
        assert_eq!(StopPolicy::WaitComplete.patience(1024), None);
    }

    #[test]
    fn batches_are_bounded_in_pages_and_bytes_and_never_empty() {
        let options = Options::default();
        assert_eq!(options.store_pages(1), 128);
        assert_eq!(options.store_pages(1 << 20), 64);
        assert_eq!(options.store_pages(1 << 30), 1);
        assert_eq!((options.copy_pages(1 << 20), options.copy_pages(1 << 30)), (4, 1));
    }
}
