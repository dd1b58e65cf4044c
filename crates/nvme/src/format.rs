//! The format of a segment, version 1. All integers are little-endian; a block is 4096 bytes.
//!
//! ```text
//! segment file:  block 0   header, written once when the file is made
//!                block 1   seal, zeros until the segment is sealed
//!                block 2…  batches, one after the other; a batch that failed leaves a gap
//!                then      footer: all records of the segment; only if it is sealed
//! ```
//!
//! | header | bytes | |
//! |---|---|---|
//! | 0 | 8 | `memkvseg` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | 0 |
//! | 16 | 8 | checksum of bytes 24 to 4096, seed version |
//! | 24 | 8 | sequence number of the segment on its drive, from 1 |
//! | 32 | 8 | salt: a random number that seeds all other checksums of the file |
//! | 40 | 16 | id of the drive |
//! | 56 | 4 | blocks of the segment when it is full |
//! | 60 | … | 0 |
//!
//! | seal | bytes | |
//! |---|---|---|
//! | 0 | 8 | `memkvend` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | 0 |
//! | 16 | 8 | checksum of bytes 24 to 4096, seed version |
//! | 24 | 36 | as in the header, so that either of the two is enough |
//! | 60 | 4 | first block of the footer |
//! | 64 | 8 | highest sequence number of a record |
//! | 72 | 8 | bytes of the marks, with which the footer starts |
//! | 80 | 8 | bytes of the page records, which follow at once |
//! | 88 | 8 | checksum of the marks, seed salt |
//! | 96 | 8 | checksum of the page records, seed salt |
//! | 104 | 4 | number of marks |
//! | 108 | 4 | number of page records |
//! | 112 | … | 0 |
//!
//! | batch | bytes | |
//! |---|---|---|
//! | 0 | 8 | `memkvbat` |
//! | 8 | 8 | checksum of bytes 16 to the end of the records, seed salt |
//! | 16 | 8 | sequence number of the segment |
//! | 24 | 4 | block of the segment that this header starts in |
//! | 28 | 4 | bytes of this header with its records |
//! | 32 | 4 | blocks of the batch, header included |
//! | 36 | 4 | number of records |
//! | 40 | 24 | 0 |
//! | 64 | … | records, then zeros to the end of the block; then the pages, each from a block's start, ended by zeros |
//!
//! | record | bytes | page | delete | clear |
//! |---|---|---|---|---|
//! | 0 | 8 | sequence number, from 1, rising over the whole log | same | same |
//! | 8 | 8 | digest of space and key | same | 0 |
//! | 16 | 8 | checksum of the page | 0 | 0 |
//! | 24 | 8 | creation, milliseconds since 1970 | 0 | 0 |
//! | 32 | 16 | space | space | space |
//! | 48 | 4 | length of the page | 0 | 0 |
//! | 52 | 4 | position in its chain | 0 | 0 |
//! | 56 | 4 | hits | 0 | 0 |
//! | 60 | 4 | first block in the segment; an empty page names its batch's | 0 | 0 |
//! | 64 | 2 | flags | 0 | 0 |
//! | 66 | 1 | codec | 0 | 0 |
//! | 67 | 1 | 1 | 2 | 3 |
//! | 68 | 2 | length of the key | 0 | 0 |
//! | 70 | 2 | 0 | 0 | 0 |
//! | 72 | … | key, then zeros to a multiple of 8 | – | – |
//!
//! Checksums are XXH3-64. Magic, version and checksum of the first two blocks stay where they are and as they are in all
//! later versions, so that an older server can tell a later version from damage. The salt ties every header to its file: bytes of a page, which a client chooses, and blocks
//! of a file that was deleted cannot pass for a header of this one.
//!
//! A delete ends all records with its digest on its drive that have a lower sequence number, and a clear those of its
//! space. A record without its page (a crash between the two, or a broken drive) is found by the page's checksum.

use crate::extent::{BLOCK_BYTES, PAGE_BYTES_MAX, blocks_of};
use crate::head::PageHead;
use memkv_core::{MAX_KEY_BYTES, PageMeta, SpaceId};
use twox_hash::XxHash3_64;

