//! What readers find while one of four servers is drained and stopped.
//!
//! Readers ask for pages at random, over and over; a writer adds new ones, which the readers ask for too. Three phases:
//! all four servers; the drain; and the three that are left, for clients with the new list, with the drained one stopped.

use crate::daemon::{Daemon, find_server};
use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, SpaceDescription, Transport, v1};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Pages of one get and of one put.
const BATCH: usize = 32;
/// Pauses of the writer, so that the store does not fill.
const WRITER_PAUSE: Duration = Duration::from_millis(20);
const PHASES: [&str; 3] = ["before", "during", "after"];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct DrainArgs {
    /// The server to start; otherwise the one beside this program.
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// Memory of each of the four servers.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = crate::parse_size)]
    dram: usize,
    /// Pages that are stored before the first phase.
    #[arg(long, default_value_t = 8000)]
    pages: usize,
    /// Bytes of a page.
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = crate::parse_size)]
    page: usize,
    /// Threads that read.
    #[arg(long, default_value_t = 2)]
    readers: usize,
    /// Most bytes a second of the drain; 0 for no limit.
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    rate: u64,
    /// Seconds of the first and the last phase.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// What one phase came to.
struct Phase {
    seconds: f64,
    asked: u64,
    hits: u64,
    failed: u64,
    /// Microseconds of a batch.
    times: Histogram<u64>,
}

/// What all threads share.
struct Run<'a> {
    args: &'a DrainArgs,
    /// Pages that are acknowledged; a page's key is its number.
    stored: AtomicUsize,
    stop: AtomicBool,
}

/// Runs the three phases and prints a table.
pub(crate) fn run(args: DrainArgs, command: &str) -> anyhow::Result<()> {
    ensure!(args.pages >= BATCH, "--pages must be at least {BATCH}");
    let program = find_server(args.server.clone())?;
    let mut key = [0; 32];
    getrandom::fill(&mut key).context("make a key")?;
    let key = hex::encode(key);
    let start = || Daemon::start_as(&program, args.dram as u64, &key, &[]);
    let mut daemons = (0..4).map(|_| start()).collect::<anyhow::Result<Vec<_>>>()?;
    let addresses: Vec<_> = daemons.iter().map(|daemon| format!("{0}={0}", daemon.address())).collect();
    let client = connect(&addresses, daemons[0].key())?;
    let space = client.space(SpaceDescription::named("drain")?)?;
    let run = Run { args: &args, stored: AtomicUsize::new(0), stop: AtomicBool::new(false) };
    eprintln!("storing {} pages", args.pages);
    while run.stored.load(Ordering::Acquire) < args.pages {
        run.add(&space)?;
    }
    let pause = Duration::from_secs(args.seconds);
    let before = run.phase(&space, || std::thread::sleep(pause))?;
    let mut drained = None;
    let during = run.phase(&space, || drained = Some(drain(&client, &addresses, args.rate)))?;
    let drained = drained.context("the drain was run")??;
    client.close();
    drop(daemons.remove(0));
    let client = connect(&addresses[1..], daemons[0].key())?;
    let space = client.space(SpaceDescription::named("drain")?)?;
    let after = run.phase(&space, || std::thread::sleep(pause))?;
    client.close();
    println!("command: {command}");
    println!(
        "drained: {} pages ({} MiB) moved, {} there already, {} lost, {:.1} s; state {:?}",
        drained.moved_pages,
        drained.moved_bytes >> 20,
        drained.existing_pages,
        drained.lost_pages,
        drained.elapsed_ms as f64 / 1000.0,
        drained.state()
    );
    println!("| phase | seconds | pages read | hits | failed | pages/s | p50 of a batch of {BATCH} | p99 |");
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for (name, phase) in PHASES.iter().zip([before, during, after]) {
        println!(
            "| {name} | {:.1} | {} | {:.3} % | {} | {:.0} | {} µs | {} µs |",
            phase.seconds,
            phase.asked,
            100.0 * phase.hits as f64 / phase.asked.max(1) as f64,
            phase.failed,
            phase.asked as f64 / phase.seconds,
            phase.times.value_at_quantile(0.5),
            phase.times.value_at_quantile(0.99)
        );
    }
    Ok(())
}

fn connect(addresses: &[String], key: &str) -> anyhow::Result<Client> {
    let config = Config::builder()
        .without_environment()
        .servers(addresses.join(","))
        .auth_key_hex(key)
        .transport(Transport::Tcp)
        .build()?;
    Ok(Client::connect(config)?)
}

