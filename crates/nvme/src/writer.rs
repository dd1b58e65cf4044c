//! A drive's thread: puts pages into batches and batches into the active segment, starts reads, and ends both.
//!
//! It never waits for a file to be made, sealed or removed: that is the [keeper's](crate::keeper) work. Operations that
//! are in flight are always waited for, however the thread ends.

use crate::batch::{Batch, Item, Mark, PageJob, batch_blocks};
use crate::drive::{Drive, Message};
use crate::format::{BLOCK, FIRST_BLOCK, record_bytes as record_bytes_of};
use crate::io::{Body, Device, Ended, Op, ReadJob};
use crate::segment::Segment;
use crate::{Dropped, Extent, OwnedHead, ReadError, SegmentState};
use memkv_core::SpaceId;
use rustix::io::Errno;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A batch is closed when it has so many bytes of pages.
const BATCH_BYTES: usize = 1 << 20;
/// The most records of a batch.
const BATCH_ITEMS: usize = 256;
/// The most batches in flight.
const WRITES_MAX: usize = 16;
/// Reads that fail before a drive is taken out.
const READ_ERRORS_MAX: u64 = 8;

/// The segment that batches go to.
struct Active {
    segment: Arc<Segment>,
    next_block: u32,
    /// Bytes that its footer will have.
    record_bytes: usize,
}

/// The state of a drive's thread.
pub(crate) struct Writer<D> {
    drive: Arc<Drive>,
    io: D,
    /// Operations that are over and were not looked at yet.
    ended: Vec<Ended>,
    /// Places that reads leave to writes.
    reserve: usize,
    messages: VecDeque<Message>,
    reads: VecDeque<(Arc<Segment>, Extent, Box<ReadJob>)>,
    items: VecDeque<Item>,
    hot: VecDeque<Box<PageJob>>,
    active: Option<Active>,
    /// Made ahead, in the order of their use.
    spares: VecDeque<Arc<Segment>>,
    no_room: bool,
    writes: usize,
    in_flight: usize,
    /// Batches that wait for the drive's word.
    written: Vec<Batch>,
    syncing: bool,
    /// What was deleted since the keeper began to look for hot pages.
    deleted: HashSet<u64>,
    cleared: HashSet<SpaceId>,
    closing: bool,
}

impl Active {
    /// Whether a batch with these sizes fits, and the footer after it.
    fn fits(&self, record_bytes: usize, stored: usize) -> bool {
        let footer = (self.record_bytes + record_bytes).div_ceil(BLOCK);
        let end = self.next_block as usize + batch_blocks(record_bytes, stored) as usize + footer;
        end <= self.segment.identity.blocks as usize
    }
}

impl<D: Device> Writer<D> {
    pub(crate) fn new(drive: Arc<Drive>, io: D) -> Self {
        let reserve = (io.room() / 8).max(1);
        Self {
            drive,
            io,
            ended: Vec::new(),
            reserve,
            messages: VecDeque::new(),
            reads: VecDeque::new(),
            items: VecDeque::new(),
            hot: VecDeque::new(),
            active: None,
            spares: VecDeque::new(),
            no_room: false,
            writes: 0,
            in_flight: 0,
            written: Vec::new(),
            syncing: false,
            deleted: HashSet::new(),
            cleared: HashSet::new(),
            closing: false,
        }
    }

    /// Runs until the log is closed or dropped.
    pub(crate) fn run(mut self) {
        while !self.turn() {}
        self.end();
    }

    /// Takes what came, starts what may start, and ends what is over. Whether this was the last turn.
    pub(crate) fn turn(&mut self) -> bool {
        self.take_messages();
        if self.drive.is_failed() || self.drive.stop.load(Ordering::SeqCst) {
            self.give_up(Dropped::DriveFailed);
        }
        let mut ended = std::mem::take(&mut self.ended);
        self.start(&mut ended);
        if self.is_over() {
            return true;
        }
        if let Err(reason) = self.io.wait(&mut ended) {
            self.drive.fail(&format!("the kernel runs no operations: {reason}"));
            return true;
        }
        let mut again = Vec::new();
        ended.drain(..).for_each(|end| self.finish(end, &mut again));
        self.ended = again;
        false
    }

