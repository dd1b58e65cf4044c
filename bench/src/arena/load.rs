//! Threads that put, read and evict in an engine of this process.

use anyhow::Context as _;
use memkv_core::{Key, PageHasher, PageMeta, SpaceDescription};
use memkv_storage::{Engine, EngineStatus, HashedKey, PagePin, Refusal, Space};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Pages that one writer or reader handles before it looks up.
const BATCH: u64 = 16;
/// As in the server: how long the evictor waits for pressure, and rests when it could free nothing.
const EVICTOR_PAUSE: Duration = Duration::from_millis(200);
const EVICTOR_REST: Duration = Duration::from_millis(10);

/// An engine under load, with its evictor. Everything ends when it is dropped.
pub(super) struct Load {
    shared: Arc<Shared>,
    evictor: Option<JoinHandle<()>>,
    /// Where the engine's file is, if it has one of its own.
    _place: Option<TempDir>,
}

struct Shared {
    engine: Arc<Engine>,
    space: Arc<Space>,
    start: Instant,
    stop: AtomicBool,
    /// Number of the next key.
    next_key: AtomicU64,
}

/// Threads of one kind. They end with [`Threads::stop`].
pub(super) struct Threads {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(
        count: usize,
        name: &str,
        work: impl Fn(&Turn) + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        let turn = Turn { stop: Arc::default(), count: Arc::default() };
        let threads = (0..count).map(|_| {
            let (turn, work) = (turn.clone(), work.clone());
            thread::Builder::new().name(name.to_owned()).spawn(move || work(&turn)).context("start a thread")
        });
        Ok(Self { threads: threads.collect::<Result<_, _>>()?, stop: turn.stop, count: turn.count })
    }

    /// What the threads counted so far: bytes put or pages read.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Bytes put so far.
    pub(super) fn bytes(&self) -> u64 {
        self.count()
    }

    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("the load's threads do not panic");
        }
    }
}

#[derive(Clone)]
struct Turn {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
}

impl Turn {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Load {
    pub(super) fn start(engine: Arc<Engine>, place: Option<TempDir>) -> anyhow::Result<Self> {
        let space = engine.open_space(SpaceDescription::named("bench").context("name a space")?)?;
        let shared = Arc::new(Shared {
            engine,
            space,
            start: Instant::now(),
            stop: AtomicBool::new(false),
            next_key: AtomicU64::new(0),
        });
        let evicting = Arc::clone(&shared);
        let evictor = thread::Builder::new().name("evictor".to_owned()).spawn(move || evicting.evict());
        Ok(Self { shared, evictor: Some(evictor.context("start the evictor")?), _place: place })
    }

    pub(super) fn status(&self) -> EngineStatus {
        self.shared.engine.status()
    }

    /// Threads that put pages of one size under new keys until they are stopped.
    pub(super) fn writers(&self, count: usize, page_bytes: u32) -> anyhow::Result<Threads> {
        let shared = Arc::clone(&self.shared);
        Threads::start(count, "writer", move |turn| shared.put_pages(turn, page_bytes))
    }

    /// Threads that read pages, mostly of those that were put last, until they are stopped.
    pub(super) fn readers(&self, count: usize) -> anyhow::Result<Threads> {
        let shared = Arc::clone(&self.shared);
        Threads::start(count, "reader", move |turn| shared.read_pages(turn))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(evictor) = self.evictor.take() {
            evictor.join().expect("the evictor does not panic");
        }
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn evict(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            self.engine.wait_for_pressure(EVICTOR_PAUSE);
            let evicted = self.engine.evict_round(self.now_ms());
            if evicted.pages == 0 && begun.elapsed() < EVICTOR_REST {
                thread::sleep(EVICTOR_REST);
            }
        }
    }

    fn put_pages(&self, turn: &Turn, page_bytes: u32) {
        let template = vec![0x5a_u8; page_bytes as usize];
        while !turn.is_over() {
            let first = self.next_key.fetch_add(BATCH, Ordering::Relaxed);
            for number in first..first + BATCH {
                while !turn.is_over() && !self.put(number, &template) {
                    // The store is full of pages in use; a client would wait before it tries again, too.
                    thread::yield_now();
                }
                turn.count.fetch_add(u64::from(page_bytes), Ordering::Relaxed);
            }
        }
    }

    /// `false` if the store is busy.
    fn put(&self, number: u64, page: &[u8]) -> bool {
        let name = name(number);
        let key = Key::new(&name).expect("the names are keys");
        let hashed = HashedKey::new(self.space.id(), key);
        let position = u32::try_from(number % BATCH).unwrap_or(0);
        let len = u32::try_from(page.len()).expect("sizes have 32 bits");
        match self.engine.reserve(&self.space, hashed, len, position) {
            Ok(mut filling) => {
                filling.bytes_mut().copy_from_slice(page);
                let mut meta = PageMeta { len, ..PageMeta::default() };
                let hash = PageHasher::oneshot(hashed.digest, page);
                meta.checksum = meta.checksum_of(hash);
                let sealed = filling.verify_streamed(meta, hash).expect("the hash was computed just now");
                sealed.publish(self.now_ms());
                true
            }
            Err(Refusal::Busy) => false,
            Err(refusal) => unreachable!("keys are new and sizes were checked: {refusal}"),
        }
    }

    fn read_pages(&self, turn: &Turn) {
        let (mut pins, mut seed) = (Vec::new(), 1_u64);
        while !turn.is_over() {
            // Half of the reads are of the newest pages, half of any of the last 2^14.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let newest = self.next_key.load(Ordering::Relaxed);
            let back = (seed >> 32) % if seed >> 63 == 0 { 1 << 14 } else { 256 };
            let first = newest.saturating_sub(back + BATCH) / BATCH * BATCH;
            let names: Vec<_> = (first..first + BATCH).map(name).collect();
            let keys = names.iter().map(|name| Key::new(name).expect("the names are keys"));
            let keys: Vec<_> = keys.map(|key| HashedKey::new(self.space.id(), key)).collect();
            self.pin(&keys, &mut pins);
            for page in pins.drain(..).flatten() {
                // A reader sends the page; here it reads every line of it.
                let sum = page.iter().step_by(64).fold(0_u8, |sum, byte| sum ^ byte);
                std::hint::black_box(sum);
                turn.count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Pins pages. With memory as the only tier, that never waits.
    fn pin(&self, keys: &[HashedKey<'_>], pins: &mut Vec<Option<PagePin>>) {
        let now_ms = self.now_ms();
        let pinned = pin!(self.engine.pin_batch(&self.space, keys, now_ms, pins));
        match pinned.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(_) => {}
            Poll::Pending => unreachable!("memory is the only tier"),
        }
    }
}

/// The key of a number, as long as keys of engines are.
fn name(number: u64) -> [u8; 64] {
    let mut name = [b'k'; 64];
    name[..8].copy_from_slice(&number.to_be_bytes());
    name
}

/// Reads a number of bytes; unlike sizes of memory, those of pages are often odd.
pub(super) fn parse_bytes(text: &str) -> Result<u32, String> {
    let plain = text.parse::<u32>().ok().filter(|&bytes| bytes > 0);
    let sized = || crate::parse_size(text).ok().and_then(|bytes| u32::try_from(bytes).ok());
    plain.or_else(sized).ok_or_else(|| format!("{text:?} is not the size of a page; write 1179648 or 64KiB"))
}
