//! One drive, as its threads and the callers of the log share it.

use crate::batch::{Item, PageJob};
use crate::disk::Disk;
use crate::extent::segment_name;
use crate::faults::Faults;
use crate::io::ReadJob;
use crate::io::bell::Bell;
use crate::keeper::Tasks;
use crate::members::Members;
use crate::segment::Segment;
use crate::{DriveState, DriveStatus, Dropped, DroppedCounts, Extent, Owner, Ticket};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The most reads that wait for one drive.
const READS_MAX: usize = 16_384;
/// The most deletions that wait for one drive.
const MARKS_MAX: usize = 1 << 20;

/// What a drive's thread is told.
pub(crate) enum Message {
    /// To be written, in order.
    Item(Item),
    /// A page of a segment that is given back, ahead of all others.
    Hot(Box<PageJob>),
    /// To be read.
    Read(Arc<Segment>, Extent, Box<ReadJob>),
    /// A segment is ready to become active.
    Spare(Arc<Segment>),
    /// There is no room for another segment.
    NoRoom,
    /// All that was asked to be written again has been answered: deletions need not be remembered any more.
    ReclaimOver,
    /// Write what waits, let go of the active segment, and end.
    Close,
}

/// Counters since the log was opened.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) read_bytes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) read_errors: AtomicU64,
    pub(crate) dropped_full: AtomicU64,
    pub(crate) dropped_failed: AtomicU64,
    pub(crate) dropped_backlog: AtomicU64,
    pub(crate) reclaimed: AtomicU64,
    pub(crate) reinserted: AtomicU64,
}

/// Sizes and ways of one drive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) number: u8,
    pub(crate) quota_bytes: u64,
    pub(crate) segment_blocks: u32,
    pub(crate) backlog_bytes: u64,
    pub(crate) sync: bool,
}

/// One drive.
pub(crate) struct Drive {
    pub(crate) shape: Shape,
    pub(crate) disk: Disk,
    pub(crate) id: [u8; 16],
    /// By sequence number, so the first one is the oldest.
    pub(crate) segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    pub(crate) next_segment: AtomicU64,
    /// Of records, over all drives.
    pub(crate) next_sequence: Arc<AtomicU64>,
    inbox: Mutex<Inbox>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) backlog: Arc<AtomicU64>,
    pub(crate) marks_waiting: AtomicUsize,
    pub(crate) reads_waiting: AtomicUsize,
    pub(crate) counts: Counts,
    state: Mutex<DriveState>,
    failed: AtomicBool,
    /// No drive could note that this one was taken out, so deletions are not safe over a restart.
    unrecorded: AtomicBool,
    pub(crate) owner: OnceLock<Arc<dyn Owner>>,
    pub(crate) members: Arc<Members>,
    /// Deletions are to be remembered, because pages may be on their way to be written again.
    pub(crate) reclaiming: AtomicBool,
    /// No owner will be named any more.
    pub(crate) closing: AtomicBool,
    /// The threads end without sealing anything.
    pub(crate) stop: AtomicBool,
    pub(crate) tasks: Mutex<Tasks>,
    pub(crate) work: Condvar,
    /// What a thread would do, in a log without threads.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) hands: crate::hands::Hands,
}

#[derive(Default)]
struct Inbox {
    messages: VecDeque<Message>,
    /// Callers are not served any more; the keeper still is, because what was queued may need a segment.
    closing: bool,
    /// Nobody reads messages any more.
    closed: bool,
}

impl Inbox {
    fn refuses(&self, message: &Message) -> bool {
        let of_caller = matches!(message, Message::Item(_) | Message::Read(..) | Message::Close);
        self.closed || (self.closing && of_caller)
    }
}

