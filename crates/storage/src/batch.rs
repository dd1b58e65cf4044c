//! Puts the keys of a batch in order of their shard, so that each shard is locked once.
//!
//! Works on the stack: no allocation, however many keys. Batches beyond [`BATCH_MAX`] are done in pieces.

use crate::index::{HashedKey, SHARDS, shard_of};

/// The most keys that are put in order at once; servers refuse larger requests anyway.
const BATCH_MAX: usize = 16_384;
/// Batches up to this size use a small stack frame.
const SMALL: usize = 512;

/// Calls `visit` once for each shard that has keys in `keys`, with the positions of those keys.
pub(crate) fn by_shard(keys: &[HashedKey<'_>], mut visit: impl FnMut(usize, &[u16], usize)) {
    for (piece, keys) in keys.chunks(BATCH_MAX).enumerate() {
        let first = piece * BATCH_MAX;
        if keys.len() <= SMALL {
            ordered::<SMALL>(keys, first, &mut visit);
        } else {
            ordered::<BATCH_MAX>(keys, first, &mut visit);
        }
    }
}

/// A counting sort of at most `N` keys by shard. Positions are relative to `first`.
#[inline(never)]
fn ordered<const N: usize>(
    keys: &[HashedKey<'_>],
    first: usize,
    visit: &mut impl FnMut(usize, &[u16], usize),
) {
    let mut ends = [0_u16; SHARDS];
    for key in keys {
        ends[shard_of(key.digest)] += 1;
    }
    let mut next = [0_u16; SHARDS];
    let mut sum = 0;
    for (end, next) in ends.iter_mut().zip(&mut next) {
        *next = sum;
        sum += *end;
        *end = sum;
    }
    let mut order = [0_u16; N];
    for (position, key) in (0_u16..).zip(keys) {
        let slot = &mut next[shard_of(key.digest)];
        order[usize::from(*slot)] = position;
        *slot += 1;
    }
    let mut start = 0;
    for (shard, &end) in ends.iter().enumerate() {
        if end > start {
            visit(shard, &order[usize::from(start)..usize::from(end)], first);
        }
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_core::Key;

    #[test]
    fn every_key_is_visited_once_and_every_shard_once_a_piece() {
        for count in [0, 1, 2, 511, 512, 513, 16_384, 16_385, 40_000] {
            let key = Key::new(b"k").unwrap();
            let digest = |n: usize| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let keys: Vec<_> = (0..count).map(|n| HashedKey { key, digest: digest(n) }).collect();
            let mut seen = vec![0; count];
            let mut visits = vec![0; SHARDS];
            by_shard(&keys, |shard, positions, first| {
                visits[shard] += 1;
                for &position in positions {
                    let at = first + usize::from(position);
                    assert_eq!(shard_of(keys[at].digest), shard);
                    seen[at] += 1;
                }
            });
            assert!(seen.iter().all(|&n| n == 1), "{count}");
            assert!(visits.iter().all(|&n| n <= count.div_ceil(BATCH_MAX)), "{count}");
        }
    }
}
