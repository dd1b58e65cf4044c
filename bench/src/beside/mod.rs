//! `memkv-bench beside`: what a bad server costs the calls that do not touch it, and those that do.
//!
//! Three servers, the first of them behind a proxy. One thread gets pages of the two others, another one gets batches over
//! all three. For each kind of fault: before, during, after, some rounds of it. So the figures without a fault come from the
//! same servers, seconds earlier.

mod bad;

use crate::machine::Machine;
use crate::stats::Latency;
use crate::{command_line, daemon};
use anyhow::{Context as _, ensure};
use bad::{Bad, Fault};
use clap::{Args, ValueEnum as _};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, ServerState, SpaceDescription, Transport};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const DRAM_BYTES: u64 = 256 << 20;
const PAGE_BYTES: usize = 64 << 10;
const PAGES: usize = 96;
/// Pages of a batch over all servers.
const BATCH: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);

/// What `memkv-bench beside` takes.
#[derive(Args)]
pub(crate) struct BesideArgs {
    /// The kinds of faults; all if not said.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Seconds of each part: before, during, after.
    #[arg(long, default_value = "4", value_parser = crate::parse_seconds)]
    seconds: f64,
    /// How often each fault comes.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Milliseconds that a call may take.
    #[arg(long, default_value_t = 1000)]
    deadline_ms: u64,
    /// The memkv-server to start; the one beside this program by default.
    #[arg(long, env = "MEMKV_SERVER_BIN")]
    server: Option<PathBuf>,
    /// Also writes everything to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Everything about a run.
#[derive(Serialize)]
struct Report {
    command: String,
    machine: Machine,
    deadline_ms: u64,
    faults: Vec<Row>,
}

/// What one kind of fault came to.
#[derive(Serialize)]
struct Row {
    fault: String,
    /// Gets of one page that do not touch the bad server.
    before: Option<Latency>,
    during: Option<Latency>,
    after: Option<Latency>,
    /// Batches that do, while it is bad: all, and those that began when it was suspected.
    touching: Option<Latency>,
    touching_max_us: f64,
    suspected: Option<Latency>,
}

/// Nanoseconds that calls took.
#[derive(Default)]
struct Samples {
    beside: Vec<u64>,
    touching: Vec<u64>,
    suspected: Vec<u64>,
}

impl Samples {
    fn add(&mut self, other: Self) {
        self.beside.extend(other.beside);
        self.touching.extend(other.touching);
        self.suspected.extend(other.suspected);
    }
}

struct Cluster {
    bad: Bad,
    _good: [daemon::Daemon; 2],
    client: Client,
    space: Space,
    bad_keys: Vec<Vec<u8>>,
    good_keys: Vec<Vec<u8>>,
    page: Vec<u8>,
}

impl Cluster {
    fn start(args: &BesideArgs) -> anyhow::Result<Self> {
        let program = daemon::find_server(args.server.clone())?;
        let first = daemon::Daemon::start(&program, DRAM_BYTES)?;
        let key = first.key().to_owned();
        let second = daemon::Daemon::start_as(&program, DRAM_BYTES, &key, &[])?;
        let bad = Bad::start(program, DRAM_BYTES, key.clone())?;
        let servers = format!("bad={},b={},c={}", bad.address(), first.address(), second.address());
        let config = Config::builder().without_environment().servers(servers).auth_key_hex(key);
        let config = config.transport(Transport::Tcp).op_timeout(Duration::from_millis(args.deadline_ms));
        let client = Client::connect(config.build()?)?;
        let space = client.space(SpaceDescription::named("beside")?)?;
        let owned = |key: &Vec<u8>| client.route(space.id(), key)[0].server.id == "bad";
        let (bad_keys, good_keys): (Vec<_>, Vec<_>) =
            crate::workload::keys("beside", PAGES).into_iter().partition(owned);
        ensure!(bad_keys.len() >= BATCH / 4 && good_keys.len() >= BATCH, "keys are spread badly");
        let page = crate::workload::pattern(PAGE_BYTES);
        let cluster = Self { bad, _good: [first, second], client, space, bad_keys, good_keys, page };
        cluster.fill()?;
        Ok(cluster)
    }

