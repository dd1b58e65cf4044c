//! A drive's second thread: makes segments ahead of need, seals full ones, and gives the oldest back.
//!
//! It may wait for the drive and for the owner as long as it takes; appends and reads go on meanwhile.

use crate::SegmentState;
use crate::disk::segment_file;
use crate::drive::{Drive, Message};
use crate::extent::BLOCK_BYTES;
use crate::format::Identity;
use crate::reclaim;
use crate::segment::Segment;
use crate::writer::is_no_room;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often the keeper looks after a drive without being asked: whether its directory is there, and whether a full
/// disk has room again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Segments that are made ahead. With two, there is one to go on with while the oldest is given back for the other.
pub(crate) const SPARES: usize = 2;

/// What the keeper is asked to do.
#[derive(Default)]
pub(crate) struct Tasks {
    seals: VecDeque<Arc<Segment>>,
    /// Spare segments that are to be made.
    spares: usize,
    /// A segment could not be made; the next attempt waits for a look, a seal, or the owner.
    rest: bool,
    /// End when all seals are done.
    end: bool,
}

enum Task {
    Seal(Arc<Segment>),
    Spare,
    Look,
    End,
}

/// Why there is no spare segment.
enum NoSpare {
    /// There is no room, also not after giving segments back.
    Room,
    /// A segment has to be sealed first, or the owner to be named; then there will be room.
    Later,
    /// The drive does not work.
    Failed(io::Error),
}

impl Drive {
    /// Asks for one more segment to go on with.
    pub(crate) fn want_spare(&self) {
        self.tasks.lock().spares += 1;
        self.work.notify_all();
    }

    /// Asks to seal a segment that has all its batches.
    pub(crate) fn ask_seal(&self, segment: Arc<Segment>) {
        self.tasks.lock().seals.push_back(segment);
        self.work.notify_all();
    }

    /// Makes the keeper look whether it is to stop, or whether the owner was named.
    pub(crate) fn wake_keeper(&self) {
        // With the lock, so that it cannot fall asleep between its look and this.
        let mut tasks = self.tasks.lock();
        tasks.rest = false;
        self.work.notify_all();
        drop(tasks);
    }

    /// Makes both threads end without sealing anything.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.bell.ring();
        self.wake_keeper();
    }

    /// Asks the keeper to end after what it was asked before.
    pub(crate) fn end_keeper(&self) {
        self.tasks.lock().end = true;
        self.work.notify_all();
    }
}

/// Removes segments that were made ahead and not used, when the log is closed.
pub(crate) fn remove_spares(drive: &Drive) {
    let is_spare = |segment: &Arc<Segment>| segment.state() == SegmentState::Spare;
    let mut segments = drive.segments.write();
    let spares: Vec<_> = segments.extract_if(.., |_, segment| is_spare(segment)).collect();
    drop(segments);
    for (sequence, _) in spares {
        // What stays is empty, and the next start removes it.
        drive.disk.remove(&segment_file(sequence)).ok();
    }
}

/// Runs until the log is closed or dropped.
pub(crate) fn run(drive: &Drive) {
    while carry_out(drive, next(drive)) {}
}

/// Does one thing. Whether there may be others.
fn carry_out(drive: &Drive, task: Task) -> bool {
    match task {
        Task::End => return false,
        Task::Seal(segment) => {
            seal(drive, &segment);
            drive.tasks.lock().rest = false;
        }
        Task::Spare => provide(drive),
        Task::Look => {
            look(drive);
            drive.tasks.lock().rest = false;
        }
    }
    true
}

/// Does all that is due, and if asked looks after the drive. Whether there may be more some other time.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn turn(drive: &Drive, look: bool) -> bool {
    if look && !carry_out(drive, Task::Look) {
        return false;
    }
    loop {
        let due = due(drive, &mut drive.tasks.lock());
        match due.map(|task| carry_out(drive, task)) {
            None => return true,
            Some(true) => {}
            Some(false) => return false,
        }
    }
}

fn next(drive: &Drive) -> Task {
    let mut tasks = drive.tasks.lock();
    loop {
        if let Some(task) = due(drive, &mut tasks) {
            return task;
        }
        if drive.work.wait_for(&mut tasks, LOOK_EVERY).timed_out() {
            return Task::Look;
        }
    }
}

/// What is to be done now, if anything is.
fn due(drive: &Drive, tasks: &mut Tasks) -> Option<Task> {
    if drive.stop.load(Ordering::SeqCst) {
        return Some(Task::End);
    }
    if let Some(segment) = tasks.seals.pop_front() {
        return Some(Task::Seal(segment));
    }
    if tasks.end {
        return Some(Task::End);
    }
    (tasks.spares > 0 && !tasks.rest && !drive.is_failed()).then_some(Task::Spare)
}

