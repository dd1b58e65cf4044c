//! Ways into the readers of this crate's formats for the fuzzer, which makes the bytes.
//!
//! A random change nearly always breaks a checksum, and then only the checksum is tried. [`repair`] writes the right ones, so that what
//! is behind them is reached as well.
//!
//! Deliberately absent: files. The whole way from a directory to served pages is tried through the engine.

use crate::extent::BLOCK_BYTES;
use crate::format::{self, BATCH_HEAD_BYTES, BLOCK, BatchHead, FIRST_BLOCK, Footer, Identity, Lead, Records};
use crate::members::{Card, Read};

/// The segment that [`sample_segment`] makes, and that damaged ones are read as.
const SAMPLE: Identity = Identity { sequence: 3, salt: 0x5a17, drive: [7; 16], blocks: 64 };

/// Reads bytes as a segment in every way that recovery does; returns the number of records that made sense.
///
/// # Panics
///
/// If a reader accepts what another one could not have written: that is a bug.
#[must_use]
pub fn read_segment(bytes: &[u8]) -> u64 {
    let mut file = bytes.to_vec();
    file.resize(file.len().next_multiple_of(BLOCK).max(2 * BLOCK), 0);
    let mut identity = SAMPLE;
    if let Lead::Good(found) = format::read_header(&file[..BLOCK]) {
        identity = found;
    }
    let mut understood = 0;
    if let Lead::Good((of_seal, footer)) = format::read_seal(&file[BLOCK..2 * BLOCK]) {
        identity = of_seal;
        let start = footer.block as usize * BLOCK;
        let (marks, pages) = (footer.marks_bytes, footer.pages_bytes);
        let end = start.saturating_add(usize::try_from(marks + pages).unwrap_or(usize::MAX));
        if let Some(records) = file.get(start..end) {
            understood += count(records, identity.blocks);
        }
    }
    let blocks = u32::try_from(file.len() / BLOCK).unwrap_or(u32::MAX).min(identity.blocks);
    for block in FIRST_BLOCK..blocks {
        let rest = &file[block as usize * BLOCK..];
        if let Some(head) = format::read_batch(rest, &identity, block) {
            assert!(block + head.blocks <= identity.blocks, "a batch ends inside its segment");
            understood += count(&rest[BATCH_HEAD_BYTES..head.bytes as usize], identity.blocks);
        }
    }
    understood
}

fn count(records: &[u8], blocks: u32) -> u64 {
    let mut understood = 0;
    for record in Records::new(records, blocks) {
        let Ok(record) = record else { break };
        if let format::Record::Page { head, block, .. } = record {
            let end = u64::from(block) + u64::from(crate::extent::blocks_of(head.meta.len));
            assert!(end <= u64::from(blocks), "a page ends inside its segment");
            assert!(!head.key.is_empty(), "a page has a key");
        }
        understood += 1;
    }
    understood
}

/// Writes the right magic, version and checksum wherever a header of a segment is expected.
pub fn repair(file: &mut Vec<u8>) {
    file.resize(file.len().next_multiple_of(BLOCK).max(2 * BLOCK), 0);
    let mut identity = SAMPLE;
    for (start, magic) in [(0, b"memkvseg"), (BLOCK, b"memkvend")] {
        let block = &mut file[start..start + BLOCK];
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        block[..8].copy_from_slice(magic);
        block[8..12].copy_from_slice(&format::VERSION.to_le_bytes());
        let sum = format::checksum(u64::from(format::VERSION), &block[24..]);
        block[16..24].copy_from_slice(&sum.to_le_bytes());
        if let Lead::Good(found) = format::read_header(block) {
            identity = found;
        }
    }
    let blocks = file.len() / BLOCK;
    for block in FIRST_BLOCK as usize..blocks {
        let rest = &mut file[block * BLOCK..];
        let Some(len) = format::batch_bytes(rest).filter(|len| *len <= rest.len()) else { continue };
        let sum = format::checksum(identity.salt, &rest[16..len]);
        rest[8..16].copy_from_slice(&sum.to_le_bytes());
    }
}

