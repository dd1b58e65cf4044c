//! The log: what its owner calls.

use crate::batch::{Item, Mark, PageJob, Source};
use crate::drive::{Drive, Load, Message};
use crate::io::ReadJob;
use crate::open::Pair;
use crate::spaces::SPACES_FILE;
use crate::ticket::{Tally, Vote};
use crate::{
    Dropped, Extent, IoBackend, LogConfig, LogError, LogStatus, OwnedHead, PageHead, ReadError, Reading,
    Recorded, RecoveryReport, SegmentStatus, Ticket, Walk, keeper, open,
};
use memkv_core::{Key, SpaceDescription, SpaceId};
use memkv_memory::{ReservedSlot, SlotPin};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// A page to write. The slot stays pinned until the write is over.
#[derive(Debug)]
pub struct Append {
    /// What to note of it.
    pub head: OwnedHead,
    /// Its bytes.
    pub page: SlotPin,
}

/// A page that was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its space.
    pub space: SpaceId,
    /// Digest of its space and key.
    pub digest: u64,
}

/// A page that was found when the log was opened.
#[derive(Clone, Copy, Debug)]
pub struct Recovered<'a> {
    /// What was noted of it.
    pub head: PageHead<'a>,
    /// Where it is.
    pub extent: Extent,
    /// Age: of two records with one key, on whatever drives, the one with the higher sequence is the later.
    pub sequence: u64,
}

/// What a page is worth when its segment is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The owner does not point at it.
    Dead,
    /// The owner points at it, and it may go.
    Cold,
    /// It should stay: it is written again, as far as there is room.
    Hot,
}

