//! Engines that share prefixes through real daemons: a page that one computed is not computed by another.

use crate::common::{PATIENCE, config_of};
use memkv_client::{Client, Space, Transport};
use memkv_offload::{Options, Tiers};
use memkv_tests::daemon::Daemon;
use memkv_tiny_engine::engine::space;
use memkv_tiny_engine::{
    Answer, Engine, EngineSizes, Event, KvPool, Lower, Model, ModelConfig, Request, RouterLimits,
};
use std::sync::{Arc, LazyLock};

const PAGE_TOKENS: usize = 8;
const SIZES: EngineSizes = EngineSizes {
    page_tokens: PAGE_TOKENS,
    device_pages: 64,
    host_pages: 128,
    limits: RouterLimits { batch_tokens: 32, running: 4, waiting: 8 },
};
/// How far logits may be from those of an engine without a cache.
const TOLERANCE: f32 = 1e-5;

static MODEL: LazyLock<Arc<Model>> =
    LazyLock::new(|| Arc::new(Model::from_seed(ModelConfig::small(), 5).expect("a valid shape")));

/// A new engine with empty memory, and a client of its own.
fn engine(daemons: &[Daemon]) -> Engine<Tiers<Arc<KvPool>, Space>> {
    let addrs: Vec<_> = daemons.iter().map(Daemon::addr).collect();
    let config = config_of(&addrs, Transport::Tcp).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(async {
        let client = Client::connect(config).await?;
        client.space(space(&MODEL, PAGE_TOKENS)).await
    });
    Engine::with_store(&MODEL, SIZES, store.unwrap(), Options::default()).unwrap()
}

fn tokens(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|index| (index * index * 7 + index * 13 + seed * 31) % 97).collect()
}

/// Answers with five tokens; the logits that they were picked from, one after the other.
fn answer<L: Lower>(engine: &mut Engine<L>, prompt: &[u32]) -> (Answer, Vec<f32>) {
    let request = Request { prompt: prompt.to_vec(), new_tokens_max: 5, ..Request::default() };
    engine.submit(request).unwrap();
    let (mut answer, mut logits) = (None, Vec::new());
    while let Some(events) = engine.step().unwrap() {
        for event in events {
            match event {
                Event::Token { logits: row, .. } => logits.extend(row),
                Event::Finished(finished) => answer = Some(finished),
            }
        }
    }
    (answer.expect("the engine answers"), logits)
}

/// Answers, and asserts that an engine without any cache answers the same; returns how many tokens were cached.
#[track_caller]
fn answer_rightly<L: Lower>(engine: &mut Engine<L>, prompt: &[u32]) -> Answer {
    let (got, logits) = answer(engine, prompt);
    let (want, right) = answer(&mut Engine::new(&MODEL, SIZES).unwrap(), prompt);
    assert_eq!(got.tokens, want.tokens);
    let worst = logits.iter().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < TOLERANCE, "logits differ by {worst}");
    got
}

#[test]
fn a_second_engine_computes_what_the_first_did_not() {
    let daemons = [Daemon::start().unwrap(), Daemon::start().unwrap(), Daemon::start().unwrap()];
    let shared = tokens(1, 160);
    let mut first = engine(&daemons);
    let prompt = [&shared[..], &tokens(2, 11)].concat();
    let reply = answer_rightly(&mut first, &prompt);
    assert_eq!(reply.cached_tokens, 0);
    assert_eq!(first.tokens_computed(), 171 + 4);
    assert!(first.drain(PATIENCE));
    // 175 tokens have keys and values: 21 whole pages, the last of which has generated tokens.
    assert_eq!(first.router().lower().stats().stored_pages, 21);
    assert!(first.shut_down(PATIENCE));

    // The same beginning, another end.
    let mut second = engine(&daemons);
    let other = [&shared[..], &tokens(3, 9)].concat();
    assert_eq!(answer_rightly(&mut second, &other).cached_tokens, 160);
    assert_eq!(second.tokens_computed(), 9 + 4);
    assert_eq!(second.router().lower().stats().loaded_pages, 20);
    assert!(second.shut_down(PATIENCE));

    // The next turn of the first conversation, in an engine that has seen neither.
    let mut third = engine(&daemons);
    let turn = [&prompt[..], &reply.tokens, &tokens(4, 6)].concat();
    assert_eq!(answer_rightly(&mut third, &turn).cached_tokens, 168);
    assert!(third.shut_down(PATIENCE));
}

#[test]
fn servers_that_die_cost_computing_and_nothing_else() {
    let mut daemons = [Daemon::start().unwrap(), Daemon::start().unwrap(), Daemon::start().unwrap()];
    let prompt = tokens(8, 200);
    let mut first = engine(&daemons);
    answer_rightly(&mut first, &prompt);
    assert!(first.drain(PATIENCE));

    daemons[1].kill().unwrap();
    let mut second = engine(&daemons);
    let cached = answer_rightly(&mut second, &prompt).cached_tokens;
    // What was computed again is as good as before, and a request that comes later finds it on the device.
    assert_eq!(second.tokens_computed(), (200 - cached + 4) as u64);
    assert_eq!(answer_rightly(&mut second, &prompt).cached_tokens, 192);

    // The first engine's own memory does not depend on servers; a new engine has nothing left but its own.
    daemons[0].kill().unwrap();
    daemons[2].kill().unwrap();
    assert_eq!(answer_rightly(&mut first, &prompt).cached_tokens, 192);
    assert_eq!(answer_rightly(&mut first, &tokens(9, 50)).cached_tokens, 0);
    assert!(first.shut_down(PATIENCE));
    assert!(second.shut_down(PATIENCE));
}
