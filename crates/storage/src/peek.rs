//! Reads a page without using it: for whoever copies pages away.
//!
//! No access is noted, so the policy's view of what is in use stays that of the clients. A page that is only on a
//! drive is read into a slot that is given back afterwards, and stays where it is.

use crate::drives::read::Role;
use crate::engine::Engine;
use crate::index::{HashedKey, Place};
use crate::page::PagePin;
use crate::space::Space;
use memkv_core::{PageHasher, PageMeta};
use memkv_memory::SealedSlot;
use std::sync::Arc;

/// How often a page is looked up again that moved while it was read.
const ROUNDS: usize = 3;

/// The bytes of a page, while this exists.
pub struct Peeked {
    meta: PageMeta,
    bytes: Held,
}

enum Held {
    Pinned(PagePin),
    /// Read from a drive; nobody else sees the slot.
    Read(SealedSlot),
}

impl Peeked {
    /// Length, encoding and checksum of the page.
    #[must_use]
    pub fn meta(&self) -> PageMeta {
        self.meta
    }
}

impl AsRef<[u8]> for Peeked {
    fn as_ref(&self) -> &[u8] {
        match &self.bytes {
            Held::Pinned(pin) => pin,
            Held::Read(slot) => slot.bytes(),
        }
    }
}

/// Why there are no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPeek {
    /// The key has no page (any more), or its bytes are lost.
    #[error("the page is gone")]
    Gone,
    /// There is no memory to read it into, or others are reading it all the time; try again.
    #[error("there is no memory to read the page into")]
    Busy,
}

impl Engine {
    /// The bytes of a page, wherever they rest, without an access being noted. Completes at once if they are in
    /// memory. They are compared with the checksum only as far as a get would do so; a receiver has to verify them.
    ///
    /// # Errors
    ///
    /// [`NoPeek`].
    pub async fn peek(&self, space: &Space, key: HashedKey<'_>) -> Result<Peeked, NoPeek> {
        for _ in 0..ROUNDS {
            let (extent, meta) = {
                let shard = self.state.index.shard_for(key.digest);
                let found = shard.look(space, key).ok_or(NoPeek::Gone)?;
                match found.place {
                    Place::Dram(slot) => {
                        let pin = self.state.arena.pin(slot).ok_or(NoPeek::Gone)?;
                        let pin = PagePin::new(pin);
                        return Ok(Peeked { meta: pin.meta(), bytes: Held::Pinned(pin) });
                    }
                    Place::Drive(extent) => (extent, found.meta.ok_or(NoPeek::Gone)?.meta),
                }
            };
            let drives = self.state.drives.as_ref().ok_or(NoPeek::Gone)?;
            let _flight = match drives.reads.role(extent.to_bits()) {
                Role::Reader(flight) => flight,
                Role::Follower(other) => {
                    other.over().await;
                    continue;
                }
            };
            let _part = drives.reads.take(meta.len).await.ok_or(NoPeek::Busy)?;
            // For a moment only, so it is nobody's.
            let slot = self.reserve_slot(meta.len, &Arc::default()).map_err(|_| NoPeek::Busy)?;
            // A read that fails, or brings other bytes, is that of a page that moved or is lost: the index tells.
            if let Ok(mut slot) = drives.log.read(extent, slot).await
                && meta.checksum_of(PageHasher::oneshot(key.digest, slot.bytes_mut())) == meta.checksum
            {
                return Ok(Peeked { meta, bytes: Held::Read(slot.seal()) });
            }
        }
        match self.state.index.shard_for(key.digest).find(space, key) {
            None => Err(NoPeek::Gone),
            Some(_) => Err(NoPeek::Busy),
        }
    }
}