/// Bytes that wait to be written, until this is dropped.
pub(crate) struct Load {
    backlog: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.backlog.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drive {
    pub(crate) fn new(
        shape: Shape,
        disk: Disk,
        id: [u8; 16],
        members: Arc<Members>,
        next_sequence: Arc<AtomicU64>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            shape,
            disk,
            id,
            segments: RwLock::default(),
            next_segment: AtomicU64::new(1),
            next_sequence,
            inbox: Mutex::default(),
            bell: Arc::new(Bell::new()?),
            backlog: Arc::default(),
            marks_waiting: AtomicUsize::new(0),
            reads_waiting: AtomicUsize::new(0),
            counts: Counts::default(),
            state: Mutex::new(DriveState::Ok),
            failed: AtomicBool::new(false),
            unrecorded: AtomicBool::new(false),
            owner: OnceLock::new(),
            members,
            reclaiming: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            tasks: Mutex::default(),
            work: Condvar::new(),
            #[cfg(any(test, feature = "sim"))]
            hands: crate::hands::Hands::default(),
        })
    }

    /// A drive that could not be opened.
    pub(crate) fn failed(
        shape: Shape,
        path: &Path,
        members: Arc<Members>,
        reason: String,
    ) -> std::io::Result<Self> {
        let drive = Self::new(shape, Disk::new(path, Faults::none()), [0; 16], members, Arc::default())?;
        *drive.state.lock() = DriveState::Failed(reason);
        drive.failed.store(true, Ordering::SeqCst);
        drive.inbox.lock().closed = true;
        Ok(drive)
    }

    /// Tells the drive's thread something. Gives it back if the thread takes it no more.
    pub(crate) fn post(&self, message: Message) -> Result<(), Message> {
        let mut inbox = self.inbox.lock();
        if inbox.refuses(&message) {
            return Err(message);
        }
        inbox.closing |= matches!(message, Message::Close);
        inbox.messages.push_back(message);
        drop(inbox);
        self.bell.ring();
        Ok(())
    }

    /// Tells the drive's thread several things at once. They are dropped if it takes them no more.
    pub(crate) fn post_all(&self, messages: Vec<Message>) {
        let mut inbox = self.inbox.lock();
        let (refused, taken): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| inbox.refuses(message));
        inbox.messages.extend(taken);
        drop(inbox);
        drop(refused);
        self.bell.ring();
    }

    /// Takes all messages.
    pub(crate) fn take_messages(&self, into: &mut VecDeque<Message>) {
        into.append(&mut self.inbox.lock().messages);
    }

    /// Takes no messages any more; drops those that nobody will read.
    pub(crate) fn close_inbox(&self) {
        let mut inbox = self.inbox.lock();
        inbox.closed = true;
        let rest = std::mem::take(&mut inbox.messages);
        drop(inbox);
        drop(rest);
    }

    /// Waits for the results of pages that this drive was given.
    pub(crate) fn results(&self, ticket: Ticket) -> Vec<Result<Extent, Dropped>> {
        #[cfg(any(test, feature = "sim"))]
        if self.is_by_hand() {
            let mut ticket = std::pin::pin!(ticket);
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            loop {
                if let std::task::Poll::Ready(results) = ticket.as_mut().poll(&mut context) {
                    return results;
                }
                self.write_turn();
            }
        }
        ticket.wait()
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    pub(crate) fn is_full(&self) -> bool {
        *self.state.lock() == DriveState::Full
    }

    /// Notes that there is, or again is no, want of room.
    pub(crate) fn set_full(&self, full: bool) {
        let mut state = self.state.lock();
        match (&*state, full) {
            (DriveState::Ok, true) => {
                *state = DriveState::Full;
                tracing::warn!(drive = %self.disk.dir.display(), "no room on the drive, pages are dropped");
            }
            (DriveState::Full, false) => {
                *state = DriveState::Ok;
                tracing::info!(drive = %self.disk.dir.display(), "room on the drive again");
            }
            _ => {}
        }
    }

    /// Takes the drive out, once: its pages are gone. The other drives note it, so that pages which are deleted meanwhile
    /// do not come back with it.
    pub(crate) fn fail(&self, reason: &str) {
        {
            let mut state = self.state.lock();
            if matches!(*state, DriveState::Failed(_)) {
                return;
            }
            *state = DriveState::Failed(reason.to_owned());
        }
        tracing::error!(drive = %self.disk.dir.display(), reason, "drive taken out");
        let recorded = self.members.retire(self.id, self.shape.number);
        self.unrecorded.store(!recorded, Ordering::SeqCst);
        self.segments.write().clear();
        self.failed.store(true, Ordering::SeqCst);
        if let Some(owner) = self.owner.get() {
            owner.drive_lost(self.shape.number);
        }
        self.bell.ring();
        self.work.notify_all();
    }

    /// Whether pages on this drive could come back although they were deleted after it failed.
    pub(crate) fn is_unrecorded(&self) -> bool {
        self.unrecorded.load(Ordering::SeqCst)
    }

    /// The segment that an extent names.
    pub(crate) fn segment(&self, extent: Extent) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let (highest, _) = segments.last_key_value()?;
        let behind = segment_name(*highest).wrapping_sub(extent.segment()) & segment_name(u64::MAX);
        let segment = segments.get(&highest.checked_sub(u64::from(behind))?)?;
        let end = extent.block() + extent.blocks();
        (end <= segment.identity.blocks).then(|| Arc::clone(segment))
    }

    /// Takes room in the backlog for a page of so many bytes.
    pub(crate) fn take_load(&self, bytes: u64) -> Option<Load> {
        let most = self.shape.backlog_bytes;
        let more = |now: u64| (now == 0 || now + bytes <= most).then_some(now + bytes);
        self.backlog.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Load { backlog: Arc::clone(&self.backlog), bytes })
    }

    /// A load that is always granted: for pages that are written again.
    pub(crate) fn force_load(&self, bytes: u64) -> Load {
        self.backlog.fetch_add(bytes, Ordering::Relaxed);
        Load { backlog: Arc::clone(&self.backlog), bytes }
    }

    /// Takes a place for a read.
    pub(crate) fn take_read(&self) -> bool {
        take(&self.reads_waiting, READS_MAX)
    }

    /// Takes a place for a deletion.
    pub(crate) fn take_mark(&self) -> bool {
        take(&self.marks_waiting, MARKS_MAX)
    }

    pub(crate) fn count_dropped(&self, reason: Dropped) {
        let counter = match reason {
            Dropped::Full => &self.counts.dropped_full,
            Dropped::DriveFailed => &self.counts.dropped_failed,
            Dropped::Backlog => &self.counts.dropped_backlog,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that segments take.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.segments.read().values().map(|segment| segment.file_bytes.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn status(&self) -> DriveStatus {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let segments = self.segments.read();
        let sum = |part: fn(&Segment) -> &AtomicU64| segments.values().map(|s| of(part(s))).sum();
        DriveStatus {
            path: self.disk.dir.clone(),
            quota_bytes: self.shape.quota_bytes,
            used_bytes: sum(|segment| &segment.file_bytes),
            live_bytes: sum(|segment| &segment.live_bytes),
            live_pages: sum(|segment| &segment.live_pages),
            segments: segments.len() as u64,
            state: self.state.lock().clone(),
            direct: self.disk.is_direct(),
            reads: of(&self.counts.reads),
            writes: of(&self.counts.writes),
            read_bytes: of(&self.counts.read_bytes),
            written_bytes: of(&self.counts.written_bytes),
            backlog_bytes: of(&self.backlog),
            errors: of(&self.counts.errors),
            dropped: DroppedCounts {
                full: of(&self.counts.dropped_full),
                drive_failed: of(&self.counts.dropped_failed),
                backlog: of(&self.counts.dropped_backlog),
            },
            reclaimed_segments: of(&self.counts.reclaimed),
            reinserted_pages: of(&self.counts.reinserted),
        }
    }
}

fn take(places: &AtomicUsize, most: usize) -> bool {
    places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < most).then_some(now + 1)).is_ok()
}
