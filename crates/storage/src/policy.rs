//! Between the arena's records and the [policy](memkv_eviction).

use crate::state::State;
use memkv_core::position;
use memkv_eviction::{Moment, Page, Policy, PolicyKind};
use memkv_memory::{PageView, SlotId};

/// The size of page that the policy's memory of evicted pages is made for: smaller ones are remembered for a shorter
/// time.
const USUAL_PAGE_BYTES: u64 = 64 << 10;
const PAGES_MIN: u64 = 1 << 10;
const PAGES_MAX: u64 = 1 << 21;

/// The policy of a store of this size.
pub(crate) fn build(kind: PolicyKind, capacity_bytes: u64) -> Box<dyn Policy> {
    let pages = (capacity_bytes / USUAL_PAGE_BYTES).clamp(PAGES_MIN, PAGES_MAX);
    kind.build(usize::try_from(pages).expect("the number is small"))
}

/// What the policy is told of a page in a slot of `slot_bytes`.
pub(crate) fn page_of(view: &PageView, slot_bytes: u32) -> Page {
    Page {
        digest: view.digest,
        word: view.policy,
        created_ms: view.created_ms,
        last_access_ms: view.last_access_ms,
        position: position::depth(view.position),
        hits: view.hits,
        bytes: slot_bytes,
    }
}

impl State {
    /// Notes that the page in a slot is asked for, and whether it is read.
    pub(crate) fn accessed(&self, slot: SlotId, now: Moment, read: bool) {
        if let Some(view) = self.arena.page(slot) {
            let word = self.policy.accessed(&page_of(&view, 0), now);
            // Most accesses change nothing: the line of the record stays shared.
            if word != view.policy {
                self.arena.set_policy(slot, word);
            }
        }
        if read { self.arena.hit(slot, now.ms) } else { self.arena.touch(slot, now.ms) }
    }

    /// The policy's word of a page that comes.
    pub(crate) fn first_word(&self, digest: u64, position: u32, now: Moment) -> u64 {
        let position = position::depth(position);
        let (created_ms, last_access_ms) = (now.ms, now.ms);
        let page = Page { digest, word: 0, created_ms, last_access_ms, position, hits: 0, bytes: 0 };
        self.policy.inserted(&page, now.tag)
    }
}
