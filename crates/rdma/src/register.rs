//! Registering much memory: in chunks, several at a time.

use crate::error::RdmaError;
use crate::nic::{Access, Nic, Region};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Called after each chunk, from the thread that registered it, with the bytes done so far and all bytes.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// The most threads that register at a time: the kernel serialises a part of it.
const THREADS_MAX: usize = 8;

/// The soft limit on locked memory of this process, in bytes; `None` is none.
#[must_use]
pub fn memlock_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Memlock).current
}

/// Registers memory in chunks of `chunk` bytes, the last one shorter, several at a time.
///
/// Chunk `i` starts `i * chunk` bytes after `start`; the regions come in this order. One region of many GB would take
/// as long with one thread, and some devices have a limit on the length of a region.
///
/// # Safety
///
/// As [`Nic::register`], for the whole memory and every region.
///
/// # Errors
///
/// The first that a chunk met. What was registered until then is deregistered.
///
/// # Panics
///
/// When `chunk` is 0.
#[allow(unsafe_code, reason = "passes the caller's promise on, chunk by chunk")]
pub unsafe fn register_all(
    nic: &dyn Nic,
    start: NonNull<u8>,
    len: usize,
    access: Access,
    chunk: usize,
    progress: Progress<'_>,
) -> Result<Vec<Box<dyn Region>>, RdmaError> {
    assert!(chunk > 0, "a chunk has bytes");
    let chunks = len.div_ceil(chunk);
    let base = Base(start);
    let next = AtomicUsize::new(0);
    let books = Mutex::new(Books { regions: Vec::new(), done: 0, error: None });
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= chunks || lock(&books).error.is_some() {
                return;
            }
            let offset = index * chunk;
            let bytes = chunk.min(len - offset);
            // SAFETY: `offset` is below `len`, and the caller's memory has `len` bytes.
            let at = unsafe { base.get().add(offset) };
            // SAFETY: the chunk is inside the memory that the caller promised to keep.
            let result = unsafe { nic.register(at, bytes, access) };
            let done = lock(&books).enter(index, bytes, result);
            if let Some(done) = done {
                progress(done, len as u64);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(chunks);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut books = books.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(error) = books.error {
        return Err(error);
    }
    books.regions.sort_by_key(|(index, _)| *index);
    Ok(books.regions.into_iter().map(|(_, region)| region).collect())
}

/// The start of the memory, for several threads.
#[derive(Clone, Copy)]
struct Base(NonNull<u8>);

// SAFETY: the address is only computed with and handed to `Nic::register`; the memory is not touched through it.
#[allow(unsafe_code, reason = "an address is not bound to a thread")]
unsafe impl Sync for Base {}

impl Base {
    fn get(&self) -> NonNull<u8> {
        self.0
    }
}

struct Books {
    regions: Vec<(usize, Box<dyn Region>)>,
    done: u64,
    error: Option<RdmaError>,
}

impl Books {
    /// Enters one chunk's result. The bytes done so far, if it was a good one.
    fn enter(
        &mut self,
        index: usize,
        bytes: usize,
        result: Result<Box<dyn Region>, RdmaError>,
    ) -> Option<u64> {
        match result {
            Ok(region) => {
                self.regions.push((index, region));
                self.done += bytes as u64;
                Some(self.done)
            }
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }
}

fn lock(books: &Mutex<Books>) -> std::sync::MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
