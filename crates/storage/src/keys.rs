//! The key records of one shard: a heap without pointers.
//!
//! A record is named by a handle of 32 bits and costs its length rounded up to 4 bytes, without the header and the
//! rounding of an allocation. Blocks of 16 KiB are filled one after another; a record that is freed goes to the list
//! of its length and is used again by the next record of that length. Keys of one model have one length, so that
//! is nearly always. What other lengths leave unused is won back by [`KeyHeap::rebuilt`].
//!
//! ```text
//! record:  0..4                                        4..36 (drive)   then
//!          space number (21 bits) | drive | length     what the drive  key
//!          above bit 11             bit 10  bits 9..0   does not say
//! ```
//!
//! A page in memory has its description in its slot's record; a page that is only on a drive has it here, as
//! [`DriveMeta`].
//!
//! Invariant: a handle is used only between [`KeyHeap::add`] and [`KeyHeap::free`]; the table of the shard sees to it.

use memkv_core::{MAX_KEY_BYTES, PageMeta};

/// The most spaces that records can name.
pub(crate) const SPACES_MAX: u32 = 1 << 21;

const UNIT: usize = 4;
const BLOCK_UNITS: usize = 4096;
const HEAD_BYTES: usize = 4;
const META_BYTES: usize = 32;
const LEN_BITS: u32 = 10;
const LEN_MASK: u32 = (1 << LEN_BITS) - 1;
const DRIVE: u32 = 1 << LEN_BITS;
/// One list of free records for each length in units.
const LENGTHS: usize = (HEAD_BYTES + META_BYTES + MAX_KEY_BYTES) / UNIT + 1;
/// Ends a list of free records.
const NONE: u32 = u32::MAX;
/// Below this many units nothing is rebuilt.
const REBUILD_UNITS: usize = 4 * BLOCK_UNITS;

const _: () = assert!(MAX_KEY_BYTES < 1 << LEN_BITS && LENGTHS < BLOCK_UNITS);

/// What is known of a page that is only on a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DriveMeta {
    pub(crate) meta: PageMeta,
    pub(crate) position: u32,
    /// When it was put, in seconds.
    pub(crate) created_s: u32,
    /// When it was last wanted, in seconds.
    pub(crate) access_s: u32,
    pub(crate) hits: u32,
    /// It was wanted since it was last written.
    pub(crate) wanted: bool,
}

impl DriveMeta {
    /// Notes that the page was wanted.
    pub(crate) fn want(&mut self, now_ms: u64) {
        self.access_s = self.access_s.max(seconds(now_ms));
        self.wanted = true;
    }

    fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        bytes[..8].copy_from_slice(&self.meta.checksum.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.meta.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.meta.flags.to_le_bytes());
        bytes[14] = self.meta.codec;
        bytes[15] = u8::from(self.wanted);
        let words = [self.position, self.created_s, self.access_s, self.hits];
        for (place, word) in bytes[16..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let checksum = u64::from(word(4)) << 32 | u64::from(word(0));
        let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
        Self {
            meta: PageMeta { len: word(8), codec: bytes[14], flags, checksum },
            position: word(16),
            created_s: word(20),
            access_s: word(24),
            hits: word(28),
            wanted: bytes[15] != 0,
        }
    }
}

/// Whole seconds, as far as 32 bits go.
pub(crate) fn seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(u32::MAX)
}

/// Names a record of one heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHandle(u32);

#[derive(Clone, Copy)]
struct Head(u32);

impl Head {
    fn key_bytes(self) -> usize {
        (self.0 & LEN_MASK) as usize
    }

    fn is_drive(self) -> bool {
        self.0 & DRIVE != 0
    }

    fn space(self) -> u32 {
        self.0 >> (LEN_BITS + 1)
    }

    fn key_offset(self) -> usize {
        HEAD_BYTES + if self.is_drive() { META_BYTES } else { 0 }
    }

    fn units(self) -> usize {
        (self.key_offset() + self.key_bytes()).div_ceil(UNIT)
    }
}

fn head_of(space: u32, key: &[u8], drive: bool) -> Head {
    let len = u32::try_from(key.len()).expect("keys have at most 512 bytes");
    Head(space << (LEN_BITS + 1) | if drive { DRIVE } else { 0 } | len)
}

pub(crate) struct KeyHeap {
    blocks: Vec<Box<[u8]>>,
    /// Units of the last block that are handed out.
    filled: usize,
    /// The first free record of each length in units; a free record starts with the next one's handle.
    free: [u32; LENGTHS],
    free_units: usize,
}

impl Default for KeyHeap {
    fn default() -> Self {
        Self { blocks: Vec::new(), filled: BLOCK_UNITS, free: [NONE; LENGTHS], free_units: 0 }
    }
}

