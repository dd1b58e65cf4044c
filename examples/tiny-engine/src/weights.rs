//! Weights from a seed.
//!
//! The weights are random: the engine is about caches, and a cache does not care what a model has learned. They are
//! drawn with integer arithmetic and one multiplication each, so that a seed gives the same bits on every machine:
//! two engines that share pages must have the same model.

use crate::config::{ConfigError, ModelConfig};
use ndarray::Array2;

/// How much queries and keys are enlarged, so that attention picks among tokens instead of averaging them.
const ATTENTION_GAIN: f32 = 1.5;

/// All weights of a model. Matrices are `inputs × outputs`, so that rows of activations stand on the left.
#[derive(Debug)]
pub struct Model {
    /// The shape.
    pub config: ModelConfig,
    /// The seed that the weights came from.
    pub seed: u64,
    /// The vector of each token: `vocabulary × hidden`.
    pub embedding: Array2<f32>,
    /// The blocks, first to last.
    pub layers: Vec<Layer>,
    /// Factors of the last norm.
    pub norm: Vec<f32>,
    /// `hidden × vocabulary`.
    pub output: Array2<f32>,
}

/// The weights of one block.
#[derive(Debug)]
pub struct Layer {
    /// Factors of the norm before attention.
    pub attention_norm: Vec<f32>,
    /// `hidden × heads·width`.
    pub query: Array2<f32>,
    /// `hidden × kv_heads·width`.
    pub key: Array2<f32>,
    /// `hidden × kv_heads·width`.
    pub value: Array2<f32>,
    /// `heads·width × hidden`.
    pub join: Array2<f32>,
    /// Factors of the norm before the feed-forward block.
    pub feed_norm: Vec<f32>,
    /// `hidden × feed_forward`.
    pub gate: Array2<f32>,
    /// `hidden × feed_forward`.
    pub up: Array2<f32>,
    /// `feed_forward × hidden`.
    pub down: Array2<f32>,
}

impl Model {
    /// Draws the weights of a model.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the shape is not valid.
    pub fn from_seed(config: ModelConfig, seed: u64) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut draw = Draw { state: seed };
        let c = &config;
        let (queries, keys) = (c.heads * c.head_width, c.kv_heads * c.head_width);
        let embedding = draw.matrix(c.vocabulary, c.hidden, (c.vocabulary as f32).sqrt());
        let layers = (0..c.layers)
            .map(|_| Layer {
                attention_norm: draw.norm(c.hidden),
                query: draw.matrix(c.hidden, queries, ATTENTION_GAIN),
                key: draw.matrix(c.hidden, keys, ATTENTION_GAIN),
                value: draw.matrix(c.hidden, keys, 1.0),
                join: draw.matrix(queries, c.hidden, 1.0),
                feed_norm: draw.norm(c.hidden),
                gate: draw.matrix(c.hidden, c.feed_forward, 1.0),
                up: draw.matrix(c.hidden, c.feed_forward, 1.0),
                down: draw.matrix(c.feed_forward, c.hidden, 1.0),
            })
            .collect();
        let norm = draw.norm(c.hidden);
        let output = draw.matrix(c.hidden, c.vocabulary, 1.0);
        Ok(Self { config, seed, embedding, layers, norm, output })
    }
}

/// A stream of random numbers (SplitMix64).
struct Draw {
    state: u64,
}

impl Draw {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in −1 … 1.
    fn uniform(&mut self) -> f32 {
        // 24 bits, so that the number is exact.
        let bits = u32::try_from(self.next() >> 40).expect("24 bits fit in 32");
        bits as f32 * (2.0 / (1_u32 << 24) as f32) - 1.0
    }

    /// Weights that keep the size of what they multiply, times `gain`: variance `gain² / inputs`.
    fn matrix(&mut self, inputs: usize, outputs: usize, gain: f32) -> Array2<f32> {
        let bound = gain * (3.0 / inputs as f32).sqrt();
        Array2::from_shape_simple_fn((inputs, outputs), || bound * self.uniform())
    }

    /// Factors of a norm: near 1, and not all equal.
    fn norm(&mut self, width: usize) -> Vec<f32> {
        (0..width).map(|_| 1.0 + 0.1 * self.uniform()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_model() {
        let config = ModelConfig::small();
        let model = |seed| Model::from_seed(config, seed).unwrap();
        assert_eq!(model(7).output, model(7).output);
        assert_ne!(model(7).output, model(8).output);
        // Written down, so that a change of the stream is a change of the test: engines that share pages must agree.
        let first: Vec<u32> = model(7).embedding.iter().take(3).map(|w| w.to_bits()).collect();
        assert_eq!(first, FIRST_BITS);
    }

    const FIRST_BITS: [u32; 3] = [3_200_476_792, 3_218_489_903, 1_068_610_309];
}
