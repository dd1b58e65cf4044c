//! What is known about every key of one thread, and the check of it after a crash.
//!
//! A page's bytes follow from its key, so a page that is found can be judged whatever its history. A key belongs to
//! one thread, so what is known of it is never in doubt between two threads.

use super::len_of;
use crate::common::{client_of, get};
use memkv_client::{PageOutcome, SpaceDescription, Transport};
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::page;
use std::collections::BTreeMap;

/// What is known about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    /// A put was acknowledged.
    Stored,
    /// A put or a delete has no answer, or the page may have been damaged: it is there or not.
    Unknown,
    /// A delete was acknowledged, or the page was seen to be gone.
    Gone,
}

/// One thread's keys. A key that is not in here was never put.
pub(super) struct Ledger {
    thread: u64,
    facts: BTreeMap<Vec<u8>, Fact>,
    acknowledged: usize,
    found: u64,
}

impl Ledger {
    pub(super) fn new(thread: u64) -> Self {
        Self { thread, facts: BTreeMap::new(), acknowledged: 0, found: 0 }
    }

    /// The key of a number.
    pub(super) fn key(&self, number: u64) -> Vec<u8> {
        let mut key = format!("t{}-{number:06}-", self.thread).into_bytes();
        key.push(b'a' + (number % 26) as u8);
        key
    }

    pub(super) fn fact(&self, key: &[u8]) -> Fact {
        self.facts.get(key).copied().unwrap_or(Fact::Gone)
    }

    pub(super) fn note(&mut self, key: &[u8], fact: Fact) {
        self.acknowledged += usize::from(fact == Fact::Stored);
        self.facts.insert(key.to_vec(), fact);
    }

    /// All keys that were ever put.
    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        self.facts.keys().cloned().collect()
    }

    /// After damage to files, any page may be gone; and a page whose removal was damaged may be back.
    pub(super) fn doubt_all(&mut self) {
        self.facts.values_mut().for_each(|fact| *fact = Fact::Unknown);
    }

    /// Puts that were acknowledged, over all lives.
    pub(super) fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// Pages that were found after a crash, over all lives.
    pub(super) fn found_after_a_crash(&self) -> u64 {
        self.found
    }

    /// Whether the server may have this key.
    pub(super) fn may_be_there(&self, key: &[u8]) -> bool {
        self.facts.get(key).is_some_and(|fact| *fact != Fact::Gone)
    }

    /// Looks at every key after a restart. With `strict`, what is stored must be there.
    pub(super) fn check(&mut self, daemon: &Daemon, strict: bool, context: &str) {
        let client = client_of(&[daemon.addr()], Transport::Tcp);
        let space = client.space(SpaceDescription::named(super::load::SPACE).unwrap()).unwrap();
        let mut keys = self.keys();
        // Keys that nobody ever put must not be there either.
        keys.extend((900_000..900_010).map(|number| self.key(number)));
        keys.sort_by_key(|key| len_of(key));
        for batch in keys.chunk_by(|a, b| len_of(a) == len_of(b)).flat_map(|same| same.chunks(32)) {
            for (key, (outcome, bytes)) in batch.iter().zip(get(&space, batch, len_of(&batch[0]))) {
                let fact = self.fact(key);
                let name = key.escape_ascii();
                match outcome {
                    PageOutcome::Hit => {
                        assert!(fact != Fact::Gone, "{context}: {name} is gone and came back");
                        assert!(bytes == page(key, bytes.len()), "{context}: wrong bytes under {name}");
                        self.found += 1;
                        self.facts.insert(key.clone(), Fact::Stored);
                    }
                    PageOutcome::Miss => {
                        assert!(
                            !strict || fact != Fact::Stored,
                            "{context}: {name} was acknowledged and is lost"
                        );
                        // What is seen to be gone stays gone until it is put again.
                        self.facts.entry(key.clone()).and_modify(|fact| *fact = Fact::Gone);
                    }
                    other => panic!("{context}: a get of {name} became {other:?}"),
                }
            }
        }
        client.close();
    }
}
