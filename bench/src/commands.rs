//! The commands that compare: which sizes, which subjects, and what becomes of the figures.

use crate::compare::report::{Report, size};
use crate::compare::tables::tables;
use crate::compare::{self, Plan};
use crate::peer::Peer;
use crate::subject::ours::Over;
use crate::{command_line, daemon, parse_size, publish, targets, warn_of_debug_build};
use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What all comparisons take.
#[derive(Args)]
pub(crate) struct CommonArgs {
    /// A short form: less bytes and three rounds.
    #[arg(long)]
    quick: bool,
    /// Bytes of all pages of a pass, for example 1GiB. Memory needed: about six times as much, and more with peers.
    #[arg(long, value_parser = parse_size)]
    working_set: Option<usize>,
    /// Rounds to measure; the medians are over these.
    #[arg(long)]
    rounds: Option<usize>,
    /// Transports of MemKV, and tls for TCP inside TLS; those that this build or machine lacks are skipped with the reason.
    #[arg(long, alias = "transport", value_delimiter = ',', default_value = "tcp,shm,rdma,grpc")]
    transports: Vec<Over>,
    /// The memkv-server to start; the one beside this program by default.
    #[arg(long, env = "MEMKV_SERVER_BIN")]
    server: Option<PathBuf>,
    /// Also writes everything to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes the tables and plots into the documents of this repository.
    #[arg(long, value_name = "REPOSITORY")]
    publish: Option<PathBuf>,
}

/// What concerns other stores.
#[derive(Args)]
pub(crate) struct PeerArgs {
    /// Fetch what is missing: packages of the distribution (unpacked, not installed) and of PyPI (in environments of their
    /// own), into the cache folder.
    #[arg(long)]
    install: bool,
    /// The Python to make environments with; if it has PyTorch, LMCache's server uses that instead of fetching it (3 GB).
    #[arg(long)]
    python: Option<PathBuf>,
}

/// What `memkv-bench run` takes.
#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Page sizes to measure.
    #[arg(long, value_parser = parse_size, value_delimiter = ',', default_value = "64KiB,256KiB,1MiB,4MiB")]
    pages: Vec<usize>,
    /// Batch sizes to measure.
    #[arg(long, value_delimiter = ',', default_value = "1,32,128")]
    batches: Vec<usize>,
}

/// What `memkv-bench targets` takes.
#[derive(Args)]
pub(crate) struct TargetsArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    peer: PeerArgs,
    /// Measures other stores too: those named, or all.
    #[arg(long, value_enum, value_delimiter = ',', num_args = 0.., default_missing_value = "redis,valkey,memcached,lmcache,mooncake")]
    peers: Vec<Peer>,
}

/// What `memkv-bench peers` takes.
#[derive(Args)]
pub(crate) struct PeersArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    peer: PeerArgs,
    /// The stores to measure beside MemKV.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// Page sizes to measure.
    #[arg(long, value_parser = parse_size, value_delimiter = ',', default_value = "64KiB,256KiB,1MiB,4MiB")]
    pages: Vec<usize>,
    /// Batch sizes to measure.
    #[arg(long, value_delimiter = ',', default_value = "1,128")]
    batches: Vec<usize>,
}

/// What `memkv-bench render` takes.
#[derive(Args)]
pub(crate) struct RenderArgs {
    /// The JSON of an earlier run.
    #[arg(long)]
    from: PathBuf,
    /// Writes the tables and plots into the documents of this repository.
    #[arg(long, value_name = "REPOSITORY")]
    publish: Option<PathBuf>,
}

/// The document of a run.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    report: &'a Report,
    targets: Vec<targets::Line>,
}

/// Runs `memkv-bench run`.
///
/// # Errors
///
/// If it cannot be measured, or wrong bytes came.
pub(crate) fn run(args: RunArgs) -> anyhow::Result<()> {
    let cells = cells(&args.pages, &args.batches);
    let plan = plan(&args.common, cells, [1 << 30, 512 << 20])?;
    let report = measure(plan)?;
    print!("{}", tables(&report));
    finish(&args.common, &report)
}