/// Makes a spare segment and hands it over.
fn provide(drive: &Drive) {
    let started = drive.owner.get().is_some();
    let missing = match make_spare(drive) {
        Ok(segment) => {
            drive.tasks.lock().spares -= 1;
            // If nobody listens any more, nobody needs it.
            drive.post(Message::Spare(segment)).ok();
            return;
        }
        Err(missing) => missing,
    };
    match missing {
        NoSpare::Later => {}
        NoSpare::Room => {
            drive.post(Message::NoRoom).ok();
        }
        NoSpare::Failed(reason) => {
            drive.counts.errors.fetch_add(1, Ordering::Relaxed);
            drive.fail(&format!("a segment could not be made: {reason}"));
        }
    }
    // The owner may have come meanwhile; then there is no reason to wait.
    drive.tasks.lock().rest = started || drive.owner.get().is_none();
}

fn make_spare(drive: &Drive) -> Result<Arc<Segment>, NoSpare> {
    let bytes = u64::from(drive.shape.segment_blocks) * u64::from(BLOCK_BYTES);
    // Somewhat less than the half of a segment that is kept for hot pages, because batches have headers.
    let mut allowance = bytes / 16 * 7 - u64::from(BLOCK_BYTES);
    while drive.used_bytes() + bytes > drive.shape.quota_bytes {
        if drive.owner.get().is_none() {
            let closing = drive.closing.load(Ordering::SeqCst);
            return Err(if closing { NoSpare::Room } else { NoSpare::Later });
        }
        give_back_oldest(drive, &mut allowance)?;
    }
    match create(drive, drive.shape.segment_blocks) {
        Err(reason) if is_no_room(&reason) => {
            drive.counts.errors.fetch_add(1, Ordering::Relaxed);
            // The file system is full before the quota is: give up the oldest pages for the newest.
            give_back_oldest(drive, &mut allowance)?;
            create(drive, drive.shape.segment_blocks)
                .map_err(|reason| if is_no_room(&reason) { NoSpare::Room } else { NoSpare::Failed(reason) })
        }
        made => made.map_err(NoSpare::Failed),
    }
}

/// Makes a new segment and adds it to the table.
pub(crate) fn create(drive: &Drive, blocks: u32) -> io::Result<Arc<Segment>> {
    let sequence = drive.next_segment.fetch_add(1, Ordering::Relaxed);
    let mut salt = [0; 8];
    getrandom::fill(&mut salt).map_err(io::Error::other)?;
    let identity = Identity { sequence, salt: u64::from_le_bytes(salt), drive: drive.id, blocks };
    let segment = Arc::new(Segment::create(&drive.disk, drive.shape.number, identity)?);
    drive.segments.write().insert(sequence, Arc::clone(&segment));
    Ok(segment)
}

/// Gives the oldest segment back, with at most `allowance` bytes of hot pages written again.
fn give_back_oldest(drive: &Drive, allowance: &mut u64) -> Result<(), NoSpare> {
    let oldest = drive.segments.read().values().next().map(Arc::clone);
    let (Some(oldest), Some(_)) = (oldest, drive.owner.get()) else { return Err(NoSpare::Room) };
    match oldest.state() {
        SegmentState::Sealed => reclaim::give_back(drive, &oldest, allowance).map_err(NoSpare::Failed),
        SegmentState::Sealing => Err(NoSpare::Later),
        SegmentState::Active | SegmentState::Spare => Err(NoSpare::Room),
    }
}

fn seal(drive: &Drive, segment: &Arc<Segment>) {
    if drive.is_failed() {
        return;
    }
    let empty = segment.book.lock().is_empty();
    let done = if empty {
        // All its batches failed.
        drive.segments.write().remove(&segment.identity.sequence);
        drive.disk.remove(&segment_file(segment.identity.sequence))
    } else {
        segment.seal(segment.end_block.load(Ordering::Relaxed))
    };
    let Err(reason) = done else { return };
    drive.counts.errors.fetch_add(1, Ordering::Relaxed);
    if is_no_room(&reason) {
        // It works without its footer: the records are in memory, and a restart scans it.
        segment.set_state(SegmentState::Sealed);
    } else {
        drive.fail(&format!("a segment could not be sealed: {reason}"));
    }
}

/// Takes the drive out if its directory, or the file that names it, is gone.
fn look(drive: &Drive) {
    if drive.is_failed() {
        return;
    }
    if let Err(reason) = drive.disk.is_there() {
        drive.fail(&format!("the directory is gone: {reason}"));
    }
}
