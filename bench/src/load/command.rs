//! `memkv-bench load`.

use super::keys::{Choice, Draw};
use super::orders::{Endpoint, Op};
use super::{Figures, Load, Rounds, Shape};
use crate::daemon::{self, Daemon};
use crate::machine::{self, Machine};
use crate::{parse_size, raw};
use anyhow::{Context as _, ensure};
use clap::Args;
use memkv_client::Transport;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Memory of all processes that pages arrive in.
const ARRIVALS_BYTES: usize = 1 << 30;
/// Most batches of one process in one burst.
const BURST_BATCHES: usize = 4096;

/// What `memkv-bench load` takes.
#[derive(Args)]
pub(crate) struct LoadArgs {
    /// What a batch does; cache: read, and store what is missing.
    #[arg(long, value_enum, default_value = "get")]
    op: Op,
    /// Bytes of a page.
    #[arg(long, value_parser = parse_size, default_value = "1MiB")]
    page: usize,
    /// Pages of a batch.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=8192))]
    batch: u16,
    /// Client processes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    processes: u8,
    /// Which pages: uniform, zipf:THETA, or trace:FILE in the Mooncake format.
    #[arg(long, default_value = "uniform")]
    keys: Choice,
    /// Bytes of all pages, stored before the load begins (except for cache). May be larger than the server's memory.
    #[arg(long, value_parser = parse_size, default_value = "512MiB")]
    working_set: usize,
    /// Open loop: batches a second of all processes together. Without it each process sends its next batch as soon as the
    /// last is done.
    #[arg(long, value_parser = parse_rate)]
    rate: Option<f64>,
    /// How long to run, checks not counted.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// auto, tcp, shm, rdma or grpc.
    #[arg(long, default_value = "tcp")]
    transport: Transport,
    /// Servers to load instead of one of our own; their key is taken from MEMKV_AUTH_KEY.
    #[arg(long)]
    servers: Option<String>,
    /// Memory of our own server; by default enough for everything.
    #[arg(long, value_parser = parse_size, conflicts_with = "servers")]
    dram: Option<usize>,
    /// The memkv-server to start; the one beside this program by default.
    #[arg(long, env = "MEMKV_SERVER_BIN", conflicts_with = "servers")]
    server: Option<PathBuf>,
    /// The seed of what is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("{text:?} is no number of batches a second"))?;
    if rate > 0.0 && rate <= 1e6 { Ok(rate) } else { Err("a rate is above 0 and at most 1000000".into()) }
}

#[derive(Serialize)]
struct Report {
    command: String,
    machine: Machine,
    processes: u8,
    memkv: Figures,
    /// The same from the raw baseline, in turns; absent where it cannot do the same.
    raw: Option<Figures>,
    /// What the server's memory grew by while it was filled, for each byte stored. Absent for pages that were evicted.
    resident_bytes_per_stored_byte: Option<f64>,
}

/// Runs the command.
///
/// # Errors
///
/// If an op fails, or wrong bytes come.
pub(crate) fn run(args: LoadArgs, command: String) -> anyhow::Result<()> {
    let shape = shape(&args)?;
    let processes = usize::from(args.processes);
    let arrivals = (processes * shape.burst_batches * shape.batch * shape.page_bytes) as u64;
    let stored = shape.pages * shape.page_bytes as u64;
    let daemon = match &args.servers {
        Some(_) => None,
        None => {
            let room = args.dram.map_or(stored * 9 / 8 + arrivals + (256 << 20), |dram| dram as u64);
            Some(Daemon::start(&daemon::find_server(args.server.clone())?, room)?)
        }
    };
    let key = std::env::var("MEMKV_AUTH_KEY").ok().filter(|key| !key.is_empty());
    let (servers, key) = match &daemon {
        Some(daemon) => (daemon.address(), Some(daemon.key().to_owned())),
        None => (args.servers.clone().unwrap_or_default(), key),
    };
    let endpoint = Endpoint::Memkv { servers, key, transport: args.transport.to_string() };
    let pid = daemon.as_ref().map(Daemon::pid);
    // Before anybody connects: the server touches memory a little ahead of what is stored.
    let before = pid.map(machine::settled_resident_bytes);
    let mut memkv = Load::start(&endpoint, pid, &shape, processes)?;
    let refused = if args.op == Op::Cache { 0 } else { memkv.fill()? };
    let fits =
        args.op != Op::Cache && refused == 0 && args.dram.is_none_or(|dram| stored <= dram as u64 / 8 * 7);
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    let growth = pid.zip(before).filter(|_| fits).map(|(pid, before)| {
        machine::settled_resident_bytes(pid).saturating_sub(before) as f64 / stored as f64
    });
    let mut raw = beside(&args, &shape, processes)?;
    let [memkv, raw] = rounds(&args, &shape, [Some(&mut memkv), raw.as_mut().map(|raw| &mut raw.1)])?;
    let report = Report {
        command,
        machine: Machine::describe(),
        processes: args.processes,
        memkv: memkv.context("nothing ran")?,
        raw,
        resident_bytes_per_stored_byte: growth,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("write JSON")?);
    } else {
        print!("{}", table(&report));
    }
    Ok(())
}

