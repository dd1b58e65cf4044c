//! `memkv-fuzz`: the built-in search, and what keeps the corpora. `cargo xtask fuzz` calls it.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the tables are this program's output")]

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use memkv_fuzz::mutate::{Random, mutate};
use memkv_fuzz::{TARGETS, Target, corpus, target};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Executions between two looks at the clock.
const ROUND: u64 = 256;
/// Inputs of a round that are changes of the same kept one.
const CHANGES: usize = 8;

/// Tries readers of foreign bytes with bytes that nobody would send.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Names the targets and says what they try.
    List,
    /// Changes the kept inputs at random and tries them.
    Run {
        /// The target.
        target: String,
        /// How long.
        #[arg(long, default_value_t = 1.0)]
        minutes: f64,
        /// Where a failing input goes.
        #[arg(long, default_value = ".")]
        artifacts: PathBuf,
        /// The same seed tries the same inputs; a random one if absent.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Tries one input from a file.
    Try {
        /// The target.
        target: String,
        /// The file.
        input: PathBuf,
    },
    /// Writes the inputs that the targets make from real messages into their corpora.
    Seeds,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::List => {
            for target in TARGETS {
                println!("{:<14} {}", target.name, target.about);
            }
            Ok(())
        }
        Command::Run { target, minutes, artifacts, seed } => {
            let target = named(&target)?;
            let seed = match seed {
                Some(seed) => seed,
                None => getrandom::u64()
                    .map_err(|error| anyhow::anyhow!("the system has no randomness: {error}"))?,
            };
            search(target, Duration::from_secs_f64(minutes * 60.0), &artifacts, seed)
        }
        Command::Try { target, input } => {
            let bytes = std::fs::read(&input).with_context(|| format!("read {}", input.display()))?;
            (named(&target)?.run)(&bytes);
            Ok(())
        }
        Command::Seeds => TARGETS.iter().try_for_each(corpus::write_seeds),
    }
}

fn named(name: &str) -> Result<&'static Target> {
    target(name).with_context(|| format!("there is no target {name:?}; memkv-fuzz list names them"))
}

/// Tries changed inputs until the time is over or one fails.
fn search(target: &Target, time: Duration, artifacts: &std::path::Path, seed: u64) -> Result<()> {
    let kept: Vec<Vec<u8>> = corpus::read(target)?.into_iter().map(|(_, input)| input).collect();
    if kept.is_empty() {
        bail!("the corpus of {} is empty; run memkv-fuzz seeds", target.name);
    }
    let mut random = Random::new(seed);
    let (begun, mut executions, mut input) = (Instant::now(), 0_u64, Vec::new());
    while begun.elapsed() < time {
        let mut at = 0;
        for number in 0..ROUND {
            if (number as usize).is_multiple_of(CHANGES) {
                at = random.below(kept.len());
                input.clone_from(&kept[at]);
            }
            mutate(&mut input, &kept, target.most, &mut random);
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
                let path = artifacts.join(format!("crash-{}-{seed:016x}", target.name));
                std::fs::write(&path, &input).with_context(|| format!("write {}", path.display()))?;
                bail!("{} fails with {} (seed {seed}, from kept input {at})", target.name, path.display());
            }
            executions += 1;
            if executions.is_multiple_of(64) && begun.elapsed() >= time {
                break;
            }
        }
    }
    println!(
        "{}: {executions} executions in {:.1} s, seed {seed}",
        target.name,
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}
