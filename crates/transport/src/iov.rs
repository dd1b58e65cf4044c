//! A cursor over many pieces for vectored I/O.

use std::io::{IoSlice, IoSliceMut};

/// The most pieces of one vectored call; Linux refuses more than 1024.
pub const IOV_MAX: usize = 512;

/// How far a transfer over a list of piece lengths has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The piece that the next byte belongs to.
    pub piece: usize,
    /// Bytes of that piece already done.
    pub offset: usize,
}

impl Progress {
    /// Moves on by `bytes` over pieces of the given lengths; skips pieces of no length.
    ///
    /// # Panics
    ///
    /// If fewer than `bytes` bytes are left: an I/O call reported more than it was given.
    pub fn advance(&mut self, bytes: usize, len_of: impl Fn(usize) -> usize, pieces: usize) {
        let mut left = bytes;
        while self.piece < pieces {
            let room = len_of(self.piece) - self.offset;
            if left < room {
                self.offset += left;
                return;
            }
            left -= room;
            self.piece += 1;
            self.offset = 0;
        }
        assert_eq!(left, 0, "more bytes moved than there were");
    }

    /// Whether all pieces are done.
    #[must_use]
    pub fn is_done(&self, pieces: usize) -> bool {
        self.piece >= pieces
    }
}

/// Advances write buffers that were partly written; returns the rest.
#[must_use]
pub fn advance_slices<'a, 'b>(mut bufs: &'a mut [IoSlice<'b>], bytes: usize) -> &'a mut [IoSlice<'b>] {
    IoSlice::advance_slices(&mut bufs, bytes);
    bufs
}

/// Advances read buffers that were partly filled; returns the rest.
#[must_use]
pub fn advance_slices_mut<'a, 'b>(
    mut bufs: &'a mut [IoSliceMut<'b>],
    bytes: usize,
) -> &'a mut [IoSliceMut<'b>] {
    IoSliceMut::advance_slices(&mut bufs, bytes);
    bufs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn progress_agrees_with_counting(lens in proptest::collection::vec(0..50_usize, 0..20), steps in proptest::collection::vec(0..30_usize, 0..40)) {
            let total: usize = lens.iter().sum();
            let mut progress = Progress::default();
            progress.advance(0, |i| lens[i], lens.len());
            let mut done = 0;
            for step in steps {
                let step = step.min(total - done);
                progress.advance(step, |i| lens[i], lens.len());
                done += step;
                let before: usize = lens[..progress.piece].iter().sum();
                prop_assert_eq!(before + progress.offset, done);
                prop_assert_eq!(progress.is_done(lens.len()), done == total);
            }
        }
    }
}
