//! Random operations on both tiers, with restarts, against a plain map.
//!
//! The engine may forget what it evicts; it must never show a page that the map does not have, or other bytes, and what
//! was on a drive, or in memory at a planned end, is there after a restart.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

const KEYS: u8 = 16;
const LENS: [usize; 4] = [1, 5000, 70_000, 400_000];

#[derive(Clone, Debug)]
enum Op {
    Put { at: (bool, u8), len: usize, through: bool },
    Get(bool, u8),
    Delete(bool, u8),
    Quarantine(bool, u8),
    Clear(bool),
    Demote(bool, u8),
    StartDemotion(bool, u8),
    Settle,
    EvictRound,
    Keep(bool, u8),
    Restart { clean: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let key = || (any::<bool>(), 0..KEYS);
    prop_oneof![
        8 => (key(), 0..LENS.len(), any::<bool>()).prop_map(|(at, len, through)| Op::Put { at, len, through }),
        6 => key().prop_map(|(space, key)| Op::Get(space, key)),
        3 => key().prop_map(|(space, key)| Op::Delete(space, key)),
        1 => key().prop_map(|(space, key)| Op::Quarantine(space, key)),
        1 => any::<bool>().prop_map(Op::Clear),
        6 => key().prop_map(|(space, key)| Op::Demote(space, key)),
        4 => key().prop_map(|(space, key)| Op::StartDemotion(space, key)),
        1 => Just(Op::Settle),
        2 => Just(Op::EvictRound),
        1 => key().prop_map(|(space, key)| Op::Keep(space, key)),
        1 => any::<bool>().prop_map(|clean| Op::Restart { clean }),
    ]
}

struct Run {
    engine: Arc<Engine>,
    spaces: [Arc<Space>; 2],
    oracle: HashMap<(bool, u8), Vec<u8>>,
    time: u64,
    next: u8,
    unverified: u64,
    /// After the engine: an engine that is there would write into a directory that is being removed.
    tiered: Tiered,
}

impl Run {
    fn new(backed: bool) -> Self {
        let mut tiered = Tiered::new();
        tiered.nvme().mode = NvmeMode::WriteThrough;
        // A chunk for each size, and some to choose from.
        tiered.config.dram_bytes = 24 << 20;
        if backed {
            let memory = tiered.directory.path().join("memory");
            std::fs::create_dir(&memory).unwrap();
            tiered.config.backing = Some(memory);
        }
        let engine = tiered.open();
        let spaces = ["f", "t"].map(|name| space(&engine, name));
        Self { tiered, engine, spaces, oracle: HashMap::new(), time: 0, next: 0, unverified: 0 }
    }

    fn space(&self, which: bool) -> &Arc<Space> {
        &self.spaces[usize::from(which)]
    }

    fn put(&mut self, at: (bool, u8), len: usize, through: bool) {
        self.next = self.next.wrapping_add(1);
        let (page, key) = (vec![self.next; LENS[len]], [at.1]);
        let put = put_at(&self.engine, self.space(at.0), &key, &page, (0, self.time));
        match put {
            Ok(Published::Stored) => assert!(self.oracle.insert(at, page).is_none()),
            Ok(Published::Exists) | Err(Refusal::Exists) => assert!(self.oracle.contains_key(&at)),
            Err(Refusal::Busy) => {}
            Err(refusal) => panic!("{refusal}"),
        }
        self.forget();
        if through && self.oracle.contains_key(&at) {
            let hashed = hashed(self.space(at.0), &key);
            let persisted = block_on(self.engine.persist(self.space(at.0), &[hashed]));
            assert_eq!(persisted, Persisted { durable: 1, dropped: 0 });
            let info = self.engine.inspect(self.space(at.0), hashed).unwrap();
            assert!(info.drive.is_some(), "an acknowledged page is on a drive");
        }
    }

    fn get(&mut self, at: (bool, u8)) {
        let there = exists(&self.engine, self.space(at.0), &[at.1]);
        let pin = fetch(&self.engine, self.space(at.0), &[at.1]);
        match (&pin, self.oracle.get(&at)) {
            (Some(pin), Some(page)) => assert!(pin[..] == page[..], "other bytes"),
            (Some(_), None) => panic!("a page that nobody put, or that was removed"),
            (None, _) => assert!(!there, "a page that is there can be read"),
        }
        drop(pin);
        self.forget();
    }

    /// Pages that are gone must have been evicted; nothing else may be there.
    fn forget(&mut self) {
        let (engine, spaces) = (&self.engine, &self.spaces);
        self.oracle.retain(|&(which, key), _| exists(engine, &spaces[usize::from(which)], &[key]));
        assert_eq!(engine.status().pages, self.oracle.len() as u64);
    }

