//! The trace of 1,420 operations that SGLang's own cache agrees with.

use crate::{Access, Config, DevicePage, InsertOptions, Lock, Namespace, Policy, RadixCache, Shape, Tokens};
use serde_json::Value;
use std::collections::BTreeMap;

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
}

fn policy(name: &str) -> Policy {
    match name {
        "lru" => Policy::Lru,
        "mru" => Policy::Mru,
        "fifo" => Policy::Fifo,
        "filo" => Policy::Filo,
        "lfu" => Policy::Lfu,
        "slru" => Policy::Slru,
        "priority" => Policy::Priority,
        other => panic!("{other}"),
    }
}

/// One trace. The trace has a slot for each token, the cache a page for each page of tokens.
struct Player {
    cache: RadixCache,
    page: usize,
    slots: BTreeMap<DevicePage, Vec<u32>>,
    locks: BTreeMap<u64, Lock>,
}

impl Player {
    fn slots(&self, pages: &[DevicePage]) -> Vec<u32> {
        pages.iter().flat_map(|page| self.slots[page].iter().copied()).collect()
    }

    fn insert(&mut self, access: Access<'_>, key: &[u32], op: &Value) -> usize {
        let slots = numbers(&op["slots"]);
        let row = self.cache.alloc_pages(key.len() / self.page).unwrap();
        for (page, slots) in row.iter().zip(slots.chunks(self.page)) {
            self.slots.insert(*page, slots.to_vec());
        }
        let priority = op["priority"].as_i64().unwrap();
        let options = InsertOptions { priority, ..InsertOptions::default() };
        let done = self.cache.insert(access, Tokens::from(key), &row, options).unwrap();
        self.cache.release_pages(&row[..done.prefix_pages]).unwrap();
        assert_eq!(done.prefix_pages + done.taken_pages, row.len());
        done.prefix_pages * self.page
    }

    fn play(&mut self, op: &Value, at: &str) {
        let namespace = Namespace::new(op["ns"].as_str(), None).unwrap();
        let access = Access::of(&namespace);
        let key = if op["key"].is_array() { numbers(&op["key"]) } else { Vec::new() };
        match op["op"].as_str().unwrap() {
            "insert" => {
                let prefix = self.insert(access, &key, op);
                assert_eq!(prefix as u64, op["prefix_len"].as_u64().unwrap(), "{at}");
            }
            "match" | "match_lock" => {
                let found = self.cache.match_prefix(access, Tokens::from(&key));
                assert_eq!(self.slots(&found.pages), numbers(&op["slots"]), "{at}");
                assert_eq!((found.pages.len() * self.page) as u64, op["len"].as_u64().unwrap(), "{at}");
                if let Some(handle) = op["handle"].as_u64() {
                    self.locks.insert(handle, self.cache.lock(found.device_node).unwrap());
                }
            }
            "unlock" => {
                let lock = self.locks.remove(&op["handle"].as_u64().unwrap()).unwrap();
                self.cache.unlock(lock);
            }
            "evict" => {
                let evicted = self.cache.evict_device(op["want"].as_u64().unwrap() as usize);
                assert_eq!(evicted.tokens as u64, op["got"].as_u64().unwrap(), "{at}");
                let mut slots = self.slots(&evicted.pages);
                slots.sort_unstable();
                assert_eq!(slots, numbers(&op["freed"]), "{at}");
            }
            other => panic!("{other}"),
        }
        let stats = self.cache.stats();
        assert_eq!(stats.evictable_tokens as u64, op["evictable"].as_u64().unwrap(), "{at}");
        assert_eq!(stats.protected_tokens as u64, op["protected"].as_u64().unwrap(), "{at}");
        self.cache.check().unwrap();
    }
}

/// Plays all traces of a file and returns how many operations that were.
fn play(file: &str, policy: impl Fn(&str) -> Policy) -> usize {
    let file: Value = serde_json::from_str(file).unwrap();
    let mut played = 0;
    for trace in file["traces"].as_array().unwrap() {
        let page = trace["page_size"].as_u64().unwrap() as usize;
        let name = trace["policy"].as_str().unwrap();
        let mut config = Config::new(Shape::new(page, false).unwrap(), 4096);
        config.policy = Box::new(policy(name));
        let cache = RadixCache::new(config).unwrap();
        let mut player = Player { cache, page, slots: BTreeMap::new(), locks: BTreeMap::new() };
        for (step, op) in trace["ops"].as_array().unwrap().iter().enumerate() {
            player.play(op, &format!("{name}, page {page}, step {step}"));
            played += 1;
        }
        assert_eq!(player.cache.stats().nodes, 0);
        assert_eq!(player.cache.device().free(), 4096);
    }
    played
}

#[test]
fn the_trace_of_seven_policies_has_no_difference() {
    assert_eq!(play(include_str!("../../tests/vectors/radix_trace.json"), policy), 1420);
}

#[test]
fn the_trace_of_tail_optimized_lru_has_no_difference() {
    // The parameters that the generator has.
    let tlru = |_: &str| Policy::Tlru { threshold: 12, next_prompt: 4 };
    assert_eq!(play(include_str!("../../tests/vectors/tlru_trace.json"), tlru), 366);
}
