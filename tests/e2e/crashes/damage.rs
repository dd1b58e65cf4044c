//! Damage to the files of a daemon that does not run: what a drive or memory may do while nobody looks.

use super::Places;
use super::rng::Rng;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// Bytes of the memory's file in which bits are turned.
const CHUNKS_BYTES: u64 = 48 << 20;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// Nothing.
    None,
    /// Single bits are turned, in pages or headers of segments.
    FlippedBits,
    /// A segment ends early.
    Truncated,
    /// The end of the newest segment was not written, from some sector on.
    TornTail,
    /// A segment is gone.
    Missing,
    /// Bits of pages in memory are turned.
    FlippedMemory,
}

impl Damage {
    /// Some damage that these places can suffer.
    pub(super) fn some(rng: &mut Rng, places: &Places) -> Self {
        let on_drives = [Self::FlippedBits, Self::Truncated, Self::TornTail, Self::Missing];
        match (places.drives.is_empty(), places.backing.is_some()) {
            (true, _) => Self::FlippedMemory,
            (false, true) if rng.below(3) == 0 => Self::FlippedMemory,
            (false, _) => on_drives[rng.below(4) as usize],
        }
    }

    /// Does it.
    pub(super) fn inflict(self, rng: &mut Rng, places: &Places) {
        if self == Self::None {
            return;
        }
        if self == Self::FlippedMemory {
            let path = places.backing.as_ref().unwrap().join("memkv.arena");
            return flip_data(rng, &path);
        }
        let segments = segments(places);
        if segments.is_empty() {
            return;
        }
        let path = &segments[rng.below(segments.len() as u64) as usize];
        let len = fs::metadata(path).unwrap().len();
        match self {
            Self::None | Self::FlippedMemory => {}
            Self::FlippedBits => (0..=rng.below(20)).for_each(|_| flip(rng, path, 0, len)),
            Self::Truncated => file(path).set_len(rng.below(len)).unwrap(),
            Self::TornTail => tear(rng, segments.last().unwrap()),
            Self::Missing => fs::remove_file(path).unwrap(),
        }
    }
}

/// Segments of all drives, the newest last.
fn segments(places: &Places) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for drive in &places.drives {
        for entry in fs::read_dir(drive).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "segment") {
                found.push((entry.metadata().unwrap().modified().unwrap(), path));
            }
        }
    }
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn file(path: &PathBuf) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Turns one bit between two places.
fn flip(rng: &mut Rng, path: &PathBuf, from: u64, to: u64) {
    let at = from + rng.below(to - from);
    let mut byte = [0];
    let file = file(path);
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << rng.below(8);
    file.write_all_at(&byte, at).unwrap();
}

/// Turns bits where pages are: in the first chunks of the memory's file, whose header says where they begin.
fn flip_data(rng: &mut Rng, path: &PathBuf) {
    let mut offset = [0; 8];
    file(path).read_exact_at(&mut offset, 56).unwrap();
    let begin = u64::from_ne_bytes(offset);
    (0..200).for_each(|_| flip(rng, path, begin, begin + CHUNKS_BYTES));
}

/// Takes back the last writes to a file, from a sector on: nothing was written behind it.
fn tear(rng: &mut Rng, path: &PathBuf) {
    let file = file(path);
    let len = file.metadata().unwrap().len();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else { return };
    let written = last as u64 + 1;
    let from = (written - rng.below(written.min(1 << 20))) / 512 * 512;
    let zeros = vec![0; usize::try_from(written - from).unwrap()];
    file.write_all_at(&zeros, from).unwrap();
}
