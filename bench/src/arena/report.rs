//! What was found, as a JSON document and as tables.

use crate::machine::Machine;
use memkv_storage::EngineStatus;
use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub command: String,
    pub machine: Machine,
    pub dram_bytes: u64,
    pub high_watermark: f64,
    pub low_watermark: f64,
    pub prefault: bool,
    pub writers: usize,
    pub readers: usize,
    pub fills: Vec<Fill>,
    pub changes: Vec<Change>,
    pub restarts: Vec<Restart>,
}

/// One page size in a memory of its own.
#[derive(Debug, Serialize)]
pub(super) struct Fill {
    pub page_bytes: u32,
    /// Share of the memory that holds bytes of pages, while pages come and go: lowest and mean.
    pub share_min: f64,
    pub share_mean: f64,
    /// Where the rest of the memory is, at the end: slots that are free, slots that are longer than their page, ends of
    /// chunks that are shorter than a slot.
    pub free_share: f64,
    pub slot_waste_share: f64,
    pub chunk_waste_share: f64,
    /// 10^9 bytes of pages a second, into memory that nobody used before, and after that.
    pub fresh_gb_per_s: f64,
    pub steady_gb_per_s: f64,
    pub evicted_pages: u64,
    /// Of these, by puts that found no slot.
    pub evicted_inline: u64,
    pub busy: u64,
}

/// Pages of another size take the place of all.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub from_page_bytes: u32,
    pub to_page_bytes: u32,
    pub share_before: f64,
    /// The lowest share of the memory that held pages of either size meanwhile.
    pub share_lowest: f64,
    /// Until pages of the new size held 95 % of the memory; absent if they never did.
    pub seconds: Option<f64>,
    /// Bytes put meanwhile, as a multiple of the memory.
    pub put: Option<f64>,
    pub reads: u64,
    pub evicted_inline: u64,
    pub busy: u64,
}

/// A start of the engine on a file that an earlier one left.
#[derive(Debug, Serialize)]
pub(super) struct Restart {
    /// The earlier engine was closed.
    pub clean: bool,
    /// Pages that were there again.
    pub pages: u64,
    pub seconds: f64,
}

#[allow(clippy::cast_precision_loss, reason = "a share needs no more than the precision of a float")]
pub(super) fn share(bytes: u64, of: u64) -> f64 {
    bytes as f64 / of.max(1) as f64
}

fn gb_per_s((bytes, time): (u64, Duration)) -> f64 {
    share(bytes, 1_000_000_000) / time.as_secs_f64().max(1e-9)
}

impl Fill {
    pub(super) fn new(
        page_bytes: u32,
        status: &EngineStatus,
        shares: &[f64],
        [fresh, steady]: [(u64, Duration); 2],
    ) -> Self {
        let of = |bytes: u64| share(bytes, status.capacity_bytes);
        let remainder: u64 = status.classes.iter().map(|class| class.remainder_bytes).sum();
        let slot_waste = status.used_slot_bytes - status.asked_bytes;
        #[allow(clippy::cast_precision_loss, reason = "there are few samples")]
        let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
        Self {
            page_bytes,
            share_min: shares.iter().copied().fold(1.0, f64::min),
            share_mean: mean,
            free_share: of(status.capacity_bytes - status.used_slot_bytes - remainder),
            slot_waste_share: of(slot_waste),
            chunk_waste_share: of(remainder),
            fresh_gb_per_s: gb_per_s(fresh),
            steady_gb_per_s: gb_per_s(steady),
            evicted_pages: status.counters.evicted_pages,
            evicted_inline: status.counters.evicted_inline,
            busy: status.counters.busy,
        }
    }
}

impl Change {
    pub(super) fn new(
        (from_page_bytes, to_page_bytes): (u32, u32),
        (share_before, share_lowest): (f64, f64),
        reached: Option<(Duration, u64)>,
        reads: u64,
        status: &EngineStatus,
    ) -> Self {
        Self {
            from_page_bytes,
            to_page_bytes,
            share_before,
            share_lowest,
            seconds: reached.map(|(time, _)| time.as_secs_f64()),
            put: reached.map(|(_, bytes)| share(bytes, status.capacity_bytes)),
            reads,
            evicted_inline: status.counters.evicted_inline,
            busy: status.counters.busy,
        }
    }
}

/// The tables for people.
pub(super) fn table(report: &Report) -> String {
    let mut text = format!(
        "{} of memory on {}, watermarks {} and {}, {} writers, {} readers\n\n",
        crate::compare::report::size(usize::try_from(report.dram_bytes).unwrap_or(usize::MAX)),
        report.machine.cpu,
        report.high_watermark,
        report.low_watermark,
        report.writers,
        report.readers
    );
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    text += "| page bytes | memory that holds pages, least | mean | free slots | in slots | at ends of chunks \
             | GB/s fresh | GB/s after | evicted | of these by puts | busy |\n\
             |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
    for fill in &report.fills {
        let shares =
            [fill.share_min, fill.share_mean, fill.free_share, fill.slot_waste_share, fill.chunk_waste_share];
        let line = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {} | {} | {} |",
            fill.page_bytes,
            shares.map(percent).join(" | "),
            fill.fresh_gb_per_s,
            fill.steady_gb_per_s,
            fill.evicted_pages,
            fill.evicted_inline,
            fill.busy
        );
        line.expect("writing to a string does not fail");
    }
    text += "\n| change of page bytes | share before | lowest of both sizes | seconds until the new size has 95 % \
             | bytes put, of the memory | reads meanwhile | evicted by puts | busy |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|\n";
    for change in &report.changes {
        let number =
            |value: Option<f64>| value.map_or_else(|| "never".to_owned(), |value| format!("{value:.2}"));
        let line = writeln!(
            text,
            "| {} → {} | {} | {} | {} | {} | {} | {} | {} |",
            change.from_page_bytes,
            change.to_page_bytes,
            percent(change.share_before),
            percent(change.share_lowest),
            number(change.seconds),
            number(change.put),
            change.reads,
            change.evicted_inline,
            change.busy
        );
        line.expect("writing to a string does not fail");
    }
    for restart in &report.restarts {
        let end = if restart.clean { "a proper end" } else { "a kill" };
        let line =
            writeln!(text, "\nA start after {end}: {} pages in {:.2} s.", restart.pages, restart.seconds);
        line.expect("writing to a string does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_shares_are_what_they_say() {
        assert!((gb_per_s((3_000_000_000, Duration::from_millis(1500))) - 2.0).abs() < 1e-9);
        assert!((share(97, 100) - 0.97).abs() < 1e-9 && share(0, 0) < 1e-9);
    }
}
