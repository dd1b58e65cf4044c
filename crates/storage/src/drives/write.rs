//! Pages on their way to a drive: demoted, because memory needs their slots, or written through.
//!
//! ```text
//! evictor ──► Exit: pin, note as in flight ──┐
//!                                            ├──► submit: still there? append ──► finisher: note the extent,
//! put ──► persist: pin, note as in flight ───┘                                     let the slot go, tell who waits
//! ```
//!
//! A page stays in the index and in its slot, and is read from there, until the drive has it. The job's pin keeps the
//! slot from being used for another page, so when the write is over the index tells by the slot alone whether this
//! page is still wanted there. It may have been
//! - deleted, cleared, quarantined, or put again since: then the slot is not in the index, and the extent is released;
//!   the removal came after the append, so its note covers the record (see [`drives`](super));
//! - read since: then it stays in memory and is on the drive as well, so that its next eviction costs nothing.
//!
//! Bounded: so many bytes are in flight at most. The evictor waits for the drives only while puts still find free
//! slots; otherwise pages are dropped. A reservation that makes its own room never waits and never writes.

use super::Drives;
use crate::index::{HashedKey, Place};
use crate::space::Space;
use crate::state::State;
use crate::status::count;
use memkv_core::SpaceId;
use memkv_memory::{PageView, SlotId, SlotPin};
use memkv_nvme::{Append, Dropped, Extent, OwnedHead, Ticket};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::sync::Semaphore;

/// The most pages, and about the most bytes, of one append.
const APPEND_PAGES: usize = 64;
const APPEND_BYTES: u64 = 16 << 20;
/// How long the evictor waits for room at a time. After one wait in vain it drops.
const PATIENCE: Duration = Duration::from_millis(100);

/// Why a page is written.
enum Why {
    /// Memory needs its slot.
    Demote {
        /// Last access and hits when it was chosen; other ones say that it is wanted again.
        seen: (u64, u32),
        /// It goes even if it is wanted: its chunk changes class.
        must_go: bool,
    },
    /// Its put waits.
    Persist,
}

/// One page to write.
struct Job {
    digest: u64,
    len: u32,
    head: OwnedHead,
    /// Keeps the slot with this page until the job is over.
    pin: SlotPin,
    why: Why,
}

impl Job {
    fn slot(&self) -> SlotId {
        self.pin.id()
    }
}

/// A page in flight.
struct Flying {
    slot_bytes: u32,
    leaves: bool,
    waiters: Vec<Arc<Waiter>>,
}

/// A put request that waits for its pages.
pub(crate) struct Waiter {
    durable: AtomicU64,
    dropped: AtomicU64,
    /// Gets a permit for each page that is over.
    over: Semaphore,
}

impl Waiter {
    fn tell(&self, durable: bool) {
        let counter = if durable { &self.durable } else { &self.dropped };
        counter.fetch_add(1, Ordering::Release);
        self.over.add_permits(1);
    }
}

#[derive(Default)]
struct Queue {
    /// Appends that the finisher has not seen yet.
    tickets: Vec<(Ticket, Vec<Job>)>,
    flying: HashMap<SlotId, Flying>,
    bytes: u64,
    leaving_bytes: u64,
    closed: bool,
}

/// All pages in flight.
pub(crate) struct Writes {
    queue: Mutex<Queue>,
    /// Wakes whoever waits for room.
    room: Condvar,
    signal: Arc<Signal>,
    /// The most bytes in flight, but for one append of each writer.
    bytes_max: u64,
    /// Nobody ends writes while somebody waits: a thread that waited for room would wait in vain.
    by_hand: bool,
}

/// Wakes the finisher.
#[derive(Default)]
struct Signal {
    raised: Mutex<bool>,
    wake: Condvar,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.raise();
    }
}

impl Signal {
    fn raise(&self) {
        *self.raised.lock() = true;
        self.wake.notify_one();
    }

    fn wait(&self) {
        let mut raised = self.raised.lock();
        while !*raised {
            self.wake.wait(&mut raised);
        }
        *raised = false;
    }
}

