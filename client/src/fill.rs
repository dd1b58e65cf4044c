//! Fills copies that are missing, in the background.
//!
//! A read that found a page at one server, after a better-placed one said that it does not have it, orders a copy: from
//! where it is to where it should be. If the page was found only where it belonged under an earlier member list, it
//! moves: the old copy is removed once the new one is stored.
//!
//! An order holds keys, never bytes: the page is read again, checked as any read is, and stored as any page is. So the
//! caller pays for noting the order only, and what is in flight is at most one page for each of [`WORKERS`].
//!
//! Invariants:
//! - an order that does not fit is dropped and counted; nobody waits for it;
//! - a page is in at most one order at a time;
//! - an old copy is removed only after the new server said that it has the page.
//!
//! Deliberately absent: retries. The next read that misses orders again.

use crate::client::Shared;
use crate::config::Transport;
use crate::exchange::{Batch, Care};
use crate::members::Members;
use crate::ops::Call;
use crate::plan::Lookup;
use crate::raw::Pieces;
use crate::server::Server;
use crate::stats::CopyStats;
use crate::{PageOutcome, SpaceId, drive, grpc};
use memkv_core::Key;
use memkv_core::page::key_digest;
use memkv_transport::frame::{FLAG_EXACT, Op};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Orders that wait.
const QUEUE: usize = 256;
/// The most pages in all orders, waiting or worked on.
const PAGES_MAX: usize = 4096;
/// Orders that are worked on at a time.
const WORKERS: usize = 4;
/// Room for a page of unknown length at first, and how often it is looked at.
const GUESS_BYTES: usize = 64 << 10;
const LOOKS_MAX: usize = 3;

/// What happened to copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    /// A page was found at another server than the first one asked.
    Elsewhere,
    /// A read went on to another server before the first one had answered.
    Hedged,
    Filled,
    Moved,
    /// The missing copy was there by the time it was to be filled.
    Present,
    DroppedFull,
    FailedRead,
    FailedWrite,
}

const KINDS: usize = 8;

/// The counters, the orders' way, and what is in them.
pub(crate) struct Copies {
    counters: [AtomicU64; KINDS],
    orders: mpsc::Sender<Order>,
    waiting: Mutex<Option<mpsc::Receiver<Order>>>,
    /// Digests of the pages in all orders.
    pending: Mutex<HashSet<u64>>,
}

impl Default for Copies {
    fn default() -> Self {
        let (orders, waiting) = mpsc::channel(QUEUE);
        let counters = std::array::from_fn(|_| AtomicU64::new(0));
        Self { counters, orders, waiting: Mutex::new(Some(waiting)), pending: Mutex::default() }
    }
}

impl Copies {
    pub(crate) fn add(&self, kind: Copied, count: u64) {
        self.counters[kind as usize].fetch_add(count, Relaxed);
    }

    pub(crate) fn read(&self, hot_pages: usize) -> CopyStats {
        let of = |kind: Copied| self.counters[kind as usize].load(Relaxed);
        CopyStats {
            found_elsewhere: of(Copied::Elsewhere),
            hedged: of(Copied::Hedged),
            filled: of(Copied::Filled),
            moved: of(Copied::Moved),
            already_there: of(Copied::Present),
            dropped_full: of(Copied::DroppedFull),
            failed_read: of(Copied::FailedRead),
            failed_write: of(Copied::FailedWrite),
            pending: self.pending.lock().len() as u64,
            hot_pages: hot_pages as u64,
        }
    }

    /// Takes a page into an order, unless it is in one or there are too many.
    fn begin(&self, digest: u64) -> bool {
        let mut pending = self.pending.lock();
        if pending.len() >= PAGES_MAX {
            drop(pending);
            self.add(Copied::DroppedFull, 1);
            return false;
        }
        pending.insert(digest)
    }

    fn end(&self, digest: u64) {
        self.pending.lock().remove(&digest);
    }
}

/// Pages to copy from one server to others.
struct Order {
    space: SpaceId,
    from: Arc<Server>,
    to: Arc<Server>,
    /// The old copy is to go.
    moves: bool,
    pages: Vec<OrderedPage>,
}

struct OrderedPage {
    key: Vec<u8>,
    digest: u64,
    /// 0 if unknown.
    len: usize,
    position: u32,
}