    /// Takes nothing any more, and answers all that waits.
    pub(crate) fn end(&mut self) {
        self.drive.close_inbox();
        self.give_up(Dropped::DriveFailed);
    }

    fn is_over(&self) -> bool {
        let idle = self.in_flight == 0 && self.written.is_empty();
        let done = self.closing && self.items.is_empty() && self.hot.is_empty() && self.reads.is_empty();
        idle && (done || self.drive.stop.load(Ordering::SeqCst)) && self.active.is_none()
    }

    fn take_messages(&mut self) {
        let mut messages = std::mem::take(&mut self.messages);
        self.drive.take_messages(&mut messages);
        for message in messages.drain(..) {
            match message {
                Message::Item(item) => {
                    self.remember(&item);
                    self.items.push_back(item);
                }
                Message::Hot(page) => self.hot.push_back(page),
                Message::Read(segment, extent, read) => self.reads.push_back((segment, extent, read)),
                Message::Spare(segment) => {
                    self.spares.push_back(segment);
                    self.no_room = false;
                    self.drive.set_full(false);
                }
                Message::NoRoom => {
                    self.no_room = true;
                    if self.active.is_none() {
                        self.drive.set_full(true);
                    }
                }
                Message::ReclaimOver => {
                    self.deleted.clear();
                    self.cleared.clear();
                }
                Message::Close => self.closing = true,
            }
        }
        self.messages = messages;
    }

    /// Notes a deletion while pages may be on their way to be written again.
    fn remember(&mut self, item: &Item) {
        let Item::Mark(mark) = item else { return };
        if !self.drive.reclaiming.load(Ordering::SeqCst) {
            return;
        }
        match mark.digest {
            Some(digest) => self.deleted.insert(digest),
            None => self.cleared.insert(mark.space),
        };
    }

    /// Starts what may start.
    fn start(&mut self, ended: &mut Vec<Ended>) {
        while self.io.room() > self.reserve
            && let Some((segment, extent, read)) = self.reads.pop_front()
        {
            self.submit(Op { segment, offset: extent.offset(), done: 0, body: Body::Read(read) }, ended);
        }
        if self.io.room() > 0 && !self.syncing && !self.written.is_empty() {
            let segment = Arc::clone(&self.written[0].segment);
            let of_segment = |batch: &mut Batch| Arc::ptr_eq(&batch.segment, &segment);
            let batches = self.written.extract_if(.., of_segment).collect();
            self.syncing = true;
            self.submit(Op { segment, offset: 0, done: 0, body: Body::Sync(batches) }, ended);
        }
        while self.io.room() > 0
            && self.writes < WRITES_MAX
            && let Some(batch) = self.plan()
        {
            self.writes += 1;
            let offset = u64::from(batch.block) * BLOCK as u64;
            let segment = Arc::clone(&batch.segment);
            self.submit(Op { segment, offset, done: 0, body: Body::Write(Box::new(batch)) }, ended);
        }
        if self.closing && self.items.is_empty() && self.hot.is_empty() {
            self.retire();
        }
    }

    fn submit(&mut self, op: Op, ended: &mut Vec<Ended>) {
        self.in_flight += 1;
        let before = ended.len();
        self.io.submit(op, ended);
        debug_assert!(ended.len() <= before + 1);
    }

