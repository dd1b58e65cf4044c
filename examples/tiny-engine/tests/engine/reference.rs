//! The transformer as its definition says: one token after the other, in `f64`, without pages, batches or tricks.

use memkv_tiny_engine::{Layer, Model};
use ndarray::Array2;

/// The logits after each token of a prompt.
pub(crate) fn logits(model: &Model, tokens: &[u32]) -> Vec<Vec<f64>> {
    let mut caches: Vec<Cache> = model.layers.iter().map(|_| Cache::default()).collect();
    let mut all = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        let embedding = model.embedding.row(*token as usize);
        let mut stream: Vec<f64> = embedding.iter().map(|x| f64::from(*x)).collect();
        for (layer, cache) in model.layers.iter().zip(&mut caches) {
            block(model, layer, cache, position, &mut stream);
        }
        let normed = norm(model, &stream, &model.norm);
        all.push(times(&normed, &model.output));
    }
    all
}

/// Keys and values of the tokens so far.
#[derive(Default)]
struct Cache {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

fn block(model: &Model, layer: &Layer, cache: &mut Cache, position: usize, stream: &mut [f64]) {
    let config = &model.config;
    let width = config.head_width;
    let normed = norm(model, stream, &layer.attention_norm);
    let query = rotate(model, times(&normed, &layer.query), position);
    cache.keys.push(rotate(model, times(&normed, &layer.key), position));
    cache.values.push(times(&normed, &layer.value));
    let mut joined = Vec::new();
    for head in 0..config.heads {
        let query = &query[head * width..(head + 1) * width];
        let shared = head / (config.heads / config.kv_heads) * width;
        let score = |key: &Vec<f64>| {
            let key = &key[shared..shared + width];
            query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (width as f64).sqrt()
        };
        let weights: Vec<f64> = cache.keys.iter().map(|key| score(key).exp()).collect();
        let total: f64 = weights.iter().sum();
        joined.extend((0..width).map(|i| {
            let weighted = weights.iter().zip(&cache.values).map(|(w, value)| w * value[shared + i]);
            weighted.sum::<f64>() / total
        }));
    }
    add(stream, &times(&joined, &layer.join));
    let normed = norm(model, stream, &layer.feed_norm);
    let gate = times(&normed, &layer.gate);
    let up = times(&normed, &layer.up);
    let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    add(stream, &times(&gated, &layer.down));
}

fn norm(model: &Model, row: &[f64], factors: &[f32]) -> Vec<f64> {
    let mean_square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    let root = (mean_square + f64::from(model.config.norm_epsilon)).sqrt();
    row.iter().zip(factors).map(|(x, factor)| x / root * f64::from(*factor)).collect()
}

/// Turns number `i` and number `i + width/2` of each head by the position times `base^(−2i/width)`.
fn rotate(model: &Model, mut row: Vec<f64>, position: usize) -> Vec<f64> {
    let (width, base) = (model.config.head_width, f64::from(model.config.rotary_base));
    for head in row.chunks_exact_mut(width) {
        for i in 0..width / 2 {
            let angle = position as f64 * base.powf(-2.0 * i as f64 / width as f64);
            let (a, b) = (head[i], head[i + width / 2]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[i + width / 2] = a * angle.sin() + b * angle.cos();
        }
    }
    row
}

fn times(row: &[f64], matrix: &Array2<f32>) -> Vec<f64> {
    let column =
        |column: usize| row.iter().zip(matrix.column(column)).map(|(x, weight)| x * f64::from(*weight)).sum();
    (0..matrix.ncols()).map(column).collect()
}

fn add(stream: &mut [f64], other: &[f64]) {
    stream.iter_mut().zip(other).for_each(|(x, y)| *x += y);
}
