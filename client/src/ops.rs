//! One batch op from arguments to report: check, plan, rounds of exchanges, count. Only the waiting differs between the
//! blocking and the asynchronous form.
//!
//! Mostly there is one round. A read of pages with several places has more: what one server did not give is asked of the
//! next one, within the op's deadline. A round that has another one after it ends early (`hedge.rs`), and its
//! connections are closed before the next one writes to the caller's memory.

use crate::client::Inner;
use crate::config::Transport;
use crate::exchange::{Batch, Care, Exchange};
use crate::fill::{self, Copied};
use crate::members::{CANDIDATES_MAX, Members};
use crate::plan::{KeyList, Scratch};
use crate::raw::{Pieces, RawPieces};
use crate::server::Server;
use crate::stats::Tally;
use crate::{BatchReport, Error, PageOutcome, SpaceId, blocking, drive, grpc};
use memkv_transport::frame::{FLAG_PREFIX, Op};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::Instant;

/// The most pages of a brief op, and the most bytes.
const BRIEF_PAGES: usize = 4;
const BRIEF_BYTES: usize = 512 << 10;
/// The most threads that move one batch.
const THREADS_MAX: usize = 4;

/// A batch op's arguments.
pub(crate) struct Call<'a> {
    pub(crate) op: Op,
    pub(crate) flags: u16,
    pub(crate) space: SpaceId,
    /// Position of the first key in its chain, from 1; 0 if unknown.
    pub(crate) position: u32,
    pub(crate) keys: &'a dyn KeyList,
    pub(crate) pieces: Pieces<'a>,
    pub(crate) outcomes: &'a mut [PageOutcome],
}

/// What a batch op came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) report: BatchReport,
    /// The length of the last page that a server told of.
    pub(crate) seen_len: u32,
}

/// Whether an op moves so little that its time is mostly that of waking the two sides.
fn is_brief(call: &Call<'_>) -> bool {
    let count = call.keys.count();
    match call.op {
        Op::Get | Op::Put => {
            count <= BRIEF_PAGES
                && (0..count).map(|page| call.pieces.page_len(page)).sum::<usize>() <= BRIEF_BYTES
        }
        _ => true,
    }
}

/// Refuses lists of different lengths.
pub(crate) fn same_length(keys: usize, what: &str, other: usize) -> Result<(), Error> {
    if keys == other {
        return Ok(());
    }
    Err(Error::bad_input(format!("there are {keys} keys and {other} {what}; there must be one for each key")))
}

/// Refuses raw pieces that do not add up.
pub(crate) fn check_raw(keys: usize, raw: &RawPieces<'_>) -> Result<(), Error> {
    if raw.per_page == 0 {
        return Err(Error::bad_input("per_page is 0; a page has at least one piece"));
    }
    let wanted = keys.checked_mul(raw.per_page);
    if wanted != Some(raw.ptrs.len()) || raw.ptrs.len() != raw.lens.len() {
        let text = format!(
            "{keys} keys of {} pieces each need as many addresses and lengths; there are {} and {}",
            raw.per_page,
            raw.ptrs.len(),
            raw.lens.len()
        );
        return Err(Error::bad_input(text));
    }
    if raw.ptrs.iter().any(|address| address.is_null()) {
        return Err(Error::bad_input("one of the addresses is null"));
    }
    Ok(())
}

/// A batch op under way.
struct Run<'a> {
    inner: &'a Inner,
    members: Arc<Members>,
    scratch: Box<Scratch>,
    call: Call<'a>,
    started: Instant,
    /// When the present round began.
    begun: Instant,
    /// When it ends at the latest.
    round_end: Instant,
    /// How often each page comes.
    times: usize,
    /// Bytes of pages of the present round, for reads of several rounds.
    round_bytes: usize,
    rounds: u32,
    seen_len: u32,
    spins: bool,
}

