//! `memkv-bench siege`: what many hostile connections cost a server, and the clients that are served beside them.
//!
//! For each kind of hostility: before, during, after, some rounds of it. The besiegers are a process of their own, at the lowest
//! priority, because elsewhere they would have processors of their own. What they and a besieged server take of the processors is
//! told apart from what it does to those it serves: in each round the same besiegers also besiege another server beside it.
//! Beside them one client gets pages all the time, and new clients come, are served and go.
//!
//! Deliberately absent: a besieger that uses up the network or all of its own host's processor. That is not for the server to stop.

mod besieger;
mod crew;
mod door;

use crate::machine::{Machine, resident_bytes};
use crate::stats::Latency;
use crate::{command_line, daemon};
use anyhow::{Context as _, bail, ensure};
pub(crate) use besieger::Kind;
use clap::{Args, ValueEnum as _};
pub(crate) use crew::serve;
use crew::{Crew, Order, Standing};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, SpaceDescription, Transport};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const DRAM_BYTES: u64 = 256 << 20;
pub(crate) const PAGE_BYTES: usize = 64 << 10;
const PAGES: usize = 64;
/// How often memory is looked at, and how long a newcomer waits before the next.
const LOOK: Duration = Duration::from_millis(100);
/// Files that a server needs beside its connections.
const FILES: u64 = 512;

/// What `memkv-bench siege` takes.
#[derive(Args)]
pub(crate) struct SiegeArgs {
    /// The kinds of besiegers; all if not said.
    #[arg(long, value_enum, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Connections of each kind.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Connections a second that are opened again in the place of those that the server closed.
    #[arg(long, default_value_t = 500)]
    redials: usize,
    /// Seconds of each part: before, during, after.
    #[arg(long, default_value = "4", value_parser = crate::parse_seconds)]
    seconds: f64,
    /// How often each kind comes.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
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
    connections: usize,
    redials_per_second: usize,
    kinds: Vec<Row>,
}

/// What one kind came to, over all rounds.
#[derive(Serialize)]
struct Row {
    kind: String,
    /// Connections that stood when the measuring began, and those that the server closed until its end; means over rounds.
    standing: usize,
    closed: usize,
    before: Part,
    /// While another server on this machine is besieged.
    elsewhere: Part,
    during: Part,
    after: Part,
    /// The p99 of the gets during by that before, of each round; the one in the middle.
    p99_ratio: f64,
    /// The same by that while another server is besieged.
    p99_ratio_elsewhere: f64,
}

/// A stretch of time.
#[derive(Serialize)]
struct Part {
    /// Gets of one page by a client that was there before.
    gets: Option<Latency>,
    /// New clients, from nothing to their first page.
    newcomers: Option<Latency>,
    newcomers_refused: usize,
    /// The server's memory, bytes: the most that was seen.
    resident_bytes: u64,
}

/// What was seen in such a time.
#[derive(Default)]
struct Seen {
    gets: Vec<u64>,
    newcomers: Vec<u64>,
    refused: usize,
    resident: u64,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.gets.extend(other.gets);
        self.newcomers.extend(other.newcomers);
        self.refused += other.refused;
        self.resident = self.resident.max(other.resident);
    }

    fn p99(&self) -> f64 {
        Latency::of(&self.gets).map_or(f64::NAN, |latency| latency.p99_us)
    }

    fn part(&self) -> Part {
        Part {
            gets: Latency::of(&self.gets),
            newcomers: Latency::of(&self.newcomers),
            newcomers_refused: self.refused,
            resident_bytes: self.resident,
        }
    }
}

/// The server, and who is served.
struct City {
    daemon: daemon::Daemon,
    client: Client,
    space: Space,
    keys: Vec<Vec<u8>>,
    page: Vec<u8>,
}

impl City {
    fn start(args: &SiegeArgs) -> anyhow::Result<Self> {
        let program = daemon::find_server(args.server.clone())?;
        let mut key = [0; 32];
        getrandom::fill(&mut key).context("make a key")?;
        let places = (args.connections + 2048).to_string();
        let daemon = daemon::Daemon::start_as(
            &program,
            DRAM_BYTES,
            &hex::encode(key),
            &["--limits-connections-max", &places],
        )?;
        let client = connect(&daemon)?;
        let space = client.space(SpaceDescription::named("siege")?)?;
        let city = Self {
            daemon,
            client,
            space,
            keys: crate::workload::keys("siege", PAGES),
            page: crate::workload::pattern(PAGE_BYTES),
        };
        for key in &city.keys {
            let put = city.space.put(key, &city.page)?;
            ensure!(put.is_success(), "a page was not stored: {put:?}");
        }
        Ok(city)
    }

