//! Some pages of one space on their way to their owners.
//!
//! Round by round every page is offered to the next server of its order, until it has its copies or there is no server
//! left. Within a round all servers are served side by side.

use super::Job;
use super::progress::{Delivery, Fate, Refused};
use super::scan::Found;
use super::target::{Failed, Target, messages};
use crate::metrics::Metrics;
use bytes::Bytes;
use memkv_core::Key;
use memkv_proto::v1;
use memkv_storage::{HashedKey, NoPeek, Peeked, Space};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Bytes of a page in one message, and messages that wait for the network.
const CHUNK_BYTES: usize = 1 << 20;
const MESSAGES: usize = 4;
/// How often memory for a page on a drive is asked for, and the pause between.
const MEMORY_TRIES: usize = 20;
const MEMORY_PAUSE: Duration = Duration::from_millis(50);

/// A page on its way.
pub(crate) struct Item {
    page: Found,
    /// The members in its order, by their places.
    order: Vec<usize>,
    /// How far in `order` it has come.
    rank: usize,
    placed: usize,
    moved: bool,
    elsewhere: bool,
    refused: Option<Refused>,
    gone: bool,
}

impl Item {
    /// A page that was offered to nobody yet.
    pub(crate) fn new(page: Found, order: Vec<usize>) -> Self {
        Self { page, order, rank: 0, placed: 0, moved: false, elsewhere: false, refused: None, gone: false }
    }

    /// Where it is to be offered next; `None` if it has its copies, or there is nobody left.
    fn next(&self, copies: usize) -> Option<usize> {
        if self.gone || self.placed >= copies { None } else { self.order.get(self.rank).copied() }
    }

    fn key(&self) -> HashedKey<'_> {
        let key = Key::new(&self.page.key).expect("the engine's keys are keys");
        HashedKey { key, digest: self.page.digest }
    }

    fn fate(&self, copies: usize) -> Fate {
        match self.placed {
            _ if self.gone => Fate::Gone,
            0 => Fate::Lost(self.refused.unwrap_or(Refused::Away)),
            placed => Fate::Placed { moved: self.moved, elsewhere: self.elsewhere, short: placed < copies },
        }
    }

    /// Takes over what one server said.
    fn heard(&mut self, answer: Answer, copies: usize) {
        match answer {
            Answer::Moved | Answer::Existing => {
                self.placed += 1;
                self.moved |= answer == Answer::Moved;
                self.elsewhere |= self.rank >= copies;
            }
            Answer::Gone => self.gone = true,
            Answer::Refused(why) => self.refused = Some(why),
        }
        self.rank += 1;
    }
}

/// What one server said about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Moved,
    Existing,
    Gone,
    Refused(Refused),
}

/// Pages of one space.
pub(crate) struct Batch {
    pub(crate) space: Arc<Space>,
    items: Vec<Item>,
    bytes: u64,
}

impl Batch {
    /// A batch without pages.
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self { space, items: Vec::new(), bytes: 0 }
    }

    pub(crate) fn push(&mut self, item: Item) {
        self.bytes += u64::from(item.page.len);
        self.items.push(item);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Brings every page to its owners, as far as they take it.
    pub(crate) async fn send(mut self, job: &Arc<Job>, again: bool) {
        let copies = job.copies;
        loop {
            let mut groups: BTreeMap<usize, Vec<Item>> = BTreeMap::new();
            let mut ended = Vec::new();
            for item in self.items.drain(..) {
                match item.next(copies) {
                    Some(target) => groups.entry(target).or_default().push(item),
                    None => ended.push(item),
                }
            }
            if groups.is_empty() {
                self.items = ended;
                break;
            }
            let mut sending = JoinSet::new();
            for (target, items) in groups {
                let delivery = Group { job: Arc::clone(job), space: Arc::clone(&self.space), target, items };
                sending.spawn(delivery.deliver());
            }
            self.items = ended;
            while let Some(items) = sending.join_next().await {
                // A task that was cut off belongs to a drain that has ended.
                self.items.extend(items.unwrap_or_default());
            }
        }
        self.settle(job, again);
    }

    fn settle(&self, job: &Job, again: bool) {
        let fates: Vec<_> = self.items.iter().map(|item| (item.page.len, item.fate(job.copies))).collect();
        let metrics = &job.node.metrics;
        for (item, &(len, fate)) in self.items.iter().zip(&fates) {
            match fate {
                Fate::Placed { moved: true, .. } => {
                    Metrics::add(&metrics.drain_moved, 1);
                    Metrics::add(&metrics.drain_moved_bytes, len.into());
                }
                Fate::Placed { moved: false, .. } => Metrics::add(&metrics.drain_existing, 1),
                Fate::Lost(Refused::Corrupt) => job.node.engine.quarantine(&self.space, item.key()),
                Fate::Lost(_) | Fate::Gone => {}
            }
            job.settled.add(item.page.digest, matches!(fate, Fate::Lost(_)));
        }
        job.progress.add(&fates, again);
    }
}

