//! The synchronisation types of this crate, in one place, so that a model checker's versions can replace them.

pub(crate) use parking_lot::Mutex;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