impl Writes {
    pub(crate) fn new(dram_bytes: u64, page_bytes_max: u32, drives: u64, by_hand: bool) -> Self {
        // Enough to keep the drives busy; not so much that a small store is all in flight.
        let bytes_max = (drives * (64 << 20)).min(dram_bytes / 8).max(u64::from(page_bytes_max));
        Self { queue: Mutex::default(), room: Condvar::new(), signal: Arc::default(), bytes_max, by_hand }
    }

    /// Whether no thread ends writes.
    pub(crate) fn is_by_hand(&self) -> bool {
        self.by_hand
    }

    /// Bytes in flight.
    pub(crate) fn bytes(&self) -> u64 {
        self.queue.lock().bytes
    }

    /// Bytes of the slots that become free when what is in flight has arrived.
    pub(crate) fn leaving_bytes(&self) -> u64 {
        self.queue.lock().leaving_bytes
    }

    /// How many slots of this size become free when what is in flight has arrived.
    pub(crate) fn leaving_slots(&self, slot_bytes: u32) -> u64 {
        let queue = self.queue.lock();
        queue.flying.values().filter(|page| page.leaves && page.slot_bytes == slot_bytes).count() as u64
    }

    fn has_room(&self) -> bool {
        self.queue.lock().bytes < self.bytes_max
    }

    /// Waits a moment for room; whether there is some.
    fn wait_room(&self) -> bool {
        if self.by_hand {
            return false;
        }
        let mut queue = self.queue.lock();
        let full = |queue: &mut Queue| queue.bytes >= self.bytes_max && !queue.closed;
        let waited = self.room.wait_while_for(&mut queue, full, PATIENCE);
        !waited.timed_out()
    }

    /// Notes a page as in flight. `false` if it is already, or the engine is closed.
    fn begin(&self, job: &Job, slot_bytes: u32, waiter: Option<&Arc<Waiter>>) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed || queue.flying.contains_key(&job.slot()) {
            return false;
        }
        let leaves = matches!(job.why, Why::Demote { .. });
        queue.bytes += u64::from(job.len);
        queue.leaving_bytes += if leaves { u64::from(slot_bytes) } else { 0 };
        let waiters = waiter.into_iter().cloned().collect();
        queue.flying.insert(job.slot(), Flying { slot_bytes, leaves, waiters });
        true
    }

    /// Has `waiter` told about a page that is in flight already. `false` if it is not.
    fn join(&self, slot: SlotId, waiter: &Arc<Waiter>) -> bool {
        let mut queue = self.queue.lock();
        let Some(flying) = queue.flying.get_mut(&slot) else { return false };
        flying.waiters.push(Arc::clone(waiter));
        true
    }

    /// The job is over; its pin goes.
    fn end(&self, job: Job, durable: bool) {
        let mut queue = self.queue.lock();
        queue.bytes -= u64::from(job.len);
        let flying = queue.flying.remove(&job.slot());
        if let Some(flying) = flying.as_ref().filter(|flying| flying.leaves) {
            queue.leaving_bytes -= u64::from(flying.slot_bytes);
        }
        let closed = queue.closed;
        drop(queue);
        drop(job);
        self.room.notify_all();
        if closed {
            self.signal.raise();
        }
        for waiter in flying.into_iter().flat_map(|flying| flying.waiters) {
            waiter.tell(durable);
        }
    }

    fn push(&self, ticket: Ticket, jobs: Vec<Job>) {
        self.queue.lock().tickets.push((ticket, jobs));
        self.signal.raise();
    }

    /// Refuses new pages and lets the finisher end once all in flight have arrived.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.room.notify_all();
        self.signal.raise();
    }

    /// Finishes jobs until the engine is closed and nothing is in flight.
    pub(crate) fn run_finisher(&self, state: &Weak<State>) {
        let waker = Waker::from(Arc::clone(&self.signal));
        let mut context = Context::from_waker(&waker);
        let mut waiting: Vec<(Ticket, Vec<Job>)> = Vec::new();
        loop {
            waiting.append(&mut self.queue.lock().tickets);
            let Some(state) = state.upgrade() else { return };
            finish_ready(&state, &mut waiting, &mut context);
            drop(state);
            if self.is_over() {
                return;
            }
            self.signal.wait();
        }
    }

    /// Whether the engine is closed and nothing is in flight.
    fn is_over(&self) -> bool {
        let queue = self.queue.lock();
        queue.closed && queue.flying.is_empty()
    }

    /// Finishes what is over. Whether the engine is closed and nothing is in flight any more.
    #[cfg(feature = "sim")]
    pub(crate) fn finish_by_hand(&self, state: &State) -> bool {
        let mut waiting = std::mem::take(&mut self.queue.lock().tickets);
        finish_ready(state, &mut waiting, &mut Context::from_waker(Waker::noop()));
        let mut queue = self.queue.lock();
        waiting.append(&mut queue.tickets);
        queue.tickets = waiting;
        drop(queue);
        self.is_over()
    }
}

