//! The executor computes what the definition says, however the tokens are cut into runs, pages and batches.

use crate::{MODEL, reference};
use memkv_tiny_engine::{ExecuteError, Executor, KvLayout, KvPool, Run, TransformerExecutor};
use proptest::prelude::*;
use std::sync::Arc;

const POOL_PAGES: usize = 64;

fn executor(page_tokens: usize) -> (TransformerExecutor, Arc<KvPool>) {
    let pool = Arc::new(KvPool::new(KvLayout::new(&MODEL.config, page_tokens), POOL_PAGES));
    (TransformerExecutor::new(MODEL.clone(), pool.clone()), pool)
}

/// The largest difference of two rows of logits.
fn difference(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max)
}

/// Pages in an order that has nothing to do with the order of the tokens.
fn scattered(offset: usize, count: usize) -> Vec<u32> {
    (0..count).map(|i| ((offset + i * 29) % POOL_PAGES) as u32).collect()
}

fn prompt(length: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..MODEL.config.vocabulary as u32, length)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn runs_and_pages_of_any_size_give_the_defined_logits(
        tokens in prompt(1..48),
        page_tokens in 1_usize..12,
        cuts in prop::collection::vec(1_usize..20, 1..8),
    ) {
        let want = reference::logits(&MODEL, &tokens);
        let (mut executor, pool) = executor(page_tokens);
        let pages = scattered(7, pool.layout().pages_for(tokens.len()));
        let mut start = 0;
        for cut in cuts.iter().cycle() {
            let end = (start + cut).min(tokens.len());
            let run = Run { tokens: &tokens[start..end], start, pages: &pages };
            let logits = executor.execute(&[run]).unwrap();
            let worst = difference(&logits.row(0).to_vec(), &want[end - 1]);
            prop_assert!(worst < 1e-4, "{worst} after token {end}");
            start = end;
            if start == tokens.len() {
                break;
            }
        }
        prop_assert_eq!(executor.tokens_computed(), tokens.len() as u64);
    }

    #[test]
    fn sequences_of_a_batch_do_not_touch_each_other(
        first in prompt(1..30),
        second in prompt(1..30),
        shared in prompt(8..=8),
    ) {
        // Both sequences continue one shared page, and each has pages of its own after it.
        let (mut executor, pool) = executor(8);
        executor.execute(&[Run { tokens: &shared, start: 0, pages: &[3] }]).unwrap();
        let mut worst: f64 = 0.0;
        let table = |offset, tokens: &Vec<u32>| {
            let mut pages = vec![3];
            pages.extend((0..pool.layout().pages_for(tokens.len()) as u32).map(|i| offset + i));
            pages
        };
        let (a, b) = (table(10, &first), table(30, &second));
        let batch = [
            Run { tokens: &first, start: 8, pages: &a },
            Run { tokens: &second, start: 8, pages: &b },
        ];
        let logits = executor.execute(&batch).unwrap();
        for (row, tokens) in [&first, &second].into_iter().enumerate() {
            let whole = [shared.as_slice(), tokens].concat();
            let want = reference::logits(&MODEL, &whole);
            worst = worst.max(difference(&logits.row(row).to_vec(), want.last().unwrap()));
        }
        prop_assert!(worst < 1e-4, "{worst}");
    }
}

#[test]
fn a_wrong_number_in_a_cached_page_shows_in_the_logits() {
    // If this did not hold, equal logits would prove nothing.
    let tokens: Vec<u32> = (0..40).map(|i| i * 13 % 97).collect();
    let (mut executor, pool) = executor(8);
    let pages = scattered(0, 5);
    let whole = Run { tokens: &tokens, start: 0, pages: &pages };
    let right = executor.execute(&[whole]).unwrap();
    let last = Run { tokens: &tokens[39..], start: 39, pages: &pages };
    assert!((&executor.execute(&[last]).unwrap() - &right).iter().all(|d| d.abs() < 1e-5));

    let mut page = vec![0; pool.layout().page_bytes()];
    pool.read_page(pages[0], &mut page);
    page[..64].fill(0);
    pool.write_page(pages[0], &page);
    let wrong = executor.execute(&[last]).unwrap();
    assert!((&wrong - &right).iter().any(|d| d.abs() > 1e-3));
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_computed() {
    let (mut executor, _) = executor(4);
    let good = Run { tokens: &[1, 2], start: 3, pages: &[0, 1] };
    let cases = [
        (Run { tokens: &[], ..good }, ExecuteError::NoTokens),
        (Run { tokens: &[97], ..good }, ExecuteError::UnknownToken { token: 97, vocabulary: 97 }),
        (Run { start: 7, ..good }, ExecuteError::TooFewPages { tokens: 9, pages: 2 }),
        (Run { pages: &[0, 64], ..good }, ExecuteError::UnknownPage { page: 64, pages: 64 }),
    ];
    for (bad, why) in cases {
        assert_eq!(executor.execute(&[good, bad]).unwrap_err(), why);
    }
    assert_eq!(executor.tokens_computed(), 0);
}
