//! An engine process of `cargo xtask demo engine`.
//!
//! `memkv-tiny-engine write --name A` answers a long prompt and writes its pages to MemKV. `compare --name B` answers a
//! prompt with the same beginning twice, in engines with empty caches: without MemKV and with it. Servers and key
//! come from `MEMKV_*`. Standard output gets one line of JSON, standard error the talk.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the report goes to standard output")]

use anyhow::{Context as _, Result, bail, ensure};
use memkv_client::{Client, Config, Space};
use memkv_offload::{Options, Tiers};
use memkv_tiny_engine::engine::space;
use memkv_tiny_engine::{
    Engine, EngineSizes, Event, KvLayout, KvPool, Lower, Model, ModelConfig, Request, RouterLimits,
};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SEED: u64 = 2026;
const PAGE_TOKENS: usize = 64;
/// Tokens of a prompt after the beginning that all share.
const OWN_TOKENS: usize = 32;
/// Tokens of an answer.
const NEW_TOKENS: usize = 8;
/// How long the last pages may take to reach the servers.
const PATIENCE: Duration = Duration::from_secs(20);

struct Arguments {
    compare: bool,
    name: String,
    tokens: usize,
}

/// One way of answering.
struct Way {
    first_token: Duration,
    /// Tokens that were computed until the first one came.
    computed: u64,
    cached: usize,
    answer: Vec<u32>,
    /// One row per token of the answer.
    logits: Vec<Vec<f32>>,
}

type Tiered = Engine<Tiers<Arc<KvPool>, Space>>;

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments> {
    let mut words = std::env::args().skip(1);
    let compare = match words.next().as_deref() {
        Some("write") => false,
        Some("compare") => true,
        _ => bail!("usage: memkv-tiny-engine write|compare [--name NAME] [--tokens N]"),
    };
    let mut arguments = Arguments { compare, name: "A".to_owned(), tokens: 4096 };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--name" => arguments.name = words.next().context("--name needs a name")?,
            "--tokens" => {
                arguments.tokens =
                    words.next().and_then(|n| n.parse().ok()).context("--tokens needs a number")?;
            }
            _ => bail!("unknown argument {word:?}"),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<Value> {
    let model = Arc::new(Model::from_seed(ModelConfig::demo(), SEED)?);
    let prompt = prompt(&model, arguments);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let store = runtime.block_on(async {
        let client = Client::connect(Config::load()?).await?;
        client.space(space(&model, PAGE_TOKENS)).await
    })?;
    let pages =
        u32::try_from((prompt.len() + NEW_TOKENS).div_ceil(PAGE_TOKENS) + 1).context("too many tokens")?;
    let limits = RouterLimits::default();
    let sizes = EngineSizes { page_tokens: PAGE_TOKENS, device_pages: pages, host_pages: 2 * pages, limits };

    let recomputed = if arguments.compare {
        eprintln!("engine {} answers {} tokens without MemKV", arguments.name, prompt.len());
        Some(answer(&mut Engine::new(&model, sizes)?, &prompt)?)
    } else {
        None
    };
    eprintln!("engine {} answers {} tokens with MemKV", arguments.name, prompt.len());
    let mut engine: Tiered = Engine::with_store(&model, sizes, store, Options::default())?;
    let reloaded = answer(&mut engine, &prompt)?;
    ensure!(engine.drain(PATIENCE), "the pages did not reach the servers in time");
    let stats = engine.router().lower().stats();
    ensure!(engine.shut_down(PATIENCE), "the transfers did not end in time");

    let mut report = json!({
        "parameters": model.config.parameters(),
        "page_tokens": PAGE_TOKENS,
        "page_bytes": KvLayout::new(&model.config, PAGE_TOKENS).page_bytes(),
        "prompt_tokens": prompt.len(),
        "pages_stored": stats.stored_pages,
        "reloaded": describe(&reloaded, stats.loaded_pages),
    });
    if let Some(recomputed) = recomputed {
        report["recomputed"] = describe(&recomputed, 0);
        report["logit_difference"] = json!(difference(&recomputed, &reloaded));
        report["same_answer"] = json!(recomputed.answer == reloaded.answer);
    }
    Ok(report)
}

/// The beginning that all engines share, and some tokens of the engine's own.
fn prompt(model: &Model, arguments: &Arguments) -> Vec<u32> {
    let vocabulary = u64::try_from(model.config.vocabulary).unwrap_or(u64::MAX);
    let draw = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((*state >> 33) % vocabulary).unwrap_or(0)
    };
    let mut shared = 1;
    let mut own = arguments.name.bytes().fold(7, |state, byte| state * 31 + u64::from(byte));
    let mut tokens: Vec<u32> = (0..arguments.tokens).map(|_| draw(&mut shared)).collect();
    tokens.extend((0..OWN_TOKENS).map(|_| draw(&mut own)));
    tokens
}

/// Answers one prompt and watches.
fn answer<L: Lower>(engine: &mut Engine<L>, prompt: &[u32]) -> Result<Way> {
    let started = Instant::now();
    engine.submit(Request { prompt: prompt.to_vec(), new_tokens_max: NEW_TOKENS, ..Request::default() })?;
    let (mut first, mut logits) = (None, Vec::new());
    while let Some(events) = engine.step()? {
        for event in events {
            match event {
                Event::Token { logits: row, .. } => {
                    first.get_or_insert_with(|| (started.elapsed(), engine.tokens_computed()));
                    logits.push(row);
                }
                Event::Finished(answer) => {
                    let (first_token, computed) = first.context("an answer has a first token")?;
                    return Ok(Way {
                        first_token,
                        computed,
                        cached: answer.cached_tokens,
                        answer: answer.tokens,
                        logits,
                    });
                }
            }
        }
    }
    bail!("the engine stopped without an answer")
}

/// The largest difference of any logit.
fn difference(one: &Way, other: &Way) -> f32 {
    let rows = one.logits.iter().zip(&other.logits);
    rows.flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs())).fold(0.0, f32::max)
}

fn describe(way: &Way, pages_loaded: u64) -> Value {
    json!({
        "first_token_ms": way.first_token.as_secs_f64() * 1e3,
        "tokens_computed": way.computed,
        "tokens_cached": way.cached,
        "pages_loaded": pages_loaded,
    })
}
