//! What is said on one connection during one batch op, as state machines over a nonblocking socket.
//!
//! An [`Exchange`] is advanced until the socket has nothing to read and no room to write; whoever drives it then
//! waits for the socket. It never blocks, never looks at a clock, and knows nothing of threads or tasks, so the
//! blocking and the asynchronous driver share it.
//!
//! A batch that is too large for one frame is cut into sub-batches ([`Sub`]), which are pipelined.

mod fetch;
mod lend;
mod near;
mod put;
mod remote;

use crate::Config;
use crate::breaker::{Failure, Kind};
use crate::gates::{Permits, trial_patience};
use crate::link::{Link, LinkError};
use crate::outcome::{self, PageOutcome};
use crate::plan::KeyList;
use crate::pool::Lease;
use crate::raw::Pieces;
use crate::server::{Reserved, Server};
use crate::spin::Spin;
use crate::stats::Sheds;
use fetch::Fetch;
use lend::Lend;
use memkv_core::{Key, Limits, SpaceId, position};
use memkv_transport::frame::{Code, Header, Op};
use near::Near;
use put::Put;
use remote::{Advanced, Remote};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// About the most bytes of pages in one frame's body.
const BODY_BYTES_MAX: u64 = 32 << 20;

/// Everything about one batch op that its exchanges share.
pub(crate) struct Batch<'a> {
    pub(crate) op: Op,
    pub(crate) flags: u16,
    pub(crate) space: SpaceId,
    /// Position of the first key in its chain, from 1; 0 if unknown.
    pub(crate) position: u32,
    pub(crate) keys: &'a dyn KeyList,
    pub(crate) pieces: Pieces<'a>,
    pub(crate) digests: &'a [u64],
    pub(crate) order: &'a [u32],
    pub(crate) outcomes: &'a mut [PageOutcome],
    /// Pages of the caller. Those from here on are the same again, for other servers.
    pub(crate) count: usize,
    pub(crate) deadline: Instant,
    /// The deadline is that of a round with another one after it.
    pub(crate) is_early: bool,
    /// How long each server takes is to be noted, because the batch has hot pages.
    pub(crate) is_timed: bool,
    /// How it treats servers in trouble.
    pub(crate) care: Care,
    /// Milliseconds left when the op began; requests carry it.
    pub(crate) deadline_ms: u32,
    /// The length of the last page that a server told of.
    pub(crate) seen_len: u32,
    /// The most threads that may move its pages.
    pub(crate) threads_max: usize,
    /// Whether its waits may begin with looking; without it they sleep at once.
    pub(crate) spin: Option<&'a Spin>,
}

/// How an op treats servers in trouble, and what it did not try because of them.
#[derive(Clone, Copy)]
pub(crate) struct Care {
    /// How long an op may take.
    patience: Duration,
    /// The most bytes of puts that may be on their way to one server.
    pub(crate) store_backlog: u64,
    pub(crate) sheds: Sheds,
}

impl Care {
    pub(crate) fn new(config: &Config) -> Self {
        let Config { op_timeout, store_backlog_bytes, .. } = *config;
        Self { patience: op_timeout, store_backlog: store_backlog_bytes, sheds: Sheds::default() }
    }
}

impl Batch<'_> {
    /// The page at a place of `order`.
    fn page(&self, at: usize) -> usize {
        self.order[at] as usize
    }

    fn key(&self, page: usize) -> Key<'_> {
        Key::new(self.key_bytes(page)).expect("the plan has checked every key")
    }

    /// The bytes of a page's key.
    pub(crate) fn key_bytes(&self, page: usize) -> &[u8] {
        self.keys.key(own_page(page, self.count))
    }

    /// A page's [position].
    pub(crate) fn position(&self, page: usize) -> u32 {
        position::of(self.position, own_page(page, self.count))
    }

    /// A page's length as the wire says it. One that does not fit is refused by every server.
    fn wire_len(&self, page: usize) -> u32 {
        u32::try_from(self.pieces.page_len(page)).unwrap_or(u32::MAX)
    }

    /// Bytes of the pages of some places; 0 for ops that move none.
    pub(crate) fn bytes(&self, from: usize, to: usize) -> u64 {
        if !matches!(self.op, Op::Get | Op::Put) {
            return 0;
        }
        self.order[from..to].iter().map(|&page| self.pieces.page_len(page as usize) as u64).sum()
    }

    /// A request's header for one sub-batch.
    fn header(&self, link: &Link, op: Op, id: u64, count: usize) -> Header {
        // A frame has at most `batch_keys_max` records, a `u32`.
        let mut header = Header::request(op, id, self.space, count as u32);
        header.flags = self.flags;
        header.deadline_ms = self.deadline_ms.clamp(1, link.limits.request_ms_max.max(1));
        header
    }

    /// Gives every page of a sub-batch the outcome of the whole request.
    fn settle(&mut self, sub: Sub, op: Op, code: Code) -> Result<(), LinkError> {
        for at in sub.from..sub.to {
            let page = self.page(at);
            self.outcomes[page] = outcome::from_code(op, code);
        }
        match code {
            Code::Malformed | Code::OverLimit => Err(LinkError::Unexpected("the server refused the frame")),
            _ => Ok(()),
        }
    }

    /// Where the sub-batch that begins at `from` ends, so that it keeps to all bounds. At least one page.
    pub(crate) fn cut(&self, from: usize, to: usize, limits: &Limits) -> usize {
        let (record, moves_pages) = match self.op {
            Op::Exists | Op::Touch | Op::Delete | Op::Ping | Op::Bind | Op::Release => (2, false),
            Op::Get => (6, true),
            Op::Put | Op::PutData => (10, true),
        };
        let (mut meta, mut body) = (0_u64, 0_u64);
        let to = to.min(from.saturating_add(limits.batch_keys_max as usize));
        for at in from..to {
            let page = self.page(at);
            meta += record + self.key_bytes(page).len() as u64;
            if moves_pages {
                body += self.pieces.page_len(page) as u64;
            }
            let over = meta > u64::from(limits.frame_meta_bytes_max) || body > BODY_BYTES_MAX;
            if over && at > from {
                return at;
            }
        }
        to.max(from + 1)
    }
}

