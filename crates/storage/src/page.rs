//! A page on its way in ([`Filling`], [`Sealed`]) and on its way out ([`PagePin`]).

use crate::account::Charge;
use crate::index::HashedKey;
use crate::space::Space;
use crate::state::State;
use crate::status::count;
use memkv_core::{Key, PageHasher, PageMeta};
use memkv_eviction::Moment;
use memkv_memory::{PageRecord, ReservedSlot, SealedSlot, SlotId, SlotPin};
use std::ops::Deref;
use std::sync::Arc;

/// Why a page was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key has a page already; pages never change.
    #[error("the key has a page already")]
    Exists,
    /// No slot is free right now.
    #[error("the store is full; try again after a moment")]
    Busy,
    /// The page is larger than the server takes.
    #[error("the page has {len} bytes, the limit is {max}; store smaller pages or raise page_bytes_max")]
    TooLarge {
        /// Length of the page.
        len: u32,
        /// The limit.
        max: u32,
    },
}

/// A page that arrived is not what its sender described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// The description has another length than the reservation.
    #[error("the page was announced with {reserved} bytes and described with {described}; send it again")]
    Length {
        /// Bytes that were reserved.
        reserved: u32,
        /// Bytes that the description says.
        described: u32,
    },
    /// The bytes have another checksum.
    #[error(
        "the page's bytes have checksum {computed:016x}, its sender computed {described:016x}; send it again"
    )]
    Checksum {
        /// Checksum of the bytes that arrived.
        computed: u64,
        /// Checksum in the description.
        described: u64,
    },
}

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The page is in the store.
    Stored,
    /// Somebody else stored the key first; their page stays.
    Exists,
}

/// What publishing needs to know, from the reservation on.
struct Arrival {
    state: Arc<State>,
    space: Arc<Space>,
    /// The key's bytes, checked when it was hashed.
    key: Box<[u8]>,
    digest: u64,
    position: u32,
    len: u32,
    /// What the tenant pays meanwhile.
    charge: Charge,
}

/// A reserved slot that nobody else sees. Dropping it gives the slot back.
pub struct Filling {
    arrival: Arrival,
    slot: ReservedSlot,
}

impl Filling {
    pub(crate) fn new(
        state: Arc<State>,
        space: Arc<Space>,
        (key, digest): (Box<[u8]>, u64),
        (position, charge): (u32, Charge),
        (slot, len): (ReservedSlot, u32),
    ) -> Self {
        Self { arrival: Arrival { state, space, key, digest, position, len, charge }, slot }
    }

    /// The page's bytes, exactly as many as were reserved. They start out stale (zeroes, or what an earlier page
    /// left), so all of them must be written before [`Filling::verify`].
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.slot.bytes_mut()
    }

    /// Bytes reserved.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is a size, not a container's count")]
    pub fn len(&self) -> u32 {
        self.arrival.len
    }

    /// Digest of space and key: the seed of the page's checksum.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.arrival.digest
    }

    /// Computes the checksum over the bytes and compares it with the sender's.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if length or checksum differ; the slot is given back.
    pub fn verify(mut self, meta: PageMeta) -> Result<Sealed, Corrupt> {
        let computed = PageHasher::oneshot(self.arrival.digest, self.bytes_mut());
        self.verify_streamed(meta, computed)
    }

    /// Compares the checksum with the sender's, from the hash of the bytes that the caller computed while they
    /// arrived.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if length or checksum differ; the slot is given back.
    pub fn verify_streamed(self, meta: PageMeta, computed: u64) -> Result<Sealed, Corrupt> {
        let Arrival { ref state, len, .. } = self.arrival;
        let corrupt = if meta.len != len {
            Corrupt::Length { reserved: len, described: meta.len }
        } else if meta.checksum != meta.checksum_of(computed) {
            Corrupt::Checksum { computed: meta.checksum_of(computed), described: meta.checksum }
        } else {
            return Ok(Sealed { slot: self.slot.seal(), arrival: self.arrival, meta });
        };
        count(&state.tally.corrupt, 1);
        Err(corrupt)
    }
}

/// A whole and verified page that is not yet visible. Dropping it gives the slot back.
pub struct Sealed {
    arrival: Arrival,
    slot: SealedSlot,
    meta: PageMeta,
}

impl Sealed {
    /// Makes the page visible, unless the key got one meanwhile: the first wins.
    pub fn publish(self, now: impl Into<Moment>) -> Published {
        let now = now.into();
        let Self { arrival, slot, meta } = self;
        let Arrival { state, space, key, digest, position, len, charge } = arrival;
        let record =
            |policy| PageRecord { meta, digest, position, now_ms: now.ms, policy, ..PageRecord::default() };
        let hashed = HashedKey { key: Key::new(&key).expect("it was a key when it was hashed"), digest };
        state.saw(now);
        let mut shard = state.index.shard_for(digest);
        let publish = || {
            let record = record(state.first_word(digest, position, now));
            slot.publish(&record, &space.id().0, &key)
        };
        if !shard.insert(&space, hashed, publish) {
            drop(shard);
            count(&state.tally.existing, 1);
            return Published::Exists;
        }
        space.count_in(u64::from(len));
        charge.keep();
        drop(shard);
        count(&state.tally.stored_pages, 1);
        count(&state.tally.stored_bytes, u64::from(len));
        Published::Stored
    }
}

/// A page's bytes, which cannot change, move or be reused while this exists.
#[derive(Debug)]
pub struct PagePin(SlotPin);

impl PagePin {
    pub(crate) fn new(pin: SlotPin) -> Self {
        Self(pin)
    }

    /// Length, encoding and checksum of the page.
    #[must_use]
    pub fn meta(&self) -> PageMeta {
        self.0.meta()
    }

    /// Whether the bytes may be served without comparing them with the checksum.
    pub(crate) fn is_verified(&self) -> bool {
        self.0.is_verified()
    }

    /// Where the page begins in the memory that [`Engine::shared_memory`](crate::Engine::shared_memory) tells of, in
    /// bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.offset()
    }

    /// Where the page is.
    pub(crate) fn slot(&self) -> SlotId {
        self.0.id()
    }

    /// All bytes of the slot, also those past the page.
    #[cfg(test)]
    pub(crate) fn whole_slot(&self) -> &[u8] {
        self.0.whole_slot()
    }
}

impl Deref for PagePin {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for PagePin {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filling").field("digest", &self.arrival.digest).field("slot", &self.slot).finish()
    }
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed").field("digest", &self.arrival.digest).field("slot", &self.slot).finish()
    }
}