impl KeyHeap {
    /// Stores a key, and what is known of its page if it is only on a drive.
    pub(crate) fn add(&mut self, space: u32, key: &[u8], drive: Option<&DriveMeta>) -> KeyHandle {
        let head = head_of(space, key, drive.is_some());
        let handle = self.take(head.units());
        let bytes = self.bytes_mut(handle);
        bytes[..HEAD_BYTES].copy_from_slice(&head.0.to_le_bytes());
        if let Some(meta) = drive {
            bytes[HEAD_BYTES..HEAD_BYTES + META_BYTES].copy_from_slice(&meta.encode());
        }
        bytes[head.key_offset()..][..key.len()].copy_from_slice(key);
        handle
    }

    /// Gives a record up.
    pub(crate) fn free(&mut self, handle: KeyHandle) {
        let units = self.head(handle).units();
        self.list(handle, units);
    }

    /// Whether a record holds this key of this space.
    pub(crate) fn is(&self, handle: KeyHandle, space: u32, key: &[u8]) -> bool {
        let head = self.head(handle);
        head.0 & !DRIVE == head_of(space, key, false).0 && self.key(handle) == key
    }

    pub(crate) fn key(&self, handle: KeyHandle) -> &[u8] {
        let head = self.head(handle);
        &self.bytes(handle)[head.key_offset()..][..head.key_bytes()]
    }

    pub(crate) fn space(&self, handle: KeyHandle) -> u32 {
        self.head(handle).space()
    }

    /// What is known of a page that is only on a drive.
    pub(crate) fn drive_meta(&self, handle: KeyHandle) -> Option<DriveMeta> {
        let bytes = || &self.bytes(handle)[HEAD_BYTES..HEAD_BYTES + META_BYTES];
        self.head(handle).is_drive().then(|| DriveMeta::decode(bytes()))
    }

    /// Changes what is known of a page that is only on a drive; nothing happens to another one.
    pub(crate) fn set_drive_meta(&mut self, handle: KeyHandle, meta: &DriveMeta) {
        if self.head(handle).is_drive() {
            self.bytes_mut(handle)[HEAD_BYTES..HEAD_BYTES + META_BYTES].copy_from_slice(&meta.encode());
        }
    }

    /// Stores the record's key anew, for a page that came to, or left, memory.
    pub(crate) fn change(&mut self, handle: KeyHandle, drive: Option<&DriveMeta>) -> KeyHandle {
        let (mut copy, key) = ([0; MAX_KEY_BYTES], self.key(handle));
        let (len, space) = (key.len(), self.space(handle));
        copy[..len].copy_from_slice(key);
        self.free(handle);
        self.add(space, &copy[..len], drive)
    }

    /// Whether so much is unused that the shard should move its records to a new heap.
    pub(crate) fn wants_rebuild(&self) -> bool {
        let units = self.blocks.len() * BLOCK_UNITS;
        units >= REBUILD_UNITS && self.free_units * 3 > units
    }

    /// Copies a record to another heap.
    pub(crate) fn copy_to(&self, handle: KeyHandle, other: &mut Self) -> KeyHandle {
        other.add(self.space(handle), self.key(handle), self.drive_meta(handle).as_ref())
    }