/// The version that is written, and the newest that is read.
pub(crate) const VERSION: u32 = 1;
/// The first block of a segment that a batch may start in.
pub(crate) const FIRST_BLOCK: u32 = 2;
/// Bytes of a batch's header before its records.
pub(crate) const BATCH_HEAD_BYTES: usize = 64;
/// Bytes of a record before its key.
pub(crate) const RECORD_BYTES: usize = 72;
/// Bytes of a block.
pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;

const HEADER_MAGIC: &[u8; 8] = b"memkvseg";
const SEAL_MAGIC: &[u8; 8] = b"memkvend";
const BATCH_MAGIC: &[u8; 8] = b"memkvbat";

const KIND_PAGE: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_CLEAR: u8 = 3;

/// Who a segment is: the common part of header and seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) sequence: u64,
    pub(crate) salt: u64,
    pub(crate) drive: [u8; 16],
    pub(crate) blocks: u32,
}

/// Where a sealed segment's footer is, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) block: u32,
    pub(crate) last_sequence: u64,
    pub(crate) marks_bytes: u64,
    pub(crate) pages_bytes: u64,
    pub(crate) marks_checksum: u64,
    pub(crate) pages_checksum: u64,
    pub(crate) marks: u32,
    pub(crate) pages: u32,
}

/// What one of a segment's first two blocks turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead<T> {
    /// It checks out.
    Good(T),
    /// Only zeros: never written.
    Empty,
    /// It has the mark of a later version.
    Newer(u32),
    /// It was ours and is damaged.
    Damaged,
    /// It was never ours.
    Foreign,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Page { sequence: u64, head: PageHead<'a>, block: u32 },
    Delete { sequence: u64, digest: u64, space: SpaceId },
    Clear { sequence: u64, space: SpaceId },
}

/// A batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub(crate) bytes: u32,
    pub(crate) blocks: u32,
    pub(crate) records: u32,
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has N bytes")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// The checksum of the format.
pub(crate) fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

fn write_lead(block: &mut [u8], magic: &[u8; 8], identity: &Identity) {
    put(block, 0, magic);
    put(block, 8, &VERSION.to_le_bytes());
    put(block, 24, &identity.sequence.to_le_bytes());
    put(block, 32, &identity.salt.to_le_bytes());
    put(block, 40, &identity.drive);
    put(block, 56, &identity.blocks.to_le_bytes());
}

fn finish_lead(block: &mut [u8]) {
    let sum = checksum(u64::from(u32_at(block, 8)), &block[24..BLOCK]);
    put(block, 16, &sum.to_le_bytes());
}

/// Writes a header into a zeroed block.
pub(crate) fn write_header(block: &mut [u8], identity: &Identity) {
    write_lead(block, HEADER_MAGIC, identity);
    finish_lead(block);
}

/// Writes a seal into a zeroed block.
pub(crate) fn write_seal(block: &mut [u8], identity: &Identity, footer: &Footer) {
    write_lead(block, SEAL_MAGIC, identity);
    put(block, 60, &footer.block.to_le_bytes());
    put(block, 64, &footer.last_sequence.to_le_bytes());
    put(block, 72, &footer.marks_bytes.to_le_bytes());
    put(block, 80, &footer.pages_bytes.to_le_bytes());
    put(block, 88, &footer.marks_checksum.to_le_bytes());
    put(block, 96, &footer.pages_checksum.to_le_bytes());
    put(block, 104, &footer.marks.to_le_bytes());
    put(block, 108, &footer.pages.to_le_bytes());
    finish_lead(block);
}

fn read_lead(block: &[u8], magic: &[u8; 8]) -> Lead<Identity> {
    if block.iter().all(|byte| *byte == 0) {
        return Lead::Empty;
    }
    if block[..8] != *magic {
        return Lead::Foreign;
    }
    let version = u32_at(block, 8);
    if u64_at(block, 16) != checksum(u64::from(version), &block[24..BLOCK]) {
        return Lead::Damaged;
    }
    if version > VERSION {
        return Lead::Newer(version);
    }
    let blocks = u32_at(block, 56);
    let sequence = u64_at(block, 24);
    if version != VERSION
        || sequence == 0
        || u64::from(blocks) * u64::from(BLOCK_BYTES) > crate::SEGMENT_BYTES_MAX
    {
        return Lead::Damaged;
    }
    Lead::Good(Identity { sequence, salt: u64_at(block, 32), drive: array(block, 40), blocks })
}