    /// What is seen for a while.
    fn look(&self, time: Duration) -> anyhow::Result<Seen> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let gets = scope.spawn(|| self.gets(&over));
            let newcomers = scope.spawn(|| self.newcomers(&over));
            let begun = Instant::now();
            let mut resident = 0;
            while begun.elapsed() < time {
                resident = resident.max(resident_bytes(self.daemon.pid()));
                std::thread::sleep(LOOK);
            }
            over.store(true, SeqCst);
            let gets = gets.join().ok().context("the client's thread panicked")??;
            let (newcomers, refused) = newcomers.join().ok().context("the newcomers' thread panicked")?;
            Ok(Seen { gets, newcomers, refused, resident })
        })
    }

    /// Gets of one page each, until told to stop; nanoseconds.
    fn gets(&self, over: &AtomicBool) -> anyhow::Result<Vec<u64>> {
        let mut took = Vec::new();
        let mut page = vec![0; PAGE_BYTES];
        for key in self.keys.chunks(1).cycle().take_while(|_| !over.load(SeqCst)) {
            let mut out = [PageOutcome::Busy];
            let begun = Instant::now();
            self.space.get_into(key, &mut [&mut page[..]], &mut out)?;
            took.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
            ensure!(out[0] == PageOutcome::Hit && page == self.page, "a page became {:?}", out[0]);
        }
        Ok(took)
    }

    /// New clients, one after the other, until told to stop; nanoseconds of those that got a page, and how many did not.
    fn newcomers(&self, over: &AtomicBool) -> (Vec<u64>, usize) {
        let (mut took, mut refused) = (Vec::new(), 0);
        while !over.load(SeqCst) {
            let begun = Instant::now();
            match self.newcomer() {
                Ok(()) => took.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)),
                Err(error) => {
                    eprintln!("a new client was not served: {error:#}");
                    refused += 1;
                }
            }
            std::thread::sleep(LOOK);
        }
        (took, refused)
    }

    fn newcomer(&self) -> anyhow::Result<()> {
        let client = connect(&self.daemon)?;
        let space = client.space(SpaceDescription::named("siege")?)?;
        let page = space.get(&self.keys[0])?.context("its page is not there")?;
        ensure!(page == self.page, "wrong bytes");
        client.close();
        Ok(())
    }
}

fn connect(daemon: &daemon::Daemon) -> anyhow::Result<Client> {
    let config = Config::builder().without_environment().servers(daemon.address());
    let config = config.auth_key_hex(daemon.key().to_owned()).transport(Transport::Tcp);
    Ok(Client::connect(config.build()?)?)
}

/// Runs `memkv-bench siege`.
///
/// # Errors
///
/// If a kind cannot be measured, or wrong bytes came; the others are measured and shown first.
pub(crate) fn run(args: &SiegeArgs) -> anyhow::Result<()> {
    may_open(args.connections as u64 + FILES)?;
    let all = if args.kinds.is_empty() { Kind::value_variants() } else { &args.kinds[..] };
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for &kind in all {
        // Each kind has a server of its own: what one leaves in memory is not the next one's.
        let [city, other] = [City::start(args)?, City::start(args)?];
        match besiege(&city, &other, kind, args) {
            Ok(row) => rows.push(row),
            // The others may still be measured.
            Err(error) => {
                eprintln!("{}: not measured: {error:#}", kind.name());
                failed.push(kind.name());
            }
        }
        city.client.close();
        other.client.close();
    }
    let report = Report {
        command: command_line(),
        machine: Machine::describe(),
        connections: args.connections,
        redials_per_second: args.redials,
        kinds: rows,
    };
    print!("{}", table(&report));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).context("write JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    ensure!(failed.is_empty(), "not measured, see above: {}", failed.join(", "));
    Ok(())
}

/// Lets this process and those that it starts open so many files.
fn may_open(files: u64) -> anyhow::Result<()> {
    let now = getrlimit(Resource::Nofile);
    if let Some(most) = now.maximum.filter(|most| *most < files) {
        bail!(
            "{files} open files are needed and {most} allowed; raise `ulimit -Hn`, or take fewer --connections"
        );
    }
    let raised = Rlimit { current: now.maximum.or(Some(files)), maximum: now.maximum };
    setrlimit(Resource::Nofile, raised).context("raise the number of open files")
}

/// What the besiegers of a city are told.
fn order(city: &City, kind: Kind, args: &SiegeArgs) -> anyhow::Result<Order> {
    Ok(Order {
        address: city.daemon.address().parse().context("read the server's address")?,
        key: city.daemon.key().to_owned(),
        kind,
        connections: args.connections,
        redials: args.redials,
        pages: city.keys.iter().map(hex::encode).collect(),
        space: hex::encode(city.space.id().0),
    })
}

