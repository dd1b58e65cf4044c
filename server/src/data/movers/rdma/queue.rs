//! One connection's queue pair, and the memory of the work that is posted on it.
//!
//! Work goes out in chains with one doorbell each; a chain's last piece makes a completion, and of reads one every half MiB. At
//! most `depth` pieces are under way. All memory of posted work is in [`Queue::lent`] until its completions have been seen, so a queue that
//! is dropped in the middle first destroys the queue pair, after which the NIC touches nothing for it, and only then
//! gives slots and pins back.
//!
//! `unsafe` is here because work requests name memory by address, and because registering a descriptor with the
//! runtime promises that it stays open.

use super::nics::{OpenNic, Place, TRIAL_BYTES};
use super::plan::{NotRegistered, Plan};
use super::regions::{OutOfBounds, Remote};
use super::session::{Counted, Prepared};
use crate::data::offers::Held;
use crate::data::wire::Wire;
use crate::metrics::Metrics;
use memkv_rdma::{Completion, QueuePair, RdmaError, Work, WorkError, WorkKind};
use memkv_storage::PagePin;
use memkv_transport::records::Span;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

/// Pieces of work with one doorbell.
const CHAIN: usize = 32;
/// Reads of about so many bytes have a completion of their own.
const SIGNAL_BYTES: u64 = 512 << 10;
/// How often a wait for completions looks whether the client is still there, and the NIC.
const LOOK: Duration = Duration::from_millis(50);
/// Pauses between looks at a queue pair that tells nothing by itself.
const POLL: Duration = Duration::from_micros(100);

/// Asks for completions: of the last piece, for the room of all before it, and of reads now and then, so that pages are
/// judged while others are on their way.
fn signal(chain: &mut [Work]) {
    let last = chain.len() - 1;
    let mut bytes = 0;
    for (place, piece) in chain.iter_mut().enumerate() {
        bytes += u64::from(piece.len);
        piece.signaled = place == last || (piece.kind == WorkKind::Read && bytes >= SIGNAL_BYTES);
        if piece.signaled {
            bytes = 0;
        }
    }
}

/// Why pages did not move. The queue pair is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// The request names memory that is not registered.
    #[error("a span does not lie inside a registered region")]
    OutOfBounds,
    /// A bug of ours.
    #[error("a page is not in registered memory")]
    NotRegistered,
    /// The queue pair does not take work.
    #[error("{0}")]
    Queue(#[from] RdmaError),
    /// Work failed.
    #[error("{0}")]
    Work(WorkError),
    /// The client closed the connection, and with it its end of the queue pair.
    #[error("the client went away")]
    Gone,
    /// The deadline passed.
    #[error("the deadline passed")]
    Late,
}

impl From<OutOfBounds> for Failed {
    fn from(OutOfBounds: OutOfBounds) -> Self {
        Self::OutOfBounds
    }
}

impl From<NotRegistered> for Failed {
    fn from(NotRegistered: NotRegistered) -> Self {
        Self::NotRegistered
    }
}

/// The memory that work under way reads or writes.
#[derive(Debug)]
enum Lent {
    None,
    /// Pages that are written to the client.
    Pins(#[allow(dead_code, reason = "held until the work is done")] Vec<Option<PagePin>>),
    /// Slots that are filled from the client.
    Slots(Vec<Held>),
}

/// The queue pair of one connection.
#[derive(Debug)]
pub(crate) struct Queue {
    // Declared first: it is destroyed before the memory of its work is given back.
    pair: Box<dyn QueuePair>,
    lent: Lent,
    // Nobody reads it: it is there to be dropped.
    _place: Place,
    nic: Arc<OpenNic>,
    counted: Counted,
    depth: usize,
    client_nic: usize,
    trial: Remote,
    ready: Option<AsyncFd<OwnedFd>>,
    plan: Plan,
    remote: Vec<Remote>,
    completions: Vec<Completion>,
}

/// The connection whose pages move, and until when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch<'a> {
    pub(crate) stream: &'a Wire,
    pub(crate) until: Instant,
}

