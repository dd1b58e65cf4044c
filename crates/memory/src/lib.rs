//! The arena: the only memory that pages rest in and are sent from.
//!
//! - [`Arena`]: one mapping, of anonymous memory or of a file, reserved at the start, cut into chunks; a chunk belongs
//!   to one size class at a time and is cut into slots of exactly that size, each aligned to 4 KiB;
//! - [`ReservedSlot`] → [`SealedSlot`] → published (named by a [`SlotId`]) → doomed → free: the life of a slot,
//!   in types as far as one owner has it, in one atomic word after that;
//! - [`SlotPin`]: keeps a published slot's bytes in place until it is dropped.
//!
//! - [`Recovered`]: the pages that a file-backed arena still has after a restart, see `tables.rs` for the format.
//!
//! Invariants:
//! - the bytes of a sealed slot never change while it is published or pinned;
//! - a slot is free only when it is neither reserved, nor published, nor pinned;
//! - no safe call, in whatever order and with whatever [`SlotId`], breaks the first two;
//! - bytes past a page's length are zero before anyone but its writer can see the slot.
//!
//! Deliberately absent: clocks (time enters as an argument), policy (who is evicted is decided by the caller),
//! and allocation per page.
//!
//! Unsafe code is here because the mapping is handed out as slices whose exclusivity only the slot's state word
//! can prove. `map.rs` talks to the kernel, `handle.rs` makes the slices, `tables.rs` finds its tables in a mapping.

mod arena;
mod books;
mod class;
mod config;
mod file;
mod handle;
mod map;
mod numa;
mod record;
mod recover;
mod share;
mod slot;
mod state;
mod sync;
mod tables;
mod warm;

pub use arena::{Arena, ArenaStatus, ChunkView, MemoryStatus};
pub use books::{ClassDemand, ClassFill, ClassStatus, Full};
pub use config::{ArenaBacking, ArenaConfig, ArenaError, Numa};
pub use file::Past;
pub use handle::{ReservedSlot, SealedSlot, SlotPin};
pub use map::{Backing, HugePages};
pub use record::{PageRecord, PageView, SlotId};
pub use recover::{Recovered, RecoveredPage};
pub use share::{Share, Shared};

/// Slots start at, and are multiples of, this many bytes.
pub const SLOT_ALIGN: u32 = 4096;
