//! Pages in one run of memory: the host tier, and the device of engines that compute on the CPU.
//!
//! ```text
//! base (aligned to 4096) | page 0 | page 1 | … | page n-1 |      each page_bytes long, no gaps
//! ```
//!
//! What is inside a page is the engine's affair ([`PageFormat`](crate::PageFormat) names the layouts that SGLang
//! has). The run is one allocation, so that a transport can register it once; [`PageRegion::memory`] says where it
//! is.
//!
//! Each page has a lock of its own. A transfer takes the locks of its pages without waiting: the cache's plans say
//! that nobody else uses them, so a lock that is taken is a bug, and the transfer fails instead of moving bytes that
//! somebody writes.

use crate::device::{DeviceError, DevicePool};
use bytes::BytesMut;
use memkv_radix::DevicePage;
use std::ops::{Deref, DerefMut};
use thiserror::Error;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Where the first page begins: what direct I/O, huge pages and network cards like.
const ALIGNMENT: usize = 4096;

/// A region cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{pages} pages of {page_bytes} bytes are no region: both must be at least 1, and fit the memory")]
pub struct BadRegion {
    /// How many pages were asked for.
    pub pages: usize,
    /// How long each was to be.
    pub page_bytes: usize,
}

/// A fixed number of pages of one length, all zero at first.
pub struct PageRegion {
    base: usize,
    page_bytes: usize,
    pages: Box<[RwLock<BytesMut>]>,
}

/// The bytes of a page, to read. Nobody writes to it meanwhile.
pub struct PageRead<'a>(RwLockReadGuard<'a, BytesMut>);

/// The bytes of a page, to write. Nobody else has it meanwhile.
pub struct PageWrite<'a>(RwLockWriteGuard<'a, BytesMut>);

impl Deref for PageRead<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for PageWrite<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for PageWrite<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl PageRegion {
    /// Allocates `pages` pages of `page_bytes` bytes.
    ///
    /// # Errors
    ///
    /// If either is 0 or their product is no length of memory.
    pub fn new(pages: usize, page_bytes: usize) -> Result<Self, BadRegion> {
        let bytes = pages.checked_mul(page_bytes).and_then(|bytes| bytes.checked_add(ALIGNMENT));
        let bytes = bytes.filter(|bytes| pages > 0 && page_bytes > 0 && isize::try_from(*bytes).is_ok());
        let bytes = bytes.ok_or(BadRegion { pages, page_bytes })?;
        // The pieces of a split keep the one allocation alive together and are disjoint, so each can be written
        // without the others: that is how pages of one run get locks of their own.
        let mut rest = BytesMut::zeroed(bytes);
        let before = rest.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        drop(rest.split_to(before));
        let base = rest.as_ptr().addr();
        let pages = (0..pages).map(|_| RwLock::new(rest.split_to(page_bytes))).collect();
        Ok(Self { base, page_bytes, pages })
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Length of a page, in bytes.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Address and length of the memory, in bytes, for whoever registers it. It stays as long as the region.
    #[must_use]
    pub fn memory(&self) -> (usize, usize) {
        (self.base, self.pages.len() * self.page_bytes)
    }

    /// A page to read, or nothing if there is no such page or somebody writes to it.
    #[must_use]
    pub fn read(&self, page: u32) -> Option<PageRead<'_>> {
        self.pages.get(page as usize)?.try_read().ok().map(PageRead)
    }

    /// A page to write, or nothing if there is no such page or somebody has it.
    #[must_use]
    pub fn write(&self, page: u32) -> Option<PageWrite<'_>> {
        self.pages.get(page as usize)?.try_write().ok().map(PageWrite)
    }
}

impl std::fmt::Debug for PageRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (pages, page_bytes) = (self.pages.len(), self.page_bytes);
        f.debug_struct("PageRegion").field("pages", &pages).field("page_bytes", &page_bytes).finish()
    }
}

/// What a transfer says of a page that somebody else has.
fn taken(page: DevicePage) -> DeviceError {
    DeviceError(format!("page {} is not there or in use: it was given out twice", page.index()))
}

impl DevicePool for PageRegion {
    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn pages(&self) -> usize {
        self.pages.len()
    }

    fn copy_out(&self, pages: &[DevicePage], to: &mut [&mut [u8]]) -> Result<(), DeviceError> {
        for (page, to) in pages.iter().zip(to) {
            to.copy_from_slice(&self.read(page.index()).ok_or_else(|| taken(*page))?);
        }
        Ok(())
    }

    fn copy_in(&self, pages: &[DevicePage], from: &[&[u8]]) -> Result<(), DeviceError> {
        for (page, from) in pages.iter().zip(from) {
            self.write(page.index()).ok_or_else(|| taken(*page))?.copy_from_slice(from);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_lie_one_after_the_other_in_one_aligned_run() {
        let region = PageRegion::new(5, 100).unwrap();
        let (base, len) = region.memory();
        assert_eq!((base % ALIGNMENT, len), (0, 500));
        for page in 0..5 {
            let read = region.read(page).unwrap();
            assert_eq!((read.as_ptr().addr(), read.len()), (base + page as usize * 100, 100));
        }
        assert!(region.read(5).is_none());
    }

    #[test]
    fn a_page_that_is_written_cannot_be_had_and_its_neighbours_can() {
        let region = PageRegion::new(3, 8).unwrap();
        let mut page = region.write(1).unwrap();
        page.fill(7);
        assert!(region.read(1).is_none() && region.write(1).is_none());
        assert_eq!((region.read(0).unwrap()[7], region.read(2).unwrap()[0]), (0, 0));
        drop(page);
        let first = region.read(1).unwrap();
        assert_eq!((&first[..], region.read(1).is_some()), (&[7; 8][..], true));
        assert!(region.write(1).is_none());
    }

    #[test]
    fn nonsense_is_refused() {
        for (pages, page_bytes) in [(0, 8), (8, 0), (usize::MAX, 2), (usize::MAX / 2, 2)] {
            assert_eq!(PageRegion::new(pages, page_bytes).unwrap_err(), BadRegion { pages, page_bytes });
        }
    }
}
