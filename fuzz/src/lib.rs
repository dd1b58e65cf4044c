//! Fuzzing: every reader of foreign bytes, and the whole state machine of a data connection.
//!
//! - [`targets`]: one function of bytes for each; it panics when an invariant breaks;
//! - [`bytes`]: choices of a target, drawn from the fuzzer's bytes;
//! - [`mutate`]: the built-in search, for machines where the guided one cannot be built;
//! - [`corpus`]: the small inputs that are kept in the repository and replayed by a test.
//!
//! The guided search is libFuzzer over code with coverage counters (`src/guided.rs`, feature `guided`). Both take the same targets
//! and corpora.
//!
//! Deliberately absent: time and speed as a criterion, and anything that is true only of the fuzzer's own build.

#![forbid(unsafe_code)]

pub mod bytes;
pub mod corpus;
pub mod mutate;
pub mod targets;

pub use targets::{TARGETS, Target, target};
