//! The router: batches that fit their bounds, answers that do not depend on company, and no page lost.

use crate::harness::{Engine, answer, ask, expected};
use memkv_tiny_engine::{Event, Executor, Request, RequestId, RouterLimits, SubmitError};
use proptest::prelude::*;
use std::collections::BTreeMap;

const PAGE_TOKENS: usize = 4;

fn engine(pages: u32, limits: RouterLimits) -> Engine {
    Engine::new(PAGE_TOKENS, pages, limits)
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
        let mut engine = engine(pages, RouterLimits { batch_tokens, running, waiting: 16 });
        let requests: Vec<_> = prompts.iter().map(|(prompt, new_tokens)| ask(prompt, *new_tokens)).collect();
        for (outcome, (prompt, new_tokens)) in engine.answer(&requests).iter().zip(&prompts) {
            let wanted = answer(prompt, *new_tokens);
            prop_assume!(wanted.is_some());
            prop_assert_eq!(outcome.tokens(), wanted.unwrap());
        }
        prop_assert!(engine.nothing_is_held());
    }

    #[test]
    fn an_abort_at_any_point_leaves_no_page_behind(
        prompts in prop::collection::vec(prop::collection::vec(0_u32..97, 1..24), 2..6),
        aborts in prop::collection::vec((0_usize..12, 0_usize..6, any::<bool>()), 1..6),
    ) {
        let mut engine = engine(20, RouterLimits { batch_tokens: 7, running: 3, waiting: 16 });
        let ids: Vec<_> = prompts.iter().map(|prompt| engine.router.submit(ask(prompt, 4)).unwrap()).collect();
        let mut gone = Vec::new();
        let mut answered = BTreeMap::new();
        for step in 0.. {
            let abort = |engine: &mut Engine, gone: &mut Vec<RequestId>, under_way: bool| {
                for (_, victim, _) in aborts.iter().filter(|(at, _, during)| (*at, *during) == (step, under_way)) {
                    if let Some(id) = ids.get(*victim) && engine.router.abort(*id) {
                        gone.push(*id);
                    }
                }
            };
            abort(&mut engine, &mut gone, false);
            let Some(batch) = engine.router.plan() else { break };
            abort(&mut engine, &mut gone, true);
            let logits = engine.executor.execute(&batch.runs()).unwrap();
            for event in engine.router.commit(&batch, logits.view()) {
                if let Event::Finished(answer) = event {
                    answered.insert(answer.request, answer.tokens);
                }
            }
            prop_assert!(engine.router.cache().check().is_ok());
        }
        prop_assert!(engine.router.is_idle());
        prop_assert!(engine.nothing_is_held());
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
    let mut engine = engine(64, RouterLimits { batch_tokens: 8, running: 4, waiting: 4 });
    let short = engine.router.submit(ask(&[1, 2, 3], 6)).unwrap();
    let long: Vec<u32> = (0..40).collect();
    engine.router.submit(ask(&long, 1)).unwrap();
    let mut tokens_of_short = Vec::new();
    let mut before = 0;
    for step in 1.. {
        let Some(events) = engine.step() else { break };
        assert!(engine.executor.tokens_computed() - before <= 8);
        before = engine.executor.tokens_computed();
        for event in events {
            if let Event::Token { request, .. } = event
                && request == short
            {
                tokens_of_short.push(step);
            }
        }
    }
    // One token at every step, though the long prompt fills each batch.
    assert_eq!(tokens_of_short, [1, 2, 3, 4, 5, 6]);
    assert_eq!(before, 3 + 5 + 40);
}

#[test]
fn who_gives_way_starts_again_and_says_so() {
    // Both fit when they begin, and not when they have grown.
    let mut engine = engine(6, RouterLimits::default());
    let prompts = [[5_u32; 8], [6; 8]];
    let outcomes = engine.answer(&prompts.map(|prompt| ask(&prompt, 9)));
    let retractions = |outcome: &crate::harness::Outcome| outcome.answer.as_ref().unwrap().retractions;
    assert_eq!([retractions(&outcomes[0]), retractions(&outcomes[1])], [0, 1]);
    for (outcome, prompt) in outcomes.iter().zip(&prompts) {
        assert_eq!(outcome.tokens(), expected(prompt, 9));
    }
}

