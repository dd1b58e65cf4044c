//! The executor: computes tokens into pages and returns logits.
//!
//! It gets, per sequence, the new tokens, the position of the first of them, and the list of pages; everything
//! before that position is already in the pages. It never sees requests, prefixes or the cache: a router that says
//! "position 4032, these pages" has skipped 4032 tokens, and [`TransformerExecutor::tokens_computed`] proves it.

use crate::attention::{Queries, attend};
use crate::math::{Rotary, gated, product, rms_norm};
use crate::pool::{Half, KvPool};
use crate::weights::{Layer, Model};
use ndarray::{Array2, ArrayView2, Axis, Slice};
use std::sync::Arc;
use thiserror::Error;

/// The part of one sequence in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// New tokens, at least one.
    pub tokens: &'a [u32],
    /// Position of the first new token, which is also how many tokens the pages already hold.
    pub start: usize,
    /// Pages of the sequence in order; enough for the new tokens too.
    pub pages: &'a [u32],
}

/// Why a batch was refused; nothing was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ExecuteError {
    /// A run without tokens.
    #[error("a run needs at least one new token, because logits come from a computed token")]
    NoTokens,
    /// A token that the model does not have.
    #[error("token {token} is not in the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// How many tokens there are.
        vocabulary: usize,
    },
    /// The pages do not suffice.
    #[error("{tokens} tokens need more than {pages} pages")]
    TooFewPages {
        /// Tokens of the sequence, old and new.
        tokens: usize,
        /// Pages in its list.
        pages: usize,
    },
    /// A page that the pool does not have.
    #[error("page {page} is not in the pool of {pages}")]
    UnknownPage {
        /// The page.
        page: u32,
        /// How many pages there are.
        pages: usize,
    },
}