/// Orders the copies that a finished read found missing.
pub(crate) fn order(shared: &Shared, members: &Members, lookups: &[Lookup], call: &Call<'_>) {
    let mut orders: Vec<Order> = Vec::new();
    let mut elsewhere = 0;
    for (page, lookup) in lookups.iter().enumerate() {
        if lookup.missed == 0 || !call.outcomes[page].is_success() {
            continue;
        }
        elsewhere += 1;
        let list = lookup.candidates.as_slice();
        let found = usize::from(lookup.asked) - 1;
        let homes = |at: &usize| lookup.candidates.is_home(*at) && lookup.missed >> at & 1 == 1;
        let Some(home) = (0..list.len()).find(homes) else { continue };
        let key = call.keys.key(page);
        let Ok(digest) = Key::new(key).map(|key| key_digest(call.space, key)) else { continue };
        if !shared.copies.begin(digest) {
            continue;
        }
        let ordered = OrderedPage {
            key: key.to_vec(),
            digest,
            len: if call.op == Op::Get && call.flags & FLAG_EXACT != 0 {
                call.pieces.page_len(page)
            } else {
                0
            },
            position: memkv_core::position::of(call.position, page),
        };
        let (from, to) = (&members.reach[list[found] as usize], &members.reach[list[home] as usize]);
        let moves = !lookup.candidates.is_present(found);
        let same = |order: &&mut Order| {
            Arc::ptr_eq(&order.from, from) && Arc::ptr_eq(&order.to, to) && order.moves == moves
        };
        match orders.iter_mut().find(same) {
            Some(order) => order.pages.push(ordered),
            None => {
                let (from, to) = (from.clone(), to.clone());
                orders.push(Order { space: call.space, from, to, moves, pages: vec![ordered] });
            }
        }
    }
    if elsewhere > 0 {
        shared.copies.add(Copied::Elsewhere, elsewhere);
    }
    for order in orders {
        if let Err(refused) = shared.copies.orders.try_send(order) {
            let (mpsc::error::TrySendError::Full(order) | mpsc::error::TrySendError::Closed(order)) = refused;
            shared.copies.add(Copied::DroppedFull, order.pages.len() as u64);
            order.pages.iter().for_each(|page| shared.copies.end(page.digest));
        }
    }
}

/// Works on orders for as long as the client lives.
pub(crate) async fn run(shared: Arc<Shared>) {
    let Some(mut waiting) = shared.copies.waiting.lock().take() else { return };
    let mut working = JoinSet::new();
    loop {
        tokio::select! {
            Some(order) = waiting.recv(), if working.len() < WORKERS => {
                working.spawn(carry_out(shared.clone(), order));
            }
            Some(_ended) = working.join_next() => {}
            else => return,
        }
    }
}

async fn carry_out(shared: Arc<Shared>, order: Order) {
    let mut room = Vec::new();
    for page in &order.pages {
        let copied = copy(&shared, &order, page, &mut room).await;
        shared.copies.end(page.digest);
        shared.copies.add(copied, 1);
    }
}

/// Copies one page.
async fn copy(shared: &Arc<Shared>, order: &Order, page: &OrderedPage, room: &mut Vec<u8>) -> Copied {
    let Order { space, from, to, moves, .. } = order;
    let job = Job { shared, space: *space, page };
    if job.run(Op::Exists, to, Pieces::none()).await.0 == PageOutcome::Hit {
        return Copied::Present;
    }
    let Some(len) = job.read(from, room).await else { return Copied::FailedRead };
    let source = [&room[..len]];
    let (stored, _) = job.run(Op::Put, to, Pieces::sources(&source)).await;
    if !stored.is_success() {
        return Copied::FailedWrite;
    }
    if !moves {
        return Copied::Filled;
    }
    // An old copy that stays does no harm, so it is not tried again.
    job.run(Op::Delete, from, Pieces::none()).await;
    Copied::Moved
}

/// Ops on one page with one server.
struct Job<'a> {
    shared: &'a Arc<Shared>,
    space: SpaceId,
    page: &'a OrderedPage,
}

impl Job<'_> {
    /// Reads the page into `room`; its length, if it came.
    async fn read(&self, from: &Arc<Server>, room: &mut Vec<u8>) -> Option<usize> {
        let mut len = if self.page.len > 0 { self.page.len } else { GUESS_BYTES };
        for _ in 0..LOOKS_MAX {
            room.clear();
            room.resize(len, 0);
            let (outcome, seen) = {
                let mut target = [&mut room[..]];
                self.run(Op::Get, from, Pieces::targets(&mut target)).await
            };
            let seen = seen as usize;
            match outcome {
                PageOutcome::Hit => return Some(seen),
                PageOutcome::SizeMismatch if seen > len => len = seen,
                _ => return None,
            }
        }
        None
    }

    /// Runs an op; the outcome, and the page's length as the server told it.
    async fn run(&self, op: Op, server: &Arc<Server>, pieces: Pieces<'_>) -> (PageOutcome, u32) {
        let keys: &[&[u8]] = &[&self.page.key];
        let mut outcomes = [PageOutcome::Unavailable];
        let limit = self.shared.config.op_timeout;
        let mut batch = Batch {
            op,
            flags: 0,
            space: self.space,
            position: self.page.position,
            keys: &keys,
            pieces,
            digests: &[self.page.digest],
            order: &[0],
            outcomes: &mut outcomes,
            count: 1,
            deadline: Instant::now() + limit,
            is_early: false,
            is_timed: false,
            care: Care::new(&self.shared.config),
            deadline_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            seen_len: 0,
            threads_max: 1,
            spin: None,
        };
        let (handle, servers, ends) = (Handle::current(), std::slice::from_ref(server), [1]);
        if self.shared.config.transport == Transport::Grpc {
            grpc::run(self.shared, &handle, servers, &ends, &mut batch).await;
        } else {
            drive::run_async(&handle, servers, &ends, &mut batch, &mut Vec::new()).await;
        }
        let seen = batch.seen_len;
        (outcomes[0], seen)
    }
}
