//! `memkv-bench arena`: how much of the memory holds pages, and how the memory follows a change of model.
//!
//! It drives the storage engine in this process, with the same eviction thread as the server has, and with its default
//! watermarks: what it finds is what a server does.

mod load;
mod report;

use crate::machine::Machine;
use anyhow::{Context as _, ensure};
use clap::Args;
use load::Load;
use memkv_storage::{Engine, EngineConfig};
use report::{Change, Fill, Report, Restart};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What `memkv-bench arena` takes.
#[derive(Args)]
pub(crate) struct ArenaArgs {
    /// Memory for pages.
    #[arg(long, value_parser = crate::parse_size, default_value = "4GiB")]
    dram: usize,
    /// Page sizes to fill the memory with; the last two are the models of the change.
    #[arg(long, value_parser = load::parse_bytes, value_delimiter = ',', default_value = "147456,147968,73728,1179648")]
    pages: Vec<u32>,
    /// Threads that put.
    #[arg(long, default_value_t = 2)]
    writers: usize,
    /// Threads that read while the model changes.
    #[arg(long, default_value_t = 1)]
    readers: usize,
    /// Make the memory resident before it is measured.
    #[arg(long)]
    prefault: bool,
    /// Lets the memory be a file below this directory, and measures restarts as well.
    #[arg(long)]
    backing: Option<PathBuf>,
    /// Writes the result as JSON to stdout, instead of the table.
    #[arg(long)]
    json: bool,
}

/// How often the shares are read while something is measured.
const SAMPLE: Duration = Duration::from_millis(5);
/// A change of model that takes longer than this has failed.
const CHANGE_MAX: Duration = Duration::from_secs(120);
/// The pages of the restart: as many as a store can have.
const RESTART_PAGE_BYTES: u32 = 4096;
/// What a change of model has to reach again.
const SHARE_WANTED: f64 = 0.95;

/// Runs the command.
///
/// # Errors
///
/// If the sizes do not fit the memory or the engine cannot be made.
pub(crate) fn run(args: &ArenaArgs, command: String) -> anyhow::Result<()> {
    ensure!(args.pages.len() >= 2, "give at least two page sizes, the two models of the change");
    ensure!(args.writers > 0, "give at least one writer");
    let mut fills = Vec::new();
    for &page_bytes in &args.pages {
        eprintln!("filling with pages of {page_bytes} bytes …");
        fills.push(fill(args, page_bytes)?);
    }
    let [.., from, to] = args.pages[..] else { unreachable!("the number was checked") };
    let mut changes = Vec::new();
    for (from, to) in [(from, to), (to, from)] {
        eprintln!("changing from pages of {from} to pages of {to} bytes …");
        changes.push(change(args, from, to)?);
    }
    let mut restarts = Vec::new();
    if let Some(backing) = &args.backing {
        eprintln!("filling with pages of {RESTART_PAGE_BYTES} bytes, and restarting …");
        restarts = restart(args, backing)?;
    }
    let config = EngineConfig::with_dram(args.dram as u64);
    let report = Report {
        command,
        machine: Machine::describe(),
        dram_bytes: config.dram_bytes,
        high_watermark: config.high_watermark,
        low_watermark: config.low_watermark,
        prefault: args.prefault,
        writers: args.writers,
        readers: args.readers,
        fills,
        changes,
        restarts,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("write JSON")?);
    } else {
        println!("{}", report::table(&report));
    }
    Ok(())
}

/// A directory of its own for each engine, so that it starts empty.
fn place(args: &ArenaArgs) -> anyhow::Result<Option<TempDir>> {
    let below = |backing: &PathBuf| tempfile::tempdir_in(backing).context("make a directory below --backing");
    args.backing.as_ref().map(below).transpose()
}

fn config(args: &ArenaArgs, backing: Option<PathBuf>) -> EngineConfig {
    EngineConfig { prefault: args.prefault, backing, ..EngineConfig::with_dram(args.dram as u64) }
}

/// A new engine that can take pages of these sizes.
fn engine(args: &ArenaArgs, sizes: &[u32]) -> anyhow::Result<Load> {
    let place = place(args)?;
    let backing = place.as_ref().map(|place| place.path().to_owned());
    let (engine, _) = Engine::open(config(args, backing)).context("make an engine")?;
    let (largest, most) = (sizes.iter().max().copied().unwrap_or(0), engine.page_bytes_max());
    ensure!(
        largest <= most,
        "pages of {largest} bytes need more memory; the limit is {most} bytes, raise --dram"
    );
    Load::start(engine, place)
}