/// One round, for a driver.
struct Round<'r> {
    servers: &'r [Arc<Server>],
    ends: &'r [usize],
    batch: Batch<'r>,
    exchanges: &'r mut Vec<Exchange>,
}

impl<'a> Run<'a> {
    /// Checks the arguments and groups the pages by server.
    fn start(inner: &'a Inner, call: Call<'a>) -> Result<Self, Error> {
        let started = Instant::now();
        inner.check()?;
        let count = call.keys.count();
        if u32::try_from(count.saturating_mul(CANDIDATES_MAX)).is_err() {
            return Err(Error::bad_input("a batch has fewer than 2^28 keys"));
        }
        let moves_pages = matches!(call.op, Op::Get | Op::Put);
        if moves_pages && let Some(page) = (0..count).find(|&page| call.pieces.page_len(page) == 0) {
            return Err(Error::bad_input(format!("page {page} has no bytes; a page has at least one")));
        }
        let members = inner.members();
        let mut scratch = inner.scratch.take();
        if let Err(bad) = scratch.plan(&members, call.op, call.space, call.keys) {
            inner.scratch.give(scratch);
            return Err(Error::bad_input(format!("key {}: {}", bad.index, bad.error)));
        }
        call.outcomes.fill(PageOutcome::Unavailable);
        // With one processor, who looks keeps the server from answering.
        let spins = inner.shared.cores > 1 && is_brief(&call);
        let round_end = started + inner.shared.config.op_timeout;
        let (times, rounds, seen_len, round_bytes) = (1, 0, 0, 0);
        let begun = started;
        let mut run = Self {
            inner,
            members,
            scratch,
            call,
            started,
            begun,
            round_end,
            times,
            round_bytes,
            rounds,
            seen_len,
            spins,
        };
        run.prepare();
        Ok(run)
    }

    /// Prepares for pages with several places.
    fn prepare(&mut self) {
        if self.members.is_simple() {
            return;
        }
        if is_read(self.call.op) {
            // A server that cuts a run at its first gap would hide pages that only it has.
            self.call.flags &= !FLAG_PREFIX;
            self.scratch.plan_reads(&self.members, self.inner.shared.turn.fetch_add(1, Relaxed));
        } else {
            self.times = self.scratch.plan_all(&self.members, self.call.op);
        }
    }

    fn deadline(&self) -> Instant {
        self.started + self.inner.shared.config.op_timeout
    }

    /// Begins the next round, if there is one.
    fn next_round(&mut self) -> bool {
        if self.members.is_simple() || !is_read(self.call.op) {
            self.rounds += 1;
            return self.rounds == 1;
        }
        let now = Instant::now();
        let left = self.deadline().saturating_duration_since(now);
        if self.rounds > 0 && left.is_zero() {
            return false;
        }
        if self.rounds > 0 {
            self.scratch.look(&self.members);
        }
        let (pages, more) = self.scratch.next_round(self.call.outcomes);
        if pages == 0 {
            return false;
        }
        self.rounds += 1;
        self.begun = now;
        self.round_end = self.deadline();
        // A page without another place has all the time there is, and its batch with it.
        if more == pages {
            let shared = &self.inner.shared;
            let len = |page: &u32| self.call.pieces.page_len(*page as usize);
            self.round_bytes =
                if self.call.op == Op::Get { self.scratch.order.iter().map(len).sum() } else { 0 };
            self.round_end = now + shared.pace.delay(shared.config.hedge, self.round_bytes, left);
        }
        true
    }

