//! The offline optimum: Bélády's rule, made to respect prefixes.
//!
//! It knows the whole trace, and lives by the same rules as a policy (see [`replay`](super::replay)): after a request all
//! its blocks are stored, and while it runs they do not go. When room is needed, the block goes whose next use is
//! farthest away, and of several the deepest. A block is used whenever one behind it in the chain is, so its next use
//! is never later than theirs: what goes is always the end of a chain, no stored block ever lacks its prefix, and every
//! use of a stored block is a hit.
//!
//! Among blocks of equal size that is optimal, by Bélády's proof: no policy hits more blocks. In tokens it is optimal but
//! for the last blocks of prompts, which may be filled in part: if it hits `n` blocks, nobody hits more than `512 n`
//! tokens.

use super::trace::Trace;
use std::collections::BTreeSet;

const NEVER: u32 = u32::MAX;

/// Per use of a block, the request that uses it next.
fn next_uses(trace: &Trace) -> Vec<Vec<u32>> {
    let mut next = vec![NEVER; trace.distinct()];
    let mut uses: Vec<Vec<u32>> = Vec::with_capacity(trace.requests.len());
    for (number, request) in trace.requests.iter().enumerate().rev() {
        let number = u32::try_from(number).expect("memory ends before 2^32 requests");
        uses.push(request.blocks.iter().map(|&block| next[block as usize]).collect());
        for &block in &request.blocks {
            next[block as usize] = number;
        }
    }
    uses.reverse();
    uses
}

/// The tokens that whoever knows the future hits with room for `capacity` blocks.
pub(super) fn optimum(trace: &Trace, capacity: usize) -> u64 {
    let uses = next_uses(trace);
    // What is stored, by next use and position: the last goes first.
    let mut stored: BTreeSet<(u32, u32, u32)> = BTreeSet::new();
    let mut place: Vec<Option<(u32, u32)>> = vec![None; trace.distinct()];
    let mut tokens = 0;
    for (request, next) in trace.requests.iter().zip(&uses) {
        let is_stored = |block: &&u32| place[**block as usize].is_some();
        tokens += request.tokens(request.blocks.iter().take_while(is_stored).count());
        for &block in &request.blocks {
            if let Some((next, position)) = place[block as usize].take() {
                stored.remove(&(next, position, block));
            }
        }
        while stored.len() + request.blocks.len() > capacity {
            let Some((_, _, block)) = stored.pop_last() else { break };
            place[block as usize] = None;
        }
        for (position, (&block, &next)) in (0..).zip(request.blocks.iter().zip(next)).take(capacity) {
            place[block as usize] = Some((next, position));
            stored.insert((next, position, block));
        }
    }
    tokens
}