    /// The next batch, if something waits and there is a segment for it.
    fn plan(&mut self) -> Option<Batch> {
        loop {
            self.drop_deleted_hot();
            if self.hot.is_empty() && self.items.is_empty() {
                return None;
            }
            if self.active.is_none() && !self.activate() {
                self.answer_without_segment();
                return None;
            }
            let items = self.take_items();
            if items.is_empty() {
                if self.is_last_segment() {
                    // Pages wait for the next segment, hot ones cannot.
                    self.refuse_hot();
                    return None;
                }
                self.retire();
                continue;
            }
            let record_bytes: usize = items.iter().map(Item::record_bytes).sum();
            let stored = items.iter().map(Item::stored).sum();
            let active = self.active.as_mut().expect("items were taken for it");
            let block = active.next_block;
            active.next_block += batch_blocks(record_bytes, stored);
            active.record_bytes += record_bytes;
            active.segment.pending.fetch_add(1, Ordering::Relaxed);
            let next = || self.drive.next_sequence.fetch_add(1, Ordering::Relaxed);
            return Some(Batch::new(Arc::clone(&active.segment), block, items, next));
        }
    }

    /// Hot pages that were deleted after the keeper had asked for them must not be written behind their deletion.
    fn drop_deleted_hot(&mut self) {
        let (deleted, cleared) = (&self.deleted, &self.cleared);
        let is_deleted = |head: &OwnedHead| deleted.contains(&head.digest) || cleared.contains(&head.space);
        if deleted.is_empty() && cleared.is_empty() {
            return;
        }
        let (gone, kept) = std::mem::take(&mut self.hot)
            .into_iter()
            .partition::<VecDeque<_>, _>(|page| is_deleted(&page.head));
        self.hot = kept;
        for page in Vec::from(gone) {
            page.end(Err(Dropped::Full));
        }
    }

    /// Whether there will be a segment after the active one, and it is not there yet. The keeper may have to write hot
    /// pages again before it can make one, and they go to the active one.
    fn is_last_segment(&self) -> bool {
        self.spares.is_empty() && !self.no_room && !self.closing
    }

    fn refuse_hot(&mut self) {
        for page in std::mem::take(&mut self.hot) {
            page.end(Err(Dropped::Full));
        }
    }

    /// Takes as many items as fit one batch and the active segment.
    fn take_items(&mut self) -> Vec<Item> {
        let Some(active) = &self.active else { return Vec::new() };
        // Half of the last segment is kept for hot pages.
        let held =
            if self.is_last_segment() { active.segment.identity.blocks as usize * BLOCK / 2 } else { 0 };
        let (mut items, mut record_bytes, mut stored) = (Vec::new(), 0, 0);
        while items.len() < BATCH_ITEMS && stored < BATCH_BYTES {
            let from_hot = self.hot.front().map(|page| (page.head.key.len(), page.stored()));
            let (record, bytes, held) = match (from_hot, self.items.front()) {
                (Some((key, bytes)), _) => (record_bytes_of(key), bytes, 0),
                (None, Some(item)) => (item.record_bytes(), item.stored(), held),
                (None, None) => break,
            };
            let opens = items.is_empty();
            if !opens && stored + bytes > BATCH_BYTES {
                break;
            }
            if !active.fits(record_bytes + record, stored + bytes + held) {
                break;
            }
            record_bytes += record;
            stored += bytes;
            items.extend(match self.hot.pop_front() {
                Some(page) => Some(Item::Page(page)),
                None => self.items.pop_front(),
            });
        }
        items
    }

    /// Makes a spare segment the active one, and asks for another.
    fn activate(&mut self) -> bool {
        let Some(segment) = self.spares.pop_front() else { return false };
        segment.set_state(SegmentState::Active);
        self.active = Some(Active { segment, next_block: FIRST_BLOCK, record_bytes: 0 });
        self.drive.want_spare();
        true
    }

    /// There is no segment to write to. Hot pages cannot wait for one, because the keeper waits for them; the others
    /// wait unless there is no room for a segment at all.
    fn answer_without_segment(&mut self) {
        self.refuse_hot();
        if !self.no_room {
            return;
        }
        self.drive.set_full(true);
        let mut kept = VecDeque::new();
        for item in std::mem::take(&mut self.items) {
            match item {
                Item::Page(page) => self.drop_page(*page, Dropped::Full),
                Item::Mark(mark) => kept.extend(self.put_off(mark)),
            }
        }
        self.items = kept;
    }

