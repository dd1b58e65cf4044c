//! What rests beside a page's bytes.

use memkv_core::{PageMeta, SpaceId};

/// Everything that a record says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHead<'a> {
    /// The space that the page was put into.
    pub space: SpaceId,
    /// Its key, 1 to 512 bytes.
    pub key: &'a [u8],
    /// Digest of space and key.
    pub digest: u64,
    /// Length, encoding and checksum.
    pub meta: PageMeta,
    /// Depth in the chain of pages that make up a prefix; see [`memkv_core::position`].
    pub position: u32,
    /// When the page was put, in milliseconds since 1970.
    pub created_ms: u64,
    /// Reads up to when the record was written.
    pub hits: u32,
}

/// A [`PageHead`] with its own key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedHead {
    /// See [`PageHead::space`].
    pub space: SpaceId,
    /// See [`PageHead::key`].
    pub key: Box<[u8]>,
    /// See [`PageHead::digest`].
    pub digest: u64,
    /// See [`PageHead::meta`].
    pub meta: PageMeta,
    /// See [`PageHead::position`].
    pub position: u32,
    /// See [`PageHead::created_ms`].
    pub created_ms: u64,
    /// See [`PageHead::hits`].
    pub hits: u32,
}

impl OwnedHead {
    /// The same, borrowed.
    #[must_use]
    pub fn as_head(&self) -> PageHead<'_> {
        let Self { space, ref key, digest, meta, position, created_ms, hits } = *self;
        PageHead { space, key, digest, meta, position, created_ms, hits }
    }
}

impl PageHead<'_> {
    /// The same, with a copy of the key.
    #[must_use]
    pub fn to_owned(&self) -> OwnedHead {
        let Self { space, key, digest, meta, position, created_ms, hits } = *self;
        OwnedHead { space, key: key.into(), digest, meta, position, created_ms, hits }
    }
}