/// Reads a header.
pub(crate) fn read_header(block: &[u8]) -> Lead<Identity> {
    read_lead(block, HEADER_MAGIC)
}

/// Reads a seal.
pub(crate) fn read_seal(block: &[u8]) -> Lead<(Identity, Footer)> {
    match read_lead(block, SEAL_MAGIC) {
        Lead::Good(identity) => {
            let footer = Footer {
                block: u32_at(block, 60),
                last_sequence: u64_at(block, 64),
                marks_bytes: u64_at(block, 72),
                pages_bytes: u64_at(block, 80),
                marks_checksum: u64_at(block, 88),
                pages_checksum: u64_at(block, 96),
                marks: u32_at(block, 104),
                pages: u32_at(block, 108),
            };
            let bytes = footer.marks_bytes.saturating_add(footer.pages_bytes);
            let room = u64::from(identity.blocks.saturating_sub(footer.block)) * u64::from(BLOCK_BYTES);
            let fits = footer.block >= FIRST_BLOCK && bytes <= room;
            if fits { Lead::Good((identity, footer)) } else { Lead::Damaged }
        }
        Lead::Empty => Lead::Empty,
        Lead::Newer(version) => Lead::Newer(version),
        Lead::Damaged => Lead::Damaged,
        Lead::Foreign => Lead::Foreign,
    }
}

/// Writes a batch's header into the start of `bytes`, whose records are in place. `head.bytes` ends them.
pub(crate) fn write_batch(bytes: &mut [u8], identity: &Identity, block: u32, head: &BatchHead) {
    put(bytes, 0, BATCH_MAGIC);
    put(bytes, 16, &identity.sequence.to_le_bytes());
    put(bytes, 24, &block.to_le_bytes());
    put(bytes, 28, &head.bytes.to_le_bytes());
    put(bytes, 32, &head.blocks.to_le_bytes());
    put(bytes, 36, &head.records.to_le_bytes());
    let sum = checksum(identity.salt, &bytes[16..head.bytes as usize]);
    put(bytes, 8, &sum.to_le_bytes());
}

/// Bytes of the header with its records, if a batch's header seems to start here. Says nothing of their truth.
pub(crate) fn batch_bytes(block: &[u8]) -> Option<usize> {
    let bytes = u32_at(block, 28) as usize;
    (block[..8] == *BATCH_MAGIC && bytes >= BATCH_HEAD_BYTES).then_some(bytes)
}

/// Reads a batch's header. `bytes` starts with it and holds all its records. `None` if it does not check out.
pub(crate) fn read_batch(bytes: &[u8], identity: &Identity, block: u32) -> Option<BatchHead> {
    let len = batch_bytes(bytes).filter(|len| *len <= bytes.len())?;
    if u64_at(bytes, 8) != checksum(identity.salt, &bytes[16..len]) {
        return None;
    }
    let head = BatchHead { bytes: u32_at(bytes, 28), blocks: u32_at(bytes, 32), records: u32_at(bytes, 36) };
    let own = u64_at(bytes, 16) == identity.sequence && u32_at(bytes, 24) == block;
    let fits = head.bytes.div_ceil(BLOCK_BYTES) <= head.blocks
        && block.checked_add(head.blocks).is_some_and(|end| end <= identity.blocks);
    (own && fits).then_some(head)
}

/// Bytes of a page's record with a key of this length.
pub(crate) fn record_bytes(key: usize) -> usize {
    RECORD_BYTES + key.next_multiple_of(8)
}

