//! Which server gets which pages of a batch.

use crate::PageOutcome;
use crate::exchange::Exchange;
use memkv_core::page::key_digest;
use memkv_core::route::{self, Node};
use memkv_core::{Key, SpaceId};
use parking_lot::Mutex;

/// Keys of a batch, whatever the caller keeps them in.
pub(crate) trait KeyList: Sync {
    fn count(&self) -> usize;
    fn key(&self, index: usize) -> &[u8];
}

impl<K: AsRef<[u8]> + Sync> KeyList for &[K] {
    fn count(&self) -> usize {
        self.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        self[index].as_ref()
    }
}

/// Working memory of one op, reused from op to op.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Digest of every key.
    pub(crate) digests: Vec<u64>,
    /// Page indices, grouped by server, ascending within a group.
    pub(crate) order: Vec<u32>,
    /// Where each server's group ends in `order`; it begins where the one before ends.
    pub(crate) ends: Vec<usize>,
    owners: Vec<u32>,
    /// The op's exchanges.
    pub(crate) exchanges: Vec<Exchange>,
}

impl Scratch {
    /// Computes digests and groups. Keys that no server owns (all weights are 0) are in no group.
    pub(crate) fn plan(&mut self, nodes: &[Node], space: SpaceId, keys: &dyn KeyList) -> Result<(), BadKey> {
        let count = keys.count();
        self.digests.clear();
        self.owners.clear();
        self.ends.clear();
        self.ends.resize(nodes.len(), 0);
        for index in 0..count {
            let key = Key::new(keys.key(index)).map_err(|error| BadKey { index, error })?;
            let digest = key_digest(space, key);
            let owner = match nodes {
                [only] => (only.weight > 0).then_some(0),
                _ => route::owner(nodes, digest),
            };
            self.digests.push(digest);
            // There are far fewer than 2^32 servers.
            self.owners.push(owner.map_or(u32::MAX, |owner| owner as u32));
            if let Some(owner) = owner {
                self.ends[owner] += 1;
            }
        }
        self.group();
        Ok(())
    }

    /// A counting sort of the page indices by owner.
    fn group(&mut self) {
        let mut total = 0;
        for end in &mut self.ends {
            let begin = total;
            total += *end;
            *end = begin;
        }
        self.order.clear();
        self.order.resize(total, 0);
        for (index, &owner) in self.owners.iter().enumerate() {
            if let Some(next) = self.ends.get_mut(owner as usize) {
                self.order[*next] = u32::try_from(index).expect("a batch has fewer than 2^32 keys");
                *next += 1;
            }
        }
    }
}

/// A key that is none.
#[derive(Debug)]
pub(crate) struct BadKey {
    pub(crate) index: usize,
    pub(crate) error: memkv_core::KeyError,
}

/// The most working memories kept.
const KEPT: usize = 64;

/// Working memories that wait for the next op.
#[derive(Default)]
#[allow(clippy::vec_box, reason = "an op takes a box out and gives it back without moving what is in it")]
pub(crate) struct ScratchPool {
    idle: Mutex<Vec<Box<Scratch>>>,
    outcomes: Mutex<Vec<Vec<PageOutcome>>>,
}

impl ScratchPool {
    pub(crate) fn take(&self) -> Box<Scratch> {
        self.idle.lock().pop().unwrap_or_default()
    }

    pub(crate) fn give(&self, mut scratch: Box<Scratch>) {
        scratch.exchanges.clear();
        let mut idle = self.idle.lock();
        if idle.len() < KEPT {
            idle.push(scratch);
        }
    }

    /// Outcomes for an op whose caller asked for less.
    pub(crate) fn take_outcomes(&self, count: usize) -> Vec<PageOutcome> {
        let mut outcomes = self.outcomes.lock().pop().unwrap_or_default();
        outcomes.clear();
        outcomes.resize(count, PageOutcome::Unavailable);
        outcomes
    }

    pub(crate) fn give_outcomes(&self, outcomes: Vec<PageOutcome>) {
        let mut idle = self.outcomes.lock();
        if idle.len() < KEPT {
            idle.push(outcomes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_in_its_owners_group_in_order() {
        let nodes: Vec<Node> = (0..3).map(|i| Node::new(format!("n{i}"), 100)).collect();
        let keys: Vec<String> = (0..500).map(|i| format!("key-{i}")).collect();
        let mut scratch = Scratch::default();
        for _ in 0..2 {
            scratch.plan(&nodes, SpaceId([1; 16]), &&keys[..]).unwrap();
            let mut begin = 0;
            let mut seen = 0;
            for (server, &end) in scratch.ends.iter().enumerate() {
                let group = &scratch.order[begin..end];
                assert!(group.is_sorted() && !group.is_empty());
                for &page in group {
                    let digest = scratch.digests[page as usize];
                    assert_eq!(route::owner(&nodes, digest), Some(server));
                }
                seen += group.len();
                begin = end;
            }
            assert_eq!(seen, 500);
        }
    }

    #[test]
    fn without_weight_nothing_is_owned() {
        let nodes = [Node::new("a", 0), Node::new("b", 0)];
        let mut scratch = Scratch::default();
        scratch.plan(&nodes, SpaceId([1; 16]), &&["k"][..]).unwrap();
        assert!(scratch.order.is_empty());
        let bad = scratch.plan(&nodes, SpaceId([1; 16]), &&["k", ""][..]).unwrap_err();
        assert_eq!(bad.index, 1);
    }
}
