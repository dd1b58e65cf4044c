//! A log without threads, for simulations in one thread: whoever has it calls [`Log::turn`] again and again.
//!
//! A turn does what a drive's two threads would have done by now. The keeper may wait for the writer, and then the writer
//! gets its turns from within the keeper's; nothing else ever waits.
//!
//! Invariant: the writer is taken out of its place while the keeper runs nothing, or put back before the keeper runs, so
//! that whoever needs it finds it there.

use crate::drive::Drive;
use crate::io::here::Here;
use crate::writer::Writer;
use crate::{Log, keeper};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Turns between two looks of the keeper after the drive.
const LOOK_EVERY: u64 = 100;

/// The writer of a drive, unless a thread has it.
#[derive(Default)]
pub(crate) struct Hands {
    writer: Mutex<Option<Box<Writer<Here>>>>,
    turns: AtomicU64,
}

/// Makes a drive one that is moved on by hand.
pub(crate) fn start(drive: &Arc<Drive>, depth: usize) {
    *drive.hands.writer.lock() = Some(Box::new(Writer::new(Arc::clone(drive), Here::new(depth))));
    (0..keeper::SPARES).for_each(|_| drive.want_spare());
}

impl Drive {
    pub(crate) fn is_by_hand(&self) -> bool {
        self.hands.writer.lock().is_some()
    }

    /// The writer's turn. `false` if there is no writer any more.
    pub(crate) fn write_turn(&self) -> bool {
        let mut place = self.hands.writer.lock();
        let Some(writer) = place.as_mut() else { return false };
        if writer.turn() {
            writer.end();
            // Only now: it holds the drive.
            let over = place.take();
            drop(place);
            drop(over);
            return false;
        }
        true
    }

    /// Forgets the writer, as the end of the process would.
    pub(crate) fn drop_hands(&self) {
        let writer = self.hands.writer.lock().take();
        drop(writer);
    }

    /// Does what is to be done, until the writer has ended and all it asked for is done.
    pub(crate) fn close_by_hand(&self) {
        while self.write_turn() {
            keeper::turn(self, false);
        }
        self.end_keeper();
        while keeper::turn(self, false) {}
    }
}

impl Log {
    /// Does what the threads of every drive would have done by now. Only for a log that is moved on by hand.
    pub fn turn(&self) {
        for drive in &self.drives {
            if drive.write_turn() {
                let turn = drive.hands.turns.fetch_add(1, Ordering::Relaxed);
                keeper::turn(drive, turn % LOOK_EVERY == LOOK_EVERY - 1);
            }
        }
    }
}