/// What a router needs of an executor.
pub trait Executor {
    /// Computes the new tokens of every run, writes their keys and values into the pages, and returns the logits
    /// after the last token of each run: `runs × vocabulary`.
    ///
    /// Two runs of one batch may share pages that both only read.
    ///
    /// # Errors
    ///
    /// [`ExecuteError`] for a batch that does not fit the model or the pool.
    fn execute(&mut self, batch: &[Run<'_>]) -> Result<Array2<f32>, ExecuteError>;
}

/// The transformer on the CPU, on the caller's thread.
#[derive(Debug)]
pub struct TransformerExecutor {
    model: Arc<Model>,
    pool: Arc<KvPool>,
    rotary: Rotary,
    tokens_computed: u64,
}

impl TransformerExecutor {
    /// An executor that computes into `pool`.
    ///
    /// # Panics
    ///
    /// If the pool's layout is not the model's.
    #[must_use]
    pub fn new(model: Arc<Model>, pool: Arc<KvPool>) -> Self {
        let own = crate::pool::KvLayout::new(&model.config, pool.layout().page_tokens);
        assert_eq!(own, pool.layout(), "the pool was made for another model");
        let rotary = Rotary::new(model.config.head_width, model.config.rotary_base);
        Self { model, pool, rotary, tokens_computed: 0 }
    }

    /// How many tokens were computed since the start. Cached tokens do not count, because nobody computes them.
    #[must_use]
    pub fn tokens_computed(&self) -> u64 {
        self.tokens_computed
    }

    fn check(&self, run: &Run<'_>) -> Result<(), ExecuteError> {
        let Run { tokens, start, pages } = *run;
        let vocabulary = self.model.config.vocabulary;
        if tokens.is_empty() {
            return Err(ExecuteError::NoTokens);
        }
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            return Err(ExecuteError::UnknownToken { token, vocabulary });
        }
        let all = start + tokens.len();
        if self.pool.layout().pages_for(all) > pages.len() {
            return Err(ExecuteError::TooFewPages { tokens: all, pages: pages.len() });
        }
        if let Some(&page) = pages.iter().find(|page| **page as usize >= self.pool.len()) {
            return Err(ExecuteError::UnknownPage { page, pages: self.pool.len() });
        }
        Ok(())
    }

    /// The rows of every run below each other.
    fn embed(&self, batch: &[Run<'_>]) -> Array2<f32> {
        let tokens: Vec<usize> =
            batch.iter().flat_map(|run| run.tokens.iter().map(|token| *token as usize)).collect();
        self.model.embedding.select(Axis(0), &tokens)
    }

    /// Writes keys and values of a run's new tokens into its pages.
    fn store(&self, run: &Run<'_>, layer: usize, keys: ArrayView2<'_, f32>, values: ArrayView2<'_, f32>) {
        let layout = self.pool.layout();
        let width = self.model.config.head_width;
        let positions = run.start..run.start + run.tokens.len();
        for (row, position) in positions.enumerate() {
            let page = run.pages[position / layout.page_tokens];
            let slot = position % layout.page_tokens * width;
            self.pool.with_mut(page, |numbers| {
                for (half, rows) in [(Half::Keys, &keys), (Half::Values, &values)] {
                    let row = rows.row(row);
                    let row = row.as_slice().expect("a row of a product is contiguous");
                    for (head, vector) in row.chunks_exact(width).enumerate() {
                        numbers[layout.head(layer, half, head)][slot..slot + width].copy_from_slice(vector);
                    }
                }
            });
        }
    }

    /// Attention of one run in one layer: `tokens × heads·width`.
    fn attend_run(&self, run: &Run<'_>, layer: usize, queries: ArrayView2<'_, f32>) -> Array2<f32> {
        let config = &self.model.config;
        let (width, group, tokens) = (config.head_width, config.group(), run.tokens.len());
        let scale = (width as f32).sqrt().recip();
        let mut out = Array2::zeros((tokens, config.heads * width));
        for head in 0..config.kv_heads {
            // The heads of a group are neighbours, so a token's columns are the rows of its group.
            let columns = head * group * width..(head + 1) * group * width;
            let rows: Vec<f32> =
                queries.slice_axis(Axis(1), Slice::from(columns.clone())).iter().map(|x| x * scale).collect();
            let rows = Array2::from_shape_vec((tokens * group, width), rows).expect("tokens × group × width");
            let attended =
                attend(&Queries { rows, group, start: run.start }, &self.pool, run.pages, layer, head);
            let attended =
                attended.into_shape_with_order((tokens, group * width)).expect("tokens × group × width");
            out.slice_axis_mut(Axis(1), Slice::from(columns)).assign(&attended);
        }
        out
    }

    /// One block over the whole batch.
    fn block(&self, batch: &[Run<'_>], index: usize, turns: &[Vec<(f32, f32)>], stream: &mut Array2<f32>) {
        let layer: &Layer = &self.model.layers[index];
        let epsilon = self.model.config.norm_epsilon;
        let rows = rms_norm(stream.view(), &layer.attention_norm, epsilon);
        let mut queries = product(&rows, &layer.query);
        let mut keys = product(&rows, &layer.key);
        let values = product(&rows, &layer.value);
        for (row, turns) in turns.iter().enumerate() {
            for matrix in [&mut queries, &mut keys] {
                let mut row = matrix.row_mut(row);
                Rotary::turn(row.as_slice_mut().expect("a row of a product is contiguous"), turns);
            }
        }
        let mut attended = Array2::zeros(queries.dim());
        let mut from = 0;
        for run in batch {
            let part = Slice::from(from..from + run.tokens.len());
            self.store(run, index, keys.slice_axis(Axis(0), part), values.slice_axis(Axis(0), part));
            let own = self.attend_run(run, index, queries.slice_axis(Axis(0), part));
            attended.slice_axis_mut(Axis(0), part).assign(&own);
            from += run.tokens.len();
        }
        *stream += &product(&attended, &layer.join);

        let rows = rms_norm(stream.view(), &layer.feed_norm, epsilon);
        let mut gate = product(&rows, &layer.gate);
        gated(&mut gate, &product(&rows, &layer.up));
        *stream += &product(&gate, &layer.down);
    }
}

impl Executor for TransformerExecutor {
    fn execute(&mut self, batch: &[Run<'_>]) -> Result<Array2<f32>, ExecuteError> {
        batch.iter().try_for_each(|run| self.check(run))?;
        let mut stream = self.embed(batch);
        let turns: Vec<_> = batch
            .iter()
            .flat_map(|run| run.start..run.start + run.tokens.len())
            .map(|position| self.rotary.at(position))
            .collect();
        for index in 0..self.model.layers.len() {
            self.block(batch, index, &turns, &mut stream);
        }
        self.tokens_computed += turns.len() as u64;
        let ends = batch.iter().scan(0, |end, run| {
            *end += run.tokens.len();
            Some(*end - 1)
        });
        let last = stream.select(Axis(0), &ends.collect::<Vec<_>>());
        let rows = rms_norm(last.view(), &self.model.norm, self.model.config.norm_epsilon);
        Ok(product(&rows, &self.model.output))
    }
}