    /// Puts all pages, and waits until all of them are there and the server is trusted.
    fn fill(&self) -> anyhow::Result<()> {
        let all = [&self.bad_keys[..], &self.good_keys[..]].concat();
        let pages = vec![&self.page[..]; all.len()];
        let begun = Instant::now();
        let mut well = 0;
        while well < 20 {
            let mut out = vec![PageOutcome::Busy; all.len()];
            self.space.put_from(&all, &pages, &mut out)?;
            let there = out.iter().all(|outcome| outcome.is_success());
            let got = self.get(&all[..BATCH])?.1.iter().all(|outcome| *outcome == PageOutcome::Hit);
            well = if there && got { well + 1 } else { 0 };
            ensure!(begun.elapsed() < PATIENCE, "the cluster is not well: {:?}", self.client.servers());
            if well == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Gets pages; nanoseconds and outcomes.
    fn get(&self, keys: &[Vec<u8>]) -> anyhow::Result<(u64, Vec<PageOutcome>)> {
        let mut room = vec![vec![0; PAGE_BYTES]; keys.len()];
        let mut slices: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
        let mut out = vec![PageOutcome::Busy; keys.len()];
        let begun = Instant::now();
        self.space.get_into(keys, &mut slices, &mut out)?;
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let right = out.iter().zip(&room).all(|(o, bytes)| *o != PageOutcome::Hit || *bytes == self.page);
        ensure!(right, "wrong bytes");
        Ok((took, out))
    }

    fn is_suspected(&self) -> bool {
        let servers = self.client.servers();
        servers.iter().any(|server| server.address.id == "bad" && server.state != ServerState::Ready)
    }

    /// Calls of both kinds for a while.
    fn measure(&self, time: Duration) -> anyhow::Result<Samples> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| self.beside(&over));
            let touching = scope.spawn(|| self.touching(&over));
            std::thread::sleep(time);
            over.store(true, SeqCst);
            let beside = beside.join().ok().context("the thread beside panicked")??;
            let (touching, suspected) = touching.join().ok().context("the other thread panicked")??;
            Ok(Samples { beside, touching, suspected })
        })
    }

    /// Gets of one page that do not touch the bad server, until told to stop.
    fn beside(&self, over: &AtomicBool) -> anyhow::Result<Vec<u64>> {
        let mut took = Vec::new();
        for key in self.good_keys.chunks(1).cycle().take_while(|_| !over.load(SeqCst)) {
            let (nanos, out) = self.get(key)?;
            ensure!(out[0] == PageOutcome::Hit, "a page of a good server became {:?}", out[0]);
            took.push(nanos);
        }
        Ok(took)
    }

    /// Batches that do, and those of them that began while it was suspected. A pause after each keeps them from being
    /// more when they cost less.
    fn touching(&self, over: &AtomicBool) -> anyhow::Result<(Vec<u64>, Vec<u64>)> {
        let (mut took, mut suspected) = (Vec::new(), Vec::new());
        let keys = &self.bad_keys[..BATCH / 4];
        while !over.load(SeqCst) {
            let was_suspected = self.is_suspected();
            let (nanos, _) = self.get(keys)?;
            took.push(nanos);
            if was_suspected && self.is_suspected() {
                suspected.push(nanos);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok((took, suspected))
    }
}

/// Runs `memkv-bench beside`.
///
/// # Errors
///
/// If it cannot be measured, or wrong bytes came.
pub(crate) fn run(args: &BesideArgs) -> anyhow::Result<()> {
    let all = if args.faults.is_empty() { Fault::value_variants() } else { &args.faults[..] };
    let time = Duration::from_secs_f64(args.seconds);
    let mut cluster = Cluster::start(args)?;
    let mut faults = Vec::new();
    for &fault in all {
        let name = fault.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let mut parts: [Samples; 3] = Default::default();
        for round in 1..=args.rounds.max(1) {
            eprintln!("{name}, round {round} …");
            parts[0].add(cluster.measure(time)?);
            cluster.bad.begin(fault)?;
            parts[1].add(cluster.measure(time)?);
            cluster.bad.end(fault)?;
            parts[2].add(cluster.measure(time)?);
            cluster.fill()?;
        }
        faults.push(row(name, &parts));
    }
    let report = Report {
        command: command_line(),
        machine: Machine::describe(),
        deadline_ms: args.deadline_ms,
        faults,
    };
    print!("{}", table(&report));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).context("write JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn row(fault: String, [before, during, after]: &[Samples; 3]) -> Row {
    #[allow(clippy::cast_precision_loss, reason = "shown in microseconds")]
    let max = during.touching.iter().max().map_or(0.0, |&nanos| nanos as f64 / 1e3);
    Row {
        fault,
        before: Latency::of(&before.beside),
        during: Latency::of(&during.beside),
        after: Latency::of(&after.beside),
        touching: Latency::of(&during.touching),
        touching_max_us: max,
        suspected: Latency::of(&during.suspected),
    }
}

fn table(report: &Report) -> String {
    let pair = |latency: &Option<Latency>| {
        latency.map_or("–".to_owned(), |latency| format!("{:.0} / {:.0}", latency.p50_us, latency.p99_us))
    };
    let mut out = format!(
        "Gets of one page of {} KiB that do not touch the bad server, and gets of {} pages of the bad server: p50 / p99, µs. \
         Deadline {} ms.\n\n\
         | fault | beside: before | during | after | p99 during of before | touching: all, p99 ms | the longest, ms | \
         while suspected |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
        PAGE_BYTES >> 10,
        BATCH / 4,
        report.deadline_ms
    );
    for row in &report.faults {
        let ratio = match (&row.before, &row.during) {
            (Some(before), Some(during)) => format!("{:.2}", during.p99_us / before.p99_us),
            _ => "–".to_owned(),
        };
        let touching = row.touching.map_or(0.0, |latency| latency.p99_us) / 1e3;
        out += &format!(
            "| {} | {} | {} | {} | {ratio} | {touching:.1} | {:.0} | {} |\n",
            row.fault,
            pair(&row.before),
            pair(&row.during),
            pair(&row.after),
            row.touching_max_us / 1e3,
            pair(&row.suspected)
        );
    }
    out + &format!("\n{}\n", report.machine.line())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sums_up_all_rounds() {
        let samples = |beside: &[u64]| Samples { beside: beside.to_vec(), ..Samples::default() };
        let mut during = samples(&[2000, 2000]);
        during.add(Samples { touching: vec![5_000_000], suspected: vec![3000], ..samples(&[2000]) });
        let row = row("slow".into(), &[samples(&[1000]), during, samples(&[])]);
        assert_eq!(row.during.map(|latency| latency.count), Some(3));
        let report = Report {
            command: String::new(),
            machine: Machine::describe(),
            deadline_ms: 7,
            faults: vec![row],
        };
        let table = table(&report);
        assert!(table.contains("| slow | 1 / 1 | 2 / 2 | – | 2.00 | 5.0 | 5 | 3 / 3 |"), "{table}");
    }
}