    /// Tells a deletion's waiter that it is not recorded. It is tried again when there is room, unless the log closes.
    fn put_off(&self, mut mark: Mark) -> Option<Item> {
        if let Some(vote) = mark.vote.take() {
            vote.object(Dropped::Full);
        }
        (!self.closing).then_some(Item::Mark(mark))
    }

    fn drop_page(&self, page: PageJob, reason: Dropped) {
        self.drive.count_dropped(reason);
        page.end(Err(reason));
    }

    /// Lets go of the active segment; it is sealed once its last batch is over.
    fn retire(&mut self) {
        let Some(active) = self.active.take() else { return };
        active.segment.end_block.store(active.next_block, Ordering::Relaxed);
        active.segment.set_state(SegmentState::Sealing);
        if active.segment.pending.load(Ordering::Relaxed) == 0 {
            self.drive.ask_seal(active.segment);
        }
    }

    /// Ends all that waits and has not been started.
    fn give_up(&mut self, reason: Dropped) {
        self.active = None;
        self.take_messages();
        for (_, _, read) in std::mem::take(&mut self.reads) {
            self.drive.reads_waiting.fetch_sub(1, Ordering::Relaxed);
            read.sender.send(Err(ReadError::Gone)).ok();
        }
        for page in std::mem::take(&mut self.hot) {
            page.end(Err(reason));
        }
        for item in std::mem::take(&mut self.items) {
            match item {
                Item::Page(page) => self.drop_page(*page, reason),
                Item::Mark(mark) => self.end_mark(mark, Err(reason)),
            }
        }
        for batch in std::mem::take(&mut self.written) {
            self.drop_batch(batch, reason);
        }
    }

    fn end_mark(&self, mark: Mark, result: Result<(), Dropped>) {
        self.drive.marks_waiting.fetch_sub(1, Ordering::Relaxed);
        let Some(vote) = mark.vote else { return };
        // Other drives note that a failed one was taken out, and then its pages do not come back either.
        let harmless = self.drive.is_failed() && !self.drive.is_unrecorded();
        match result {
            Err(reason) if !harmless => vote.object(reason),
            _ => vote.agree(),
        }
    }

    /// Ends an operation, or lets it go on where it stopped.
    fn finish(&mut self, (mut op, end): Ended, ended: &mut Vec<Ended>) {
        self.in_flight -= 1;
        let left = op.bytes() - op.done;
        let again = match &end {
            Ok(moved) if *moved > 0 && *moved < left => Some(*moved),
            Err(reason) if reason.kind() == io::ErrorKind::Interrupted => Some(0),
            _ => None,
        };
        if let Some(moved) = again {
            op.done += moved;
            self.submit(op, ended);
            return;
        }
        let result = match end {
            Ok(0) if left > 0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(_) => Ok(()),
            Err(reason) => Err(reason),
        };
        if result.is_err() {
            self.drive.counts.errors.fetch_add(1, Ordering::Relaxed);
        }
        match op.body {
            Body::Read(read) => self.finish_read(*read, result),
            Body::Write(batch) => self.finish_write(*batch, result),
            Body::Sync(batches) => self.finish_sync(batches, result),
        }
    }

    fn finish_read(&mut self, mut read: ReadJob, result: io::Result<()>) {
        let counts = &self.drive.counts;
        self.drive.reads_waiting.fetch_sub(1, Ordering::Relaxed);
        let answer = match result {
            Ok(()) => {
                counts.reads.fetch_add(1, Ordering::Relaxed);
                counts.read_bytes.fetch_add(read.slot.whole_mut().len() as u64, Ordering::Relaxed);
                Ok(read.slot)
            }
            Err(reason) => {
                // A file that somebody cut short is damage to its pages, not to the drive.
                if reason.kind() != io::ErrorKind::UnexpectedEof {
                    let errors = counts.read_errors.fetch_add(1, Ordering::Relaxed) + 1;
                    if errors >= READ_ERRORS_MAX || is_missing(&reason) {
                        self.drive.fail(&format!("{errors} reads failed, the last one with: {reason}"));
                    }
                }
                Err(ReadError::Io)
            }
        };
        // The caller may have lost interest.
        read.sender.send(answer).ok();
    }

