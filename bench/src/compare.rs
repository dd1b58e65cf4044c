//! Ways of pages beside each other: MemKV over several transports, plain copies in memory on one thread, and a file for each
//! page in the page cache, in turns within one run.
//!
//! Rounds, warm-up and rotation are those of [`crate::run`].

use crate::daemon::Daemon;
use crate::machine::Machine;
use crate::report::{Figures, size};
use crate::run::{Pass, Series, connect, get_pass, put_pass, timed};
use crate::workload::{self, Workload};
use anyhow::{Context as _, ensure};
use memkv_client::Transport;
use memkv_client::blocking::{Client, Space};
use memkv_core::SpaceDescription;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Instant;
use tempfile::TempDir;

/// What to compare.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub transports: Vec<Transport>,
    pub working_set_bytes: usize,
    pub rounds: usize,
    pub page_bytes: Vec<usize>,
    pub batches: Vec<usize>,
    pub server: PathBuf,
    pub command: String,
}

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub command: String,
    pub machine: Machine,
    pub working_set_bytes: usize,
    pub rounds: usize,
    pub rows: Vec<Row>,
}

/// One op, page size and batch size: every way's figures.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub op: &'static str,
    pub page_bytes: usize,
    pub batch: usize,
    pub ways: Vec<(String, Figures)>,
}

/// Who moves the pages.
enum Way {
    MemKv(Transport, Client, Space),
    /// One thread, from memory to memory.
    Copy(Vec<u8>),
    /// A file for each page.
    Files(TempDir),
}

impl Way {
    fn name(&self) -> String {
        match self {
            Self::MemKv(transport, ..) => transport.to_string(),
            Self::Copy(_) => "memcpy".to_owned(),
            Self::Files(_) => "files".to_owned(),
        }
    }

    /// Forgets all pages.
    fn clear(&mut self) -> anyhow::Result<()> {
        match self {
            Self::MemKv(_, _, space) => {
                space.clear()?;
            }
            Self::Copy(_) => {}
            Self::Files(folder) => *folder = TempDir::new().context("make a folder for files")?,
        }
        Ok(())
    }

    fn put(&mut self, keys: &[Vec<u8>], pages: &[&[u8]], batch: usize) -> anyhow::Result<Vec<u64>> {
        match self {
            Self::MemKv(_, _, space) => put_pass(space, keys, pages, batch),
            Self::Copy(memory) => {
                let mut slots = memory.chunks_exact_mut(pages[0].len());
                in_batches(pages.chunks(batch), |pages| {
                    pages.iter().zip(slots.by_ref()).for_each(|(page, slot)| slot.copy_from_slice(page));
                    Ok(())
                })
            }
            Self::Files(folder) => {
                let mut names = keys.iter().map(|key| folder.path().join(name(key)));
                in_batches(pages.chunks(batch), |pages| {
                    for (page, path) in pages.iter().zip(names.by_ref()) {
                        fs::File::create(path)?.write_all(page)?;
                    }
                    Ok(())
                })
            }
        }
    }

    fn get(&mut self, keys: &[Vec<u8>], pages: &mut [&mut [u8]], batch: usize) -> anyhow::Result<Vec<u64>> {
        match self {
            Self::MemKv(_, _, space) => get_pass(space, keys, pages, batch),
            Self::Copy(memory) => {
                let mut slots = memory.chunks_exact(pages[0].len());
                in_batches(pages.chunks_mut(batch), |pages| {
                    pages.iter_mut().zip(slots.by_ref()).for_each(|(page, slot)| page.copy_from_slice(slot));
                    Ok(())
                })
            }
            Self::Files(folder) => {
                let mut names = keys.iter().map(|key| folder.path().join(name(key)));
                in_batches(pages.chunks_mut(batch), |pages| {
                    for (page, path) in pages.iter_mut().zip(names.by_ref()) {
                        fs::File::open(path)?.read_exact(page)?;
                    }
                    Ok(())
                })
            }
        }
    }
}