/// Finishes the jobs of appends that are over.
fn finish_ready(state: &State, waiting: &mut Vec<(Ticket, Vec<Job>)>, context: &mut Context<'_>) {
    let mut at = 0;
    while at < waiting.len() {
        match Pin::new(&mut waiting[at].0).poll(context) {
            Poll::Pending => at += 1,
            Poll::Ready(results) => {
                let (_, jobs) = waiting.swap_remove(at);
                finish_all(state, jobs, &results);
            }
        }
    }
}

/// Appends the pages that are still where they were; see the module's documentation.
fn submit(state: &State, drives: &Drives, jobs: Vec<Job>) {
    let _append = drives.order.read();
    let mut pages = Vec::with_capacity(jobs.len());
    let mut live = Vec::with_capacity(jobs.len());
    for job in jobs {
        let there = state.index.shard_for(job.digest).look_slot(job.digest, job.slot()).is_some();
        match state.arena.pin(job.slot()).filter(|_| there) {
            Some(page) => {
                pages.push(Append { head: job.head.clone(), page });
                live.push(job);
            }
            None => drives.writes.end(job, false),
        }
    }
    if !live.is_empty() {
        drives.writes.push(drives.log.append(pages), live);
    }
}

fn finish_all(state: &State, jobs: Vec<Job>, results: &[Result<Extent, Dropped>]) {
    let mut results = results.iter();
    let Some(drives) = &state.drives else { return };
    for job in jobs {
        // A log that ended early tells nothing.
        let result = *results.next().unwrap_or(&Err(Dropped::DriveFailed));
        finish(state, drives, job, result);
    }
}

/// Ends one job.
fn finish(state: &State, drives: &Drives, job: Job, result: Result<Extent, Dropped>) {
    let mut left = Vec::new();
    let mut shard = state.index.shard_for(job.digest);
    let there = shard.look_slot(job.digest, job.slot()).map(|found| found.space);
    let page = there.and_then(|_| state.arena.page(job.slot()));
    let (Some(number), Some(page)) = (there, page) else {
        drop(shard);
        state.release(result.ok().into_iter().collect());
        return drives.writes.end(job, false);
    };
    let leaves = match job.why {
        Why::Demote { seen, must_go } => {
            let again = (page.last_access_ms, page.hits) != seen || state.kept.holds(job.digest);
            must_go || !again
        }
        Why::Persist => false,
    };
    if let Ok(extent) = result {
        state.arena.set_extent(job.slot(), extent.to_bits());
        if leaves {
            state.leave_dram(&mut shard, &page, extent);
        }
    } else if leaves && let Some(removed) = shard.remove_slot(job.digest, job.slot()) {
        state.retire(&state.space(number), &removed, &mut left);
    }
    drop(shard);
    state.release(left);
    count_end(state, &job, leaves, result.is_ok());
    drives.writes.end(job, result.is_ok());
}

