//! Which pages there are, the most valuable first: those that were used lately before those that were not, and
//! shallow ones of a prefix before deep ones, which are of no use without them.
//!
//! To order all pages would take memory for all their keys. Instead they are gone through once for each class of
//! idleness (up to 1, 2, 4, 8 … minutes when the drain began), and ordered within chunks of a bounded number.
//!
//! A page that is read meanwhile changes its class, to that of pages in use, and may do so before its turn. So that
//! class is gone through at the end too.

use memkv_storage::{Engine, KeyInfo, Space};
use std::cmp::Reverse;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Pages of a chunk, and of one piece of the engine's list.
const CHUNK_PAGES: usize = 1 << 16;
const PIECE: usize = 4096;
/// Classes of pages that were not in use when the drain began.
const IDLE_CLASSES: u32 = 14;

/// Which pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Those used, or stored, since the drain began.
    InUse,
    /// Those idle for 2^(n-1) to 2^n minutes when it began; the last class has all that are idle longer.
    Idle(u32),
    /// Those used since the drain began, once more.
    Again,
}

/// All passes, in order.
pub(crate) fn classes() -> impl Iterator<Item = Pass> {
    [Pass::InUse].into_iter().chain((0..IDLE_CLASSES).map(Pass::Idle)).chain([Pass::Again])
}

/// One page that is to be copied.
pub(crate) struct Found {
    pub(crate) space: Arc<Space>,
    pub(crate) key: Box<[u8]>,
    pub(crate) digest: u64,
    pub(crate) len: u32,
    pub(crate) position: u32,
    pub(crate) kept_until_ms: Option<u64>,
    last_access_ms: u64,
}

/// One pass over all pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan {
    pub(crate) class: Pass,
    pub(crate) begun_ms: u64,
}

impl Scan {
    /// Sends the pages of the class, chunk by chunk, until nobody receives them. Blocks.
    pub(crate) fn run(self, engine: &Engine, out: &mpsc::Sender<Vec<Found>>) {
        let mut chunk = Vec::new();
        for space in engine.spaces() {
            let mut cursor = Vec::new();
            while let Ok(listing) = engine.list(&space, b"", PIECE, &cursor) {
                for info in listing.entries {
                    if self.wants(&info) {
                        chunk.push(found(&space, info));
                    }
                }
                if chunk.len() >= CHUNK_PAGES && send(&mut chunk, out).is_none() {
                    return;
                }
                cursor = listing.next_cursor;
                if cursor.is_empty() || out.is_closed() {
                    break;
                }
            }
        }
        if !chunk.is_empty() {
            // Nobody needs it if nobody receives it.
            let _received = send(&mut chunk, out);
        }
    }

    fn wants(self, info: &KeyInfo) -> bool {
        // Pages on drives know whole seconds only: those that may have been used since are taken as such.
        let used_ms = info.last_access_ms.max(info.created_ms) + if info.in_dram { 0 } else { 999 };
        let class = class_of(self.begun_ms, used_ms);
        match self.class {
            Pass::InUse | Pass::Again => class.is_none(),
            Pass::Idle(idle) => class == Some(idle),
        }
    }
}

/// The class of a page that was last used at `used_ms`; `None` for one in use.
fn class_of(begun_ms: u64, used_ms: u64) -> Option<u32> {
    let idle_ms = begun_ms.checked_sub(used_ms)?;
    let minutes = idle_ms / 60_000;
    Some((u64::BITS - minutes.leading_zeros()).min(IDLE_CLASSES - 1))
}

fn send(chunk: &mut Vec<Found>, out: &mpsc::Sender<Vec<Found>>) -> Option<()> {
    chunk.sort_unstable_by_key(|page| {
        (memkv_core::position::depth(page.position), Reverse(page.last_access_ms))
    });
    match out.try_send(std::mem::take(chunk)) {
        Ok(()) => Some(()),
        Err(TrySendError::Closed(_)) => None,
        Err(TrySendError::Full(chunk)) => out.blocking_send(chunk).ok(),
    }
}

fn found(space: &Arc<Space>, info: KeyInfo) -> Found {
    Found {
        space: Arc::clone(space),
        key: info.key.into_boxed_slice(),
        digest: info.digest,
        len: info.meta.len,
        position: info.position,
        kept_until_ms: info.kept_until_ms,
        last_access_ms: info.last_access_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_in_one_class() {
        let begun = 1_000_000_000_000;
        assert_eq!(class_of(begun, begun + 1), None);
        assert_eq!(class_of(begun, begun), Some(0));
        assert_eq!(class_of(begun, begun - 59_999), Some(0));
        assert_eq!(class_of(begun, begun - 60_000), Some(1));
        assert_eq!(class_of(begun, begun - 3 * 60_000), Some(2));
        assert_eq!(class_of(begun, begun - 4 * 60_000), Some(3));
        assert_eq!(class_of(begun, 0), Some(IDLE_CLASSES - 1));
        let passes: Vec<_> = classes().collect();
        assert_eq!((passes[0], passes[1]), (Pass::InUse, Pass::Idle(0)));
        assert_eq!(passes.last(), Some(&Pass::Again));
        assert!(passes.contains(&Pass::Idle(IDLE_CLASSES - 1)) && passes.len() == IDLE_CLASSES as usize + 2);
    }
}
