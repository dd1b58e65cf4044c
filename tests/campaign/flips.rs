//! Bits that flip in files: in those of a server that is down, and in the memory and the segments of one that serves.

use crate::faults::Rng;
use anyhow::{Context as _, Result};
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Flips bits anywhere in a file.
pub(crate) fn flip(path: &Path, random: &mut Rng, bits: usize) -> Result<()> {
    let mut file = fs::File::options().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    for _ in 0..bits.min(usize::try_from(len).unwrap_or(usize::MAX)) {
        let at = random.next() % len;
        let mut byte = [0];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut byte)?;
        byte[0] ^= 1 << random.below(8);
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&byte)?;
    }
    Ok(())
}

/// Flips bits in the pages of a memory file that is in use: the tables before them are the server's own memory, and a
/// server whose own memory is wrong may do anything.
pub(crate) fn flip_pages(path: &Path, random: &mut Rng, bits: usize) -> Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0)?;
    // The eighth word says where pages begin.
    let data = u64::from_le_bytes(head[56..64].try_into().context("a word has eight bytes")?);
    let len = file.metadata()?.len();
    for _ in 0..bits {
        let at = data + random.next() % (len - data);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        // A place that holds nothing stays as it is: its memory should not be taken for this.
        if byte[0] != 0 {
            byte[0] ^= 1 << random.below(8);
            file.write_all_at(&byte, at)?;
        }
    }
    Ok(())
}

/// Flips bits in what a server has written to its drive and may read again. The files that say what the drive is stay whole: a server
/// reads them only when it starts, and a start with such damage is another fault.
pub(crate) fn flip_somewhere(drive: &Path, random: &mut Rng, bits: usize) -> Result<()> {
    let segments = fs::read_dir(drive)?.filter_map(|entry| Some(entry.ok()?.path()));
    for segment in segments.filter(|path| path.extension().is_some_and(|ext| ext == "segment")) {
        // The server may remove it meanwhile.
        if let Err(error) = flip(&segment, random, bits)
            && segment.exists()
        {
            return Err(error.context(format!("flip bits of {}", segment.display())));
        }
    }
    Ok(())
}
