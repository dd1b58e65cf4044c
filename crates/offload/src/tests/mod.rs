//! Tests with transfers that are polled by hand, and a store that fails as told.

pub(crate) mod hand;