/// Which of the caller's `count` pages a page of the batch is.
pub(crate) fn own_page(page: usize, count: usize) -> usize {
    if page < count { page } else { page % count }
}

/// A part of an exchange's pages that one frame carries: places `from..to` of the batch's order.
#[derive(Clone, Copy, Debug)]
struct Sub {
    from: usize,
    to: usize,
    id: u64,
}

impl Sub {
    fn len(self) -> usize {
        self.to - self.from
    }
}

/// Whether an exchange can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing is left to do.
    Done,
    /// It waits for bytes from the peer, and, with `write`, also for room in the socket.
    Wait { write: bool },
}

#[allow(clippy::large_enum_variant, reason = "a box would be an allocation for each batch")]
enum Machine {
    Fetch(Fetch),
    Near(Near),
    Put(Put),
    Lend(Lend),
    Remote(Box<Remote>),
}

impl Machine {
    fn new(batch: &Batch<'_>, lease: &mut Lease, from: usize, to: usize) -> Self {
        let direct = lease.server().puts_direct();
        let link = lease.link();
        let frames = || match batch.op {
            Op::Exists | Op::Get | Op::Delete | Op::Touch | Op::Ping | Op::Bind | Op::Release => {
                Self::Fetch(Fetch::new(from, to))
            }
            Op::Put | Op::PutData => Self::Put(Put::new(from, to, direct)),
        };
        let remote = |link: &Link| Remote::new(batch.op, from, to, link).map(Box::new).map(Self::Remote);
        let beside = match batch.op {
            Op::Get => Near::new(link, from, to).map(Self::Near).or_else(|| remote(link)),
            Op::Put => Lend::new(link, batch, from, to).map(Self::Lend).or_else(|| remote(link)),
            _ => None,
        };
        beside.unwrap_or_else(frames)
    }

    fn advance(&mut self, link: &mut Link, batch: &mut Batch<'_>) -> Result<Step, LinkError> {
        match self {
            Self::Fetch(fetch) => fetch.advance(link, batch),
            Self::Near(near) => near.advance(link, batch),
            Self::Put(put) => put.advance(link, batch),
            Self::Lend(lend) => lend.advance(link, batch),
            Self::Remote(remote) => match remote.advance(link, batch)? {
                Advanced::Step(step) => Ok(step),
                Advanced::Frames { from } => {
                    let to = remote.end();
                    remote.note_frames(to - from);
                    *self = match batch.op {
                        Op::Put => Self::Put(Put::new(from, to, false)),
                        _ => Self::Fetch(Fetch::new(from, to)),
                    };
                    self.advance(link, batch)
                }
            },
        }
    }
}

/// One connection's part in a batch op.
pub(crate) struct Exchange {
    lease: Lease,
    from: usize,
    to: usize,
    machine: Machine,
    retried: bool,
    step: Step,
    failure: Option<Failure>,
    /// When to give up before the op's deadline: as a trial of a server that was suspected.
    until: Option<Instant>,
    /// When it began and ended, if that is of interest.
    begun: Option<Instant>,
    ended: Option<Instant>,
    /// Keeps the bytes of a put counted.
    _reserved: Option<Reserved>,
}

/// What an exchange came to.
pub(crate) struct Ended {
    pub(crate) server: Arc<Server>,
    pub(crate) permits: Permits,
    pub(crate) failure: Option<Failure>,
    /// Pages that came and were corrupt; `None` if none came.
    pub(crate) corrupt: Option<u64>,
    /// How long it took, if that is of interest, and how many bytes of pages came.
    pub(crate) took: Option<(u64, Duration)>,
}

