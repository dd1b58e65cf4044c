//! The transfers: futures that move bytes and know nothing of the tree.
//!
//! A transfer owns what it needs (the pools through a reference count, its pages by number) and counts the leading
//! pages that have arrived. It can be dropped at any await: the locks on its pages go first, then its [`Report`]
//! says that it is over, and only then does the scheduler end the plan and give the pages away.

use crate::device::DevicePool;
use crate::options::Options;
use crate::progress::{News, Report};
use crate::region::{PageRead, PageRegion, PageWrite};
use crate::stats::{Count, Counters};
use crate::store::{PageKey, PageStore};
use memkv_client::PageOutcome;
use memkv_radix::{DevicePage, Digest, HostPage, PrefetchPage};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// What all transfers share.
pub(crate) struct Context<D, S> {
    pub(crate) device: D,
    pub(crate) host: PageRegion,
    pub(crate) store: S,
    pub(crate) options: Options,
    pub(crate) counters: Counters,
    pub(crate) news: Arc<News>,
    pub(crate) reads: Semaphore,
    pub(crate) writes: Semaphore,
}

/// What a transfer is to do.
pub(crate) enum Work {
    /// Device to host.
    BackUp { device: Vec<DevicePage>, host: Vec<HostPage> },
    /// Host to device.
    Load { host: Vec<HostPage>, device: Vec<DevicePage> },
    /// Host to store; the first page is page `start` of its chain.
    Store { start: usize, host: Vec<HostPage>, digests: Vec<Digest> },
    /// How much does the store have?
    Ask { digests: Vec<Digest> },
    /// Store to host.
    Fetch { pages: Vec<PrefetchPage> },
}

impl<D: DevicePool, S: PageStore> Context<D, S> {
    /// Runs a transfer to its end, or until it is cancelled.
    pub(crate) async fn run(self: Arc<Self>, work: Work, report: Report) {
        tokio::select! {
            biased;
            () = report.cancelled() => {}
            () = self.carry_out(work, &report) => {}
        }
    }

    async fn carry_out(&self, work: Work, report: &Report) {
        match work {
            Work::BackUp { device, host } => self.back_up(&device, &host, report).await,
            Work::Load { host, device } => self.load(&host, &device, report).await,
            Work::Store { start, host, digests } => self.store(start, &host, &digests, report).await,
            Work::Ask { digests } => self.ask(&digests, report).await,
            Work::Fetch { pages } => self.fetch(&pages, report).await,
        }
    }

    async fn back_up(&self, device: &[DevicePage], host: &[HostPage], report: &Report) {
        let step = self.options.copy_pages(self.host.page_bytes());
        for (device, host) in device.chunks(step).zip(host.chunks(step)) {
            if report.is_stopped() || !self.copy_out(device, host) {
                return;
            }
            report.add(host.len());
            yield_now().await;
        }
    }

    fn copy_out(&self, device: &[DevicePage], host: &[HostPage]) -> bool {
        let Some(mut locked) = self.lock_for_writing(host.iter().copied()) else { return false };
        let mut slices: Vec<&mut [u8]> = locked.iter_mut().map(|page| &mut page[..]).collect();
        let copied = self.device.copy_out(device, &mut slices);
        copied.inspect_err(|error| tracing::warn!(%error, "a copy from the device failed")).is_ok()
    }

    async fn load(&self, host: &[HostPage], device: &[DevicePage], report: &Report) {
        let step = self.options.copy_pages(self.host.page_bytes());
        for (host, device) in host.chunks(step).zip(device.chunks(step)) {
            if report.is_stopped() || !self.copy_in(host, device) {
                return;
            }
            report.add(host.len());
            yield_now().await;
        }
    }

    fn copy_in(&self, host: &[HostPage], device: &[DevicePage]) -> bool {
        let Some(locked) = self.lock_for_reading(host) else { return false };
        let slices: Vec<&[u8]> = locked.iter().map(|page| &page[..]).collect();
        let copied = self.device.copy_in(device, &slices);
        copied.inspect_err(|error| tracing::warn!(%error, "a copy to the device failed")).is_ok()
    }

