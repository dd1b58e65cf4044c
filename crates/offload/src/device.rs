//! The memory that the model computes in, as the tiers see it: pages of one length that can be copied.

use memkv_radix::DevicePage;
use std::sync::Arc;
use thiserror::Error;

/// A copy did not happen; what lies at its destination is undefined.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the device did not copy: {0}")]
pub struct DeviceError(pub String);

/// Device memory in pages.
///
/// The copies block until the bytes have arrived. They run on the threads of the tiers, never on the scheduler's,
/// a few pages at a time, so a device with streams waits for its event there. The cache gives out pages so that no
/// copy reads what the model writes: pages of the tree do not change, and pages that a load fills are nobody's.
///
/// A panic counts as a failed copy.
pub trait DevicePool: Send + Sync + 'static {
    /// Length of a page, in bytes.
    fn page_bytes(&self) -> usize;

    /// How many pages there are; pages of the cache have an index below.
    fn pages(&self) -> usize;

    /// Copies each of `pages` to the slice of the same place, which is as long as a page.
    ///
    /// # Errors
    ///
    /// If not all bytes have arrived. The pages stay on the device and are not backed up.
    fn copy_out(&self, pages: &[DevicePage], to: &mut [&mut [u8]]) -> Result<(), DeviceError>;

    /// Copies each slice, as long as a page, to the page of the same place.
    ///
    /// # Errors
    ///
    /// If not all bytes have arrived. The load then fails, and the request computes.
    fn copy_in(&self, pages: &[DevicePage], from: &[&[u8]]) -> Result<(), DeviceError>;
}

impl<D: DevicePool> DevicePool for Arc<D> {
    fn page_bytes(&self) -> usize {
        (**self).page_bytes()
    }

    fn pages(&self) -> usize {
        (**self).pages()
    }

    fn copy_out(&self, pages: &[DevicePage], to: &mut [&mut [u8]]) -> Result<(), DeviceError> {
        (**self).copy_out(pages, to)
    }

    fn copy_in(&self, pages: &[DevicePage], from: &[&[u8]]) -> Result<(), DeviceError> {
        (**self).copy_in(pages, from)
    }
}