/// The pages of a batch that go to one server in one round.
struct Group {
    job: Arc<Job>,
    space: Arc<Space>,
    target: usize,
    items: Vec<Item>,
}

impl Group {
    async fn deliver(mut self) -> Vec<Item> {
        let target = self.job.targets[self.target].clone();
        let mut delivery = Delivery::default();
        let mut answers = self.try_deliver(&target, &mut delivery).await;
        if answers.contains(&Answer::Refused(Refused::Forgot)) {
            answers = self.try_deliver(&target, &mut delivery).await;
        }
        for (item, &answer) in self.items.iter_mut().zip(&answers) {
            match answer {
                Answer::Moved => {
                    delivery.moved_pages += 1;
                    delivery.moved_bytes += u64::from(item.page.len);
                }
                Answer::Existing => delivery.existing_pages += 1,
                Answer::Refused(why) => {
                    delivery.refused_pages += 1;
                    delivery.error.get_or_insert_with(|| why.reason().to_owned());
                }
                Answer::Gone => {}
            }
            item.heard(answer, self.job.copies);
        }
        self.job.progress.delivered(self.target, delivery);
        self.follow_removals(&target, &answers).await;
        self.keep_pins(&target, &answers).await;
        self.items
    }

    /// One answer for each item, whatever happens.
    async fn try_deliver(&self, target: &Target, delivery: &mut Delivery) -> Vec<Answer> {
        match self.ask_and_put(target, delivery).await {
            Ok(answers) => answers,
            Err(failed) => {
                delivery.error = Some(failed.text);
                vec![Answer::Refused(failed.why); self.items.len()]
            }
        }
    }

    /// Asks which pages are there already, and sends the others. One answer for each item.
    async fn ask_and_put(&self, target: &Target, delivery: &mut Delivery) -> Result<Vec<Answer>, Failed> {
        let keys = self.items.iter().map(|item| item.page.key.to_vec()).collect();
        let present = target.exists(&self.space, keys).await?;
        let mut answers = vec![Answer::Existing; self.items.len()];
        let absent: Vec<usize> = (0..self.items.len()).filter(|&at| !present[at]).collect();
        let bytes: u64 = absent.iter().map(|&at| u64::from(self.items[at].page.len)).sum();
        if absent.is_empty() {
            return Ok(answers);
        }
        self.job.pace.take(bytes).await;
        let (out, pages) = mpsc::channel(MESSAGES);
        let (put, sent) = tokio::join!(target.put(pages, bytes), self.pages(&absent, &mut answers, out));
        match put {
            Ok(statuses) => {
                for (at, status) in
                    sent.iter().zip(statuses.into_iter().map(Some).chain(std::iter::repeat(None)))
                {
                    answers[*at] = answer_of(status);
                }
            }
            // What was there is there all the same.
            Err(failed) => {
                for at in absent {
                    if answers[at] != Answer::Gone {
                        answers[at] = Answer::Refused(failed.why);
                    }
                }
                delivery.error = Some(failed.text);
            }
        }
        Ok(answers)
    }

