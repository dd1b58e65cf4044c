//! Memory for whole blocks, aligned as `O_DIRECT` wants it.

use crate::extent::BLOCK_BYTES;
use std::ops::{Deref, DerefMut};

/// Zeroed bytes that start at a multiple of a block and stay where they are.
pub(crate) struct Buffer {
    /// Longer than needed by up to a block, so that an aligned part fits. Never grows, hence never moves.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// At least `len` zero bytes, rounded up to whole blocks.
    pub(crate) fn zeroed(len: usize) -> Self {
        let block = BLOCK_BYTES as usize;
        let len = len.next_multiple_of(block);
        let bytes = vec![0; len + block];
        let start = bytes.as_ptr().align_offset(block);
        Self { bytes, start, len }
    }

    /// Whole blocks that start with these bytes and end with zeros.
    pub(crate) fn copy_of(content: &[u8]) -> Self {
        let mut buffer = Self::zeroed(content.len());
        buffer[..content.len()].copy_from_slice(content);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_whole_blocks() {
        for len in [1, 4095, 4096, 4097, 100_000] {
            let buffer = Buffer::zeroed(len);
            assert!(buffer.as_ptr().addr().is_multiple_of(4096));
            assert!(buffer.len() >= len && buffer.len() < len + 4096 && buffer.len().is_multiple_of(4096));
        }
    }
}
