//! Many threads on a store that is far too small: no wrong byte, and nothing left at the end.
//!
//! A page's bytes follow from its key, so a reader knows what it must see.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

const KEYS: u64 = 512;
const LENS: [u32; 4] = [4 * KIB, 20 * KIB, 100 * KIB, 300 * KIB];

/// A sequence of numbers that looks random and is the same in every run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ (x >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub(super) fn len_of(n: u64) -> u32 {
    LENS[usize::try_from(n % 4).unwrap()]
}

/// Every 8 bytes of page `n` say `n` and where they are.
fn word(n: u64, at: usize) -> u64 {
    (n << 32) | at as u64
}

fn fill(n: u64, bytes: &mut [u8]) {
    for (at, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&word(n, at).to_le_bytes());
    }
}

pub(super) fn check(n: u64, pin: &PagePin) {
    assert_eq!(pin.len(), len_of(n) as usize);
    let wrong = pin.chunks_exact(8).enumerate().find(|(at, chunk)| **chunk != word(n, *at).to_le_bytes());
    assert_eq!(wrong, None, "page {n} has other bytes");
}

pub(super) fn write(engine: &Engine, space: &Arc<Space>, n: u64, now_ms: u64) {
    let name = n.to_le_bytes();
    let key = hashed(space, &name);
    let mut filling = match engine.reserve(space, key, len_of(n), 0) {
        Ok(filling) => filling,
        Err(refusal) => {
            if refusal == Refusal::Busy {
                thread::yield_now();
            }
            return;
        }
    };
    let bytes = filling.bytes_mut();
    fill(n, bytes);
    let meta = described(key, bytes);
    // Now and then somebody gives up.
    if now_ms.is_multiple_of(7) {
        return;
    }
    filling.verify(meta).unwrap().publish(now_ms);
}

#[test]
fn readers_never_see_wrong_bytes() {
    // Enough that every kind of event was there; they come long before the bound.
    const ENOUGH: u64 = 1000;
    const WRITES_MAX: u64 = 100_000;
    let engine = engine(32 << 20);
    let space = space(&engine, "a");
    let (time, done, reads) = (AtomicU64::new(1), AtomicBool::new(false), AtomicU64::new(0));
    let reader = |seed| {
        let mut numbers = Numbers(seed);
        let mut held: Vec<(u64, PagePin)> = Vec::new();
        while !done.load(Ordering::Acquire) {
            let wanted: Vec<u64> = (0..8).map(|_| numbers.below(KEYS)).collect();
            let names: Vec<_> = wanted.iter().map(|n| n.to_le_bytes()).collect();
            let keys: Vec<_> = names.iter().map(|name| hashed(&space, name)).collect();
            let mut pins = Vec::new();
            at_once(engine.pin_batch(&space, &keys, time.load(Ordering::Relaxed), &mut pins));
            for (n, pin) in wanted.into_iter().zip(pins) {
                held.extend(pin.map(|pin| (n, pin)));
            }
            held.iter().rev().take(4).for_each(|(n, pin)| check(*n, pin));
            while held.len() > 12 {
                let (n, pin) = held.swap_remove(usize::try_from(numbers.below(12)).unwrap());
                check(n, &pin);
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }
        held.iter().for_each(|(n, pin)| check(*n, pin));
    };
    let writer = |seed| {
        let mut numbers = Numbers(seed);
        for _ in 0..WRITES_MAX {
            let counters = engine.status().counters;
            if counters.stored_pages.min(counters.evicted_pages).min(reads.load(Ordering::Relaxed)) > ENOUGH {
                break;
            }
            let now_ms = time.fetch_add(1, Ordering::Relaxed);
            write(&engine, &space, numbers.below(KEYS), now_ms);
            if numbers.below(4) == 0 {
                delete(&engine, &space, &numbers.below(KEYS).to_le_bytes());
            }
            if numbers.below(1000) == 0 {
                engine.clear(&space);
            }
        }
    };
    let evictor = || {
        while !done.load(Ordering::Acquire) {
            engine.wait_for_pressure(std::time::Duration::from_millis(1));
            engine.evict_round(time.load(Ordering::Relaxed));
        }
    };
    thread::scope(|scope| {
        let writers = [1, 2, 3].map(|seed| scope.spawn(move || writer(seed)));
        let others = [4, 5].map(|seed| scope.spawn(move || reader(seed)));
        let evictor = scope.spawn(evictor);
        let finished = writers.map(thread::ScopedJoinHandle::join);
        done.store(true, Ordering::Release);
        for result in finished.into_iter().chain(others.map(thread::ScopedJoinHandle::join)) {
            result.unwrap();
        }
        evictor.join().unwrap();
    });
    let counters = engine.status().counters;
    assert!(
        counters.evicted_pages > 0 && counters.deleted > 0 && counters.stored_pages > 100,
        "{counters:?}"
    );
    assert!(reads.load(Ordering::Relaxed) > 0);
    assert_eq!(counters.corrupt, 0);
    engine.clear(&space);
    assert_empty(&engine);
}

#[test]
fn one_of_many_writers_stores_a_key() {
    let engine = engine(8 << 20);
    let space = space(&engine, "a");
    for n in 0..100_u32 {
        let stored: u32 = thread::scope(|scope| {
            let writers = [1_u8, 2, 3].map(|byte| {
                let (engine, space) = (&engine, &space);
                let result = move || put(engine, space, &n.to_le_bytes(), &[byte; 3000]);
                scope.spawn(result)
            });
            writers.map(|writer| u32::from(writer.join().unwrap() == Ok(Published::Stored))).iter().sum()
        });
        assert_eq!(stored, 1);
        let pin = get(&engine, &space, &n.to_le_bytes()).unwrap();
        assert!(pin.iter().all(|&byte| byte == pin[0]));
    }
    assert_eq!(engine.status().pages, 100);
}
