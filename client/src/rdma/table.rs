//! Where the pieces of pages lie in the regions that one server knows.

/// A region that a server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) start: usize,
    pub(crate) bytes: usize,
    pub(crate) id: u32,
}

/// All regions that a server knows, by address.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: Vec<Entry>,
}

impl Table {
    pub(crate) fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_by_key(|entry| entry.start);
        Self { entries }
    }

    /// The region that has all of `len` bytes at `address`, and where they begin in it.
    pub(crate) fn find(&self, address: usize, len: usize) -> Option<(u32, u64)> {
        let after = self.entries.partition_point(|entry| entry.start <= address);
        // Regions seldom overlap, so the first look mostly tells.
        let holds = |entry: &&Entry| {
            let offset = address - entry.start;
            offset < entry.bytes && len <= entry.bytes - offset
        };
        let entry = self.entries[..after].iter().rev().find(holds)?;
        Some((entry.id, (address - entry.start) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_found_only_where_it_lies_whole() {
        let entry = |id, start, bytes| Entry { start, bytes, id };
        let table = Table::new(vec![entry(2, 300, 100), entry(1, 100, 100), entry(3, 320, 10)]);
        assert_eq!(table.find(100, 100), Some((1, 0)));
        assert_eq!(table.find(199, 1), Some((1, 99)));
        assert_eq!(table.find(322, 4), Some((3, 2)), "the inner one of two");
        assert_eq!(table.find(322, 40), Some((2, 22)), "the inner one is too short");
        for (address, len) in
            [(99, 1), (99, 2), (100, 101), (199, 2), (200, 1), (400, 1), (0, 1), (usize::MAX, 1)]
        {
            assert_eq!(table.find(address, len), None, "{address} {len}");
        }
        assert_eq!(table.find(100, usize::MAX), None);
    }
}
