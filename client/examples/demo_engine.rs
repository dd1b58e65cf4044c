//! An engine for `cargo xtask demo --quick`: the same command line and report as the SGLang engine of the full demo.
//!
//! `demo_engine write --pages N` computes pages and stores them. `demo_engine read --pages N` gets them back in a
//! new process and compares every byte; `--after-kill` says that misses are fine. Pages are computed from their
//! keys alone, so writer and reader share nothing but the servers.
//!
//! Servers and key come from `MEMKV_*`. Standard output gets one line of JSON.

#![allow(clippy::print_stdout, reason = "the report goes to standard output")]

use memkv_client::blocking::Client;
use memkv_client::{Config, PageOutcome, SpaceDescription};
use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

const PAGE_BYTES: usize = 1 << 20;
/// Pages of one call, as an engine would move them.
const BATCH: usize = 32;

struct Arguments {
    write: bool,
    pages: usize,
    after_kill: bool,
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let write = match words.next().as_deref() {
        Some("write") => true,
        Some("read") => false,
        _ => return Err("usage: demo_engine write|read [--pages N] [--after-kill]".into()),
    };
    let mut arguments = Arguments { write, pages: 256, after_kill: false };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--pages" => arguments.pages = words.next().ok_or("--pages needs a number")?.parse()?,
            "--after-kill" => arguments.after_kill = true,
            _ => return Err(format!("unknown argument {word:?}").into()),
        }
    }
    Ok(arguments)
}

/// Returns whether all went as it should.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let client = Client::connect(Config::load()?)?;
    let description = [("name", "demo"), ("engine", "demo_engine"), ("page_bytes", "1048576")];
    let fields = description.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let space = client.space(SpaceDescription::new(fields)?)?;
    let keys: Vec<String> = (0..arguments.pages).map(|index| format!("prompt-1/page-{index:05}")).collect();
    let mut outcomes = vec![PageOutcome::Miss; keys.len()];
    let mut seconds = 0.0;
    let mut wrong = 0;
    let mut memory = vec![0_u8; BATCH * PAGE_BYTES];
    for (keys, outcomes) in keys.chunks(BATCH).zip(outcomes.chunks_mut(BATCH)) {
        if arguments.write {
            for (key, page) in keys.iter().zip(memory.chunks_exact_mut(PAGE_BYTES)) {
                compute(key, page);
            }
            let pages: Vec<&[u8]> = memory.chunks_exact(PAGE_BYTES).take(keys.len()).collect();
            let started = Instant::now();
            space.put_from(keys, &pages, outcomes)?;
            seconds += started.elapsed().as_secs_f64();
        } else {
            memory.fill(0);
            let mut pages: Vec<&mut [u8]> = memory.chunks_exact_mut(PAGE_BYTES).take(keys.len()).collect();
            let started = Instant::now();
            space.get_into(keys, &mut pages, outcomes)?;
            seconds += started.elapsed().as_secs_f64();
            wrong += wrong_bytes(keys, outcomes, &memory);
        }
    }
    let good = outcomes.iter().filter(|outcome| outcome.is_success()).count();
    println!("{}", report(arguments, good, wrong, seconds));
    Ok(wrong == 0 && (good == keys.len() || arguments.after_kill))
}

/// A page that depends on its key alone, and no two bytes of which can be swapped unnoticed.
fn compute(key: &str, page: &mut [u8]) {
    let mut state = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for word in page.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// Bytes of hits that are not what the writer computed.
fn wrong_bytes(keys: &[String], outcomes: &[PageOutcome], memory: &[u8]) -> usize {
    let mut expected = vec![0; PAGE_BYTES];
    let mut wrong = 0;
    for ((key, outcome), page) in keys.iter().zip(outcomes).zip(memory.chunks_exact(PAGE_BYTES)) {
        if *outcome == PageOutcome::Hit {
            compute(key, &mut expected);
            wrong += page.iter().zip(&expected).filter(|(got, want)| got != want).count();
        }
    }
    wrong
}

fn report(arguments: &Arguments, good: usize, wrong: usize, seconds: f64) -> String {
    let bytes = good * PAGE_BYTES;
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = if seconds > 0.0 { bytes as f64 / seconds / 1e9 } else { 0.0 };
    let command = if arguments.write { "write" } else { "read" };
    let mut line =
        format!("{{\"command\": \"{command}\", \"page_bytes\": {PAGE_BYTES}, \"pages\": {}", arguments.pages);
    let count = if arguments.write { "pages_stored" } else { "pages_hit" };
    let rest = write!(
        line,
        ", \"{count}\": {good}, \"bytes\": {bytes}, \"bytes_wrong\": {wrong}, \"exceptions\": 0, \
         \"seconds\": {seconds:.6}, \"gb_per_s\": {rate:.3}}}"
    );
    rest.expect("a String takes all");
    line
}
