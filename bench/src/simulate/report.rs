//! What a simulation found, as a table and as JSON.

use serde::Serialize;
use std::fmt::Write as _;

/// The classics that our own policy is measured against.
const CLASSICS: [&str; 3] = ["lru", "s3-fifo", "sieve"];

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) requests: usize,
    pub(super) input_tokens: u64,
    pub(super) distinct_blocks: usize,
    pub(super) rows: Vec<Row>,
}

/// Token hit ratios at one capacity.
#[derive(Serialize)]
pub(super) struct Row {
    /// Of the different blocks of the trace.
    pub(super) share: f64,
    pub(super) blocks: usize,
    /// By policy, in the order of the columns.
    pub(super) hit_ratio: Vec<(String, f64)>,
    pub(super) optimum: f64,
}

impl Row {
    pub(super) fn of(&self, policy: &str) -> Option<f64> {
        self.hit_ratio.iter().find(|(name, _)| name == policy).map(|(_, ratio)| *ratio)
    }

    /// The best of the classics that were replayed.
    pub(super) fn best_classic(&self) -> f64 {
        CLASSICS.iter().filter_map(|name| self.of(name)).fold(0.0, f64::max)
    }

    /// How much of the way from the best of the classics to the optimum a policy goes.
    pub(super) fn gap_closed(&self, policy: &str) -> Option<f64> {
        let best = self.best_classic();
        (self.optimum > best).then_some((self.of(policy)? - best) / (self.optimum - best))
    }
}

pub(super) fn table(report: &Report) -> String {
    let mut out = format!(
        "{} requests, {} tokens, {} different blocks; hit tokens / input tokens:\n\n",
        report.requests, report.input_tokens, report.distinct_blocks
    );
    let names: Vec<&str> = report
        .rows
        .first()
        .map_or_else(Vec::new, |row| row.hit_ratio.iter().map(|(name, _)| &**name).collect());
    let own: Vec<&str> = names.iter().copied().filter(|name| !CLASSICS.contains(name)).collect();
    let mut line = format!("| {:>8} | {:>8} |", "capacity", "blocks");
    let heads = names.iter().map(|name| (*name).to_owned()).chain(["optimum".to_owned()]);
    let heads: Vec<String> = heads.chain(own.iter().map(|name| format!("gap closed by {name}"))).collect();
    heads.iter().for_each(|head| line += &format!(" {head:>7} |"));
    let rule: Vec<String> = line.split('|').map(|cell| "-".repeat(cell.len())).collect();
    out += &format!("{line}\n|{}|\n", rule[1..rule.len() - 1].join("|"));
    for row in &report.rows {
        let capacity = format!("{}%", (row.share * 1e6).round() / 1e4);
        let mut line = format!("| {capacity:>8} | {:>8} |", row.blocks);
        let ratios = row.hit_ratio.iter().map(|(_, ratio)| *ratio).chain([row.optimum]);
        let cells = ratios.map(|ratio| format!("{ratio:.4}"));
        let gaps = own.iter().map(|name| match row.gap_closed(name) {
            Some(gap) => format!("{:.0}%", gap * 100.0),
            None => "-".to_owned(),
        });
        for (cell, head) in cells.chain(gaps).zip(&heads) {
            write!(line, " {cell:>width$} |", width = head.len().max(7)).expect("a string takes all");
        }
        out += &line;
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}
