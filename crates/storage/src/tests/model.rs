//! Random operations against a plain map.
//!
//! The engine may forget a page only when it evicts, and must count it then; it must never show a page that the map
//! does not have, or other bytes.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

const KEYS: u8 = 24;
const LENS: [u32; 5] = [1, 5000, 70_000, 300_000, MIB];

#[derive(Clone, Debug)]
enum Op {
    Put { space: bool, key: u8, len: usize },
    Reserve { space: bool, key: u8, len: usize },
    Publish(usize),
    DropFilling(usize),
    Get { space: bool, key: u8 },
    DropPin(usize),
    Delete { space: bool, key: u8 },
    Quarantine { space: bool, key: u8 },
    Touch { space: bool, key: u8 },
    Clear(bool),
    Evict,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || (any::<bool>(), 0..KEYS);
    let page = || (any::<bool>(), 0..KEYS, 0..LENS.len());
    prop_oneof![
        6 => page().prop_map(|(space, key, len)| Op::Put { space, key, len }),
        3 => page().prop_map(|(space, key, len)| Op::Reserve { space, key, len }),
        3 => any::<usize>().prop_map(Op::Publish),
        1 => any::<usize>().prop_map(Op::DropFilling),
        4 => key().prop_map(|(space, key)| Op::Get { space, key }),
        3 => any::<usize>().prop_map(Op::DropPin),
        2 => key().prop_map(|(space, key)| Op::Delete { space, key }),
        1 => key().prop_map(|(space, key)| Op::Quarantine { space, key }),
        1 => key().prop_map(|(space, key)| Op::Touch { space, key }),
        1 => any::<bool>().prop_map(Op::Clear),
        2 => Just(Op::Evict),
    ]
}

/// A page is its length and the byte that it is full of.
type Page = (u32, u8);

struct Pending {
    at: (bool, u8),
    page: Page,
    filling: Filling,
}

struct Run {
    engine: Arc<Engine>,
    spaces: [Arc<Space>; 2],
    oracle: HashMap<(bool, u8), Page>,
    pending: Vec<Pending>,
    pins: Vec<(PagePin, Page)>,
    time: u64,
    next: u8,
    evicted: u64,
}

impl Run {
    fn new() -> Self {
        let engine = engine(8 << 20);
        let spaces = ["f", "t"].map(|name| space(&engine, name));
        Self {
            engine,
            spaces,
            oracle: HashMap::new(),
            pending: Vec::new(),
            pins: Vec::new(),
            time: 0,
            next: 0,
            evicted: 0,
        }
    }

    fn space(&self, which: bool) -> &Arc<Space> {
        &self.spaces[usize::from(which)]
    }

    fn reserve(&mut self, at: (bool, u8), len: usize) {
        let space = self.space(at.0);
        let key = [at.1];
        let reserved = self.engine.reserve(space, hashed(space, &key), LENS[len], u32::from(at.1));
        self.forget_evicted();
        match reserved {
            Ok(mut filling) => {
                assert!(!self.oracle.contains_key(&at));
                self.next = self.next.wrapping_add(1);
                filling.bytes_mut().fill(self.next);
                self.pending.push(Pending { at, page: (LENS[len], self.next), filling });
            }
            Err(Refusal::Exists) => assert!(self.oracle.contains_key(&at)),
            Err(Refusal::Busy) => {}
            Err(refusal @ Refusal::TooLarge { .. }) => panic!("{refusal}"),
        }
    }

    fn publish(&mut self, which: usize) {
        let Pending { at, page, filling } = self.pending.swap_remove(which);
        let bytes = vec![page.1; page.0 as usize];
        let meta = described(hashed(self.space(at.0), &[at.1]), &bytes);
        match filling.verify(meta).unwrap().publish(self.time) {
            Published::Stored => assert!(self.oracle.insert(at, page).is_none()),
            Published::Exists => assert!(self.oracle.contains_key(&at)),
        }
    }