/// A small segment as the writer makes it: two batches, and a footer if it is `sealed`.
#[must_use]
pub fn sample_segment(sealed: bool) -> Vec<u8> {
    let mut file = vec![0; 6 * BLOCK];
    format::write_header(&mut file[..BLOCK], &SAMPLE);
    let space = memkv_core::SpaceId([1; 16]);
    let mut pages = Vec::new();
    for (number, block) in [2_u32, 4].into_iter().enumerate() {
        let (key, page) = ([b'a' + number as u8; 9], vec![number as u8 + 1; 100]);
        let checked = memkv_core::Key::new(&key).expect("nine bytes are a key");
        let digest = memkv_core::page::key_digest(space, checked);
        let mut meta = memkv_core::PageMeta { len: 100, codec: 0, flags: 0, checksum: 0 };
        meta.checksum = meta.checksum_of(memkv_core::PageHasher::oneshot(digest, &page));
        let head = crate::PageHead { space, key: &key, digest, meta, position: 1, created_ms: 1000, hits: 2 };
        let mut records = Vec::new();
        format::push_page(&mut records, 1 + number as u64, &head, block + 1);
        pages.extend_from_slice(&records);
        format::push_mark(&mut records, 5 + number as u64, (number == 0).then_some(9), space);
        let start = block as usize * BLOCK;
        file[start + BATCH_HEAD_BYTES..][..records.len()].copy_from_slice(&records);
        let bytes = u32::try_from(BATCH_HEAD_BYTES + records.len()).expect("two records are short");
        let batch = BatchHead { bytes, blocks: 2, records: 2 };
        format::write_batch(&mut file[start..], &SAMPLE, block, &batch);
        file[start + BLOCK..][..page.len()].copy_from_slice(&page);
    }
    if sealed {
        let footer = Footer {
            block: 6,
            last_sequence: 6,
            pages_bytes: pages.len() as u64,
            pages_checksum: format::checksum(SAMPLE.salt, &pages),
            marks_checksum: format::checksum(SAMPLE.salt, &[]),
            pages: 2,
            ..Footer::default()
        };
        format::write_seal(&mut file[BLOCK..2 * BLOCK], &SAMPLE, &footer);
        pages.resize(BLOCK_BYTES as usize, 0);
        file.extend_from_slice(&pages);
    }
    file
}

/// Reads bytes as the file that says which drives belong together, then with its checksum made right.
///
/// # Panics
///
/// If it reads what it would not write.
pub fn read_card(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for _ in 0..2 {
        if let Read::Card(card) = Card::decode(&bytes) {
            assert_eq!(
                Card::decode(&card.encode()),
                Read::Card(card.clone()),
                "a card reads as it was written"
            );
        }
        repair_small(&mut bytes, b"memkvdrv");
    }
}

/// Reads bytes as the file with the spaces' descriptions, then with its checksum made right.
///
/// # Panics
///
/// If it reads what it would not write.
pub fn read_spaces(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for _ in 0..2 {
        if let Ok(Some(spaces)) = crate::decode_spaces(&bytes) {
            let again = crate::decode_spaces(&crate::encode_spaces(&spaces));
            assert_eq!(again, Ok(Some(spaces)), "descriptions read as they were written");
        }
        repair_small(&mut bytes, b"memkvspc");
    }
}

/// A file of two drives, one of them retired.
#[must_use]
pub fn sample_card() -> Vec<u8> {
    Card { id: [1; 16], members: vec![[1; 16]], retired: vec![[2; 16]] }.encode()
}

fn repair_small(bytes: &mut [u8], magic: &[u8; 8]) {
    if bytes.len() < 24 {
        return;
    }
    bytes[..8].copy_from_slice(magic);
    bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let sum = format::checksum(1, &bytes[24..]);
    bytes[16..24].copy_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_understood_and_repaired_ones_too() {
        assert_eq!(read_segment(&sample_segment(false)), 4);
        assert_eq!(read_segment(&sample_segment(true)), 6);
        let mut damaged = sample_segment(true);
        damaged[2 * BLOCK + 70] ^= 1;
        damaged[17] ^= 1;
        assert_eq!(read_segment(&damaged), 4);
        repair(&mut damaged);
        assert_eq!(read_segment(&damaged), 6);
        read_card(&sample_card());
    }
}