    /// Bytes of all blocks.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.blocks.len() * BLOCK_UNITS * UNIT + self.blocks.capacity() * size_of::<Box<[u8]>>()
    }

    fn take(&mut self, units: usize) -> KeyHandle {
        let first = self.free[units];
        if first != NONE {
            let handle = KeyHandle(first);
            self.free[units] = self.word(handle);
            self.free_units -= units;
            return handle;
        }
        if self.filled + units > BLOCK_UNITS {
            self.end_block();
        }
        let at = (self.blocks.len() - 1) * BLOCK_UNITS + self.filled;
        self.filled += units;
        KeyHandle(u32::try_from(at).expect("a shard's keys stay far below 16 GiB"))
    }

    /// Starts a new block; the rest of the last one waits for shorter records.
    fn end_block(&mut self) {
        let rest = BLOCK_UNITS - self.filled;
        if rest > 0 {
            let at = (self.blocks.len() - 1) * BLOCK_UNITS + self.filled;
            let at = u32::try_from(at).expect("a shard's keys stay far below 16 GiB");
            self.list(KeyHandle(at), rest);
        }
        self.blocks.push(vec![0; BLOCK_UNITS * UNIT].into());
        self.filled = 0;
    }

    fn list(&mut self, handle: KeyHandle, units: usize) {
        let next = std::mem::replace(&mut self.free[units], handle.0);
        self.bytes_mut(handle)[..UNIT].copy_from_slice(&next.to_le_bytes());
        self.free_units += units;
    }

    fn head(&self, handle: KeyHandle) -> Head {
        Head(self.word(handle))
    }

    fn word(&self, handle: KeyHandle) -> u32 {
        let (word, _) = self.bytes(handle).split_first_chunk().expect("a record has at least a head");
        u32::from_le_bytes(*word)
    }

    /// From a record's start to its block's end.
    fn bytes(&self, handle: KeyHandle) -> &[u8] {
        let at = handle.0 as usize;
        &self.blocks[at / BLOCK_UNITS][at % BLOCK_UNITS * UNIT..]
    }

    fn bytes_mut(&mut self, handle: KeyHandle) -> &mut [u8] {
        let at = handle.0 as usize;
        &mut self.blocks[at / BLOCK_UNITS][at % BLOCK_UNITS * UNIT..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta(n: u32) -> DriveMeta {
        let meta = PageMeta { len: n, codec: 7, flags: 0xabcd, checksum: u64::from(n) << 40 | 5 };
        DriveMeta {
            meta,
            position: n + 1,
            created_s: n + 2,
            access_s: n + 3,
            hits: n + 4,
            wanted: n % 2 == 1,
        }
    }

    #[test]
    fn records_of_one_length_are_used_again() {
        let mut heap = KeyHeap::default();
        let handles: Vec<_> = (0..1000_u32).map(|n| heap.add(n, &[b'k'; 100], None)).collect();
        let bytes = heap.heap_bytes();
        // 104 bytes each, and a rest of less than that at the end of each of the 7 blocks.
        assert_eq!(heap.blocks.len(), 7);
        for round in 0..20 {
            for &handle in &handles {
                heap.free(handle);
            }
            for n in 0..1000 {
                heap.add(n + round, &[b'k'; 100], None);
            }
        }
        assert_eq!(heap.heap_bytes(), bytes);
    }

    #[test]
    fn the_largest_key_and_space_fit() {
        let mut heap = KeyHeap::default();
        let key = [0xff; MAX_KEY_BYTES];
        let handle = heap.add(SPACES_MAX - 1, &key, Some(&meta(9)));
        assert_eq!((heap.space(handle), heap.key(handle)), (SPACES_MAX - 1, &key[..]));
        assert_eq!(heap.drive_meta(handle), Some(meta(9)));
        let handle = heap.change(handle, None);
        assert_eq!((heap.drive_meta(handle), heap.key(handle)), (None, &key[..]));
        assert!(heap.is(handle, SPACES_MAX - 1, &key));
        assert!(!heap.is(handle, SPACES_MAX - 2, &key) && !heap.is(handle, SPACES_MAX - 1, &key[1..]));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add { space: u32, len: usize, drive: bool },
        Free(usize),
        Change(usize, bool),
        Rebuild,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0..SPACES_MAX, 1..=MAX_KEY_BYTES, any::<bool>())
                .prop_map(|(space, len, drive)| Op::Add { space, len, drive }),
            3 => any::<usize>().prop_map(Op::Free),
            2 => (any::<usize>(), any::<bool>()).prop_map(|(at, drive)| Op::Change(at, drive)),
            1 => Just(Op::Rebuild),
        ]
    }

    proptest! {
        #[test]
        fn records_keep_what_they_were_given(ops in proptest::collection::vec(op(), 1..400)) {
            let mut heap = KeyHeap::default();
            let mut known: Vec<(KeyHandle, u32, Vec<u8>, Option<DriveMeta>)> = Vec::new();
            for (n, op) in (0_u32..).zip(ops) {
                match op {
                    Op::Add { space, len, drive } => {
                        let key: Vec<u8> = (0..len).map(|at| n.to_le_bytes()[at % 4] ^ (at / 4) as u8).collect();
                        let meta = drive.then(|| meta(n));
                        known.push((heap.add(space, &key, meta.as_ref()), space, key, meta));
                    }
                    Op::Free(at) if !known.is_empty() => {
                        let at = at % known.len();
                        heap.free(known.swap_remove(at).0);
                    }
                    Op::Change(at, drive) if !known.is_empty() => {
                        let at = at % known.len();
                        known[at].3 = drive.then(|| meta(n));
                        known[at].0 = heap.change(known[at].0, known[at].3.as_ref());
                    }
                    Op::Rebuild => {
                        let mut other = KeyHeap::default();
                        for record in &mut known {
                            record.0 = heap.copy_to(record.0, &mut other);
                        }
                        heap = other;
                        prop_assert!(!heap.wants_rebuild());
                    }
                    Op::Free(_) | Op::Change(..) => {}
                }
                for (handle, space, key, meta) in &known {
                    prop_assert!(heap.is(*handle, *space, key));
                    prop_assert_eq!((heap.space(*handle), heap.key(*handle)), (*space, &key[..]));
                    prop_assert_eq!(heap.drive_meta(*handle), *meta);
                }
            }
        }
    }
}