    fn get(&mut self, at: (bool, u8)) {
        let pin = get_at(&self.engine, self.space(at.0), &[at.1], self.time);
        assert_eq!(pin.is_some(), self.oracle.contains_key(&at));
        if let Some(pin) = pin {
            self.pins.push((pin, self.oracle[&at]));
            check_pin(self.pins.last().unwrap());
        }
    }

    /// Pages that the map has and the engine has not must be those that the engine says it evicted.
    fn forget_evicted(&mut self) {
        let before = self.oracle.len();
        let (engine, spaces) = (&self.engine, &self.spaces);
        self.oracle.retain(|&(which, key), _| exists(engine, &spaces[usize::from(which)], &[key]));
        self.evicted += (before - self.oracle.len()) as u64;
        assert_eq!(self.engine.status().counters.evicted_pages, self.evicted);
    }

    fn apply(&mut self, op: Op) {
        self.time += 1;
        match op {
            Op::Put { space, key, len } => {
                let before = self.pending.len();
                self.reserve((space, key), len);
                if self.pending.len() > before {
                    self.publish(before);
                }
            }
            Op::Reserve { space, key, len } => self.reserve((space, key), len),
            Op::Publish(n) if !self.pending.is_empty() => self.publish(n % self.pending.len()),
            Op::DropFilling(n) if !self.pending.is_empty() => {
                self.pending.swap_remove(n % self.pending.len());
            }
            Op::Get { space, key } => self.get((space, key)),
            Op::DropPin(n) if !self.pins.is_empty() => {
                check_pin(&self.pins.swap_remove(n % self.pins.len()));
            }
            Op::Publish(_) | Op::DropFilling(_) | Op::DropPin(_) => {}
            Op::Delete { space, key } => {
                let removed = delete(&self.engine, self.space(space), &[key]);
                assert_eq!(removed, self.oracle.remove(&(space, key)).is_some());
            }
            Op::Quarantine { space, key } => {
                self.engine.quarantine(self.space(space), hashed(self.space(space), &[key]));
                self.oracle.remove(&(space, key));
            }
            Op::Touch { space, key } => {
                let found = touch(&self.engine, self.space(space), &[key], self.time);
                assert_eq!(found, self.oracle.contains_key(&(space, key)));
            }
            Op::Clear(which) => {
                let cleared = self.engine.clear(self.space(which));
                let before = self.oracle.len();
                self.oracle.retain(|&(space, _), _| space != which);
                assert_eq!(cleared.pages, (before - self.oracle.len()) as u64);
            }
            Op::Evict => {
                self.engine.evict_round(self.time);
                self.forget_evicted();
            }
        }
        self.check();
    }

    fn check(&self) {
        let bytes: u64 = self.oracle.values().map(|page| u64::from(page.0)).sum();
        let status = self.engine.status();
        assert_eq!((status.pages, status.page_bytes), (self.oracle.len() as u64, bytes));
        assert!(status.used_slot_bytes <= status.capacity_bytes);
        assert!(status.asked_bytes >= bytes);
    }

    fn finish(mut self) {
        self.pins.iter().for_each(check_pin);
        self.pins.clear();
        self.pending.clear();
        for at in self.oracle.keys().copied().collect::<Vec<_>>() {
            self.get(at);
        }
        self.engine.clear(&self.spaces[0]);
        self.engine.clear(&self.spaces[1]);
        self.pins.clear();
        assert_empty(&self.engine);
    }
}

fn check_pin((pin, (len, byte)): &(PagePin, Page)) {
    assert_eq!(pin.len(), *len as usize);
    assert!(pin.iter().all(|held| held == byte), "a pinned page changed");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn the_engine_agrees_with_a_map(ops in proptest::collection::vec(op(), 1..120)) {
        let mut run = Run::new();
        for op in ops {
            run.apply(op);
        }
        run.finish();
    }
}