impl Exchange {
    /// Places `from..to` of the batch's order, over a leased connection.
    pub(crate) fn new(
        batch: &Batch<'_>,
        mut lease: Lease,
        (from, to): (usize, usize),
        reserved: Option<Reserved>,
    ) -> Self {
        lease.link().begin();
        let machine = Machine::new(batch, &mut lease, from, to);
        let step = Step::Wait { write: true };
        let is_trial = lease.shared_link().permits.is_trial();
        let until =
            is_trial.then(|| Instant::now() + trial_patience(batch.care.patience, batch.bytes(from, to)));
        let begun = batch.is_timed.then(Instant::now);
        Self {
            lease,
            from,
            to,
            machine,
            retried: false,
            step,
            failure: None,
            until,
            begun,
            ended: None,
            _reserved: reserved,
        }
    }

    /// When to give up before the op's deadline.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until.filter(|_| self.step != Step::Done)
    }

    /// Gives up if it is time to.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.until().is_some_and(|until| until <= now) {
            self.failure = Some(self.late());
            self.step = Step::Done;
        }
    }

    /// What it means that there is no time left.
    fn late(&self) -> Failure {
        if self.lease.shared_link().replied { Failure::Slow } else { Failure::Silent }
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What it waited for when it was last advanced.
    pub(crate) fn step(&self) -> Step {
        self.step
    }

    /// Does all that can be done without waiting.
    pub(crate) fn advance(&mut self, batch: &mut Batch<'_>) -> Step {
        if self.step == Step::Done {
            return Step::Done;
        }
        self.step = match self.machine.advance(self.lease.link(), batch) {
            Ok(step) => step,
            Err(error) => self.broken(&error, batch),
        };
        if self.step == Step::Done && batch.is_timed {
            self.ended = Some(Instant::now());
        }
        self.step
    }

    /// A connection that the server closed while it lay in the pool may be replaced once; else the exchange fails.
    fn broken(&mut self, error: &LinkError, batch: &mut Batch<'_>) -> Step {
        let stale = matches!(error, LinkError::Closed | LinkError::Io(_)) && !self.lease.link().replied;
        if stale && !self.retried && self.lease.replace(Kind::of(batch.op)) {
            self.retried = true;
            self.lease.link().begin();
            self.machine = Machine::new(batch, &mut self.lease, self.from, self.to);
            return self.advance(batch);
        }
        self.lease.server().note_error(&error.to_string());
        self.failure = Some(Failure::Broken);
        Step::Done
    }

    /// Takes over what another view of the batch learned about this exchange's pages.
    pub(crate) fn take_outcomes(&self, batch: &mut Batch<'_>, outcomes: &[PageOutcome]) {
        for at in self.from..self.to {
            let page = batch.page(at);
            batch.outcomes[page] = outcomes[page];
        }
    }

    /// Gives up on an exchange whose socket cannot be waited for.
    pub(crate) fn fail(&mut self, error: &std::io::Error) {
        self.lease.server().note_error(&error.to_string());
        self.failure = Some(Failure::Broken);
        self.step = Step::Done;
    }

    /// Ends the exchange: a finished connection goes back to its pool, any other is closed.
    pub(crate) fn end(mut self, batch: &mut Batch<'_>) -> Ended {
        let server = self.lease.server().clone();
        if self.step != Step::Done {
            self.failure = Some(if batch.is_early { Failure::Left } else { self.late() });
        }
        let Self { mut lease, from, to, failure, begun, ended, .. } = self;
        let permits = lease.shared_link().permits;
        if lease.link().refused == Some(Code::UnknownSpace) {
            server.reopen_spaces();
        }
        let count = |batch: &Batch<'_>, wanted: &[PageOutcome]| {
            (from..to).filter(|&at| wanted.contains(&batch.outcomes[batch.page(at)])).count()
        };
        if failure.is_none() && batch.op == Op::Put {
            // A page that was refused would have been sent for nothing as well.
            server.note_put(to - from, count(batch, &[PageOutcome::Exists, PageOutcome::Busy]));
        }
        let corrupt = (batch.op == Op::Get).then(|| count(batch, &[PageOutcome::Corrupt]) as u64);
        let corrupt = corrupt.filter(|corrupt| *corrupt > 0 || count(batch, &[PageOutcome::Hit]) > 0);
        let took = begun.map(|begun| {
            let came = |at: &usize| batch.outcomes[batch.page(*at)] == PageOutcome::Hit;
            let bytes = (from..to).filter(came).map(|at| batch.pieces.page_len(batch.page(at)) as u64).sum();
            (bytes, ended.unwrap_or_else(Instant::now).saturating_duration_since(begun))
        });
        match failure {
            None => lease.finish(),
            Some(_) => drop(lease),
        }
        if matches!(failure, Some(Failure::Silent | Failure::Slow | Failure::Left)) {
            for at in from..to {
                let page = batch.page(at);
                if batch.outcomes[page] == PageOutcome::Unavailable {
                    batch.outcomes[page] = PageOutcome::TimedOut;
                }
            }
        }
        Ended { server, permits, failure, corrupt, took }
    }
}
