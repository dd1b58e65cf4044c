//! What is noted about a page, and how it is read back.

use crate::slot::Slot;
use crate::sync::Ordering;
use memkv_core::PageMeta;

/// The number of a slot. Plain data: whether the slot holds a page is checked at every use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub(crate) u32);

impl SlotId {
    /// The number, for tables that pack it.
    #[must_use]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// From a number; any number will do.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// What is noted about a page when it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRecord {
    /// Encoding and checksum; `len` is the reserved length, whatever is given here.
    pub meta: PageMeta,
    /// Digest of space and key.
    pub digest: u64,
    /// Depth in the chain of pages that make up a prefix; see [`memkv_core::position`].
    pub position: u32,
    /// Time of publication, also the first access.
    pub now_ms: u64,
    /// The eviction policy's word.
    pub policy: u64,
    /// Where else the page rests, in the words of the tier below; 0 if nowhere.
    pub extent: u64,
}

/// A published page as a scan sees it. Fields are read one by one and may be of different moments.
#[derive(Clone, Copy, Debug)]
pub struct PageView {
    /// Where it is.
    pub slot: SlotId,
    /// Length, encoding, checksum.
    pub meta: PageMeta,
    /// Digest of space and key.
    pub digest: u64,
    /// Depth in the chain of pages that make up a prefix.
    pub position: u32,
    /// When it was published.
    pub created_ms: u64,
    /// When it was last read or touched.
    pub last_access_ms: u64,
    /// Reads; stops at 2^20 - 1.
    pub hits: u32,
    /// The eviction policy's word.
    pub policy: u64,
    /// Where else the page rests, in the words of the tier below; 0 if nowhere.
    pub extent: u64,
    /// `false` from a restart after an unclean end until [`Arena::verified`](crate::Arena::verified): the bytes have to
    /// be compared with the checksum before anybody gets them.
    pub verified: bool,
    /// Readers that hold it now.
    pub pins: u32,
}

impl PageView {
    /// Reads a slot's record. `None` if it holds no published page.
    pub(crate) fn of(id: SlotId, slot: &Slot) -> Option<Self> {
        let pins = slot.state.published()?;
        let (last_access_ms, hits) = slot.accessed();
        Some(Self {
            slot: id,
            meta: meta_of(slot),
            digest: slot.digest.load(Ordering::Relaxed),
            position: slot.position.load(Ordering::Relaxed),
            created_ms: slot.created_ms.load(Ordering::Relaxed),
            last_access_ms,
            hits,
            policy: slot.policy.load(Ordering::Relaxed),
            extent: slot.extent.load(Ordering::Relaxed),
            verified: slot.is_verified(),
            pins,
        })
    }

    /// The record that the page was published with.
    pub(crate) fn record(&self) -> PageRecord {
        PageRecord {
            meta: self.meta,
            digest: self.digest,
            position: self.position,
            now_ms: self.created_ms,
            policy: self.policy,
            extent: self.extent,
        }
    }
}

pub(crate) fn meta_of(slot: &Slot) -> PageMeta {
    let [codec, low, high, _] = slot.encoding.load(Ordering::Relaxed).to_le_bytes();
    PageMeta {
        len: slot.len.load(Ordering::Relaxed),
        codec,
        flags: u16::from_le_bytes([low, high]),
        checksum: slot.checksum.load(Ordering::Relaxed),
    }
}

/// Writes a page's record into its slot, before the slot is published.
pub(crate) fn note(slot: &Slot, record: &PageRecord) {
    let [low, high] = record.meta.flags.to_le_bytes();
    slot.encoding.store(u32::from_le_bytes([record.meta.codec, low, high, 0]), Ordering::Relaxed);
    slot.checksum.store(record.meta.checksum, Ordering::Relaxed);
    slot.digest.store(record.digest, Ordering::Relaxed);
    slot.position.store(record.position, Ordering::Relaxed);
    slot.created_ms.store(record.now_ms, Ordering::Relaxed);
    slot.set_accessed(record.now_ms, 0);
    slot.policy.store(record.policy, Ordering::Relaxed);
    slot.extent.store(record.extent, Ordering::Relaxed);
}
