//! Which leaf goes first when room is needed.
//!
//! A policy turns the facts of a node into a rank; the smallest rank goes first. Times are the cache's own counter
//! of events, so policies need no clock and a run can be repeated.

/// The order of eviction, smallest first, compared part by part.
pub type Rank = [i64; 2];

/// What a policy may look at.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts {
    /// When a match or insert last went through the node.
    pub accessed: u64,
    /// When the node was made, by an insert or a split.
    pub created: u64,
    /// How many inserts went through it.
    pub hits: u64,
    /// The highest priority of a request that went through it.
    pub priority: i64,
    /// Tokens from the root to its end.
    pub depth_tokens: usize,
    /// Tokens of the node itself.
    pub tokens: usize,
    /// The largest depth in tokens that its branch ever had.
    pub history_tokens: usize,
}

/// An order of eviction.
pub trait EvictionPolicy: Send {
    /// The rank of a node.
    fn rank(&self, node: &NodeFacts) -> Rank;

    /// Whether the rank of a node can only grow with time, except when the node is split. Then the cache keeps its
    /// leaves in order between evictions; otherwise it orders all of them at each.
    fn only_grows(&self) -> bool {
        false
    }
}

/// The policies that come with the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    /// The longest unused first.
    #[default]
    Lru,
    /// The latest used first.
    Mru,
    /// The oldest first.
    Fifo,
    /// The newest first.
    Filo,
    /// The least often used first, then the longest unused.
    Lfu,
    /// Nodes with fewer than two hits first, then the longest unused.
    Slru,
    /// The lowest priority first, then the longest unused.
    Priority,
    /// Tails first that a conversation's next turn can do without, then the longest unused (T-LRU).
    Tlru {
        /// Tokens that may be recomputed within the latency that was promised.
        threshold: usize,
        /// Tokens that the next turn is expected to add.
        next_prompt: usize,
    },
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl EvictionPolicy for Policy {
    fn rank(&self, node: &NodeFacts) -> Rank {
        let accessed = signed(node.accessed);
        match *self {
            Policy::Lru => [accessed, 0],
            Policy::Mru => [-accessed, 0],
            Policy::Fifo => [signed(node.created), 0],
            Policy::Filo => [-signed(node.created), 0],
            Policy::Lfu => [signed(node.hits), accessed],
            Policy::Slru => [i64::from(node.hits >= 2), accessed],
            Policy::Priority => [node.priority, accessed],
            Policy::Tlru { threshold, next_prompt } => {
                let needed = (node.history_tokens + next_prompt).saturating_sub(threshold);
                let safe = node.depth_tokens - node.tokens >= needed;
                [if safe { -1 } else { 0 }, accessed]
            }
        }
    }

    fn only_grows(&self) -> bool {
        !matches!(self, Policy::Mru)
    }
}