fn count_end(state: &State, job: &Job, leaves: bool, written: bool) {
    let (tally, bytes) = (&state.tally, u64::from(job.len));
    if leaves {
        count(&tally.evicted_pages, 1);
        count(&tally.evicted_bytes, bytes);
    }
    match (&job.why, written) {
        (Why::Demote { .. }, true) => {
            count(&tally.demoted_pages, 1);
            count(&tally.demoted_bytes, bytes);
        }
        (Why::Demote { .. }, false) => count(&tally.demote_dropped, u64::from(leaves)),
        (Why::Persist, true) => count(&tally.persisted_pages, 1),
        (Why::Persist, false) => count(&tally.persist_dropped, 1),
    }
}

/// How much a page has to leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Room is wanted; there is time to write the page.
    Calm,
    /// A reservation waits: the slot must be free now.
    Now,
    /// The page's chunk changes class: it goes even if it is read, and there is time to write it.
    Chunk,
}

/// What became of a page that should leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is gone from memory; it had so many bytes.
    Gone(u64),
    /// It goes when it is on a drive.
    Leaving,
    /// It stays: it is not there any more, is kept, or is on its way already.
    Stays,
}

/// Takes pages out of memory, one after another. What is to be written is appended in batches, the last one when this
/// is dropped.
pub(crate) struct Exit<'a> {
    state: &'a State,
    jobs: Vec<Job>,
    job_bytes: u64,
    /// The drives did not move while the evictor waited.
    stuck: bool,
}

impl<'a> Exit<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        Self { state, jobs: Vec::new(), job_bytes: 0, stuck: false }
    }

    /// Takes a page out of memory if it is still the one that was seen.
    pub(crate) fn evict(&mut self, page: &PageView, slot_bytes: u32, urgency: Urgency) -> Left {
        if self.state.is_closed() {
            return Left::Stays;
        }
        let room = urgency != Urgency::Now && self.state.drives.is_some() && self.room(slot_bytes);
        let left = self.evict_with(page, slot_bytes, urgency, room);
        if self.jobs.len() >= APPEND_PAGES || self.job_bytes >= APPEND_BYTES {
            self.flush();
        }
        left
    }

    fn evict_with(&mut self, seen: &PageView, slot_bytes: u32, urgency: Urgency, room: bool) -> Left {
        let state = self.state;
        let mut shard = state.index.shard_for(seen.digest);
        let Some(found) = shard.look_slot(seen.digest, seen.slot) else { return Left::Stays };
        let Some(page) = state.arena.page(seen.slot) else { return Left::Stays };
        if state.kept.holds(page.digest) {
            return Left::Stays;
        }
        let bytes = u64::from(page.meta.len);
        if let Some(extent) = Extent::from_bits(page.extent) {
            state.leave_dram(&mut shard, &page, extent);
            return Left::Gone(bytes);
        }
        if let Some(drives) = &state.drives {
            let account_has_room = || state.space(found.space).account().has_drive_room(bytes);
            let wanted = (page.hits > 0 || drives.admit_unread) && account_has_room();
            if wanted && room && bytes > 0 {
                let (space, key) = (found.space, Box::from(found.key));
                return self.demote(drives, (space, key), &page, slot_bytes, urgency);
            }
            if page.pins > 0 && drives.writes.queue.lock().flying.contains_key(&page.slot) {
                return Left::Stays;
            }
            count(if wanted { &state.tally.demote_dropped } else { &state.tally.demote_unread }, 1);
        }
        let number = found.space;
        let Some(removed) = shard.remove_slot(page.digest, page.slot) else { return Left::Stays };
        state.retire(&state.space(number), &removed, &mut Vec::new());
        Left::Gone(bytes)
    }

    /// Makes a job of a page. Its shard is locked, so the page is still there.
    fn demote(
        &mut self,
        drives: &Drives,
        (space, key): (u32, Box<[u8]>),
        page: &PageView,
        slot_bytes: u32,
        urgency: Urgency,
    ) -> Left {
        let seen = (page.last_access_ms, page.hits);
        let why = Why::Demote { seen, must_go: urgency == Urgency::Chunk };
        let job = job(self.state, (self.state.space(space).id(), key), page, why);
        let Some(job) = job.filter(|job| drives.writes.begin(job, slot_bytes, None)) else {
            return Left::Stays;
        };
        self.job_bytes += u64::from(job.len);
        self.jobs.push(job);
        Left::Leaving
    }

    /// Whether another page may be in flight, after a wait if puts can wait too.
    fn room(&mut self, slot_bytes: u32) -> bool {
        let Some(drives) = &self.state.drives else { return false };
        if drives.writes.has_room() {
            return true;
        }
        // What is collected must move, or nobody makes room.
        self.flush();
        if self.stuck || !self.state.can_wait(slot_bytes) {
            return false;
        }
        let room = drives.writes.wait_room();
        self.stuck = !room;
        room
    }

    fn flush(&mut self) {
        self.job_bytes = 0;
        let jobs = std::mem::take(&mut self.jobs);
        if let Some(drives) = self.state.drives.as_ref().filter(|_| !jobs.is_empty()) {
            submit(self.state, drives, jobs);
        }
    }
}

