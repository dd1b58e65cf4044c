//! Formats on drives, in memory.

use crate::bytes::Bytes;
use memkv_core::SpaceDescription;
use memkv_nvme::fuzzing;

/// The first byte chooses between the bytes as they are, bytes with right checksums, and changes to a good segment.
pub(super) fn segment(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let which = bytes.byte();
    let mut file = if which & 4 == 0 { bytes.rest().to_vec() } else { changed(bytes, which & 2 != 0) };
    let _understood = fuzzing::read_segment(&file);
    if which & 1 == 1 {
        fuzzing::repair(&mut file);
        let _understood = fuzzing::read_segment(&file);
    }
}

/// A good segment with some bytes changed: two bytes where, one byte what.
fn changed(mut bytes: Bytes<'_>, sealed: bool) -> Vec<u8> {
    let mut file = fuzzing::sample_segment(sealed);
    while !bytes.is_empty() {
        // Most of a block is zeros; the places that mean something are near its start.
        let block = bytes.below(8);
        let at = (block << 12) + usize::from(bytes.byte());
        let with = bytes.byte();
        if let Some(byte) = file.get_mut(at) {
            *byte ^= with;
        }
    }
    file
}

pub(super) fn segment_seeds() -> Vec<Vec<u8>> {
    let with = |which: u8, rest: &[u8]| [&[which], rest].concat();
    vec![
        with(0, &fuzzing::sample_segment(false)),
        with(5, &[2, 71, 1, 2, 28, 255]),
        with(7, &[1, 60, 3, 1, 104, 1, 6, 0, 1]),
        with(6, &[0, 57, 1, 1, 30, 1]),
        with(1, b"memkvseg"),
    ]
}

/// The first byte chooses which of the small files it is.
pub(super) fn small_files(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    if bytes.flip() { fuzzing::read_card(bytes.rest()) } else { fuzzing::read_spaces(bytes.rest()) }
}

pub(super) fn small_seeds() -> Vec<Vec<u8>> {
    let named = |name: &str| SpaceDescription::named(name).expect("the name is short");
    let spaces = memkv_nvme::encode_spaces(&[named("one"), named("two")]);
    vec![
        [&[1], &fuzzing::sample_card()[..]].concat(),
        [&[0], &spaces[..]].concat(),
        [&[0], &memkv_nvme::encode_spaces(&[])[..]].concat(),
    ]
}
