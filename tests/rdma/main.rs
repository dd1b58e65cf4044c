//! Pages by RDMA over simulated NICs: server and client in one process, and faults that no NIC makes on demand.
//!
//! What get and put mean is tested by the transport suite, over real verbs too. Here is what a NIC cannot be asked for:
//! work that is held back, reordered, flushed or refused, clients that lie, and counts of everything that exists.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is reported")]

mod rig;

mod bounce;
mod failures;
mod hostile;
mod late;
mod leaks;
mod moving;
mod nics;