impl Drop for Exit<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A job for a page whose shard is locked.
fn job(state: &State, (space, key): (SpaceId, Box<[u8]>), page: &PageView, why: Why) -> Option<Job> {
    let &PageView { slot, digest, meta, position, created_ms, hits, .. } = page;
    let head = OwnedHead { space, key, digest, meta, position, created_ms, hits };
    Some(Job { digest, len: meta.len, head, pin: state.arena.pin(slot)?, why })
}

impl State {
    /// Whether puts of this size find slots for a while yet.
    fn can_wait(&self, slot_bytes: u32) -> bool {
        let fill = self.arena.fill_of(slot_bytes);
        fill.is_none_or(|fill| fill.available > self.marks.slots_wanted(fill.potential) / 4)
    }

    /// Writes pages through; see [`Engine::persist`](crate::Engine::persist).
    pub(crate) async fn persist(&self, drives: &Drives, space: &Space, keys: &[HashedKey<'_>]) -> (u64, u64) {
        let waiter = Arc::new(Waiter {
            durable: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            over: Semaphore::new(0),
        });
        let mut begun = 0_usize;
        for keys in keys.chunks(APPEND_PAGES) {
            // As many bytes as may be in flight are; the oldest of ours end first.
            while !drives.writes.has_room() && waiter.over.available_permits() < begun {
                if let Ok(over) = waiter.over.acquire().await {
                    over.forget();
                    begun -= 1;
                }
            }
            let mut jobs = Vec::new();
            self.index.each(keys, |shard, _, key| {
                match self.through(drives, space, key, shard.look(space, key).map(|f| f.place), &waiter) {
                    Through::Job(job) => jobs.push(job),
                    Through::InFlight => {}
                    Through::Over(durable) => waiter.tell(durable),
                }
            });
            begun += keys.len();
            if !jobs.is_empty() {
                submit(self, drives, jobs);
            }
        }
        let all = u32::try_from(begun).unwrap_or(u32::MAX);
        if let Ok(over) = waiter.over.acquire_many(all).await {
            over.forget();
        }
        (waiter.durable.load(Ordering::Acquire), waiter.dropped.load(Ordering::Acquire))
    }

    /// What to do about one page of a put. Its shard is locked.
    fn through(
        &self,
        drives: &Drives,
        space: &Space,
        key: HashedKey<'_>,
        place: Option<Place>,
        waiter: &Arc<Waiter>,
    ) -> Through {
        let slot = match place {
            None => return Through::Over(false),
            Some(Place::Drive(_)) => return Through::Over(true),
            Some(Place::Dram(slot)) => slot,
        };
        let Some(page) = self.arena.page(slot) else { return Through::Over(false) };
        if page.extent != 0 {
            return Through::Over(true);
        }
        if drives.writes.join(slot, waiter) {
            return Through::InFlight;
        }
        let name = (space.id(), Box::from(key.key.as_bytes()));
        let job = job(self, name, &page, Why::Persist).filter(|job| job.len > 0);
        match job.filter(|job| drives.writes.begin(job, self.arena.slot_bytes(slot), Some(waiter))) {
            Some(job) => Through::Job(job),
            None => Through::Over(false),
        }
    }
}

enum Through {
    Job(Job),
    InFlight,
    Over(bool),
}
