//! Which server owns a key: weighted rendezvous hashing.
//!
//! Every client computes the same order of servers for a key from nothing but the member list, so there is no
//! metadata service to ask. A server that joins or leaves moves only its own share of the keys.
//!
//! For a key digest `k` ([`crate::page::key_digest`]) and a node whose id has the digest `n` (XXH3-64, seed 0,
//! over the id's UTF-8 bytes):
//!
//! 1. `x = mix(k ^ mix(n))`, where `mix` is the finaliser of SplitMix64;
//! 2. `u = ((x >> 11) + 0.5) / 2^53`, a number inside (0, 1);
//! 3. `score = weight / -ln(u)`; a node of weight 0 is never chosen.
//!
//! The node with the highest score owns the key, the next one holds the second copy, and so on. Of two equal
//! scores, the node with the smaller id wins.

use twox_hash::XxHash3_64;

/// A server as routing sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Stable identity. Survives restarts and changes of address.
    pub id: String,
    /// Share of the keys relative to the other nodes; 0 takes no keys.
    pub weight: u32,
    mixed: u64,
}

impl Node {
    /// A node with the given stable id and weight.
    #[must_use]
    pub fn new(id: impl Into<String>, weight: u32) -> Self {
        let id = id.into();
        let mixed = mix(XxHash3_64::oneshot(id.as_bytes()));
        Self { id, weight, mixed }
    }

    /// This node's score for a key.
    #[must_use]
    pub fn score(&self, key_digest: u64) -> f64 {
        if self.weight == 0 {
            return f64::NEG_INFINITY;
        }
        #[allow(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
        let unit = ((mix(key_digest ^ self.mixed) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        f64::from(self.weight) / -unit.ln()
    }
}

/// The finaliser of SplitMix64.
pub(crate) fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The index of the node that owns the key, or `None` if no node has weight.
#[must_use]
pub fn owner(nodes: &[Node], key_digest: u64) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, node) in nodes.iter().enumerate() {
        if node.weight == 0 {
            continue;
        }
        let score = node.score(key_digest);
        let better = best.is_none_or(|(held, high)| {
            score > high || (score.total_cmp(&high).is_eq() && node.id < nodes[held].id)
        });
        if better {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

/// All nodes with weight in their order of preference for the key.
#[must_use]
pub fn order(nodes: &[Node], key_digest: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..nodes.len()).filter(|&i| nodes[i].weight > 0).collect();
    order.sort_by(|&a, &b| {
        let by_score = nodes[b].score(key_digest).total_cmp(&nodes[a].score(key_digest));
        by_score.then_with(|| nodes[a].id.cmp(&nodes[b].id))
    });
    order
}

/// The order of preference for one key at a time, from its beginning and only as far as it is asked for. Reused from
/// key to key, it allocates nothing once it has grown.
#[derive(Clone, Debug, Default)]
pub struct Ranks {
    scores: Vec<f64>,
}

impl Ranks {
    /// Begins with a key. After this, [`Ranks::next`] yields what [`order`] has, one by one.
    pub fn begin(&mut self, nodes: &[Node], key_digest: u64) {
        self.scores.clear();
        self.scores.extend(nodes.iter().map(|node| node.score(key_digest)));
    }

    /// The next best node; `nodes` must be those of [`Ranks::begin`].
    pub fn next(&mut self, nodes: &[Node]) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (index, &score) in self.scores.iter().enumerate() {
            let better = best.is_none_or(|held| {
                let high = self.scores[held];
                score > high || (score.total_cmp(&high).is_eq() && nodes[index].id < nodes[held].id)
            });
            if score > f64::NEG_INFINITY && better {
                best = Some(index);
            }
        }
        if let Some(best) = best {
            self.scores[best] = f64::NEG_INFINITY;
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_order() {
        let nodes: Vec<_> = (0..9).map(|i| Node::new(format!("n{i}"), i * 10)).collect();
        let mut ranks = Ranks::default();
        for digest in digests(500) {
            ranks.begin(&nodes, digest);
            let walked: Vec<_> = std::iter::from_fn(|| ranks.next(&nodes)).collect();
            assert_eq!(walked, order(&nodes, digest));
            assert_eq!(walked.len(), 8, "a node without weight has no place");
        }
    }

    fn digests(count: u64) -> impl Iterator<Item = u64> {
        (0..count).map(|i| XxHash3_64::oneshot(&i.to_le_bytes()))
    }

    fn cluster(count: usize) -> Vec<Node> {
        (0..count).map(|i| Node::new(format!("node-{i}"), 100)).collect()
    }

    #[test]
    fn keys_spread_evenly() {
        let nodes = cluster(16);
        let mut owned = [0_u32; 16];
        for digest in digests(100_000) {
            owned[owner(&nodes, digest).unwrap()] += 1;
        }
        // 6250 each on average; the standard deviation is 77.
        assert!(owned.iter().all(|n| (5_937..=6_563).contains(n)), "{owned:?}");
    }

    #[test]
    fn weight_is_share() {
        let nodes = [Node::new("a", 1), Node::new("b", 3), Node::new("c", 0)];
        let mut owned = [0_u32; 3];
        for digest in digests(40_000) {
            owned[owner(&nodes, digest).unwrap()] += 1;
        }
        assert!((9_500..=10_500).contains(&owned[0]), "{owned:?}");
        assert_eq!(owned[2], 0);
        assert_eq!(owner(&nodes[2..], 1), None);
    }

    #[test]
    fn a_leaving_node_moves_only_its_own_keys() {
        let before = cluster(5);
        let after = &before[..4];
        for digest in digests(10_000) {
            let old = owner(&before, digest).unwrap();
            if old < 4 {
                assert_eq!(owner(after, digest), Some(old));
            } else {
                assert_eq!(owner(after, digest), Some(order(&before, digest)[1]));
            }
        }
    }

    #[test]
    fn the_order_starts_with_the_owner() {
        let nodes = cluster(7);
        for digest in digests(1_000) {
            assert_eq!(order(&nodes, digest)[0], owner(&nodes, digest).unwrap());
        }
    }

    #[test]
    fn list_order_does_not_matter() {
        let nodes = cluster(5);
        let reversed: Vec<_> = nodes.iter().rev().cloned().collect();
        for digest in digests(1_000) {
            let forward = &nodes[owner(&nodes, digest).unwrap()].id;
            let backward = &reversed[owner(&reversed, digest).unwrap()].id;
            assert_eq!(forward, backward);
        }
    }
}
