//! Threads that put, get and delete until the daemon is gone.

use super::ledger::{Fact, Ledger};
use super::len_of;
use super::rng::Rng;
use crate::common::{client_of, get, put};
use memkv_client::blocking::Space;
use memkv_client::{PageOutcome, SpaceDescription, Transport};
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::page;
use std::thread::JoinHandle;

/// The space of all pages.
pub(super) const SPACE: &str = "crashes";
/// Lengths of pages: below, at and above a block, odd, and large.
pub(super) const LEN_CLASSES: [usize; 5] = [700, 4096, 17_001, 65_536, 262_147];
/// Keys of one thread.
const KEYS: u64 = 400;
/// Pages of one batch.
const BATCH: u64 = 8;

/// A running load.
pub(super) struct Load {
    threads: Vec<JoinHandle<Ledger>>,
}

impl Load {
    /// Starts a thread for each ledger; each writes at most its part of `bytes_max`.
    pub(super) fn start(daemon: &Daemon, ledgers: Vec<Ledger>, rng: &mut Rng, bytes_max: u64) -> Self {
        let part = bytes_max / ledgers.len() as u64;
        let addr = daemon.addr();
        let threads = ledgers.into_iter().map(|ledger| {
            let rng = Rng::new(rng.next());
            let client = client_of(&[addr], Transport::Tcp);
            std::thread::spawn(move || {
                let space = client.space(SpaceDescription::named(SPACE).unwrap()).unwrap();
                let mut worker = Worker { space, ledger, rng, left: part };
                while worker.step() {}
                client.close();
                worker.ledger
            })
        });
        Self { threads: threads.collect() }
    }

    /// Waits until all threads have noticed that the daemon is gone.
    pub(super) fn end(self) -> Vec<Ledger> {
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

struct Worker {
    space: Space,
    ledger: Ledger,
    rng: Rng,
    /// Bytes that it may still write.
    left: u64,
}

impl Worker {
    /// One batch; `false` once the daemon does not answer.
    fn step(&mut self) -> bool {
        let keys = self.some_keys();
        match self.rng.below(10) {
            0..5 if self.left > 0 => self.put(&keys),
            0..8 => self.get(keys),
            _ => self.delete(&keys),
        }
    }

    /// Keys without repetition, in no order.
    fn some_keys(&mut self) -> Vec<Vec<u8>> {
        let count = 1 + self.rng.below(BATCH);
        let mut numbers: Vec<u64> = (0..count).map(|_| self.rng.below(KEYS)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|number| self.ledger.key(number)).collect()
    }

    fn put(&mut self, keys: &[Vec<u8>]) -> bool {
        let pages: Vec<_> = keys.iter().map(|key| page(key, len_of(key))).collect();
        let mut alive = true;
        for (key, outcome) in keys.iter().zip(put(&self.space, keys, &pages)) {
            match outcome {
                PageOutcome::Stored => {
                    self.left = self.left.saturating_sub(len_of(key) as u64);
                    self.ledger.note(key, Fact::Stored);
                }
                // It was there before; nothing is promised anew.
                PageOutcome::Exists => {
                    assert!(self.ledger.may_be_there(key), "{} exists", key.escape_ascii())
                }
                PageOutcome::Busy => {}
                PageOutcome::Unavailable | PageOutcome::TimedOut => {
                    if self.ledger.fact(key) != Fact::Stored {
                        self.ledger.note(key, Fact::Unknown);
                    }
                    alive = false;
                }
                other => panic!("a put became {other:?}"),
            }
        }
        alive
    }

    fn get(&mut self, mut keys: Vec<Vec<u8>>) -> bool {
        let len = len_of(&keys[0]);
        keys.retain(|key| len_of(key) == len);
        let mut alive = true;
        for (key, (outcome, bytes)) in keys.iter().zip(get(&self.space, &keys, len)) {
            match outcome {
                PageOutcome::Hit => {
                    assert!(self.ledger.may_be_there(key), "{} is gone and was read", key.escape_ascii());
                    assert!(bytes == page(key, len), "wrong bytes under {}", key.escape_ascii());
                }
                PageOutcome::Miss => {}
                PageOutcome::Unavailable | PageOutcome::TimedOut => alive = false,
                other => panic!("a get became {other:?}"),
            }
        }
        alive
    }

    fn delete(&mut self, keys: &[Vec<u8>]) -> bool {
        let mut removed = vec![false; keys.len()];
        let report = self.space.delete(keys, &mut removed).unwrap();
        for key in keys {
            // A key that was never put stays one that was never put.
            if self.ledger.fact(key) != Fact::Gone {
                self.ledger.note(key, if report.failed == 0 { Fact::Gone } else { Fact::Unknown });
            }
        }
        report.failed == 0
    }
}
