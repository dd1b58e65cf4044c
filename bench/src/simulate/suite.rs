//! `memkv-bench simulate --suite`: the default policy against the best of the classics, on made-up traffic of every shape.
//!
//! A policy that was made for one trace shows here what that cost elsewhere: every shape, several seeds, every capacity.

use super::report::Report;
use super::shapes::Shape;
use super::trace::Trace;
use super::{Rules, simulate};
use anyhow::Context as _;
use memkv_storage::PolicyKind;
use serde::Serialize;
use std::fmt::Write as _;

/// What `--suite` replays.
#[derive(Clone, Debug)]
pub(super) struct Suite {
    pub(super) seeds: Vec<u64>,
    pub(super) requests: usize,
    pub(super) shares: Vec<f64>,
}

/// One trace at one capacity; token hit ratios.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Cell {
    pub(super) trace: String,
    pub(super) share: f64,
    /// Of the best of the classics.
    pub(super) classic: f64,
    /// Of the default policy.
    pub(super) own: f64,
    pub(super) optimum: f64,
}

impl Cell {
    /// The default policy's hits over those of the best classic.
    pub(super) fn ratio(&self) -> f64 {
        if self.classic > 0.0 { self.own / self.classic } else { 1.0 }
    }
}

/// The cells of one trace.
fn cells(name: &str, report: &Report) -> Vec<Cell> {
    let own = PolicyKind::default().to_string();
    let cell = |row: &super::report::Row| Cell {
        trace: name.to_owned(),
        share: row.share,
        classic: row.best_classic(),
        own: row.of(&own).unwrap_or_default(),
        optimum: row.optimum,
    };
    report.rows.iter().map(cell).collect()
}

/// Replays a given trace, if there is one, and every shape with every seed.
pub(super) fn run(suite: &Suite, given: Option<(&str, &Trace)>, rules: Rules) -> anyhow::Result<Vec<Cell>> {
    let play =
        |name: &str, trace: &Trace| cells(name, &simulate(trace, &PolicyKind::ALL, &suite.shares, rules));
    let mut all = given.map_or_else(Vec::new, |(name, trace)| play(name, trace));
    for shape in Shape::ALL {
        for &seed in &suite.seeds {
            let trace = Trace::from_lines(shape.trace(seed, suite.requests)).context("make a trace")?;
            all.extend(play(&format!("{shape}/{seed}"), &trace));
        }
    }
    Ok(all)
}

/// The worst and the mean ratio.
pub(super) fn worst_and_mean(cells: &[Cell]) -> (f64, f64) {
    let ratios = || cells.iter().map(Cell::ratio);
    (ratios().fold(f64::INFINITY, f64::min), ratios().sum::<f64>() / cells.len().max(1) as f64)
}

pub(super) fn table(cells: &[Cell]) -> String {
    let mut out = "| trace            | capacity | best classic |    own |  ratio | optimum |\n".to_owned();
    out += "|------------------|----------|--------------|--------|--------|---------|\n";
    for cell in cells {
        let Cell { trace, share, classic, own, optimum } = cell;
        let (share, ratio) = (format!("{}%", (share * 1e6).round() / 1e4), cell.ratio());
        writeln!(
            out,
            "| {trace:<16} | {share:>8} | {classic:>12.4} | {own:>6.4} | {ratio:>6.3} | {optimum:>7.4} |"
        )
        .expect("a string takes all");
    }
    let (worst, mean) = worst_and_mean(cells);
    let behind = cells.iter().filter(|cell| cell.ratio() < 0.995).count();
    write!(
        out,
        "\n{} cells: worst ratio {worst:.3}, mean {mean:.4}; {behind} are more than 0.5 % behind",
        cells.len()
    )
    .expect("a string takes all");
    out
}
