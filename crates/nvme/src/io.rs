//! Reading and writing pages: a ring of the kernel, or threads.
//!
//! An [`Op`] owns everything that it reads into or writes from. Whoever runs it hands it back when it is over, so
//! no buffer is ever freed, or used otherwise, while a device may touch it. [`Io`] runs many at once for one drive.

pub(crate) mod bell;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod here;
pub(crate) mod threads;
pub(crate) mod uring;

use crate::batch::Batch;
use crate::disk::whole;
use crate::faults::{Kind, Verdict};
use crate::segment::Segment;
use crate::ticket::ReadSender;
use memkv_memory::ReservedSlot;
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// The most pieces of one write; the kernel takes 1024.
pub(crate) const PIECES_MAX: usize = 512;

/// One operation on a segment's file, with all memory that it needs.
pub(crate) struct Op {
    pub(crate) segment: Arc<Segment>,
    /// Where it starts in the file.
    pub(crate) offset: u64,
    /// Bytes that were moved already: an operation that ends early goes on from here.
    pub(crate) done: usize,
    pub(crate) body: Body,
}

/// What an operation does.
pub(crate) enum Body {
    /// Reads a page into its slot.
    Read(Box<ReadJob>),
    /// Writes a batch.
    Write(Box<Batch>),
    /// Waits until the drive has what was written; then these batches are over.
    Sync(Vec<Batch>),
}

/// A page to read.
pub(crate) struct ReadJob {
    pub(crate) slot: ReservedSlot,
    pub(crate) sender: ReadSender,
}

/// An operation that is over, and how many bytes it moved this time.
pub(crate) type Ended = (Op, io::Result<usize>);

impl Op {
    /// Bytes to move, from its start to its end.
    pub(crate) fn bytes(&mut self) -> usize {
        match &mut self.body {
            Body::Read(read) => read.slot.whole_mut().len(),
            Body::Write(batch) => batch.bytes(),
            Body::Sync(_) => 0,
        }
    }

    /// What kind of operation this is for a plan of faults.
    fn kind(&self) -> Kind {
        match self.body {
            Body::Read(_) => Kind::Read,
            Body::Write(_) => Kind::Write,
            Body::Sync(_) => Kind::Sync,
        }
    }

    /// Does it on this thread: one call to the kernel, of at most `bytes_max` bytes.
    fn run(&mut self, bytes_max: usize) -> io::Result<usize> {
        let file = &self.segment.file.file;
        let offset = self.offset + self.done as u64;
        match &mut self.body {
            Body::Read(read) => {
                let bytes = &mut read.slot.whole_mut()[self.done..];
                let len = bytes.len().min(bytes_max);
                file.read_at(&mut bytes[..len], offset)
            }
            Body::Write(batch) => {
                let most = batch.bytes() - self.done;
                self.segment.file.faults.writes(file, offset, most.min(bytes_max))?;
                let mut left = bytes_max;
                let mut pieces = Vec::with_capacity(PIECES_MAX);
                batch.pieces_from(self.done, &mut |piece| {
                    let len = piece.len().min(left);
                    left -= len;
                    if len > 0 {
                        pieces.push(IoSlice::new(&piece[..len]));
                    }
                });
                Ok(rustix::io::pwritev(file, &pieces, offset)?)
            }
            Body::Sync(_) => {
                file.sync_data()?;
                self.segment.file.faults.synced(file)?;
                Ok(0)
            }
        }
    }
}

/// Runs operations for one drive, many at once.
pub(crate) trait Device {
    /// Operations that may be submitted now.
    fn room(&self) -> usize;

    /// Starts an operation for which there is room.
    fn push(&mut self, op: Op);

    /// Waits until an operation is over or the bell has rung, unless some are in `ended` already, and adds what is over.
    ///
    /// # Errors
    ///
    /// The kernel's, if it does not run operations any more. Those in flight stay in flight.
    fn wait(&mut self, ended: &mut Vec<Ended>) -> io::Result<()>;

    /// Starts an operation, unless a plan of faults has something else in mind. There must be room.
    fn submit(&mut self, mut op: Op, ended: &mut Vec<Ended>) {
        let left = op.bytes() - op.done;
        let verdict = op.segment.file.faults.meet(op.kind(), left as u64);
        let end = match verdict {
            Verdict::Go => return self.push(op),
            Verdict::Fail(reason) => Err(reason),
            Verdict::Part(bytes) => op.run(whole(bytes, left).max(512).min(left)),
            Verdict::Crash(bytes) => {
                let torn = whole(bytes, left);
                let written = if torn == 0 { Ok(0) } else { op.run(torn) };
                written.and_then(|_| Err(io::Error::from(Errno::IO)))
            }
        };
        ended.push((op, end));
    }
}

/// What a log runs its operations with.
pub(crate) enum Io {
    Uring(Box<uring::Uring>),
    Threads(threads::Threads),
}

impl Device for Io {
    fn room(&self) -> usize {
        match self {
            Self::Uring(uring) => uring.room(),
            Self::Threads(threads) => threads.room(),
        }
    }

    fn push(&mut self, op: Op) {
        match self {
            Self::Uring(uring) => uring.submit(op),
            Self::Threads(threads) => threads.submit(op),
        }
    }

    fn wait(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.wait(ended),
            Self::Threads(threads) => threads.wait(ended),
        }
    }
}
