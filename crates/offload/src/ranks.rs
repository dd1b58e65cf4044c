//! Several ranks of one engine that must decide alike.
//!
//! The ranks of a tensor-parallel engine have one cache each and take the same steps in the same order. Transfers
//! end at different times on them and may bring different numbers of pages. So each [`poll`](crate::Tiers::poll)
//! takes the smallest of all ranks' results before it tells the cache, and the caches stay equal.

use thiserror::Error;

/// The other ranks did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the ranks could not agree: {0}")]
pub struct RanksLost(pub String);

/// Agreement over the ranks of an engine.
///
/// Called at most once per [`poll`](crate::Tiers::poll), with as many values on each rank. It is the one call of
/// this crate that waits on the scheduler's thread, for as long as the slowest rank is behind; such engines run in
/// step anyway.
pub trait Ranks: Send {
    /// Replaces each value by the smallest that any rank has at its place.
    ///
    /// # Errors
    ///
    /// If the ranks could not agree. Nothing ends in this step then; the next one tries again.
    fn min(&mut self, values: &mut [u64]) -> Result<(), RanksLost>;
}

/// An engine of one rank: its values are the smallest.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneRank;

impl Ranks for OneRank {
    fn min(&mut self, _values: &mut [u64]) -> Result<(), RanksLost> {
        Ok(())
    }
}