/// Adds a page's record.
pub(crate) fn push_page(records: &mut Vec<u8>, sequence: u64, head: &PageHead<'_>, block: u32) {
    let key_len = u16::try_from(head.key.len()).expect("a key has at most 512 bytes");
    records.extend_from_slice(&sequence.to_le_bytes());
    records.extend_from_slice(&head.digest.to_le_bytes());
    records.extend_from_slice(&head.meta.checksum.to_le_bytes());
    records.extend_from_slice(&head.created_ms.to_le_bytes());
    records.extend_from_slice(&head.space.0);
    for field in [head.meta.len, head.position, head.hits, block] {
        records.extend_from_slice(&field.to_le_bytes());
    }
    records.extend_from_slice(&head.meta.flags.to_le_bytes());
    records.extend_from_slice(&[head.meta.codec, KIND_PAGE]);
    records.extend_from_slice(&key_len.to_le_bytes());
    records.extend_from_slice(&[0; 2]);
    records.extend_from_slice(head.key);
    records.resize(records.len().next_multiple_of(8), 0);
}

/// Adds the record of a deleted page, or of a cleared space if there is no digest.
pub(crate) fn push_mark(records: &mut Vec<u8>, sequence: u64, digest: Option<u64>, space: SpaceId) {
    let mut record = [0; RECORD_BYTES];
    put(&mut record, 0, &sequence.to_le_bytes());
    put(&mut record, 8, &digest.unwrap_or(0).to_le_bytes());
    put(&mut record, 32, &space.0);
    record[67] = if digest.is_some() { KIND_DELETE } else { KIND_CLEAR };
    records.extend_from_slice(&record);
}

/// Goes through records one after the other.
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    blocks: u32,
}

impl<'a> Records<'a> {
    /// Records of a segment that has this many blocks.
    pub(crate) fn new(bytes: &'a [u8], blocks: u32) -> Self {
        Self { bytes, blocks }
    }

    /// The next record. `Err` if it makes no sense: then there is no next one either.
    fn parse(&mut self) -> Option<Result<Record<'a>, Nonsense>> {
        if self.bytes.is_empty() {
            return None;
        }
        let parsed = parse_record(self.bytes, self.blocks);
        match parsed {
            Ok((record, len)) => {
                self.bytes = &self.bytes[len..];
                Some(Ok(record))
            }
            Err(nonsense) => {
                self.bytes = &[];
                Some(Err(nonsense))
            }
        }
    }
}

/// A record that makes no sense although its checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nonsense;

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Nonsense>;

    fn next(&mut self) -> Option<Self::Item> {
        self.parse()
    }
}

fn parse_record(bytes: &[u8], blocks: u32) -> Result<(Record<'_>, usize), Nonsense> {
    if bytes.len() < RECORD_BYTES {
        return Err(Nonsense);
    }
    let sequence = u64_at(bytes, 0);
    let digest = u64_at(bytes, 8);
    let space = SpaceId(array(bytes, 32));
    match bytes[67] {
        KIND_DELETE => Ok((Record::Delete { sequence, digest, space }, RECORD_BYTES)),
        KIND_CLEAR => Ok((Record::Clear { sequence, space }, RECORD_BYTES)),
        KIND_PAGE => {
            let key_len = usize::from(u16::from_le_bytes(array(bytes, 68)));
            let key = bytes.get(RECORD_BYTES..RECORD_BYTES + key_len).ok_or(Nonsense)?;
            let meta = PageMeta {
                len: u32_at(bytes, 48),
                codec: bytes[66],
                flags: u16::from_le_bytes(array(bytes, 64)),
                checksum: u64_at(bytes, 16),
            };
            let block = u32_at(bytes, 60);
            let head = PageHead {
                space,
                key,
                digest,
                meta,
                position: u32_at(bytes, 52),
                created_ms: u64_at(bytes, 24),
                hits: u32_at(bytes, 56),
            };
            let fits = (1..=MAX_KEY_BYTES).contains(&key_len)
                && meta.len <= PAGE_BYTES_MAX
                && block >= FIRST_BLOCK
                && block.checked_add(blocks_of(meta.len)).is_some_and(|end| end <= blocks)
                && bytes.len() >= record_bytes(key_len);
            if fits {
                Ok((Record::Page { sequence, head, block }, record_bytes(key_len)))
            } else {
                Err(Nonsense)
            }
        }
        _ => Err(Nonsense),
    }
}