fn shape(args: &LoadArgs) -> anyhow::Result<Shape> {
    let batch = usize::from(args.batch);
    let pages = match Draw::new(&args.keys, 1, batch, 0, 1)? {
        Draw::Trace { batches, .. } => batches.iter().flatten().max().map_or(1, |last| last + 1),
        _ => (args.working_set / args.page / batch).max(1) as u64 * batch as u64,
    };
    let arrivals = ARRIVALS_BYTES / usize::from(args.processes) / batch / args.page;
    let arrivals = if args.op == Op::Exists { BURST_BATCHES } else { arrivals };
    ensure!(
        arrivals > 0,
        "batches of {batch} pages of {} bytes from {} processes need more memory than {ARRIVALS_BYTES} bytes",
        args.page,
        args.processes
    );
    let burst_batches = arrivals.min(BURST_BATCHES);
    Ok(Shape {
        op: args.op,
        page_bytes: args.page,
        batch,
        choice: args.keys.clone(),
        pages,
        burst_batches,
        seed: args.seed,
    })
}

/// The raw baseline, where it can do the same: it has no names, so it knows neither traces nor pages that are missing.
fn beside(args: &LoadArgs, shape: &Shape, processes: usize) -> anyhow::Result<Option<(raw::Server, Load)>> {
    if matches!(args.keys, Choice::Trace(_)) || args.op == Op::Cache || args.dram.is_some() {
        return Ok(None);
    }
    let server = raw::Server::start()?;
    let endpoint = Endpoint::Raw { address: server.addr().to_string() };
    let mut load = Load::start(&endpoint, Some(server.pid()), shape, processes)?;
    load.fill()?;
    Ok(Some((server, load)))
}

/// Runs bursts in turns until the time is over; the first warms up and does not count.
fn rounds(
    args: &LoadArgs,
    shape: &Shape,
    mut loads: [Option<&mut Load>; 2],
) -> anyhow::Result<[Option<Figures>; 2]> {
    // A burst of an open loop lasts about a second; one of a closed loop as long as its memory.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is above 0 and bounded"
    )]
    let batches =
        args.rate.map_or(shape.burst_batches, |rate| (rate / f64::from(args.processes)).ceil() as usize);
    let batches = batches.clamp(1, shape.burst_batches);
    let mut all = [Rounds::new()?, Rounds::new()?];
    let mut warm = Rounds::new()?;
    let limit = Duration::from_secs_f64(args.seconds.clamp(0.01, 86_400.0));
    // A cache warms up as part of what is measured.
    let warming = if args.op == Op::Cache { 0 } else { 1 };
    for round in 0.. {
        for (load, rounds) in loads.iter_mut().zip(&mut all) {
            let Some(load) = load else { continue };
            let into = if round < warming { &mut warm } else { rounds };
            load.round(batches, args.rate, into)?;
        }
        if round >= warming && Duration::from_nanos(all[0].nanos) >= limit {
            break;
        }
    }
    Ok(all.map(|rounds| rounds.figures()))
}

fn table(report: &Report) -> String {
    let mut out = format!("`{}`\n\n{}\n\n", report.command, report.machine.line());
    let rows = [("memkv", Some(&report.memkv)), ("raw", report.raw.as_ref())];
    out += "| | GB/s | batches/s | hits | p50 µs | p90 | p99 | p99.9 | max | from sending: p50 | p99 | CPU s/GB (c + s) |\n";
    out += "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
    for (name, figures) in rows {
        let Some(figures) = figures else { continue };
        let (due, sent) = (&figures.from_intended, &figures.from_begin);
        let hits = figures.hit_ratio.map_or("-".to_owned(), |ratio| format!("{:.1} %", 100.0 * ratio));
        out += &format!(
            "| {name} | {:.2} ± {:.2} | {:.0} | {hits} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} + {:.2} |\n",
            figures.gb_per_s.median,
            figures.gb_per_s.iqr / 2.0,
            figures.batches_per_s,
            due.p50_us,
            due.p90_us,
            due.p99_us,
            due.p999_us,
            due.max_us,
            sent.p50_us,
            sent.p99_us,
            figures.client_cpu_s_per_gb,
            figures.server_cpu_s_per_gb,
        );
    }
    out += &format!(
        "\n{} processes; {} batches; {} pages compared; {} were there already, {} refused.\n",
        report.processes,
        report.memkv.from_begin.count,
        report.memkv.pages_compared,
        report.memkv.put_existing,
        report.memkv.put_refused,
    );
    if let Some(growth) = report.resident_bytes_per_stored_byte {
        out += &format!("The server's memory grew by {growth:.3} bytes for each byte stored.\n");
    }
    out
}