/// Who points at pages. Called from the log's own threads, never from within a call to the log; must not block long.
pub trait Owner: Send + Sync {
    /// What the page is worth now. A page that was deleted must be [`Standing::Dead`] before [`Log::delete`] is
    /// called, and a space before [`Log::clear_space`].
    fn standing(&self, head: &PageHead<'_>, extent: Extent) -> Standing;
    /// The page was written again at `new`. `false` if the owner did not point at `old` any more, and so does not
    /// point at `new`.
    fn moved(&self, head: &PageHead<'_>, old: Extent, new: Extent) -> bool;
    /// The page is about to go; reads of it fail from now on.
    fn lost(&self, head: &PageHead<'_>, extent: Extent);
    /// All pages of this drive are gone.
    fn drive_lost(&self, drive: u8);
}

/// An open log. Dropping it ends its threads without sealing anything, as the end of the process would.
pub struct Log {
    pub(crate) drives: Vec<Arc<Drive>>,
    /// The thread that writes and the one that keeps, for each drive that works.
    threads: Mutex<Vec<Pair>>,
    spaces: Mutex<BTreeMap<SpaceId, SpaceDescription>>,
    /// Where the search for the least loaded drive begins.
    turn: AtomicUsize,
    page_bytes_max: u32,
    io: IoBackend,
    io_reason: String,
    sync: bool,
    /// Held until everything else is gone.
    _locks: Vec<File>,
}

impl Log {
    /// Opens the drives and tells `visit` every page on them, in log order for each drive. Pages that were deleted
    /// later are left out. `visit` returns whether the owner points at the page now; of two records with one key
    /// it should be the one with the higher sequence, and the other one is [released](Log::release).
    ///
    /// # Errors
    ///
    /// [`LogError`] if the configuration is wrong, or no drive can be used, or a file is from a later version.
    pub fn open(
        config: LogConfig,
        visit: &mut dyn FnMut(Recovered<'_>) -> bool,
    ) -> Result<(Arc<Self>, RecoveryReport), LogError> {
        let opened = open::open(&config, visit)?;
        let log = Self {
            drives: opened.drives,
            threads: Mutex::new(opened.threads),
            spaces: Mutex::new(opened.spaces.into_iter().map(|space| (space.id(), space)).collect()),
            turn: AtomicUsize::new(0),
            page_bytes_max: config.page_bytes_max,
            io: opened.io,
            io_reason: opened.io_reason,
            sync: config.sync,
            _locks: opened.locks,
        };
        Ok((Arc::new(log), opened.report))
    }

    /// Names the owner and starts giving segments back. Only the first call counts.
    pub fn start(&self, owner: Arc<dyn Owner>) {
        for drive in &self.drives {
            if drive.owner.set(Arc::clone(&owner)).is_ok() && drive.is_failed() {
                owner.drive_lost(drive.shape.number);
            }
            drive.wake_keeper();
        }
    }

    /// Descriptions of the spaces that were noted, also before a restart.
    #[must_use]
    pub fn spaces(&self) -> Vec<SpaceDescription> {
        self.spaces.lock().values().cloned().collect()
    }

    /// Keeps a space's description beside the segments of every drive, before the first page of the space is appended.
    /// Blocks until it is on the drives; returns at once if it is there already.
    ///
    /// # Errors
    ///
    /// The system's error if no drive could keep it.
    pub fn note_space(&self, space: &SpaceDescription) -> io::Result<()> {
        let mut spaces = self.spaces.lock();
        let id = space.id();
        if spaces.contains_key(&id) {
            return Ok(());
        }
        let all: Vec<_> = spaces.values().chain([space]).cloned().collect();
        let content = crate::spaces::encode(&all);
        let mut result = Err(io::Error::from(io::ErrorKind::NotConnected));
        for drive in self.drives.iter().filter(|drive| !drive.is_failed()) {
            match drive.disk.replace(SPACES_FILE, &content) {
                Ok(()) => result = Ok(()),
                Err(reason) => {
                    drive.counts.errors.fetch_add(1, Ordering::Relaxed);
                    if result.is_err() {
                        result = Err(reason);
                    }
                }
            }
        }
        if result.is_ok() {
            spaces.insert(id, space.clone());
        }
        result
    }

    /// Queues pages for writing and returns at once. They are spread over the drives by load.
    ///
    /// A page whose length or key is beyond the limits is dropped as [`Dropped::Full`]. `head.meta.len` is taken from
    /// the slot.
    pub fn append(&self, pages: Vec<Append>) -> Ticket {
        let (tally, ticket) = Tally::new(pages.len());
        let mut queues: Vec<Vec<Message>> = self.drives.iter().map(|_| Vec::new()).collect();
        for (index, Append { mut head, page }) in pages.into_iter().enumerate() {
            head.meta.len = u32::try_from(page.len()).expect("a slot is smaller than 4 GiB");
            let fits = head.meta.len <= self.page_bytes_max && Key::new(&head.key).is_ok();
            let stored = page.blocks().len() as u64;
            match if fits { self.choose(stored) } else { Err(Dropped::Full) } {
                Ok((drive, load)) => {
                    let tally = Arc::clone(&tally);
                    let job = PageJob { head, source: Source::Slot(page), tally, index, load };
                    queues[drive].push(Message::Item(Item::Page(Box::new(job))));
                }
                Err(reason) => tally.set(index, Err(reason)),
            }
        }
        for (drive, queue) in self.drives.iter().zip(queues) {
            if !queue.is_empty() {
                drive.post_all(queue);
            }
        }
        ticket
    }

    /// The drive with the least waiting that takes a page of so many bytes, and the page's share of its backlog.
    fn choose(&self, bytes: u64) -> Result<(usize, Load), Dropped> {
        let count = self.drives.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut failed = None;
        let mut full = None;
        let mut best: Option<(usize, u64)> = None;
        for number in (0..count).map(|step| (turn + step) % count) {
            let drive = &self.drives[number];
            if drive.is_failed() {
                failed = Some(number);
            } else if drive.is_full() {
                full = Some(number);
            } else {
                let backlog = drive.backlog.load(Ordering::Relaxed);
                if best.is_none_or(|(_, least)| backlog < least) {
                    best = Some((number, backlog));
                }
            }
        }
        let (number, reason) = match (best, full, failed) {
            (Some((number, _)), ..) => match self.drives[number].take_load(bytes) {
                Some(load) => return Ok((number, load)),
                None => (number, Dropped::Backlog),
            },
            (None, Some(number), _) => (number, Dropped::Full),
            (None, None, number) => (number.unwrap_or(0), Dropped::DriveFailed),
        };
        self.drives[number].count_dropped(reason);
        Err(reason)
    }

    /// Reads a page into a slot that was reserved for its length. The slot belongs to the read until it is over, so
    /// the result may be dropped. The caller verifies the checksum.
    pub fn read(&self, extent: Extent, mut slot: ReservedSlot) -> Reading {
        let drive = self.drives.get(usize::from(extent.drive())).filter(|drive| !drive.is_failed());
        let Some((drive, segment)) = drive.and_then(|drive| Some((drive, drive.segment(extent)?))) else {
            return Reading::failed(ReadError::Gone);
        };
        let len = slot.whole_mut().len();
        let (sender, reading) = Reading::new();
        if len == 0 && extent.blocks() == 1 {
            // An empty page has no bytes on the drive.
            sender.send(Ok(slot)).ok();
            return reading;
        }
        if len != extent.stored_bytes() as usize {
            return Reading::failed(ReadError::Size);
        }
        if !drive.take_read() {
            return Reading::failed(ReadError::Busy);
        }
        let job = Box::new(ReadJob { slot, sender });
        // A job that is not taken is dropped, and the reading ends with `Gone`.
        drive.post(Message::Read(segment, extent, job)).ok();
        reading
    }

    /// Records that pages were deleted, so that none of them comes back after a restart, wherever copies of it are:
    /// also those that were appended before this call and are not written yet.
    ///
    /// The owner must have forgotten the pages before. A page with the same key that is appended after this call
    /// is another page. If the result is [`Dropped::Full`], it is recorded as soon as there is room.
    pub fn delete(&self, pages: &[Gone]) -> Recorded {
        self.mark(pages.iter().map(|page| (Some(page.digest), page.space)).collect())
    }

    /// Records that all pages of a space were deleted; as [`Log::delete`].
    pub fn clear_space(&self, space: SpaceId) -> Recorded {
        self.mark(vec![(None, space)])
    }

    fn mark(&self, marks: Vec<(Option<u64>, SpaceId)>) -> Recorded {
        let (vote, recorded) = Vote::new(self.drives.len() * marks.len());
        for drive in &self.drives {
            let mut messages = Vec::with_capacity(marks.len());
            for &(digest, space) in &marks {
                if drive.is_failed() {
                    // The other drives have noted that this one's pages are not to come back.
                    if drive.is_unrecorded() { vote.object(Dropped::DriveFailed) } else { vote.agree() }
                } else if drive.take_mark() {
                    let vote = Some(Arc::clone(&vote));
                    messages.push(Message::Item(Item::Mark(Mark { digest, space, vote })));
                } else {
                    vote.object(Dropped::Backlog);
                }
            }
            if !messages.is_empty() {
                drive.post_all(messages);
            }
        }
        recorded
    }

    /// The owner no longer points there. Nothing is recorded: the page may be found again after a restart.
    pub fn release(&self, extent: Extent) {
        let drive = self.drives.get(usize::from(extent.drive()));
        if let Some(segment) = drive.and_then(|drive| drive.segment(extent)) {
            segment.release(extent);
        }
    }

    /// The log as a whole.
    #[must_use]
    pub fn status(&self) -> LogStatus {
        LogStatus {
            io: self.io,
            io_reason: self.io_reason.clone(),
            sync: self.sync,
            drives: self.drives.iter().map(|drive| drive.status()).collect(),
        }
    }

    /// Every segment, oldest first for each drive.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentStatus> {
        let mut all = Vec::new();
        for drive in &self.drives {
            all.extend(drive.segments.read().values().map(|segment| SegmentStatus {
                drive: segment.drive,
                sequence: segment.identity.sequence,
                state: segment.state(),
                file_bytes: segment.file_bytes.load(Ordering::Relaxed),
                pages: segment.pages.load(Ordering::Relaxed),
                live_pages: segment.live_pages.load(Ordering::Relaxed),
                live_bytes: segment.live_bytes.load(Ordering::Relaxed),
            }));
        }
        all
    }

    /// Goes through the pages of a segment and verifies each, at the caller's pace and on the caller's thread.
    ///
    /// `None` if there is no such segment, or its records cannot be read.
    #[must_use]
    pub fn walk(&self, drive: u8, sequence: u64) -> Option<Walk> {
        let drive = self.drives.get(usize::from(drive))?;
        let segment = drive.segments.read().get(&sequence).map(Arc::clone)?;
        Walk::new(segment)
    }

    /// Writes what was queued before, seals the segments and ends the threads. Whatever is asked afterwards fails.
    pub fn close(&self) {
        for drive in &self.drives {
            drive.closing.store(true, Ordering::SeqCst);
            // A drive that takes nothing any more is closed already.
            drive.post(Message::Close).ok();
            drive.wake_keeper();
        }
        let (writers, keepers): (Vec<_>, Vec<_>) = self.threads.lock().drain(..).unzip();
        writers.into_iter().for_each(join);
        #[cfg(any(test, feature = "sim"))]
        self.drives.iter().filter(|drive| drive.is_by_hand()).for_each(|drive| drive.close_by_hand());
        // All seals have been asked for.
        self.drives.iter().for_each(|drive| drive.end_keeper());
        keepers.into_iter().for_each(join);
        for drive in self.drives.iter().filter(|drive| !drive.is_failed()) {
            keeper::remove_spares(drive);
        }
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the drive log panicked");
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.drives.iter().for_each(|drive| drive.stop());
        #[cfg(any(test, feature = "sim"))]
        self.drives.iter().for_each(|drive| drive.drop_hands());
        for (writer, keeper) in self.threads.get_mut().drain(..) {
            join(writer);
            join(keeper);
        }
    }
}
