//! The server over real sockets, spoken to by hand.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

mod control;
mod harness;
mod hostile;
mod ops;
mod sessions;
mod stop;
