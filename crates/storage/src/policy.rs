//! Which pages go first.

use crate::config::PolicyKind;
use memkv_memory::PageView;

/// A page's place in the order of eviction: the smallest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// How much the page is worth keeping, comparable (and averaged) over pages of all classes.
    pub(crate) worth: u64,
    /// Decides between pages of equal worth.
    pub(crate) tie: u32,
}

/// Ranks pages from what their slots record. Replaceable: nothing else knows what `worth` means.
pub(crate) trait Policy: Send + Sync {
    /// The page's place in the order of eviction.
    fn rank(&self, page: &PageView) -> Rank;
}

impl PolicyKind {
    pub(crate) fn build(self) -> Box<dyn Policy> {
        match self {
            Self::Lru => Box::new(Lru),
        }
    }
}

/// The page that was not asked for the longest goes first.
///
/// An engine asks for the pages of a prefix together, so they have one time of access. Of those the deepest goes
/// first: a page without its predecessors is of no use, they without it are.
struct Lru;

impl Policy for Lru {
    fn rank(&self, page: &PageView) -> Rank {
        Rank { worth: page.last_access_ms, tie: u32::MAX - page.position }
    }
}