fn besiege(city: &City, other: &City, kind: Kind, args: &SiegeArgs) -> anyhow::Result<Row> {
    let time = Duration::from_secs_f64(args.seconds);
    let orders = [order(other, kind, args)?, order(city, kind, args)?];
    let mut parts: [Seen; 4] = Default::default();
    let (mut ratios, mut standings) = ([Vec::new(), Vec::new()], Vec::new());
    let rounds = args.rounds.max(1);
    // What the server takes once, it takes before the first round.
    drop(city.look(time / 4)?);
    for round in 1..=rounds {
        eprintln!("{}, round {round} …", kind.name());
        let before = city.look(time)?;
        let crew = Crew::start(&orders[0])?;
        let elsewhere = city.look(time)?;
        crew.end()?;
        let crew = Crew::start(&orders[1])?;
        let during = city.look(time)?;
        standings.push(crew.end()?);
        let after = city.look(time)?;
        for (ratios, beside) in ratios.iter_mut().zip([&before, &elsewhere]) {
            ratios.push(during.p99() / beside.p99());
        }
        for (sum, part) in parts.iter_mut().zip([before, elsewhere, during, after]) {
            sum.add(part);
        }
    }
    let [p99_ratio, p99_ratio_elsewhere] = ratios.map(|mut ratios| {
        ratios.sort_by(f64::total_cmp);
        ratios[rounds / 2]
    });
    let mean = |of: fn(&Standing) -> usize| standings.iter().map(of).sum::<usize>() / rounds;
    let [before, elsewhere, during, after] = parts.map(|part| part.part());
    Ok(Row {
        kind: kind.name(),
        standing: mean(|standing| standing.at_begin),
        closed: mean(|standing| standing.closed),
        before,
        elsewhere,
        during,
        after,
        p99_ratio,
        p99_ratio_elsewhere,
    })
}

fn table(report: &Report) -> String {
    let pair = |latency: &Option<Latency>| {
        latency.map_or("–".to_owned(), |latency| format!("{:.0} / {:.0}", latency.p50_us, latency.p99_us))
    };
    let new = |part: &Part| {
        let served = part.newcomers.map_or("–".to_owned(), |latency| {
            format!("{:.0} / {:.0}", latency.p50_us / 1e3, latency.p99_us / 1e3)
        });
        let refused = part.newcomers_refused;
        if refused == 0 { served } else { format!("{served}, {refused} not served") }
    };
    let mut out = format!(
        "Gets of one page of {} KiB beside {} hostile connections, p50 / p99, µs; new clients, from nothing to their first page, \
         p50 / p99, ms; the server's memory, MiB.\n\n\
         | besiegers | stand | closed | gets: before | another server besieged | this one | after | p99, in the middle of the rounds: \
         of before | of another besieged | new clients: before | during | memory: before | during | after |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        PAGE_BYTES >> 10,
        report.connections,
    );
    for row in &report.kinds {
        out += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | × {:.2} | × {:.2} | {} | {} | {} | {} | {} |\n",
            row.kind,
            row.standing,
            row.closed,
            pair(&row.before.gets),
            pair(&row.elsewhere.gets),
            pair(&row.during.gets),
            pair(&row.after.gets),
            row.p99_ratio,
            row.p99_ratio_elsewhere,
            new(&row.before),
            new(&row.during),
            row.before.resident_bytes >> 20,
            row.during.resident_bytes >> 20,
            row.after.resident_bytes >> 20,
        );
    }
    out + &format!("\n{}\n", report.machine.line())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_the_most_memory_of_its_rounds_and_the_times_of_all() {
        let seen = |gets: &[u64], resident| Seen { gets: gets.to_vec(), resident, ..Seen::default() };
        let mut sum = seen(&[1000], 5 << 20);
        sum.add(Seen { refused: 1, ..seen(&[3000], 7 << 20) });
        sum.add(seen(&[2000], 6 << 20));
        let part = sum.part();
        assert_eq!((part.resident_bytes, part.gets.map(|gets| gets.count)), (7 << 20, Some(3)));
        let row = Row {
            kind: "silent".into(),
            standing: 9,
            closed: 8,
            before: seen(&[1000], 1 << 20).part(),
            elsewhere: seen(&[4000], 0).part(),
            during: part,
            after: seen(&[], 0).part(),
            p99_ratio: 1.25,
            p99_ratio_elsewhere: 0.75,
        };
        let report = Report {
            command: String::new(),
            machine: Machine::describe(),
            connections: 9,
            redials_per_second: 1,
            kinds: vec![row],
        };
        let table = table(&report);
        assert!(
            table.contains(
                "| silent | 9 | 8 | 1 / 1 | 4 / 4 | 2 / 3 | – | × 1.25 | × 0.75 | – | –, 1 not served | 1 | 7 | 0 |"
            ),
            "{table}"
        );
    }
}