fn name(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// Does one batch after the other; returns each one's nanoseconds.
fn in_batches<T>(
    batches: impl Iterator<Item = T>,
    mut act: impl FnMut(T) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<u64>> {
    let each = batches.map(|batch| {
        let start = Instant::now();
        act(batch)?;
        Ok(crate::raw::elapsed_nanos(start))
    });
    each.collect()
}

/// Runs the plan; `progress` is told what comes next.
pub(crate) fn run(plan: Plan, progress: &dyn Fn(&str)) -> anyhow::Result<Report> {
    progress("starting a server and filling memory");
    let bytes = plan.working_set_bytes;
    let daemon = Daemon::start(&plan.server, bytes as u64 * 3 / 2 + (512 << 20))?;
    let mut workload = Workload::new(bytes);
    let mut ways = Vec::new();
    for &transport in &plan.transports {
        let client = connect(&daemon, transport)?;
        let space = client.space(SpaceDescription::named(&format!("bench {transport}"))?)?;
        ways.push(Way::MemKv(transport, client, space));
    }
    // Not zero, so that every page of memory is there before the first measurement.
    ways.push(Way::Copy(vec![1; bytes]));
    ways.push(Way::Files(TempDir::new().context("make a folder for files")?));
    let cells: Vec<(usize, usize)> =
        plan.page_bytes.iter().flat_map(|&page| plan.batches.iter().map(move |&batch| (page, batch))).collect();
    let mut series: Vec<Vec<[Series; 2]>> =
        cells.iter().map(|_| ways.iter().map(|_| Default::default()).collect()).collect();
    for round in 0..=plan.rounds {
        let counts = round > 0;
        progress(&if counts { format!("round {round} of {}", plan.rounds) } else { "warm-up".into() });
        for (&(page, batch), series) in cells.iter().zip(&mut series) {
            for turn in 0..ways.len() {
                let which = (turn + round) % ways.len();
                let passes = pass(&mut ways[which], &mut workload, daemon.pid(), page, batch)?;
                ways[which].clear()?;
                if counts {
                    passes.into_iter().zip(&mut series[which]).for_each(|(pass, series)| series.passes.push(pass));
                }
            }
        }
    }
    let mut rows = Vec::new();
    for (which_op, op) in ["get", "put"].into_iter().enumerate() {
        for (&(page_bytes, batch), series) in cells.iter().zip(&series) {
            let figures = ways.iter().zip(series).map(|(way, ops)| Ok((way.name(), ops[which_op].figures()?)));
            rows.push(Row { op, page_bytes, batch, ways: figures.collect::<anyhow::Result<_>>()? });
        }
    }
    let (command, machine) = (plan.command, Machine::describe());
    Ok(Report { command, machine, working_set_bytes: bytes, rounds: plan.rounds, rows })
}

/// Stores the working set, then reads it back; returns the get and the put.
fn pass(
    way: &mut Way,
    workload: &mut Workload,
    server: u32,
    page: usize,
    batch: usize,
) -> anyhow::Result<[Pass; 2]> {
    let count = (workload.bytes() / page / batch).max(1) * batch;
    let bytes = count * page;
    ensure!(bytes <= workload.bytes(), "a batch of {batch} pages does not fit the working set");
    workload.spoil(bytes);
    let keys = workload::keys(&format!("{page}-{batch}"), count);
    let source = workload.source_pages(page, count);
    let put = timed(bytes, server, || way.put(&keys, &source, batch))?;
    let mut target = workload.target_pages(page, count);
    let get = timed(bytes, server, || way.get(&keys, &mut target, batch))?;
    workload.verify(bytes, &format!("{}, pages of {page} bytes, batches of {batch}", way.name()))?;
    Ok([get, put])
}

/// The table, as Markdown that is also readable on a terminal.
pub(crate) fn table(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    write_table(&mut out, report).ok();
    out
}

fn write_table(out: &mut String, report: &Report) -> std::fmt::Result {
    let machine = &report.machine;
    writeln!(out, "`{}`\n", report.command)?;
    writeln!(
        out,
        "{}, {} cores, {}; working set {} MiB, {} rounds, medians ± half the interquartile range in GB/s, in brackets CPU seconds \
         per GB of both sides; checksums and authentication on. memcpy: one thread. files: one for each page, in the page cache.\n",
        machine.cpu,
        machine.cores,
        machine.kernel,
        report.working_set_bytes >> 20,
        report.rounds
    )?;
    let names: Vec<&str> =
        report.rows.first().map(|row| row.ways.iter().map(|(name, _)| &name[..]).collect()).unwrap_or_default();
    writeln!(out, "| op | page | batch | {} | best ÷ memcpy | best ÷ files |", names.join(" | "))?;
    writeln!(out, "|---|---:|---:|{}---:|---:|", "---:|".repeat(names.len()))?;
    for row in &report.rows {
        let speed = |figures: &Figures| {
            let cpu = figures.client_cpu_s_per_gb + figures.server_cpu_s_per_gb;
            let speed = &figures.gb_per_s;
            format!("{:.2} ± {:.2} ({cpu:.2})", speed.median, speed.iqr / 2.0)
        };
        let cells: Vec<String> = row.ways.iter().map(|(_, figures)| speed(figures)).collect();
        let of = |wanted: &str| row.ways.iter().find(|(name, _)| name == wanted).map(|(_, f)| f.gb_per_s.median);
        let ours = row.ways.iter().filter(|(name, _)| name != "memcpy" && name != "files");
        let best = ours.map(|(_, figures)| figures.gb_per_s.median).fold(0.0, f64::max);
        let ratio = |other: Option<f64>| other.map_or("-".to_owned(), |other| format!("{:.2}", best / other));
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            row.op,
            size(row.page_bytes),
            row.batch,
            cells.join(" | "),
            ratio(of("memcpy")),
            ratio(of("files"))
        )?;
    }
    Ok(())
}
