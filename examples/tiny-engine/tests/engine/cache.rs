//! A cache changes what is computed, and nothing else.

use crate::harness::{Engine, Outcome, answer, ask, difference};
use memkv_radix::Namespace;
use memkv_tiny_engine::{Request, RouterLimits};
use proptest::prelude::*;

/// How far logits may be from those without a cache.
const TOLERANCE: f32 = 1e-5;
/// Enough for all prompts of a test, so that nothing is evicted.
const PAGES: u32 = 512;

fn limits(batch_tokens: usize) -> RouterLimits {
    RouterLimits { batch_tokens, ..RouterLimits::default() }
}

/// What a request gives in an engine of its own.
fn alone(page_tokens: usize, request: &Request) -> Outcome {
    let pages = (request.prompt.len() + request.new_tokens_max).div_ceil(page_tokens);
    let mut engine = Engine::new(page_tokens, pages as u32, limits(256));
    let outcome = engine.answer(std::slice::from_ref(request)).remove(0);
    let tokens = request.prompt.len() + outcome.tokens().len() - 1;
    assert_eq!(engine.executor.tokens_computed(), tokens as u64);
    outcome
}

/// Tokens at the beginning of `key` that a cache which has seen `sequences` knows: whole pages, not the last token.
fn known(key: &[u32], sequences: &[Vec<u32>], page_tokens: usize) -> usize {
    let key = &key[..key.len() - 1];
    let common = |seen: &Vec<u32>| key.iter().zip(seen).take_while(|(a, b)| a == b).count();
    sequences.iter().map(common).max().unwrap_or(0) / page_tokens * page_tokens
}

/// Prompts of which some begin alike.
fn prompts() -> impl Strategy<Value = Vec<Vec<u32>>> {
    let tokens = |length| prop::collection::vec(0_u32..97, length);
    let trunks = prop::collection::vec(tokens(1..50), 1..3);
    let prompt = (0_usize..3, 0_usize..50, tokens(1..12));
    (trunks, prop::collection::vec(prompt, 1..7)).prop_map(|(trunks, prompts)| {
        let build = |(trunk, cut, rest): (usize, usize, Vec<u32>)| {
            let trunk = &trunks[trunk % trunks.len()];
            [&trunk[..cut.min(trunk.len())], &rest].concat()
        };
        prompts.into_iter().map(build).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_prefix_is_skipped_exactly_and_logits_stay(
        prompts in prompts(),
        page_tokens in 1_usize..12,
        batch_tokens in 1_usize..40,
        new_tokens in 1_usize..6,
    ) {
        let mut engine = Engine::new(page_tokens, PAGES, limits(batch_tokens));
        // What the tree has: prompts and answers, each without its last token, which nobody computes.
        let mut seen: Vec<Vec<u32>> = Vec::new();
        for prompt in &prompts {
            let request = ask(prompt, new_tokens);
            let skipped = known(prompt, &seen, page_tokens);
            let before = engine.executor.tokens_computed();
            let outcome = engine.answer(std::slice::from_ref(&request)).remove(0);
            let computed = engine.executor.tokens_computed() - before;

            prop_assert_eq!(outcome.cached(), skipped);
            prop_assert_eq!(computed, (prompt.len() - skipped + new_tokens - 1) as u64);
            let worst = difference(&outcome, &alone(page_tokens, &request));
            prop_assert!(worst < TOLERANCE, "{}", worst);

            let mut sequence = [prompt, outcome.tokens()].concat();
            sequence.pop();
            sequence.truncate(sequence.len() / page_tokens * page_tokens);
            seen.push(sequence);
            prop_assert!(engine.nothing_is_held());
        }
    }

    #[test]
    fn company_that_shares_prefixes_changes_no_logit(
        prompts in prompts(),
        page_tokens in 1_usize..12,
        batch_tokens in 1_usize..40,
        // From what the longest request needs alone, so that requests give way and cached pages go.
        spare in 0_u32..30,
    ) {
        let requests: Vec<_> = prompts.iter().map(|prompt| ask(prompt, 4)).collect();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + 3;
        let pages = u32::try_from(longest.div_ceil(page_tokens)).unwrap() + spare;
        let mut engine = Engine::new(page_tokens, pages, limits(batch_tokens));
        // Near ties may be decided by rounding, and then the answers part.
        prop_assume!(requests.iter().all(|request| answer(&request.prompt, 4).is_some()));
        let wanted: Vec<_> = requests.iter().map(|request| alone(page_tokens, request)).collect();
        // Twice, so that the second round begins with whatever the first has left.
        for _ in 0..2 {
            for (outcome, wanted) in engine.answer(&requests).iter().zip(&wanted) {
                let worst = difference(outcome, wanted);
                prop_assert!(worst < TOLERANCE, "{}", worst);
            }
            prop_assert!(engine.nothing_is_held());
        }
    }
}

#[test]
fn at_least_one_token_is_computed() {
    let mut engine = Engine::new(4, PAGES, limits(256));
    let request = ask(&(0..16).collect::<Vec<_>>(), 1);
    let first = engine.answer(std::slice::from_ref(&request)).remove(0);
    let second = engine.answer(std::slice::from_ref(&request)).remove(0);
    // The last token's page is not taken from the cache, though it is there: logits come from a computed token.
    assert_eq!((first.cached(), second.cached()), (0, 12));
    assert_eq!(engine.executor.tokens_computed(), 16 + 4);
}

#[test]
fn generated_tokens_are_found_by_the_next_turn() {
    let mut engine = Engine::new(4, PAGES, limits(256));
    let first: Vec<u32> = vec![3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
    let reply = engine.answer(&[ask(&first, 11)]).remove(0);
    assert_eq!(engine.executor.tokens_computed(), 10 + 10);

    let second = [&first, reply.tokens(), &[8, 9, 7]].concat();
    let outcome = engine.answer(&[ask(&second, 2)]).remove(0);
    // 20 tokens of the first turn were computed: five pages, of which three have generated tokens.
    assert_eq!(outcome.cached(), 20);
    assert_eq!(engine.executor.tokens_computed(), 20 + (24 - 20) + 1);
    assert!(difference(&outcome, &alone(4, &ask(&second, 2))) < TOLERANCE);
}

#[test]
fn tenants_do_not_share() {
    let mut engine = Engine::new(4, PAGES, limits(256));
    let prompt: Vec<u32> = (0..30).collect();
    let of = |tenant| {
        let namespace = Namespace::new(None, Some(tenant)).expect("not a reserved salt");
        Request { namespace, ..ask(&prompt, 1) }
    };
    let cached = |engine: &mut Engine, tenant| engine.answer(&[of(tenant)]).remove(0).cached();
    assert_eq!(cached(&mut engine, "a"), 0);
    assert_eq!(cached(&mut engine, "b"), 0);
    assert_eq!(cached(&mut engine, "a"), 28);
}
