//! Ends the plans whose transfers are over, with what all ranks agree has arrived.

use super::Tiers;
use crate::device::DevicePool;
use crate::job::{Agreed, Job, Kind, Question, VALUES};
use crate::jobs::Work;
use crate::stats::Count;
use crate::store::PageStore;
use crate::ticket::{Entry, Outcome, PrefetchEnd};
use memkv_radix::{BackupPlan, LoadedBack, PrefetchError, PrefetchPlan, RadixCache};
use std::time::Instant;

impl<D: DevicePool, S: PageStore> Tiers<D, S> {
    pub(super) fn end_jobs(&mut self, cache: &mut RadixCache, now: Instant) -> usize {
        if self.jobs.is_empty() {
            return 0;
        }
        let mut values: Vec<u64> = self.jobs.values().flat_map(|job| job.values(now)).collect();
        if let Err(error) = self.ranks.min(&mut values) {
            tracing::warn!(%error, "no transfer ends in this step");
            self.context.counters.add(Count::LostAgreements, 1);
            return 0;
        }
        let ids: Vec<u64> = self.jobs.keys().copied().collect();
        let mut ended = 0;
        for (id, values) in ids.into_iter().zip(values.as_chunks::<VALUES>().0) {
            if let Some(agreed) = Job::agreed(*values)
                && let Some(job) = self.jobs.remove(&id)
            {
                self.end(cache, job, agreed);
                ended += 1;
            }
        }
        ended
    }

    fn end(&mut self, cache: &mut RadixCache, job: Job, agreed: Agreed) {
        let pages = agreed.pages;
        match job.kind {
            Kind::BackUp(plan) => self.end_backup(cache, plan, pages),
            Kind::Store(plan) => {
                self.count(Count::UnstoredPages, plan.host.len().saturating_sub(pages));
                cache.end_store(plan);
            }
            Kind::Load(plan) if pages == plan.host.len() => {
                self.count(Count::LoadedPages, pages);
                let loaded = cache.commit_load_back(plan);
                self.give_loaded(cache, job.ticket, Some(loaded));
            }
            Kind::Load(plan) => {
                self.count(Count::FailedLoads, 1);
                cache.abort_load_back(plan);
                self.give_loaded(cache, job.ticket, None);
            }
            Kind::Ask(question) if agreed.all_done => {
                self.end_question(cache, &question, (job.ticket, job.deadline), pages);
            }
            Kind::Ask(_) => {
                // Nobody waits any more, so what the store has so far is not worth a read.
                job.progress.stop();
                self.count(Count::StoppedPrefetches, 1);
                self.give_prefetched(job.ticket, 0);
            }
            Kind::Fetch(plan) if agreed.all_done => {
                let pages = self.commit(cache, plan, pages);
                self.give_prefetched(job.ticket, pages);
            }
            Kind::Fetch(plan) => {
                job.progress.stop();
                self.count(Count::StoppedPrefetches, 1);
                let (plan, rest) = cache.split_prefetch(plan, pages);
                let arrived = self.commit(cache, plan, pages);
                self.give_prefetched(job.ticket, arrived);
                // A read may still be writing to the other pages.
                self.keep(Kind::Tail { rest, before: pages }, job.progress, None, None);
            }
            Kind::Tail { rest, before } => {
                self.commit(cache, rest, pages.saturating_sub(before));
            }
        }
    }

    fn end_backup(&mut self, cache: &mut RadixCache, plan: BackupPlan, pages: usize) {
        let copied = pages == plan.host.len();
        if copied {
            self.count(Count::BackedUpPages, pages);
        } else {
            self.count(Count::FailedBackups, 1);
        }
        let done = cache.end_backup(plan, copied);
        for plan in done.store {
            self.start_store(cache, plan);
        }
    }

    /// The store has said how much it has. The cache refuses what is too little to be worth a transfer; nothing is
    /// begun if nobody waits for it any more.
    fn end_question(
        &mut self,
        cache: &mut RadixCache,
        question: &Question,
        (ticket, deadline): (Option<u64>, Option<Instant>),
        hit_pages: usize,
    ) {
        if !ticket.is_some_and(|id| self.tickets.contains_key(&id)) {
            self.count(Count::RevokedPrefetches, 1);
            return;
        }
        if let Some(entry) = ticket.and_then(|id| self.tickets.get_mut(&id)) {
            entry.outcome = Outcome::Prefetching { hit_pages };
        }
        let raw = cache.shape().raw_tokens(question.start + hit_pages);
        match cache.begin_prefetch(question.access(), question.tokens().slice(0..raw)) {
            Ok(plan) => {
                let work = Work::Fetch { pages: plan.pages().to_vec() };
                self.start(work, Kind::Fetch(plan), ticket, deadline);
            }
            Err(error) => {
                let few = matches!(error, PrefetchError::TooFew { .. });
                self.count(if few { Count::RevokedPrefetches } else { Count::RefusedPrefetches }, 1);
                self.give_prefetched(ticket, 0);
            }
        }
    }

    /// Gives the first `pages` pages of a prefetch to the cache; returns how many.
    fn commit(&self, cache: &mut RadixCache, plan: PrefetchPlan, pages: usize) -> usize {
        let pages = pages.min(plan.pages().len());
        if pages == 0 {
            cache.abort_prefetch(plan);
            return 0;
        }
        let done = cache.commit_prefetch(plan, pages);
        self.count(Count::PrefetchedPages, done.inserted);
        self.count(Count::DuplicatePages, done.duplicates);
        pages
    }

    fn give_prefetched(&mut self, ticket: Option<u64>, pages: usize) {
        if let Some(entry) = ticket.and_then(|id| self.tickets.get_mut(&id)) {
            let hit_pages = match entry.outcome {
                Outcome::Prefetching { hit_pages } => hit_pages,
                _ => 0,
            };
            entry.outcome = Outcome::Prefetched(PrefetchEnd { hit_pages, pages });
        }
    }

    fn give_loaded(&mut self, cache: &mut RadixCache, ticket: Option<u64>, loaded: Option<LoadedBack>) {
        match (ticket.and_then(|id| self.tickets.get_mut(&id)), loaded) {
            (Some(entry), loaded) => entry.outcome = Outcome::Loaded(loaded),
            (None, Some(loaded)) => cache.unlock(loaded.lock),
            (None, None) => {}
        }
    }

    /// Forgets tickets that were dropped, and gives back what they had.
    pub(super) fn forget_abandoned(&mut self, cache: &mut RadixCache) {
        let abandoned: Vec<u64> =
            self.tickets.iter().filter(|(_, entry)| entry.is_abandoned()).map(|(id, _)| *id).collect();
        for id in abandoned {
            if let Some(Entry { outcome: Outcome::Loaded(Some(loaded)), .. }) = self.tickets.remove(&id) {
                cache.unlock(loaded.lock);
            }
            for job in self.jobs.values().filter(|job| job.ticket == Some(id)) {
                if matches!(job.kind, Kind::Ask(_) | Kind::Fetch(_)) {
                    job.progress.stop();
                }
            }
        }
    }
}
