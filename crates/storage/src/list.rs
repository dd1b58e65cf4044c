//! Lists the keys of a space, a bounded piece at a time.
//!
//! Order: by shard, then by key. A cursor names the last key that was returned, so nothing is skipped or repeated
//! while nothing changes, and a key that stays is never skipped whatever changes around it.
//!
//! ```text
//! cursor:  0        1        2..
//!          version  shard    last key returned, or nothing at the start of the shard
//! ```

use crate::index::{Found, Place, SHARDS};
use crate::space::Space;
use crate::state::State;
use memkv_core::page::key_digest;
use memkv_core::{Key, MAX_KEY_BYTES, PageMeta};
use memkv_nvme::Extent;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

const VERSION: u8 = 1;
/// The most keys in one answer.
const LIMIT_MAX: usize = 16_384;
/// A call ends after the shard in which it has looked at this many entries.
pub(crate) const SCAN_MAX: usize = 1 << 18;

/// What is known about a stored page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The key.
    pub key: Vec<u8>,
    /// Digest of space and key.
    pub digest: u64,
    /// Length, encoding and checksum.
    pub meta: PageMeta,
    /// Depth in the chain of pages that make up a prefix; see [`memkv_core::position`].
    pub position: u32,
    /// Bytes of the slot that it rests in; 0 if it is not in memory.
    pub slot_bytes: u32,
    /// When it was stored.
    pub created_ms: u64,
    /// When it was last read or touched.
    pub last_access_ms: u64,
    /// How often it was read; wraps around at 2^32.
    pub hits: u32,
    /// Readers that hold it now.
    pub pins: u32,
    /// Whether it rests in memory. Otherwise the times are in whole seconds.
    pub in_dram: bool,
    /// The drive that it rests on, by its place in the configuration.
    pub drive: Option<u8>,
    /// Until when an operator keeps it from eviction.
    pub kept_until_ms: Option<u64>,
}

/// A piece of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The keys of this piece; may be fewer than asked, or none, before the end.
    pub entries: Vec<KeyInfo>,
    /// Where to go on; empty at the end, and only there.
    pub next_cursor: Vec<u8>,
}

/// The cursor was not made by this engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cursor is not valid; start again without one")]
pub struct BadCursor;

struct Cursor<'a> {
    shard: usize,
    after: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, BadCursor> {
        match bytes {
            [] => Ok(Self { shard: 0, after: &[] }),
            [VERSION, shard, after @ ..] if after.len() <= MAX_KEY_BYTES => {
                Ok(Self { shard: usize::from(*shard), after })
            }
            _ => Err(BadCursor),
        }
    }

    /// The cursor after `after` in `shard`, empty past the last shard.
    fn encode(shard: usize, after: &[u8]) -> Vec<u8> {
        let Ok(number) = u8::try_from(shard) else { return Vec::new() };
        [&[VERSION, number], after].concat()
    }
}

const _: () = assert!(SHARDS == 256, "a cursor names a shard with one byte");

/// Lists up to `limit` keys (at least one, at most [`LIMIT_MAX`]) that start with `prefix`, and looks at about
/// `scan_max` entries at most.
pub(crate) fn list(
    state: &State,
    space: &Space,
    prefix: &[u8],
    (limit, scan_max): (usize, usize),
    cursor: &[u8],
) -> Result<Listing, BadCursor> {
    let limit = limit.clamp(1, LIMIT_MAX);
    let Cursor { shard: first, mut after } = Cursor::decode(cursor)?;
    let mut entries = Vec::new();
    let mut scanned = 0;
    for number in first..SHARDS {
        let room = limit - entries.len();
        let before = entries.len();
        scanned += one_shard(state, space, (prefix, after), (number, room), &mut entries);
        after = &[];
        let next_cursor = if entries.len() - before == room {
            let last = entries.last().map_or(&[][..], |info: &KeyInfo| &info.key);
            Cursor::encode(number, last)
        } else if scanned >= scan_max {
            Cursor::encode(number + 1, &[])
        } else {
            continue;
        };
        return Ok(Listing { entries, next_cursor });
    }
    Ok(Listing { entries, next_cursor: Vec::new() })
}

/// Appends the smallest `room` matching keys of a shard that come after `after`; returns the entries looked at.
fn one_shard(
    state: &State,
    space: &Space,
    (prefix, after): (&[u8], &[u8]),
    (number, room): (usize, usize),
    found: &mut Vec<KeyInfo>,
) -> usize {
    let shard = state.index.shard(number);
    let mut smallest: BinaryHeap<Keyed<'_>> = BinaryHeap::new();
    let wanted = |found: &Found<'_>| {
        found.space == space.number() && found.key.starts_with(prefix) && found.key > after
    };
    for found in shard.iter().filter(wanted) {
        smallest.push(Keyed(found));
        if smallest.len() > room {
            smallest.pop();
        }
    }
    let infos = smallest.into_sorted_vec().into_iter();
    found.extend(infos.filter_map(|Keyed(page)| info(state, space, &page)));
    shard.len()
}

/// Pages in the order of their keys.
struct Keyed<'a>(Found<'a>);

impl PartialEq for Keyed<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Keyed<'_> {}

impl PartialOrd for Keyed<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Keyed<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(other.0.key)
    }
}

/// What is known about a page, while its shard is locked.
pub(crate) fn info(state: &State, space: &Space, found: &Found<'_>) -> Option<KeyInfo> {
    let key = found.key.to_vec();
    match found.place {
        Place::Dram(slot) => {
            let page = state.arena.page(slot)?;
            Some(KeyInfo {
                key,
                digest: page.digest,
                meta: page.meta,
                position: page.position,
                slot_bytes: state.arena.slot_bytes(slot),
                created_ms: page.created_ms,
                last_access_ms: page.last_access_ms,
                hits: page.hits,
                pins: page.pins,
                in_dram: true,
                drive: Extent::from_bits(page.extent).map(Extent::drive),
                kept_until_ms: state.kept.until_ms(page.digest),
            })
        }
        Place::Drive(extent) => {
            let meta = found.meta?;
            Some(KeyInfo {
                digest: key_digest(space.id(), Key::new(found.key).ok()?),
                key,
                meta: meta.meta,
                position: meta.position,
                slot_bytes: 0,
                created_ms: u64::from(meta.created_s) * 1000,
                last_access_ms: u64::from(meta.access_s) * 1000,
                hits: meta.hits,
                pins: 0,
                in_dram: false,
                drive: Some(extent.drive()),
                kept_until_ms: None,
            })
        }
    }
}
