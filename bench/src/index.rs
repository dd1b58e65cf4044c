//! `memkv-bench index`: how many bytes a page costs besides its own, and how long a lookup takes.
//!
//! Two cases: pages in memory, and pages that are only on drives. Both are measured on the index alone, so that the
//! pages' own bytes are not there. Keys have 100 bytes. Bytes are counted twice: by the allocator, and as what the
//! process has resident. A page in memory also has its slot's record of 64 bytes, which lies beside the pages; it is
//! added to both.
//!
//! Pinning needs slots, so it is measured in an engine, with fewer pages.

use crate::counting::allocated_bytes;
use crate::machine::{self, Machine};
use anyhow::{Context as _, ensure};
use clap::Args;
use memkv_core::{Key, PageMeta, SpaceDescription};
use memkv_storage::measure::BareIndex;
use memkv_storage::{Engine, EngineConfig, HashedKey, HugePages, Published, Space};
use serde::Serialize;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// What `memkv-bench index` takes.
#[derive(Args)]
pub(crate) struct IndexArgs {
    /// Number of pages in each case.
    #[arg(long, default_value_t = 10_000_000)]
    entries: u32,
    /// Number of pages in the engine; each takes 4 KiB of memory.
    #[arg(long, default_value_t = 250_000)]
    engine_pages: u32,
    /// Writes the result as JSON to stdout, instead of the table.
    #[arg(long)]
    json: bool,
}

const KEY_BYTES: usize = 100;
const BATCH: usize = 128;
/// Batches that are looked up in each case.
const BATCHES: u32 = 4000;
/// A page that fills its slot, so that nothing behind it has to be zeroed.
const PAGE_BYTES: u32 = 4096;
const SLOT_RECORD_BYTES: f64 = 64.0;

#[derive(Serialize)]
struct Report {
    command: String,
    machine: Machine,
    entries: u32,
    key_bytes: usize,
    batch_keys: usize,
    in_memory: Case,
    on_drives_only: Case,
    engine_pages: u32,
    /// Pinned and unpinned again, in an engine.
    pin_ns_per_key: f64,
}

#[derive(Serialize)]
struct Case {
    /// All in: what the process has resident for a page, besides the page.
    resident_bytes_per_page: f64,
    /// What the allocator gave, and the slot's record if there is one.
    counted_bytes_per_page: f64,
    /// Of that, the slot's record.
    slot_record_bytes: f64,
    insert_ns_per_page: f64,
    exists_ns_per_key: f64,
    /// Half of the keys are not there.
    half_missing_ns_per_key: f64,
}

/// Runs the command.
///
/// # Errors
///
/// If the engine cannot be made or does not hold the pages.
pub(crate) fn run(args: &IndexArgs, command: String) -> anyhow::Result<()> {
    ensure!(args.entries.min(args.engine_pages) >= 1000, "measure at least 1000 pages");
    eprintln!("{} pages in memory …", args.entries);
    let (in_memory, first) = bare(args.entries, SLOT_RECORD_BYTES, BareIndex::add_in_memory)?;
    eprintln!("{} pages on drives only …", args.entries);
    // The first is kept until then, so that no memory is used twice.
    let (on_drives_only, second) = bare(args.entries, 0.0, BareIndex::add_on_drive)?;
    drop((first, second));
    eprintln!("{} pages in an engine …", args.engine_pages);
    let report = Report {
        command,
        machine: Machine::describe(),
        entries: args.entries,
        key_bytes: KEY_BYTES,
        batch_keys: BATCH,
        in_memory,
        on_drives_only,
        engine_pages: args.engine_pages,
        pin_ns_per_key: pins(args.engine_pages)?,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("write JSON")?);
    } else {
        print!("{}", table(&report));
    }
    Ok(())
}

/// The key of page `n`.
fn name(n: u32) -> [u8; KEY_BYTES] {
    let mut name = [b'k'; KEY_BYTES];
    for (at, place) in name.chunks_exact_mut(8).enumerate() {
        let word = (u64::from(n) << 8 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        place.copy_from_slice(&word.to_le_bytes());
    }
    name
}

fn hashed<'a>(space: &Space, name: &'a [u8]) -> HashedKey<'a> {
    HashedKey::new(space.id(), Key::new(name).expect("100 bytes are a key"))
}

/// Bytes before something is built.
struct Before {
    allocated: u64,
    resident: u64,
    begun: Instant,
}

impl Before {
    fn now() -> Self {
        let resident = machine::resident_bytes(std::process::id());
        Self { allocated: allocated_bytes(), resident, begun: Instant::now() }
    }

    /// A case with its bytes; the lookups are yet to be measured.
    #[allow(clippy::cast_precision_loss, reason = "sizes for people")]
    fn case(&self, entries: u32, slot_record_bytes: f64) -> Case {
        let inserting = self.begun.elapsed();
        let per_page = |bytes: u64| bytes as f64 / f64::from(entries);
        let resident = machine::resident_bytes(std::process::id()).saturating_sub(self.resident);
        let counted = per_page(allocated_bytes().saturating_sub(self.allocated));
        Case {
            resident_bytes_per_page: per_page(resident) + slot_record_bytes,
            counted_bytes_per_page: counted + slot_record_bytes,
            slot_record_bytes,
            insert_ns_per_page: inserting.as_secs_f64() * 1e9 / f64::from(entries),
            exists_ns_per_key: 0.0,
            half_missing_ns_per_key: 0.0,
        }
    }
}

