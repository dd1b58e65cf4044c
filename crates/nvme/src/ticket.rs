//! What a caller waits on: pages written, pages read, deletions recorded.
//!
//! All three are futures that need no particular runtime, and can be waited for on a thread instead. Dropping one
//! stops nothing: the operation goes on and owns what it reads into or writes from.

use crate::Extent;
use memkv_memory::ReservedSlot;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// Why something was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// There is no room on the drive.
    #[error("there is no room on the drive")]
    Full,
    /// The drive has failed, or the log is closed.
    #[error("the drive has failed")]
    DriveFailed,
    /// Too much is waiting to be written already.
    #[error("too much is waiting to be written already")]
    Backlog,
}

/// Why a page was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Its segment was given back, or its drive was taken out.
    #[error("the page is no longer on a drive")]
    Gone,
    /// The slot does not have the extent's size.
    #[error("the slot does not have the page's size")]
    Size,
    /// The drive answered with an error.
    #[error("the drive could not read the page")]
    Io,
    /// Too many reads are waiting already.
    #[error("too many reads are waiting for the drive")]
    Busy,
}

/// How the pages of an append ended, in order.
type Results = Vec<Result<Extent, Dropped>>;

/// Resolves when every page of an append has been written or dropped; one result for each page, in order.
#[must_use = "the results say where the pages are"]
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Results>);

/// Resolves when a deletion has been recorded on every drive that is used.
#[must_use = "a deletion holds over a restart only when this says so"]
#[derive(Debug)]
pub struct Recorded(oneshot::Receiver<Result<(), Dropped>>);

/// Resolves when a page has been read, or could not be.
#[must_use = "the slot comes back through this"]
#[derive(Debug)]
pub struct Reading(oneshot::Receiver<Result<ReservedSlot, ReadError>>);

impl Ticket {
    /// Waits on this thread, which must not run asynchronous tasks.
    #[must_use]
    pub fn wait(self) -> Vec<Result<Extent, Dropped>> {
        self.0.blocking_recv().unwrap_or_default()
    }
}

impl Recorded {
    /// Waits on this thread, which must not run asynchronous tasks.
    ///
    /// # Errors
    ///
    /// [`Dropped`] if a drive in use could not record it.
    pub fn wait(self) -> Result<(), Dropped> {
        self.0.blocking_recv().unwrap_or(Err(Dropped::DriveFailed))
    }
}

impl Reading {
    /// A reading that has ended already.
    pub(crate) fn failed(error: ReadError) -> Self {
        let (sender, receiver) = oneshot::channel();
        sender.send(Err(error)).ok();
        Self(receiver)
    }

    /// A reading, and where its end is told.
    pub(crate) fn new() -> (ReadSender, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }

    /// Waits on this thread, which must not run asynchronous tasks.
    ///
    /// # Errors
    ///
    /// [`ReadError`] says why there is no page.
    pub fn wait(self) -> Result<ReservedSlot, ReadError> {
        self.0.blocking_recv().unwrap_or(Err(ReadError::Gone))
    }
}

/// Where a read's end is told.
pub(crate) type ReadSender = oneshot::Sender<Result<ReservedSlot, ReadError>>;

impl Future for Ticket {
    type Output = Vec<Result<Extent, Dropped>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(Result::unwrap_or_default)
    }
}

impl Future for Recorded {
    type Output = Result<(), Dropped>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|end| end.unwrap_or(Err(Dropped::DriveFailed)))
    }
}

impl Future for Reading {
    type Output = Result<ReservedSlot, ReadError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|end| end.unwrap_or(Err(ReadError::Gone)))
    }
}

/// The pages of one append, on their way. Whoever drops the last handle tells the ticket.
pub(crate) struct Tally {
    results: Mutex<Results>,
    sender: Option<oneshot::Sender<Results>>,
}

impl Tally {
    /// A tally of `pages` pages, each taken as lost with its drive until it is told otherwise.
    pub(crate) fn new(pages: usize) -> (Arc<Self>, Ticket) {
        let (sender, receiver) = oneshot::channel();
        let results = Mutex::new(vec![Err(Dropped::DriveFailed); pages]);
        (Arc::new(Self { results, sender: Some(sender) }), Ticket(receiver))
    }

    /// Notes how a page ended.
    pub(crate) fn set(&self, page: usize, result: Result<Extent, Dropped>) {
        self.results.lock()[page] = result;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            // Nobody may wait any more.
            sender.send(std::mem::take(self.results.get_mut())).ok();
        }
    }
}

/// One deletion on its way to several drives. Whoever drops the last handle tells the waiter.
pub(crate) struct Vote {
    /// Drives that have not recorded it yet, and the first objection.
    open: Mutex<(usize, Option<Dropped>)>,
    sender: Option<oneshot::Sender<Result<(), Dropped>>>,
}

impl Vote {
    /// A vote that is carried when so many have agreed and nobody objected.
    pub(crate) fn new(voters: usize) -> (Arc<Self>, Recorded) {
        let (sender, receiver) = oneshot::channel();
        (Arc::new(Self { open: Mutex::new((voters, None)), sender: Some(sender) }), Recorded(receiver))
    }

    /// Notes that the deletion is recorded, or needs no record.
    pub(crate) fn agree(&self) {
        let mut open = self.open.lock();
        open.0 = open.0.saturating_sub(1);
    }

    /// Notes that a drive could not record the deletion.
    pub(crate) fn object(&self, reason: Dropped) {
        self.open.lock().1.get_or_insert(reason);
    }
}

impl Drop for Vote {
    fn drop(&mut self) {
        let result = match *self.open.get_mut() {
            (0, None) => Ok(()),
            (_, None) => Err(Dropped::DriveFailed),
            (_, Some(reason)) => Err(reason),
        };
        if let Some(sender) = self.sender.take() {
            // Nobody may wait any more.
            sender.send(result).ok();
        }
    }
}
