//! A walk over one segment for whoever verifies what rests on the drives.

use crate::{Extent, OwnedHead};

/// A page that the walk came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// What was noted of it.
    pub head: OwnedHead,
    /// Where it is.
    pub extent: Extent,
    /// Whether its bytes have the checksum that was noted.
    pub intact: bool,
}

/// Goes through the pages of a segment; see [`crate::Log::walk`].
#[derive(Debug)]
pub struct Walk {}

impl Iterator for Walk {
    type Item = Walked;

    fn next(&mut self) -> Option<Walked> {
        None
    }
}