/// Nanoseconds per key of a call with a batch of keys, drawn from `range` numbers.
fn lookups(space: &Space, range: u32, mut call: impl FnMut(&[HashedKey<'_>])) -> f64 {
    let mut number = 12_345_u64;
    let mut spent = Duration::ZERO;
    for _ in 0..BATCHES {
        let names: Vec<_> = (0..BATCH)
            .map(|_| {
                number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                name(u32::try_from((number >> 33) % u64::from(range)).expect("below a 32-bit range"))
            })
            .collect();
        let keys: Vec<_> = names.iter().map(|name| hashed(space, name)).collect();
        let begun = Instant::now();
        call(&keys);
        spent += begun.elapsed();
    }
    spent.as_secs_f64() * 1e9 / f64::from(BATCHES) / BATCH as f64
}

/// Fills an index and measures it.
fn bare(
    entries: u32,
    slot_record_bytes: f64,
    add: impl Fn(&BareIndex, HashedKey<'_>, u32) -> bool,
) -> anyhow::Result<(Case, BareIndex)> {
    let before = Before::now();
    let index = BareIndex::new(SpaceDescription::named("index")?);
    for n in 0..entries {
        ensure!(add(&index, hashed(index.space(), &name(n)), n), "two pages have one key");
    }
    let mut case = before.case(entries, slot_record_bytes);
    let mut found = [false; BATCH];
    case.exists_ns_per_key = lookups(index.space(), entries, |keys| {
        index.exists_batch(keys, &mut found);
        assert!(found.iter().all(|&found| found), "every page is there");
    });
    case.half_missing_ns_per_key =
        lookups(index.space(), entries.saturating_mul(2), |keys| index.exists_batch(keys, &mut found));
    Ok((case, index))
}

/// Nanoseconds to pin and unpin a page in an engine.
fn pins(pages: u32) -> anyhow::Result<f64> {
    let bytes = u64::from(pages) * u64::from(PAGE_BYTES);
    let config = EngineConfig {
        page_bytes_max: 1 << 20,
        huge_pages: HugePages::Off,
        ..EngineConfig::with_dram(bytes + (64 << 20))
    };
    let engine = Engine::new(config).context("make an engine")?;
    let space = engine.open_space(SpaceDescription::named("index")?)?;
    for n in 0..pages {
        let stored = put(&engine, &space, &name(n)).with_context(|| format!("put page {n}"))?;
        ensure!(stored == Published::Stored, "two pages have one key");
    }
    let mut pins = Vec::new();
    Ok(lookups(&space, pages, |keys| {
        at_once(engine.pin_batch(&space, keys, 1, &mut pins));
        pins.clear();
    }))
}

/// Puts a page without writing its bytes.
fn put(engine: &Engine, space: &Arc<Space>, name: &[u8]) -> anyhow::Result<Published> {
    let filling = engine.reserve(space, hashed(space, name), PAGE_BYTES, 0)?;
    let meta = PageMeta { len: PAGE_BYTES, checksum: 7, ..PageMeta::default() };
    Ok(filling.verify_streamed(meta, 7)?.publish(1))
}

/// Runs a future that does not wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("all pages are in memory"),
    }
}

fn table(report: &Report) -> String {
    let columns =
        ["resident", "counted", "of it", "insert", "exists", "half miss"].map(|name| format!("{name:>11}"));
    let units =
        ["B/page", "B/page", "slot B", "ns/page", "ns/key", "ns/key"].map(|unit| format!("{unit:>11}"));
    let line = |name: &str, case: &Case| {
        format!(
            "{name:<16}{:>11.1}{:>11.1}{:>11.0}{:>11.0}{:>11.0}{:>11.0}\n",
            case.resident_bytes_per_page,
            case.counted_bytes_per_page,
            case.slot_record_bytes,
            case.insert_ns_per_page,
            case.exists_ns_per_key,
            case.half_missing_ns_per_key,
        )
    };
    format!(
        "{} entries, keys of {} bytes, batches of {}\n{:<16}{}\n{:<16}{}\n{}{}\npin and unpin, {} pages: {:.0} ns/key\n",
        report.entries,
        report.key_bytes,
        report.batch_keys,
        "pages",
        columns.concat(),
        "",
        units.concat(),
        line("in memory", &report.in_memory),
        line("on drives only", &report.on_drives_only),
        report.engine_pages,
        report.pin_ns_per_key,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_costs_no_more_than_promised() {
        assert_ne!(name(1), name(2));
        for (record, add) in [
            (SLOT_RECORD_BYTES, BareIndex::add_in_memory as fn(&BareIndex, HashedKey<'_>, u32) -> bool),
            (0.0, BareIndex::add_on_drive),
        ] {
            let (case, index) = bare(1_000_000, record, add).unwrap();
            #[allow(clippy::cast_precision_loss, reason = "a size for a comparison")]
            let bytes = index.bytes() as f64 / 1_000_000.0 + record;
            assert!(bytes < 220.0 && case.exists_ns_per_key > 0.0, "{bytes}");
        }
        assert!(pins(5000).unwrap() > 0.0);
    }
}
