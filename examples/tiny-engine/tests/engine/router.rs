//! The router: batches that fit their bounds, answers that do not depend on company, and no page lost.

use crate::{MODEL, reference};
use memkv_tiny_engine::math::argmax;
use memkv_tiny_engine::{
    Event, Executor, KvLayout, KvPool, PageBook, Request, RequestId, Router, RouterLimits, SubmitError,
    TransformerExecutor,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const PAGE_TOKENS: usize = 4;

fn engine(pages: u32, limits: RouterLimits) -> (Router, TransformerExecutor) {
    let pool = Arc::new(KvPool::new(KvLayout::new(&MODEL.config, PAGE_TOKENS), pages as usize));
    let router = Router::new(limits, MODEL.config.vocabulary, PageBook::new(PAGE_TOKENS, pages));
    (router, TransformerExecutor::new(MODEL.clone(), pool))
}

fn ask(prompt: &[u32], new_tokens_max: usize) -> Request {
    Request { prompt: prompt.to_vec(), new_tokens_max, stop: None }
}

/// What a model that computes everything alone would answer; nothing if two tokens are so near each other that
/// rounding decides.
fn answer(prompt: &[u32], new_tokens: usize) -> Option<Vec<u32>> {
    let mut tokens = prompt.to_vec();
    for _ in 0..new_tokens {
        let logits = reference::logits(&MODEL, &tokens);
        let last: Vec<f32> = logits.last()?.iter().map(|x| *x as f32).collect();
        let best = argmax(&last);
        let near = |other: &&f32| last[best as usize] - **other < 1e-4;
        if last.iter().filter(near).count() > 1 {
            return None;
        }
        tokens.push(best);
    }
    Some(tokens.split_off(prompt.len()))
}

fn expected(prompt: &[u32], new_tokens: usize) -> Vec<u32> {
    answer(prompt, new_tokens).expect("a prompt without near ties")
}

/// Steps until nothing is left to do; returns the answers.
fn drain(router: &mut Router, executor: &mut TransformerExecutor) -> BTreeMap<RequestId, Vec<u32>> {
    let mut answers = BTreeMap::new();
    while let Some(batch) = router.plan() {
        let logits = executor.execute(&batch.runs()).expect("the router's batches fit");
        for event in router.commit(&batch, logits.view()) {
            if let Event::Finished(answer) = event {
                answers.insert(answer.request, answer.tokens);
            }
        }
    }
    assert!(router.is_idle());
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn answers_do_not_depend_on_company_pieces_or_retractions(
        prompts in prop::collection::vec((prop::collection::vec(0_u32..97, 1..24), 1_usize..6), 1..7),
        batch_tokens in 1_usize..20,
        running in 1_usize..5,
        // From just enough for one request to enough for all.
        pages in 8_u32..40,
    ) {
        let limits = RouterLimits { batch_tokens, running, waiting: 16 };
        let (mut router, mut executor) = engine(pages, limits);
        let mut wanted = BTreeMap::new();
        for (prompt, new_tokens) in &prompts {
            let id = router.submit(ask(prompt, *new_tokens)).unwrap();
            let answer = answer(prompt, *new_tokens);
            prop_assume!(answer.is_some());
            wanted.insert(id, answer.unwrap());
        }
        prop_assert_eq!(drain(&mut router, &mut executor), wanted);
        prop_assert_eq!(router.pages().available(), pages as usize);
    }

    #[test]
    fn an_abort_at_any_point_leaves_no_page_behind(
        prompts in prop::collection::vec(prop::collection::vec(0_u32..97, 1..24), 2..6),
        aborts in prop::collection::vec((0_usize..12, 0_usize..6, any::<bool>()), 1..6),
    ) {
        let limits = RouterLimits { batch_tokens: 7, running: 3, waiting: 16 };
        let (mut router, mut executor) = engine(20, limits);
        let ids: Vec<_> = prompts.iter().map(|prompt| router.submit(ask(prompt, 4)).unwrap()).collect();
        let mut gone = Vec::new();
        let mut answered = BTreeMap::new();
        for step in 0.. {
            let abort = |router: &mut Router, gone: &mut Vec<RequestId>, under_way: bool| {
                for (_, victim, _) in aborts.iter().filter(|(at, _, during)| (*at, *during) == (step, under_way)) {
                    if let Some(id) = ids.get(*victim) && router.abort(*id) {
                        gone.push(*id);
                    }
                }
            };
            abort(&mut router, &mut gone, false);
            let Some(batch) = router.plan() else { break };
            abort(&mut router, &mut gone, true);
            let logits = executor.execute(&batch.runs()).unwrap();
            for event in router.commit(&batch, logits.view()) {
                if let Event::Finished(answer) = event {
                    answered.insert(answer.request, answer.tokens);
                }
            }
        }
        prop_assert!(router.is_idle());
        prop_assert_eq!(router.pages().available(), 20);
        prop_assert_eq!(gone.len() + answered.len(), ids.len());
        for (id, prompt) in ids.iter().zip(&prompts).filter(|(id, _)| !gone.contains(id)) {
            let answer = answer(prompt, 4);
            prop_assume!(answer.is_some());
            prop_assert_eq!(&answered[id], &answer.unwrap());
        }
    }
}

#[test]
fn a_long_prompt_is_read_in_pieces_between_the_tokens_of_others() {
    let (mut router, mut executor) = engine(64, RouterLimits { batch_tokens: 8, running: 4, waiting: 4 });
    let short = router.submit(ask(&[1, 2, 3], 6)).unwrap();
    let long: Vec<u32> = (0..40).collect();
    router.submit(ask(&long, 1)).unwrap();
    let mut tokens_of_short = Vec::new();
    let mut steps = 0;
    while let Some(batch) = router.plan() {
        assert!(batch.tokens() <= 8);
        steps += 1;
        let logits = executor.execute(&batch.runs()).unwrap();
        for event in router.commit(&batch, logits.view()) {
            if let Event::Token { request, .. } = event
                && request == short
            {
                tokens_of_short.push(steps);
            }
        }
    }
    // One token at every step, though the long prompt fills each batch.
    assert_eq!(tokens_of_short, [1, 2, 3, 4, 5, 6]);
    assert_eq!(executor.tokens_computed(), 3 + 5 + 40);
}

#[test]
fn who_gives_way_starts_again_and_says_so() {
    // Both fit when they begin, and not when they have grown.
    let (mut router, mut executor) = engine(6, RouterLimits::default());
    let prompts = [[5_u32; 8], [6; 8]];
    for prompt in &prompts {
        router.submit(ask(prompt, 9)).unwrap();
    }
    let mut retractions = Vec::new();
    while let Some(batch) = router.plan() {
        let logits = executor.execute(&batch.runs()).unwrap();
        for event in router.commit(&batch, logits.view()) {
            if let Event::Finished(answer) = event {
                assert_eq!(answer.tokens, expected(&prompts[retractions.len()], 9));
                retractions.push(answer.retractions);
            }
        }
    }
    assert_eq!(retractions, [0, 1]);
}

#[test]
fn a_stop_token_ends_an_answer() {
    let whole = expected(&[9, 8, 7], 5);
    let stop = whole[2];
    let (mut router, mut executor) = engine(16, RouterLimits::default());
    let id = router.submit(Request { stop: Some(stop), ..ask(&[9, 8, 7], 5) }).unwrap();
    let end = whole.iter().position(|token| *token == stop).unwrap();
    assert_eq!(drain(&mut router, &mut executor)[&id], whole[..=end]);
}

#[test]
fn what_could_never_run_is_refused() {
    let (mut router, _) = engine(4, RouterLimits { waiting: 1, ..RouterLimits::default() });
    assert_eq!(router.submit(ask(&[], 1)), Err(SubmitError::Empty));
    assert_eq!(router.submit(ask(&[1], 0)), Err(SubmitError::Empty));
    let unknown = SubmitError::UnknownToken { token: 97, vocabulary: 97 };
    assert_eq!(router.submit(ask(&[97], 1)), Err(unknown));
    // 16 tokens fit; the last generated one needs no room.
    assert_eq!(router.submit(ask(&[1; 15], 3)), Err(SubmitError::TooLong { pages: 5, pool: 4 }));
    assert!(router.submit(ask(&[1; 15], 2)).is_ok());
    assert_eq!(router.submit(ask(&[1], 1)), Err(SubmitError::Busy(1)));
}
