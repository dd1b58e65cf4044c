//! The paged KV pool: the memory that stands for a device.
//!
//! A page holds the keys and values of `page_tokens` consecutive tokens, of **all layers**, in one run of numbers,
//! so that a page is one value for whoever stores it:
//!
//! ```text
//! page  = layer 0 | layer 1 | …
//! layer = keys | values
//! keys  = head 0 | head 1 | …           (values likewise)
//! head  = token 0 | token 1 | …         page_tokens rows of head_width numbers
//! ```
//!
//! Numbers are `f32`; as bytes they are little-endian ([`KvLayout::NAME`] names the layout towards others). Keys are
//! stored after the rotation, so a page is right only at the positions it was computed for: its key covers the
//! whole prefix, and so it always is.
//!
//! Each page has a lock of its own. Whoever moves a page out or in does not stop those who compute with others.
//!
//! Deliberately absent: who owns which page. That is the router's business; the pool only has the numbers.

use crate::config::ModelConfig;
use memkv_offload::{DeviceError, DevicePool};
use memkv_radix::DevicePage;
use parking_lot::RwLock;
use std::ops::Range;

/// Where numbers are in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Tokens of one page.
    pub page_tokens: usize,
    layers: usize,
    kv_heads: usize,
    head_width: usize,
}

/// Which half of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Keys,
    Values,
}

impl KvLayout {
    /// The layout's name in the description of a space.
    pub const NAME: &str = "layer_kv_head_token";

    /// The layout of a model's pages of `page_tokens` tokens (1 or more).
    ///
    /// # Panics
    ///
    /// If `page_tokens` is 0.
    #[must_use]
    pub fn new(config: &ModelConfig, page_tokens: usize) -> Self {
        assert!(page_tokens > 0, "a page has at least one token");
        let ModelConfig { layers, kv_heads, head_width, .. } = *config;
        Self { page_tokens, layers, kv_heads, head_width }
    }

    /// Numbers of one page.
    #[must_use]
    pub fn page_floats(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_floats()
    }

    /// Bytes of one page.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_floats() * size_of::<f32>()
    }

    /// How many pages hold `tokens` tokens, the last one perhaps not full.
    #[must_use]
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    fn head_floats(&self) -> usize {
        self.page_tokens * self.head_width
    }

    /// One head of one half of one layer: `page_tokens × head_width` numbers.
    pub(crate) fn head(&self, layer: usize, half: Half, head: usize) -> Range<usize> {
        let half = usize::from(half == Half::Values);
        let start = ((layer * 2 + half) * self.kv_heads + head) * self.head_floats();
        start..start + self.head_floats()
    }
}

/// A fixed number of pages, all zero at first.
#[derive(Debug)]
pub struct KvPool {
    layout: KvLayout,
    pages: Box<[RwLock<Box<[f32]>>]>,
}

impl KvPool {
    /// Allocates `pages` pages.
    #[must_use]
    pub fn new(layout: KvLayout, pages: usize) -> Self {
        let page = |_| RwLock::new(vec![0.0; layout.page_floats()].into_boxed_slice());
        Self { layout, pages: (0..pages).map(page).collect() }
    }

    /// Where numbers are in a page.
    #[must_use]
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Number of pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are no pages at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Lets `look` see the numbers of a page.
    ///
    /// # Panics
    ///
    /// If there is no such page.
    pub(crate) fn with<R>(&self, page: u32, look: impl FnOnce(&[f32]) -> R) -> R {
        look(&self.pages[page as usize].read())
    }

    /// Lets `change` write the numbers of a page.
    ///
    /// # Panics
    ///
    /// If there is no such page.
    pub(crate) fn with_mut<R>(&self, page: u32, change: impl FnOnce(&mut [f32]) -> R) -> R {
        change(&mut self.pages[page as usize].write())
    }

    /// Copies a page out as bytes.
    ///
    /// # Panics
    ///
    /// If there is no such page, or `bytes` is not exactly [`KvLayout::page_bytes`] long.
    pub fn read_page(&self, page: u32, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.layout.page_bytes(), "a page has one length");
        self.with(page, |numbers| {
            for (to, from) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
                *to = from.to_le_bytes();
            }
        });
    }

    /// Copies a page in from bytes.
    ///
    /// # Panics
    ///
    /// If there is no such page, or `bytes` is not exactly [`KvLayout::page_bytes`] long.
    pub fn write_page(&self, page: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.layout.page_bytes(), "a page has one length");
        self.with_mut(page, |numbers| {
            for (to, from) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                *to = f32::from_le_bytes(*from);
            }
        });
    }
}

impl DevicePool for KvPool {
    fn page_bytes(&self) -> usize {
        self.layout.page_bytes()
    }

    fn pages(&self) -> usize {
        self.len()
    }

    fn copy_out(&self, pages: &[DevicePage], to: &mut [&mut [u8]]) -> Result<(), DeviceError> {
        pages.iter().zip(to).for_each(|(page, bytes)| self.read_page(page.index(), bytes));
        Ok(())
    }

    fn copy_in(&self, pages: &[DevicePage], from: &[&[u8]]) -> Result<(), DeviceError> {
        pages.iter().zip(from).for_each(|(page, bytes)| self.write_page(page.index(), bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_fill_a_page_without_overlap() {
        let config = ModelConfig::small();
        let layout = KvLayout::new(&config, 5);
        let mut owners = vec![0; layout.page_floats()];
        for layer in 0..config.layers {
            for half in [Half::Keys, Half::Values] {
                for head in 0..config.kv_heads {
                    owners[layout.head(layer, half, head)].iter_mut().for_each(|n| *n += 1);
                }
            }
        }
        assert!(owners.iter().all(|owners| *owners == 1));
        assert_eq!(layout.page_floats(), 5 * config.kv_floats_per_token());
        assert_eq!([0, 1, 5, 6].map(|tokens| layout.pages_for(tokens)), [0, 1, 1, 2]);
    }

    #[test]
    fn bytes_go_out_and_in_unchanged() {
        let layout = KvLayout::new(&ModelConfig::small(), 4);
        let pool = KvPool::new(layout, 2);
        pool.with_mut(0, |page| page.iter_mut().enumerate().for_each(|(i, n)| *n = i as f32 - 0.5));
        let mut bytes = vec![0; layout.page_bytes()];
        pool.read_page(0, &mut bytes);
        assert_eq!(bytes[..4], (-0.5_f32).to_le_bytes());
        pool.write_page(1, &bytes);
        let first = pool.with(0, <[f32]>::to_vec);
        assert_eq!(pool.with(1, <[f32]>::to_vec), first);
    }
}