/// Runs `memkv-bench targets`.
///
/// # Errors
///
/// If it cannot be measured, or wrong bytes came. A target that is missed is no error.
pub(crate) fn targets(args: TargetsArgs) -> anyhow::Result<()> {
    let quick = args.common.quick;
    let all = targets::cells();
    // The short form is for tests: two page sizes, so that all kinds of rows are there.
    let short = vec![(64 << 10, targets::BATCH), (1 << 20, targets::BATCH), (64 << 10, 1)];
    let mut plan = plan(&args.common, if quick { short } else { all }, [512 << 20, 128 << 20])?;
    plan.crowd = targets::CROWD;
    plan.idle_seconds = if quick { 0.2 } else { 5.0 };
    with_peers(&mut plan, args.peers, args.peer);
    let report = measure(plan)?;
    print!("{}\n{}", tables(&report), targets::table(&targets::judge(&report)));
    finish(&args.common, &report)
}

/// Runs `memkv-bench peers`.
///
/// # Errors
///
/// If it cannot be measured, or wrong bytes came from MemKV.
pub(crate) fn peers(args: PeersArgs) -> anyhow::Result<()> {
    let mut plan = plan(&args.common, cells(&args.pages, &args.batches), [512 << 20, 128 << 20])?;
    with_peers(&mut plan, args.peers, args.peer);
    let report = measure(plan)?;
    print!("{}", tables(&report));
    finish(&args.common, &report)
}

/// Runs `memkv-bench render`.
///
/// # Errors
///
/// If the file is no run, or a document cannot be written.
pub(crate) fn render(args: &RenderArgs) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(&args.from).with_context(|| format!("read {}", args.from.display()))?;
    let report: Report =
        serde_json::from_str(&text).with_context(|| format!("read {}", args.from.display()))?;
    print!("{}\n{}", tables(&report), targets::table(&targets::judge(&report)));
    args.publish.as_deref().map_or(Ok(()), |repository| publish::publish(&report, repository))
}

fn cells(pages: &[usize], batches: &[usize]) -> Vec<(usize, usize)> {
    pages.iter().flat_map(|&page| batches.iter().map(move |&batch| (page, batch.max(1)))).collect()
}

fn with_peers(plan: &mut Plan, peers: Vec<Peer>, args: PeerArgs) {
    plan.peers = peers;
    plan.install = args.install;
    plan.python = args.python;
}

/// A plan without peers; of the two working sets the second is that of the short form.
fn plan(args: &CommonArgs, cells: Vec<(usize, usize)>, working_sets: [usize; 2]) -> anyhow::Result<Plan> {
    let working_set_bytes = args.working_set.unwrap_or(working_sets[usize::from(args.quick)]);
    let largest = cells.iter().map(|&(page, batch)| page * batch).max().unwrap_or(0);
    ensure!(
        working_set_bytes >= largest,
        "the working set must hold the largest batch, {}; raise --working-set, or lower --pages or --batches",
        size(largest)
    );
    Ok(Plan {
        working_set_bytes,
        rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 7 }).max(1),
        cells,
        exists: targets::EXISTS.to_vec(),
        exists_times: 400,
        transports: args.transports.clone(),
        peers: Vec::new(),
        install: false,
        python: None,
        crowd: 0,
        idle_seconds: 0.0,
        server: daemon::find_server(args.server.clone())?,
        command: command_line(),
    })
}

fn measure(plan: Plan) -> anyhow::Result<Report> {
    warn_of_debug_build();
    compare::run(plan, &|what| eprintln!("{what} …"))
}

fn finish(args: &CommonArgs, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        write_json(path, report)?;
    }
    args.publish.as_deref().map_or(Ok(()), |repository| publish::publish(report, repository))
}

fn write_json(path: &Path, report: &Report) -> anyhow::Result<()> {
    let document = Document { report, targets: targets::judge(report) };
    let text = serde_json::to_string_pretty(&document).context("write JSON")?;
    std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}
