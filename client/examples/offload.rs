//! A tiny inference engine that offloads its KV pages and gets them back, with nothing but this crate.
//!
//! ```text
//! memkv-server &                                   # prints what to export
//! MEMKV_SERVERS=127.0.0.1:9900 cargo run --release -p memkv-client --example offload
//! ```
//!
//! All options of the client come from the environment; see `memkv_client::config::OPTIONS`.

#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, Error, PageOutcome, SpaceDescription};
use std::process::ExitCode;
use std::time::Instant;

const PAGE_BYTES: usize = 256 << 10;
const PAGES: usize = 256;
const BATCH: usize = 64;

/// What the engine computed: one page of KV cache for each block of the prompt, and the key of its prefix.
struct Prefix {
    keys: Vec<String>,
    pages: Vec<Vec<u8>>,
}

/// "Computes" the pages of a prompt: deterministic bytes that differ in every page.
fn prefill(prompt: u64) -> Prefix {
    let page = |index: usize| {
        let mut state = prompt.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64;
        let mut page = Vec::with_capacity(PAGE_BYTES);
        while page.len() < PAGE_BYTES {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            page.extend_from_slice(&(state >> 8).to_le_bytes());
        }
        page
    };
    Prefix {
        keys: (0..PAGES).map(|index| format!("prompt-{prompt:016x}-page-{index}")).collect(),
        pages: (0..PAGES).map(page).collect(),
    }
}

/// Everything that decides whether two engines may use each other's pages.
fn description() -> Result<SpaceDescription, Error> {
    let fields = [
        ("engine", "offload-example"),
        ("model", "tiny-llm"),
        ("revision", "1"),
        ("dtype", "bf16"),
        ("page_tokens", "64"),
        ("page_bytes", "262144"),
        ("tp_rank", "0"),
        ("tp_size", "1"),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok(SpaceDescription::new(fields).expect("these fields are valid"))
}

fn rate(bytes: usize, since: Instant) -> String {
    let seconds = since.elapsed().as_secs_f64();
    format!(
        "{:.1} MiB in {:.1} ms, {:.2} GB/s",
        bytes as f64 / 1_048_576.0,
        seconds * 1e3,
        bytes as f64 / seconds / 1e9
    )
}

fn offload(space: &Space, prefix: &Prefix) -> Result<usize, Error> {
    let mut safe = 0;
    for (keys, pages) in prefix.keys.chunks(BATCH).zip(prefix.pages.chunks(BATCH)) {
        let pages: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
        let mut outcomes = vec![PageOutcome::Unavailable; keys.len()];
        safe += space.put_from(keys, &pages, &mut outcomes)?.ok;
    }
    Ok(safe)
}

/// Reads the pages back straight into one big buffer, as a host pool would be.
fn reload(space: &Space, keys: &[String], pool: &mut [u8]) -> Result<usize, Error> {
    let mut hits = 0;
    for (keys, slots) in keys.chunks(BATCH).zip(pool.chunks_mut(BATCH * PAGE_BYTES)) {
        let mut slots: Vec<&mut [u8]> = slots.chunks_mut(PAGE_BYTES).collect();
        let mut outcomes = vec![PageOutcome::Unavailable; keys.len()];
        hits += space.get_into(keys, &mut slots[..keys.len()], &mut outcomes)?.ok;
    }
    Ok(hits)
}

fn run() -> Result<bool, Error> {
    let client = Client::connect(Config::load()?)?;
    for server in client.servers() {
        println!("server {}: {:?}", server.address, server.state);
    }
    let space = client.space(description()?)?;
    println!("space {}", space.id());
    let prefix = prefill(u64::from(std::process::id()));

    let begin = Instant::now();
    let safe = offload(&space, &prefix)?;
    println!("offloaded {safe} of {PAGES} pages: {}", rate(safe * PAGE_BYTES, begin));

    // Another engine, later: how much of the prompt need not be computed again?
    let reader = Client::connect(Config::load()?)?;
    let space = reader.space(description()?)?;
    let run = space.exists_prefix(&prefix.keys)?;
    println!("the first {run} of {PAGES} pages need not be computed again");

    let mut pool = vec![0_u8; run * PAGE_BYTES];
    let begin = Instant::now();
    let hits = reload(&space, &prefix.keys[..run], &mut pool)?;
    println!("reloaded {hits} of {run} pages: {}", rate(hits * PAGE_BYTES, begin));

    let slots = pool.chunks(PAGE_BYTES).zip(&prefix.pages);
    let wrong: usize = slots.map(|(slot, page)| slot.iter().zip(page).filter(|(a, b)| a != b).count()).sum();
    println!("wrong bytes: {wrong} of {}", pool.len());
    let cleared = space.clear()?;
    println!("cleared {} pages", cleared.removed_pages);
    Ok(wrong == 0 && hits == PAGES)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("not all pages came back; is every server running?");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("offload: {error}");
            ExitCode::FAILURE
        }
    }
}
