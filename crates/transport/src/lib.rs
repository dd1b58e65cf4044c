//! What MemKV's two planes say to each other, as pure functions of bytes.
//!
//! - [`frame`]: headers and records of the data plane;
//! - [`records`]: the lists inside a frame;
//! - [`handshake`]: how a data connection joins a session;
//! - [`auth`]: keys, proofs and per-call credentials;
//! - [`tenant`]: the same for tenants, whose keys a server does not have;
//! - [`near`]: how much a connection within one host buffers;
//! - [`iov`]: a cursor over many pieces of memory for vectored I/O;
//! - `sim` (a feature): sockets of a simulated network.
//!
//! Deliberately absent: sockets, threads, clocks and randomness. Both sides drive these functions with whatever
//! runtime they have, so that a simulated network can drive the very same code.

#![forbid(unsafe_code)]

pub mod auth;
pub mod frame;
pub mod handshake;
pub mod iov;
pub mod near;
pub mod records;
#[cfg(feature = "sim")]
pub mod sim;
pub mod tenant;
