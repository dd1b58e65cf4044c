//! The shape of a model.

use thiserror::Error;

/// Sizes that decide everything about a model but its weights.
///
/// A decoder-only transformer: RMS norm before each block, rotary positions, grouped-query attention, SwiGLU, and
/// no bias anywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelConfig {
    /// Number of different tokens.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even, because rotary positions turn pairs.
    pub head_width: usize,
    /// Width inside the feed-forward block.
    pub feed_forward: usize,
    /// Base of the rotary frequencies.
    pub rotary_base: f32,
    /// Added to the mean square before its root is taken.
    pub norm_epsilon: f32,
}

/// Why a shape was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A size is 0.
    #[error("every size of a model must be at least 1")]
    Zero,
    /// Query heads cannot be divided among the key and value heads.
    #[error("{heads} query heads cannot share {kv_heads} key and value heads; use a multiple")]
    Heads {
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
    },
    /// A head has an odd width.
    #[error("a head of width {0} cannot be turned in pairs; use an even width")]
    OddHead(usize),
}

impl ModelConfig {
    /// The model of the demonstration: 4.7 million parameters, 3 KiB of KV per token.
    #[must_use]
    pub fn demo() -> Self {
        Self {
            vocabulary: 1024,
            hidden: 256,
            layers: 6,
            heads: 8,
            kv_heads: 2,
            head_width: 32,
            feed_forward: 704,
            rotary_base: 10_000.0,
            norm_epsilon: 1e-5,
        }
    }

    /// A model for tests: the same structure, small enough to compute thousands of prompts in a second.
    #[must_use]
    pub fn small() -> Self {
        Self {
            vocabulary: 97,
            hidden: 32,
            layers: 2,
            heads: 4,
            head_width: 8,
            feed_forward: 64,
            ..Self::demo()
        }
    }

    /// Checks the shape.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] says what does not fit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            self.vocabulary,
            self.hidden,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_width,
            self.feed_forward,
        ];
        if sizes.contains(&0) {
            return Err(ConfigError::Zero);
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::Heads { heads: self.heads, kv_heads: self.kv_heads });
        }
        if !self.head_width.is_multiple_of(2) {
            return Err(ConfigError::OddHead(self.head_width));
        }
        Ok(())
    }

    /// Query heads that share one key and value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Numbers of the key and value cache per token, over all layers.
    #[must_use]
    pub fn kv_floats_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_width
    }

    /// How many weights the model has.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_width;
        let feed_forward = 3 * self.hidden * self.feed_forward;
        let norms = 2 * self.hidden;
        2 * self.vocabulary * self.hidden + self.hidden + self.layers * (attention + feed_forward + norms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_checked() {
        let good = ModelConfig::demo();
        assert_eq!(good.validate(), Ok(()));
        assert_eq!(ModelConfig::small().validate(), Ok(()));
        assert_eq!(ModelConfig { layers: 0, ..good }.validate(), Err(ConfigError::Zero));
        assert_eq!(ModelConfig { head_width: 7, ..good }.validate(), Err(ConfigError::OddHead(7)));
        let heads = ModelConfig { heads: 3, ..good }.validate();
        assert_eq!(heads, Err(ConfigError::Heads { heads: 3, kv_heads: 2 }));
    }

    #[test]
    fn sizes_are_what_the_documentation_says() {
        let demo = ModelConfig::demo();
        assert_eq!(demo.kv_floats_per_token() * size_of::<f32>(), 3 << 10);
        assert_eq!(demo.parameters() / 100_000, 47);
    }
}
