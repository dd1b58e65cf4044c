//! What is inside a page: the layouts that SGLang's host pools have, and where a number lies in them.
//!
//! A page has the keys and values of `page_tokens` consecutive tokens in all layers of one rank. Numbers are
//! little-endian. Rows run from left (slowest) to right (fastest); `W` is the width of a latent row.
//!
//! | layout | multi-head attention | latent attention |
//! |---|---|---|
//! | `layer_first` | half, layer, token, head, number | layer, token, `W` |
//! | `page_first` | half, token, layer, head, number | token, layer, `W` |
//! | `page_first_direct` | half, layer, token, head, number | layer, token, `W` |
//! | `page_head` | half, head, token, layer, number | - |
//!
//! The half of the keys comes before that of the values. `layer_first` and `page_first_direct` differ in how pages
//! lie in memory, not inside a page; they are told apart all the same, because SGLang does.

use std::ops::Range;
use thiserror::Error;

/// The order of a page's numbers, by SGLang's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `layer_first`.
    LayerFirst,
    /// `page_first`, SGLang's default.
    PageFirst,
    /// `page_first_direct`.
    PageFirstDirect,
    /// `page_head`, for multi-head attention only.
    PageHead,
}

impl Layout {
    /// SGLang's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Layout::LayerFirst => "layer_first",
            Layout::PageFirst => "page_first",
            Layout::PageFirstDirect => "page_first_direct",
            Layout::PageHead => "page_head",
        }
    }
}

/// The type of a page's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 16-bit brain floats.
    Bfloat16,
    /// 16-bit IEEE floats.
    Float16,
    /// 32-bit IEEE floats.
    Float32,
    /// 8-bit floats, 4 bits of exponent.
    Fp8E4m3,
    /// 8-bit floats, 5 bits of exponent.
    Fp8E5m2,
}

impl Dtype {
    /// Bytes of a number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Float32 => 4,
            Dtype::Bfloat16 | Dtype::Float16 => 2,
            Dtype::Fp8E4m3 | Dtype::Fp8E5m2 => 1,
        }
    }

    /// The type of SGLang's host tensors: 8-bit floats lie in tensors of bytes.
    pub(crate) fn tensor_name(self) -> &'static str {
        match self {
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float16 => "float16",
            Dtype::Float32 => "float32",
            Dtype::Fp8E4m3 | Dtype::Fp8E5m2 => "uint8",
        }
    }

    /// SGLang's `--kv-cache-dtype` where the tensors do not tell.
    pub(crate) fn kv_name(self) -> Option<&'static str> {
        match self {
            Dtype::Fp8E4m3 => Some("fp8_e4m3"),
            Dtype::Fp8E5m2 => Some("fp8_e5m2"),
            Dtype::Bfloat16 | Dtype::Float16 | Dtype::Float32 => None,
        }
    }
}

/// What attention keeps for a token in one layer, on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// A key and a value for each head, all of one width.
    MultiHead {
        /// Heads of keys and values on this rank.
        kv_heads: usize,
        /// Numbers of a key, and of a value.
        head_dim: usize,
    },
    /// One latent row for all heads, the same on every tensor-parallel rank.
    Latent {
        /// Numbers of the compressed part.
        kv_lora_rank: usize,
        /// Numbers of the part that carries positions.
        qk_rope_head_dim: usize,
    },
}

/// Which half of a page of multi-head attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The keys; of latent attention, the rows.
    Keys,
    /// The values.
    Values,
}

/// SGLang has no such page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadFormat {
    /// A size is 0 or too large.
    #[error("layers, tokens, heads and widths must be at least 1 and their product a length of memory")]
    Size,
    /// The layout needs heads.
    #[error("the layout page_head is for multi-head attention")]
    NoHeads,
}

/// Shape and order of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFormat {
    /// Layers of this rank.
    pub layers: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// What a token has in a layer.
    pub attention: Attention,
    /// The type of the numbers.
    pub dtype: Dtype,
    /// Their order.
    pub layout: Layout,
}

impl PageFormat {
    /// Refuses what SGLang does not have.
    ///
    /// # Errors
    ///
    /// If a size is 0 or the layout does not fit the attention.
    pub fn check(&self) -> Result<(), BadFormat> {
        let (heads, width, halves) = self.rows();
        let sizes = [self.layers, self.page_tokens, heads, width, halves, self.dtype.bytes()];
        let bytes = sizes.into_iter().try_fold(1_usize, usize::checked_mul);
        if bytes.is_none_or(|bytes| bytes == 0) {
            return Err(BadFormat::Size);
        }
        if self.layout == Layout::PageHead && matches!(self.attention, Attention::Latent { .. }) {
            return Err(BadFormat::NoHeads);
        }
        Ok(())
    }

