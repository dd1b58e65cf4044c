//! One batch op from arguments to report: check, plan, exchange, count. Only the waiting differs between the
//! blocking and the asynchronous form.

use crate::client::Inner;
use crate::config::Transport;
use crate::exchange::Batch;
use crate::members::Members;
use crate::plan::{KeyList, Scratch};
use crate::raw::{Pieces, RawPieces};
use crate::stats::Tally;
use crate::{BatchReport, Error, PageOutcome, SpaceId, blocking, drive, grpc};
use memkv_transport::frame::Op;
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

impl Inner {
    /// Checks the arguments and groups the pages by server.
    fn start(&self, members: &Members, call: &Call<'_>) -> Result<Box<Scratch>, Error> {
        self.check()?;
        let count = call.keys.count();
        if u32::try_from(count).is_err() {
            return Err(Error::bad_input("a batch has fewer than 2^32 keys"));
        }
        let moves_pages = matches!(call.op, Op::Get | Op::Put);
        if moves_pages && let Some(page) = (0..count).find(|&page| call.pieces.page_len(page) == 0) {
            return Err(Error::bad_input(format!("page {page} has no bytes; a page has at least one")));
        }
        let mut scratch = self.scratch.take();
        if let Err(bad) = scratch.plan(&members.nodes, call.space, call.keys) {
            self.scratch.give(scratch);
            return Err(Error::bad_input(format!("key {}: {}", bad.index, bad.error)));
        }
        Ok(scratch)
    }

    /// Runs a batch op on the caller's thread.
    pub(crate) fn call_blocking(&self, call: Call<'_>) -> Result<Finished, Error> {
        if self.shared.config.transport == Transport::Grpc {
            return blocking::block_on(self.call(call));
        }
        let started = Instant::now();
        let members = self.members();
        let mut scratch = self.start(&members, &call)?;
        let Scratch { digests, order, ends, exchanges, .. } = &mut *scratch;
        let mut batch = self.batch(call, digests, order, started);
        drive::run_blocking(&members.servers, ends, &mut batch, exchanges);
        let finished = self.finish(&batch, started);
        self.scratch.give(scratch);
        Ok(finished)
    }

    /// Runs a batch op in the caller's task. Dropped midway, it closes the connections it used.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Finished, Error> {
        let started = Instant::now();
        let members = self.members();
        let mut scratch = self.start(&members, &call)?;
        let Scratch { digests, order, ends, exchanges, .. } = &mut *scratch;
        let mut batch = self.batch(call, digests, order, started);
        if self.shared.config.transport == Transport::Grpc {
            grpc::run(self, &members.servers, ends, &mut batch).await;
        } else {
            drive::run_async(&self.handle, &members.servers, ends, &mut batch, exchanges).await;
        }
        let finished = self.finish(&batch, started);
        self.scratch.give(scratch);
        Ok(finished)
    }

    fn batch<'a>(
        &'a self,
        call: Call<'a>,
        digests: &'a [u64],
        order: &'a [u32],
        started: Instant,
    ) -> Batch<'a> {
        let limit = self.shared.config.op_timeout;
        call.outcomes.fill(PageOutcome::Unavailable);
        // With one processor, who looks keeps the server from answering.
        let spin = (self.shared.cores > 1 && is_brief(&call)).then_some(&self.shared.spin);
        Batch {
            op: call.op,
            flags: call.flags,
            space: call.space,
            position: call.position,
            keys: call.keys,
            pieces: call.pieces,
            digests,
            order,
            outcomes: call.outcomes,
            deadline: started + limit,
            deadline_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            seen_len: 0,
            threads_max: self.shared.cores.min(THREADS_MAX),
            spin,
        }
    }

    fn finish(&self, batch: &Batch<'_>, started: Instant) -> Finished {
        let mut report = BatchReport::default();
        for (page, outcome) in batch.outcomes.iter().enumerate() {
            report.ok += usize::from(outcome.is_success());
            report.failed += usize::from(outcome.is_failure());
            report.bytes += match (batch.op, outcome) {
                (Op::Get, PageOutcome::Hit) | (Op::Put, PageOutcome::Stored) => {
                    batch.pieces.page_len(page) as u64
                }
                _ => 0,
            };
        }
        let tally = Tally::of(batch.outcomes);
        self.counters.add(batch.op, &tally, report.ok, report.bytes, started.elapsed());
        Finished { report, seen_len: batch.seen_len }
    }
}
