//! `memkv-bench`: how fast MemKV moves pages, beside what plain sockets carry in the same run.
//!
//! Results go to stdout (and, as JSON, to a file); progress goes to stderr.
//!
//! Deliberately absent so far: several client processes, open-loop schedules, and traces against a daemon.

#![deny(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the tables are this program's output")]

mod arena;
mod calls;
mod compare;
#[allow(unsafe_code, reason = "an allocator that counts can only be made with it")]
mod counting;
mod daemon;
mod index;
mod machine;
mod raw;
mod report;
mod run;
mod simulate;
mod stats;
mod workload;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};
use memkv_client::Transport;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures MemKV on this machine.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures get, put and exists against a daemon that it starts, beside raw sockets and memcpy.
    Run(RunArgs),
    /// Measures how much of the memory holds pages, and how the memory follows a change of model.
    Arena(arena::ArenaArgs),
    /// Measures the bytes of an index entry and the time of a lookup.
    Index(index::IndexArgs),
    /// Counts the system calls, wake-ups and allocations of a batch, beside those of raw sockets.
    Calls(calls::CallsArgs),
    /// Replays a trace through the server's eviction policies and prints their hit ratios beside the optimum.
    Simulate(simulate::SimulateArgs),
    /// Makes up a trace and prints it.
    Trace(simulate::TraceArgs),
    /// The other side of the raw baseline; `run` starts it.
    #[command(hide = true)]
    RawServer,
    /// The client whose calls are counted; `calls` starts it.
    #[command(hide = true)]
    CallsClient(calls::ClientArgs),
}

#[derive(Args)]
struct RunArgs {
    /// About two minutes: a working set of 512 MiB and three rounds.
    #[arg(long)]
    quick: bool,
    /// Bytes of all pages of a pass, for example 1GiB. Memory needed: about six times as much.
    #[arg(long, value_parser = parse_size)]
    working_set: Option<usize>,
    /// Rounds to measure; the medians are over these.
    #[arg(long)]
    rounds: Option<usize>,
    /// Page sizes to measure.
    #[arg(long, value_parser = parse_size, value_delimiter = ',', default_value = "64KiB,256KiB,1MiB,4MiB")]
    pages: Vec<usize>,
    /// Compares these transports with each other, with memcpy on one thread, and with a file for each page in the page cache;
    /// instead of tcp with plain sockets.
    #[arg(long, value_delimiter = ',')]
    transport: Vec<Transport>,
    /// Batch sizes of a comparison.
    #[arg(long, value_delimiter = ',', default_value = "1,32,128")]
    batches: Vec<usize>,
    /// The memkv-server to start; the one beside this program by default.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Also writes everything to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run_command(args),
        Command::Arena(args) => arena_command(&args),
        Command::Index(args) => index_command(&args),
        Command::Simulate(args) => simulate::simulate_command(args),
        Command::Trace(args) => simulate::trace_command(&args),
        Command::RawServer => raw::serve(),
        Command::Calls(args) => calls::run(args),
        Command::CallsClient(args) => calls::client(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn warn_of_debug_build() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures mean nothing; use cargo run --release -p memkv-bench");
    }
}

fn arena_command(args: &arena::ArenaArgs) -> anyhow::Result<()> {
    warn_of_debug_build();
    arena::run(args, command_line())
}

fn index_command(args: &index::IndexArgs) -> anyhow::Result<()> {
    warn_of_debug_build();
    index::run(args, command_line())
}

fn run_command(args: RunArgs) -> anyhow::Result<()> {
    warn_of_debug_build();
    let (working_set, rounds) = if args.quick { (512 << 20, 3) } else { (1 << 30, 7) };
    let working_set_bytes = args.working_set.unwrap_or(working_set);
    let largest_batch = args.pages.iter().max().copied().unwrap_or(0) * 128;
    ensure!(
        working_set_bytes >= largest_batch,
        "the working set must hold a batch of 128 of the largest pages: at least {}; raise --working-set or \
         lower --pages",
        report::size(largest_batch)
    );
    let (server, rounds) = (daemon::find_server(args.server)?, args.rounds.unwrap_or(rounds).max(1));
    if !args.transport.is_empty() {
        let plan = compare::Plan {
            transports: args.transport,
            working_set_bytes,
            rounds,
            page_bytes: args.pages,
            batches: args.batches,
            server,
            command: command_line(),
        };
        let report = compare::run(plan, &|what| eprintln!("{what} …"))?;
        println!("{}", compare::table(&report));
        return write_json(args.json, &report);
    }
    let plan =
        run::Plan { working_set_bytes, rounds, page_bytes: args.pages, server, command: command_line() };
    let report = run::run(plan, &|what| eprintln!("{what} …"))?;
    println!("{}", report::tables(&report));
    write_json(args.json, &report)
}

fn write_json(path: Option<PathBuf>, report: &impl Serialize) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(report).context("write JSON")?;
    std::fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))
}

/// The command as typed, with the program's plain name.
fn command_line() -> String {
    let args: Vec<String> = std::env::args().skip(1).collect();
    format!("memkv-bench {}", args.join(" "))
}

/// Reads `64KiB`, `1GiB` or plain bytes.
fn parse_size(text: &str) -> Result<usize, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (digits, shift) =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    let number: usize = digits.trim().parse().map_err(|_| format!("{text:?} is not a size; write 64KiB"))?;
    let bytes = number.checked_shl(shift).filter(|bytes| bytes >> shift == number && *bytes >= 4096);
    bytes.ok_or_else(|| format!("{text:?} is not a size of at least 4KiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert!(
            parse_size("1").is_err() && parse_size("64kb").is_err() && parse_size("99999999999GiB").is_err()
        );
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
