//! Attention of a run of new tokens over a table of pages.
//!
//! Pages are visited in order, and softmax is kept as it grows: the largest score so far, the sum of the
//! exponentials, and their weighted values, all scaled down whenever a larger score appears. No buffer is larger
//! than `queries × page_tokens`, however long the context is. The order of the sums depends on the pages alone, so it
//! does not matter in which runs the tokens came.

use crate::pool::{Half, KvLayout, KvPool};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2};

/// The queries of one key and value head: for each new token, `group` rows, all of one sequence.
pub(crate) struct Queries {
    /// `tokens·group × head_width`, scaled by `1/√head_width`.
    pub(crate) rows: Array2<f32>,
    /// Query heads that share the key and value head.
    pub(crate) group: usize,
    /// Position of the first new token.
    pub(crate) start: usize,
}

/// What has been seen so far.
struct Running {
    /// Per row, the largest score; −∞ before the first page.
    largest: Vec<f32>,
    /// Per row, the sum of `exp(score − largest)`.
    sum: Vec<f32>,
    /// Per row, the values weighted with the same exponentials.
    weighted: Array2<f32>,
    /// Scores of one page, then their exponentials.
    scores: Array2<f32>,
}

/// Attends over the pages of one sequence; returns `tokens·group × head_width`.
///
/// The new tokens' own keys and values are already in the pages.
pub(crate) fn attend(
    queries: &Queries,
    pool: &KvPool,
    table: &[u32],
    layer: usize,
    head: usize,
) -> Array2<f32> {
    let layout = pool.layout();
    let (rows, width) = queries.rows.dim();
    let context = queries.start + rows / queries.group;
    let mut running = Running {
        largest: vec![f32::NEG_INFINITY; rows],
        sum: vec![0.0; rows],
        weighted: Array2::zeros((rows, width)),
        scores: Array2::zeros((rows, layout.page_tokens)),
    };
    for (index, page) in table[..layout.pages_for(context)].iter().enumerate() {
        let first = index * layout.page_tokens;
        pool.with(*page, |numbers| {
            let keys = view(&layout, &numbers[layout.head(layer, Half::Keys, head)], width);
            let values = view(&layout, &numbers[layout.head(layer, Half::Values, head)], width);
            visit(queries, &mut running, first, keys, values);
        });
    }
    let Running { sum, mut weighted, .. } = running;
    for (mut row, sum) in weighted.rows_mut().into_iter().zip(sum) {
        row.map_inplace(|x| *x /= sum);
    }
    weighted
}

fn view<'a>(layout: &KvLayout, numbers: &'a [f32], width: usize) -> ArrayView2<'a, f32> {
    ArrayView2::from_shape((layout.page_tokens, width), numbers).expect("a head is tokens × width numbers")
}

/// Takes in one page, whose first token has position `first`.
fn visit(
    queries: &Queries,
    running: &mut Running,
    first: usize,
    keys: ArrayView2<'_, f32>,
    values: ArrayView2<'_, f32>,
) {
    let Running { largest, sum, weighted, scores } = running;
    general_mat_mul(1.0, &queries.rows, &keys.t(), 0.0, scores);
    for (row, mut scores) in scores.rows_mut().into_iter().enumerate() {
        let scores = scores.as_slice_mut().expect("a row of a fresh matrix is contiguous");
        // A token sees itself and what is before it.
        let position = queries.start + row / queries.group;
        let visible = (position + 1).saturating_sub(first).min(scores.len());
        let (seen, hidden) = scores.split_at_mut(visible);
        hidden.fill(0.0);
        let peak = seen.iter().copied().fold(largest[row], f32::max);
        if peak > largest[row] {
            // The first time, `largest` is −∞ and the factor 0.
            let scale = (largest[row] - peak).exp();
            sum[row] *= scale;
            weighted.row_mut(row).map_inplace(|x| *x *= scale);
            largest[row] = peak;
        }
        for score in seen {
            *score = (*score - peak).exp();
            sum[row] += *score;
        }
    }
    general_mat_mul(1.0, scores, &values, 1.0, weighted);
}