    /// A store that does not take one batch is not asked for the rest: pages behind a gap are of no use, and a
    /// server that is gone would cost a deadline for each batch.
    async fn store(&self, start: usize, host: &[HostPage], digests: &[Digest], report: &Report) {
        let step = self.options.store_pages(self.host.page_bytes());
        let mut done = 0;
        for (host, digests) in host.chunks(step).zip(digests.chunks(step)) {
            let Ok(_permit) = self.writes.acquire().await else { break };
            if report.is_stopped() {
                break;
            }
            let Some(locked) = self.lock_for_reading(host) else { break };
            let slices: Vec<&[u8]> = locked.iter().map(|page| &page[..]).collect();
            let mut outcomes = vec![PageOutcome::Unavailable; host.len()];
            self.store.put(start + done, &keys(digests), &slices, &mut outcomes).await;
            let stored = outcomes.iter().filter(|outcome| **outcome == PageOutcome::Stored).count();
            let taken = outcomes.iter().filter(|outcome| outcome.is_success()).count();
            self.counters.add(Count::StoredPages, stored);
            self.counters.add(Count::KnownPages, taken - stored);
            self.counters.add_failures(&outcomes);
            report.add(taken);
            done += host.len();
            if taken < host.len() {
                break;
            }
        }
    }

    /// Asks for pages in order and stops at the first that is not there.
    async fn ask(&self, digests: &[Digest], report: &Report) {
        for digests in digests.chunks(self.options.exists_batch.max(1)) {
            let Ok(_permit) = self.reads.acquire().await else { return };
            if report.is_stopped() {
                return;
            }
            let found = self.store.exists(&keys(digests)).await;
            let run = found.run.min(digests.len());
            self.counters.add(Count::HitPages, run);
            self.counters.add(Count::OtherFailedPages, found.failed);
            report.add(run);
            if run < digests.len() {
                return;
            }
        }
    }

    /// Reads pages in order; the first batch with a gap is the last.
    async fn fetch(&self, pages: &[PrefetchPage], report: &Report) {
        for pages in pages.chunks(self.options.store_pages(self.host.page_bytes())) {
            let Ok(_permit) = self.reads.acquire().await else { return };
            if report.is_stopped() {
                return;
            }
            let run = self.fetch_batch(pages).await;
            report.add(run);
            if run < pages.len() {
                return;
            }
        }
    }

    async fn fetch_batch(&self, pages: &[PrefetchPage]) -> usize {
        let Some(mut locked) = self.lock_for_writing(pages.iter().map(|page| page.host)) else { return 0 };
        let mut slices: Vec<&mut [u8]> = locked.iter_mut().map(|page| &mut page[..]).collect();
        let keys: Vec<PageKey> = pages.iter().map(|page| page.digest.into()).collect();
        let mut outcomes = vec![PageOutcome::Unavailable; pages.len()];
        self.store.get(&keys, &mut slices, &mut outcomes).await;
        self.counters.add_failures(&outcomes);
        outcomes.iter().take_while(|outcome| **outcome == PageOutcome::Hit).count()
    }

    fn lock_for_reading(&self, pages: &[HostPage]) -> Option<Vec<PageRead<'_>>> {
        let locked = pages.iter().map(|page| self.host.read(page.index())).collect();
        self.unless_taken(locked)
    }

    fn lock_for_writing(&self, mut pages: impl Iterator<Item = HostPage>) -> Option<Vec<PageWrite<'_>>> {
        let locked = pages.try_fold(Vec::new(), |mut locked, page| {
            locked.push(self.host.write(page.index())?);
            Some(locked)
        });
        self.unless_taken(locked)
    }

    fn unless_taken<T>(&self, locked: Option<T>) -> Option<T> {
        if locked.is_none() {
            tracing::error!("a host page of a plan is in use; the transfer is given up");
        }
        locked
    }
}

fn keys(digests: &[Digest]) -> Vec<PageKey> {
    digests.iter().copied().map(PageKey::from).collect()
}
