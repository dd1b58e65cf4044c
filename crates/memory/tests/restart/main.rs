//! Arenas that outlive their process: what a restart gives back, and what it must not.

#![allow(clippy::unwrap_used, reason = "tests")]

mod crash;
mod past;
mod rules;

use memkv_core::page::key_digest;
use memkv_core::{Key, PageHasher, PageMeta, SpaceId};
use memkv_memory::{Arena, ArenaBacking, ArenaConfig, Full, PageRecord, Recovered, SlotId};
use std::path::Path;
use std::sync::Arc;

pub(crate) const SPACE: [u8; 16] = *b"a space of tests";

/// A new directory in memory, where arenas are meant to be, or on a drive on a machine that has no `/dev/shm`.
pub(crate) fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// An arena of this size in a directory, with pages of up to 1 MiB.
pub(crate) fn config(directory: &Path, bytes: u64) -> ArenaConfig<'static> {
    let backing = ArenaBacking::File(directory.to_owned());
    ArenaConfig { backing, ..ArenaConfig::anonymous(bytes, 1 << 20) }
}

/// Opens an arena of 16 MiB.
pub(crate) fn open(directory: &Path) -> (Arc<Arena>, Recovered) {
    let (arena, recovered) = Arena::open(config(directory, 16 << 20)).unwrap();
    (arena, recovered.expect("an arena in a file has a past"))
}

/// The page that belongs to a key: its length and all its bytes follow from the key.
pub(crate) fn page_of(key: &[u8]) -> Vec<u8> {
    let digest = digest_of(key);
    let len = match digest % 5 {
        0 => 100,
        1 => 5000,
        2 => 147_456 + 512,
        3 => 65_536,
        _ => 600_000,
    };
    digest.to_le_bytes().into_iter().cycle().take(len).collect()
}

pub(crate) fn digest_of(key: &[u8]) -> u64 {
    key_digest(SpaceId(SPACE), Key::new(key).unwrap())
}

/// What is noted about a key's page.
pub(crate) fn record_of(key: &[u8]) -> PageRecord {
    let (digest, page) = (digest_of(key), page_of(key));
    let meta = PageMeta {
        len: u32::try_from(page.len()).unwrap(),
        codec: 3,
        flags: 0x1234,
        checksum: PageHasher::oneshot(digest, &page),
    };
    PageRecord { meta, digest, position: 7, now_ms: 1000, policy: digest ^ 1, extent: digest >> 8 }
}

pub(crate) fn put(arena: &Arc<Arena>, key: &[u8]) -> Result<SlotId, Full> {
    let (record, page) = (record_of(key), page_of(key));
    let (mut slot, _) = arena.reserve(record.meta.len)?;
    slot.bytes_mut().copy_from_slice(&page);
    Ok(slot.seal().publish(&record, &SPACE, key))
}
