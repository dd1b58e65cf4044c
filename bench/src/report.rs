//! What a run found: the JSON document and the tables.

use crate::machine::Machine;
use crate::stats::{Latency, Spread};
use serde::Serialize;
use std::fmt::Write as _;

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub command: String,
    pub machine: Machine,
    pub settings: Settings,
    pub memory: MemoryUse,
    /// Copies of the working set within this process, GB/s, on one and two threads.
    pub memcpy: [Spread; 2],
    pub cells: Vec<Cell>,
    pub exists: Vec<ExistsRow>,
    pub grpc: Vec<GrpcRow>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Settings {
    pub working_set_bytes: u64,
    pub rounds: usize,
    pub server: String,
    pub transport: &'static str,
    pub checksums: bool,
    pub authentication: bool,
}

/// What the servers hold at the end.
#[derive(Debug, Serialize)]
pub(crate) struct MemoryUse {
    pub server_resident_bytes: u64,
    pub server_huge_page_bytes: u64,
    pub raw_huge_page_bytes: u64,
}

/// One subject's figures in one cell.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figures {
    /// 10^9 bytes of pages a second.
    pub gb_per_s: Spread,
    /// Processor seconds for 10^9 bytes, of this process and of the server.
    pub client_cpu_s_per_gb: f64,
    pub server_cpu_s_per_gb: f64,
    /// Time of one batch.
    pub latency: Latency,
}

impl Figures {
    fn cpu(&self) -> f64 {
        self.client_cpu_s_per_gb + self.server_cpu_s_per_gb
    }
}

/// One op, page size and batch size.
#[derive(Debug, Serialize)]
pub(crate) struct Cell {
    pub op: &'static str,
    pub page_bytes: usize,
    pub batch: usize,
    pub memkv: Figures,
    pub raw_one_connection: Figures,
    /// Absent for a batch of one page.
    pub raw_two_connections: Option<Figures>,
}

impl Cell {
    /// The faster of one and two raw connections.
    fn limit(&self) -> &Figures {
        match &self.raw_two_connections {
            Some(two) if two.gb_per_s.median > self.raw_one_connection.gb_per_s.median => two,
            _ => &self.raw_one_connection,
        }
    }
}

/// Presence of so many keys in one request.
#[derive(Debug, Serialize)]
pub(crate) struct ExistsRow {
    pub keys: usize,
    pub memkv: Latency,
    pub raw: Latency,
}

/// The gRPC transport, for comparison.
#[derive(Debug, Serialize)]
pub(crate) struct GrpcRow {
    pub op: &'static str,
    pub page_bytes: usize,
    pub batch: usize,
    pub memkv: Figures,
}

/// The tables, as Markdown that is also readable on a terminal.
pub(crate) fn tables(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    write_tables(&mut out, report).ok();
    out
}

