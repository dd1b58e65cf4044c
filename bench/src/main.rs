//! `memkv-bench`: how fast MemKV moves pages, beside what plain sockets carry in the same run.
//!
//! Results go to stdout (and, as JSON, to a file); progress goes to stderr.
//!
//! Deliberately absent: judgement by time in tests, and traffic to anything but the servers that are named or started here.

#![deny(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the tables are this program's output")]

mod arena;
mod beside;
mod calls;
mod child;
mod commands;
mod compare;
#[allow(unsafe_code, reason = "an allocator that counts can only be made with it")]
mod counting;
mod daemon;
mod docs;
mod drain;
mod hot;
mod index;
mod load;
mod machine;
#[allow(unsafe_code, reason = "memory on huge pages can only be asked for by address")]
mod pages;
mod peer;
mod plot;
mod publish;
mod raw;
mod siege;
mod simulate;
mod stats;
mod subject;
mod targets;
mod workload;

use clap::{Parser, Subcommand};
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
    /// Measures get, put and exists of chosen sizes, beside raw sockets, files and memcpy.
    Run(commands::RunArgs),
    /// Measures every target, and prints what was reached.
    Targets(commands::TargetsArgs),
    /// Measures MemKV beside other stores, in turns in one run.
    Peers(commands::PeersArgs),
    /// Prints the tables of an earlier run again, and writes them and the plots into a repository.
    Render(commands::RenderArgs),
    /// Loads a server from several client processes, as fast as it answers or at a fixed rate.
    Load(load::command::LoadArgs),
    /// Reads one prefix from many clients over several servers, with and without copies of hot pages.
    Hot(hot::HotArgs),
    /// Measures how much of the memory holds pages, and how the memory follows a change of model.
    Arena(arena::ArenaArgs),
    /// Drains one of four servers under load, and shows what readers find before, during and after.
    Drain(drain::DrainArgs),
    /// Measures what a bad server costs calls that do not touch it, and those that do.
    Beside(beside::BesideArgs),
    /// Measures what many hostile connections cost a server, and the clients that are served beside them.
    Siege(siege::SiegeArgs),
    /// Measures the bytes of an index entry and the time of a lookup.
    Index(index::IndexArgs),
    /// Counts the system calls, wake-ups and allocations of a batch, beside those of raw sockets.
    Calls(calls::CallsArgs),
    /// Replays a trace through the server's eviction policies and prints their hit ratios beside the optimum.
    Simulate(simulate::SimulateArgs),
    /// Makes up a trace and prints it.
    Trace(simulate::TraceArgs),
    /// The other side of the raw baseline; others start it.
    #[command(hide = true)]
    RawServer,
    /// The client whose calls are counted; `calls` starts it.
    #[command(hide = true)]
    CallsClient(calls::ClientArgs),
    /// One client process of a load; others start it.
    #[command(hide = true)]
    Worker,
    /// Becomes another program that ends with its parent; others start it.
    #[command(hide = true)]
    Child(child::ChildArgs),
    /// The hostile connections of a siege; `siege` starts them.
    #[command(hide = true)]
    Besiegers,
}

fn main() -> ExitCode {
    let outcome = run(Cli::parse().command);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    // What others start ends with them.
    let is_started = matches!(
        command,
        Command::RawServer
            | Command::CallsClient(_)
            | Command::Worker
            | Command::Besiegers
            | Command::Child(_)
    );
    let _folder = if is_started { None } else { Some(child::end_in_order()?) };
    match command {
        Command::Run(args) => commands::run(args),
        Command::Targets(args) => commands::targets(args),
        Command::Peers(args) => commands::peers(args),
        Command::Render(args) => commands::render(&args),
        Command::Load(args) => load_command(args),
        Command::Hot(args) => hot_command(&args),
        Command::Arena(args) => arena_command(&args),
        Command::Drain(args) => {
            warn_of_debug_build();
            drain::run(args, &command_line())
        }
        Command::Beside(args) => beside_command(&args),
        Command::Siege(args) => siege_command(&args),
        Command::Index(args) => index_command(&args),
        Command::Simulate(args) => simulate::simulate_command(args),
        Command::Trace(args) => simulate::trace_command(&args),
        Command::RawServer => raw::serve(),
        Command::Calls(args) => calls::run(args),
        Command::CallsClient(args) => calls::client(&args),
        Command::Worker => load::worker::serve(),
        Command::Child(args) => child::become_it(&args),
        Command::Besiegers => siege::serve(),
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

fn hot_command(args: &hot::HotArgs) -> anyhow::Result<()> {
    warn_of_debug_build();
    hot::run(args, command_line())
}

fn beside_command(args: &beside::BesideArgs) -> anyhow::Result<()> {
    warn_of_debug_build();
    beside::run(args)
}

fn siege_command(args: &siege::SiegeArgs) -> anyhow::Result<()> {
    warn_of_debug_build();
    siege::run(args)
}

fn index_command(args: &index::IndexArgs) -> anyhow::Result<()> {
    warn_of_debug_build();
    index::run(args, command_line())
}

fn load_command(args: load::command::LoadArgs) -> anyhow::Result<()> {
    warn_of_debug_build();
    load::command::run(args, command_line())
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

/// Reads a time of some use, in seconds.
fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.05..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| format!("{text:?} is no number of seconds from 0.05 to 86400"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(parse_seconds("0.4"), Ok(0.4));
        for text in ["nan", "inf", "-1", "0", "1e9", "x", ""] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

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
