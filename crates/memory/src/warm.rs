//! Makes memory resident shortly before it is used, off the request path.
//!
//! The first write to memory costs a page fault, in which the kernel zeroes the page and, in a virtual machine, the host
//! finds memory for it: a put into fresh memory is up to fifty times slower than one into memory that was used before.
//! Whenever a chunk is opened, a thread of the arena makes the chunks resident that come next. The window is small, so
//! that an arena that is hardly used stays small; whoever wants no faults at all prefaults.
//!
//! Deliberately absent: any wait for the thread. It is an aid; who comes before it pays for the fault.

use crate::map::Mapping;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Instant;

/// Chunks that are made resident ahead of use: at most 256 MiB, and a sixteenth of a large arena.
pub(crate) const AHEAD: usize = 4;
/// Bytes in one go: short enough that the thread ends soon after its arena.
const STEP: usize = 4 << 20;
/// After each step in memory that is in use, the thread rests for so many times as long as the step took: the kernel copies
/// such memory to make huge pages of it, and that must not be felt by those who use it.
const REST: u32 = 24;

/// The chunks that will be used next, in this order; fewer at the end of the arena.
pub(crate) type Upcoming = [Option<u32>; AHEAD];

/// The way to tell the thread which chunks come next. The thread ends when this is dropped.
pub(crate) struct Warmer {
    upcoming: SyncSender<Upcoming>,
}

impl Warmer {
    /// Starts the thread. `None` if the system has none to give; the arena works without.
    pub(crate) fn start(data: Arc<Mapping>, chunk_bytes: u32) -> Option<Self> {
        let (upcoming, chunks) = sync_channel(1);
        let thread = thread::Builder::new().name("memkv-warm".to_owned());
        thread.spawn(move || run(&data, chunk_bytes as usize, &chunks)).ok()?;
        Some(Self { upcoming })
    }

    /// Tells which chunks come next. Never waits: if the thread is behind, it hears it the next time.
    pub(crate) fn ahead(&self, upcoming: Upcoming) {
        // An error says that the last message is still unread, or that the kernel cannot do it and the thread is gone.
        let _behind = self.upcoming.try_send(upcoming);
    }
}

fn run(data: &Mapping, chunk_bytes: usize, messages: &Receiver<Upcoming>) {
    let mut warm = HashSet::new();
    // Chunks that were in use before their turn came. Only huge pages are worth going back for.
    let mut missed = Vec::new();
    let mut upcoming = messages.recv().ok();
    while let Some(chunks) = upcoming.take() {
        for chunk in chunks.into_iter().flatten() {
            if upcoming.is_some() {
                missed.push(chunk);
            } else if warm.insert(chunk) {
                let Some(newer) = warm_chunk(data, chunk, chunk_bytes, messages) else { return };
                upcoming = newer;
            }
        }
        while upcoming.is_none()
            && data.collapses()
            && let Some(chunk) = missed.pop()
        {
            if warm.contains(&chunk) {
                continue;
            }
            let Some(newer) = go_back(data, chunk, chunk_bytes, messages) else { return };
            // Interrupted, it begins again later; what it has done already takes no time then.
            match newer {
                Some(_) => missed.push(chunk),
                None => drop(warm.insert(chunk)),
            }
            upcoming = newer;
        }
        upcoming = upcoming.or_else(|| messages.recv().ok());
    }
}

/// Makes huge pages of a chunk that is in use, with rests. The result is that of [`warm_chunk`]; what is next by now ends it
/// at once.
fn go_back(
    data: &Mapping,
    chunk: u32,
    chunk_bytes: usize,
    messages: &Receiver<Upcoming>,
) -> Option<Option<Upcoming>> {
    let start = chunk as usize * chunk_bytes;
    for at in (start..start + chunk_bytes).step_by(STEP) {
        let begun = Instant::now();
        data.warm(at, STEP.min(start + chunk_bytes - at)).ok()?;
        match messages.recv_timeout(begun.elapsed() * REST) {
            Ok(newer) => return Some(Some(newer)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    Some(None)
}

/// Makes a chunk resident. `None` if there is no more to do: the kernel cannot, or the arena is gone. Else what is next by
/// now, if that has changed meanwhile.
fn warm_chunk(
    data: &Mapping,
    chunk: u32,
    chunk_bytes: usize,
    messages: &Receiver<Upcoming>,
) -> Option<Option<Upcoming>> {
    let (start, mut upcoming) = (chunk as usize * chunk_bytes, None);
    for at in (start..start + chunk_bytes).step_by(STEP) {
        data.warm(at, STEP.min(start + chunk_bytes - at)).ok()?;
        match messages.try_recv() {
            Ok(newer) => upcoming = Some(newer),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return None,
        }
    }
    Some(upcoming)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::HugePages;

    #[test]
    fn upcoming_chunks_become_resident_and_the_thread_ends_with_its_owner() {
        const CHUNK: usize = 8 << 20;
        let data = Arc::new(Mapping::anonymous(4 * CHUNK, HugePages::Off).unwrap());
        let warmer = Warmer::start(Arc::clone(&data), u32::try_from(CHUNK).unwrap()).unwrap();
        warmer.ahead([Some(2), Some(0), None, None]);
        // It says nothing when it is done; its effect is what can be waited for.
        while data.resident(2 * CHUNK, CHUNK) < CHUNK || data.resident(0, CHUNK) < CHUNK {
            thread::yield_now();
        }
        assert_eq!((data.resident(CHUNK, CHUNK), data.resident(3 * CHUNK, CHUNK)), (0, 0));
        drop(warmer);
        while Arc::strong_count(&data) > 1 {
            thread::yield_now();
        }
    }

    #[test]
    fn going_back_ends_for_news_and_with_its_owner_and_changes_nothing() {
        const CHUNK: usize = 2 * STEP;
        let data = Mapping::anonymous(CHUNK, HugePages::Off).unwrap();
        // SAFETY: the mapping has these bytes and nobody else uses it.
        unsafe { data.start().write_bytes(7, STEP) };
        let (sender, messages) = sync_channel(1);
        sender.send([Some(3), None, None, None]).unwrap();
        assert_eq!(go_back(&data, 0, CHUNK, &messages), Some(Some([Some(3), None, None, None])));
        assert_eq!(data.resident(STEP, STEP), 0, "the news came first");
        assert_eq!(go_back(&data, 0, CHUNK, &messages), Some(None));
        assert_eq!(data.resident(0, CHUNK), CHUNK);
        drop(sender);
        assert_eq!(go_back(&data, 0, CHUNK, &messages), None);
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(data.start().as_ptr(), CHUNK) };
        assert!(bytes[..STEP].iter().all(|&byte| byte == 7) && bytes[STEP..].iter().all(|&byte| byte == 0));
    }
}