    /// Heads, numbers of a row, and halves.
    fn rows(&self) -> (usize, usize, usize) {
        match self.attention {
            Attention::MultiHead { kv_heads, head_dim } => (kv_heads, head_dim, 2),
            Attention::Latent { kv_lora_rank, qk_rope_head_dim } => {
                (1, kv_lora_rank.saturating_add(qk_rope_head_dim), 1)
            }
        }
    }

    /// Length of a page, in bytes.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        let (heads, width, halves) = self.rows();
        halves * self.layers * self.page_tokens * heads * width * self.dtype.bytes()
    }

    /// The bytes in a page that hold one row: one head of one token in one layer, or the latent row, which is head 0
    /// of the keys. Nothing if the page has no such row.
    #[must_use]
    pub fn row(&self, half: Half, layer: usize, token: usize, head: usize) -> Option<Range<usize>> {
        let (heads, width, halves) = self.rows();
        let half = usize::from(half == Half::Values);
        if half >= halves || layer >= self.layers || token >= self.page_tokens || head >= heads {
            return None;
        }
        let place = match self.layout {
            Layout::LayerFirst | Layout::PageFirstDirect => {
                ((half * self.layers + layer) * self.page_tokens + token) * heads + head
            }
            Layout::PageFirst => ((half * self.page_tokens + token) * self.layers + layer) * heads + head,
            Layout::PageHead => ((half * heads + head) * self.page_tokens + token) * self.layers + layer,
        };
        let bytes = width * self.dtype.bytes();
        Some(place * bytes..(place + 1) * bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const HEADS: Attention = Attention::MultiHead { kv_heads: 2, head_dim: 8 };
    const LATENT: Attention = Attention::Latent { kv_lora_rank: 24, qk_rope_head_dim: 8 };

    fn format(attention: Attention, layout: Layout) -> PageFormat {
        PageFormat { layers: 3, page_tokens: 4, attention, dtype: Dtype::Bfloat16, layout }
    }

    #[test]
    fn the_rows_of_every_layout_fill_the_page_without_overlap() {
        for layout in [Layout::LayerFirst, Layout::PageFirst, Layout::PageFirstDirect, Layout::PageHead] {
            for attention in [HEADS, LATENT] {
                let format = format(attention, layout);
                if format.check().is_err() {
                    assert_eq!((attention, layout), (LATENT, Layout::PageHead));
                    continue;
                }
                let mut bytes = BTreeSet::new();
                let mut all = 0;
                for half in [Half::Keys, Half::Values] {
                    for (layer, token, head) in (0..3)
                        .flat_map(|l| (0..4).map(move |t| (l, t)))
                        .flat_map(|(l, t)| (0..2).map(move |h| (l, t, h)))
                    {
                        let row = format.row(half, layer, token, head).unwrap_or(0..0);
                        all += row.len();
                        bytes.extend(row);
                    }
                }
                let page = format.page_bytes();
                assert_eq!((all, bytes.len(), bytes.last()), (page, page, Some(&(page - 1))), "{format:?}");
            }
        }
    }

    #[test]
    fn orders_are_the_ones_of_the_table() {
        let row = |layout, half, layer, token, head| format(HEADS, layout).row(half, layer, token, head);
        assert_eq!(row(Layout::PageFirst, Half::Keys, 1, 0, 0), Some(32..48));
        assert_eq!(row(Layout::PageFirst, Half::Keys, 0, 1, 0), Some(96..112));
        assert_eq!(row(Layout::LayerFirst, Half::Keys, 0, 1, 0), Some(32..48));
        assert_eq!(row(Layout::PageHead, Half::Keys, 1, 0, 0), Some(16..32));
        assert_eq!(row(Layout::PageHead, Half::Values, 0, 0, 0), Some(384..400));
        assert_eq!(row(Layout::PageFirst, Half::Keys, 3, 0, 0), None);
        assert_eq!(format(LATENT, Layout::PageFirst).row(Half::Values, 0, 0, 0), None);
    }

    #[test]
    fn nonsense_is_refused() {
        let none = PageFormat { layers: 0, ..format(HEADS, Layout::PageFirst) };
        assert_eq!(none.check(), Err(BadFormat::Size));
        let huge = PageFormat { layers: usize::MAX, ..none };
        assert_eq!(huge.check(), Err(BadFormat::Size));
    }
}
