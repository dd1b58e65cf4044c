//! Where the pages of a host pool lie.
//!
//! A page is a fixed list of pieces; piece `i` of page `p` starts at `bases[i] + p * strides[i]` and has `sizes[i]`
//! bytes. The constructor proves that no page's address overflows, so later arithmetic cannot.

use crate::convert::integers_from_bytes;
use crate::errors::BadInputError;
use crate::raw::Pieces;
use pyo3::prelude::*;

/// Addresses of all pages of one host pool.
#[pyclass(frozen, module = "memkv_sglang._native")]
pub struct PageMap {
    bases: Vec<usize>,
    strides: Vec<isize>,
    sizes: Vec<usize>,
    page_tokens: usize,
    pages: usize,
    page_bytes: usize,
}

#[pymethods]
impl PageMap {
    #[new]
    #[pyo3(signature = (bases, strides, sizes, *, page_tokens, pages))]
    fn new(
        bases: Vec<usize>,
        strides: Vec<isize>,
        sizes: Vec<usize>,
        page_tokens: usize,
        pages: usize,
    ) -> PyResult<Self> {
        if bases.is_empty() || bases.len() != strides.len() || bases.len() != sizes.len() {
            return Err(BadInputError::new_err("bases, strides and sizes need the same length, at least 1"));
        }
        if page_tokens == 0 || pages == 0 {
            return Err(BadInputError::new_err("page_tokens and pages must be at least 1"));
        }
        let fits = bases.iter().zip(&strides).zip(&sizes).all(|((&base, &stride), &size)| {
            let last = isize::try_from(pages - 1).ok().and_then(|last| last.checked_mul(stride));
            let start = last.and_then(|last| base.checked_add_signed(last));
            base != 0
                && size != 0
                && base.checked_add(size).is_some()
                && start.is_some_and(|start| start != 0 && start.checked_add(size).is_some())
        });
        let page_bytes = sizes.iter().try_fold(0_usize, |sum, &size| sum.checked_add(size));
        match page_bytes {
            Some(page_bytes) if fits => Ok(Self { bases, strides, sizes, page_tokens, pages, page_bytes }),
            _ => Err(BadInputError::new_err("a piece is empty or lies outside the address space")),
        }
    }

    /// Bytes of one page.
    #[getter]
    fn page_bytes(&self) -> usize {
        self.page_bytes
    }
}

impl PageMap {
    /// The pieces of the pages that start at these token slots, given as native 64-bit integers.
    pub(crate) fn pieces(&self, first_slots: &[u8]) -> PyResult<Pieces> {
        let slots = integers_from_bytes("first_slots", first_slots)?;
        let mut ptrs = Vec::with_capacity(slots.len() * self.bases.len());
        let mut sizes = Vec::with_capacity(slots.len() * self.bases.len());
        for slot in slots {
            let page = slot / self.page_tokens;
            if slot % self.page_tokens != 0 || page >= self.pages {
                return Err(BadInputError::new_err(format!(
                    "token slot {slot} does not start one of the pool's {} pages of {} tokens",
                    self.pages, self.page_tokens
                )));
            }
            let page = page.cast_signed();
            ptrs.extend(
                self.bases
                    .iter()
                    .zip(&self.strides)
                    .map(|(&base, &stride)| base.wrapping_add_signed(page * stride)),
            );
            sizes.extend_from_slice(&self.sizes);
        }
        Ok(Pieces { ptrs, sizes, per_page: self.bases.len() })
    }
}
