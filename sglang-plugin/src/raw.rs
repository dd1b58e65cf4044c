//! Addresses from Python become memory here and nowhere else.
//!
//! This file needs `unsafe` because SGLang hands over its host pools as addresses: copying the pages through Python
//! objects instead would cost more than the network does.
//!
//! What every call relies on, and where it is established: the caller of the Python method promises that each piece is
//! memory that stays allocated, and that nobody else uses the pages of a read, until the method returns. SGLang keeps
//! that promise by locking the pages of a transfer; the documentation of the public methods asks others for it. The
//! client crate does not touch the memory after its call has returned, whatever became of the servers.
#![allow(unsafe_code, reason = "the host pools of the engine are given as addresses")]

use memkv_client::blocking::{self, Space};
use memkv_client::{BatchReport, Error, PageOutcome, RawPieces, Region};

/// The pieces of the pages of one batch. Addresses are kept as numbers, so that they may cross a thread boundary.
pub(crate) struct Pieces {
    /// Start of each piece, page by page.
    pub(crate) ptrs: Vec<usize>,
    /// Bytes of each piece.
    pub(crate) sizes: Vec<usize>,
    /// Pieces per page.
    pub(crate) per_page: usize,
}

/// Which way the bytes go.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    /// From the store into memory.
    Get,
    /// From memory into the store.
    Put,
}

/// Registers memory with the NICs, so that pages in it move by RDMA without a copy.
pub(crate) fn register(client: &blocking::Client, ptr: usize, size: usize) -> Result<Region, Error> {
    // SAFETY: the caller of the Python method promises that the memory stays allocated until it is taken back or the client
    // is closed, both of which drop the region first. Blocking operations have ended when they return, so no
    // future of one is ever leaked.
    unsafe { client.register_region(std::ptr::with_exposed_provenance_mut(ptr), size) }
}

impl Pieces {
    /// Bytes of the page at `index`.
    pub(crate) fn page_bytes(&self, index: usize) -> usize {
        let pieces = index * self.per_page..(index + 1) * self.per_page;
        self.sizes[pieces].iter().fold(0_usize, |sum, &size| sum.saturating_add(size))
    }

    /// An address that belongs to two pieces, if there is one.
    pub(crate) fn overlap(&self) -> Option<usize> {
        let mut ranges: Vec<(usize, usize)> =
            self.ptrs.iter().copied().zip(self.sizes.iter().copied()).collect();
        ranges.sort_unstable();
        ranges.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0).map(|pair| pair[1].0)
    }

    /// Moves the pages `first..first + keys.len()`.
    pub(crate) fn transfer(
        &self,
        direction: Direction,
        space: &Space,
        keys: &[&[u8]],
        first: usize,
        out: &mut [PageOutcome],
    ) -> Result<BatchReport, Error> {
        let range = first * self.per_page..(first + keys.len()) * self.per_page;
        let ptrs: Vec<*mut u8> =
            self.ptrs[range.clone()].iter().map(|&ptr| std::ptr::with_exposed_provenance_mut(ptr)).collect();
        let pieces = RawPieces { ptrs: &ptrs, lens: &self.sizes[range], per_page: self.per_page };
        match direction {
            // SAFETY: the pieces are valid for reads and writes and used by nobody else until this call returns; the
            // caller of the Python method promises it, see the module's documentation. They do not overlap: the only
            // caller of this function asks `overlap` first.
            Direction::Get => unsafe { space.get_into_raw(keys, pieces, out) },
            // SAFETY: the pieces are valid for reads and nobody writes them until this call returns; the caller
            // of the Python method promises it, see the module's documentation.
            Direction::Put => unsafe { space.put_from_raw(keys, pieces, out) },
        }
    }
}
