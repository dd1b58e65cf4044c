//! The working set: source pages, destination pages, and proof that one became the other.
//!
//! Every eight bytes of the source differ, so a lost, shifted or mixed-up page cannot go unnoticed. Filling,
//! spoiling and verifying happen outside the timed regions.

use crate::pages::Pages;
use anyhow::{Context, ensure};

/// Source and destination of all transfers, each as large as the working set.
pub(crate) struct Workload {
    source: Pages,
    target: Pages,
}

impl Workload {
    /// A working set of `bytes`.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub(crate) fn new(bytes: usize) -> anyhow::Result<Self> {
        let both = || -> Result<_, rustix::io::Errno> {
            let mut source = Pages::new(bytes)?;
            fill(&mut source);
            Ok(Self { source, target: Pages::filled(bytes, 0xee)? })
        };
        both().with_context(|| format!("no memory for twice {bytes} bytes of pages"))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.source.len()
    }

    /// Both halves, for a copy.
    pub(crate) fn halves(&mut self) -> (&[u8], &mut [u8]) {
        (&self.source, &mut self.target)
    }

    /// Address and length of both halves.
    pub(crate) fn memory(&mut self) -> [(*mut u8, usize); 2] {
        [&mut self.source, &mut self.target].map(|half| (half.as_mut_ptr(), half.len()))
    }

    /// The first `count` source pages of a length.
    pub(crate) fn source_pages(&self, len: usize, count: usize) -> Vec<&[u8]> {
        self.source.chunks_exact(len).take(count).collect()
    }

    /// The first `count` destination pages of a length.
    pub(crate) fn target_pages(&mut self, len: usize, count: usize) -> Vec<&mut [u8]> {
        self.target.chunks_exact_mut(len).take(count).collect()
    }

    /// Makes the destination wrong everywhere, so that bytes of an earlier pass cannot pass for new ones.
    pub(crate) fn spoil(&mut self, bytes: usize) {
        self.target[..bytes].fill(0xee);
    }

    /// Compares destination and source.
    pub(crate) fn verify(&self, bytes: usize, what: &str) -> anyhow::Result<()> {
        if self.source[..bytes] == self.target[..bytes] {
            return Ok(());
        }
        let at = self.source.iter().zip(&*self.target).position(|(a, b)| a != b);
        ensure!(false, "{what}: wrong bytes, first at {at:?} of the working set");
        Ok(())
    }
}

/// Bytes of which every eight differ.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    let mut source = vec![0; bytes];
    fill(&mut source);
    source
}

/// Fills memory with [`pattern`].
pub(crate) fn fill(source: &mut [u8]) {
    let mut state = 0x243f_6a88_85a3_08d3_u64;
    for word in source.as_chunks_mut::<8>().0 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        *word = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes();
    }
}

/// Keys as an engine has them: 64 hex digits of a hash, here of a name and number. The last 16 are the number.
pub(crate) fn keys(name: &str, count: usize) -> Vec<Vec<u8>> {
    let seed = seed(name);
    (0..count as u64).map(|number| key(seed, number)).collect()
}

/// What a name makes of the keys with it.
pub(crate) fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// One of [`keys`].
pub(crate) fn key(seed: u64, number: u64) -> Vec<u8> {
    let low = (seed ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{seed:016x}{low:016x}{:016x}{number:016x}", low.rotate_left(23) ^ seed).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_found() {
        let mut workload = Workload::new(1 << 16).unwrap();
        assert!(workload.verify(1 << 16, "unfilled").is_err());
        let (source, target) = workload.halves();
        target.copy_from_slice(source);
        workload.verify(1 << 16, "copied").unwrap();
        workload.target[777] ^= 1;
        assert!(workload.verify(1 << 16, "flipped").unwrap_err().to_string().contains("777"));
        workload.spoil(1 << 16);
        assert!(workload.verify(1 << 16, "spoiled").is_err());
    }

    #[test]
    fn keys_are_64_digits_and_differ() {
        let mut all = keys("a", 100);
        all.extend(keys("b", 100));
        assert!(all.iter().all(|key| key.len() == 64));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 200);
    }
}