    /// Sends pages into `out`; returns those that were sent whole, and answers for those that were not.
    async fn pages(
        &self,
        absent: &[usize],
        answers: &mut [Answer],
        out: mpsc::Sender<v1::PutRequest>,
    ) -> Vec<usize> {
        let mut sent = Vec::new();
        for &at in absent {
            let item = &self.items[at];
            let page = match self.peek(item).await {
                Ok(page) => page,
                Err(NoPeek::Gone) => {
                    answers[at] = Answer::Gone;
                    continue;
                }
                Err(NoPeek::Busy) => {
                    answers[at] = Answer::Refused(Refused::NoMemory);
                    continue;
                }
            };
            let about = (page.meta().into(), item.page.position);
            let bytes = Bytes::from_owner(page);
            for message in messages((self.space.id(), &item.page.key), about, bytes, CHUNK_BYTES) {
                if out.send(message).await.is_err() {
                    return sent; // The call has failed, and says why.
                }
            }
            sent.push(at);
        }
        sent
    }

    async fn peek(&self, item: &Item) -> Result<Peeked, NoPeek> {
        let mut tries = 0;
        loop {
            match self.job.node.engine.peek(&self.space, item.key()).await {
                Err(NoPeek::Busy) if tries < MEMORY_TRIES => {
                    tries += 1;
                    sleep(MEMORY_PAUSE).await;
                }
                peeked => return peeked,
            }
        }
    }

    /// A page that was deleted here while it was on its way is deleted there too: else it would come back.
    async fn follow_removals(&self, target: &Target, answers: &[Answer]) {
        let moved: Vec<&Item> = self
            .items
            .iter()
            .zip(answers)
            .filter(|(_, answer)| **answer == Answer::Moved)
            .map(|(item, _)| item)
            .collect();
        let keys: Vec<_> = moved.iter().map(|item| item.key()).collect();
        let mut found = vec![false; keys.len()];
        self.job.node.engine.exists_batch(&self.space, &keys, &mut found);
        let gone = keys.iter().zip(found).filter(|(_, found)| !found);
        let gone: Vec<Vec<u8>> = gone.map(|(key, _)| key.key.as_bytes().to_vec()).collect();
        if gone.is_empty() {
            return;
        }
        let pages = gone.len();
        if let Err(failed) = target.delete(self.space.id(), gone).await {
            tracing::warn!(
                pages,
                server = target.id(),
                error = failed.text,
                "pages that were removed during the drain may still be there"
            );
        }
    }

    /// Pins there what is pinned here, for as long as is left.
    async fn keep_pins(&self, target: &Target, answers: &[Answer]) {
        let now_ms = self.job.node.clock.now_ms();
        let mut by_end: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        for (item, answer) in self.items.iter().zip(answers) {
            let until = item.page.kept_until_ms.filter(|until| *until > now_ms);
            if let (Some(until), Answer::Moved | Answer::Existing) = (until, answer) {
                by_end.entry(until).or_default().push(item.page.key.to_vec());
            }
        }
        for (until, keys) in by_end {
            let wanted = keys.len() as u64;
            let pinned = match target.pin(self.space.id(), keys, until - now_ms).await {
                Ok(pinned) => pinned.min(wanted),
                Err(failed) => {
                    tracing::warn!(
                        server = target.id(),
                        error = failed.text,
                        "pinned pages are not pinned there"
                    );
                    0
                }
            };
            self.job.progress.pinned(pinned, wanted - pinned);
        }
    }
}

fn answer_of(status: Option<v1::Status>) -> Answer {
    match status {
        Some(v1::Status::Ok) => Answer::Moved,
        Some(v1::Status::Exists) => Answer::Existing,
        Some(v1::Status::TooLarge) => Answer::Refused(Refused::TooLarge),
        Some(v1::Status::Corrupt) => Answer::Refused(Refused::Corrupt),
        Some(v1::Status::Busy) => Answer::Refused(Refused::Full),
        Some(v1::Status::Miss | v1::Status::SizeMismatch | v1::Status::Unspecified) | None => {
            Answer::Refused(Refused::Denied)
        }
    }
}
