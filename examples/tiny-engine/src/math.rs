//! The operations between the matrix products.

use ndarray::{Array2, ArrayView2};

/// `rows × inputs` times `inputs × outputs`.
pub(crate) fn product(rows: &Array2<f32>, weights: &Array2<f32>) -> Array2<f32> {
    rows.dot(weights)
}

/// Divides each row by its root mean square and multiplies it with `factors`.
pub(crate) fn rms_norm(rows: ArrayView2<'_, f32>, factors: &[f32], epsilon: f32) -> Array2<f32> {
    let mut out = rows.to_owned();
    for mut row in out.rows_mut() {
        let mean_square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        let scale = (mean_square + epsilon).sqrt().recip();
        for (x, factor) in row.iter_mut().zip(factors) {
            *x *= scale * factor;
        }
    }
    out
}

/// `gate ← silu(gate) · up`.
pub(crate) fn gated(gate: &mut Array2<f32>, up: &Array2<f32>) {
    gate.zip_mut_with(up, |gate, up| *gate = *gate / (1.0 + (-*gate).exp()) * up);
}

/// Rotary positions: pair `i` of a head, its numbers `i` and `i + width/2`, turns by `position · base^(−2i/width)`.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// One frequency per pair.
    frequencies: Vec<f64>,
}

impl Rotary {
    pub(crate) fn new(head_width: usize, base: f32) -> Self {
        let pairs = head_width / 2;
        let frequency = |pair| f64::from(base).powf(-(pair as f64) / pairs as f64);
        Self { frequencies: (0..pairs).map(frequency).collect() }
    }

    /// Sine and cosine of each pair at a position. In `f64`, so that far positions lose nothing.
    pub(crate) fn at(&self, position: usize) -> Vec<(f32, f32)> {
        let turn = |frequency: &f64| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (sin as f32, cos as f32)
        };
        self.frequencies.iter().map(turn).collect()
    }

    /// Turns every head of one row.
    pub(crate) fn turn(row: &mut [f32], turns: &[(f32, f32)]) {
        for head in row.chunks_exact_mut(2 * turns.len()) {
            let (first, second) = head.split_at_mut(turns.len());
            for ((a, b), (sin, cos)) in first.iter_mut().zip(second).zip(turns) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
}

/// The index of the largest number; the first one of equals.
#[must_use]
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    u32::try_from(best).expect("a vocabulary has fewer than 2^32 tokens")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normed_row_has_mean_square_one() {
        let rows = Array2::from_shape_fn((3, 8), |(row, i)| (row * 8 + i) as f32);
        let normed = rms_norm(rows.view(), &[1.0; 8], 0.0);
        for row in normed.rows() {
            let mean_square = row.iter().map(|x| x * x).sum::<f32>() / 8.0;
            assert!((mean_square - 1.0).abs() < 1e-6, "{mean_square}");
        }
    }

    #[test]
    fn rotation_keeps_what_depends_on_the_distance_alone() {
        let rotary = Rotary::new(8, 100.0);
        let dot = |at: usize, from: usize| {
            let mut query = [0.3, -1.0, 0.5, 2.0, 0.1, 0.7, -0.2, 1.1];
            let mut key = [1.0, 0.2, -0.4, 0.9, -1.3, 0.6, 0.8, 0.05];
            Rotary::turn(&mut query, &rotary.at(at));
            Rotary::turn(&mut key, &rotary.at(from));
            query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>()
        };
        assert!((dot(9, 4) - dot(105, 100)).abs() < 1e-5);
        assert!((dot(9, 4) - dot(9, 5)).abs() > 1e-3);
    }

    #[test]
    fn the_first_of_equals_is_the_largest() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(argmax(&[-1.0]), 0);
    }

    #[test]
    fn the_gate_is_silu() {
        let mut gate = Array2::from_elem((1, 2), 1.0);
        gated(&mut gate, &Array2::from_elem((1, 2), 2.0));
        assert!((gate[[0, 1]] - 2.0 * 0.731_058_6).abs() < 1e-6);
    }
}
