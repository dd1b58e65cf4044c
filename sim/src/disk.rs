//! What becomes of a file that outlives a server, while the server is away.

use crate::rng::Rng;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// What is written at once, and so what may be missing.
const BLOCK: u64 = 4096;
/// Blocks of a file that are torn at most.
const BLOCKS_MAX: u64 = 40;

/// Forgets everything.
pub(crate) fn lose(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Damages some blocks of the largest file: they were never written, or have a wrong bit, or are those of elsewhere.
pub(crate) fn tear(folder: &Path, rng: &mut Rng) -> io::Result<()> {
    let mut files: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    let mut largest = None;
    for file in files {
        let len = file.metadata()?.len();
        if largest.as_ref().is_none_or(|(_, most)| len > *most) {
            largest = Some((file.path(), len));
        }
    }
    // A drive that was full from the beginning has nothing that is as long.
    let Some((path, len)) = largest.filter(|&(_, len)| len >= BLOCK) else { return Ok(()) };
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    for _ in 0..rng.range(1, BLOCKS_MAX) {
        let block = rng.range(0, len / BLOCK);
        let mut bytes = vec![0; BLOCK as usize];
        match rng.range(0, 3) {
            0 => {}
            1 => {
                file.read_exact_at(&mut bytes, block * BLOCK)?;
                bytes[rng.range(0, BLOCK) as usize] ^= 1 << rng.range(0, 8);
            }
            _ => file.read_exact_at(&mut bytes, rng.range(0, len / BLOCK) * BLOCK)?,
        }
        file.write_all_at(&bytes, block * BLOCK)?;
    }
    Ok(())
}
