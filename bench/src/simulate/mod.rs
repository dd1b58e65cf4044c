//! `memkv-bench simulate`: what eviction policies make of a trace, and `memkv-bench trace`: traces made up from a seed.
//!
//! The policies are those of the server, called as the server calls them. `docs/design/eviction.md` defines what is
//! measured.

#[cfg(test)]
mod exact;
mod optimum;
mod replay;
mod report;
mod shapes;
mod suite;
#[cfg(test)]
mod tests;
pub(crate) mod trace;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use memkv_storage::PolicyKind;
use replay::{Room, Rules};
use report::{Report, Row};
use shapes::Shape;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use suite::Suite;
use trace::Trace;

/// Shares of a trace's different blocks that a store has room for, if none are given.
const CAPACITIES: &str = "1%,2%,5%,10%,25%,50%";

#[derive(Args)]
pub(crate) struct SimulateArgs {
    /// The trace: one request a line, in the Mooncake format.
    #[arg(long, required_unless_present = "suite")]
    trace: Option<PathBuf>,
    /// Compare the default policy with the best of the classics on made-up traffic of every shape, and on the trace if
    /// one is given. The policies are then always the same.
    #[arg(long, conflicts_with = "policy")]
    suite: bool,
    /// The seeds of the suite.
    #[arg(long, requires = "suite", value_delimiter = ',', default_value = "1,2,3")]
    seeds: Vec<u64>,
    /// The number of requests in each trace of the suite.
    #[arg(long, requires = "suite", default_value_t = 1500)]
    requests: usize,
    /// Policies to replay it through; LRU is always among them.
    #[arg(long, value_delimiter = ',', default_values_t = PolicyKind::ALL)]
    policy: Vec<PolicyKind>,
    /// Room for blocks, as shares of the different blocks of the trace.
    #[arg(long, value_parser = parse_share, value_delimiter = ',', default_value = CAPACITIES)]
    capacity: Vec<f64>,
    /// Evict as a server does, from above the second share of the capacity to below the first, for example 0.9,0.95.
    /// Otherwise just as many blocks go as a request needs.
    #[arg(long, value_delimiter = ',', num_args = 2)]
    watermarks: Vec<f64>,
    /// Put the missing blocks of a request a moment after the others were read, and without their place in the chain,
    /// as SGLang does. Otherwise a request uses all of its blocks at once.
    #[arg(long)]
    apart: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct TraceArgs {
    /// The kind of traffic: multi-turn, agent, shared-system, rag, scan, mixed, drift, chat or batch.
    #[arg(long)]
    shape: Shape,
    /// Equal seeds make equal traces.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of requests.
    #[arg(long, default_value_t = 4000)]
    requests: usize,
}

pub(crate) fn simulate_command(args: SimulateArgs) -> anyhow::Result<()> {
    let room = match args.watermarks[..] {
        [] => Room::Exact,
        [low, high] if 0.0 < low && low <= high && high <= 1.0 => Room::Watermarks { low, high },
        _ => bail!("the watermarks are not valid; use two shares with 0 < low <= high <= 1"),
    };
    let rules = Rules { room, apart: args.apart };
    let trace = args.trace.as_deref().map(read).transpose()?;
    if args.suite {
        return suite_command(args, trace.as_ref(), rules);
    }
    let trace = trace.context("there is no trace to replay; use --trace FILE")?;
    let mut policies = vec![PolicyKind::Lru];
    policies.extend(args.policy.iter().filter(|policy| **policy != PolicyKind::Lru));
    policies.dedup();
    let report = simulate(&trace, &policies, &args.capacity, rules);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("write JSON")?);
    } else {
        println!("{}", report::table(&report));
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Trace> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read the trace {}", path.display()))?;
    Trace::parse(&text).with_context(|| format!("read the trace {}", path.display()))
}

fn suite_command(args: SimulateArgs, given: Option<&Trace>, rules: Rules) -> anyhow::Result<()> {
    ensure!(args.requests > 0, "a trace has at least one request");
    let suite = Suite { seeds: args.seeds, requests: args.requests, shares: args.capacity };
    let cells = suite::run(&suite, given.map(|trace| ("trace", trace)), rules)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&cells).context("write JSON")?);
    } else {
        println!("{}", suite::table(&cells));
    }
    Ok(())
}

pub(crate) fn trace_command(args: &TraceArgs) -> anyhow::Result<()> {
    ensure!(args.requests > 0, "a trace has at least one request");
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in args.shape.trace(args.seed, args.requests) {
        serde_json::to_writer(&mut out, &line).context("write the trace")?;
        writeln!(out).context("write the trace")?;
    }
    out.flush().context("write the trace")
}

/// The number of blocks that a share of the different ones is.
fn blocks_of(trace: &Trace, share: f64) -> usize {
    ((trace.distinct() as f64 * share).round() as usize).max(1)
}

/// One replay of the trace for each policy and capacity, on all cores.
fn simulate(trace: &Trace, policies: &[PolicyKind], shares: &[f64], rules: Rules) -> Report {
    let columns = policies.len() + 1;
    let results = Mutex::new(vec![0; shares.len() * columns]);
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            let Some(&share) = shares.get(job / columns) else { return };
            let capacity = blocks_of(trace, share);
            let tokens = match policies.get(job % columns) {
                Some(policy) => replay::replay(trace, &*policy.build(capacity), capacity, rules),
                None => optimum::optimum(trace, capacity),
            };
            results.lock().expect("no replay panics")[job] = tokens;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let results = results.into_inner().expect("no replay panics");
    let ratio = |tokens: u64| tokens as f64 / trace.input_tokens.max(1) as f64;
    let rows = shares.iter().zip(results.chunks(columns)).map(|(&share, tokens)| Row {
        share,
        blocks: blocks_of(trace, share),
        hit_ratio: policies
            .iter()
            .zip(tokens)
            .map(|(policy, &tokens)| (policy.to_string(), ratio(tokens)))
            .collect(),
        optimum: ratio(tokens[policies.len()]),
    });
    Report {
        requests: trace.requests.len(),
        input_tokens: trace.input_tokens,
        distinct_blocks: trace.distinct(),
        rows: rows.collect(),
    }
}

/// Reads `5%` or `0.05`.
fn parse_share(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let share = text.strip_suffix('%').map_or_else(|| number(text), |percent| Some(number(percent)? / 100.0));
    let share = share.filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| format!("{text:?} is not a share; write 5% or 0.05, at most 100%"))
}
