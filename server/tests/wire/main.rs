//! The server over real sockets, spoken to by hand.

mod control;
mod harness;
mod hostile;
mod ops;
mod sessions;
mod stop;