    /// What a driver needs for the round.
    fn round(&mut self) -> Round<'_> {
        let deadline = self.deadline();
        let Scratch { digests, order, ends, exchanges, places, .. } = &mut *self.scratch;
        let count = self.call.keys.count();
        let outcomes = if self.times > 1 { &mut places[..] } else { &mut *self.call.outcomes };
        let left = deadline.saturating_duration_since(self.begun).as_millis();
        let batch = Batch {
            op: self.call.op,
            flags: self.call.flags,
            space: self.call.space,
            position: self.call.position,
            keys: self.call.keys,
            pieces: self.call.pieces.again(count),
            digests,
            order,
            outcomes,
            count,
            deadline: self.round_end,
            is_early: self.round_end < deadline,
            is_timed: self.call.op == Op::Get && !self.members.hot().is_empty(),
            care: Care::new(&self.inner.shared.config),
            deadline_ms: u32::try_from(left).unwrap_or(u32::MAX),
            seen_len: self.seen_len,
            threads_max: self.inner.shared.cores.min(THREADS_MAX),
            spin: self.spins.then_some(&self.inner.shared.spin),
        };
        Round { servers: &self.members.reach, ends, batch, exchanges }
    }

    /// Takes in what a round came to.
    fn end_round(&mut self, seen_len: u32) {
        self.seen_len = seen_len;
        if self.members.is_simple() {
            return;
        }
        if !is_read(self.call.op) {
            if self.times > 1 {
                self.scratch.merge_all(self.call.outcomes);
            }
            return;
        }
        let shared = &self.inner.shared;
        let is_early = self.round_end < self.deadline();
        let was_cut = is_early && Instant::now() >= self.round_end;
        if was_cut {
            shared.pace.changed();
            shared.copies.add(Copied::Hedged, 1);
        } else if is_early {
            shared.pace.note(self.round_bytes, self.begun.elapsed());
        }
        self.scratch.end_round(self.call.outcomes, &self.members);
    }

    /// Counts, orders missing copies, and gives the working memory back.
    fn finish(self) -> Finished {
        let mut report = BatchReport::default();
        for (page, outcome) in self.call.outcomes.iter().enumerate() {
            report.ok += usize::from(outcome.is_success());
            report.failed += usize::from(outcome.is_failure());
            report.bytes += match (self.call.op, outcome) {
                (Op::Get, PageOutcome::Hit) | (Op::Put, PageOutcome::Stored) => {
                    self.call.pieces.page_len(page) as u64
                }
                _ => 0,
            };
        }
        if !self.members.is_simple() && is_read(self.call.op) {
            fill::order(&self.inner.shared, &self.members, &self.scratch.lookups, &self.call);
        }
        let tally = Tally::of(self.call.outcomes);
        self.inner.counters.add(self.call.op, &tally, report.ok, report.bytes, self.started.elapsed());
        self.inner.scratch.give(self.scratch);
        Finished { report, seen_len: self.seen_len }
    }
}

fn is_read(op: Op) -> bool {
    matches!(op, Op::Get | Op::Exists)
}

impl Inner {
    /// Runs a batch op on the caller's thread.
    pub(crate) fn call_blocking(&self, call: Call<'_>) -> Result<Finished, Error> {
        if self.shared.config.transport == Transport::Grpc {
            return blocking::block_on(self.call(call));
        }
        let mut run = Run::start(self, call)?;
        while run.next_round() {
            let Round { servers, ends, mut batch, exchanges } = run.round();
            drive::run_blocking(servers, ends, &mut batch, exchanges);
            let (seen_len, sheds) = (batch.seen_len, batch.care.sheds);
            self.counters.add_sheds(sheds);
            run.end_round(seen_len);
        }
        Ok(run.finish())
    }

    /// Runs a batch op in the caller's task. Dropped midway, it closes the connections it used.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Finished, Error> {
        let mut run = Run::start(self, call)?;
        while run.next_round() {
            let Round { servers, ends, mut batch, exchanges } = run.round();
            if self.shared.config.transport == Transport::Grpc {
                grpc::run(&self.shared, &self.handle, servers, ends, &mut batch).await;
            } else {
                drive::run_async(&self.handle, servers, ends, &mut batch, exchanges).await;
            }
            let (seen_len, sheds) = (batch.seen_len, batch.care.sheds);
            self.counters.add_sheds(sheds);
            run.end_round(seen_len);
        }
        Ok(run.finish())
    }
}
