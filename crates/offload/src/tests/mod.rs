//! Tests with transfers that are polled by hand, and a store that fails as told.
//!
//! Real daemons are met in `tests/e2e/offload.rs`; here every interleaving can be had.

mod aborts;
mod bounds;
mod failures;
mod fake;
pub(crate) mod hand;
mod policies;
mod prefetches;
mod ranks;
mod rig;
mod threads;
