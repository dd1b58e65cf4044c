//! Many threads on both tiers at once: no wrong byte, and nothing left at the end.

use super::stress::{Numbers, check, len_of, write};
use super::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Pages of about 60 MiB in 8 MiB of memory and a drive that is too small for them as well.
const KEYS: u64 = 512;

struct Arena {
    engine: Arc<Engine>,
    space: Arc<Space>,
    time: AtomicU64,
    done: AtomicBool,
    reads: AtomicU64,
}

impl Arena {
    fn reader(&self, seed: u64) {
        let mut numbers = Numbers(seed);
        let mut held: Vec<(u64, PagePin)> = Vec::new();
        while !self.done.load(Ordering::Acquire) {
            let wanted: Vec<u64> = (0..6).map(|_| numbers.below(KEYS)).collect();
            let names: Vec<_> = wanted.iter().map(|n| n.to_le_bytes()).collect();
            let keys: Vec<_> = names.iter().map(|name| hashed(&self.space, name)).collect();
            let mut pins = Vec::new();
            let now_ms = self.time.load(Ordering::Relaxed);
            block_on(self.engine.pin_batch(&self.space, &keys, now_ms, &mut pins));
            for (n, pin) in wanted.into_iter().zip(pins) {
                held.extend(pin.map(|pin| (n, pin)));
            }
            held.iter().for_each(|(n, pin)| check(*n, pin));
            self.reads.fetch_add(held.len() as u64, Ordering::Relaxed);
            // Some are held on to while others come and go.
            held.truncate(usize::try_from(numbers.below(3)).unwrap());
        }
    }

    fn writer(&self, seed: u64) {
        let mut numbers = Numbers(seed);
        while !self.done.load(Ordering::Acquire) {
            let now_ms = self.time.fetch_add(1, Ordering::Relaxed);
            let n = numbers.below(KEYS);
            write(&self.engine, &self.space, n, now_ms);
            let name = n.to_le_bytes();
            let key = hashed(&self.space, &name);
            if numbers.below(4) == 0 {
                block_on(self.engine.persist(&self.space, &[key]));
            }
            if numbers.below(6) == 0 {
                delete(&self.engine, &self.space, &numbers.below(KEYS).to_le_bytes());
            }
            match numbers.below(2000) {
                0 => drop(self.engine.clear(&self.space)),
                1..20 => drop(block_on(self.engine.keep(&self.space, &[key], 50, now_ms))),
                _ => {}
            }
        }
    }

    fn evictor(&self) {
        while !self.done.load(Ordering::Acquire) {
            self.engine.wait_for_pressure(std::time::Duration::from_millis(1));
            self.engine.evict_round(self.time.load(Ordering::Relaxed));
            self.engine.scrub(1 << 20);
        }
    }
}

#[test]
fn both_tiers_never_show_wrong_bytes() {
    const ENOUGH: u64 = 300;
    let mut tiered = Tiered::new();
    tiered.nvme().mode = NvmeMode::WriteThrough;
    tiered.nvme().drives[0].quota_bytes = 24 << 20;
    tiered.nvme().segment_bytes = 2 << 20;
    let engine = tiered.open();
    let space = space(&engine, "a");
    let (time, done, reads) = (AtomicU64::new(1), AtomicBool::new(false), AtomicU64::new(0));
    let arena = Arena { engine: Arc::clone(&engine), space: Arc::clone(&space), time, done, reads };
    thread::scope(|scope| {
        let (readers, writers) = ([1, 2], [3, 4]);
        let readers = readers.map(|seed| {
            scope.spawn({
                let arena = &arena;
                move || arena.reader(seed)
            })
        });
        let writers = writers.map(|seed| {
            scope.spawn({
                let arena = &arena;
                move || arena.writer(seed)
            })
        });
        let evictor = scope.spawn(|| arena.evictor());
        let enough = || {
            let status = engine.status();
            let counters = status.counters;
            let reclaimed = status.nvme.unwrap().log.drives[0].reclaimed_segments;
            let events =
                [counters.demoted_pages, counters.promoted_pages, counters.persisted_pages, counters.deleted];
            reclaimed > 3 && events.into_iter().all(|count| count > ENOUGH)
        };
        while !enough() && !readers.iter().chain(&writers).any(|thread| thread.is_finished()) {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        arena.done.store(true, Ordering::Release);
        for thread in readers.into_iter().chain(writers) {
            thread.join().unwrap();
        }
        evictor.join().unwrap();
    });
    settle_writes(&engine);
    block_on(engine.settle_removals());
    let there: Vec<u64> = (0..KEYS).filter(|n| exists(&engine, &space, &n.to_le_bytes())).collect();
    for &n in &there {
        if let Some(pin) = fetch(&engine, &space, &n.to_le_bytes()) {
            check(n, &pin);
        }
    }
    assert_eq!((engine.status().counters.corrupt, engine.quarantined().len()), (0, 0));
    // The drive's keeper may still give segments back; when it is gone, what is there stays.
    engine.close();
    let on_drive: Vec<u64> = there
        .into_iter()
        .filter(|n| {
            let info = engine.inspect(&space, hashed(&space, &n.to_le_bytes()));
            info.is_some_and(|info| info.drive.is_some())
        })
        .collect();
    drop((engine, arena, space));
    // What is found again is what was there, and nothing that was removed.
    let engine = tiered.open();
    let space = super::space(&engine, "a");
    let reclaimed = || engine.status().nvme.unwrap().log.drives[0].reclaimed_segments;
    for n in 0..KEYS {
        let there = exists(&engine, &space, &n.to_le_bytes());
        let pin = fetch(&engine, &space, &n.to_le_bytes());
        assert!(there || !on_drive.contains(&n) || reclaimed() > 0, "page {n} was on the drive");
        // There may be no memory to read it into.
        if let Some(pin) = pin {
            assert_eq!(pin.len(), len_of(n) as usize);
            check(n, &pin);
        }
    }
    engine.clear(&space);
    assert_empty(&engine);
}
