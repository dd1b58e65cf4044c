//! The space in which SGLang's plugin keeps the pages of an engine, so that this one shares them.
//!
//! Two engines meet in one space only if every field of its description is equal. The plugin
//! (`sglang-plugin/python/memkv_sglang/namespace.py`) writes these, and so does [`EngineSpace`]; the vectors in
//! `tests/vectors/spaces.json` come from the plugin, and both sides are tested against them.
//!
//! | field | value |
//! |---|---|
//! | `engine`, `scheme` | `sglang`, `1`: whose rules these are, and their version |
//! | `pool` | `kv`: the main keys and values |
//! | `model`, `revision`, `tag` | as configured; absent if empty |
//! | `dtype`, `kv_dtype` | type of the tensors; of 8-bit floats, which kind |
//! | `layout`, `page_tokens`, `page_bytes`, `geometry` | see [`PageFormat`] |
//! | `serial` | `flat`: a page is the row-major order of its layout |
//! | `tp_rank`, `tp_size` | always, unless all ranks have the same rows (latent attention) |
//! | `pp_…`, `cp_…`, `dcp_…` | if there is more than one rank of the kind |

use crate::format::{Attention, BadFormat, PageFormat};
use memkv_client::SpaceDescription;
use thiserror::Error;

/// The version of the rules: a change of meaning has a new number, so that old pages become misses.
const SCHEME: &str = "1";

/// One rank of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// From 0.
    pub rank: u32,
    /// How many there are.
    pub size: u32,
}

impl Default for Rank {
    /// The only one.
    fn default() -> Self {
        Self { rank: 0, size: 1 }
    }
}

/// There is no such space.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadSpace {
    /// The page is none that SGLang has.
    #[error(transparent)]
    Format(#[from] BadFormat),
    /// A rank that does not exist.
    #[error("rank {} of {} {kind} ranks: ranks count from 0", rank.rank, rank.size)]
    Rank {
        /// Tensor-, pipeline- or context-parallel.
        kind: &'static str,
        /// What was given.
        rank: Rank,
    },
    /// A name is too long.
    #[error("the description is refused: {0}")]
    Description(String),
}

/// Everything that decides whether the pages of an engine and of SGLang are interchangeable.
///
/// ```
/// use memkv_offload::{Attention, Dtype, EngineSpace, Layout, PageFormat, Rank};
///
/// let format = PageFormat {
///     layers: 32,
///     page_tokens: 64,
///     attention: Attention::MultiHead { kv_heads: 4, head_dim: 128 },
///     dtype: Dtype::Bfloat16,
///     layout: Layout::PageFirst,
/// };
/// let mut space = EngineSpace::new("meta-llama/Llama-3.1-8B", format);
/// space.tp = Rank { rank: 1, size: 2 };
/// let description = space.describe().expect("a page that SGLang has");
/// assert_eq!(description.field("page_bytes"), Some("4194304"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSpace {
    /// The name under which SGLang serves the model.
    pub model: String,
    /// `memkv_revision` of SGLang's extra config.
    pub revision: String,
    /// `memkv_tag` of SGLang's extra config.
    pub tag: String,
    /// The page.
    pub format: PageFormat,
    /// SGLang's `--kv-cache-dtype`, where it does not follow from the format's type.
    pub kv_dtype: Option<String>,
    /// Tensor-parallel rank; under data-parallel attention, the one of attention.
    pub tp: Rank,
    /// Pipeline-parallel rank.
    pub pp: Rank,
    /// Context-parallel rank of attention.
    pub cp: Rank,
    /// Context-parallel rank of decoding.
    pub dcp: Rank,
}

impl EngineSpace {
    /// The space of an engine of one rank.
    #[must_use]
    pub fn new(model: &str, format: PageFormat) -> Self {
        let one = Rank::default();
        Self {
            model: model.to_owned(),
            revision: String::new(),
            tag: String::new(),
            format,
            kv_dtype: None,
            tp: one,
            pp: one,
            cp: one,
            dcp: one,
        }
    }

    /// The description under which the plugin would open the space.
    ///
    /// # Errors
    ///
    /// If SGLang has no such page, a rank does not exist, or a name is too long.
    pub fn describe(&self) -> Result<SpaceDescription, BadSpace> {
        self.format.check()?;
        let format = &self.format;
        let mut fields: Vec<(&str, String)> = vec![
            ("engine", "sglang".to_owned()),
            ("scheme", SCHEME.to_owned()),
            ("pool", "kv".to_owned()),
            ("dtype", format.dtype.tensor_name().to_owned()),
            ("layout", format.layout.name().to_owned()),
            ("page_tokens", format.page_tokens.to_string()),
            ("page_bytes", format.page_bytes().to_string()),
            ("serial", "flat".to_owned()),
            ("geometry", geometry(format)),
        ];
        for (name, value) in [("model", &self.model), ("revision", &self.revision), ("tag", &self.tag)] {
            if !value.is_empty() {
                fields.push((name, value.clone()));
            }
        }
        if let Some(name) = format.dtype.kv_name() {
            fields.push(("kv_dtype", self.kv_dtype.clone().unwrap_or_else(|| name.to_owned())));
        }
        self.push_ranks(&mut fields)?;
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
        SpaceDescription::new(fields).map_err(|error| BadSpace::Description(error.to_string()))
    }

    fn push_ranks(&self, fields: &mut Vec<(&str, String)>) -> Result<(), BadSpace> {
        let shared = matches!(self.format.attention, Attention::Latent { .. });
        let kinds = [
            ("tensor-parallel", "tp_rank", "tp_size", self.tp, !shared),
            ("pipeline-parallel", "pp_rank", "pp_size", self.pp, self.pp.size > 1),
            ("context-parallel", "cp_rank", "cp_size", self.cp, self.cp.size > 1),
            ("decode context-parallel", "dcp_rank", "dcp_size", self.dcp, self.dcp.size > 1),
        ];
        for (kind, rank_name, size_name, rank, told) in kinds {
            if rank.rank >= rank.size {
                return Err(BadSpace::Rank { kind, rank });
            }
            if told {
                fields.push((rank_name, rank.rank.to_string()));
                fields.push((size_name, rank.size.to_string()));
            }
        }
        Ok(())
    }
}

/// The sizes that the attention has, by the names of SGLang's pools.
fn geometry(format: &PageFormat) -> String {
    let layers = format.layers;
    match format.attention {
        Attention::MultiHead { kv_heads, head_dim } => {
            format!("layer_num={layers},head_num={kv_heads},head_dim={head_dim},v_head_dim={head_dim}")
        }
        Attention::Latent { kv_lora_rank, qk_rope_head_dim } => {
            let width = kv_lora_rank + qk_rope_head_dim;
            format!(
                "layer_num={layers},kv_lora_rank={kv_lora_rank},qk_rope_head_dim={qk_rope_head_dim},kv_cache_dim={width}"
            )
        }
    }
}
