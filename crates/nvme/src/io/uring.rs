//! I/O through io_uring: one ring for each drive, used by its thread alone.
//!
//! This file has the crate's only unsafe code, one block: handing the kernel an entry that names memory. The
//! argument is ownership. An operation in flight lies in `flights` with everything its entry points at, and leaves
//! it only when its completion was reaped. Dropping the ring reaps all completions first; if the kernel does not
//! give them, the memory is leaked instead of freed.
#![allow(unsafe_code, reason = "the kernel is told addresses; see above")]

use crate::io::bell::Bell;
use crate::io::{Body, Ended, Op, PIECES_MAX};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

/// The completion of the bell's poll.
const BELL: u64 = u64::MAX;

/// An operation in flight, and the list of pieces that its entry points at.
struct Flight {
    op: Op,
    pieces: Vec<libc::iovec>,
}

/// A ring and what is in flight on it.
pub(crate) struct Uring {
    ring: IoUring,
    bell: Arc<Bell>,
    /// By the number that entry and completion carry.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// A poll of the bell is in flight.
    listening: bool,
}

/// Asks the kernel for a ring of this depth, and whether it does what is needed.
pub(crate) fn ring(depth: usize) -> io::Result<IoUring> {
    let entries = u32::try_from(depth + 1).map_err(io::Error::other)?;
    let ring = IoUring::new(entries.next_power_of_two())?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Read::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::PollAdd::CODE];
    if !needed.into_iter().all(|code| probe.is_supported(code)) {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    // Some containers let a ring be made and refuse to run it.
    ring.submit()?;
    Ok(ring)
}

impl Uring {
    pub(crate) fn new(ring: IoUring, depth: usize, bell: Arc<Bell>) -> Self {
        let flights = (0..depth).map(|_| None).collect();
        Self { ring, bell, flights, free: (0..depth).collect(), listening: false }
    }

    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn submit(&mut self, op: Op) {
        let number = self.free.pop().expect("the caller asked whether there is room");
        let flight = self.flights[number].insert(Flight { op, pieces: Vec::new() });
        let entry = entry(flight).user_data(number as u64);
        self.push(&entry);
    }

    /// Puts an entry into the submission queue. All memory that it names must be held by `flights`, under the number
    /// that it carries.
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what a pushed entry points at must stay valid until its completion. Entries are made by `entry` from a
        // flight that lies in `flights`: the slot of a read is reserved for that flight alone and is not touched before
        // it is handed back; the pages of a write are pinned, hence never written; headers are heap memory that does
        // not move; so are the lists of pieces. A flight leaves `flights` only in `reap`, after its completion, or is
        // leaked. The bell's entry names no memory, and its descriptor lives as long as the ring. No call between push
        // and completion makes a reference to a read's bytes: `flights` is private and only inserted into and taken from.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the queue has an entry for every flight and the bell");
    }

    pub(crate) fn wait(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        if !self.listening {
            self.listening = true;
            let poll = opcode::PollAdd::new(types::Fd(self.bell.fd.as_raw_fd()), libc::POLLIN as u32);
            self.push(&poll.build().user_data(BELL));
        }
        let blocks = ended.is_empty() && self.ring.completion().is_empty();
        match self.ring.submit_and_wait(usize::from(blocks)) {
            Err(reason) if !is_passing(&reason) => return Err(reason),
            _ => {}
        }
        if self.reap(ended) {
            self.listening = false;
            self.bell.hear();
        }
        Ok(())
    }

    /// Takes what is over. Whether the bell rang.
    fn reap(&mut self, ended: &mut Vec<Ended>) -> bool {
        let mut rang = false;
        for completion in self.ring.completion() {
            if completion.user_data() == BELL {
                rang = true;
                continue;
            }
            let number = usize::try_from(completion.user_data()).expect("a number that was given");
            let flight = self.flights[number].take().expect("a flight ends once");
            self.free.push(number);
            let result = completion.result();
            let end = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            ended.push((flight.op, end));
        }
        rang
    }
}

/// The kernel was interrupted or short of something for a moment; asking again is right.
fn is_passing(reason: &io::Error) -> bool {
    matches!(reason.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// The entry of a flight that lies where it will stay.
fn entry(flight: &mut Flight) -> squeue::Entry {
    let op = &mut flight.op;
    let fd = types::Fd(op.segment.file.file.as_raw_fd());
    let offset = op.offset + op.done as u64;
    match &mut op.body {
        Body::Read(read) => {
            let bytes = &mut read.slot.whole_mut()[op.done..];
            let len = u32::try_from(bytes.len()).expect("a page has at most 64 MiB");
            opcode::Read::new(fd, bytes.as_mut_ptr(), len).offset(offset).build()
        }
        Body::Write(batch) => {
            flight.pieces.reserve_exact(PIECES_MAX);
            batch.pieces_from(op.done, &mut |piece| {
                // The kernel reads from pieces of a write; the type has no constant form.
                let iov_base = piece.as_ptr().cast_mut().cast();
                flight.pieces.push(libc::iovec { iov_base, iov_len: piece.len() });
            });
            let count = u32::try_from(flight.pieces.len()).expect("a batch has few pieces");
            opcode::Writev::new(fd, flight.pieces.as_ptr(), count).offset(offset).build()
        }
        Body::Sync(_) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while self.room() < self.flights.len() {
            match self.ring.submit_and_wait(1) {
                Err(reason) if !is_passing(&reason) => {
                    // The kernel may still use this memory, so nobody else ever may.
                    Box::leak(Box::new(std::mem::take(&mut self.flights)));
                    return;
                }
                _ => self.reap(&mut ended),
            };
            ended.clear();
        }
    }
}
