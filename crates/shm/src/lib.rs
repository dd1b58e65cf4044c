//! Memory between two processes on one host, as the two sides of a data connection need it.
//!
//! - [`View`]: sealed memory of another process, mapped to be read;
//! - [`Stage`]: memory of this process that another one maps to read;
//! - [`Peer`]: the process at the other end of a Unix socket, whose memory can be read if the system permits;
//! - [`pass`]: descriptors that travel with bytes over a Unix socket;
//! - [`socket`]: names of Unix sockets, and which host this is.
//!
//! Invariants:
//! - memory that another process may write is never behind a reference: it is copied out, and what was copied is judged;
//! - a view never faults: memory that can shrink is refused.
//!
//! Deliberately absent: frames, runtimes, and any judgement of bytes.
//!
//! Unsafe code is here because mapping memory, copying out of it, and naming another process' memory are calls with
//! addresses. `view.rs`, `stage.rs` and `peer.rs` have all of it.

pub mod pass;
mod peer;
pub mod socket;
mod stage;
mod view;

pub use peer::{Peer, PeerError};
pub use stage::Stage;
pub use view::{View, ViewError};
