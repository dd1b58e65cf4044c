//! Between the arena's records and the [policy](memkv_eviction).

use memkv_eviction::Page;
use memkv_memory::PageView;

/// What the policy is told of a page in a slot of `slot_bytes`.
pub(crate) fn page_of(view: &PageView, slot_bytes: u32) -> Page {
    Page {
        digest: view.digest,
        word: 0,
        created_ms: view.created_ms,
        last_access_ms: view.last_access_ms,
        position: view.position,
        hits: view.hits,
        bytes: slot_bytes,
    }
}