#[test]
fn who_gave_way_comes_before_those_who_came_later() {
    let mut engine = engine(6, RouterLimits::default());
    let ids = [5_u32, 6, 7].map(|token| engine.router.submit(ask(&[token; 8], 9)).unwrap());
    let mut finished = Vec::new();
    while let Some(events) = engine.step() {
        finished.extend(events.into_iter().filter_map(|event| match event {
            Event::Finished(answer) => Some(answer),
            Event::Token { .. } => None,
        }));
    }
    assert_eq!(finished.iter().map(|answer| answer.request).collect::<Vec<_>>(), ids);
    assert!(finished[1].retractions > 0);
}

#[test]
fn a_prompt_is_shared_while_its_first_request_still_runs() {
    let mut engine = engine(32, RouterLimits { batch_tokens: 8, ..RouterLimits::default() });
    let prompt: Vec<u32> = (0..20).collect();
    engine.router.submit(ask(&prompt, 10)).unwrap();
    // Two pieces of the prompt; the third is under way when the second request comes.
    engine.step().unwrap();
    engine.step().unwrap();
    assert_eq!(engine.answer(&[ask(&prompt, 1)]).remove(0).cached(), 16);
}

#[test]
fn a_stop_token_ends_an_answer() {
    let whole = expected(&[9, 8, 7], 5);
    let stop = whole[2];
    let request = Request { stop: Some(stop), ..ask(&[9, 8, 7], 5) };
    let outcome = engine(16, RouterLimits::default()).answer(&[request]).remove(0);
    let end = whole.iter().position(|token| *token == stop).unwrap();
    assert_eq!(outcome.tokens(), &whole[..=end]);
}

#[test]
fn a_batch_that_was_not_computed_is_planned_again() {
    let mut engine = engine(16, RouterLimits::default());
    engine.router.submit(ask(&[9, 8, 7], 1)).unwrap();
    let batch = engine.router.plan().unwrap();
    engine.router.give_up();
    assert_eq!(engine.router.plan(), Some(batch));
}

#[test]
fn pages_of_a_batch_under_way_keep_their_owner() {
    let mut engine = engine(16, RouterLimits::default());
    let free = |engine: &Engine| engine.router.cache().stats().device_free;
    let id = engine.router.submit(ask(&[9, 8, 7, 6, 5], 1)).unwrap();
    let batch = engine.router.plan().unwrap();
    assert_eq!(free(&engine), 14);
    assert!(engine.router.abort(id));
    assert!(!engine.router.abort(id));
    // The executor may be writing to them.
    assert_eq!(free(&engine), 14);
    let logits = engine.executor.execute(&batch.runs()).unwrap();
    assert_eq!(engine.router.commit(&batch, logits.view()), []);
    assert_eq!(free(&engine), 16);
}

#[test]
fn what_could_never_run_is_refused() {
    let mut router = engine(4, RouterLimits { waiting: 1, ..RouterLimits::default() }).router;
    assert_eq!(router.submit(ask(&[], 1)), Err(SubmitError::Empty));
    assert_eq!(router.submit(ask(&[1], 0)), Err(SubmitError::Empty));
    let unknown = SubmitError::UnknownToken { token: 97, vocabulary: 97 };
    assert_eq!(router.submit(ask(&[97], 1)), Err(unknown));
    // 16 tokens fit; the last generated one needs no room.
    assert_eq!(router.submit(ask(&[1; 15], 3)), Err(SubmitError::TooLong { pages: 5, pool: 4 }));
    assert!(router.submit(ask(&[1; 15], 2)).is_ok());
    assert_eq!(router.submit(ask(&[1], 1)), Err(SubmitError::Busy(1)));
}
