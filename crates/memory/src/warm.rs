//! Makes memory resident shortly before it is used, off the request path.
//!
//! The first write to memory costs a page fault, in which the kernel zeroes the page and, in a virtual machine, the host
//! finds memory for it: a put into fresh memory is up to fifty times slower than one into memory that was used before.
//! Whenever a step of memory is begun, a thread of the arena makes as much resident in the chunks that come next, so that what
//! is resident and was never used stays the same. The window is small, so that an arena that is hardly used stays small;
//! whoever wants no faults at all prefaults.
//!
//! Deliberately absent: any wait for the thread. It is an aid; who comes before it pays for the fault.

use crate::map::Mapping;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Instant;

/// Chunks that are resident ahead of use: at most 256 MiB, and a sixteenth of a large arena. What nobody used yet of chunks
/// that have a class counts.
pub(crate) const AHEAD: usize = 4;
/// But of chunks that have none at least so many, however many classes there are.
const AHEAD_MIN: u64 = 2;
/// Bytes in one go: short enough that the thread ends soon after its arena.
const STEP: usize = 4 << 20;
/// After each step in memory that is in use, the thread rests for so many times as long as the step took: the kernel copies
/// such memory to make huge pages of it, and that must not be felt by those who use it.
const REST: u32 = 24;

/// What will be used next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Upcoming {
    /// Chunks, in this order; fewer at the end of the arena.
    chunks: [Option<u32>; AHEAD],
    /// How much of them all, in bytes.
    bytes: u64,
}

impl Upcoming {
    /// These chunks, where those that have a class hold so many bytes that nobody ever used.
    pub(crate) fn new(chunks: [Option<u32>; AHEAD], chunk_bytes: u32, untouched: u64) -> Self {
        let chunk = u64::from(chunk_bytes);
        let bytes = (AHEAD as u64 * chunk).saturating_sub(untouched).max(AHEAD_MIN * chunk);
        Self { chunks, bytes }
    }

    /// Each of the chunks, and how much of it.
    fn parts(self, chunk_bytes: usize) -> impl Iterator<Item = (u32, usize)> {
        let mut left = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        self.chunks.into_iter().flatten().map(move |chunk| {
            let part = left.next_multiple_of(STEP).min(chunk_bytes);
            left = left.saturating_sub(chunk_bytes);
            (chunk, part)
        })
    }

    fn has(&self, chunk: u32) -> bool {
        self.chunks.contains(&Some(chunk))
    }
}

/// Steps in which so much of a chunk is made resident.
pub(crate) fn steps(bytes: u32) -> u32 {
    bytes.div_ceil(STEP as u32)
}

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
    // How much of each chunk is done.
    let mut done = HashMap::new();
    // Chunks that were in use before their turn came. Only huge pages are worth going back for.
    let mut missed = Vec::new();
    let mut upcoming = messages.recv().ok();
    while let Some(current) = upcoming.take() {
        for (chunk, most) in current.parts(chunk_bytes) {
            let start = done.entry(chunk).or_default();
            let Some(newer) = warm_part(data, chunk as usize * chunk_bytes, start, most, messages) else {
                return;
            };
            upcoming = newer;
            if upcoming.is_some() {
                break;
            }
        }
        if let Some(newer) = upcoming {
            let parts = current.parts(chunk_bytes).map(|(chunk, _)| chunk);
            missed.extend(parts.filter(|&chunk| !newer.has(chunk) && done.get(&chunk) != Some(&chunk_bytes)));
        }
        while upcoming.is_none()
            && data.collapses()
            && let Some(chunk) = missed.pop()
        {
            if done.get(&chunk) == Some(&chunk_bytes) {
                continue;
            }
            let Some(newer) = go_back(data, chunk, chunk_bytes, messages) else { return };
            // Interrupted, it begins again later; what it has done already takes no time then.
            match newer {
                Some(_) => missed.push(chunk),
                None => drop(done.insert(chunk, chunk_bytes)),
            }
            upcoming = newer;
        }
        upcoming = upcoming.or_else(|| messages.recv().ok());
    }
}

/// Makes huge pages of a chunk that is in use, with rests. The result is that of [`warm_part`].
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

/// Makes a chunk that begins at `start` resident from `done` to `most`. `None` if there is no more to do: the kernel cannot, or
/// the arena is gone. Else what is next by now, if that has changed meanwhile; that ends it after the step.
fn warm_part(
    data: &Mapping,
    start: usize,
    done: &mut usize,
    most: usize,
    messages: &Receiver<Upcoming>,
) -> Option<Option<Upcoming>> {
    while *done < most {
        let step = STEP.min(most - *done);
        data.warm(start + *done, step).ok()?;
        *done += step;
        match messages.try_recv() {
            Ok(newer) => return Some(Some(newer)),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return None,
        }
    }
    Some(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::HugePages;

    #[test]
    fn upcoming_chunks_become_resident_and_the_thread_ends_with_its_owner() {
        const MIB8: u32 = 8 << 20;
        const CHUNK: usize = MIB8 as usize;
        let data = Arc::new(Mapping::anonymous(8 * CHUNK, HugePages::Off).unwrap());
        let resident = |chunk: usize| data.resident(chunk * CHUNK, CHUNK);
        // It says nothing when it is done; its effect is what can be waited for.
        let wait = |chunk, bytes| {
            while resident(chunk) < bytes {
                thread::yield_now();
            }
        };
        let warmer = Warmer::start(Arc::clone(&data), u32::try_from(CHUNK).unwrap()).unwrap();
        warmer.ahead(Upcoming::new([Some(2), Some(0), None, None], MIB8, 0));
        wait(2, CHUNK);
        wait(0, CHUNK);
        assert_eq!((resident(1), resident(3)), (0, 0));
        // What others hold and never used is as good, but two chunks there are to be.
        let next = [Some(3), Some(4), Some(5), Some(6)];
        warmer.ahead(Upcoming::new(next, MIB8, u64::from(MIB8) + 1));
        wait(5, CHUNK);
        assert_eq!((resident(4), resident(6)), (CHUNK, 0));
        warmer.ahead(Upcoming::new(next, MIB8, u64::from(MIB8) - 1));
        wait(6, STEP);
        assert_eq!(resident(6), STEP);
        let at_least = Upcoming::new([Some(0), Some(2), Some(1), None], MIB8, u64::MAX);
        assert!(at_least.parts(CHUNK).eq([(0, CHUNK), (2, CHUNK), (1, 0)]));
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
        let news = Upcoming::new([Some(3), None, None, None], 2 * STEP as u32, 0);
        sender.send(news).unwrap();
        assert_eq!(go_back(&data, 0, CHUNK, &messages), Some(Some(news)));
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