fn drain(client: &Client, addresses: &[String], rate: u64) -> anyhow::Result<v1::DrainProgress> {
    let id = |address: &String| address.split('=').next().unwrap_or_default().to_owned();
    let member = |server: memkv_client::ServerView| v1::DrainMember {
        id: server.address.id,
        host: server.address.host,
        port: server.address.port.into(),
        weight: server.address.weight,
    };
    let leaving = id(&addresses[0]);
    let members = client.servers().into_iter().filter(|server| server.address.id != leaving).map(member);
    let request = v1::DrainRequest {
        action: v1::DrainAction::Start.into(),
        members: members.collect(),
        bytes_per_second: rate,
        copies: 1,
    };
    Ok(client.drain(&leaving, request, |_| {})?)
}

impl Run<'_> {
    fn page(&self, name: usize) -> Vec<u8> {
        let mut page = vec![0; self.args.page];
        page[..8].copy_from_slice(&name.to_le_bytes());
        page
    }

    /// Stores one batch of new pages.
    fn add(&self, space: &Space) -> anyhow::Result<()> {
        let first = self.stored.load(Ordering::Acquire);
        let names: Vec<usize> = (first..first + BATCH).collect();
        let (keys, pages) =
            (self.keys(&names), names.iter().map(|&name| self.page(name)).collect::<Vec<_>>());
        let pages: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
        let mut outcomes = vec![PageOutcome::Unavailable; BATCH];
        space.put_from(&keys, &pages, &mut outcomes)?;
        // Only what was acknowledged is asked for; the others are tried again.
        if outcomes.iter().all(|outcome| outcome.is_success()) {
            self.stored.fetch_add(BATCH, Ordering::Release);
        }
        Ok(())
    }

    fn keys(&self, names: &[usize]) -> Vec<Vec<u8>> {
        names.iter().map(|name| format!("page-{name}").into_bytes()).collect()
    }

    /// Reads and writes while `act` runs.
    fn phase(&self, space: &Space, act: impl FnOnce()) -> anyhow::Result<Phase> {
        self.stop.store(false, Ordering::Release);
        let times = Histogram::new_with_bounds(1, 60_000_000, 3)?;
        let sum = Mutex::new(Phase { seconds: 0.0, asked: 0, hits: 0, failed: 0, times });
        let failed = Mutex::new(None);
        let started = Instant::now();
        std::thread::scope(|scope| {
            for reader in 0..self.args.readers {
                let (sum, failed) = (&sum, &failed);
                scope.spawn(move || {
                    if let Err(error) = self.read(space, reader, sum) {
                        *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                    }
                });
            }
            scope.spawn(|| {
                // What no longer fits would be evicted, and that is no loss of a drain.
                let most = 3 * self.args.dram / self.args.page / 4 * 3;
                while !self.stop.load(Ordering::Acquire) && self.stored.load(Ordering::Acquire) < most {
                    if let Err(error) = self.add(space) {
                        *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                        return;
                    }
                    std::thread::sleep(WRITER_PAUSE);
                }
            });
            act();
            self.stop.store(true, Ordering::Release);
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        let mut phase = sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        phase.seconds = started.elapsed().as_secs_f64();
        Ok(phase)
    }

    fn read(&self, space: &Space, seed: usize, sum: &Mutex<Phase>) -> anyhow::Result<()> {
        let mut pages = vec![vec![0; self.args.page]; BATCH];
        let mut outcomes = vec![PageOutcome::Unavailable; BATCH];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed as u64 + 1);
        while !self.stop.load(Ordering::Acquire) {
            let stored = self.stored.load(Ordering::Acquire);
            let names: Vec<usize> = (0..BATCH)
                .map(|_| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    (random >> 33) as usize % stored
                })
                .collect();
            let keys = self.keys(&names);
            let mut slices: Vec<&mut [u8]> = pages.iter_mut().map(Vec::as_mut_slice).collect();
            let started = Instant::now();
            space.get_into(&keys, &mut slices, &mut outcomes)?;
            let took = u64::try_from(started.elapsed().as_micros())?;
            for ((page, name), outcome) in pages.iter().zip(&names).zip(&outcomes) {
                let wrong = *outcome == PageOutcome::Hit && page[..8] != name.to_le_bytes();
                ensure!(!wrong, "wrong bytes under page-{name}");
            }
            let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            sum.asked += BATCH as u64;
            sum.hits += outcomes.iter().filter(|outcome| **outcome == PageOutcome::Hit).count() as u64;
            sum.failed += outcomes.iter().filter(|outcome| outcome.is_failure()).count() as u64;
            sum.times.saturating_record(took);
        }
        Ok(())
    }
}
