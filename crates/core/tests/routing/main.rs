//! Routing as the theory says it, and as `docs/routing.md` says it.
//!
//! Weighted rendezvous hashing gives each node a share of the keys equal to its share of the weights, and moves only what
//! has to move. Both are checked over random clusters; how far a count may be off follows from the binomial
//! distribution. The vectors that other languages check themselves against are checked here, and by a second
//! implementation in Python.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is reported")]

mod vectors;

use memkv_core::page::key_digest;
use memkv_core::route::{Node, order, owner};
use memkv_core::{Key, SpaceId};
use proptest::prelude::*;

/// Keys of one case.
const KEYS: u32 = 10_000;
/// A count is within so many standard deviations and a little more, for small counts: one of 10^12 is not.
const SIGMAS: f64 = 7.0;
const LITTLE: f64 = 10.0;

fn digests(seed: u8, count: u32) -> impl Iterator<Item = u64> {
    let space = SpaceId([seed; 16]);
    (0..count).map(move |i| key_digest(space, Key::new(&i.to_le_bytes()).unwrap()))
}

/// A cluster with these weights.
fn cluster(weights: &[u32]) -> Vec<Node> {
    weights.iter().enumerate().map(|(i, &weight)| Node::new(format!("server-{i}:9900"), weight)).collect()
}

/// Asserts that `count` of `of` is what the share `p` makes likely.
fn assert_share(count: u32, of: u32, p: f64, what: &str) -> Result<(), TestCaseError> {
    let (mean, deviation) = (f64::from(of) * p, (f64::from(of) * p * (1.0 - p)).sqrt());
    let off = (f64::from(count) - mean).abs();
    prop_assert!(
        off <= SIGMAS * deviation + LITTLE,
        "{what}: {count} of {of}, expected {mean:.0} ± {deviation:.0}"
    );
    Ok(())
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(1_u32..=400, 2..=24)
}

fn total(nodes: &[Node]) -> f64 {
    nodes.iter().map(|node| f64::from(node.weight)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn each_node_has_its_share(weights in weights(), seed: u8) {
        let nodes = cluster(&weights);
        let mut owned = vec![0; nodes.len()];
        for digest in digests(seed, KEYS) {
            owned[owner(&nodes, digest).unwrap()] += 1;
        }
        for (node, &count) in nodes.iter().zip(&owned) {
            assert_share(count, KEYS, f64::from(node.weight) / total(&nodes), &node.id)?;
        }
    }

    #[test]
    fn a_join_moves_the_new_nodes_share_and_nothing_else(weights in weights(), new in 1_u32..=400, seed: u8) {
        let before = cluster(&weights);
        let after = cluster(&[&weights[..], &[new]].concat());
        let mut moved = 0;
        for digest in digests(seed, KEYS) {
            let (old, now) = (owner(&before, digest), owner(&after, digest));
            if old != now {
                prop_assert_eq!(now, Some(before.len()), "a key moves to the new node only");
                prop_assert_eq!(order(&after, digest)[1], old.unwrap(), "and its old owner comes next");
                moved += 1;
            }
        }
        assert_share(moved, KEYS, f64::from(new) / total(&after), "moved by a join")?;
    }

    #[test]
    fn a_leave_moves_the_lost_nodes_share_and_nothing_else(weights in weights(), gone: prop::sample::Index, seed: u8) {
        let before = cluster(&weights);
        let gone = gone.index(before.len());
        let after: Vec<Node> = before.iter().filter(|node| node.id != before[gone].id).cloned().collect();
        let mut moved = vec![0; before.len()];
        for digest in digests(seed, KEYS) {
            let (old, now) = (owner(&before, digest).unwrap(), owner(&after, digest).unwrap());
            let now = before.iter().position(|node| node.id == after[now].id).unwrap();
            if old == gone {
                prop_assert_eq!(now, order(&before, digest)[1], "the next of the order takes over");
                moved[now] += 1;
            } else {
                prop_assert_eq!(old, now);
            }
        }
        let lost: u32 = moved.iter().sum();
        assert_share(lost, KEYS, f64::from(before[gone].weight) / total(&before), "moved by a leave")?;
        // What is lost falls to the others by their weights, not to one neighbour.
        for (node, &count) in before.iter().zip(&moved).filter(|(node, _)| node.id != before[gone].id) {
            assert_share(count, lost, f64::from(node.weight) / total(&after), "taken over")?;
        }
    }

    #[test]
    fn a_change_of_weight_moves_the_difference_in_one_direction(
        weights in weights(), changed: prop::sample::Index, to in 0_u32..=800, seed: u8,
    ) {
        let before = cluster(&weights);
        let changed = changed.index(before.len());
        let mut after = weights.clone();
        after[changed] = to;
        let after = cluster(&after);
        let (mut moved, grows) = (0, to > weights[changed]);
        for digest in digests(seed, KEYS) {
            let (old, now) = (owner(&before, digest).unwrap(), owner(&after, digest).unwrap());
            if old != now {
                prop_assert_eq!(if grows { now } else { old }, changed);
                moved += 1;
            }
        }
        let share = |nodes: &[Node]| f64::from(nodes[changed].weight) / total(nodes);
        assert_share(moved, KEYS, (share(&after) - share(&before)).abs(), "moved by a change of weight")?;
    }

    #[test]
    fn copies_follow_the_same_rules(weights in prop::collection::vec(1_u32..=400, 4..=16), seed: u8) {
        // Of the first three, a join takes at most one place, and only for the new node.
        let before = cluster(&weights);
        let after = cluster(&[&weights[..], &[200]].concat());
        for digest in digests(seed, 500) {
            let (old, now) = (order(&before, digest), order(&after, digest));
            let kept: Vec<usize> = now.iter().copied().filter(|&node| node != before.len()).collect();
            prop_assert_eq!(kept, old);
        }
    }
}

#[test]
fn sixteen_servers_share_a_hundred_thousand_keys_within_five_percent() {
    for seed in 0..4 {
        let nodes = cluster(&[100; 16]);
        let mut owned = [0_u32; 16];
        for digest in digests(seed, 100_000) {
            owned[owner(&nodes, digest).unwrap()] += 1;
        }
        let mean = 100_000.0 / 16.0;
        let worst = owned.iter().map(|&n| (f64::from(n) / mean - 1.0).abs()).fold(0.0, f64::max);
        assert!(worst < 0.05, "{:.1} % off: {owned:?}", worst * 100.0);
    }
}