    fn restart(&mut self, clean: bool) {
        settle_writes(&self.engine);
        block_on(self.engine.settle_removals());
        let backed = self.tiered.config.backing.is_some();
        let (engine, spaces) = (&self.engine, &self.spaces);
        self.oracle.retain(|&(which, key), _| {
            let space = &spaces[usize::from(which)];
            backed || engine.inspect(space, hashed(space, &[key])).unwrap().drive.is_some()
        });
        if clean {
            self.engine.close();
        }
        let (directory, config) = (&self.tiered.directory, &self.tiered.config);
        // The old engine ends before the new one begins.
        self.engine = Engine::new(super::config(4 << 20)).unwrap();
        assert!(directory.path().exists());
        let (engine, report) = Engine::open(config.clone()).unwrap();
        assert_eq!(report.dropped_pages, 0);
        // A page that nobody asked for since an unclean end has yet to be verified.
        assert!(report.dram_unclean <= if clean { self.unverified } else { report.dram_pages });
        assert!(clean || report.dram_unclean == report.dram_pages);
        self.unverified = report.dram_unclean;
        self.spaces = ["f", "t"].map(|name| space(&engine, name));
        self.engine = engine;
        let bytes: u64 = self.oracle.values().map(|page| page.len() as u64).sum();
        let status = self.engine.status();
        assert_eq!((status.pages, status.page_bytes), (self.oracle.len() as u64, bytes));
        for (&(which, key), page) in &self.oracle {
            let info = self.engine.inspect(self.space(which), hashed(self.space(which), &[key]));
            assert_eq!(info.map(|info| info.meta.len as usize), Some(page.len()));
        }
    }

    fn apply(&mut self, op: Op) {
        self.time += 1;
        match op {
            Op::Put { at, len, through } => self.put(at, len, through),
            Op::Get(space, key) => self.get((space, key)),
            Op::Delete(space, key) => {
                let removed = delete(&self.engine, self.space(space), &[key]);
                assert_eq!(removed, self.oracle.remove(&(space, key)).is_some());
            }
            Op::Quarantine(space, key) => {
                self.engine.quarantine(self.space(space), hashed(self.space(space), &[key]));
                self.oracle.remove(&(space, key));
            }
            Op::Clear(which) => {
                let cleared = self.engine.clear(self.space(which));
                let before = self.oracle.len();
                self.oracle.retain(|&(space, _), _| space != which);
                assert_eq!(cleared.pages, (before - self.oracle.len()) as u64);
            }
            Op::Demote(space, key) | Op::StartDemotion(space, key) => {
                if in_dram(&self.engine, self.space(space), &[key]) == Some(true) {
                    start_demotion(&self.engine, self.space(space), &[key]);
                    if matches!(op, Op::Demote(..)) {
                        settle_writes(&self.engine);
                    }
                }
                assert_eq!(self.engine.status().counters.demote_dropped, 0);
            }
            Op::Settle => settle_writes(&self.engine),
            Op::EvictRound => {
                self.engine.evict_round(self.time);
                self.forget();
            }
            Op::Keep(space, key) => {
                let keys = [[key]];
                let report = block_on(self.engine.keep(
                    self.space(space),
                    &[hashed(self.space(space), &keys[0])],
                    10,
                    self.time,
                ));
                self.forget();
                assert!(report.kept + report.missing + report.over_quota == 1);
            }
            Op::Restart { clean } => self.restart(clean),
        }
        let bytes: u64 = self.oracle.values().map(|page| page.len() as u64).sum();
        assert_eq!(
            (self.engine.status().pages, self.engine.status().page_bytes),
            (self.oracle.len() as u64, bytes)
        );
    }

    fn finish(mut self) {
        for at in self.oracle.keys().copied().collect::<Vec<_>>() {
            self.get(at);
        }
        settle_writes(&self.engine);
        self.engine.clear(&self.spaces[0]);
        self.engine.clear(&self.spaces[1]);
        assert_empty(&self.engine);
        let status = self.engine.status();
        assert_eq!((status.tiers[1].pages, status.tiers[1].bytes), (0, 0));
        assert_eq!(status.counters.drive_read_errors, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn both_tiers_agree_with_a_map(backed in any::<bool>(), ops in proptest::collection::vec(op(), 1..100)) {
        let mut run = Run::new(backed);
        for op in ops {
            run.apply(op);
        }
        run.finish();
    }
}