/// Puts twice as many pages of one size as the memory holds, and looks how much of it they use in the second half.
fn fill(args: &ArenaArgs, page_bytes: u32) -> anyhow::Result<Fill> {
    let load = engine(args, &[page_bytes])?;
    let capacity = load.status().capacity_bytes;
    let begun = Instant::now();
    let (mut first, mut shares) = (None, Vec::new());
    let writers = load.writers(args.writers, page_bytes)?;
    loop {
        std::thread::sleep(SAMPLE);
        let (put, status) = (writers.bytes(), load.status());
        if put >= capacity {
            let (_, at) = *first.get_or_insert((put, begun.elapsed()));
            // The memory is full once as much was put as fits; what follows is the steady state.
            if put >= capacity + capacity / 20 {
                shares.push(report::share(status.page_bytes, capacity));
            }
            if put >= 2 * capacity && begun.elapsed() > at + 20 * SAMPLE {
                break;
            }
        }
    }
    let (put, seconds) = (writers.bytes(), begun.elapsed());
    let status = load.status();
    writers.stop();
    let (first_bytes, first_seconds) = first.unwrap_or((put, seconds));
    let rest = put.saturating_sub(first_bytes);
    Ok(Fill::new(
        page_bytes,
        &status,
        &shares,
        [(first_bytes, first_seconds), (rest, seconds.saturating_sub(first_seconds))],
    ))
}

/// Fills the memory with pages of one size, then puts pages of another while readers go on with what is there.
fn change(args: &ArenaArgs, from: u32, to: u32) -> anyhow::Result<Change> {
    let load = engine(args, &[from, to])?;
    let capacity = load.status().capacity_bytes;
    let old = load.writers(args.writers, from)?;
    while old.bytes() < capacity + capacity / 5 {
        std::thread::sleep(SAMPLE);
    }
    old.stop();
    let share_before = report::share(load.status().page_bytes, capacity);
    let readers = load.readers(args.readers)?;
    let new = load.writers(args.writers, to)?;
    let begun = Instant::now();
    let (mut lowest, mut reached) = (1.0_f64, None);
    let slot_bytes = to.next_multiple_of(4096);
    while reached.is_none() && begun.elapsed() < CHANGE_MAX {
        std::thread::sleep(SAMPLE);
        let status = load.status();
        lowest = lowest.min(report::share(status.page_bytes, capacity));
        let new_bytes = status.classes.iter().find(|class| class.slot_bytes == slot_bytes);
        let new_share = report::share(new_bytes.map_or(0, |class| class.asked_bytes), capacity);
        if new_share >= SHARE_WANTED {
            reached = Some((begun.elapsed(), new.bytes()));
        }
    }
    let status = load.status();
    let reads = readers.count();
    new.stop();
    readers.stop();
    Ok(Change::new((from, to), (share_before, lowest), reached, reads, &status))
}

/// Fills the memory with small pages, then starts again as after a kill and as after a proper end.
fn restart(args: &ArenaArgs, backing: &Path) -> anyhow::Result<Vec<Restart>> {
    let place = tempfile::tempdir_in(backing).context("make a directory below --backing")?;
    let config = || config(args, Some(place.path().to_owned()));
    let (engine, _) = Engine::open(config()).context("make an engine")?;
    fill_small(args, &engine)?;
    // Without `close`, what is left is what a killed process leaves.
    drop(engine);
    let mut restarts = Vec::new();
    for clean in [false, true] {
        let begun = Instant::now();
        let (engine, found) = Engine::open(config()).context("start again")?;
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(found.dram_unclean == if clean { 0 } else { found.dram_pages }, "a start found another end");
        restarts.push(Restart { clean, pages: found.dram_pages, seconds });
        if !clean {
            // A proper end does not verify what nobody has verified, so the second start needs new pages.
            let space =
                engine.spaces().into_iter().next().context("the space of the pages is known again")?;
            engine.clear(&space);
            fill_small(args, &engine)?;
        }
        engine.close();
    }
    Ok(restarts)
}

fn fill_small(args: &ArenaArgs, engine: &Arc<Engine>) -> anyhow::Result<()> {
    let load = Load::start(Arc::clone(engine), None)?;
    let enough = load.status().capacity_bytes / 100 * 98;
    let writers = load.writers(args.writers, RESTART_PAGE_BYTES)?;
    while writers.bytes() < enough {
        std::thread::sleep(SAMPLE);
    }
    writers.stop();
    Ok(())
}