    fn finish_write(&mut self, batch: Batch, result: io::Result<()>) {
        self.writes -= 1;
        match result {
            Ok(()) => {
                self.drive.counts.written_bytes.fetch_add(batch.bytes() as u64, Ordering::Relaxed);
                if self.drive.shape.sync { self.written.push(batch) } else { self.complete(batch) }
            }
            Err(reason) if is_no_room(&reason) => {
                if self.active.as_ref().is_some_and(|active| Arc::ptr_eq(&active.segment, &batch.segment)) {
                    self.retire();
                }
                self.drop_batch(batch, Dropped::Full);
            }
            Err(reason) => {
                self.drive.fail(&format!("a write failed: {reason}"));
                self.drop_batch(batch, Dropped::DriveFailed);
            }
        }
    }

    fn finish_sync(&mut self, batches: Vec<Batch>, result: io::Result<()>) {
        self.syncing = false;
        if let Err(reason) = &result {
            // After a failed sync nobody knows what is on the drive.
            self.drive.fail(&format!("a sync failed: {reason}"));
        }
        for batch in batches {
            if result.is_ok() { self.complete(batch) } else { self.drop_batch(batch, Dropped::DriveFailed) }
        }
    }

    /// A batch is on the drive: its pages may be found from now on.
    fn complete(&mut self, batch: Batch) {
        let extents = batch.extents();
        let segment = Arc::clone(&batch.segment);
        {
            let mut book = segment.book.lock();
            book.marks.extend_from_slice(&batch.mark_records);
            book.pages.extend_from_slice(&batch.page_records);
            book.mark_count += u32::try_from(batch.marks.len()).expect("a batch has few records");
            book.page_count += u32::try_from(batch.pages.len()).expect("a batch has few records");
            book.last_sequence = book.last_sequence.max(batch.last_sequence);
        }
        segment.pages.fetch_add(batch.pages.len() as u64, Ordering::Relaxed);
        self.drive.counts.writes.fetch_add(batch.pages.len() as u64, Ordering::Relaxed);
        for (page, extent) in batch.pages.into_iter().zip(extents) {
            segment.hold(extent);
            page.end(Ok(extent));
        }
        for mark in batch.marks {
            self.end_mark(mark, Ok(()));
        }
        self.end_batch(segment);
    }

    fn drop_batch(&mut self, batch: Batch, reason: Dropped) {
        for page in batch.pages {
            self.drop_page(page, reason);
        }
        for mark in batch.marks {
            if reason == Dropped::Full {
                let kept = self.put_off(mark);
                self.items.extend(kept);
            } else {
                self.end_mark(mark, Err(reason));
            }
        }
        self.end_batch(batch.segment);
    }

    /// One batch of the segment is over.
    fn end_batch(&mut self, segment: Arc<Segment>) {
        let last = segment.pending.fetch_sub(1, Ordering::Relaxed) == 1;
        if last && segment.state() == SegmentState::Sealing {
            self.drive.ask_seal(segment);
        }
    }
}

/// The file system has no room, or the owner's share of it is used up.
pub(crate) fn is_no_room(reason: &io::Error) -> bool {
    let errno = reason.raw_os_error();
    errno == Some(Errno::NOSPC.raw_os_error()) || errno == Some(Errno::DQUOT.raw_os_error())
}

/// The device or the directory is not there any more.
fn is_missing(reason: &io::Error) -> bool {
    let errno = reason.raw_os_error();
    [Errno::NODEV, Errno::NXIO, Errno::NOENT].iter().any(|gone| errno == Some(gone.raw_os_error()))
}
