//! RDMA verbs behind one small trait.
//!
//! [`Verbs`] lists NICs and opens them; a [`Nic`] registers memory and makes queue pairs; a [`QueuePair`] moves bytes
//! between registered regions of two processes. [`system`] gives the real one, [`fake::Fabric`] a simulated one for
//! tests that need faults which no NIC makes on demand. [`choose`] says which NICs to use, [`self_test`] whether one works.
//!
//! Invariants:
//! - after a [`QueuePair`] is dropped, no byte moves to or from this process's memory through it;
//! - a [`Region`] keeps its protection domain, and a queue pair everything it needs: the order in which they are
//!   dropped does not matter;
//! - a work request of which nothing is known any more is always answered: by its completion, or by the drop.
//!
//! Deliberately absent: connections of their own (the address of a queue pair travels over the caller's session),
//! threads, receive queues, and any knowledge of pages.
//!
//! Unsafe code is here because a NIC reads and writes memory by address. `fake/memory.rs` copies as a NIC would, and
//! `verbs/` calls the verbs library; `register.rs` and `self_test.rs` hand over memory. The addresses themselves come from the caller, through two unsafe functions:
//! [`Nic::register`] and [`QueuePair::post`].

#![deny(unsafe_code)]

mod choose;
mod error;
pub mod fake;
mod home;
mod info;
#[allow(unsafe_code, reason = "declares what is unsafe to call")]
mod nic;
mod register;
mod self_test;
#[cfg(feature = "verbs")]
mod verbs;

pub use choose::{choose, find_again, near};
pub use error::{Errno, RdmaError};
pub use home::home_node;
pub use info::{GidInfo, GidKind, Link, NicInfo, NicLimits, Place, PortInfo};
pub use nic::{
    Access, Address, Completion, Nic, QueuePair, Region, Timing, Verbs, Work, WorkError, WorkKind,
};
pub use register::{Progress, memlock_limit, register_all};
pub use self_test::{SelfTest, SelfTestError, self_test};

use std::sync::Arc;

/// The real verbs of this machine.
///
/// # Errors
///
/// The reason why there are none: built without them, no library, no kernel support. A machine without a device is
/// not an error here: [`Verbs::nics`] answers with an empty list, and [`choose`] says so.
pub fn system() -> Result<Arc<dyn Verbs>, RdmaError> {
    #[cfg(feature = "verbs")]
    return Ok(Arc::new(verbs::System::new()?));
    #[cfg(not(feature = "verbs"))]
    Err(RdmaError::NotBuilt)
}