fn write_tables(out: &mut String, report: &Report) -> std::fmt::Result {
    let machine = &report.machine;
    writeln!(out, "`{}`\n", report.command)?;
    writeln!(
        out,
        "{}, {} cores, {}, {:.1} GiB memory, transparent huge pages: {}. Working set {:.2} GiB, {} rounds, \
         medians ± half the interquartile range; loopback TCP, checksums and authentication on.\n",
        machine.cpu,
        machine.cores,
        machine.kernel,
        gib(machine.memory_bytes),
        machine.huge_pages,
        gib(report.settings.working_set_bytes),
        report.settings.rounds,
    )?;
    let [one, two] = &report.memcpy;
    writeln!(out, "memcpy: {} GB/s on one thread, {} on two.\n", spread(one), spread(two))?;

    writeln!(
        out,
        "| op  | page    | batch | memkv GB/s  | raw x1 GB/s | raw x2 GB/s | % of raw | memkv CPU s/GB (c + s)  | raw CPU s/GB |"
    )?;
    writeln!(
        out,
        "|-----|--------:|------:|------------:|------------:|------------:|---------:|------------------------:|-------------:|"
    )?;
    for cell in &report.cells {
        let two = cell.raw_two_connections.as_ref().map_or("-".to_owned(), |two| spread(&two.gb_per_s));
        let (memkv, limit) = (&cell.memkv, cell.limit());
        writeln!(
            out,
            "| {:<3} | {:>7} | {:>5} | {:>11} | {:>11} | {two:>11} | {:>8.0} | {:>6.2} ({:>6.2} + {:>5.2}) | {:>12.2} |",
            cell.op,
            size(cell.page_bytes),
            cell.batch,
            spread(&memkv.gb_per_s),
            spread(&cell.raw_one_connection.gb_per_s),
            100.0 * memkv.gb_per_s.median / limit.gb_per_s.median,
            memkv.cpu(),
            memkv.client_cpu_s_per_gb,
            memkv.server_cpu_s_per_gb,
            limit.cpu(),
        )?;
    }
    write_latencies(out, report)?;

    writeln!(out, "\n| gRPC transport | page | batch | GB/s | CPU s/GB (c + s) |")?;
    writeln!(out, "|---|---:|---:|---:|---:|")?;
    for row in &report.grpc {
        let (page, speed) = (size(row.page_bytes), spread(&row.memkv.gb_per_s));
        writeln!(
            out,
            "| {} | {page} | {} | {speed} | {:.2} ({:.2} + {:.2}) |",
            row.op,
            row.batch,
            row.memkv.cpu(),
            row.memkv.client_cpu_s_per_gb,
            row.memkv.server_cpu_s_per_gb
        )?;
    }
    let memory = &report.memory;
    writeln!(
        out,
        "\nAt the end: memkv-server holds {:.2} GiB, {:.2} GiB of it on huge pages; the raw server {:.2} GiB on huge pages.",
        gib(memory.server_resident_bytes),
        gib(memory.server_huge_page_bytes),
        gib(memory.raw_huge_page_bytes),
    )
}

fn write_latencies(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "\n| one op at a time | memkv p50 µs | p99 µs | raw p50 µs | p99 µs | p50 × raw |")?;
    writeln!(out, "|---|---:|---:|---:|---:|---:|")?;
    let single = report.cells.iter().filter(|cell| cell.batch == 1);
    let single = single.map(|cell| {
        (format!("{} {}", cell.op, size(cell.page_bytes)), cell.memkv.latency, {
            cell.raw_one_connection.latency
        })
    });
    let exists = report.exists.iter().map(|row| (format!("exists {} keys", row.keys), row.memkv, row.raw));
    for (name, memkv, raw) in single.chain(exists) {
        let ratio = memkv.p50_us / raw.p50_us;
        writeln!(
            out,
            "| {name} | {:.0} | {:.0} | {:.0} | {:.0} | {ratio:.2} |",
            memkv.p50_us, memkv.p99_us, raw.p50_us, raw.p99_us
        )?;
    }
    Ok(())
}

fn spread(spread: &Spread) -> String {
    format!("{:.2} ± {:.2}", spread.median, spread.iqr / 2.0)
}

/// A page size for people.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

fn gib(bytes: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "shown with two decimals")]
    let bytes = bytes as f64;
    bytes / (1_u64 << 30) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_their_unit() {
        assert_eq!([size(65_536), size(4 << 20), size(100)], ["64 KiB", "4 MiB", "100 B"]);
    }

    fn figures(gb_per_s: f64) -> Figures {
        let gb_per_s = Spread { median: gb_per_s, iqr: 0.2, rounds: 3 };
        let latency = Latency { p50_us: 10.0, p99_us: 20.0, count: 3 };
        Figures { gb_per_s, client_cpu_s_per_gb: 0.25, server_cpu_s_per_gb: 0.5, latency }
    }

    #[test]
    fn the_limit_is_the_faster_raw_stream() {
        let cell = |two| Cell {
            op: "get",
            page_bytes: 65_536,
            batch: 128,
            memkv: figures(3.0),
            raw_one_connection: figures(4.0),
            raw_two_connections: two,
        };
        assert_eq!(cell(Some(figures(6.0))).limit().gb_per_s.median, 6.0);
        assert_eq!(cell(Some(figures(2.0))).limit().gb_per_s.median, 4.0);
        assert_eq!(cell(None).limit().gb_per_s.median, 4.0);
    }
}