impl Queue {
    /// Ties a queue pair to the current runtime, and a connection's socket to the queue pair's NIC.
    pub(crate) fn new(prepared: Prepared, socket: BorrowedFd<'_>) -> std::io::Result<Self> {
        let Prepared { pair, depth, nic, client_nic, trial, counted } = prepared;
        let _place = nic.enter(socket)?;
        let own = pair.fd().map(|fd| fd.try_clone_to_owned()).transpose()?;
        // SAFETY: the descriptor is a duplicate that nobody else has; the registration owns it and closes it only
        // after it was deregistered.
        let ready =
            own.map(|own| unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }).transpose()?;
        Ok(Self {
            pair,
            lent: Lent::None,
            _place,
            nic,
            counted,
            depth,
            client_nic,
            trial,
            ready,
            plan: Plan::default(),
            remote: Vec::new(),
            completions: Vec::new(),
        })
    }

    /// Tries the way to the client and back, with bytes that mean nothing.
    pub(crate) async fn try_out(&mut self, watch: Watch<'_>) -> Result<(), Failed> {
        self.plan.clear();
        let trial = self.nic.trial();
        self.plan.add(
            WorkKind::Write,
            trial.start,
            &[trial],
            &[Remote { len: TRIAL_BYTES, ..self.trial }],
        )?;
        let outcome = self.carry_out(watch, |_, _| {}).await;
        self.counted_outcome(outcome)
    }

    /// Writes pages to the client's memory: for every one, whether it is wanted (there is a pin), and where it goes.
    /// Returns the bytes written.
    pub(crate) async fn send<'s, S: Iterator<Item = Span> + 's>(
        &mut self,
        pins: Vec<Option<PagePin>>,
        spans: impl Iterator<Item = S>,
        watch: Watch<'_>,
    ) -> Result<u64, Failed> {
        self.plan.clear();
        let regions = &self.counted.session().rdma.regions;
        let mut bytes = 0;
        for (pin, spans) in pins.iter().zip(spans) {
            self.remote.clear();
            let len = pin.as_ref().map_or(0, |pin| pin.meta().len);
            regions.resolve(self.client_nic, spans, len, &mut self.remote)?;
            let Some(pin) = pin else { continue };
            let start = pin.as_ptr().expose_provenance() as u64;
            self.plan.add(WorkKind::Write, start, self.nic.parts(), &self.remote)?;
            bytes += u64::from(len);
        }
        self.lent = Lent::Pins(pins);
        let outcome = self.carry_out(watch, |_, _| {}).await;
        self.counted_outcome(outcome)?;
        self.lent = Lent::None;
        let session = &self.counted.session().rdma;
        Metrics::add(&session.written_bytes, bytes);
        Metrics::add(&self.counted.metrics().rdma_write_bytes, bytes);
        Ok(bytes)
    }

    /// Fills slots from the client's memory: for every page, the slot if it is wanted, and where its bytes are. `whole`
    /// is called for every slot, in order, as soon as its bytes are there. Returns slots and bytes read.
    pub(crate) async fn fetch<S: Iterator<Item = Span>>(
        &mut self,
        mut held: Vec<Held>,
        pages: impl Iterator<Item = (u32, S)>,
        watch: Watch<'_>,
        mut whole: impl FnMut(usize, &mut Held),
    ) -> Result<(Vec<Held>, u64), Failed> {
        self.plan.clear();
        let regions = &self.counted.session().rdma.regions;
        let mut bytes = 0;
        for (page, (len, spans)) in held.iter_mut().zip(pages) {
            self.remote.clear();
            let len = if page.is_wanted() { len } else { 0 };
            regions.resolve(self.client_nic, spans, len, &mut self.remote)?;
            let start = page.bytes_mut().map_or(0, |slot| slot.as_mut_ptr().expose_provenance() as u64);
            self.plan.add(WorkKind::Read, start, self.nic.parts(), &self.remote)?;
            bytes += u64::from(len);
        }
        self.lent = Lent::Slots(held);
        let each = |lent: &mut Lent, page: usize| {
            if let Lent::Slots(held) = lent {
                whole(page, &mut held[page]);
            }
        };
        let outcome = self.carry_out(watch, each).await;
        self.counted_outcome(outcome)?;
        let held = match std::mem::replace(&mut self.lent, Lent::None) {
            Lent::Slots(held) => held,
            Lent::None | Lent::Pins(_) => Vec::new(),
        };
        Metrics::add(&self.counted.session().rdma.read_bytes, bytes);
        Metrics::add(&self.counted.metrics().rdma_read_bytes, bytes);
        Ok((held, bytes))
    }

    fn counted_outcome(&self, outcome: Result<(), Failed>) -> Result<(), Failed> {
        if let Err(Failed::Queue(_) | Failed::Work(_)) = &outcome {
            Metrics::add(&self.counted.session().rdma.errors, 1);
            Metrics::add(&self.counted.metrics().rdma_errors, 1);
        }
        outcome
    }

    /// Carries out the plan. `moved` is called for every page of it, in order, once its bytes have moved.
    async fn carry_out(
        &mut self,
        watch: Watch<'_>,
        mut moved: impl FnMut(&mut Lent, usize),
    ) -> Result<(), Failed> {
        let (mut posted, mut done, mut page) = (0, 0, 0);
        if self.nic.is_down() {
            self.nic.health()?;
        }
        loop {
            posted = self.post_from(posted, done)?;
            while self.plan.ends.get(page).is_some_and(|&end| end <= done) {
                moved(&mut self.lent, page);
                page += 1;
            }
            if done == self.plan.work.len() {
                return Ok(());
            }
            tokio::task::consume_budget().await;
            done = self.completed(done, watch).await?;
        }
    }

    /// Posts chains from `posted` on while there is room. Returns how much is posted by then.
    fn post_from(&mut self, mut posted: usize, done: usize) -> Result<usize, Failed> {
        let all = self.plan.work.len();
        while posted < all {
            let chain = CHAIN.min(self.depth).min(all - posted);
            if posted - done + chain > self.depth {
                break;
            }
            let work = &mut self.plan.work[posted..posted + chain];
            signal(work);
            // SAFETY: every piece names memory of a page that `lent` pins or reserves, or the NIC's own trial bytes.
            // `lent` is only emptied once all work of the plan has completed, else it is dropped after the pair. Until
            // then nobody writes a pinned page, and nobody touches a slot before `carry_out` has seen the completion.
            unsafe { self.pair.post(work) }?;
            posted += chain;
            Metrics::add(&self.counted.metrics().rdma_work, chain as u64);
            Metrics::add(&self.counted.metrics().rdma_doorbells, 1);
        }
        Ok(posted)
    }

    /// Waits until more than `done` pieces are done; returns how many.
    async fn completed(&mut self, done: usize, watch: Watch<'_>) -> Result<usize, Failed> {
        loop {
            let now = self.poll(done)?;
            if now > done {
                return Ok(now);
            }
            self.pair.arm()?;
            let now = self.poll(done)?;
            if now > done {
                return Ok(now);
            }
            let look = watch.until.min(Instant::now() + LOOK);
            let heard = match &self.ready {
                Some(ready) => timeout_at(look, ready.readable()).await.map(|guard| {
                    // A descriptor that cannot be waited for is looked at again and again until the deadline.
                    if let Ok(mut guard) = guard {
                        guard.clear_ready();
                    }
                }),
                None => timeout_at(look, tokio::time::sleep(POLL)).await,
            };
            if heard.is_err() {
                if watch.stream.is_closed_by_peer() {
                    return Err(Failed::Gone);
                }
                // Without a port nothing completes before the NIC has tried for seconds.
                self.nic.health()?;
                if Instant::now() >= watch.until {
                    return Err(Failed::Late);
                }
            }
        }
    }

    /// Takes completions; returns how much is done.
    fn poll(&mut self, mut done: usize) -> Result<usize, Failed> {
        self.completions.clear();
        self.pair.poll(&mut self.completions)?;
        for completion in &self.completions {
            completion.result.map_err(Failed::Work)?;
            // Identifiers are places in the plan.
            done = done.max(usize::try_from(completion.id).unwrap_or(usize::MAX).saturating_add(1));
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(kind: WorkKind, lens: &[u32]) -> Vec<bool> {
        let piece = |&len: &u32| Work {
            id: 0,
            kind,
            local: 0,
            local_key: 0,
            len,
            remote: 0,
            remote_key: 0,
            signaled: false,
        };
        let mut chain: Vec<Work> = lens.iter().map(piece).collect();
        signal(&mut chain);
        chain.iter().map(|piece| piece.signaled).collect()
    }

    #[test]
    fn a_chain_has_one_completion_and_reads_have_more() {
        let small = [200 << 10; 5];
        assert_eq!(signals(WorkKind::Write, &small), [false, false, false, false, true]);
        assert_eq!(signals(WorkKind::Read, &small), [false, false, true, false, true]);
        assert_eq!(signals(WorkKind::Read, &[4 << 20; 3]), [true; 3]);
        assert_eq!(signals(WorkKind::Write, &[4 << 20; 3]), [false, false, true]);
        assert_eq!(signals(WorkKind::Read, &[1]), [true]);
    }
}
